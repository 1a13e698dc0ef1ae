"Span PPO: the rows of the PPO checklist that concern the trainer, faults, and runs that are killed"
import copy,functools,hashlib,json,os,random,re,shutil,signal,tempfile,time
from dataclasses import asdict,replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
import numpy as np, pytest, tokenizers, torch
from children import Child
from hypothesis import HealthCheck,given,settings,strategies as st
from safetensors.torch import save as save_tensors
from text2grad.core import Critique,Example,Span,read_jsonl
from text2grad.span_ppo.losses import masked_mean
from text2grad.span_ppo.policy import Policy
from text2grad.critics.base import RuleCritic,Weighted,rule_critic
from text2grad.pretrained import ModelError,load_model,tiny_lm
from text2grad.span_ppo.heldout import HeldOut
from text2grad.span_ppo.rollout import judge
from text2grad.span_ppo.config import *
from text2grad.span_ppo.trainer import *
from text2grad.files import UserError
from text2grad.checkpoints import CheckpointError,StopOnSignal,check_checkpoint,latest_checkpoint
from text2grad.span_ppo.callbacks import RunFolder,best_so_far
from text2grad.checkpoints import clear_leftovers,trim_log,write_checkpoint

prompts = [Example(f'Write {n} letters.', '') for n in 'one two three four five six seven'.split()]
small = SpanPPOConfig(steps=4, batch_size=4, minibatch_size=4, micro_batch_size=4, max_new_tokens=8, lr=1e-3, save_every=1)

def spans(text, good=.5, bad=-.1): return [Span(i, i+1, good if ch=='e' else bad) for i,ch in enumerate(text)]
def e_critic(examples): return [Critique('More e.', spans(e.response)) for e in examples]
def make(cfg=small, critic=e_critic, callbacks=(), seed=0, **kw):
    return SpanPPO(Policy.create(*tiny_lm(seed), lora=dict(r=4, alpha=8), **kw), critic, prompts, cfg, callbacks=callbacks)
def experience(t): return t.experience(judge(t.rollout(), t.critic))
def weights(t): return {k:v.clone() for k,v in t.policy.state_dict().items()}
def equal(a, b): return all(torch.equal(a[k], b[k]) for k in a)

# ---- reward and advantages

def test_row_9_scalar_reward_is_the_same_total_on_the_last_valid_token():
    a,b = experience(make()),experience(make(replace(small, reward='scalar')))
    assert a.rollout.texts==b.rollout.texts
    torch.testing.assert_close(a.scores.sum(1), b.scores.sum(1))
    last = a.rollout.lengths-1
    for i in range(4):
        nz = b.scores[i].nonzero()[:,0].tolist()
        assert nz in ([int(last[i])], [])

def test_row_12_no_judgement_is_no_score():
    critic = lambda es: [None if i==1 else c for i,c in enumerate(e_critic(es))]
    t = make(critic=critic)
    with torch.no_grad():
        for p in t.policy_params: p.add_(.05*torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
    x = experience(t)
    assert not x.judged[1] and x.judged[[0,2,3]].all()
    assert (x.scores[1]==0).all() and x.kl[1].abs().sum()>0
    torch.testing.assert_close(x.rewards[1], -small.kl_coef*x.kl[1]*x.mask[1])
    assert x.stats['judged']==3 and x.stats['responses']==4
    t.update(x)

def test_nobody_judged_does_not_lose_the_step():
    t = make(critic=lambda es: [None]*len(es))
    t.one_step()
    assert t.stats['reward'] is None and t.stats['judged']==0

def test_step_0_ratio_1_and_kl_0():
    t = make()
    x = experience(t)
    assert (x.kl[x.mask]==0).all()
    stats = t.minibatch(x, torch.arange(4))
    assert abs(stats['approx_kl'])<1e-6 and stats['clipfrac']==0

def test_row_23_values_start_at_0():
    assert (experience(make()).values==0).all()

def test_row_21_and_22_returns_use_raw_advantages_and_whitening_spans_the_batch():
    x = experience(make())
    assert abs(float(masked_mean(x.advantages, x.mask)))<1e-5
    assert abs(float(masked_mean(x.advantages**2, x.mask))-1)<.05
    from text2grad.span_ppo.losses import gae
    adv,ret = gae(x.rewards, x.values, x.mask, 1., .95)
    torch.testing.assert_close(ret[x.mask], (adv+x.values)[x.mask])
    torch.testing.assert_close(x.returns[x.mask], ret[x.mask])

def test_row_8_missing_eos_penalty_once_and_only_where_cut_off():
    a,b = experience(make()),experience(make(replace(small, missing_eos_penalty=.7)))
    d = b.rewards-a.rewards
    for i in range(4):
        want = torch.zeros_like(d[i])
        if not a.rollout.finished[i]: want[int(a.rollout.lengths[i])-1] = -.7
        torch.testing.assert_close(d[i], want)
    assert (d!=0).any()

def test_a_judged_response_that_says_nothing_pays_on_its_end_token():
    from text2grad.span_ppo.rollout import make_rollout
    t = make()
    eos,exs = t.policy.eos_ids[0],prompts[:3]
    r = make_rollout(t.policy, exs, *t.policy.encode([e.prompt for e in exs]), torch.tensor([[eos,0,0],[20,21,eos],[eos,0,0]]))
    t.critic = lambda es: [Critique('Empty.'), Critique('Fine.'), None]
    x = t.experience(judge(r, t.critic))
    assert r.texts[0]=='' and x.rewards[0,0]==-2 and (x.rewards[1:]==0).all() and (x.rewards[0,1:]==0).all()

def test_row_32_old_values_and_logps_are_frozen():
    t = make()
    x = experience(t)
    old,val = x.logps.clone(),x.values.clone()
    assert not (x.logps.requires_grad or x.values.requires_grad or x.advantages.requires_grad)
    t.update(x)
    assert torch.equal(old, x.logps) and torch.equal(val, x.values)

# ---- update

def grads(cfg, seed=0):
    t = make(cfg)
    with torch.no_grad():
        for p in t.policy_params: p.add_(.02*torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    x = experience(t)
    x.logps = x.logps-.05*torch.randn(x.logps.shape, generator=torch.Generator().manual_seed(2))
    t.opt.step = lambda: None
    t.minibatch(x, torch.arange(cfg.batch_size))
    return [p.grad.clone() for g in t.opt.param_groups for p in g['params']]

@pytest.mark.parametrize('where', ['forward','backward'])
@pytest.mark.parametrize('error', [torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB.'), RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
                                   RuntimeError('DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes.')], ids=['cuda','linux','windows'])
def test_a_micro_batch_that_does_not_fit_is_halved_and_the_gradient_is_the_same(monkeypatch, caplog, where, error):
    "The error comes in the second micro-batch, when the first has added its gradients already"
    cfg = replace(small, batch_size=8, minibatch_size=8, epochs=1)
    whole,halves,t = (make(replace(cfg, micro_batch_size=k)) for k in (4,2,4))
    grads = lambda t: {n:p.grad.clone() for n,p in t.policy.trainable().items() if p.grad is not None}
    x = experience(whole)
    xs = [SimpleNamespace(**vars(x) | dict(gaps=[])) for _ in range(3)]
    real,calls = t.policy.forward,[]
    def tight(*args, **kw):
        out = real(*args, **kw)
        calls.append(len(args[0]))
        if len(args[0])>2 and calls.count(4)>1:
            if where=='forward': raise error
            def fail(g): raise error
            out.logps.register_hook(fail)
        return out
    monkeypatch.setattr(t.policy, 'forward', tight)
    stats = []
    for o,x in zip((whole, halves, t), xs):
        o.opt.step = lambda: None
        stats.append(o.minibatch(x, torch.arange(8)))
    a,b,c = map(grads, (whole, halves, t))
    assert calls==[4,4,2,2,2,2] and t.fits.most==2 and t.fits.halved==1 and equal(b, c) and stats[1]==stats[2]
    for k in a: torch.testing.assert_close(a[k], c[k], rtol=1e-4, atol=1e-6)
    t.logps(xs[2].rollout)                                                     # the size is kept
    assert calls[6:]==[2,2,2,2] and len([r for r in caplog.records if 'memory does not hold' in r.message])==1
    assert t.update(xs[2])['halved']==1 and 'halved' not in halves.update(xs[1])

def test_scoring_is_halved_down_to_the_siblings_of_one_prompt_and_then_says_what_to_do(monkeypatch):
    cfg = replace(small, batch_size=8, samples_per_prompt=2, micro_batch_size=8, minibatch_size=8, baseline='group')
    t = make(cfg, value_head=False)
    r = t.rollout()
    want,real,limit = t.logps(r, with_values=False).logps,t.policy.forward,2
    def tight(*args, **kw):
        if len(args[0])>limit: raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB.')
        return real(*args, **kw)
    monkeypatch.setattr(t.policy, 'forward', tight)
    torch.testing.assert_close(t.logps(r, with_values=False).logps, want)
    assert (t.fits.most, t.fits.halved)==(2, 2)
    limit = 1
    with pytest.raises(UserError, match='no pass over 2 responses .*set gradient_checkpointing, lower max_new_tokens'): t.logps(r)
    def broken(*args, **kw): raise RuntimeError('shapes differ')
    monkeypatch.setattr(t.policy, 'forward', broken)
    with pytest.raises(RuntimeError, match='shapes differ'): t.logps(r)

def test_row_27_micro_batches_give_the_gradient_of_the_whole_minibatch():
    base = replace(small, batch_size=7, minibatch_size=7, max_grad_norm=1e9)
    whole = grads(replace(base, micro_batch_size=7))
    for mb in (1, 2, 3):
        for a,b in zip(whole, grads(replace(base, micro_batch_size=mb))): torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)

def test_row_30_gradients_are_clipped():
    t = make(replace(small, reward_scale=9., max_grad_norm=.01))
    t.one_step()
    assert t.stats['grad_norm']>.01
    norm = torch.sqrt(sum((p.grad**2).sum() for g in t.opt.param_groups for p in g['params']))
    assert float(norm)<=.01*1.001

def test_row_29_learning_rate_falls_to_0():
    rates = []
    class Rates:
        def after_step(self, t): rates.append(t.opt.param_groups[0]['lr'])
    make(callbacks=[Rates()]).fit()
    np.testing.assert_allclose(rates, [1e-3*f for f in (1, .75, .5, .25)])
    assert all(g['eps']==1e-5 for g in make().opt.param_groups)

def test_row_31_fresh_permutation_each_pass_and_early_stop():
    t,seen = make(replace(small, epochs=3, minibatch_size=2)),[]
    real = t.minibatch
    t.minibatch = lambda x,rows: (seen.append(rows.tolist()), real(x, rows))[1]
    t.one_step()
    passes = [sum(seen[i:i+2], []) for i in (0,2,4)]
    assert all(sorted(p)==[0,1,2,3] for p in passes) and len({tuple(p) for p in passes})>1
    t = make(replace(small, epochs=50, lr=.05, target_kl=.01))
    t.one_step()
    assert t.stats['updates']<50

def test_responses_to_one_prompt_stay_together():
    cfg = replace(small, batch_size=6, minibatch_size=4, micro_batch_size=3, samples_per_prompt=2, epochs=2)
    t,seen = make(cfg),[]
    r = t.rollout()
    assert [e.prompt for e in r.examples[::2]]==[e.prompt for e in r.examples[1::2]] and len({e.prompt for e in r.examples})==3
    real = t.minibatch
    t.minibatch = lambda x,rows: (seen.append(rows.tolist()), real(x, rows))[1]
    t.one_step()
    assert all(a%2==0 and b==a+1 for rows in seen for a,b in zip(rows[::2], rows[1::2]))
    assert sorted(sum(seen[:2], []))==sorted(sum(seen[2:], []))==list(range(6))
    with pytest.raises(ValueError, match='multiple of samples_per_prompt'): replace(small, samples_per_prompt=3)

def test_row_36_ragged_last_minibatch_uses_every_response():
    t,seen = make(replace(small, batch_size=7, minibatch_size=4, epochs=1)),[]
    real = t.minibatch
    t.minibatch = lambda x,rows: (seen.append(rows.tolist()), real(x, rows))[1]
    t.one_step()
    assert sorted(sum(seen, []))==list(range(7)) and [len(s) for s in seen]==[4,3]

def test_row_35_value_warmup_leaves_the_policy_alone():
    t = make(replace(small, value_warmup=2))
    before = weights(t)
    t.one_step()
    t.step += 1
    after = weights(t)
    assert all(torch.equal(before[k], after[k]) for k in before if not k.startswith('value_head'))
    assert any(not torch.equal(before[k], after[k]) for k in before if k.startswith('value_head'))
    t.step = 2
    t.one_step()
    assert not equal(after, weights(t))

def test_row_14_reference_never_moves():
    t = make(replace(small, steps=10))
    x = experience(t)
    ref = t.logps(x.rollout, ref=True, with_values=False).logps
    t.fit()
    assert torch.equal(ref, t.logps(x.rollout, ref=True, with_values=False).logps)
    assert not torch.equal(ref, t.logps(x.rollout, with_values=False).logps)

def test_row_5_padding_gets_no_gradient():
    t = make()
    x = experience(t)
    for k in ('scores','rewards','logps','values','advantages','returns','kl'): getattr(x, k)[~x.mask] = float('nan')
    assert all(np.isfinite(v) for v in t.minibatch(x, torch.arange(4)).values())

def test_row_15_adaptive_kl_moves():
    t = make(replace(small, kl_target=1e-4, lr=.02, steps=6))
    t.fit()
    assert t.kl_ctl.coef>small.kl_coef
    t2 = make(replace(small, kl_target=1e-4, lr=.02, steps=6))
    t2.kl_ctl.load_state_dict(t.kl_ctl.state_dict())
    assert t2.kl_ctl.coef==t.kl_ctl.coef

@pytest.mark.parametrize('value', [float('nan'), float('inf')])
@pytest.mark.parametrize('field', ['advantages','returns','logps'])
def test_non_finite_loss_stops_before_the_optimizer(tmp_path, value, field):
    t = make()
    t.run_dir = tmp_path
    x = experience(t)
    getattr(x, field)[2,0] = value
    before = weights(t)
    with pytest.raises(NonFiniteError, match=r'responses \[2\]'): t.update(x)
    assert equal(before, weights(t))
    from safetensors import safe_open
    with safe_open(tmp_path/'nonfinite-000000.safetensors', 'pt') as f:
        assert x.rollout.texts[2][:3] in f.metadata()['responses'] or not x.rollout.texts[2]
        assert f.get_tensor(field).shape[0]==1

# ---- learning

def learn(reward='span', seed=0, good=.5, bad=-.1, steps=25, **kw):
    log = []
    class Log:
        def after_step(self, t): log.append(t.stats['reward'])
    cfg = SpanPPOConfig(steps=steps, batch_size=16, minibatch_size=16, micro_batch_size=16, max_new_tokens=12, lr=1e-2, value_lr=1e-2, kl_coef=.01, reward=reward, seed=seed, **kw)
    critic = lambda es: [Critique('More e.', spans(e.response, good, bad)) for e in es]
    t = SpanPPO(Policy.create(*tiny_lm(seed), lora=dict(r=8, alpha=16)), critic, prompts, cfg, callbacks=[Log()]).fit()
    return log,t

def test_row_43_learns_a_toy_and_stays_put_without_a_reward():
    log,_ = learn(steps=30)
    first,last = np.array(log[:8]),np.array(log[-8:])
    assert last.mean()-first.mean()>3*np.sqrt(first.var(ddof=1)/8+last.var(ddof=1)/8)
    _,t = learn(good=0., bad=0., steps=10)
    assert abs(t.stats['kl_token'])<.2

def test_row_44_token_reward_learns_faster_than_its_total():
    "Paired over 5 seeds: mean reward over the run, span minus scalar"
    d = [np.mean(learn('span', s, steps=15)[0])-np.mean(learn('scalar', s, steps=15)[0]) for s in range(5)]
    assert np.mean(d)>0 and np.mean(d)/(np.std(d, ddof=1)/5**.5)>1, d

# ---- order and seeds

def test_every_prompt_once_before_any_comes_again():
    for n,b in ((5,2),(7,7),(3,8),(40,8)):
        flat = sum((prompt_rows(n, s, b, 1) for s in range(n)), [])
        for e in range(b): assert sorted(flat[e*n:(e+1)*n])==list(range(n))
    assert prompt_rows(40, 0, 8, 1)!=prompt_rows(40, 0, 8, 2)

def test_same_seed_same_run():
    a,b,c = make().fit(),make().fit(),make(replace(small, seed=1)).fit()
    assert equal(weights(a), weights(b)) and not equal(weights(a), weights(c))

@pytest.mark.parametrize('bad', [dict(steps=0), dict(lr=-1), dict(lr=float('nan')), dict(temperature=0), dict(reward='x'), dict(kl_kind='k9'), dict(batch_size=0), dict(kl_coef=float('inf')), dict(reward_clip=-1.), dict(reward_clip=0),
    dict(reward_clip=float('nan')), dict(clip=-.2), dict(value_clip=float('nan')), dict(max_grad_norm=-1.), dict(gamma=1.5), dict(lam=float('nan')), dict(kl_target=-6.), dict(target_kl=float('nan')),
    dict(kl_horizon=0., kl_target=3.), dict(dpo_beta=-.1), dict(reward_scale=float('nan')), dict(temperature=float('inf'))])
def test_config_refuses(bad):
    with pytest.raises(ValueError, match=next(iter(bad))): SpanPPOConfig(**bad)

def test_a_policy_that_is_all_frozen_is_refused():
    policy = Policy.create(*tiny_lm(0), lora=None, value_head=False)
    for p in policy.parameters(): p.requires_grad_(False)
    with pytest.raises(ValueError, match='asks for a gradient; unfreeze'): SpanPPO(policy, e_critic, prompts, replace(small, baseline='group', samples_per_prompt=2))

# ---- checkpoints

def test_bitwise_resume(tmp_path):
    a = make(callbacks=[RunFolder(tmp_path/'a')]).fit()
    make(callbacks=[RunFolder(tmp_path/'b')]).fit(2)
    b = make(callbacks=[RunFolder(tmp_path/'b', resume=True)]).fit()
    assert equal(weights(a), weights(b))
    same = lambda n: [{k:v for k,v in r.items() if k!='seconds'} for r in read_jsonl(tmp_path/n/'metrics.jsonl')]
    assert same('a')==same('b') and read_jsonl(tmp_path/'a/samples.jsonl')==read_jsonl(tmp_path/'b/samples.jsonl')

def _train(out, *signals):
    resume = any((out/'checkpoints').glob('ckpt-[0-9]*'))
    print('ready', flush=True)
    make(replace(small, steps=12), callbacks=[RunFolder(out, resume), *([StopOnSignal()] if signals else [])]).fit()

def start(out, *more):
    p = Child(_train, out, *more, folder=out.parent)
    while p.poll() is None and not p.said()[0]: time.sleep(.01)
    assert p.said()[0]=='ready\n', p.said()
    return p

def test_ten_random_kills_end_in_the_same_weights(tmp_path):
    "SIGKILL at ten random moments; each time the newest checkpoint is whole, and the end is that of a run never killed"
    want = make(replace(small, steps=12), callbacks=[RunFolder(tmp_path/'whole')]).fit()
    rng,out,kills = random.Random(0),tmp_path/'killed',0
    for _ in range(10):
        p = start(out)
        time.sleep(rng.uniform(.05, .8))
        if p.poll() is None: p.kill(); kills += 1
        p.wait()
        if any((out/'checkpoints').glob('ckpt-[0-9]*')): assert not check_checkpoint(latest_checkpoint(out/'checkpoints')[0])
    p = start(out)
    assert p.wait()==0, p.said()
    got = make(replace(small, steps=12))
    got.load_state(latest_checkpoint(out/'checkpoints')[0])
    assert kills>=5 and got.step==12 and equal(weights(want), weights(got))
    assert [r['step'] for r in read_jsonl(out/'metrics.jsonl')]==list(range(1, 13))
    assert [r['reward'] for r in read_jsonl(out/'metrics.jsonl')]==[r['reward'] for r in read_jsonl(tmp_path/'whole/metrics.jsonl')]

@pytest.mark.parametrize('sig', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_and_saves(tmp_path, sig):
    p = start(tmp_path/'r', 'signals')
    until = time.time()+60
    while time.time()<until and not ((tmp_path/'r/metrics.jsonl').exists() and (tmp_path/'r/metrics.jsonl').read_text()): time.sleep(.02)
    p.send_signal(sig)
    assert p.wait(60)==0, p.said()
    steps = [r['step'] for r in read_jsonl(tmp_path/'r/metrics.jsonl')]
    assert latest_checkpoint(tmp_path/'r/checkpoints')[0].name==f'ckpt-{steps[-1]:06d}'

def test_damaged_checkpoints_are_passed_over_by_name(tmp_path):
    make(callbacks=[RunFolder(tmp_path)]).fit()
    root = tmp_path/'checkpoints'
    newest = sorted(root.glob('ckpt-*'))[-1]
    rng,files = random.Random(0),[p for p in newest.iterdir()]
    for i in range(60):
        f = rng.choice(files)
        data = f.read_bytes()
        how = i%3
        if how==0: f.write_bytes(data[:rng.randrange(len(data))])
        elif how==1:
            j = rng.randrange(len(data))
            f.write_bytes(data[:j]+bytes([data[j]^(1<<rng.randrange(8))])+data[j+1:])
        else: f.unlink()
        wrong = check_checkpoint(newest)
        if f.name!='MANIFEST.json': assert f.name in wrong
        path,skipped = latest_checkpoint(root)
        assert (path!=newest and newest.name in skipped[0]) if wrong else f.name=='MANIFEST.json'
        f.write_bytes(data)
    assert latest_checkpoint(root)==(newest, [])

def test_a_manifest_cannot_point_outside_the_checkpoint(tmp_path):
    make(callbacks=[RunFolder(tmp_path)]).fit(1)
    p = latest_checkpoint(tmp_path/'checkpoints')[0]
    m = (p/'MANIFEST.json').read_text().replace('"state.json"', '"../../metrics.jsonl"')
    (p/'MANIFEST.json').write_text(m)
    assert 'metrics.jsonl' in check_checkpoint(p)

def test_no_checkpoint_left(tmp_path):
    with pytest.raises(CheckpointError, match='there is none'): latest_checkpoint(tmp_path)
    make(callbacks=[RunFolder(tmp_path)]).fit(1)
    for p in (tmp_path/'checkpoints').glob('ckpt-*'): (p/'state.json').write_text('{}')
    with pytest.raises(CheckpointError, match='state.json is not the file'): latest_checkpoint(tmp_path/'checkpoints')

def _fill_the_disk(out):
    import resource
    make(callbacks=[RunFolder(out)]).fit(1)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    try: make(callbacks=[RunFolder(out, True)]).fit(2)
    except OSError as e: print('refused:', e)

def test_full_disk_leaves_the_previous_checkpoint(tmp_path):
    "A file size limit stands in for the full disk, in a process of its own"
    p = Child(_fill_the_disk, tmp_path/'r', folder=tmp_path)
    out,err = p.communicate(60)
    assert 'refused:' in out, err
    root = tmp_path/'r/checkpoints'
    assert latest_checkpoint(root)[0].name=='ckpt-000001' and not list(root.glob('*.tmp*'))
    b = make(callbacks=[RunFolder(tmp_path/'r', resume=True)]).fit(2)
    assert b.step==2

def test_two_processes_cannot_share_a_folder(tmp_path):
    class Second:
        def after_step(self, t):
            with pytest.raises(RuntimeError, match='another process'): make(callbacks=[RunFolder(tmp_path)]).fit(1)
    make(callbacks=[RunFolder(tmp_path), Second()]).fit(1)

def test_a_folder_that_holds_a_run_is_not_overwritten(tmp_path):
    make(callbacks=[RunFolder(tmp_path)]).fit(1)
    with pytest.raises(RuntimeError, match='already holds a run'): make(callbacks=[RunFolder(tmp_path)]).fit(1)

def test_resume_with_another_config_is_refused(tmp_path):
    make(callbacks=[RunFolder(tmp_path)]).fit(1)
    with pytest.raises(CheckpointError, match='lr is 0.001 there'): make(replace(small, lr=.5), callbacks=[RunFolder(tmp_path, resume=True)]).fit()

def test_leftovers_of_a_killed_save_are_removed(tmp_path):
    make(callbacks=[RunFolder(tmp_path)]).fit(1)
    junk = tmp_path/'checkpoints/ckpt.tmp-99999'
    junk.mkdir()
    make(callbacks=[RunFolder(tmp_path, resume=True)]).fit(2)
    assert not junk.exists()

def test_samples_hold_every_channel(tmp_path):
    make(callbacks=[RunFolder(tmp_path)]).fit(1)
    rows = read_jsonl(tmp_path/'samples.jsonl')
    assert len(rows)==4
    for r in rows:
        assert ''.join(t['text'] for t in r['tokens'])==r['response']
        assert set(r['tokens'][0])=={'text','reward','value','advantage','kl','logp_old','logp_new'}

# ---- what is in the folder of the checkpoints, and whose run it is

def state_of(step): return {'state.json':f'{{"step": {step}}}'.encode()}
def left(root): return sorted(p.name for p in root.iterdir())

def test_every_one_bit_change_of_a_manifest_is_passed_over_or_changes_nothing(tmp_path):
    for step in (13, 14): write_checkpoint(tmp_path, step, {'state.json':b'{}','policy.safetensors':b'weights'})
    f = tmp_path/'ckpt-000014/MANIFEST.json'
    data,passed = f.read_bytes(),0
    for i in range(len(data)*8):
        f.write_bytes(data[:i//8]+bytes([data[i//8]^(1<<i%8)])+data[i//8+1:])
        path,skipped = latest_checkpoint(tmp_path, ('state.json','policy.safetensors'))
        assert path.name=='ckpt-000013' and skipped[0].startswith('ckpt-000014: ') or json.loads(f.read_bytes())==json.loads(data)
        passed += bool(skipped)
    assert passed>=len(data)*7

@pytest.mark.parametrize('text', ['[]', 'null', '"x"', '3', 'true', '{}', '{"format":1}', '{"format":1,"step":2}', '{"format":1,"step":2,"files":null}', '{"format":1,"step":2,"files":[]}', '{"format":true,"step":2,"files":{}}',
    '{"format":1,"step":2,"files":{"state.json":null}}', '{"format":1,"step":2,"files":{"state.json":{"size":"2","sha256":"0"}}}', '{"format":1,"step":2,"files":{"state.json":{"size":2}}}', '{"format":1,"step":2,"files":{}}',
    '{"format":1,"step":"2","files":{}}', '{"format":1,"step":2,"files":{"../a/state.json":{"size":2,"sha256":"0"}}}', '{"format":1,"step":2,"files":{"\\u0000":{"size":2,"sha256":"0"}}}', '['*100_000, '{"format":1,"step":2,"files":{"'+'n'*5000+'":{"size":2,"sha256":"0"}}}'])
def test_a_manifest_that_is_json_and_no_manifest_is_passed_over(tmp_path, text):
    for step in (1, 2): write_checkpoint(tmp_path, step, state_of(step))
    (tmp_path/'ckpt-000002/MANIFEST.json').write_text(text)
    path,skipped = latest_checkpoint(tmp_path, ('state.json',))
    assert path.name=='ckpt-000001' and 'ckpt-000002: ' in skipped[0]

def test_what_is_not_a_checkpoints_own_stays_whatever_it_is_called(tmp_path, caplog):
    for i in (1, 2): write_checkpoint(tmp_path, i, {'a':b'x'})
    for name in ('ckpt-000000','ckpt-000005'): (tmp_path/name).mkdir(); (tmp_path/name/'mine').write_text('work')
    (tmp_path/'ckpt-000001/notes').write_text('mine')
    for i in range(3, 9): write_checkpoint(tmp_path, i, {'a':b'y'}, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir())==['ckpt-000000','ckpt-000001','ckpt-000005.aside-1','ckpt-000007','ckpt-000008']
    assert all((tmp_path/p).exists() for p in ('ckpt-000000/mine','ckpt-000001/notes','ckpt-000005.aside-1/mine'))
    assert 'ckpt-000005: is no whole checkpoint' in caplog.text and 'ckpt-000005.aside-1 now' in caplog.text

def test_a_pipe_in_place_of_a_manifest_is_passed_over(tmp_path):
    for i in (1, 2): write_checkpoint(tmp_path, i, {'a':b'x'})
    (tmp_path/'ckpt-000002/MANIFEST.json').unlink()
    os.mkfifo(tmp_path/'ckpt-000002/MANIFEST.json')
    at,skipped = latest_checkpoint(tmp_path)
    assert at.name=='ckpt-000001' and 'is no file' in skipped[0]

@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.lists(st.sampled_from(['ckpt-best','ckpt-old','ckpt-','ckpt-000002-copy','ckpt-copy','ckpt-1x','ckpt-²','ckpt.best','ckpt.tmp-mine','best','ckpt-000002.bak','~ckpt-000001']), unique=True), keep=st.integers(1, 4), steps=st.lists(st.integers(1, 3_000_000), min_size=1, max_size=6, unique=True))
def test_a_save_deletes_nothing_but_older_checkpoints(names, keep, steps):
    "Folders, files and links of the user's stay; so does what was just written; the newest `keep` by number stay"
    with tempfile.TemporaryDirectory() as d:
        root,away = Path(d)/'checkpoints',Path(d)/'away'
        for n in names: (root/n).mkdir(parents=True); (root/n/'mine').write_text('x')
        write_checkpoint(away, 4_000_000, state_of(4_000_000))
        root.mkdir(exist_ok=True)
        (root/'ckpt-000000').symlink_to(away/'ckpt-4000000')
        (root/'ckpt-4').write_text('a file')
        for s in sorted(steps):
            write_checkpoint(root, s, state_of(s), keep)
            assert not check_checkpoint(root/f'ckpt-{s:06d}')
        assert set(left(root))=={*names, 'ckpt-000000', 'ckpt-4', *(f'ckpt-{s:06d}' for s in sorted(steps)[-keep:])}
        assert all((root/n/'mine').exists() for n in names) and not check_checkpoint(away/'ckpt-4000000')
        assert latest_checkpoint(root)[0].name==f'ckpt-{max(steps):06d}'

def test_a_save_after_a_fall_back_keeps_what_it_wrote(tmp_path):
    for s in (12, 13, 14): write_checkpoint(tmp_path, s, state_of(s))
    for keep in (1, 2):
        write_checkpoint(tmp_path, 13, state_of(13), keep)
        assert not check_checkpoint(tmp_path/'ckpt-000013') and (tmp_path/'ckpt-000014').exists()

def test_a_link_or_file_in_the_place_of_a_checkpoint_is_an_error_that_says_so(tmp_path):
    write_checkpoint(tmp_path/'away', 1, state_of(1))
    (tmp_path/'r').mkdir()
    (tmp_path/'r/ckpt-000001').symlink_to(tmp_path/'away/ckpt-000001')
    (tmp_path/'r/ckpt-000002').write_text('x')
    for s in (1, 2):
        with pytest.raises(CheckpointError, match='is a link or a file'): write_checkpoint(tmp_path/'r', s, state_of(s))
    assert left(tmp_path/'r')==['ckpt-000001','ckpt-000002'] and not check_checkpoint(tmp_path/'away/ckpt-000001')

def test_a_checkpoint_is_known_by_its_step_not_by_its_name(tmp_path):
    for s in (11, 12): write_checkpoint(tmp_path, s, state_of(s))
    shutil.copytree(tmp_path/'ckpt-000012', tmp_path/'ckpt-000077')
    shutil.copytree(tmp_path/'ckpt-000011', tmp_path/'ckpt-1000000')
    path,skipped = latest_checkpoint(tmp_path)
    assert path.name=='ckpt-000012' and [s.split(':')[0] for s in skipped]==['ckpt-1000000','ckpt-000077'] and 'renamed or copied' in skipped[0]

def test_leftovers_are_removed_and_what_looks_like_them_is_not(tmp_path):
    (tmp_path/'away').mkdir()
    for n in ('ckpt.tmp-17','ckpt.tmp-mine'): (tmp_path/n).mkdir()
    (tmp_path/'ckpt.tmp-18').symlink_to(tmp_path/'away')
    (tmp_path/'ckpt.tmp-19').write_text('x')
    clear_leftovers(tmp_path)
    assert left(tmp_path)==['away','ckpt.tmp-18','ckpt.tmp-19','ckpt.tmp-mine']

@pytest.mark.parametrize('line', ['[1]', 'null', '3', '"x"', '{}', '{"step": null}', '{"step": "1"}', '{"step": [1]}', '{"step": 1.5}', '{"step": true}', '{"step": NaN}', '{"stop": 1}', '{"step": -1}', '{"step": 1', '\udcff', '['*50_000, '{"step": '+'1'*5000+'}'])
def test_lines_of_a_log_that_are_no_rows_are_left_out_and_named(tmp_path, caplog, line):
    f = tmp_path/'metrics.jsonl'
    f.write_bytes(b'{"step": 1}\n'+line.encode(errors='surrogateescape')+b'\n\n{"step": 2}\n{"step": 3}\n{"step": 2')
    trim_log(f, 2)
    assert f.read_bytes()==b'{"step": 1}\n{"step": 2}\n'
    assert f'{f}: 1 lines are no rows with a step and are left out: 2' in caplog.text

def test_logs_that_were_edited_do_not_stop_a_run(tmp_path, caplog):
    make(callbacks=[RunFolder(tmp_path)]).fit(2)
    for n in ('metrics.jsonl','samples.jsonl'):
        with open(tmp_path/n, 'a') as f: f.write('[1]\n')
    make(callbacks=[RunFolder(tmp_path, resume=True)]).fit(3)
    assert [r['step'] for r in read_jsonl(tmp_path/'metrics.jsonl')]==[1,2,3] and 'samples.jsonl: 1 lines are no rows' in caplog.text

def rewrite(at, **change):
    "Change `state.json` of a checkpoint and its manifest with it"
    state = json.loads((at/'state.json').read_text())
    data = json.dumps(change.pop('whole') if 'whole' in change else {k:v for k,v in (state | change).items() if v is not Ellipsis}).encode()
    (at/'state.json').write_bytes(data)
    m = json.loads((at/'MANIFEST.json').read_text())
    m['files']['state.json'] = dict(sha256=hashlib.sha256(data).hexdigest(), size=len(data))
    (at/'MANIFEST.json').write_text(json.dumps(m))

@pytest.mark.parametrize('change', [dict(step='1'), dict(step=None), dict(step=True), dict(total=[]), dict(kl=[]), dict(kl=None), dict(config=[1]), dict(config=None), dict(step=...), dict(whole=[]), dict(whole=None), dict(whole='x'), dict(config=dict(lr=3))])
def test_a_whole_checkpoint_with_an_odd_state_is_an_error_that_names_it(tmp_path, change):
    make(callbacks=[RunFolder(tmp_path)]).fit(1)
    at = latest_checkpoint(tmp_path/'checkpoints')[0]
    rewrite(at, **change)
    with pytest.raises(CheckpointError, match='ckpt-000001'): make(callbacks=[RunFolder(tmp_path, resume=True)]).fit(2)
    shutil.rmtree(at)
    assert make(callbacks=[RunFolder(tmp_path, resume=True)]).fit(2).step==2 # and the remedy works, in the same process

@pytest.mark.parametrize('name', ['policy.safetensors','optimizer.safetensors','rng.safetensors'])
@pytest.mark.parametrize('data', [b'', b'junk', save_tensors({}), save_tensors({'torch':torch.zeros(3)}), save_tensors({'0.exp_avg':torch.zeros(7), '99.step':torch.zeros(())}), save_tensors({'torch':torch.get_rng_state(), 'numpy':torch.full((625,), 2**40), 'python':torch.full((625,), -1)}),
    *[save_tensors({'torch':torch.get_rng_state(), 'numpy':torch.full((625,), 5), 'python':torch.tensor([w, *[7]*624])}) for w in (2**32, 2**40+1)],
    save_tensors({'torch':torch.get_rng_state(), 'numpy':torch.full((625,), 5.5, dtype=torch.float64), 'python':torch.full((625,), 7)})], ids=range(9))
def test_a_whole_checkpoint_with_odd_tensors_is_an_error_that_names_it(tmp_path, name, data):
    make(callbacks=[RunFolder(tmp_path)]).fit(1)
    at = latest_checkpoint(tmp_path/'checkpoints')[0]
    (at/name).write_bytes(data)
    m = json.loads((at/'MANIFEST.json').read_text())
    m['files'][name] = dict(sha256=hashlib.sha256(data).hexdigest(), size=len(data))
    (at/'MANIFEST.json').write_text(json.dumps(m))
    if name.startswith('optimizer') and data==save_tensors({}): return # what an optimizer holds before its first step
    with pytest.raises(CheckpointError, match='ckpt-000001: cannot be put back'): make(callbacks=[RunFolder(tmp_path, resume=True)]).fit(2)

@pytest.mark.parametrize('odd', ['3', [1], True, dict(a=1)])
def test_the_best_so_far_is_the_highest_number_in_the_log(tmp_path, odd):
    (tmp_path/'metrics.jsonl').write_text(''.join(json.dumps(dict(step=i, heldout_total=v))+'\n' for i,v in enumerate((-2., odd, None, -1.5), 1)))
    assert best_so_far(tmp_path/'metrics.jsonl')==-1.5 and best_so_far(tmp_path/'metrics.jsonl', before=4)==-2.

def test_generators_that_cannot_be_put_back_stay_as_they_are():
    from text2grad.checkpoints import load_rng,rng_tensors
    was = rng_tensors()
    same = lambda: all(torch.equal(was[k], t) for k,t in rng_tensors().items())
    python = random.Random(3).getstate()[1]
    for odd in (dict(numpy=was['numpy']+.5), dict(python=torch.tensor([2**33, *python[1:]])), dict(python=torch.tensor(python[:-1]))):
        with pytest.raises((ValueError,TypeError)): load_rng(was | dict(torch=torch.Generator().manual_seed(9).get_state()) | odd)
        assert same()
    other = was | dict(python=torch.tensor(python))
    try:
        load_rng(other)
        assert random.random()==random.Random(3).random()
    finally: load_rng(was)
    assert same()

def other_base(change):
    def trainer(**kw):
        model,tok = tiny_lm()
        with torch.no_grad(): change(model)
        return SpanPPO(Policy.create(model, tok, lora=dict(r=4, alpha=8)), e_critic, prompts, small, **kw)
    return trainer
def one_weight(model): model.model.layers[1].mlp.down_proj.weight[3,5] += 1e-6
def all_weights(model):
    for p in model.parameters(): p.add_(.05)
def other_tokenizer(**kw):
    model,tok = tiny_lm()
    tok.chat_template = tok.chat_template.replace('assistant', 'bot')
    return SpanPPO(Policy.create(model, tok, lora=dict(r=4, alpha=8)), e_critic, prompts, small, **kw)
def adapter(alpha, **own):
    def trainer(**kw): return SpanPPO(Policy.create(*tiny_lm(), lora=dict(r=4, alpha=alpha), **own), e_critic, prompts, small, **kw)
    return trainer
def other_data(data):
    def trainer(**kw): return SpanPPO(Policy.create(*tiny_lm(), lora=dict(r=4, alpha=8)), e_critic, data, small, **kw)
    return trainer

@pytest.mark.parametrize('trainer,says', [(other_base(one_weight), 'base is'), (other_base(all_weights), 'base is'), (other_tokenizer, 'tokenizer is'), (adapter(16), 'adapter is'), (adapter(8, detach_value=True), 'adapter is'),
    (other_data(prompts[1:]), "data is '7 examples' there and '6 examples' here"), (other_data(prompts[::-1]), 'data is'), (other_data([*prompts[:-1], Example('Write 8 letters.', '')]), 'data is'),
    (other_data([replace(e, meta=dict(document='d')) for e in prompts]), 'data is'), (other_data([replace(e, reference='r') for e in prompts]), 'data is')])
def test_a_run_that_stands_on_something_else_is_refused_by_name(tmp_path, trainer, says):
    make(callbacks=[RunFolder(tmp_path)]).fit(1)
    logs = (tmp_path/'metrics.jsonl').read_bytes()
    with pytest.raises(CheckpointError, match=says): trainer(callbacks=[RunFolder(tmp_path, resume=True)]).fit()
    assert (tmp_path/'metrics.jsonl').read_bytes()==logs and make(callbacks=[RunFolder(tmp_path, resume=True)]).fit(2).step==2

def test_a_policy_trained_whole_knows_its_base_by_its_reference(tmp_path):
    def trainer(seed, **kw): return SpanPPO(Policy.create(*tiny_lm(seed), lora=None), e_critic, prompts, small, **kw)
    trainer(0, callbacks=[RunFolder(tmp_path)]).fit(1)
    with pytest.raises(CheckpointError, match='base is'): trainer(5, callbacks=[RunFolder(tmp_path, resume=True)]).fit(2)
    assert trainer(0, callbacks=[RunFolder(tmp_path, resume=True)]).fit(2).step==2

def few(examples): return [Critique('Fewer e.', spans(e.response, -.1, .5)) for e in examples]
class Callable:
    def __call__(self, examples): return few(examples)
@pytest.mark.parametrize('critic', [few, lambda es: e_critic(es), Callable(), rule_critic('summarize')])
def test_another_critic_is_named_in_the_log(tmp_path, caplog, critic):
    make(callbacks=[RunFolder(tmp_path)]).fit(1)
    make(callbacks=[RunFolder(tmp_path, resume=True)]).fit(2)
    assert not caplog.text
    t = make(critic=critic, callbacks=[RunFolder(tmp_path, resume=True)])
    t.fit(2)
    assert "critic" in caplog.text and "'e_critic' there" in caplog.text

def test_rule_critics_are_told_apart_by_their_fingerprints(tmp_path, caplog):
    def trainer(c, **kw): return SpanPPO(Policy.create(*tiny_lm(), lora=dict(r=4, alpha=8)), c, prompts, small, **kw)
    t = trainer(rule_critic('summarize'))
    t.check_identity(t.identity(), 'here')
    assert not caplog.text
    t.check_identity(trainer(rule_critic('answer')).identity(), 'here')
    assert re.search("another judge than before: critic is 'rules/answer/.*' there and 'rules/summarize/.*' here", caplog.text)

def paying(w, words=('x',)):
    def critic(examples): return [Critique('Said.', [Span(0, 1, w)] if e.response not in words else []) for e in examples]
    return critic
def with_default(examples, w=-1.): return paying(w)(examples)
def other_default(examples, w=1.): return paying(w)(examples)
other_default.__name__ = other_default.__qualname__ = 'with_default'
class Paying:
    def __init__(self, w): self.w = w
    def __call__(self, examples): return paying(self.w)(examples)
    def judged(self, examples): return self(examples)
class Slotted:
    __slots__ = 'w'
    def __init__(self, w): self.w = w
    __call__ = Paying.__call__
def decorated(f):
    @functools.wraps(f)
    def inner(examples): return f(examples)
    return inner
def with_global(f, **kw): return type(f)(f.__code__, f.__globals__ | kw, f.__name__, f.__defaults__, f.__closure__)
def reading(examples): return paying(PAID)(examples)
def helped(examples): return helper()(examples)
def in_set(examples): return [Critique('', [Span(0, 1, -1.)]*(e.response in {'a','b'})) for e in examples]
def in_other_set(examples): return [Critique('', [Span(0, 1, -1.)]*(e.response in {'a','c'})) for e in examples]
in_other_set.__name__ = in_other_set.__qualname__ = 'in_set'

@pytest.mark.parametrize('a,b', [
    (paying(-1.), paying(1.)), (paying(-1.), paying(-1., ('x','y'))), (paying(-1., {'x','y'}), paying(-1., {'x','z'})),
    (partial(with_default, w=1.), partial(with_default, w=2.)), (Paying(-1.), Paying(1.)), (Paying(-1.).judged, Paying(1.).judged),
    (Slotted(-1.), Slotted(1.)), (Paying(Paying(1.)), Paying(Paying(-1.))), (decorated(paying(-1.)), decorated(paying(1.))),
    (functools.cache(paying(-1.)), functools.cache(paying(1.))), (with_default, other_default),
    (with_global(reading, PAID=-1.), with_global(reading, PAID=1.)), (with_global(reading, PAID=re.compile('a')), with_global(reading, PAID=re.compile('b'))),
    (with_global(helped, helper=lambda: paying(-1.)), with_global(helped, helper=lambda: paying(1.))), (in_set, in_other_set),
    (Weighted([paying(-1.)]), Weighted([paying(1.)])), (RuleCritic([paying(-1.)], 'own'), RuleCritic([paying(1.)], 'own'))])
def test_a_critic_is_its_code_and_all_that_it_reads(a, b, caplog):
    t = make()
    def among(c): t.critic = c; vars(t).pop('stands_on', None); return t.identity()['critic']
    was,other = among(a),among(b)
    assert was==among(a) and was!=other and was.keys()==other.keys() and len(was)==2

def changed(f):
    m,tok = tiny_lm()
    return f(m, tok) or (m, tok)
def configured(**kw):
    def f(m, tok):
        cfg = copy.deepcopy(m.config)
        vars(cfg).update(kw)
        new = type(m)(cfg).eval()
        new.load_state_dict(m.state_dict())
        return new,tok
    return f
def piped(**parts):
    def f(m, tok):
        for k,v in parts.items(): setattr(tok.backend_tokenizer, k, v)
    return f
def remerged(m, tok):
    d = json.loads(tok.backend_tokenizer.to_str())
    d['model']['merges'] = d['model']['merges'][::-1]
    tok._tokenizer = tokenizers.Tokenizer.from_str(json.dumps(d))
@pytest.mark.parametrize('what,model', [
    ('config is .*rope_parameters', configured(rope_parameters=dict(rope_type='default', rope_theta=1e6))), ('config is .*rms_norm_eps', configured(rms_norm_eps=.01)),
    ('config is .*hidden_act', configured(hidden_act='gelu')), ('tokenizer is .*ends', lambda m,t: setattr(m.generation_config, 'eos_token_id', [2, 5])),
    ('tokenizer is .*rules', piped(normalizer=tokenizers.normalizers.Lowercase())), ('tokenizer is .*rules', piped(decoder=tokenizers.decoders.Fuse())),
    ('tokenizer is .*rules', piped(pre_tokenizer=tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False))), ('tokenizer is .*rules', remerged)])
def test_the_same_weights_and_words_under_other_rules_are_another_run(what, model):
    run = lambda m: SpanPPO(Policy.create(*m, lora=dict(r=4, alpha=8)), e_critic, prompts, small)
    was = json.loads(json.dumps(run(tiny_lm()).identity()))
    with pytest.raises(CheckpointError, match=what): run(changed(model)).check_identity(was, 'there')

@pytest.mark.parametrize('what,model', [('rope_parameters.rope_theta 10000.0 and 1000000.0', configured(rope_parameters=dict(rope_type='default', rope_theta=1e6))), ('rope_parameters.rope_type default and linear', configured(rope_parameters=dict(rope_type='linear', rope_theta=1e4, factor=2.))),
    ('rms_norm_eps', configured(rms_norm_eps=.01)), ('hidden_act silu and gelu', configured(hidden_act='gelu')), (None, configured(tie_word_embeddings=False)), (None, configured(attention_dropout=.5)), (None, lambda m,t: (m.bfloat16(), t))])
@pytest.mark.parametrize('lora', [dict(r=4, alpha=8), None], ids=['adapter','whole'])
def test_what_is_saved_is_loaded_on_weights_under_the_same_settings(tmp_path, lora, what, model):
    "A tie of equal weights, a dropout that is off and a narrower dtype are no other model"
    Policy.create(*tiny_lm(), lora=lora).save_pretrained(tmp_path)
    base = changed(model)[0]
    if what is None: assert Policy.load(tmp_path, base)
    else:
        with pytest.raises(ModelError, match=re.escape(what)): Policy.load(tmp_path, base)

def test_a_saved_model_is_the_one_in_memory(tmp_path):
    m,tok = tiny_lm()
    m.save_pretrained(tmp_path); tok.save_pretrained(tmp_path)
    tok(['a','b c'], padding=True, truncation=True, max_length=2)
    run = lambda m: SpanPPO(Policy.create(*m, lora=dict(r=4, alpha=8)), e_critic, prompts, small).identity()
    assert {k:v | dict(name='') for k,v in run((m, tok)).items()}=={k:v | dict(name='') for k,v in run(load_model(tmp_path, device='cpu')).items()}

def test_held_out_facts_and_a_reward_that_is_gone(caplog):
    held = lambda d: HeldOut([Example('p', '', meta=dict(document=d))])
    run = lambda **kw: SpanPPO(Policy.create(*tiny_lm()), e_critic, prompts, small, **kw)
    with pytest.raises(CheckpointError, match='heldout is'): run(heldout=held('a')).check_identity(run(heldout=held('b')).identity(), 'there')
    run().check_identity(run(reward=lambda r,c: [1.]*len(r)).identity(), 'there')
    assert re.search('without comparing reward .* there and none here', caplog.text)

@pytest.mark.parametrize('was', [..., None, [], {}, dict(base=None), dict(base=dict(name='x'))])
def test_a_checkpoint_of_an_older_version_is_resumed_with_a_warning(tmp_path, caplog, was):
    a = make(callbacks=[RunFolder(tmp_path/'a')]).fit()
    make(callbacks=[RunFolder(tmp_path/'b')]).fit(2)
    rewrite(latest_checkpoint(tmp_path/'b/checkpoints')[0], identity=was)
    b = make(callbacks=[RunFolder(tmp_path/'b', resume=True)]).fit()
    assert equal(weights(a), weights(b)) and re.search('resumed without comparing base .*; config .*; tokenizer .*; adapter .*; data .*; critic', caplog.text)

def test_a_base_in_another_dtype_is_the_same_base(tmp_path, caplog):
    half = lambda seed: SpanPPO(Policy.create(tiny_lm(seed)[0].bfloat16(), tiny_lm()[1], lora=dict(r=4, alpha=8)), e_critic, prompts, small)
    t = make()
    t.check_identity(half(0).identity(), 'there')
    assert re.search("not to the bit: precision is 'bfloat16 and float32' there and 'float32' here", caplog.text) and len(caplog.messages)==1
    with pytest.raises(CheckpointError, match='base is'): t.check_identity(half(1).identity(), 'there')

def test_meta_that_is_no_json_can_be_trained_on(tmp_path):
    data = [replace(e, meta=dict(seen={1}, f=len)) for e in prompts]
    def trainer(**kw): return SpanPPO(Policy.create(*tiny_lm()), e_critic, data, small, **kw)
    trainer(callbacks=[RunFolder(tmp_path)]).fit(1)
    assert trainer(callbacks=[RunFolder(tmp_path, resume=True)]).fit(2).step==2

def test_a_policy_is_loaded_on_its_own_base_or_not_at_all(tmp_path, caplog):
    for name,lora in (('adapter',dict(r=4, alpha=8)), ('whole',None)):
        Policy.create(*tiny_lm(), lora=lora).save_pretrained(tmp_path/name)
        assert not caplog.text and Policy.load(tmp_path/name, model=tiny_lm()[0])
        with pytest.raises(ModelError, match='another base model of the same shape'): Policy.load(tmp_path/name, model=tiny_lm(5)[0])
        about = json.loads((tmp_path/name/'policy.json').read_text())
        (tmp_path/name/'policy.json').write_text(json.dumps({k:v for k,v in about.items() if k!='base_weights'}))
        assert Policy.load(tmp_path/name, model=tiny_lm()[0]) and 'without comparing its base model' in caplog.text
        caplog.clear()

def test_a_run_made_longer_goes_on_with_a_rate_above_0(tmp_path):
    make(replace(small, steps=2), callbacks=[RunFolder(tmp_path)]).fit()
    t = make(replace(small, steps=4), callbacks=[RunFolder(tmp_path, resume=True)]).fit()
    assert t.step==4 and [r['lr'] for r in read_jsonl(tmp_path/'metrics.jsonl')]==pytest.approx([1e-3, 5e-4, 5e-4, 2.5e-4])
    with pytest.raises(CheckpointError, match='steps is 4 there and 3 here'): make(replace(small, steps=3), callbacks=[RunFolder(tmp_path, resume=True)]).fit()
    t = make(replace(small, steps=4), callbacks=[RunFolder(tmp_path, resume=True)]).fit(6)
    assert t.step==6 and all(r['lr']>0 for r in read_jsonl(tmp_path/'metrics.jsonl'))
# ---- responses that nobody judged

def some(unjudged, fill=None):
    "`e_critic`, but `fill` for these rows"
    return lambda es: [fill if i in unjudged else c for i,c in enumerate(e_critic(es))]

def part(r, rows):
    i = torch.tensor(rows)
    return type(r)([r.examples[j] for j in rows], r.prompt_ids[i], r.prompt_mask[i], r.ids[i], r.mask[i], r.finished[i], [r.offsets[j] for j in rows], r.temperature, r.logps[i], r.entropy[i])

def moved(t):
    with torch.no_grad():
        for p in t.policy.trainable().values(): p.add_(.02*torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    t.opt.step = lambda *a: None
    return t

def gradients(t, x, n):
    stats = t.minibatch(x, torch.arange(n))
    return [p.grad.clone() for p in t.policy.trainable().values()],stats

@pytest.mark.parametrize('kw', [dict(), dict(reward='scalar'), dict(samples_per_prompt=2, micro_batch_size=2), dict(entropy_coef=.1, micro_batch_size=1), dict(missing_eos_penalty=.5)],
                         ids=lambda d: '-'.join(d) or 'defaults')
@pytest.mark.parametrize('unjudged', [{0}, {1,2}, {0,1,3}])
def test_row_12_a_batch_with_unjudged_rows_is_the_batch_of_the_judged_ones(unjudged, kw):
    cfg = replace(small, max_grad_norm=1e9, **kw)
    t = moved(make(cfg, critic=some(unjudged)))
    r = judge(t.rollout(), t.critic)
    rows = [i for i in range(4) if i not in unjudged]
    x,y = t.experience(r),t.experience(part(r, rows))
    assert (x.advantages[list(unjudged)]==0).all()
    torch.testing.assert_close(x.advantages[rows], y.advantages, atol=1e-5, rtol=1e-5)
    assert abs(x.stats['explained_variance']-y.stats['explained_variance'])<1e-4
    (ga,sa),(gb,sb) = gradients(t, x, 4),gradients(t, y, len(rows))
    for a,b in zip(ga, gb): torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-3)
    assert sa.keys()==sb.keys() and all(abs(sa[k]-sb[k])<1e-4*max(1, abs(sb[k])) for k in sa)

def test_row_12_silence_of_the_critic_is_not_praised():
    "In a batch that is blamed, a score of 0 is the best there is; no judgement is none"
    blame = lambda fill: lambda es: [fill if i%2 else Critique('x', [Span(j, j+1, -1.) for j in range(0, len(e.response), 3)]) for i,e in enumerate(es)]
    big = replace(small, batch_size=8)
    a,b = (experience(make(big, critic=blame(f))) for f in (Critique('', ()), None))
    odd = torch.arange(8)%2==1
    assert a.judged.all() and a.advantages[odd][a.mask[odd]].mean()>.3
    assert (b.judged==~odd).all() and (b.advantages[odd]==0).all() and not torch.equal(a.advantages, b.advantages)

def test_row_12_nobody_judged_moves_nothing_even_with_momentum():
    t = make(critic=lambda es: e_critic(es) if t.step==0 else [None]*len(es))
    t.fit(1)
    before,state = weights(t),[s['step'].item() for s in t.opt.state.values()]
    t.fit(3)
    assert equal(before, weights(t)) and [s['step'].item() for s in t.opt.state.values()]==state
    assert t.stats['updates']==0 and t.stats['judged']==0 and np.isnan(t.stats['policy_loss'])

def test_row_12_a_reward_that_gives_none_is_no_judgement_either(tmp_path):
    t = SpanPPO(Policy.create(*tiny_lm(), lora=dict(r=4, alpha=8)), e_critic, prompts, small, reward=lambda r,cfg: [1., None, [.1]*int(r.lengths[2]), None], callbacks=[RunFolder(tmp_path/'run')])
    x = t.experience(judge(t.rollout(), e_critic))
    assert x.judged.tolist()==[True,False,True,False] and (x.advantages[[1,3]]==0).all()
    t.reward = lambda r,cfg: [None]*4
    t.fit(1)
    assert read_jsonl(tmp_path/'run'/'metrics.jsonl')[0]['policy_loss'] is None

# ---- the same total, whatever the clip

@pytest.mark.parametrize('how', [dict(), dict(reward_clip=.3), dict(reward_scale=25.), dict(reward_scale=-25.), dict(reward_clip=None, reward_scale=30.),
    dict(reward_scale=40., spread='mean', overlap='max'), dict(reward_clip=.5, missing_eos_penalty=3., empty_penalty=9.), dict(reward_scale=0.)], ids=lambda d: '-'.join(d) or 'defaults')
def test_row_9_span_and_scalar_pay_the_same_total_whatever_the_clip(how):
    rng = np.random.default_rng(0)
    def critic(es):
        cut = lambda n: sorted(rng.integers(0, n+1, 2).tolist())
        return [Critique('x', [Span(*cut(len(e.response)), float(rng.uniform(-1, 1))) for _ in range(20)]+[Span(0, len(e.response), -1.)]) for e in es]
    judged = judge(make(replace(small, max_new_tokens=48)).rollout(), critic)
    pay = lambda kind: make(replace(small, kl_coef=0., reward=kind, **how)).experience(judged)
    a,b = pay('span'),pay('scalar')
    torch.testing.assert_close(a.rewards.sum(1), b.rewards.sum(1), atol=1e-3, rtol=1e-5)
    assert a.stats['reward_clipped']==b.stats['reward_clipped']

def test_a_clip_that_bites_is_said_once(caplog):
    for kind in ('span','scalar'):
        caplog.clear()
        t = make(replace(small, reward=kind, reward_clip=.3)).fit()
        said = [m for m in caplog.messages if 'reward_clip=0.3' in m]
        assert len(said)==1 and 'the largest is 0.5' in said[0] and 'lower reward_scale' in said[0]
    caplog.clear()
    assert make().fit().stats['reward_clipped']==0 and not caplog.messages

# ---- refused or told at the start

@pytest.mark.parametrize('kind', ['k2','k3'])
def test_k2_and_k3_in_the_reward_are_told(kind, caplog):
    make(replace(small, kl_kind=kind))
    assert any(f"kl_kind='{kind}'" in m and "Use 'k1'" in m for m in caplog.messages)
    caplog.clear()
    make(replace(small, kl_kind=kind, kl_coef=0.))
    make()
    assert not caplog.messages

def test_a_policy_without_a_value_head_is_refused_at_once():
    with pytest.raises(ValueError, match='has no value head.*value_head=True'): make(value_head=False)

def test_row_29_each_group_keeps_its_own_rate(caplog):
    p = Policy.create(*tiny_lm(), lora=dict(r=4, alpha=8))
    for n,x in p.named_parameters(): x.requires_grad_(n.startswith('value_head'))
    t = SpanPPO(p, e_critic, prompts, replace(small, lr=1e-4, value_lr=1e-2, steps=2))
    assert not t.policy_params and len(t.opt.param_groups)==1 and 'only the value head' in caplog.text
    t.one_step()
    assert t.opt.param_groups[0]['lr']==1e-2
    t = make(replace(small, lr=1e-4, value_lr=1e-2, steps=2)).fit()
    assert [g['lr'] for g in t.opt.param_groups]==[1e-4/2, 1e-2/2]

def test_a_setting_that_an_older_version_did_not_have_does_not_stop_a_resume(tmp_path, caplog):
    make(callbacks=[RunFolder(tmp_path)]).fit(1)
    was = asdict(small)
    for k in ('target_kl','kl_horizon'): was.pop(k)
    rewrite(latest_checkpoint(tmp_path/'checkpoints')[0], config=was)
    with pytest.raises(CheckpointError, match='target_kl is None there and 0.5 here'): make(replace(small, target_kl=.5), callbacks=[RunFolder(tmp_path, resume=True)]).fit()
    assert make(callbacks=[RunFolder(tmp_path, resume=True)]).fit(2).step==2 and 'did not have: ' in caplog.text and 'target_kl' in caplog.text


# --- a group of siblings in place of a value head

group = replace(small, baseline='group', samples_per_prompt=2)

def forwards(t, monkeypatch):
    "What `Policy.forward` is called with, from here on"
    called,plain = [],type(t.policy).forward
    monkeypatch.setattr(type(t.policy), 'forward', lambda self, *a, **kw: called.append(kw | dict(grad=torch.is_grad_enabled())) or plain(self, *a, **kw))
    return called

def test_a_group_needs_no_pass_for_what_the_sampler_said(monkeypatch):
    t = make(group, value_head=False)
    called = forwards(t, monkeypatch)
    t.one_step()
    assert not t.stats['updates'] or all(c['grad'] for c in called), 'at step 0 the reference is the policy: nothing but the update reads the responses'
    del called[:]
    t.one_step()
    quiet = [c for c in called if not c['grad']]
    assert quiet and all(c['ref'] for c in quiet)
    assert t.stats['sampler_gap']<1e-5 and t.stats['sampler_gap_max']<1e-4
    value = make(small)
    called = forwards(value, monkeypatch)
    value.one_step()
    assert [c for c in called if not c['grad'] and not c.get('ref')], 'values have to be computed'

def test_old_log_probs_of_the_sampler_and_of_a_pass_are_the_same():
    t = moved(make(group, value_head=False))
    r = judge(t.rollout(), t.critic)
    said = t.experience(r)
    r.logps = r.entropy = None
    computed = t.experience(r)
    for k in ('logps','kl','rewards','advantages','entropy'): torch.testing.assert_close(getattr(said, k), getattr(computed, k), atol=2e-5, rtol=1e-3)
    assert computed.gaps is None and 'sampler_gap' not in t.update(computed)

def test_a_sampler_that_disagrees_is_told_of_once(caplog):
    t = moved(make(group, value_head=False))
    for _ in range(2):
        r = judge(t.rollout(), t.critic)
        r.logps = r.logps-.5*r.mask
        stats = t.update(t.experience(r))
        assert abs(stats['sampler_gap']-.5)<1e-3
    assert caplog.text.count('disagree by 0.500 nats')==1

def test_group_advantages_are_what_a_loop_over_siblings_gives():
    t = moved(make(replace(group, lam=.9, gamma=.95, samples_per_prompt=4)))
    x = t.experience(judge(t.rollout(), t.critic))
    n,rows = x.mask.sum(1).tolist(),x.rewards.tolist()
    togo = [[sum((.9*.95)**l*r[i+l] for l in range(k-i)) for i in range(k)] for r,k in zip(rows, n)]
    for i,g in enumerate(togo):
        mates = [j for j in range(i//4*4, i//4*4+4) if j!=i]
        for t_,v in enumerate(g):
            want = v-sum(togo[j][min(t_, n[j]-1)] for j in mates)/3   # one that has ended counts with what its end was paid
            assert abs(float(x.returns[i,t_]-x.values[i,t_])-want)<1e-4

def test_a_group_that_agrees_is_left_out_and_counted():
    t = make(replace(group, spread='mean', empty_penalty=0.), critic=lambda exs: [Critique('', []) for _ in exs])
    before = {k:v.clone() for k,v in t.policy.state_dict().items()}
    t.one_step()
    assert t.stats['agreed']==t.stats['responses']==4 and t.stats['updates']==0
    assert all(torch.equal(v, before[k]) for k,v in t.policy.state_dict().items())
    first = iter([True]+[False]*9)
    t = make(replace(group, minibatch_size=4), critic=lambda exs: [Critique('', [Span(0, max(1, len(e.response)), -1.)] if next(first) else []) for e in exs])
    t.one_step()
    assert t.stats['agreed']==2 and t.stats['updates']>=1

def test_a_sibling_that_nobody_judged_is_no_sibling():
    t = moved(make(replace(group, samples_per_prompt=4), critic=some({1})))
    x = t.experience(judge(t.rollout(), t.critic))
    g,m = x.returns,x.mask
    last = lambda i: torch.where(m[i], g[i], g[i, m[i].sum()-1])
    want = torch.where(m[0], (last(2)+last(3))/2, 0.)
    torch.testing.assert_close(x.values[0], want)
    assert not x.taught[1] and (x.advantages[1]==0).all()

@pytest.mark.parametrize('kw,says', [(dict(baseline='mean'), 'one of value, group, local'), (dict(baseline='group', samples_per_prompt=1), '2 responses or more')])
def test_a_baseline_that_cannot_be_is_refused(kw, says):
    with pytest.raises(ValueError, match=says): replace(small, **kw)

def test_values_need_a_head_and_siblings_none():
    with pytest.raises(ValueError, match="baseline='group'"): make(small, value_head=False)
    make(replace(small, baseline='local'), value_head=False).one_step()

def test_local_credit_is_the_papers_equation():
    t = moved(make(replace(small, baseline='local', kl_coef=.1)))
    x = t.experience(judge(t.rollout(), t.critic))
    r = (x.scores-.1*x.kl)*x.mask
    torch.testing.assert_close(x.advantages, r/(r[x.mask]**2).mean().add(1e-8).sqrt(), atol=1e-5, rtol=1e-4)
