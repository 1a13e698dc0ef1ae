"Importers and exporters of human feedback: the traps of each format, written here row by row, and faults at every field"
import copy,gzip,json,logging
from dataclasses import replace
import pytest
from hypothesis import given,settings,strategies as st
from text2grad.alignment.tokens import token_rewards
from text2grad.core import Critique,Example,Quote,RecordError,Span,from_record,problems,read_examples,to_record,write_examples
from text2grad.critics.base import rule_critic
from text2grad.files import rows
from text2grad.data.readers import char_offsets,diff_spans,locate,read_rows
from text2grad.data.importers import from_defacto,from_haluquestqa,from_kodcode,from_paper,from_qa_feedback,from_slf5k,from_squad,word_spans
from text2grad.data.exporters import to_dataset,to_defacto,to_haluquestqa,to_kodcode,to_paper_code,to_paper_text,to_paper_words,to_preference,to_prompt_completion,to_qa_feedback,to_slf5k,to_squad,to_unpaired,write_rows

def spans(ex): return to_record(ex)['spans']
def texts(ex): return [s['text'] for s in spans(ex)]

DEFACTO = dict(article='The mill at Aas burned on Sunday. Nobody was hurt, and the miller, 61, will rebuild.', abstract='A mill burned.', doc_id=3, has_error=True, intrinsic_error=True, extrinsic_error=False,
    candidate='The mill at Aas, a mill from 1850, burned on Monday.',
    feedback=dict(summary='The mill at Aas burned on Sunday.', evidence='The mill at Aas burned on Sunday.', explanation='The year is made up, and the day is wrong.',
                  instruction='Remove the information about a mill from 1850 from the summary. Replace the information about Monday with the information about Sunday.',
                  instruction_list=['Remove the information about a mill from 1850 from the summary.', 'Replace the information about Monday with the information about Sunday.']))
QA = {'question': 'How long is the Vel?', 'passages': [['Vel', 'The Vel is 90 km long.', 'It ends in the sea.'], ['Oda', 'The Oda is short.']], 'gold': '90 km.',
      'prediction 1': 'The Vel is 19 km long. The Oda is short.', 'prediction 2': '90 km.', 'prediction 3': '9 km.', 'prediction 4': 'Long.',
      'feedback': {'errors': [{'error type': 'Wrong-Grounding', 'explanation': '{"passage_id":1,"sentence_id":[1]}', 'start': 11, 'end': 13}, {'error type': 'Irrelevant', 'explanation': '', 'start': 23, 'end': 40}],
                   'missing-info': [{'error type': 'Missing-Answer', 'passage_id': 1, 'sentence_id': [1, 2]}], 'corrected-prediction': 'The Vel is 90 km long.'}, 'preference': [0, 1, 2, 1, 0, 2]}
HALU = dict(source_file='f.txt', annotator='ann', question_text='Why do cats purr?', ans1_text='Cats purr because they are happy. Cats "sing" too.', ans2_text='They purr to\theal.\r\nAnd to rest.',
    factuality_span="""['Cats "sing" too.']""", factuality_label="['answer1']", factuality_reason=repr(['They don\'t "sing".\r\nNo source.']), irrelevance_span="['And to rest.']", irrelevance_label="['answer2']",
    irrelevance_reason="['Not asked.']", reference_example_span="['They are happy']", reference_example_label="['answer1']", reference_example_reason="['Clear.']", reference_example_helpful='[True]',
    ques_misconception_span='', ques_misconception_label='', ques_misconception_reason='', ans1_label='human_answer', ans2_label='model_answer', ans_preference='Answer 1', ans_preference_reason='Warm.',
    category='biology', factuality_human_score='0.5', factuality_model_score='1.0')
SLF5K = dict(id='t3_x', title='Late train', post='My train was late by two hours, so I missed the exam.', generated_summary_for_feedback='The train was early and I passed the exam.', feedback='The train was late, not early.',
    feedback_class='Accuracy', ideal_human_summary='I missed an exam because of a late train.', comparison_preference='Summary B', generated_summary_for_comparison_A='Late.', generated_summary_for_comparison_B='Missed.', subreddit='r')
SQUAD = dict(title='Vel', paragraphs=[dict(context='The Vel is 90 km long.', qas=[dict(id='a', question='How long?', answers=[dict(text='90 km', answer_start=11)]), dict(id='b', question='How deep?', answers=[], is_impossible=True)])])
KOD = dict(question_id='K1', question='Write `inc(n)`.', solution='def inc(n): return n+1', test='from solution import inc\n\ndef test_inc(): assert inc(1)==2', test_info=[dict(function_name='inc', function_declaration='def inc(n):')], style='full')
PAPER = dict(prompt='Name a river.', response='The Vel, which is a lake.', critique='Half right.', annotations=dict(good_spans=['The Vel'], poor_spans=['a lake']))
IMPORTERS = dict(defacto=(from_defacto, DEFACTO), qa=(from_qa_feedback, QA), halu=(from_haluquestqa, HALU), slf5k=(from_slf5k, SLF5K), squad=(from_squad, SQUAD), kodcode=(from_kodcode, KOD), paper=(from_paper, PAPER))

# Reading files

def test_bom_crlf_and_line_separators_inside_strings(tmp_path):
    row = DEFACTO | dict(candidate='A mill\u2028at Aas.')
    (tmp_path/'train.jsonl').write_bytes('\ufeff'.encode()+'\r\n'.join(json.dumps(r, ensure_ascii=False) for r in (DEFACTO, row)).encode()+b'\r\n\r\n')
    exs = from_defacto(tmp_path/'train.jsonl')
    assert [e.response for e in exs]==[DEFACTO['candidate'], row['candidate']] and [e.meta['id'] for e in exs]==['defacto/train/0', 'defacto/train/1']

@pytest.mark.parametrize('name', ['a.jsonl','a.jsonl.gz','a.json','a.json.gz','a.tsv','a.csv.gz'])
def test_rows_survive_writing_and_reading(tmp_path, name):
    rows = [dict(a='tab\tand "quotes"', b="it's\r\ntwo lines"), dict(a='𝒳 é \u2028', b='')]
    write_rows(tmp_path/name, rows)
    assert [r for _,r,_ in read_rows(tmp_path/name)[1]]==rows

def test_gzip_is_known_by_its_bytes(tmp_path):
    (tmp_path/'x.jsonl').write_bytes(gzip.compress(b'{"a": 1}\n'))
    assert read_rows(tmp_path/'x.jsonl')[1]==[(1, dict(a=1), '')]

@pytest.mark.parametrize('data,name,why', [(gzip.compress(b'{"a": 1}\n'*50, mtime=0)[:-12], 'x.jsonl.gz', 'not a whole gzip file'), ('{"a": "\u00e9"}'.encode('latin-1'), 'x.jsonl', 'not UTF-8 at byte 7'),
    (b'{"a": 1}\n', 'x.jsonl.gz', 'not a whole gzip file'), (b'{"a": 1}\n\xff\n', 'x.jsonl', 'row 2: not UTF-8 at byte 0'), (b'{"a": 1}\n{"a": 2}\n', 'x.json', 'if it holds one object a line, call it .jsonl'), (b'a\tb\n"open\t2\n', 'x.tsv', 'row 1: not a valid table'), (b'', 'x.jsonl', 'no rows'), (b'[]', 'x.json', 'no rows'), (b'a\tb\n', 'x.tsv', 'no rows')])
def test_a_broken_file_is_refused_with_the_remedy(tmp_path, data, name, why):
    (tmp_path/name).write_bytes(data)
    with pytest.raises(RecordError, match=why): from_defacto(tmp_path/name)

def test_wrong_paths(tmp_path):
    with pytest.raises(FileNotFoundError, match='no such file'): from_defacto(tmp_path/'none.jsonl')
    with pytest.raises(IsADirectoryError): from_defacto(tmp_path)
    (tmp_path/'x.parquet').write_bytes(b'PAR1')
    with pytest.raises(RecordError, match='not a whole Parquet file'): from_defacto(tmp_path/'x.parquet')
    (tmp_path/'x.xlsx').write_bytes(b'PK')
    with pytest.raises(ValueError, match='it must end in .jsonl'): from_defacto(tmp_path/'x.xlsx')

def test_one_bad_row_costs_one_row(tmp_path, caplog):
    lines = [json.dumps(DEFACTO), '{"article": NaN}', '{"a": 1, "a": 2}', '[1]', '{"article": "x"', json.dumps(DEFACTO)]
    (tmp_path/'x.jsonl').write_text('\n'.join(lines))
    with caplog.at_level(logging.WARNING): exs = from_defacto(tmp_path/'x.jsonl')
    assert len(exs)==2 and [i for i,_ in exs.report.skipped]==[2,3,4,5] and exs.report.rows==6
    assert '4 of 6 rows skipped' in caplog.text
    with pytest.raises(RecordError) as e: from_defacto(tmp_path/'x.jsonl', strict=True)
    assert all(f'row {i}: ' in str(e.value) for i in (2,3,4,5))

def test_another_file_is_refused_even_if_not_strict():
    with pytest.raises(RecordError, match='is this in the format of DeFacto'): from_defacto([QA])
    with pytest.raises(RecordError, match='is this in the format of HaluQuestQA'): from_haluquestqa([DEFACTO])

# Every importer: faults at every field

def paths(o, at=()):
    "Every place in a JSON value"
    yield at
    for k,v in (o.items() if isinstance(o, dict) else enumerate(o) if isinstance(o, list) else ()): yield from paths(v, (*at, k))

def put(o, at, v):
    root = o = copy.deepcopy(o)
    for k in at[:-1]: o = o[k]
    o[at[-1]] = v
    return root

JUNK = [None, 3, -1, 10**9, True, 2.5, '', 'x', '[', '{"passage_id": 9, "sentence_id": [9]}', "['a'", '(' * 3000, [], {}, [None], [[]], [{}], ['a', 1], {'text': 1}, '\ud800', '\x00']

@pytest.mark.parametrize('name', IMPORTERS)
def test_junk_in_any_field_skips_the_row_or_makes_a_sound_record(name):
    f,row = IMPORTERS[name]
    for at in list(paths(row))[1:]:
        for v in JUNK:
            exs = f([row, put(row, at, v)])
            assert all(problems(to_record(e))==[] and from_record(to_record(e))==e for e in exs)
            assert len(exs)>=1, 'the sound row is there whatever the other one is'

@pytest.mark.parametrize('name', IMPORTERS)
def test_a_missing_field_is_named_or_not_needed(name):
    f,row = IMPORTERS[name]
    for at in (p for p in paths(row) if p and isinstance(p[-1], str)):
        bad = copy.deepcopy(row); o = bad
        for k in at[:-1]: o = o[k]
        del o[at[-1]]
        for i,why in f([row, bad]).report.skipped: assert at[-1] in why or 'no critique' in why or 'none of' in why or 'labels' in why or 'answers' in why, (at, why)

@pytest.mark.parametrize('name', IMPORTERS)
def test_columns_without_a_place_are_reported(name):
    f,row = IMPORTERS[name]
    if name=='squad': row = copy.deepcopy(row); row['paragraphs'][0]['qas'][0]['surprise'] = 1
    else: row = row | dict(surprise=1)
    exs = f([row])
    assert exs.report.unused=={'surprise'} and 'columns not used: surprise' in str(exs.report)

@pytest.mark.parametrize('name', IMPORTERS)
def test_records_survive_the_disk(name, tmp_path):
    f,row = IMPORTERS[name]
    exs = f([row])
    write_examples(tmp_path/'r.jsonl.gz', exs)
    assert read_examples(tmp_path/'r.jsonl.gz')==list(exs)
    assert exs.report.examples==len(exs) and not exs.report.skipped and f'{len(exs)} examples' in str(exs.report)

def test_ids_are_unique_on_disk(tmp_path):
    exs = from_slf5k([SLF5K, SLF5K | dict(post='Another.'), SLF5K | dict(id='t3_y')])
    assert [e.meta['id'] for e in exs]==['slf5k/t3_x', 'slf5k/t3_x#2', 'slf5k/t3_y'] and 'an id of several rows' in str(exs.report)
    write_examples(tmp_path/'r.jsonl', exs)
    assert read_examples(tmp_path/'r.jsonl')==list(exs)

@pytest.mark.parametrize('name,task', [('defacto','summarize'), ('qa','answer'), ('squad','answer'), ('slf5k','summarize'), ('kodcode','code')])
def test_the_rule_critic_of_the_task_finds_what_it_reads(name, task):
    f,row = IMPORTERS[name]
    assert [c.source for c in rule_critic(task)(list(f([row]))) if c][:1]==[rule_critic(task).source]

# DeFacto

def test_defacto_record():
    r = to_record(from_defacto([DEFACTO], split='train')[0])
    assert [(s['origin'], s['text'], s['fix'], s['label']) for s in r['spans']]==[('diff', ', a mill from 1850,', '', 'edited'), ('diff', 'Monday', 'Sunday', 'edited'), ('match', 'a mill from 1850', '', 'remove'), ('match', 'Monday', 'Sunday', 'replace')]
    f = r['feedback'][r['spans'][3]['feedback']]
    assert f['kind']=='instruction' and f['text'][slice(*r['spans'][3]['phrase'])]=='Monday'
    assert r['correction']['text']==DEFACTO['feedback']['summary'] and r['scores']==dict(has_error=1., intrinsic=1., extrinsic=0.) and r['meta']['evidence_start']==0
    assert r['id']=='defacto/train/0' and r['reference']==['A mill burned.']

def test_an_instruction_means_the_place_that_the_correction_touched():
    row = DEFACTO | dict(candidate='On Monday it rained, and on Monday the mill burned.', feedback=dict(summary='On Monday it rained, and on Sunday the mill burned.', instruction_list=['Replace the information about Monday with the information about Sunday.']))
    got = [(s['start'], s['end']) for s in spans(from_defacto([row])[0]) if s['origin']=='match']
    assert got==[(28, 34)] and row['candidate'][28:34]=='Monday'

def test_what_an_instruction_names_and_the_summary_lacks_is_kept():
    row = DEFACTO | dict(feedback=dict(summary='', instruction_list=['Remove the information about the age of the miller from the summary.', 'Add the information about Sunday to the summary.', 'Write better.']))
    ex = from_defacto([row])[0]
    assert ex.critique.spans==() and ex.critique.unresolved==(Quote('the age of the miller', -1., 'Remove the information about the age of the miller from the summary.'), Quote('Sunday', -1., 'missing'))
    assert 'Write better.' in ex.critique.text

@pytest.mark.timeout(20)
def test_long_fields_do_not_hang():
    long = 'Remove the information about a'+' '*300+'b'*100+' '*50000+'c'
    short = 'Remove the information about a'+' '*900+'b c'
    exs = from_defacto([DEFACTO | dict(feedback=dict(summary='The mill burned.', instruction_list=[long, short]))])
    assert len(exs)==1 and long in exs[0].critique.text

def test_a_summary_without_fault_is_judged():
    ex = from_defacto([DEFACTO | dict(has_error=False, feedback=dict(summary='', explanation='Right.', instruction='', instruction_list=[]))])[0]
    assert ex.critique==Critique('Right.') and 'correction' not in ex.meta

def test_a_rewrite_makes_no_spans_and_says_so():
    exs = from_defacto([DEFACTO | dict(feedback=dict(summary='Fire destroyed an old building last weekend, police say.'))])
    assert [s for s in spans(exs[0]) if s['origin']=='diff']==[] and exs[0].meta['correction'] and 'more than 60%' in str(exs.report)

# Fine-Grained RLHF

def test_qa_record():
    ex = from_qa_feedback([QA])[0]
    r = to_record(ex)
    assert [(s['text'], s['score'], s['label'], s['origin']) for s in r['spans']]==[('19', -1., 'Wrong-Grounding', 'human'), ('The Oda is short.', -.5, 'Irrelevant', 'human')]
    assert r['spans'][0]['evidence']==[dict(input='passages', passage=1, sentences=[1])]
    assert ex.critique.unresolved==(Quote('The Vel is 90 km long. It ends in the sea.', -1., 'missing'),)
    assert r['prompt'].startswith('Answer the question from the passages.\n\nVel The Vel is 90 km long.') and r['prompt'].endswith('Question: How long is the Vel?\nAnswer:')

@pytest.mark.parametrize('enc,size', [('utf-16-le',2), ('utf-8',1)])
def test_qa_offsets_of_browsers_and_of_c(enc, size):
    answer = '🦉 Naïve 🦉: '+QA['prediction 1']
    count = lambda i: len(answer[:i].encode(enc))//size
    n = len(answer)-len(QA['prediction 1'])
    row = copy.deepcopy(QA) | {'prediction 1': answer}
    for e in row['feedback']['errors']: e['start'],e['end'] = count(e['start']+n),count(e['end']+n)
    exs = from_qa_feedback([row])
    assert texts(exs[0])==['19', 'The Oda is short.'] and 'are characters now' in str(exs.report)

def test_qa_offsets_of_python_stay_though_others_would_fit():
    answer = '🦉🦉 a b c d e f g'
    row = QA | {'prediction 1': answer, 'feedback': {'errors': [{'error type': 'Irrelevant', 'start': 7, 'end': 8}]}}
    assert texts(from_qa_feedback([row])[0])==['c']

def test_qa_offsets_outside_the_answer_are_refused():
    exs = from_qa_feedback([QA, put(QA, ('feedback','errors',0,'end'), 99), put(QA, ('feedback','errors',0,'start'), -2), put(QA, ('feedback','errors',0,'start'), 14)])
    assert [i for i,_ in exs.report.skipped]==[2,3,4] and 'do not lie inside the text' in str(exs.report)

def test_qa_redundant_names_the_earlier_text():
    answer = 'It is long. It is wet. It is long.'
    err = lambda why: {'error type': 'Redundant', 'explanation': why, 'start': 23, 'end': 34}
    rows = [QA | {'prediction 1': answer, 'feedback': {'errors': [err(w)]}} for w in ('It is long. ', 'It is  LONG.', 'It is dry and cold.')]
    exs = from_qa_feedback(rows)
    assert [spans(e)[0].get('repeats') for e in exs]==[[0, 11], [0, 11], None] and 'is said to repeat does not stand' in str(exs.report)
    assert exs[0].critique.spans[0].reason=='It is long. ' and spans(exs[0])[0]['text']=='It is long.'

def test_qa_scores_can_be_given():
    row = put(QA, ('feedback','errors',0,'error type'), 'Rude')
    assert 'scores=' in from_qa_feedback([QA, row]).report.skipped[0][1]
    assert spans(from_qa_feedback([row], scores=dict(Rude=-.25))[0])[0]['score']==-.25

def test_qa_without_errors_is_judged():
    ex = from_qa_feedback([QA | {'feedback': {'errors': [], 'missing-info': [], 'corrected-prediction': ''}}])[0]
    assert ex.critique==Critique('')

# HaluQuestQA

def halu_table(path, *rows):
    write_rows(path, rows)
    return path

def test_halu_table_with_everything_that_quoting_is_for(tmp_path):
    one,two = from_haluquestqa(halu_table(tmp_path/'complete_data.csv', HALU))
    assert [(s['text'], s['score'], s['label'], s['match']) for s in spans(one)]==[('Cats "sing" too.', -1., 'factuality', 'exact'), ('they are happy', 1., 'reference_example:helpful', 'normalized')]
    assert two.response=='They purr to\theal.\r\nAnd to rest.' and texts(two)==['And to rest.']
    assert to_record(one)['feedback'][0]==dict(text='They don\'t "sing".\r\nNo source.', kind='justification', annotator='ann', origin='human')
    assert one.meta['scores']==dict(factuality=.5) and two.meta['scores']==dict(factuality=1.) and one.meta['model']=='human' and two.meta['model']=='gpt-4'
    assert one.meta['preferences'][0]['preferred'] and one.meta['alternatives']==[two.response] and one.meta['id']=='haluquestqa/0/1'

def test_halu_annotators_overlap_and_join():
    ben = HALU | dict(annotator='ben', factuality_span="['they are happy. Cats', 'nowhere to be found']", factuality_label="['answer1', 'answer1']", factuality_reason="['Why?', 'Gone.']")
    exs = from_haluquestqa([HALU, ben, HALU | dict(source_file='g.txt')])
    assert len(exs)==4 and exs.report.examples==4
    r = to_record(exs[0])
    assert problems(r)==[] and {s['annotator'] for s in r['spans']}=={'ann','ben'}
    s = next(s for s in r['spans'] if s['text']=='they are happy. Cats')
    assert r['feedback'][s['feedback']]['text']=='Why?' and exs[0].critique.unresolved==(Quote('nowhere to be found', -1., 'Gone.'),)
    assert len(exs[0].meta['preferences'])==2

def test_halu_the_same_string_twice_means_two_places():
    row = HALU | dict(ans1_text='It is so. It is so. It is so.', factuality_span="['It is so.', 'It is so.']", factuality_label="['answer1', 'answer1']", factuality_reason='', reference_example_span='', reference_example_label='', reference_example_reason='', reference_example_helpful='')
    exs = from_haluquestqa([row])
    assert [(s['start'], s['end']) for s in spans(exs[0])]==[(0, 9), (10, 19)] and '3 times' in str(exs.report)

def test_halu_heading_stands_for_the_answer():
    row = HALU | dict(irrelevance_span="['ANSWER2:', 'ANSWER2: They purr']", irrelevance_label="['answer2', 'answer2']", irrelevance_reason="['a', 'b']")
    assert texts(from_haluquestqa([row])[1])==[HALU['ans2_text'], 'They purr']

def test_halu_cells_are_not_run(tmp_path):
    flag = tmp_path/'ran'
    bad = [HALU | dict(factuality_span=c) for c in (f"[__import__('pathlib').Path({str(flag)!r}).touch()]", f"open({str(flag)!r}, 'w')", '['*5000, "[1]", "{'a': 1}", "['a', 'b']")]
    exs = from_haluquestqa([HALU, *bad])
    assert not flag.exists() and len(exs)==2 and len(exs.report.skipped)==6
    assert 'factuality: 2 spans, 1 labels, 1 reasons' in exs.report.skipped[-1][1]

def test_halu_unknown_answer_is_refused():
    assert "'answer3' is neither" in from_haluquestqa([HALU, HALU | dict(factuality_label="['answer3']")]).report.skipped[0][1]

# SLF5K, SQuAD, KodCode

def test_slf5k_links_what_was_said():
    ex = from_slf5k([SLF5K], split='test')[0]
    r = to_record(ex)
    assert any('early' in s['text'] and s['score']<0 and s['origin']=='match' for s in r['spans']) and ex.reference==[SLF5K['ideal_human_summary']]
    assert r['feedback']==[dict(text=SLF5K['feedback'], kind='critique', origin='human', label='Accuracy')] and r['id']=='slf5k/test/t3_x' and ex.meta['document'].endswith(SLF5K['post'])
    for s in r['spans']: assert 'phrase' not in s or SLF5K['feedback'][slice(*s['phrase'])]==s['reason']

def test_slf5k_nobody_judged_is_not_no_fault():
    none,faint = from_slf5k([SLF5K | dict(feedback=None), SLF5K | dict(feedback='Nice.')])
    assert none.critique is None and faint.critique.text=='Nice.'

def test_squad_checks_where_answers_stand():
    art = lambda ctx,*answers: dict(title='t', paragraphs=[dict(context=ctx, qas=[dict(id=str(i), question='q', answers=[a]) for i,a in enumerate(answers)])])
    ctx = '🦉 one two one'
    exs = from_squad([art(ctx, dict(text='one', answer_start=2), dict(text='one', answer_start=11), dict(text='two', answer_start=7), dict(text='three', answer_start=0))])
    assert [w.split('; ')[-1] for _,w in exs.report.notes]==['it stands at 10', 'it stands at 6', "answer 'three' does not stand in its passage"]
    assert all(e.response=='' and e.critique is None for e in exs) and exs[0].meta['question']=='q'

def test_squad_file_and_places_in_messages(tmp_path):
    (tmp_path/'dev-v2.0.json').write_text(json.dumps(dict(version='v2.0', data=[SQUAD, dict(title='u'), dict(title='v', paragraphs=[dict(context=3, qas=[dict(question='q')])])])))
    exs = from_squad(tmp_path/'dev-v2.0.json')
    assert [e.reference for e in exs]==[['90 km'], ['not stated']] and exs[0].meta['id']=='squad/dev/a'
    assert [i for i,_ in exs.report.skipped]==[2, '3, paragraphs[0].qas[0]']

def test_kodcode_is_never_run(tmp_path):
    flag = tmp_path/'ran'
    exs = from_kodcode([KOD | dict(solution=f'open({str(flag)!r}, "w")', test=f'open({str(flag)!r}, "w")')])
    assert not flag.exists() and exs[0].meta['entry_point']=='inc' and exs[0].meta['tests_form']=='pytest'

# The paper's forms

def test_paper_shapes_agree():
    form = dict(textual_feedback='Half right.', good_spans=['The Vel'], poor_spans=['a lake'])
    base = dict(prompt=PAPER['prompt'], response=PAPER['response'])
    rows = [PAPER, base | form, base | dict(critique='```json\n'+json.dumps(form)+'\n```'), base | dict(critique='Half right.', good_spans=['The Vel'], poor_spans=['a lake']), base | dict(analysis=form)]
    got = [e.critique for e in from_paper(rows)]
    assert all(c==got[0] for c in got) and [(s.quote, s.score) for s in got[0].spans]==[('The Vel', 1.), ('a lake', -1.)]

def test_paper_file_keyed_by_id(tmp_path):
    (tmp_path/'train.json').write_text(json.dumps({'p1': dict(post='A cat.', generated_summary='A dog.', critique='{"textual_feedback": "No.", "good_spans": [], "poor_spans": ["dog"]}')}))
    ex = from_paper(tmp_path/'train.json')[0]
    assert ex.meta['id']=='text2grad/p1' and ex.meta['document']=='A cat.' and [s.quote for s in ex.critique.spans]==['dog']

@pytest.mark.parametrize('row', [PAPER | dict(critique='', annotations=dict(good_spans=[], poor_spans=[])), dict(post='p', generated_summary='s', critique='Error generating critique'), dict(question='q', solution='s', analysis=dict(error='timeout')),
                                 dict(prompt='p', response='r', critique='The answer is fine.'), dict(prompt='p', response='r')])
def test_a_failed_critic_is_no_praise(row):
    exs = from_paper([PAPER, row])
    assert len(exs)==1 and exs.report.skipped[0][0]==2

def test_words_are_found_in_their_order():
    got,lost = word_spans('The bat hit the bat. Then, the end.', [['The', 0], ['bat', 0], ['hit', 0], ['the', -1], ['bat', -1], ['Then', '-1'], ['the', 0], ['cat', 1], ['end', 1]])
    assert [(s.start, s.quote, s.score) for s in got]==[(12, 'the bat. Then', -1.), (31, 'end', 1.)] and lost==[Quote('cat', 1.)]
    with pytest.raises(ValueError, match=r'word_score_list\[0\]'): word_spans('a', [['a', 2]])

def test_words_do_not_hit_inside_words():
    assert word_spans('cart art', [['art', -1]])[0][0].start==5

# Corrections, strings, offsets

words = st.lists(st.sampled_from(['a','the','the','mill','burned',',','.','on','Monday','1850','é','🦉',' ','\n','naïve','co-op']), max_size=14).map(' '.join)

@settings(max_examples=300, deadline=None)
@given(words, words)
def test_edits_turn_the_response_into_the_correction(a, b):
    edits = diff_spans(a, b, max_changed=1.)
    put = a
    for s,e,fix in reversed(edits): put = put[:s]+fix+put[e:]
    assert put.split()==b.split()
    assert all(x[1]<=y[0] for x,y in zip(edits, edits[1:])) and all(0<=s<=e<=len(a) for s,e,_ in edits)
    assert (edits==[])==(a==b)

def test_an_insertion_is_an_empty_span_that_pays_what_was_written_instead():
    edits = diff_spans('It is red.', 'It is not red.')
    assert [(a, b) for a,b,_ in edits] in ([(5, 5)], [(6, 6)]) and edits[0][2].strip()=='not'
    a,b,_ = edits[0]
    assert token_rewards([Span(a, b, -1.)], [(0, 2), (3, 5), (6, 9), (9, 10)])==[0., 0., -1., 0.]

def test_what_rules_find_missing_keeps_its_place_on_disk_and_its_words_elsewhere(tmp_path):
    doc = 'A ferry with 148 passengers ran aground near Soro on Sunday. Northline cancelled its sailings until Wednesday.'
    ex = Example('Sum up.', 'A ferry ran aground. ', meta=dict(document=doc))
    ex = replace(ex, critique=rule_critic('summarize')([ex])[0])
    ends = [s for s in ex.critique.spans if not len(s)]
    assert {(s.start, s.end) for s in ends}=={(21, 21)} and not problems(to_record(ex))
    write_examples(tmp_path/'a.jsonl', [ex])
    assert read_examples(tmp_path/'a.jsonl')[0].critique.spans==ex.critique.spans
    [row] = to_paper_text([ex])
    assert row['missing']==[s.quote for s in ends] and not set(row['missing'])&set(row['poor_spans'])
    assert from_paper([row])[0].critique.spans!=() and {q.text for q in from_paper([row])[0].critique.unresolved}>={s.quote for s in ends}

def test_a_repeated_word_is_marked_where_it_was_changed():
    assert [(a, b) for a,b,_ in diff_spans('the cat saw the dog and the cat ran', 'the cat saw the dog and the fox ran')]==[(28, 31)]

def test_the_edge_of_a_rewrite():
    assert diff_spans('aa bb', 'aa cc', max_changed=.4) is not None and diff_spans('aa bb', 'aa cc', max_changed=.39) is None
    assert diff_spans('', 'new') == [(0, 0, 'new')] and diff_spans('gone', '') is None

@settings(max_examples=200, deadline=None)
@given(st.text('ab é🦉.,\n', min_size=1, max_size=30), st.data())
def test_offsets_of_any_unit_come_back(text, data):
    a = data.draw(st.integers(0, len(text))); b = data.draw(st.integers(a, len(text)))
    for unit,n in (('characters', len), ('utf16', lambda s: len(s.encode('utf-16-le'))//2), ('bytes', lambda s: len(s.encode()))):
        assert char_offsets(text, [(n(text[:a]), n(text[:b]))], unit)==([(a, b)], unit)

def test_offsets_inside_a_character_fit_no_text():
    with pytest.raises(ValueError, match='do not lie inside'): char_offsets('🦉', [(0, 1)], 'utf16')

def test_locate():
    t = 'art party art'
    assert locate(t, 'art', near=5)[0].start==5 and locate(t, 'art')[0].start==0 and locate(t, 'art', k=1)[0].start==10 and locate(t, 'art', k=7)[0].start==10
    assert locate(t, 'art', near=8)[0].start==10 and locate(t, 'absent words')==(None, 0) and locate(t, '')==(None, 0) and locate(t, 'art', near=-3)[0].start==0

# There and back

@pytest.mark.parametrize('f,to,row', [(from_defacto, to_defacto, DEFACTO), (from_qa_feedback, to_qa_feedback, QA), (from_slf5k, to_slf5k, SLF5K), (from_kodcode, to_kodcode, {k:v for k,v in KOD.items() if k!='test_info'})])
def test_rows_come_back_as_they_were(f, to, row):
    exs = f([row])
    assert to(exs)==[row] and f(to(exs))==exs

def test_halu_comes_back(tmp_path):
    ben = HALU | dict(annotator='ben', factuality_span="['nowhere at all', 'Cats purr']", factuality_label="['answer1', 'answer1']", factuality_reason="['a', 'b']")
    exs = from_haluquestqa([HALU, ben])
    out = to_haluquestqa(exs)
    keep = [k for k in HALU if not k.endswith('_score')]
    assert [{k:r[k] for k in keep} for r in out]==[{k:r[k] for k in keep} for r in (HALU, ben)]
    again = from_haluquestqa(halu_table(tmp_path/'x.tsv', *out))
    assert [e.critique for e in again]==[e.critique for e in exs]
    with pytest.raises(ValueError, match='both answers'): to_haluquestqa(exs[:1])

def test_squad_comes_back():
    qas = SQUAD['paragraphs'][0]['qas']
    full = dict(version='v2.0', data=[SQUAD | dict(paragraphs=[dict(context='The Vel is 90 km long.', qas=[dict(is_impossible=False) | qas[0], qas[1] | dict(plausible_answers=[dict(text='long', answer_start=17)])])])])
    assert to_squad(from_squad(full['data']))==full

def test_paper_comes_back():
    exs = from_paper([PAPER])
    for to in (to_paper_text, to_paper_words): assert from_paper(to(exs))[0].critique.spans==exs[0].critique.spans
    code = from_paper([dict(question='q', solution='x = 1\ny = x', code_feedback='No.', wrong_code=['y = x', 'z'], improvement_code=['x = 1'])])
    assert from_paper(to_paper_code(code))[0].critique==code[0].critique
    with pytest.raises(ValueError, match=r"example 0 \(id None\) has no critique"): to_paper_text([Example('p', 'r')])

def test_export_counts_what_it_leaves_out(caplog):
    exs = from_qa_feedback([QA])
    c = exs[0].critique
    more = replace(exs[0], critique=replace(c, spans=(*c.spans, Span(0, 3, 1.)), unresolved=(*c.unresolved, Quote('x', -1.))))
    with caplog.at_level(logging.WARNING): rows = to_qa_feedback([more])
    assert 'left out' in caplog.text and len(rows[0]['feedback']['errors'])==2

def test_trl_types(caplog):
    right = DEFACTO | dict(candidate='The mill burned.', has_error=False, feedback=dict(summary='', explanation='Right.'))
    exs = from_defacto([DEFACTO, right])+[Example('p', 'nobody looked')]
    with caplog.at_level(logging.WARNING): pairs,single,sft = to_preference(exs),to_unpaired(exs),to_prompt_completion(exs, 'correction')
    assert [(r['chosen'], r['rejected']) for r in pairs]==[(DEFACTO['feedback']['summary'], DEFACTO['candidate'])] and pairs[0]['prompt']==exs[0].prompt
    assert [(r['completion'], r['label']) for r in single]==[(DEFACTO['candidate'], False), (DEFACTO['feedback']['summary'], True), ('The mill burned.', True)]
    assert len(sft)==1 and 'to_preference: 2 of 3' in caplog.text and 'to_unpaired: 1 of 3' in caplog.text
    with pytest.raises(ValueError, match="must be 'response'"): to_prompt_completion(exs, 'gold')

def test_trl_chat_stays_chat():
    ask = [dict(role='user', content='Hi')]
    ex = Example(ask, 'Helo.', Critique('Typo.', [Span(0, 4, -1.)]), None, dict(correction=dict(text='Hello.')))
    say = lambda t: [dict(role='assistant', content=t)]
    assert to_preference([ex])==[dict(prompt=ask, chosen=say('Hello.'), rejected=say('Helo.'))]
    d = to_dataset(to_unpaired([ex]))
    assert d.column_names==['prompt','completion','label'] and d[1]==dict(prompt=ask, completion=say('Hello.'), label=True)
    with pytest.raises(ValueError, match='several kinds'): to_dataset(to_unpaired([ex, Example('p', 'r', Critique(''))]))

# The five forms of the paper's word scores

BASE = dict(post='Rain fell on the match.', generated_summary='Rain delayed the match today', textual_feedback='Today is made up.')
PAIRS = [['Rain', 1], ['delayed', 0], ['today', -1]]
FORMS = dict(pairs=PAIRS, tuples=[tuple(p) for p in PAIRS], strings=[[w, f'{s:+d}'] for w,s in PAIRS], objects=[dict(word=w, score=s) for w,s in PAIRS], capital=[dict(word=w, Score=str(s)) for w,s in PAIRS], capitals=[{'Word ':w, 'SCORE':float(s)} for w,s in PAIRS],
             mapping=dict(PAIRS), minus=[['Rain', '1.00'], ['today', '\u22121']], json=json.dumps(PAIRS), json_objects=json.dumps([dict(word=w, score=s) for w,s in PAIRS]), python=repr([tuple(p) for p in PAIRS]), python_objects=repr([dict(word=w, Score=s) for w,s in PAIRS]))

@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('where', ['word_score_list','word_scores','analysis'])
def test_word_scores_in_every_form(form, where):
    row = BASE | (dict(analysis=dict(word_scores=FORMS[form], textual_feedback='Inner.')) if where=='analysis' else {where:FORMS[form], 'word_score_list' if where=='word_scores' else 'word_scores':None})
    e = from_paper([row])[0]
    assert [(e.response[s.start:s.end], s.score) for s in e.critique.spans]==[('Rain', 1.), ('today', -1.)] and e.critique.text==('Inner.' if where=='analysis' else 'Today is made up.')
    assert 'word_scores' not in from_paper([row]).report.unused

@pytest.mark.parametrize('bad', ['Rain is good', '[("Rain", 1', 3, [['Rain', 2]], [dict(word='Rain')], [dict(word=3, score=1)], [['Rain', 1, 1]], '__import__("os")', [dict(word='Rain', score=None)], '(' * 3000, [['Rain', 10**400]]])
def test_word_scores_of_no_form(bad):
    with pytest.raises(RecordError, match='row 1: word_score'): from_paper([BASE | dict(word_scores=bad)])

def test_tests_of_whole_programs_are_no_pytest():
    e = Example('Print the sum.', 'print(3)', meta=dict(id='s', description='Print the sum.', tests='{"inputs": ["1 2"], "outputs": ["3"]}', tests_form='stdio'))
    with pytest.raises(ValueError, match='KodCode has pytest'): to_kodcode([e])
    with pytest.raises(ValueError, match=r"needs meta\['tests'\]"): to_kodcode([replace(e, meta=e.meta | dict(tests=dict(inputs=['1 2'], outputs=['3'])))])

# What stands in `meta`, and what tables hold

EXPORTERS = [to_defacto,to_qa_feedback,to_haluquestqa,to_slf5k,to_squad,to_kodcode,to_paper_code,to_paper_text,to_paper_words,to_preference,lambda es: to_prompt_completion(es, 'correction'),to_unpaired]
ODD = [0, 1.5, 'x', '', ['x'], [None], [{}], {}, {'x':1}, {'text':['x']}]

@pytest.mark.parametrize('key', ['spans','feedback','omissions','correction','reference','scores','meta','alternatives','preferences','source'])
def test_an_exporter_reads_nothing_from_meta_that_is_no_record(key):
    for name,(importer,row) in IMPORTERS.items():
        e = importer([row])[0]
        for v in ODD:
            for export in EXPORTERS:
                for ex in (replace(e, meta=e.meta | {key:v}), replace(e, meta=e.meta | {key:v}, critique=Critique('No.', [Span(0, len(e.response)//2, -1.)], [Quote('lost', -1.)]))):
                    try: rows = export([ex])
                    except ValueError as err: assert 'example' in str(err) or 'question' in str(err)
                    else: json.dumps(rows, allow_nan=False)

def test_a_record_that_meta_cannot_be_is_named():
    for key,v,says in (('feedback', 'nice', 'feedback: must be a list, got str'), ('spans', [dict(start=0)], r'spans\[0\]: start and end must be integers'), ('feedback', [{}], r'feedback\[0\].text: must be a string')):
        with pytest.raises(RecordError, match=r"example \(id 'e7'\)(.|\n)*"+says): to_record(Example('p', 'Rain.', meta={'id':'e7', key:v}))
    with pytest.raises(RecordError, match=r"example 0 \(id 'e7'\)(.|\n)*correction: must be a dict, got str"): to_preference([Example('p', 'Rain.', meta=dict(id='e7', correction='Sun.'))])

def test_marks_without_an_aspect_have_no_column_in_haluquestqa(caplog):
    es = from_haluquestqa([HALU])
    judged = [replace(e, critique=Critique('No.', [Span(0, 4, -1.)])) for e in es]
    row, = to_haluquestqa(judged)
    assert row['factuality_span']=='' and '2 marks were left out' in caplog.text
    assert to_haluquestqa(es)[0]['factuality_span']==HALU['factuality_span']

@pytest.mark.parametrize('kind', ['csv','tsv','jsonl','json','csv.gz'])
def test_tables_are_read_back_as_they_were_written(tmp_path, kind):
    for data in ([], [dict(text=t) for t in ('a, b', 'a; b', 'a\tb', 'say "no"', 'two\nlines', ' ')], [{'a, b':'1', 'c;d':'2'}], [dict(response='x', spans=[dict(start=0, end=1, score=1.)], meta=dict(a='é'))]):
        write_rows(tmp_path/f'x.{kind}', data)
        assert [r for _,r,_ in rows(tmp_path/f'x.{kind}')]==data

def test_half_of_an_emoji_and_one_object_have_no_place_in_a_table(tmp_path):
    half = [dict(a='x', b='\ud83d')]
    for kind in ('json','jsonl'):
        write_rows(tmp_path/f'x.{kind}', half)
        assert [r for _,r,_ in rows(tmp_path/f'x.{kind}')]==half
    for kind in ('csv','tsv'):
        with pytest.raises(ValueError, match='row 1: b: holds half of an emoji'): write_rows(tmp_path/f'x.{kind}', half)
    for kind in ('csv','tsv','jsonl'):
        with pytest.raises(ValueError, match='write a .json file'): write_rows(tmp_path/f'x.{kind}', to_squad([]))

def with_nulls(v, names):
    "As `datasets` writes it: every object has every field"
    if isinstance(v, list): return [with_nulls(o, names) for o in v]
    return dict.fromkeys(names) | {k:with_nulls(o, names) for k,o in v.items()} if isinstance(v, dict) else v

@pytest.mark.parametrize('name', IMPORTERS)
def test_null_is_absent_in_every_format_and_at_every_level(tmp_path, name):
    importer,row = IMPORTERS[name]
    names = ['generated_summary','solution','analysis','word_scores','word_score_list','id','question_id','label','reason','occurrence','plausible_answers','explanation','evidence','test_info','factuality_helpful']
    (tmp_path/'x.json').write_text(json.dumps([with_nulls(row, names)]))
    assert [*map(to_record, importer(tmp_path/'x.json'))]==[*map(to_record, importer([row]))]

def test_the_three_forms_of_the_paper_stand_in_one_data_set(tmp_path):
    forms = [PAPER, dict(post='P', title='T', generated_summary='Rain fell.', word_score_list=[['Rain', 1], ['fell', -1]]), dict(question='q', solution='x = 1', code_feedback='c', wrong_code=['x = 1'])]
    every = {k for f in forms for k in f}
    (tmp_path/'x.jsonl').write_text(''.join(json.dumps(dict.fromkeys(every) | f)+'\n' for f in forms))
    es = from_paper(tmp_path/'x.jsonl')
    assert len(es)==3 and not es.report.skipped and [e.meta['id'] for e in es]==['text2grad/0','text2grad/1','text2grad/2']
    assert [[(t['text'], t['score']) for t in spans(e)] for e in es]==[[('The Vel', 1.), ('a lake', -1.)], [('Rain', 1.), ('fell', -1.)], [('x = 1', -1.)]]

def test_cells_of_r_and_pandas_are_empty_and_infinities_no_scores():
    assert from_haluquestqa([HALU | dict(factuality_human_score='NA', factuality_model_score='nan')])[0].meta.get('scores') is None
    for v in ('inf', '-Infinity', '1e999', 10**400, 'high'):
        with pytest.raises(RecordError, match='scores of the human answer must be numbers'): from_haluquestqa([HALU | dict(factuality_human_score=v)])
    with pytest.raises(RecordError, match='factuality:helpful has no score'): from_haluquestqa([HALU | dict(factuality_helpful='[True]')])

def test_columns_without_names_are_reported():
    for name,(importer,row) in IMPORTERS.items():
        if name!='squad': assert '7' in str(importer([row | {7:'x'}]).report)
    for importer in (from_paper, from_squad):
        with pytest.raises(RecordError, match='3'): importer([{3:'x', 'prompt':'p', 'response':'r'}])

