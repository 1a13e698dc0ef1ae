"Metrics that a library knows better, p-values and seeds: values by hand, by enumeration, or by the reference implementation"
import itertools,json,math,random,sys

import numpy as np
import pytest
from dataclasses import replace
from fastcore.test import test_close as close

from text2grad.core import Example
from text2grad.data.tasks import load_humaneval
from text2grad.evaluation import task_metrics as tm
from text2grad.evaluation.statistics import holm,iqm,over_seeds,paired_bootstrap,paired_permutation
from text2grad.files import RecordError,UserError

# Words

rng,vocab = random.Random(0),'rain rained stopping stops match matches the a of player'.split()
def text(n=12): return ' '.join(rng.choices(vocab, k=rng.randint(1, n)))
PREDS,REFS = [text() for _ in range(30)],[[text() for _ in range(3)] for _ in range(30)]

def test_rouge_1_and_2_are_those_of_rouge_score():
    from rouge_score.rouge_scorer import RougeScorer
    for f,kind in ((tm.rouge_1, 'rouge1'), (tm.rouge_2, 'rouge2')):
        scorer,refs = RougeScorer([kind], use_stemmer=True),[[r+' stops play' for r in rs] for rs in REFS] # two words at least
        close(f(PREDS, refs), [scorer.score_multi(rs, p)[kind].fmeasure for p,rs in zip(PREDS, refs)])
    assert tm.rouge_2(['Rain', 'rain fell'], ['Rain', 'rain'])==[1.,0.], 'a reference of one word has no pairs'

def test_bleu_and_chrf_are_those_of_sacrebleu():
    import sacrebleu
    close(tm.bleu(PREDS, REFS), [sacrebleu.sentence_bleu(p, rs).score/100 if p not in rs else 1. for p,rs in zip(PREDS, REFS)])
    close(tm.chrf(PREDS, REFS), [sacrebleu.sentence_chrf(p, rs).score/100 for p,rs in zip(PREDS, REFS)])
    close(tm.corpus_bleu(PREDS, REFS), sacrebleu.corpus_bleu(PREDS, [list(c) for c in zip(*REFS)]).score/100)
    one = [rs[:1+i%3] for i,rs in enumerate(REFS)]
    assert 0<tm.corpus_bleu(PREDS, one)<tm.corpus_bleu(PREDS, REFS), 'rows may have fewer references than others'
    assert tm.corpus_bleu([], []) is None and tm.bleu([], [])==[]

def test_without_sacrebleu_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, 'sacrebleu', None)
    for f in (tm.bleu, tm.chrf, tm.corpus_bleu):
        with pytest.raises(ImportError, match=r'pip install -e "\.\[eval\]"'): f(['a'], ['a'])

# pass@k

def test_pass_at_k_is_the_share_of_draws_that_hold_a_right_one():
    for n in range(1, 8):
        for c,k in itertools.product(range(n+1), range(1, n+1)):
            draws = list(itertools.combinations([True]*c+[False]*(n-c), k))
            close(tm.pass_at_k(n, c, k), sum(map(any, draws))/len(draws), 1e-12)
    close(tm.pass_at_k(100_000, 1, 10), 1e-4, 1e-9)
    close(tm.pass_at_k(100_000, 99_000, 1000), 1., 1e-12)
    for bad in ((2,3,1), (2,1,3), (2,1,0), (0,0,1), (2,-1,1)):
        with pytest.raises(ValueError, match='1 <= k <= n'): tm.pass_at_k(*bad)

def test_pass_at_counts_problems_and_leaves_out_what_nobody_could_judge():
    exs = [Example(p, 'x') for p in 'aaabbbbc']
    r = tm.pass_at(exs, (1, 2, 4), [1., 0., None, 0., 0., 1., 1., None])
    close([r[f'pass@{k}'].value for k in (1, 2, 4)], [(.5+.5)/2, (1+1-1/6)/2, 1.])   # a: 1 of 2 right; b: 2 of 4; c: nothing known
    assert [(r[f'pass@{k}'].n, r[f'pass@{k}'].dropped) for k in (1, 2, 4)]==[(2,1), (2,1), (1,2)]
    with pytest.raises(ValueError): tm.pass_at(exs, (1,), [1.])

PLUS_CHECK = '''
import numpy as np

def assertion(out, exp, atol):
    if out != exp and (atol or isinstance(exp, float)): assert np.allclose(out, exp, rtol=1e-07, atol=atol or 1e-6)
    else: assert out == exp

def check(candidate):
    for inp, exp in zip([[3.5], [512.25]], [.5, .25]): assertion(candidate(*inp), exp, 0)
'''

def test_plus_tests_find_what_the_tests_of_humaneval_let_through(tmp_path):
    def judged(plus, i, *answers):
        e = load_humaneval(limit=i+1, plus=plus)[i]
        return tm.code_passes([replace(e, response=a or e.reference[0]) for a in answers])
    def rows(name, *rs):
        (tmp_path/name).write_text(''.join(json.dumps(r)+'\n' for r in rs))
        return tmp_path/name
    truncates = 'def truncate_number(number):\n    return number - int(number) if number<200 else 0.5\n'
    near = 'def truncate_number(number):\n    return number - int(number) + 1e-9\n'
    short = 'def remove_duplicates(numbers):\n    return [n for n in numbers if numbers.count(n)==1 or len(numbers)>50]\n'
    inputs = rows('inputs.jsonl', dict(task_id='HumanEval/26', base_input=[[[1,2,3]]], plus_input=[[[1]*60], [[]]], atol=0),
                  dict(task_id='HumanEval/2', base_input=[[3.5]], plus_input=[[512.25]], atol=1e-6))
    checks = rows('checks.jsonl', dict(task_id='HumanEval/2', test=PLUS_CHECK))
    assert judged(None, 2, truncates, '')==[1.,1.] and judged(None, 26, short, '')==[1.,1.]
    assert judged(inputs, 26, short, '')==[0.,1.]
    for plus in (inputs, checks): assert judged(plus, 2, truncates, near, '')==[0.,1.,1.]
    exs = load_humaneval(limit=3, plus=checks)
    assert exs[:2]==load_humaneval(limit=2) and 'numpy' not in exs[2].meta['tests']
    with pytest.raises(RecordError, match='no row has a task_id'): load_humaneval(limit=2, plus=checks)
    with pytest.raises(UserError, match='HumanEval/0: must have "test"'):
        load_humaneval(limit=2, plus=rows('bad.jsonl', dict(task_id='HumanEval/0', base_input=[1], plus_input=[])))

# p and seeds

def test_permutation_goes_through_all_signs_where_there_are_few():
    r = np.random.default_rng(0)
    for n in (1, 2, 5, 9):
        d = r.normal(.4, 1, n).round(2)
        means = [abs(np.mean(d*s)) for s in itertools.product((1,-1), repeat=n)]
        close(paired_permutation([0.]*n, list(d)), np.mean(np.array(means)>=abs(d.mean())-1e-12), 1e-12)

def test_permutation_draws_signs_where_there_are_many():
    r = np.random.default_rng(1)
    b = list(r.normal(size=60))
    a = [x+.3+e for x,e in zip(b, r.normal(size=60))]
    from scipy import stats
    p = paired_permutation(b, a)
    close(p, stats.ttest_rel(a, b).pvalue, .01)
    assert paired_permutation(b, a)==p and paired_permutation(b, [x+1 for x in b])==2/10_000
    assert paired_permutation([0.,None], [1.,5.])==1. and paired_permutation([], []) is None
    with pytest.raises(ValueError, match='same prompts'): paired_permutation([0.], [0.,1.])

def test_p_is_small_five_times_in_100_when_nothing_changed():
    r = np.random.default_rng(2)
    small = sum(paired_permutation([0.]*8, list(r.normal(size=8)))<.05 for _ in range(250))   # 12 of 256 choices of signs are that extreme
    assert 3<=small<=24, small

def test_holm_is_statsmodels():
    ps = dict(a=.01, b=.04, c=.03, d=.005, e=.5, f=.04)
    close(list(holm(ps).values()), [.05, .12, .12, .03, .5, .12])   # multipletests(method='holm') of statsmodels 0.15
    assert list(holm(ps))==list(ps) and holm({})=={} and holm(dict(x=None))==dict(x=None)

RUNS = dict(a=[.126,-.536,-.704,-2.325,-.544,-.129], b=[-.264,.723,-2.531,-.438,-.633,2.733],
            c=[1.921,3.912,-1.87,-3.738,1.235,-1.996], d=[.052,.474,.021,-.366,.521,.176])

def test_seeds_as_rliable_has_them():
    e,m = over_seeds(RUNS),over_seeds(RUNS, np.mean)
    close([e.value, m.value], [-.17174, -.17409], 1e-3)             # rliable 1.2.0, 20,000 resamples
    close([e.low, e.high, m.low, m.high], [-.680, .228, -.812, .472], .03)
    assert e.n==24 and over_seeds(RUNS)==e

def test_strata_are_never_mixed():
    "Two tasks with two seeds each have nine different resamples, of which the highest and the lowest come up once in sixteen"
    e = over_seeds(dict(low=[0.,1.], high=[10.,11.]), np.mean, n=4000)
    assert (e.value, e.low, e.high)==(5.5, 5., 6.)
    assert over_seeds(dict(low=[0.,0.], high=[10.,10.]), np.mean).low==5., 'a resample without one of the tasks would not be 5'
    assert over_seeds(dict(a=[1.], b=[2.])).low is None and over_seeds(dict(a=[None])).value is None
    assert over_seeds(dict(a=[1.,None,2.,3.])).dropped==1
    with pytest.raises(ValueError, match=r'a\[1\]'): over_seeds(dict(a=[1.,math.nan]))
    close(iqm(np.arange(8.)), 3.5)

def test_a_generator_of_scores_is_read_once():
    assert paired_bootstrap((x for x in [0.,1.]), (x for x in [1.,2.])).n==2

# Models

def encoder(layers=3):
    "A BERT of 16 dimensions whose weights are a formula, and its word pieces"
    import torch
    from tokenizers import Tokenizer,models,normalizers,pre_tokenizers,processors
    from transformers import BertConfig,BertModel,PreTrainedTokenizerFast
    words = '[PAD] [UNK] [CLS] [SEP] [MASK] the rain stopped match a snow delayed game fell on town ##s ##ed . in it all day'.split()
    t = Tokenizer(models.WordPiece({w:i for i,w in enumerate(words)}, unk_token='[UNK]'))
    t.normalizer,t.pre_tokenizer = normalizers.Lowercase(),pre_tokenizers.BertPreTokenizer()
    t.post_processor = processors.TemplateProcessing(single='[CLS] $A [SEP]', special_tokens=[('[CLS]', 2), ('[SEP]', 3)])
    tok = PreTrainedTokenizerFast(tokenizer_object=t, pad_token='[PAD]', unk_token='[UNK]', cls_token='[CLS]', sep_token='[SEP]', model_max_length=32)
    m = BertModel(BertConfig(vocab_size=len(words), hidden_size=16, num_hidden_layers=layers, num_attention_heads=2, intermediate_size=32,
                             max_position_embeddings=32, hidden_dropout_prob=0., attention_probs_dropout_prob=0.)).eval()
    with torch.no_grad():
        for i,(k,p) in enumerate(sorted(m.named_parameters())):
            x = (torch.sin(torch.arange(p.numel(), dtype=torch.float64)*12.9898+i)*43758.5453%1-.5).float().reshape(p.shape)
            p.copy_(x*(.2 if 'LayerNorm' in k else .6)+(1. if k.endswith('LayerNorm.weight') else 0.))
    return m,tok

FITS = ['The rain stopped the match.','Snow fell on the town.','a','it rained all day in the town .','on on on']
TO = ['Rain stopped the game.',['The game stopped','Snows delayed it all day in the town.'],'the','it rained all day in the town .','match']
BERT_SCORE = {2:([.85156238,.89203,.91273719,1.,.55331075], [.88799685,.83056837,.91273719,1.,.74632174], [.86939806,.86020279,.91273719,1.,.63548398]),
              3:([.91075093,.92110229,.95008665,1.,.63948274], [.93065262,.87931716,.95008665,1.,.82290518], [.92059422,.89972484,.95008665,1.,.71969092])}

@pytest.mark.parametrize('layer', BERT_SCORE)
def test_bert_score_is_that_of_its_authors(layer, tmp_path):
    "Precision, recall and F1 as the package bert-score 0.3.13 gives them for this encoder"
    from text2grad.evaluation.model_metrics import BertScore
    m,tok = encoder()
    m.save_pretrained(tmp_path); tok.save_pretrained(tmp_path)
    got = BertScore(tmp_path, layer, batch_size=2, device='cpu').fits(FITS, TO)
    for k,want in zip(('precision','recall','f1'), BERT_SCORE[layer]): close([getattr(f, k) for f in got], want, 1e-5)
    close(BertScore((m, tok), layer)(FITS, TO), BERT_SCORE[layer][2], 1e-5)
    assert BertScore((m, tok))(['', None], ['the','rain'])==[0.,0.]

def test_an_encoder_without_its_weights_is_refused(tmp_path):
    from safetensors.torch import load_file,save_file
    from text2grad.pretrained import ModelError,load_encoder
    m,tok = encoder()
    m.save_pretrained(tmp_path); tok.save_pretrained(tmp_path)
    w = load_file(tmp_path/'model.safetensors')
    save_file({k:v for k,v in w.items() if not k.startswith('pooler')}, tmp_path/'model.safetensors', {'format':'pt'})
    assert load_encoder(tmp_path, 'cpu')[0].config.hidden_size==16, 'the pooler is not needed'
    save_file({k:v for k,v in w.items() if 'layer.1.' not in k}, tmp_path/'model.safetensors', {'format':'pt'})
    with pytest.raises(ModelError, match='weights are missing'): load_encoder(tmp_path, 'cpu')

def test_perplexity_of_a_model_with_no_idea_is_the_size_of_its_vocabulary():
    import torch
    from text2grad.evaluation.model_metrics import perplexity
    from text2grad.pretrained import tiny_lm
    from text2grad.span_ppo.policy import Policy
    model,tok = tiny_lm()
    with torch.no_grad(): model.lm_head.weight.zero_()   # tied: every logit is 0
    p = Policy.create(model, tok)
    got = perplexity(p, ['Why?']*5, ['Rain.', 'It rained all day long.', '', 'x'*40, 'No'], batch_size=2)
    close([g for g in got if g is not None], [len(tok)]*4, 1e-2)
    assert got[2] is None and perplexity(p, [], [])==[]
    with pytest.raises(ValueError, match='row 1: prompt and text have'): perplexity(p, ['Why?']*2, ['No', 'rain '*600])
    with pytest.raises(ValueError, match='2 prompts but 1 texts'): perplexity(p, ['a','b'], ['x'])
