"Programs that do not want to be judged, and mutants of programs that are right. They run only in a box"
import ast
from textwrap import dedent

# Each attack prints PWNED if it got what it wanted. `{file}`, `{folder}`, `{port}`, `{udp}`, `{socket}`, `{name}` and `{pid}` are the canaries'.
ATTACKS = {
'read /etc/passwd': "print('PWNED', open('/etc/passwd').read())",
'read a file': "print('PWNED', open({file!r}).read())",
'read an environment variable': """
    import os
    for p in ['self', *filter(str.isdigit, os.listdir('/proc'))]:
        try:
            if {name!r} in open(f'/proc/{{p}}/environ').read(): print('PWNED')
        except OSError: pass
    if {name!r} in os.environ: print('PWNED')""",
'write a file': "open({file!r}, 'w').write('pwned'); print('PWNED')",
'create a file in a folder': "open({folder!r}+'/pwned', 'w').write('pwned'); print('PWNED')",
'overwrite the interpreter': """
    import sys, os
    for p in (sys.executable, os.__file__, '/usr/bin/env', '/bin/sh'):
        try: open(p, 'r+b'); print('PWNED', p)
        except OSError: pass""",
'connect to 127.0.0.1': "import socket; socket.create_connection(('127.0.0.1', {port}), 2); print('PWNED')",
'send a datagram': """
    import socket
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.sendto(b'pwned', ('127.0.0.1', {udp}))""",
'connect to a Unix socket': """
    import socket
    for a in ({socket!r}, '\\0text2grad-canary'):
        try:
            s = socket.socket(socket.AF_UNIX); s.connect(a); print('PWNED')
        except OSError: pass""",
'undo a guard in the process': """
    import importlib, os, builtins, io, posix, ctypes
    for read in (lambda p: importlib.reload(io).open(p).read(), lambda p: posix.read(posix.open(p, 0), 9),
                 lambda p: ctypes.CDLL(None).open(p.encode(), 0)>=0 or 1/0, lambda p: os.popen('cat '+p).read() or 1/0):
        try: read({file!r}); print('PWNED')
        except Exception: pass""",
'see other processes': """
    import os
    n = [p for p in os.listdir('/proc') if p.isdigit()]
    if len(n)>2: print('PWNED', n)""",
'kill the parent': """
    import os, signal
    for p in (os.getppid(), {pid}, 1, -1):
        for s in (signal.SIGSTOP, signal.SIGTERM, signal.SIGKILL):
            try: os.kill(p, s)
            except OSError: pass""",
'trace the parent': """
    import ctypes, os
    for p in ({pid}, 1, os.getppid()):
        if ctypes.CDLL(None).ptrace(16, p, 0, 0)==0 and p!=1: print('PWNED')""",
'make a user namespace': """
    import ctypes, subprocess
    if ctypes.CDLL(None).unshare(0x10000000)==0: print('PWNED')
    if subprocess.run(['/usr/bin/unshare', '-Urn', '/bin/true'], stderr=-3).returncode==0: print('PWNED')""",
'mount over a folder': """
    import ctypes
    libc = ctypes.CDLL(None)
    for t in (b'/tmp', b'/usr', b'/'):
        if libc.mount(b'none', t, b'tmpfs', 0, None)==0: print('PWNED')
    if libc.umount2(b'/usr', 2)==0: print('PWNED')""",
'become root': """
    import os, subprocess
    for f in (lambda: os.setuid(0), lambda: os.setgid(0), lambda: os.setgroups([0]), lambda: os.chroot('/tmp')):
        try: f(); print('PWNED')
        except OSError: pass
    r = subprocess.run(['/usr/bin/su', '-c', 'id'], capture_output=True, stdin=-3, text=True)
    if 'uid=0' in r.stdout: print('PWNED')""",
'fork 300 times': """
    import os, time
    n = 0
    for _ in range(300):
        try:
            if os.fork()==0: time.sleep(5); os._exit(0)
            n += 1
        except OSError: break
    if n>16: print('PWNED', n)""",
'start 300 threads': """
    import threading, time
    n = 0
    try:
        for _ in range(300):
            threading.Thread(target=time.sleep, args=(5,), daemon=True).start()
            n += 1
    except RuntimeError: pass
    if n>16: print('PWNED', n)
    import os; os._exit(0)""",
'take 4 GB of memory': "x = bytearray(4<<30); print('PWNED')",
'fill the shared memory': """
    for d in ('/dev/shm', '/dev', '/', '/run', '/var/tmp', '/proc'):
        try: open(d+'/pwned', 'wb').write(b'x'*4096); print('PWNED', d)
        except OSError: pass""",
'take System V memory': """
    import ctypes
    libc,n = ctypes.CDLL(None),0
    libc.shmat.restype = ctypes.c_void_p
    for _ in range(24):
        k = libc.shmget(0, 16<<20, 0o1600)
        a = libc.shmat(k, None, 0) if k>=0 else None
        if a in (None, 2**64-1): break
        ctypes.memset(a, 1, 16<<20)
        libc.shmdt(ctypes.c_void_p(a))
        n += 16
    if n>128 or libc.msgget(0, 0o1600)>=0 or libc.semget(0, 8, 0o1600)>=0: print('PWNED', n)""",
'write a file of 256 MB': """
    n,f = 0,open('/tmp/big', 'wb')
    for _ in range(256): n += f.write(bytes(1<<20)); f.flush(); print('PWNED') if n>17<<20 else None""",
'fill the disk with small files': """
    n = 0
    try:
        for i in range(200):
            with open(f'/tmp/{{i}}', 'wb') as f: n += f.write(bytes(1<<20))
    except OSError: pass
    if n>64<<20: print('PWNED', n)""",
'open 1000 files': """
    fs = []
    try:
        for _ in range(1000): fs.append(open('/dev/null'))
    except OSError: pass
    if len(fs)>64: print('PWNED', len(fs))""",
'raise its own limits': """
    import resource
    for name in ('CPU','AS','FSIZE','NOFILE','NPROC','CORE'):
        try: resource.setrlimit(getattr(resource, 'RLIMIT_'+name), (resource.RLIM_INFINITY,)*2); print('PWNED', name)
        except (ValueError, OSError): pass""",
'loop without end': "while True: pass",
'loop and ignore every signal': """
    import signal
    for s in range(1, 65):
        try: signal.signal(s, signal.SIG_IGN)
        except (OSError, ValueError): pass
    signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
    while True: pass""",
'sleep for an hour': "import time; time.sleep(3600)",
'flood the output': "while True: print('x'*1000)",
'flood the errors': "import sys\nwhile True: sys.stderr.write('x'*1000)",
'leave a daemon': """
    import os, time
    if os.fork()==0:
        os.setsid()
        if os.fork()==0:
            for fd in range(64):
                try: os.close(fd)
                except OSError: pass
            time.sleep(60)
        os._exit(0)
    os._exit(0)""",
'use an inherited file': """
    import os
    for fd in range(3, 256):
        try: p = os.readlink(f'/proc/self/fd/{{fd}}')
        except OSError: continue
        if not p.startswith(('pipe:', '/dev/null', '/proc', '/memfd:')): print('PWNED', p)""",
'type on the terminal': """
    import fcntl, os, termios
    for p in ('/dev/tty', 0, 1, 2):
        try:
            fd = os.open(p, os.O_RDWR) if isinstance(p, str) else p
            fcntl.ioctl(fd, termios.TIOCSTI, b'x'); print('PWNED')
        except OSError: pass""",
'write to the kernel': """
    for p in ('/proc/sys/kernel/hostname', '/proc/sysrq-trigger', '/proc/sys/kernel/core_pattern', '/sys/power/state'):
        try: open(p, 'w').write('x'); print('PWNED', p)
        except OSError: pass""",
'crash': "import ctypes; ctypes.string_at(0)",
'recurse without end': "import sys; sys.setrecursionlimit(10**9)\nf = lambda: f()\nf()",
}
ATTACKS = {k: dedent(v).strip() for k,v in ATTACKS.items()}
HARMLESS = ('read /etc/passwd', 'read a file', 'write a file', 'create a file in a folder', 'connect to 127.0.0.1', 'send a datagram',
            'connect to a Unix socket', 'undo a guard in the process', 'see other processes')   # also tried without a box: they must work there

# Each forgery defines `double` without computing it. The tests ask for double(4) == 8, double('secret-ab') == 'secret-absecret-ab', and that double(None) raises TypeError.
FORGERIES = {
'print that all is well': "print('2 passed\\nOK\\nPASS')\ndef double(x): return None",
'exit with 0 in a call': "import os\ndef double(x): os._exit(0)",
'exit with 0 at once': "import os\nos._exit(0)",
'SystemExit in a call': "def double(x): raise SystemExit(0)",
'SystemExit at once': "def double(x): return 0\nraise SystemExit(0)",
'atexit': "import atexit, os\natexit.register(lambda: (print('PASS'), os._exit(0)))\ndef double(x): return 0",
'an object that equals everything': """
    class Yes:
        __eq__ = lambda self,o: True
        __ne__ = lambda self,o: False
        __hash__ = lambda self: 0
    def double(x): return Yes()""",
'a str that equals everything': """
    class Yes(str):
        __eq__ = lambda self,o: True
        __hash__ = str.__hash__
    def double(x): return Yes('8')""",
'an int that equals everything': """
    class Yes(int):
        __eq__ = lambda self,o: True
        __hash__ = int.__hash__
    def double(x): return Yes(8)""",
'a list of such objects': """
    class Yes(int):
        __eq__ = lambda self,o: True
    def double(x): return [Yes()]""",
'other builtins': """
    import builtins
    for n in ('isinstance', 'type', 'len', 'repr', 'str', 'all', 'any', 'AssertionError', 'Exception'): setattr(builtins, n, lambda *a, **k: True)
    def double(x): return 1""",
'no AssertionError': """
    import builtins
    builtins.AssertionError = type('E', (BaseException,), {})
    builtins.__build_class__ = None
    def double(x): return 1""",
'other modules': """
    import sys, types
    fake = types.ModuleType('json')
    fake.dumps = fake.loads = lambda *a, **k: True
    for n in ('json', '_json', 'marshal', 'posix', 'solution', 'pytest', 'unittest'): sys.modules[n] = fake
    def double(x): return 1""",
'answers written in advance': """
    import os
    for fd in range(3, 64):
        for text in ('{"nonce":"","value":8}', '{"value":8}', '{"ready":1}', '{"nonce":null,"value":8}', '8'):
            try: os.write(fd, (text+'\\n').encode())
            except OSError: pass
    def double(x): return 1""",
'the nonce, used twice': """
    import sys
    def double(x):
        f = sys._getframe()
        while f and 'nonce' not in f.f_locals: f = f.f_back
        f = f or sys._getframe()
        while f:
            if 'send' in f.f_globals and 'nonce' in f.f_locals:
                for v in ('8', '"secret-absecret-ab"'): f.f_globals['send']('{"nonce":"%s","value":%s}' % (f.f_locals['nonce'], v))
                return 1
            f = f.f_back
        return 1""",
'a fault that looks like ours': """
    import sys
    f = sys._getframe()
    while f and not ('send' in f.f_globals and 'nonce' in f.f_locals): f = f.f_back
    for body in ('"begun":1', '"unsupported":"x"', '"ready":1', '"error":[["E","",[],null,null,"setup"],[]]'):
        if f: f.f_globals['send']('{"nonce":"%s",%s}' % (f.f_locals['nonce'], body))
    def double(x): return 1""",
'hang up the line': """
    import os
    os.closerange(0, 256)
    def double(x): return 1""",
'read the tests': """
    import gc, os, sys
    def double(x):
        want = 'absecret'
        for o in gc.get_objects():
            try:
                for v in (o.values() if isinstance(o, dict) else o if isinstance(o, (list, tuple, set)) else ()):
                    if isinstance(v, str) and want in v and v.count('secret-ab')>1 and 'want' not in v: return v
            except Exception: pass
        for d in os.listdir('/proc'):
            for f in ('cmdline', 'environ', 'maps'):
                try:
                    if want in open(f'/proc/{d}/{f}').read(): return 'found'
                except (OSError, UnicodeDecodeError): pass
        f = sys._getframe()
        while f:
            for v in f.f_locals.values():
                if isinstance(v, (str, bytes)) and 'assert' in str(v)[:9]: return 'found'
            f = f.f_back
        return None""",
'trace the judge': """
    import sys
    def trace(frame, event, arg):
        if 'value' in frame.f_locals: frame.f_locals['value'] = True
        return trace
    sys.settrace(trace); sys.setprofile(lambda *a: None)
    def double(x): return 1""",
'sleep until it is over': "import time\ndef double(x): time.sleep(60)",
'sleep until the tests give up': "import time\ndef double(x): time.sleep(.7); return 1",
'answer twice, from a child': """
    import os
    def double(x):
        return 1 if os.fork() else 8""",
'a value that is too large': "def double(x): return 'x'*900_000",
'a value that is nested too deeply': """
    def double(x):
        v = []
        for _ in range(100_000): v = [v]
        return v""",
'thousands of keys with one hash': "def double(x): return {k*(2**61-1) for k in range(4_000)}",
'an interrupt': "def double(x): raise KeyboardInterrupt",
'an exception of its own': "class E(BaseException): pass\ndef double(x): raise E",
'TypeError for everything': "def double(x): raise TypeError('no')",
'give up on memory': "def double(x): return bytearray(4<<30)",
}
FORGERIES = {k: dedent(v).strip() for k,v in FORGERIES.items()}
SIMPLE = "assert double(4) == 8\nassert double('secret-ab') == 'secret-absecret-ab'\n"
BOXED = """
import pytest
def test_values():
    for x,y in ((4, 8), ('secret-ab', 'secret-absecret-ab')): assert double(x) == y
def test_raises():
    with pytest.raises(TypeError): double(None)
"""

_swap = {ast.Eq:ast.NotEq, ast.NotEq:ast.Eq, ast.Lt:ast.GtE, ast.LtE:ast.Gt, ast.Gt:ast.LtE, ast.GtE:ast.Lt, ast.In:ast.NotIn, ast.NotIn:ast.In,
         ast.Add:ast.Sub, ast.Sub:ast.Add, ast.Mult:ast.Add, ast.Div:ast.Mult, ast.FloorDiv:ast.Mult, ast.Mod:ast.Add, ast.And:ast.Or, ast.Or:ast.And}

def _change(n):
    "Change one node; False if there is nothing to change"
    if isinstance(n, ast.Compare) and type(n.ops[0]) in _swap: n.ops[0] = _swap[type(n.ops[0])]()
    elif isinstance(n, (ast.BinOp,ast.BoolOp,ast.AugAssign)) and type(n.op) in _swap: n.op = _swap[type(n.op)]()
    elif isinstance(n, ast.Constant) and type(n.value) in (int,float): n.value += 1
    elif isinstance(n, ast.Constant) and type(n.value) is bool: n.value = not n.value
    elif isinstance(n, ast.Constant) and type(n.value) is str: n.value += 'x'
    elif isinstance(n, ast.UnaryOp) and isinstance(n.op, ast.Not): n.op = ast.UAdd()
    elif isinstance(n, ast.Return) and n.value is not None: n.value = ast.Tuple([n.value], ast.Load())
    else: return False
    return True

def mutants(code, entry_point):
    "Every program that differs from `code` by one change in the function `entry_point`, changes deep in its body first"
    def body(tree):
        f = next(n for n in reversed(tree.body) if isinstance(n, ast.FunctionDef) and n.name==entry_point)
        docs = {id(s.value) for s in ast.walk(f) if isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant)}
        return [n for s in f.body for n in ast.walk(s) if id(n) not in docs][::-1]
    for i in range(len(body(ast.parse(code)))):
        tree = ast.parse(code)
        if _change(body(tree)[i]): yield ast.unparse(tree)
