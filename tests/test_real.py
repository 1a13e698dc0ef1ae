"The script of the real setting: one short run on a tiny model, and its plan; that what was run is not run again is held by test_fast"
import importlib,json
from pathlib import Path
import pytest
from text2grad.span_ppo.baselines import arm_trainer,revision_prompt

@pytest.fixture
def real(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parent.parent/'nbs'/'experiments'))
    return importlib.import_module('real')

def test_a_short_run(real, tiny, monkeypatch):
    monkeypatch.setattr(real, 'arm_trainer', lambda arm, _, *a, **kw: arm_trainer(arm, str(tiny), *a, **kw))
    monkeypatch.setattr(real, 'task_settings', lambda task: dict(steps=2, batch_size=4, siblings=2, temperature=1., pace=1))
    for part in ('pilot','arms'):
        got = json.loads(json.dumps(real.run('summarize', part, 'sentence', 1e-2, 0)))
        first,last = got['curve']
        assert (first['rollouts'], last['rollouts'])==(0,8) and first['kl']==0<last['kl'] and 0<last['tokens']<=8*40
        assert {'total','reward','rouge_l','length'}<=first.keys() and all(len(v)==2 for v in got['complaints'].values())
        assert ('greedy' in got)==('slopes' in got)==(part=='arms')
    assert {'total','rouge_l'}<=got['slopes'].keys() and 'length' not in got['slopes']

def test_a_slope_is_taken_among_the_responses_to_a_prompt(real):
    rows = [dict(example=None, length=n, total=2.*n+base, kl=None, f1=None) for base,ns in ((0,(1,3)), (-50,(20,24)), (7,(5,5))) for n in ns]
    assert real.slopes(rows, 2)=={'total':2.} # over all responses together it would be below 0
    assert real.slopes(rows[4:], 2)=={'total':0.} # both as long: nothing is known

def test_an_answer_in_view_of_the_critique(real, tiny, monkeypatch):
    monkeypatch.setattr(real, 'arm_trainer', lambda arm, _, *a, **kw: arm_trainer(arm, str(tiny), *a, **kw))
    monkeypatch.setattr(real, 'SAMPLES', dict(summarize=2))
    asked = []
    monkeypatch.setattr(real, 'revision_prompt', lambda e: asked.append(e) or revision_prompt(e))
    got = [real.run('summarize', 'arms', 'reflect', 0., seed) for seed in (0, 1)]
    first,last = got[0]['curve']
    assert len(asked)==2*3*40 and all(e.critique is not None for e in asked) # two samples and a greedy one to each prompt
    assert first['kl']==0 and last['kl'] is None and last['rollouts']==0 # nothing was learnt
    assert last['total']!=first['total'] and got[1]['curve'][0]==first and got[1]['curve'][1]!=last
    assert got[0]['greedy'][1]['total']!=got[0]['greedy'][0]['total']

@pytest.fixture
def free(real, monkeypatch):
    "With a KL that costs nothing; the fourth rate goes too far with each arm"
    monkeypatch.setattr(real, 'PRICE', 0)
    monkeypatch.setattr(real, 'FAR', 20)
    return real

def pilots(real, task):
    "Pilots whose best rate is the third for the scalar and the second for the rest; the scalar goes twice as far"
    out = []
    for r in real.plan(task, 'pilot', []):
        i = real.grid(task).index(r['lr'])
        total,kl = -abs(i-(2 if r['arm']=='scalar' else 1)),(1., 2., 8., 30.)[i]*(2 if r['arm']=='scalar' else 1)
        out.append(r | dict(part='pilot', curve=[{}, dict(total=total, kl=kl)]))
    return out

def test_the_plan(free):
    todo = free.plan('summarize', 'pilot', [])
    assert [r['arm'] for r in todo[::4]]==[*free.MAJOR, *(a for a in free.ARMS if a not in free.MAJOR)] and {r['lr'] for r in todo}==set(free.GRID)
    assert {r['arm'] for r in free.plan('summarize', 'arms', [])}=={'reflect'} # which needs no rate
    arms = free.plan('summarize', 'arms', pilots(free, 'summarize'))
    assert {(r['arm'],r['lr']) for r in arms}=={(a, 9e-4 if a=='scalar' else 3e-4) for a in free.ARMS} | {('reflect',0.)}
    assert sum(r['arm']=='grpo' for r in arms)==5 and sum(r['arm']=='dpo' for r in arms)==3

def test_other_tasks_have_pilots_of_major_arms_alone(free):
    rows = pilots(free, 'answer')
    assert {r['arm'] for r in rows}==set(free.MAJOR) and {r['lr'] for r in rows}=={2e-4, 6e-4, 1.8e-3, 5.4e-3}
    assert 'dpo' not in free.chosen(rows, 'answer')
    both = free.chosen(rows+pilots(free, 'summarize'), 'answer')
    assert both['dpo']==6e-4 and both['scalar']==1.8e-3 and both.keys()==free.ARMS.keys()

def test_arms_that_ended_elsewhere_are_run_again_at_equal_kl(free):
    rows = pilots(free, 'summarize')
    ends = dict(span=4., scalar=9., sentence=4.9, random=2.5)
    ran = [dict(task='summarize', part='arms', arm=a, lr=0, seed=s, curve=[{}, dict(kl=kl)]) for a,kl in ends.items() for s in free.SEEDS]
    same = {r['arm']:r['lr'] for r in free.plan('summarize', 'matched', rows+ran)}
    assert same.keys()=={'scalar','random'} # sentences are near, and of GRPO there are no runs
    assert same['scalar']==pytest.approx(3e-4*3**(7/12), rel=.03) # its pilot at 9e-4 went to 16, so 11 are aimed at, between 4 and 16
    assert same['random']==pytest.approx(3e-4*3**.25, rel=.03) # 2 and 1.5 more, between 2 and 8
    assert free.plan('summarize', 'matched', rows+ran[1:])==[] # a seed of spans is missing
