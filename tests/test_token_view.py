"The heat map that answers, in a real Chromium: what is copied, what a click says, the keyboard, screen readers, size, speed, exports"
import base64,io,json,re,struct,time
from html.parser import HTMLParser
from types import SimpleNamespace
from xml.etree import ElementTree
import numpy as np
import pytest
from hypothesis import given,settings,strategies as st

from text2grad.viz import color
from text2grad.viz import html as show
from text2grad.viz.channels import CHANNELS,TokenTable,grouped
from text2grad.core import Critique,Example,Quote,Span,loads
from text2grad.viz.heatmap import CSS,JS,heat,heat_map,read_pick
from text2grad.viz.html import MAX_TOKENS
from text2grad.viz.exports import export_html,export_jsonl,export_png,export_svg,export_text,packed
from test_show import drawn

def table(pieces, **channels):
    ends = np.cumsum([0]+[len(p) for p in pieces])
    return TokenTable(pieces, list(zip(ends, ends[1:])), channels or dict(reward=np.linspace(-1, 1, len(pieces))))
def pieces(s): return [*re.findall(r'\s?\S{1,5}|\s', s), '']

NASTY = ['zero\u200bwidth', '\u200b', 'a\u200c\u200db', '\ufeffbom', 'soft\xadhyphen', 'pay\u202egnp.exe\u202c', '\u2066a\u2069\u2067b\u2069', '\u200frtl\u200e', 'مرحبا بالعالم, abc', 'שלום 123',
    'half \ud83d emoji', '\udc00\ud800', 'nul\0byte', '\x1b[31mred', 'bell\x07\x7f\x9b', '\x0b\x0c', 'tab\there\t\tand', '\t\tif x:\n\t\t\treturn', 'cr\rlf\r\nend\r\n', '\n\n\nthree\n\n', ' lead and trail ',
    'two  three   four    ', '\u2028\u2029\x85', 'nb\xa0sp\u2003em\u3000wide', '</script><b>x</b>', '<!-- x --> ]]>', '${1+1} `x` \\', '{{value}} {% x %} <%= y %>', '&lt;b&gt; &amp; &#0; &nbsp;', '"\'><', 'e\u0301\u0301 n\u0303',
    '👩‍👩‍👧‍👦 family', '🏴\U000e0067\U000e0062\U000e007f', '1️⃣ ☎️', '𝕏 ﷺ ß İ', '日本語、中文。한국어', 'x'*400, '', ' ', '\n']
assert len(NASTY)==40

def whole(body, dark=False):
    return (f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>x</title><meta name="viewport" content="width=device-width"><style>body{{margin:8px;{"background:#0d1117;color:#e6edf3" if dark else ""}}}{CSS}</style></head>'
            f'<body class="{"dark" if dark else ""}"><main><h1>x</h1>{body}</main><script>({JS})()</script></body></html>')
def hosted(value): return f'<div id="h"><div class="inner">{value}</div></div><div id="h-picked"><textarea aria-label="picked" style="display:none"></textarea></div>'

@pytest.fixture(scope='module')
def context(browser):
    c = browser.new_context(viewport=dict(width=900, height=700), accept_downloads=True)
    c.grant_permissions(['clipboard-read','clipboard-write'])
    yield c
    c.close()

@pytest.fixture
def show_page(context):
    "Opens a document under a name that may use the clipboard; errors of the page fail the test"
    p,errors = context.new_page(),[]
    p.on('pageerror', lambda e: errors.append(str(e)))
    def go(doc):
        p.unroute_all()
        p.route('**/*', lambda r: r.fulfill(body=doc.encode('utf-8'), content_type='text/html; charset=utf-8'))
        p.goto('http://localhost/')
        return p
    yield go
    p.close()
    assert not errors, errors

def picked(p): return json.loads(p.locator('#h-picked textarea').input_value() or 'null')
def at(p): return p.evaluate('document.activeElement.dataset.i ?? null')

# The text

class Text(HTMLParser):
    def __init__(self, markup):
        super().__init__(convert_charrefs=True)
        self.text,self.deep = '',0
        self.feed(markup)
        self.close()
    def handle_starttag(self, tag, attrs):
        if self.deep or dict(attrs).get('class')=='t2g-text': self.deep += 1
    def handle_endtag(self, tag): self.deep -= self.deep>0
    def handle_data(self, d): self.text += d if self.deep else ''

@pytest.mark.parametrize('unit', ['token','word','sentence','line'])
def test_markup_holds_the_response(unit):
    for s in NASTY:
        t = table(pieces(s))
        assert t.response==s and Text(heat_map(t, unit=unit)).text==drawn(s), repr(s)
        spans = [Span(i, min(len(s), i+3), .5) for i in range(0, len(s), 2)]
        assert Text(heat_map(t, unit=unit, critique=Critique('c', spans), view='spans')).text==drawn(s), repr(s)

def test_copied_text_is_the_response(show_page):
    p = show_page(whole(''.join(f'<section>{heat_map(table(pieces(s)))}</section>' for s in NASTY)))
    got = p.evaluate("""async () => { const out = [];
        for (const t of document.querySelectorAll('.t2g-text')) { getSelection().selectAllChildren(t); await navigator.clipboard.writeText('-'); document.execCommand('copy'); out.push([await navigator.clipboard.readText(), getSelection().toString()]); }
        return out }""")
    assert len(got)==40
    for s,(clip,plain) in zip(NASTY, got):
        if s: assert clip==drawn(s), f'{s!r}: copied {clip!r}'
    plainly = sum(plain==drawn(s) for s,(_,plain) in zip(NASTY, got))
    assert plainly>=36, f'without the script only {plainly} of 40 are copied as they are'

# What a click says

RESPONSE = 'An 👩‍👩‍👧 emoji, half \ud83d of one.\nThe capital is Paris.\nIt has nine people.'
def span(words, score, **k): return Span(RESPONSE.index(words), RESPONSE.index(words)+len(words), score, words, **k)
CRITIQUE = Critique('Right and wrong.', (span('The capital is Paris', .5, reason='right'), span('nine people', -1., reason='absurd', match='fuzzy', similarity=.9), span('Paris', .3, reason='name')), (Quote('river', -.5, 'missing'),), 'me')
TABLE = table(pieces(RESPONSE), reward=np.linspace(-1, 1, len(pieces(RESPONSE))), kl=np.arange(len(pieces(RESPONSE)))/10)

def test_clicks_and_selections_count_as_python_does(show_page):
    p = show_page(whole(hosted(heat_map(TABLE, critique=CRITIQUE))))
    for i in (0, 2, 8, 12, len(TABLE)-1):
        p.locator(f'.t2g-u[data-i="{i}"]').click()
        a,b = TABLE.offsets[i]
        assert {k:picked(p)[k] for k in ('kind','i','start','end')}==dict(kind='token', i=i, start=a, end=b)
        assert read_pick(json.dumps(picked(p)), TABLE)['i']==i
    p.locator('.t2g-phrase').nth(1).click()
    assert {k:picked(p)[k] for k in ('kind','i','start','end')}==dict(kind='phrase', i=1, start=CRITIQUE.spans[1].start, end=CRITIQUE.spans[1].end)
    for words in ('half \ud83d of one', 'capital is', 'n 👩', '.\nThe', 'ine peo'):
        a = RESPONSE.index(words)
        p.evaluate("""([a, b]) => { const points = []; let n = 0;
            const walk = document.createTreeWalker(document.querySelector('.t2g-text'), 4);
            while (walk.nextNode()) { const x = walk.currentNode; if (x.parentElement.title.startsWith('U+') && x.data[0]=='[') { points[n++] = [x, 0]; continue }
                let k = 0; for (const c of x.data) { points[n++] = [x, k]; k += c.length } points[n] = [x, k] }
            getSelection().setBaseAndExtent(...points[a], ...points[b]) }""", [a, a+len(words)])
        p.wait_for_function(f"""() => {{ const v = document.querySelector('#h-picked textarea').value; return v.includes('selection') && JSON.parse(v).start=={a} }}""", timeout=3000)
        assert (picked(p)['start'],picked(p)['end'])==(a, a+len(words)), words
        i = picked(p)['i']
        assert TABLE.offsets[i][0]<=a<TABLE.offsets[i][1]

def test_dragging_selects_and_does_not_pick_a_token(show_page):
    p = show_page(whole(hosted(heat_map(TABLE))))
    a,b = (p.locator('.t2g-u', has_text=w).first.bounding_box() for w in ('capit', 'Paris'))
    p.mouse.move(a['x']+9, a['y']+a['height']/2)
    p.mouse.down()
    p.mouse.move(b['x']+b['width']-1, b['y']+b['height']/2, steps=5)
    p.mouse.up()
    p.wait_for_function("document.querySelector('#h-picked textarea').value!=''", timeout=3000)
    assert picked(p)['kind']=='selection' and RESPONSE[picked(p)['start']:picked(p)['end']].strip()=='capital is Paris'

def test_a_unit_reports_its_first_token(show_page):
    for unit in ('word','sentence','line'):
        p = show_page(whole(hosted(heat_map(TABLE, unit=unit))))
        p.locator('.t2g-u', has_text='people').last.click()
        got = picked(p)
        assert TABLE.offsets[got['i']][0]==got['start'] and 'people' in RESPONSE[got['start']:got['end']]

@settings(max_examples=100, deadline=None)
@given(st.one_of(st.text(), st.recursive(st.none()|st.booleans()|st.integers()|st.floats()|st.text(), lambda x: st.lists(x)|st.dictionaries(st.sampled_from(['kind','i','start','end','x']), x|st.sampled_from(['token','selection','phrase'])), max_leaves=8).map(json.dumps)))
def test_whatever_a_browser_sends_is_a_pick_or_a_value_error(text):
    try: p = read_pick(text, TABLE)
    except ValueError: return
    assert 0<=p['start']<=p['end']<=len(RESPONSE) and p['i']>=0

# Keyboard, links, redraws, screen readers

def test_by_keyboard_alone(show_page):
    p = show_page(whole(hosted(heat_map(TABLE, critique=CRITIQUE, picked=4))))
    p.keyboard.press('Tab')
    assert at(p)=='4'
    for key,want in (('ArrowRight',5), ('ArrowLeft',4), ('Home',0), ('ArrowLeft',0), ('End',len(TABLE)-1), ('ArrowRight',len(TABLE)-1), ('Home',0)):
        p.keyboard.press(key)
        assert at(p)==str(want), key
        assert p.locator('.t2g-u[tabindex="0"]').count()==1
    top = lambda: p.evaluate('document.activeElement.getBoundingClientRect().top')
    y = top()
    p.keyboard.press('ArrowDown')
    assert top()>y
    p.keyboard.press('ArrowUp')
    assert top()==y
    p.keyboard.press('Home')
    p.keyboard.press('ArrowRight')
    p.keyboard.press('Enter')
    assert picked(p)['i']==1
    p.keyboard.press('ArrowRight')
    p.keyboard.press('Space')
    assert picked(p)['i']==2 and p.evaluate('scrollY')==0
    for _ in range(2): p.keyboard.press('Shift+ArrowRight')
    p.wait_for_function("document.querySelector('#h-picked textarea').value.includes('selection')", timeout=3000)
    assert (picked(p)['start'],picked(p)['end'])==(TABLE.offsets[2][0],TABLE.offsets[4][1])
    assert p.locator('.t2g-tip').is_visible()
    p.keyboard.press('Escape')
    assert p.locator('.t2g-tip').is_hidden()
    p.keyboard.press('Tab')
    assert p.evaluate('document.activeElement.className').startswith('t2g-phrase')
    p.keyboard.press('Enter')
    assert picked(p)['kind']=='phrase'

def test_phrase_and_words_light_together_and_all_numbers_show(show_page):
    p = show_page(whole(hosted(heat_map(TABLE, 'kl', 'z', critique=CRITIQUE))))
    lit = lambda s: p.evaluate(f"[...document.querySelectorAll('{s}.t2g-on')].map(x => x.textContent)")
    for n,s in enumerate(CRITIQUE.spans):
        p.locator('.t2g-phrase').nth(n).hover()
        over = [t for t,(a,b) in zip(TABLE.tokens, TABLE.offsets) if a<s.end and s.start<b]
        assert lit('.t2g-u')==over
    p.locator('.t2g-u', has_text='Paris').hover()
    assert [re.search('right|absurd|name', x)[0] for x in p.evaluate("[...document.querySelectorAll('.t2g-phrase.t2g-on')].map(x => x.ariaLabel)")]==['right','name']
    tip = p.locator('.t2g-tip').text_content()
    i = TABLE.tokens.index(' Paris') if ' Paris' in TABLE.tokens else next(i for i,t in enumerate(TABLE.tokens) if 'Paris' in t)
    assert f'reward {TABLE["reward"][i]:+.3g}' in tip and f'kl {TABLE["kl"][i]:+.3g}' in tip and 'right' in tip
    p.mouse.move(5, 600)
    assert p.locator('.t2g-tip').is_hidden() and lit('.t2g-u')==[] and p.locator('.t2g-u[data-tip]').count()==0 and p.locator('.t2g-u:not([title])').count()==0
    assert 'river' in p.locator('.t2g-lost').text_content() and 'fuzzy match, 0.90' in p.locator('.t2g-phrase').nth(1).text_content()

def test_a_sentence_is_one_line_with_its_words(show_page):
    c = Critique('An emoji is odd. Half of it is dull. Nothing else.', [Span(0, 2, .5, reason='Half of it is dull.'), Span(3, 5, -.5, reason='An emoji is odd.'), Span(9, 12, .5, reason='of its own'),
                 Span(13, 15, .5, reason='Half of it is dull.'), Span(16, 17, .5)], [Quote('river', -1., 'Nothing else.'), Quote('lake', -1., 'Nothing else.')])
    p = show_page(whole(hosted(heat_map(TABLE, critique=c))))
    lines = p.evaluate("[...document.querySelectorAll('.t2g-lines li')].map(x => [x.querySelector('.t2g-why').textContent, [...x.querySelectorAll('.t2g-phrase')].map(b => Number(b.dataset.span))])")
    assert lines==[['An emoji is odd.',[1]], ['Half of it is dull.',[0,3]], ['Nothing else.',[]], ['of its own',[2]], ['',[4]]]
    assert p.locator('.t2g-lost li').all_inner_texts()==['-1.00 river · -1.00 lake: Nothing else.']
    assert 'dull' in p.locator('.t2g-phrase[data-span="3"]').get_attribute('aria-label'), 'the reason is said with each'

def test_focus_survives_a_redraw(show_page):
    p = show_page(whole(hosted(heat_map(TABLE))))
    p.locator('.t2g-u').nth(7).focus()
    p.evaluate("x => { document.querySelector('#h .inner').innerHTML = x }", heat_map(TABLE, 'kl', critique=CRITIQUE, picked=7))
    p.wait_for_function("document.activeElement.dataset.i==='7'", timeout=3000)
    p.keyboard.press('ArrowRight')
    assert at(p)=='8'
    p.mouse.click(5, 650)
    p.evaluate("x => { document.querySelector('#h .inner').innerHTML = x }", heat_map(TABLE))
    p.wait_for_timeout(100)
    assert at(p) is None, 'focus is not stolen from somebody who went elsewhere'

@pytest.mark.parametrize('dark', [False, True])
def test_axe_finds_nothing_serious(show_page, dark):
    from axe_playwright_python.sync_playwright import Axe
    p = show_page(whole(hosted(heat_map(TABLE, critique=CRITIQUE, title='Rewards', picked=3))+heat_map(TABLE, 'entropy', unit='word')+heat_map(TABLE, critique=CRITIQUE, view='spans'), dark))
    p.locator('.t2g-phrase').first.hover()
    run = lambda: [v for v in Axe().run(p).response['violations'] if v['impact'] in ('serious','critical')]
    bad = run()
    assert not bad, [(v['id'], [n['html'][:150] for n in v['nodes'][:3]]) for v in bad]
    p.evaluate("document.querySelector('.t2g-u').setAttribute('role', 'listitem')")
    assert run(), 'the control: axe looks'
    assert heat_map(TABLE).count('role="group"')==1 and p.locator('[role=group]:not([aria-label])').count()==0

def test_narrow_screen_does_not_scroll_sideways(show_page, context):
    p = show_page(whole(hosted(heat_map(table(pieces('word '*60+'x'*300)), critique=Critique('y'*200, (Span(0, 300, .5, 'z'*100, 'w'*300),), (Quote('v'*300, -1.),)), title='t'*100))))
    p.set_viewport_size(dict(width=320, height=600))
    assert p.evaluate('document.documentElement.scrollWidth')<=320
    p.locator('.t2g-u').nth(3).hover()
    box = p.locator('.t2g-tip').bounding_box()
    assert box['x']>=0 and box['x']+box['width']<=320

# Size and speed

def big(n): return table([' token'[:3+i%4] if i%40 else '\n' for i in range(n)], **{k:np.sin(np.arange(n)*(j+1)) for j,k in enumerate(CHANNELS)})

def test_two_thousand_tokens_in_a_second(show_page):
    t = big(2048)
    spans = [Span(i*100, i*100+60, .5, 'q', 'r') for i in range(40)]
    p,took = show_page(whole(hosted(''))),[]
    for k in range(5):
        start = time.perf_counter()
        value = heat_map(t, list(CHANNELS)[k], critique=Critique('c', spans))
        built = time.perf_counter()-start
        painted = p.evaluate("""async x => { const t = performance.now(); document.querySelector('#h .inner').innerHTML = x; document.body.offsetHeight;
            await new Promise(r => requestAnimationFrame(() => setTimeout(r))); return (performance.now()-t)/1000 }""", value)
        took.append((built+painted, built, painted, len(value)))
    print('2,048 tokens: total %.2f s = built %.2f + painted %.2f; %d bytes' % min(took))
    assert min(took)[0]<1

def test_long_text_is_cut_around_what_was_picked():
    t,start = big(20_000),time.perf_counter()
    page = heat_map(t, picked=15_000)
    assert time.perf_counter()-start<2
    drawn_ = [int(x) for x in re.findall('data-i="(\\d+)"', page)]
    assert len(drawn_)==MAX_TOKENS and drawn_[0]<15_000<drawn_[-1] and page.count('aria-current')==1
    assert f'{drawn_[0]:,} pieces before and {20_000-drawn_[-1]-1:,} after are not drawn' in page
    assert f'data-a="{t.offsets[drawn_[0]][0]}"' in page.split('t2g-u')[0]
    assert 'not drawn' not in heat_map(big(4096)) and '0 pieces before' in heat_map(t)

# Numbers

def test_one_scale_and_raw_numbers():
    a,b = (heat_map(table(['a','b',''], reward=[x,0,0]), vmax=10.) for x in (1.,10.))
    style = lambda h: re.search('t2g-u.*?style="(.*?)"', h, re.S)[1]
    assert style(a)!=style(b) and style(heat_map(table(['a',''], reward=[1,0]), vmax=1.))==style(b)
    z = heat_map(TABLE, how='z')
    for v in TABLE['reward']: assert f'reward {color.signed_number(float(v))}' in z

def test_units_sum_and_mean():
    for unit in ('word','sentence','line'):
        for total in ('sum','mean'):
            g = grouped(TABLE, unit, total)
            page = heat_map(TABLE, unit=unit, total=total)
            assert page.count('class="t2g-u"')==len(g) and all(f'reward {color.signed_number(float(v))}' in page for v in g['reward'])

def test_what_is_not_known_is_hatched_and_named():
    page = heat_map(table(['a','b',''], reward=[1,np.nan,0]))
    assert 'not known' in page and page.count('repeating-linear-gradient')==1 and 'nan' not in page
    assert heat_map(TABLE, 'nothing').count('repeating-linear-gradient')==len(TABLE)
    heat_map(TokenTable((), (), {}))

@pytest.mark.parametrize('bad', [dict(view='x'), dict(how='x'), dict(unit='x'), dict(total='x')])
def test_wrong_choices_are_named(bad):
    with pytest.raises(ValueError, match=f"{next(iter(bad)) if 'total' not in bad else 'how'} 'x'"): heat_map(TABLE, **bad)

def test_spans_without_width_and_at_the_end():
    t = table(['ab','cd',''])
    for p,where in ((0, 'here'), (2, 'here'), (3, 'here'), (4, 'at the end')):
        c = Critique('c', (Span(p, p, -1., 'q', 'put it here'),))
        page,heat = heat_map(t, critique=c, view='spans'),heat_map(t, critique=c)
        assert page.count('data-s="0"')==heat.count('data-s="0"')==1 and f'(missing {where}: q)' in page
        assert page.count('something is missing')==2*(p<4) and Text(page).text==Text(heat).text=='abcd'

def test_a_cut_off_response_pays_with_its_last_token_and_has_its_mark_after_it():
    t,c = table(['ab','cd']),Critique('c', (Span(4, 4, -1., '', 'It breaks off.'), Span(4, 4, -.5, 'q', 'No q.'), Span(0, 2, 1.)))
    page = heat_map(t, critique=c, view='spans')
    units = re.findall(r'data-s="([^"]*)"', page)
    assert units==['2', '', '0 1'] and page.index('something is missing')>page.index('>cd<') and '(missing at the end)' in page
    assert re.findall(r'data-s="([^"]*)"', heat_map(t, critique=c))==['2', '0 1']
    assert heat_map(TokenTable((), (), {}), critique=Critique('c', (Span(0, 0, -1.),)), view='spans').count('data-s="')==0

@pytest.mark.parametrize('unit', ['token','word','sentence','line'])
def test_a_gap_in_a_unit_has_its_own_mark(unit):
    t = table(['ab',' c','d. ','Ef','.',''])
    page = heat_map(t, critique=Critique('c', (Span(4, 4, -1.), Span(10, 10, -1.))), view='spans', unit=unit)
    assert page.count('aria-label="something is missing')==1 and Text(page).text=='ab cd. Ef.' and re.search(r'end of text, [^"]*-1', page)

def test_later_bytes_of_a_character_are_drawn_and_not_copied():
    t = TokenTable(('👩','','','x',''), ((0,1),(0,1),(0,1),(1,2),(2,2)), dict(reward=[1,1,1,0,0]))
    page = heat_map(t)
    assert page.count('rest of a character')==2 and page.count('end of text')==1 and Text(page).text=='👩x'

# Exports

CASE = SimpleNamespace(example=Example('Where?', RESPONSE, CRITIQUE), table=TABLE)

def test_one_file_page_opens_without_script_or_network(context):
    c = context.browser.new_context(java_script_enabled=False, offline=True)
    p,asked = c.new_page(),[]
    p.on('request', lambda r: asked.append(r.url))
    p.set_content(doc := export_html(CASE))
    assert '<script' not in doc and show.CSP in doc and not [u for u in asked if u.startswith('http')]
    text = p.locator('body').inner_text()
    assert 'Where?' in text and 'The capital is Paris' in text and 'absurd' in text and 'river' in text
    assert len(p.screenshot())>5000
    c.close()

def test_pictures():
    for name in (NASTY[13], ''.join(NASTY[:35])+'\ufffe\uffff'): ElementTree.fromstring(export_svg(table([*NASTY, '\ufffe\uffff'], **{name: np.ones(41)}), name))
    png = export_png(TABLE, vmax=2.)
    assert png==export_png(TABLE, vmax=2.) and png!=export_png(TABLE, vmax=9.) and struct.unpack('>II', png[16:24])[0]>600
    assert export_svg(TABLE)==export_svg(TABLE)
    with pytest.raises(ValueError, match="channel 'x': must be one of reward, kl"): export_png(TABLE, 'x')

def test_json_and_text():
    for s in NASTY:
        t = table(pieces(s), reward=[np.nan]*len(pieces(s)))
        row = loads(export_jsonl(Example('p', s, Critique('c', (Span(0, len(s), .5),))), t))
        assert row['response']==s==''.join(x['text'] for x in row['tokens']) and row['tokens'][0]['reward'] is None and [x['start'] for x in row['tokens']]==[a for a,_ in t.offsets]
        assert color.visible(export_text(t))==export_text(t)
    text = export_text(CASE)
    assert '{+' in text and '[-nine people-]' in text and 'river' in text and 'Right and wrong.' in text

def test_packed_is_what_the_functions_give():
    what = dict(example=CASE.example, table=TABLE, channel='kl', vmax=1.)
    data = {k: base64.b64decode(json.loads(packed(k, what))['data']) for k in ('copy','html','png','svg','jsonl','txt')}
    assert data['png']==export_png(TABLE, 'kl', 1.) and data['jsonl'].decode()==export_jsonl(CASE.example, TABLE) and data['html'].decode()==re.sub('[\ud800-\udfff]', '\ufffd', export_html(CASE, None, 'kl', 1.))
    assert data['copy'].decode()==RESPONSE.replace('\ud83d', '\ufffd')

def test_in_gradio(context, monkeypatch):
    "A pick reaches Python, the answer redraws the map and keeps the focus, every export arrives, a wrong pick is refused in words"
    monkeypatch.setenv('GRADIO_ANALYTICS_ENABLED', 'False')
    import gradio as gr
    from text2grad.viz.exports import export_buttons
    with gr.Blocks(analytics_enabled=False) as demo:
        html,pick = heat(gr, 'm', heat_map(TABLE, critique=CRITIQUE), 'tokens')
        said = gr.Textbox(elem_id='said', label='said')
        def f(x):
            d = read_pick(x, TABLE)
            return json.dumps(d),heat_map(TABLE, critique=CRITIQUE, picked=d['i'])
        pick.input(f, pick, [said,html], api_visibility='private')
        export_buttons(gr, lambda: dict(example=CASE.example, table=TABLE))
        export_buttons(gr, lambda: None, elem_id='none')
    demo.launch(css=CSS, js=JS, prevent_thread_lock=True, quiet=True, server_name='127.0.0.1', share=False)
    p,errors = context.new_page(),[]
    try:
        p.on('pageerror', lambda e: errors.append(str(e)))
        p.goto(demo.local_url)
        p.locator('#m .t2g-u').nth(5).click()
        p.wait_for_selector('#m .t2g-u[data-i="5"][aria-current=true]')
        p.wait_for_function("document.activeElement.dataset.i==='5'")
        p.keyboard.press('ArrowRight')
        p.keyboard.press('Enter')
        p.wait_for_selector('#m .t2g-u[data-i="6"][aria-current=true]')
        assert json.loads(p.locator('#said textarea').input_value())==dict(kind='token', i=6, start=TABLE.offsets[6][0], end=TABLE.offsets[6][1])
        for k in ('html','png','svg','jsonl','txt'):
            with p.expect_download() as d: p.click(f'#t2g-export-{k}')
            want = base64.b64decode(json.loads(packed(k, dict(example=CASE.example, table=TABLE)))['data'])
            assert d.value.suggested_filename==f'text2grad.{k}' and open(d.value.path(), 'rb').read()==want
        p.evaluate("navigator.clipboard.writeText('-')")
        p.click('#t2g-export-copy')
        for _ in range(100):
            if (text := p.evaluate('navigator.clipboard.readText()'))!='-': break
            p.wait_for_timeout(100)
        assert text==RESPONSE.replace('\ud83d', '\ufffd')
        p.click('#none-png')
        p.get_by_text('nothing to export yet').wait_for()
        assert not errors
    finally:
        p.close()
        demo.close()
