"What a table of numbers per token promises: pieces that join, sums that agree in every unit, and numbers that stay what they are"
import re,time
import numpy as np, pytest, torch
from hypothesis import given,settings,strategies as st
from text2grad.alignment.tokens import decode_with_offsets
from text2grad.viz.channels import CHANNELS,TokenTable,cut,grouped,groups,normalised,token_table,with_channels
from text2grad.span_ppo.losses import whiten
from text2grad.pretrained import tiny_lm

UNITS = ('token','word','sentence','line')
alphabet = st.sampled_from(list('abAB1 .!?\n\t"\')') + ['。','月','é','🌙','\u200b','\u3000','\r\n'])
texts = st.lists(alphabet, max_size=40).map(''.join)
numbers = st.one_of(st.floats(-1e6, 1e6), st.just(float('nan')))

@st.composite
def tables(draw):
    "A text cut anywhere, also inside a character, with special tokens anywhere"
    text = draw(texts)
    cuts = sorted(draw(st.sets(st.integers(0, len(text)), max_size=12)) | {0, len(text)})
    offs = []
    for a,b in zip(cuts, cuts[1:]):
        if draw(st.integers(0, 5))==0: offs.append((a, a))
        offs += [(a, b)]+[(b-1, b)]*draw(st.integers(0, 2))
    if draw(st.booleans()): offs.append((len(text), len(text)))
    xs = [draw(numbers) for _ in offs]
    return token_table(text, offs, reward=xs, kl=np.arange(len(offs)))

@settings(max_examples=400, deadline=None)
@given(tables(), st.sampled_from(UNITS))
def test_nothing_is_lost_in_any_unit(t, unit):
    g = grouped(t, unit)
    assert g.response==t.response and set(g.channels)==set(t.channels)
    for k in t.channels: np.testing.assert_allclose(np.nansum(g[k]), np.nansum(t[k]), rtol=1e-12, atol=1e-6)
    parts = groups(t, unit)
    assert [i for a,b in parts for i in range(a, b)]==list(range(len(t))) and len(parts)==len(g) and all(a<b for a,b in parts)
    for (a,b),piece,r in zip(parts, g.tokens, g['reward']):
        assert piece==''.join(t.tokens[a:b]) and np.isnan(r)==np.isnan(t['reward'][a:b]).all()

@settings(max_examples=200, deadline=None)
@given(tables(), st.sampled_from(UNITS))
def test_a_mean_lies_within_its_tokens(t, unit):
    for (a,b),m in zip(groups(t, unit), grouped(t, unit, 'mean')['kl']): assert t['kl'][a]<=m<=t['kl'][b-1]

@settings(max_examples=200, deadline=None)
@given(tables())
def test_units_nest(t):
    "No line is cut by a sentence, no sentence by a word"
    firsts = [{a for a,_ in groups(t, u)} for u in UNITS]
    for finer,coarser in zip(firsts, firsts[1:]): assert finer>=coarser

@pytest.mark.parametrize('text,unit,want', [
    ('Dr. Smith left. He sat. he', 'sentence', ['Dr. Smith left.',' He sat. he']),
    ('One.\nTwo?! "Three."\n\nFour', 'sentence', ['One.\n','Two?!',' "Three."\n\n','Four']),
    ('pi is 3.14 exactly', 'sentence', ['pi is 3.14 exactly']),
    ('他来了。她走了！', 'sentence', ['他来了。','她走了！']),
    ('a b\n\n  c', 'word', ['a',' b\n\n','  c']),
    ('\n\nx', 'word', ['\n\nx']),
    ('日本 go', 'word', ['日','本',' go']),
    ('x = 1\n\n\ty\n', 'line', ['x = 1\n\n','\ty\n']),
    ('', 'word', []), ('   ', 'sentence', ['   '])])
def test_where_units_begin(text, unit, want):
    t = token_table(text, [(i, i+1) for i in range(len(text))])
    assert list(grouped(t, unit).tokens)==want

def test_special_tokens_are_units_of_their_own():
    t = token_table('ab cd', [(0,1),(1,1),(1,2),(2,5),(5,5)], reward=[1,2,3,4,5])
    for unit in UNITS[1:]: assert 5. in grouped(t, unit)['reward'] and 2. in grouped(t, unit)['reward']

def test_a_character_of_several_tokens_is_one_unit():
    t = token_table('a 🌙 b', [(0,1),(1,3),(2,3),(2,3),(3,5),(5,5)], reward=[1,2,3,4,5,6])
    assert list(zip(grouped(t, 'word').tokens, grouped(t, 'word')['reward']))==[('a',1.),(' 🌙',9.),(' b',5.),('',6.)]

def test_real_tokens():
    _,tok = tiny_lm()
    text,offs = decode_with_offsets(tok, tok('The crew landed in 1969. 🌙 They stayed\n\tfor weeks!')['input_ids']+[tok.eos_token_id])
    t = token_table(text, offs, reward=np.arange(len(offs)))
    for unit in UNITS: assert grouped(t, unit)['reward'].sum()==t['reward'].sum()
    assert [len(grouped(t, u)) for u in ('sentence','line')]==[4,3]

# ---- numbers

@settings(max_examples=300, deadline=None)
@given(st.lists(numbers, max_size=30))
def test_signed_rank(xs):
    r,x = normalised(xs, 'rank'),np.array(xs, dtype=float)
    ok = ~np.isnan(x)
    assert (np.isnan(r)==~ok).all() and (abs(r[ok])<=1).all() and (np.sign(r[ok])==np.sign(x[ok])).all()
    big = abs(x[ok])
    assert all((abs(r[ok][i])<abs(r[ok][j]))==(big[i]<big[j]) for i in range(len(big)) for j in range(len(big)) if big[i])

@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=30))
def test_z_is_the_whitening_of_the_losses(xs):
    x = torch.tensor([xs], dtype=torch.float64)
    np.testing.assert_allclose(normalised(xs, 'z'), whiten(x, torch.ones_like(x))[0], rtol=1e-9, atol=1e-9)

def test_raw_is_a_copy():
    x = np.array([1.,np.nan])
    y = normalised(x, 'raw')
    y[0] = 7
    assert x[0]==1

# ---- the table

def test_a_table_shares_nothing_that_can_change():
    mine = np.array([1.,2.])
    t = TokenTable(['a','b'], [[0,1],[1,2]], dict(reward=mine))
    mine[0] = 9
    assert t['reward'][0]==1 and t.tokens==('a','b') and t.offsets==((0,1),(1,2))
    with pytest.raises(ValueError): t['reward'][0] = 3
    u = with_channels(t, kl=[0,0])
    assert set(u.channels)=={'reward','kl'} and set(t.channels)=={'reward'}

@pytest.mark.parametrize('bad,says', [
    (dict(offsets=[(0,1)]), 'offsets: are 1'), (dict(offsets=[(0,1),(1,3)]), 'offsets.1.'), (dict(offsets=[(0,1),(2,1)]), 'offsets.1.'),
    (dict(channels=dict(kl=[1.])), "channel 'kl': has shape"), (dict(channels=dict(kl=['x','y'])), "channel 'kl': must be numbers")])
def test_bad_tables_are_refused_by_name(bad, says):
    with pytest.raises(ValueError, match=says): TokenTable(**dict(tokens=['a','b'], offsets=[(0,1),(1,2)]) | bad)

def test_unknown_words_are_refused():
    t = token_table('a', [(0,1)])
    for f in (lambda: groups(t, 'page'), lambda: grouped(t, 'word', 'max'), lambda: normalised([1.], 'log')):
        with pytest.raises(ValueError, match='must be'): f()

def test_cut_as_a_rollout_does():
    from text2grad.core import Example
    from text2grad.span_ppo.rollout import Rollout
    _,tok = tiny_lm()
    text,offs = decode_with_offsets(tok, tok('née 🌙👩\u200d👧 x')['input_ids'])
    r = Rollout([Example('', text)], *[None]*5, offsets=[offs])
    assert cut(text, offs)==r.pieces(0)

def test_every_channel_says_what_it_is(): assert all(re.match('[a-z]', v) and len(v)<90 for v in CHANNELS.values()) and len(CHANNELS)==8

@pytest.mark.parametrize('text', ['.'*20000+' '*20000+'a', '. '*20000, '"'*40000, '."'*20000+' a', '月'*40000])
def test_no_text_takes_long(text):
    t,start = TokenTable([text], [(0, len(text))]),time.process_time()
    for unit in UNITS: grouped(t, unit)
    assert time.process_time()-start<3
