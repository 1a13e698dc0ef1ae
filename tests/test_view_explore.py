"The first view of the app: its handlers as plain functions, with every channel and every kind of critic"
import pytest
from text2grad.app.page import critics_of
from text2grad.core import Critique,Example,Quote,Span
from text2grad.span_ppo.inspection import measure
from text2grad.span_ppo.policy import Policy
from text2grad.pretrained import load_model,tiny_lm
from text2grad.reward_model.span_model import SpanRewardConfig,SpanRewardModel
from text2grad.app.ready import ANSWER,FEEDBACK,QUESTION,asked,example_case,starters
from text2grad.app.view_explore import CHOICES,drawn,generate_response,judge_response,show_again,spans_table,stop_writing,take_starter
from text2grad.app.workbench import OWN_WORDS,InputError,Workbench

PROMPT,RESPONSE,LOOK = 'Where is the cat?','The cat sat on the mat. It slept.',('reward','raw','token')
EVIL = '<img src=x onerror=alert(1)>'

@pytest.fixture(scope='module')
def policy(): return Policy.create(*tiny_lm())

@pytest.fixture
def bench(policy): return Workbench(policy)

def held(bench, critique):
    bench.session('a').hold(measure(bench.policy, Example(PROMPT, RESPONSE, critique)))
    return bench.session('a').case

def test_every_channel_scale_and_unit_is_drawn_with_raw_numbers(bench):
    case,seen = held(bench, Critique('No.', (Span(15, 22, -1., 'the mat', 'a chair'),))),set()
    assert set(CHOICES)=={'reward','advantage','return','value','logp','kl','entropy'}
    for channel in CHOICES:
        for how in ('raw','z','rank'):
            for unit in ('token','word','sentence'):
                got = show_again(bench, 'a', channel, how, unit)
                assert f'Coloured by {channel}' in got['note'] and all(f'{k} ' in got['heat'] for k in CHOICES)
                seen.add(got['heat'])
    assert len(seen)==len(CHOICES)*9
    n = lambda unit: show_again(bench, 'a', 'logp', 'raw', unit)['heat'].count('class="t2g-u"')
    assert n('token')==len(case)>n('word')>n('sentence')==3 # two, and the end token

def test_what_was_found_and_what_was_not_stand_apart(bench):
    case = held(bench, Critique('Mixed.', (Span(4, 7, .5, 'cat', 'right', 'exact'), Span(15, 22, -1., 'teh mat', EVIL, 'fuzzy', .86)), (Quote('dog', -1., EVIL),)))
    t = spans_table(case)
    found,_,lost = t.partition('Not in the response')
    assert all(x in found for x in ('2 spans marked, 1 quote not found','the mat','fuzzy','0.86','right')) and 'dog' not in found and 'dog' in lost
    assert EVIL not in t and EVIL not in drawn(bench, case, *LOOK)['heat']
    assert [spans_table(held(bench, None)), spans_table(None)]==['<p>Nobody has judged this response.</p>', '']
    assert 'Judged, nothing marked.' in spans_table(held(bench, Critique('Fine.')))

def reward_model(backbone, folder):
    small = SpanRewardConfig(lora=dict(r=4, alpha=8), size=16, layers=1, heads=2, max_new_tokens=8)
    SpanRewardModel.create(*load_model(str(backbone), device='cpu'), small, 0).save_pretrained(folder)

def blames_sat(examples): return [Critique('Sat?', (Span(8, 11, -1., 'sat', 'it lay'),), source='one of ours') for _ in examples]

@pytest.mark.parametrize('kind', ['rules for summaries','own words','a function','reward model'])
def test_each_kind_of_critic_judges(policy, tiny, tmp_path, kind):
    critic = {'a function':blames_sat, 'reward model':str(tmp_path/'rm')}.get(kind)
    if kind=='reward model': reward_model(tiny, tmp_path/'rm')
    bench = Workbench(policy, critics_of(critic, 'cpu'))
    name = OWN_WORDS if kind=='own words' else kind if kind in bench.critics else list(bench.critics)[-1]
    got = judge_response(bench, 'a', PROMPT, RESPONSE, name, '"the mat" is wrong.', *LOOK)
    c = bench.session('a').case.critique
    assert c is not None and c.source in got['note']
    assert kind not in ('own words','a function') or len(c.spans)==1

def test_a_failing_critic_leaves_the_sampled_response_unjudged(policy):
    def broken(examples): raise ValueError('it is out of order')
    bench = Workbench(policy, dict(broken=broken))
    with pytest.raises(InputError, match='critic broken: .*out of order'): list(generate_response(bench, 'a', PROMPT, .7, 0, 6, 'broken', '', *LOOK))
    case = bench.session('a').case
    assert case is not None and case.critique is None and show_again(bench, 'a', *LOOK)['note'].count('not judged')==1

def test_stop_keeps_what_was_written(bench):
    steps = generate_response(bench, 'a', PROMPT, 2., 1, 200, 'rules', '', *LOOK)
    next(steps)
    assert 'Stopped' in stop_writing(bench, 'a')['note']
    last = list(steps)[-1]
    assert 0<len(bench.session('a').case)<200 and last['response']==bench.session('a').case.response

def test_the_same_seed_writes_the_same(bench):
    write = lambda sid,seed: list(generate_response(bench, sid, PROMPT, 1., seed, 12, 'rules', '', *LOOK))[-1]['response']
    assert write('a', 0)==write('b', 0)!=write('c', 1)

def test_ready_examples_are_short_and_tell_what_they_are_about():
    assert len(starters())==12 and len({k.split(': ', 1)[1] for k in starters()})==12 and max(map(len, starters()))<=56
    for k,e in starters().items(): assert asked(take_starter(Workbench(model='no model is needed here'), 'a', k)['prompt']).meta==e.meta

def test_the_first_screen_is_judged_and_needs_no_model():
    bench = Workbench(model='no model is needed here')
    got = show_again(bench, 'a', *LOOK)
    assert got['heat'].count('t2g-phrase')==2 and 'An example' in got['note'] and '2 spans marked' in got['spans'] and bench.session('a').case is None
    c = bench.judge(OWN_WORDS, Example(QUESTION, ANSWER), FEEDBACK)
    assert c.spans==example_case().critique.spans, 'the words in the box are those that were judged'

def test_a_free_prompt_is_judged_by_no_rule_that_nobody_chose(policy):
    bench = Workbench(policy)
    for critic in ('rules','tests') if 'tests' in bench.critics else ('rules',):
        with pytest.raises(InputError, match=f'critic {critic}: this prompt .*choose'): judge_response(bench, 'a', PROMPT, RESPONSE, critic, '', *LOOK)
        last = list(generate_response(bench, 'a', PROMPT, .7, 0, 6, critic, '', *LOOK))[-1]
        assert bench.session('a').case.critique is None and 'not judged' in last['note'] and 'this prompt' in last['note']
    with pytest.raises(InputError, match='there are none yet'): judge_response(bench, 'a', PROMPT, RESPONSE, OWN_WORDS, ' ', *LOOK)
    last = list(generate_response(bench, 'a', PROMPT, .7, 0, 6, 'rules for summaries', '', *LOOK))[-1]
    assert bench.session('a').case.critique.source.startswith('rules/summarize') and not last.get('stop')

def test_code_is_judged_by_its_tests(policy):
    bench = Workbench(policy)
    title,e = next((k,e) for k,e in starters().items() if k.startswith('code'))
    got = take_starter(bench, 'a', title)
    assert got['critic']=='tests' and take_starter(bench, 'a', next(iter(starters())))['critic']=='rules'
    assert take_starter(Workbench(policy, dict(mine=blames_sat)), 'a', title)['critic']=='mine'
    judge_response(bench, 'a', got['prompt'], '```python\n'+e.meta['signature'].rstrip().removesuffix(':')+':\n    return None\n```', 'tests', '', *LOOK)
    c = bench.session('a').case.critique
    assert c.source.startswith('tests/') and c.spans and min(s.score for s in c.spans)<0
