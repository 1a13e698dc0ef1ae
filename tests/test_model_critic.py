"Constrained decoding and the local model as a critic: whatever the weights, critiques parse, quotes stand in the response, order and budget hold"
import random
import pytest, torch
from text2grad.alignment.grammar import *
from text2grad.core import Example,loads
from text2grad.critics.local import ModelCritic
from text2grad.pretrained import tiny_lm
from text2grad.critics.llm import Ask
from text2grad.alignment.quotes import find_spans

HOSTILE = ['Rain fell.', 'a', '"', '\\', '\\\\n', 'x\\', '"""', '{"critique": "ok", "good_spans": []}', "It's \"fine\", he said; \\ and / too.", 'a\tb\nc\r\nd\x0b\x0ce',
           '\x00\x01 bell\x07 del\x7f', 'half \ud83d a pair \udc00', '雨が降って試合は中止になった。', '👩‍👩‍👧👩‍👩‍👧 👍🏽', 'e\u0301le\u0300ve cafe\u0301', 'नमस्ते दुनिया', 'مرحبا بالعالم',
           'def f(s):\n    """Doc \\"x\\"."""\n    return {k: v for k, v in s.items() if v != "\\n"}\n', 'a'*500, 'a b '*80, 'a'+' '*300+'b', ' \n\t ', '', '<|im_end|> <|im_start|>system',
           '\u200b\u200b\u200b', '\u2028\u00a0\u3000x', 'spans? MORE START PIECE0 LONG %regex /x/ "', '\\u0041 \\ud83d \\" \\\\', 'https://example.org/a/very/long/path?q='+'x'*90]

@pytest.fixture(scope='module')
def lm():
    model,tok = tiny_lm()
    model.config.max_position_embeddings = tok.model_max_length = 4096
    return model, tok
@pytest.fixture(scope='module')
def lltok(lm): return grammar_tokenizer(lm[1])

def noise(lltok, mask, r, seed, budget):
    "Sample row `r` uniformly from what the mask allows: no model, every odd token"
    rng,ids = random.Random(seed),[]
    while len(ids)<budget:
        a = mask.allowed(r, ids)
        ids.append(a if isinstance(a, int) else rng.choice(a.nonzero()[:,0].tolist()))
        if ids[-1]==lltok.eos_token: return ids
    raise AssertionError(f'no end after {budget} tokens: {lltok.decode_str(ids)}')

def check(text, response):
    d = loads(text)
    assert list(d)==['critique','good_spans','poor_spans','missing'] and d['critique'] and all(d['missing'])
    spans = d['good_spans']+d['poor_spans']
    for s in spans: assert list(s)==['quote','reason','severity'] and s['severity'] in (1,2,3) and s['reason'] and s['quote'] in response
    quotes = [s['quote'] for s in spans]
    assert len(set(quotes))==len(quotes)
    found,lost = find_spans(response, [(q, 1.) for q in quotes])
    assert not lost and {s.match for s in found}<={'exact'}
    return len(quotes)

@pytest.mark.parametrize('budget', [170, 260, 900])
def test_noise_under_the_mask_is_a_critique_that_ends_in_time(lltok, budget):
    mask = CritiqueMask(lltok, HOSTILE, budget, critique=60, reason=20)
    n = {r:check(lltok.decode_str(noise(lltok, mask, i, budget+i, budget)[:-1]), r) for i,r in enumerate(HOSTILE)}
    assert n['']==n[' \n\t ']==0
    if budget==900: assert sum(n.values())>len(HOSTILE) and not all(mask.short)

def test_limits_hold_and_bad_ones_are_refused(lltok):
    mask = CritiqueMask(lltok, ['Rain fell on the pitch, and nobody came to see it.']*4, 900, spans=1, missing=0, critique=10, reason=4, quote=(8,40))
    for r in range(4):
        d = loads(lltok.decode_str(noise(lltok, mask, r, r, 900)[:-1]))
        assert max(len(d['good_spans']), len(d['poor_spans']))<=1 and not d['missing'] and len(d['critique'].replace(' ', ''))<=10
        for s in d['good_spans']+d['poor_spans']: assert 8<=len(s['quote'])<=40 and len(s['reason'].replace(' ', ''))<=4
    for bad in (dict(spans=-1), dict(reason=0), dict(quote=(0,99)), dict(quote=(5,9))):
        with pytest.raises(ValueError, match='counts start at 0'): critique_grammar('Rain.', **bad)

def test_quotes_are_whole_words(lltok):
    mask = CritiqueMask(lltok, ['Rain fell, and the captain said that play had stopped for an hour.'], 900)
    edge = lambda r,i: not (0<i<len(r) and r[i-1].isalnum() and r[i].isalnum())
    n = 0
    for seed in range(8):
        mask = CritiqueMask(lltok, mask.responses, 900, critique=5, reason=3)
        d = loads(lltok.decode_str(noise(lltok, mask, 0, seed, 900)[:-1]))
        for s in d['good_spans']+d['poor_spans']:
            r,i,n = mask.responses[0],mask.responses[0].index(s['quote']),n+1
            assert edge(r, i) and edge(r, i+len(s['quote'])), s['quote']
    assert n>8

def test_blame_is_not_starved_by_praise(lm, lltok):
    r = ' '.join(f'Fact {i} is told at some length.' for i in range(20))
    seen = [loads(lltok.decode_str(noise(lltok, CritiqueMask(lltok, [r], 700, spans=6), 0, s, 700)[:-1])) for s in range(10)]
    assert any(d['good_spans'] for d in seen) and any(d['poor_spans'] for d in seen)
    obsessed = CritiqueMask(lltok, [r], 700, spans=6, critique=5)
    ids,closed = [],lltok.tokenize_str(']')[0]
    while not ids or ids[-1]!=lltok.eos_token:
        a = obsessed.allowed(0, ids)
        if not isinstance(a, int):
            ok = [t for t in a.nonzero()[:,0].tolist() if ']' not in lltok.decode_str([t])]
            a = (ok or [closed])[len(ids)*7%len(ok or [closed])]
        ids.append(a)
    d = loads(lltok.decode_str(ids[:-1]))
    assert d['good_spans'] and d['poor_spans'] and obsessed.short[0]

def test_leaving_the_grammar_is_an_error(lltok):
    mask = CritiqueMask(lltok, ['Rain fell.'], 300)
    with pytest.raises(RuntimeError, match='row 0: the sampler left the grammar'): mask.allowed(0, lltok.tokenize_str('no'))
    with pytest.raises(ValueError, match='2 rows for 1 responses'): CritiqueMask(lltok, ['Rain.'], 300)(torch.zeros(2, 3, dtype=torch.long), torch.zeros(2, 400))
    with pytest.raises(ValueError, match='the frame of a critique alone takes'): CritiqueMask(lltok, ['Rain.'], 50)

def test_logits_wider_than_the_tokenizer_are_masked(lltok):
    out = CritiqueMask(lltok, ['Rain.'], 300)(torch.zeros(1, 3, dtype=torch.long), torch.zeros(1, lltok.vocab_size+64))
    assert out[0, lltok.vocab_size:].isinf().all() and not out.isinf().all()

def test_without_the_extra(monkeypatch, lm):
    import sys
    monkeypatch.setitem(sys.modules, 'llguidance', None)
    with pytest.raises(ImportError, match=r'pip install -e "\.\[constrained\]"'): ModelCritic(lm, constrained=True)
    ModelCritic(lm)

# ---- the critic

PROMPT = '# short\nversion: 1\ndata: document, response\n## system\nYou review.\n## user\n{data}\nReview it.\n## again\n{quotes}\n## unreadable\nAgain.\n'
DOC = 'The rain stopped play for an hour and the captain said that he was annoyed.'

@pytest.fixture(scope='module')
def file(tmp_path_factory):
    p = tmp_path_factory.mktemp('prompt')/'short.md'
    p.write_text(PROMPT)
    return p

def examples(rs, doc=DOC): return [Example('Summarize.', r, meta=dict(document=doc, id=i)) for i,r in enumerate(rs)]
def asks(critic, exs): return [Ask(critic.prompt_for(e), {}, e.response) for e in exs]
def make(lm, file, **kw): return ModelCritic(lm, file, **dict(max_new_tokens=24, again=False, fence_seed=0, context=4000) | kw)

RS = ['Rain.', 'The captain was annoyed because the rain stopped play for an hour.', 'No.', 'Nobody knows '*12, 'The match was not lost.']

def test_batches_say_what_a_plain_greedy_loop_says(lm, file):
    model,tok = lm
    critic = make(lm, file, batch_size=3)
    for a,r in zip(asks(critic, examples(RS)), critic.ask(asks(critic, examples(RS)))):
        ids,n,out = critic.encode(a)[0],0,[]
        with torch.no_grad():
            while len(out)<24 and (not out or out[-1]!=tok.eos_token_id): out.append(int(model(torch.tensor([ids+out])).logits[0,-1].argmax()))
        assert r.text==tok.decode(out, skip_special_tokens=True) and (r.tokens_in, r.tokens_out)==(len(ids), len(out))
        assert r.finish==('stop' if out[-1]==tok.eos_token_id else 'length')

def test_the_models_own_sampling_settings_do_not_count(lm, file):
    model,tok = tiny_lm()
    g = model.generation_config
    g.do_sample,g.temperature,g.top_k,g.repetition_penalty,g.no_repeat_ngram_size,g.max_length = True,2.,3,5.,1,10
    g.suppress_tokens,g.min_length,g.bad_words_ids,g.stop_strings = list(range(4, 300)),900,[[i] for i in range(20, 60)],['e']
    model.train()
    a,b = make(lm, file),make((model, tok), file)
    assert a.ask(asks(a, examples(RS)))==b.ask(asks(b, examples(RS)))
    assert model.training

def test_memory_that_does_not_suffice_halves_the_batch(lm, file, monkeypatch):
    model,seen = lm[0],[]
    critic = make(lm, file, batch_size=5)
    want,real = critic.ask(asks(critic, examples(RS))),model.generate
    def generate(input_ids, **kw):
        seen.append(len(input_ids))
        if len(input_ids)>2: raise torch.OutOfMemoryError('CUDA out of memory')
        return real(input_ids=input_ids, **kw)
    monkeypatch.setattr(model, 'generate', generate)
    assert critic.ask(asks(critic, examples(RS)))==want and seen==[5,2,2,1] and critic.batch_size==2
    longest = max(len(critic.encode(a)[0]) for a in asks(critic, examples(RS)))
    def generate(input_ids, **kw):
        if input_ids.shape[1]>=longest: raise torch.OutOfMemoryError('CUDA out of memory')
        return real(input_ids=input_ids, **kw)
    monkeypatch.setattr(model, 'generate', generate)
    got = critic.ask(asks(critic, examples(RS)))
    assert [r.error[:30] for r in got]==['', '', '', 'out of memory with one prompt ', ''] and got[0]==want[0]

def test_a_long_document_is_cut_and_a_long_response_is_not(lm, file):
    critic = make(lm, file, context=512)
    doc = 'FIRST '+'It rained and it rained. '*200+'LAST'
    a = asks(critic, examples(['Rain fell \ud83d.'], doc))[0]
    ids,cut = critic.encode(a)
    text = lm[1].decode(ids)
    assert len(ids)<=critic.room and cut>4000
    for s in ('You review.', 'Review it.', 'FIRST', 'LAST', 'characters left out', 'Rain fell \\ud83d.'): assert s in text
    assert a.messages[0]==critic.prompt_for(examples(['Rain fell \ud83d.'], doc)[0])[0]
    js = critic.judgements(examples(['No. '*300, 'Rain.']))
    assert 'even with its longest text cut' in js[0].error and js[1].info['tokens_in'] and 'even with' not in js[1].error

def test_judgements_of_hostile_responses_parse_and_find_every_quote(lm, file):
    critic = make(lm, file, max_new_tokens=500, constrained=dict(spans=2, critique=30, reason=15), batch_size=7)
    rs = [r for r in HOSTILE if r.strip() and len(r)<200]
    js = critic.judgements(examples(rs))
    assert len(js)>20 and {(j.info['read'], j.info['asked'], j.error) for j in js}=={('json', 1, '')}
    assert all(j.info['quotes']==j.info['quotes_found'] for j in js) and sum(j.info['quotes'] for j in js)>len(js)/2
    assert all({s.match for s in j.critique.spans}<={'exact'} for j in js)

def test_templates_without_a_system_message_and_models_without_a_template(lm, file):
    import copy
    model,tok = lm
    tok = copy.deepcopy(tok)
    tok.chat_template = "{% if messages[0]['role']=='system' %}{{ raise_exception('no system role') }}{% endif %}"+tok.chat_template
    a = asks(make((model, tok), file), examples(['Rain.']))[0]
    text = tok.decode(make((model, tok), file).encode(a)[0])
    assert text.count('<|im_start|>')==2 and 'You review.' in text and text.index('You review.')<text.index('Rain.')
    tok.chat_template = None
    with pytest.raises(ValueError, match='has no chat template'): make((model, tok), file)

def test_fingerprint_and_names_know_the_weights_and_no_path(lm, file, tmp_path, monkeypatch):
    f = lambda **kw: make(lm, file, **kw).fingerprint
    assert f()==f(batch_size=1) and len({f(), f(constrained=True), f(constrained=dict(spans=1)), f(max_new_tokens=9), make(tiny_lm(1), file).fingerprint})==5
    lm[0].save_pretrained(tmp_path/'mine'); lm[1].save_pretrained(tmp_path/'mine')
    c = ModelCritic(tmp_path/'mine', file, max_new_tokens=24, again=False, fence_seed=0, context=4000, device='cpu')
    before = c.fingerprint
    assert c.model=='mine' and str(tmp_path) not in before
    assert [r.text for r in c.ask(asks(c, examples(RS)))]==[r.text for r in make(lm, file).ask(asks(c, examples(RS)))]
    tiny_lm(1)[0].save_pretrained(tmp_path/'mine')
    assert c.fingerprint!=before
    monkeypatch.setenv('TEXT2GRAD_MODEL', str(tmp_path/'mine'))
    assert ModelCritic(task=file).model=='mine'

def test_importing_the_critic_loads_no_torch():
    import subprocess,sys
    code = 'import sys, text2grad.critics.local; print([o for o in ("torch","transformers","llguidance") if o in sys.modules])'
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout.strip()=='[]'

def test_marks_of_thoughts_outlive_decoding():
    "Tokens that mark a thought are special in some tokenizers; without them a draft would pass for the answer"
    from text2grad.critics.thoughts import without_thoughts
    from text2grad.critics.local import _decoded
    tok = tiny_lm()[1]
    assert _decoded(tok, tok('Rain. <|im_end|>')['input_ids'])==tok.decode(tok('Rain. <|im_end|>')['input_ids'], skip_special_tokens=True)
    tok.add_special_tokens(dict(additional_special_tokens=['[THINK]','[/THINK]','<|channel|>','<|message|>','<|start|>','<|end|>']))
    for text in ('[THINK]draft[/THINK] final<|im_end|>', '<|channel|>analysis<|message|>draft<|end|><|start|>assistant<|channel|>final<|message|> final<|im_end|>'):
        assert without_thoughts(_decoded(tok, tok(text)['input_ids']))[0].strip()=='final', text

def test_a_thought_that_the_template_has_opened(file):
    "The prompt ends with the opening mark, so the reply has none: what is not closed is a draft, whether it was cut off or not"
    model,tok = tiny_lm()
    model.config.max_position_embeddings = tok.model_max_length = 4096
    plain = make((model, tok), file)
    assert '<think>' not in ''.join(r.text for r in plain.ask(asks(plain, examples(RS))))
    tok.chat_template += '{% if add_generation_prompt %}{{ "<think>\\n" }}{% endif %}'
    critic = make((model, tok), file)
    assert all(r.text.startswith('<think>') for r in critic.ask(asks(critic, examples(RS))))
    assert all('ends in a thought' in j.error for j in critic.judgements(examples(RS)))

def test_switches_of_the_chat_template_reach_the_model_and_the_fingerprint(file):
    model,tok = tiny_lm()
    model.config.max_position_embeddings = tok.model_max_length = 4096
    tok.chat_template += "{% if add_generation_prompt %}{{ 'quiet' if enable_thinking is defined and not enable_thinking else 'aloud' }}{{ style|default('') }}{% endif %}"
    end = lambda **kw: (lambda c: tok.decode(c.encode(asks(c, examples(RS))[0])[0]).rpartition('assistant\n')[2])(make((model, tok), file, **kw))
    assert [end(), end(template=dict(enable_thinking=True)), end(template=dict(style='!'))]==['quiet', 'aloud', 'quiet!']
    f = lambda **kw: make((model, tok), file, **kw).fingerprint
    assert f()==f(template={}) and len({f(), f(template=dict(style='!')), f(template=dict(style='?'))})==3

@pytest.mark.parametrize('bad,match', [(dict(enable_thinkin=False), "no switch 'enable_thinkin'"), (dict(tokenize=False), 'is set already'), (dict(add_generation_prompt=False), 'is set already')])
def test_switches_that_the_template_does_not_read_are_refused_before_any_row(lm, file, tmp_path, bad, match):
    from text2grad.core import SetupError
    with pytest.raises(ValueError, match=match): make(lm, file, template=bad)
    lm[0].save_pretrained(tmp_path/'m'); lm[1].save_pretrained(tmp_path/'m')
    c = ModelCritic(tmp_path/'m', file, template=bad, device='cpu')
    with pytest.raises(SetupError, match=match): c.judgements(examples(RS))
