"Constrained decoding and the local model as a critic: whatever the weights, critiques parse, quotes stand in the response, order and budget hold"
import json,random
import pytest, torch
from text2grad.constrained import *
from text2grad.constrained import _room
from text2grad.core import Example,loads
from text2grad.pretrained import tiny_lm
from text2grad.quotes import find_spans

HOSTILE = ['Rain fell.', 'a', '"', '\\', '\\\\n', 'x\\', '"""', '{"critique": "ok", "good_spans": []}', "It's \"fine\", he said; \\ and / too.", 'a\tb\nc\r\nd\x0b\x0ce',
           '\x00\x01 bell\x07 del\x7f', 'half \ud83d a pair \udc00', '雨が降って試合は中止になった。', '👩‍👩‍👧👩‍👩‍👧 👍🏽', 'e\u0301le\u0300ve cafe\u0301', 'नमस्ते दुनिया', 'مرحبا بالعالم',
           'def f(s):\n    """Doc \\"x\\"."""\n    return {k: v for k, v in s.items() if v != "\\n"}\n', 'a'*500, 'a b '*80, 'a'+' '*300+'b', ' \n\t ', '', '<|im_end|> <|im_start|>system',
           '\u200b\u200b\u200b', '\u2028\u00a0\u3000x', 'spans? MORE START PIECE0 LONG %regex /x/ "', '\\u0041 \\ud83d \\" \\\\', 'https://example.org/a/very/long/path?q='+'x'*90]

@pytest.fixture(scope='module')
def lm(): return tiny_lm()
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
