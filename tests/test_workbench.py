"The workbench: one model for many, and what becomes of those who leave"

import math,threading,time
import pytest
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from hypothesis import given,strategies as st
from text2grad.core import Critique,Example,Span
from text2grad.span_ppo.policy import Policy
from text2grad.pretrained import tiny_lm
from text2grad.span_ppo.rollout import sample
from text2grad.app.workbench import InputError,LaterCritic,NewSession,Workbench

PROMPT = 'Write a short summary.'

@pytest.fixture(scope='module')
def policy(): return Policy.create(*tiny_lm())

def drawn(bench, seed, n=20): return list(bench.generate(PROMPT, 1., seed, n))[-1].ids.tolist()

def test_what_streams_is_what_rollout_samples_also_when_many_ask_at_once(policy):
    bench = Workbench(policy)
    alone = [sample(policy, [Example(PROMPT, '')], max_new_tokens=20, temperature=1., seed=s).ids.tolist() for s in range(8)]
    with ThreadPoolExecutor(8) as pool: assert list(pool.map(lambda s: drawn(bench, s), range(8)))==alone

def test_the_global_random_state_is_left_alone(policy):
    import torch
    before = torch.get_rng_state()
    drawn(Workbench(policy), 0)
    assert torch.equal(before, torch.get_rng_state())

def test_who_leaves_gives_the_model_back(policy):
    bench = Workbench(policy)
    g = bench.generate(PROMPT, 1., 3, 400)
    next(g)
    g.close()
    start = time.monotonic()
    drawn(bench, 0)
    assert time.monotonic()-start<10 and not [t for t in threading.enumerate() if t.name=='text2grad-sample' and t.join(5) or t.name=='text2grad-sample' and t.is_alive()]

def test_stopped_before_it_began(policy):
    stop = threading.Event()
    stop.set()
    with pytest.raises(InputError, match='Stopped'): list(Workbench(policy).generate(PROMPT, 1., 0, 20, stop))

def test_a_model_that_cannot_be_had_is_told_and_asked_for_again(tmp_path):
    bench = Workbench(str(tmp_path/'none'))
    for _ in range(2):
        with pytest.raises(InputError, match='model: .*no such folder'): list(bench.generate(PROMPT))

def test_a_failure_of_ours_is_raised_and_the_lock_is_free(policy, monkeypatch):
    bench = Workbench(policy)
    monkeypatch.setattr('text2grad.span_ppo.rollout.sample', lambda *a,**k: 1/0)
    with pytest.raises(ZeroDivisionError): list(bench.generate(PROMPT))
    assert bench.model_lock.acquire(timeout=1)

@given(st.one_of(st.none(), st.booleans(), st.text(), st.lists(st.integers()), st.floats(allow_nan=True), st.integers()))
def test_numbers_in_range_or_an_input_error(x):
    try: got = Workbench.number(x, 'temperature', .05, 2)
    except InputError: assert isinstance(x, (bool,str,list,type(None))) or not .05<=x<=2
    else: assert type(got) is float and math.isfinite(got) and .05<=got<=2

def test_a_copy_of_a_session_id_is_another():
    a = NewSession('new')
    assert len({a, *(deepcopy(a) for _ in range(100)), deepcopy(deepcopy(a))})==102

def test_at_most_so_many_sessions_the_busy_ones_stay_and_the_idle_go():
    bench = Workbench('none', sessions=3)
    first = bench.session('first')
    held,done = threading.Event(),threading.Event()
    def hold():
        with first.lock:
            held.set()
            done.wait(10)
    t = threading.Thread(target=hold)
    t.start()
    held.wait(5)
    others = [bench.session(f's{i}') for i in range(5)]
    assert list(bench.sessions)==['first','s3','s4'] and others[0].stop.is_set() and not first.stop.is_set()
    done.set()
    t.join()
    bench.idle = 0.
    bench.session('last')
    assert list(bench.sessions)==['last']

def test_critics_that_fail_or_load_late(policy):
    e,loads = Example(PROMPT, 'A cat.'),[]
    def load():
        loads.append(1)
        return lambda es: [Critique('Good.', [Span(0, 1, 1.)]) for _ in es]
    def broken(es): raise RuntimeError('the server is on fire')
    def mute(es): return [None for _ in es]
    def two(es): return [None, None]
    bench = Workbench(policy, dict(late=LaterCritic(load), broken=broken, mute=mute, two=two, gone=LaterCritic(lambda: (_ for _ in ()).throw(FileNotFoundError('no folder')))))
    assert bench.judge('late', e).text==bench.judge('late', e).text=='Good.' and loads==[1]
    assert bench.judge('mute', e) is None
    for name,said in (('broken','on fire'), ('two','2 judgements'), ('gone','no folder')):
        with pytest.raises(InputError, match=f'critic {name}: .*{said}'): bench.judge(name, e)

def test_a_slow_server_does_not_hold_the_model(policy):
    bench = Workbench(policy)
    free = []
    class Server:
        kind = 'api'
        def __call__(self, es):
            free.append(ThreadPoolExecutor(1).submit(bench.model_lock.acquire, timeout=2).result())
            return [None for _ in es]
    bench.critics['api'] = Server()
    bench.judge('api', Example(PROMPT, 'A cat.'))
    assert free==[True]

def test_own_words_that_are_broken_json(policy):
    with pytest.raises(InputError, match='cannot be read as a critique'): Workbench(policy).judge('your own words', Example(PROMPT, 'A cat.'), '{"critique": ')
