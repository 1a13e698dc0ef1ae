"The metrics of predicted spans against their definitions, and the ways in which a metric flatters a method"
import itertools,random,subprocess,sys
from dataclasses import replace
from pathlib import Path
import numpy as np
import pytest
from hypothesis import given,settings,strategies as st
from scipy.stats import spearmanr
from text2grad.evaluation import span_metrics as sm
from text2grad.alignment.tokens import token_rewards
from text2grad.core import Critique,Example,Span,from_record,read_examples
from text2grad.evaluation.task_metrics import rouge_l
from text2grad.evaluation.statistics import Statistic,estimate,resamples
from text2grad.critics.base import RandomSpans,mark_everything,mark_nothing,mark_sentences,unshared_words
from text2grad.evaluation.span_metrics import BINS,TokenScores,compare_critics,label_report,matched,paired,rouge,span_f1,span_iou,span_labels,span_report
from text2grad.text import pieces

WORDS = 'rain delayed the match and everyone was furious because nobody had told them when it would start again'.split()
def crit(*spans, text=''): return Critique(text, [Span(a, b, s) for a,b,s in spans])

def some_text(R, n=12): return ' '.join(R.choice(WORDS) for _ in range(R.randint(1, n)))+'.'
def some_critique(R, text, k=3):
    ends = [sorted((R.randint(0, len(text)), R.randint(0, len(text)))) for _ in range(R.randint(0, k))]
    return Critique(some_text(R), [Span(a, b, R.choice([-1., -.5, .5, 1.])) for a,b in ends])
def some_set(seed, n=20):
    R = random.Random(seed)
    gold = [(lambda t: Example('What happened?', t, some_critique(R, t)))(some_text(R)) for _ in range(n)]
    return gold,[some_critique(R, e.response) for e in gold]
def some_scores(gold, seed, digits=None):
    rng = np.random.default_rng(seed)
    for e in gold:
        t = pieces(e.response)
        p = rng.dirichlet([1, 2, 1], len(t))
        if digits: p[:,[0,2]] = np.round(p[:,[0,2]], digits); p[:,1] = 1-p[:,0]-p[:,2]
        yield TokenScores(t, np.clip(p, 0, 1), rng.random(len(t)))
def values(report, skip=()): return {k:e.value for k,e in report.rows.items() if not any(s in k for s in skip)}

@given(st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_perfect_is_one(seed):
    gold,_ = some_set(seed, 5)
    rep = span_report([e.critique for e in gold], gold, draws=20)
    for k,v in values(rep, ('AUROC','gold share')).items(): assert v is None or v==pytest.approx(1), k
    clean = [replace(e, critique=replace(e.critique, spans=[s for s in e.critique.spans if s.score<0])) for e in gold]
    v = span_report([e.critique for e in clean], clean, draws=2)['poor AUROC'].value
    assert v is None or v==1

def brute_pairs(p, g, least):
    iou = span_iou(p, g)
    short,long = sorted((len(p), len(g)))
    best = 0
    for perm in itertools.permutations(range(long), short):
        pairs = [(i, j) if len(p)<=len(g) else (j, i) for i,j in enumerate(perm)]
        best = max(best, sum(iou[i,j]>0 and iou[i,j]>=least for i,j in pairs))
    return best

@given(st.integers(0, 10**6), st.sampled_from([.3, .5, 1.]))
@settings(max_examples=80, deadline=None)
def test_as_many_spans_are_paired_as_can_be(seed, least):
    R = random.Random(seed)
    some = lambda: [Span(a, a+R.randint(1, 5), -1.) for a in (R.randint(0, 8) for _ in range(R.randint(1, 5)))]
    p,g = some(),some()
    pairs = matched(p, g, least)
    for k in (0, 1): assert len({o[k] for o in pairs})==len(pairs)
    for i,j in pairs:
        a,b = (set(range(s.start, s.end)) for s in (p[i], g[j]))
        assert len(a&b)/len(a|b)>=least
    assert len(pairs)==brute_pairs(p, g, least)

@pytest.mark.parametrize('seed', range(3))
def test_characters_tokens_and_rewards_by_definition(seed):
    gold,pred = some_set(seed)
    rep = span_report(pred, gold, draws=2)
    for name,sign in (('poor',-1), ('good',1)):
        chars,toks = np.zeros(3),np.zeros(3)
        for c,e in zip(pred, gold):
            at = lambda k: {i for s in k.spans if s.score*sign>0 for i in range(s.start, s.end)}
            on = lambda k: {i for i,(a,b) in enumerate(pieces(e.response)) if at(k)&set(range(a, b))}
            for x,f in ((chars, at), (toks, on)): x += len(f(c)&f(e.critique)),len(f(c)),len(f(e.critique))
        for unit,(both,mine,theirs) in (('character',chars), ('token',toks)):
            got = [rep[f'{name} {unit} {k}'].value for k in ('precision','recall','F1')]
            assert got==pytest.approx([both/mine, both/theirs, 2*both/(mine+theirs)])
    assert rep['negative recall']==rep['poor token recall']
    total = lambda cs: [round(sum(token_rewards(c.spans, pieces(e.response))), 6) for c,e in zip(cs, gold)]
    assert rep['Spearman of rewards'].value==pytest.approx(spearmanr(total(pred), total([e.critique for e in gold])).statistic)

def brute_auroc(v, m):
    pos,neg = np.array(v)[m],np.array(v)[~m]
    return ((pos[:,None]>neg).mean()+(pos[:,None]>=neg).mean())/2

def gold_tokens(gold, sign): return np.array([any(a<s.end and b>s.start for s in e.critique.spans if s.score*sign>0 and s.start<s.end) for e in gold for a,b in pieces(e.response)])

@pytest.mark.parametrize('n,digits,tol', [(20, 2, 1e-9), (300, None, .002)])
def test_auroc_by_brute_force(n, digits, tol):
    gold,pred = some_set(n, n)
    scores = list(some_scores(gold, 1, digits))
    rep = span_report(pred, gold, scores, draws=20)
    for name,sign,col in (('poor',-1,0), ('good',1,2)):
        e = rep[f'{name} AUROC']
        assert e.value==pytest.approx(brute_auroc(np.round(np.concatenate([s.probs[:,col] for s in scores]), 9), gold_tokens(gold, sign)), abs=tol)
        assert e.low<=e.value<=e.high
    spans = span_report(pred, gold, draws=2)['poor AUROC'].value
    v = [-r for c,e in zip(pred, gold) for r in token_rewards([s for s in c.spans if len(s)], pieces(e.response))]
    assert spans==pytest.approx(brute_auroc(v, gold_tokens(gold, -1)))

def test_calibration_by_definition():
    gold,pred = some_set(3, 200)
    scores = list(some_scores(gold, 2))
    rep = span_report(pred, gold, scores, draws=50)
    for name,sign,col in (('poor',-1,0), ('good',1,2)):
        p,y = np.concatenate([s.probs[:,col] for s in scores]),gold_tokens(gold, sign)
        order = np.argsort(p)
        parts = np.array_split(order, BINS)
        ece = sum(len(o)*abs(p[o].mean()-y[o].mean()) for o in parts)/len(p)
        assert rep[f'{name} calibration error'].value==pytest.approx(ece, abs=.01)
        assert rep[f'{name} Brier'].value==pytest.approx(((p-y)**2).mean())

def test_a_calibrated_head_has_a_small_error_and_an_overconfident_one_does_not():
    rng,gold,true,bold = np.random.default_rng(0),[],[],[]
    text = ' '.join('abcdefghij')
    for _ in range(400):
        p = rng.random(10)
        gold.append(Example('', text, crit(*((a, b, -1.) for (a,b),x in zip(pieces(text), p) if rng.random()<x))))
        for out,q in ((true, p), (bold, (p>.5).astype(float))): out.append(TokenScores(pieces(text), np.stack([q, 1-q, 0*q], 1), np.ones(10)))
    get = lambda s: span_report([crit()]*400, gold, s, draws=100)['poor calibration error']
    assert get(true).high<.05 and get(bold).low>.2

@pytest.mark.parametrize('seed', range(3))
def test_rouge_is_that_of_the_library(seed):
    from rouge_score.rouge_scorer import RougeScorer
    scorer,R = RougeScorer(['rouge1','rougeL'], use_stemmer=True),random.Random(seed)
    for _ in range(20):
        a,b = some_text(R),some_text(R)
        got,want = rouge(a, b),scorer.score(b, a)
        assert got==pytest.approx((want['rouge1'].fmeasure, want['rougeL'].fmeasure))
    assert rouge('雨が降った', '雨が降る')[1]==pytest.approx(2*3/9)==pytest.approx(rouge_l(['雨が降った'], ['雨が降る'])[0])

def test_no_judgement_is_a_miss():
    "Falling silent never pays: the same as marking nothing, and counted"
    gold,pred = some_set(8)
    scores = list(some_scores(gold, 5))
    quiet = [None if i%3 else c for i,c in enumerate(pred)]
    empty = [crit() if i%3 else c for i,c in enumerate(pred)]
    a,b = span_report(quiet, gold, draws=50),span_report(empty, gold, draws=50)
    assert values(a, ('parse',))==values(b, ('parse',)) and a['poor token recall'].value<span_report(pred, gold, draws=2)['poor token recall'].value
    assert a['parse rate'].value==7/20 and a.failures['without a judgement']==13
    c = span_report(quiet, gold, [None if i%3 else s for i,s in enumerate(scores)], draws=50)
    assert c['negative recall'].value==a['negative recall'].value and c['poor calibration error'].n==7
    assert c['poor AUROC'].n==20
    assert span_report([None]*20, gold, draws=2)['critique ROUGE-L'].value==0
    assert span_report(mark_nothing(gold), gold, draws=2)['critique ROUGE-L'].value is None

def test_order_and_copies_change_no_value():
    gold,pred = some_set(6)
    scores = list(some_scores(gold, 6, 2))
    base = values(span_report(pred, gold, scores, draws=2))
    back = values(span_report(pred[::-1], gold[::-1], scores[::-1], draws=2))
    twice = values(span_report(pred*2, gold*2, scores*2, draws=2))
    for k,v in base.items():
        assert back[k]==pytest.approx(v), k
        assert twice[k]==pytest.approx(v), k

def test_the_tokenizer_does_not_change_the_table():
    "Words cut in two, with the space before them, as a language model has them; two tokens share a single character"
    gold,pred = some_set(7)
    scores = list(some_scores(gold, 7, 2))
    def cut(s):
        half = lambda a,b: ((max(a-1, 0), a+(b-a)//2), (a+(b-a)//2, b)) if b-a>1 else ((a, b), (a, b))
        offs = [o for a,b in s.offsets for o in half(a, b)]
        return TokenScores(offs, np.repeat(s.probs, 2, 0), np.repeat(s.severity, 2))
    a,b = (values(span_report(pred, gold, s, draws=2), ('calibration','Brier')) for s in (scores, [cut(s) for s in scores]))
    for k in a: assert a[k]==pytest.approx(b[k], abs=1e-6), k

def test_insertion_points_are_left_out_and_counted():
    text = 'Rain delayed the match.'
    gold = [Example('', text, crit((0, 4, -1.), (5, 5, -1.), (23, 23, -1.)))]
    rep = span_report([crit((0, 4, -1.), (9, 9, -1.))], gold)
    assert rep['poor span F1 exact'].value==rep['poor token F1'].value==1
    assert rep.failures=={'gold insertion points left out':2, 'predicted insertion points left out':1}

def test_what_is_missing_counts_in_the_reward():
    "Three responses that people blame for words, for their end, or not at all; a critic without insertion points ranks them wrongly"
    gold = [Example('', 'It rained.', c) for c in (crit((3, 9, -.2)), crit((10, 10, -.9)), crit())]
    of = lambda pred, scores=None: span_report(pred, gold, scores, draws=2)['Spearman of rewards'].value
    assert of([e.critique for e in gold])==pytest.approx(1) and of([crit((3, 9, -.2)), crit(), crit()])==pytest.approx(0)
    head = lambda end: TokenScores([(0, 2), (2, 9), (9, 10), (10, 10)], [[0, 1, 0]]*3+[[end, 1-end, 0]], [1]*4)
    assert of([crit()]*3, [head(.2), head(.9), head(0)])==pytest.approx(1)

def test_intervals_are_by_response():
    "One long response among short ones: the interval must know that it can be absent"
    short,long = 'bad.',' '.join(['bad']*400)
    gold = [Example('', t, crit((0, len(t), -1.))) for t in [short]*9+[long]]
    e = span_report(mark_nothing(gold)[:9]+mark_everything(gold)[9:], gold)['negative recall']
    assert e.value>.95 and e.low==0

def test_spearman_interval_covers():
    hit = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        z = rng.multivariate_normal([0, 0], [[1, .5], [.5, 1]], 80)
        e = estimate(Statistic(None, lambda w: sm._spearman(z[:,0], z[:,1], w)), resamples(80, 300, seed))
        hit += e.low<=6/np.pi*np.arcsin(.25)<=e.high
    assert hit>=33

@pytest.mark.parametrize('kw,what', [
    (dict(probs=[[.5,.5]]*2), r'probs of shape \(2, 2\)'),
    (dict(severity=[1.]), r'severity of shape \(1,\)'),
    (dict(probs=[[1,0,0],[1,1,0]]), 'probs of token 1: must be three numbers that sum to 1'),
    (dict(probs=[[1.5,-.5,0],[1,0,0]]), 'probs of token 0: must be numbers from 0 to 1'),
    (dict(probs=[[1,0,0],[float('nan'),0,1]]), 'probs of token 1'),
    (dict(severity=[0,2]), 'severity of token 1'),
    (dict(severity=[float('nan'),0]), 'severity of token 0'),
    (dict(offsets=[(0,2),(5,4)]), r'offsets of token 1: must be 0 <= start <= end, got \(5, 4\)')])
def test_bad_token_scores_say_which_token(kw, what):
    good = dict(offsets=[(0,2),(2,4)], probs=[[1,0,0],[0,.5,.5]], severity=[0,1])
    assert len(TokenScores(**good))==2 and len(TokenScores([], [], []))==0
    with pytest.raises(ValueError, match=what): TokenScores(**good | kw)

def test_what_does_not_fit_together_is_refused():
    gold,pred = some_set(8, 3)
    with pytest.raises(ValueError, match='2 predictions for 3 examples'): span_report(pred[:2], gold)
    with pytest.raises(ValueError, match='2 token scores for 3'): span_report(pred, gold, list(some_scores(gold, 1))[:2])
    with pytest.raises(ValueError, match='prediction 1: must be Critique or None, got Example'): span_report([pred[0], gold[1], None], gold)
    with pytest.raises(ValueError, match=r'token scores 0: token \[0, 999\) ends after'): span_report(pred, gold, [TokenScores([(0,999)], [[1,0,0]], [1]), None, None])
    with pytest.raises(ValueError, match=r"example 2 \(id 'x'\) has no critique"): span_report(pred, [*gold[:2], Example('', '', meta=dict(id='x'))])

def test_nothing_at_all():
    assert set(values(span_report([], [])).values())=={None}
    silent = Example('', '', crit(text='Nothing was said.'))
    rep = span_report([crit(), None], [silent]*2, [TokenScores([], [], []), None])
    assert rep['poor AUROC'].value is None and rep['parse rate'].value==.5 and rep['poor calibration error'].value is None
    rep = span_report([crit((0, 2, -1.))], [Example('', 'no', crit((0, 2, -1.)))], [TokenScores([], [], [])])
    assert rep['poor token F1'].value==1 and rep['poor AUROC'].value is None
    assert label_report([], []).rows=={}

def labelled(text, *spans):
    return from_record(dict(schema='text2grad/span-feedback/1', prompt='p', response=text, feedback=[], spans=[dict(start=a, end=b, score=s, **(dict(label=l) if l else {})) for a,b,s,l in spans]))

def test_labels():
    e = labelled('aa bb cc dd', (0, 2, -1., 'wrong'), (3, 5, -1., 'odd'), (0, 2, -1., 'odd'), (6, 8, 1., 'helpful'), (6, 6, -1., 'edited'), (9, 11, -.5, None))
    assert span_labels(e)==['wrong','odd','odd','helpful','edited','no label']
    assert span_labels(replace(e, critique=crit((9, 11, -.5), (3, 5, -1.), (1, 2, -1.))))==['no label','odd','no label']
    rep = label_report([crit((0, 2, -1.), (3, 8, 1.))], [e], draws=20)
    assert {k.split(':')[0] for k in rep.rows}=={'poor odd','poor wrong','poor no label','good helpful'}
    assert [rep[f'poor {l}: recall'].value for l in ('wrong','odd','no label')]==[1, .5, 0]
    assert rep['good helpful: recall'].value==1 and rep['good helpful: span recall@.5'].value==0
    assert str(rep['poor odd: recall']).endswith('(n=1 responses, 2 spans)')
    assert rep['poor odd: AUROC'].value is None # every token is marked by somebody

def test_label_recalls_add_up_to_the_whole():
    R,gold,pred = random.Random(3),[],[]
    for _ in range(60):
        t = some_text(R)
        toks = pieces(t)
        gold.append(labelled(t, *((a, b, -1., R.choice('AB')) for a,b in toks if R.random()<.4)))
        pred.append(crit(*((a, b, -1.) for a,b in toks if R.random()<.5)))
    whole,by = span_report(pred, gold, draws=2),label_report(pred, gold, draws=2)
    n = {l:sum(span_labels(e).count(l) for e in gold) for l in 'AB'}
    for k,name in (('recall','negative recall'), ('span recall@.5','poor span recall@.5')):
        assert sum(n[l]*by[f'poor {l}: {k}'].value for l in 'AB')/sum(n.values())==pytest.approx(whole[name].value)

def test_random_spans_mark_as_much_as_people_and_do_not_depend_on_the_batch():
    R = random.Random(0)
    train = []
    for _ in range(300):
        t = ' '.join(R.choice(WORDS) for _ in range(30))
        toks,i,k = pieces(t),R.randrange(20),R.randint(1, 8)
        train.append(Example('', t, crit(*[(toks[i][0], toks[i+k-1][1], R.choice([-1., .5]))]*(R.random()<.7))))
    critic = RandomSpans(train, seed=3)
    cs = critic(train)
    words = lambda cs,sign: sum(sm._under(sm._real(c, sign), np.array(pieces(e.response))).sum() for c,e in zip(cs, train))
    for sign in (-1, 1): assert words(cs, sign)==pytest.approx(words([e.critique for e in train], sign), rel=.25)
    assert critic(train[::-1])==cs[::-1] and RandomSpans(train, seed=4)(train)!=cs
    assert abs(span_report(cs, train, draws=2)['poor AUROC'].value-.5)<.05
    assert RandomSpans(train)([Example('', ''), Example('', ' ')])==[Critique('', source='baseline/random')]*2
    assert all(s.end<=3 for c in RandomSpans(train)([Example('', 'one')]*20) for s in c.spans)
    with pytest.raises(ValueError, match='none of the 1 training examples has a critique'): RandomSpans([Example('', 'x')])

def test_random_spans_are_the_same_in_another_process():
    code = ("from text2grad.core import *\nfrom text2grad.critics.base import RandomSpans\n"
            "t = Example('', 'a b c d e f', Critique('', [Span(0, 5, -1.), Span(2, 3, 1.)]))\nprint(RandomSpans([t])([t])[0].spans)")
    a,b = (subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True, env=dict(PYTHONHASHSEED=s, PYTHONPATH=str(Path(__file__).parent.parent))).stdout for s in '12')
    assert a==b and 'Span' in a

def test_unshared_words():
    say = lambda prompt,response: [response[s.start:s.end] for s in unshared_words([Example(prompt, response)])[0].spans]
    assert say('Rain delayed the match by 3 hours.', 'The match was delayed by rain for three hours.')==[]
    assert say('Rain delayed the match.', 'Snow stopped the big match. Umpires left.')==['Snow stopped the big','Umpires left']
    chat = [dict(role='system', content='Be brief about rain.'), dict(role='user', content='What happened to the match?')]
    assert say(chat, 'Rain stopped the match.')==['stopped'] and say('', '')==[]

def test_table_and_differences():
    gold,pred = some_set(9, 40)
    better = [replace(c, spans=e.critique.spans) if i%2 else c for i,(c,e) in enumerate(zip(pred, gold))]
    reports = {'<b>first':span_report(pred, gold, draws=50), 'second':span_report(better, gold, list(some_scores(gold, 1)), draws=50)}
    t = compare_critics(reports, title='a & b')
    assert t.table()[0]['poor calibration error']=='n/a' and 'poor calibration error' in t.columns
    html = t._repr_html_()
    assert '<b>' not in html and '&lt;b&gt;first' in html and 'a &amp; b' in html
    assert f"{reports['second']['poor token F1'].value:.3f} (" in str(t)
    for what in ('poor span F1@.5','poor AUROC','Spearman of rewards','good character recall'):
        d,back = paired(better, pred, gold, what, draws=200),paired(pred, better, gold, what, draws=200)
        assert d.low>0 and (d.value, d.low)==pytest.approx((-back.value, -back.high)) and d.n==40
        a,b = (span_report(x, gold, draws=200)[what] for x in (better, pred))
        assert d.value==pytest.approx(a.value-b.value)
    assert d.high-d.low<(a.high-a.low)+(b.high-b.low)
    by = {k:label_report(pred, [replace(e, meta=dict(spans=[])) for e in gold], draws=5) for k in 'xy'}
    assert compare_critics(by).columns==list(by['x'].rows)

def test_importing_loads_no_torch():
    code = 'import sys,text2grad.evaluation.span_metrics; print([m for m in ("torch","transformers","matplotlib","scipy","nltk") if m in sys.modules])'
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True, cwd=Path(__file__).parent.parent).stdout.strip()=='[]'

def test_a_thousand_responses_are_seconds():
    import time
    R,gold,pred = random.Random(0),[],[]
    for _ in range(1000):
        t = ' '.join(R.choice(WORDS) for _ in range(100))
        gold.append(Example('p', t, some_critique(R, t, 6))); pred.append(some_critique(R, t, 6))
    scores = list(some_scores(gold, 0))
    t = time.process_time()
    span_report(pred, gold, scores)
    assert time.process_time()-t<20

data = Path(__file__).resolve().parent.parent.parent/'shared'/'data'

@pytest.mark.skipif(not (data/'qa_feedback.jsonl.gz').exists(), reason='the feedback files are not here')
def test_people_against_the_baselines():
    gold = [e for e in read_examples(data/'qa_feedback.jsonl.gz') if e.critique is not None and e.meta['split']=='train']
    critics = dict(nothing=mark_nothing, everything=mark_everything, sentences=mark_sentences, random=RandomSpans(gold), unshared=unshared_words)
    reports = {k:span_report(c(gold), gold, draws=50) for k,c in critics.items()} | dict(people=span_report([e.critique for e in gold], gold, draws=50))
    assert reports['people']['poor span F1 exact'].value==1 and reports['people']['critique ROUGE-L'].value==1
    assert reports['everything']['poor character precision'].value==pytest.approx(reports['everything']['poor gold share'].value)
    assert all(abs(reports[k]['poor AUROC'].value-.5)<.03 for k in ('nothing','everything','random'))
    by = label_report(mark_everything(gold), gold, draws=20)
    assert {by[f'poor {l}: recall'].value for l in ('Irrelevant','Unverifiable','Wrong-Grounding','Redundant','Incoherent')}=={1}

def test_f1_of_one_sign_finds_each_span_once():
    spans = lambda rows,sign=-1.: [Critique('', [Span(a, b, sign) for a,b in row]) for row in rows]
    def f1(predicted, gold, sign=-1, **kw): return span_f1(spans(predicted, sign), [Example('', 'x'*20, c) for c in spans(gold, sign)], sign, **kw)
    for sign in (-1, 1):
        assert f1([[(0,4),(0,4)]], [[(0,4)]], sign)==f1([[(0,4)]], [[(0,4),(0,4)]], sign)==pytest.approx(2/3)
        assert f1([[(0,4)],[(0,4)]], [[(0,4)],[(5,9)]], sign)==.5
    assert f1([[(0,6)]], [[(0,4),(0,6)]])==pytest.approx(2/3)
    assert f1([[(0,5)]], [[(0,10)]])==1 and f1([[(0,5)]], [[(0,10)]], at_least=.51)==f1([[(0,5)]], [[(0,11)]])==0
    assert f1([], []) is f1([[]], [[]]) is f1([[(3,3)]], [[(5,5)]]) is None and f1([[(0,1)]], [[]])==0
    assert span_f1([None], [Example('', 'Rain.', Critique('', [Span(0, 4, -1.)]))], -1)==0
