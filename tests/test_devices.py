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

def dispatch(func, args, kwargs):
    ts = [a for a in tree_leaves((args, kwargs)) if isinstance(a, torch.Tensor)]
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

@pytest.mark.parametrize('name', ['losses','policy','token_head'])
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
