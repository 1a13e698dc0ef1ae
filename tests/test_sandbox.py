"What no notebook can show: hostile programs, forged verdicts, broken boxes, leftovers, and real solutions by the hundred. Without bubblewrap these tests fail"
import builtins,json,os,re,signal,socket,subprocess,sys,threading,time,warnings,zipfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
import pytest
from hypothesis import given,settings,strategies as st
from hostile import ATTACKS,BOXED,FORGERIES,HARMLESS,SIMPLE,mutants
from text2grad.sandbox import box as box_module
from text2grad.sandbox import selftest
from text2grad.sandbox.box import Box,BoxError,Limits,Tier,bwrap_command,container_command
from text2grad.sandbox.worker import encode
from text2grad.sandbox.grading import Failure,Result
from text2grad.sandbox.selftest import SandboxUnavailable,self_test
from text2grad.sandbox import runner
from text2grad.sandbox.runner import run,run_batch
from text2grad.sandbox.selftest import advice
from text2grad.core import read_jsonl
from text2grad.data.tasks import load_humaneval,load_task
from text2grad.sandbox.grading import plan
from text2grad.sandbox.values import decode,divergence,show

root = Path(__file__).resolve().parent.parent

def others(mark):
    "Processes that are not this one and have `mark` in their command line"
    found = []
    for p in Path('/proc').glob('[0-9]*'):
        try: line = (p/'cmdline').read_bytes()
        except OSError: continue
        if mark.encode() in line and int(p.name)!=os.getpid(): found.append(p.name)
    return found

def test_there_is_a_box(): assert self_test().name.startswith('bwrap'), 'install bubblewrap: these tests are not skipped without it'

# 26 attacks and more

class Canaries:
    def __init__(self, tmp):
        self.folder,self.file = tmp/'folder',tmp/'file'
        self.folder.mkdir()
        self.file.write_text('secret')
        self.name = 'TEXT2GRAD_TEST_SECRET'
        os.environ[self.name] = 'secret'
        self.tcp,self.udp,self.unix,self.abstract = (socket.socket(*a) for a in ((socket.AF_INET, socket.SOCK_STREAM), (socket.AF_INET, socket.SOCK_DGRAM), (socket.AF_UNIX,), (socket.AF_UNIX,)))
        self.path = f'/tmp/t2g-{os.getpid()}-{time.monotonic_ns()}.sock'
        for s,a in ((self.tcp,('127.0.0.1',0)), (self.udp,('127.0.0.1',0)), (self.unix,self.path), (self.abstract,'\0text2grad-canary')):
            s.bind(a)
            if s is not self.udp: s.listen()
            s.setblocking(False)
        self.open = open(self.file)
        os.set_inheritable(self.open.fileno(), True)
    def fill(self, code):
        return code.format(file=str(self.file), folder=str(self.folder), port=self.tcp.getsockname()[1], udp=self.udp.getsockname()[1],
                           socket=self.path, name=self.name, pid=os.getpid())
    def effects(self):
        "What happened outside"
        seen = []
        if self.file.read_text()!='secret': seen.append('file')
        if list(self.folder.iterdir()): seen.append('folder')
        for s in (self.tcp, self.unix, self.abstract):
            try: seen.append(f'connected {s.accept()[1]}')
            except BlockingIOError: pass
        try: seen.append(f'datagram {self.udp.recv(9)}')
        except BlockingIOError: pass
        return seen
    def close(self):
        for s in (self.tcp, self.udp, self.unix, self.abstract, self.open): s.close()
        os.unlink(self.path)
        del os.environ[self.name]

@pytest.fixture
def canaries(tmp_path):
    c = Canaries(tmp_path)
    yield c
    c.close()

def test_there_are_enough(): assert len(ATTACKS)>=26 and len(FORGERIES)>=12

@pytest.mark.parametrize('name', ATTACKS)
def test_attack(name, canaries):
    r = run(canaries.fill(ATTACKS[name]), timeout=1., memory_mb=901)
    assert 'PWNED' not in r.stdout, r.stdout
    assert canaries.effects()==[]
    assert r.passed is not None, r.detail
    assert others(str(901<<20))==[]
    assert len(r.stdout)<=256*1024 and r.seconds<6

@pytest.mark.parametrize('name', HARMLESS)
def test_harmless_attacks_work_without_a_box(name, canaries):
    "A test that cannot fail proves nothing: where there is no box, these get through"
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        r = run(canaries.fill(ATTACKS[name]), timeout=4., sandbox='unsafe_subprocess')
    assert 'PWNED' in r.stdout or canaries.effects(), (r.failures, r.stdout)

@pytest.mark.parametrize('name', ['connect to 127.0.0.1','connect to a Unix socket','make a user namespace','mount over a folder','trace the parent'])
def test_attack_without_the_system_call_filter(name, canaries, monkeypatch):
    "The filter is a second wall; the first one holds alone"
    for module in (box_module, selftest): monkeypatch.setattr(module, 'seccomp_filter', lambda: b'')
    monkeypatch.setattr(selftest, '_tested', {})
    r = run(canaries.fill(ATTACKS[name]), timeout=2.)
    assert (r.tier, 'PWNED' in r.stdout, canaries.effects())==('bwrap', False, [])

def test_limits_are_the_right_way_round():
    "Ends that the attacks meet are the ones meant"
    ends = {'take 4 GB of memory':'memory', 'loop without end':'timeout', 'sleep for an hour':'timeout', 'flood the output':'output', 'flood the errors':'output'}
    rs = run_batch([dict(code=ATTACKS[k], timeout=1.) for k in ends])
    assert [r.status for r in rs]==list(ends.values())

def test_processor_time_is_limited_where_the_clock_is_not(monkeypatch):
    "The clock gets all the room that a busy machine needs, processor time stays at what `run` sets for 4 seconds"
    limits = []
    def two_seconds(cpu, **kwargs):
        limits.append(cpu)
        return Limits(cpu=2, **kwargs)
    monkeypatch.setattr(runner, 'Limits', two_seconds)
    r = run('def f(x):\n    while True: x += 1', 'assert f(1) == 2', timeout=60.)
    assert (r.status, r.failures[0].line, r.failures[0].error, r.seconds<59)==('timeout', 2, 'the program used 2 s of processor time', True)
    run('x = 1', timeout=4.)
    assert limits==[30, 2]

FAMILY = """
import os,time
for _ in range(8):
    if os.fork()==0:
        x = bytearray(40<<20)
        for i in range(0, len(x), 4096): x[i] = 1
        time.sleep(30)
        os._exit(0)
def f(x): time.sleep(30)
"""
FILES = """
import os,time
fds = []
for _ in range(20):
    fds.append(os.memfd_create('x'))
    for _ in range(15): os.write(fds[-1], bytes(1<<20))
def f(x): time.sleep(30)
"""

MAPPED = """
import mmap,os,time
held = []
for _ in range(20):
    fd = os.memfd_create('x')
    for _ in range(15): os.write(fd, bytes(1<<20))
    held.append(mmap.mmap(fd, 4096))
    os.close(fd)
def f(x): time.sleep(30)
"""
SHRUNK = """
import ctypes,mmap,time
libc,held = ctypes.CDLL(None),[]
for _ in range(20):
    held.append(m := mmap.mmap(-1, 20<<20))
    m[:] = bytes(20<<20)
    time.sleep(.15)
    m.madvise(mmap.MADV_DONTNEED)
    libc.munmap(ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(m))+4096), ctypes.c_size_t((20<<20)-4096))
def f(x): time.sleep(30)
"""

@pytest.mark.parametrize('code', [FAMILY, FILES, MAPPED, SHRUNK], ids=['many processes','files in memory','files of which a page is mapped','shared memory given back but for a page'])
def test_memory_is_limited_in_all(code):
    r = run(code, 'assert f(1) == 1', timeout=20., memory_mb=128)
    assert (r.passed, r.status, r.seconds<15)==(False, 'memory', True) and '128 MB in all' in r.failures[0].error

def test_no_file_travels_through_a_socket():
    "Nobody could weigh it on its way; an event loop wakes itself through one, with bytes alone"
    send = 'import os,socket\ndef f(x):\n    a,b = socket.socketpair()\n    socket.send_fds(a, [b"x"], [0])\n    return x'
    loop = 'import asyncio\nasync def g(x): return x\ndef f(x): return asyncio.run(g(x))'
    assert ['PermissionError' in run(send, 'assert f(1) == 1').failures[0].error, run(loop, 'assert f(1) == 1').passed]==[True, True]

def test_shared_memory_below_the_limit_is_fine():
    code = 'import mmap\ndef f(x):\n    m = mmap.mmap(-1, 60<<20)\n    m[:] = b"x"*len(m)\n    return m[7:9]'
    assert run(code, 'assert f(1) == b"xx"', memory_mb=256).passed is True

def test_half_a_character_in_an_error_can_be_shown():
    r = run('def f(x): raise ValueError("\\ud800")', 'assert f(1) == 1')
    assert r.failures[0].error=='ValueError: \\ud800' and r._repr_html_().encode() and str(r).encode()

def test_processes_that_share_their_memory_are_counted_once():
    code = 'import os,time\nx = b"x"*(50<<20)\nfor _ in range(6):\n    if os.fork()==0:\n        time.sleep(30)\n        os._exit(0)\ndef f(n):\n    time.sleep(1)\n    return n'
    assert run(code, 'assert f(1) == 1', timeout=20., memory_mb=128).passed is True

# Forgeries

@pytest.mark.parametrize('tests', [SIMPLE, BOXED], ids=['judged by the parent','judged in a box'])
def test_forgeries(tests):
    rs = run_batch([dict(code=c, tests=tests, entry_point='double', timeout=1.) for c in FORGERIES.values()])
    assert {n: (r.passed, r.detail) for n,r in zip(FORGERIES, rs) if r.passed is not False}=={}
    assert all(r.failures and r.n_passed<r.n_tests for r in rs)

def test_the_honest_solution_passes_both():
    for tests in (SIMPLE, BOXED): assert run('def double(x): return x+x', tests).passed is True

def test_type_error_cannot_be_faked_by_an_odd_value():
    tests = 'try:\n    double(None)\n    assert False\nexcept TypeError: pass\n'
    assert run('def double(x): return x*2', tests).passed is True
    assert run('def double(x): return object()', tests).passed is False
    assert run('def double(x): return object()', tests.replace('except TypeError', 'except')).passed is False

def test_no_program_can_have_itself_masked():
    "Breaking the tests by what it returns is the program's fault"
    tests = 'def test():\n    n = f()\n    for i in range(n): pass\n    assert n == 3\n'
    assert run('def f(): return 3', tests).passed is True
    r = run('def f(): return 10**18', tests, timeout=.5)
    assert (r.passed, r.status)==(False, 'timeout')
    r = run('def f(): return "x"*800_000', 'def test():\n    print(f()*9)\n    assert f() == 1')
    assert r.passed is False
    assert run('def f(x=0): return "x"*900_000', 'def test():\n    y = f(0)\n    assert f(y*9) == 1').passed is False

@pytest.mark.parametrize('code', ['double = None', 'double = 5', 'class double(Exception): pass'])
def test_what_is_no_function_is_no_reason_to_mask(code):
    for tests in (SIMPLE, BOXED): assert run(code, tests, entry_point='double').passed is False

@pytest.mark.parametrize('what', ["['exception', 5]", "['exception', [5]]", "['exception', ['int']]", "['exception']", "['weird']", "['value']", '[]', '{}', '7'])
def test_a_name_cannot_be_described_as_what_breaks_the_tests(what):
    "The worker shares its process with the program, which may rewrite what it says of a name"
    code = f"""import sys
f = sys._getframe()
while '_what' not in f.f_globals: f = f.f_back
f.f_globals['_what'] = lambda v: {what}
def double(n): return n*3
"""
    assert run(code, BOXED, entry_point='double').passed is False

def test_a_constant_of_the_program_is_judged():
    tests = 'for n in (1,2): assert LIMIT > n'
    assert run('LIMIT = 3', tests).passed is True
    assert run('LIMIT = 2', tests).passed is False

@pytest.mark.parametrize('code, tests', [
    ('N = 10**10\ndef f(x): return x', 'def test():\n    t = 0\n    for i in range(N): t += i\n    assert f(t) == 1'),
    ('class A: pass\nN = A()\ndef f(x): return x', 'def test():\n    for i in N: assert f(i) == i'),
    ('def N(): pass\ndef f(x): return x', 'def test():\n    for i in N: assert f(i) == i'),
    ('class N: pass\ndef f(x): return x', 'def test():\n    assert len(N) == 3\n    for i in (1, 2): assert f(i) == i'),
    ('def N(): pass\ndef f(x): return x', 'def test():\n    for i in range(N + 1): assert f(i) == i'),
    ('N = False\ndef f(x): return x', 'def test():\n    if N: assert f(1) == 2'),
    ('f = 8', 'def test():\n    for x in (1, 2): assert f(x) == x'),
    ('def CASES(): pass\ndef f(x): return x', 'import pytest\n@pytest.mark.parametrize("a", CASES)\ndef test(a): assert f(a) == a'),
    ('def E(): pass\ndef f(x): return x', 'def test():\n    try: raise E("x")\n    except E: pass\n    for i in (1, 2): assert f(i) == i'),
    ('f = [1]', 'class TestF:\n    def test_f(self):\n        for x in (1, 2): assert f(x) == x'),
    ('class E(Exception):\n    def __init__(self, *a): self.args = a\nE.__name__ = "x"*400_000\ndef f(x): raise E', 'def test_a():\n    y = f(1)\ndef test_b():\n    y = f(1)\n')])
def test_nothing_that_a_program_defines_masks_it(code, tests):
    r = run(code, tests, timeout=.7)
    assert r.passed is False and r.failures, r.detail

SWALLOWED = {
'all': 'assert all(map(f, [2, 4, 6]))', 'any not': 'assert not any(map(f, [2, 4]))', 'next with a default': 'def test():\n    assert next(map(f, [1]), None) is None',
'list': 'def test():\n    assert list(map(f, [1])) == []', 'dict': 'def test():\n    assert dict(zip("ab", map(f, "ab"))) == {}', 'unpacking': 'def test():\n    assert [*map(f, [1])] == []',
'in': 'def test():\n    assert 3 not in map(f, [1])', 'sum': 'import functools\ndef test():\n    assert sum(map(f, [1])) == 0',
'zip': 'def test():\n    xs = [1, 2]\n    for got, want in zip(map(f, xs), xs): assert got == want',
'zip in the module': 'xs = [1, 2]\nfor got, want in zip(map(f, xs), xs): assert got == want\n',
'iter': 'def test():\n    assert list(iter(lambda: f(1), 5)) == []', 'an iterator of the tests': 'class It:\n    def __iter__(self): return self\n    def __next__(self): return f(1)\ndef test():\n    for x in It(): assert x == 1',
}

@pytest.mark.parametrize('name', SWALLOWED)
@pytest.mark.parametrize('error', ['raise StopIteration', 'class E(StopIteration): pass\n    raise E(3)', 'return next(iter(()))'])
def test_an_exception_that_python_swallows_fails_the_test(name, error):
    r = run(f'def f(*x):\n    {error}\n', SWALLOWED[name])
    assert (r.passed, r.n_passed)==(False, 0) and {f.kind for f in r.failures}=={'exception'}
    assert all(f.line in (2,3) for f in r.failures)

@pytest.mark.parametrize('code, tests', [
    ('def f(x): raise AttributeError(x)', 'class A:\n    @property\n    def x(self): return f(1)\ndef test():\n    assert getattr(A(), "x", 3) == 3\n    assert not hasattr(A(), "x")'),
    ('def f(x): raise IndexError(x)', 'class A:\n    def __getitem__(self, i): return f(i)\ndef test():\n    assert list(A()) == []'),
    ('def f(x): raise GeneratorExit', 'def g():\n    try: yield 1\n    finally: f(1)\ndef test():\n    it = g()\n    next(it)\n    it.close()\n    assert it'),
    ('def f(x): raise ValueError', 'def g():\n    try: return f(1)\n    finally: return 3\ndef test():\n    assert g() == 3')])
def test_other_protocols_swallow_too(code, tests): assert run(code, tests, entry_point='f').passed is False

@pytest.mark.parametrize('tests', [
    'import pytest\ndef test():\n    with pytest.raises(StopIteration): f(1)', 'try:\n    f(1)\n    assert False\nexcept StopIteration: pass',
    'def r(x):\n    try: f(x)\n    except Exception: return True\ndef test():\n    for i in range(3): assert r(i)', 'def test():\n    for i in range(3): assert refuses(f, i)',
    'import unittest\nclass T(unittest.TestCase):\n    def test_a(self):\n        with self.assertRaises(StopIteration): f(1)\n    def test_b(self): self.assertRaises(StopIteration, f, 1)',
    'import contextlib\ndef test():\n    with contextlib.suppress(StopIteration): f(1)', 'class R:\n    def __enter__(self): return self\n    def __exit__(self, k, e, tb): return k is StopIteration\ndef test():\n    with R(): f(1)\n',
    'import contextlib\n@contextlib.contextmanager\ndef R():\n    try: yield\n    except StopIteration: pass\ndef test():\n    with R(): f(1)\n', 'def g(): yield f(1)\ndef test():\n    try: list(g())\n    except RuntimeError: pass\n'])
def test_an_exception_that_the_tests_ask_for_is_right(tests):
    setup = 'def refuses(f, x):\n    try: f(x)\n    except Exception: return True\n'
    r = run('def f(x): raise StopIteration', tests, entry_point='f', setup=setup)
    assert r.passed is True and r.n_tests==r.n_passed>0, r

def test_helpers_of_the_tests_cannot_be_replaced():
    setup,tests = 'def decode(s): return s[::-1]', 'for s in ("ab", "xyz"): assert decode(encode(s)) == s'
    cheat = 'def encode(s): return s\ndef decode(s): return s'
    assert run('def encode(s): return s[::-1]', tests, setup=setup, entry_point='encode').passed is True
    assert run(cheat, tests, setup=setup, entry_point='encode').passed is False

def test_tests_never_run_in_the_parent(tmp_path):
    "A data set is no more to be trusted than a model"
    bad = f'import os,builtins\nopen({str(tmp_path/"x")!r}, "w")\nbuiltins.pwned = 1\nassert f(1) == 1'
    r = run('def f(x): return x', bad)
    assert r.passed is None and list(tmp_path.iterdir())==[] and not hasattr(builtins, 'pwned')
    for tests in ('assert f(1) == '+'('*5000, 'assert f(1) == '+'-'*50_000+'1', 'x'*2_000_000, 'assert f("\0") == 1', 'def f(:'): assert run('def f(x): return x', tests).passed is None

# What a result says

def one(code, tests, **kwargs):
    r = run(code, tests, **kwargs)
    assert r.passed is False and len(r.failures)==1, r
    return r.failures[0]

@pytest.mark.parametrize('tests', ['assert f([1, 2]) == [2, 4]', 'def test_f():\n    for x in ([1, 2],): assert f(x) == [v*2 for v in x]'])
def test_a_wrong_value(tests):
    f = one('def f(xs): return [2, 5]', tests)
    assert (f.kind, f.call, f.expected, f.got, f.divergence, f.line)==('assertion', 'f([1, 2])', '[2, 4]', '[2, 5]', 'at index 1: 5 instead of 4', None)

@pytest.mark.parametrize('tests', ['assert f([1]) == 3', 'def test_f():\n    x = [1]\n    assert f(x) == 3', 'def check(candidate):\n    assert candidate([1]) == 3'])
def test_an_exception(tests):
    f = one('def g(xs):\n    return xs[3]\n\ndef f(xs):\n    return g(xs)\n', tests, entry_point='f')
    assert (f.kind, f.call, f.error, f.line, f.expected)==('exception', 'f([1])', 'IndexError: list index out of range', 2, '3')

def test_ends_before_the_tests():
    f = one('def f(x):\n    return x +\n', 'assert f(1) == 1')
    assert (f.kind, f.line, f.column, f.error)==('syntax', 2, 14, 'SyntaxError: invalid syntax')
    f = one('x = 1\ny = x/0\n', 'assert f(1) == 1')
    assert (f.kind, f.line, f.error)==('exception', 2, 'ZeroDivisionError: division by zero')
    f = one('def g(x): return x', 'assert f(1) == 1')
    assert (f.kind, f.error)==('missing', 'the program defines no f')
    for code in ('\0', 'def f(x):\n  return "\ud800"', 'x = '+'('*300, '\tif'): assert one(code, 'assert f(1) == 1').kind in ('syntax','assertion')
    r = run('def f(x): return x +', 'assert f(1) == 1\nassert f(2) == 2\nassert f(3) == 3')
    assert (r.status, r.n_tests, r.n_passed)==('syntax', 3, 0)

@pytest.mark.parametrize('code, status, kind', [('def f(x): import sys; sys.exit(0)','failed','exit'), ('def f(x): return bytearray(1<<31)','memory','memory'), ('def f(x): return {1:object()}','failed','value'),
    ('def f(x):\n    while True: print("x"*999)','output','output'), ('import time\ndef f(x): time.sleep(9)','timeout','timeout')])
def test_statuses(code, status, kind):
    for tests in ('assert f(1) == 1', 'def test():\n    y = 1\n    assert f(y) == y'):
        r = run(code, tests, timeout=.6)
        assert (r.status, r.failures[0].kind, r.failures[0].call)==(status, kind, 'f(1)')

@pytest.mark.parametrize('assertion, expected, got', [('f(1) is None','None','2'), ('f(1) in (3, 4)','one of (3, 4)','2'), ('f(1) != 2','not 2','2'), ('3 == f(1)','3','2'), ('f(1) > 5','> 5','2'), ('5 < f(1)','> 5','2'),
    ('abs(f(1) - 2.5) < 1e-6','2.5 within 1e-06','2'), ('math.isclose(f(1), 2.5)','about 2.5','2'), ('not f(1)','False','2'), ('f(-1)','True','0'), ('len(f("a")) == 3','3','2')])
@pytest.mark.parametrize('boxed', [False, True])
def test_expected_and_got(assertion, expected, got, boxed):
    f = one('def f(x): return x+x if x=="a" else x+1', 'import math\n'+'z = [0 for _ in ()]\nz.append(1)\n'*boxed+f'assert {assertion}', entry_point='f')
    assert (f.kind, f.expected, f.got)==('assertion', expected, got)

def test_each_test_counts():
    tests = ''.join(f'assert f({k}) == {k*k}\n' for k in range(6))
    assert [(r.n_tests, r.n_passed) for r in run_batch([dict(code='def f(x): return x*2', tests=t) for t in (tests, 'y = [0 for _ in ()]\ny.append(1)\n'+tests)])]==[(6, 2), (6, 2)]
    r = run('def f(x): return 1/x', 'def test_a():\n    y = f(0)\n    assert y == 1\n\ndef test_b():\n    z = 1\n    assert f(z) == 1\n')
    assert (r.n_tests, r.n_passed, [f.test for f in r.failures])==(2, 1, ['y = f(0)'])

def test_programs_without_tests():
    r = run('import sys\nprint(sum(map(int, sys.stdin)))', stdin='1\n2\n')
    assert (r.passed, r.stdout, r.n_tests)==(True, '3\n', 0)
    assert run('raise SystemExit').passed is True and run('raise SystemExit(3)').passed is False
    assert run('if __name__ == "__main__": print(input())', stdin='é'*30_000).stdout=='é'*30_000+'\n'
    f = run('x = 1\nprint(x)\n1/0').failures[0]
    assert (f.line, f.error)==(3, 'ZeroDivisionError: division by zero')

# Styles of tests

GOOD = """
class Empty(ValueError): pass
LIMIT = 3
def first(xs):
    if not xs: raise Empty('nothing in it')
    return xs.pop(0)
def key(d, k): return d[k]
"""
STYLES = {
'pytest': """
import pytest
from solution import first, Empty, LIMIT, key
@pytest.fixture
def xs(): return [1, 2]
@pytest.mark.parametrize('given, want', [([3], 3), ([4, 5], 4)])
def test_first(given, want): assert first(given) == want
def test_fixture(xs): assert first(xs) == 1 and xs == [2]
def test_raises():
    with pytest.raises(Empty, match='nothing') as e: first([])
    assert 'in it' in str(e.value)
def test_builtin():
    with pytest.raises(ValueError): first([])
    with pytest.raises(KeyError): key({}, 1)
def test_approx(): assert first([.1+.2]) == pytest.approx(.3)
def test_limit(): assert LIMIT == 3
""",
'unittest': """
import unittest, solution
class TestFirst(unittest.TestCase):
    def setUp(self): self.xs = [1, 2]
    def test_first(self): self.assertEqual(solution.first(self.xs), 1)
    def test_raises(self): self.assertRaises(ValueError, solution.first, [])
if __name__ == '__main__': unittest.main()
""",
'class': "from solution import first\nclass TestIt:\n    def test_a(self): assert first([1]) == 1\n",
'check': "METADATA = {'author': 'x'}\ndef check(candidate):\n    for k in range(3): assert candidate([k, 9]) == k\n",
'candidate': "assert candidate([7]) == 7\n",
'try': "try:\n    first([])\nexcept ValueError as e: assert str(e) == 'nothing in it'\nelse: assert False\n",
'in place': "xs = [[1], [2], [3]]\ninner = xs[1]\nassert first(xs) == [1]\nassert xs == [[2], [3]] and xs[0] is inner\n",
'helper': "def same(a, b): assert a == b\nsame(first([1]), 1)\nsame(first([2]), 2)\n",
}

@pytest.mark.parametrize('style', STYLES)
def test_style(style):
    r = run(GOOD, STYLES[style], entry_point='first')
    assert r.passed is True and r.n_tests>0, (r.failures, r.detail)
    wrong = run(GOOD.replace('xs.pop(0)', 'None'), STYLES[style], entry_point='first')
    assert wrong.passed is (True if style=='try' else False), wrong
    if style=='try': assert run(GOOD.replace('raise Empty', 'return str'), STYLES[style], entry_point='first').passed is False

def test_a_parameter_with_a_default_is_no_fixture():
    assert run('def f(x): return x', 'def test(n=3):\n    for i in range(n): assert f(i) == i').passed is True

# Values that are no plain data. (program, tests): right programs that pass
DATA = {
'range': ('def f(n): return range(n)', 'assert list(f(3)) == [0, 1, 2]\nassert f(2) == range(2)'), 'slice': ('def f(n): return slice(n)', 'assert "abc"[f(2)] == "ab"'),
'generator': ('def f(n):\n    for i in range(n): yield i', 'assert list(f(3)) == [0, 1, 2]\nassert sum(f(3)) == 3'), 'endless generator': ('def f(n):\n    while True: yield n', 'def test():\n    it = f(2)\n    assert next(it) == 2\n    assert next(it) == 2'),
'count': ('import itertools\ndef f(n): return itertools.count(n)', 'import itertools\ndef test():\n    assert list(itertools.islice(f(2), 3)) == [2, 3, 4]'),
'generator that raises': ('def f(n):\n    yield 1\n    raise ValueError(n)', 'import pytest\ndef test():\n    it = f(2)\n    assert next(it) == 1\n    with pytest.raises(ValueError): next(it)'),
'map': ('def f(a): return map(str, a)', 'assert list(f([1, 2])) == ["1", "2"]'), 'filter': ('def f(a): return filter(None, a)', 'assert list(f([0, 2])) == [2]'), 'zip': ('def f(a): return zip(a, a)', 'assert list(f([0, 2])) == [(0, 0), (2, 2)]'),
'enumerate': ('def f(a): return enumerate(a)', 'assert dict(f([5])) == {0: 5}'), 'reversed': ('def f(a): return reversed(a)', 'assert list(f([1, 2])) == [2, 1]'), 'iterators in a list': ('def f(a): return [(x for x in range(i)) for i in a]', 'assert [list(g) for g in f([1, 2])] == [[0], [0, 1]]'),
'deque': ('from collections import deque\ndef f(n): return deque([n], maxlen=3)', 'from collections import deque\nassert f(3) == deque([3])\nassert f(3).maxlen == 3'), 'keys': ('def f(d): return d.keys()', 'assert f({"a": 1}) == {"a"}'), 'values': ('def f(d): return d.values()', 'assert sorted(f({"a": 1})) == [1]'), 'items': ('def f(d): return d.items()', 'assert list(f({"a": 1})) == [("a", 1)]'),
'named tuple': ('from collections import namedtuple\nP = namedtuple("P", "x y")\ndef f(x): return P(x, x)', 'assert f(1) == (1, 1)\nassert f(1).x == 1'), 'typed named tuple': ('from typing import NamedTuple\nclass P(NamedTuple):\n    x: int\ndef f(x): return [P(x)]', 'def test():\n    assert f(1)[0].x == 1'),
'Decimal': ('from decimal import Decimal\ndef f(s): return Decimal("1.5")', 'from decimal import Decimal\nassert f(1) == Decimal("1.5")\nassert f(1) == 1.5'), 'Fraction': ('from fractions import Fraction\ndef f(s): return Fraction(1, s)', 'from fractions import Fraction\nassert f(3) == Fraction(1, 3)\nassert abs(f(3)-.3333333) < 1e-4'),
'date': ('import datetime\ndef f(s): return datetime.date(2024, 1, 1)', 'import datetime\nassert f(1) == datetime.date(2024, 1, 1)'), 'aware time': ('from datetime import *\ndef f(s): return datetime(2024, 1, 1, tzinfo=timezone.utc)', 'from datetime import *\nassert f(1) == datetime(2024, 1, 1, tzinfo=timezone.utc)'),
'time and difference': ('def f(a, b): return b-a', 'from datetime import date\nassert f(date(2024, 1, 1), date(2024, 1, 3)).days == 2'), 'sets of them': ('from decimal import Decimal\ndef f(): return {Decimal(1), Decimal(2)}', 'assert f() == {1, 2}'), 'bytearray': ('def f(d): return bytearray(d)', 'assert f(b"a") == b"a"'), 'array': ('import array\ndef f(d): return array.array("i", [d])', 'import array\nassert f(1) == array.array("i", [1]) and list(f(2)) == [2]'),
'memoryview': ('def f(n): return memoryview(b"ab")', 'assert bytes(f(1)) == b"ab" and f(1)[0] == 97'), 'UUID': ('import uuid\ndef f(): return uuid.UUID(int=1)', 'import uuid\nassert f() == uuid.UUID(int=1)'), 'Path': ('import pathlib\ndef f(x): return pathlib.Path(x)', 'from pathlib import Path\nassert f("a") == Path("a")'),
'IntEnum': ('import enum\nclass C(enum.IntEnum):\n    A = 1\ndef f(d): return C.A', 'assert f(b"a") == 1'), 'subclass of str': ('class S(str): pass\ndef f(d): return S(d)', 'assert f("a") == "a"'), 'subclass of list': ('class S(list): pass\ndef f(d): return S(d)', 'assert f([1]) == [1]'), 'subclass of dict': ('class S(dict): pass\ndef f(d): return S(a=d)', 'assert f([1]) == {"a": [1]}'),
'as arguments': ('def f(it): return sum(it)', 'from decimal import Decimal\nassert f(iter([1, 2])) == 3\nassert f(range(3)) == 3\nassert f([Decimal("0.5")]) == Decimal("0.5")'), 'changed in place': ('def f(d): d.append(1)', 'from collections import deque\ndef test():\n    d = deque()\n    f(d)\n    assert d == deque([1])'),
'a constant': ('LIMITS = range(3)\ndef f(x): return x', 'def test():\n    for i in LIMITS: assert f(i) == i'),
}
# Tests that need an object: right programs cannot be judged here, and are not blamed
OBJECTS = {
'a class': ('class Stack:\n    def __init__(self): self.a = []\n    def push(self, x): self.a.append(x)', 'from solution import Stack\ndef test_a():\n    s = Stack()\n    s.push(1)\n    assert s.a == [1]'), 'a class of the module': ('class Stack:\n    x = 1', 'import solution\ndef test(): assert solution.Stack().x == 1'),
'a method': ('class Solution:\n    def f(self, x): return x+1', 'assert Solution().f(1) == 2'), 'a data class': ('from dataclasses import dataclass\n@dataclass\nclass P:\n    x: int\ndef f(x): return P(x)', 'assert f(1).x == 1'), 'a closure': ('def f(n): return lambda x: x+n', 'assert f(1)(2) == 3'),
'a closure with a name': ('def f(n): return lambda x: x+n', 'def test():\n    g = f(1)\n    assert g(2) == 3'), 'a decorator': ('def f(g): return lambda *a: g(*a)', 'def test():\n    @f\n    def g(x): return x\n    assert g(2) == 2'), 'an enum': ('import enum\nclass C(enum.Enum):\n    A = 1\ndef f(d): return C.A', 'from solution import f, C\nassert f(1) == C.A'),
'isinstance': ('class P: pass\ndef f(d): return P()', 'from solution import f, P\ndef test(): assert isinstance(f(1), P)'), 'a type': ('def f(d): return int', 'assert f(1) is int'),
'a view as a list': ('def f(n): return memoryview(b"ab")', 'assert f(1).tolist() == [97, 98]'), 'a match': ('import re\ndef f(d): return re.match("a", d)', 'assert f("a").group(0) == "a"'), 'a namespace': ('import types\ndef f(d): return types.SimpleNamespace(x=d)', 'r = f(1)\nassert r.x == 1'),
}
# Wrong programs that give what only looks right, or an object where the tests need none: neither passed nor masked
LOOKALIKES = {
'equals all': ('class Y:\n    def __eq__(s, o): return True\ndef f(x): return Y()', 'assert f(1) == 2'), 'equals all, in a box': ('class Y:\n    def __eq__(s, o): return True\ndef f(x): return Y()', 'def test():\n    for x in (1, 2): assert f(x) == x'),
'subclass that equals all': ('class Y(list):\n    def __eq__(s, o): return True\n    def __iter__(s): return iter([0, 1])\ndef f(x): return Y()', 'assert f(1) == [0, 1]\nassert list(f(1)) == [0, 1]'), 'a method that says yes': ('class Y:\n    def startswith(s, o): return True\ndef f(x): return Y()', 'assert f(3).startswith("A")'),
'a difference of nothing': ('class Y:\n    def __sub__(s, o): return 0\ndef f(x): return Y()', 'assert abs(f(3)-2.5) < 1e-6'), 'a length': ('class Y:\n    def __len__(s): return 3\ndef f(x): return Y()', 'assert len(f(3)) == 3'), 'a type': ('def f(x): return object()', 'def test():\n    assert type(f(3)) == int'),
'endless': ('import itertools\ndef f(n): return itertools.count()', 'assert list(f(3)) == [0, 1, 2]'), 'endless, in a loop': ('def f(n):\n    while True: yield 1', 'def test():\n    for a, b in zip(f(3), range(20_000)): assert a == 1'), 'raises too late': ('def f(n):\n    yield 1\n    raise ValueError', 'assert list(f(3)) == [1]'),
'one too many': ('def f(n): return range(n+1)', 'assert list(f(3)) == [0, 1, 2]'), 'iterator, not list': ('def f(n): return iter([1])', 'assert f(3) == [1]'), 'a wrong date': ('from datetime import date\ndef f(n): return date(2024, 1, n)', 'from datetime import date\nassert f(3) == date(2024, 1, 4)'),
'a class where a function is asked for': ('class f:\n    def __init__(s, x): pass\n    def __eq__(s, o): return True', 'assert f(3) == 4'), 'no such class': ('x = 1', 'from solution import Stack\ndef test(): assert Stack().x == 1'), 'a class that does not parse': ('class Stack\n    pass', 'from solution import Stack\ndef test(): assert Stack().x == 1'),
}

@pytest.mark.parametrize('kinds, want', [(DATA, True), (OBJECTS, None), (LOOKALIKES, False)], ids=['data','objects','lookalikes'])
def test_values_that_are_no_plain_data(kinds, want):
    entry = lambda t: 'f' if 'f(' in t else None   # as the data sets do, also for a method
    rs = run_batch([dict(code=c, tests=t, entry_point=entry(t), timeout=4.) for c,t in kinds.values()])
    assert {n:(r.passed, r.failures, r.detail) for n,r in zip(kinds, rs) if r.passed is not want}=={}
    if want is False: assert all(r.failures and r.n_passed<r.n_tests for r in rs)
    if want is None: assert all('object' in r.detail for r in rs)

def test_forged_data_is_refused_or_judged_by_the_tests():
    forge = """import sys,time
def f(x):
    g = sys._getframe()
    while not ('send' in g.f_globals and 'nonce' in g.f_locals): g = g.f_back
    g.f_globals['send']('{"nonce":"%s",' % g.f_locals['nonce']+BODY+'}')
    time.sleep(9)
"""
    answers = ['"value":{"x":["iter",5]}', '"value":{"x":["Decimal","1e999999999"]}', '"value":{"x":["Decimal","no"]}', '"value":{"x":["range",{"t":[0,1%s,1]}]}' % ('0'*30), '"value":{"x":["named",{"t":["class","x y",{"t":[1]}]}]}',
        '"value":{"x":["os","system"]}', '"value":{"x":7}', '"value":{"x":["date",7]}', '"value":{"x":["Fraction",{"t":[1,0]}]}', '"value":{"x":["keys",[[1]]]}', '"value":{"x":["deque",{"t":[[1],-1]}]}', '"value":{"x":["PosixPath",null]}']
    rs = run_batch([dict(code=forge.replace('BODY', repr(a)), tests=t, timeout=.7) for a in answers for t in ('assert f(1) == 2', 'def test():\n    for x in (1, 2): assert f(x) == x')])
    assert [r.passed for r in rs]==[False]*len(rs)

EMPTY,TWICE = 'def f(xs): return []','def f(xs): return [x*2 for x in xs]'

@pytest.mark.parametrize('code, tests, want', [
    (EMPTY, 'def test():\n    for g, w in zip(f([1, 2]), [2, 4]): assert g == w', (False, 0, 1)), (TWICE, 'def test():\n    for g, w in zip(f([1, 2]), [2, 4]): assert g == w', (True, 1, 1)),
    (EMPTY, 'for g, w in zip(f([1, 2]), [2, 4]): assert g == w', (False, 0, 1)), (EMPTY, 'r = sorted(f([1, 2]))\nfor i, g in enumerate(r): assert g == [2, 4][i]', (False, 0, 1)),
    (EMPTY, 'def test():\n    assert f([]) == []\n    for g in f([1]): assert g == 2', (False, 1, 2)), ('def f(x): return 0', 'def test():\n    n = f(3)\n    while n:\n        assert n > 0\n        n -= 1', (False, 0, 1)),
    ('def f(x): return None', 'def test():\n    r = f(3)\n    if r is not None: assert r == 6', (False, 0, 1)), (EMPTY, 'def test():\n    for xs in ([1], [2]):\n        for g in f(xs): assert g == xs[0]*2', (False, 0, 1)),
    (EMPTY, 'def check(candidate):\n    for g in candidate([1]): assert g == 2\n', (False, 0, 1)), (EMPTY, 'import unittest\nclass T(unittest.TestCase):\n    def test_a(self):\n        for g in f([1]): self.assertEqual(g, 2)', (False, 0, 1)),
    ('def f(x): return 6', 'def test():\n    r = f(3)\n    if r is None: assert False\n    if r is not None: assert r == 6', (True, 1, 1)), ('def f(x): return 6', 'def test():\n    r = f(3)\n    if r is None: assert r\n    else: assert r == 6', (True, 1, 1)),
    (TWICE, 'import sys\ndef test():\n    if sys.platform == "win32": assert f([1]) == 3\n    assert f([1]) == [2]', (True, 1, 1)), (TWICE, 'def test():\n    for x in []: assert f(x) == 1\n    assert f([1]) == [2]', (True, 1, 1))])
def test_what_was_never_checked_has_not_passed(code, tests, want):
    r = run(code, tests, entry_point='f')
    assert (r.passed, r.n_passed, r.n_tests)==want and all('never checked' in f.error for f in r.failures), r

def test_values_keep_their_types():
    code = 'def f(x): return x'
    vs = ['None','True','-3','10**30 if 1 else 0','2.5','1j','"é\\n"',"b'\\xff'",'[1, [2]]','(1, (2,))','(1,)','()','{1, 2}','frozenset({1})','{}','{(1, 2): [3]}','float("inf")','"\\ud800"']
    tests = 'def same(a, b): assert type(a) is type(b) and a == b and repr(a) == repr(b)\n'+''.join(f'same(f({v}), {v})\n' for v in vs)
    r = run(code, tests, entry_point='f')
    assert (r.passed, r.n_tests)==(True, len(vs)), r.failures
    assert run('from collections import *\ndef f(x): return Counter(x)', 'assert f("aab") == {"a": 2, "b": 1}').passed is True

def test_the_same_run_twice_says_the_same():
    code = 'import random\ndef f(): return [random.random(), list({"a","b","c","d"}), hash("x")]'
    tests = 'import random\ndef test():\n    x = random.random()\n    assert f() == x'
    a,b = run_batch([dict(code=code, tests=tests)]*2)
    assert replace(a, seconds=0)==replace(b, seconds=0)

@pytest.mark.parametrize('tests, why', [('assert f(lambda: 1) == 1', 'object of type function'), ('import nowhere\nassert f(1) == 1', 'ModuleNotFoundError'), ('x = 1/0\nassert f(1) == 1', 'ZeroDivisionError'),
    ('def test_x(capsys): assert f(1) == 1', 'fixture capsys'), ('assert f(', 'do not parse'), ('x = 1', 'no function'), ('import time\ntime.sleep(60)\nassert f(1) == 1', 'no answer')])
def test_faults_of_the_tests_are_masked(tests, why):
    r = run('def f(x): return x', tests, timeout=1.)
    assert (r.passed, r.status)==(None, 'infrastructure') and why in r.detail

def test_a_setup_that_fails_is_ours(): assert 'setup' in run('def f(x): return x', 'assert f(1) == 1', setup='1/0').detail

@pytest.mark.parametrize('wrong, error', [(dict(code=3), TypeError), (dict(tests=None), TypeError), (dict(timeout=0), ValueError), (dict(memory_mb=1), ValueError), (dict(sandbox='none'), ValueError)])
def test_wrong_arguments(wrong, error):
    with pytest.raises(error, match=next(iter(wrong))): run(**{**dict(code='', tests=''), **wrong})

# Plain values

plain = st.recursive(st.none()|st.booleans()|st.integers()|st.floats(allow_nan=False)|st.text(st.characters())|st.binary(),
    lambda s: st.lists(s, max_size=4)|st.tuples(s, s)|st.dictionaries(st.text()|st.integers(), s, max_size=3)|st.frozensets(st.integers()|st.text(), max_size=3), max_leaves=12)

@given(plain)
@settings(max_examples=300, deadline=None)
def test_encode_and_decode_are_inverse(v):
    back = decode(json.loads(encode(v)))
    assert back==v and type(back) is type(v) and len(show(v))<=200 and divergence(v, back)==''

@given(st.recursive(st.none()|st.booleans()|st.floats()|st.text(), lambda s: st.lists(s)|st.dictionaries(st.sampled_from('tszdfibcx'), s, max_size=2), max_leaves=8))
@settings(max_examples=300, deadline=None)
def test_hostile_json_is_a_value_or_a_value_error(v):
    try: encode(decode(v))
    except ValueError: pass

@given(st.text(alphabet='f(1)=:\n assertdefor[]{}"\',<>+-*.@lambd', max_size=80))
@settings(max_examples=300, deadline=None)
def test_any_text_is_a_plan_or_a_problem(text): plan(text, 'f')

ANSWERS = ['"value":{"f":1%s}' % ('0'*400), '"value":{"c":[1%s,0]}' % ('0'*400), '"value":1%s' % ('0'*400), '"value":{"f":null}', '"value":{"f":[]}', '"value":{"i":7}', '"value":{"b":"zz"}',
    '"value":%s%s' % ('['*800, ']'*800), '"odd":%s%s' % ('['*900, ']'*900), '"error":[[%s%s,"",[],1,1,"run"],[]]' % ('['*900, ']'*900), '"error":5', '"error":[["E","t",7,1,1,"run"],[1e999]]',
    '"value":1,"after":5', '"value":1,"after":[[1,2,3],{"z":[1]}]', '"value":1,"after":{"f":1%s}' % ('0'*400)]

def test_no_answer_raises_out_of_a_batch():
    "The program finds `send` and the nonce in its frames and writes what the worker never would"
    forge = """import sys,time
def f(x):
    g = sys._getframe()
    while not ('send' in g.f_globals and 'nonce' in g.f_locals): g = g.f_back
    g.f_globals['send']('{"nonce":"%s",' % g.f_locals['nonce']+BODY+'}')
    time.sleep(9)
"""
    suites = ('assert f(1) == 2', 'def test():\n    for x in (1, 2): assert abs(f(x)-x-.5) < .1')
    good = dict(code='def f(x): return x+.5', tests=suites[1])
    rs = run_batch([dict(code=forge.replace('BODY', repr(a)), tests=t, timeout=.7) for a in ANSWERS for t in suites]+[good])
    assert [r.passed for r in rs]==[False]*2*len(ANSWERS)+[True]

# Missing and broken boxes

def fresh(monkeypatch): monkeypatch.setattr(selftest, '_tested', {})

def script(path, text):
    path.write_text('#!/bin/sh\n'+text)
    path.chmod(0o755)
    for p in (path.parent, *path.parents[1:]):
        if str(p).startswith('/tmp/') and p.stat().st_uid==os.getuid(): p.chmod(p.stat().st_mode|0o055)
    return path

def test_no_bubblewrap(monkeypatch, tmp_path):
    fresh(monkeypatch)
    monkeypatch.setenv('PATH', str(tmp_path))
    with pytest.raises(SandboxUnavailable, match='bubblewrap is not installed'): run('1')

def test_a_bwrap_that_only_runs_its_argument(monkeypatch, tmp_path):
    fresh(monkeypatch)
    base = sys.base_prefix
    script(tmp_path/'bwrap', f'while [ "$1" != -- ]; do shift; done\nshift\nexe=${{1#/py}}\nshift\nexport LD_LIBRARY_PATH="/mnt/lib:{base}/lib"\n[ -x "/mnt$exe" ] && exec "/mnt$exe" "$@"\n'
           f'[ -x "{base}$exe" ] && exec "{base}$exe" "$@"\nexec "$exe" "$@"\n')
    monkeypatch.setenv('PATH', f'{tmp_path}:{os.environ["PATH"]}')
    with pytest.raises(SandboxUnavailable, match='is no sandbox: from inside it was possible to read a file'): run('1')

@pytest.mark.parametrize('text, why', [('echo "bwrap: No permissions to create new namespace, likely because the kernel does not allow non-privileged user namespaces" >&2; exit 1', 'No permissions'),
    ('echo "bwrap: Unknown option --disable-userns" >&2; exit 1', '0.8 or newer'), ('exit 0', 'does not work'), ('sleep 1; kill -9 $$', 'SIGKILL')])
def test_a_bwrap_that_does_not_work(monkeypatch, tmp_path, text, why):
    fresh(monkeypatch)
    script(tmp_path/'bwrap', text)
    monkeypatch.setenv('PATH', f'{tmp_path}:{os.environ["PATH"]}')
    with pytest.raises(SandboxUnavailable, match=why): run('1')

def test_user_namespaces_switched_off():
    "For real: inside a bubblewrap that forbids them"
    code = 'from text2grad.sandbox import *\ntry: print(run("1"))\nexcept SandboxUnavailable as e: print("refused:", e)'
    r = subprocess.run(['bwrap','--unshare-user','--disable-userns','--dev-bind','/','/','--',sys.executable,'-c',code], capture_output=True, text=True, cwd=root, env={**os.environ, 'PYTHONPATH':str(root)})
    assert r.stdout.startswith('refused: There is no sandbox'), r.stdout+r.stderr

def test_each_system_gets_its_own_advice():
    said = [advice(**f) for f in (dict(installed=False), dict(platform='darwin'), dict(platform='win32'), dict(apparmor=True), dict(off='kernel.unprivileged_userns_clone'), dict(container=True))]
    for text,word in zip(said, ('apt install bubblewrap','Docker Desktop','WSL2','/etc/apparmor.d/bwrap','unprivileged_userns_clone=1','seccomp=unconfined')): assert word in text

def test_nothing_weaker_is_ever_chosen(monkeypatch, tmp_path):
    fresh(monkeypatch)
    script(tmp_path/'docker', 'exit 0')
    monkeypatch.setenv('PATH', str(tmp_path))
    for s in ('auto','podman'):
        with pytest.raises(SandboxUnavailable): run('1', sandbox=s)

def test_no_box_means_no_box_in_every_result(monkeypatch):
    fresh(monkeypatch)
    with pytest.warns(UserWarning, match='NOT SANDBOXED'): r = run('1', sandbox='unsafe_subprocess')
    assert (r.tier, 'NOT SANDBOXED' in r.detail, 'background:#b3261e' in r._repr_html_())==('unsafe_subprocess', True, True)

def test_results_escape_what_the_program_wrote():
    r = Result(False, 'failed', (Failure('<img src=x>', 'assertion', error='<script>'),))
    assert '<img' not in r._repr_html_() and '<script' not in r._repr_html_()

def test_commands():
    "Containers cannot be started here; their command can be read"
    cmd = container_command('docker', Limits(), 'n', runsc=True)
    for words in ('--network none','--read-only','--cap-drop ALL','--security-opt no-new-privileges','--pids-limit 16','--memory 512m','--cpus 1','--tmpfs /tmp','--runtime=runsc','--user 65534:65534'): assert words in ' '.join(cmd)
    cmd = ' '.join(bwrap_command('bwrap', 5, 6))
    for words in ('--unshare-all --unshare-user --disable-userns --die-with-parent --new-session --cap-drop ALL','--ro-bind /usr/lib /usr/lib','--size 67108864 --tmpfs /tmp','--remount-ro /dev --remount-ro /','--clearenv','--info-fd 5','--seccomp 6'): assert words in cmd

LOOK = """
import os,re
seen = []
for top in ('/usr', '/py', '/lib', '/opt', '/home', '/root', '/mnt', '/srv'):
    for d,_,fs in os.walk(top):
        ours = re.match('/(usr/|usr/local/|py/|)lib[^/]*/py[^/]*/(site|dist)-packages', d) or 'text2grad' in d
        seen += [os.path.join(d, f) for f in fs if ours or f.endswith(('.jsonl', '.jsonl.gz'))]
print(len(os.listdir('/usr/lib')), seen)
"""

def test_installed_packages_are_covered():
    "Wherever this library lies in the installation that is bound: its tasks hold tests and reference solutions"
    r = run(LOOK, timeout=60.)
    n,_,seen = r.stdout.partition(' ')
    assert int(n)>5 and seen.strip()=='[]', (r.stdout[:2000], r.failures)

@pytest.mark.parametrize('where', ['lib/python3.11/site-packages', 'lib64/python3/dist-packages', 'lib/apps/mine', 'bin/../lib/python3.11/site-packages'])
def test_every_place_for_packages_is_found(where, tmp_path):
    (tmp_path/'bin').mkdir()
    folder = tmp_path/where
    folder.mkdir(parents=True)
    for more in ('share/x', 'envs/y/lib/python3.11/site-packages'): (tmp_path/more).mkdir(parents=True)
    hidden = box_module._packages(str(tmp_path), sys.executable, (str(folder), str(tmp_path/'bin'), str(tmp_path/'share/x'), 'nowhere'))
    assert str(folder.resolve().relative_to(tmp_path)) in map(str, hidden) and not any('share' in str(h) or 'envs' in str(h) for h in hidden)
    shown = box_module._shown(str(tmp_path), '/py', '/mnt')
    assert '/mnt/bin' in shown and not any('envs' in o or 'share' in o for o in shown)

def test_packages_in_an_archive_are_covered(tmp_path, monkeypatch):
    "An egg or a zip on the path, under a folder that is shown: what it holds could be read as well as a folder"
    for d in ('lib/apps', 'share'): (tmp_path/d).mkdir(parents=True)
    eggs = [tmp_path/o for o in ('lib/apps/tasks.egg', 'lib/own.zip', 'share/other.zip', 'lib/python%d%d.zip' % sys.version_info[:2])]
    for e in eggs:
        with zipfile.ZipFile(e, 'w') as z: z.writestr('pkg/tests.jsonl', 'secret')
    hidden = box_module._packages(str(tmp_path), sys.executable, (str(eggs[0]), f'{eggs[1]}/pkg', str(eggs[2]), str(eggs[3])))
    assert list(map(str, hidden))==['lib/apps/tasks.egg', 'lib/own.zip']
    home,_ = box_module.python_inside()
    poem = Path(os.__file__).with_name('this.py').relative_to(home or '/usr') # a file that is shown, in an archive's place
    monkeypatch.setattr(box_module, '_packages', lambda src,*_: (poem,) if src==(home or '/usr') else ())
    code = f"""nonce, = receive()
try: n = len(open('{"/py" if home else "/usr"}/{poem}').read())
except OSError: n = 0
send('{{"nonce":"%s","bytes":%d}}' % (nonce, n))
receive()"""
    with Box(self_test(), code) as box: assert box.ready().ask(seconds=10)=={'bytes':0}
    monkeypatch.setattr(box_module, '_packages', lambda *_: ())
    with Box(self_test(), code) as box: assert box.ready().ask(seconds=10)['bytes']>500

def test_the_python_of_the_box_and_its_library_are_never_covered():
    std = Path(os.__file__).parent
    exe = Path(sys._base_executable).resolve()
    hidden = box_module._packages(sys.base_prefix, exe, (str(std), str(exe.parent), str(std/'lib-dynload'), str(std/'site-packages')))
    assert [str(h) for h in hidden]==[str((std/'site-packages').relative_to(sys.base_prefix))]

def test_the_line_through_a_container(tmp_path):
    "With a program in docker's place that runs the same Python here: only an honest program goes through it, and the self-test refuses it"
    fake = script(tmp_path/'docker', f'[ "$1" = run ] || exit 1\nwhile [ "$1" != python ]; do shift; done\nshift\nexec {sys._base_executable} "$@"\n')
    code = 'import sys\nnonce, = receive()\nprint("out")\nprint("err", file=sys.stderr)\nsys.stdout.flush()\nsend(\'{"nonce":"%s","value":42}\' % nonce)\nreceive()'
    with Box(Tier('docker', str(fake)), code) as box: assert box.ready().ask(seconds=10)=={'value':42}
    assert sorted(box.stdout.split())==[b'err', b'out']
    assert selftest.probe(Tier('docker', str(fake)))[0]=='read a file outside'

# Leftovers

def test_500_runs_leave_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv('TMPDIR', str(tmp_path))
    kinds = ['def f(x): return x', 'def f(x): return 1/0', 'open("/tmp/x", "w").write("y")\ndef f(x): return x', ATTACKS['leave a daemon'], 'import os\nos.fork()\ndef f(x): return x']
    fds = len(os.listdir('/proc/self/fd'))
    rs = run_batch([dict(code=kinds[i%5], tests='assert f(1) == 1', memory_mb=902) for i in range(500)])
    assert [r.passed for r in rs[:3]]==[True, False, True] and all(r.passed is not None for r in rs)
    assert others(str(902<<20))==[] and list(tmp_path.iterdir())==[]
    assert len(os.listdir('/proc/self/fd'))==fds
    assert threading.active_count()==1 or not any('ThreadPool' in t.name for t in threading.enumerate())

def test_an_interrupted_batch_leaves_nothing():
    code = 'import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\nfrom text2grad.sandbox import *\nself_test()\nprint("go", flush=True)\nrun_batch([dict(code="while True: pass", timeout=60., memory_mb=903)]*6)'
    p = subprocess.Popen([sys.executable,'-c',code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=root, env={**os.environ, 'PYTHONPATH':str(root)})
    assert p.stdout.readline()=='go\n'
    time.sleep(.7)
    assert others(str(903<<20))
    start = time.monotonic()
    p.send_signal(signal.SIGINT)
    assert 'KeyboardInterrupt' in p.communicate(timeout=20)[1]
    assert time.monotonic()-start<4 and others(str(903<<20))==[]

def test_a_killed_parent_leaves_nothing():
    code = 'from text2grad.sandbox import *\nself_test()\nprint("go", flush=True)\nrun("import time\\ntime.sleep(60)", timeout=60., memory_mb=904)'
    p = subprocess.Popen([sys.executable,'-c',code], stdout=subprocess.PIPE, text=True, cwd=root, env={**os.environ, 'PYTHONPATH':str(root)})
    assert p.stdout.readline()=='go\n'
    time.sleep(.5)
    assert others(str(904<<20))
    p.kill()
    p.wait()
    time.sleep(.5)
    assert others(str(904<<20))==[]

# Boxes

def test_a_box_that_never_reads_is_ended():
    with Box(self_test(), 'import time\nnonce, = receive()\nsend(\'{"nonce":"%s"}\' % nonce)\ntime.sleep(60)') as box:
        box.ready().ask(seconds=5)
        start = time.monotonic()
        with pytest.raises(BoxError, match='no answer'): box.ask('x'*10_000_000, seconds=.3)
        assert time.monotonic()-start<1

def test_a_box_that_never_stops_talking_is_ended():
    with Box(self_test(), 'while True: send("x"*1000)') as box:
        with pytest.raises(BoxError): box.ready().ask(seconds=3)
    with Box(self_test(), 'receive()\nimport posix\nwhile True: posix.write(out if "out" in globals() else 3, b"x"*1000)') as box:
        with pytest.raises(BoxError): box.ready().ask(seconds=3)

def test_batches_keep_their_order_and_name_a_bad_job():
    rs = run_batch(({'code':f'print({k})'} for k in range(12)), workers=3)
    assert [r.stdout for r in rs]==[f'{k}\n' for k in range(12)] and run_batch([])==[]
    with pytest.raises(ValueError, match="job 1: unknown argument 'test'"): run_batch([dict(code=''), dict(code='', test='')])

# Real solutions

EQUIVALENT = {51:1, 116:1, 134:1}   # HumanEval problems whose first mutant does what the original does; the next one is taken

def test_humaneval():
    "164 solutions pass, 164 mutants fail. That a mutant is wrong is known from running it with its tests as one program, without stand-ins or verdicts"
    exs = load_humaneval()
    jobs = [dict(tests=e.meta['tests'], entry_point=e.meta['entry_point'], setup=e.meta['description']) for e in exs]
    wrong = []
    for i,e in enumerate(exs):
        ms = mutants(e.reference[0], e.meta['entry_point'])
        for _ in range(EQUIVALENT.get(i, 0)): next(ms)
        wrong.append(next(ms))
    good = run_batch([dict(j, code=e.reference[0]) for j,e in zip(jobs, exs)])
    assert [e.meta['id'] for e,r in zip(exs, good) if not r.passed or r.n_passed!=r.n_tests]==[]
    bad = run_batch([dict(j, code=c) for j,c in zip(jobs, wrong)])
    alone = run_batch([dict(code=f'{c}\n\n{j["tests"]}', setup=j['setup']) for j,c in zip(jobs, wrong)])
    assert [e.meta['id'] for e,r in zip(exs, alone) if r.passed is not False]==[], 'this mutant is equivalent: choose the next'
    assert [e.meta['id'] for e,r in zip(exs, bad) if r.passed is not False]==[]
    assert len(good)==len(bad)==164 and all(r.failures for r in bad)

def test_programs_that_are_planned_side_by_side_do_not_fail_each_other():
    "CPython 3.11 raises SystemError where two threads build a syntax tree at once and collecting garbage lets them change places"
    import gc
    class Slow:
        def __init__(self): self.me = self
        def __del__(self): sum(range(50))
    wrong,often,turns = [],gc.get_threshold(),sys.getswitchinterval()
    def work(k):
        for i in range(30):
            Slow()
            job = dict(tests='\n'.join(f'assert f({j})=={k*100+i}' for j in range(60)), entry_point=None, setup='')
            try: runner._planned(job)
            except SystemError as e: wrong.append(e)
    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    gc.set_threshold(5); sys.setswitchinterval(1e-6)
    try:
        for t in threads: t.start()
        for t in threads: t.join()
    finally: gc.set_threshold(*often); sys.setswitchinterval(turns)
    assert not wrong

NEAR = {r['entry_point']:r['wrong'] for r in read_jsonl(Path(__file__).parent/'near_misses.jsonl')}
def test_the_bundled_task():
    "In the real sandbox every reference passes and every near miss fails; 40 functions are one program, so that all of it takes a few runs"
    task = load_task('code')
    exs = [*task.train, *task.heldout]
    assert {e.meta['entry_point'] for e in exs}==set(NEAR) and all(len(set(w))>=2 for w in NEAR.values())
    parts = [exs[i:i+40] for i in range(0, len(exs), 40)]
    def failed(source):
        "For each function how many of its tests fail if its program is `source(example)`"
        jobs = [dict(code='\n'.join(source(e) for e in part), tests=''.join(e.meta['tests'] for e in part), timeout=30.) for part in parts]
        rs = run_batch(jobs)
        assert [r.detail for r in rs if r.passed is None]==[] and [r.n_tests for r in rs]==[j['tests'].count('assert') for j in jobs]
        n = Counter(re.search(r'\b(\w+)\(', f.test)[1] for r in rs for f in r.failures)
        return [n[e.meta['entry_point']] for e in exs]
    assert [(e.meta['id'], n) for e,n in zip(exs, failed(lambda e: e.reference[0])) if n]==[]
    for k in (0, 1): assert [(e.meta['id'], NEAR[e.meta['entry_point']][k]) for e,n in zip(exs, failed(lambda e: NEAR[e.meta['entry_point']][k])) if not n]==[]
