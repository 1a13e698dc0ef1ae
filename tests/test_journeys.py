"Whole journeys through the app, in a real browser, with the real program behind it"

import os,re,signal,socket,subprocess,sys,time,urllib.request
import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from contextlib import contextmanager
from pathlib import Path
from playwright.sync_api import expect
from types import SimpleNamespace
from text2grad.core import Critique,Example,Span,dumps,loads,read_records

expect.set_options(timeout=30_000)
SHOTS = Path(os.environ.get('TEXT2GRAD_SHOTS') or Path(__file__).parent.parent/'build'/'screenshots') # a folder that git ignores
VIEWS = dict(explore='Explore', critique='Critique', apply='Apply', why='Why', runs='Runs', ab='A/B')
APP = [sys.executable, '-m', 'text2grad.cli.command', 'app']
RESPONSE = 'Neil Armstrong walked there in 1968. He was an American astronaut, but the Moon is dry and the Moon is grey.'

# Findings of axe that are Gradio's own: the rule, and the part of the page where it stands. Everything else must be clean.
GRADIOS = {}

def _free():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]

def _answers(url):
    try: return urllib.request.urlopen(url, timeout=2).status==200
    except OSError: return False

@contextmanager
def running(folder, *args, wait=120):
    "The program, started as a user would in `folder`; ended by SIGINT, as a user would"
    port,log = _free(),open(folder/'log.txt', 'w+')
    env = dict(os.environ, OMP_NUM_THREADS='1', PYTHONUNBUFFERED='1', HF_HUB_OFFLINE='1')
    p = subprocess.Popen([*APP, *map(str, args), '--port', str(port)], cwd=folder, env=env, stdout=log, stderr=subprocess.STDOUT)
    said = lambda: (folder/'log.txt').read_text()
    try:
        url,until = f'http://127.0.0.1:{port}/',time.monotonic()+wait
        while not _answers(url):
            assert p.poll() is None, f'the app ended: {said()}'
            assert time.monotonic()<until, f'no answer in {wait} s: {said()}'
            time.sleep(.1)
        yield SimpleNamespace(url=url, folder=folder, said=said, process=p)
        p.send_signal(signal.SIGINT)
        assert p.wait(20) in (0, 130), said()
        assert 'Traceback' not in said(), said()
    finally:
        p.kill()
        log.close()

@pytest.fixture(scope='module')
def run_folder(tiny, tmp_path_factory):
    "A folder with one short run in `runs/demo`"
    from text2grad.span_ppo.policy import Policy
    from text2grad.pretrained import load_model
    from text2grad.span_ppo.callbacks import RunFolder
    from text2grad.span_ppo.config import SpanPPOConfig
    from text2grad.span_ppo.trainer import SpanPPO
    d = tmp_path_factory.mktemp('app')
    critic = lambda exs: [Critique('No e.', [Span(i, i+1, -1., 'e', 'an e') for i,c in enumerate(e.response) if c=='e'], source='letters') for e in exs]
    cfg = SpanPPOConfig(steps=2, batch_size=2, minibatch_size=2, max_new_tokens=12, save_every=1, keep=2)
    SpanPPO(Policy.create(*load_model(str(tiny), device='cpu')), critic, [Example(f'Write {n} letters.', '') for n in ('one','two')], cfg, callbacks=[RunFolder(d/'runs'/'demo')]).fit()
    return d

@pytest.fixture(scope='module')
def server(tiny, run_folder):
    with running(run_folder, '--model', tiny) as s: yield s

@contextmanager
def opened(browser, server, theme='light', at='', **kw):
    "A page of the app; no error in the console and no request to another place until it is closed"
    ctx = browser.new_context(color_scheme=theme, viewport=dict(width=1280, height=900), accept_downloads=True, **kw)
    page,wrong = ctx.new_page(),[]
    page.set_default_timeout(30_000)
    page.on('console', lambda m: wrong.append(f'console: {m.text}') if m.type=='error' else None)
    page.on('pageerror', lambda e: wrong.append(f'page: {e}'))
    page.on('request', lambda r: None if r.url.startswith((server.url, 'data:', 'blob:')) else wrong.append(f'request: {r.url}'))
    page.goto(at or server.url)
    page.get_by_role('tab', name=VIEWS['explore']).wait_for()
    try: yield page
    except BaseException:
        shot(page, 'failed', theme)
        raise
    ctx.close()
    assert not wrong, wrong

def go(page, view):
    page.get_by_role('tab', name=VIEWS[view], exact=True).click()
    return lambda what: page.locator(f'#t2g-{view}-{what}')

def box(part): return part.locator('textarea,input').first

def narrow(page, view):
    "The page at 320 px: nothing sticks out"
    page.set_viewport_size(dict(width=320, height=800))
    page.wait_for_timeout(200)
    wide = page.evaluate('document.documentElement.scrollWidth')
    outside = page.evaluate('''() => [...document.querySelectorAll('[id^=t2g-]')].filter(x => x.offsetParent && x.getBoundingClientRect().right > 321).map(x => x.id)''')
    page.set_viewport_size(dict(width=1280, height=900))
    assert wide<=320, f'{view}: {wide} px wide at 320 px, {outside}'

def findings(page):
    "Serious and critical findings of axe but those of Gradio that are listed by name"
    for v in Axe().run(page).response['violations']:
        for n in v['nodes']:
            where = ' '.join(map(str, n['target']))
            if v['impact'] in ('serious','critical') and not any(re.search(w, f'{where} {n["html"]}') for w in GRADIOS.get(v['id'], ())): yield f'{v["id"]} ({v["impact"]}): {where}\n    {n["html"][:200]}\n    {n.get("failureSummary", "")[:300]}'

def axe(page, view):
    "Nothing to find, once what is fading in is there: an output is pale while its answer is awaited"
    for _ in range(6):
        found = list(findings(page))
        if not found: return
        page.wait_for_timeout(500)
    raise AssertionError(f'{view}: {len(found)} findings\n'+'\n'.join(found[:12]))

def shot(page, view, theme):
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SHOTS/f'{view}-{theme}.png', full_page=True, animations='disabled')

def looked_at(page, view, theme):
    shot(page, view, theme)
    axe(page, view)
    narrow(page, view)

# One page a theme goes through the six views in order, as a visitor would: what is generated in the first is explained in the fourth.

@pytest.fixture(scope='module', params=['light','dark'])
def theme(request): return request.param

@pytest.fixture(scope='module')
def page(browser, server, theme):
    with opened(browser, server, theme) as p: yield p

def choose(page, part, name):
    "Choose from a drop-down list"
    box(part).click()
    page.get_by_role('option', name=name, exact=True).click()

def chip(at, phrase):
    "The first words under a sentence of the critique"
    return at('heat').locator('.t2g-lines li', has_text=phrase).locator('.t2g-phrase').first

def lit_both_ways(at, phrase):
    "A phrase and its words light up together"
    button = chip(at, phrase)
    button.hover()
    expect(at('heat').locator('.t2g-u.t2g-on')).not_to_have_count(0)
    at('heat').locator(f'.t2g-u[data-s="{button.get_attribute("data-span")}"]').first.hover()
    expect(at('heat').locator('.t2g-phrase.t2g-on').first).to_have_attribute('aria-label', re.compile(re.escape(phrase)))

def test_explore(page, theme):
    at = go(page, 'explore')
    expect(at('note')).to_contain_text('An example')
    expect(at('heat').locator('.t2g-phrase')).to_have_count(2)
    expect(at('stop')).to_be_hidden()
    box(at('prompt')).fill('')
    at('judge').click()
    expect(page.get_by_text('prompt: is empty; type or paste something')).to_be_visible() # said once, and stamped on nothing
    assert not page.locator('[data-testid=status-tracker] .error').filter(visible=True).count()
    page.locator('.toast-close').click()
    box(at('example')).click()
    page.get_by_role('option').first.click()
    expect(box(at('prompt'))).not_to_have_value('')
    box(at('prompt')).fill('Say something.')
    choose(page, at('critic'), 'rules for summaries')
    at('sampling').get_by_text('How it is sampled').click()
    at('longest').locator('input[type=number]').fill('24')
    at('generate').click()
    expect(at('note')).to_contain_text(re.compile(r'\d+ tokens; \d+ spans? .* by rules/summarize'))
    expect(at('heat').locator('.t2g-u')).not_to_have_count(0)
    sampled = box(at('response')).input_value()
    assert sampled
    at('seed').locator('input').fill('1')
    at('generate').click()
    expect(box(at('response'))).not_to_have_value(sampled)
    expect(at('note')).to_contain_text(re.compile(r'\d+ tokens; \d+ spans?'))
    at('seed').locator('input').fill('0')
    at('generate').click()
    expect(box(at('response'))).to_have_value(sampled)
    expect(at('note')).to_contain_text(re.compile(r'\d+ tokens; \d+ spans?'))
    box(at('response')).fill(RESPONSE)
    choose(page, at('critic'), 'your own words')
    box(at('words')).fill(dumps(dict(critique='Praise and blame.', missing=[], good_spans=[dict(quote='American astronaut', reason='well said', severity=2)],
                                     poor_spans=[dict(quote='Buzz Aldrin', reason='no such man', severity=3), dict(quote='Moon is dry', reason='off the point', severity=3)])))
    at('judge').click()
    expect(at('spans')).to_contain_text('off the point')
    expect(at('spans')).to_contain_text('reward nothing')
    lit_both_ways(at, 'off the point')
    raw = at('heat').inner_html()
    choose(page, at('channel'), 'advantage')
    expect(at('note')).to_contain_text('advantage')
    at('how').get_by_label('rank').check()
    expect(at('heat')).to_contain_text('rank')
    at('unit').get_by_label('word').check()
    expect(at('heat').locator('.t2g-u', has_text='Armstrong')).to_have_count(1)
    assert at('heat').inner_html()!=raw
    with page.expect_download() as d: at('export-html').click()
    html = Path(d.value.path()).read_text()
    assert 'Content-Security-Policy' in html and '<script' not in html and 'off the point' in html
    with page.expect_download() as d: at('export-png').click()
    assert Path(d.value.path()).read_bytes().startswith(b'\x89PNG')
    looked_at(page, 'explore', theme)

def paste(at, theme, meanwhile=lambda: None):
    "Put a text of our own on the desk of the second view"
    at('texts').get_by_text('Another prompt and response').click()
    box(at('prompt')).fill(f'Who first walked on the Moon? ({theme})')
    box(at('response')).fill(RESPONSE)
    meanwhile()
    at('use').click()

def test_your_critique(page, server, theme):
    held = []
    page.route('**/queue/join*', lambda r: r.continue_() if held else held.append(r)) # the tab's own answer comes late
    at = go(page, 'critique')
    paste(at, theme, lambda: (held[0].continue_(), page.wait_for_timeout(500)))
    page.unroute('**/queue/join*')
    expect(at('note')).to_contain_text('other views look at this text too')
    box(at('feedback')).press_sequentially('"the Moon" is vague. "Buzz Aldrin" is odd. It is good that it says "American astronaut".', delay=5)
    expect(at('inspector').get_by_role('row')).to_have_count(4)
    expect(at('inspector')).to_contain_text('American astronaut” (word for word)')
    expect(at('heat').locator('.t2g-phrase')).to_have_count(3)
    # the aligner took both, and we mean the second
    at('phrase').get_by_role('radio').nth(0).check()
    expect(at('places').get_by_role('checkbox', checked=True)).to_have_count(2)
    at('places').get_by_role('checkbox', checked=True).first.click() # uncheck() would look at the box again, which by then may stand for another place
    expect(at('phrase')).to_contain_text('1. poor, by hand')
    # what was refused is put on words that we select
    at('phrase').get_by_role('radio').nth(1).check()
    expect(at('places').get_by_role('checkbox', checked=True)).to_have_count(0)
    at('heat').locator('.t2g-u', has_text='Armstrong').click()
    expect(box(at('words'))).to_have_value('Armstrong')
    at('phrase').get_by_role('radio').nth(1).check()
    at('here').click()
    expect(at('phrase')).to_contain_text('2. poor, by hand')
    lit_both_ways(at, 'odd')
    # words without a sentence
    at('heat').locator('.t2g-u', has_text='1968').click()
    expect(at('good')).to_contain_text('“1968” is good')
    word,button = at('heat').locator('.t2g-u', has_text='1968').bounding_box(),at('good').bounding_box()
    assert 0<=button['y']-word['y']-word['height']<12 and 0<=button['x']<word['x']+word['width'], 'the verdicts stand under the word'
    page.keyboard.press('Escape')
    expect(at('good')).to_be_hidden()
    at('heat').locator('.t2g-u', has_text='1968').click()
    shot(page, 'marks', theme)
    at('good').click()
    expect(at('note')).to_contain_text('Marked as good: “1968”')
    at('remove').click()
    expect(at('note')).to_contain_text('Taken out')
    at('heat').locator('.t2g-u', has_text='grey').click()
    expect(box(at('words'))).to_have_value('grey')
    at('verdict').get_by_label('good').check()
    at('severity').get_by_label('slight').check()
    box(at('reason')).fill('a colour')
    at('mark').click()
    expect(at('note')).to_contain_text('Marked as good')
    at('flip').click()
    expect(at('note')).to_contain_text('Turned around')
    at('automatic').click()
    expect(at('note')).to_contain_text('aligner again')
    at('save').click()
    expect(at('note')).to_contain_text('Saved to feedback.jsonl')
    looked_at(page, 'critique', theme)
    r = read_records(server.folder/'feedback.jsonl')[-1]
    assert [(s['text'], s['score']>0, s.get('match', 'given')) for s in r['spans']]==[('the Moon',False,'given'),('Armstrong',False,'given'),('American astronaut',True,'exact'),('grey',True,'given')]
    assert r['prompt'].endswith(f'({theme})') and r['spans'][0]['start']==RESPONSE.rindex('the Moon')

def test_a_saved_fix_survives_a_reload(browser, server, page, theme):
    with opened(browser, server, theme) as again:
        at = go(again, 'critique')
        paste(at, theme)
        expect(at('note')).to_contain_text('opened from feedback.jsonl')
        expect(at('phrase')).to_contain_text('1. poor, by hand')
        expect(box(at('feedback'))).to_have_value(re.compile('the Moon. is vague'))

def test_apply_this_critique(page, theme):
    at = go(page, 'apply')
    expect(at('note')).to_contain_text('Ready')
    at('apply').click()
    expect(at('note')).to_contain_text('bit for bit')
    expect(at('meter')).to_contain_text('probe set')
    expect(at('heat')).to_contain_text('Change of log-prob')
    expect(at('texts')).to_contain_text('After it')
    looked_at(page, 'apply', theme)
    at('undo').click()
    expect(at('note')).to_contain_text('Ready')
    expect(at('meter')).not_to_contain_text('probe set')

def test_why_this_token(page, theme):
    at = go(page, 'why')
    at('heat').locator('.t2g-phrase').first.wait_for()
    before = at('ledger').inner_text()
    at('heat').locator('.t2g-u', has_text='M').last.click()
    expect(at('ledger')).not_to_have_text(before)
    expect(at('ledger')).to_contain_text('vague')
    figures = [float(x.replace('−', '-')) for x in re.findall(r'advantage ([+−-]\d+\.\d+)', at('note').inner_text())]
    expect(at('three').locator('.t2g-view')).to_have_count(3)
    was = at('three').inner_html()
    slider = at('gamma').locator('input[type=number]')
    slider.fill('0.5')
    slider.press('Enter')
    page.wait_for_function('was => document.querySelector("#t2g-why-three").innerHTML != was', arg=was)
    at('reset').click()
    expect(slider).to_have_value('1')
    assert figures
    looked_at(page, 'why', theme)

def full_colours(part): return [re.search(r'full colour at ([\d.e-]+)', t)[1] for t in part.locator('.t2g-view').all_inner_texts()]

def test_runs(page, server, theme):
    at = go(page, 'runs')
    expect(at('curves').locator('svg')).not_to_have_count(0)
    at('heat').locator('.t2g-u').first.wait_for()
    at('curves').locator('svg').first.locator('.t2g-at').last.hover()
    expect(page.locator('#t2g-tip')).to_contain_text(re.compile(r'step [23]')) # the journeys before it may have trained one more
    shot(page, 'runs', theme)
    at('side-fold').get_by_text('Side by side').click()
    choose(page, at('run-b'), 'demo')
    expect(at('side').locator('.t2g-view')).to_have_count(3) # A and B on one scale, and the difference
    assert len(set(full_colours(at('side'))[:2]))==1
    at('checkpoints-fold').get_by_text('Two checkpoints').click()
    at('measure').click()
    expect(at('measured').locator('.t2g-view')).to_have_count(3)
    assert len(set(full_colours(at('measured'))[:2]))==1
    axe(page, 'runs')
    narrow(page, 'runs')
    # another step is written while we watch
    at('live').get_by_role('checkbox').check()
    log = server.folder/'runs'/'demo'/'metrics.jsonl'
    last = loads(log.read_text().splitlines()[-1])
    with log.open('a') as f: f.write(dumps(last | dict(step=last['step']+1))+'\n')
    expect(at('facts')).to_contain_text(f'step {last["step"]+1}')
    at('live').get_by_role('checkbox').uncheck()

def test_a_against_b(page, theme):
    at = go(page, 'ab')
    expect(at('result').locator('.t2g-view')).to_have_count(3) # something is compared from the start
    box(at('response')).fill(RESPONSE)
    choose(page, at('critic-a'), 'your own words')
    box(at('words-a')).fill('It is good that it says "American astronaut".')
    box(at('words-b')).fill('"American astronaut" is wrong: he was more. "grey" is good.')
    at('compare').click()
    expect(at('note')).to_contain_text('A: you. B: you')
    expect(at('result')).to_contain_text('One pays, the other blames')
    expect(at('result').locator('.t2g-view')).to_have_count(3)
    looked_at(page, 'ab', theme)
    at('kind').get_by_label('Two models read one response').check()
    expect(at('critic-a')).to_be_hidden()
    expect(at('result').locator('.t2g-view')).to_have_count(0)
    choose(page, at('model-b'), 'demo')
    expect(at('step-b')).to_be_visible()
    choose(page, at('step-b'), 'step 2')
    at('compare').click()
    expect(at('note')).to_contain_text('B: demo, step 2')
    expect(at('result').locator('.t2g-view')).to_have_count(3)
    assert len(set(full_colours(at('result'))[:2]))==1
    axe(page, 'ab')

def test_a_link_brings_the_page_back(browser, server):
    with opened(browser, server) as page:
        at = go(page, 'explore')
        box(at('prompt')).fill('Who walked there?')
        box(at('response')).fill(RESPONSE)
        box(at('words')).fill('"in 1968" is <b>wrong</b>.')
        at('link').click()
        expect(at('note')).to_contain_text('in the clipboard')
        page.wait_for_function('location.hash.startsWith("#t2g=")')
        link = page.url
    with opened(browser, server, at=link) as page:
        at = lambda what: page.locator(f'#t2g-explore-{what}')
        expect(at('note')).to_contain_text('From a link')
        expect(box(at('prompt'))).to_have_value('Who walked there?')
        expect(box(at('response'))).to_have_value(RESPONSE)
        expect(at('heat').locator('.t2g-u')).to_have_count(0)
        at('judge').click()
        expect(chip(at, 'in 1968')).to_be_visible()
    with opened(browser, server, at=link[:-9]) as page:
        expect(page.get_by_text('link: cannot be read')).to_be_visible()

def test_every_view_can_be_reached_on_a_telephone(browser, server):
    with opened(browser, server) as page:
        page.set_viewport_size(dict(width=375, height=800))
        for view in VIEWS:
            go(page, view)
            expect(page.get_by_role('tab', name=VIEWS[view], exact=True)).to_have_attribute('aria-selected', 'true')
            assert page.evaluate('document.documentElement.scrollWidth')<=375, view
        assert page.locator('footer').count()==0 or 'API' not in page.locator('footer').inner_text()

def tab_to(page, css, most=250):
    "Press Tab until the focus is there"
    for _ in range(most):
        page.keyboard.press('Tab')
        if page.evaluate('s => Boolean(document.activeElement && document.activeElement.closest(s))', css): return
    raise AssertionError(f'{css}: not reached by {most} presses of Tab')

def type_at(page, css, text):
    tab_to(page, css)
    page.keyboard.press('Control+a')
    page.keyboard.type(text)

def press_at(page, css):
    tab_to(page, css)
    page.keyboard.press('Enter')

def open_by_key(page, view):
    tab_to(page, '[role=tab]')
    for _ in range(8):
        if page.evaluate('document.activeElement.textContent.trim()')==VIEWS[view]: break
        page.keyboard.press('ArrowRight' if page.evaluate('document.activeElement.getAttribute("aria-selected")==="true" && document.querySelectorAll("[role=tab][tabindex=\'-1\']").length>0') else 'Tab')
    page.keyboard.press('Enter')
    expect(page.get_by_role('tab', name=VIEWS[view], exact=True)).to_have_attribute('aria-selected', 'true')
    return lambda what: page.locator(f'#t2g-{view}-{what}')

def keyboard_journey(page):
    at = lambda what: page.locator(f'#t2g-explore-{what}')
    type_at(page, '#t2g-explore-prompt', 'Say it.')
    press_at(page, '#t2g-explore-generate')
    expect(at('note')).not_to_contain_text('An example')
    expect(at('note')).to_contain_text('tokens;')
    tab_to(page, '#t2g-explore-heat .t2g-u')
    page.keyboard.press('ArrowRight')
    expect(page.locator('#t2g-tip')).to_contain_text('advantage')
    at = open_by_key(page, 'critique')
    at('heat').locator('.t2g-u').first.wait_for()
    tab_to(page, '#t2g-critique-heat .t2g-u')
    for key in ('Home','Shift+ArrowRight'): page.keyboard.press(key)
    expect(box(at('words'))).not_to_have_value('')
    type_at(page, '#t2g-critique-reason', 'no word')
    press_at(page, '#t2g-critique-mark')
    expect(at('note')).to_contain_text('Marked as poor')
    tab_to(page, '#t2g-critique-places')
    press_at(page, '#t2g-critique-flip')
    expect(at('note')).to_contain_text('Turned around')
    press_at(page, '#t2g-critique-save')
    expect(at('note')).to_contain_text('Saved')
    at = open_by_key(page, 'apply')
    expect(at('note')).to_contain_text('Ready')
    press_at(page, '#t2g-apply-apply')
    expect(at('note')).to_contain_text('bit for bit')
    press_at(page, '#t2g-apply-undo')
    expect(at('note')).to_contain_text('Ready')
    at = open_by_key(page, 'why')
    at('heat').locator('.t2g-u').first.wait_for()
    tab_to(page, '#t2g-why-heat .t2g-u')
    for key in ('ArrowRight','Enter'): page.keyboard.press(key)
    expect(at('note')).to_contain_text('Token 1 of')
    expect(page.locator('#t2g-why-heat .t2g-u[aria-current=true]')).to_be_focused()
    at = open_by_key(page, 'runs')
    at('heat').locator('.t2g-u').first.wait_for()
    was = at('heat').inner_html()
    tab_to(page, '#t2g-runs-step input[type=range]')
    page.keyboard.press('ArrowLeft')
    page.wait_for_function('was => document.querySelector("#t2g-runs-heat").innerHTML != was', arg=was)

def test_the_whole_journey_without_a_mouse(browser, server):
    with opened(browser, server) as page: keyboard_journey(page)

def both_themes(page, view):
    "The page as it is, in light and dark, in 128 colours: two of these pictures stand in the README, as index_files/app-*.png"
    for theme in ('light','dark'):
        page.emulate_media(color_scheme=theme)
        page.evaluate('on => document.body.classList.toggle("dark", on)', theme=='dark')
        shot(page, f'smollm2-{view}', theme)
        picture = SHOTS/f'smollm2-{view}-{theme}.png'
        Image.open(picture).convert('RGB').quantize(128, dither=Image.Dither.NONE).save(picture, optimize=True)
    page.emulate_media(color_scheme='light')
    page.evaluate('document.body.classList.remove("dark")')

def test_end_to_end_with_smollm2(browser, run_folder, tmp_path):
    from text2grad.pretrained import default_model
    default_model(progress=False)
    with running(tmp_path, '--run', os.environ.get('TEXT2GRAD_SHOW_RUN', run_folder/'runs')) as server, opened(browser, server) as page:
        page.set_default_timeout(120_000)
        at,slow = go(page, 'explore'),dict(timeout=120_000)
        box(at('example')).click()
        page.get_by_role('option').first.click()
        expect(box(at('prompt'))).not_to_have_value('')
        at('sampling').get_by_text('How it is sampled').click()
        at('longest').locator('input[type=number]').fill('256')
        at('generate').click()
        expect(box(at('response'))).not_to_have_value('', **slow)
        at('stop').click()
        expect(at('note')).to_contain_text(re.compile(r'\d+ tokens; \d+ spans?'), **slow)
        assert int(re.search(r'(\d+) tokens', at('note').inner_text())[1])<256
        at('longest').locator('input[type=number]').fill('32')
        at('generate').click()
        expect(at('note')).to_contain_text('Writing', **slow)
        expect(at('note')).to_contain_text(re.compile(r'\d+ tokens; \d+ spans?'), **slow)
        both_themes(page, 'explore')
        said = box(at('response')).input_value()
        words = ' '.join(said.split()[4:6]) # 'is closing'
        at = go(page, 'critique')
        at('heat').locator('.t2g-u').first.wait_for()
        box(at('feedback')).fill(f'"{words}" is the wrong tense. "the mayor" is made up.')
        expect(at('inspector')).to_contain_text('word for word')
        at('heat').locator('.t2g-u').nth(1).click()
        at('verdict').get_by_label('good').check()
        box(at('reason')).fill('The right place.')
        at('mark').click()
        expect(at('note')).to_contain_text('Marked as good')
        at('phrase').get_by_role('radio').nth(1).check()
        both_themes(page, 'critique')
        expect(at('lost')).to_contain_text('“the mayor”')
        at('save').click()
        expect(at('note')).to_contain_text('Not saved yet')
        at('save').click()
        expect(at('note')).to_contain_text('Saved')
        at = go(page, 'apply')
        expect(at('note')).to_contain_text('Ready')
        at('apply').click()
        expect(at('note')).to_contain_text('bit for bit', **slow)
        both_themes(page, 'apply')
        assert float(re.search(r'change is ([\d.]+) times', at('meter').inner_text())[1])>2, at('meter').inner_text()
        at('size').locator('input[type=number]').fill('0.1')
        at('apply').click()
        expect(at('note')).to_contain_text('Collapsed', **slow)
        expect(at('note')).to_contain_text('bit for bit')
        at('undo').click()
        expect(at('note')).to_contain_text('Ready')
        at = go(page, 'why')
        chip(at, 'wrong tense').click()
        expect(at('ledger')).to_contain_text('wrong tense')
        both_themes(page, 'why')
        at = go(page, 'runs')
        at('heat').locator('.t2g-u').first.wait_for()
        both_themes(page, 'runs')
        r, = read_records(tmp_path/'feedback.jsonl')
        assert r['response']==said and words in [s['text'] for s in r['spans']] and r['task']=='summarize'
