"The command: the main job on the tiny model as a process, stopped and resumed; align and doctor"
import json,os,re,signal,subprocess,sys,time
from pathlib import Path
import pytest
from text2grad.cli import main,summary_text
from text2grad.core import read_jsonl
from text2grad.pretrained import tiny_lm

root = Path(__file__).resolve().parent.parent
run_files = {'config.json','metrics.jsonl','samples.jsonl','summary.json','report.html','checkpoints','heldout-before.jsonl','heldout-after.jsonl','.lock'}

@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
    d = tmp_path_factory.mktemp('tiny')
    model,tok = tiny_lm()
    model.save_pretrained(d)
    tok.save_pretrained(d)
    return d

def quickstart(tiny, out, *more): return main(['quickstart','--model',str(tiny),'--steps','3','--batch-size','4','--heldout','4','--out',str(out), *more])

@pytest.mark.parametrize('task', ['summarize','answer','code'])
@pytest.mark.parametrize('reward', ['span','scalar'])
def test_every_task_and_reward(tiny, tmp_path, capsys, task, reward):
    assert quickstart(tiny, tmp_path/'r', '--task', task, '--reward', reward)==0
    out = capsys.readouterr().out
    assert 'critic reward per token' in out and 'before:' in out and 'after:' in out and 'peak memory' in out
    assert {p.name for p in (tmp_path/'r').iterdir()}==run_files
    s = json.loads((tmp_path/'r/summary.json').read_text())
    assert (s['task'], s['reward'], s['steps'], s['heldout'])==(task, reward, 3, 4)
    assert all({'metric','n','before','after','diff','low','high'}<=set(r) for r in s['table'])
    rows = read_jsonl(tmp_path/'r/metrics.jsonl')
    assert [r['step'] for r in rows]==[1,2,3] and {'rollout','critic','forward','update'}<=set(rows[0]['seconds'])
    html = (tmp_path/'r/report.html').read_text()
    assert '<script' not in html and not re.search(r'https?:(?!//www\.w3\.org/2000/svg)', html.replace('%3A', ':'))

def test_same_seed_same_table(tiny, tmp_path, capsys):
    for n in 'ab': assert quickstart(tiny, tmp_path/n, '--seed', '3')==0
    tables = [json.loads((tmp_path/n/'summary.json').read_text())['table'] for n in 'ab']
    assert tables[0]==tables[1]

def test_run_folder_is_not_overwritten(tiny, tmp_path, capsys):
    assert quickstart(tiny, tmp_path/'r')==0
    before = (tmp_path/'r/summary.json').read_bytes()
    assert quickstart(tiny, tmp_path/'r')==1
    assert '--resume' in capsys.readouterr().err and (tmp_path/'r/summary.json').read_bytes()==before

def start(tiny, out, *more):
    return subprocess.Popen([sys.executable,'-m','text2grad.cli','quickstart','--model',str(tiny),'--steps','40','--batch-size','2','--heldout','2','--out',str(out),*more],
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=root)

@pytest.mark.parametrize('sig,code', [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_run_says_how_to_resume_and_resumes(tiny, tmp_path, sig, code):
    p = start(tiny, tmp_path/'r')
    log,until = tmp_path/'r/metrics.jsonl',time.time()+120
    while time.time()<until and p.poll() is None and not (log.exists() and log.read_text().count('\n')>=2): time.sleep(.02)
    p.send_signal(sig)
    _,err = p.communicate(timeout=120)
    assert p.returncode==code and f'--resume --out {tmp_path/"r"}' in err, err
    done = len(read_jsonl(log))
    assert 2<=done<40
    before = (tmp_path/'r/heldout-before.jsonl').read_bytes()
    r = start(tiny, tmp_path/'r', '--resume')
    out,err = r.communicate(timeout=300)
    assert r.returncode==0, err
    assert [x['step'] for x in read_jsonl(log)]==list(range(1, 41)) and (tmp_path/'r/heldout-before.jsonl').read_bytes()==before
    assert '40 steps' in out

def test_killed_before_the_first_step_resumes(tiny, tmp_path):
    p = start(tiny, tmp_path/'r')
    until = time.time()+120
    while time.time()<until and not (tmp_path/'r/config.json').exists(): time.sleep(.01)
    p.kill(); p.communicate()
    r = start(tiny, tmp_path/'r', '--resume')
    out,err = r.communicate(timeout=300)
    assert r.returncode==0, err

def test_full_disk_says_so(tiny, tmp_path):
    "A limit on file size stands in for the full disk"
    code = f'''
import resource,signal,sys
from text2grad.cli import main
import torch,transformers,peft
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
sys.exit(main(['quickstart','--model',{str(tiny)!r},'--steps','2','--batch-size','2','--heldout','2','--out',{str(tmp_path/"r")!r}]))'''
    r = subprocess.run([sys.executable,'-c',code], capture_output=True, text=True, cwd=root)
    assert r.returncode==1 and 'Traceback' not in r.stderr and 'File too large' in r.stderr
    assert not list(tmp_path.glob('r/checkpoints/ckpt*')) and not (tmp_path/'r/summary.json').exists()

def test_device_that_is_not_here(tiny, tmp_path, capsys):
    assert quickstart(tiny, tmp_path/'r', '--device', 'tpu')==1
    assert '--device tpu: not here; this machine has' in capsys.readouterr().err and not (tmp_path/'r').exists()

def test_align_json(tmp_path, capsys, monkeypatch):
    (tmp_path/'c.txt').write_text('"was furious" is made up.')
    assert main(['align','Everyone was furious.','--critique',str(tmp_path/'c.txt'),'--json'])==0
    d = json.loads(capsys.readouterr().out)
    assert d['spans'][0]['text']=='was furious' and d['spans'][0]['score']<0
    assert ''.join(t['text'] for t in d['tokens'])=='Everyone was furious.'
    assert [t['text'].strip() for t in d['tokens'] if t['reward']<0]==['was','furious']

def test_align_with_the_tokens_of_a_model(tiny, tmp_path, capsys):
    (tmp_path/'c.txt').write_text('{"critique":"x","good_spans":[],"poor_spans":[{"quote":"furious","reason":"too strong","severity":3}],"missing":["the winner"]}')
    assert main(['align','Everyone was furious.','--critique',str(tmp_path/'c.txt'),'--model',str(tiny),'--json'])==0
    d = json.loads(capsys.readouterr().out)
    assert len(d['tokens'])>5 and ''.join(t['text'] for t in d['tokens'] if t['reward']<0).strip()=='furious'
    assert any('winner' in o['text'] for o in d['unresolved'])

def test_align_reads_standard_input(tmp_path):
    r = subprocess.run([sys.executable,'-m','text2grad.cli','align','Everyone was furious.','--critique','-'], input='"furious" is too strong.', capture_output=True, text=True, cwd=root)
    assert r.returncode==0 and 'furious' in r.stdout

def test_align_prints_nothing_that_moves_the_terminal(tmp_path, capsys):
    (tmp_path/'c.txt').write_text('"evil" is wrong \x1b]0;owned\x07.')
    assert main(['align','An \x1b[31mevil\x1b[0m text','--critique',str(tmp_path/'c.txt')])==0
    assert '\x1b' not in capsys.readouterr().out

def test_doctor(tmp_path, capsys, monkeypatch):
    assert main(['doctor','--json']) in (0,1)
    d = json.loads(capsys.readouterr().out)
    assert {'python','torch','device','model','memory','disk','sandbox'}<={c['name'] for c in d['checks']} and d['ok']==all(c['ok'] for c in d['checks'])
    monkeypatch.setenv('TEXT2GRAD_MODEL', str(tmp_path/'nowhere'))
    assert main(['doctor'])==1
    out = capsys.readouterr().out
    assert re.search(r'^NO  model .*nowhere', out, re.M) and '->' in out

def test_version(capsys):
    from text2grad import __version__
    assert main(['--version'])==0 and __version__ in capsys.readouterr().out
