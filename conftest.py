"One `pytest` runs everything: notebooks are collected as tests and run by nbdev's own `test_nb`, so directives mean what they mean there"
import logging,os,signal
from contextlib import contextmanager
for name in ('OMP_NUM_THREADS', 'MKL_NUM_THREADS', 'OPENBLAS_NUM_THREADS'): os.environ.setdefault(name, '1')
os.environ.setdefault('TOKENIZERS_PARALLELISM', 'false')

import pytest
from nbdev.config import get_config
from nbdev.test import test_nb as run_nb

def pytest_addoption(parser): parser.addoption('--flags', default='', help='tst_flags whose cells to run too, e.g. "slow"')

def pytest_collect_file(file_path, parent):
    if file_path.suffix=='.ipynb' and file_path.name[0] not in '._':
        return NbFile.from_parent(parent, path=file_path)

class NbFile(pytest.File):
    def collect(self): yield NbItem.from_parent(self, name=self.path.stem)

@contextmanager
def as_before():
    "What a notebook changes in this process ends with it: signal handlers, how much is logged, the environment"
    handlers = {s:signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)}
    logger,env = logging.getLogger('text2grad'),dict(os.environ)
    level = logger.level
    try: yield
    finally:
        for s,h in handlers.items(): signal.signal(s, h or signal.SIG_DFL)
        logger.setLevel(level)
        os.environ.clear(); os.environ.update(env)

class NbItem(pytest.Item):
    def runtest(self):
        cfg = get_config(self.path.parent)
        with as_before(): ok,_ = run_nb(self.path, skip_flags=cfg.tst_flags.split(), force_flags=self.config.getoption('--flags').split(),
                      basepath=cfg.config_path, cell_timeout=cfg.cell_timeout)
        if not ok: raise AssertionError(f'{self.path} failed: its traceback is in the captured stderr')
    def repr_failure(self, excinfo): return str(excinfo.value)
    def reportinfo(self): return self.path, None, f'notebook {self.path.name}'
