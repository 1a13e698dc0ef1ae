"""Device-neutral code, without a GPU: tensors that claim to be elsewhere refuse to meet a tensor on the CPU.

`FakeTensorMode` cannot run what decides by values (`bool(mask.all())`, `h[mask]`), and on a build of torch without CUDA no fake CUDA tensor can be indexed. So these tests use
`Elsewhere`: real values on the CPU under a device called 'away', by torch's backend for tests. Each runs in a process of its own, since a backend is registered for good.
Nothing here says that anything runs on a GPU; the test that does has `on_a_real_gpu` in its name."""
import subprocess,sys
from pathlib import Path
import pytest, torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves,tree_map

here = Path(__file__).resolve().parent

# tensors elsewhere, with values

class Elsewhere(torch.Tensor):
    "A tensor on the CPU that claims to be away"
    @staticmethod
    def __new__(cls, inner, requires_grad=False):
        how = dict(strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype, device='away:0', requires_grad=requires_grad)
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, **how)
    def __init__(self, inner, requires_grad=False): self.inner = inner
    def __repr__(self): return f'Elsewhere({self.inner})'
    def tolist(self): return self.inner.tolist()
    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None): return dispatch(func, args, kwargs or {})

MOVES = torch.ops.aten._to_copy.default,torch.ops.aten.copy_.default
PICKS = torch.ops.aten.index.Tensor,torch.ops.aten.index_put_.default,torch.ops.aten._index_put_impl_.default # indices may stay on the CPU, as with CUDA

def dispatch(func, args, kwargs):
    ts = [a for a in tree_leaves((args[:1]+args[2:] if func in PICKS else args, kwargs)) if isinstance(a, torch.Tensor)]
    away = [a for a in ts if isinstance(a, Elsewhere)]
    if away and func not in MOVES and any(not isinstance(a, Elsewhere) and a.dim() for a in ts): raise RuntimeError(f'{func}: a tensor on the CPU among those of another device')
    device = kwargs.get('device')
    there = bool(away) if device is None else torch.device(device).type=='away'
    if func is MOVES[1]: there = isinstance(args[0], Elsewhere)
    if device is not None: kwargs = kwargs | dict(device=torch.device('cpu'))
    inner = lambda a: a.inner if isinstance(a, Elsewhere) else a
    out,known = func(*tree_map(inner, args), **tree_map(inner, kwargs)),{id(a.inner):a for a in away}
    return tree_map(lambda o: known.get(id(o), Elsewhere(o)) if there and isinstance(o, torch.Tensor) else o, out)

class Dispatch(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None): return dispatch(func, args, kwargs or {})

class Factories(TorchFunctionMode):
    "`torch.tensor(..., device='away')` looks for the device before it can be asked; it is made here, and then it is away"
    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        d = kwargs.get('device')
        if isinstance(d, (str,torch.device)) and torch.device(d).type=='away' and func in (torch.tensor, torch.as_tensor):
            return Elsewhere(func(*args, **kwargs | dict(device='cpu')))
        return func(*args, **kwargs)

def move(module):
    "Parameters and buffers of a module, away"
    for m in module.modules():
        for k,p in list(m._parameters.items()):
            if p is not None: m._parameters[k] = torch.nn.Parameter(Elsewhere(p.data), p.requires_grad)
        for k,b in list(m._buffers.items()):
            if b is not None: m._buffers[k] = Elsewhere(b)
    return module

def begin():
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend
    _setup_privateuseone_for_python_backend('away')

def losses(mutant=False):
    "Losses and advantages, with the values that they have on the CPU"
    from text2grad.span_ppo import losses as l
    g = torch.Generator().manual_seed(0)
    x,y = (torch.randn(3, 5, generator=g) for _ in range(2))
    m = torch.arange(5)<torch.tensor([[5], [2], [0]])
    fns = dict(gae=l.gae, policy=lambda x,y,m: l.policy_loss(x, y, y, m, .2)[0], value=lambda x,y,m: l.value_loss(x, y, y, m, .2)[0],
               kl=lambda x,y,m: l.kl_penalty(x, y, 'k3'), mean=lambda x,y,m: l.masked_mean(x*y, m))
    want = {k:f(x, y, m) for k,f in fns.items()}
    begin()
    with Factories(),Dispatch():
        for k,f in fns.items():
            out = f(Elsewhere(x), y if mutant else Elsewhere(y), Elsewhere(m))
            for a,b in zip(tree_leaves(out), tree_leaves(want[k])):
                assert isinstance(a, Elsewhere)
                torch.testing.assert_close(a.inner, b)

def there(x):
    "Every tensor in lists, dicts and objects, away"
    if torch.is_tensor(x): return Elsewhere(x)
    if isinstance(x, dict): return {k:there(v) for k,v in x.items()}
    return type(x)(map(there, x)) if isinstance(x, (list,tuple)) else x

def same(out, want):
    "All that is a tensor in `want` is one away in `out`, with its values"
    for a,b in zip(tree_leaves(out), tree_leaves(want), strict=True):
        if not torch.is_tensor(b): assert a==(pytest.approx(b, abs=1e-5, nan_ok=True) if isinstance(b, float) else b); continue
        assert isinstance(a, Elsewhere), a
        torch.testing.assert_close(a.detach().inner, b.detach())

def advantages(mutant=False):
    "Scores laid on tokens, penalties, KL, whitening, every baseline, and the weights of a foreign sampler: the values that they have on the CPU"
    from dataclasses import replace
    from text2grad.core import Span
    from text2grad.span_ppo import losses as l
    g = torch.Generator().manual_seed(0)
    lp,ref,v = (torch.randn(4, 6, generator=g) for _ in range(3))
    m,fin,mute = torch.arange(6)<torch.tensor([[6], [3], [4], [1]]),torch.tensor([True,False,True,True]),torch.tensor([False,False,False,True])
    offsets = [[(2*i, 2*i+2) for i in range(n)] for n in (6,3,4,1)]
    rewards = [[Span(0, 3, .5), Span(4, 4, -1.)], 2., [.1,.2,.3,.4], None]
    def all_of(lp, ref, v, m, fin, mute):
        scores,judged = l.token_scores(rewards, offsets, m)
        out = dict(scores=scores, judged=judged, penalty=l.missing_eos(fin, m, 2.), ends=l.last_token(m), whitening=l.whitening(v, m), white=l.whiten(v, m, shift_mean=False),
                   group=l.group_baseline(v, m, 2, judged), agreeing=l.agreeing(scores, judged, 2), explained=l.explained_variance(v, ref, m),
                   weights=[l.truncated_weights(lp, ref, m, limit=x) for x in (0., 1e9)], kl=[l.kl_penalty(lp, ref, k) for k in ('k1','k2','k3','k3+')])
        for b in l.BASELINES:
            for kl_in in ('reward','loss'):
                o = l.Objective(baseline=b, kl_in=kl_in, missing_eos_penalty=.5)
                out[b,kl_in] = vars(l.token_advantages(scores, lp-ref, v if b=='value' else None, fin, mute, m, o, judged=judged, siblings=2))
        return out
    args = lp,ref,v,m,fin,mute
    want = all_of(*args)
    begin()
    with Factories(),Dispatch(): same(all_of(*(x if mutant and x is mute else Elsewhere(x) for x in args)), want)

def rollout(mutant=False):
    "What is kept of a rollout: masks, ends, texts, offsets, the parts that a micro-batch reads"
    from types import SimpleNamespace
    from text2grad.core import Example
    from text2grad.pretrained import tiny_lm
    from text2grad.span_ppo import rollout as module
    tok = tiny_lm(0)[1]
    policy = SimpleNamespace(tokenizer=tok, pad_id=tok.eos_token_id, eos_ids={tok.eos_token_id})
    if mutant:
        was = module.response_mask
        module.response_mask = lambda ids,eos: (was(ids, eos)[0].cpu(), was(ids, eos)[1])
    ids,eos = torch.randint(5, 40, (3, 5)),tok.eos_token_id
    ids[0,2],ids[1,0] = eos,eos
    args = torch.randint(5, 40, (3, 4)),torch.tensor([[0,0,1,1], [0,1,1,1], [0,0,0,1]]).bool(),ids,1.,torch.randn(3, 5),torch.rand(3, 5)
    def kept(*args):
        r = module.make_rollout(policy, [Example('p', '')]*3, *args)
        return {k:v for k,v in vars(r).items() if k!='examples'} | dict(texts=r.texts, blank=r.blank, lengths=r.lengths, pieces=[r.pieces(i) for i in range(3)],
                                                                       parts=[r.forward_args(rows) for rows in (slice(None), torch.tensor([2,0]))])
    want = None if mutant else kept(*args)
    begin()
    with Factories(),Dispatch(): same(kept(*there(args)), want)

def step(mutant=False):
    "The trainer from a judged rollout to gradients: what the update is made of, and its loss"
    from text2grad.core import Critique,Example,Span
    from text2grad.pretrained import tiny_lm
    from text2grad.span_ppo import Policy,SpanPPO,SpanPPOConfig,judge,sample
    from text2grad.span_ppo import trainer as module
    policy = Policy.create(*tiny_lm(0), lora=dict(r=2, alpha=4))
    critic = lambda es: [Critique('', [Span(0, 1, .5)] if e.response else []) for e in es]
    t = SpanPPO(policy, critic, [Example('Write two letters.', ''), Example('Write.', '')]*2,
                SpanPPOConfig(steps=1, batch_size=4, minibatch_size=4, micro_batch_size=2, max_new_tokens=6, entropy_coef=.01, kl_in='loss', kl_kind='k3'))
    r = judge(sample(policy, t.examples, 6), critic)
    rows = torch.arange(4)
    def whole(rows):
        x = t.experience(r)
        loss,stats = t.loss(x, rows, x.mask.sum())
        loss.backward()
        return {k:v for k,v in vars(x).items() if k not in ('rollout','stats','gaps')} | dict(loss=loss, stats=x.stats|stats)
    begin() # before the first backward pass, which counts the devices
    want = None if mutant else whole(rows)
    if mutant:
        was = module.policy_loss
        module.policy_loss = lambda new,old,*a,**kw: was(new, old.cpu(), *a, **kw)
    move(policy)
    for k,v in vars(r).items(): setattr(r, k, there(v) if torch.is_tensor(v) else v)
    with Factories(),Dispatch(): same(whole(Elsewhere(rows)), want)

def policy(mutant=False):
    "Forward passes of policy and reference, with the values that they have on the CPU"
    from text2grad.pretrained import tiny_lm
    from text2grad.span_ppo import policy as module
    if mutant:
        was = module._token_stats
        module._token_stats = lambda logits,ids,*a: was(logits, ids.new_tensor(ids.tolist(), device='cpu'), *a)
    p = module.Policy.create(*tiny_lm(0), lora=dict(r=2, alpha=4), chunk=7)
    ids,mask = torch.randint(5, 40, (4, 12)),torch.ones(4, 12, dtype=torch.bool)
    mask[0,:3] = mask[1,10:] = False
    args = ids[:,:6],mask[:,:6],ids[:,6:],mask[:,6:]
    want = p.forward(*args, with_entropy=True)
    begin(); move(p)
    with Dispatch():
        out = p.forward(*map(Elsewhere, args), with_entropy=True)
        p.forward(*map(Elsewhere, args), ref=True)
    for k in ('logps','values','entropy'):
        assert isinstance(getattr(out, k), Elsewhere)
        torch.testing.assert_close(getattr(out, k).detach().inner, getattr(want, k).detach())

def token_head(mutant=False):
    "The token head of the reward model: what it says of each token, forward and backward"
    from types import SimpleNamespace
    from text2grad.reward_model import token_head as module
    head = module.TokenHead([8, 8], SimpleNamespace(size=16, layers=1, heads=2, dropout=0.))
    if mutant: module._positions = lambda T,d,device,was=module._positions: was(T, d, 'cpu')
    states,region,features = [torch.randn(2, 6, 8) for _ in range(2)],torch.tensor([[1,1,2,2,2,0],[0,1,1,1,2,2]]),torch.zeros(2, 6, 6)
    begin(); move(head)
    with Factories(),Dispatch():
        out = head([Elsewhere(s) for s in states], Elsewhere(region), Elsewhere(features))
        out.square().sum().backward()
    assert isinstance(out, Elsewhere) and out.shape==(2, 6, 5) and isinstance(head.out.bias.grad, Elsewhere)

@pytest.mark.parametrize('name', ['losses','advantages','rollout','policy','step','token_head'])
@pytest.mark.parametrize('mutant', [False, True])
def test_nothing_meets_a_tensor_on_the_cpu(name, mutant):
    "The mutant leaves one tensor on the CPU, and is caught"
    r = subprocess.run([sys.executable,'-c',f'import os,test_devices as t; t.{name}({mutant}); print("done", flush=True); os._exit(0)'], cwd=here, capture_output=True, text=True, timeout=300)
    assert ('done' in r.stdout)!=mutant, r.stderr[-3000:]
    if mutant: assert 'a tensor on the CPU among those of another device' in r.stderr, r.stderr[-3000:]

@pytest.mark.skipif(not torch.cuda.is_available(), reason='there is no GPU here')
def test_a_step_on_a_real_gpu():
    from text2grad.core import Critique,Example,Span
    from text2grad.pretrained import tiny_lm
    from text2grad.span_ppo import Policy,SpanPPO,SpanPPOConfig
    model,tok = tiny_lm(0)
    cfg = SpanPPOConfig(steps=1, batch_size=4, minibatch_size=4, max_new_tokens=6)
    t = SpanPPO(Policy.create(model.cuda(), tok), lambda es: [Critique('', [Span(0, 1, .5)] if e.response else []) for e in es], [Example('Write two letters.', '')]*4, cfg)
    assert t.one_step()['judged']==4 and all(p.is_cuda for p in t.policy.trainable().values())
