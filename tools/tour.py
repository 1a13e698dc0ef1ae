"""Take the pictures of nbs/tutorials/08_a_tour_of_the_app.ipynb: the app in Chromium, with SmolLM2 behind it.

    python tools/tour.py RUNS

RUNS is a folder with a finished run, such as `runs` after `text2grad quickstart`. It takes a minute or two."""
import os,shutil,signal,socket,subprocess,sys,tempfile,time,urllib.request
from pathlib import Path
from PIL import Image
from playwright.sync_api import expect,sync_playwright

out = Path(__file__).resolve().parent.parent/'nbs'/'tutorials'
LONGEST = 1080 # Pixels of a page that are shown, from its top
SAID = '"landed in July 1969" is right. "three weeks" is wrong: it was less than a day. "in 1968" is wrong.'

def answers(url):
    try: return urllib.request.urlopen(url, timeout=2).status==200
    except OSError: return False

def start(runs, folder):
    "The app on a free port, and its address"
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    cmd = [sys.executable, '-m', 'text2grad.cli.command', 'app', '--run', runs, '--port', str(port)]
    app,url = subprocess.Popen(cmd, cwd=folder, env=dict(os.environ, HF_HUB_OFFLINE='1')),f'http://127.0.0.1:{port}/'
    until = time.monotonic()+120
    while not answers(url):
        if app.poll() is not None or time.monotonic()>until: sys.exit('the app did not start')
        time.sleep(.2)
    return app,url

def keep(page, view):
    "The page as it is, cut, in 128 colours"
    file = out/f'app-tour-{view}.png'
    page.screenshot(path=file, full_page=True, animations='disabled')
    picture = Image.open(file).convert('RGB')
    picture = picture.crop((0, 0, picture.width, min(picture.height, LONGEST)))
    picture.quantize(128, dither=Image.Dither.NONE).save(file, optimize=True)
    print(f'{file.name}: {picture.width} x {picture.height}, {file.stat().st_size/1024:.0f} KB', flush=True)

def tour(page):
    "Each view with something to see in it"
    part = lambda view,what: page.locator(f'#t2g-{view}-{what}')
    tab = lambda n: page.get_by_role('tab').nth(n).click()
    slow = dict(timeout=600_000)
    expect(part('explore', 'note')).to_contain_text('An example')
    keep(page, 'explore')
    tab(1)
    part('critique', 'heat').locator('.t2g-u').first.wait_for()
    part('critique', 'feedback').locator('textarea').fill(SAID)
    expect(part('critique', 'inspector')).to_contain_text('word for word')
    expect(part('critique', 'lost')).to_contain_text('1968')
    keep(page, 'critique')
    tab(2)
    expect(part('apply', 'note')).to_contain_text('Ready')
    part('apply', 'apply').click()
    expect(part('apply', 'note')).to_contain_text('bit for bit', **slow)
    keep(page, 'apply')
    tab(3)
    part('why', 'heat').locator('.t2g-u', has_text='weeks').first.click()
    expect(part('why', 'ledger')).to_contain_text('= advantage')
    page.mouse.move(0, 0)
    keep(page, 'why')
    tab(4)
    part('runs', 'curves').locator('svg').first.wait_for()
    keep(page, 'runs')

if __name__=='__main__':
    browser = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as p:
        app,url = start(str(Path(sys.argv[1]).resolve()), folder)
        try:
            chromium = p.chromium.launch(executable_path=browser, args=['--no-sandbox', '--disable-gpu'])
            page = chromium.new_page(viewport=dict(width=1120, height=900))
            page.set_default_timeout(120_000)
            expect.set_options(timeout=120_000)
            page.goto(url)
            tour(page)
            chromium.close()
        finally:
            app.send_signal(signal.SIGINT)
            app.wait(30)
