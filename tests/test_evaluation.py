"Metrics at their edges, intervals against theory, and reports from folders that are whole, torn, hostile or huge"
import json,math,random,re,shutil,subprocess,sys,warnings
from dataclasses import replace
from pathlib import Path

import pytest
from fastcore.test import test_close as close
from hypothesis import given,settings,strategies as st
from rouge_score.tokenizers import DefaultTokenizer
from test_show import ATTRS,HOSTILE,TAGS,Checker

from text2grad.evaluation import report as ev,task_metrics as tm
from text2grad.evaluation.comparison import comparison_html,write_comparison
from text2grad.evaluation.runs import RunError,read_run
from text2grad.evaluation.statistics import mean_interval,paired_bootstrap
from text2grad.span_ppo.heldout import evaluate
from text2grad.core import Critique,Example,Span,to_record
from text2grad.files import read_jsonl,write_jsonl
from text2grad.critics.unit_tests import UnitTestCritic
from text2grad.sandbox import SandboxUnavailable
from text2grad.viz.color import visible

TAGS |= {'h3'}
english = DefaultTokenizer(use_stemmer=True)

# Metrics

SCRIPTS = ['Rain stopped play.', 'Дождь остановил игру', '雨で中断した', 'البداية والنهاية', 'Τι έγινε', 'naïve café', '비가 왔다', 'x = y + 1', 'The', '+', '¿?', '42', '🌧']
COMPARE = {f.__name__:f for f in (tm.rouge_1, tm.rouge_2, tm.rouge_l, tm.bleu, tm.chrf, tm.exact_match, tm.token_f1, tm.coverage)}

@pytest.mark.parametrize('name', COMPARE)
def test_perfect_is_1_and_empty_is_0(name):
    f = COMPARE[name]
    assert f(SCRIPTS, SCRIPTS)==[1.]*len(SCRIPTS), 'a perfect prediction in any script'
    for nothing in ('', ' \n', None): assert f([nothing]*len(SCRIPTS), SCRIPTS)==[0.]*len(SCRIPTS)
    if name in ('exact_match','token_f1'): assert f(['the','the an'], ['an','a the'])==[0.,0.], 'articles alone are not equal'
    assert f(['+'], ['-'])==[0.], 'other punctuation is another answer'
    assert f(['snow'], [['rain','snow','hail']])==[1.], 'best over the references'
    assert f([], [])==[]

@pytest.mark.parametrize('name', COMPARE)
def test_bad_references_are_named(name):
    for refs in ([['x'],[]], ['x',''], ['x',None], ['x',['  ']]):
        with pytest.raises(ValueError, match='row 1: no reference'): COMPARE[name](['x','x'], refs)
    with pytest.raises(ValueError, match='2 predictions but 1 references'): COMPARE[name](['x','y'], ['x'])

@settings(max_examples=200, deadline=None)
@given(st.text(max_size=20), st.text(max_size=20).filter(str.strip))
def test_scores_stay_between_0_and_1(p, r):
    for f in COMPARE.values():
        assert 0<=f([p], [r])[0]<=1 and f([r], [r])==[1.]

@settings(max_examples=300, deadline=None)
@given(st.text(st.characters(max_codepoint=127), max_size=40))
def test_words_of_english_are_those_of_rouge_score(s):
    assert tm.RougeTokenizer().tokenize(s)==english.tokenize(s)

def test_rouge_is_the_reference_implementation_on_english():
    from rouge_score.rouge_scorer import RougeScorer
    rng,vocab = random.Random(0),'rain rained stopping stops match matches the a of player'.split()
    text = lambda: ' '.join(rng.choices(vocab, k=rng.randint(1, 12)))
    ps,rs = [text() for _ in range(40)],[[text() for _ in range(3)] for _ in range(40)]
    want = [RougeScorer(['rougeL'], use_stemmer=True).score_multi(r, p)['rougeL'].fmeasure for p,r in zip(ps, rs)]
    close(tm.rouge_l(ps, rs), want)

@pytest.mark.parametrize('pred,ref,em,f1', [
    ('Norman Conquest', 'the Norman conquest.', 1., 1.), ('in 1066', '1066', 0., 2/3), ('a b b', 'b b c', 0., .8), ('b b b', 'b', 0., .5),
    ('U.S.', 'US', 1., 1.), ('1,066', '1066', 1., 1.), ('not stated', 'stated', 0., 2/3), ('theatre', 'atre', 0., 0.), ('A.', 'a', 0., 0.)])
def test_squad_cases_by_hand(pred, ref, em, f1):
    assert tm.exact_match([pred], [ref])==[em]
    close(tm.token_f1([pred], [ref]), [f1])

def test_coverage_counts_content_words_once():
    close(tm.coverage(['rain rain rain'], ['The rain delayed it for the match']), [1/3])
    close(tm.coverage(['it is over'], ['it is over']), [1.])
    close(tm.coverage(['anything'], ['it was']), [0.])

def test_a_parse_failure_is_not_right():
    hostile = ['', '   ', None, '# nothing', 'def f(:', '```python\n', '```\nx = (\n```', 'x = 1\n\0', '('*5000, '-'*20000+'1', 'return 1\n  x', 'Sure! Here is the code.', '\ud800', 'Note', '42', '"a text"']
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert tm.code_parses(hostile)==[0.]*len(hostile)
        assert tm.code_parses(['def f():\n    return "\\d"', '```python\nx = 1\n```'])==[1.,1.]

# Intervals

def test_bootstrap_is_scipys():
    import numpy as np
    from scipy import stats
    rng = np.random.default_rng(1)
    b,a = rng.normal(size=25),rng.normal(.5, size=25)
    i = paired_bootstrap(b.tolist(), a.tolist(), n=1999, seed=3)
    want = stats.bootstrap((a-b,), np.mean, n_resamples=1999, rng=np.random.default_rng(3), method='BCa', batch=2_000_000//25).confidence_interval
    close((i.low, i.high), tuple(want), 1e-12)
    close((i.before, i.after, i.diff), (b.mean(), a.mean(), (a-b).mean()), 1e-12)
    assert paired_bootstrap(b.tolist(), a.tolist(), n=1999, seed=4)!=i

def test_interval_moves_and_flips_with_the_data():
    rng = random.Random(0)
    b,a = [rng.random() for _ in range(20)],[rng.random() for _ in range(20)]
    i,up,back = (paired_bootstrap(x, y, n=999) for x,y in ((b,a), (b,[v+1 for v in a]), (a,b)))
    close((up.low, up.high), (i.low+1, i.high+1), 1e-9)
    close(back.diff, -i.diff, 1e-12)
    close((back.low, back.high), (-i.high, -i.low), .03)

def test_pairing_is_by_position():
    b = [float(i) for i in range(20)]
    assert paired_bootstrap(b, [x+.5+.01*(i%3) for i,x in enumerate(b)]).clear
    assert not paired_bootstrap(b, [x+.5 for x in b[::-1]]).clear

def test_covers_the_truth_about_95_times_in_100():
    rng,hit = random.Random(0),0
    for k in range(200):
        i = mean_interval([rng.gauss(1, 2) for _ in range(30)], n=499, seed=k)
        hit += i.low<=1<=i.high
    assert 178<=hit<=199, hit

@pytest.mark.parametrize('b,a,want', [
    ([], [], (None,None,None,0,0)), ([1.], [2.], (1.,None,None,1,0)), ([None]*3, [1.]*3, (None,None,None,0,3)),
    ([0.,0.], [0.,0.], (0.,0.,0.,2,0)), ([.1,.2,.3], [.4,.5,.6], (.3,.3,.3,3,0)), ([1,2,True], [2,3,2], (1.,1.,1.,3,0)), ([0.,None,1.,None], [1.,1.,None,None], (1.,None,None,1,3))])
def test_degenerate(b, a, want):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        i = paired_bootstrap(b, a, n=99)
    got = (i.value, i.low, i.high, i.n, i.dropped)
    assert all(g==w or (isinstance(w, float) and math.isclose(g, w, abs_tol=1e-12)) for g,w in zip(got, want)), got
    assert i.clear==(i.low is not None and i.low>0)
    json.dumps(i.row('x'), allow_nan=False)

@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([0.,0.,0.,1.,-1.,1e-9,1e6]), min_size=2, max_size=12))
def test_always_finite_and_ordered(xs):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        i = mean_interval(xs, n=99)
    assert min(xs)-1e-6<=i.low<=i.high<=max(xs)+1e-6

def test_scores_that_are_no_scores():
    for bad in (math.nan, math.inf, 'x', [1]):
        with pytest.raises(ValueError, match=r'after\[1\]'): paired_bootstrap([0.,0.], [0.,bad], n=9)
    with pytest.raises(ValueError, match='same prompts'): paired_bootstrap([0.], [0.,1.])

# Measuring

def judged(prompt, response, ref='Rain stopped play'): return Example(prompt, response, Critique('', [Span(0, len(response), 1.)]), [ref])

def test_measure_and_compare_rows():
    before = tm.score_responses([judged(f'p{i}', 'snow') for i in range(3)], [-.5,None,-.5], [1,1,1], ('critic_reward','rouge_l','length'))
    after = tm.score_responses([judged(f'p{i}', 'Rain stopped play') for i in range(3)], [.5,.5,.25], [3,3,4], ('critic_reward','rouge_l','length'))
    t = {r['metric']:r for r in tm.compare_rows(before, after)}
    assert list(t)==['critic total a response','critic reward per token','ROUGE-L','coverage of the reference','length in tokens']
    assert t['critic reward per token']['n']==2 and t['critic reward per token']['dropped']==1
    close([t['critic total a response'][k] for k in ('before','after')], [-.5, (1.5+1)/2])
    close((t['critic reward per token']['before'], t['critic reward per token']['after'], t['ROUGE-L']['diff']), (-.5,.375,1.))
    with pytest.raises(ValueError, match='row 0: before and after'): tm.compare_rows(before, [dict(r, example=replace(r['example'], prompt='z')) for r in after])
    with pytest.raises(ValueError): tm.compare_rows(before, after[:2])
    twice = {r['metric']:r for r in tm.compare_rows([b for b in before for _ in 'ab'], [a for a in after for _ in 'ab'])}
    assert twice==t, 'a second response to a prompt is no second prompt'
    with pytest.raises(ValueError, match='unknown metric meteor'): tm.score_responses([], [], [], ('meteor',))
    with pytest.raises(ValueError): tm.score_responses([judged('p','r')], [], [1], ('length',))
    assert tm.compare_rows([], [])==[]

def test_the_pass_rate_is_of_whole_suites_and_is_measured_without_the_critic(monkeypatch):
    tests = dict(tests='assert f(2) == True\nassert f(3) == False\nassert f(0) == True\n', entry_point='f')
    programs = {'def f(n):\n    return n % 2 == 0':1., '```python\ndef f(n): return n % 2 == 0\n```\nThat is it.':1., 'def f(n): return True':0., 'def g(n): return n % 2 == 0':0., 'def f(n:':0., ' ':0.}
    exs = [Example(f'Is n even? {i}', p, meta=tests) for i,p in enumerate(programs)]+[Example(f'p{i}', 'def f(n): return True', meta=m) for i,m in enumerate(({}, dict(entry_point='f'), dict(tests='')))]
    rows = tm.score_responses(exs, [None]*len(exs), [1]*len(exs), ('critic_reward','passes','length'))
    assert [r['passes'] for r in rows]==[*programs.values(), None, None, None]
    table = {r['metric']:r for r in tm.compare_rows(rows, rows)}
    close((table['pass rate, all tests']['before'], table['pass rate, all tests']['n']), (2/6, 6))
    def none(self, examples): raise SandboxUnavailable('no box')
    monkeypatch.setattr(UnitTestCritic, 'judgements', none)
    with pytest.warns(UserWarning, match='the pass rate is not measured: no box'): rows = tm.score_responses(exs[:2], [1.,1.], [1,1], ('passes',))
    assert [r['passes'] for r in rows]==[None,None]

def test_evaluate_a_policy():
    from types import SimpleNamespace
    from text2grad.span_ppo.policy import Policy
    from text2grad.pretrained import tiny_lm
    policy,n = Policy.create(*tiny_lm()),[]
    exs = [Example('Rain delayed the match.', '', reference=['Rain']), Example('Who won?', '', reference=['Nobody'])]
    critic = lambda es: [Critique('All good', [Span(0, len(es[0].response), .5)]), None]
    rows = evaluate(policy, critic, exs, SimpleNamespace(max_new_tokens=6, metric_names=('critic_reward','rouge_l','length')), batch_size=1, progress=n.append)
    assert [r['reward'] is None for r in rows]==[False,True] and 0<=rows[0]['reward']<=.5 and all(1<=r['length']<=6 for r in rows) and sum(n)==2
    assert [r['example'].response for r in rows]==[r['example'].response for r in evaluate(policy, critic, exs, SimpleNamespace(max_new_tokens=6, metric_names=()))], 'greedy: the batch does not matter'
    assert [r['kl'] for r in evaluate(policy, critic, exs, SimpleNamespace(max_new_tokens=6, metric_names=()), kl_rows=1)]==[0.,None]
    task = SimpleNamespace(max_new_tokens=6, metric_names=())
    many = evaluate(policy, lambda es: [None]*len(es), exs, task, temperature=1., samples=3)
    assert [r['example'].prompt for r in many]==[e.prompt for e in exs for _ in range(3)] and len({r['example'].response for r in many})>2
    with pytest.raises(ValueError, match='samples=2: greedy'): evaluate(policy, critic, exs, task, samples=2)
    for n,p in policy.trainable().items():
        if 'lora_B' in n: p.data.add_(.3)
    assert all(abs(r['kl_response']-r['kl']*r['length'])<1e-6 for r in evaluate(policy, critic, exs, task))
    assert policy.moved and all(r['kl']>0 for r in evaluate(policy, critic, exs, SimpleNamespace(max_new_tokens=6, metric_names=())))

def test_greedy_responses_beside_the_samples_are_those_of_their_own_pass():
    "Many ids end a response here, so that in every batch the samples end before the greedy ones or after them"
    from types import SimpleNamespace
    from text2grad.span_ppo.policy import Policy
    from text2grad.pretrained import tiny_lm
    policy,task = Policy.create(*tiny_lm()),SimpleNamespace(max_new_tokens=12, metric_names=())
    policy.eos_ids = list(range(0, 200, 7))
    exs = [Example(f'Say {w} again.', '') for w in 'one two three four five'.split()]
    rows = lambda **how: evaluate(policy, lambda es: [None]*len(es), exs, task, **how)
    both = rows(temperature=1., samples=2, greedy=True, batch_size=2, kl_rows=3)
    said = lambda rs: [r['example'].response for r in rs]
    sampled,greedy = [r for i,r in enumerate(both) if i%3<2],both[2::3]
    assert said(sampled)==said(rows(temperature=1., samples=2, batch_size=2)) and said(greedy)==said(rows())
    assert len({r['length'] for r in sampled})>3 and [r['kl'] is None for r in both]==[False,False,True,False]+[True]*11
    with pytest.raises(ValueError, match='give a temperature'): rows(greedy=True)

# Runs and reports

def row(step, text='Rain fell.', reason='why', n=3, prompt='p', reward=.5):
    return dict(step=step, prompt=prompt, response=text, critique=dict(text=reason, spans=[dict(start=0, end=min(4, len(text)), score=1., reason=reason, quote=text)], unresolved=[dict(text=reason, score=-.5, reason=reason)], source=reason),
                tokens=[dict(text=text, reward=reward, value=.1, advantage=reward/2, kl=.01, logp_old=-1., logp_new=-1.) for _ in range(n)])

def make(p, steps=4, samples=None, seed=0, diff=.2, config=None, summary=None, **more):
    write_jsonl(p/'metrics.jsonl', [dict(step=i, reward=.1*i, kl=.01, length=20., responses=8, judged=8, seconds=dict(rollout=1.)) for i in range(1, steps+1)])
    write_jsonl(p/'samples.jsonl', samples or [row(i) for i in range(1, steps+1) for _ in range(5)])
    (p/'config.json').write_text(json.dumps(config or dict(lr=1e-4, versions=dict(python='3'))))
    table = [dict(metric='critic reward per token', n=32, before=0., after=diff, diff=diff, low=diff-.1, high=diff+.1)]
    (p/'summary.json').write_text(json.dumps(summary or dict(task='t', reward='span', model='m', seed=seed, steps=steps, seconds=1., peak_memory_mb=100, table=table, **more)))
    return p

def test_report_of_a_whole_run(tmp_path):
    p = make(tmp_path/'run 1', before_after=dict(prompt=[dict(role='user', content='Summarize')], before='It rained.', after='Rain.', critique_before=row(1)['critique'], critique_after=None))
    out = ev.write_report(p)
    page = out.read_text()
    c = Checker(page)
    assert out==p/'report.html' and not c.bad, c.bad[:5]
    assert re.findall('<h2>(.*?)</h2>', page)==['Results','Before and after','Curves','Samples of the first and the last step','Configuration and environment']
    assert c.text.count('step 1, 3 tokens')==3 and c.text.count('step 4, 3 tokens')==3 and 'step 2,' not in c.text
    for words in ('critic reward per token', 'It rained.', 'No judgement', 'versions.python', 'seed 0'): assert words in c.text, words
    assert ev.write_report(p).read_text()==page, 'the same folder, the same report'
    assert sorted(x.name for x in p.iterdir())==['config.json','metrics.jsonl','report.html','samples.jsonl','summary.json']

def test_before_and_after_as_records(tmp_path):
    rec = lambda t: dict(record=to_record(Example('Summarize', t, Critique('fine', [Span(0, 4, 1.)]))), reward=.1)
    page = ev.write_report(make(tmp_path/'r', before_after=dict(before=rec('It rained.'), after=rec('Rain fell.')))).read_text()
    assert 'Before and after' in page and not Checker(page).bad and page.count('Summarize')==1
    three = [dict(which=w, before=rec('It rained.'), after=rec(f'Rain fell, {w}.')) for w in ('gained most','the <b>median</b>','lost most')]
    page = ev.write_report(make(tmp_path/'r3', examples=three, complaints=[dict(complaint='It names …', n=3, before=.5, after=.25, diff=-.25, low=-.4, high=-.1)])).read_text()
    assert not Checker(page).bad and re.findall('<h3>(.*?)</h3>', page)[:3]==['gained most','the &lt;b&gt;median&lt;/b&gt;','lost most'] and 'It names …' in page and '-0.25' in page.replace('\u2212', '-')

def test_one_scale_for_all_samples(tmp_path):
    p = make(tmp_path/'r', steps=2, samples=[row(1, reward=4.), row(2, reward=.5)])
    page = ev.write_report(p).read_text()
    assert re.findall('reward[^·]*· full colour at ([\\d.]+)', Checker(page).text)==['4','4']
    assert re.findall('advantage[^·s]*· full colour at ([\\d.]+)', Checker(page).text)==['2','2']

def test_hostile_run(tmp_path):
    some = [s for s in HOSTILE if len(s)<500]
    p = make(tmp_path/'<script>alert(1)<', samples=[row(1, s or 'x', s, prompt=s) for s in some], config={s or 'k': s for s in some if '\ud83d' not in s and '\udc00' not in s},
             summary=dict(task=some[0], reward=some[1], model=some[2], seed=some[3], steps=some[4], device=some[5], table=[{'metric': s, s: s, 'n': 1} for s in some[:20]], before_after=dict(prompt=some[0], before=some[1]*2, after=some[3]*2, critique_before=row(1, some[1]*2, some[2])['critique'], critique_after=None)))
    write_jsonl(p/'metrics.jsonl', [{'step': 1, **{s: 1. for s in some}}])
    page = ev.write_report(p, samples=100).read_text()
    c = Checker(page)
    assert not c.bad, c.bad[:5]
    assert all(visible(s) in c.text+'\n'.join(c.values) for s in some[:30])

def test_huge_run_stays_below_3_mb_and_says_so(tmp_path):
    big = [dict(row(i, ' <&>\n\u202e', 'r'*30_000, n=6000, prompt='p'*100_000), response='x'*200_000) for i in (1, 2) for _ in range(3)]
    out = ev.write_report(make(tmp_path/'r', samples=big, config={f'k{i}': 'v'*1000 for i in range(2000)}, before_after=dict(prompt='p', before='\u202e'*60_000, after='x')))
    page = out.read_text()
    assert out.stat().st_size<3_000_000 and not Checker(page).bad
    assert 'left out here, to keep the file small' in page and 'more characters' in page and 'Results' in page

def test_torn_last_line(tmp_path):
    p = make(tmp_path/'r')
    for f in ('metrics.jsonl','samples.jsonl'): (p/f).write_bytes((p/f).read_bytes()[:-9])
    run = read_run(p)
    assert len(run.metrics)==3 and len(run.notes())==2 and all('its last line is not whole' in w for w in run.notes())
    page = ev.write_report(p).read_text()
    assert 'Read this first' in page and 'metrics.jsonl: its last line is not whole' in page

def test_torn_inside_a_character(tmp_path):
    p = make(tmp_path/'r', samples=[row(1, 'Regen 🌧')])
    data = (p/'samples.jsonl').read_bytes()
    (p/'samples.jsonl').write_bytes(data+data[:data.index('🌧'.encode())+2])
    run = read_run(p)
    assert run.steps==[1] and len(run.places[1])==1 and 'its last line is not whole' in run.notes()[0]

def test_unfinished_and_unjudged(tmp_path):
    p = make(tmp_path/'r', samples=[dict(row(1), critique=None)])
    (p/'summary.json').unlink()
    write_jsonl(p/'metrics.jsonl', [dict(step=1, reward=None, responses=8, judged=5)])
    page = ev.write_report(p).read_text()
    for words in ('the run is going on, or it was stopped', '3 of 8 sampled responses were not judged', 'No judgement: left out'): assert words in page
    write_jsonl(p/'metrics.jsonl', [])
    write_jsonl(p/'samples.jsonl', [])
    assert 'No step was finished' in ev.write_report(p).read_text()

def test_versions_of_the_machine_when_the_run_has_none(tmp_path):
    page = ev.write_report(make(tmp_path/'r', config=dict(lr=1.))).read_text()
    assert 'did not record its versions' in page and str(tmp_path) not in page

def broken(p, how):
    lines = (p/'metrics.jsonl').read_bytes().splitlines(keepends=True)
    s = read_jsonl(p/'samples.jsonl')
    if how=='middle line': (p/'metrics.jsonl').write_bytes(lines[0]+b'{"step": \n'+lines[1])
    if how=='no step': write_jsonl(p/'metrics.jsonl', [dict(reward=1.), dict(step=2)])
    if how=='config': (p/'config.json').write_text('{"a": NaN}')
    if how=='config list': (p/'config.json').write_text('[]')
    if how=='summary bytes': (p/'summary.json').write_bytes(b'\xff\xfe')
    if how=='critique score': write_jsonl(p/'samples.jsonl', [dict(s[0], critique=dict(text='x', spans=[dict(start=0, end=1, score=9.)]))])
    if how=='critique text': write_jsonl(p/'samples.jsonl', [dict(s[0], critique=dict(spans=[]))])
    if how=='critique string': write_jsonl(p/'samples.jsonl', [dict(s[0], critique='good')])
    if how=='no tokens': write_jsonl(p/'samples.jsonl', [{k:v for k,v in s[0].items() if k!='tokens'}])
    if how=='tokens are words': write_jsonl(p/'samples.jsonl', [dict(s[0], tokens=['a','b'])])

@pytest.mark.parametrize('how,says', [('middle line','metrics.jsonl: 1 line could not be read'), ('no step','step: must be a whole number'), ('config','Read this first'), ('config list','config.json could not be read: must be a JSON object'),
    ('summary bytes','summary.json could not be read'), ('critique score','1 of the marks cannot be read'), ('critique text','step 1'), ('critique string','The critique cannot be read'),
    ('no tokens','its tokens cannot be read'), ('tokens are words','its tokens cannot be read')])
def test_what_is_broken_is_left_out_and_said(tmp_path, how, says):
    p = make(tmp_path/'r')
    broken(p, how)
    page = ev.write_report(p).read_text()
    c = Checker(page)
    assert not c.bad and str(tmp_path) not in page
    if how!='config': assert says in c.text, c.text[:400]

@pytest.mark.parametrize('ba', [3, 'x', [1], dict(before='a'), dict(before=dict(record=3), after=dict(record=4)), dict(before='a', after='b', prompt=7), dict(prompt='p', before='a', after='b', critique_before=[])])
def test_a_damaged_before_after_is_left_out(tmp_path, ba):
    assert not Checker(ev.write_report(make(tmp_path/'r', before_after=ba)).read_text()).bad

def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(RunError, match='no such folder'): ev.write_report(tmp_path/'none')
    with pytest.raises(RunError, match='not the folder of a run'): ev.write_report(tmp_path)
    p = make(tmp_path/'r')
    (p/'samples.jsonl').unlink()
    assert 'There is no samples.jsonl' in ev.write_report(p).read_text(), 'a reward model has none'
    (tmp_path/'linked').symlink_to(p)
    assert ev.write_report(tmp_path/'linked').exists()
    (p/'config.json').unlink()
    (p/'config.json').symlink_to('/etc/hostname')
    with pytest.raises(RunError, match='is a link'): ev.write_report(p)

def test_compare_groups_seeds(tmp_path):
    runs = [make(tmp_path/f'r{s}', seed=s, diff=d) for s,d in enumerate((1.,2.,3.))]+[make(tmp_path/'other', steps=9, seed=0, diff=5.)]
    rows = ev.compare(runs)
    assert [r['run'] for r in rows]==['r0','r1','r2','other','all 3 seeds']
    g = rows[-1]
    close((g['diff'], g['high']-g['diff'], g['diff']-g['low'], g['n']), (2., 4.302653/3**.5, 4.302653/3**.5, 3), 1e-4)
    assert len(ev.compare([runs[0], runs[0]]))==2, 'the same seed twice is no second seed'
    with pytest.raises(FileNotFoundError, match='nothing: no summary.json'): ev.compare([tmp_path/'nothing'])

def test_groups_of_seeds_are_told_apart_and_no_seed_counts_twice(tmp_path):
    runs = [make(tmp_path/k/f'span-seed{s}', seed=s, diff=d+s) for k,d in (('a', 1.), ('b', 5.)) for s in (0, 1)]
    assert [(r['run'], r['diff'], r['n']) for r in ev.compare(runs)[4:]]==[('all 2 seeds, a/span', 1.5, 2), ('all 2 seeds, b/span', 5.5, 2)]
    assert [r['run'] for r in ev.compare(runs[:3])]==['a/span-seed0', 'a/span-seed1', 'b/span-seed0', 'all 2 seeds, a/span']
    longer = [make(tmp_path/f'long-seed{s}', seed=s, diff=1., steps=9) for s in (0, 1)]
    assert [r['run'] for r in ev.compare(runs[:2]+longer)[4:]]==['all 2 seeds, steps 4', 'all 2 seeds, steps 9']

def test_one_page_compares_runs(tmp_path):
    runs = [make(tmp_path/f'<b>{k}-seed{s}', seed=s, diff=s+1., steps=n) for n,k in ((4, 'x'), (5, 'y')) for s in range(4)]
    out = write_comparison(tmp_path/'c.html', runs)
    page = out.read_text()
    c = Checker(page)
    assert '<b>' not in page and not re.findall('(?i)<script|\\son[a-z]+=|https?://', page)
    assert re.findall('<h2>(.*?)</h2>', page)==['Results','KL and what it bought','Curves']
    for said in ('<b>x-seed0', 'all 4 seeds, steps 5', 'no run has measured both', '<b>y, 4 seeds'): assert said in c.text
    many = [make(tmp_path/f'r{i}', seed=i) for i in range(8)]
    assert 'the others are in the tables' in comparison_html(many)
    with pytest.raises(FileNotFoundError, match='no summary.json'): comparison_html([*many, tmp_path/'nothing'])

@pytest.mark.parametrize('text', ['{', '{}', '[1]', '{"task": "x" "steps": 2}', '\x00'])
def test_compare_names_the_run_whose_summary_is_damaged(tmp_path, text):
    good,bad = make(tmp_path/'good', seed=0, diff=1.),make(tmp_path/'bad', seed=1, diff=1.)
    (bad/'summary.json').write_text(text)
    with pytest.raises(RunError, match=f'^{bad}: summary.json .*Leave this run out') as e: ev.compare([good, bad])
    assert 'There is no' not in str(e.value) and 'There is no summary' not in ' '.join(read_run(bad).notes())

@pytest.mark.parametrize('key,value', [('before', '9'*39), ('low', [1]), ('n', 'many'), ('diff', True), ('metric', 7), ('high', ...)])
def test_compare_names_the_file_whose_table_holds_no_numbers(tmp_path, key, value):
    p = make(tmp_path/'r')
    s = json.loads((p/'summary.json').read_text())
    if value is ...: del s['table'][0][key]
    else: s['table'][0][key] = value
    (p/'summary.json').write_text(json.dumps(s))
    with pytest.raises(RunError, match=f'r/summary.json: row 1 of its table: {key} is'): ev.compare([p])

@pytest.mark.parametrize('odd', [dict(kl_target=[1]), dict(kl_target='6', max_new_tokens={}), dict(max_new_tokens='many'), dict(kl_target=True)])
def test_alarms_read_no_setting_that_is_no_number(odd):
    "As in a `config.json` that somebody has changed"
    from text2grad.evaluation.alarms import alarms
    rows = [dict(step=i, kl=30., length=20., finished=1-.1*i) for i in range(8)]
    assert [a.name for a in alarms(rows, odd)]==['KL high']
    assert [a.name for a in alarms(rows, dict(kl_target=20., max_new_tokens=20))]==['answers cut off']

def test_no_torch():
    code = 'import sys, text2grad.evaluation.report, text2grad.evaluation.task_metrics; print([m for m in ("torch","transformers","matplotlib","scipy","rouge_score") if m in sys.modules])'
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert out.stdout.strip()=='[]', out.stdout+out.stderr
