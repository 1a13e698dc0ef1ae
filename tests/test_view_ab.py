"The sixth view of the app: two critics or two models side by side, as plain functions; and the links that bring a page back"
import base64,threading,zlib
import numpy as np
import pytest
from hypothesis import given,settings,strategies as st
from text2grad.app.links import LINK,MOST_LINK,link_of,read_link
from text2grad.app.models import LEFT,OWN_MODEL,lent_model,model_names,weights_of
from text2grad.app.ready import ANSWER,QUESTION
from text2grad.app.view_ab import (ASKED,JUDGED,KINDS,NOBODY,choose_kind,choose_model,clashes,clashes_html,comparing,open_ab,pair_html,paid_by,shown_pair,
                                   stop_comparing,turn,words_of)
from text2grad.app.view_explore import copy_link,open_link,show_again
from text2grad.app.workbench import OWN_WORDS,InputError,Workbench
from text2grad.core import Critique,Example,Span,loads
from text2grad.pretrained import load_model
from text2grad.span_ppo.callbacks import RunFolder
from text2grad.span_ppo.inspection import measure
from text2grad.span_ppo.policy import Policy
from text2grad.span_ppo.trainer import SpanPPO,SpanPPOConfig

EVIL = '<img src=x onerror=alert(1)>'
CRITICS,ANSWERS,READING = KINDS
PROMPT,RESPONSE = 'Where is the cat?','The cat sat on the mat.'

def toy(folder, r=4): return Policy.create(*load_model(str(folder), device='cpu'), lora=dict(r=r, alpha=8))
def e_critic(examples): return [Critique('More e.', [Span(i, i+1, .5 if c=='e' else -.1, reason='more e') for i,c in enumerate(x.response)]) for x in examples]

@pytest.fixture(scope='module')
def runs(tiny, tmp_path_factory):
    "A folder with one run: what it left, and its checkpoints"
    d = tmp_path_factory.mktemp('ab')
    cfg = SpanPPOConfig(steps=2, batch_size=2, minibatch_size=2, max_new_tokens=8, lr=3e-2, save_every=1, keep=3)
    SpanPPO(toy(tiny), e_critic, [Example('Go.', ''), Example('Run.', '')], cfg, callbacks=[RunFolder(d/'demo')]).fit()
    return d

@pytest.fixture(scope='module')
def policy(tiny): return toy(tiny)

@pytest.fixture
def bench(policy, runs): return Workbench(policy, runs=runs)

def held(kind=CRITICS, prompt=PROMPT, response=RESPONSE, critic_a='letters', words_a='', critic_b=OWN_WORDS, words_b='"the mat" is wrong.', model_a=OWN_MODEL, step_a=None,
         model_b=OWN_MODEL, step_b=None, judge='letters', words='', temperature=1., seed=1, longest=6, channel='reward', unit='token'):
    got = locals()
    return [got[k] for k in ASKED]

def last(bench, **kw):
    "What comes of a comparison"
    bench.critics['letters'] = e_critic
    return list(comparing(bench, 'a', *held(**kw)))[-1]

def own(policy): return {k:v.clone() for k,v in policy.state_dict().items()}
def same(a, b): return all(bool((v==b[k]).all()) for k,v in a.items())

# ---- where two critics do not agree

def test_disagreements_by_hand():
    r = 'Rain stopped the match early.'
    a = Critique('', [Span(0, 4, 1., 'Rain', 'right'), Span(13, 22, .5, '', 'fine'), Span(23, 28, -.5, '', 'late')])
    b = Critique('', [Span(0, 12, -.5, '', 'snow'), Span(13, 22, .25, '', 'good')])
    found = clashes(r, a, b)
    assert [(r[o['start']:o['end']], o['a'], o['b'], o['a_says'], o['b_says']) for o in found]==[('Rain', 1., -.5, 'right', 'snow'), ('stopped', 0., -.5, '', 'snow'), ('early', -.5, 0., 'late', '')]
    assert clashes(r, a, a)==[] and clashes(r, None, None)==[] and [(o['a'], o['b']) for o in clashes(r, b, a)][0]==(-.5, 1.)
    said = clashes_html(r, a, b)
    assert 'both praise 2 and both blame 0' in said and 'blames: 1.' in said and 'Marked by A alone: 1, by B alone: 1.' in said
    assert said.index('One pays, the other blames')<said.index('Marked by one alone')

def test_what_is_missing_at_the_end_counts_too():
    a,b = Critique('', [Span(6, 6, -1., 'why?', 'missing')]),Critique('', [])
    assert words_of('A cat.', (a, b))[-1]==(6, 6) and words_of('A cat.', (b, b))[-1]!=(6, 6)
    assert [(o['start'], o['end'], o['a'], o['b'], o['a_says']) for o in clashes('A cat.', a, b)]==[(6, 6, -1., 0., 'missing')] and 'the end' in clashes_html('A cat.', a, b)

@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20), st.sampled_from([-1.,-.5,.5,1.]), st.booleans()), max_size=6))
@settings(max_examples=60, deadline=None)
def test_each_word_that_is_paid_differently_stands_in_one_disagreement(marks):
    r = 'The cat sat on a mat.'
    both = [Critique('', [Span(min(a, b), max(a, b)+1, v) for a,b,v,which in marks if which==k]) for k in (True, False)]
    offsets,found = words_of(r, both),clashes(r, *both)
    x,y = (np.sign(paid_by(c, offsets)) for c in both)
    for i,(s,t) in enumerate(offsets): assert sum(o['start']<t and s<o['end'] for o in found)==(x[i]!=y[i])

# ---- comparing

def test_two_critics_need_no_model():
    b = Workbench(model='there is no such model', critics=dict(letters=e_critic), runs='nowhere')
    got = list(comparing(b, 'a', *held()))[-1]
    assert got['result'].count('t2g-view')==3 and 'more e' in got['result'] and 'B minus A' in got['result'] and 'A: ' in got['note'] and got['stop']==dict(visible=False)
    first = open_ab(b, 'c', 'reward', 'token')
    assert first['prompt']==QUESTION and first['response']==ANSWER and 'One pays, the other blames' in first['result'] and 'three weeks' in first['result']
    assert 'prompt' not in open_ab(b, 'c', 'reward', 'token'), 'what somebody typed meanwhile stays'

def test_the_critique_of_the_other_views_is_one_side(bench):
    bench.session('a').hold(measure(bench.policy, Example(PROMPT, RESPONSE, Critique('Fine.', [Span(4, 7, 1., 'cat', 'a cat', 'exact')], source='Ann'))))
    got = last(bench, critic_a=JUDGED)
    assert 'A: Ann. B: you' in got['note'] and 'a cat' in got['result']
    with pytest.raises(InputError, match='A: critic: the other views look at another response'): last(bench, critic_a=JUDGED, response='A dog.')
    bench.session('a').hold(measure(bench.policy, Example(PROMPT, RESPONSE)))
    with pytest.raises(InputError, match='nobody has judged'): last(bench, critic_a=JUDGED)

def test_two_models_answer_and_are_judged(bench):
    before = own(bench.policy)
    got = last(bench, kind=ANSWERS, model_b='demo', step_b=2, longest=12)
    pair = bench.session('a').more['ab']
    assert pair.names==(OWN_MODEL, 'demo, step 2') and pair.a.critique.spans and 'log-prob per token' in got['result'] and same(own(bench.policy), before)
    last(bench, kind=ANSWERS, model_b='demo', step_b=LEFT, longest=12)
    left = bench.session('a').more['ab']
    assert left.names[1]=='demo' and left.b.response==pair.b.response, 'what the run left is its last checkpoint'
    assert 'No difference.' in last(bench, kind=ANSWERS)['result']
    free = last(bench, kind=ANSWERS, judge=NOBODY)['result']
    assert 'there is no reward; logp is shown' in free and 'praised' not in free and bench.session('a').more['ab'].a.critique is None

def test_two_models_read_one_response(bench):
    got,pair = last(bench, kind=READING, model_a='demo', step_a=0, model_b='demo', step_b=2, channel='logp'),bench.session('a').more['ab']
    assert pair.a.table.tokens==pair.b.table.tokens and pair.a.response==RESPONSE and 'logp, difference' in got['result']
    case = measure(bench.policy, Example(PROMPT, RESPONSE))
    assert np.allclose(pair.a.table['logp'], case.table['logp'], atol=1e-5), 'at step 0 nothing was trained'
    assert not np.allclose(pair.b.table['logp'], case.table['logp'], atol=1e-3)
    assert shown_pair(bench, 'a', 'kl', 'word')['result']!=got['result'] # drawn otherwise, not measured again

def test_stop_ends_what_is_written(bench):
    bench.critics['letters'] = e_critic
    steps = comparing(bench, 'a', *held(kind=ANSWERS, temperature=2., longest=256))
    said = []
    with pytest.raises(InputError, match='Stopped'):
        for got in steps:
            said.append(got)
            stop_comparing(bench, 'a')
    assert said[-1]==dict(note='', stop=dict(visible=False)) and bench.model_lock.acquire(blocking=False)

def test_who_leaves_ends_it(bench):
    bench.critics['letters'] = e_critic
    steps = comparing(bench, 'a', *held(kind=ANSWERS, temperature=2., longest=256))
    next(steps), next(steps)
    stop = bench.session('a').stop
    steps.close()
    assert stop.is_set()

BAD = [dict(kind='three'), dict(kind=None), dict(prompt=''), dict(prompt='x'*20_001), dict(prompt=7), dict(response=''), dict(critic_a='oracle'), dict(critic_b=None), dict(words_b=''), dict(channel='taste'), dict(unit='line'),
       *(dict(kind=ANSWERS)|o for o in (dict(temperature=float('nan')), dict(seed=-1), dict(longest=257), dict(longest='6'), dict(judge='oracle'), dict(judge=OWN_WORDS), dict(model_b=''), dict(model_b=None), dict(model_b=7),
         dict(model_b='no such folder'), dict(model_b='../../etc'), dict(model_b='x'*501), dict(step_a='2'), dict(step_a=-2), dict(step_a=.5), dict(model_b='demo', step_b=77))), dict(kind=READING, response=' ')]
@pytest.mark.parametrize('bad', BAD, ids=range(len(BAD)))
def test_bad_input_is_refused(bench, bad):
    with pytest.raises(InputError): last(bench, **bad)
    assert bench.model_lock.acquire(blocking=False)

def test_controls_follow_the_comparison(bench):
    seen = lambda kind,**kw: {k for k,v in choose_kind(bench, 'a', kind, kw.get('a', JUDGED), kw.get('b', OWN_WORDS), kw.get('judge', 'rules')).items() if v['visible']}
    assert seen(CRITICS)=={'response','critic_a','critic_b','words_b'} and seen(ANSWERS, judge=OWN_WORDS)=={'model_a','model_b','judge','words','sampling','channel'} and seen(READING)=={'response','model_a','model_b','channel'}
    assert turn(bench, 'a', READING, JUDGED, JUDGED, 'rules', OWN_MODEL, 'demo')['step_b']==choose_model(bench, 'a', 'demo')==dict(choices=[('as the run left it',-1),('step 2',2),('step 1',1),('step 0',0)], value=-1, visible=True)
    last(bench)
    assert turn(bench, 'a', READING, JUDGED, JUDGED, NOBODY, OWN_MODEL, OWN_MODEL)['result']=='' and 'result' not in turn(bench, 'a', CRITICS, JUDGED, JUDGED, NOBODY, OWN_MODEL, OWN_MODEL)
    assert choose_model(bench, 'a', OWN_MODEL)['visible'] is False and turn(bench, 'a', CRITICS, JUDGED, JUDGED, 'rules', OWN_MODEL, 'demo')['step_b']==dict(visible=False)

def test_nothing_of_a_comparison_is_markup(bench):
    bench.critics[EVIL] = lambda exs: [Critique(EVIL, [Span(0, 3, -1., EVIL, EVIL)], source=EVIL) for _ in exs]
    got = list(comparing(bench, 'a', *held(prompt=EVIL, response=f'The {EVIL}', critic_a=EVIL, words_b=f'"{EVIL}" is wrong.')))
    assert not any('<img' in str(x) for x in got) and '&lt;img' in got[-1]['result']

# ---- models

def test_a_shared_app_names_no_other_model(bench, runs, tmp_path):
    bench.shared = True
    assert model_names(bench)==[OWN_MODEL,'demo'] and weights_of(bench, str(tmp_path))==[]
    for name in (str(tmp_path), 'HuggingFaceTB/SmolLM2-135M', str(runs/'demo'/'policy')):
        with pytest.raises(InputError, match='choose one of the list'):
            with lent_model(bench, name): pass
    with lent_model(bench, 'demo') as p: assert p is not bench.policy

def test_one_other_model_is_kept(bench, runs, tiny):
    with lent_model(bench, 'demo', LEFT) as a: pass
    with lent_model(bench, 'demo', LEFT) as b: assert a is b
    with lent_model(bench, str(tiny)) as c: assert c is not a and len(bench.other_model)==1
    with lent_model(bench, 'demo', 1): assert refused_in_a_thread(bench)=='model: is busy with what somebody asked for before; try again in a minute'
    assert refused_in_a_thread(bench)==''

def refused_in_a_thread(bench):
    "What somebody else is told who asks for the model meanwhile"
    said = []
    def ask():
        try:
            with bench.lent(wait=.05): said.append('')
        except InputError as e: said.append(str(e))
    t = threading.Thread(target=ask)
    t.start(); t.join()
    return said[0]

def test_a_checkpoint_of_another_model_is_refused_and_nothing_stays(tiny, runs):
    other = Workbench(toy(tiny, 8), runs=runs)
    mine = own(other.policy)
    with pytest.raises(InputError, match='does not fit the model of this app'):
        with lent_model(other, 'demo', 2): pass
    assert same(own(other.policy), mine) and other.model_lock.acquire(blocking=False)

# ---- links

@given(st.text(max_size=300), st.text(max_size=300), st.text(max_size=40), st.text(max_size=100))
@settings(max_examples=80, deadline=None)
def test_a_link_brings_everything_back(prompt, response, critic, words):
    clean = lambda s: s.encode('utf-8', 'replace').decode()
    assert read_link(link_of(prompt, response, critic, words))==dict(prompt=clean(prompt), response=clean(response), critic=clean(critic), words=clean(words))

def packed(raw): return LINK+base64.urlsafe_b64encode(zlib.compress(raw, 9)).decode().rstrip('=')
BOMB = packed(b'{"prompt": "'+b' '*5_000_000+b'"}')
BROKEN = ['', LINK, LINK+'!!', LINK+'A', packed(b''), packed(b'[]'), packed(b'{"prompt": "a"}'), packed(b'{"prompt":1,"response":"","critic":"","words":""}'), packed(b'{"prompt":"","response":"","critic":"","words":"","x":""}'),
          packed(b'['*2000), BOMB, link_of('a', 'b', 'c')[:-4], link_of('a', 'b', 'c')+'\n', '#'+LINK, LINK+'A'*MOST_LINK, None, 7, packed(b'\xff'), packed(b'{"prompt":"'+b'x'*20_001+b'","response":"","critic":"","words":""}')]
@pytest.mark.parametrize('bad', BROKEN, ids=range(len(BROKEN)))
def test_what_is_no_link_is_refused(bad):
    with pytest.raises(InputError, match='link: cannot be read'): read_link(bad)

def test_a_link_puts_texts_on_the_page_and_judges_nothing():
    b = Workbench(model='no model is needed', critics=dict(costly=lambda exs: pytest.fail('it was asked')))
    for sid,(critic,known) in enumerate((('costly','costly'), (EVIL,OWN_WORDS))):
        got = open_link(b, str(sid), link_of(EVIL, f'{EVIL} sat.', critic, ''))
        assert (got['prompt'], got['response'], got['critic'], got['heat'], got['spans'])==(EVIL, f'{EVIL} sat.', known, '', '') and 'Judge' in got['note'] and '<img' not in got['note']
        assert show_again(b, str(sid), 'reward', 'raw', 'token')=={} , 'the example does not come back over it'
    assert open_link(b, 'x', '')==open_link(b, 'x', '#section')==open_link(b, 'x', None)=={}
    with pytest.raises(InputError): open_link(b, 'x', LINK+'zzz')

def test_the_link_that_is_copied_is_the_one_that_opens():
    b = Workbench(model='no model is needed')
    sent = loads(copy_link(b, 'a', PROMPT, RESPONSE, OWN_WORDS, '"the mat" is wrong.')['sent'])
    got = open_link(b, 'a', base64.b64decode(sent['data']).decode())
    assert sent['copy'] and sent['link'] and {k:got[k] for k in ('prompt','response','critic','words')}==dict(prompt=PROMPT, response=RESPONSE, critic=OWN_WORDS, words='"the mat" is wrong.')
    assert open_link(b, 'a', base64.b64decode(loads(copy_link(b, 'a', PROMPT, RESPONSE, 'rules', 'private')['sent'])['data']).decode())['words']==''
    with pytest.raises(InputError, match='choose one of'): copy_link(b, 'a', PROMPT, RESPONSE, 'oracle', '')
