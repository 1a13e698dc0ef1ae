"What no notebook can show: that the files around the notebooks agree with each other, and that imports point down and stay light"
import ast,builtins,functools,re,subprocess,sys,tomllib
from configparser import ConfigParser
from pathlib import Path
import pytest
from fastcore.nbio import read_nb

root = Path(__file__).resolve().parent.parent
wings = ['files','core','text','pretrained','loaded','checkpoints','processes','alignment','viz','sandbox','data','critics','evaluation','span_ppo','reward_model','app','cli','all']
light = ['files','core','alignment','viz','sandbox','data','critics','evaluation']

def exported(f):
    m = re.search(r'#\|\s*default_exp\s+(\S+)', '\n'.join(c.source for c in read_nb(f).cells if c.cell_type=='code'))
    return m and m[1]

notebooks = {f:exported(f) for f in sorted((root/'nbs').rglob('*.ipynb')) if not f.is_symlink() and '.ipynb_checkpoints' not in f.parts}
modules = {m:f for f,m in notebooks.items() if m}
faces = {m.removesuffix('.__init__') for m in modules if m.endswith('.__init__')}

def path_of(name): return root/'text2grad'/f'{name.replace(".", "/")}.py'

def imported(name):
    "`(module, name)` of what a module imports from this library, relative or not, at any depth of its code"
    package = ['text2grad', *name.split('.')[:-1]]
    for n in ast.walk(ast.parse(path_of(name).read_text())):
        if not isinstance(n, ast.ImportFrom): continue
        base = package[:len(package)-n.level+1] if n.level else []
        source = [*base, *(n.module.split('.') if n.module else [])]
        if source[:1]!=['text2grad']: continue
        for a in n.names:
            inner = '.'.join([*source[1:], a.name])                              # `from text2grad.viz import color`
            yield (inner, '') if inner in modules or inner in faces else ('.'.join(source[1:]), a.name)

def place(name):
    "Where a module stands: floor of its wing, then its number in the wing"
    wing = name.split('.')[0]
    number = modules[name].stem.split('_')[0] if name in modules else '99'       # a face stands above its wing's modules
    return wings.index(wing),int(number) if number.isdigit() else 99

def python(code):
    r = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=root)
    assert r.returncode==0, r.stderr
    return r.stdout.strip()

@pytest.mark.parametrize('name', modules)
def test_imports_point_down(name):
    wrong = {m for m,_ in imported(name) if m and place(m)>=place(name)}
    assert not wrong, f'{name} imports {wrong}, which stand above it'

@pytest.mark.parametrize('name', modules)
def test_no_private_name_crosses_a_wing(name):
    wing = name.split('.')[0]
    wrong = {f'{m}.{n}' for m,n in imported(name) if n.startswith('_') and n!='__version__' and m.split('.')[0]!=wing}
    assert not wrong, f'{name} imports {wrong}'

@pytest.mark.parametrize('name', modules)
def test_path_is_module(name):
    f = modules[name].relative_to(root/'nbs')
    last = '__init__' if f.stem=='index' else re.fullmatch(r'\d\d_(\w+)', f.stem)[1]
    assert name=='.'.join([*f.parent.parts, last])

def test_every_module_comes_from_a_notebook():
    made = {'.'.join(p.relative_to(root/'text2grad').with_suffix('').parts) for p in (root/'text2grad').rglob('*.py')}-{'__init__','__main__','_modidx'}
    assert made==set(modules)

def test_every_wing_has_a_face():
    assert faces=={m.split('.')[0] for m in modules if '.' in m}

@pytest.mark.parametrize('wing', sorted(faces))
def test_a_face_gives_what_it_lists(wing):
    "No public name may be that of a module of the wing: which of the two `from wing import name` gave would depend on what was imported before"
    names = set(python(f'import text2grad.{wing} as w; print(*w.__all__); assert all(hasattr(w, n) for n in w.__all__)').split())
    assert names and not names & {m.split('.')[1] for m in modules if m.startswith(f'{wing}.')}

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
    seconds,heavy = python('import sys,time; t=time.process_time(); import text2grad; d=time.process_time()-t; '
                           'print(d, [m for m in ("torch","numpy") if m in sys.modules])').split(' ', 1)
    assert float(seconds)<.05 and heavy=='[]'

def test_the_lazy_face_gives_every_name_and_what_is_light_stays_light():
    n,heavy = python('import sys, text2grad as t; [getattr(t, n) for n in t.__all__ if t._home[n] not in ("span_ppo","reward_model","pretrained","checkpoints")]; '
                     'heavy = "torch" in sys.modules; [getattr(t, n) for n in t.__all__]; t.app, t.cli; print(len(t.__all__), heavy)').split()
    assert int(n)>40 and heavy=='False'
    python('from text2grad import align,load_task; assert load_task("summarize").train and align.__module__.startswith("text2grad.alignment")')
    assert 'has no attribute' in python('import text2grad\ntry: text2grad.nonsense\nexcept AttributeError as e: print(e)')

@pytest.mark.parametrize('name', light)
def test_low_wings_import_no_torch(name):
    out = python(f'import sys, text2grad.{name}; print([m for m in ("torch","transformers","matplotlib","datasets") if m in sys.modules])')
    assert out=='[]'

@pytest.mark.parametrize('name', modules)
def test_no_exported_line_over_140_characters(name):
    lines = path_of(name).read_text('utf-8').splitlines()
    assert not [(i, len(l)) for i,l in enumerate(lines, 1) if len(l)>140]

def test_sidebar_lists_every_notebook():
    text = (root/'nbs'/'sidebar.yml').read_text()
    missing = [p for f in notebooks if (p := f.relative_to(root/'nbs').as_posix()) not in text]
    assert not missing, f'nbs/sidebar.yml does not list {missing}'

tutorials = sorted((root/'nbs'/'tutorials').glob('*.ipynb'))

@pytest.mark.parametrize('f', tutorials, ids=lambda f: f.stem)
def test_a_tutorial_reads_as_the_others_do(f):
    cells = read_nb(f).cells
    code = [c.source for c in cells if c.cell_type=='code']
    prose = '\n'.join(c.source for c in cells if c.cell_type=='markdown')
    assert 'At the end of this page' in prose and '\n## Where next\n' in '\n'+prose
    assert f'blob/main/nbs/tutorials/{f.name}' in prose or not code # a badge, where there is something to run
    assert not [l for s in code for l in s.splitlines() if len(l)>130 or 'import *' in l or '.meta|' in l.replace(' ', '')]

def test_a_tutorial_keeps_what_its_slow_cells_showed():
    for f in tutorials:
        lost = [c.source for c in read_nb(f).cells if c.source.startswith('#| slow') and re.search(r'\bprint\(|plot_', c.source) and not c.outputs]
        assert not lost, f'{f.name}: {lost}'

def test_sidebar_lists_the_tutorials_in_their_order():
    text = (root/'nbs'/'sidebar.yml').read_text()
    assert re.findall(r'tutorials/(\S+)', text)==[f.name for f in tutorials]

def test_readme_install_command_uses_the_constraints():
    line = next(l for l in (root/'README.md').read_text().splitlines() if l.startswith('pip install'))
    assert '-c constraints.txt' in line

def test_the_details_of_ppo_name_tests_that_exist():
    text = '\n'.join(c.source for c in read_nb(root/'nbs'/'explanations'/'ppo_details.ipynb').cells)
    named = re.findall(r'`(test_\w+\.py)::(test_\w+)`', text)
    lost = [(f, t) for f,t in named if f'def {t}(' not in (root/'tests'/f).read_text()]
    rows = [int(n) for n in re.findall(r'^\| (\d+) \|', text, re.M)]
    assert not lost and sorted(rows)==[n for n in range(1, 45) if n!=24]

def definitions(tree):
    "Names of functions and classes, those in a class and those patched into it under its name"
    for n in tree.body:
        if isinstance(n, ast.ClassDef): yield from (n.name, *(f'{n.name}.{m.name}' for m in n.body if isinstance(m, ast.FunctionDef)))
        if isinstance(n, ast.FunctionDef):
            patched = any('patch' in ast.unparse(d) for d in n.decorator_list)
            yield f'{ast.unparse(n.args.args[0].annotation)}.{n.name}' if patched else n.name

def test_nothing_is_defined_twice_in_a_module():
    "As a merge of two notebooks can make it"
    twice = lambda names: [n for n in set(names) if names.count(n)>1]
    assert not [(m, t) for m in modules if (t := twice([*definitions(ast.parse(path_of(m).read_text()))]))]

def test_no_saved_output_names_a_path_of_an_environment():
    "As warnings of packages do"
    assert not [f.name for f in notebooks for c in read_nb(f).cells if 'Warning: ' in (o := str(c.get('outputs', ''))) and 'site-packages' in o]

@functools.cache
def names_of(module):
    "What `from module import *` gives"
    names = {}
    exec(f'from {module} import *', names)
    return set(names)

class Now(ast.NodeVisitor):
    "Names that a cell reads while it runs, those in the bodies of functions left out, and names that it binds"
    def __init__(self, trees):
        self.read,self.bound,self.stars = set(),set(),[]
        for t in trees: self.visit(t)
    def visit_Name(self, n): (self.read if isinstance(n.ctx, ast.Load) else self.bound).add(n.id)
    def visit_alias(self, n): self.bound.add((n.asname or n.name).split('.')[0])
    def visit_ImportFrom(self, n): self.stars.append(n.module) if n.names[0].name=='*' else self.generic_visit(n)
    def visit_ExceptHandler(self, n): self.bound.add(n.name); self.generic_visit(n)
    def visit_FunctionDef(self, n):
        self.bound.add(n.name)
        for o in (*n.decorator_list, *n.args.defaults, *filter(None, n.args.kw_defaults)): self.visit(o)
    visit_AsyncFunctionDef = visit_FunctionDef
    def visit_Lambda(self, n): pass
    def visit_ClassDef(self, n): self.bound.add(n.name); self.generic_visit(n)

@pytest.mark.parametrize('name', modules)
def test_nbdev_can_run_what_it_runs_for_the_docs(name):
    "It runs exported cells and cells that import, and no other: such a cell may use nothing that a cell without an import made"
    from nbdev.processors import _do_eval
    have = {*dir(builtins), '__file__', 'show_doc', 'display'}
    for c in read_nb(modules[name]).cells:
        if c.cell_type!='code': continue
        c.directives_ = c.directives
        if not _do_eval(c): continue
        n = Now(ast.parse(c.source).body)
        have |= n.bound | {o for s in n.stars for o in names_of(s)}
        assert not n.read-have, f'{modules[name].name} {c.id}: {sorted(n.read-have)}; import in a cell above, and keep the rest apart'
