"The renderer against hostile text, colour-blind eyes, copy and paste, big inputs, and terminals"
import io,json,math,os,re,shutil,subprocess,sys,tempfile,time,warnings
from html.parser import HTMLParser
from pathlib import Path

import pytest
from fastcore.test import test_close as close
from hypothesis import given,settings,strategies as st

from text2grad.viz import color,plots
from text2grad.viz import html as show
from text2grad.core import Critique,Example,Quote,Span

HIT = 'document.documentElement.dataset.hit=1'
HOSTILE = [
    # elements
    f'<script>{HIT}</script>', f'<ScRiPt>{HIT}</sCrIpT>', f'</script><script>{HIT}</script>', f'<img src=x onerror="{HIT}">', f'<img src=x onerror={HIT}>',
    f'<svg onload="{HIT}">', f'<svg><script>{HIT}</script></svg>', f'<body onload="{HIT}">', f'<details open ontoggle="{HIT}">x</details>',
    f'<input autofocus onfocus="{HIT}">', f'<iframe srcdoc="<script>parent.{HIT}</script>"></iframe>', f'<iframe src="javascript:parent.{HIT}"></iframe>',
    f'<a href="javascript:{HIT}">x</a>', '<object data="data:text/html,x"></object>', '<embed src="x">', '<base href="https://evil.example/">',
    '<meta http-equiv="refresh" content="0;url=https://evil.example/">', '<link rel="stylesheet" href="https://evil.example/">',
    '<form action="https://evil.example/"><button>x</button></form>', f'<math><mtext><script>{HIT}</script></mtext></math>', '<template><b>x</b></template>',
    f'<video><source onerror="{HIT}"></video>', f'<marquee onstart="{HIT}">x</marquee>', '<custom-element>x</custom-element>',
    # breaking out of attributes, elements and raw text
    f'" onmouseover="{HIT}', f"' onmouseover='{HIT}", f'"><script>{HIT}</script>', f"'><img src=x onerror={HIT}>", f'" autofocus tabindex=1 onfocus="{HIT}" x="',
    '" style="position:fixed;inset:0', f'</span></div><script>{HIT}</script>', f'</style><script>{HIT}</script>', f'</title><script>{HIT}</script>',
    f'</textarea><script>{HIT}</script>', f'</td></tr></table><script>{HIT}</script>', f'</svg><script>{HIT}</script>', f'--><script>{HIT}</script>',
    f'<!-- <script>{HIT}</script> -->', f']]><script>{HIT}</script>', f'<![CDATA[<script>{HIT}</script>]]>', f'<?xml version="1.0"?><script>{HIT}</script>',
    f'<!DOCTYPE x [<!ENTITY y "{HIT}">]>', '<', '<<b>>', '<b', '</', '<!--', '&lt;b&gt;', '&amp;lt;', '&#60;script&#62;', '&#x3c;b&#x3e;', '&nosemicolon', '&#0;', '&',
    # templates and css
    f'${{{HIT}}}', '{{constructor.constructor("alert(1)")()}}', '{%raw%}', '<%= 7*7 %>', 'url(javascript:alert(1))', 'expression(alert(1))', ';background:url(https://evil.example/x)', '$\\frac{1}{0$',
    # characters
    'pay\u202egnp.exe', '\u2066a\u2069\u202c', 'zero\u200bwidth\ufeff', 'a\u200db', 'nul\0byte', 'half \ud83d emoji', '\udc00\ud800', '\x1b[31mred\x1b]0;t\x07', 'bell\x07\x08\x7f\x9b31m',
    'cr\rlf\r\nx\x0b\x0c', '\u2028\u2029', '\U000e0041\U000e0042', 'ﷺ𝕏ß', '＜script＞alert(1)＜/script＞', '👩‍👩‍👧‍👦 1️⃣ 🏴', 'e\u0301\u0301\u0301', 'مرحبا بالعالم', ' lead\n\t trail ', '', 'x'*3000]
assert len(HOSTILE)>=60

TAGS = set('html head meta title style body main h1 h2 section p div span table caption thead tbody tr th td ul li details summary svg polyline line text'.split())
ATTRS = set('class style title role aria-label tabindex dir scope lang charset http-equiv content name viewbox x y x1 x2 y1 y2 points fill stroke stroke-width stroke-linejoin stroke-linecap opacity font-size font-weight text-anchor'.split())
VOID = {'meta'}

class Checker(HTMLParser):
    "Collects text, attribute values and everything that is not on the allow-list"
    def __init__(self, markup):
        super().__init__(convert_charrefs=True)
        self.bad,self.open,self.text,self.marked,self.values = [],[],'','',[]
        self.feed(markup)
        self.close()
        if self.open: self.bad.append(f'not closed: {self.open}')
    def handle_starttag(self, tag, attrs, close=False):
        if tag not in TAGS: self.bad.append(f'<{tag}>')
        for k,v in attrs:
            if k not in ATTRS: self.bad.append(f'{tag} {k}={v!r}')
            if k=='style': self.check_style(v)
            else: self.values.append(v or '')
        if tag not in VOID and not close: self.open.append((tag, dict(attrs).get('class')))
    def handle_startendtag(self, tag, attrs): self.handle_starttag(tag, attrs, close=True)
    def handle_endtag(self, tag):
        if not self.open or self.open.pop()[0]!=tag: self.bad.append(f'stray </{tag}>')
    def handle_data(self, data):
        self.text += data
        if any(c=='t2g-text' for _,c in self.open): self.marked += data
    def handle_comment(self, data): self.bad.append(f'comment {data!r}')
    def handle_pi(self, data): self.bad.append(f'pi {data!r}')
    def unknown_decl(self, data): self.bad.append(f'decl {data!r}')
    def handle_decl(self, decl):
        if decl!='DOCTYPE html': self.bad.append(f'decl {decl!r}')
    def check_style(self, v):
        rest = re.sub(r'url\(data:image/svg\+xml,[\w%./-]*\)', '', v)
        if not re.fullmatch(r'[\w\s:;,.%#()+/-]*', rest) or 'url(' in rest or 'expression' in rest: self.bad.append(f'style {v!r}')

def drawn(s):
    "What the text of a response becomes: itself, but for the two kinds of character that HTML cannot hold"
    return re.sub('[\0\ud800-\udfff]', lambda m: f'[U+{ord(m[0]):04X}]', s)

def crit(s): return Critique(s, [Span(0, 1, .5, s, s)], [Quote(s, -.5, s)], s)
SLOTS = dict(
    token=lambda s: show.token_html(['a', s, 'b'], [.1, -.2, None]), token_cut=lambda s: show.token_html(list(s), [.1]*len(s)),
    token_title=lambda s: show.token_html(['a'], [1.], title=s), token_label=lambda s: show.token_html(['a'], [1.], label=s),
    token_detail_key=lambda s: show.token_html(['a'], [1.], detail=[{s: 1.}]), token_detail_value=lambda s: show.token_html(['a'], [1.], detail=[dict(k=s)]),
    legend_label=lambda s: color.legend_html(1., s), legend_note=lambda s: color.legend_html(1., note=s),
    spans_response=lambda s: show.spans_html(s, [Span(0, len(s)//2, 1.)]), spans_quote=lambda s: show.spans_html('abc', [Span(0, 1, 1., s)]),
    spans_reason=lambda s: show.spans_html('abc', [Span(0, 1, 1., '', s)], numbers=True),
    critique_response=lambda s: show.critique_html(s, Critique('x', [Span(0, len(s), -1.)])), critique=lambda s: show.critique_html('abc', crit(s)),
    critique_text=lambda s: show.critique_html('abc', Critique(s)), critique_source=lambda s: show.critique_html('abc', Critique('', source=s)),
    unresolved_text=lambda s: show.critique_html('abc', Critique('', unresolved=[Quote(s, -1.)])),
    span_repr=lambda s: Span(0, 1, .5, s, s)._repr_html_(), critique_repr=lambda s: crit(s)._repr_html_(),
    example_prompt=lambda s: Example(s, 'abc', crit('x'))._repr_html_(), example_reference=lambda s: Example('p', 'abc', reference=[s])._repr_html_(),
    example_role=lambda s: Example([dict(role=s, content='x')], 'abc')._repr_html_(), example_response=lambda s: Example('p', s)._repr_html_(),
    example_message=lambda s: Example([dict(role='user', content=s)], 'abc')._repr_html_(),
    table_cell=lambda s: show.table_html([dict(a=s)]), table_key=lambda s: show.table_html([{s: 1}]), table_caption=lambda s: show.table_html([dict(a=1)], caption=s),
    table_column=lambda s: show.table_html([{'a': 1}], columns=['a', s]),
    curve_key=lambda s: plots.curve_svg([{s: 1.}, {s: 2.}] if '.' not in s else [dict(a=1)], s), curve_x=lambda s: plots.curve_svg([dict(a=1.)], 'a', x=s),
    curve_label=lambda s: plots.curve_svg([dict(a=1.), dict(a=2.)], 'a', label=s),
    section=lambda s: show.section_html(s), note=lambda s: show.note_html(s), page=lambda s: show.page_html(s, show.note_html('x')))
EXACT = {'token', 'token_cut', 'spans_response', 'critique_response', 'example_response'} # these draw the response itself

@pytest.mark.parametrize('slot', SLOTS)
def test_hostile_text_stays_text(slot):
    for s in HOSTILE:
        c = Checker(SLOTS[slot](s))
        assert not c.bad, f'{slot}, {s[:60]!r}: {c.bad[:3]}'
        if slot in EXACT: assert c.marked == drawn(f'a{s}b' if slot=='token' else s), f'{slot}, {s[:60]!r}'
        else: assert color.visible(s) in c.text+'\n'+'\n'.join(c.values), f'{slot}, {s[:60]!r}: the text is lost'

def naive(s): return f'<div><span title="{s}">{s}</span></div>'
def half(s): return naive(s.replace('<', '&lt;').replace('>', '&gt;'))

def test_checker_catches_a_renderer_that_does_not_escape():
    def wrong(render, s):
        c = Checker(render(s))
        return bool(c.bad) or color.visible(s) not in c.text+'\n'+'\n'.join(c.values)
    n = sum(wrong(naive, s) for s in HOSTILE)
    assert n>=45, f'only {n} of {len(HOSTILE)} payloads are noticed'
    assert wrong(naive, HOSTILE[0]) and wrong(half, f'" onmouseover="{HIT}') and wrong(half, '&lt;b&gt;')
    assert Checker('<div style="background:url(https://evil.example)"></div>').bad

def everything(): return [f(s) for f in SLOTS.values() for s in HOSTILE if len(s)<1000]

def test_page_with_everything():
    page = show.page_html('<i>', *[show.section_html(k, f('"><b>')) for k,f in SLOTS.items() if k!='page'])
    assert not Checker(page).bad
    assert f'<meta http-equiv="Content-Security-Policy" content="{show.CSP}">' in page and show.CSP == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    assert 'prefers-color-scheme:dark' in page and '<script' not in page and not re.search(r'https?:(?!//www\.w3\.org/2000/svg)', page)
    for s in HOSTILE: show.page_html(s, *[f(s) for f in SLOTS.values()]).encode('utf-8')

# A real browser, where there is one

CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
browser = pytest.mark.skipif(not CHROMIUM and not os.environ.get('CI'), reason='no Chromium here; the gate installs it and does not skip')

def dom(markup, width=800):
    "The page as the browser has it after loading"
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as d:
        f = Path(d)/'x.html'
        f.write_bytes(markup.encode('utf-8', 'replace'))
        r = subprocess.run([CHROMIUM, *'--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync --disable-dev-shm-usage'.split(),
            f'--user-data-dir={d}/profile', f'--window-size={width},800', '--dump-dom', f'file://{f}'], capture_output=True, text=True, timeout=120)
    assert '<html' in r.stdout, r.stderr[-500:]
    return r.stdout

@browser
def test_nothing_runs_in_a_browser():
    "Escaping alone must hold, so the first page has no policy; the controls show that the payloads do fire, and that the policy alone would stop them"
    hit = 'data-hit="1"'
    body = ''.join(m for m in everything() if not m.startswith('<!DOCTYPE'))
    assert hit not in dom(f'<!DOCTYPE html><meta charset="utf-8"><body>{body}')
    assert hit in dom('<!DOCTYPE html><meta charset="utf-8"><body>'+naive(HOSTILE[3]))
    assert hit not in dom(show.page_html('x', *[naive(s) for s in HOSTILE if '<meta' not in s]))

@browser
def test_narrow_page_does_not_scroll_sideways():
    page = show.page_html('A title_with_one_very_long_word_'+'x'*60, *[show.section_html(k, f('word '*30+'x'*200)) for k,f in SLOTS.items() if k!='page'],
        show.table_html([{f'column {i}': i*1.5 for i in range(12)}]), plots.curve_svg([dict(a=1), dict(a=3)], 'a', width=600))
    frame = json.dumps(page).replace('</', '<\\/')
    out = dom(f'<!DOCTYPE html><body><iframe id=f width=320 height=800 style="border:0"></iframe><script>f.onload=()=>document.title="w"+f.contentDocument.documentElement.scrollWidth;f.srcdoc={frame}</script>')
    assert 300<=int(re.search(r'<title>w(\d+)', out)[1])<=320, 'wider than the screen'

# Colour

def linear(c): return c/12.92 if c<=.04045 else ((c+.055)/1.055)**2.4
def luminance(rgb): return sum(w*linear(x/255) for w,x in zip((.2126,.7152,.0722), rgb))
def contrast(a, b):
    hi,lo = sorted((luminance(a),luminance(b)), reverse=True)
    return (hi+.05)/(lo+.05)
def mix(rgb, page, a): return [a*x+(1-a)*y for x,y in zip(rgb, page)]
EYES = dict( # Machado 2009, severity 1, on linear RGB
    normal=((1,0,0),(0,1,0),(0,0,1)), protan=((.152286,1.052583,-.204868),(.114503,.786281,.099216),(-.003882,-.048116,1.051998)),
    deutan=((.367322,.860646,-.227968),(.280085,.672501,.047413),(-.011820,.042940,.968881)), tritan=((1.255528,-.076749,-.178779),(-.078411,.930809,.147602),(.004733,.691367,.303900)))
def lab(rgb, eye):
    lin = [linear(x/255) for x in rgb]
    r,g,b = (min(1, max(0, sum(m*x for m,x in zip(row, lin)))) for row in EYES[eye])
    xyz = ((.4124*r+.3576*g+.1805*b)/.9505, .2126*r+.7152*g+.0722*b, (.0193*r+.1192*g+.9505*b)/1.089)
    f = [t**(1/3) if t>.008856 else 7.787*t+16/116 for t in xyz]
    return 116*f[1]-16, 500*(f[0]-f[1]), 200*(f[1]-f[2])

@pytest.mark.parametrize('eye', EYES)
def test_good_and_bad_differ_for_every_eye(eye):
    far = lambda a,b: math.dist(lab(mix(a, (255,)*3, .4), eye), lab(mix(b, (255,)*3, .4), eye))
    assert far(color.BLUE, color.ORANGE)>=25
    if eye=='deutan': assert far((0,128,0), (200,0,0))<12, 'the control must fail: green and red look alike'

@pytest.mark.parametrize('fg,bg', [((31,35,40),(255,255,255)), ((230,237,243),(13,17,23)), ((0,0,0),(255,255,255)), ((255,255,255),(17,17,17))])
def test_text_on_full_colour_is_readable(fg, bg):
    for c in (color.BLUE, color.ORANGE): assert contrast(fg, mix(c, bg, color.ALPHA))>=4.5
    assert color.ALPHA<=.55

def test_terminal_colours_are_readable():
    def rgb(n):
        n -= 16
        return [0 if v==0 else 55+40*v for v in (n//36, n//6%6, n%6)]
    for n in plots._ansi.values(): assert contrast(rgb(n), rgb(16))>=4.5

def test_page_palette_is_the_one_that_was_checked():
    assert all(c in show.page_html('x') for c in ('#1f2328', '#e6edf3', '#0d1117'))

def test_second_channel_does_not_depend_on_colour():
    good,bad,zero = (show.token_html(['a'], [v], 1., legend=False) for v in (1.,-1.,0.))
    assert 'solid' in good and 'dotted' not in good and 'dotted' in bad and 'solid' not in bad and 'border-bottom' not in zero

def test_one_scale_over_panels():
    a,b = [1.,-1.],[10.,0.]
    alpha = lambda h: re.search(r'class="t2g-tok"[^>]*rgba\([\d,]+,([\d.]+)\);border', h)[1]
    assert alpha(show.token_html(['x','y'], a)) == '0.55'
    vmax = color.color_scale(a, b)
    assert alpha(show.token_html(['x','y'], a, vmax))<alpha(show.token_html(['x','y'], b, vmax))
    assert f'+{vmax:.3g}' in show.token_html(['x','y'], a, vmax)
    assert color.color_scale([0.]*500+[2.]) == 2., 'zeros must not wash out the few tokens that earn something'
    assert 9.9<color.color_scale([.1*i for i in range(101)])<10 and color.color_scale([math.nan, math.inf, None]) == 1.

def test_values_that_are_no_numbers():
    h = show.token_html(['a','b','c'], [None, math.nan, math.inf], legend=True)
    assert h.count('repeating-linear-gradient')==3 and 'not judged' in h
    for bad,msg in (([1.], '2 tokens but 1 values'), ([1.,'x'], r'values\[1\]'), ([1.,[2]], r'values\[1\]')):
        with pytest.raises(ValueError, match=msg): show.token_html(['a','b'], bad)
    for v in (0, -1, math.nan, math.inf):
        with pytest.raises(ValueError, match='vmax'): show.token_html(['a'], [1.], vmax=v)
    with pytest.raises(ValueError, match='entries in detail'): show.token_html(['a'], [1.], detail=[])

def test_no_role_without_its_children():
    for m in (show.token_html(['a'], [1.]), show.critique_html('abc', crit('x')), show.table_html([dict(a=1)])):
        assert set(re.findall(r'role="(\w+)"', m)) <= {'group','img'}
        assert all('aria-label="' in g for g in re.findall(r'<[^>]*role=[^>]*>', m))

# Copying gives back the text

pieces = st.lists(st.text(st.characters(codec=None), max_size=6), max_size=8)

@settings(max_examples=300, deadline=None)
@given(pieces)
def test_copied_tokens_are_the_original(ts):
    c = Checker(show.token_html(ts, [.5]*len(ts)))
    assert c.marked==drawn(''.join(ts)) and not c.bad

@settings(max_examples=200, deadline=None)
@given(st.text('ab \n\t<&"\u202e\u200d👩é', max_size=30), st.lists(st.tuples(st.integers(0,30), st.integers(0,30), st.sampled_from([-1.,-.5,0.,.5,1.])), max_size=5))
def test_copied_spans_are_the_original(text, raw):
    spans = [Span(min(a,b,len(text)), min(max(a,b),len(text)), v, reason='r') for a,b,v in raw]
    c = Checker(show.critique_html(text, Critique('c', spans)))
    assert c.marked==text and not c.bad
    plain = plots.spans_ansi(text, [s for s in spans if len(s)], color=True)
    assert re.sub(r'\x1b\[[\d;]*m', '', plain).replace('↵', '')==color.visible(text)

def test_white_space_has_glyphs():
    h = show.token_html(['if x:', '\n', '    ', 'y', '\t', '  ', '\n'], [0.]*7)
    assert h.count('var(--t2g-nl)">')==2 and h.count('var(--t2g-sp)">')==2 and h.count('var(--t2g-tab)">')==1
    assert 'var(--t2g-sp)">' not in show.token_html(['a', ' b', ' c'], [0.]*3), 'a single space between words needs none'
    assert 'var(--t2g-sp)">' in show.token_html(['a', ' ', '\n'], [0.]*3), 'trailing space is found across tokens'

def test_emoji_and_joiners_that_do_their_work_stay():
    for s in ('👩‍👩‍👧‍👦','1️⃣','❤️','می‌خواهم','क्‍ष'): assert color.visible(s)==s
    assert color.visible('a\ufe0f')=='a[U+FE0F]' and color.visible('😀\ufe0f\ufe0e')=='😀\ufe0f[U+FE0E]'

# Spans

def test_overlaps_add_and_cancel():
    h = show.spans_html('abcdef', [Span(0, 4, 1.), Span(2, 6, -1.)], legend=False)
    assert [(re.search('solid|dotted|double', st)[0],re.sub('<[^>]*>', '', tx)) for st,tx in re.findall(r'class="t2g-span"[^>]*style="([^"]*)">(.*?)</span>', h)] == [('solid','ab'),('double','cd'),('dotted','ef')]
    with pytest.raises(ValueError, match=r'spans\[0\] \[0, 9\) ends after'): show.spans_html('abc', [Span(0, 9, 1.)])

def test_numbers_match_the_table():
    h = show.critique_html('one two', Critique('', [Span(4, 7, -1., reason='second'), Span(0, 3, 1., reason='first')]))
    assert h.index('first')<h.index('second') and h.count('%3E1%3C')==1 and h.count('%3E2%3C')==1
    assert re.findall(r'>(\d)</td>', h)==['1','2']

def test_no_judgement_is_not_nothing_to_mark():
    assert 'No judgement' in show.critique_html('x', None) and 'nothing marked' in show.critique_html('x', Critique('ok'))

# Size

def test_cap_and_speed():
    t0 = time.process_time()
    h = show.token_html([' word']*20_000, [.1]*20_000)
    assert time.process_time()-t0<4
    assert h.count('class="t2g-tok"')==4096 and '15,904 more tokens are not drawn' in h
    long = show.spans_html('x'*60_000, [Span(i*20, i*20+9, 1.) for i in range(500)])
    assert '10,000 more characters are not drawn' in long and time.process_time()-t0<12

# The terminal

def test_terminal_text_cannot_send_escapes():
    for s in HOSTILE:
        for colored in (True, False):
            for out in (plots.token_ansi(['a', s, 'b'], [1., -1., 0.], color=colored), plots.spans_ansi(s, [Span(0, len(s), .5)], color=colored)):
                rest = re.sub(r'\x1b\[(0|(4;)?38;5;16;48;5;\d+)m', '', out) if colored else out
                assert not re.search('[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]', rest), (s[:40], out[:80])
                out.encode('utf-8')

def test_colour_ends_with_the_line():
    out = plots.token_ansi(['one\ntwo\n\nthree'], [1.])
    assert all(l.endswith('\x1b[0m') for l in out.split('\n') if l)
    assert re.sub(r'\x1b\[[\d;]*m', '', out)=='one↵\ntwo↵\n↵\nthree'

def test_marks_without_colour():
    assert plots.token_ansi(['good',' stuff',' and',' bad'], [.2,1.,0.,-1.], color=False)=='{+good stuff+} and[- bad-]'
    assert plots.spans_ansi('ab', [Span(1, 1, -1.)], color=False)=='a[-^-]b'

def test_what_is_missing_is_drawn_once_a_place_and_never_lost():
    "At the end `end`, elsewhere `^`; every reason in the tooltip, every missing thing in the table, nothing in what is copied"
    r,end = 'A ferry sank. ',lambda q,s: Span(14, 14, s, q, f'No {q}.')
    c = Critique('So.', [Span(2, 7, .5), end('name', -.4), end('day', -.2), Span(2, 2, -.1, 'big', 'How big?')])
    h = show.spans_html(r, c.spans, legend=False)
    assert h.count(show.missing_mark(True))==h.count(show.missing_mark(False))==1
    assert '-0.4 No name.\n-0.2 No day.' in h and 'title="-0.1 How big?"' in h and h.index('How big?')<h.index('ferry')<h.index('No name')
    page = show.critique_html(r, c)
    assert all(w in page for w in ('(missing at the end: name)', '(missing at the end: day)', '(missing here: big)'))
    assert plots.spans_ansi(r, c.spans, color=False)=='A [-^-]{+ferry+} sank. [-^-]'
    assert plots.token_ansi(['A','.',''], [0., 0., -1.], color=False)=='A.[-∅-]' and plots.token_ansi(['A',''], [1., 0.], color=False)=='{+A+}'

def test_when_to_use_colour(monkeypatch):
    class Tty(io.StringIO):
        def isatty(self): return True
    monkeypatch.delenv('NO_COLOR', raising=False)
    monkeypatch.setenv('TERM', 'xterm')
    assert plots.use_color(Tty()) and not plots.use_color(io.StringIO())
    monkeypatch.setenv('NO_COLOR', '1')
    assert not plots.use_color(Tty())
    monkeypatch.setenv('NO_COLOR', '')
    assert plots.use_color(Tty()), 'no-color.org: an empty NO_COLOR says nothing'
    monkeypatch.setenv('TERM', 'dumb')
    assert not plots.use_color(Tty())
    monkeypatch.setattr(sys, 'stdout', io.StringIO())
    assert '\x1b' not in plots.token_ansi(['a'], [1.], color=None)

# Curves and figures

def test_curve_gaps_and_edges():
    f = lambda ys: plots.curve_svg([dict(step=i, a=y) for i,y in enumerate(ys)], 'a')
    assert f([1.,2.,None,3.,math.nan,4.]).count('<polyline')==3
    assert 'no numbers' in f([None]) and 'no numbers' in plots.curve_svg([], 'a')
    for ys in ([5.], [0.,0.], [1e300,-1e300], [1e-12,2e-12], [True,2.]): assert 'nan' not in f(ys) and 'inf' not in f(ys)
    assert 'from 1 to 2' in plots.curve_svg([dict(s=dict(a=1.)), dict(s=dict(a=2.))], 's.a')

def test_figures_take_any_text():
    with warnings.catch_warnings():
        warnings.simplefilter('ignore') # glyphs that the font lacks
        for fig in (plots.plot_tokens(HOSTILE, [.5]*len(HOSTILE)), plots.plot_curves([{s: 1.} for s in HOSTILE], [HOSTILE[0], '$\\frac{1}{0$']), plots.plot_tokens([], []), plots.plot_curves([], ['a'])):
            buf = io.BytesIO()
            fig.savefig(buf, format='png', dpi=30)
            assert buf.getvalue()[:4]==b'\x89PNG'

def test_the_picture_of_spans_has_every_word_and_where_something_is_missing():
    said = 'Rain fell. All day long'
    fig = plots.plot_spans(said, [Span(0, 4, 1.), Span(11, 23, -.5), Span(23, 23, -1.)])
    ax, = fig.axes
    assert [t.get_text() for t in ax.texts[:-1]]==['Rain',' fell.',' ','All',' day',' long','∅']
    marks = [(l.get_linestyle(), tuple(l.get_xdata())) for l in ax.lines]
    assert [s for s,_ in marks]==['-',':',':',':',':'] and marks[0][1]==(0, 4) and marks[1][1]==(11, 14)
    assert 'critique' in ax.texts[-1].get_text() and not plots.plot_spans('', []).axes[0].lines

def test_plot_tokens_wraps_and_keeps_every_token():
    cells = list(plots._cells(['word ']*40+['\n','中文'], 30))
    assert all(c+w<=30 for _,_,c,w,_ in cells) and {i for i,*_ in cells}==set(range(42)) and cells[-1][3]==4

# Imports

def test_light_imports():
    code = 'import sys; from text2grad.core import Span; assert not hasattr(Span, "_repr_html_"); import text2grad.viz.html, text2grad.viz.plots; assert hasattr(Span, "_repr_html_"); print([m for m in ("torch","matplotlib","scipy","transformers") if m in sys.modules])'
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert out.stdout.strip()=='[]', out.stdout+out.stderr
