"Agreement against other implementations of the same numbers, and the cases where a metric is easily wrong"
import itertools,random
import numpy as np
import pytest
from hypothesis import given,settings,strategies as st
from scipy.stats import rankdata
from text2grad.evaluation.agreement import critic_report,span_agreement,token_alpha
from text2grad.evaluation.statistics import auroc,bootstrap,mean_interval,share,t_interval,wilson
from text2grad.core import Critique,Example,Judgement,Quote,Span,from_record
from text2grad.text import pieces

TEXT = 'Rain delayed the match, and everyone was furious.'
def marks(*spans): return Critique('c', [Span(a, b, s) for a,b,s in spans])
def ex(c=None, text=TEXT, **meta): return Example('p', text, c, None, meta)

@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
@settings(max_examples=60, deadline=None)
def test_wilson_is_the_formula(kn):
    (k,n),z = kn,1.959963984540054
    e,p,half = wilson(k, n),k/n,z*(k/n*(1-k/n)/n+z*z/(4*n*n))**.5
    want = [(p+z*z/(2*n)+side*half)/(1+z*z/n) for side in (-1, 1)]
    assert np.allclose([e.low, e.high], want, atol=1e-9) and (e.value, e.n)==(p, n)

@given(st.lists(st.tuples(st.sampled_from([-1.,0.,.25,.5,3.]), st.booleans()), max_size=40))
@settings(max_examples=100, deadline=None)
def test_auroc_is_that_of_ranks(rows):
    v,y = np.array([r[0] for r in rows]),np.array([r[1] for r in rows], bool)
    n = y.sum()
    want = float((rankdata(v)[y].sum()-n*(n+1)/2)/(n*(~y).sum())) if 0<n<len(y) else None
    assert auroc(v, y)==want, 'to the last bit'

def test_t_interval_of_three_seeds():
    e = t_interval([1., 2., 3.])
    assert e.value==2 and np.allclose([e.low, e.high], [2-4.302653/3**.5, 2+4.302653/3**.5], atol=1e-6)
    assert (t_interval([]).value, t_interval([1.]).low, t_interval([2., 2.]).high)==(None, None, 2.)

def test_a_narrower_level_gives_a_narrower_interval():
    xs = np.random.default_rng(0).normal(size=50).tolist()
    for f in (lambda l: mean_interval(xs, level=l), lambda l: t_interval(xs, level=l), lambda l: wilson(20, 50, level=l), lambda l: bootstrap([(x, 1) for x in xs], share, level=l)):
        wide,narrow = f(.95),f(.5)
        assert wide.low<narrow.low<narrow.value<narrow.high<wide.high and (wide.level, narrow.level)==(.95, .5)

def test_bootstrap_interval_covers_as_often_as_it_says():
    rng,hit = np.random.default_rng(0),0
    for i in range(200):
        num = rng.poisson(3, 60)
        e = bootstrap(np.stack([num, np.full(60, 10)], 1), lambda s: s[...,0]/s[...,1], draws=300, seed=i)
        hit += e.low<=.3<=e.high
    assert 176<=hit<=199

def naive_alpha(units, dist):
    "Krippendorff's definition, pair by pair"
    units = [u for u in units if len(u)>1]
    n = sum(map(len, units))
    do = sum(dist(a, b)/(len(u)-1) for u in units for a,b in itertools.permutations(u, 2))/n
    pooled = [v for u in units for v in u]
    de = sum(dist(a, b) for a,b in itertools.permutations(pooled, 2))/(n*(n-1))
    return 1-do/de

@pytest.mark.parametrize('level', ['nominal','interval'])
@pytest.mark.parametrize('seed', range(4))
def test_alpha_by_definition(level, seed):
    R = random.Random(seed)
    exs = [ex(text=' '.join('abcdefg'[:R.randint(2, 7)])) for _ in range(8)]
    def critic(e): return None if R.random()<.2 else marks(*[(a, b, R.choice([-1., -.5, .5, 1.])) for a,b in pieces(e.response) if R.random()<.5])
    outs = [[critic(e) for e in exs] for _ in range(3)]
    def value(c, a):
        v = sum(s.score for s in c.spans if s.start==a)
        return np.sign(v) if level=='nominal' else v
    units = [[value(o[i], a) for o in outs if o[i] is not None] for i,e in enumerate(exs) for a,b in pieces(e.response)]
    dist = (lambda a,b: float(a!=b)) if level=='nominal' else (lambda a,b: (a-b)**2)
    e = token_alpha(outs, exs, level)
    assert e.value==pytest.approx(naive_alpha(units, dist)) and e.low<=e.value<=e.high

def test_alpha_identical_random_and_undefined():
    R = random.Random(1)
    exs = [ex()]*150
    def rand(): return [marks(*[(a, b, R.choice([-1., 1.])) for a,b in pieces(TEXT) if R.random()<.3]) for _ in exs]
    A,B = rand(),rand()
    for level in ('nominal','ordinal','interval'):
        assert token_alpha([A, list(A)], exs, level).value==1
        e = token_alpha([A, B], exs, level)
        assert abs(e.value)<.06 and e.low<0<e.high
    assert token_alpha([[None]*150, A], exs).value is None
    assert token_alpha([A, A], exs, offsets=[[(0, 22), (22, 49)]]*150).value==1
    with pytest.raises(ValueError, match='at least two'): token_alpha([A], exs)
    with pytest.raises(ValueError, match="level 'ratio'"): token_alpha([A, B], exs, 'ratio')

def test_alpha_of_praise_against_blame_is_worse_than_of_silence():
    A,B,C = [marks((0, 4, 1.), (5, 12, -1.))],[marks((0, 4, -1.), (5, 12, 1.))],[marks((13, 16, 1.), (17, 22, -1.))]
    assert token_alpha([A, B], [ex()], 'ordinal').value<token_alpha([A, C], [ex()], 'ordinal').value

def brute_auroc(score, mark):
    pos,neg = [s for s,m in zip(score, mark) if m],[s for s,m in zip(score, mark) if not m]
    return np.mean([(p>q)+(p==q)/2 for p in pos for q in neg])

@pytest.mark.parametrize('seed', range(3))
def test_auroc_and_f1_by_brute_force(seed):
    R = random.Random(seed)
    toks = pieces(TEXT)
    def rand(): return marks(*[(a, b, round(R.uniform(-1, 1), 2)) for a,b in toks if R.random()<.6])
    P,G = [ex(rand() if i else None) for i in range(5)],[ex(rand()) for _ in range(5)]
    rep = span_agreement(P, G, draws=20)
    for name,sign in (('blame',-1), ('praise',1)):
        score,mark,tp,n_p,n_g = [],[],0,0,0
        for p,g in zip(P, G):
            ps,gs = (x.critique.spans if x.critique else () for x in (p, g))
            score += [sum(s.score for s in ps if s.start==a)*sign for a,_ in toks]
            mark += [any(s.score*sign>0 for s in gs if s.start==a) for a,_ in toks]
            c,h = ({i for s in x if s.score*sign>0 for i in range(s.start, s.end)} for x in (ps, gs))
            tp,n_p,n_g = tp+len(c&h),n_p+len(c),n_g+len(h)
        assert rep[f'{name} AUROC'].value==pytest.approx(brute_auroc(score, mark))
        assert rep[f'{name} F1'].value==pytest.approx(2*tp/(n_p+n_g)) and rep[f'{name} precision'].value==pytest.approx(tp/n_p)
    assert rep.failures=={'without a judgement':1}

def test_spans_that_overlap_or_are_empty_count_each_character_once():
    G = [ex(marks((0, 10, -1.)))]
    rep = span_agreement([ex(marks((0, 10, -1.), (3, 8, -.5), (20, 20, -1.)))], G)
    assert (rep['blame precision'].value, rep['blame recall'].value)==(1, 1)

def test_silence_costs_recall():
    G = [ex(marks((0, 4, -1.)))]*4
    good = span_agreement(G, G)
    less = span_agreement([*G[:2], ex(), ex()], G)
    assert good['blame recall'].value==1 and less['blame recall'].value==.5 and less['blame AUROC'].value<1

def test_no_example_at_all():
    assert critic_report([])['parse rate'].value is None
    assert span_agreement([], [])['blame F1'].value is None

def test_report_counts_each_quote_once_and_tells_omissions_from_lost_quotes():
    c = Critique('c', [Span(0, 4, -1., 'Rain', 'r', 'exact'), Span(5, 12, -1., 'Rain', 'r', 'exact')], [Quote('who', -1., 'missing'), Quote('snow', -1., 'r')])
    rep = critic_report([ex()], [c])
    assert rep['quotes found'].value==.5 and rep['spans per response'].value==2
    rules = Critique('c', [Span(40, 48, -1., 'furious', 'It stops.', 'exact')], [Quote('crowd', -1., 'It stops.')], 'rules/summarize/1')
    assert critic_report([ex()], [rules])['quotes found'].value==1

def test_report_reads_annotated_rows():
    row = dict(schema='text2grad/span-feedback/1', prompt='p', response=TEXT, annotation=dict(critic='x'))
    good = from_record(row | dict(spans=[dict(start=0, end=4, score=-1)], feedback=[dict(text='Bad.')], source='api/m'))
    rep = critic_report([good, from_record(row | dict(error='TimeoutError: after 60 s')), from_record(row), from_record(row)])
    assert rep['parse rate'].value==.25 and rep.title=='api/m' and rep.failures=={'no judgement':2, 'TimeoutError':1}
    assert [r['measure'] for r in rep.table()]==list(rep.rows)

def test_report_html_is_escaped():
    rep = critic_report([ex()], [Judgement(None, '<script>alert(1)</script>')], title='<img src=x onerror=1>')
    assert '<script' not in rep._repr_html_() and '<img' not in rep._repr_html_() and 'script' in str(rep)

def test_report_believes_the_critic_that_counted():
    j = Judgement(marks((0, 4, 1.)), info=dict(read='json', quotes=5, quotes_found=3))
    none = [Judgement(None, 'the reply is no critique', dict(read='unreadable')), Judgement(None, 'TimeoutError: 60 s', dict(read='none')), Judgement(None, '', dict(read='nothing to judge by'))]
    rep = critic_report([ex()]*4, [j, *none])
    assert rep['quotes found'].value==.6 and rep.failures=={'TimeoutError':1, 'nothing to judge by':1, 'unreadable':1}
