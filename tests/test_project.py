"What no notebook can show: that the files around the notebooks agree with each other, and that imports point down and stay light"
import ast,re,subprocess,sys,tomllib
from configparser import ConfigParser
from pathlib import Path
import pytest
from fastcore.nbio import read_nb

root = Path(__file__).resolve().parent.parent
modules = {}
for f in sorted((root/'nbs').glob('[0-9]*.ipynb')):
    code = '\n'.join(c.source for c in read_nb(f).cells if c.cell_type=='code')
    if m := re.search(r'#\|\s*default_exp\s+(\S+)', code): modules[m[1]] = f

def imports(name):
    "Rooms that a module imports, at any depth of its code"
    tree,found = ast.parse((root/'text2grad'/f'{name}.py').read_text()),set()
    for n in ast.walk(tree):
        if isinstance(n, ast.ImportFrom) and n.level==1 and n.module: found.add(n.module.split('.')[0])
        if isinstance(n, ast.ImportFrom) and (n.module or '').startswith('text2grad.'): found.add(n.module.split('.')[1])
    return found

def python(code):
    r = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=root)
    assert r.returncode==0, r.stderr
    return r.stdout.strip()

@pytest.mark.parametrize('name', modules)
def test_imports_point_down(name):
    above = list(modules)[:list(modules).index(name)]
    wrong = imports(name)-set(above)
    assert not wrong, f'{name} imports {wrong}, which stand below it'

def test_every_module_comes_from_a_notebook():
    made = {p.stem for p in (root/'text2grad').glob('*.py')}-{'__init__','_modidx'}
    assert made==set(modules)

def test_settings_agree():
    ini = ConfigParser(delimiters=['='])
    ini.read(root/'settings.ini')
    toml = tomllib.loads((root/'pyproject.toml').read_text())
    assert ini['DEFAULT']['lib_name']==toml['project']['name']
    assert (root/ini['DEFAULT']['lib_path']/'__init__.py').exists()
    for script in ini['DEFAULT']['console_scripts'].split():
        module,func = script.split('=')[1].split(':')
        assert func in (root/f'{module.replace(".", "/")}.py').read_text()

def test_constraints_pin_every_requirement():
    ini = ConfigParser(delimiters=['='])
    ini.read(root/'settings.ini')
    name = lambda r: re.match(r'[\w.-]+', r)[0].lower().replace('_', '-')
    pinned = {name(l) for l in (root/'constraints.txt').read_text().splitlines() if l.strip() and not l.startswith('#')}
    wanted = {name(r) for k,v in ini['DEFAULT'].items() if k.endswith('requirements') for r in v.split()}
    assert wanted<=pinned, f'constraints.txt has no pin for {wanted-pinned}'

def test_import_is_light():
    out = python('import sys,time; t=time.perf_counter(); import text2grad; d=time.perf_counter()-t; print(d, "torch" in sys.modules)')
    seconds,torch = out.split()
    assert float(seconds)<.3 and torch=='False'

@pytest.mark.parametrize('name', ['core','alignment','show','tasks','critics'])
def test_low_rooms_import_no_torch(name):
    out = python(f'import sys, text2grad.{name}; print([m for m in ("torch","transformers","matplotlib","datasets") if m in sys.modules])')
    assert out=='[]'

def test_sidebar_lists_every_notebook():
    text = (root/'nbs'/'sidebar.yml').read_text()
    missing = [f.name for f in modules.values() if f.name not in text]
    assert not missing, f'nbs/sidebar.yml does not list {missing}'

def test_readme_install_command_uses_the_constraints():
    line = next(l for l in (root/'README.md').read_text().splitlines() if l.startswith('pip install'))
    assert '-c constraints.txt' in line
