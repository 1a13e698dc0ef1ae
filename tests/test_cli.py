"The command: the main job on the tiny model as a process, stopped and resumed; annotate, align and doctor"
import dataclasses,json,os,re,shutil,signal,subprocess,sys,threading,time
from http.server import BaseHTTPRequestHandler,ThreadingHTTPServer
from pathlib import Path
import pytest
from children import Child
from text2grad.cli.command import main
from text2grad.cli.quickstart import seeds_text
from text2grad.core import dumps,read_jsonl,write_jsonl
from text2grad.files import UserError

root = Path(__file__).resolve().parent.parent
run_files = {'config.json','metrics.jsonl','samples.jsonl','summary.json','report.html','checkpoints','heldout-before.jsonl','heldout-after.jsonl','greedy-before.jsonl','greedy-after.jsonl','policy','.lock'}

def quickstart(tiny, out, *more): return main(['quickstart','--model',str(tiny),'--steps','3','--batch-size','4','--heldout','4','--out',str(out), *more])

@pytest.mark.parametrize('task', ['summarize','answer','code'])
@pytest.mark.parametrize('reward', ['span','scalar'])
def test_every_task_and_reward(tiny, tmp_path, capsys, task, reward):
    assert quickstart(tiny, tmp_path/'r', '--task', task, '--reward', reward)==0
    out = capsys.readouterr().out
    assert 'critic total a response' in out and 'gained most' in out and 'lost most' in out and 'before (' in out and 'peak memory' in out and 'share of responses' in out
    assert {p.name for p in (tmp_path/'r').iterdir()}==run_files
    s = json.loads((tmp_path/'r/summary.json').read_text())
    assert (s['task'], s['reward'], s['steps'], s['heldout'])==(task, reward, 3, 4)
    assert all({'metric','n','before','after','diff','low','high'}<=set(r) for r in s['table'])
    rows = read_jsonl(tmp_path/'r/metrics.jsonl')
    assert [r['step'] for r in rows]==[1,2,3] and {'rollout','critic','forward','update'}<=set(rows[0]['seconds'])
    html = (tmp_path/'r/report.html').read_text()
    assert '<script' not in html and not re.search(r'https?:(?!//www\.w3\.org/2000/svg)', html.replace('%3A', ':'))

@pytest.mark.parametrize('task,reward,steps,batch,lr', [('summarize','span',8,16,3e-4), ('summarize','scalar',8,16,9e-4), ('answer','span',8,64,6e-4),
    ('answer','scalar',8,64,1.8e-3), ('code','span',12,32,3e-4)])
def test_each_task_has_settings_of_its_own_and_what_is_typed_wins(tmp_path, task, reward, steps, batch, lr):
    import argparse
    from text2grad.cli.quickstart import _defaults,_options
    said = lambda **kw: _options(argparse.Namespace(**dict.fromkeys(_defaults) | dict(task=task, reward=reward, resume=False) | kw), tmp_path)
    assert (said()['steps'], said()['batch_size'], said()['lr'])==(steps, batch, pytest.approx(lr))
    assert (said(steps=3)['steps'], said(batch_size=4)['batch_size'], said(lr=1e-5)['lr'])==(3, 4, 1e-5)

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
    argv = ['quickstart','--model',str(tiny),'--steps','12','--batch-size','2','--heldout','2','--out',str(out),*more]
    return Child(main, argv, folder=out.parent)

@pytest.mark.parametrize('sig,code', [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_run_says_how_to_resume_and_resumes(tiny, tmp_path, sig, code):
    p = start(tiny, tmp_path/'r')
    log,until = tmp_path/'r/metrics.jsonl',time.time()+120
    while time.time()<until and p.poll() is None and not (log.exists() and log.read_text().count('\n')>=2): time.sleep(.02)
    p.send_signal(sig)
    _,err = p.communicate(timeout=120)
    assert p.returncode==code and f'--resume --out {tmp_path/"r"}' in err, err
    done = len(read_jsonl(log))
    assert 2<=done<12
    before = (tmp_path/'r/heldout-before.jsonl').read_bytes()
    r = start(tiny, tmp_path/'r', '--resume')
    out,err = r.communicate(timeout=300)
    assert r.returncode==0, err
    assert [x['step'] for x in read_jsonl(log)]==list(range(1, 13)) and (tmp_path/'r/heldout-before.jsonl').read_bytes()==before
    assert '12 steps' in out

def test_killed_before_the_first_step_resumes(tiny, tmp_path):
    p = start(tiny, tmp_path/'r')
    until = time.time()+120
    while time.time()<until and not (tmp_path/'r/config.json').exists(): time.sleep(.01)
    p.kill(); p.communicate()
    r = start(tiny, tmp_path/'r', '--resume')
    out,err = r.communicate(timeout=300)
    assert r.returncode==0, err

def _on_a_full_disk(argv):
    import resource
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
    return main(argv)

def test_full_disk_says_so(tiny, tmp_path):
    "A limit on file size stands in for the full disk"
    p = Child(_on_a_full_disk, ['quickstart','--model',str(tiny),'--steps','2','--batch-size','2','--heldout','2','--out',str(tmp_path/'r')], folder=tmp_path)
    _,err = p.communicate(120)
    assert p.returncode==1 and 'Traceback' not in err and re.search(r'/r/\S+: File too large; make room, then go on with:\n  text2grad quickstart --resume --out .*/r\n', err), err
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
    r = subprocess.run([sys.executable,'-m','text2grad','align','Everyone was furious.','--critique','-'], input='"furious" is too strong.', capture_output=True, text=True, cwd=root)
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

def test_doctor_without_a_sandbox_makes_a_note_and_no_fault(capsys, monkeypatch):
    from text2grad.sandbox import selftest
    def none(*_): raise selftest.SandboxUnavailable('There is no sandbox.\nInstall it:\nnow')
    before = main(['doctor'])
    assert re.search(r'^ok  sandbox ', capsys.readouterr().out, re.M)
    monkeypatch.setattr(selftest, 'self_test', none)
    assert main(['doctor'])==before
    assert re.search(r'^--  sandbox +There is no sandbox.*\n +-> Install it:\n +-> now$', capsys.readouterr().out, re.M)

doc = 'A ferry with 148 passengers ran aground near Soro on Sunday after its engine lost power. Nobody was hurt.'
def responses(path, n=6, **more):
    write_jsonl(path, [dict(id=f'r{i}', prompt='Summarize.', response=f'Ferry number {i} sank near Crete.', task='summarize', document=doc) | more for i in range(n)])
    return path

@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    "Answers of these tests stay out of the user's cache"
    from text2grad.data import annotation
    monkeypatch.setattr(annotation, 'cache_file', lambda: tmp_path/'cache'/'critiques.sqlite')

def annotate(*args): return main(['annotate', *map(str, args)])

def test_annotate_with_rules(tmp_path, capsys):
    out = tmp_path/'out.jsonl'
    assert annotate(responses(tmp_path/'in.jsonl'), '--critic', 'rules', '--out', out)==0
    rows = read_jsonl(out)
    assert [r['id'] for r in rows]==[f'r{i}' for i in range(6)] and all(any(s['text']=='Crete' and s['score']<0 for s in r['spans']) for r in rows)
    assert rows[0]['source'].startswith('rules/summarize/') and '6 judged' in capsys.readouterr().out
    assert annotate(tmp_path/'in.jsonl', '--critic', 'rules', '--out', tmp_path/'b.jsonl', '--json')==0
    d = json.loads(capsys.readouterr().out)
    assert (d['cached'], d['asked'], d['rows'], d['path'])==(6, 0, 6, str(tmp_path/'b.jsonl')) and out.read_bytes()==(tmp_path/'b.jsonl').read_bytes()
    assert annotate(tmp_path/'in.jsonl', '--critic', 'rules', '--out', tmp_path/'c.jsonl', '--json', '--no-cache', '--limit', '2')==0
    d = json.loads(capsys.readouterr().out)
    assert (d['cached'], d['asked'], d['rows'])==(0, 2, 2)

def test_annotate_failures_give_exit_code_1_and_are_retried_alone(tmp_path, capsys):
    rows = [dict(prompt='p', response=f'Ferry {i}.') | (dict(document=doc) if i!=1 else {}) for i in range(3)]
    write_jsonl(tmp_path/'in.jsonl', rows)
    args = tmp_path/'in.jsonl','--critic','rules','--task','summarize','--out',tmp_path/'o.jsonl'
    assert annotate(*args)==1
    err = capsys.readouterr().err
    assert '1 row failed' in err and 'document' in err and '--retry-failed' in err and 'Traceback' not in err
    assert f'{tmp_path/"in.jsonl"}: row 2: ' in err
    assert annotate(*args, '--retry-failed', '--json')==1 and json.loads(capsys.readouterr().out)['asked']==1

def test_annotate_names_the_row_that_failed_as_it_is_counted_in_its_file(tmp_path, capsys):
    "Blank lines count, and so do the rows of other shards"
    lines = [dumps(dict(prompt='p', response=f'Ferry {i}.') | (dict(document=doc) if i not in (4, 5) else {})) for i in range(6)]
    (tmp_path/'in.jsonl').write_text('\n\n'.join(lines))
    assert annotate(tmp_path/'in.jsonl', '--critic', 'rules', '--task', 'summarize', '--out', tmp_path/'o.jsonl')==1
    assert f'2 rows failed; the first:\n{tmp_path/"in.jsonl"}: row 9: ' in capsys.readouterr().err
    for k,row in ((1, 9), (2, 11)):
        assert annotate(tmp_path/'in.jsonl', '--critic', 'rules', '--task', 'summarize', '--shard', f'{k}/2', '--out', tmp_path/'s.jsonl') in (0, 1)
        if ': row ' in (err := capsys.readouterr().err): assert re.search(r'in.jsonl: row (9|11): ', err)

def test_annotate_in_shards_and_merge(tmp_path, capsys):
    args = responses(tmp_path/'in.jsonl'),'--critic','rules','--no-cache','--out'
    for k in (1,2): assert annotate(*args, tmp_path/'o.jsonl', '--shard', f'{k}/2')==0
    assert 'o.2-of-2.jsonl' in capsys.readouterr().out
    assert main(['merge', str(tmp_path/'o.jsonl'), '--json'])==0 and json.loads(capsys.readouterr().out)['shards']==2
    assert annotate(*args, tmp_path/'one.jsonl')==0 and (tmp_path/'one.jsonl').read_bytes()==(tmp_path/'o.jsonl').read_bytes()
    assert main(['merge', str(tmp_path/'one.jsonl')])==1 and 'none of its shards is beside it' in capsys.readouterr().err
    assert annotate(*args, tmp_path/'o.jsonl', '--shard', '3/2')==2 and 'must be like 3/16' in capsys.readouterr().err

def test_annotate_dry_run(tmp_path, capsys):
    assert annotate(responses(tmp_path/'in.jsonl'), '--critic', 'api', '--model', 'm', '--base-url', 'http://127.0.0.1:9/v1', '--out', tmp_path/'o.jsonl', '--dry-run')==0
    out = capsys.readouterr().out
    assert 'Ferry number 0 sank' in out and '--- system' in out and '6 of 6 rows would be asked' in out and not (tmp_path/'o.jsonl').exists()

def test_annotate_shows_a_model_what_the_tests_showed(tmp_path, capsys):
    write_jsonl(tmp_path/'in.jsonl', [dict(prompt='Write double.', response='def double(n): return n+1', entry_point='double', tests='assert double(4) == 8', task='code')])
    args = tmp_path/'in.jsonl','--critic','api','--model','m','--base-url','http://127.0.0.1:9/v1','--out',tmp_path/'o.jsonl','--dry-run'
    for more,shown in (([], False), (['--run-tests'], True)):
        assert annotate(*args, *more)==0 and ('0 of 1 tests passed' in capsys.readouterr().out)==shown

@pytest.mark.parametrize('args,says', [
    (['nowhere.jsonl','--critic','rules'], 'nowhere.jsonl: no such file'), (['bad.jsonl','--critic','rules','--task','summarize'], r'(?s)2 problems.*row 1: response: missing.*row 3: not valid JSON'),
    (['plain.jsonl','--critic','rules'], 'names no task .*--task'), (['in.jsonl','--critic','api'], '--model'), (['in.jsonl','--critic','rules','--base-url','http://x/v1'], '--base-url: --critic rules has no use'),
    (['in.jsonl','--critic','tests','--run-tests'], '--run-tests: --critic tests has no use'), (['in.jsonl','--critic','model','--prices','1','2'], '--prices: --critic model has no use'), (['in.jsonl','--critic','api','--model','m','--constrained'], '--constrained: --critic api has no use'), (['in.jsonl','--critic','api','--model','m','--template','{"x": 1}'], '--template: --critic api has no use'),
    (['in.jsonl','--critic','rules','--temperature','0'], '--temperature: --critic rules has no use'), (['in.jsonl','--critic','model','--extra','{}'], '--extra: --critic model has no use'),
    (['in.jsonl','--critic','model','--max-tokens','none'], '--max-tokens none: a model here needs a length'), (['in.jsonl','--critic','tests','--max-tokens','9'], '--max-tokens: --critic tests has no use'),
    (['in.jsonl','--critic','api','--model','m','--base-url','ftp://x'], 'base_url'), (['in.jsonl','--critic','rules','--retry-failed'], 'nothing here to retry')])
def test_annotate_says_what_is_wrong(tmp_path, capsys, monkeypatch, args, says):
    monkeypatch.chdir(tmp_path)
    responses(tmp_path/'in.jsonl')
    (tmp_path/'plain.jsonl').write_text('{"prompt":"p","response":"r"}\n')
    (tmp_path/'bad.jsonl').write_text('{"prompt":"p"}\n{"prompt":"p","response":"r"}\n{{\n')
    assert annotate(*args, '--out', 'o.jsonl')==1
    err = capsys.readouterr().err
    assert re.search(says, err) and err.startswith('text2grad annotate: ') and 'Traceback' not in err and not (tmp_path/'o.jsonl').exists()

@pytest.mark.parametrize('args,says', [(['--temperature','warm'], "'warm' is neither a number from 0 to 5 nor none"), (['--temperature','nan'], 'neither a number'), (['--temperature','-1'], 'neither a number'), (['--max-tokens','0'], 'not a whole number from 1'),
    (['--extra','{top_p: 1}'], 'is no JSON'), (['--extra','[1]'], 'must be a JSON object'), (['--extra','{"top_p": NaN}'], 'is no JSON'), (['--extra','['*100000], 'is no JSON'), (['--template','[1]'], 'must be a JSON object')])
def test_annotate_refuses_what_no_request_can_hold(tmp_path, capsys, args, says):
    assert annotate(responses(tmp_path/'in.jsonl'), '--critic', 'api', '--model', 'm', '--out', tmp_path/'o.jsonl', *args)==2
    err = capsys.readouterr().err
    assert says in err and 'Traceback' not in err

@pytest.mark.parametrize('args,want', [([], dict(temperature=0., max_tokens=1024)), (['--temperature','0.7','--max-tokens','300'], dict(temperature=.7, max_tokens=300)), (['--temperature','none','--max-tokens','None'], {}),
    (['--extra','{"max_completion_tokens": 50, "reasoning_effort": "low", "temperature": null}'], dict(max_completion_tokens=50, reasoning_effort='low'))])
def test_annotate_says_what_the_request_holds(tmp_path, server, monkeypatch, args, want):
    monkeypatch.setenv('OPENAI_API_KEY', 'sk-canary-1234567890')
    assert annotate(responses(tmp_path/'in.jsonl', 1), '--critic', 'api', '--model', 'm', '--base-url', server, '--task', 'summarize', '--out', tmp_path/'o.jsonl', '--no-cache', *args)==0
    assert {k:v for k,v in json.loads(Server.asked[0]).items() if k not in ('model','messages','response_format')}==want

class Server(BaseHTTPRequestHandler):
    "An OpenAI-compatible server that quotes the first word; a response with `bad` gets an error that repeats the key"
    asked,delay = [],0.
    def log_message(self, *a): pass
    def do_POST(self):
        body = self.rfile.read(int(self.headers['content-length'])).decode()
        type(self).asked.append(body)
        time.sleep(self.delay)
        c = dict(critique='Vague.', good_spans=[], poor_spans=[dict(quote='sank near Crete', reason='It did not.', severity=3)], missing=[])
        ok = 'number 3 ' not in body
        data = dict(id='x', object='chat.completion', created=1, model='m', choices=[dict(index=0, finish_reason='stop', message=dict(role='assistant', content=json.dumps(c)))],
                    usage=dict(prompt_tokens=50, completion_tokens=9, total_tokens=59)) if ok else dict(error=dict(message=f'bad request with {self.headers["authorization"]}'))
        raw = json.dumps(data).encode()
        self.send_response(200 if ok else 400)
        for k,v in (('content-type','application/json'), ('content-length',str(len(raw)))): self.send_header(k, v)
        self.end_headers()
        self.wfile.write(raw)

@pytest.fixture
def server():
    Server.asked,Server.delay = [],0.
    s = ThreadingHTTPServer(('127.0.0.1', 0), Server)
    threading.Thread(target=s.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{s.server_port}/v1'
    s.shutdown()
    s.server_close()

def test_annotate_with_a_server_leaks_no_key(tmp_path, capfd, caplog, monkeypatch, server):
    monkeypatch.setenv('OPENAI_API_KEY', 'sk-canary-1234567890')
    caplog.set_level('DEBUG')
    args = responses(tmp_path/'in.jsonl'),'--critic','api','--model','m','--base-url',server,'--task','summarize','--out',tmp_path/'o.jsonl'
    assert annotate(*args)==1
    rows = read_jsonl(tmp_path/'o.jsonl')
    assert [i for i,r in enumerate(rows) if 'error' in r]==[3] and rows[0]['spans'][0]['text']=='sank near Crete' and rows[0]['annotation']['tokens_in']==50
    o = capfd.readouterr()
    assert '5 judged' in o.out and 'tokens' in o.out
    files = {p:p.read_bytes() for p in tmp_path.rglob('*') if p.is_file()} | dict(out=o.out.encode(), err=o.err.encode(), log=caplog.text.encode())
    assert any('critiques.sqlite' in str(p) for p in files) and not [p for p,b in files.items() if b'canary-1234567890' in b]
    n = len(Server.asked)
    assert annotate(*args, '--retry-failed')==1 and len(Server.asked)>n and all('number 3 ' in b for b in Server.asked[n:])
    monkeypatch.delenv('OPENAI_API_KEY')
    assert annotate(*args[:-1], tmp_path/'k.jsonl', '--api-key-env', 'NO_SUCH_VARIABLE')==1
    assert 'NO_SUCH_VARIABLE' in capfd.readouterr().err and not (tmp_path/'k.jsonl').exists()

@pytest.mark.parametrize('sig,code', [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_annotate_stopped_and_gone_on_with(tmp_path, server, sig, code):
    Server.delay = .15
    responses(tmp_path/'in.jsonl', 40, response='x')
    write_jsonl(tmp_path/'in.jsonl', [r | dict(response=f'Boat {i} sank near Crete.') for i,r in enumerate(read_jsonl(tmp_path/'in.jsonl'))])
    cmd = [sys.executable,'-m','text2grad','annotate',str(tmp_path/'in.jsonl'),'--critic','api','--model','m','--base-url',server,'--out',str(tmp_path/'o.jsonl'),'--no-cache','--concurrency','4']
    p = subprocess.Popen(cmd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=root)
    part,until = tmp_path/'o.jsonl.part',time.time()+60
    while time.time()<until and p.poll() is None and not (part.exists() and part.read_bytes().count(b'\n')>=3): time.sleep(.02)
    p.send_signal(sig)
    _,err = p.communicate(timeout=60)
    assert p.returncode==code and 'Stopped: 40 rows' in err and 'Traceback' not in err, err
    done = part.read_bytes().count(b'\n')
    assert 3<=done<40
    Server.asked,Server.delay = [],0.
    r = subprocess.run(cmd, capture_output=True, text=True, cwd=root)
    assert r.returncode==0 and len(Server.asked)==40-done and len(read_jsonl(tmp_path/'o.jsonl'))==40, r.stderr

def test_annotate_with_a_local_model(tiny, tmp_path, capsys):
    "The toy model writes no critique; every reply is a failure that says so"
    assert annotate(responses(tmp_path/'in.jsonl', 2), '--critic', 'model', '--model', tiny, '--task', 'generic', '--out', tmp_path/'o.jsonl')==2
    assert annotate(responses(tmp_path/'in.jsonl', 2, task='x'), '--critic', 'model', '--model', tmp_path/'none', '--out', tmp_path/'o.jsonl')==1
    err = capsys.readouterr().err
    assert 'none' in err and 'Traceback' not in err and not (tmp_path/'o.jsonl').exists()

def test_version(capsys):
    from text2grad import __version__
    assert main(['--version'])==0 and __version__ in capsys.readouterr().out

def test_help_loads_no_other_part_of_the_library():
    code = 'import sys\nfrom text2grad.cli import main\nmain(["--help"])\nprint([m for m in sys.modules if m.startswith("text2grad.") or m in ("torch","numpy")])'
    out = subprocess.run([sys.executable,'-c',code], capture_output=True, text=True, check=True).stdout
    loaded = set(eval(out.splitlines()[-1]))
    assert 'quickstart' in out and loaded=={'text2grad.files','text2grad.core','text2grad.cli',*(f'text2grad.cli.{m}' for m in ('doctor','train','train_rm','evaluate','quickstart','command'))}

def test_the_package_is_the_command():
    r = subprocess.run([sys.executable,'-m','text2grad','--version'], capture_output=True, text=True)
    assert r.returncode==0 and r.stdout.startswith('text2grad ') and not r.stderr

# ---- resumed: what was typed, what the folder says, and who else is at work

@pytest.fixture(scope='module')
def done(tiny, tmp_path_factory):
    "A finished run, to be copied"
    d = tmp_path_factory.mktemp('done')/'r'
    assert quickstart(tiny, d)==0
    return d

def copied(done, tmp_path):
    shutil.copytree(done, tmp_path/'r')
    return tmp_path/'r'
def resume(out, *more): return main(['quickstart','--resume','--out',str(out),*map(str, more)])

@pytest.mark.parametrize('typed,says', [(['--lr','1'], '--lr 1.0: the run was started with 0.0003'), (['--task','code'], '--task code: the run was started with summarize'), (['--reward','scalar'], '--reward scalar'), (['--seed','3'], '--seed 3'),
    (['--heldout','5'], '--heldout 5'), (['--batch-size','8'], '--batch-size 8: the run was started with 4'), (['--kl-coef','0'], '--kl-coef 0.0'), (['--model','elsewhere'], '--model elsewhere'), (['--steps','2'], '--steps 2: the run was started with 3, and can only be made longer')])
def test_an_option_typed_on_resuming_that_differs_is_refused_by_name(done, tmp_path, capsys, typed, says):
    out = copied(done, tmp_path)
    before = {p:p.read_bytes() for p in out.rglob('*') if p.is_file()}
    assert resume(out, *typed)==1
    err = capsys.readouterr().err
    assert says in err and 'Traceback' not in err and {p:p.read_bytes() for p in out.rglob('*') if p.is_file()}==before

def test_options_typed_again_as_they_were_are_no_fault_and_steps_make_a_run_longer(tiny, done, tmp_path, capsys):
    out = copied(done, tmp_path)
    assert resume(out, '--steps', 5, '--lr', '3e-4', '--seed', 0, '--batch-size', 4, '--task', 'summarize', '--model', tiny, '--device', 'cpu', '--log', 'tensorboard')==0
    assert '5 steps' in capsys.readouterr().out and list((out/'tensorboard').glob('events*'))
    rows = read_jsonl(out/'metrics.jsonl')
    assert [r['step'] for r in rows]==[1,2,3,4,5] and all(r['lr']>0 for r in rows)
    c = json.loads((out/'config.json').read_text())
    assert c['quickstart']['steps']==c['ppo']['steps']==5
    assert resume(out)==0 and '5 steps' in capsys.readouterr().out

def spoil(out, change):
    c = json.loads((out/'config.json').read_text())
    (out/'config.json').write_text(json.dumps(change(c)))
def put(k, v): return lambda c: c | dict(quickstart=c['quickstart'] | {k:v})
@pytest.mark.parametrize('change', [lambda c: [], lambda c: None, lambda c: 'x', lambda c: 3, lambda c: {}, lambda c: dict(quickstart={}), lambda c: dict(quickstart=[]), lambda c: dict(quickstart=None), put('task', 'poetry'), put('task', ['code']), put('model', 3),
    put('model', {}), put('steps', '3'), put('steps', 0), put('steps', True), put('steps', 2.5), put('heldout', 'x'), put('heldout', None), put('lr', 'x'), put('lr', None), put('kl_coef', []), put('seed', 'x'), put('batch_size', -1),
    lambda c: dict(quickstart={k:v for k,v in c['quickstart'].items() if k!='lr'})])
def test_a_config_of_another_shape_is_refused_by_its_name(done, tmp_path, capsys, change):
    out = copied(done, tmp_path)
    spoil(out, change)
    assert resume(out)==1
    err = capsys.readouterr().err
    assert 'config.json' in err and 'Traceback' not in err

def test_a_run_is_not_resumed_on_another_base_model(done, tmp_path, capsys):
    from text2grad.pretrained import tiny_lm
    out = copied(done, tmp_path)
    model,tok = tiny_lm(5)
    model.save_pretrained(tmp_path/'m'); tok.save_pretrained(tmp_path/'m')
    spoil(out, put('model', str(tmp_path/'m')))
    assert resume(out)==1 and 'base is' in capsys.readouterr().err
    shutil.rmtree(out/'checkpoints') # killed before the first checkpoint: the folder itself knows
    assert resume(out)==1 and 'base is' in capsys.readouterr().err

@pytest.mark.parametrize('text', ['', '[1]\n', '{}\n', '{"example": 3}\n', '{"example": {"prompt": "p"}}\n', 'junk\n'])
def test_a_damaged_measurement_is_named(done, tmp_path, capsys, text):
    out = copied(done, tmp_path)
    (out/'heldout-before.jsonl').write_text(text)
    assert resume(out)==1
    err = capsys.readouterr().err
    assert 'heldout-before.jsonl' in err and 'Traceback' not in err
    (out/'heldout-before.jsonl').unlink()
    assert resume(out)==0 and json.loads((out/'summary.json').read_text())['table']==json.loads((done/'summary.json').read_text())['table']

def test_old_run_folders_resume_with_a_warning(done, tmp_path, capsys, caplog):
    from test_span_ppo import rewrite
    out = copied(done, tmp_path)
    spoil(out, lambda c: {k:v for k,v in c.items() if k!='identity'})
    rewrite(sorted((out/'checkpoints').glob('ckpt-*'))[-1], identity=...)
    assert resume(out, '--steps', 4)==0 and caplog.text.count('resumed without comparing base')==1

def test_two_starts_on_one_new_folder_leave_one_run_that_can_be_resumed(tiny, tmp_path):
    "The lock comes before config.json; the one that is refused writes nothing"
    for i in range(3):
        out = tmp_path/f'r{i}'
        both = [start(tiny, out, '--seed', str(s)) for s in (1, 2)]
        until = time.time()+120
        while time.time()<until and all(p.poll() is None for p in both): time.sleep(.02)
        lost = next(p for p in both if p.poll() is not None)
        won = next(p for p in both if p is not lost)
        err = lost.communicate()[1]
        assert lost.returncode==1 and ('another process' in err or 'already holds a run' in err) and 'Traceback' not in err, err
        while time.time()<until and not any((out/'checkpoints').glob('ckpt-[0-9]*')): time.sleep(.02)
        won.send_signal(signal.SIGTERM)
        assert won.wait(120)==143
        won.communicate()
        at = sorted((out/'checkpoints').glob('ckpt-*'))[-1]
        assert json.loads((out/'config.json').read_text())['quickstart']['seed']==json.loads((at/'state.json').read_text())['config']['seed']==1+both.index(won)
    r = start(tiny, out, '--resume')
    assert r.wait(300)==0, r.communicate()[1]
    r.communicate()

def test_the_folder_is_held_until_the_summary_is_written(tiny, tmp_path, monkeypatch, capsys):
    from text2grad.checkpoints import RunFolderError,lock_folder
    from text2grad.span_ppo import HeldOut,RunFolder,SpanPPO
    seen = []
    def spy(cls, name):
        f = getattr(cls, name)
        def spied(*a, **kw):
            with pytest.raises(RunFolderError, match='another process'): lock_folder(tmp_path/'r')
            seen.append(name)
            r = f(*a, **kw)
            with pytest.raises(RunFolderError, match='another process'): lock_folder(tmp_path/'r')
            return r
        monkeypatch.setattr(cls, name, spied)
    for cls,name in ((RunFolder,'begin'), (RunFolder,'prepare'), (RunFolder,'on_save'), (HeldOut,'measure'), (SpanPPO,'finish')): spy(cls, name)
    assert quickstart(tiny, tmp_path/'r')==0 and set(seen)=={'begin','prepare','on_save','measure','finish'}
    lock_folder(tmp_path/'r').release()

KEPT = dict(prompts='p.jsonl', prompt_field='prompt', critic='tests', model=None, heldout='0.1', samples=1, metric=['m:f'], log=None, sampler=None)
@pytest.mark.parametrize('typed,file,says', [([], 'lr: 0.5\n', 'lr is 0.0003 there and 0.5 here'), ([], 'samples: 2\n', 'samples is 1'), ([], 'critic: rules:summarize\n', 'critic is'), ([], 'metric: m:g\n', 'metric is'), ([], 'heldout: 0.2\n', 'heldout is'),
    ([], 'kl_target: 6.0\n', 'kl_target is None'), ([], 'stepz: 2\n', "did you mean 'steps'"), (['--set','epochs=3'], '', 'epochs is 1'), (['--set','epochs=3'], 'epochs: 1\n', 'epochs is 1'), (['--gradient-checkpointing'], '', 'gradient_checkpointing'), (['--quantize','4bit'], '', 'quantize is None'),
    (['--heldout','0.10'], 'heldout: 0.1\nmetric: m:f\nlr: null\nsteps: 30\neval_every: 2\nlog: tensorboard\n', None), (['--metric','m:f','--prompts','p.jsonl'], '', None), (['--lr','3e-4'], 'lr: 0.5\n', None)])
def test_what_is_said_on_resuming_is_compared_wherever_it_stands(tmp_path, typed, file, says):
    from text2grad.cli.command import _parser
    from text2grad.cli.train import settings_of,tuned
    from text2grad.span_ppo.config import config_of
    rates = dict(span=3e-4, scalar=9e-4)
    kept = KEPT | dataclasses.asdict(config_of(tuned({}, rates)))
    (tmp_path/'c.yaml').write_text(file or '{}\n')
    args = _parser().parse_args(['train','--resume','--out','r','--config',str(tmp_path/'c.yaml'),*typed])
    if says is None: assert settings_of(args, rates, kept); return
    with pytest.raises(UserError, match=says): settings_of(args, rates, kept)

# ---- over seeds

def seeds(tiny, out, *more): return main(['quickstart','--model',str(tiny),'--steps','2','--batch-size','4','--heldout','3','--seeds','0-2','--out',str(out), *more])

@pytest.fixture(scope='module')
def three(tiny, tmp_path_factory):
    d = tmp_path_factory.mktemp('seeds')/'s'
    assert seeds(tiny, d)==0
    return d

def test_seeds_are_runs_of_their_own_that_begin_with_one_measurement(three):
    runs = [json.loads((three/f'seed{s}/summary.json').read_text()) for s in range(3)]
    assert [r['seed'] for r in runs]==[0,1,2]
    for name in ('heldout','greedy'): assert len({(three/f'seed{s}/{name}-before.jsonl').read_bytes() for s in range(3)})==1
    assert len({(three/f'seed{s}/metrics.jsonl').read_text() for s in range(3)})==3
    told = json.loads((three/'seeds.json').read_text())
    t = next(r for r in told['table'] if r['metric']=='critic total a response')
    diffs = [next(r['diff'] for r in x['table'] if r['metric']=='critic total a response') for x in runs]
    assert t['n']==3 and abs(t['diff']-sum(diffs)/3)<1e-9 and t['low']<=t['diff']<=t['high']
    text = seeds_text(told)
    assert 'seeds 0, 1, 2' in text and 'critic total a response' in text and all(c['complaint'][:40] in text for c in told['complaints'])

def test_seeds_go_on_where_they_were(tiny, three, tmp_path, capsys):
    out = tmp_path/'s'
    shutil.copytree(three, out)
    want = (out/'seeds.json').read_bytes()
    (out/'seeds.json').unlink()
    for name in ('summary.json','heldout-after.jsonl'): (out/f'seed1/{name}').unlink()   # stopped while it was measured
    shutil.rmtree(out/'seed2')
    assert seeds(tiny, out)==0
    assert (out/'seeds.json').read_bytes()==want
    assert seeds(tiny, out, '--lr', '1')==1 and '--lr 1.0: the run was started with' in capsys.readouterr().err
    assert main(['quickstart','--seeds','0-3','--out',str(out)])==1 and 'steps is 2 in ' in capsys.readouterr().err and not (out/'seed3').exists()
    assert seeds(tiny, out, '--steps', '3')==0 and [json.loads((out/f'seed{s}/summary.json').read_text())['steps'] for s in range(3)]==[3]*3

@pytest.mark.parametrize('argv,code,says', [(['--seeds','0'], 2, 'two seeds or more'), (['--seeds','0-x'], 2, 'two seeds or more'), (['--seeds','1,1'], 2, 'two seeds or more'), (['--seeds','0-1','--seed','3'], 1, 'give one of them')])
def test_seeds_that_cannot_be(tmp_path, capsys, argv, code, says):
    assert main(['quickstart','--out',str(tmp_path/'s'),*argv])==code and says in capsys.readouterr().err and not (tmp_path/'s').exists()

# recipes

ROWS = dict(slf5k=dict(id='a', title='Rain', post='It rained all day, and the match was delayed.', generated_summary_for_feedback='Rain.', feedback='Too short.', ideal_human_summary='Rain delayed the match.'),
            kodcode=dict(question='Write a function add(a, b).', solution='def add(a, b): return a+b', test='from solution import add\ndef test_add(): assert add(1, 2)==3'),
            ultrafeedback=dict(prompt='Who won?', prompt_id='p', score_chosen=8., score_rejected=2., chosen=[dict(role='user', content='Who won?'), dict(role='assistant', content='Nobody.')],
                               rejected=[dict(role='user', content='Who won?'), dict(role='assistant', content='I.')]))

@pytest.mark.parametrize('name', ROWS)
def test_each_recipe_makes_a_step_on_the_tiny_model_with_rows_of_the_same_columns(tiny, tmp_path, capsys, name):
    write_jsonl(tmp_path/'in.jsonl', [ROWS[name]]*4)
    (tmp_path/'mine.py').write_text('from text2grad.core import Critique\ndef judge(es): return [Critique("Fine.") for _ in es]\n')
    small = ['--model',str(tiny),'--prompts',f'{name}:{tmp_path/"in.jsonl"}','--critic',f'{tmp_path/"mine.py"}:judge' if name=='ultrafeedback' else 'tests' if name=='kodcode' else 'rules:summarize',
             '--heldout','0','--steps','1','--batch-size','2','--set','minibatch_size=2','--set','epochs=1','--max-new-tokens','4']
    files = lambda: sorted(p for p in tmp_path.rglob('*') if '__pycache__' not in p.parts) # Python's own, beside mine.py
    there = files()
    assert main(['train','--config',name,'--dry-run','--out',str(tmp_path/'r'), *small])==0, capsys.readouterr().err
    out = capsys.readouterr().out
    assert files()==there and 'reward: sign' in out and '4 prompts to train on, 0 held out' in out and '8 x H100' in out
    assert main(['train','--config',name,'--out',str(tmp_path/'r'), *small])==0, capsys.readouterr().err
    said = json.loads((tmp_path/'r/config.json').read_text())['ppo']
    assert (said['reward'], said['temperature'], said['gradient_checkpointing'], said['kl_target'])==('sign', .6, True, 6)
    assert said['lr']==dict(slf5k=1e-6, kodcode=5e-7, ultrafeedback=1e-6)[name] and said['kl_coef']==dict(slf5k=.2, kodcode=.07, ultrafeedback=.05)[name]

def test_a_recipe_needs_a_critic_and_an_unknown_one_is_refused(tmp_path, capsys):
    assert main(['train','--config','slf5k','--out',str(tmp_path/'r')])==1 and '--critic: say what to train on' in capsys.readouterr().err
    assert main(['train','--dry-run','--config','slf5k','--out',str(tmp_path/'r')])==1 and '--critic: say what to train on' in capsys.readouterr().err
    assert main(['train','--config','slf6k','--out',str(tmp_path/'r')])==1 and 'slf6k: no such file' in capsys.readouterr().err


# --- how the threads of torch wait

@pytest.mark.parametrize('others,set_to', [([0., 3.], dict(GOMP_SPINCOUNT='10000')), ([20., 100.], dict(OMP_WAIT_POLICY='PASSIVE')), ([30., 25., 0., 10.], dict(OMP_WAIT_POLICY='PASSIVE'))])
def test_threads_wait_awake_on_an_idle_machine_only(monkeypatch, others, set_to):
    import psutil
    from text2grad.cli.command import _say_how_threads_wait
    env = dict(PATH='')
    monkeypatch.setattr(os, 'environ', env)
    monkeypatch.setattr(psutil, 'cpu_percent', lambda interval, percpu: others)
    _say_how_threads_wait()
    assert env==dict(PATH='') | set_to

@pytest.mark.parametrize('own', [dict(OMP_WAIT_POLICY='ACTIVE'), dict(GOMP_SPINCOUNT='7')])
def test_what_the_user_said_of_threads_stands(monkeypatch, own):
    from text2grad.cli.command import _say_how_threads_wait
    env = dict(own)
    monkeypatch.setattr(os, 'environ', env)
    _say_how_threads_wait()
    assert env==own

def test_the_choice_is_made_before_torch_is_loaded():
    "Only the commands that compute make it"
    code = ('import os,sys; from text2grad.cli import command; said=[]; command._say_how_threads_wait=lambda: said.append("torch" in sys.modules);'
            'command.main(["evaluate","--model","nowhere-at-all","--prompts","none.jsonl","--critic","rules:answer","--device","cpu"]); command.main(["align","--help"]); print(said)')
    env = {k:v for k,v in os.environ.items() if k not in ('OMP_WAIT_POLICY','GOMP_SPINCOUNT')}
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env=env).stdout.splitlines()[-1]=='[False]'

def test_annotate_says_what_to_install_before_it_counts_responses(tmp_path, capsys, monkeypatch):
    (tmp_path/'r.jsonl').write_text('{"prompt": "Say hi.", "response": "Hi there."}\n')
    monkeypatch.setitem(sys.modules, 'openai', None)
    typed = ['annotate', str(tmp_path/'r.jsonl'), '--critic', 'api', '--model', 'm', '--base-url', 'http://127.0.0.1:9/v1', '--out', str(tmp_path/'o.jsonl')]
    assert main(typed)==1
    err = capsys.readouterr().err
    assert err.startswith('text2grad annotate: a critic behind a server needs openai') and 'pip install -e ".[api]"' in err and err.count('\n')==1
    assert not (tmp_path/'o.jsonl').exists() and main([*typed, '--dry-run'])==0, 'a question is shown without it'
