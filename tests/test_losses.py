"The rows of the PPO checklist that concern pure functions on (B, T) tensors; each test names its row"
import itertools,math,threading
import numpy as np, pytest, torch
from hypothesis import given,settings,strategies as st
from text2grad.alignment.tokens import token_rewards
from text2grad.core import Span
from text2grad.span_ppo.losses import *
from text2grad.span_ppo.policy import entropy_from_logits,exact_kl

close = torch.testing.assert_close
nan,inf = math.nan,math.inf

def batch(lengths, T=None, seed=0, n=6):
    "`n` random (B, T) tensors and the mask of these lengths"
    g,T = torch.Generator().manual_seed(seed),T or max(lengths)
    mask = torch.arange(T)<torch.tensor(lengths)[:,None]
    return [torch.randn(len(lengths), T, generator=g) for _ in range(n)],mask

def whole_step(xs, mask, denom=None, kind='k1'):
    "Everything from scores to loss, with the gradients of log-probs and values"
    scores,old,ref,old_v,new,val = xs
    new,val = new.clone().requires_grad_(),val.clone().requires_grad_()
    rewards = shape_rewards(scores, kl_penalty(old, ref, kind), mask, beta=.1, clip=1.)
    adv,ret = gae(rewards, old_v, mask, .99, .9)
    pl,ps = policy_loss(new, old, whiten(adv, mask), mask, denom=denom)
    vl,vs = value_loss(val, old_v, ret, mask, denom=denom)
    (pl+.1*vl).backward()
    return dict(adv=adv, ret=ret, white=whiten(rewards, mask, shift_mean=False), new=new.grad, val=val.grad, pl=pl.detach(), vl=vl.detach(),
                ev=explained_variance(old_v, ret, mask), **ps, **vs)

# ---- the mask

@pytest.mark.parametrize('fill', [nan, inf, -inf, 1e30, 200., -200.])
@pytest.mark.parametrize('kind', ['k1','k2','k3'])
def test_row_6_nothing_masked_decides_anything(fill, kind):
    xs,mask = batch([5,1,3,0])
    a = whole_step(xs, mask, kind=kind)
    for i in range(len(xs)):
        b = whole_step([torch.where(mask, x, torch.tensor(fill)) if j==i else x for j,x in enumerate(xs)], mask, kind=kind)
        for k in a: assert torch.equal(a[k], b[k]), f'{k} looks at masked places of input {i}'
    assert all(torch.isfinite(v).all() for v in a.values())
    for k in ('adv','ret','new','val','white'): assert (a[k][~mask]==0).all()

def test_row_6_plain_multiplication_would_fail():
    xs,mask = batch([2,1])
    assert torch.isnan((torch.where(mask, xs[0], nan)*mask).sum()) and torch.isfinite(masked_sum(torch.where(mask, xs[0], nan), mask))

def test_row_34_padding_by_100_changes_no_metric():
    xs,mask = batch([5,1,3])
    pad = lambda t, v=0.: torch.nn.functional.pad(t, (0,100), value=v)
    a,b = whole_step(xs, mask),whole_step([pad(x, 7.) for x in xs], pad(mask, False))
    for k in a: close(a[k], b[k][:,:5] if b[k].dim()==2 else b[k])

def test_everything_masked_or_one_token_is_finite():
    for lengths,T in (([0,0], 3), ([1], 1), ([1,0], 4), ([0], 1)):
        xs,mask = batch(lengths, T)
        assert all(torch.isfinite(v).all() for v in whole_step(xs, mask).values())

def test_integer_masks_work():
    xs,mask = batch([5,3])
    a,b = whole_step(xs, mask),whole_step(xs, mask.long())
    for k in a: assert torch.equal(a[k], b[k])

# ---- rewards to tokens

def test_row_8_missing_eos_costs_once_and_only_when_missing():
    _,mask = batch([4,2,1,0], 5)
    out = missing_eos(torch.tensor([False,True,False,False]), mask, .5)
    want = torch.zeros(4, 5)
    want[0,3] = want[2,0] = -.5
    assert torch.equal(out, want)

def test_row_9_scalar_lands_on_the_last_valid_token_and_the_hand_table_holds():
    _,mask = batch([3,2], 4)
    scores,_ = token_scores([1., -2.], None, mask)
    assert scores.tolist()==[[0,0,1,0],[0,-2,0,0]]
    values = torch.tensor([[.5,.25,0.,9.],[1.,-1.,9.,9.]])
    adv,ret = gae(scores, values, mask, gamma=1., lam=.5)
    close(adv, torch.tensor([[-.125,.25,1.,0.],[-2.5,-1.,0.,0.]]))
    close(ret, torch.tensor([[.375,.5,1.,0.],[-1.5,-2.,0.,0.]]))

def test_row_9_scalar_with_a_gap_lands_on_the_last_token_that_exists():
    mask = torch.tensor([[1,0,1,0]]).bool()
    assert token_scores([1.], None, mask)[0].tolist()==[[0,0,1,0]]
    assert token_scores([[1.,2.]], None, mask)[0].tolist()==[[1,0,2,0]]

offsets = [[(0,4),(4,8),(8,12),(12,16)]]
full = torch.ones(1, 4).bool()

@pytest.mark.parametrize('spread,want', [('all',[0,.6,.6,.6]), ('mean',[0,.2,.2,.2]), ('last',[0,0,0,.6]), ('first',[0,.6,0,0])])
def test_row_10_spread(spread, want):
    got,_ = token_scores([[Span(5,16,.6)]], offsets, full, spread=spread)
    close(got[0], torch.tensor(want, dtype=torch.float32))
    if spread!='all': assert abs(float(got.sum())-.6)<1e-6

def test_row_11_overlapping_spans_with_the_sum_rule_do_not_depend_on_order():
    spans = [Span(0,8,1.), Span(4,12,-.5), Span(6,7,.25)]
    got = {tuple(token_scores([list(p)], offsets, full, overlap='sum')[0][0].tolist()) for p in itertools.permutations(spans)}
    assert got=={(1., .75, -.5, 0.)}

def test_row_12_none_is_not_zero_and_still_pays_kl():
    _,mask = batch([3,3,3])
    scores,judged = token_scores([None, [], 0.], [[(0,1)]*3]*3, mask)
    assert judged.tolist()==[False,True,True] and not scores.any()
    r = shape_rewards(scores, torch.full((3,3), .5), mask, beta=.1)
    close(r, torch.full((3,3), -.05))
    assert token_scores([None]*3, None, mask)[1].sum()==0

def test_token_scores_takes_tensors_and_arrays():
    _,mask = batch([3,2])
    want = [[.5,1,2],[3,4,0]]
    for r in ([torch.tensor([.5,1,2]), np.array([3,4.])], [[.5,1,2], (3,4)], [np.array([.5,1,2], dtype=np.float32), torch.tensor([3,4])]):
        assert token_scores(r, None, mask)[0].tolist()==want
    assert token_scores([torch.tensor(1.5), np.float32(2)], None, mask)[0].tolist()==[[0,0,1.5],[0,2,0]]

@pytest.mark.parametrize('r,match', [
    (nan, 'row 1: is nan'), (inf, 'row 1: is inf'), ('good', "row 1: is 'good'"), (True, 'row 1: is True'), ({}, 'row 1: is {}'),
    ([1.,nan], 'row 1: entry 1 is nan'), ([1.], 'row 1: has 1 numbers, but the response has 2 tokens'), ([1.]*3, 'row 1: has 3 numbers'),
    ([Span(0,1,1.), 2.], 'row 1: entry 0 is Span'), ([None,1.], 'row 1: entry 0 is None'), ([Span(0,1,1.)], 'offsets of row 1: are 3')])
def test_token_scores_names_the_row_that_is_wrong(r, match):
    _,mask = batch([3,2])
    with pytest.raises(ValueError, match=match): token_scores([0., r], [[(0,1)]*3]*2, mask)

@pytest.mark.parametrize('r', [None, 1., {0:1., 1:1.}, 'ab', {1., 2.}])
def test_a_reward_that_returns_no_list_is_refused(r):
    with pytest.raises(ValueError, match=f'the reward returned {type(r).__name__}; must be a list'): token_scores(r, None, torch.ones(2, 3))

def test_a_reward_may_be_a_generator_or_a_tensor():
    for r in ((1. for _ in range(2)), torch.ones(2), torch.ones(2, 3)): assert token_scores(r, None, torch.ones(2, 3))[1].all()

def test_token_scores_needs_one_result_per_response_and_offsets_for_spans():
    _,mask = batch([3,2])
    with pytest.raises(ValueError, match='1 results for 2 responses'): token_scores([1.], None, mask)
    with pytest.raises(ValueError, match='row 0.*offsets'): token_scores([[Span(0,1,1.)], 0.], None, mask)

def test_an_empty_response_counts_as_not_judged():
    _,mask = batch([0,2])
    scores,judged = token_scores([1., 1.], None, mask)
    assert judged.tolist()==[False,True] and scores.sum()==1

# ---- KL

def pair(seed=0, V=6, scale=1.):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(V, generator=g)*scale,torch.randn(V, generator=g)*scale

def test_row_13_estimators_average_to_the_exact_kl_on_samples():
    z,q = pair()
    lp,lq = z.log_softmax(-1),q.log_softmax(-1)
    exact = exact_kl(z, q)
    close(exact, torch.distributions.kl_divergence(torch.distributions.Categorical(logits=z), torch.distributions.Categorical(logits=q)))
    y = torch.multinomial(lp.exp(), 100_000, replacement=True, generator=torch.Generator().manual_seed(1))
    for kind in ('k1','k3'):
        k = kl_penalty(lp[y], lq[y], kind)
        assert abs(k.mean()-exact)<4*k.std()/math.sqrt(len(y))
    assert (kl_penalty(lp[y], lq[y], 'k1')<0).any()

@pytest.mark.parametrize('kind', ['k2','k3','k3+'])
def test_row_13_k2_and_k3_are_never_negative(kind):
    small = torch.logspace(-9, 0, 200)
    d = torch.cat([torch.arange(-500, 501)*.06, small, -small])
    k = kl_penalty(d, torch.zeros_like(d), kind)
    assert (k>=0).all() and torch.isfinite(k).all() and k[500]==0

def test_row_13_gradients_of_k2_and_k3plus_are_that_of_the_exact_kl_and_k3s_is_not():
    z,q = pair(2)
    z.requires_grad_()
    want, = torch.autograd.grad(exact_kl(z, q), z)
    lp,lq = z.log_softmax(-1),q.log_softmax(-1)
    grad = lambda kind: torch.autograd.grad((lp.exp().detach()*kl_penalty(lp, lq, kind)).sum(), z, retain_graph=True)[0]
    close(grad('k2'), want, atol=1e-6, rtol=1e-5)
    close(grad('k3+'), want, atol=1e-6, rtol=1e-5)
    assert (grad('k3')-want).abs().max()>.02
    assert torch.equal(kl_penalty(lp, lq, 'k3+'), kl_penalty(lp, lq, 'k3'))

def test_row_13_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="'k4'"): kl_penalty(torch.zeros(1), torch.zeros(1), 'k4')

def test_exact_kl_and_entropy_in_chunks_and_at_extremes():
    g = torch.Generator().manual_seed(0)
    z,q = torch.randn(2, 7, 11, generator=g),torch.randn(2, 7, 11, generator=g)
    close(exact_kl(z, q, chunk=3), exact_kl(z, q))
    close(exact_kl(z, q), (z.softmax(-1)*(z.log_softmax(-1)-q.log_softmax(-1))).sum(-1))
    assert (exact_kl(z, z)==0).all()
    close(entropy_from_logits(torch.zeros(5)), torch.tensor(math.log(5)))
    hot = torch.tensor([1e4, -1e4, 0.])
    assert entropy_from_logits(hot).abs()<1e-6 and torch.isfinite(exact_kl(hot, -hot))
    z = torch.randn(3, 5, dtype=torch.double, generator=g).requires_grad_()
    assert exact_kl(z.bfloat16(), z).dtype==torch.float32

def test_row_15_adaptive_kl_moves_the_documented_way_and_is_saved():
    up,down,same = (AdaptiveKL(.2, 6., 100) for _ in range(3))
    for _ in range(3): up.update(1e9, 50); down.update(-3., 50); same.update(6., 50)
    assert up.coef==pytest.approx(.2*1.1**3) and down.coef==pytest.approx(.2*.9**3) and same.coef==.2
    c = AdaptiveKL(.2, 6., 100)
    c.update(6.6, 100)
    assert c.coef==pytest.approx(.22)
    d = AdaptiveKL(9., 6., 100)
    d.load_state_dict(up.state_dict())
    assert d.coef==up.coef
    c.update(0., 10**9)
    assert c.coef>0, 'a huge batch must not turn the price negative'
    f = FixedKL(.1)
    f.update(1e9, 100)
    assert f.coef==.1 and f.state_dict()==dict(coef=.1)

@pytest.mark.parametrize('make', [lambda: FixedKL(-1), lambda: FixedKL(nan), lambda: AdaptiveKL(0, 6.), lambda: AdaptiveKL(.1, 0), lambda: AdaptiveKL(.1, 6., 0), lambda: AdaptiveKL(.1, 6.).update(nan, 4)])
def test_row_15_controllers_refuse_what_cannot_work(make):
    with pytest.raises(ValueError, match='KL'): make()

# ---- shaping and whitening

def test_row_16_whitening_rewards_keeps_the_mean():
    xs,mask = batch([7,2,4], seed=3)
    x = xs[0]*3+5
    w = whiten(x, mask, shift_mean=False)
    close(masked_mean(w, mask), masked_mean(x, mask))
    close(masked_mean((w-masked_mean(w, mask))**2, mask), torch.tensor(1.), atol=1e-5, rtol=0)
    w = whiten(x, mask)
    close(masked_mean(w, mask), torch.tensor(0.), atol=1e-6, rtol=0)
    close(masked_mean(w**2, mask), torch.tensor(1.), atol=1e-5, rtol=0)

def test_whitening_without_spread():
    one,_ = torch.full((1,1), 3.),None
    assert whiten(one, torch.ones(1,1)).item()==0 and whiten(one, torch.ones(1,1), shift_mean=False).item()==3
    assert (whiten(torch.full((2,3), 3.), torch.ones(2,3))==0).all()

def test_row_18_scores_are_clipped_before_the_kl():
    s,kl = torch.tensor([[50.,-50.,1.]]),torch.tensor([[100.,100.,-100.]])
    close(shape_rewards(s, kl, torch.ones(1,3), beta=1., clip=10.), torch.tensor([[-90.,-110.,101.]]))
    close(shape_rewards(s, kl, torch.ones(1,3), beta=1.), torch.tensor([[-50.,-150.,101.]]))

# ---- GAE

def brute(r, v, gamma, lam):
    T = len(r)
    d = [r[t]+(gamma*v[t+1] if t+1<T else 0)-v[t] for t in range(T)]
    return torch.stack([sum((gamma*lam)**l*d[t+l] for l in range(T-t)) for t in range(T)])

@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0,7), min_size=1, max_size=4), st.floats(0,1), st.floats(0,1), st.integers(0,999))
def test_row_19_gae_equals_the_double_sum(lengths, gamma, lam, seed):
    xs,mask = batch(lengths, max(lengths)+1, seed)
    r,v = (x.double() for x in xs[:2])
    adv,ret = gae(r, v, mask, gamma, lam)
    for i,n in enumerate(lengths):
        if n: close(adv[i,:n], brute(r[i,:n], v[i,:n], gamma, lam))
        assert (adv[i,n:]==0).all() and (ret[i,n:]==0).all()

def test_row_19_lambda_1_is_return_minus_value_and_lambda_0_is_td():
    (r,v,*_),mask = batch([6,3])
    r,v = r*mask,v*mask
    togo = r.flip(1).cumsum(1).flip(1)
    close(gae(r, v, mask, 1., 1.)[0], (togo-v)*mask)
    nextv = torch.cat([v[:,1:], torch.zeros(2,1)], 1)
    close(gae(r, v, mask, 1., 0.)[0], (r+nextv-v)*mask)

@settings(max_examples=100, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=12), st.integers(0,999))
def test_row_20_masked_gaps_anywhere_change_nothing(keep, seed):
    m = torch.tensor([keep])
    g = torch.Generator().manual_seed(seed)
    r,v = torch.randn(1, len(keep), generator=g),torch.randn(1, len(keep), generator=g)
    adv,ret = gae(r, v, m, .9, .8)
    n = int(m.sum())
    if not n: return
    dense,dret = gae(r[m][None], v[m][None], torch.ones(1, n).bool(), .9, .8)
    close(adv[m][None], dense)
    close(ret[m][None], dret)

def test_row_21_returns_are_unwhitened_advantages_plus_old_values():
    (r,v,*_),mask = batch([6,3,1])
    adv,ret = gae(r, v, mask)
    close(ret[mask], (adv+v)[mask])
    assert not torch.allclose(ret[mask], (whiten(adv, mask)+v)[mask])

def test_gae_takes_no_gradient_and_leaves_its_inputs_alone():
    (r,v,*_),mask = batch([6,3])
    r0,v0 = r.clone(),v.clone().requires_grad_()
    adv,ret = gae(r, v0, mask)
    assert not adv.requires_grad and not ret.requires_grad and torch.equal(r, r0) and torch.equal(v, v0)

# ---- whole batch, whatever the micro-batch

@pytest.mark.parametrize('size', [1,2,3,8])
def test_row_22_and_27_micro_batches_add_up_to_the_whole(size):
    lengths = [7,1,4,2,6,3,5,1]
    xs,mask = batch(lengths, seed=5)
    a = whole_step(xs, mask)
    scores,old,ref,old_v,new,val = xs
    adv,ret = gae(shape_rewards(scores, kl_penalty(old, ref), mask, .1, clip=1.), old_v, mask, .99, .9)
    white,n = whiten(adv, mask),mask.sum()
    new,val,sums = new.clone().requires_grad_(),val.clone().requires_grad_(),{}
    for rows in torch.arange(8).split(size):
        pl,ps = policy_loss(new[rows], old[rows], white[rows], mask[rows], denom=n)
        vl,vs = value_loss(val[rows], old_v[rows], ret[rows], mask[rows], denom=n)
        (pl+.1*vl).backward()
        for k,v in (ps|vs|dict(pl=pl.detach(), vl=vl.detach())).items(): sums[k] = sums.get(k, 0)+v
    close(new.grad, a['new'], atol=1e-6, rtol=1e-5)
    close(val.grad, a['val'], atol=1e-6, rtol=1e-5)
    for k,v in sums.items(): close(v, a[k], atol=1e-6, rtol=1e-5)

def test_row_22_whitening_over_two_processes_equals_one():
    xs,mask = batch([7,1,4,2], seed=6)
    want,got,parts,gate = whiten(xs[0], mask),{},{},threading.Barrier(2, timeout=20)
    def worker(i):
        calls = itertools.count()
        def reduce(t):
            parts[k := (next(calls), i)] = t
            gate.wait()
            return parts[k[0],0]+parts[k[0],1]
        got[i] = whiten(xs[0][2*i:2*i+2], mask[2*i:2*i+2], reduce=reduce)
    ts = [threading.Thread(target=worker, args=(i,)) for i in range(2)]
    for t in ts: t.start()
    for t in ts: t.join()
    close(torch.cat([got[0], got[1]]), want)
    alone = torch.cat([whiten(xs[0][i:i+2], mask[i:i+2]) for i in (0,2)])
    assert not torch.allclose(alone, want)

# ---- policy and value loss

@pytest.mark.parametrize('A,rho,loss,grad,clipped', [(1,1.1,-1.1,-1.1,0), (1,1.5,-1.2,0,1), (1,.5,-.5,-.5,0), (-1,.9,.9,.9,0), (-1,.5,.8,0,1), (-1,1.5,1.5,1.5,0)])
def test_row_26_ratio_clip_two_by_two(A, rho, loss, grad, clipped):
    new = torch.full((1,1), math.log(rho)).requires_grad_()
    l,s = policy_loss(new, torch.zeros(1,1), torch.full((1,1), float(A)), torch.ones(1,1))
    l.backward()
    assert l.item()==pytest.approx(loss, abs=1e-6) and new.grad.item()==pytest.approx(grad, abs=1e-6) and s['clipfrac']==clipped
    assert s['approx_kl'].item()==pytest.approx(rho-1-math.log(rho), abs=1e-6) and s['ratio'].item()==pytest.approx(rho, abs=1e-6)

@pytest.mark.parametrize('v,old,ret,loss,grad,clipped', [(1.,0.,2.,1.62,0.,1), (1.,0.,-1.,2.,2.,0), (.1,0.,1.,.405,-.9,0), (-1.,0.,-2.,1.62,0.,1)])
def test_row_25_value_clip_both_branches(v, old, ret, loss, grad, clipped):
    x = torch.full((1,1), v).requires_grad_()
    l,s = value_loss(x, torch.full((1,1), old), torch.full((1,1), ret), torch.ones(1,1))
    l.backward()
    assert l.item()==pytest.approx(loss, abs=1e-6) and x.grad.item()==pytest.approx(grad, abs=1e-6) and s['value_clipfrac']==clipped

def test_row_25_clipfrac_is_its_definition_and_no_clip_is_plain_mse():
    (v,old,ret,*_),mask = batch([9,4], seed=2)
    _,s = value_loss(v, old, ret, mask)
    near = old+(v-old).clamp(-.2, .2)
    close(s['value_clipfrac'], (((near-ret)**2>(v-ret)**2) & mask).sum()/mask.sum())
    close(value_loss(v, old, ret, mask, clip=None)[0], .5*((v-ret)[mask]**2).mean())

@pytest.mark.parametrize('d', [200., -200., 1e30])
def test_a_large_log_ratio_is_bounded(d):
    new = torch.full((1,1), d).requires_grad_()
    l,s = policy_loss(new, torch.zeros(1,1), torch.full((1,1), -1.), torch.ones(1,1))
    l.backward()
    assert torch.isfinite(l) and torch.isfinite(new.grad).all() and torch.isfinite(s['approx_kl'])

@pytest.mark.parametrize('which,fill', [(0,nan), *itertools.product(range(1,6), (nan,inf,-inf))])
def test_what_is_not_finite_where_a_token_is_reaches_the_loss(which, fill):
    "So that the trainer can stop; a guard that hid it would train on nonsense. Input 0 is clipped scores, where `token_scores` has refused infinities"
    xs,mask = batch([5,3])
    xs[which][0,2] = fill
    out = whole_step(xs, mask, kind='k3')
    assert not torch.isfinite(out['pl']+out['vl'])

def test_explained_variance():
    (r,*_),mask = batch([5,3])
    assert explained_variance(r, r, mask)==1 and explained_variance(torch.zeros_like(r), torch.ones_like(r), mask)==0
    close(explained_variance(torch.full_like(r, 3.), r, mask), torch.tensor(0.), atol=1e-6, rtol=0)

def test_token_scores_is_what_token_rewards_says():
    spans = [Span(2,9,.5), Span(9,16,-1.)]
    assert token_scores([spans], offsets, full)[0][0].tolist()==[float(x) for x in token_rewards(spans, offsets[0])]

# ---- who was judged, and what the clip bounds

def adv_of(scores, mask, judged=None, kl=None, o=Objective(), values=None):
    z,flag = torch.zeros_like(scores),torch.zeros(len(scores), dtype=torch.bool)
    return token_advantages(scores, z if kl is None else kl, z if values is None else values, ~flag, flag, mask, o, judged=judged)

@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=1, max_size=6), st.integers(0, 999))
def test_the_judged_are_whitened_as_if_they_were_alone(rows, seed):
    lengths,judged = [n for n,_ in rows],torch.tensor([j for _,j in rows])
    (s,kl,v,*_),mask = batch(lengths, max(lengths)+1, seed)
    a = adv_of(s*judged[:,None], mask, judged, kl, values=v)
    assert (a.advantages[~judged]==0).all()
    if judged.any(): close(a.advantages[judged], adv_of(s[judged], mask[judged], None, kl[judged], values=v[judged]).advantages, atol=1e-6, rtol=1e-5)
    same = adv_of(s, mask, torch.ones(len(s), dtype=torch.bool), kl, values=v)
    assert torch.equal(same.advantages, adv_of(s, mask, None, kl, values=v).advantages)

def test_an_empty_critique_is_a_score_of_0_and_no_judgement_is_not():
    offs,mask = [[(0,1),(1,2)]]*3,torch.ones(3, 2, dtype=torch.bool)
    out = {}
    for name,fill in dict(empty=[], nobody=None, zero=0.).items():
        s,j = token_scores([[Span(0,2,-1.)], fill, [Span(0,1,-1.)]], offs, mask)
        out[name] = adv_of(s, mask, j).advantages
    assert torch.equal(out['empty'], out['zero']) and (out['empty'][1]>0).all() and (out['nobody'][1]==0).all()
    assert not torch.equal(out['nobody'][0], out['empty'][0])

@pytest.mark.parametrize('clip', [10., .5, None])
def test_the_clip_bounds_a_tokens_score_and_never_the_sum_of_a_scalar_reward(clip):
    s,mask = torch.full((1,40), -1.),torch.ones(1, 40, dtype=torch.bool)
    span = adv_of(s, mask, o=Objective(reward_clip=clip, kl_coef=0.)).rewards
    total = torch.zeros(1,40)
    total[0,-1] = span.sum()
    assert span.sum()==-40*min(1, clip or 1)
    assert adv_of(total, mask, o=Objective(reward='scalar', reward_clip=clip, kl_coef=0.)).rewards.sum()==span.sum()

def test_penalties_and_kl_have_no_ceiling():
    s,mask,flag = torch.tensor([[0.,9.]]),torch.ones(1, 2, dtype=torch.bool),torch.tensor([True])
    x = token_advantages(s, torch.tensor([[0.,3.]]), torch.zeros(1,2), ~flag, flag, mask, Objective(reward_clip=1., missing_eos_penalty=5., empty_penalty=7., kl_coef=2.))
    assert x.rewards.tolist()==[[0., 1.-5.-7.-6.]]

@pytest.mark.parametrize('kind', ['k2','k3','k3+'])
@pytest.mark.parametrize('d', [-12., -5., 6., 19., 500., -1e4, 1e30])
def test_k2_and_k3_have_a_bound(kind, d):
    got = kl_penalty(torch.tensor([[d]]), torch.zeros(1,1), kind)
    want = d*d/2 if kind=='k2' else math.expm1(min(-d, 50))+d
    close(got, torch.tensor([[min(want, 10.)]]))
    assert kl_penalty(torch.tensor([[inf]]), torch.zeros(1,1), kind).isnan().all()
    near = torch.randn(1, 50)/4
    close(kl_penalty(near, torch.zeros(1,50), kind), near**2/2 if kind=='k2' else torch.expm1(-near)+near)

@pytest.mark.parametrize('reward', [1e39, -1e39, [0., 1e39], [-1e300, 0.], 3.41e38])
def test_a_reward_beyond_single_precision_is_refused_by_its_row(reward):
    ones = torch.ones(2, 2)
    with pytest.raises(ValueError, match='reward of row 1: holds .*torch.float32'): token_scores([.5, reward], None, ones)
    assert token_scores([.5, reward], None, ones, dtype=torch.float64)[0].abs().max()>3.4e38

def test_the_largest_reward_that_fits_is_taken_and_a_number_of_many_digits_is_none():
    big = torch.finfo(torch.float32).max
    assert token_scores([big], None, torch.ones(1, 1))[0].item()==big
    for r in (10**400, [10**400]):
        with pytest.raises(ValueError, match='row 0'): token_scores([r], None, torch.ones(1, 1))

# ---- a group of siblings

def grouped(scores, mask, finished=None, judged=None, siblings=2, **kw):
    flag = torch.ones(len(scores), dtype=torch.bool)
    o = Objective(**(dict(baseline='group', lam=1., kl_coef=0., reward_clip=None) | kw))
    return token_advantages(scores, torch.zeros_like(scores), None, flag if finished is None else finished, ~flag, mask, o, judged=judged, siblings=siblings)

def test_row_17_a_trend_along_the_response_is_no_advantage():
    "Returns to go shrink towards the end; what all siblings have at a place is no reason to prefer one of them"
    g = torch.Generator().manual_seed(0)
    trend = -torch.arange(1., 13.)
    own = torch.randn(4, 12, generator=g)
    mask = torch.ones(4, 12, dtype=torch.bool)
    with_it,without = (grouped(own+t, mask, siblings=4) for t in (trend, 0.))
    torch.testing.assert_close(with_it.raw, without.raw, atol=1e-4, rtol=1e-4)
    assert (with_it.raw.mean(0).abs()<1e-5).all()

@pytest.mark.parametrize('lam,gamma', [(1.,1.), (.95,1.), (.5,.9), (0.,1.)])
def test_a_sibling_that_has_ended_counts_with_what_its_end_was_paid(lam, gamma):
    n = [4,1,3,2]
    mask = torch.arange(4)<torch.tensor(n)[:,None]
    scores = torch.randn(4, 4, generator=torch.Generator().manual_seed(1))*mask
    x = grouped(scores, mask, siblings=4, lam=lam, gamma=gamma)
    togo = [[sum((gamma*lam)**l*float(scores[i,t+l]) for l in range(n[i]-t)) for t in range(n[i])] for i in range(4)]
    for i in range(4):
        for t in range(n[i]):
            others = [togo[j][min(t, n[j]-1)] for j in range(4) if j!=i]
            assert abs(float(x.raw[i,t])-(togo[i][t]-sum(others)/3))<1e-5
    assert (x.raw[~mask]==0).all() and (x.advantages[~mask]==0).all()

def test_an_omission_that_all_siblings_share_is_no_reason_to_go_on():
    "Two responses of different length, each blamed at its end for the same omission: nothing to learn from that"
    mask = torch.tensor([[1,1,0,0],[1,1,1,1]]).bool()
    scores = torch.tensor([[0,-1.,0,0],[.5,0,0,-1.]])
    x = grouped(scores, mask)
    torch.testing.assert_close(x.raw, torch.tensor([[-.5,0,0,0],[.5,0,0,0]]))

def test_scalar_over_a_group_is_leave_one_out_on_every_token():
    mask = torch.tensor([[1,1,0],[1,1,1],[1,0,0]]).bool()
    x = grouped(torch.tensor([[0,2.,0],[0,0,-1.],[.5,0,0]]), mask, siblings=3, reward='scalar')
    want = torch.tensor([2-(-1+.5)/2, -1-(2+.5)/2, .5-(2-1)/2])
    torch.testing.assert_close(x.raw[mask], torch.cat([want[i].expand(n) for i,n in enumerate((2,3,1))]))

def test_a_baseline_that_was_written_down_gives_the_same_advantages():
    g = torch.Generator().manual_seed(2)
    mask = torch.arange(6)<torch.tensor([[6],[4],[5],[2]])
    x = grouped(torch.randn(4, 6, generator=g)*mask, mask, siblings=2, lam=.9)
    flag = torch.tensor([True])
    for i in range(4):
        alone = token_advantages(x.rewards[i:i+1], torch.zeros(1, 6), x.baseline[i:i+1], flag, ~flag, mask[i:i+1], Objective(baseline='group', lam=.9, kl_coef=0., reward_clip=None))
        assert torch.equal(alone.raw[0], x.raw[i])

def test_groups_must_be_whole():
    with pytest.raises(ValueError, match='5 responses are no groups of 2'): grouped(torch.ones(5, 2), torch.ones(5, 2, dtype=torch.bool), judged=None)

@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3), st.integers(2, 4), st.data())
def test_nothing_masked_or_unjudged_has_a_say_in_a_group(groups, k, data):
    B,T = groups*k,5
    n = torch.tensor(data.draw(st.lists(st.integers(0, T), min_size=B, max_size=B)))
    judged = torch.tensor(data.draw(st.lists(st.booleans(), min_size=B, max_size=B)))
    mask = torch.arange(T)<n[:,None]
    scores = torch.randn(B, T, generator=torch.Generator().manual_seed(3))*mask
    a = grouped(scores, mask, judged=judged, siblings=k)
    b = grouped(torch.where(judged[:,None], scores, 7.*mask), mask, judged=judged, siblings=k)
    torch.testing.assert_close(a.advantages, b.advantages)
    assert torch.isfinite(a.advantages).all() and (a.advantages[~a.taught]==0).all() and not (a.taught & ~judged).any()
