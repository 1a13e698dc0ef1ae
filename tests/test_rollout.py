"Rollouts: sampled ids are never touched, the sampled distribution is the trained one"
import torch,pytest
from dataclasses import replace
from scipy import stats
from text2grad.core import Critique,Example,Span
from text2grad.span_ppo.policy import Policy
from text2grad.pretrained import tiny_lm
from text2grad.span_ppo.rollout import OffPolicyError,Rollout,check_on_policy,judge,make_rollout,response_mask,sample

@pytest.fixture(scope='module')
def policy(): return Policy.create(*tiny_lm())
exs = [Example(p, '') for p in ('One.', 'A longer prompt than the first one, by far.', 'Two words')]

def test_mask_keeps_the_end_token_when_padding_has_the_same_id():
    mask,finished = response_mask(torch.tensor([[5,2,2,2],[2,2,2,2],[5,6,7,8]]), [2])
    assert mask.tolist()==[[True,True,False,False],[True,False,False,False],[True]*4] and finished.tolist()==[True,True,False]

def test_several_end_tokens():
    mask,_ = response_mask(torch.tensor([[5,3,2,9],[5,9,2,3]]), [2,3])
    assert mask.sum(1).tolist()==[2,3]

@pytest.mark.parametrize('options', [dict(top_p=.9), dict(top_k=50), dict(num_beams=2), dict(repetition_penalty=1.1), dict(min_p=.05), dict(no_repeat_ngram_size=3), dict(bad_words_ids=[[3]]), dict(do_sample=False)])
def test_row_2_options_that_bend_the_distribution_are_refused(options):
    with pytest.raises(OffPolicyError, match=next(iter(options))): check_on_policy(1., options)

def test_row_2_greedy_needs_allow_off_policy(policy):
    with pytest.raises(OffPolicyError, match='greedy'): sample(policy, exs, temperature=0)
    assert sample(policy, exs, 4, temperature=0, allow_off_policy=True).texts==sample(policy, exs, 4, temperature=0, allow_off_policy=True, seed=9).texts

def test_row_2_sampled_frequencies_are_those_of_the_softmax(policy):
    "Chi-square of 4,000 first tokens against the probabilities that `forward` gives, at temperature 0.7"
    many = [exs[1]]*4000
    r = sample(policy, many, max_new_tokens=1, temperature=.7, seed=3)
    V = policy.model.config.vocab_size
    one = [t[:1] for t in r.forward_args(torch.arange(1))]
    ids,mask = torch.arange(V)[:,None],torch.ones(V, 1, dtype=torch.bool)
    with torch.no_grad(): p = policy.forward(one[0].expand(V, -1), one[1].expand(V, -1), ids, mask, temperature=.7).logps[:,0].exp().double()
    assert abs(float(p.sum())-1)<1e-4
    counts = torch.bincount(r.ids[:,0], minlength=V).double()
    big = p*4000>=5
    obs = torch.cat([counts[big], counts[~big].sum()[None]]).numpy()
    exp = torch.cat([p[big], p[~big].sum()[None]]).numpy()*4000
    keep = exp>0
    assert stats.chisquare(obs[keep], exp[keep]*obs[keep].sum()/exp[keep].sum()).pvalue>1e-3

def test_row_1_ratio_is_1_before_any_update(policy):
    r = sample(policy, exs, 10, temperature=.7, seed=1)
    with torch.no_grad():
        a = policy.forward(*r.forward_args(), temperature=.7).logps
        b = policy.forward(*r.forward_args(), temperature=.7, ref=True, with_values=False).logps
    assert torch.equal(a[r.mask], b[r.mask])

def test_same_seed_same_responses_and_global_generator_untouched(policy):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    a = sample(policy, exs, 8, seed=4)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(99)
    assert a.texts==sample(policy, exs, 8, seed=4).texts != sample(policy, exs, 8, seed=5).texts

def test_a_prompt_is_answered_the_same_way_whoever_stands_beside_it(policy):
    "Greedy, because chance is drawn per batch position"
    alone = [sample(policy, [e], 8, temperature=0, allow_off_policy=True).texts[0] for e in exs]
    assert sample(policy, exs, 8, temperature=0, allow_off_policy=True).texts==alone
    assert sample(policy, exs, 8, temperature=0, allow_off_policy=True, batch_size=2).texts==alone

def test_row_7_what_follows_the_end_token_changes_nothing(policy):
    eos,pid = policy.eos_ids[0],policy.encode([exs[0].prompt])
    a = make_rollout(policy, exs[:1], *pid, torch.tensor([[20,21,eos,30,31]]))
    b = make_rollout(policy, exs[:1], *pid, torch.tensor([[20,21,eos,40,eos]]))
    assert a.texts==b.texts and torch.equal(a.ids, b.ids) and torch.equal(a.mask, b.mask) and a.offsets==b.offsets

def test_text_is_the_decoding_of_the_ids_and_offsets_index_it(policy):
    torch.manual_seed(0)
    V = policy.model.config.vocab_size
    ids = torch.randint(0, V, (50, 20))
    many = [exs[0]]*50
    r = make_rollout(policy, many, *policy.encode([e.prompt for e in many]), ids)
    for i in range(50):
        row = r.ids[i][r.mask[i]].tolist()
        assert r.texts[i]==policy.tokenizer.decode(row, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert ''.join(r.pieces(i))==r.texts[i] and len(r.offsets[i])==len(row)

def test_row_3_prompts_are_left_padded(policy):
    r = sample(policy, exs, 4)
    assert all(m[-1] and (m.long().diff()>=0).all() for m in r.prompt_mask)

def test_judge_refuses_what_is_no_critique(policy):
    r = sample(policy, exs, 4)
    with pytest.raises(ValueError, match='response 1'): judge(r, lambda es: [None, 3, None])
    judge(r, lambda es: [None, Critique('fine'), Critique('x')])
    assert r.critiques[0] is None and r.critiques[1].text=='fine'

def test_no_examples(policy):
    with pytest.raises(ValueError, match='no examples'): sample(policy, [])

def test_equal_prompts_are_read_once_and_answered_as_if_alone(policy, monkeypatch):
    "Greedy; and the backbone sees the prompt of three responses one time"
    many = [exs[0],exs[1],exs[0],exs[0]]
    alone = [sample(policy, [e], 8, temperature=0, allow_off_policy=True).texts[0] for e in many]
    read,real = [],policy.read_prompts
    monkeypatch.setattr(policy, 'read_prompts', lambda *a, **kw: (read.append(real(*a, **kw)), read[-1])[1])
    assert sample(policy, many, 8, temperature=0, allow_off_policy=True).texts==alone
    assert len(read[0][1])==2 and len(read[0][2])==4

def test_a_cache_with_room_holds_what_a_plain_one_holds():
    "Through growth beyond the room, picked rows and a crop"
    from transformers.cache_utils import DynamicCache
    from text2grad.span_ppo.rollout import _make_room
    g = torch.Generator().manual_seed(0)
    new = lambda B,n: (torch.randn(B, 2, n, 4, generator=g), torch.randn(B, 2, n, 4, generator=g))
    plain,roomy = DynamicCache(),DynamicCache()
    first = new(3, 5)
    for c in (plain, roomy): c.update(*first, 0)
    _make_room(roomy, 2)
    def grown(B, n):
        x = new(B, n)
        for a,b in zip(plain.update(*x, 0), roomy.update(*x, 0)): assert torch.equal(a, b)
        assert plain.get_seq_length()==roomy.get_seq_length()
    for n in (1, 1, 1, 4): grown(3, n)
    for c in (plain, roomy): c.batch_select_indices(torch.tensor([2, 0, 1]))
    grown(3, 1)
    for c in (plain, roomy): c.batch_select_indices(torch.tensor([1]))
    grown(1, 2)
    for c in (plain, roomy): c.crop(-3)
    grown(1, 1)
    held = roomy.layers[0].store[0].data_ptr()
    grown(1, 1)
    assert roomy.layers[0].store[0].data_ptr()==held # nothing was copied

def test_samples_of_one_prompt_differ(policy):
    assert len(set(sample(policy, [exs[1]]*6, 8, seed=2).texts))>1

def test_shared_prompts_give_the_log_probs_and_gradients_of_separate_ones(policy):
    many = [exs[0],exs[1],exs[0],exs[0],exs[2]]
    r = sample(policy, many, 9, seed=3)
    w = torch.randn(r.mask.shape, generator=torch.Generator().manual_seed(0))
    def run(parts):
        policy.zero_grad()
        outs = []
        for rows in parts:
            a = r.forward_args(rows)
            o = policy.forward(*a, temperature=.7, with_entropy=True)
            ((o.logps+o.values)*w[rows][:,:a[3].shape[1]])[a[3]].sum().backward()
            outs += [x[m] for x,m in zip(o.logps.detach(), a[3])]
        return torch.cat(outs),[p.grad.clone() for p in policy.trainable().values()]
    (la,ga),(lb,gb) = run([torch.arange(5)]),run([torch.tensor([i]) for i in range(5)])
    torch.testing.assert_close(la, lb, atol=1e-5, rtol=1e-5)
    for a,b in zip(ga, gb): torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)

# ---- what the model brings along

HOSTILE = [dict(repetition_penalty=1.3), dict(min_p=.2), dict(typical_p=.3), dict(epsilon_cutoff=.01, eta_cutoff=.01), dict(no_repeat_ngram_size=1),
           dict(suppress_tokens=list(range(4, 200))), dict(begin_suppress_tokens=list(range(4, 390))), dict(bad_words_ids=[[i] for i in range(20, 300)]),
           dict(sequence_bias=[[[60], 50.]]), dict(min_length=90), dict(min_new_tokens=6), dict(forced_eos_token_id=2), dict(encoder_repetition_penalty=1.5),
           dict(exponential_decay_length_penalty=(1, 3.)), dict(guidance_scale=3.), dict(stop_strings=['e']), dict(num_return_sequences=2), dict(top_h=.2),
           dict(return_dict_in_generate=True, output_scores=True), dict(temperature=3., top_k=2, top_p=.1, do_sample=True), dict(num_beams=3), dict(max_length=3),
           dict(prompt_lookup_num_tokens=3), dict(a_setting_of_its_own=1)]

@pytest.fixture(scope='module')
def wanted(policy): return [sample(policy, exs, 8, temperature=t, seed=4, allow_off_policy=True).texts for t in (1., 0)]

@pytest.mark.parametrize('lora', [True, False])
@pytest.mark.parametrize('own', HOSTILE, ids=lambda d: '-'.join(d))
def test_the_models_own_generation_config_changes_nothing(own, lora, wanted, monkeypatch):
    "Not when it is sampled for training, and not in evaluation, where greedy is the greedy of the model"
    model,tok = tiny_lm()
    for k,v in own.items(): setattr(model.generation_config, k, v)
    p = Policy.create(model, tok, **({} if lora else dict(lora=None)))
    before,seen,real = p.lm.generation_config,[],type(p.lm)._get_logits_processor
    monkeypatch.setattr(type(p.lm), '_get_logits_processor', lambda *a, **kw: (seen.append(real(*a, **kw)), seen[-1])[1])
    assert [sample(p, exs, 8, temperature=t, seed=4, allow_off_policy=True).texts for t in (1., 0)]==wanted
    sample(p, exs, 2, temperature=.7)
    assert [[type(x).__name__ for x in l] for l in seen]==[['_Said'], [], ['_Said','TemperatureLogitsWarper']], 'only what listens, and the temperature'
    assert p.lm.generation_config is before and p.model.generation_config is before

def test_the_models_own_generation_config_is_back_after_an_error(policy):
    own = policy.lm.generation_config
    with pytest.raises(TypeError): sample(policy, exs, 'many')
    assert policy.lm.generation_config is own

def test_options_that_are_typed_still_count_in_evaluation(policy):
    a,b = (sample(policy, exs, 12, temperature=0, allow_off_policy=True, **kw).texts for kw in ({}, dict(suppress_tokens=list(range(4, 200)))))
    assert a!=b

# the limit of a critique, in tokens

scripts = dict(english='The rain delayed the match, and the captain was furious.', chinese='比赛因雨推迟，队长非常生气。'*3, japanese='雨で試合が遅れました。', thai='ฝนตกจึงเลื่อนการแข่งขัน'*2, arabic='تأخرت المباراة بسبب المطر', korean='비로 경기가 연기되었다',
               digits='8675309'*9, hexadecimal='0xdeadbeef'*6, mathematical='𝓻𝓪𝓲𝓷 𝓯𝓮𝓵𝓵', emoji='👩‍👩‍👧👍🏽🌧️'*4, rare='Xqzjvkwy '*7, marks='!?;:'*12, one_letter='a', blanks='a \n\t b'*4, combining='e\u0301'*30, mixed='Rain 雨 🌧️ 3.14159'*3)

def obeys(response, good=True, limit=4.):
    from text2grad.critics.llm import LLMCritic,Reply
    import json
    class Obedient(LLMCritic):
        kind = 'obedient'
        def ask(self, asks):
            m = [dict(quote=a.response, reason='as ordered', severity=3) for a in asks]
            return [Reply(json.dumps(dict(critique='So.', good_spans=[o]*good, poor_spans=[o]*(not good), missing=[]))) for o in m]
    return Obedient('m', limit=limit)

def paid(policy, r, **kw):
    from text2grad.span_ppo.config import SpanPPOConfig,rollout_scores
    return rollout_scores(r, SpanPPOConfig(**kw), dtype=torch.float64)[0].sum(1).tolist()

@pytest.mark.parametrize('script', scripts)
@pytest.mark.parametrize('good', [True, False])
@pytest.mark.parametrize('limit', [4., 1.5])
def test_a_critique_pays_its_limit_at_most_whatever_the_script(policy, script, good, limit):
    "By the token that is paid, not by the word: with any reward, for critiques that are judged here, measured, or put in by hand"
    from text2grad.alignment.tokens import decode_with_offsets,token_rewards
    from text2grad.critics.base import Weighted,critic_reward
    from text2grad.span_ppo.inspection import as_rollout,measure,rejudged
    ex = Example('Tell me.', scripts[script])
    critic = obeys(ex.response, good, limit)
    [c] = critic([ex])
    assert c.spans and c.limit==limit
    plain = as_rollout(policy, [ex])
    naive = sum(token_rewards(c.spans, plain.offsets[0]))
    want = max(-limit, min(limit, naive))
    by_hand = replace(plain, examples=[replace(ex, critique=c)])
    for r in (judge(as_rollout(policy, [ex]), critic), as_rollout(policy, [replace(ex, critique=c)]), by_hand):
        for kw in (dict(), dict(reward='scalar'), dict(overlap='max')): assert paid(policy, r, **kw)==[pytest.approx(want)]
        for spread in ('mean','first','last','decay'): assert abs(paid(policy, r, spread=spread)[0])<=limit+1e-9
        assert [o.critique.score for o in r.examples]==[pytest.approx(c.score)] or r is by_hand or abs(naive)>limit
    assert critic_reward(ex.response, c, plain.offsets[0])[0]==pytest.approx(want)
    both = judge(as_rollout(policy, [ex]), Weighted([critic, critic], limit=limit))
    assert abs(paid(policy, both)[0])<=limit+1e-9
    case = measure(policy, replace(ex, critique=c))
    again = rejudged(measure(policy, ex), c)
    assert sum(case.table['reward'])==pytest.approx(want)==sum(again.table['reward'])
    assert sum(token_rewards(case.critique.spans, case.rollout.offsets[0]))==pytest.approx(want), 'what is shown is what is paid'

def test_rules_and_praise_beside_blame_are_held_too(policy):
    from text2grad.critics.base import RuleCritic
    from text2grad.core import Quote
    from text2grad.span_ppo.inspection import as_rollout
    text = 'ไม่มีช่องว่าง '*6+'31415926535897932384 '*4
    rule = lambda e: [Quote(w, s, 'so') for w,s in (('ไม่มีช่องว่าง', 1.), ('31415926535897932384', -1.))]
    rule.__name__ = 'rule'
    r = judge(as_rollout(policy, [Example('p', text)]), RuleCritic([rule], 'mine', limit=3.))
    from text2grad.span_ppo.config import SpanPPOConfig,rollout_scores
    s = rollout_scores(r, SpanPPOConfig(), dtype=torch.float64)[0]
    assert s.clamp(min=0).sum()==pytest.approx(3.) and s.clamp(max=0).sum()==pytest.approx(-3.)

def test_a_critique_without_a_limit_pays_what_it_says(policy):
    "A person's marks, a reward model's, a function's: as before"
    from text2grad.span_ppo.inspection import as_rollout
    text = scripts['chinese']
    r = judge(as_rollout(policy, [Example('p', text)]), lambda exs: [Critique('', [Span(0, len(text), 1.)])])
    n = sum(a<b for a,b in r.offsets[0])
    assert paid(policy, r)==[n] and n>8

def test_a_cache_with_layers_that_hold_nothing_can_be_sampled_from():
    "As the cross-attention of a decoder without an encoder"
    from transformers import BartConfig,BartForCausalLM
    cfg = BartConfig(vocab_size=400, max_position_embeddings=256, pad_token_id=3, d_model=32, decoder_layers=2, decoder_attention_heads=4, decoder_ffn_dim=48)
    p = Policy.create(BartForCausalLM(cfg), tiny_lm()[1], lora=None)
    r = sample(p, [Example('Say a', '')]*2, 4)
    torch.testing.assert_close(p.forward(*r.forward_args()).logps, r.logps, atol=1e-4, rtol=0)
