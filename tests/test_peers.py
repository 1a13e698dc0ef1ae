"The script that races span PPO against TRL: what it books, what it counts, and that complete rounds are not run again"
import importlib.util,json,os
from pathlib import Path
from types import SimpleNamespace
import pytest,torch
from text2grad.pretrained import tiny_lm

pytestmark = pytest.mark.skipif(not os.access('/proc/self/clear_refs', os.W_OK), reason='the peak of memory is read as Linux gives it')
path = Path(__file__).resolve().parent.parent/'nbs'/'benchmarks'/'span_ppo.py'

@pytest.fixture
def bench(tmp_path):
    spec = importlib.util.spec_from_file_location('span_ppo_bench', path)
    m = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(m)
    m.KEPT = tmp_path/'kept.jsonl'
    return m

def test_time_is_booked_once_on_the_innermost_phase(bench, monkeypatch):
    now = iter(range(100))
    monkeypatch.setattr(bench.time, 'process_time', lambda: 0)
    monkeypatch.setattr(bench.time, 'perf_counter', lambda: next(now))
    m = bench.Meter()
    m.begin('rest')
    outer = m.phase('outer', lambda: m.phase('inner', lambda: None)())
    outer()
    m.base('after')
    def fails(): raise KeyError
    with pytest.raises(KeyError): m.phase('inner', fails)()
    r = m.row()
    assert {k:w for k,(_,w) in r['phases'].items()}==dict(rest=2, outer=2, inner=2, after=2) and r['wall']==8 and r['peak']>0

def test_tokens_are_counted_where_they_go(bench):
    lm,_ = tiny_lm()
    m = bench.Meter()
    m.watch(lm)
    ids = torch.ones(2, 5, dtype=torch.long)
    m.begin('update')
    lm(input_ids=ids)
    def quiet():
        with torch.no_grad(): lm.lm_head(lm.model(input_ids=ids).last_hidden_state[:,-1])
    m.phase('score', quiet)()
    want = {'update body with gradient':10, 'update head with gradient':10, 'score body':10, 'score head':2}
    assert dict(m.tokens)==want

def test_complete_rounds_are_kept_and_the_order_turns(bench, monkeypatch):
    took = []
    proc = lambda name,*_: SimpleNamespace(name=name, stdin=SimpleNamespace(close=lambda: None), wait=lambda: None)
    monkeypatch.setattr(bench, 'start', proc)
    monkeypatch.setattr(bench, 'step', lambda p,epochs: took.append((p.name,epochs)) or dict(cpu=1., peak=1))
    bench.race('lora', 'folder', 2)
    E,warm = bench.EPOCHS,[('ours-lora',1),('trl-lora',1)]
    assert took==[*warm, ('ours-lora',E), ('trl-lora',E), ('trl-lora',E), ('ours-lora',E)]
    took.clear()
    bench.race('lora', 'folder', 2)
    assert took==[]
    bench.race('lora', 'folder', 3)
    assert took==[*warm, ('ours-lora',E), ('trl-lora',E)]
    rows = [json.loads(l) for l in bench.KEPT.read_text().splitlines()]
    assert [(r['round'],r['threads']) for r in rows]==[(i,1) for i in (0,0,1,1,2,2)]
