"`text2grad train-rm` as a process and in this one: data, options, stopping, and messages that name the remedy"
import json,re,shutil,signal,subprocess,sys,time
from pathlib import Path
import pytest
from text2grad.cli.command import main
from text2grad.core import SCHEMA,read_jsonl,write_jsonl
from text2grad.reward_model.base import RewardModel

root = Path(__file__).resolve().parent.parent

def row(i, **kw): return dict(schema=SCHEMA, id=f'r{i}', prompt=f'Story {i}', response='the bad cat saw a good boat', spans=[dict(start=4, end=7, score=-1., text='bad')],
                              feedback=[dict(text='"bad" is wrong.', kind='critique', origin='critic')]) | kw
def write(path, rows=12, **kw):
    write_jsonl(path, [row(i, **kw) for i in range(rows)])
    return path
def train_rm(*args): return main(['train-rm', *map(str, args)])
small = '--max-length','500','--batch-size','4'

def test_a_run_leaves_a_model_a_log_and_a_report(tiny, tmp_path, capsys):
    write_jsonl(tmp_path/'a.jsonl', [*[row(i) for i in range(20)], dict(schema=SCHEMA, prompt='Story 99', response='nobody judged this')])
    assert train_rm('--data', tmp_path/'a.jsonl', '--kind', 'span', '--model', tiny, '--lora', 4, '--epochs', 2, '--seed', 3, *small, '--out', tmp_path/'r')==0
    o = capsys.readouterr()
    assert '21 rows, 1 without a critique; 15 to train on, 5 to choose by' in o.err and 'span_f1' in o.out and str(tmp_path/'r')+'/report.html' in o.out
    assert {'config.json','metrics.jsonl','summary.json','report.html','checkpoints','model'}<={p.name for p in (tmp_path/'r').iterdir()}
    c = json.loads((tmp_path/'r/config.json').read_text())
    assert (c['records'], c['counts']['train'], c['seed'], c['model.max_length'], c['model.lora']['r'], c['model.lora']['alpha'])==(dict(rows=21, without_critique=1), 15, 3, 500, 4, 8)
    m = RewardModel.from_pretrained(tmp_path/'r/model', device='cpu')
    assert m.kind=='span' and m.fingerprint
    assert train_rm('--data', tmp_path/'a.jsonl', '--kind', 'span', '--model', tiny, '--out', tmp_path/'r')==1
    assert 'already holds a run: add --resume' in capsys.readouterr().err
    assert train_rm('--resume', '--out', tmp_path/'r')==0

@pytest.mark.parametrize('kind,lora', [('span','frozen'), ('span','full'), ('generative','2'), ('generative','full')])
def test_kinds_and_adapters(tiny, tmp_path, capsys, monkeypatch, kind, lora):
    monkeypatch.chdir(tmp_path)
    write(tmp_path/'a.jsonl', 6)
    write_jsonl(tmp_path/'d.jsonl', [row(70), row(71), row(2)])
    assert train_rm('--data', 'a.jsonl', '--dev', 'd.jsonl', '--kind', kind, '--model', tiny, '--lora', lora, '--epochs', 1, *small)==0
    o = capsys.readouterr()
    c = json.loads((tmp_path/f'runs/rm-{kind}-seed0/config.json').read_text())
    assert c['model.lora']==dict(full=None, frozen='frozen').get(lora, c['model.lora']) and 'left out: 1 prompt is held out' in o.err
    assert (c['counts']['train'], c['counts']['dev'])==(5, 3)

def test_a_signal_says_how_to_go_on_and_the_run_goes_on(tiny, tmp_path):
    cmd = [sys.executable,'-m','text2grad','train-rm','--data',str(write(tmp_path/'a.jsonl', 30)),'--kind','span','--model',str(tiny),'--lora','frozen','--epochs','5',*small,'--out',str(tmp_path/'r')]
    p = subprocess.Popen(cmd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=root)
    metrics,until = tmp_path/'r/metrics.jsonl',time.time()+120
    while time.time()<until and p.poll() is None and not (metrics.exists() and metrics.read_text().count('\n')>=3): time.sleep(.02)
    p.send_signal(signal.SIGTERM)
    _,err = p.communicate(timeout=120)
    assert p.returncode==143 and f'train-rm --resume --out {tmp_path/"r"}' in err and 'Traceback' not in err, err
    done = read_jsonl(metrics)[-1]['step']
    assert train_rm('--resume', '--out', tmp_path/'r')==0
    steps = [r['step'] for r in read_jsonl(metrics) if 'loss' in r]
    assert steps==list(range(1, len(steps)+1)) and len(steps)>done

def test_every_bad_row_of_every_file_is_listed_before_a_model_is_loaded(tmp_path, capsys):
    write_jsonl(tmp_path/'a.jsonl', [row(0), row(1, response=None), row(2, spans=[dict(start=4, end=7, score=-1., text='cat')])])
    (tmp_path/'b.jsonl').write_text('{"schema": "text2grad/span-feedback/1"}\n{{\n')
    assert train_rm('--data', tmp_path/'a.jsonl', tmp_path/'b.jsonl', '--kind', 'span', '--model', tmp_path/'no such model', '--out', tmp_path/'r')==1
    err = capsys.readouterr().err
    assert re.search(r'(?s)a\.jsonl: \d problem.*row 2: response.*row 3: spans.*b\.jsonl: \d problem.*row 1: .*row 2: not valid JSON.*Mend these rows', err) and 'model' not in err.split('Nothing')[0]
    assert not (tmp_path/'r').exists() and 'Traceback' not in err

@pytest.mark.parametrize('args,says', [
    (['--kind','span'], '--data: name one or more files'), (['--data','a.jsonl'], '--kind: say span'), (['--data','nowhere.jsonl','--kind','span'], 'nowhere.jsonl: no such file'),
    (['--data','a.jsonl','--kind','generative','--lora','frozen'], '--lora frozen: a generative model has nothing else to train'), (['--data','a.jsonl','--kind','span','--lr','nan'], '--lr nan: must be above 0'),
    (['--data','a.jsonl','--kind','span','--epochs','0'], '--epochs 0.0: must be above 0'), (['--data','a.jsonl','--kind','span','--device','tpu'], '--device tpu: not here; this machine has'),
    (['--data','one.jsonl','--kind','span'], '1 different prompt.*give a validation file'), (['--data','none.jsonl','--kind','span'], 'none of the 1 rows has a critique; run `text2grad annotate`'),
    (['--data','a.jsonl','--dev','a.jsonl','--kind','span'], 'every training prompt is among the held-out ones'), (['--resume','--out','nothing'], 'no run to resume here'),
    (['--data','a.jsonl','--kind','span','--out','a.jsonl'], 'a.jsonl is a file; --out names a folder'), (['--data','a.jsonl','--kind','span','--max-length','60'], '(?s)0 of .* raise max_length')])
def test_it_says_what_is_wrong(tiny, tmp_path, capsys, monkeypatch, args, says):
    monkeypatch.chdir(tmp_path)
    write(tmp_path/'a.jsonl')
    write_jsonl(tmp_path/'one.jsonl', [row(0), row(0, id='other')])
    write_jsonl(tmp_path/'none.jsonl', [dict(schema=SCHEMA, prompt='p', response='r')])
    assert train_rm(*args, '--model', tiny)==1
    err = capsys.readouterr().err
    assert re.search(says, err) and 'text2grad train-rm: ' in err and 'Traceback' not in err

def test_an_unknown_kind_or_rank_is_a_bad_argument(capsys):
    assert train_rm('--kind', 'scalar')==2 and train_rm('--lora', 'half')==2 and train_rm('--batch-size', '0')==2

def test_a_run_is_logged_where_it_is_asked_for_and_elsewhere_when_it_goes_on(tiny, tmp_path, capsys):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    args = '--data', write(tmp_path/'a.jsonl'), '--kind', 'span', '--model', tiny, '--lora', 'frozen', '--epochs', 2, *small, '--out', tmp_path/'r'
    assert train_rm(*args, '--log', 'paper')==1 and 'no such logger; there are trackio, wandb, tensorboard' in capsys.readouterr().err and not (tmp_path/'r').exists()
    assert train_rm(*args, '--log', 'tensorboard')==0
    a = EventAccumulator(str(tmp_path/'r/tensorboard')).Reload()
    log = [r for r in read_jsonl(tmp_path/'r/metrics.jsonl') if 'loss' in r]
    assert {e.step:e.value for e in a.Scalars('train/loss')}==pytest.approx({r['step']:r['loss'] for r in log}, rel=1e-5) and a.Scalars('heldout/span_f1')
    assert json.loads((tmp_path/'r/config.json').read_text())['train_rm']['log']==['tensorboard']
    assert train_rm('--resume', '--out', tmp_path/'r', '--log', 'wandb:mine', '--lr', 1)==1
    assert '--log' not in capsys.readouterr().err.split('. A run')[0]

@pytest.fixture(scope='module')
def done(tiny, tmp_path_factory):
    d = tmp_path_factory.mktemp('done')
    assert train_rm('--data', write(d/'a.jsonl'), '--kind', 'span', '--model', tiny, '--lora', 'frozen', '--epochs', 1, *small, '--out', d/'r')==0
    return d

def test_options_typed_on_resuming_are_those_of_the_run_or_refused_by_name(tiny, done, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(done)
    write(tmp_path/'b.jsonl')
    for typed,says in ((['--lr','1'], '--lr 1.0: the run was started with 0.0002'), (['--epochs','9'], '--epochs 9.0'), (['--kind','generative'], '--kind generative'), (['--lora','8'], '--lora 8: the run was started with frozen'),
                       (['--data',tmp_path/'b.jsonl'], '--data'), (['--dev',tmp_path/'b.jsonl'], 'started without it'), (['--batch-size','16'], '--batch-size 16'), (['--max-length','7'], '--max-length 7'), (['--seed','1'], '--seed 1'), (['--model','m'], '--model m')):
        assert train_rm('--resume', '--out', 'r', *typed)==1
        err = capsys.readouterr().err
        assert says in err and 'Traceback' not in err
    assert train_rm('--resume', '--out', 'r', '--data', 'a.jsonl', '--kind', 'span', '--lora', 'frozen', '--seed', 0, '--batch-size', 4, '--model', tiny)==0

@pytest.mark.parametrize('change', [lambda c: {}, lambda c: [], lambda c: None, lambda c: dict(train_rm=[]), *(lambda c, k=k, v=v: c | dict(train_rm=c['train_rm'] | {k:v}) for k,v in dict(kind='x', data=None, epochs='3', batch_size='4', lr=[], lora=0, seed=None, max_length='7', dev=3, model=3).items())])
def test_a_config_of_another_shape_is_refused_by_its_name(done, tmp_path, capsys, change):
    shutil.copytree(done/'r', tmp_path/'r')
    (tmp_path/'r/config.json').write_text(json.dumps(change(json.loads((done/'r/config.json').read_text()))))
    assert train_rm('--resume', '--out', tmp_path/'r')==1
    err = capsys.readouterr().err
    assert 'config.json' in err and 'Traceback' not in err

def test_a_full_disk_names_the_file_and_the_way_on(tiny, tmp_path):
    "A limit on file size stands in for the full disk"
    code = f'''
import resource,signal,sys
from text2grad.cli.command import main
import torch,transformers,peft
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
sys.exit(main(['train-rm','--data',{str(write(tmp_path/"a.jsonl"))!r},'--kind','span','--model',{str(tiny)!r},'--lora','frozen','--epochs','1','--max-length','500','--batch-size','4','--out',sys.argv[2]]))'''
    for n,limit in enumerate((500, 20_000)):
        r = subprocess.run([sys.executable,'-c',code,str(limit),str(tmp_path/f'r{n}')], capture_output=True, text=True, cwd=root)
        assert r.returncode==1 and 'Traceback' not in r.stderr and re.search(fr'/r{n}/\S+: File too large; make room, then go on with:\n  text2grad train-rm --resume --out', r.stderr), r.stderr
