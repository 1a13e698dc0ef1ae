"The third view of the app: its handlers as plain functions; what a step does is tested in test_one_step.py"
import math
import pytest
from text2grad.core import Critique,Example,Span
from text2grad.span_ppo.inspection import measure
from text2grad.span_ppo.policy import Policy
from text2grad.span_ppo.one_step import Fork,fingerprint
from text2grad.pretrained import tiny_lm
from text2grad.app.view_apply import PHASES,PRESET,apply_step,diff_html,fork_text,meter_html,shown_step,stop_step,taking_step,undo_step
from text2grad.app.workbench import InputError,Workbench

EVIL = '<img src=x onerror=alert(1)>'
CAT = Example('Where is the cat?', 'The cat sat on the mat.', Critique('It sat on a chair.', (Span(15, 22, -1., 'the mat', EVIL, 'exact'),)))

@pytest.fixture(scope='module')
def policy(): return Policy.create(*tiny_lm())

@pytest.fixture
def bench(policy):
    b = Workbench(policy)
    b.session('a').hold(measure(policy, CAT))
    return b

def test_a_step_is_shown_and_undone_to_the_bit(bench):
    before,ready = fingerprint(bench.policy),shown_step(bench, 'a')
    got = apply_step(bench, 'a', PRESET, 2, 0, 12)
    st = bench.session('a').step
    assert 'One critique, 2 steps' in got['note'] and 'bit for bit' in got['note'] and st.steps==2
    assert all(x in got['meter'] for x in ('under the critique','elsewhere in the response','probe set')) and 'Before the step' in got['texts']
    assert st.text_before in ''.join(t for op,t in st.diff if op!='insert') and got['heat']!=ready['heat'] and EVIL not in got['heat']
    assert fingerprint(bench.policy)==before and undo_step(bench, 'a')==ready and bench.session('a').step is None

def test_without_regeneration_there_are_no_texts(bench): assert 'Nothing could be sampled' in apply_step(bench, 'a', PRESET, 1, 0, 0)['texts']

def test_the_far_end_says_collapsed(bench):
    "A toy has little language to lose and needs eight steps for it; the journey with SmolLM2 has the end of the slider"
    before,note = fingerprint(bench.policy),apply_step(bench, 'a', 1, 8, 0, 8)['note']
    assert note.count('Collapsed. ')==1 and 'smaller one' in note and 'bit for bit' in note and fingerprint(bench.policy)==before

def test_a_policy_that_is_not_as_it_was_would_be_told(bench):
    apply_step(bench, 'a', PRESET, 1, 0, 0)
    object.__setattr__(bench.session('a').step, 'undo', False)
    assert 'differs from before: restart' in shown_step(bench, 'a')['note']

def test_stop_ends_a_step_and_leaves_no_trace(bench):
    before,said = fingerprint(bench.policy),[]
    seen = bench.policy.lm.base_model.register_forward_pre_hook(lambda *_: said.append(stop_step(bench, 'a')) if len(said)==0 else None)
    try: got = apply_step(bench, 'a', PRESET, 8, 0, 64)
    finally: seen.remove()
    assert 'Stopped; the policy is as it was' in got['note'] and bench.session('a').step is None and fingerprint(bench.policy)==before

def test_a_step_on_a_response_that_is_gone_is_not_kept(bench, monkeypatch):
    import text2grad.app.view_apply as view
    other,real = measure(bench.policy, CAT),view.apply_critique
    def slow(*args, **kw):
        st = real(*args, **kw)
        bench.session('a').hold(other)
        return st
    monkeypatch.setattr(view, 'apply_critique', slow)
    apply_step(bench, 'a', PRESET, 1, 0, 0)
    assert bench.session('a').step is None

@pytest.mark.parametrize('args,why', [((math.nan, 1, 0, 8), 'learning rate: is nan'), ((2, 1, 0, 8), 'learning rate: is 2'), ((PRESET, 0, 0, 8), 'steps: is 0'), ((PRESET, 1.5, 0, 8), 'steps: .* whole'),
                                      ((PRESET, 9, 0, 8), 'steps: is 9'), ((PRESET, 1, -1, 8), 'seed'), ((PRESET, 1, 0, 257), 'longest response'), (('big', 1, 0, 8), 'learning rate: must be a number')])
def test_bad_input_is_refused_by_name(bench, args, why):
    with pytest.raises(InputError, match=why): apply_step(bench, 'a', *args)

def test_nothing_marked_and_nothing_there(bench):
    bench.session('b').hold(measure(bench.policy, Example('Where?', 'There.', Critique('Fine.'))))
    got = shown_step(bench, 'b')
    assert 'nothing to push' in got['note'] and not got['apply']['interactive'] and not got['undo']['visible']
    with pytest.raises(InputError, match='marks nothing'): apply_step(bench, 'b', PRESET, 1, 0, 8)
    assert 'three weeks' in shown_step(bench, 'c')['heat'] and bench.session('c').case is None, 'the example needs no model to be shown'
    got = apply_step(bench, 'c', PRESET, 1, 0, 0)
    assert 'bit for bit' in got['note'] and got['undo']['visible'] and len(bench.session('c').case.critique.spans)==2

def test_what_can_be_pressed_follows_the_step_and_its_failure(bench):
    bench.session('d').hold(measure(bench.policy, Example('Where?', 'There.', Critique('No.', [Span(0, 5, -1.)]))))
    steps = list(taking_step(bench, 'd', PRESET, 1, 0, 0))
    able = [{k:got[k]['visible'] for k in ('undo','stop') if k in got} for got in steps]
    assert all(any(f'{p} ...' in got['note'] for p in PHASES.values()) for got in steps[1:-1]) and 'progress' not in steps[-1]['note']
    assert able[0]==dict(stop=True) and able[-1]==dict(undo=True, stop=False) and set(map(len, able[1:-1]))<={0}
    failing,able = taking_step(bench, 'd', math.nan, 1, 0, 0),[]
    with pytest.raises(InputError):
        for got in failing: able.append(got.get('stop'))
    assert able[0]==dict(visible=True) and able[-1]==dict(visible=False)

def test_texts_and_meter_say_what_they_know():
    d = [('equal','The '), ('delete',EVIL), ('insert','dog'), ('equal',' sat.')]
    assert EVIL not in diff_html(d, 'before') and '<del>&lt;img' in diff_html(d, 'before') and '<ins>dog</ins>' in diff_html(d, 'after') and 'dog' not in diff_html(d, 'before')
    assert fork_text(Fork(3, ' cat', ' dog', (.5, .125), (.25, .75)))=="First difference: token 3. ' cat' (probability 0.500, after the step 0.125) gives way to ' dog' (0.250, after the step 0.750)."
    m = dict(on=.5, off=math.nan, probe=.01, ratio=math.nan, asked=.5)
    assert 'times that elsewhere' not in meter_html(m) and 'nan' not in meter_html(m) and '+0.500 nats' in meter_html(m)
    assert '10.0 times that elsewhere' in meter_html(m | dict(off=.05, ratio=10.))
