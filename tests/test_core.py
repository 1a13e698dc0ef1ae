"Records: every feedback file there is reads and writes back unchanged, and what hypothesis can think of does too"
import gzip,json
from dataclasses import replace
from pathlib import Path
import pytest
from hypothesis import given,settings,strategies as st
from text2grad.core import *
from text2grad.files import *
from text2grad.data.readers import read_rows

data = Path(__file__).resolve().parent.parent.parent/'shared'/'data'
files = sorted(data.glob('*.jsonl.gz'))
text = st.text(st.characters(), max_size=40)   # lone surrogates included
score = st.floats(-1, 1)

@st.composite
def examples(draw):
    response = draw(text)
    cut = st.integers(0, len(response))
    spans = [Span(*sorted((draw(cut), draw(cut))), draw(score), draw(text), draw(text), draw(st.sampled_from(MATCHES)), draw(st.floats(0, 1))) for _ in range(draw(st.integers(0, 3)))]
    quotes = [Quote(draw(text), draw(score), draw(text), draw(st.none() | st.integers(0, 5))) for _ in range(draw(st.integers(0, 2)))]
    critique = draw(st.none() | st.just(Critique(draw(text), spans, quotes, draw(text))))
    prompt = draw(text | st.lists(st.fixed_dictionaries(dict(role=text, content=text)), min_size=1, max_size=3))
    return Example(prompt, response, critique, draw(st.none() | st.lists(text, max_size=2)), dict(id='x', scores=dict(a=1.)))


@settings(max_examples=400, deadline=None)
@given(examples())
def test_example_record_example(ex):
    r = to_record(ex)
    assert problems(r)==[] and loads(dumps(r))==r
    back = from_record(loads(dumps(r)))
    assert (back.prompt, back.response, back.reference)==(ex.prompt, ex.response, ex.reference)
    assert back.critique==ex.critique
    assert to_record(back)==r

@settings(max_examples=200, deadline=None)
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | text, lambda c: st.lists(c, max_size=3) | st.dictionaries(text, c, max_size=3)))
def test_json_line_round_trip(v):
    s = dumps(v)
    assert '\n' not in s and loads(s)==v
    s.encode('utf-8')

@pytest.mark.parametrize('path', files, ids=lambda p: p.name)
def test_shared_files_read_and_write_back_unchanged(path, tmp_path):
    prompts_only = path.name.startswith(('xquad','mbpp.'))
    rows = read_jsonl(path) if prompts_only else read_records(path)
    if not prompts_only: assert [to_record(from_record(r)) for r in rows]==rows
    write_jsonl(tmp_path/path.name, rows)
    assert gzip.decompress((tmp_path/path.name).read_bytes())==gzip.decompress(path.read_bytes())

def test_a_changed_critique_is_what_gets_written():
    r = dict(schema=SCHEMA, prompt='p', response='abc', spans=[dict(start=0, end=1, text='a', score=1., label='old')], feedback=[dict(text='old')])
    ex = replace(from_record(r), critique=Critique('new', [Span(1, 2, -1.)]))
    new = to_record(ex)
    assert [s['text'] for s in new['spans']]==['b'] and new['feedback'][0]['text']=='new' and from_record(new).critique==ex.critique
    assert from_record(to_record(replace(ex, critique=None))).critique is None

def test_no_judgement_and_nothing_to_mark_stay_apart(tmp_path):
    exs = [Example('p', 'r', None, meta=dict(id='1')), Example('p', 'r', Critique(''), meta=dict(id='2'))]
    write_examples(tmp_path/'f.jsonl', exs)
    assert [e.critique for e in read_examples(tmp_path/'f.jsonl')]==[None, Critique('')]

def test_span_reason_is_the_phrase_that_names_it():
    r = dict(schema=SCHEMA, prompt='p', response='abc', feedback=[dict(text='remove the b please')], spans=[dict(start=1, end=2, score=-1., feedback=0, phrase=[11,12])])
    assert from_record(r).critique.spans[0].reason=='b'

@pytest.mark.parametrize('head,says', [(b'PK\3\4abc', 'zip archive'), (b'BZh91AY', 'bzip2'), (b'\xfd7zXZ\0', 'xz'), (b'(\xb5/\xfdabc', 'zstd'), (b'PAR1abc', r'ends in \.parquet')])
def test_a_file_of_another_kind_is_named(tmp_path, head, says):
    for name in ('a.jsonl','a.json','a.csv'):
        (tmp_path/name).write_bytes(head)
        with pytest.raises(RecordError, match=says): list(rows(tmp_path/name))

def test_tables_with_semicolons_and_with_a_name_twice(tmp_path):
    f = tmp_path/'a.csv'
    f.write_text('prompt;response\na;"b, c"\n')
    assert list(rows(f))==[(1, dict(prompt='a', response='b, c'), '')]
    f.write_text('prompt,response;x\na,b;c\n')
    assert list(rows(f))==[(1, {'prompt':'a', 'response;x':'b;c'}, '')]
    f.write_text('prompt,prompt\na,b\n')
    with pytest.raises(RecordError, match="two columns are called 'prompt'"): list(rows(f))

@pytest.mark.parametrize('more,field', [(dict(feedback=[dict(text='a', kind=3)]), r'feedback\[0\].kind'), (dict(feedback=[dict(text='a', origin=[1])]), r'feedback\[0\].origin'),
                                        (dict(spans=[dict(start=0, end=1, score=1, origin={})]), r'spans\[0\].origin'), (dict(omissions=[dict(text='a', origin=1)]), r'omissions\[0\].origin')])
def test_what_is_no_string_is_named(more, field):
    with pytest.raises(RecordError, match=field): read_records([dict(schema=SCHEMA, prompt='p', response='r') | more])

def test_names_of_no_file(tmp_path):
    (tmp_path/'l.jsonl').symlink_to(tmp_path/'l.jsonl')
    for read in (read_records, read_rows, lambda p: list(rows(p))):
        with pytest.raises(OSError, match='leads to itself'): read(tmp_path/'l.jsonl')
        with pytest.raises(FileNotFoundError, match='no such file'): read('a\0b.jsonl')
        with pytest.raises(IsADirectoryError, match='is a folder'): read(tmp_path)
