"What guards the second view: fixes, saving, and handlers against users and files that misbehave"

import gzip,json,threading
from dataclasses import replace
import pytest
from hypothesis import given,settings,strategies as st
from pathlib import Path
from text2grad.alignment.critiques import align
from text2grad.data.annotation import annotate
from text2grad.core import Critique,Example,Quote,RecordError,Span,dumps,from_record,problems,read_examples,read_records,to_record,write_jsonl
from text2grad.reward_model.preprocessing import read_feedback,token_labels
from text2grad.app.drafts import (SEVERITY,UNDECIDED,Draft,Fix,candidates,critique_of,draft_of,feedback_id,phrases,record_of,save_record,saved_draft)
from text2grad.app.inspector import inspector_html,lost_html,phrase_choices,place_choices,word_table
from text2grad.app.ready import ANSWER
from text2grad.app.view_critique import (begin_with,desk_of,fix_phrase,mark_picked,mark_words,measure_text,open_case,pick_phrase,pick_words,render,
    save_critique,show_pasted,type_feedback,use_text)
from text2grad.app.workbench import InputError,Workbench

R = 'Neil Armstrong walked there in 1968. He was an American astronaut. It is far away, but the Moon is dry and the Moon is grey.'
P = [dict(role='system', content='Be brief.'), dict(role='user', content='Who first walked on the Moon?')]
ALL = ('heat','note','table','phrase','places','words','text','base','asked','lost','good','poor','here','flip','remove','automatic')

@pytest.fixture
def bench(tmp_path): return Workbench(feedback=tmp_path/'feedback.jsonl')

@pytest.fixture(scope='module')
def policy():
    from text2grad.span_ppo.policy import Policy
    from text2grad.pretrained import tiny_lm
    return Policy.create(*tiny_lm())

words = st.sampled_from('the Moon is dry and grey far away 1968 1986 wrong good Remove replace with Add "the Moon" “astronaut” , . \n not American vague'.split(' '))
feedback = st.lists(words, max_size=25).map(' '.join)

@settings(max_examples=150, deadline=None)
@given(feedback)
def test_without_a_fix_the_spans_are_those_of_align(text):
    c = critique_of(Draft(P, R, text))
    if not text.strip(): assert c is None
    else: assert sorted(map(repr, c.spans))==sorted(map(repr, align(R, text).spans))

@settings(max_examples=100, deadline=None)
@given(feedback, st.lists(st.tuples(st.integers(0, 30), st.sampled_from(['flip','remove','move','move2','automatic'])), max_size=6))
def test_any_series_of_fixes_survives_the_file(text, acts):
    d = Draft(P, R, text, meta=dict(id='row-1', task='answer'), reference=['Armstrong']).marked(3, 9, True, 'slight', 'why')
    for i,act in acts:
        ps = phrases(d)
        k = ps[i%len(ps)].key
        d = dict(flip=d.flipped, remove=d.removed, automatic=d.automatic)[act](k) if act in ('flip','remove','automatic') else d.moved(k, (0, 4), *([(5, 14)] if act=='move2' else []))
    r = json.loads(json.dumps(record_of(d)))
    assert problems(r)==[] and from_record(r).critique==critique_of(d)
    back = draft_of(r)
    assert critique_of(back)==critique_of(d) and back.text==d.text and back.marks==d.marks and back.meta==d.meta
    assert [(p.key, p.state, p.spans) for p in phrases(back)]==[(p.key, p.state, p.spans) for p in phrases(d)]

@settings(max_examples=60, deadline=None)
@given(st.text(max_size=60), st.text(max_size=60))
def test_any_text_and_any_feedback_gives_candidates_inside_the_response(response, text):
    d = Draft('', response, text)
    try: ps = phrases(d)
    except ValueError as e: assert 'JSON' in str(e); return
    for p in ps:
        for c in candidates(response, p): assert 0<=c.start<c.end<=len(response) and .3<=c.similarity<=1
    assert word_table(response).response==response

def test_candidates_hold_what_a_person_would_choose():
    text = 'The committee met on Tuesday in Geneva. It approved a budget of 40 million euros. Three members left early.'
    right = {'"met on Thursday" is wrong.':'met on Tuesday', '"a budget of 50 million" is wrong.':'a budget of 40 million', '"Four members" is wrong.':'Three members',
             '"the comittee meet" is odd.':'The committee met', '"approves the budget" is wrong.':'approved a budget'}
    for said,words in right.items():
        p = phrases(Draft('', text, said))[0]
        a,b = text.index(words),text.index(words)+len(words)
        best = candidates(text, p)
        assert any(c.start<b and a<c.end and min(b, c.end)-max(a, c.start)>=.5*max(b-a, c.end-c.start) for c in best[:3]), (said, [text[c.start:c.end] for c in best])

def test_two_phrases_with_the_same_words_are_two_phrases():
    d = Draft('', R, '"dry" is vague. "dry" is vague.')
    ps = phrases(Draft('', R, dumps(dict(critique='', good_spans=[], poor_spans=[dict(quote='dry', reason='r', severity=s) for s in (1,3)], missing=[]))))
    assert len({p.key for p in ps})==2 and [round(p.score, 2) for p in ps]==[-.33, -1.]
    assert len({p.key for p in phrases(d)})==len(phrases(d))

def test_a_fix_outlives_typing_and_waits_while_its_phrase_is_gone():
    d = Draft('', R, '"the Moon" is vague.')
    k = phrases(d)[0].key
    d = d.moved(k, (107, 115))
    gone = Draft('', R, 'Nothing like it.', fixes=d.fixes)
    assert all(p.state!='by hand' for p in phrases(gone)) and record_of(gone)['draft']['fixes']=={}
    assert phrases(Draft('', R, 'It is good. "the Moon" is vague.', fixes=d.fixes))[1].spans[0].start==107

def test_a_critic_s_critique_can_be_mended():
    base = Critique('Bad.', [Span(0, 4, -.5, 'Neil', 'no'), Span(87, 95, -1., 'the Moon', 'vague', 'exact'), Span(107, 115, -1., 'the Moon', 'vague', 'exact')],
                    [Quote('the date', -1., 'missing'), Quote('Buzz', -1., 'who')], 'rules/x/1')
    d = Draft('', R, base=base)
    ps = {p.quote:p for p in phrases(d)}
    assert {q:p.state for q,p in ps.items()}=={'Neil':'aligned', 'the Moon':'ambiguous', 'the date':'missing', 'Buzz':'unaligned'}
    d = d.moved(ps['Buzz'].key, (5, 14)).removed(ps['Neil'].key)
    c = critique_of(d)
    assert [(s.start, s.end) for s in c.spans]==[(87, 95), (107, 115), (5, 14)] and [q.text for q in c.unresolved]==['the date'] and c.source=='human, from rules/x/1'
    assert draft_of(record_of(d))==d

def test_what_a_critic_misses_stays_at_the_end_through_a_draft(tmp_path):
    r = 'A ferry sank.'
    c = Critique('No day, no name.', [Span(2, 7, .5), Span(13, 13, -.4, 'day', 'No day.'), Span(13, 13, -.2, 'name', 'No name.')], source='rules')
    d = Draft('Sum up.', r, base=c)
    assert [(p.quote, p.state) for p in phrases(d)]==[('ferry', 'aligned'), ('day', 'aligned'), ('name', 'aligned')]
    assert critique_of(d).spans==c.spans and '(missing at the end: day)' in inspector_html(d)
    key = phrases(d)[1].key
    assert [s.score for s in critique_of(d.flipped(key)).spans]==[.5, .4, -.2] and len(critique_of(d.removed(key)).spans)==2
    assert [(s.start, s.end) for s in critique_of(d.moved(key, (13, 13))).spans][1]==(13, 13)
    with pytest.raises(ValueError, match='no words are selected'): d.marked(3, 3, True)

def test_spans_edited_in_the_file_win_over_the_draft():
    r = record_of(Draft('', R, '"the Moon" is vague.'))
    r['spans'][0]['score'] = -.5
    d = draft_of(r)
    assert d.text=='' and d.base.spans[0].score==-.5 and phrases(d)[0].origin=='critic'

@pytest.mark.parametrize('junk', [None, 1, [], {}, dict(text=1, base=None, marks=[], fixes={}), dict(text='x', base={}, marks=[], fixes={}), dict(text='x', base=None, marks=[{}], fixes={}),
    dict(text='x', base=None, marks=[], fixes={'k':{'at':5, 'flip':1}}), dict(text='x', base=None, marks=[], fixes=[1]), dict(text='x', base=None, marks=[dict(start=-1, end=4, score=2)], fixes={})])
def test_a_spoilt_draft_costs_no_critique(junk):
    r = record_of(Draft('', R, '"the Moon" is vague.')) | dict(draft=junk)
    assert draft_of(r).base==from_record(r).critique

def test_what_is_saved_is_what_annotate_and_training_read(bench, policy, tmp_path):
    use_text(bench, 's', 'Who?', R)
    d = type_feedback(bench, 's', '"the Moon" is vague. It is good that it says "American astronaut".')
    fix_phrase(bench, 's', phrases(d.draft)[0].key, 'places', ['107-115'])
    save_critique(bench, 's')
    ex, = read_feedback(bench.feedback)
    assert ex.critique==critique_of(d.draft) and ex.critique.source=='human'
    labels,severity = token_labels(ex.critique, word_table(R).offsets)
    assert [R[a:b].strip() for (a,b),l in zip(word_table(R).offsets, labels) if l==0]==['the','Moon'] and severity.max()==1
    from text2grad.critics.base import RuleCritic
    critic = RuleCritic([lambda e: [Quote('dry', -1., 'dull')]], 'one')
    out = tmp_path/'critiques.jsonl'
    assert annotate(bench.feedback, critic, out, cache=None, progress=False).judged==1
    got, = read_examples(out)
    assert (got.prompt, got.response, got.meta['id'])==('Who?', R, feedback_id('Who?', R)) and [got.response[s.start:s.end] for s in got.critique.spans]==['dry']
    assert draft_of(read_records(out)[0]).base==got.critique, 'an annotated file does not show our old draft as the new critique'

def test_a_duplicate_is_replaced_in_its_place_and_others_stay(tmp_path):
    f = tmp_path/'deep'/'feedback.jsonl.gz'
    ds = [Draft('', f'{i} {R}', '"the Moon" is vague.') for i in range(3)]
    assert [save_record(f, record_of(d)) for d in ds]==[('added',1),('added',2),('added',3)]
    was = read_records(f)
    assert save_record(f, record_of(ds[1].marked(0, 1, True)))==('replaced',3)
    now = read_records(f)
    assert now[0]==was[0] and now[2]==was[2] and len(now[1]['spans'])==3

def test_a_box_that_the_page_filled_has_no_news(bench):
    "Its answer may come late, and must not take back what was said since"
    d = use_text(bench, 's', '', R)
    d.note = 'Saved.'
    late = render(type_feedback(bench, 's', ''), 'heat', 'note')
    assert late['note'] is None and late['heat'] and d.note=='Saved.'
    assert 'Nothing is said' in render(type_feedback(bench, 's', '"dry" is vague.') and type_feedback(bench, 's', ' '), 'note')['note']

def test_a_file_that_is_no_feedback_file_is_left_alone(bench):
    use_text(bench, 's', '', R)
    type_feedback(bench, 's', '"dry" is vague.')
    bench.feedback.write_text('my notes\n')
    with pytest.raises(InputError, match='not valid JSON'): save_critique(bench, 's')
    assert bench.feedback.read_text()=='my notes\n'
    with pytest.raises(InputError, match='not valid JSON'): use_text(bench, 'other', '', R)

def test_many_sessions_save_at_once(tmp_path):
    f,errors = tmp_path/'f.jsonl',[]
    def go(i):
        try: save_record(f, record_of(Draft('', f'{i} {R}', '"dry" is vague.')))
        except Exception as e: errors.append(e)
    ts = [threading.Thread(target=go, args=(i,)) for i in range(12)]
    for t in ts: t.start()
    for t in ts: t.join()
    assert not errors and len(read_records(f))==12

def test_odd_characters_go_through(bench):
    odd = 'a\ud800b <img src=x onerror=alert(1)> 👩‍👩‍👧 \u202e\tend\r\n  '
    use_text(bench, 's', '\ud800', odd)
    d = type_feedback(bench, 's', '"<img src=x onerror=alert(1)>" is <script>bad</script>.')
    page = json.dumps(render(d, *ALL)).replace('\\"', '"')
    assert '<img' not in render(d, 'heat')['heat']+render(d, 'table')['table']+render(d, 'note')['note'] and '&lt;img' in page
    save_critique(bench, 's')
    assert read_examples(bench.feedback)[0].response==odd and use_text(bench, 't', '\ud800', odd).draft.text==d.draft.text

def test_json_half_typed_is_said_and_nothing_is_lost(bench):
    use_text(bench, 's', '', R)
    good = type_feedback(bench, 's', '"dry" is vague.').draft
    d = type_feedback(bench, 's', '{"critique": "half')
    assert d.draft==good and 'JSON' in d.note and render(d, 'heat','phrase')=={'heat':None, 'phrase':None}
    with pytest.raises(InputError, match='JSON'): save_critique(bench, 's')
    assert not bench.feedback.exists()
    d = type_feedback(bench, 's', dumps(dict(critique='x', good_spans=[], poor_spans=[dict(quote='grey', reason='r', severity=2)], missing=[])))
    assert not d.broken and [R[s.start:s.end] for s in critique_of(d.draft).spans]==['grey']

@pytest.mark.parametrize('call', [
    lambda b: type_feedback(b, 's', 5), lambda b: type_feedback(b, 's', 'x'*20_001), lambda b: use_text(b, 's', '', ' '), lambda b: use_text(b, 's', None, None), lambda b: use_text(b, 's', '', 'x'*20_001),
    lambda b: mark_words(b, 's', 'absent', 'poor', 'clear', ''), lambda b: mark_words(b, 's', 'the Moon', 'poor', 'clear', ''), lambda b: mark_words(b, 's', '', 'poor', 'clear', ''),
    lambda b: mark_words(b, 's', 'dry', 'bad', 'clear', ''), lambda b: mark_words(b, 's', 'dry', 'poor', float('nan'), ''), lambda b: mark_words(b, 's', 'dry', 'poor', 'clear', ['x']),
    lambda b: fix_phrase(b, 's', 'no such', 'flip'), lambda b: fix_phrase(b, 's', None, 'explode'), lambda b: fix_phrase(b, 's', None, 'here'),
    lambda b: fix_phrase(b, 's', None, 'places', ['0-999999']), lambda b: fix_phrase(b, 's', None, 'places', 'x'), lambda b: fix_phrase(b, 's', None, 'places', ['5-2']), lambda b: fix_phrase(b, 's', None, 'places', [None]),
    lambda b: pick_words(b, 's', '{"kind":"token"}'), lambda b: pick_words(b, 's', None), lambda b: pick_words(b, 's', dumps(dict(kind='selection', i=0, start=0, end=10**9))),
    lambda b: pick_phrase(b, 's', 'gone'), lambda b: pick_phrase(b, 's', ['x']), lambda b: type_feedback(b, 7, 'x'), lambda b: save_critique(b, 'x'*99)])
def test_what_a_user_should_not_send_is_refused_by_name(bench, call):
    use_text(bench, 's', '', R)
    before = type_feedback(bench, 's', '"dry" is vague.').draft
    with pytest.raises(InputError) as e: call(bench)
    assert ':' in str(e.value) and desk_of(bench, 's').draft==before and not bench.feedback.exists()

def test_every_handler_without_a_response_says_what_to_do(bench):
    for f in (lambda: type_feedback(bench, 's', 'x'), lambda: mark_words(bench, 's', 'x', 'poor', 'clear', ''), lambda: fix_phrase(bench, 's', 'k', 'flip'), lambda: save_critique(bench, 's'),
              lambda: begin_with(bench, 's', True), lambda: pick_phrase(bench, 's', 'k'), lambda: measure_text(bench, 's'), lambda: pick_words(bench, 's', '{}')):
        with pytest.raises(InputError, match='Explore'): f()
    assert 'no response yet' in render(desk_of(bench, 's'), *ALL)['note']

def test_the_desk_opens_on_the_example_and_gives_way_to_what_is_pasted(bench):
    d = open_case(bench, 's')
    got = render(d, *ALL)
    assert d.draft.response==ANSWER and len(d.theirs.spans)==2 and 'what the critic said' in got['note'] and got['base']==(False, True)
    assert [got[k]['visible'] for k in ('good','poor','here','flip','remove','automatic')]==[False]*6, 'nothing is selected and nothing said yet'
    use_text(bench, 's', 'Who?', R)
    assert open_case(bench, 's').draft.response==R

def test_selected_words_are_good_or_poor_at_one_press(bench):
    use_text(bench, 's', '', R)
    for verdict in ('good','poor'):
        with pytest.raises(InputError, match='select some'): mark_picked(bench, 's', verdict)
        d = pick_words(bench, 's', dumps(dict(kind='selection', i=7, start=46, end=65)))
        assert render(d, verdict)[verdict]==dict(value=f'“American astronaut” is {verdict}', visible=True) and not render(d, 'flip')['flip']['visible'] or verdict=='poor'
        d = mark_picked(bench, 's', verdict)
        assert not render(d, verdict)[verdict]['visible'] and render(d, 'flip')['flip']['visible']
    assert [(R[m.start:m.end], m.score) for m in d.draft.marks]==[('American astronaut', 1.), ('American astronaut', -1.)]

def test_a_quote_that_is_not_there_is_said_before_anything_is_saved(bench):
    use_text(bench, 's', '', R)
    d = type_feedback(bench, 's', '"Buzz <b>Aldrin" is wrong. "dry" is right. Well done otherwise.')
    said = render(d, 'lost')['lost']
    assert 'Not in the response' in said and 'Buzz &lt;b&gt;Aldrin' in said and 'dry' not in said and 'Well done' not in said
    assert 'Not saved yet: 1 quote not in' in save_critique(bench, 's').note and not bench.feedback.exists()
    type_feedback(bench, 's', '"Buzz <b>Aldrin" is wrong. "dry" is fine. "Collins" is invented.')
    assert 'Not saved yet: 2 quotes' in save_critique(bench, 's').note and not bench.feedback.exists(), 'it is asked again once the critique has changed'
    assert 'Saved to' in save_critique(bench, 's').note and len(read_records(bench.feedback))==1
    assert lost_html(Draft('', R, '"dry" is right.'))==''

def test_a_pick_finds_the_words_and_the_phrase(bench):
    use_text(bench, 's', '', R)
    d = type_feedback(bench, 's', '"the Moon" is vague. It is good that it says "American astronaut".')
    pick_words(bench, 's', dumps(dict(kind='selection', i=7, start=46, end=65)))
    assert d.picked==(47, 65) and 'American' in json.loads(d.key)[1] and render(d, 'words')['words']=='American astronaut'
    pick_words(bench, 's', dumps(dict(kind='phrase', i=0, start=87, end=95)))
    assert 'Moon' in d.key
    fix_phrase(bench, 's', None, 'here')
    assert [(s.start, s.end) for s in phrases(d.draft)[0].spans]==[(87, 95)] and phrases(d.draft)[0].state=='by hand'
    assert d.key==phrases(d.draft)[0].key and render(d, 'places')['places'][1]==['87-95']

def test_the_phrase_that_needs_a_hand_is_looked_at_first(bench):
    use_text(bench, 's', '', R)
    d = type_feedback(bench, 's', 'It is good that it says "American astronaut". "Buzz Aldrin" is wrong.')
    assert 'Buzz' in d.key and render(d, 'places')['places'][1]==[]

def test_the_other_views_see_the_critique_and_the_critic_s_comes_back(bench, policy):
    from text2grad.span_ppo.inspection import measure
    b = Workbench(policy, feedback=bench.feedback)
    theirs = Critique('Bad.', [Span(0, 4, -1., 'Neil', 'no')], source='rules')
    s = b.session('s')
    s.hold(measure(policy, Example('Who?', R, theirs, meta=dict(id='row'))))
    logp = s.case.table['logp']
    d = open_case(b, 's')
    assert s.case.critique==theirs and d.theirs==theirs and render(d, 'base')['base']==(False, True)
    s.step = 'a step'
    type_feedback(b, 's', '"dry" is vague.')
    assert [R[x.start:x.end] for x in s.case.critique.spans]==['dry'] and s.step is None and (s.case.table['logp']==logp).all()
    begin_with(b, 's', True)
    assert len(s.case.critique.spans)==2
    begin_with(b, 's', False), type_feedback(b, 's', '')
    assert s.case.critique==theirs
    type_feedback(b, 's', '"dry" is vague.')
    save_critique(b, 's')
    assert read_records(b.feedback)[0]['example']=='row'
    s.hold(measure(policy, Example('Another?', 'Other text.')))
    assert open_case(b, 's').draft.response=='Other text.'
    s.hold(measure(policy, Example('Who?', R, theirs)))
    assert open_case(b, 's').draft.text=='"dry" is vague.' and len(s.case.critique.spans)==1

def test_a_pasted_text_reaches_the_other_views(policy, tmp_path):
    b = Workbench(policy, feedback=tmp_path/'f.jsonl')
    use_text(b, 's', 'Who?', 'It is dry.')
    type_feedback(b, 's', '"dry" is vague.')
    assert 'do not look at this text yet' in render(desk_of(b, 's'), 'note')['note']
    d = measure_text(b, 's')
    c = b.session('s').case
    assert c.response=='It is dry.' and c.critique==critique_of(d.draft)
    for again in (lambda: d, lambda: measure_text(b, 's'), lambda: list(show_pasted(b, 's', 'Who?', 'It is dry.'))[-1], lambda: type_feedback(b, 's', '"dry" is good.')):
        assert f'look at this text too: {len(c)} tokens' in render(again(), 'note')['note'], 'a note says how things are, however often it is asked'
    use_text(b, 't', 'Who?', 'word '*3000)
    with pytest.raises(InputError, match='Shorten|shorten|tokens'): measure_text(b, 't')
    assert desk_of(b, 't').draft is not None

def test_a_text_that_is_in_view_already_keeps_what_was_said_of_it(policy, tmp_path):
    from text2grad.span_ppo.inspection import measure
    b,theirs = Workbench(policy, feedback=tmp_path/'f.jsonl'),Critique('Bad.', [Span(0, 4, -1., 'Neil', 'no')], source='rules')
    b.session('s').hold(measure(policy, Example('Who?', R, theirs)))
    open_case(b, 's')
    for prompt in ('Who?', ''):
        d = list(show_pasted(b, 's', prompt, R))[-1]
        note = render(d, 'note')['note']
        assert d.theirs==theirs and d.draft.prompt=='Who?' and 'what the critic said' in note and 'look at this text too' in note

def test_no_answer_writes_into_the_boxes_for_another_text(bench):
    "They are the visitor's: an answer that comes late would take away what was typed meanwhile"
    import gradio as gr
    from text2grad.app.page import page
    demo = page(gr, bench)
    boxes = {b._id for b in demo.blocks.values() if getattr(b, 'elem_id', None) in ('t2g-critique-prompt','t2g-critique-response')}
    assert len(boxes)==2 and not [f for f in demo.fns.values() if boxes & {o._id for o in f.outputs}]

def test_a_chat_prompt_is_kept_when_only_the_response_is_edited(bench):
    d = desk_of(bench, 's')
    d.draft = Draft(P, R, meta=dict(task='answer'))
    assert use_text(bench, 's', 'Who first walked on the Moon?', 'Another.').draft.prompt==P
    assert use_text(bench, 's', '', 'A third.').draft.prompt==P and use_text(bench, 's', '', 'A third.').draft.meta==dict(task='answer')
    assert use_text(bench, 's', 'Something else', 'Another.').draft.prompt=='Something else'

def test_the_app_imports_no_gradio():
    import subprocess,sys
    code = 'import sys,text2grad.app.view_critique,text2grad.app.drafts; sys.exit("gradio" in sys.modules)'
    assert subprocess.run([sys.executable, '-c', code]).returncode==0

# What nobody can tell, and what looks like JSON

UNTOLD_TEXTS = ['"American astronaut", once more.', '“the Moon” 12.', "Line 1.", '`far away`: see above.']

@pytest.mark.parametrize('text', UNTOLD_TEXTS)
def test_a_phrase_without_a_sign_is_asked_about_and_a_person_decides(bench, text):
    use_text(bench, 'a', '', R)
    d = type_feedback(bench, 'a', text)
    p = phrases(d.draft)[0]
    assert (p.state, p.score, d.key)==(UNDECIDED, 0., p.key) and p.spans
    assert critique_of(d.draft).spans==() and [q.score for q in critique_of(d.draft).unresolved]==[0.]
    table = inspector_html(d.draft)
    assert 'praise or blame?' in table and 'Cannot tell' not in table and 'not in the response' not in table
    assert 'praise or blame?' in phrase_choices(d.draft)[0][0]
    for sign,said in ((-1., 'blame'), (1., 'praise'), (-1., 'blame')):
        d = fix_phrase(bench, 'a', p.key, 'flip')
        assert said in d.note and {s.score for s in critique_of(d.draft).spans}=={sign} and not critique_of(d.draft).unresolved
        assert {(s.start, s.end) for s in critique_of(d.draft).spans}=={(s.start, s.end) for s in p.spans}
        assert draft_of(record_of(d.draft))==replace(d.draft, meta=draft_of(record_of(d.draft)).meta)
    d = fix_phrase(bench, 'a', p.key, 'automatic')
    assert phrases(d.draft)[0].state==UNDECIDED
    d = fix_phrase(bench, 'a', p.key, 'remove')
    assert phrases(d.draft)[0].state=='removed' and not critique_of(d.draft).spans

def test_a_sign_that_a_file_cannot_have_is_none():
    d = Draft(P, R, UNTOLD_TEXTS[0])
    r = record_of(d.flipped(phrases(d)[0].key))
    for odd in (5, 'very', None, True):
        for f in r['draft']['fixes'].values(): f['sign'] = odd
        assert draft_of(r).base is not None # the file's spans win

@pytest.mark.parametrize('text', ['`dry` is wrong. Write\n```python\nx = 1\n```', '[minor] "dry" is wrong.', '{x} "dry" is wrong', '[1] "dry" is wrong.', '```\n"dry" is wrong.\n```\n"dry" is wrong.',
    '- [ ] "dry" is wrong', '"dry" is wrong {see above}'])
def test_prose_with_brackets_and_fences_is_prose(bench, text):
    use_text(bench, 'a', '', R)
    d = type_feedback(bench, 'a', text)
    assert not d.broken and [(R[s.start:s.end], s.score) for s in critique_of(d.draft).spans]==[('dry', -1.)]

@pytest.mark.parametrize('text', ['{"critique": "x", "good_spans": [', '{"poor_spans": ["dry"'])
def test_what_is_json_and_broken_says_so(bench, text):
    use_text(bench, 'a', '', R)
    assert 'looks like JSON' in type_feedback(bench, 'a', text).broken

def test_too_much_is_told_and_stays_on_the_page(bench):
    use_text(bench, 'a', '', 'a b '*5000)
    d = type_feedback(bench, 'a', '"a b" is bad.')
    assert '5,000 places' in d.broken and '1,000 are taken' in d.broken
    assert render(d, *ALL)['table'] is None
    assert not type_feedback(bench, 'a', 'It is bad.').broken

def test_a_saved_critique_says_whose_it_may_be(bench):
    use_text(bench, 'a', '', R)
    type_feedback(bench, 'a', '"dry" is wrong.')
    save_critique(bench, 'a')
    assert use_text(bench, 'b', '', R).note.startswith('Your critique was opened')
    bench.shared = True
    assert use_text(bench, 'c', '', R).note.startswith('A critique that somebody saved was opened')
