"""Processes of their own that begin with everything imported

A run of two steps on a toy model takes a second, importing torch, transformers and peft ten. A process that has imported them
forks for each test (`multiprocessing`'s forkserver): what is tested, signals, kills and locks, is that of any process.
"""
import multiprocessing,os,subprocess,sys,tempfile
from pathlib import Path

_server = multiprocessing.get_context('forkserver')
_server.set_forkserver_preload(['pytest', 'hypothesis', 'torch', 'transformers', 'transformers.models.llama.modeling_llama', 'peft', 'text2grad.span_ppo',
                                'text2grad.evaluation', 'text2grad.critics', 'text2grad.data', 'text2grad.cli.command'])

def _begin(call, args, streams):
    for fd,path in zip((1, 2), streams): os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), fd)
    sys.exit(call(*args))

class Child:
    "`call(*args)` in a process of its own; its result is the exit code. As `subprocess.Popen` where a test needs it"
    def __init__(self,
        call,   # A function of a module
        *args,  # Its arguments
        folder, # Where what it prints is kept
    ):
        self.streams = [Path(tempfile.mkstemp(dir=folder)[1]) for _ in range(2)]
        self.process = _server.Process(target=_begin, args=(call, args, self.streams))
        self.process.start()
    pid = property(lambda self: self.process.pid)
    returncode = property(lambda self: self.process.exitcode)
    def poll(self): return self.process.exitcode
    def send_signal(self, sig):
        if self.poll() is None: os.kill(self.pid, sig)
    def kill(self): self.process.kill()
    def wait(self, timeout=None):
        self.process.join(timeout)
        if self.returncode is None: raise subprocess.TimeoutExpired(repr(self.process), timeout)
        return self.returncode
    def communicate(self, timeout=None):
        self.wait(timeout)
        return self.said()
    def said(self): return [p.read_text() for p in self.streams]
