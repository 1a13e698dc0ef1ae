"""Take the pictures of nbs/tutorials/08_a_tour_of_the_app.ipynb: the app in Chromium, with SmolLM2 behind it.

    python tools/tour.py RUNS [VIEW...]

RUNS is a folder with a finished run, such as `runs` after `text2grad quickstart`; only the view `runs` looks into it. Without
names of views all six are taken, in a minute or two."""
import os,shutil,signal,socket,subprocess,sys,tempfile,time,urllib.request
from pathlib import Path
from PIL import Image
from playwright.sync_api import expect,sync_playwright

out = Path(__file__).resolve().parent.parent/'nbs'/'tutorials'
LONGEST = dict(ab=1360) # Pixels of a page that are shown, from its top; 1080 of the others
SAID = '"landed in July 1969" is right. "three weeks" is wrong: it was less than a day. "in 1968" is wrong.'

def answers(url):
    try: return urllib.request.urlopen(url, timeout=2).status==200
    except OSError: return False

def start(runs, folder):
    "The app on a free port, and its address"
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    cmd = [sys.executable, '-m', 'text2grad', 'app', '--run', runs, '--port', str(port)]
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
    picture = picture.crop((0, 0, picture.width, min(picture.height, LONGEST.get(view, 1080))))
    picture.quantize(128, dither=Image.Dither.NONE).save(file, optimize=True)
    print(f'{file.name}: {picture.width} x {picture.height}, {file.stat().st_size/1024:.0f} KB', flush=True)

class Tour:
    "Each view with something to see in it, in the order of the tabs; Apply takes the step that Critique asked for"
    def __init__(self, page): self.page = page
    def part(self, view, what): return self.page.locator(f'#t2g-{view}-{what}')
    def said(self, view, what, text, **kw): expect(self.part(view, what)).to_contain_text(text, **kw)

    def explore(self): self.said('explore', 'note', 'An example')

    def critique(self):
        self.part('critique', 'heat').locator('.t2g-u').first.wait_for()
        self.part('critique', 'feedback').locator('textarea').fill(SAID)
        self.said('critique', 'inspector', 'word for word')
        self.said('critique', 'lost', '1968')

    def apply(self):
        self.said('apply', 'note', 'Ready')
        self.part('apply', 'apply').click()
        self.said('apply', 'note', 'bit for bit', timeout=600_000)

    def why(self):
        self.part('why', 'heat').locator('.t2g-u', has_text='weeks').first.click()
        self.said('why', 'ledger', '= advantage')
        self.page.mouse.move(0, 0)

    def runs(self): self.part('runs', 'curves').locator('svg').first.wait_for()
    def ab(self): self.said('ab', 'result', 'One pays, the other blames')

VIEWS = ['explore','critique','apply','why','runs','ab'] # As the tabs stand

def tour(page, wanted):
    "Walk through the wanted views, and keep a picture of each"
    at = Tour(page)
    for i,view in enumerate(VIEWS):
        if view not in wanted: continue
        page.get_by_role('tab').nth(i).click()
        getattr(at, view)()
        keep(page, view)

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
            tour(page, sys.argv[2:] or VIEWS)
            chromium.close()
        finally:
            app.send_signal(signal.SIGINT)
            app.wait(30)
