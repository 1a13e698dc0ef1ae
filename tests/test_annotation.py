"Annotating for hours: killed, interrupted, torn, tampered with, out of space, and asked to do two things at once"
import asyncio,gzip,json,logging,os,random,re,resource,signal,sqlite3,subprocess,sys,time,tracemalloc
from dataclasses import replace
from pathlib import Path
import pytest
from hypothesis import given,settings,strategies as st
from text2grad.data.annotation import AnnotationError,Stopped,annotate
from text2grad.data.shards import Questions,STATES,Shard,merge_shards
from text2grad.data.store import AnswerCache,Journal,annotated_row,cache_file,pack,question_key,redact,secrets_here,shown
from text2grad.critics.api import ApiError
from text2grad.core import Critique,Example,Judgement,Quote,SCHEMA,Span,from_record,read_examples,to_record
from text2grad.files import RecordError,read_jsonl,write_jsonl

root = Path(__file__).resolve().parent.parent
def rows(n, start=0): return [dict(id=f'r{i}', prompt='Say it.', response=f'Answer number {i}.') for i in range(start, start+n)]
def go(examples, critic, out, **kw): return annotate(examples, critic, out, **dict(cache=None, progress=False) | kw)

class Fake:
    "Judges by the number in the response; fails where `bad` says so"
    fingerprint = 'fake/1'
    def __init__(self, bad=lambda e: False): self.bad,self.seen = bad,[]
    def one(self, e):
        self.seen.append(e.response)
        if self.bad(e): raise ValueError(f'cannot judge {e.response!r}')
        return Critique(f'So: {e.response}', [Span(0, 6, -.5, 'Answer', 'why')], [Quote('gone', -1.)], 'fake/1')
    def __call__(self, examples): return [self.one(e) for e in examples]

class Async(Fake):
    async def ajudge(self, e):
        await asyncio.sleep(0)
        return Judgement(self.one(e), info=dict(tokens_in=10, tokens_out=2, cost=.5))

# what goes in

def test_a_system_that_cannot_read_at_a_place_gives_the_same_file(tmp_path, monkeypatch):
    "Windows has neither of the two calls"
    def both(name):
        go(rows(40)+rows(5), Fake(), tmp_path/name)
        return (tmp_path/name).read_bytes()
    want = both('a.jsonl')
    for call in ('pread','pwrite'): monkeypatch.delattr(os, call)
    assert both('b.jsonl')==want and len(want.splitlines())==45

def test_all_problems_are_listed_by_row_before_anything_is_asked(tmp_path):
    f,out,c = tmp_path/'in.jsonl',tmp_path/'sub'/'out.jsonl',Fake()
    good = json.dumps(dict(prompt='p', response='r'))
    lines = [good, '{"prompt":"p"}', '{"prompt":3,"response":"r"}', 'not json', '[1]', '{"prompt":"p","response":"r","spans":[{"start":2,"end":1,"score":1}]}',
             '{"prompt":"p","response":null}', '{"prompt":"p","response":"r","x":NaN}', good, '{"prompt":"p","response":"r","schema":"other/9"}', '{"prompt":"p","response":"r","response":"s"}']
    f.write_bytes('\n'.join(lines).encode()+b'\n{"prompt":"p","response":"\xff"}\n')
    with pytest.raises(RecordError) as e: go(f, c, out)
    said = [int(m) for m in re.findall(r'^row (\d+)', str(e.value), re.M)]
    assert said==[2,3,4,5,6,7,8,10,11,12] and not c.seen and not out.parent.exists()

@pytest.mark.parametrize('bad,why', [('text', 'must be an Example or a row, got str'), (Example('p', 'r', meta=dict(prompt='q')), r"meta\['prompt'\]: the name is taken"),
                                     (Example('p', 'r', meta=dict(x={1,2})), 'cannot be written as JSON'), (Example('p', 'r', meta=dict(x=float('nan'))), 'JSON'),
                                     (dict(prompt='p', response='r', scores={'a':float('inf')}), 'JSON')])
def test_an_example_that_cannot_be_kept(tmp_path, bad, why):
    for source in ([Example('p', 'r'), bad], (x for x in [Example('p', 'r'), bad])):
        with pytest.raises(RecordError, match=f'row 2: {why}' if 'JSON'!=why else why): go(source, Fake(), tmp_path/'o.jsonl')

def test_nothing_to_judge(tmp_path):
    with pytest.raises(RecordError, match='no rows'): go([], Fake(), tmp_path/'o.jsonl')
    with pytest.raises(FileNotFoundError): go(tmp_path/'no.jsonl', Fake(), tmp_path/'o.jsonl')
    with pytest.raises(ValueError, match='limit'): go(rows(2), Fake(), tmp_path/'o.jsonl', limit=0)

def test_every_kind_of_input_gives_the_same_file(tmp_path):
    from datasets import Dataset
    rs = rows(7)
    write_jsonl(tmp_path/'in.jsonl.gz', rs)
    sources = dict(list=rs, examples=[from_record(dict(schema=SCHEMA) | r) for r in rs], generator=(r for r in rs), path=tmp_path/'in.jsonl.gz', tuple=tuple(rs))
    for k,s in sources.items(): go(s, Fake(), tmp_path/f'{k}.jsonl')
    want = [json.loads(l) for l in (tmp_path/'list.jsonl').read_text().splitlines()]
    for k in sources: assert read_jsonl(tmp_path/f'{k}.jsonl')==want
    go(rs, Fake(), tmp_path/'z.jsonl.gz')
    assert gzip.decompress((tmp_path/'z.jsonl.gz').read_bytes())==(tmp_path/'list.jsonl').read_bytes()
    ds = annotate(Dataset.from_list(rs), Fake(), tmp_path/'ds.jsonl', cache=None, progress=False)
    assert read_jsonl(tmp_path/'ds.jsonl')==want and ds['critique'][3]=='So: Answer number 3.' and ds[0]['spans'][0]['text']=='Answer'

def test_dataset_with_failures_and_silence_only(tmp_path):
    from datasets import Dataset
    ds = annotate(Dataset.from_list(rows(3)), lambda exs: [None for _ in exs], cache=None, progress=False)
    assert ds['critique'][:]==ds['error'][:]==ds['spans'][:]==[None]*3 and ds['id'][:]==['r0','r1','r2']
    ds = annotate(Dataset.from_list([r | dict(source='a person') for r in rows(3)]), Fake(lambda e: '1' in e.response), cache=None, progress=False, limit=2)
    assert len(ds)==2 and ds['error'][0] is None and 'cannot judge' in ds['error'][1] and ds['source'][:]==['fake/1',None]

def test_an_endless_generator_is_read_up_to_the_limit(tmp_path):
    def endless():
        i = 0
        while True: yield dict(prompt='p', response=f'{i:06}'); i += 1
    s = go(endless(), Fake(), tmp_path/'o.jsonl', limit=5)
    assert s.rows==s.judged==5

@pytest.mark.parametrize('kind', [Fake, Async])
def test_input_that_changes_on_the_way_is_noticed(tmp_path, kind):
    f,out = tmp_path/'in.jsonl',tmp_path/'o.jsonl'
    for later in (rows(50, 3), rows(50)[::-1], rows(20)):
        write_jsonl(f, rows(50))
        class Meddler(kind):
            def one(self, e):
                if len(self.seen)==9: write_jsonl(f, later)
                return super().one(e)
        c = Meddler()
        with pytest.raises(AnnotationError, match='in.jsonl changed'): go(f, c, out, batch_size=3, concurrency=2)
        assert len(c.seen)<20 and not out.exists()
        (tmp_path/'o.jsonl.part').unlink()

def test_a_pipe_can_be_read_only_once(tmp_path):
    os.mkfifo(tmp_path/'pipe')
    p = subprocess.Popen([sys.executable,'-c','import json,sys; f=open(sys.argv[1],"w"); [print(json.dumps(dict(prompt="p", response=f"Answer number {i}.")), file=f) for i in range(9)]',str(tmp_path/'pipe')])
    assert go(tmp_path/'pipe', Fake(), tmp_path/'o.jsonl').judged==9 and p.wait(20)==0

def test_the_critic_sees_neither_reference_nor_what_people_said(tmp_path):
    seen = []
    r = dict(id='a', prompt='p', response='r', reference=['gold'], feedback=[dict(text='a person')], spans=[dict(start=0, end=1, score=-1)], omissions=[], scores=dict(x=1),
             correction=dict(text='better'), source='person', document='facts', task='summarize', annotation={}, error='old')
    go([r], lambda exs: [seen.append(e) or Critique('c') for e in exs], tmp_path/'o.jsonl')
    e = seen[0]
    assert e.reference is None and e.critique is None and e.meta==dict(id='a', document='facts', task='summarize')
    row = read_jsonl(tmp_path/'o.jsonl')[0]
    assert row['spans']==[] and row['feedback'][0]['text']=='c' and row['reference']==['gold'] and 'error' not in row and row['correction']['text']=='better'

# what comes out

texts = st.text(max_size=20)
scores = st.floats(-1, 1)
@st.composite
def judged(draw):
    r = draw(st.text(min_size=1, max_size=30))
    def span(): a = draw(st.integers(0, len(r))); return Span(a, draw(st.integers(a, len(r))), draw(scores), draw(texts), draw(texts), draw(st.sampled_from(['given','exact','fuzzy'])), draw(st.floats(0, 1)))
    n = draw(st.integers(0, 3))
    return r,Critique(draw(texts), [span() for _ in range(n)], [Quote(draw(texts), draw(scores), draw(texts), draw(st.none() | st.integers(0, 5))) for _ in range(n)], draw(texts))

@given(judged())
@settings(max_examples=150, deadline=None)
def test_a_critique_survives_the_disk(rc):
    r,c = rc
    rec = to_record(Example('p', r, meta=dict(id='i')))
    row = annotated_row(rec, json.loads(json.dumps(pack(shown(rec), Judgement(c), {}))), 'n', 'k')
    assert from_record(json.loads(json.dumps(row))).critique==c

@pytest.mark.parametrize('kind', [Fake, Async])
def test_failures_are_rows_and_retry_takes_only_those(tmp_path, kind):
    out = tmp_path/'o.jsonl'
    s = go(rows(20), kind(lambda e: re.search(r'[37]\.', e.response)), out, batch_size=6)
    assert (s.judged, s.failed, s.left)==(16, 4, 0)
    got = read_jsonl(out)
    assert [r['id'] for r in got]==[f'r{i}' for i in range(20)]
    for i in (3,7,13,17):
        assert 'cannot judge' in got[i]['error'] and not {'spans','feedback','omissions','source'}&set(got[i]) and from_record(got[i]).critique is None
    again = kind(lambda e: '7' in e.response)
    s = go(rows(20), again, out, retry_failed=True)
    assert sorted(set(again.seen))==[f'Answer number {i}.' for i in (13,17,3,7)] and (s.judged, s.failed, s.resumed)==(18, 2, 16)
    assert 'error' not in read_jsonl(out)[3]
    plain = kind()
    assert go(rows(20), plain, out).failed==2 and not plain.seen
    with pytest.raises(AnnotationError, match='nothing here to retry'): go(rows(3), plain, tmp_path/'new.jsonl', retry_failed=True)
    assert not list(tmp_path.glob('new*'))

def test_no_judgement_is_neither_failure_nor_critique(tmp_path):
    s = go(rows(4), lambda exs: [None if '2' in e.response else Critique('') for e in exs], tmp_path/'o.jsonl')
    got = read_jsonl(tmp_path/'o.jsonl')
    assert (s.judged, s.nothing, s.failed)==(3, 1, 0) and got[1]['spans']==[] and not {'spans','error'}&set(got[2])

@pytest.mark.parametrize('critic,why', [(lambda exs: [Critique('')]*(len(exs)+1), 'returned 2 judgements for 1'), (lambda exs: [.5 for _ in exs], 'a number says nothing of the words'),
                                        (lambda exs: [Critique('', [Span(0, 999, 1.)]) for _ in exs], r'\[0, 999\) ends after'), (lambda exs: [Judgement(Critique(''), info=dict(x=object())) for _ in exs], 'cannot be kept'),
                                        (lambda exs: [Judgement(Critique(''), info=dict(x=float('nan'))) for _ in exs], 'cannot be kept'), (lambda exs: 1/0, 'ZeroDivisionError'), (lambda exs: None, 'is a `return` missing')])
def test_a_broken_critic_makes_failures_not_crashes(tmp_path, critic, why):
    s = go(rows(3), critic, tmp_path/'o.jsonl')
    assert s.failed==3 and all(re.search(why, r['error']) for r in read_jsonl(tmp_path/'o.jsonl'))

def test_same_question_is_asked_once_and_both_rows_are_written(tmp_path, caplog):
    c = Async()
    same = dict(prompt='p', response='Answer twice.')
    s = go([same | dict(id='a'), *rows(3), same | dict(id='b'), same | dict(id='a'), same | dict(id='c', document='other')], c, tmp_path/'o.jsonl', concurrency=4)
    got = read_jsonl(tmp_path/'o.jsonl')
    assert c.seen.count('Answer twice.')==2 and s.rows==s.judged==7 and s.asked==5
    assert [r['id'] for r in got]==['a','r0','r1','r2','b','a','c'] and got[0]['spans']==got[4]['spans']
    assert '1 rows have the id of an earlier row' in caplog.text

def test_output_of_others_is_not_written_over(tmp_path):
    out = tmp_path/'o.jsonl'
    go(rows(5), Fake(), out)
    before = out.read_bytes()
    class Two(Fake): fingerprint = 'fake/2'
    for n,critic in ((5, Two()), (3, Fake())):
        with pytest.raises(AnnotationError, match='would not write'): go(rows(n), critic, out)
    (tmp_path/'mine.jsonl').write_text('{"my":"data"}\n')
    with pytest.raises(AnnotationError, match='row 1 was not written by annotate'): go(rows(5), Fake(), tmp_path/'mine.jsonl')
    assert out.read_bytes()==before and (tmp_path/'mine.jsonl').read_text()=='{"my":"data"}\n' and not list(tmp_path.glob('*.part'))
    c = Fake()
    s = go(rows(9), c, out)
    assert (s.resumed, s.asked, len(c.seen))==(5, 4, 4)
    assert go(rows(3), Two(), out, resume=False).asked==3 and len(read_jsonl(out))==3

def test_dry_run_asks_nothing_and_writes_nothing(tmp_path, capsys):
    class P(Async):
        def prompt_for(self, e): return [dict(role='user', content=f'Judge: {e.response}')]
    c = P()
    s = go(rows(6), c, tmp_path/'x'/'o.jsonl', dry_run=True, cache=tmp_path/'c.sqlite')
    out = capsys.readouterr().out
    assert 'Judge: Answer number 0.' in out and '6 of 6 rows would be asked' in out and s.left==6 and not c.seen and not list(tmp_path.iterdir())
    go(rows(4), c, tmp_path/'o.jsonl', cache=tmp_path/'c.sqlite')
    before = (tmp_path/'o.jsonl').read_bytes()
    go(rows(6), c, tmp_path/'o.jsonl', dry_run=True)
    go(rows(6), c, tmp_path/'other.jsonl', dry_run=True, cache=tmp_path/'c.sqlite')
    out = capsys.readouterr().out
    assert '2 of 6 rows would be asked; 0 are in the cache, 4 in the output' in out and '2 of 6 rows would be asked; 4 are in the cache' in out and 'number 4.' in out
    assert (tmp_path/'o.jsonl').read_bytes()==before and {p.name for p in tmp_path.iterdir()}<={'o.jsonl','.o.jsonl.lock','c.sqlite','c.sqlite-wal','c.sqlite-shm'}

# killed, interrupted, out of room

CHILD = '''
import asyncio,os,random,sys
sys.path.insert(0, {root!r})
from text2grad.data.annotation import annotate
from text2grad.core import Critique,Judgement,Span
class C:
    fingerprint = 'kill/1'
    async def ajudge(self, e):
        os.write(log, (e.response+'\\n').encode())
        await asyncio.sleep(random.uniform(.002, .01))
        if e.response.endswith('7.'): raise ValueError('no')
        return Judgement(Critique('So: '+e.response, [Span(0, 6, -.5)], source='kill/1'), info=dict(tokens_in=3))
class S(C):
    ajudge = property()
    def judgements(self, exs): return [asyncio.run(C.ajudge(self, e)) if not e.response.endswith('7.') else Judgement(None, 'ValueError: no') for e in exs]
log = os.open(sys.argv[2], os.O_WRONLY|os.O_CREAT|os.O_APPEND)
rows = [dict(id=f'r{{i}}', prompt='p', response=f'Answer number {{i}}.', document='x'*500) for i in range(400)]
s = annotate((r for r in rows) if {gen} else rows, {critic}, sys.argv[1], cache=None, progress=False, concurrency=4, batch_size=4)
print(s)
'''

def child(tmp_path, out, critic='C()', gen=False):
    return subprocess.Popen([sys.executable,'-c',CHILD.format(root=str(root), critic=critic, gen=gen),str(out),str(tmp_path/'log')], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

@pytest.mark.parametrize('critic,gen', [('C()',False), ('C()',True)])
def test_sigkill_at_random_times_loses_and_doubles_nothing(tmp_path, critic, gen):
    p = child(tmp_path, tmp_path/'whole.jsonl', critic)
    assert p.wait(60)==0, p.stderr.read()
    (tmp_path/'log').unlink()
    R,out,part,kills = random.Random(gen),tmp_path/'o.jsonl',tmp_path/'o.jsonl.part',0
    for _ in range(40):
        p = child(tmp_path, out, critic, gen)
        size,until = part.stat().st_size if part.exists() else 0,time.time()+30
        while p.poll() is None and time.time()<until and not (part.exists() and part.stat().st_size>size): time.sleep(.002)
        time.sleep(R.uniform(0, .12))
        if p.poll() is None: p.kill(); kills += 1
        p.communicate()
        if p.returncode==0: break
    assert p.returncode==0 and kills>2
    assert out.read_bytes()==(tmp_path/'whole.jsonl').read_bytes() and not part.exists()
    asked = (tmp_path/'log').read_text().splitlines()
    assert len(set(asked))==400 and len(asked)<=400+4*kills

def test_killed_between_the_output_and_the_end_of_the_journal(tmp_path):
    out,part = tmp_path/'o.jsonl',tmp_path/'o.jsonl.part'
    class Dies(Fake):
        def __call__(self, exs):
            if self.seen: part.rename(tmp_path/'kept')
            return super().__call__(exs)
    with pytest.raises(FileNotFoundError): go(rows(6), Dies(), out, batch_size=3)
    whole = out.read_bytes()
    (tmp_path/'kept').rename(part)
    c = Fake()
    assert go(rows(6), c, out).resumed==6 and not c.seen and out.read_bytes()==whole and not part.exists()

def test_torn_and_damaged_journal(tmp_path, caplog):
    ref,out = tmp_path/'ref.jsonl',tmp_path/'o.jsonl'
    go(rows(30), Fake(), ref)
    class Dies(Fake):
        def __call__(self, exs):
            if len(self.seen)>=20: raise ImportError('stop here')
            return super().__call__(exs)
    with pytest.raises(ImportError): go(rows(30), Dies(), out, batch_size=5)
    part = tmp_path/'o.jsonl.part'
    whole = part.read_bytes()
    assert whole.count(b'\n')==20
    R = random.Random(0)
    for k in range(25):
        if k<15: data = whole[:R.randrange(len(whole))]
        else: i = R.randrange(len(whole)); data = whole[:i]+bytes([R.randrange(256) for _ in range(R.randrange(1, 9))])+whole[i+R.randrange(9):]
        part.write_bytes(data)
        out.unlink(missing_ok=True)
        try: go(rows(30), Fake(), out, batch_size=5)
        except AnnotationError as e: assert 'would not write' in str(e)
        else: assert [(r['id'], r['spans'], r['annotation']['key']) for r in read_jsonl(out)]==[(r['id'], r['spans'], r['annotation']['key']) for r in read_jsonl(ref)]
        part.unlink(missing_ok=True)

def test_torn_twice(tmp_path, caplog):
    class Dies(Fake):
        def __call__(self, exs):
            if len(self.seen)>=10: raise ImportError('stop here')
            return super().__call__(exs)
    part = tmp_path/'o.jsonl.part'
    for n in (10, 19, 28):
        with pytest.raises(ImportError): go(rows(60), Dies(), tmp_path/'o.jsonl', batch_size=5)
        assert part.read_bytes().count(b'\n')==n
        part.write_bytes(part.read_bytes()[:-7])
    assert go(rows(60), Fake(), tmp_path/'o.jsonl').resumed==27 and 'cannot be read' not in caplog.text

def test_two_processes_on_one_output(tmp_path):
    p = child(tmp_path, tmp_path/'o.jsonl')
    until = time.time()+30
    while time.time()<until and not (tmp_path/'o.jsonl.part').exists(): time.sleep(.005)
    with pytest.raises(AnnotationError, match='another process is writing'): go(rows(3), Fake(), tmp_path/'o.jsonl')
    assert p.wait(60)==0 and len(read_jsonl(tmp_path/'o.jsonl'))==400

@pytest.fixture
def ctrl_c():
    "Python's own answer to SIGINT, whatever this process was started with"
    old = [(s, signal.getsignal(s)) for s in (signal.SIGINT, signal.SIGALRM)]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for s,h in old: signal.signal(s, h or signal.SIG_DFL)

def test_ctrl_c_keeps_what_was_answered(tmp_path, ctrl_c):
    "A batch in hand is finished; requests on their way are given up"
    for kind in (Fake, Async):
        class Slow(kind):
            def one(self, e): time.sleep(.01); return super().one(e)
        c,out = Slow(),tmp_path/f'{kind.__name__}.jsonl'
        signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
        signal.setitimer(signal.ITIMER_REAL, .15)
        with pytest.raises(Stopped) as e: go(rows(100), c, out, batch_size=4, concurrency=2)
        s = e.value.summary
        assert 0<s.judged<100 and s.left==100-s.judged and 'left' in str(e.value)
        assert not out.exists() and (tmp_path/f'{out.name}.part').read_bytes().count(b'\n')==s.judged
        done = kind()
        assert go(rows(100), done, out).resumed==s.judged and len(done.seen)==s.left

def test_full_disk_says_so_and_goes_on_later(tmp_path):
    "A limit on file size stands in for the full disk"
    code = f'''
import resource,sys
sys.path[:0] = [{str(root)!r},{str(root/"tests")!r}]
from test_annotation import *
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
try: go(rows(50), Fake(), {str(tmp_path/"o.jsonl")!r}, batch_size=2)
except OSError as e: print('said', e)'''
    r = subprocess.run([sys.executable,'-c',code], capture_output=True, text=True)
    assert r.returncode==0 and 'File too large; make room' in r.stdout and 'o.jsonl.part' in r.stdout, r.stderr
    c = Fake()
    s = go(rows(50), c, tmp_path/'o.jsonl')
    assert 0<s.resumed<50 and len(c.seen)==50-s.resumed and len(read_jsonl(tmp_path/'o.jsonl'))==50

@pytest.mark.parametrize('error', [ApiError('the key is not accepted'), ImportError('pip install -e ".[api]"')])
@pytest.mark.parametrize('kind', [Fake, Async])
def test_what_would_fail_for_all_stops_the_run(tmp_path, kind, error):
    class Ends(kind):
        def one(self, e):
            if len(self.seen)>=12: raise error
            return super().one(e)
    c = Ends()
    with pytest.raises(type(error), match=re.escape(str(error))): go(rows(200), c, tmp_path/'o.jsonl', batch_size=3, concurrency=3)
    assert len(c.seen)<20 and not (tmp_path/'o.jsonl').exists()
    assert go(rows(200), kind(), tmp_path/'o.jsonl').resumed>=9

def test_give_up_after_failures_in_a_row(tmp_path):
    c,out = Fake(lambda e: int(re.search(r'\d+', e.response)[0])>=10),tmp_path/'o.jsonl'
    with pytest.raises(AnnotationError, match='8 responses in a row.*\n.*cannot judge'): go(rows(100), c, out, give_up=8, batch_size=1)
    assert len(c.seen)==18
    s = go(rows(100), Fake(), out)
    assert (s.resumed, s.judged)==(10, 100)
    every_other = Fake(lambda e: int(re.search(r'\d+', e.response)[0])%2)
    assert go(rows(40), every_other, tmp_path/'p.jsonl', give_up=3).failed==20
    assert go(rows(5), Fake(lambda e: True), tmp_path/'q.jsonl', give_up=8).failed==5

# concurrency

def test_limit_can_change_while_running(tmp_path):
    class Watch(Async):
        now,peak = 0,[]
        async def ajudge(self, e):
            self.now += 1
            self.peak.append(self.now)
            await asyncio.sleep(.004)
            self.now -= 1
            if len(self.peak)==30: knob['n'] = 9
            return await super().ajudge(e)
    knob,c = dict(n=2),Watch()
    go(rows(120), c, tmp_path/'o.jsonl', concurrency=lambda: knob['n'])
    assert max(c.peak[:30])==2 and max(c.peak)==9

def test_inside_a_running_event_loop_and_a_thread(tmp_path):
    async def main(): return go(rows(9), Async(), tmp_path/'o.jsonl')
    assert asyncio.run(main()).judged==9
    assert asyncio.run(asyncio.to_thread(go, rows(9), Async(), tmp_path/'p.jsonl')).judged==9

def test_order_of_the_output_does_not_depend_on_the_order_of_answers(tmp_path):
    class Jitter(Async):
        async def ajudge(self, e): await asyncio.sleep(random.uniform(0, .01)); return await super().ajudge(e)
    for n in 'ab': go(rows(60), Jitter(), tmp_path/f'{n}.jsonl', concurrency=20)
    go(rows(60), Async(), tmp_path/'c.jsonl', concurrency=1)
    assert (tmp_path/'a.jsonl').read_bytes()==(tmp_path/'b.jsonl').read_bytes()==(tmp_path/'c.jsonl').read_bytes()

def test_connections_are_closed_in_their_own_loop(tmp_path):
    class Client(Async):
        closed = 0
        async def aclose(self): self.closed += 1; asyncio.get_running_loop()
    c = Client()
    go(rows(3), c, tmp_path/'o.jsonl')
    assert c.closed==1

# the cache

def test_cache_path_is_that_of_the_models(monkeypatch, tmp_path):
    from text2grad.pretrained import cache_dir
    assert cache_file().parent==cache_dir()
    monkeypatch.setenv('TEXT2GRAD_CACHE', str(tmp_path))
    assert cache_file().parent==cache_dir()==tmp_path

def test_cache_hits_across_outputs_and_never_across_questions(tmp_path):
    db,a,b = tmp_path/'deep'/'c.sqlite',Fake(lambda e: '3' in e.response),Fake()
    go(rows(6), a, tmp_path/'a.jsonl', cache=db)
    s = go([r | dict(id=f'x{i}') for i,r in enumerate(rows(6))], b, tmp_path/'b.jsonl', cache=db)
    assert (s.cached, s.asked)==(5, 1) and b.seen==['Answer number 3.']
    assert db.stat().st_mode&0o777==0o600 and db.parent.stat().st_mode&0o777==0o700
    class Two(Fake): fingerprint = 'fake/2'
    assert go(rows(6), Two(), tmp_path/'c.jsonl', cache=db).cached==0
    assert go([r | dict(document='d') for r in rows(6)], Fake(), tmp_path/'d.jsonl', cache=db).cached==0
    assert go([r | dict(prompt=[dict(role='user', content=r['prompt'])]) for r in rows(6)], Fake(), tmp_path/'e.jsonl', cache=db).cached==0

def test_no_fingerprint_no_cache(tmp_path, caplog):
    for n in 'ab': s = go(rows(2), lambda exs: [Critique('') for _ in exs], tmp_path/f'{n}.jsonl', cache=tmp_path/'c.sqlite')
    assert s.asked==2 and 'no fingerprint' in caplog.text and not (tmp_path/'c.sqlite').exists()

DAMAGE = dict(garbage=lambda p: p.write_bytes(os.urandom(8192)), empty=lambda p: p.write_bytes(b''), text=lambda p: p.write_text('hello'*999), halved=lambda p: p.write_bytes(p.read_bytes()[:len(p.read_bytes())//2]),
              header=lambda p: p.write_bytes(p.read_bytes()[:100]+bytes(2000)), other_table=lambda p: (p.unlink(), sqlite3.connect(p).executescript('create table answers (a,b); insert into answers values (1,2)')))
@pytest.mark.parametrize('kind', DAMAGE)
def test_damaged_cache_is_a_miss_said_once(tmp_path, kind, caplog):
    db = tmp_path/'c.sqlite'
    go(rows(20), Fake(), tmp_path/'a.jsonl', cache=db)
    c = sqlite3.connect(db); c.execute('pragma wal_checkpoint(truncate)'); c.close()
    DAMAGE[kind](db)
    s = go(rows(20), Fake(), tmp_path/'b.jsonl', cache=db)
    assert s.judged==20 and (tmp_path/'a.jsonl').read_bytes()==(tmp_path/'b.jsonl').read_bytes()
    assert sum('cache' in r.message for r in caplog.records)<=1

def test_tampered_rows_are_never_believed(tmp_path, caplog):
    db = tmp_path/'c.sqlite'
    go(rows(6), Fake(), tmp_path/'a.jsonl', cache=db)
    c = sqlite3.connect(db)
    k = [r[0] for r in c.execute('select key from answers order by key')]
    good = c.execute('select value,sum from answers where key=?', (k[0],)).fetchone()
    c.execute('update answers set value=replace(value, "So:", "Ha:") where key=?', (k[0],))
    c.execute('update answers set value=?,sum=? where key=?', (*good, k[1]))                      # another question's answer, checksum and all
    c.execute('update answers set value=? where key=?', (b'\x80\x04cos\nsystem\n(S"touch pwned"\ntR.', k[2]))  # a pickle
    c.execute('update answers set value="null" where key=?', (k[3],))
    evil = json.dumps(dict(critique=dict(spans=[dict(start=0, end=999, score=1.)]), info={}))       # sums up, but is no critique of this text
    c.execute('update answers set value=?,sum=? where key=?', (evil, AnswerCache(db)._sum(k[4], evil), k[4]))
    c.commit(); c.close()
    s = go(rows(6), Fake(), tmp_path/'b.jsonl', cache=db)
    assert (s.cached, s.asked)==(1, 5) and (tmp_path/'b.jsonl').read_bytes()==(tmp_path/'a.jsonl').read_bytes()
    assert sum('not what was put there' in r.message for r in caplog.records)==1 and not Path('pwned').exists()

def test_cache_where_nothing_can_be_written(tmp_path, caplog):
    (tmp_path/'file').write_text('x')
    s = go(rows(5), Fake(), tmp_path/'a.jsonl', cache=tmp_path/'file'/'c.sqlite')
    assert s.judged==5 and len([r for r in caplog.records if 'cannot be used' in r.message])==1

def test_read_only_cache_folder(tmp_path, caplog):
    for p in (tmp_path, *list(tmp_path.parents)[:3]): p.chmod(p.stat().st_mode|0o055) if os.access(p, os.W_OK) and str(p).startswith('/tmp/') else None
    d = tmp_path/'ro'
    d.mkdir()
    AnswerCache(d/'c.sqlite').put('k', {})
    d.chmod(0o555)
    uid = os.geteuid()
    try:
        if uid==0: os.seteuid(65534)
        c = AnswerCache(d/'c.sqlite')
        assert c.get('k') is None and c.put('k2', {}) is None and c.get('k2') is None
    finally:
        if uid==0: os.seteuid(0)
        d.chmod(0o755)
    assert len([r for r in caplog.records if 'cannot be used' in r.message])==1

def test_cache_on_a_full_disk(tmp_path):
    code = f'''
import resource,sys
sys.path[:0] = [{str(root)!r},{str(root/"tests")!r}]
from test_annotation import *
resource.setrlimit(resource.RLIMIT_FSIZE, (30000, 30000))
s = go(rows(60), Fake(), {str(tmp_path/"o.jsonl")!r}, cache={str(tmp_path/"c.sqlite")!r})
print(s.judged)'''
    r = subprocess.run([sys.executable,'-c',code], capture_output=True, text=True)
    assert r.stdout.strip()=='60' and r.stderr.count('cannot be used')==1, r.stderr
    s = go(rows(60), Fake(), tmp_path/'p.jsonl', cache=tmp_path/'c.sqlite')
    assert s.judged==60 and (tmp_path/'p.jsonl').read_bytes()==(tmp_path/'o.jsonl').read_bytes()

def test_eight_writers(tmp_path):
    code = f'''
import sys
sys.path[:0] = [{str(root)!r}]
from text2grad.data.store import AnswerCache
c,w = AnswerCache({str(tmp_path/"c.sqlite")!r}),int(sys.argv[1])
for i in range(60):
    c.put(f'k{{i}}', dict(n=i)); c.put(f'w{{w}}-{{i}}', dict(n=i)); got = c.get(f'k{{i}}')
    assert got==dict(n=i), got
assert not c.broken
c.close()'''
    ps = [subprocess.Popen([sys.executable,'-c',code,str(w)], stderr=subprocess.PIPE, text=True) for w in range(8)]
    errs = [p.communicate(timeout=60)[1] for p in ps]
    assert [p.returncode for p in ps]==[0]*8, errs
    c = AnswerCache(tmp_path/'c.sqlite')
    assert all(c.get(f'w{w}-{i}')==dict(n=i) for w in range(8) for i in range(60))

# secrets

def test_no_key_from_the_environment_gets_anywhere(tmp_path, monkeypatch, caplog, capfd):
    canaries = dict(OPENAI_API_KEY='sk-canary-aaa111', HF_TOKEN='hf_canary_"quoted"\\bbb222', MY_SECRET='canary-ccc333', ODD_NAME='canary-ddd444')
    for k,v in canaries.items(): monkeypatch.setenv(k, v)
    caplog.set_level(logging.DEBUG)
    class Leaky(Fake):
        key_env = 'ODD_NAME'
        def judgements(self, exs): return [self.judge(e) for e in exs]
        def judge(self, e):
            i,all_ = int(re.search(r'\d+', e.response)[0]),' '.join(canaries.values())
            if i%5==0: raise ValueError(f'401 {all_}')
            if i%5==1: return Judgement(None, f'Bearer {all_}', dict(request=dict(headers=[all_]), n=1))
            return Judgement(Critique(f'You sent {all_}', [Span(0, 6, 1., all_, all_)], [Quote(all_, -1., all_)], all_), info=dict(note=all_))
    go(rows(20), Leaky(), tmp_path/'o.jsonl', cache=tmp_path/'c.sqlite', progress=True)
    go(rows(3), Leaky(), tmp_path/'n.jsonl', cache=tmp_path/'d.sqlite', dry_run=True)
    class Stops(Leaky):
        def judge(self, e):
            if len(self.seen)>3: raise ValueError(f'403 {" ".join(canaries.values())}')
            self.seen.append(e)
            return super().judge(e)
    with pytest.raises(AnnotationError) as err: go(rows(20), Stops(), tmp_path/'p.jsonl', cache=tmp_path/'c2.sqlite', give_up=4)
    o = capfd.readouterr()
    files = {p.name:p.read_bytes() for p in tmp_path.rglob('*') if p.is_file()}
    assert {'o.jsonl','p.jsonl.part','c.sqlite'}<=set(files)
    files |= dict(out=o.out.encode(), err=o.err.encode(), log=caplog.text.encode(), exception=str(err.value).encode())
    for name,data in files.items():
        for marker in (b'aaa111', b'bbb222', b'ccc333', b'ddd444'): assert marker not in data, name
    assert b'[OPENAI_API_KEY]' in files['o.jsonl'] and b'[ODD_NAME]' in files['o.jsonl'] and b'annotate' in files['err']

def test_ordinary_settings_are_no_secrets(monkeypatch):
    for k,v in dict(TOKENIZERS_PARALLELISM='false', KEYBOARD='us', HF_TOKEN='', PATH='/usr/bin:/bin/x').items(): monkeypatch.setenv(k, v)
    assert not {'false','us','','/usr/bin:/bin/x'}&set(secrets_here())

# ten thousand

def test_full_cache_is_fast_and_memory_is_flat(tmp_path):
    n,text = 2000,'word '*1000
    def many(): return (dict(id=f'r{i}', prompt='p', response=f'Answer number {i}.', document=text) for i in range(n))
    go(many(), Fake(), tmp_path/'a.jsonl', cache=tmp_path/'c.sqlite')
    t = time.perf_counter()
    s = go(many(), Fake(), tmp_path/'b.jsonl', cache=tmp_path/'c.sqlite')
    rate = n/(time.perf_counter()-t)
    assert s.cached==n and rate>400, f'{rate:.0f} records/s'
    n = 500
    tracemalloc.start()
    go(many(), Fake(), tmp_path/'d.jsonl')
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak<1e6, f'{peak/1e6:.1f} MB for {n*len(text)/1e6:.0f} MB of input'

def test_composed_critics_add_up_their_cost(tmp_path):
    s = go(rows(4), lambda exs: [Judgement(Critique(''), info=dict(critics=[dict(tokens_in=3, cost=.1), dict(tokens_in=4)], judged=2)) for _ in exs], tmp_path/'o.jsonl')
    assert (s.tokens_in, round(s.cost, 6), s.tokens_out)==(28, .4, 0)

# many machines

def shards(tmp_path, n, examples=None, critic=Fake, **kw):
    "The merged file's name, with all `n` shards of `examples` beside it"
    for k in range(1, n+1): go(examples or rows(20), critic(), tmp_path/'o.jsonl', shard=f'{k}/{n}', **kw)
    return tmp_path/'o.jsonl'

@pytest.mark.parametrize('end', ['.jsonl','.jsonl.gz'])
def test_shards_merge_to_the_bytes_of_one_machine(tmp_path, end):
    odd = [r | dict(id=f's{i}', note='half an emoji \ud83d, 1e-7, ☃', w=1e-7) for i,r in enumerate(rows(9))]
    data = rows(12)+odd+rows(5)                                                # the last five ask again what the first five asked
    bad = lambda: Fake(lambda e: '7' in e.response)
    for n in (1,3,7):
        out,seen = tmp_path/f'{n}{end}',[]
        for k in range(n, 0, -1):
            seen.append(go(iter(data), bad(), out, shard=f'{k}/{n}').asked)
        assert sum(seen)==21 and max(seen)-min(seen)<=1                        # by turns, and each question once
        assert merge_shards(out)==merge_shards(out)==dict(shards=n, rows=26, failed=2)
        go(data, bad(), tmp_path/f'one{end}')
        assert out.read_bytes()==(tmp_path/f'one{end}').read_bytes()
        assert not list(tmp_path.glob('.*.tmp')) and not list(tmp_path.glob('*.part'))
    assert go(data, Fake(), out, retry_failed=True).failed==0                   # the merged file is an output like any other

def test_a_stopped_shard_goes_on_where_it_was(tmp_path):
    whole = shards(tmp_path, 4)
    part = tmp_path/'o.2-of-4.jsonl'
    before = part.read_bytes()
    part.unlink()
    class Stops(Fake):
        def one(self, e):
            if len(self.seen)==3: raise ImportError('no such package')
            return super().one(e)
    with pytest.raises(ImportError): go(rows(20), Stops(), whole, shard='2/4', batch_size=1)
    with pytest.raises(AnnotationError, match=r'shard 2/4 is not finished .*run annotate with shard 2/4 again, it goes on where it was'): merge_shards(whole)
    c = Fake()
    s = go(rows(20), c, whole, shard='2/4')
    assert (s.resumed, s.asked, s.rows)==(3, 2, 5) and part.read_bytes()==before and merge_shards(whole)['rows']==20

def spoilt(tmp_path, how):
    "Four shards of which the third is spoilt"
    out,third = shards(tmp_path, 4),tmp_path/'o.3-of-4.jsonl'
    lines = third.read_text().splitlines(True)
    class Two(Fake): fingerprint = 'fake/2'
    def anew(critic, data): third.unlink(); go(data, critic, out, shard='3/4')
    dict(missing=third.unlink, doubled=lambda: third.write_bytes((tmp_path/'o.2-of-4.jsonl').read_bytes()), cut=lambda: third.write_text(''.join(lines[:-1])),
         torn=lambda: third.write_text(''.join(lines)[:-9]), twice=lambda: third.write_text(''.join(lines+lines[-1:])), empty=lambda: third.write_text(''),
         swapped=lambda: third.write_text(''.join(lines[1::-1]+lines[2:])), mixed=lambda: third.write_text(''.join(lines[:2]+(tmp_path/'o.1-of-4.jsonl').read_text().splitlines(True)[2:3]+lines[3:])),
         foreign=lambda: third.write_text('{"my":"data"}\n'), critic=lambda: anew(Two(), rows(20)), data=lambda: anew(Fake(), rows(19)+rows(1, 99)),
         hidden=lambda: anew(Fake(), [r | dict(reference=['other']) for r in rows(20)]), longer=lambda: anew(Fake(), rows(21)),
         others=lambda: go(rows(20), Fake(), out, shard='1/2'), there=lambda: out.write_text('{"mine":1}\n'), none=lambda: [p.unlink() for p in tmp_path.glob('*.jsonl')])[how]()
    return out

@pytest.mark.parametrize('how,says', [('missing', 'shard 3/4 is missing: .*o.3-of-4.jsonl is not there; copy it here, or run annotate with shard 3/4 again'),
    ('doubled', 'o.3-of-4.jsonl holds shard 2/4, which is there twice then, and shard 3/4 is missing'), ('cut', '4 of its 5 rows; copy it anew, or run annotate with shard 3/4'),
    ('torn', 'row 5 is damaged .*not valid JSON.*shard 3/4'), ('twice', 'row 6 is damaged .*shard 3/4'), ('swapped', 'row 2 is damaged .*shard 3/4'), ('mixed', 'row 3 is damaged .*shard 3/4'),
    ('empty', 'o.3-of-4.jsonl is not what annotate with a shard writes'), ('foreign', 'o.3-of-4.jsonl is not what annotate with a shard writes'),
    ('critic', r'shard 3/4 .* is of another critic, .* than shard 1/4; run annotate for both'), ('data', 'shard 3/4 .* is of other data than shard 1/4'),
    ('hidden', 'shard 3/4 .* is of other data'), ('longer', 'shard 3/4 .* is of other data'), ('others', 'shards of 2 and of 4 lie beside it'),
    ('there', 'is there already and holds something else; move it away'), ('none', 'none of its shards is beside it; annotate with shard 1/16 writes o.1-of-16.jsonl')])
def test_shards_that_do_not_belong_together_are_named_and_nothing_is_written(tmp_path, how, says):
    out = spoilt(tmp_path, how)
    before = out.read_text() if out.exists() else None
    with pytest.raises(AnnotationError, match=says): merge_shards(out)
    assert (out.read_text() if out.exists() else None)==before and not list(tmp_path.glob('.*.tmp'))

def test_shards_are_refused_where_they_make_no_sense(tmp_path):
    from datasets import Dataset
    with pytest.raises(AnnotationError, match='too few questions for shard 4/4; 3 shards at most'): go(rows(3), Fake(), tmp_path/'o.jsonl', shard='4/4')
    with pytest.raises(ValueError, match='dataset.shard'): annotate(Dataset.from_list(rows(3)), Fake(), shard='1/2', cache=None)
    go(rows(9), Fake(), tmp_path/'o.jsonl', shard='1/2')
    (tmp_path/'o.1-of-2.jsonl').rename(tmp_path/'o.2-of-2.jsonl')
    with pytest.raises(AnnotationError, match='5 answers that this run would not write'): go(rows(9), Fake(), tmp_path/'o.jsonl', shard='2/2')

def mine(qs, part, of):
    qs.take(Shard(part, of))
    return {n for n,(_,first,mine,*_) in enumerate(qs.each()) if first and mine}

@given(st.lists(st.integers(0, 8), max_size=30), st.integers(1, 5))
@settings(max_examples=100, deadline=None)
def test_every_question_is_in_one_shard(asked, n):
    name = lambda i: bytes([i])+bytes(31-i%2)+b'\x01'*(i%2)                    # names that end in zeros, too
    qs = Questions(map(name, asked))
    parts = [mine(qs, k, n) for k in range(1, n+1)]
    first = sorted({asked.index(i) for i in asked})
    assert sorted(i for m in parts for i in m)==first and max(map(len, parts))-min(map(len, parts))<=1
    assert [(k, f) for k,f,*_ in qs.each()]==[(name(o).hex(), asked.index(o)==i) for i,o in enumerate(asked)]

@given(st.lists(st.integers(0, 3), max_size=30), st.lists(st.tuples(st.integers(0, 5), st.sampled_from(STATES[1:])), max_size=9))
@settings(max_examples=100, deadline=None)
def test_answers_are_found_under_the_names_of_their_questions(asked, answers):
    "As in a dict; what no row asks is a stray, whatever it is called"
    keys = [bytes([i]*32).hex() for i in range(4)]+['\ud800, no hash','']
    qs,known = Questions(bytes.fromhex(keys[i]) for i in asked),{}
    for at,(i,state) in enumerate(answers): qs[keys[i]] = known[i] = at,9,state
    assert len(qs)==len(known) and all((k in qs)==(i in known) for i,k in enumerate(keys)) and all(qs[keys[i]]==a for i,a in known.items())
    assert qs.strays()==len(known.keys()-set(asked)) and qs.n==len(asked)==sum(qs.rows().values())
    assert all(n==sum(known.get(i, (0,0,''))[2]==s for i in asked) and qs.left(s)==sum(known.get(i, (0,0,''))[2]==s for i in set(asked)) for s,n in qs.rows().items())
    with pytest.raises(KeyError): qs[bytes(31).hex()]

def test_memory_does_not_grow_with_the_number_of_questions():
    "Names and places in arrays took 64 bytes a question: 12 MB here"
    code = """if 1:
        import hashlib,sys
        from text2grad.data.shards import Questions
        most = lambda: next(int(l.split()[1]) for l in open('/proc/self/status') if l.startswith('VmHWM'))/1024
        def go(n):
            names = lambda: (hashlib.sha256(b'%d' % (i//2)).digest() for i in range(n))
            qs = Questions(names())
            for k in names(): qs[k.hex()] = 2**40,300,'judged'
            assert len(qs)==n//2==qs.left('judged') and sum(1 for _ in qs.each())==n==qs.rows()['judged']
        go(20_000)
        before = most()
        go(200_000)
        print(most()-before)"""
    r = subprocess.run([sys.executable,'-c',code], capture_output=True, text=True, check=True, cwd=root)
    assert float(r.stdout)<4, f'{r.stdout} MB'

def test_no_room_for_the_names_of_the_questions():
    code = """if 1:
        import hashlib,resource
        from text2grad.data.shards import AnnotationError,Questions
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
        try: Questions(hashlib.sha256(b'%d' % i).digest() for i in range(100_000))
        except AnnotationError as e: print(e)"""
    r = subprocess.run([sys.executable,'-c',code], capture_output=True, text=True, cwd=root)
    assert 'make room, or set SQLITE_TMPDIR' in r.stdout, r.stderr

def test_fifty_thousand_rows_are_read_at_flat_memory(tmp_path):
    import pyarrow as pa, pyarrow.parquet as pq
    data = [r | dict(document='x'*500) for r in rows(50_000)]
    write_jsonl(tmp_path/'in.jsonl', data)
    pq.write_table(pa.Table.from_pylist(data), tmp_path/'in.parquet')
    code = """if 1:
        import sys,pyarrow.parquet
        from text2grad.files import rows
        most = lambda: next(int(l.split()[1]) for l in open('/proc/self/status') if l.startswith('VmHWM'))/1024
        before,n = most(),sum(1 for _ in rows(sys.argv[1]))
        print(n, most()-before)"""
    for name,mb in (('in.jsonl', 4), ('in.parquet', 70)):                      # of 30 MB; all rows of a row group at once took 135
        n,grew = subprocess.run([sys.executable,'-c',code,str(tmp_path/name)], capture_output=True, text=True, check=True, cwd=root).stdout.split()
        assert int(n)==50_000 and float(grew)<mb, f'{name}: {grew} MB'
