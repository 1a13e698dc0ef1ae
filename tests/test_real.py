"The script of the real setting: one short run on a tiny model, and its plan; that what was run is not run again is held by test_fast"
import importlib,json
from pathlib import Path
import pytest
from text2grad.span_ppo.baselines import arm_trainer

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

def test_the_plan(real, monkeypatch):
    todo = real.plan('answer', 'pilot', [])
    assert [r['arm'] for r in todo[:len(real.MAJOR)*4:4]]==[a for a in real.ARMS if a in real.MAJOR] and {r['lr'] for r in todo}=={2e-4, 6e-4, 1.8e-3, 5.4e-3}
    assert real.plan('answer', 'arms', [])==[]
    far = {2e-4:1., 6e-4:2., 1.8e-3:8., 5.4e-3:30.}
    rows = [r | dict(part='pilot', curve=[{}, dict(total=-abs(r['lr']-(1.8e-3 if r['arm']=='scalar' else 6e-4)), kl=far[r['lr']]*(2 if r['arm']=='scalar' else 1))])
            for r in todo]
    monkeypatch.setattr(real, 'PRICE', 0)
    monkeypatch.setattr(real, 'FAR', 20) # 5.4e-3 goes further with each arm
    arms = real.plan('answer', 'arms', rows)
    assert {(r['arm'],r['lr']) for r in arms}=={(a, 1.8e-3 if a=='scalar' else 6e-4) for a in real.ARMS}
    assert sum(r['arm']=='grpo' for r in arms)==5 and sum(r['arm']=='dpo' for r in arms)==3
    same = {r['arm']:r['lr'] for r in real.plan('answer', 'matched', rows)}
    assert same['scalar']==2e-4 and same['random']==6e-4 and 'span' not in same
