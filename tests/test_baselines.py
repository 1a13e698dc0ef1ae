"Rivals and controls: GRPO, imitation of the best, online DPO, revisions; rewards by sentence, elsewhere and by sign"
import math, pytest, torch
from types import SimpleNamespace
from text2grad.core import Critique,Example,Span
from text2grad.files import UserError
from text2grad.pretrained import tiny_lm
from text2grad.span_ppo.baselines import ARMS,arm_trainer,revise,revision_prompt
from text2grad.span_ppo.config import REWARDS,SpanPPOConfig,random_reward,rollout_scores
from text2grad.span_ppo.losses import Objective,token_advantages
from text2grad.span_ppo.policy import Policy

def adv(scores, how, kl=None, judged=None, k=None, **kw):
    s = torch.tensor(scores)
    n = torch.ones(len(s), dtype=torch.bool)
    kl = torch.zeros_like(s) if kl is None else torch.tensor(kl)
    judged = judged if judged is None else torch.tensor(judged)
    o = Objective(baseline=how, **kw)
    return token_advantages(s, kl, None, n, ~n, torch.ones_like(s).bool(), o, judged=judged, siblings=k or len(s))

def test_grpo_is_mean_and_deviation_of_the_judged_totals():
    "Totals 4, 2, 0 and one that nobody judged: mean 2, deviation 2"
    x = adv([[1.,3],[2,0],[-1,1],[9,9]], 'grpo', judged=[True]*3+[False])
    assert x.advantages.tolist()[3]==[0,0] and not x.taught[3]
    torch.testing.assert_close(x.advantages[:3], torch.tensor([[1.,1],[0,0],[-1,-1]]), atol=1e-4, rtol=0)

def test_best_is_the_first_of_equals_and_needs_a_difference():
    x = adv([[1.,1],[2,0],[0,0],[0,1]], 'best')
    assert x.taught.tolist()==[True,False,False,False] and x.advantages[0].tolist()==[1,1]
    assert not adv([[1.,0],[0,1]], 'best').taught.any()
    assert not adv([[1.,0],[5,1]], 'best', judged=[True,False]).taught.any()

def test_dpo_pushes_less_the_further_apart_the_two_are():
    "m = beta*(kl of the best - kl of the worst)"
    near,far = adv([[1.],[0.]], 'dpo'),adv([[1.],[0.]], 'dpo', kl=[[5.],[-5.]])
    assert near.advantages.flatten().tolist()==pytest.approx([.05,-.05])
    assert far.advantages.flatten().tolist()==pytest.approx([.1/(1+math.e),-.1/(1+math.e)])
    middle = adv([[1.],[.5],[0.]], 'dpo')
    assert middle.taught.tolist()==[True,False,True] and middle.advantages[1]==0

def test_the_price_of_the_kl_stands_in_one_place():
    kl = [[1.,1],[0,0]]
    assert adv([[1.,0],[0,0]], 'group', kl=kl, kl_coef=.1).rewards.tolist()[0]==pytest.approx([.9,-.1])
    assert adv([[1.,0],[0,0]], 'group', kl=kl, kl_coef=.1, kl_in='loss', kl_kind='k3').rewards.tolist()[0]==[1,0]

@pytest.mark.parametrize('bad,words', [
    (dict(baseline='grpo'), 'kl_in='), (dict(baseline='dpo', kl_kind='k3'), 'log-ratio'), (dict(kl_in='loss'), 'gradient is 0'),
    (dict(baseline='best', samples_per_prompt=1), '2 responses or more'), (dict(reward='words'), 'sentence, random, sign')])
def test_choices_that_do_not_go_together(bad, words):
    with pytest.raises(ValueError, match=words): SpanPPOConfig(**dict(samples_per_prompt=2) | bad)

TEXT = 'It rains. Go home now'
OFFS = [(0,2),(2,8),(8,9),(9,12),(12,17),(17,21),(21,21)]
def row(*spans): return SimpleNamespace(critiques=[Critique('', spans)], texts=[TEXT], offsets=[OFFS], mask=torch.ones(1, 7).bool())

def test_a_sentence_is_paid_what_its_words_were_after_the_bound():
    r = row(Span(0, 8, -1.), Span(10, 12, .5))
    cfg = lambda k: SpanPPOConfig(reward=k, reward_clip=.6, kl_coef=0.)
    pay = lambda k: rollout_scores(r, cfg(k))[0]
    assert pay('sentence')[0].tolist()==pytest.approx([0,0,-1.2,0,0,.5,0])
    assert float(pay('sentence').sum())==pytest.approx(float(pay('scalar').sum()))
    z,one = torch.zeros(1, 7),torch.ones(1, 7).bool()
    x = token_advantages(pay('sentence'), z, z, one[:,0], ~one[:,0], one, cfg('sentence'))
    assert float(x.rewards.sum())==pytest.approx(-.7) # a sum of bounded scores is not bounded again

def test_random_places_keep_mass_and_width_and_depend_on_the_response_alone():
    r,cfg = row(Span(0, 8, -1.), Span(21, 21, -.5)),SpanPPOConfig(reward='random')
    a = random_reward(r, cfg)[0]
    assert random_reward(r, cfg)[0]==a and sum(a)==pytest.approx(-2.5)
    seen = {tuple(random_reward(r, SpanPPOConfig(reward='random', seed=s))[0]) for s in range(40)}
    assert len(seen)>10
    for x in seen:
        assert sum(x)==pytest.approx(-2.5)
        one = [v for v in x if v]
        assert len(one) in (2,3) # two tokens side by side, and one more or the same
    assert random_reward(SimpleNamespace(critiques=[None], texts=[''], offsets=[[]]), cfg)==[None]

@pytest.mark.parametrize('reward', [k for k in REWARDS if k!='span'])
def test_what_nobody_judged_stays_unjudged(reward):
    r = SimpleNamespace(critiques=[None, Critique('')], texts=[TEXT]*2, offsets=[OFFS]*2, mask=torch.ones(2, 7).bool())
    scores,judged = rollout_scores(r, SpanPPOConfig(reward=reward))
    assert judged.tolist()==[False,True] and not scores.any()

def critic(examples): return [Critique('More e.', [Span(i, i+1, .5 if c=='e' else -.1) for i,c in enumerate(e.response)]) for e in examples]
SHARED = dict(steps=2, batch_size=8, samples_per_prompt=4, minibatch_size=8, micro_batch_size=8, epochs=1, max_new_tokens=6, lr=.02, seed=1)
PROMPTS = ['Write a letter.', 'Write three letters.']

def test_grpo_pays_the_kl_in_the_loss():
    "In the second step, once the policy has left its reference"
    t = arm_trainer('grpo', Policy.create(*tiny_lm(), seed=1), critic, PROMPTS, SHARED).fit()
    assert t.stats['kl_loss']>0 and t.config.kl_in=='loss'

def test_revisions_are_siblings_under_the_first_prompt():
    t = arm_trainer('revise', Policy.create(*tiny_lm(), seed=1), critic, PROMPTS, SHARED)
    r = t.rollout()
    assert len(r)==8 and [e.prompt for e in r.examples]==[r.examples[0].prompt]*4+[r.examples[4].prompt]*4
    assert (r.prompt_ids[:4]==r.prompt_ids[0]).all() and r.logps is None
    again = t.rollout()
    assert again.texts==r.texts
    t.fit()
    assert t.stats['judged']==8
    odd = SHARED | dict(samples_per_prompt=3, batch_size=9, minibatch_size=9)
    with pytest.raises(UserError, match='even'): arm_trainer('revise', Policy.create(*tiny_lm()), critic, PROMPTS, odd).rollout()

def test_reflection_asks_with_the_critique_and_keeps_the_prompt():
    e = Example('Say hi.', 'Bye.', critique=Critique('"Bye" is wrong {critique}.'))
    p = revision_prompt(e).prompt
    assert [m['role'] for m in p]==['user','assistant','user'] and '"Bye" is wrong {critique}.' in p[2]['content']
    assert revision_prompt(Example(p, 'x')).prompt[:3]==p
    new, = revise(Policy.create(*tiny_lm()), [e], 6, seed=3)
    assert new.prompt=='Say hi.' and new.critique is None and new.response!='Bye.'

def test_an_arm_that_is_not_there_is_named():
    with pytest.raises(UserError, match='must be one of span, scalar'): arm_trainer('rlhf', None, critic, PROMPTS)
