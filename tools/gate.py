"""Fail if exporting, cleaning or rewriting the README changes anything, or a type hint is wrong: `python tools/gate.py`.

It works on a copy, so a checkout is never touched, and it needs no git."""
import filecmp,os,shutil,subprocess,sys,tempfile
from pathlib import Path

root = Path(__file__).resolve().parent.parent
skip = shutil.ignore_patterns('.git', '.venv', 'runs', '_proc', '_docs', '*.egg-info', '__pycache__', '.pytest_cache', '.hypothesis', '.ipynb_checkpoints', 'build', 'dist')

def run(*cmd, cwd): subprocess.run(cmd, cwd=cwd, check=True, env=os.environ | dict(PYTHONPATH=str(cwd)))

with tempfile.TemporaryDirectory() as tmp:
    copy = Path(tmp)/root.name
    shutil.copytree(root, copy, ignore=skip, symlinks=True)
    run('nbdev-export', cwd=copy)
    run('nbdev-clean', cwd=copy)
    files = [p.relative_to(copy) for pat in ('nbs/**/*.ipynb','index.ipynb','text2grad/**/*.py') for p in copy.glob(pat)]
    changed = [str(f) for f in files if not (root/f).exists() or not filecmp.cmp(root/f, copy/f, shallow=False)]
    run(sys.executable, 'tools/readme.py', '--check', cwd=copy)
    run(sys.executable, '-m', 'ty', 'check', '--python', sys.prefix, cwd=copy)
if changed: sys.exit(f'{", ".join(sorted(changed))}: not what nbdev-export and nbdev-clean write; run both and commit')
print(f'{len(files)} notebooks and modules agree')
