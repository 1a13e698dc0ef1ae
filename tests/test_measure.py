"A response under the lens: in parity with training, and with itself under other critiques"

import numpy as np, pytest, torch
from dataclasses import fields,replace
from hypothesis import given,settings,strategies as st
from text2grad.core import Critique,Example,Span
from text2grad.pretrained import tiny_lm
from text2grad.span_ppo.credit import ledger,recomputed
from text2grad.span_ppo.inspection import as_rollout,case_advantages,measure,rejudged
from text2grad.span_ppo.losses import Objective,token_advantages,whitening
from text2grad.span_ppo.policy import Policy
from text2grad.span_ppo.rollout import judge,sample
from text2grad.span_ppo.config import SpanPPOConfig
from text2grad.span_ppo.trainer import SpanPPO
from text2grad.viz.channels import token_table

SINGLE = lambda x: torch.tensor(np.nan_to_num(x), dtype=torch.float32)
NAMES = dict(scores='reward', advantages='advantage', returns='return', values='value', logps='logp', kl='kl', entropy='entropy')
TEXT = 'The captain said that he was not annoyed.'

def moved_policy(seed=1, **kw):
    "A policy that is no longer its reference, with a value head that says something"
    p = Policy.create(*tiny_lm(), **kw)
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for x in p.trainable().values(): x.add_(torch.randn(x.shape, generator=g)*.05)
    return p

@pytest.fixture(scope='module')
def policy(): return moved_policy()

def training(policy, case):
    cfg = SpanPPOConfig(**vars(case.config), temperature=case.rollout.temperature)
    return SpanPPO(policy, None, [case.example], cfg).experience(case.rollout)

def agree(policy, case):
    x = training(policy, case)
    for k,v in NAMES.items(): assert torch.equal(SINGLE(case.table[v]), getattr(x, k)[0]), v
    own = case_advantages(case.rollout, case.table['kl'], case.table['value'], case.config)
    for k in ('rewards','returns','advantages'): assert torch.equal(getattr(own, k), getattr(x, k)), k
    finished = bool(case.rollout.finished[0])
    new = recomputed(case.table, case.critique, case.config, finished=finished)
    for k in ('advantage','return'): np.testing.assert_array_equal(new[k], case.table[k])
    for i in range(len(case)): assert ledger(case.table, case.critique, i, case.config, finished=finished).advantage==x.advantages[0,i]

@pytest.mark.parametrize('how', [dict(), dict(reward='scalar'), dict(kl_kind='k2'), dict(kl_kind='k3', kl_coef=.5), dict(gamma=.8, lam=.3), dict(gamma=0.),
    dict(spread='mean'), dict(spread='first'), dict(spread='decay', overlap='max'), dict(spread='last', overlap='last'), dict(spread='decay', reward='scalar'), dict(reward_scale=3., reward_clip=.4), dict(missing_eos_penalty=1.), dict(empty_penalty=5.)])
def test_the_numbers_are_those_of_training(policy, how):
    c = Critique('x', [Span(4, 11, .7), Span(8, 20, -.4), Span(29, 40, -1.)])
    agree(policy, measure(policy, Example('Who was annoyed?', TEXT, c), Objective(**how)))

@pytest.mark.parametrize('how', [dict(), dict(reward='scalar', spread='mean'), dict(missing_eos_penalty=.7, reward_clip=.3), dict(kl_target=.1, kl_coef=.5, kl_horizon=2.), dict(gamma=.9, lam=.5, spread='decay')])
def test_a_batch_agrees_row_by_row(policy, how):
    "The same scores, KL and values give the same bits, whoever asks: rewards, advantages and returns of each row, whitened over the batch"
    critic = lambda es: [None if i==1 else Critique('x', [Span(0, 3, .5), Span(min(2, len(e.response)), len(e.response), -.4)]) for i,e in enumerate(es)]
    cfg = SpanPPOConfig(batch_size=4, max_new_tokens=9, **how)
    t = SpanPPO(policy, critic, [Example(f'Say {n}.', '') for n in 'abcd'], cfg)
    with torch.no_grad(): t.kl_ctl.update(50., 4)
    beta,x = t.kl_ctl.coef,t.experience(judge(t.rollout(), critic))
    now = Objective(**{f.name:getattr(cfg, f.name) for f in fields(Objective)}|dict(kl_coef=beta))
    assert (beta!=cfg.kl_coef)==('kl_target' in how) and not x.rollout.finished.all()
    batch = token_advantages(x.scores, x.kl, x.values, x.rollout.finished, x.rollout.blank&x.judged, x.mask, now, judged=x.judged)
    mean,scale = map(float, whitening(batch.raw, x.mask&x.judged[:,None]))
    assert not x.judged[1] and (x.advantages[1]==0).all()
    for i,e in enumerate(x.rollout.examples):
        m,finished = x.mask[i],bool(x.rollout.finished[i])
        table = token_table(e.response, x.rollout.offsets[i], kl=x.kl[i][m].double().numpy(), value=x.values[i][m].double().numpy())
        new = recomputed(table, e.critique, now, finished=finished, whitening=(mean, scale))
        for k,v in dict(reward='scores', advantage='advantages', **{'return':'returns'}).items(): assert torch.equal(SINGLE(new[k]), getattr(x, v)[i][m]), k
        ws = [ledger(table, e.critique, j, now, finished=finished, whitening=(mean, scale)) for j in range(len(table))]
        assert [w.advantage for w in ws]==x.advantages[i][m].tolist()
        np.testing.assert_allclose([w.total for w in ws], x.advantages[i][m], atol=1e-5)

@pytest.mark.parametrize('ex,how', [(Example('a', '', Critique('says nothing')), dict()), (Example('a', '  ', Critique('blank')), dict()), (Example('a', TEXT), dict()),
    (Example([dict(role='user', content='hi')], 'é 🌙 日本\r\n\x00', Critique('x', [Span(2, 3, -1.)])), dict(spread='mean'))])
def test_odd_responses_too(policy, ex, how):
    c = measure(policy, ex, Objective(**how))
    agree(policy, c)
    assert c.response==ex.response and c.rollout.ids[0,-1]==policy.tokenizer.eos_token_id
    assert np.isnan(c.table['reward']).all()==(ex.critique is None)

def test_cut_off_and_sampled_at_a_temperature(policy):
    r = sample(policy, [Example('Who won?', '')], max_new_tokens=9, temperature=.6, seed=5)
    assert not r.finished.item()
    c = measure(policy, r.examples[0], Objective(missing_eos_penalty=.5), ids=r)
    assert c.rollout.ids.tolist()==r.ids.tolist() and c.rollout.temperature==.6
    agree(policy, c)
    again = measure(policy, r.examples[0], ids=r.ids[0][r.mask[0]], temperature=.6)
    np.testing.assert_array_equal(again.table['logp'], c.table['logp'])
    assert not np.allclose(measure(policy, r.examples[0], ids=r.ids[0][r.mask[0]]).table['logp'], c.table['logp'], atol=1e-3)
    greedy = measure(policy, r.examples[0], ids=replace(r, temperature=0.))
    assert greedy.rollout.temperature==1.

def test_a_policy_without_a_value_head():
    p = Policy.create(*tiny_lm(), value_head=False)
    assert not measure(p, Example('a', TEXT)).table['value'].any()

def test_measuring_changes_nothing(policy):
    before = {k:v.clone() for k,v in policy.named_parameters()}
    state = torch.get_rng_state()
    measure(policy, Example('a', TEXT))
    assert torch.equal(state, torch.get_rng_state()) and all(torch.equal(v, before[k]) and v.grad is None for k,v in policy.named_parameters())

@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 41), st.integers(0, 41), st.floats(-1, 1)), max_size=5), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_rejudging_is_measuring_again(policy, spans, gamma, lam, beta):
    c = Critique('x', [Span(min(a, b), max(a, b), s) for a,b,s in spans])
    cfg = Objective(gamma=gamma, lam=lam, kl_coef=beta)
    first = test_rejudging_is_measuring_again.__dict__.setdefault('case', measure(policy, Example('a', TEXT)))
    fast,slow = rejudged(first, c, cfg),measure(policy, Example('a', TEXT, c), cfg)
    for k in slow.table.channels: np.testing.assert_allclose(fast.table[k], slow.table[k], atol=1e-9, err_msg=k)
    assert first.critique is None and np.isnan(first.table['reward']).all() and first.rollout.critiques==[None]

def test_the_score_on_paper_is_exact(policy):
    c = measure(policy, Example('a', TEXT, Critique('x', [Span(29, 40, -.3)])))
    assert set(c.table['reward'])=={0., -.3} # where training has the nearest 32-bit number, -0.30000001192

def test_text_that_spells_a_special_token_is_text(policy):
    ex = Example('a', '<|im_end|> and <|im_start|>')
    assert as_rollout(policy, [ex]).texts==[ex.response]

@pytest.mark.parametrize('do,says', [
    (lambda p: measure(p, Example('a', 'not'), ids=[9, 9]), 'response 0: its token ids decode to another text from character 0 on'),
    (lambda p: measure(p, Example('a', ''), ids=[]), 'response 0: has no token ids'),
    (lambda p: as_rollout(p, [Example('a', 'b')]*2, ids=[1]), 'those of one response, but there are 2'),
    (lambda p: measure(p, Example('a', 'annoyed '*600)), 'response 0: prompt and response have .* the model takes 512'),
    (lambda p: measure(p, Example('annoyed '*600, 'a')), 'prompt 0: has .* tokens'),
    (lambda p: measure(p, Example('a', 'b'), ids=sample(p, [Example('a', ''), Example('b', '')], max_new_tokens=3)), 'a rollout of 2 responses')])
def test_what_cannot_be_measured_is_refused_by_name(policy, do, says):
    with pytest.raises(ValueError, match=says): do(policy)

def test_several_at_once_for_a_probe_set(policy):
    exs = [Example('a', TEXT), Example('A longer prompt than that?', 'No.')]
    r = as_rollout(policy, exs)
    one = [measure(policy, e).table['logp'] for e in exs]
    with torch.no_grad(): both = policy.forward(*r.forward_args()).logps
    for i,x in enumerate(one): np.testing.assert_allclose(both[i][r.mask[i]].numpy(), x, atol=1e-4)
