"Sixty programs that are no text of ours, on every surface that draws text, in a real Chromium: none may run, and without escaping each of them does"
import json,re
from pathlib import Path
import numpy as np
import pytest

from text2grad.app import responses as table_of_responses
from text2grad.app.responses import response_rows,responses_html
from text2grad.evaluation.run_html import HeldOut,legend_of_lines
from text2grad.app.view_ab import Pair,clashes_html,pair_html
from text2grad.evaluation.run_html import Sample
from text2grad.viz import color,plots
from text2grad.viz import html as show
from text2grad.viz.channels import TokenTable
from text2grad.core import Critique,Example,Quote,Span
from text2grad.viz.heatmap import CSS,JS,heat,heat_map
from text2grad.viz.exports import export_html,export_svg

# How text that is not escaped comes to stand in a page: the context in which a payload is live
CONTEXTS = dict(text='<div>{}</div>', double='<span title="{}">x</span>', single="<span title='{}'>x</span>", bare='<span title={}>x</span>', href='<a href="{}">x</a>',
    style='<style>a{{}}{}</style>', title='<title>{}</title>', textarea='<textarea>{}</textarea>', comment='<!-- {} -->', table='<table><tr><td>{}</td></tr></table>',
    script='<script>let a="{}"</script>', script1="<script>let a='{}'</script>", template='<script>let a=`{}`</script>', line='<script>// {}\n</script>',
    twice='<div id=d>{}</div><script>d.innerHTML=d.textContent</script>')
PAYLOADS = [('text', s) for s in [
    '<script>HIT</script>', '<ScRiPt >HIT</sCrIpT>', '<script\n>HIT</script\n>', '<<script>HIT//<</script>', '<script src=x onerror=HIT></script>',
    '<img src=x onerror=HIT>', '<img src=x onerror="HIT">', '<img/src="x"/onerror=HIT>', '<IMG """><SCRIPT>HIT</SCRIPT>">', '<img src=x:x onerror\t=HIT>',
    '<svg onload=HIT>', '<svg/onload=HIT//', '<svg><script>HIT</script></svg>', '<svg><animate onbegin=HIT attributeName=x dur=1s>', '<svg><set onbegin=HIT attributeName=x>',
    '<svg><style><img src=x onerror=HIT></style></svg>', '<svg><a xlink:href="javascript:HIT"><text y=9>x</text></a></svg>', '<math><mtext><img src=x onerror=HIT></mtext></math>',
    '<details open ontoggle=HIT>x', '<p onmouseover=HIT>x</p>', '<p onclick=HIT>x</p>', '<p tabindex=0 onfocus=HIT>x</p>', '<body onload=HIT>', '<x-y onpointerover=HIT>x</x-y>',
    '<iframe srcdoc="<script>HIT</script>"></iframe>', '<iframe src="javascript:HIT"></iframe>', '<video src=x onerror=HIT></video>', '<video><source src=x onerror=HIT></video>',
    '<audio src=x onerror=HIT></audio>', '<style onload=HIT></style>', '<link rel=stylesheet href=x onerror=HIT>', '<style>@keyframes k{}</style><b style="animation:k 1ms" onanimationstart=HIT>x</b>',
    '<form action="javascript:HIT"><button>x</button></form>', '<form><button formaction=javascript:HIT>x</button></form>', '<!--><img src=x onerror=HIT>-->', '<!-- --!><img src=x onerror=HIT> -->',
    '<title><a title="</title><img src=x onerror=HIT>">', '\u202e<script>HIT</script>', '\ufeff<img src=x onerror=HIT>', '</span></button></div><svg onload=HIT>']] + [
    ('double', '" onmouseover="HIT'), ('double', '" tabindex=1 onfocus="HIT'), ('double', '"><script>HIT</script>'), ('double', '" onclick=HIT x="'), ('single', "' onmouseover='HIT"), ('single', "'><svg onload=HIT>"),
    ('bare', 'x onmouseover=HIT'), ('href', 'javascript:HIT'), ('href', 'java\tscript:HIT'), ('style', '</style><script>HIT</script>'), ('title', '</title><script>HIT</script>'),
    ('textarea', '</textarea><img src=x onerror=HIT>'), ('comment', '--><script>HIT</script>'), ('table', '</td></tr></table><script>HIT</script>'), ('script', '";HIT;//'),
    ('script', '</script><script>HIT</script>'), ('script1', "';HIT;//"), ('template', '${HIT}'), ('line', '\u2028HIT//'), ('twice', '&lt;img src=x onerror=HIT&gt;')]
assert len(PAYLOADS)==60
TEXTS = [s.replace('HIT', f'top.hit({n})') for n,(_,s) in enumerate(PAYLOADS)]

# The surfaces, each with the payload in every slot that takes text

def crit(s): return Critique(f'{s} is bad', [Span(0, 1, .5, s, s), Span(1, 4, -.5, s, f'{s}!', 'fuzzy', .9)], [Quote(s, -.5, s)], s)
def table(s): return TokenTable(('a', s, s[:3], s[3:], 'b', ''), [(0, 1), (1, n := 1+len(s)), (n, n+3), (n+3, n+len(s)), (n+len(s), m := n+len(s)+1), (m, m)], {'reward':[1,-1,0,.5,np.nan,1], s:range(6)})
def heat_surface(s):
    t = table(s)
    return ''.join([heat_map(t, critique=crit(s), title=s, label=s, picked=1), heat_map(t, s, 'z', 'word', crit(s)), heat_map(t, critique=crit(s), view='spans')])
def report(s):
    case = type('Case', (), dict(example=Example([dict(role=s, content=s)], table(s).response, crit(s)), table=table(s)))
    return export_html(case, channel=s, title=s).replace(f'<meta http-equiv="Content-Security-Policy" content="{show.CSP}">', '')
def responses(s):
    ex,n = Example(s, f'a{s}', crit(s)),(dict(metric='total', before=0., after=1., change=1.),)
    return responses_html(response_rows([HeldOut(ex, ex, n)]), 1)
def compared(s):
    a,b = (Sample(s, 1, s, s, table(s), c) for c in (crit(s), Critique(s, [Span(0, 4, -1., s, s)], source=s)))
    return pair_html(Pair('critics', a, b, (s, f'{s}?'), clashes_html(a.response, a.critique, b.critique)), 'reward', 'token')
def curves(s):
    lines = [plots.Line(s, [(1, .5), (2, 1.)], ((1, 0., 1.), (2, .5, 1.5))), plots.Line(f'{s}!', [(1, .1)])]
    return legend_of_lines(lines)+plots.curves_svg(lines, s, s, hover=9)
SURFACES = dict(heat=heat_surface, responses=responses, ab=compared, curves=curves, critique=lambda s: show.critique_html(f'a{s}', crit(s))+crit(s)._repr_html_(),
    table=lambda s: show.table_html([{s: s, 'n': 1}], caption=s)+plots.curve_svg([dict(a=1.), dict(a=2.)], 'a', s, s)+color.legend_html(1., s, s), report=report,
    notebook=lambda s: Example(s, f'a{s}', crit(s), reference=[s])._repr_html_()+Span(0, 1, .5, s, s)._repr_html_()+show.spans_html(f'a{s}', crit(s).spans, numbers=True)+show.token_html(['a', s], [1., -1.], label=s, title=s))

POKE = """doc => { for (const el of doc.querySelectorAll('*')) for (const t of ['pointerover','mouseover','focusin','focus','click','mouseout','focusout'])
    el.dispatchEvent(new doc.defaultView.MouseEvent(t, {bubbles: t!='focus', cancelable: true})) }"""
FRAMES = """async docs => {
    const poke = %s;
    for (const d of docs) { const f = document.createElement('iframe'); f.width = 300; f.height = 200; f.srcdoc = d; document.body.append(f); }
    for (let i=0; i<100 && ![...document.querySelectorAll("iframe")].map(f => f.contentWindow).every(f => f.document.readyState=='complete' && f.location.href!='about:blank'); i++) await new Promise(r => setTimeout(r, 50));
    for (const f of document.querySelectorAll('iframe')) if (f.contentDocument) poke(f.contentDocument);
    await new Promise(r => setTimeout(r, 400));
}""" % POKE

@pytest.fixture(scope='module')
def page(browser):
    "An empty page that counts hits and lets nothing out"
    p = browser.new_page()
    p.add_init_script('if (top===self) { window.hits = []; window.hit = n => { hits.push(n) } }')
    def answer(route):
        u = route.request.url
        if u!='http://page.test/': p.asked.append(u)
        route.fulfill(body='<!DOCTYPE html><meta charset=utf-8><body>', content_type='text/html') if u=='http://page.test/' else route.abort()
    p.route('**/*', answer)
    p.asked = []
    yield p
    p.close()

def fresh(page):
    page.asked.clear()
    page.goto('http://page.test/')
def hits(page): return sorted(set(page.evaluate('hits')))
def whole(body): return f'<!DOCTYPE html><meta charset="utf-8"><style>{CSS}</style><body>{body}<script>({JS})()</script>'

def test_control_every_payload_is_live(page):
    fresh(page)
    page.evaluate(FRAMES, ['<!DOCTYPE html><meta charset="utf-8"><body>'+CONTEXTS[k].replace('{{}}', '').replace('{}', s) for (k,_),s in zip(PAYLOADS, TEXTS)])
    dead = [PAYLOADS[n] for n in range(60) if n not in hits(page)]
    assert not dead, f'{len(dead)} of 60 do not fire where nothing is escaped: {dead}'
    assert page.asked, 'raw payloads ask the network'

@pytest.mark.parametrize('name', SURFACES)
def test_nothing_runs(page, name):
    "Parsed as a page, and set by a script as notebooks and Gradio do; the policy of a report is taken out, since escaping alone must hold"
    parts = [SURFACES[name](s) for s in TEXTS]
    fresh(page)
    page.evaluate(FRAMES, [p.replace('</body>', f'<script>({JS})()</script></body>') for p in parts] if name=='report' else [whole(''.join(parts))])
    text = page.evaluate('[...document.querySelectorAll("iframe")].map(f => f.contentDocument).map(d => d.body.textContent+[...d.querySelectorAll("[title],[aria-label]")].map(x => x.title+(x.ariaLabel ?? "")).join()).join()')
    lost = [s for s in TEXTS if color.visible(s) not in text.replace('\r', '')]
    assert hits(page)==[] and page.asked==[] and not lost, (hits(page), page.asked, lost)
    fresh(page)
    inner = [re.search(r'<body>(.*)</body>', p, re.S)[1] for p in parts] if name=='report' else parts
    page.evaluate(f'async parts => {{ const d = document.createElement("div"); document.body.append(d); ({JS})(); d.innerHTML = parts.join(""); ({POKE})(document); await new Promise(r => setTimeout(r, 300)) }}', inner)
    assert hits(page)==[] and page.asked==[]
    assert page.evaluate('document.querySelectorAll("script,iframe,img,svg script,object,embed,link,base,form,a").length')==0

@pytest.mark.parametrize('name', SURFACES)
def test_control_a_surface_that_does_not_escape(page, monkeypatch, name):
    "The same surfaces with escaping switched off: the same harness must notice"
    from text2grad.viz import heatmap
    for m in (color, show, plots, heatmap, table_of_responses):
        if hasattr(m, 'esc'): monkeypatch.setattr(m, 'esc', str)
        if hasattr(m, '_text_html'): monkeypatch.setattr(m, '_text_html', lambda s, kinds: s)
    few = TEXTS[::4]
    fresh(page)
    page.evaluate(FRAMES, [SURFACES[name](s) if name=='report' else whole(SURFACES[name](s)) for s in few])
    assert len(hits(page))>=10, f'only {len(hits(page))} of {len(few)} are noticed'

def test_policy_of_a_report_alone_stops_them(page):
    fresh(page)
    raw = [show.page_html('x', CONTEXTS[k].replace('{{}}', '').replace('{}', s)) for (k,_),s in zip(PAYLOADS, TEXTS)]
    page.evaluate(FRAMES, raw)
    assert hits(page)==[] and page.asked==[]

def test_pictures_run_nothing(page, browser):
    svg = export_svg(TokenTable(TEXTS, list(zip(ends := np.cumsum([0]+[len(s) for s in TEXTS]), ends[1:])), {TEXTS[0]: np.linspace(-1, 1, 60)}), TEXTS[0])
    p = browser.new_page()
    p.add_init_script('window.hits = []; window.hit = n => { hits.push(n) }')
    p.route('**/*', lambda r: r.fulfill(body=svg, content_type='image/svg+xml'))
    p.goto('http://page.test/x.svg')
    assert p.evaluate('document.documentElement.tagName')=='svg', 'not well-formed XML'
    assert p.evaluate('hits')==[] and p.evaluate('document.querySelectorAll("script,foreignObject,a,image,[onload]").length')==0
    p.close()

def test_nothing_runs_in_gradio(browser, monkeypatch):
    "The five surfaces as values of `gr.HTML`, at the start and as the answer to an event"
    monkeypatch.setenv('GRADIO_ANALYTICS_ENABLED', 'False')
    import gradio as gr
    one,ends = '\n'.join(TEXTS),np.cumsum([0]+[len(s)+1 for s in TEXTS])
    spans = [Span(int(a), int(b)-1, .5, s, s) for s,a,b in zip(TEXTS, ends, ends[1:])]
    t,c = TokenTable([s+'\n' for s in TEXTS], list(zip(ends, ends[1:])), {s:range(60) for s in TEXTS[:6]}),Critique(one, spans, [Quote(s, -1., s) for s in TEXTS], one)
    parts = dict(heat=heat_map(t, TEXTS[0], critique=c, title=one, label=one), critique=show.critique_html(one, c), table=show.table_html([{s:s} for s in TEXTS], caption=one),
        report=re.search(r'<body>(.*)</body>', export_html(t, c, TEXTS[0], title=one), re.S)[1], notebook=Example(one, one, c, reference=TEXTS)._repr_html_())
    with gr.Blocks(analytics_enabled=False) as demo:
        a,picked = heat(gr, 'a', parts['heat'], TEXTS[5])
        b = [heat(gr, k)[0] for k in parts]
        gr.Button('go', elem_id='go').click(lambda: list(parts.values()), None, b, api_visibility='private')
    demo.launch(css=CSS, js=JS, prevent_thread_lock=True, quiet=True, server_name='127.0.0.1', share=False)
    p = browser.new_page()
    try:
        p.add_init_script('if (top===self) { window.hits = []; window.hit = n => { hits.push(n) } }')
        asked = []
        p.on('request', lambda r: asked.append(r.url) if not r.url.startswith(demo.local_url) and not r.url.startswith(('data:', 'blob:')) else None)
        p.goto(demo.local_url)
        p.wait_for_selector('#a .t2g-u')
        p.click('#go')
        p.wait_for_selector('#notebook .t2g-spans')
        p.evaluate(f'() => {{ for (const x of document.querySelectorAll(".t2g-u,.t2g-phrase,.t2g-tok,summary")) for (const t of ["mouseover","focusin","mouseout"]) x.dispatchEvent(new MouseEvent(t, {{bubbles: true}})) }}')
        p.wait_for_timeout(300)
        assert p.evaluate('hits')==[] and asked==[]
        assert p.evaluate('document.querySelectorAll(".html-container script,.html-container iframe,.html-container img,.html-container a").length')==0
        said = p.locator('#notebook').text_content()
        assert all(color.visible(s) in said for s in TEXTS)
        p.evaluate('x => { document.querySelector("#a .t2g-view").innerHTML = x }', TEXTS[5])
        p.wait_for_function('hits.length>0', timeout=5000)   # the control: the same page does run what is not escaped
    finally:
        p.close()
        demo.close()

FORBIDDEN = 'html_template', 'css_template', r'sanitize_html\s*=\s*False', r'\bgr\.load\b', r'gradio\.load\b', r'datatype\s*=\s*.html', r'allowed_paths\s*=', r'share\s*=\s*True'

def test_no_source_opens_a_way_around():
    root,found = Path(show.__file__).parent,[]
    for f in [*root.rglob('*.py'), *(root.parent/'nbs').rglob('*.ipynb')]:
        code = f.read_text() if f.suffix=='.py' else '\n'.join(''.join(c['source']) for c in json.loads(f.read_text())['cells'] if c['cell_type']=='code')
        found += [f'{f.name}: {m[0]}' for w in FORBIDDEN for m in re.finditer(w, code)]
    assert not found, found
    assert all(re.search(w, x) for w,x in zip(FORBIDDEN, ('html_template=', 'css_template=', 'sanitize_html = False', 'gr.load(', 'gradio.load', "datatype='html'", 'allowed_paths=', 'share=True')))
