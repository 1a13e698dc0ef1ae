"What a run will need: each part against numbers worked out by hand, and which way each grows"
from dataclasses import replace
from functools import lru_cache
from types import SimpleNamespace
import pytest,torch
from transformers import LlamaConfig
from text2grad.loaded import LORA
from text2grad.pretrained import ModelError
from text2grad.span_ppo.config import SpanPPOConfig
from text2grad.span_ppo import estimate
from text2grad.span_ppo.estimate import BASE,CUDA_BASE,PACKED,_passes,_sizes,estimate_memory,estimate_step

shape = LlamaConfig(vocab_size=512, hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2)
cfg = SpanPPOConfig(batch_size=4, minibatch_size=4, micro_batch_size=2, samples_per_prompt=2, max_new_tokens=24, baseline='group', epochs=1)
# By hand: embedding and output layer 512 x 64 each; a layer: q and o 64 x 64, k and v 32 x 64, three of 64 x 128, two norms of 64; a last norm
LINEAR = 2*64*64+2*32*64+3*64*128
ALL = 2*512*64+LINEAR+2*64+64
ADAPTER = 16*(2*(64+64)+2*(64+32)+3*(64+128)) # rank 16 beside each of a layer's seven matrices
HEAD = 512*64
ODD = 200 # bytes: the frequencies of the positions, and a count for each moment

_once = lru_cache(None)(lambda rank, slack, P, rows, heldout, dtype, items: estimate._peaks(
    shape, SpanPPOConfig(**dict(items)), rank and LORA | dict(r=rank), dtype, slack, rows, P, dict(items)['max_new_tokens'], heldout))
def rehearsed(rank=16, P=16, rows=4, **kw):
    "`(peaks, parts)` of the tensors alone, without holes between them and without the process"
    return _once(rank, 0., P, rows, 0, torch.float32, tuple(vars(replace(cfg, **kw)).items()))
def parts(**kw): return SimpleNamespace(**rehearsed(**kw)[1])
def peaks(**kw): return rehearsed(**kw)[0]

@pytest.fixture
def memory(monkeypatch):
    "`estimate_memory`, which rehearses what it has rehearsed before only once"
    rehearse = estimate._peaks
    known = lambda config, cfg, lora, dtype, *a: _known(rehearse, lora and lora['r'], dtype, a, tuple(vars(cfg).items()))
    monkeypatch.setattr(estimate, '_peaks', lambda *a: [dict(d) for d in known(*a)])
    return lambda c=cfg, **kw: estimate_memory(c, shape, 16, **kw)
@lru_cache(None)
def _known(f, rank, dtype, a, items): return f(shape, SpanPPOConfig(**dict(items)), rank and LORA | dict(r=rank), dtype, *a)

def test_weights_gradients_and_moments_of_an_adapter_by_hand():
    p = parts()
    assert 0<=p.weights-4*(ALL+ADAPTER)<=ODD and (p.gradients, p.reference)==(4*ADAPTER, 0) and 0<=p.optimizer-8*ADAPTER<=ODD

def test_every_weight_trained_has_a_reference_gradients_and_moments_of_its_own():
    p = parts(rank=None)
    assert 0<=p.weights-4*ALL<=ODD and p.gradients==4*ALL and p.reference==pytest.approx(4*ALL, abs=ODD) and 0<=p.optimizer-8*ALL<=ODD
    assert all(peaks(rank=None)[k]>peaks()[k] for k in ('sampling','scoring','updating'))

def test_a_value_head_is_a_weight_for_each_hidden_number_and_one_more():
    assert parts(baseline='value', samples_per_prompt=1).gradients-parts().gradients==4*(64+1)

def test_an_adapter_grows_with_its_rank(): assert parts(rank=64).gradients==4*4*ADAPTER

def test_keys_and_values_have_room_for_the_longest_response_from_the_start():
    more,cache = peaks(max_new_tokens=96)['sampling']-peaks()['sampling'],4*(96-24)*2*2*16*4 # rows, tokens, keys and values, heads, width, bytes
    assert cache<=more<1.2*cache # and the ids and their numbers

def test_a_micro_batch_keeps_the_logits_of_its_rows():
    more = peaks(micro_batch_size=4)['updating']-peaks()['updating']
    assert more>2*24*512*4

@pytest.mark.parametrize('phases,more', [('sampling', dict(rows=8)), ('sampling scoring updating', dict(P=64)), ('sampling scoring updating', dict(max_new_tokens=96)),
                                         ('scoring updating', dict(micro_batch_size=4))])
def test_more_of_it_takes_more(phases, more): assert all(peaks(**more)[k]>peaks()[k] for k in phases.split())

def test_checkpointing_keeps_fewer_activations():
    "Of one layer little can be left out; what is left out is more than the layer's input, which is kept"
    assert peaks(max_new_tokens=96, gradient_checkpointing=True)['updating']<peaks(max_new_tokens=96)['updating']

def test_holes_are_counted_for_what_is_small_and_the_process_once(memory):
    e = memory()
    assert e.base==BASE and e.peak==max(e.phases.values())==e.phases[e.phase] and {*e.phases}=={'sampling','scoring','updating'}
    for k,v in peaks().items(): assert e.phases[k]==pytest.approx(BASE+2*v-parts().weights, abs=ODD) # no tensor is above 32 MiB, and weights come in one piece

def test_measuring_is_a_phase_where_there_is_something_to_measure(memory):
    more = memory(heldout=64).phases
    assert more['measuring']>more['sampling'] and 'measuring (KL)' in more and {k:more[k] for k in memory().phases}==memory().phases

def test_half_the_bytes_a_weight_and_four_bits(memory):
    a,b = (memory(replace(cfg, quantize=q), device='cuda') for q in (None, '4bit'))
    assert a.base==CUDA_BASE and 0<=a.parts['weights']-(2*ALL+4*ADAPTER)<=ODD
    assert a.parts['weights']-b.parts['weights']==pytest.approx(2*LINEAR*(1-PACKED)) and b.peak<a.peak and b.parts['optimizer']==a.parts['optimizer']

def test_several_processes_share_the_responses_and_shards_the_weights(memory):
    big = replace(cfg, batch_size=8, minibatch_size=8)
    one,two,zero2,zero3 = (memory(big, processes=n, sharded=s) for n,s in ((1,None), (2,None), (2,False), (2,True)))
    assert two.phases['sampling']<one.phases['sampling'] and two.parts==one.parts
    assert zero2.phases['updating']<two.phases['updating'] and zero3.phases['updating']<=zero2.phases['updating'] and zero3.phases['sampling']<two.phases['sampling']

def test_a_folder_without_a_config_is_named(tmp_path):
    with pytest.raises(ModelError, match='config.json'): estimate_memory(cfg, tmp_path)

# ---- operations, seconds and traffic

def test_weights_that_a_token_meets():
    s,whole = _sizes(shape, LORA),_sizes(shape, None)
    assert (s.layers, s.head, s.all, s.trained, s.adapter)==(LINEAR, HEAD, ALL, ADAPTER, ADAPTER) and (whole.trained, whole.adapter)==(ALL, 0)

BODY = 2*(LINEAR+ADAPTER)
PASS = 2*(8*BODY+256*8*8/2)+4*(4*(BODY+2*HEAD)+256*(8*4+4*4/2))

def test_operations_by_hand():
    "Two prompts of 8 tokens with two responses of 4 each: 2 operations a weight, 4 x 64 for each pair of tokens that meet"
    got = _passes(cfg, _sizes(shape, LORA), shape, 8, 4)
    assert got==dict(sampling=PASS, scoring=PASS, updating=2*PASS)
    value = _passes(replace(cfg, baseline='value'), _sizes(shape, LORA), shape, 8, 4)
    assert value['scoring']==2*got['scoring']
    assert _passes(replace(cfg, epochs=3), _sizes(shape, LORA), shape, 8, 4)['updating']==3*got['updating']
    whole = _passes(cfg, _sizes(shape, None), shape, 8, 4)
    assert whole['updating']==3*whole['sampling'] and whole['sampling']<got['sampling']

DEVICE = SimpleNamespace(flops=3e12, bandwidth=2e12, link=1.5e12) # of which 1e12 each are reached

def test_seconds_by_hand():
    e = estimate_step(cfg, shape, 8, 4, DEVICE)
    assert e.seconds['scoring']==pytest.approx(PASS*1e-12) and e.seconds['updating']==pytest.approx(2*PASS*1e-12) and e.seconds['traffic']==e.traffic==0
    assert e.seconds['sampling']==pytest.approx(PASS*1e-12) # computing takes longer than reading the weights here
    total = 4*PASS*1e-12
    assert e.tokens_per_second==pytest.approx(16/total) and e.hours==pytest.approx(cfg.steps*total/3600)
    slow = estimate_step(cfg, shape, 8, 4, SimpleNamespace(**vars(DEVICE) | dict(bandwidth=2e10)))
    cache = 4*(8+2)*2*2*2*16 # rows, tokens so far, bytes, keys and values, heads of them, width
    assert slow.seconds['sampling']==pytest.approx(4*(2*ALL+cache)/1e10)

def test_traffic_by_hand():
    both = lambda **kw: estimate_step(replace(cfg, epochs=3, minibatch_size=2), shape, 8, 4, DEVICE, processes=2, **kw).traffic
    assert both()==2*.5*4*ADAPTER*3*2 and both(lora=None)==2*.5*4*ALL*3*2 # gradients to and fro, in 3 passes of 2 steps
    assert both(sharded=True)>both(sharded=False)>both()

@pytest.mark.parametrize('kw', [dict(prompt=64), dict(response=64), dict(lora=None)])
def test_more_of_it_takes_longer(kw):
    base = dict(prompt=8, response=4, device=DEVICE)
    if 'lora' in kw: assert estimate_step(cfg, shape, **base | kw).seconds['updating']>estimate_step(cfg, shape, **base).seconds['updating']
    else: assert all(estimate_step(cfg, shape, **base | kw).seconds[k]>v for k,v in estimate_step(cfg, shape, **base).seconds.items() if v)

def test_more_responses_take_longer_and_more_devices_less():
    of = lambda n,p: estimate_step(replace(cfg, batch_size=n, minibatch_size=n), shape, 8, 4, DEVICE, processes=p)
    assert of(16, 1).seconds['updating']==pytest.approx(4*of(4, 1).seconds['updating']) and of(16, 2).seconds['updating']==pytest.approx(of(16, 1).seconds['updating']/2)
