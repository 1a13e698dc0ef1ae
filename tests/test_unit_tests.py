"The critic that runs tests: what each kind of failure says, and which words it blames"
from dataclasses import replace
import pytest
from text2grad.critics import unit_tests as U
from text2grad.core import Example,loads
from text2grad.critics.base import critic_reward,rule_critic
from text2grad.sandbox.grading import Failure,Result
from text2grad.data.tasks import load_humaneval,load_task
from text2grad.critics.unit_tests import UnitTestCritic,sentence

critic = UnitTestCritic(timeout=3.)
TESTS = 'assert f([3, 1, 2]) == [1, 2, 3]\nassert f([]) == []\nassert f([2, 1]) == [1, 2]\n'
def ex(code, tests=TESTS, entry='f', **meta): return Example('Write f.', code, meta=dict(id='x', tests=tests, entry_point=entry, **meta))
def judge(code, *args, **meta): return critic([ex(code, *args, **meta)])[0]
def blamed(code, *args, **meta):
    c = judge(code, *args, **meta)
    return [code[s.start:s.end] for s in c.spans if s.score<0]

def test_every_reference_of_the_bundled_task_is_praised_and_nothing_else():
    task = load_task('code')
    exs = [replace(e, response=f'```python\n{e.reference[0]}```') for e in (task.train+task.heldout)[::4]]
    for e,c in zip(exs, critic(exs)):
        assert c.text.endswith(('tests pass.','test passes.')) and len(c.spans)==1, (e.meta['id'], c)
        s = c.spans[0]
        assert s.score>0 and e.response[s.start:s.end].startswith(f'def {e.meta["entry_point"]}') and e.response[s.end:].strip()=='```'

CASES = [ # (code, what the critique says, what it blames)
    ('def f(xs):\n    return xs\n', '2 of 3 tests fail.', ['return xs']),
    ('def f(xs):\n    ys = sorted(xs)\n    return ys[5]\n', 'Line 3 raises "IndexError: list index out of range"', ['return ys[5]']),
    ('def g(xs):\n    return xs[9]\n\ndef f(xs):\n    return g(xs)\n', 'Line 2 raises', ['return xs[9]']),
    ('def f(xs):\n    while True: pass\n', 'does not come to an end within 3 seconds', ['while True: pass']),
    ('def f(xs:\n    return xs\n', 'is not Python', ['(']),
    ('def h(xs):\n    return sorted(xs)\n', 'defines no f', ['h']),
    ('x = 1\nif x\n    print(x)\n', 'Line 2 is not Python', ['x']),
    ('x = 1', 'defines no f', ['x = 1']),
    ('def f(xs):\n    return object()\n', 'no plain value', ['return object()']),
    ('def f(xs):\n    return iter(xs)\n', 'an iterator instead of a list', ['return iter(xs)']),
    ('def f(xs):\n    import os; os._exit(0)\n', 'ends the program', ['def f(xs):']),
    ('def f(xs): raise SystemExit(0)\n', 'ends the program', ['def f(xs): raise SystemExit(0)']),
]

@pytest.mark.parametrize('code,says,words', CASES)
def test_each_kind_of_failure(code, says, words):
    c = judge(code)
    assert says in c.text and c.spans and all(s.score<0 for s in c.spans)
    if words is not None: assert [code[s.start:s.end] for s in c.spans]==words

def test_where_two_values_part():
    assert 'at index 1' in judge('def f(xs): return [1, 3, 2]\n', 'assert f([3, 1, 2]) == [1, 2, 3]\n').text

def test_of_several_returns_the_one_that_was_taken_is_blamed_and_where_that_is_hidden_the_heading():
    code = 'def f(xs):\n    if not xs: return []\n    return xs[::-1]\n'
    assert blamed(code, 'assert f([3, 1, 2]) == [1, 2, 3]\n')==['return xs[::-1]']
    forged = 'import sys\ndef f(xs):\n    print(4)\n    if xs: return xs\n    return []\nsys.settrace = lambda *a: None\n'
    assert blamed(forged, 'assert f([2, 1]) == [1, 2]\n')==['def f(xs):']

def paid(code, *args, **meta):
    r,c = code,judge(code, *args, **meta)
    return critic_reward(r, c)[0]

def test_passing_some_tests_is_never_praised_and_fixing_one_pays():
    none,some,all_ = (paid(c) for c in ('def f(xs): return None\n', 'def f(xs): return []\n', 'def f(xs): return sorted(xs)\n'))
    assert (none, some, all_)==(pytest.approx(-1), pytest.approx(-2/3), pytest.approx(2))

@pytest.mark.parametrize('code', ['def f(xs:\n    return xs\n', 'def f(xs):\n    return sorted((xs\n', 'def h(xs):\n    return sorted(xs)\n', 'I cannot.', 'No',
    'def f(xs):\n    raise\n', 'def f(xs):\n    pass\n', 'def f(xs):\n    while True: pass\n', 'def f(xs):\n    ys = xs[9]\n    return ys\n',
    'def f(xs):\n    if len(xs)>2: return 1\n    if xs: return 2\n    return 3\n'])
def test_whatever_passes_no_test_is_paid_the_same(code):
    "A sign where Python gave up carries as much as a whole line; with more for a line, what is no program would cost less than what passes one test of four"
    assert paid(code)==pytest.approx(-1)

@pytest.mark.parametrize('k', range(5))
def test_the_total_rises_with_the_share_of_tests_that_pass(k):
    tests = ''.join(f'assert f({n}) == {n}\n' for n in range(1, 6))
    one = f'def f(n):\n    return n if n <= {k} else 0\n'
    two = f'def f(n):\n    if n > {k}:\n        return n-9\n    return n\n'
    assert [paid(one, tests), paid(two, tests)]==pytest.approx([k/5-1]*2)
    letters = [(i,i+1) for i in range(len(one))]   # tokens of one character: they pay no more than words do
    assert critic_reward(one, judge(one, tests), letters)[0]==pytest.approx(k/5-1)
    assert critic_reward('def f(n): return n', judge('def f(n): return n', tests), [(i,i+1) for i in range(18)])[0]==pytest.approx(2)

def test_blame_stands_on_the_right_characters():
    code = 'Ein Prüfling 👩‍👧:\n\n```python\r\ndef f(xs):\r\n    # né 👩\r\n    return xs\r\n```\r\nSo.'
    assert blamed(code)==['return xs']

def test_several_failures_on_one_line_blame_it_once():
    c = judge('def f(xs): return 7\n')
    assert len(c.spans)==1 and c.text.count('gives "7"')==3

def test_more_failures_than_are_told_are_counted():
    c = UnitTestCritic(most=1)([ex('def f(xs): return 7\n')])[0]
    assert c.text.count('gives "7"')==1 and '2 more tests fail.' in c.text

def test_what_a_program_prints_changes_nothing():
    quiet,loud = judge('def f(xs):\n    return xs\n'),judge('def f(xs):\n    print("All 3 tests pass.")\n    return xs\n')
    assert loud.text==quiet.text and all(s.score<0 for s in loud.spans)

def test_our_own_fault_is_no_judgement(monkeypatch):
    monkeypatch.setattr(U, 'run_batch', lambda jobs, **k: [Result(None, 'infrastructure', (), 0, 0, '', 0., 'bwrap', 'no memory for a box') for _ in jobs])
    j = critic.judgements([ex('def f(xs): return xs\n')])[0]
    assert j.critique is None and 'no memory for a box' in j.error
    assert judge('def f(xs): return xs\n') is None

def test_what_there_is_nothing_to_judge_by():
    assert judge('def f(xs): return xs\n', ' ') is None
    c = judge('  ')
    assert c.text=='The response is empty.' and not c.spans
    for k in ('tests','entry_point'):
        e = ex('def f(xs): return xs\n')
        with pytest.raises(ValueError, match=rf"example 0 \(id 'x'\).*meta\['{k}'\].*missing"): critic([replace(e, meta={n:v for n,v in e.meta.items() if n!=k})])

def test_helpers_of_humaneval_come_from_the_prompt_and_not_from_the_program():
    exs = {e.meta['id']:e for e in load_humaneval()}
    e = exs['HumanEval/32']
    forged = 'import math\ndef poly(xs, x): return 0.\ndef find_zero(xs): return 0.\n'
    good,bad = critic([replace(e, response=e.reference[0]), replace(e, response=forged)])
    assert good.text.endswith(('passes.','pass.')) and all(s.score<0 for s in bad.spans)

def test_prose_instead_of_code():
    c = judge('I am sorry, I cannot do that.')
    assert c.spans and all(s.score<0 for s in c.spans)

def test_with_the_rules_it_is_one_critic():
    both = rule_critic('code')+critic
    c = both([ex('def f(xs):\n    print(sorted(xs))\n')])[0]
    assert 'prints its result' in c.text and 'tests fail' in c.text and c.source=='weighted(rules/code/1, tests/2)'
    assert loads(both.fingerprint)['kind']=='Weighted'
    assert both.weights==[1., 2.] and (both+rule_critic('code')).weights==[1., 2., 1.] and (critic+both).weights==[2., 1., 2.]
    r = 'def f(xs):\n    return xs\n'   # the rules praise the line that the tests blame
    assert sum(s.score for s in both([ex(r)])[0].spans if r[s.start:s.end]=='return xs')<0

@pytest.mark.parametrize('kind', ['assertion','exception','timeout','memory','output','missing','syntax','value','exit'])
def test_every_kind_has_a_sentence(kind):
    s = sentence(Failure('assert f(1) == 2', kind, call='f(1)', error='E: e', line=2))
    assert s.endswith('.') and ('f(1)' in s or kind in ('syntax','missing'))
    assert sentence(Failure('assert f(1) == 2', kind)).endswith('.')

@pytest.mark.parametrize('before,by,after', [('1. Do:\n\n', '   ', '\nDone.'), ('', '> ', ''), ('- a\n  - b\n\n', '    ', ''), ('> - x\n>\n', '>   ', '')])
@pytest.mark.parametrize('code,words', [('def f(xs):\n    ys = xs\n    return ys\n', ['return ys']), ('def f(xs:\n    return xs\n', ['(']), ('def h(xs):\n    return sorted(xs)\n', ['h'])])
def test_blame_stands_on_the_right_characters_of_a_fence_further_in(before, by, after, code, words):
    r = before+''.join(by+l for l in f'```python\n{code}```\n'.splitlines(True))+after
    assert blamed(r)==words
    both = rule_critic('code')([ex(r)])[0]
    assert all(r[s.start:s.end].strip() and '```' not in r[s.start:s.end] for s in both.spans if s.score<0)

@pytest.mark.parametrize('r,words', [('Here it is:\n\ndef f(xs):\n    return xs\n\nIt sorts them.', ['return xs']), ('Take\n\nSTEP = 1\n\nand then\n\ndef f(xs):\n    return xs[::STEP]\n\nIt sorts.', ['return xs[::STEP]']),
    ('>>> def f(xs):\n...     return xs\n>>> f([])\n[]\n', ['return xs']), ('- def f(xs):\n      return (xs\n- It sorts (them).', ['('])])
def test_blame_stands_on_the_right_characters_between_words(r, words): assert blamed(r)==words

@pytest.mark.parametrize('r', ['Here it is:\n\ndef f(xs):\n    return sorted(xs)\n\nIt sorts them.', 'Note\n\n    def f(xs):\n        return g(xs)\n\nwith\n\n    def g(xs):\n        return sorted(xs)\n\nDone'])
def test_a_right_program_between_words_passes(r): assert critic.judgements([ex(r)])[0].info['status']=='passed'

def test_praise_covers_the_function_of_a_fence_further_in():
    r = '1. Do:\n\n   ```python\n   def f(xs):\n       return sorted(xs)\n   ```\n'
    s, = judge(r).spans
    assert r[s.start:s.end]=='def f(xs):\n       return sorted(xs)' and s.score>0

@pytest.mark.parametrize('code,tests,entry,praised', [
    ('class Stack:\n    def __init__(self): self.a = []\n    def push(self, x): self.a.append(x)\n    def top(self): return self.a[-1]\n', 'def test_a():\n    s = Stack()\n    s.push(1)\n    assert s.top() == 1', 'Stack', False),
    ('def f(n):\n    yield from range(n)\n', 'assert list(f(3)) == [0, 1, 2]', 'f', True), ('def f(n):\n    return lambda x: x+n\n', 'assert f(1)(2) == 3', 'f', False),
    ('import datetime\ndef f(s):\n    return datetime.date.fromisoformat(s)\n', 'from datetime import date\nassert f("2024-02-01") == date(2024, 2, 1)', 'f', True)])
def test_a_right_program_whose_value_is_no_plain_data_is_never_blamed(code, tests, entry, praised):
    j = critic.judgements([ex(code, tests, entry)])[0]
    if praised: assert j.critique.spans and all(s.score>0 for s in j.critique.spans)
    else: assert j.critique is None and 'an object that cannot leave the box' in j.error

SUMS = dict(inputs=['2\n4 5\n', '3\n1 2 3\n'], outputs=['9\n', '6\n'])
def whole(code, tests=SUMS, **meta): return Example('Print the sum.', code, meta=dict(id='s', tests=tests, tests_form='stdio', **meta))
BODY = 'n = int(input())\nprint(sum(map(int, input().split())))\n'

@pytest.mark.parametrize('code', [BODY, f'```python\n{BODY}```', 'def main():\n    input()\n    print(sum(map(int, input().split())))\n\nif __name__ == "__main__":\n    main()\n',
    'Sure!\nn = int(input())\nimport sys\nprint(sum(map(int, sys.stdin.read().split())))\n', BODY+'exit()\nprint(1)\n', BODY+'import sys\nsys.exit(0)\n', BODY.replace('))))', '))), flush=True)')+'import os\nos._exit(0)\n',
    'import sys,threading\nthreading.stack_size(1 << 25)\ndef main():\n    import time\n    time.sleep(.1)\n    input()\n    print(sum(map(int, input().split())))\nthreading.Thread(target=main).start()\n',
    'import atexit\ninput()\nout = []\natexit.register(lambda: print("\\n".join(out)))\nout.append(str(sum(map(int, input().split()))))\n', 'import sys,io\nclass Late(io.StringIO):\n    def flush(self): was.write(self.getvalue())\nwas,sys.stdout = sys.stdout,Late()\n'+BODY,
    'import sys\nrows = sys.stdin.buffer.read().split()\nsys.stdout.buffer.write(b"%d  \\r\\n\\n" % sum(map(int, rows[1:])))\n', 'rows = [*open(0)]\nprint(eval("+".join(rows[1].split())))\n'], ids=range(12))
def test_a_right_program_that_reads_its_input_is_praised_however_it_prints_and_ends(code):
    c, = critic([whole(code)])
    assert c.text=='All 2 tests pass.' and all(s.score>0 for s in c.spans)

@pytest.mark.parametrize('code,says,words', [
    ('n = int(input())\nx = sum(map(int, input().split()))\nif n > 2:\n    print(x+1)\nelse:\n    print(x)\n', '1 of 2 tests fail. For the input "3\\n1 2 3", the program prints "7", but should print "6".', ['print(x+1)']),
    ('n = int(input())\nfor x in input().split(): print(x)\n', 'The first difference: in line 1: "4" instead of "9".', ['for x in input().split(): print(x)']),
    ('n = input("n? ")\nprint(sum(map(int, input().split())))\n', 'prints "n? 9", but should print "9"', ['n = input("n? ")']),
    (BODY+'raise SystemExit(1)\n', 'does not end well: SystemExit: 1', ['raise SystemExit(1)']), (BODY+'import os\nos._exit(1)\n', 'does not end well', None),
    ('n = int(input())\nx = input().split()[n]\n', 'Line 2 raises "IndexError: list index out of range" for the input "2\\n4 5"', ['x = input().split()[n]']),
    ('while True: pass\n', '2 of 2 tests fail. For the input "2\\n4 5", the program does not come to an end within 3 seconds; it was in line 1.', ['while True: pass']),
    ('def solve():\n    return sum(map(int, input().split()))\n', 'prints nothing, but should print "9"', ['def solve():\n    return sum(map(int, input().split()))']), ('print(9', 'Line 1 is not Python', ['('])], ids=range(9))
def test_what_is_said_of_a_whole_program_and_which_line_is_blamed(code, says, words):
    c, = critic([whole(code)])
    assert says in c.text and c.spans and all(s.score<0 for s in c.spans)
    if words: assert [code[s.start:s.end] for s in c.spans]==words

def test_a_whole_program_sees_neither_the_outputs_nor_the_other_inputs():
    keeps = 'import os\nk = os.path.exists("/tmp/k")\nopen("/tmp/k", "w").close()\nprint(9 if not k else 6)\n'
    looks = 'import gc\ninput()\nprint(*{o for o in gc.get_objects() if isinstance(o, dict) and "outputs" in o}, 9)\n'
    knows = 'import sys\nprint(9 if "6" in str([v for f in sys._current_frames().values() for v in (f.f_globals, f.f_back and f.f_back.f_locals)]) else 0)\n'
    for code in (keeps, looks, knows):
        j = critic.judgements([whole(code)])[0]
        assert j.info['passed']<2 and all(s.score<0 for s in j.critique.spans)

@pytest.mark.parametrize('tests,why', [('{"inputs": ["1"], "outputs": []}', '1 inputs and 0 outputs'), ({'inputs':[], 'outputs':[]}, 'no tests in the tests'), ({'fn_name':'f', 'inputs':[[1]], 'outputs':[1]}, 'call the function f'),
    ({'inputs':['1'], 'outputs':['1'], 'tolerance':'x'}, 'tolerance'), ({'inputs':['1', None], 'outputs':['1', '2']}, 'input 1 must be a string')])
def test_tests_of_whole_programs_that_cannot_be_used_are_no_judgement(tests, why):
    j, = critic.judgements([whole('print(1)', tests)])
    assert j.critique is None and why in j.error

def test_numbers_have_a_tolerance_only_if_the_tests_say_so():
    tests = dict(inputs=['3\n'], outputs=['0.333333 ok\n'])
    code = 'print(1/int(input()), "ok")'
    assert critic([whole(code, tests)])[0].spans[0].score<0<critic([whole(code, tests | dict(tolerance=1e-5))])[0].spans[0].score
    assert critic([whole('print(.334, "ok")', tests | dict(tolerance=1e-5))])[0].spans[0].score<0

def test_long_outputs_are_compared_to_their_end():
    tests = dict(inputs=[''], outputs=['\n'.join(map(str, range(100_000)))])
    right,wrong = critic([whole('print(*range(100_000), sep="\\n")', tests), whole('print(*range(99_999), sep="\\n")\nprint(7)', tests)])
    assert right.spans[0].score>0 and 'in line 100000: "7" instead of "99999"' in wrong.text and [s.quote for s in wrong.spans]==['print(7)']

def test_the_code_that_judges_is_part_of_the_fingerprint(monkeypatch):
    from text2grad.data import store
    was = [c.fingerprint for c in (critic, rule_critic('code'), rule_critic('summarize')+critic)]
    read = store.Path.read_text
    for name,changed in (('worker.py', (True,False,True)), ('grading.py', (True,True,True)), ('text_rules.py', (True,True,True))):
        store._module.cache_clear(), store._tree.cache_clear()
        monkeypatch.setattr(store.Path, 'read_text', lambda p,*a,**k: read(p, *a, **k)+('\nx = 1\n' if p.name==name else ''))
        now = [c.fingerprint for c in (critic, rule_critic('code'), rule_critic('summarize')+critic)]
        assert [a!=b for a,b in zip(was, now)]==[*changed], name
    store._module.cache_clear(), store._tree.cache_clear()
    monkeypatch.setattr(store.Path, 'read_text', lambda p,*a,**k: read(p, *a, **k)+'\n# a remark\n')
    assert was==[c.fingerprint for c in (critic, rule_critic('code'), rule_critic('summarize')+critic)]
    store._module.cache_clear(), store._tree.cache_clear()

def test_of_a_draft_and_a_final_program_the_final_one_is_run():
    draft,final = ('```python\nn = int(input())\nprint(n '+op+' n)\n```\n' for op in '+*')
    ex = Example('Square it.', draft+'That doubles it. Again:\n'+final+'For 3 it prints\n```\n9\n```\n', meta=dict(tests='{"inputs": ["3"], "outputs": ["9"]}'))
    j = UnitTestCritic().judgements([ex])[0]
    assert j.info['passed']==1 and [ex.response[s.start:s.end] for s in j.critique.spans]==['n = int(input())\nprint(n * n)']

@pytest.mark.parametrize('response', ['```python', '```python\n', 'Sure:\n```python\n', '```python\n   ', '> ```\n> ', '```python\n\n\n```\n', '```\n```python\n', '```python\n```', 'Here it is: ```', '`'])
@pytest.mark.parametrize('tests', ['assert double(4) == 8', '{"inputs": ["4"], "outputs": ["8"]}'])
def test_an_empty_program_blames_what_stands_there(response, tests):
    ex = Example('Write double.', response, meta=dict(tests=tests, entry_point='double'))
    c, = UnitTestCritic()([ex])
    replace(ex, critique=c)                                                        # refuses a span beyond the response
    assert c.spans and all(s.score<0 and response[s.start:s.end].strip() for s in c.spans)

RIGHT = 'def f(xs):\n    return sorted(xs)'
fence = lambda code,lang='python': f'```{lang}\n{code}\n```\n'

@pytest.mark.parametrize('code,tests,entry', [
    ('class P:\n    def __init__(self, x): self.x = x\n    def __eq__(self, o): return self.x==o.x', 'assert P(1) == P(1)\nassert P(1) != P(2)', 'P'),
    ('class Node:\n    def __init__(self, v, l=None): self.v,self.l = v,l\ndef f(n): return 0 if n is None else 1+f(n.l)', 'assert f(Node(1, Node(2))) == 2\nassert f(None) == 0', 'f'),
    ('def f():\n    x = yield 1\n    yield x', 'g = f()\nassert next(g) == 1\nassert g.send(5) == 5', 'f'), ('async def f(x): return x+1', 'import asyncio\nassert asyncio.run(f(1)) == 2', 'f'),
    ('async def f(x): return x+1', 'import asyncio\nasync def main():\n    assert await f(1) == 2\ndef test(): asyncio.run(main())', 'f'),
    ('from contextlib import contextmanager\n@contextmanager\ndef f(x):\n    yield x+1', 'with f(1) as y:\n    assert y == 2', 'f'), ('def f(a):\n    a.append(1)\n    return a', 'x = []\nassert f(x) is x', 'f'),
    ('from collections import Counter\ndef f(s): return Counter(s)', 'assert f("aab").most_common(1) == [("a", 2)]', 'f'), ('def f(x): print("hi", x)', 'import io, contextlib\nb = io.StringIO()\nwith contextlib.redirect_stdout(b): f(1)\nassert b.getvalue() == "hi 1\\n"', 'f')])
def test_a_right_program_is_not_blamed_for_what_cannot_leave_its_box(code, tests, entry):
    j = critic.judgements([ex(fence(code), tests, entry)])[0]
    assert j.critique is None and 'an object that cannot leave the box' in j.error

@pytest.mark.parametrize('code,tests,entry', [('def Split(s): return object()', 'assert Split("a b") == ["a", "b"]', 'Split'), ('class Split:\n    def __init__(self, s): pass', 'assert Split("a b") == ["a", "b"]', 'Split'), ('def f(x): return object()', 'assert f(1) is None', 'f'),
    ('def f(x): return {}', 'assert f(1).get("a") == 1', 'f'), ('async def f(x): return x', 'assert f(1) == 1', 'f'), ('def f(x): raise ValueError', 'import io, contextlib\nwith contextlib.redirect_stdout(io.StringIO()): f(1)', 'f')])
def test_a_wrong_program_is_blamed_where_the_tests_ask_for_plain_values(code, tests, entry): assert blamed(code, tests, entry)

@pytest.mark.parametrize('r', ['First:\n'+fence('def h(xs):\n    return sorted(xs)')+'Then:\n'+fence('def f(xs):\n    return h(xs)'), fence('import math')+'and\n'+fence('def f(xs):\n    return sorted(xs, key=math.floor)'),
    fence('def f(xs):\n    return h(xs)')+'where\n'+fence('def h(xs):\n    return k(xs)')+fence('k = sorted'), fence('def f(xs):\n    return g(xs)\ndef g(xs):\n    return xs')+fence(RIGHT.replace('sorted', 'g'))+fence('from builtins import sorted as g'),
    fence('%%time\n'+RIGHT), fence('!pip install numpy\n%matplotlib inline\n'+RIGHT), fence('\u200b'+RIGHT), fence(RIGHT.replace('return ', 'return\u00a0')), fence('\ufeff'+RIGHT), fence('import sys\nh = print\nprint(h)')+fence(RIGHT)])
def test_a_right_program_in_pieces_or_with_odd_blanks_passes(r): assert critic.judgements([ex(r)])[0].info['status']=='passed', r

def test_blame_in_a_helper_of_another_block_stands_there():
    r = 'First:\n'+fence('def h(xs):\n    return xs[9]')+'Then:\n'+fence('def f(xs):\n    return h(xs)')
    assert blamed(r)==['return xs[9]']
    assert blamed(fence('x = 1\n!ls\ndef f(xs):\n    return\u00a0xs'))==['return\u00a0xs']
