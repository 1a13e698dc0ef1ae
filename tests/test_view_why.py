"The fourth view of the app: its handlers as plain functions, and once inside a real gr.Blocks"
import json,math,re,time
import numpy as np, pytest
from types import SimpleNamespace
from text2grad.viz.channels import token_table
from text2grad.core import Critique,Example,Span
from text2grad.span_ppo.losses import Objective
from text2grad.app.view_why import CHANNELS_SHOWN,choose_why,example_case,look_of,open_why,pick_why,reset_why,slide_why,why_view
from text2grad.span_ppo.credit import ledger,recomputed
from text2grad.app.workbench import InputError,NewSession,Workbench

BAD = '<img src=x onerror=alert(1)>'

class Finished(list):
    "As much of a rollout as the view reads"
    @property
    def finished(self): return self

def case(n=12, critique=True, config=None, text=None, **channels):
    "A case as `measure` makes them, without a model"
    text = text or ' '.join(f'w{i}' for i in range(n))
    offs = [m.span() for m in re.finditer(r'\s?\S+', text)]+[(len(text), len(text))]
    c = Critique('So so.', (Span(0, 2, .5, 'w0', 'good start'), Span(offs[3][0], offs[4][1], -1., 'w3 w4', BAD))) if critique else None
    T,cfg = len(offs),config or Objective()
    t = token_table(text, offs, **dict(value=np.sin(np.arange(T)), kl=.1*np.cos(np.arange(T))) | channels)
    return SimpleNamespace(example=Example('p', text, c), critique=c, table=recomputed(t, c, cfg, finished=True), config=cfg, rollout=Finished([True]))

@pytest.fixture
def bench(): return Workbench(model='no model is needed here')

dials = (1., .95, .05, 'advantage')
def picked(**kw): return json.dumps(dict(kind='token', i=0, start=0, end=1) | kw)
def marked(page): return [int(x) for x in re.findall(r'data-i="(\d+)"[^>]*aria-current', page['heat'])]

def test_no_case_shows_the_example(bench):
    p = open_why(bench, 'a', None, None, None, 'advantage')
    assert 'An example' in p['note'] and p['heat'].count('class="t2g-u"')==len(example_case().table) and (p['gamma'],p['lam'],p['beta'])==dials[:3]
    assert all(w in p['three'] for w in ('Scalar','Sentence','Span'))

def test_a_case_takes_its_place_and_brings_its_settings(bench):
    open_why(bench, 'a', *dials)
    bench.session('a').hold(case(config=Objective(gamma=.9, lam=.5, kl_coef=.2)))
    p = open_why(bench, 'a', *dials)
    assert (p['gamma'],p['lam'],p['beta'])==(.9,.5,.2) and 'An example' not in p['note'] and marked(p)==[p['token']]==[3]
    again = open_why(bench, 'a', .1, .2, .3, 'advantage')
    assert (again['gamma'],again['lam'],again['beta'])==(.1,.2,.3)
    assert (lambda r: (r['gamma'],r['lam'],r['beta']))(reset_why(bench, 'a', 'reward'))==(.9,.5,.2)

def test_a_new_critique_of_the_same_text_keeps_the_token(bench):
    s = bench.session('a')
    s.hold(case())
    choose_why(bench, 'a', 7, *dials)
    s.hold(case(critique=False))
    p = open_why(bench, 'a', *dials)
    assert p['token']==7 and 'Nobody has judged' in p['note']

def test_another_text_begins_anew(bench):
    s = bench.session('a')
    s.hold(case(12))
    choose_why(bench, 'a', 7, *dials)
    s.hold(case(6))
    assert slide_why(bench, 'a', None, *dials)['token']==3

def test_sessions_do_not_see_each_other(bench):
    bench.session('a').hold(case())
    choose_why(bench, 'a', 5, *dials)
    assert open_why(bench, 'b', *dials)['token']!=5 and open_why(bench, 'a', *dials)['token']==5

@pytest.mark.parametrize('f', ['pick','choose'])
def test_every_token_can_be_asked_for(bench, f):
    c = bench.session('a').hold(case())
    for i,(a,b) in enumerate(c.table.offsets):
        p = pick_why(bench, 'a', picked(i=i, start=a, end=b), *dials) if f=='pick' else choose_why(bench, 'a', float(i), *dials)
        w = ledger(c.table, c.critique, i, c.config, finished=True)
        assert p['token']==i and marked(p)==[i] and p['ledger']==w.html() and 'three' not in p
        assert f'advantage {c.table["advantage"][i]:+.4f}' in p['note']

def test_a_phrase_explains_its_first_token(bench):
    c = bench.session('a').hold(case())
    s = c.critique.spans[1]
    assert pick_why(bench, 'a', picked(kind='phrase', i=1, start=s.start, end=s.end), *dials)['token']==3

def test_a_selection_explains_its_first_token(bench):
    bench.session('a').hold(case())
    assert pick_why(bench, 'a', picked(kind='selection', i=2, start=6, end=10), *dials)['token']==2

def test_sliders_change_what_they_should(bench):
    bench.session('a').hold(case())
    base = slide_why(bench, 'a', 2, *dials)
    for k,v in ((0,0.),(1,0.),(2,1.)):
        d = list(dials)
        d[k] = v
        p = slide_why(bench, 'a', 2, *d)
        assert p['ledger']!=base['ledger'] and p['three']!=base['three'] and p['heat']!=base['heat']
    assert '(γλ)' not in slide_why(bench, 'a', 2, 1., 0., .05, 'advantage')['ledger']
    assert slide_why(bench, 'a', 2, *dials)==base

def test_three_maps_share_one_scale_that_sliders_do_not_move(bench):
    bench.session('a').hold(case())
    for channel in CHANNELS_SHOWN:
        said = set()
        for g,l,b in ((1.,.95,.05),(0.,0.,0.),(1.,1.,1.)):
            found = re.findall(r'full colour at ([\d.e-]+)', slide_why(bench, 'a', 0, g, l, b, channel)['three'])
            assert len(found)==3
            said |= set(found)
        assert len(said)==1

def test_zero_is_zero_at_the_end_of_every_slider(bench):
    "Without values, KL and critique nothing is left to paint"
    bench.session('a').hold(case(critique=False, value=np.zeros(13), kl=np.zeros(13)))
    p = slide_why(bench, 'a', 0, 0., 0., 0., 'advantage')
    assert 'advantage +0.0000' in p['note'] and 'rgba(33,102,172' not in re.sub(r'(?s)<div style="font.*?</div>', '', p['three'])

@pytest.mark.parametrize('args,why', [
    ((13, *dials), 'token: is 13'), ((-1, *dials), 'token: is -1'), ((1.5, *dials), 'token: .*whole'), (('1', *dials), 'token: must be'), ((math.nan, *dials), 'token'),
    ((0, 1.01, *dials[1:]), 'gamma'), ((0, 1., math.inf, .05, 'advantage'), 'lambda'), ((0, 1., 1., None, 'advantage'), 'beta'), ((0, *dials[:3], 'kl'), 'channel'), ((0, *dials[:3], None), 'channel')])
def test_bad_input_is_refused_by_name(bench, args, why):
    bench.session('a').hold(case())
    for f in (slide_why, choose_why):
        with pytest.raises(InputError, match=why): f(bench, 'a', *args)

@pytest.mark.parametrize('what', ['', 'null', '[]', '{}', picked(i=99), picked(i=-1), picked(end=10**9), picked(kind='x'), picked(i=True), 'x'*10**5, None, 7])
def test_bad_picks_are_refused(bench, what):
    bench.session('a').hold(case())
    with pytest.raises(InputError, match='pick'): pick_why(bench, 'a', what, *dials)

def test_an_empty_number_keeps_the_token(bench):
    bench.session('a').hold(case())
    choose_why(bench, 'a', 4, *dials)
    assert choose_why(bench, 'a', None, *dials)['token']==4==slide_why(bench, 'a', None, *dials)['token']

def test_an_unknown_number_is_said_and_not_summed(bench):
    c = case()
    kl = c.table['kl'].copy()
    kl[2] = np.nan
    c.table = token_table(c.example.response, c.table.offsets, **dict(c.table.channels) | dict(kl=kl))
    bench.session('a').hold(c)
    with pytest.raises(InputError, match='kl of token 2'): open_why(bench, 'a', *dials)

def test_a_response_without_tokens(bench):
    bench.session('a').hold(SimpleNamespace(example=Example('p', ''), critique=None, table=token_table('', []), config=Objective(), rollout=Finished([True])))
    assert 'no tokens' in open_why(bench, 'a', *dials)['note']
    with pytest.raises(InputError, match='no tokens'): choose_why(bench, 'a', 0, *dials)

def test_nothing_acts(bench):
    bench.session('a').hold(case(text=f'w0 {BAD} w2 w3 w4 </script><script>x</script>'))
    p = open_why(bench, 'a', *dials)
    for k in ('heat','ledger','three','note'): assert '<img' not in p[k] and '<script' not in p[k]
    for i in range(len(look_of(bench, 'a')[0].of.table)): assert '<img' not in choose_why(bench, 'a', i, *dials)['ledger']

def test_a_slider_answers_at_once(bench):
    for n,most in ((128,.5),(2048,4.)):
        bench.session('a').hold(case(n))
        open_why(bench, 'a', *dials)
        start = time.process_time()
        slide_why(bench, 'a', 3, .9, .9, .1, 'advantage')
        took = time.process_time()-start
        print(f'{n} tokens: {took*1e3:.0f} ms')
        assert took<most

# ---- inside Gradio

@pytest.fixture(scope='module')
def page():
    import gradio as gr
    bench = Workbench(model='no model is needed here')
    with gr.Blocks(analytics_enabled=False) as demo:
        sid = gr.State(NewSession('x'))
        with gr.Tab('Why this token?') as tab: ui = why_view(gr, tab, bench, sid)
    demo.launch(server_name='127.0.0.1', share=False, prevent_thread_lock=True, quiet=True, ssr_mode=False, run_history=False)
    yield SimpleNamespace(demo=demo, bench=bench, ui=ui)
    demo.close()

def test_every_event_is_named_or_private_and_none_waits_for_the_model(page):
    ours = [f for f in page.demo.fns.values() if f.fn is not None and 'export' not in str(f.fn)]
    assert {f.api_name for f in ours if f.api_visibility=='public'}=={'why_token','why_sliders'}
    assert all(f.concurrency_id!='model' for f in ours)

def test_controls_have_the_ids_that_tests_use(page):
    ids = {c.elem_id for c in page.demo.blocks.values() if getattr(c, 'elem_id', None)}
    assert ids >= {f't2g-why-{x}' for x in 'gamma lambda beta channel token reset heat heat-picked ledger three three-picked note export-png'.split()}

def test_endpoints_answer_and_refuse(page):
    from gradio_client import Client
    from gradio_client.exceptions import AppError
    client = Client(page.demo.local_url, verbose=False)
    heat,led,note = client.predict(2, 1., .95, .05, 'advantage', api_name='/why_token')
    assert 'class="t2g-u"' in heat and '<table' in led and 'Token 2 of' in note
    heat,led,three,note = client.predict(2, 1., 0., .05, 'return', api_name='/why_sliders')
    assert '(γλ)' not in led and 'Scalar' in three
    for bad in ((99, 1., .95, .05, 'advantage'), (0, 7., .95, .05, 'advantage'), (0, 1., .95, .05, 'x')):
        with pytest.raises((AppError, ValueError)): client.predict(*bad, api_name='/why_token')
    assert 'Token 1 of' in client.predict(1, 1., .95, .05, 'reward', api_name='/why_token')[2]
