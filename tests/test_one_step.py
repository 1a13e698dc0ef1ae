"One step on one critique: what it does, what it says it did, and that nothing is left of it"

import copy,math,signal,subprocess,sys,threading
import numpy as np, pytest, torch
from types import SimpleNamespace
from text2grad.core import Critique,Example,Span
from text2grad.span_ppo.inspection import as_rollout,measure,rejudged
from text2grad.span_ppo.policy import Policy
from text2grad.span_ppo.one_step import (COLLAPSE,Fork,Stopped,apply_critique,attached,circling,fingerprint,fork_index,forked,locality,probe_set,
                                step_advantages,stoppable,take_steps,throwaway_lora,token_diff,why_collapsed)
from text2grad.pretrained import tiny_lm
from text2grad.span_ppo.rollout import make_rollout,sample
from text2grad.span_ppo.losses import Objective

TEXT = 'The captain said that he was not annoyed. The match was lost.'
BLAME,PRAISE = (Critique('x', [Span(29, 40, s)]) for s in (-1., 1.))

def stirred(p, scale=.02):
    g = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for x in p.trainable().values(): x.add_(torch.randn(x.shape, generator=g)*scale)
    return p

def of_peft():
    from peft import LoraConfig,get_peft_model
    m,t = tiny_lm()
    return stirred(Policy.create(get_peft_model(m, LoraConfig(r=4, target_modules=['q_proj','v_proj'], task_type='CAUSAL_LM')), t))

def of_gpt2():
    from transformers import GPT2Config,GPT2LMHeadModel
    _,t = tiny_lm()
    torch.manual_seed(0)
    m = GPT2LMHeadModel(GPT2Config(vocab_size=len(t), n_embd=32, n_layer=2, n_head=2, n_positions=256, eos_token_id=t.eos_token_id, bos_token_id=t.bos_token_id, pad_token_id=t.pad_token_id))
    return Policy.create(m.eval(), t, lora=None)

POLICIES = dict(fresh=lambda: Policy.create(*tiny_lm()), moved=lambda: stirred(Policy.create(*tiny_lm())), whole=lambda: stirred(Policy.create(*tiny_lm(), lora=None), 1e-3),
                adapter_of_its_own=of_peft, no_value_head=lambda: Policy.create(*tiny_lm(), value_head=False), conv1d=of_gpt2)

def state(p):
    "Everything that must be the same afterwards"
    hooks = [len(m._forward_hooks)+len(m._forward_pre_hooks) for m in p.modules()]
    return dict(tensors={k:v.detach().clone() for ts in (p.named_parameters(), p.named_buffers()) for k,v in ts}, versions=[v._version for v in p.parameters()],
                grads=[v.grad for v in p.parameters()], asked=[v.requires_grad for v in p.parameters()], hooks=hooks, modules=[id(m) for m in p.modules()],
                train=[m.training for m in p.modules()], rng=torch.get_rng_state())

def same(a, b):
    assert a['tensors'].keys()==b['tensors'].keys()
    for k,v in a['tensors'].items(): assert torch.equal(v, b['tensors'][k]), k
    assert torch.equal(a['rng'], b['rng'])
    for k in ('versions','asked','hooks','modules','train'): assert a[k]==b[k], k
    assert all(x is y for x,y in zip(a['grads'], b['grads'])), 'a gradient was left behind'

@pytest.fixture(scope='module')
def policy(): return POLICIES['fresh']()
@pytest.fixture(scope='module')
def case(policy): return measure(policy, Example('Who was annoyed?', TEXT, BLAME))

# Undo

@pytest.mark.parametrize('kind', POLICIES)
def test_a_step_leaves_every_parameter_and_buffer_as_it_was(kind):
    p = POLICIES[kind]()
    c = measure(p, Example('Who was annoyed?', TEXT, BLAME))
    before = state(p)
    s = apply_critique(p, c, lr=3e-3, probe=probe_set(), max_new_tokens=6)
    same(before, state(p))
    assert s.undo and s.locality['asked']>0 and s.table['dlogp'].any()
    np.testing.assert_array_equal(measure(p, c.example).table['logp'], c.table['logp'])

@pytest.mark.parametrize('error', [RuntimeError, KeyboardInterrupt, GeneratorExit, MemoryError])
@pytest.mark.parametrize('when', ['reading','writing before','step','reading after','writing after','comparing'])
def test_so_does_one_that_fails_on_the_way(policy, case, error, when):
    before = state(policy)
    def fail(fraction, what):
        if what==when: raise error('on the way')
    with pytest.raises(error): apply_critique(policy, case, max_new_tokens=3, progress=fail)
    same(before, state(policy))

def test_an_interrupt_inside_the_backward_pass(policy, case, monkeypatch):
    before = state(policy)
    def stop(*a, **kw): raise KeyboardInterrupt
    monkeypatch.setattr(torch.optim.Adam, 'step', stop)
    with pytest.raises(KeyboardInterrupt): apply_critique(policy, case, max_new_tokens=0)
    same(before, state(policy))

def test_a_hook_that_cannot_be_put_on(policy, case):
    before,half = state(policy),throwaway_lora(policy)
    del half[list(half)[-1]]
    with pytest.raises(KeyError), attached(policy, half): pass
    same(before, state(policy))

def test_a_generator_that_is_closed_or_forgotten(policy, case):
    before = state(policy)
    def watch():
        with stoppable(policy), attached(policy, throwaway_lora(policy)): yield 1
    g = watch(); next(g); g.close()
    g = watch(); next(g); del g
    same(before, state(policy))

@pytest.mark.parametrize('after', [0, 3, 20])
def test_stop_ends_it_within_a_forward_pass(policy, case, after):
    seen = iter(range(10**6))
    before,stop = state(policy),SimpleNamespace(is_set=lambda: next(seen)>=after)
    with pytest.raises(Stopped, match='as it was'): apply_critique(policy, case, max_new_tokens=200, stop=stop)
    same(before, state(policy))
    assert next(seen)<=after+2

def test_fingerprint_sees_one_bit(policy):
    p = copy.deepcopy(policy)
    a = fingerprint(p)
    w = next(iter(p.parameters()))
    with torch.no_grad(): w.view(-1)[5] = torch.nextafter(w.view(-1)[5], torch.tensor(9.))
    assert fingerprint(p)!=a
    q = copy.deepcopy(policy)
    next(q.parameters()).requires_grad_(not next(q.parameters()).requires_grad)
    assert fingerprint(q)!=a

def test_what_was_killed_leaves_no_changed_file(tiny):
    "Nothing of a step is ever on disk, so a kill in the middle has nothing to leave there"
    code = f'''
import sys,time
from text2grad.span_ppo.policy import Policy
from text2grad.pretrained import load_model
from text2grad.core import *
from text2grad.span_ppo.inspection import measure
from text2grad.span_ppo.one_step import apply_critique
p = Policy.create(*load_model({str(tiny)!r}, device='cpu'))
c = measure(p, Example('a', {TEXT!r}, Critique('x', [Span(29, 40, -1.)])))
def wait(f, what):
    if what=='writing after': print('now', flush=True); time.sleep(60)
apply_critique(p, c, progress=wait)
'''
    files = lambda: {f.name:f.read_bytes() for f in tiny.iterdir()}
    before = files()
    with subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, cwd=tiny) as child:
        assert child.stdout.readline()==b'now\n'
        child.send_signal(signal.SIGKILL)
    assert files()==before

# The step

def test_lr_0_moves_nothing(policy, case):
    s = apply_critique(policy, case, lr=0., steps=2, probe=probe_set(), max_new_tokens=12)
    assert not s.table['dlogp'].any() and s.fork is None and s.diff==[('equal', s.text_before)] and not s.collapsed and s.locality['probe']==0

@pytest.mark.parametrize('kind', ['fresh','moved','whole','adapter_of_its_own'])
def test_the_sign_follows_the_critique(kind):
    p = POLICIES[kind]()
    for critique,sign in ((BLAME,-1), (PRAISE,1)):
        s = apply_critique(p, measure(p, Example('Who was annoyed?', TEXT, critique)), lr=3e-3, max_new_tokens=0)
        on = s.table['reward']!=0
        assert (s.table['dlogp'][on]*sign>0).all() and s.locality['ratio']>3, (kind, sign, s.locality)

def test_praise_and_blame_in_one_response(policy, case):
    s = apply_critique(policy, rejudged(case, Critique('x', [Span(4, 11, .5), Span(29, 40, -1.)])), lr=3e-3, max_new_tokens=0)
    for i,r in enumerate(s.table['reward']):
        if r: assert s.table['dlogp'][i]*r>0

def test_blaming_everything_praises_nothing(policy, case):
    all_of_it = rejudged(case, Critique('x', [Span(0, len(TEXT), -1.)]))
    assert (all_of_it.table['advantage']>0).any(), 'whitened advantages would praise some of it'
    adv = step_advantages(all_of_it)[0]
    assert (adv[:-1]<0).all() and adv[-1]==0
    s = apply_critique(policy, all_of_it, max_new_tokens=0)
    assert (s.table['dlogp'][:-1]<0).mean()>.9

def test_steps_add_up_and_are_not_stopped_by_the_clip(policy, case):
    on = [apply_critique(policy, case, lr=3e-3, steps=n, max_new_tokens=0).locality['asked'] for n in (1, 3)]
    assert on[1]>2*on[0]>.5

def test_lambda_of_the_case_pushes_what_stands_before(policy, case):
    alone,led = step_advantages(case)[0],step_advantages(case, None)[0]
    first = int(np.flatnonzero(case.table['reward'])[0])
    assert not alone[:first].any() and (led[:first]<0).all()
    at = lambda lam: abs(apply_critique(policy, case, lr=3e-3, lam=lam, max_new_tokens=0).table['dlogp'][:first]).mean()
    assert at(None)>3*at(0.)

def test_the_same_seed_gives_the_same_step(policy, case):
    a,b,c = (apply_critique(policy, case, lr=3e-3, max_new_tokens=10, seed=s) for s in (4, 4, 5))
    np.testing.assert_array_equal(a.table['dlogp'], b.table['dlogp'])
    assert a.text_after==b.text_after and a.fork==b.fork and a.text_before!=c.text_before
    assert a.text_before==sample(policy, [case.example], 10, 1., seed=4).texts[0]

def test_greedy_regeneration(policy, case):
    s = apply_critique(policy, case, max_new_tokens=6, temperature=0.)
    assert s.text_before==sample(policy, [case.example], 6, 0., allow_off_policy=True).texts[0]

@pytest.mark.parametrize('lr,steps', [(1., 1), (1., 3), (10., 1), (10., 3), (10., 8)])
def test_the_far_end_is_honest(policy, case, lr, steps, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = state(policy)
    s = apply_critique(policy, case, lr=lr, steps=steps, probe=probe_set(), max_new_tokens=12)
    same(before, state(policy))
    assert s.collapsed and s.why and s.undo
    assert steps<3 or lr<10 or ('finite' in s.why and s.redraft is None)
    assert not list(tmp_path.iterdir()), 'a step that went wrong is an answer, not a file'

@pytest.mark.parametrize('do,says', [
    (lambda p,c: apply_critique(p, rejudged(c, None)), 'critique: pays no word'),
    (lambda p,c: apply_critique(p, rejudged(c, Critique('fine'))), 'critique: pays no word'),
    (lambda p,c: apply_critique(p, c, lr=math.nan), 'lr=nan'), (lambda p,c: apply_critique(p, c, lr=-1.), 'lr=-1.0'), (lambda p,c: apply_critique(p, c, lr=11.), 'from 0 to 10'),
    (lambda p,c: apply_critique(POLICIES['moved'](), c), 'measured on another policy')])
def test_refused_by_name_and_without_a_trace(policy, case, do, says):
    before = state(policy)
    with pytest.raises(ValueError, match=says): do(policy, case)
    same(before, state(policy))

# What is said about it

def test_locality_by_hand():
    m = locality([-1., 3., .5, -.5], [-1., -.5, 0, 0], [.2, -.4])
    assert m['on']==2 and m['off']==.5 and m['ratio']==4 and m['asked']==-1 and math.isclose(m['probe'], .3) and math.isclose(m['drop'], .1)
    assert math.isclose(locality([-1., -2.], [1., 0])['drop'], 2.) and math.isnan(locality([1.], [1.])['ratio']) and math.isnan(locality([1., 0.], [1., 0.])['ratio'])

def test_collapse_by_hand():
    why = lambda drop,asked=1.,*a: why_collapsed(dict(drop=drop, asked=asked), *a)
    assert not why(COLLAPSE) and 'Words of other texts' in why(COLLAPSE+.01) and 'against' in why(0., -.1) and not why(0., -.01)
    assert 'finite' in why(0., 1., False) and 'circles' in why(0., 1., True, range(30), [1, 2]*15)
    assert not why(0., 1., True, [1, 2]*15, [1, 2]*15) and not why(math.nan, math.nan)
    assert not circling([]) and not circling([1]*5)

def rows(policy, *texts): return [as_rollout(policy, [Example('a', t)]) for t in texts]

def test_diff_joins_to_both_texts(policy):
    for a,b in (('abc', 'abc'), ('', 'abc'), ('abc', ''), ('the cat sat', 'the dog sat'), ('🌙 moon', '🌚 moon'), ('é', 'è'), ('x y z', 'y z x')):
        d = token_diff(*rows(policy, a, b))
        assert ''.join(t for op,t in d if op!='insert')==a and ''.join(t for op,t in d if op!='delete')==b and {op for op,_ in d}<={'equal','delete','insert'}

def test_fork_index():
    assert fork_index([1, 2, 3], [1, 2, 4])==2 and fork_index([], [1]) is None and fork_index([1], [1]) is None and fork_index([5], [6, 7])==0

def test_a_forced_fork_and_its_probabilities(policy):
    "The texts differ where we made them differ, and the four probabilities are those of the full distributions"
    adapter = throwaway_lora(policy, seed=2)
    with torch.no_grad():
        for n,(A,B) in adapter.items(): B.normal_(0, .05, generator=torch.Generator().manual_seed(1))
    a,b = rows(policy, 'one two three four', 'one two seven four')
    ia,ib = (r.ids[0].tolist() for r in (a, b))
    f = forked(policy, adapter, a, b)
    assert f.index==next(i for i,(x,y) in enumerate(zip(ia, ib)) if x!=y)
    ids = torch.cat([a.prompt_ids, a.ids[:,:f.index]], 1)
    with torch.no_grad():
        was = policy.model(input_ids=ids).logits[0,-1].softmax(-1)
        with attached(policy, adapter): now = policy.model(input_ids=ids).logits[0,-1].softmax(-1)
    for got,t in ((f.p_before, ia[f.index]), (f.p_after, ib[f.index])): np.testing.assert_allclose(got, [was[t], now[t]], rtol=1e-3)
    assert was[ia[f.index]]!=now[ia[f.index]] and forked(policy, adapter, a, a) is None

def test_a_fork_at_the_end_token_has_a_name(policy):
    a,b = rows(policy, 'one', 'one two')
    f = forked(policy, throwaway_lora(policy), a, b)
    assert f.before==policy.tokenizer.eos_token and f.after==' ' or f.after.strip()
    assert f.p_before[0]==pytest.approx(f.p_before[1])

def test_the_fork_of_a_step_is_where_its_texts_part(policy, case):
    s = apply_critique(policy, case, lr=.02, max_new_tokens=30, seed=2)
    a,b = (r.ids[0][r.mask[0]].tolist() for r in (s.draft, s.redraft))
    i = s.fork.index
    assert a[:i]==b[:i] and a[i]!=b[i] and all(0<=p<=1 for p in s.fork.p_before+s.fork.p_after)

def test_a_measured_objective_is_used(policy, case):
    c = rejudged(case, BLAME, Objective(kl_coef=0., reward_clip=.25, gamma=.5))
    assert set(step_advantages(c)[0].tolist())=={0., -.25}
