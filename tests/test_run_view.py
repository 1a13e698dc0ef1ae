"Runs as the app reads and shows them: hostile folders, torn and damaged files, a writer at work, two checkpoints, and the view's handlers"
import hashlib,json,os,random,re,shutil,subprocess,sys,threading,time
from dataclasses import replace
from pathlib import Path
import numpy as np, pytest, torch
from text2grad.viz.channels import TokenTable
from text2grad.checkpoints import CheckpointError,append_log,trim_log,write_checkpoint
from text2grad.cli.command import main
from text2grad.core import Critique,Example,Span,dumps
from text2grad.span_ppo.policy import Policy
from text2grad.pretrained import tiny_lm
from text2grad.evaluation.runs import LogTail,RunBase,RunError,RunReader,Shelf,list_runs,open_inside
from text2grad.evaluation.run_html import *
from text2grad.evaluation.runs import RunError,RunReader,Shelf,list_runs
from text2grad.evaluation.run_html import kind_of
from text2grad.span_ppo.callbacks import RunFolder
from text2grad.span_ppo.inspection import checkpoint_cases,measure,read_checkpoint,with_weights
from text2grad.span_ppo.config import SpanPPOConfig
from text2grad.span_ppo.trainer import SpanPPO
from text2grad.app.view_runs import *
from text2grad.app.view_runs import TEXTS
from text2grad.app.models import shelf_of
from text2grad.viz.plots import Line,curves_svg
from text2grad.app.workbench import InputError,Workbench
import text2grad.evaluation.runs as rf, text2grad.evaluation.run_html as rv

def toy(r=4): return Policy.create(*tiny_lm(0), lora=dict(r=r, alpha=8))
def e_critic(examples): return [Critique('More e.', [Span(i, i+1, .5 if c=='e' else -.1, reason='more e') for i,c in enumerate(x.response)]) for x in examples]
def train(path, lr=3e-3, steps=2):
    cfg = SpanPPOConfig(steps=steps, batch_size=2, minibatch_size=2, max_new_tokens=6, lr=lr, save_every=1, keep=3)
    exs = [Example(f'Write {n} letters.', '', meta=dict(id=n)) for n in ('one','two')]
    return SpanPPO(toy(), e_critic, exs, cfg, callbacks=[RunFolder(path)])

@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    d = tmp_path_factory.mktemp('trained')
    for name,lr in (('a',1e-4), ('b',3e-3)):
        train(d/name, lr).fit()
        (d/name/'config.json').write_text('{"ppo": {"steps": 2, "lr": 0.1}}')
    return d

@pytest.fixture
def runs(trained, tmp_path):
    "A copy of two trained runs that a test may damage"
    shutil.copytree(trained, tmp_path/'runs')
    return tmp_path/'runs'

def row(step=1, i=0, tokens=(('A',.5),(' b',-.5)), **more):
    return dict(step=step, id=f'p{i}', prompt='Say.', response=''.join(t for t,_ in tokens), critique=None, tokens=[dict(text=t, reward=r) for t,r in tokens]) | more
def put(folder, name, rows):
    folder.mkdir(parents=True, exist_ok=True)
    (folder/name).write_bytes(b''.join(r if isinstance(r, bytes) else json.dumps(r).encode()+b'\n' for r in rows))
    return folder
def same(a, b): return all(torch.equal(v, b[k]) for k,v in a.items())
def own(policy): return {k:v.clone() for k,v in policy.state_dict().items()}

# ---- one base folder

@pytest.mark.parametrize('name', ['..','../x','b/../..','b/../../x','/','/etc','/etc/passwd','~','.//..','b/./../../secret'])
def test_nothing_outside_the_base(runs, name):
    (runs.parent/'secret').mkdir(); (runs.parent/'x').mkdir()
    with pytest.raises(RunError, match='outside|no such folder'): RunReader(RunBase(runs), name)

@pytest.mark.parametrize('name', ['','  ',None,7,['b'],'x'*501,'b\0','\ud800',{'b':1}])
def test_names_that_are_none(runs, name):
    with pytest.raises(RunError, match='choose a run'): RunBase(runs).find(name)

def test_the_error_does_not_tell_whether_something_outside_exists(runs):
    (runs.parent/'there').mkdir()
    said = []
    for n in ('../there','../missing'):
        with pytest.raises(RunError) as e: RunBase(runs).find(n)
        said.append(str(e.value).replace('there', 'missing'))
    assert said[0]==said[1]

def test_names_that_are_fine(runs):
    base = RunBase(runs)
    assert base.find('b')==base.find('b/')==base.find(str(runs/'b'))==base.find('./b')==base.find('a/../b')=='b'
    (runs/'alias').symlink_to(runs/'b')
    assert base.find('alias')=='b'                        # a link that stays inside leads to the folder itself

@pytest.mark.parametrize('name', ['metrics.jsonl','samples.jsonl','config.json','summary.json'])
def test_links_in_a_run_folder(runs, name):
    (runs.parent/'secret').write_text('{"step": 1, "secret": 5}\n')
    (runs/'b'/name).unlink(missing_ok=True)
    (runs/'b'/name).symlink_to(runs.parent/'secret')
    with pytest.raises(RunError, match=f'{name}: is a link.*copy the file'): RunReader(RunBase(runs), 'b')

@pytest.mark.parametrize('swap', ['run','checkpoints'])
def test_a_folder_swapped_for_a_link_after_opening(runs, swap):
    r = RunReader(RunBase(runs), 'b')
    secret = put(runs.parent/'secret', 'metrics.jsonl', [dict(step=9, reward=9)])
    if swap=='run':
        shutil.move(runs/'b', runs.parent/'gone'); (runs/'b').symlink_to(secret)
        with pytest.raises(RunError, match='is not a folder, or a link'): r.refresh()
        assert all(m.get('reward')!=9 for m in r.metrics)
    else:
        shutil.move(runs/'b/checkpoints', runs.parent/'gone'); (runs/'b/checkpoints').symlink_to(runs.parent/'gone')
        assert r.checkpoints()==[]
        with pytest.raises(CheckpointError, match='link'): read_checkpoint(r, 2)

def test_pipes_folders_and_upward_paths(runs):
    base = RunBase(runs)
    os.mkfifo(runs/'b/pipe'); (runs/'b/dir').mkdir()
    for n in ('pipe','dir'):
        with pytest.raises(RunError, match='not a plain file'): open_inside(base, 'b', n)
    with pytest.raises(RunError, match='upwards'): open_inside(base, 'b', '../a/config.json')
    assert open_inside(base, 'b', 'nothing.json') is None

def test_list_of_runs(runs):
    put(runs/'group/deep', 'metrics.jsonl', []); put(runs/'.hidden', 'metrics.jsonl', []); put(runs/'1/2/3/4', 'metrics.jsonl', [])
    (runs/'loop').symlink_to(runs); (runs/'empty').mkdir()
    os.makedirs(os.fsencode(runs)+b'/\xff'); open(os.fsencode(runs)+b'/\xff/metrics.jsonl', 'w').close()
    os.utime(runs/'b/metrics.jsonl', (2e9, 2e9))
    got = list_runs(RunBase(runs))
    assert got[0]=='b' and sorted(got)==['a','b','group/deep']
    with pytest.raises(RunError, match='no such folder.*quickstart'): list_runs(RunBase(runs/'nowhere'))

def test_list_of_many(tmp_path, monkeypatch):
    monkeypatch.setattr(rf, 'MAX_RUNS', 5); monkeypatch.setattr(rf, 'MAX_FOLDERS', 8)
    for i in range(20): put(tmp_path/f'r{i:02d}', 'metrics.jsonl', [])
    assert len(list_runs(RunBase(tmp_path)))==5

# ---- logs that grow, are torn, damaged, replaced

def test_every_truncation_is_read_and_said(runs):
    log = (runs/'b/metrics.jsonl').read_bytes()
    whole = [i+1 for i,c in enumerate(log) if c==10]
    for n in sorted({*range(0, len(log), 23), *whole, *(w-1 for w in whole)}):
        (runs/'b/metrics.jsonl').write_bytes(log[:n])
        r = RunReader(RunBase(runs), 'b')
        assert len(r.metrics)==sum(w<=n for w in whole)
        assert any('not whole yet' in s for s in r.notes())==(n not in whole and n>0)
        curves_html(r); facts_html(r)

def test_flipped_bytes_never_raise_anything_else(runs):
    rng,base = random.Random(0),RunBase(runs)
    for name in ('metrics.jsonl','samples.jsonl','config.json'):
        raw = (runs/'b'/name).read_bytes()
        for _ in range(40):
            bad = bytearray(raw)
            for _ in range(rng.choice([1, 5, 40])): bad[rng.randrange(len(bad))] = rng.randrange(256)
            (runs/'b'/name).write_bytes(bad)
            r = RunReader(base, 'b')
            facts_html(r); curves_html(r); r.notes()
            for s in r.steps:
                for i in range(len(r.places[s])):
                    try: x = sample_of(r, s, i)
                    except RunError as e: assert f'runs/b/samples.jsonl: sample {i} of step {s}' in str(e)
                    else: compare_html(x, x)
        (runs/'b'/name).write_bytes(raw)

bad_lines = [b'{"step": 1', b'nonsense\n', b'[1]\n', b'{"reward": 1}\n', b'{"step": "1"}\n', b'{"step": -1}\n', b'{"step": 1.5}\n', b'{"step": true}\n', b'{"step": 1'+b'0'*20+b'}\n',
    b'\xff\xfe\n', b'{"step": 1, "x": '+b'['*100_000+b'\n', b'{"step": 1'+b'9'*5000+b'}\n', b'null\n', b'{"step": NaN}\n']
@pytest.mark.parametrize('bad', bad_lines, ids=range(len(bad_lines)))
@pytest.mark.parametrize('name', ['metrics.jsonl','samples.jsonl'])
def test_bad_lines_are_counted_and_the_others_kept(tmp_path, bad, name):
    put(tmp_path/'r', name, [row(1, reward=.1), bad, row(2, reward=.2)] if bad.endswith(b'\n') else [row(1), row(2), bad])
    r = RunReader(RunBase(tmp_path), 'r')
    assert ([m['step'] for m in r.metrics] if name[0]=='m' else r.steps)==[1,2]
    assert [n for n in r.notes() if name in n and ('could not be read' in n or 'not whole' in n)]

def test_numbers_that_are_none(tmp_path):
    put(tmp_path/'r', 'metrics.jsonl', [b'{"step": 1, "reward": NaN, "kl": Infinity, "loss": 1e999, "big": 1'+b'0'*400+b', "text": "x", "flag": true, "none": null, "in": {"a": {"b": 2}}}\n'])
    m = RunReader(RunBase(tmp_path), 'r').metrics
    assert m==[{'step':1, 'reward':None, 'kl':None, 'loss':None, 'big':None, 'none':None, 'in.a.b':2.}]
    assert 'no numbers' in curves_html(RunReader(RunBase(tmp_path), 'r'))

def test_wide_rows_and_long_names(tmp_path):
    put(tmp_path/'r', 'metrics.jsonl', [dict(step=1, **{f'k{i}'+'x'*200:i for i in range(5000)})])
    r = RunReader(RunBase(tmp_path), 'r')
    assert len(r.metrics[0])<=rf.MAX_KEYS+1 and max(map(len, r.metrics[0]))<=80
    assert 'are not drawn' in curves_html(r) and len(curves_html(r))<300_000

def test_refresh_reads_only_what_is_new(runs, monkeypatch):
    r,read = RunReader(RunBase(runs), 'b'),[0]
    real = rf.open_inside
    class Counted:
        def __init__(self, f): self.f = f
        def __getattr__(self, k): return getattr(self.f, k)
        def __enter__(self): return self
        def __exit__(self, *a): self.f.close()
        def _c(self, b): read[0] += len(b); return b
        def read(self, *a): return self._c(self.f.read(*a))
        def readline(self, *a): return self._c(self.f.readline(*a))
    monkeypatch.setattr(rf, 'open_inside', lambda *a: (f := real(*a)) and Counted(f))
    assert not r.refresh() and read[0]<=4*64
    line = dumps(row(3))+'\n'
    (runs/'b/samples.jsonl').open('a').write(line)
    read[0] = 0
    assert r.refresh() and r.steps==[1,2,3] and read[0]<=len(line)+6*64
    t = time.process_time()
    for _ in range(200): r.refresh()
    assert (time.process_time()-t)/200<.02

def test_a_writer_at_work(tmp_path):
    "Lines arrive in pieces while another thread reads: none is lost, doubled or torn"
    d,n,done = put(tmp_path/'r', 'metrics.jsonl', []),120,threading.Event()
    def write():
        with open(d/'metrics.jsonl', 'ab', buffering=0) as f, open(d/'samples.jsonl', 'ab', buffering=0) as g:
            for i in range(1, n+1):
                for file,o in ((g, row(i)), (f, dict(step=i, reward=i/n))):
                    raw = json.dumps(o).encode()+b'\n'
                    cut = i*7%len(raw)
                    file.write(raw[:cut]); time.sleep(.0005); file.write(raw[cut:])
        done.set()
    r,t = RunReader(RunBase(tmp_path), 'r'),threading.Thread(target=write)
    t.start()
    while not done.is_set():
        r.refresh()
        assert [m['step'] for m in r.metrics]==list(range(1, len(r.metrics)+1))
        if r.steps: assert sample_of(r, r.steps[-1]).step==r.steps[-1]
    t.join(); r.refresh()
    assert len(r.metrics)==n and r.steps==list(range(1, n+1)) and not any('could not' in s for s in r.notes())

def test_a_resumed_run_is_read_anew(runs):
    r = RunReader(RunBase(runs), 'b')
    trim_log(runs/'b/metrics.jsonl', 1); trim_log(runs/'b/samples.jsonl', 1)
    append_log(runs/'b/metrics.jsonl', [dict(step=2, reward=.75)])
    assert r.refresh() and [m['step'] for m in r.metrics]==[1,2] and r.metrics[1]['reward']==.75 and r.steps==[1]
    with pytest.raises(RunError, match='no sample 0 at step 2; there are 0.*steps 1 to 1'): sample_of(r, 2)

def test_same_file_rewritten_in_place(tmp_path):
    d = put(tmp_path/'r', 'metrics.jsonl', [dict(step=i, reward=.1) for i in (1,2,3)])
    r = RunReader(RunBase(tmp_path), 'r')
    with open(d/'metrics.jsonl', 'r+b') as f: f.write(b'{"step": 7, "reward": 0.1}\n'*3)
    assert r.refresh() and [m['step'] for m in r.metrics]==[7,7,7]

def test_a_sample_replaced_between_two_looks(runs):
    r = RunReader(RunBase(runs), 'b')
    put(runs/'b', 'samples.jsonl', [row(5)]*20)
    with pytest.raises(RunError, match='refresh'): sample_of(r, 2)
    r.refresh()
    assert r.steps==[5]

def test_files_above_the_limit_are_read_partly(tmp_path):
    d = put(tmp_path/'r', 'metrics.jsonl', [dict(step=i) for i in range(1000)])
    for limit in (100, 1000, 5000):
        t = LogTail(lambda: open(d/'metrics.jsonl', 'rb'), limit=limit)
        _,lines = t.new()
        assert t.left_out==(d/'metrics.jsonl').stat().st_size-limit and json.loads(lines[-1][1])['step']==999 and sum(len(l) for _,l in lines)<=limit
    (d/'metrics.jsonl').open('ab').write(b'{"step": 1}\n'*2000)  # grows by more than the limit at once
    again,lines = t.new()
    assert not again and len(lines)<=5000//12 and t.left_out>20_000

def test_the_reader_says_what_it_left_out(tmp_path, monkeypatch):
    d = put(tmp_path/'r', 'metrics.jsonl', [dict(step=i) for i in range(1000)])
    put(d, 'samples.jsonl', [row(1), b'{"step": 2, "x": "'+b'y'*3000+b'"}\n', row(3)])
    (d/'config.json').write_text('{"a": "'+'b'*2000+'"}')
    monkeypatch.setattr(rf.LogTail.__init__, '__defaults__', (4000, 1000)); monkeypatch.setattr(rf, 'MAX_DOCUMENT', 1000); monkeypatch.setattr(rf, 'MAX_ROWS', 50)
    r = RunReader(RunBase(tmp_path), 'r')
    said = ' '.join(r.notes())
    assert 'metrics.jsonl is large' in said and '1 line of more than 1,000 bytes' in said and 'config.json could not be read: has 2,009 bytes' in said and 'only the last 50 steps' in said
    assert len(r.metrics)==50 and r.metrics[-1]['step']==999 and r.steps==[1,3]

def test_folders_that_are_no_runs(tmp_path):
    (tmp_path/'r').mkdir(); (tmp_path/'file').write_text('x')
    with pytest.raises(RunError, match='holds neither metrics.jsonl nor config.json'): RunReader(RunBase(tmp_path), 'r')
    with pytest.raises(RunError, match='no such folder'): RunReader(RunBase(tmp_path), 'file')
    with pytest.raises(RunError, match='no such folder'): RunReader(RunBase(tmp_path/'none'), 'r')

def test_broken_documents_are_noted(runs):
    (runs/'b/summary.json').write_text('{"table": [')
    (runs/'b/config.json').write_bytes(b'\xff')
    r = RunReader(RunBase(runs), 'b')
    assert sum('could not be read' in n for n in r.notes())==2 and kind_of(r)=='span PPO'
    (runs/'b/summary.json').write_text(json.dumps(dict(table=[dict(metric='m', n=8, before=None, diff='x'), 3], task=['<b>'], dev=7)))
    assert r.refresh() and '<td' in results_html(r) and '>8<' in results_html(r)
    facts_html(r)

# ---- samples

def sample(tmp_path, **more):
    put(tmp_path/'r', 'samples.jsonl', [row(**more)])
    return sample_of(RunReader(RunBase(tmp_path), 'r'), 1)

def test_a_trained_sample_is_what_was_logged(trained):
    r = RunReader(RunBase(trained), 'b')
    raw = r.sample(2, 1)
    s = sample_of(r, 2, 1)
    assert s.response==raw['response'] and s.notes==() and s.id==raw['id'] and s.example.critique.spans==s.critique.spans
    assert all(raw['response'][a:b]==t for (a,b),t in zip(s.table.offsets, s.table.tokens))
    for c,k in (('reward','reward'),('advantage','advantage'),('value','value'),('logp','logp_old'),('kl','kl')): assert s.table[c].tolist()==[t[k] for t in raw['tokens']]
    np.testing.assert_allclose(s.table['dlogp'], [t['logp_new']-t['logp_old'] for t in raw['tokens']])
    assert len(s.critique.spans)==len(raw['critique']['spans'])>0

@pytest.mark.parametrize('tokens', [None, 3, {}, [1], ['a'], [None], [dict(reward=1)], [dict(text=1)], [dict(text='a'), []]])
def test_tokens_that_cannot_be_read(tmp_path, tokens):
    put(tmp_path/'r', 'samples.jsonl', [row()|dict(tokens=tokens)])
    with pytest.raises(RunError, match='samples.jsonl: sample 0 of step 1: its tokens cannot be read'): sample_of(RunReader(RunBase(tmp_path), 'r'), 1)

@pytest.mark.parametrize('value', [None, 'x', True, [], {}, float('nan'), float('inf'), 10**400])
def test_values_that_are_none(tmp_path, value):
    put(tmp_path/'r', 'samples.jsonl', [row()|dict(tokens=[dict(text='A', reward=value), dict(text=' b', reward=1)])])
    s = sample_of(RunReader(RunBase(tmp_path), 'r'), 1)
    assert np.isnan(s.table['reward'][0]) and s.table['reward'][1]==1 and any('missing for: reward' in n for n in s.notes)
    compare_html(s, s)

bad_critiques = [3, 'x', [], dict(spans=3), dict(spans=[3]), dict(spans=[dict(start=0)]), dict(spans=[dict(start=0, end=99, score=1)]), dict(spans=[dict(start=0, end=1, score=9)]),
    dict(spans=[dict(start=0, end=1, score=1, text='Z')]), dict(spans=[dict(start='0', end=1, score=1)]), dict(spans=[dict(start=0, end=1, score=1, match='odd')]), dict(unresolved=[7, dict(score=1e9)]), dict(text=5, source=[1])]
@pytest.mark.parametrize('c', bad_critiques, ids=range(len(bad_critiques)))
def test_critiques_that_cannot_be_read(tmp_path, c):
    s = sample(tmp_path, critique=c)
    assert s.critique is None or not s.critique.spans
    assert s.notes or c in (dict(text=5, source=[1]), dict(spans=3))
    s.example

@pytest.mark.parametrize('prompt', [None, 3, [], [3], [dict(role='user')], dict(a=1)])
def test_prompts_that_are_none(tmp_path, prompt): assert isinstance(sample(tmp_path, prompt=prompt).example.prompt, str)

def test_lengths_that_do_not_match(tmp_path):
    s = sample(tmp_path, response='something else', critique=dict(text='', spans=[dict(start=0, end=9, score=1, text='something'), dict(start=0, end=1, score=1, text='A')]))
    assert s.response=='A b' and [(x.start, x.end) for x in s.critique.spans]==[(0, 1)] and len(s.notes)==3

def test_empty_response_and_end_token(tmp_path):
    assert len(sample(tmp_path, tokens=()).table)==0
    s = sample(tmp_path, tokens=(('A',.5),('',0.)))
    assert s.table.offsets==((0,1),(1,1))
    for x in (s, sample(tmp_path, tokens=())): compare_html(x, s)

def test_very_long_samples(tmp_path, monkeypatch):
    monkeypatch.setattr(rv, 'MAX_TOKENS', 3000)
    s = sample(tmp_path, tokens=[(' a' if i%3 else ' b', i%5-2.) for i in range(4000)], critique=dict(text='x'*9000, spans=[dict(start=i, end=i+1, score=1) for i in range(2500)]))
    assert len(s.table)==3000 and len(s.critique.spans)==2000 and len(s.critique.text)<4100 and any('first 3,000 of 4,000' in n for n in s.notes)
    t = time.process_time()
    compare_html(s, replace(s, table=TokenTable(s.table.tokens[::-1], list(zip(*[iter(range(6000))]*2)), s.table.channels)))
    assert time.process_time()-t<20

payload = '<img src=x onerror=alert(1)>"\'`${x}{{y}}</style><script>\u202e\ud800'
def test_nothing_in_a_run_folder_is_markup(tmp_path):
    rec = dict(schema='text2grad/span-feedback/1', prompt=payload, response=payload, spans=[dict(start=0, end=4, score=1, reason=payload)], feedback=[dict(text=payload)])
    name = '<img src=x onerror=alert(1)>'
    d = put(tmp_path/name, 'metrics.jsonl', [dict(step=1, **{payload:1, f'{payload}loss':2.}), b'<img src=x onerror=alert(1)>\n'])
    put(d, 'samples.jsonl', [row(s, id=payload, prompt=payload, tokens=((payload,1),), critique=dict(text=payload, source=payload, spans=[dict(start=0, end=4, score=1, reason=payload, quote=payload)], unresolved=[dict(text=payload, score=-1, reason=payload)])) for s in (1,2)])
    for w in ('before','after'): put(d, f'heldout-{w}.jsonl', [dict(example=rec, reward=1, **{payload:2})])
    (d/'config.json').write_text(json.dumps(dict(quickstart=dict(task=payload, model=payload))))
    (d/'summary.json').write_text(json.dumps(dict(task=payload, table=[{payload:payload, 'metric':payload}], dev={payload:payload})))
    bench = Workbench(toy(), runs=tmp_path)
    page = open_run(bench, name) | dict(b=choose_b(bench, name, 1, 0, name)['side'])
    html = ''.join(v for k,v in page.items() if isinstance(v, str) and k!='seen')
    assert html.count('&lt;img')>10 and '\u202e' not in html.replace('\u202e</span>', '') and not [c for c in html if '\ud800'<=c<='\udfff']
    for bad in ('<img','<script','</style','onerror=alert(1)>'): assert bad not in html, bad
    assert '\ud800' not in json.dumps(api_sample(bench, name, 1)) and '\\ud800' not in json.dumps(api_sample(bench, name, 1))

# ---- curves

def test_curves_keep_spikes_and_gaps():
    rows = [dict(step=i, y=1e6 if i==777 else None if 5000<i<6000 else 0.) for i in range(9000)]
    p = curve_points(rows, 'y')
    assert len(p)<=300 and (777,1e6) in p and any(y is None for _,y in p) and [x for x,_ in p]==sorted(x for x,_ in p)
    assert curve_points(rows, 'absent')==[]
    assert curve_points(rows[:3], 'y')==[(0,0.),(1,0.),(2,0.)]

def test_curves_share_axes():
    draw = lambda *lines: curves_svg([Line(f'run {i}', list(pts)) for i,pts in enumerate(lines)], 'y')
    assert draw([(1,-1.),(2,3.)], [(1,0.)]).count('>0</text>')==1 and '>0</text>' not in draw([(1,1.),(2,3.)], [(1,2.)])
    svg = draw([(1,0.),(2,1.)], [(1,0.),(2,10.)])
    assert svg.count('<polyline')==2 and '>10<' in svg and svg.count('stroke-dasharray="6 3"')==1
    heights = [float(p.split(',')[1]) for p in svg.split('points="')[1].split('"')[0].split()]
    assert heights[0]-heights[1]==pytest.approx(8, abs=.2)          # 1 of 10 on axes of 80 pixels
    assert 'no numbers' in curves_svg([Line('a', [(1,None)])], '<b>') and '<b>' not in curves_svg([Line('a', [(1,None)])], '<b>')

def test_the_mouse_finds_the_numbers_of_every_curve():
    a,b = Line('a<', [(i, i*.5) for i in range(1000)]),Line('b', [(i, -1.) for i in range(0, 1000, 7)])
    svg = curves_svg([a, b], 'y', hover=40)
    said = re.findall(r'<title>(.*?)</title>', svg, re.S)
    assert len(said)==40 and all(t.startswith('step ') and 'a&lt;: ' in t and 'b: -1' in t for t in said) and '<title>' not in curves_svg([a, b], 'y')
    for t in said: # what is said of the curve is true of the step that is named
        at,v = re.search(r'step (\d+)\na&lt;: ([\d.]+)$', t, re.M).groups()
        assert float(v)==int(at)*.5
    edges = [(float(x), float(w)) for x,w in re.findall(r'<rect x="([\d.]+)" y="22" width="([\d.]+)"', svg)]
    assert edges[0][0]==54 and edges[-1][0]+edges[-1][1]==pytest.approx(54+238, abs=.2) and all(x+w==pytest.approx(y, abs=.2) for (x,w),(y,_) in zip(edges, edges[1:]))
    assert re.findall(r'<title>(.*?)</title>', curves_svg([Line('a', [(3, .25)])], 'y', hover=40), re.S)==['step 3\n0.25']

def test_seeds_are_one_curve_with_its_range(tmp_path):
    for i,rows in enumerate(([1.,2.,9.], [3.,4.], [5.,None,7.])): put(tmp_path/f'try-seed{i}', 'metrics.jsonl', [dict(step=s, reward=v) for s,v in enumerate(rows, 1)])
    put(tmp_path/'other', 'metrics.jsonl', [dict(step=1, reward=0.)])
    runs = [RunReader(RunBase(tmp_path), n) for n in ('try-seed0','try-seed1','try-seed2','other')]
    assert run_lines(runs[:2], 'reward', seeds=True)==[Line('try, 2 seeds', [(1, 2.), (2, 3.)], ((1, 1., 3.), (2, 2., 4.)))], 'over the steps that both have'
    three,other = run_lines(runs, 'reward', seeds=True)
    assert three==Line('try, 3 seeds', [(1, 3.)], ((1, 1., 5.),)) and other==Line('other', [(1, 0.)])
    assert [o.name for o in run_lines(runs, 'reward')]==['try-seed0','try-seed1','try-seed2','other']
    assert curves_html(*runs, seeds=True).count('<polygon')==1 and 'Where they end' in curves_html(*runs) and 'Where they end' not in curves_html(runs[0])

def test_other_runs_on_the_same_axes(bench, runs):
    assert '>a</span>' in draw_curves(bench, 'b', ['a'])['curves'] and '>b</span>' not in draw_curves(bench, 'b', ['b'])['curves']
    for bad in ('a', [7], ['../x'], {'a':1}, ['nobody']):
        with pytest.raises(InputError): draw_curves(bench, 'b', bad)
    for i in range(6): shutil.copytree(runs/'a', runs/f'more{i}')
    assert draw_curves(bench, 'b', [f'more{i}' for i in range(5)])
    with pytest.raises(InputError, match='at most 6 share the axes; take out 1'): draw_curves(bench, 'b', [f'more{i}' for i in range(6)])

def test_a_reward_models_run(tmp_path):
    put(tmp_path/'rm', 'metrics.jsonl', [dict(step=1, epoch=.1, loss=2., grad_norm=1.), dict(step=2, loss=1.), dict(step=2, dev=dict(span_f1=.4, words=dict(auc=.8))), dict(step=3, loss=.5)])
    (tmp_path/'rm/config.json').write_text('{"kind": "spans"}'); (tmp_path/'rm/summary.json').write_text('{"dev": {"span_f1": 0.4}}')
    bench = Workbench(toy(), runs=tmp_path)
    page = open_run(bench, 'rm')
    assert 'reward model, step 3' in page['facts'] and 'span_f1' in page['facts'] and 'dev.words.auc' in page['curves'] and page['heat']=='' and page['step']==dict(visible=False)
    assert page['curves'].index('loss')<page['curves'].index('grad_norm')
    with pytest.raises(InputError, match='reward model'): api_sample(bench, 'rm', 1)
    assert 'only the curves' in choose_b(bench, 'rm', 0, None, 'rm')['side']

# ---- side by side

def tab(tokens, values):
    ends = np.cumsum([0]+[len(t) for t in tokens])
    return TokenTable(tokens, list(zip(ends[:-1], ends[1:])), dict(reward=values))
def one(tokens, values, **kw): return Sample('r', 1, '', 'p', tab(tokens, values), **kw)

def test_one_locked_scale():
    a,b = one(('x','y'), [1., 0.]),one(('x','y'), [1., 10.])
    alphas = lambda h: [re.search(r'rgba\(33,102,172,([\d.]+)', u) for u in re.findall(r'<span[^>]*class="t2g-u"[^>]*>', h)]
    x,_,y,z = [m and float(m[1]) for m in alphas(compare_html(a, b))][:4]
    assert x==y<z                                          # 1 looks the same on both sides, 10 stronger
    assert float(alphas(compare_html(a, a))[0][1])>x       # alone it would look stronger

@pytest.mark.parametrize('unit', ['token','word','sentence','line'])
@pytest.mark.parametrize('how', ['raw','z','rank'])
def test_equal_input_gives_all_zero(trained, unit, how):
    r = RunReader(RunBase(trained), 'b')
    s = sample_of(r, 2)
    for c in SHOWN: assert 'No difference.' in compare_html(s, s, c, how, unit)

def test_difference_by_hand():
    d,n = token_difference(tab(('a','b','c'), [1.,2.,3.]), tab(('a','x','c','d'), [5.,5.,5.,5.]))
    assert n==2 and d.tokens==('a','x','c','d')
    np.testing.assert_array_equal(d['reward'], [4., np.nan, 2., np.nan])
    assert 'different prompts' in compare_html(one(('a',), [1.]), replace(one(('a',), [1.]), prompt='q'))

def test_pairs_are_increasing_and_equal():
    rng = random.Random(1)
    for _ in range(300):
        a,b = (tuple(rng.choice('abc') for _ in range(rng.randrange(12))) for _ in range(2))
        p = rv.shared_tokens(a, b)
        assert all(a[i]==b[j] for i,j in p) and all(x<y and u<v for (x,u),(y,v) in zip(p, p[1:]))
    big = tuple(rng.choice('ab') for _ in range(6000))
    t = time.process_time()
    assert len(rv.shared_tokens(big, big[1:]+('c',)))>0 and time.process_time()-t<10

# ---- held out

def test_quickstart_run_from_end_to_end(tiny, tmp_path, capsys):
    assert main(['quickstart','--model',str(tiny),'--steps','1','--batch-size','4','--heldout','3','--out',str(tmp_path/'runs/q')])==0
    bench = Workbench(toy(), runs=tmp_path/'runs')
    page = open_run(bench, 'q')
    assert 'step 1 of 1' in page['facts'] and 'critic reward per token' in page['facts'] and len(page['held']['choices'])==6
    rows,notes = held_out(RunReader(RunBase(tmp_path/'runs'), 'q'))
    assert not notes and all(h.after and {'reward','length'}<={r['metric'] for r in h.numbers} for h in rows)
    assert all(abs(r['after']-r['before']-r['change'])<1e-12 for h in rows for r in h.numbers if r['change'] is not None)
    (tmp_path/'runs/q/heldout-after.jsonl').unlink()
    assert 'Not yet' in show_held_out(bench, 'q', 2)
    with pytest.raises(InputError, match='held-out prompt: is 6'): show_held_out(bench, 'q', 6)

def test_held_out_responses_as_a_table(tmp_path):
    from text2grad.app.responses import ORDERS,chosen_rows,response_rows
    blame,names = dict(start=0, end=1, score=-1., text='A'),('ant','bee','cat','dog')
    def rec(name, i, spans=()): return dict(schema='text2grad/span-feedback/1', prompt=f'About a {name}.', response=f'A {name} {"sat" if i else "is"}.', spans=list(spans), feedback=[])
    after = [dict(example=rec(n, 1, [blame] if n=='bee' else ()), total=t) for n,t in zip(names, (.5, -1., 2., None))]
    put(tmp_path/'runs'/'q', 'metrics.jsonl', [dict(step=1, reward=1.)])
    for when,rows in (('before', [dict(example=rec(n, 0), total=0.) for n in names]), ('after', after)): put(tmp_path/'runs'/'q', f'heldout-{when}.jsonl', rows)
    bench = Workbench(toy(), runs=tmp_path/'runs')
    rows = response_rows(held_out(RunReader(RunBase(tmp_path/'runs'), 'q'))[0])
    order = lambda o: ''.join(names[r.n][0] for r in chosen_rows(rows, order=o))
    assert [order(o) for o in ORDERS]==['abcd','bacd','cabd','bacd','cabd'], 'what has no number comes last'
    assert [r.blamed for r in rows]==[False,True,False,False] and (rows[2].before,rows[2].after,rows[2].total,rows[2].change)==('A cat is.','A cat sat.',2.,2.)
    shown = lambda *how: re.findall(r'aria-label="open row (\d)"', table_of(bench, 'q', *how))
    assert shown('', False, 'as in the file')==list('1234') and shown('', True, 'as in the file')==['2'] and shown('SAT dog', False, 'as in the file')==['4']
    assert 'None of the 4 rows' in table_of(bench, 'q', 'bird', False, 'as in the file')
    got = pick_row(bench, 'q', json.dumps(dict(kind='phrase', i=1, start=0, end=0)))
    assert got['held']==dict(value=1) and 'bee sat.' in got['before_after']
    for bad in ('{}', json.dumps(dict(kind='phrase', i=9, start=0, end=0))):
        with pytest.raises(InputError): pick_row(bench, 'q', bad)
    with pytest.raises(InputError, match='sort: choose'): table_of(bench, 'q', '', False, 'taste')
    with pytest.raises(InputError, match='search'): table_of(bench, 'q', 'x'*501, False, 'as in the file')

def test_held_out_rows_that_do_not_fit(tmp_path):
    ex = lambda p: dict(schema='text2grad/span-feedback/1', prompt=p, response='x')
    d = put(tmp_path/'r', 'metrics.jsonl', [])
    put(d, 'heldout-before.jsonl', [dict(example=ex('p')), dict(example=ex('q')), dict(example=3), {}, b'nonsense\n', dict(example=ex('p'), reward=float('nan'))])
    put(d, 'heldout-after.jsonl', [dict(example=ex('p'), reward=1), dict(example=ex('other'))])
    rows,notes = held_out(RunReader(RunBase(tmp_path), 'r'))
    said = ' '.join(notes)
    assert len(rows)==2 and rows[0].after and not rows[1].after and '3 held-out rows' in said and '5 rows before but 2 after' in said and 'cannot be read (at byte' in said

# ---- checkpoints

def test_two_checkpoints_and_the_policy_comes_back(trained):
    r,policy = RunReader(RunBase(trained), 'b'),toy()
    with torch.no_grad():
        for p in policy.trainable().values(): p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(3))*.01)
    mine,base = own(policy),{k:v.clone() for k,v in policy.model.state_dict().items()}
    ex = Example('Write one letters.', 'eex')
    a,b,c = checkpoint_cases(policy, r, (0, 2, 0), ex)
    assert same(own(policy), mine) and same(policy.model.state_dict(), base)
    assert (a.table['logp']==c.table['logp']).all() and (a.table['logp']!=b.table['logp']).any() and (a.table['kl']==0).all()
    fresh = train(trained.parent/'unused')
    fresh.load_state(trained/'b/checkpoints/ckpt-000002')
    np.testing.assert_array_equal(measure(fresh.policy, ex).table['logp'], b.table['logp'])

@pytest.mark.parametrize('error', [KeyboardInterrupt, ValueError, MemoryError])
def test_the_policy_comes_back_after_an_error(trained, monkeypatch, error):
    r,policy = RunReader(RunBase(trained), 'b'),toy()
    mine = own(policy)
    def boom(*a): raise error('boom')
    monkeypatch.setattr('text2grad.span_ppo.inspection.measure', boom)
    with pytest.raises(CheckpointError if error is ValueError else error): checkpoint_cases(policy, r, (2,), Example('p', 'e'))
    assert same(own(policy), mine)
    with pytest.raises(CheckpointError, match='does not fit the model.*start it with the model'):
        with with_weights(toy(8), read_checkpoint(r, 2)): pass

def test_the_lock_is_held_and_given_back(trained, monkeypatch):
    r,lock,seen = RunReader(RunBase(trained), 'b'),threading.RLock(),[]
    import text2grad.span_ppo.inspection as m
    real = m.measure
    def watched(*a):
        t = threading.Thread(target=lambda: seen.append(lock.acquire(blocking=False)))
        t.start(); t.join()
        return real(*a)
    monkeypatch.setattr(m, 'measure', watched)
    checkpoint_cases(toy(), r, (0,2), Example('p', 'e'), lock=lock)
    assert seen==[False,False] and lock.acquire(blocking=False)

def rewrite(runs, data, **manifest):
    "Replace the weights of b's checkpoint 2, manifest and all"
    at = runs/'b/checkpoints/ckpt-000002'
    (at/'policy.safetensors').write_bytes(data)
    (at/'MANIFEST.json').write_text(json.dumps(dict(format=1, step=2, files={'policy.safetensors':dict(sha256=hashlib.sha256(data).hexdigest(), size=len(data))})|manifest))

class Evil:
    def __init__(self, at): self.at = at
    def __reduce__(self): return (open, (str(self.at), 'w'))

def test_checkpoints_that_are_none(runs, monkeypatch):
    import pickle
    from safetensors.torch import load,save
    r,at = RunReader(RunBase(runs), 'b'),runs/'b/checkpoints/ckpt-000002'
    good = load((at/'policy.safetensors').read_bytes()) # not mapped: the file is overwritten below
    canary = runs.parent/'canary'
    pickled = pickle.dumps(Evil(canary))
    for data in (pickled, b'', b'\xff'*100, (10**15).to_bytes(8, 'little')+b'{}'):
        rewrite(runs, data)
        with pytest.raises(CheckpointError, match='ckpt-000002/policy.safetensors: cannot be read'): read_checkpoint(r, 2)
    assert not canary.exists()
    k = next(iter(good))
    rewrite(runs, save(good|{k:good[k]*float('nan')}))
    with pytest.raises(CheckpointError, match='not finite'): read_checkpoint(r, 2)
    for files in (3, {}, [], {'policy.safetensors':3}, {'policy.safetensors':dict(sha256=None)}):
        rewrite(runs, save(good), files=files)
        with pytest.raises(CheckpointError, match='not the file that was saved'): read_checkpoint(r, 2)
    (at/'MANIFEST.json').write_text('{')
    with pytest.raises(CheckpointError, match='MANIFEST.json: cannot be read'): read_checkpoint(r, 2)
    rewrite(runs, save(good))
    assert same(read_checkpoint(r, 2), good)
    monkeypatch.setattr('text2grad.span_ppo.inspection.MAX_WEIGHTS', 100)
    with pytest.raises(CheckpointError, match='more than 100 bytes'): read_checkpoint(r, 2)
    shutil.rmtree(at)
    with pytest.raises(CheckpointError, match='is missing'): read_checkpoint(r, 2)

def test_checkpoint_names(runs):
    for n in ('ckpt-x','ckpt.tmp-3','ckpt-1234567890123','other'): (runs/'b/checkpoints'/n).mkdir()
    (runs/'b/checkpoints/ckpt-000009').write_text('a file')
    (runs/'b/checkpoints/ckpt-000008').symlink_to(runs/'b/checkpoints/ckpt-000002')
    assert RunReader(RunBase(runs), 'b').checkpoints()==[0,1,2]

# ---- the view's handlers

@pytest.fixture
def bench(runs): return Workbench(toy(), runs=runs)

def test_first_look(bench, runs, tmp_path):
    page = first_look(bench, None, 'reward', 'raw', 'token')
    assert page['run']['value'] in ('a','b') and page['heat'] and {c for _,c in page['run']['choices']}=={'a','b'}
    assert set(first_look(bench, 'a', 'reward', 'raw', 'token'))=={'run','run_b','also','seeds'}   # what is shown stays
    bench.run = 'a'
    assert first_look(bench, None, 'reward', 'raw', 'token')['run']['value']=='a'
    (tmp_path/'none').mkdir()
    assert 'quickstart' in first_look(Workbench(toy(), runs=tmp_path/'none'), None, 'reward', 'raw', 'token')['facts']
    assert 'no such folder' in first_look(Workbench(toy(), runs=tmp_path/'nowhere'), None, 'reward', 'raw', 'token')['facts']

bad_values = [dict(step=float('nan')), dict(step='1'), dict(step=None), dict(step=-1), dict(step=1.5), dict(i=-1), dict(i='0'), dict(i=float('inf')), dict(channel='x'), dict(channel=None), dict(channel=3), dict(how='log'), dict(unit='page'), dict(unit=['token']),
    dict(name='../a'), dict(name=None), dict(name=3), dict(name='a'*600), dict(name='\ud800')]
@pytest.mark.parametrize('bad', bad_values, ids=range(len(bad_values)))
def test_inputs_are_checked_again(bench, bad):
    with pytest.raises(InputError): show_sample(**(dict(bench=bench, name='b', step=1, i=0, channel='reward', how='raw', unit='token')|bad))

def test_choices_of_the_checkpoint_panel(bench):
    args = dict(bench=bench, name='b', step=2, i=0, held=None, which=TEXTS[0], first=0, second=2)
    assert 'reward does not depend' in measure_checkpoints(**args, channel='reward') and 'does not depend' not in measure_checkpoints(**args)
    for bad in (dict(first=None), dict(first='0'), dict(second=True), dict(second=99), dict(which='<b>'), dict(which=TEXTS[1]), dict(channel='entropy'), dict(step=-1)):
        with pytest.raises(InputError): measure_checkpoints(**args|bad)

def test_a_checkpoint_of_another_model(runs):
    other = Workbench(toy(8), runs=runs)
    mine = own(other.policy)
    with pytest.raises(InputError, match='does not fit the model of this app'): measure_checkpoints(other, 'b', 2, 0, None, TEXTS[0], 0, 2)
    assert same(own(other.policy), mine) and other.model_lock.acquire(blocking=False)

def test_watching(bench, runs):
    view = ('reward','raw','token')
    (runs/'b/summary.json').unlink()                                               # the run goes on
    page = open_run(bench, 'b', *view)
    look = lambda step,seen,b=None: tick(bench, 'b', step, 0, *view, b, seen)
    assert look(2, page['seen'])=={}
    append_log(runs/'b/metrics.jsonl', [dict(step=3, reward=.1)])
    got = look(2, page['seen'])
    assert set(got)=={'facts','curves','seen'} and look(2, got['seen'])=={}
    append_log(runs/'b/samples.jsonl', [row(3)])
    new = look(2, got['seen'])
    assert new['step']['value']==3 and 'step 3' in new['heat']
    assert look(1, got['seen'])['step']==dict(maximum=3) and 'heat' not in look(1, got['seen'])
    assert 'aria-hidden' not in got['curves'] and '>a</span>' in tick(bench, 'b', 1, 0, *view, None, got['seen'], ['a'])['curves']
    (runs/'b/summary.json').write_text('{"task": "birds"}')
    assert 'task birds' in look(3, new['seen'])['facts']
    for seen in (None, [], 'x', [1]*6): assert look(1, seen)=={}
    assert tick(bench, None, 1, 0, *view, None, new['seen'])=={}
    shutil.rmtree(runs/'b')
    gone = look(3, new['seen'])
    assert gone['live'] is False and gone['clock']==dict(active=False) and 'No longer watching' in gone['facts']

def test_b_answers_the_same_prompt_where_it_can(bench, runs):
    first = sample_of(RunReader(RunBase(runs), 'b'), 1)
    got = choose_b(bench, 'b', 1, 0, 'b')
    assert got['step_b']['value']==2 and f': {first.id}' in dict((v,k) for k,v in got['sample_b']['choices'])[got['sample_b']['value']] and 'different prompts' not in got['side']
    assert choose_b(bench, 'b', 1, 0, '')['side']==''
    assert choose_step_b(bench, 'b', 1, 0, 'a', 2, 1, 'kl', 'rank', 'word')['sample_b']['value']==1

def test_two_visitors_share_what_was_read(bench):
    assert shelf_of(bench) is shelf_of(bench)
    rs = []
    ts = [threading.Thread(target=lambda: rs.append(shelf_of(bench).open('b'))) for _ in range(8)]
    for t in ts: t.start()
    for t in ts: t.join()
    assert len(rs)==8 and len(set(map(id, rs)))==1

def test_no_gradio_below_the_view():
    "The modules below are imported without Gradio, and so is this one"
    code = "import sys, text2grad.evaluation.run_html, text2grad.app.view_runs; assert 'gradio' not in sys.modules"
    assert subprocess.run([sys.executable,'-c',code]).returncode==0

def test_the_page_is_built_and_names_its_endpoints(bench, monkeypatch):
    monkeypatch.setenv('GRADIO_ANALYTICS_ENABLED', 'False')
    import gradio as gr
    with gr.Blocks(analytics_enabled=False) as demo:
        with gr.Tab('Runs') as tab: ui = runs_view(gr, tab, bench, gr.State('s'))
    api = demo.get_api_info()['named_endpoints']
    assert set(api)=={'/runs_list','/runs_metrics','/runs_sample'} and [p['parameter_name'] for p in api['/runs_sample']['parameters']]==['run','step','sample']
    fns = {f.name:f for f in demo.fns.values()}
    assert sorted(fns['runs_list'].fn())==['a','b'] and len(fns['runs_metrics'].fn('b'))==2
    got = fns['runs_sample'].fn('b', 2, 1)
    assert ''.join(t['text'] for t in got['tokens'])==got['response'] and got['step']==2
    for args in (('../a', 1), ('b', float('nan')), ('b', 'x'), (None, 1)):
        with pytest.raises(gr.Error) as e: fns['runs_sample'].fn(*args)
        assert 'inside text2grad' not in str(e.value)
    assert all(f.queue or f.name=='tick' for f in demo.fns.values() if f.fn) and not fns['tick'].queue   # watching never waits behind the model
    assert fns['measured'].concurrency_id=='model' and fns['measured'].concurrency_limit==1
    ids = [c.elem_id for c in demo.blocks.values() if c.elem_id]
    assert len(ids)==len(set(ids)) and all(i.startswith('t2g-runs-') for i in ids) and ui['heat'].elem_id=='t2g-runs-heat'

@pytest.mark.parametrize('name', [' a', 'a ', ' ', '\ta\t', 'a\n', 'deep/ a '])
def test_a_name_may_begin_or_end_with_a_blank(tmp_path, name):
    for n in (name, 'a'):
        (tmp_path/n).mkdir(parents=True, exist_ok=True)
        (tmp_path/n/'config.json').write_text('{}')
    base = RunBase(tmp_path)
    assert name in list_runs(base) and base.find(name)==name and Shelf(tmp_path).open(name).name==name
    assert base.find(' a  ')=='a' and base.find(str(tmp_path/name))==name # what somebody types may have blanks around it
    with pytest.raises(RunError, match='choose a run'): RunBase(tmp_path/'a').find(' ')
