"A ledger adds up to the advantage, and its arithmetic is that of the trainer"
import math,time
import numpy as np, pytest, torch
from dataclasses import fields
from hypothesis import given,settings,strategies as st
from text2grad.alignment.tokens import decided_at,token_rewards
from text2grad.viz.channels import groups,token_table,with_channels
from text2grad.core import Critique,Span
from text2grad.span_ppo.losses import Objective,token_advantages
from text2grad.span_ppo.config import SpanPPOConfig
from text2grad.span_ppo.credit import ledger,recomputed,rewards_by_span,three_rewards

SPREADS,OVERLAPS = ('all','mean','last','first','decay'),('sum','max','last')

def rewards(spans, offs, **kw):
    "`token_rewards` of the spans that stand over a token"
    return token_rewards([s for s in spans if any(token_rewards([Span(s.start, s.end, 1.)], offs))], offs, **kw)

def case(rng, most=24):
    "A random response with critique and config"
    n = int(rng.integers(1, most))
    lens = rng.integers(0, 5, n)
    ends = lens.cumsum()
    N = int(ends[-1])
    text = ''.join(rng.choice(list('ab. \n'), N))
    offs = [(int(b-a), int(b)) for a,b in zip(lens, ends)]
    cut = lambda: sorted(int(x) for x in rng.integers(0, N+1, 2))
    spans = [Span(*cut(), round(float(rng.uniform(-1, 1)), 2)) for _ in range(rng.integers(0, 5))]
    cfg = SpanPPOConfig(reward=str(rng.choice(['span','scalar'])), overlap=str(rng.choice(OVERLAPS)), spread=str(rng.choice(SPREADS)), gamma=float(rng.choice([0,.5,.99,1])),
                        lam=float(rng.choice([0,.5,.95,1])), kl_coef=float(rng.choice([0,.05,2])), reward_scale=float(rng.choice([1,3])),
                        reward_clip=float(rng.choice([.5,10])), missing_eos_penalty=float(rng.choice([0,.7])))
    t = token_table(text, offs, value=rng.normal(size=n), kl=rng.normal(size=n))
    return t,Critique('', spans) if rng.random()<.9 else None,cfg,bool(rng.random()<.5)

def as_trained(t, critique, cfg, finished):
    "Scores, and what the trainer's function makes of them for one response"
    T = len(t)
    row,flag = lambda x: torch.tensor(np.array(x, dtype=np.float32))[None],lambda x: torch.tensor([x])
    delta = np.array(rewards(critique.spans, t.offsets, overlap=cfg.overlap, spread=cfg.spread) if critique else [0.]*T)
    most = cfg.reward_clip/cfg.reward_scale
    if cfg.reward=='scalar': delta = np.append(np.zeros(T-1), sum(min(max(d, -most), most) for d in delta))
    silent = critique is not None and not t.response.strip()
    mask = torch.ones(1, T, dtype=torch.bool)
    return delta,token_advantages(row(delta), row(t['kl']), row(t['value']), flag(finished), flag(silent), mask, cfg, judged=flag(critique is not None))

@pytest.mark.parametrize('seed', range(6))
def test_500_ledgers_have_the_trainers_advantage_and_add_up_to_it(seed):
    rng,worst = np.random.default_rng(seed),0.
    for _ in range(500):
        t,critique,cfg,finished = case(rng)
        i = int(rng.integers(len(t)))
        w = ledger(t, critique, i, cfg, finished=finished)
        _,x = as_trained(t, critique, cfg, finished)
        assert w.advantage==x.advantages[0,i]
        size = 1+max(abs(r.value) for r in w.rows)+abs(x.raw).max().item()
        worst = max(worst, abs(w.total-w.advantage)/size, abs(w.subtotals['later']-x.raw[0,i].item())/size)
    assert worst<2e-6 # single precision

def test_recomputed_is_what_the_trainer_computes():
    rng = np.random.default_rng(7)
    for _ in range(300):
        t,critique,cfg,finished = case(rng)
        new,(delta,x) = recomputed(t, critique, cfg, finished=finished),as_trained(t, critique, cfg, finished)
        np.testing.assert_array_equal(new['reward'], delta)
        np.testing.assert_array_equal(new['advantage'], x.advantages[0].double())
        np.testing.assert_array_equal(new['return'], x.returns[0].double())

def test_single_precision_is_enough():
    rng = np.random.default_rng(1)
    for _ in range(50):
        t,critique,cfg,finished = case(rng)
        f32 = with_channels(t, **{k:np.float32(v) for k,v in t.channels.items()})
        np.testing.assert_array_equal(recomputed(f32, critique, cfg)['return'], recomputed(t, critique, cfg)['return'])

def test_a_ledger_can_be_wrong():
    "The negative control: a ledger that lost a row does not add up"
    t = token_table('ab', [(0,1),(1,2)], value=[.1,.2], kl=[.3,.4])
    w = ledger(t, Critique('', [Span(0, 2, -1.)]), 0)
    for gone in w.rows:
        if gone.value: assert abs(math.fsum(r.value for r in w.rows if r is not gone)-w.advantage)>1e-6

def test_what_a_config_lacks_has_the_default():
    t,critique,_,finished = case(np.random.default_rng(3))
    a,b = recomputed(t, critique, dict(lam=.3)),recomputed(t, critique, Objective(lam=.3))
    for k in a.channels: np.testing.assert_array_equal(a[k], b[k])

# ---- what spans lay on tokens

@st.composite
def spanned(draw):
    cuts = draw(st.lists(st.integers(0, 3), min_size=1, max_size=12))
    ends = np.cumsum(cuts).tolist()
    offs = [(b-a, b) for a,b in zip(cuts, ends)]
    ab = st.tuples(st.integers(0, ends[-1]), st.integers(0, ends[-1])).map(sorted)
    spans = [Span(*draw(ab), draw(st.sampled_from([-1.,-.5,0.,.5,1.]))) for _ in range(draw(st.integers(0, 5)))]
    return offs,spans

@settings(max_examples=200, deadline=None)
@given(spanned(), st.sampled_from(OVERLAPS), st.sampled_from(SPREADS))
def test_rewards_by_span_add_up_to_token_rewards(x, overlap, spread):
    offs,spans = x
    paid,over = rewards_by_span(spans, offs, overlap, spread)
    np.testing.assert_allclose(paid.sum(0), rewards(spans, offs, overlap=overlap, spread=spread), atol=1e-12)
    assert not paid[~over].any()

@settings(max_examples=100, deadline=None)
@given(spanned(), st.sampled_from(OVERLAPS), st.sampled_from(SPREADS))
def test_marks_name_every_span_over_the_token(x, overlap, spread):
    offs,spans = x
    t = token_table('x'*offs[-1][1], offs)
    stands = lambda s,i,a,b: a<s.end and b>s.start and a<b if len(s) else decided_at(s.start, offs) in ((i, None) if i==len(offs)-1 else (i,))
    for i,(a,b) in enumerate(offs):
        w = ledger(t, Critique('', spans), i, dict(overlap=overlap, spread=spread))
        assert [m.span for m in w.marks]==[k for k,s in enumerate(spans) if stands(s, i, a, b)]
        np.testing.assert_allclose(sum(m.paid for m in w.marks), rewards(spans, offs, overlap=overlap, spread=spread)[i], atol=1e-12)

def test_a_ledger_says_who_pays_for_an_ending():
    "The end token decided it; cut off, the last token, where the room ran out"
    c = Critique('', [Span(2, 2, -1., 'the day', 'No day.')])
    for offs,i,note,mark in (([(0,1),(1,2),(2,2)], 2, '-1 × 1 (decided here, or where the room ran out)', (1., -1.)), ([(0,1),(1,2)], 1, '-1 × 1 (decided here, or where the room ran out)', (1., -1.))):
        w = ledger(token_table('ab', offs), c, i)
        assert [r.note for r in w.rows if r.span==0]==[note] and [(m.share, m.paid) for m in w.marks]==[mark] and w.marks[0].words=='(missing at the end: the day)'
    assert ledger(token_table('ab', [(0,1),(1,2),(2,2)]), c, 1).marks==()

# ---- three rewards

def example():
    text = 'Rome fell late. It was old.'
    offs = [(0,4),(4,9),(9,14),(14,15),(15,18),(18,22),(22,26),(26,27)]
    return text,offs,[Span(4, 9, -1.), Span(22, 26, .5)]

def rnd(n, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=n),rng.normal(size=n)

def test_hand_worked_example():
    three = three_rewards(*example(), [.2]*8, [0,.2,0,0,0,0,0,0], gamma=.5, lam=.5, beta=.5)
    want = dict(scalar=[-.158367919921875,-.2334716796875,-.13388671875,-.135546875,-.1421875,-.16875,-.275,-.7],
                sentence=[-.173931884765625,-.2957275390625,-.38291015625,-1.131640625,-.1265625,-.10625,-.025,.3],
                span=[-.40821533203125,-1.232861328125,-.1314453125,-.12578125,-.103125,-.0125,.35,-.2])
    for k in want:
        np.testing.assert_allclose(three[k]['advantage'], want[k], atol=2e-7)
        np.testing.assert_allclose(three[k]['return'], np.array(want[k])+.2, atol=2e-7)

@settings(max_examples=150, deadline=None)
@given(spanned(), st.floats(0, 1), st.floats(0, 1), st.floats(0, 5), st.text('ab. \n', min_size=36, max_size=36))
def test_three_totals_are_one(x, gamma, lam, beta, text):
    offs,spans = x
    three = three_rewards(text[:offs[-1][1]], offs, spans, *rnd(len(offs)), gamma, lam, beta)
    sums = [t['reward'].sum() for t in three.values()]
    assert list(three)==['scalar','sentence','span'] and max(sums)-min(sums)<1e-9

@pytest.mark.parametrize('seed', range(5))
def test_the_ends_of_the_sliders(seed):
    text,offs,spans = example()
    v,kl = rnd(8, seed)
    run = lambda **kw: three_rewards(text, offs, spans, v, kl, **dict(gamma=1., lam=.95, beta=.05)|kw)
    for k,t in run(gamma=0.).items(): np.testing.assert_allclose(t['advantage'], t['reward']-.05*kl-v, atol=1e-5)
    for k,t in run(lam=0., beta=0.).items(): np.testing.assert_allclose(t['advantage'], t['reward']+np.append(v[1:], 0)-v, atol=1e-5)
    for k,t in run(lam=1., beta=0.).items(): np.testing.assert_allclose(t['return'], t['reward'][::-1].cumsum()[::-1], atol=1e-5)
    a,b = run(beta=0.),three_rewards(text, offs, spans, v, None, 1., .95, 0.)
    for k in a: np.testing.assert_array_equal(a[k]['advantage'], b[k]['advantage'])
    assert abs(run(beta=0.)['span']['advantage']-run(beta=.5)['span']['advantage']).max()>.01

def test_three_rewards_against_the_losses():
    text,offs,spans = example()
    v,kl = rnd(8, 3)
    for t in three_rewards(text, offs, spans, v, kl, .9, .8, .3).values():
        row,flag = lambda x: torch.tensor(np.float32(x))[None],torch.tensor([True])
        x = token_advantages(row(t['reward']), row(kl), row(v), flag, ~flag, torch.ones(1, 8, dtype=torch.bool), Objective(gamma=.9, lam=.8, kl_coef=.3))
        np.testing.assert_array_equal(t['advantage'], x.raw[0].double())
        np.testing.assert_array_equal(t['return'], x.returns[0].double())

def test_sentences_are_paid_on_their_last_token():
    text,offs,spans = example()
    s = three_rewards(text, offs+[(27,27)], spans)['sentence']['reward']
    assert s.tolist()==[0,0,0,-1,0,0,0,.5,0]

# ---- a response that a model has read

def test_the_ledger_of_a_measured_response_is_its_advantage():
    from text2grad.core import Example
    from text2grad.span_ppo.inspection import measure,rejudged
    from text2grad.span_ppo.policy import Policy
    from text2grad.pretrained import tiny_lm
    p,text = Policy.create(*tiny_lm()),'They stayed for three weeks. 🌙 It was dark'
    torch.nn.init.normal_(p.value_head.weight, std=.02)
    c = Critique('', [Span(16, 27, -1., reason='three hours'), Span(5, 20, .5)])
    case = measure(p, Example('How long?', text, c), Objective(missing_eos_penalty=.5))
    for cfg in (case.config, Objective(reward='scalar', spread='decay', gamma=.9, kl_coef=1., overlap='max', reward_clip=.4), Objective(lam=0., reward_scale=3.)):
        case = rejudged(case, c, cfg)
        for i in range(len(case)):
            w = ledger(case.table, c, i, cfg, finished=bool(case.rollout.finished[0]))
            assert w.advantage==w.told==case.table['advantage'][i] and abs(w.total-w.told)<1e-5
    assert abs(case.table['value']).max()>1e-3

# ---- what can be wrong

@pytest.mark.parametrize('kw,says', [(dict(gamma=1.1), 'gamma 1.1'), (dict(lam=-1), 'lambda -1'), (dict(beta=math.nan), 'beta nan'), (dict(beta=math.inf), 'beta inf'),
    (dict(gamma=True), 'gamma True'), (dict(lam='1'), "lambda '1'"), (dict(values=[1.]), 'value: has shape'), (dict(kl=[math.nan]*8), 'kl of token 0')])
def test_bad_numbers_are_refused_by_name(kw, says):
    with pytest.raises(ValueError, match=says): three_rewards(*example(), **kw)

@pytest.mark.parametrize('i', [-1, 2, 1.0, None, True])
def test_no_such_token(i):
    with pytest.raises(ValueError, match='there are tokens 0 to 1'): ledger(token_table('ab', [(0,1),(1,2)]), None, i)

def test_an_empty_response_has_no_ledger():
    with pytest.raises(ValueError, match='has no tokens'): ledger(token_table('', []), None, 0)
    assert len(recomputed(token_table('', []), None))==0
    assert all(len(t)==0 for t in three_rewards('', [], []).values())

def test_a_response_of_one_token_and_a_blank_one():
    w = ledger(token_table('', [(0,0)]), Critique('Nothing there.'), 0)
    assert w.subtotals['later']==pytest.approx(-2.) and w.total==w.advantage==0 and any('says nothing' in r.name for r in w.rows)
    assert ledger(token_table('', [(0,0)]), None, 0).total==0

def test_a_reward_that_no_critique_gave_is_kept():
    t = token_table('ab', [(0,1),(1,2)], reward=[.5,math.nan])
    w = ledger(t, None, 0, dict(lam=0.))
    assert w.rows[0].name=='reward as given' and w.subtotals['reward']==.5 and w.total==pytest.approx(w.advantage)

def test_the_whitening_of_a_batch_can_be_told():
    t = token_table('ab', [(0,1),(1,2)], reward=[1.,0.])
    w = ledger(t, None, 0, dict(lam=0.), whitening=(.25, 2.))
    assert w.advantage==pytest.approx(1.5) and w.total==pytest.approx(1.5) and ledger(t, None, 0, dict(lam=0.)).advantage==pytest.approx(1.)

def test_it_says_when_the_table_disagrees():
    t = token_table('abc', [(0,1),(1,2),(2,3)], reward=[1.,0.,-.5])
    old = recomputed(t, None, dict(lam=1.))
    assert 'The table says' not in ledger(old, None, 0, dict(lam=1.)).html() and 'The table says' in ledger(old, None, 0, dict(gamma=.1)).html()

def test_nothing_in_a_ledger_acts():
    bad = '<script>alert(1)</script>" onmouseover="x'
    t = token_table(bad, [(0, len(bad))])
    h = ledger(t, Critique(bad, [Span(0, len(bad), -1., bad, bad)]), 0).html()
    assert '<script' not in h and 'onmouseover="x' not in h and h.count('&lt;script')>=3

def test_a_ledger_of_2048_tokens_is_instant():
    n = 2048
    t = token_table('a'*n, [(i, i+1) for i in range(n)], value=np.sin(np.arange(n)), kl=np.cos(np.arange(n)))
    c = Critique('', [Span(k*30, k*30+20, -.5) for k in range(64)])
    start = time.process_time()
    w = ledger(t, c, 5)
    h = w.html()
    assert time.process_time()-start<2 and len(w.rows)>2000 and len(h)<40_000
