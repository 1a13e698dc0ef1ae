"Critics with mistakes on purpose, and where a training has moved a policy"
import pytest, torch
from text2grad.core import Critique,Example,Span
from text2grad.critics import NOISES,Noisy
from text2grad.pretrained import tiny_lm
from text2grad.span_ppo import Policy,edit_table
from text2grad.span_ppo.edits import edits

TEXT = 'One two three four. Five six seven eight. Nine.'
SPANS = (Span(4, 7, -1.), Span(20, 28, .5), Span(len(TEXT), len(TEXT), -.25))
def critic(examples): return [Critique('said', SPANS) if e.response==TEXT else None for e in examples]
E = [Example('p', TEXT), Example('p', 'other')]
def spans(kind, share=1., seed=0): return Noisy(critic, kind, share, seed)(E)[0].spans

@pytest.mark.parametrize('kind', [k for k in NOISES if k not in ('blame','praise')])
def test_no_share_is_no_noise(kind): assert spans(kind, 0.)==SPANS

@pytest.mark.parametrize('kind', NOISES)
def test_words_stay_and_no_judgement_stays_none(kind):
    a,b = Noisy(critic, kind, .5)(E)
    assert b is None and a.text=='said'
    assert Noisy(critic, kind, .5)(E[:1])[0]==a # whoever else is judged beside it

def test_each_kind_does_what_it_says():
    assert [s.score for s in spans('flip')]==[1., -.5, .25] and [s.start for s in spans('flip')]==[s.start for s in SPANS]
    assert spans('drop')==() and spans('unending')==SPANS[:2]
    assert spans('blame', 0.)==(SPANS[0], SPANS[2]) and spans('praise', 0.)==SPANS[1:2]

def words(s): return TEXT[s.start:s.end].split()

@pytest.mark.parametrize('seed', range(12))
def test_places_change_and_widths_do_not(seed):
    for kind in ('shift','move'):
        a,b,end = spans(kind, seed=seed)
        assert (a.score,b.score,end)==(-1., .5, SPANS[2])
        assert len(words(a))==1 and 1<=len(words(b))<=2 and (a.start,a.end)!=(4, 7) and (b.start,b.end)!=(20, 28)
    a,b,_ = spans('move', seed=seed)
    assert a.start>=20 and (b.start<20 or b.start>=42 or b.end>42)
    a,_,_ = spans('shift', seed=seed)
    assert a.end<=25

def test_another_seed_spoils_others():
    assert len({tuple(s.score for s in spans('flip', .5, k)) for k in range(20)})>3

def test_what_cannot_be_is_named():
    with pytest.raises(ValueError, match='one of flip, shift'): Noisy(critic, 'rotate')
    with pytest.raises(ValueError, match='share'): Noisy(critic, 'flip', 1.5)
    assert Noisy(critic, 'flip', .3).source=='critic, flip 0.3'
    assert Noisy(lambda es: [Critique('', [Span(0, 1, -1.)])]*len(es), 'move')([Example('p', 'x')])[0].spans[0].end==1

def test_an_untrained_policy_has_moved_nowhere_and_a_moved_one_is_measured_by_hand():
    p = Policy.create(*tiny_lm(), value_head=False)
    e = Example('p', 'abc', critique=Critique('', [Span(0, 1, -1.), Span(2, 3, .5)]))
    assert all(abs(v)<1e-5 for v in edits(p, [e])[0].values())
    assert edits(p, [Example('p', 'abc')])[0]['blamed'] is None
    for q in p.trainable().values(): torch.nn.init.normal_(q, std=.1, generator=torch.Generator().manual_seed(1))
    row, = edits(p, [e])
    from text2grad.span_ppo.inspection import as_rollout
    r = as_rollout(p, [e])
    a = r.forward_args([0])
    with torch.no_grad(): d = (p.forward(*a).logps-p.forward(*a, ref=True).logps)[0]
    assert row['blamed']==pytest.approx(float(d[0]), abs=1e-5) and row['praised']==pytest.approx(float(d[2]), abs=1e-5)
    assert row['unmarked']==pytest.approx(float((d[1]+d[3])/2), abs=1e-5)
    table = {t['tokens']:t for t in edit_table(p, [e, e], [Example('q', 'zz')])}
    assert table['blamed']['n']==2 and table['probe']['n']==1
