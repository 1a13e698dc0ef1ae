"From probabilities to spans: the best path against all paths, marks that stand on words, thresholds that are no worse than none"
import itertools,re
import numpy as np, pytest
from hypothesis import example,given,settings,strategies as st
from text2grad.core import Critique,Example,Span
from text2grad.reward_model.decoding import GRID,_runs,best_path,best_sentences,calibrated,choose_thresholds,class_weights,fit_temperature,label_spans,sentence_of
from text2grad.evaluation.span_metrics import span_f1
from text2grad.reward_model.preprocessing import GOOD,NEUTRAL,POOR,text_offsets
from text2grad.pretrained import tiny_lm

tok = tiny_lm()[1]
off = -np.inf

# ---- calibration

@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=3, max_size=3).filter(lambda s: sum(s)>.01), st.floats(0, 1.5))
def test_class_weights_by_hand(shares, balance):
    shares = np.array(shares)/sum(shares)
    w,s = class_weights(shares, balance),np.maximum(shares, 1e-4)
    assert abs((s*w).sum()-1)<1e-9
    for i,j in itertools.product(range(3), repeat=2): assert w[i]/w[j]==pytest.approx((s[j]/s[i])**balance)

def test_weights_are_taken_back_exactly():
    p,w = np.random.default_rng(0).dirichlet([1,1,1], 50),class_weights([.1,.8,.1], .7)
    trained = np.log(p*w/(p*w).sum(1, keepdims=True)) # what a head learns that is trained with w
    np.testing.assert_allclose(calibrated(trained, w), p)
    hot = calibrated(trained, w, 3.)
    np.testing.assert_allclose(hot, p**(1/3)/(p**(1/3)).sum(1, keepdims=True))

def nll(logits, labels, w, t): return -np.log(calibrated(logits, w, t)[np.arange(len(labels)), labels]).mean()

@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 60), st.sampled_from([.01, .3, 1., 6.]))
def test_the_temperature_is_never_worse_than_none_and_the_best_on_a_grid(seed, n, scale):
    rng = np.random.default_rng(seed)
    z,y,w = scale*rng.standard_normal((n, 3)),rng.integers(0, 3, n),class_weights(rng.dirichlet([1,1,1]), .5)
    t = fit_temperature(z, y, w)
    assert .2<=t<=10 and nll(z, y, w, t)<=nll(z, y, w, 1.)+1e-9
    assert nll(z, y, w, t)<=min(nll(z, y, w, s) for s in np.geomspace(.2, 10, 60))+1e-4

def test_a_temperature_that_was_put_in_is_found():
    rng = np.random.default_rng(1)
    z,w = 2*rng.standard_normal((20000, 3)),class_weights([.2,.7,.1], .5)
    y = np.array([rng.choice(3, p=p) for p in calibrated(z, w, 2.5)])
    assert abs(fit_temperature(z, y, w)-2.5)<.15

def test_without_labels_or_without_opinions_the_temperature_is_one():
    assert fit_temperature(np.zeros((0,3)), np.zeros(0, int), np.ones(3))==1
    assert fit_temperature(np.zeros((5,3)), np.arange(5)%3, np.ones(3))==1

# ---- the path

def value(c, p, q, bias, stick):
    "Of a path, as the equation says it"
    q = np.clip(q, 1e-3, 1-1e-3)
    one = sum(np.log(max(p[t][k], 1e-6))+(bias[0],0,bias[1])[k] for t,k in enumerate(c))
    return one+stick*sum(np.log(q[t] if c[t]!=c[t-1] else 1-q[t]) for t in range(1, len(c)))

@settings(max_examples=80, deadline=None)
@given(st.integers(0, 10**6), st.lists(st.integers(0, 6), min_size=1, max_size=4), st.sampled_from([-1.5, 0., .7, off]), st.sampled_from([-1., 0., 2., off]),
       st.sampled_from([0., .25, 1., 2.]))
def test_no_path_is_better(seed, lengths, poor, good, stick):
    rng,T = np.random.default_rng(seed),max(1, *lengths)
    P,Q = rng.dirichlet([.5]*3, (len(lengths), T)),rng.uniform(0, 1, (len(lengths), T))
    for i,n in enumerate(lengths): P[i,n:],Q[i,n:] = rng.choice([0., 1/3, 7., np.nan]),rng.choice([0., .5, np.nan])
    got = best_path(P, Q, np.array(lengths), (poor, good), stick)
    for i,n in enumerate(lengths):
        best = max(value(c, P[i], Q[i], (poor, good), stick) for c in itertools.product(range(3), repeat=n))
        assert value(got[i,:n], P[i], Q[i], (poor, good), stick)==pytest.approx(best) and (got[i,n:]==NEUTRAL).all()
        if poor==off: assert POOR not in got[i]
        if good==off: assert GOOD not in got[i]
        alone = best_path(P[i:i+1,:max(1, n)], Q[i:i+1,:max(1, n)], np.array([n]), (poor, good), stick)
        assert (alone[0,:n]==got[i,:n]).all()

def test_a_head_without_an_opinion_marks_nothing():
    assert (best_path(np.full((2,4,3), 1/3), np.full((2,4), .5), np.array([4,2]))==NEUTRAL).all()

def test_one_token():
    P = np.array([[[.6,.3,.1]], [[.1,.3,.6]], [[.4,.5,.1]]])
    go = lambda **kw: best_path(P, np.full((3,1), .001), np.ones(3, int), **kw)[:,0].tolist()
    assert go()==[0,2,1] and go(transition_cost=9.)==[0,2,1] and go(bias=(off,off))==[1,1,1] and go(bias=(1.,0.))==[0,2,0]

# ---- spans

texts = st.lists(st.sampled_from(['Ann ', 'unbelievable', ' won', '.', ' ', '\n\n', '漢字', 'のは', '👨‍👩‍👧', "don't", 'Ünïcödé', '\u3000', ', ', 'x_1', 'é']), max_size=10).map(''.join)

@st.composite
def cut_texts(draw):
    "A text, tokens of it (as the tokenizer cuts, or anywhere), labels and sizes"
    text = draw(texts)
    if draw(st.booleans()): offs = text_offsets(tok, text)
    else:
        at = sorted({0, len(text), *draw(st.lists(st.integers(0, len(text)), max_size=12))})
        offs = list(zip(at, at[1:]))
        if draw(st.booleans()): offs = [o for o in offs for _ in range(2)] # as bytes of a character
    path = draw(st.lists(st.integers(0, 2), min_size=len(offs), max_size=len(offs)))
    return text,offs,np.array(path, int),draw(st.integers(0, 100))

wordy = lambda c: re.match(r'\w', c) and not '\u0e00'<=c<='\u0eff' and not '\u3040'<=c<='\u9fff'

@settings(max_examples=300, deadline=None)
@given(cut_texts())
@example(('unbelievable', [(0,2),(2,4),(4,12)], np.array([0,1,0]), 0))
@example(('unbelievable', [(0,2),(2,4),(4,12)], np.array([2,0,2]), 0))
def test_marks_stand_on_words_in_order_and_apart(case):
    text,offs,path,seed = case
    size = np.random.default_rng(seed).uniform(0, 1, (len(offs), 3))
    out = label_spans(path, offs, text, size)
    assert out==sorted(out, key=lambda s: (s.start, s.end))
    for s in out:
        assert 0<=s.start<s.end<=len(text) and .01<=abs(s.score)<=1
        assert text[s.start:s.end]==text[s.start:s.end].strip()
        for k in (s.start, s.end): assert not (0<k<len(text) and wordy(text[k-1]) and wordy(text[k])), (text, s)
    for sign,label in ((-1, POOR), (1, GOOD)):
        mine = [s for s in out if s.score*sign>0]
        assert all(a.end<b.start for a,b in zip(mine, mine[1:]))
        marked = {k for (a,b),c in zip(offs, path) if c==label for k in range(a, b) if not text[k].isspace()}
        assert marked<={k for s in mine for k in range(s.start, s.end)}
        for s in mine: # nothing is marked that no marked token shares a word with
            assert marked&set(range(s.start, s.end))

def test_a_score_is_the_mean_size_of_its_tokens():
    size = np.zeros((4,3)); size[:,POOR],size[:,GOOD] = [.2,.4,.9,0],[0,0,0,.5]
    offs = [(0,3),(3,7),(7,8),(8,12)]
    a,b = label_spans(np.array([0,0,1,2]), offs, 'Ann won. Bob', size)
    assert (a.start, a.end, b.start, b.end)==(0, 7, 9, 12) and (a.score, b.score)==(pytest.approx(-.3), .5)
    joined, = label_spans(np.array([0,1,0]), [(0,2),(2,4),(4,12)], 'unbelievable', np.array([[.2,0,0],[.9,0,0],[.6,0,0]]))
    assert joined.score==pytest.approx(-.4)
    assert label_spans(np.array([0]), [(0,3)], 'Ann', np.zeros((1,3)))[0].score==-.01

def test_nothing_to_mark():
    none = np.zeros((0,3))
    assert label_spans(np.array([], int), [], '', none)==[]==label_spans(np.array([0]), [(0,2)], ' \n', np.ones((1,3)))==label_spans(np.array([0,0]), [(3,3),(3,3)], 'Ann', np.ones((2,3)))

def test_half_a_chinese_sentence_stays_half():
    text = '我喜欢猫。他不喜欢。'
    s, = label_spans(np.array([1,0,1]), [(0,1),(1,3),(3,10)], text, np.ones((3,3)))
    assert text[s.start:s.end]=='喜欢'

@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 2), max_size=12))
def test_runs_put_together_are_the_path(path):
    runs = _runs(np.array(path, int), np.zeros(len(path)))
    assert [c for c,i,j in runs for _ in range(i, j)]==path and all(a[0]!=b[0] for a,b in zip(runs, runs[1:]))

# ---- whole sentences

@settings(max_examples=200, deadline=None)
@given(cut_texts())
@example(('Rain. Sun! Wind?', [(0,5),(5,10),(10,16)], np.array([0,0,2]), 0))
@example(('雨。风。', [(0,2),(2,4)], np.array([0,0]), 0))
@example(('', [], np.array([], int), 0))
@example(('Ann \n\nAnn ', [(0,1),(1,10)], np.array([0,0]), 0))
def test_sentences_are_marked_whole_and_each_by_itself(case):
    text,offs,_,seed = case
    P = np.random.default_rng(seed).dirichlet([1,1,1], len(offs))
    unit = sentence_of(text, offs)
    path = best_sentences(P, unit, (.5,-.5))
    assert len(unit)==len(path)==len(offs) and (np.diff(unit)>=0).all()
    for u in set(unit):
        value = [np.log(np.clip(P[unit==u], 1e-6, 1))[:,c].mean()+b for c,b in enumerate((.5,0,-.5))]
        assert set(path[unit==u])=={int(np.argmax(value))}
    spans = label_spans(path, offs, text, np.ones((len(offs),3)), unit)
    assert len(spans)<=len(set(unit))
    for sign in (-1, 1): # a token that is cut across a word can have praise and blame meet in it, as everywhere
        mine = [s for s in spans if s.score*sign>0]
        assert all(a.end<=b.start for a,b in zip(mine, mine[1:]))

def test_sentences_side_by_side_stay_two_marks():
    go = lambda text,offs: [text[s.start:s.end] for s in label_spans(np.zeros(len(offs), int), offs, text, np.ones((len(offs),3)), sentence_of(text, offs))]
    assert go('Rain fell. He sang.', [(0,4),(4,9),(9,10),(10,13),(13,18),(18,19)])==['Rain fell.','He sang.']
    assert go('雨。风。', [(0,1),(1,2),(2,3),(3,4)])==['雨。','风。']

def test_people_who_mark_sentences_are_read_by_sentences():
    texts,offs = ['One two. Six ten. Red sea.']*12,[[(0,3),(3,8),(8,12),(12,17),(17,21),(21,26)]]*12
    gold = [[Span(*((0,8),(9,17),(18,26))[j], -1.) for j in range(3) if (i>>j)&1] for i in range(12)]
    p = np.array([[.6 if (i>>(t//2))&1 else .05 for t in range(6)] for i in range(12)])
    got = choose(decoder(np.stack([p, .95-p, np.full_like(p, .05)], -1), np.full((12,6), .01), np.full(12, 6), offs, texts), gold)
    assert got==dict(bias=[0.,None], stick=None, poor=1., good=0.)

# ---- thresholds

def critiques(rows): return [Critique('', ss) for ss in rows]
def people(rows): return [Example('', 'x'*99, c) for c in critiques(rows)]
def choose(decode, gold): return choose_thresholds(decode, people(gold))

def case(seed, n=12, T=8):
    "Responses of one-letter words, and a head that is somewhat right"
    rng = np.random.default_rng(seed)
    text,offs = 'a b c d e f g h',[(0,1),*((2*k-1, 2*k+1) for k in range(1, T))]
    lengths,labels = rng.integers(0, T+1, n),rng.choice(3, (n, T), p=[.25,.6,.15])
    P = rng.dirichlet([1,1,1], (n, T))*.6+.4*np.eye(3)[labels]
    gold = [label_spans(l[:k], offs, text, np.ones((T,3))) for l,k in zip(labels, lengths)]
    return decoder(P, rng.uniform(.2, .8, (n, T)), lengths, [offs]*n, [text]*n),gold

def decoder(P, Q, lengths, offsets, texts):
    "Thresholds to spans, as `SpanRewardModel` makes them"
    def decode(bias, stick):
        units = [sentence_of(t, o[:k]) for t,o,k in zip(texts, offsets, lengths)]
        paths = best_path(P, Q, lengths, bias, stick) if stick is not None else [best_sentences(p[:k], u, bias) for p,u,k in zip(P, units, lengths)]
        return [label_spans(p[:k], o[:k], t, np.ones((k,3)), None if stick is not None else u) for p,o,t,u,k in zip(paths, offsets, texts, units, lengths)]
    return decode

def scores(decode, gold, bias, stick):
    found = decode([off if b is None else b for b in bias], stick)
    return [span_f1(critiques(found), people(gold), s) or 0. for s in (-1, 1)]

@pytest.mark.parametrize('seed', range(4))
def test_chosen_thresholds_are_no_worse_than_the_defaults(seed):
    x = case(seed)
    got = choose(*x)
    assert [got['poor'], got['good']]==scores(*x, got['bias'], got['stick'])
    alone = scores(*x, (got['bias'][0], None), got['stick'])[0]
    assert alone>=scores(*x, (0, None), 1)[0] and alone>=max(scores(*x, (b, None), k)[0] for b in (-1, 1, 3) for k in (0, 2, None))
    assert got['poor']+got['good']>=alone

def test_what_nobody_marked_is_never_marked():
    decode,gold = case(0)
    only = lambda sign: [[s for s in g if s.score*sign>0] for g in gold]
    assert choose(decode, [[] for _ in gold])==dict(bias=[None,None], stick=1., poor=0., good=0.)
    assert choose(decode, only(-1))['bias'][1] is None
    praise = choose(decode, only(1))
    assert praise['bias'][0] is None and praise['good']>0 and praise['poor']==0
    places = [[Span(s.start, s.start, s.score) for s in g] for g in gold] # where something is missing
    assert choose(decode, places)['bias']==[None,None]

def test_among_equals_the_defaults():
    P = np.zeros((2,1,3)); P[0,0],P[1,0] = (.98,.01,.01),(.01,.98,.01)
    got = choose(decoder(P, np.full((2,1), .5), np.ones(2, int), [[(0,3)]]*2, ['Ann']*2), [[Span(0, 3, -1.)], []])
    assert got==dict(bias=[0.,None], stick=1., poor=1., good=0.)
    assert (GRID['bias'][0], GRID['stick'][0])==(0., 1.)

def test_praise_may_not_cost_more_blame_than_it_finds():
    P = np.array([[[.40,.05,.55]], *[[[.45,.04,.51]]]*3])
    got = choose(decoder(P, np.full((4,1), .5), np.ones(4, int), [[(0,3)]]*4, ['Ann']*4), [[Span(0, 3, 1.)], *[[Span(0, 3, -1.)]]*3])
    assert got==dict(bias=[0.,None], stick=1., poor=pytest.approx(6/7), good=0.)
