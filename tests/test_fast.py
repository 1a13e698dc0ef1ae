"The script of the fast setting: its critic, its metric, one short run, and that what was run is not run again"
import importlib.util,random
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
import pytest
from text2grad.alignment.tokens import token_rewards
from text2grad.core import Example

path = Path(__file__).resolve().parent.parent/'nbs'/'experiments'/'fast.py'

@pytest.fixture(scope='module')
def fast():
    spec = importlib.util.spec_from_file_location('fast', path)
    m = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(m)
    return m

FACTS = dict(name='Ada', thing='lamps', place='Oslo', day='Monday', hour='one')
def said(y): return Example('', y, meta=dict(facts=FACTS))

def test_the_critic_marks_words_and_the_end(fast):
    y = 'Well , Ada sells soap in Oslo . Come on Monday . Once more , in Oslo .'
    got = [(s.quote, s.reason, s.score) for s in fast.Critic().judge(said(y)).spans]
    assert got==[('Well','filler',-.25), ('Ada','right',.5), ('soap','wrong',-1.), ('Oslo','right',.5), ('Monday','right',.5),
                 ('Oslo','again',-.5), ('hour','missing',-.5)]
    end = fast.Critic().judge(said(y)).spans[-1]
    assert (end.start, end.end)==(len(y), len(y))
    assert fast.right(said(y))==3/5 and fast.named(said(y))==4/5
    assert fast.right(said('Oslo Bern'))==0 # a reader could not tell

def test_a_note_without_noise_is_all_right(fast):
    rng = random.Random(0)
    for e in fast.examples(20, 1):
        e = replace(e, response=fast.note(e.meta['facts'], rng, 0.))
        assert fast.right(e)==1 and {s.reason for s in fast.Critic().judge(e).spans}=={'right'}
        assert set(f'{e.prompt} {e.response}'.split())<=set(fast.WORDS)

def test_two_critics_that_contradict_each_other_pay_nothing_where_they_do(fast):
    y = 'Ada sells soap . Come on Sunday at one .'
    offs = [(i, i+len(w)) for w in y.split() for i in [y.index(w)]]+[(len(y), len(y))]
    pay = lambda c: dict(zip([*y.split(), 'end'], token_rewards(c([said(y)])[0].spans, offs)))
    one,both = pay(fast.critic_of('clean', 0)),pay(fast.critic_of('opposed', 0))
    assert (one['Sunday'], one['one'])==(-1.,.5) and (both['Sunday'], both['one'])==(0.,0.)
    assert both['Ada']==one['Ada']==.5 and both['soap']==-1. and both['end']==one['end']==-.5

def test_a_critic_is_swapped_after_half_of_the_run(fast):
    t = SimpleNamespace(step=1, critic='one', stats=dict(length=5.), config=SimpleNamespace(steps=6, batch_size=2))
    c = fast.Curve([], 'other')
    c.after_step(t)
    assert t.critic=='one'
    t.step = 3
    c.after_step(t)
    assert t.critic=='other' and c.tokens==20

def test_a_short_run(fast):
    tok = fast.tokenizer()
    small = dict(steps=2, batch_size=8, samples_per_prompt=4, minibatch_size=8, micro_batch_size=8, max_new_tokens=6)
    fast.TEST = fast.TRAIN = dict(n=4, seed=1)
    got = fast.run((fast.blank(tok), tok), 'arms', 'span', 1e-2, 0, 'swapped', **small)
    first,last = got['curve']
    assert (first['rollouts'], last['rollouts'])==(0, 16) and first['kl']==0<last['kl'] and 0<last['tokens']<=16*6
    assert set(got['moved'])<={'blamed','praised','unmarked','probe'} and got['moved']['probe']
    words = sum(v for k,v in got['marks'][0].items() if k!='missing')
    assert first['length']-1.1<=words<=first['length'] # without the end token, where there is one

def test_what_was_run_is_not_run_again_and_pilots_choose_the_rate(fast, tmp_path, monkeypatch):
    ran = []
    def run(base, part, **spec):
        ran.append(spec)
        lr,a = spec['lr'],spec['arm']
        total = 100*(lr if a=='span' else -lr if a=='grpo' else -abs(lr-1e-3)) # the price of the KL is small beside it
        return dict(part=part, critic='clean', **spec, seconds=0, curve=[dict(total=total, kl=lr*(2000 if a=='span' else 1000))])
    monkeypatch.setattr(fast, 'run', run)
    monkeypatch.setattr(fast, 'pretrain', lambda: None)
    monkeypatch.setattr(fast, 'KEPT', tmp_path/'fast.jsonl')
    fast.main('pilot')
    n = len(ran)
    assert n==len(fast.ARMS | fast.HORIZONS)*len(fast.RATES)*len(fast.PILOTS)
    fast.main('pilot')
    assert len(ran)==n
    chosen = fast.rates(fast.read_jsonl(fast.KEPT))
    assert chosen['span']==max(fast.RATES) and chosen['grpo']==min(fast.RATES)
    fast.main('arms')
    new = ran[n:]
    assert {r['seed'] for r in new if r['arm']=='grpo'}==set(fast.SEEDS) and {r['lr'] for r in new if r['arm']=='grpo'}=={min(fast.RATES)}
    assert not set(fast.SEEDS) & set(fast.PILOTS)
    n = len(ran)
    fast.main('horizon')
    assert {(r['arm'],r['seed']) for r in ran[n:]}=={(a,s) for a in fast.HORIZONS for s in fast.FEW}
    rows = fast.read_jsonl(fast.KEPT)
    far = {r['arm']:r['lr'] for r in fast.plan('matched', rows)} # the scalar's pilots went to 1; those of spans to .6 and to 2
    assert far['sentence']==1e-3 and far['span']==pytest.approx(3e-4*(10/3)**(.4/1.4), rel=.02) and 'scalar' not in far
