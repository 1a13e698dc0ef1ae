"The program that a response means: which block, which characters, and what Python reads of it"
import ast,time
import pytest
from hypothesis import given,settings,strategies as st
from text2grad.data.programs import *

@pytest.mark.parametrize('response,want,fenced', [
    ('def f():\n    return 1', 'def f():\n    return 1', False),
    ('', '', False),
    ('```python\nx = 1\n```', 'x = 1\n', True),
    ('```py\nx = 1\n```\nDone.', 'x = 1\n', True),
    ('Here:\n\n```\nx = 1\n```\n', 'x = 1\n', True),
    ('```python\r\nx = 1\r\n```\r\nBye', 'x = 1\r\n', True),
    ('~~~python\nx = 1\n~~~', 'x = 1\n', True),
    ('````python\ns = """\n```\n"""\n````', 's = """\n```\n"""\n', True),
    ('  ```python title="a.py"\n  x = 1\n  ```', '  x = 1\n', True),
    ('```python\nx = 1', 'x = 1', True),
    ('```python\n', '', True),
    ('```\n```', '', True),
    ('```bash\nls\n```\n```python\nx = 1\n```', 'x = 1\n', True),
    ('```text\na\n```\n```text\nb\n```', 'a\n', True),
    ('Say ```python x = 1``` now', 'x = 1', True),
    ('Say `x = 1` now', 'Say `x = 1` now', False),
    ('\ud83d ```', '\ud83d ```', False)])
def test_extract_code(response, want, fenced):
    b = extract_code(response)
    assert (b.code, b.fenced)==(want, fenced) and response[b.start:b.end]==b.code

GOOD,POOR = 'def f(x):\n\n    return x+1\n','def f(x):\n    return x-1\n'
def fence(code, lang='python', mark='```'): return f'{mark}{lang}\n{code}{mark}\n'
def inset(text, by): return ''.join(by+l if l.strip() or by.strip() else l for l in text.splitlines(True))
WRAPPED = { # each holds GOOD for whoever reads Markdown
'behind prose': 'The code: '+fence(GOOD)+'Done.', 'behind prose, no language': 'The code:\n\nHere:'+fence(GOOD, '')+'Done.', 'behind bold': '**Answer** '+fence(GOOD, 'py'),
'behind a list mark': '1. '+inset(fence(GOOD), '   ')[3:]+'2. Done.', 'behind a dash': '- '+inset(fence(GOOD), '  ')[2:], 'behind a dash, further in': '- ```python\n'+inset(GOOD, '    ')+'  ```\n',
'tildes with backticks': '~~~ python `x` ```\n'+GOOD+'~~~\nDone.', 'longer marks': fence(GOOD, mark='`````')+fence('x', ''),
'2 blanks': '- Do:\n\n'+inset(fence(GOOD), '  ')+'Done.', '3 blanks': '1. Do:\n\n'+inset(fence(GOOD), '   '), '4 blanks': '10. Do:\n\n'+inset(fence(GOOD), '    '),
'a list in a list': '1. a\n   - b\n     * c\n\n'+inset(fence(GOOD), '       ')+'Done.', 'tabs': '-\tDo:\n\n'+inset(fence(GOOD), '\t'),
'a quote': inset(fence(GOOD), '> '), 'a tight quote': inset(fence(GOOD), '>'), 'a quote in a quote': inset(fence(GOOD), '> > ')+'Done.', 'a quote in a list': '- x\n'+inset(fence(GOOD), '  > '),
'a list in a quote': '> - x\n>\n'+inset(fence(GOOD), '>   '), 'a quote that ends': inset('```python\n'+GOOD, '> ')+'\nDone.', 'line ends of Windows': ('1. Do:\n\n'+inset(fence(GOOD), '   ')).replace('\n', '\r\n'),
'a closing mark behind the code': '```python\n'+GOOD[:-1]+'```\nDone.', 'a mark in the talk': 'Wrap it in ``` \nplease.\n'+fence(GOOD),
'a draft in a thought': '<think>\n'+fence(POOR)+'</think>\n'+fence(GOOD), 'a draft that never closes': '<think>\n```python\n'+POOR+'</think>\n'+fence(GOOD), 'no fence after a thought': '<think>\n'+fence(POOR)+'</think>\n'+GOOD,
'two tries': fence(POOR)+'That is wrong. Corrected:\n'+fence(GOOD), 'three tries': fence(POOR)+fence('def f(x): pass\n')+fence(GOOD), 'the original in a quote': inset(fence(POOR), '> ')+fence(GOOD),
'a use before': fence('print(f(1))\n')+fence(GOOD), 'a use after': fence(GOOD)+fence('print(f(1))\n'), 'a test after': fence(GOOD)+fence('def test_f():\n    assert f(1) == 2\n'),
'its output after': fence(GOOD)+fence('f = 3\n', 'text').replace('f = 3', '>>> f(2) == 3'), 'another language after': fence(GOOD)+fence('pip install x\n', 'bash'),
'fences in a docstring, no fence around': 'def f(x):\n    """\n    ```\n    f(1)\n    ```\n    """\n    return x+1\n',
}

@pytest.mark.parametrize('name', WRAPPED)
def test_the_program_that_a_response_means(name):
    r = WRAPPED[name]
    b = extract_code(r, 'f')
    source,lines = unindented(r, b)
    assert r[b.start:b.end]==b.code
    assert 'docstring' in name or ast.dump(ast.parse(source))==ast.dump(ast.parse(GOOD))
    for (_,at),line in zip(lines, source.splitlines(True), strict=True): assert r[at:at+len(line.rstrip())]==line.rstrip()

def test_a_name_that_is_bound_counts_less_than_a_function():
    lam = fence('f = lambda x: x+1\n')
    assert extract_code(fence('print(1)\n')+lam, 'f').code=='f = lambda x: x+1\n'
    assert extract_code(fence(GOOD)+lam, 'f').code==GOOD
    assert extract_code(fence('class Stack:\n    pass\n')+fence('s = Stack()\n'), 'Stack').code.startswith('class')

def test_extract_code_prefers_the_function_asked_for():
    r = '```python\nprint(f(2))\n```\nand\n```\ndef f(n):\n    return n\n```'
    assert extract_code(r+'\n```python\nprint(input())\n```', 'f').code.startswith('def f(n)')
    assert extract_code(r, 'f').code.startswith('def f(n)')
    assert extract_code(r, 'f.').code==extract_code(r).code==extract_code(r, 'f').code

@given(st.lists(st.sampled_from(['```','```python\n','\n','~~~','`','def f():\n','    return 1','é','\r\n',' ','x']), max_size=40).map(''.join))
@settings(max_examples=500, deadline=None)
def test_extract_code_range_is_exact(r):
    b = extract_code(r, 'f')
    assert r[b.start:b.end]==b.code and 0<=b.start<=b.end<=len(r)

def test_extract_code_is_fast_on_hostile_text():
    t = time.process_time()
    for r in ('```\n'*20_000, '`'*100_000, ('```python\n'+'x'*50+'\n')*2_000, ' '*100_000, '~~~ '*20_000, 'x ```python\n'*20_000, '```python\nx```\n'*10_000, '> '*50_000, '1. '*30_000, ('> '*20+'```\n')*3_000, '- ```\n'*20_000, '</think>'*9_000): extract_code(r, 'f')
    assert time.process_time()-t<5

# ---- whole programs, which have no name to look for

DRAFT = 'n = int(input())\nprint(n ** 2.)\n'
SQUARE = 'n = int(input())\nprint(n * n)\n'
MAIN = 'import sys\n\ndef solve(n):\n    return n * n\n\ndef main():\n    for line in sys.stdin: sys.stdout.write(f"{solve(int(line))}\\n")\n\nmain()\n'
HELLO = 'print("Hello")\n'
WHOLE = {
'draft, then final': (fence(DRAFT)+'That prints a float. Corrected:\n'+fence(SQUARE), SQUARE), 'three versions': (fence(DRAFT)+fence(SQUARE)+fence(MAIN), MAIN),
'a final version without a label': (fence(DRAFT)+fence(SQUARE, ''), SQUARE), 'in a list': ('1. '+inset(fence(DRAFT), '   ')[3:]+'2. '+inset(fence(SQUARE), '   ')[3:], inset(SQUARE, '   ')),
'the mended original': (inset(fence(DRAFT), '> ')+fence(SQUARE), SQUARE), 'the same twice': (fence(SQUARE)+'Once more, whole:\n'+fence(SQUARE), SQUARE),
'shorter in the end': (fence(MAIN)+fence(SQUARE), SQUARE), 'a final version that does not parse': (fence(DRAFT)+fence('n = int(input()\nprint(n * n)\n'), 'n = int(input()\nprint(n * n)\n'),
'cut off': (fence(SQUARE)+'Faster:\n```python\nn = int(input())\nprint(n *', SQUARE), 'whole, without its last fence': (fence(DRAFT)+'```python\n'+SQUARE, SQUARE),
'its output in words': (fence(SQUARE)+fence('9 is printed\n', ''), SQUARE), 'its output as a number': (fence(SQUARE)+fence('9\n', ''), SQUARE), 'its output as Python': (fence(SQUARE)+fence('n = 9\n', ''), SQUARE),
'its output with a label': (fence(SQUARE)+fence('print(9)\n', 'text'), SQUARE), 'input and output': (fence(SQUARE)+'Input:\n'+fence('3\n', '')+'Output:\n'+fence('[9]\n', ''), SQUARE), 'its input before': (fence('3\n', '')+fence(SQUARE), SQUARE),
'a command': (fence(SQUARE)+fence('echo 3 | python square.py\n', 'bash'), SQUARE), 'a command without a label': (fence(SQUARE)+fence('python square.py < in.txt\n', ''), SQUARE),
'another language': (fence(SQUARE)+fence('int main() { int n; std::cin >> n; }\n', 'cpp'), SQUARE), 'another language before': (fence('puts gets.to_i ** 2\n', 'ruby')+fence(SQUARE, 'Python3'), SQUARE),
'asserts': (fence(MAIN)+fence('assert solve(3) == 9\n'), MAIN), 'a call': (fence(MAIN)+fence('print(solve(int(input())))\n'), MAIN), 'unit tests': (fence(MAIN)+fence('import unittest\nfrom main import solve\nclass T(unittest.TestCase):\n    def test(self): self.assertEqual(solve(3), 9)\n'), MAIN),
'tests that feed it': (fence(MAIN)+fence('import io,sys\nsys.stdin = io.StringIO("3")\nmain()\nprint(sys.stdout)\n'), MAIN), 'a shell of Python': (fence(MAIN)+fence('>>> solve(3)\n9\n'), MAIN),
'a session': (fence(SQUARE)+fence('>>> print(int(input()) ** 2)\n9\n', ''), SQUARE), 'tests that run it': (fence(SQUARE)+fence('import subprocess\nassert subprocess.run(["python", "s.py"], input="3").stdout == "9"\n'), SQUARE),
'a line explained': (fence(SQUARE)+'First:\n'+fence('n = int(input())\n')+'then\n'+fence('print(n * n)\n'), SQUARE), 'a line that does it all': (fence('for _ in range(2):\n    print(int(input()) ** 2)\n')+fence('print(int(input()) ** 2)\n'), 'for _ in range(2):\n    print(int(input()) ** 2)\n'),
'a function, then the whole': (fence('def solve(n):\n    return n * n\n')+fence(MAIN), MAIN), 'nothing to read': (fence('print("Helo")\n')+fence(HELLO), HELLO), 'nothing to read, its output': (fence(HELLO)+fence('Hello\n', ''), HELLO),
'a function and its use': (fence(GOOD)+fence('print(f(1))\n'), GOOD), 'a function and its test': (fence(GOOD)+fence('def test_f():\n    assert f(1) == 2\n'), GOOD), 'two functions': (fence(POOR)+fence(GOOD), GOOD), 'a function and its value': (fence(GOOD)+fence('x = 2\n', ''), GOOD),
'a name of the library': (fence('def gcd(a, b):\n    return a\n'+DRAFT)+fence('from math import gcd\nprint(gcd(*map(int, input().split())))\n'), 'from math import gcd\nprint(gcd(*map(int, input().split())))\n'),
'inline': ('Do ```python x = input(); print(x)``` or, as text, ```x y```.', 'x = input(); print(x)'), 'a draft in a thought': ('<think>'+fence(SQUARE)+'</think>\n'+fence(HELLO), HELLO),
'no fence': (SQUARE, SQUARE), 'no Python at all': (fence('a b\n', 'text')+fence('c d\n', 'text'), 'a b\n'), 'empty blocks': (fence('')+fence(SQUARE)+fence(''), SQUARE),
}

@pytest.mark.parametrize('entry', [None, '', 'no_such_name'])
@pytest.mark.parametrize('name', WHOLE)
def test_the_whole_program_that_a_response_means(name, entry):
    r,want = WHOLE[name]
    b = extract_code(r, entry)
    assert b.code==want and r[b.start:b.end]==want

def test_the_whole_program_is_found_fast_in_hostile_text():
    t = time.process_time()
    for r in (fence('('*50_000), fence('x = '+'-'*90_000+'1\n'), fence(SQUARE)*3_000, fence('f('*300+'\n')*500, fence('\n'.join(f'a{i} = {i}' for i in range(5_000)))*40, fence('\0'), fence('"\\d"\n')): extract_code(r)
    assert time.process_time()-t<8

# ---- programs without a fence, between words

F,G = 'def f(x):\n    return x+1\n','def g(x):\n    return x\n'
AMONG = { # the response, and what Python is to read of it, worked out by hand; lines of words between are empty lines
'words around': ('Here is the function:\n\n'+F+'\nThis works because x+1 is one more than x.', F), 'no empty lines': ('here is the code\n'+F+'it returns x plus one', F),
'words before': ('Here is it: (as asked)\n\n'+F, F), 'words after': (F+'\nWould you like some tests?', F), 'a word that parses': ('Note\n\n'+F+'\nDone', F),
'labels that parse': ('Answer: f\n'+F+'\nTime: O(n)\nSpace: O(1)', F), 'an output': (F+'\n3\n', F), 'headings': ('## Solution\n\n'+F+'\n## Notes\n\nIt works.', F),
'bold and rules': ('**Code**\n---\n'+F+'---\n**Done**', F), 'another script': ('こちらが関数です。\n\n'+F+'\n以上です。', F), 'line ends of Windows': (('Here is it:\n\n'+F+'\nIt works.').replace('\n', '\r\n'), F.replace('\n', '\r\n')),
'tags': ('<answer>\n'+F+'</answer>', F), 'tags in the lines': ('<code>'+F[:-1]+'</code>', F[:-1]), 'marks of a template': ('[BEGIN]\n'+F+'[DONE]', F), 'a thought before': ('<think>def f(x): pass</think>\nSo it is:\n\n'+F+'\nDone.', F),
'indented': ('Here is it:\n\n'+inset(F, '    ')+'\nIt works.', F), 'indented, alone': (inset(F, '  '), F), 'indented by a tab': ('Here is it:\n\n'+inset('def f(x):\n\treturn x+1\n', '\t')+'\nIt works.', 'def f(x):\n\treturn x+1\n'),
'a list item': ('- '+inset(F, '  ')[2:]+'- It works.', F), 'a number, lazily': ('1. def f(x):\n   return x+1\n2. It works.', 'def f(x):\n   return x+1\n'), 'a quote': ('So:\n\n'+inset(F, '> ')+'\nIt works.', F),
'a shell': ('Try it:\n\n>>> def f(x):\n...     return x+1\n...\n>>> f(1)\n2\n', F+'\nf(1)\n'), 'a use in a shell': (F+'\n>>> f(1)\n2\n', F), 'behind words': ('Answer: def f(x): return x+1\nIt works.', 'def f(x): return x+1\n'),
'behind a word': ('Sure! '+F+'It works.', F), 'in ticks': ('You can use `def f(x): return x+1` for this.', 'def f(x): return x+1'), 'a lambda': ('With\n\nf = lambda x: x+1\n\nit works.', 'f = lambda x: x+1\n'),
'lines explained': (F+'\n- `def f(x):` begins the function.\n- `return x+1` gives one more.', F), 'lines quoted': (F+'\nThe line\n\n    def f(x):\n\nbegins it, and instead of\n\n    return x\n\nit adds one.', F),
'words of code': ('for each x we add one.\n'+F+'return the sum as it is.\nif you want, use it.\nfrom here it is easy.', F), 'bullets of code': (F+'\n- f(1)\n- max(x, 1) is not needed\n* x\n', F), 'values': (F+'\nf(1) = 2\nf(2) -> 3\n', F),
'a draft': ('def f(x):\n    return x-1\n\nThat is wrong, so:\n\n'+F+'\nNow it is right.', F), 'the original, quoted': ('> def f(x):\n>     return x\n\nThat is wrong, so:\n\n'+F, F), 'a use': (F+'\nUse it so:\n\nprint(f(1))\n', F),
'comments': ('So:\n# adds one\n'+F+'# end\n\nIt works.', '# adds one\n'+F+'# end\n'), 'brackets': ('So:\n\ndef f(x,\n      y=(1,\n\n2)):\n    return x+1\n\nIt works (as shown).', 'def f(x,\n      y=(1,\n\n2)):\n    return x+1\n'),
'words in a text': ('So:\n\ndef f(x):\n    """Add one.\n\nIt is easy to see how.\n    >>> f(1)\n    """\n    return x+1\n\nIt works.', 'def f(x):\n    """Add one.\n\nIt is easy to see how.\n    >>> f(1)\n    """\n    return x+1\n'),
'an import apart': ('First\n\nfrom math import inf\n\nand then\n\ndef f(x):\n    return inf\n\nas asked.', 'from math import inf\n\n\n\ndef f(x):\n    return inf\n'), 'imports in a list': ('1. import math\n2. def f(x):\n       return math.inf\n3. It works.', 'import math\ndef f(x):\n    return math.inf\n'),
'a value apart': ('Let\n\nK = 1\n\nand\n\ndef f(x):\n    return x+K\n\nas asked.', 'K = 1\n\n\n\ndef f(x):\n    return x+K\n'), 'a helper behind it': ('def f(x):\n    return g(x)+1\n\nwhere g is\n\n'+G+'\nas asked.', 'def f(x):\n    return g(x)+1\n\n\n\n'+G),
'cut by words': ('def f(x):\n    y = x+1\nNow we give it back:\n    return y\nIt works.', 'def f(x):\n    y = x+1\n\n    return y\n'), 'cut before else': ('def f(x):\n    if x:\n        return 2\nIn all other cases:\n    else:\n        return 1\n', 'def f(x):\n    if x:\n        return 2\n\n    else:\n        return 1\n'),
'a command in a fence': (F+'\nRun it:\n```bash\npython f.py\n```\n', F), 'a use in a fence': (F+'\nUse it:\n```python\nprint(f(1))\n```\n', F), 'a fence with nothing': ('```python\n```\n'+F+'It works.', F),
}
BROKEN = { # the line that Python cannot read is part of the program, and the words around it are not
'no colon': ('Here is it:\n\ndef f(x)\n    return x+1\n\nIt works well.', 'def f(x)\n    return x+1\n'), 'a bracket': ('Here is it:\n\ndef f(x):\n    return (x+1\n\nIt works (very well) here.', 'def f(x):\n    return (x+1\n'), 'Python 2': ('Here is it:\n\ndef f(x):\n    print x\n\nIt works well.', 'def f(x):\n    print x\n'),
'not indented': ('Here is it:\n\ndef f(x):\nreturn x+1\n\nIt works well.', 'def f(x):\nreturn x+1\n'), 'words in the body': ('Here is it:\n\ndef f(x):\n    Add one to x as asked.\n    return x+1\n', 'def f(x):\n    Add one to x as asked.\n    return x+1\n'), 'cut off': ('Here is it:\n\ndef f(x):\n    return [x for', 'def f(x):\n    return [x for'),
'only a head': ('Here is it:\n\ndef f(x):', 'def f(x):'), 'all code': (F+'\nx = = 2\n', F+'\nx = = 2\n'), 'an open text': ('def f(x):\n    """Add one.\n    return x+1\n', 'def f(x):\n    """Add one.\n    return x+1\n'),
}
NOTHING = ['I would add one to x.','Note','Note: f','42','x + 1','Let\n\nx = 2\n\nThen it works.','Say `x = 1` now','int f(int x) {\n    return x+1;\n}\n','function f(x) {\n    return x+1;\n}\n','Run\n\npip install it\n\nand see.','- one\n- two','Def f(x):\n    gives x plus one']

@pytest.mark.parametrize('name', AMONG | BROKEN)
def test_a_program_between_words(name):
    r,want = (AMONG | BROKEN)[name]
    b = extract_code(r, 'f')
    source,lines = unindented(r, b)
    assert source==want and r[b.start:b.end]==b.code
    for (_,at),line in zip(lines, source.splitlines(True), strict=True): assert r[at:at+len(line.rstrip())]==line.rstrip()
    if name in AMONG: ast.parse(source)
    else:
        with pytest.raises(SyntaxError): ast.parse(source)

@pytest.mark.parametrize('r', NOTHING)
def test_no_program_between_words_is_no_program(r):
    b = extract_code(r, 'f')
    assert (b.code,b.start,b.fenced)==(r,0,False) and unindented(r, b)[0]==r

AMONG_WHOLE = {
'words around': ('The program:\n\n'+SQUARE+'\nIt prints the square of n.', SQUARE), 'a draft': (DRAFT+'\nThat prints a float, so:\n\n'+SQUARE+'\nNow it is right.', SQUARE), 'its output': (SQUARE+'\nOutput:\n9\n', SQUARE), 'input and output': ('Input: 3\nOutput: 9\n\n'+SQUARE, SQUARE),
'step by step': ('We read:\n\nn = int(input())\n\nsquare it:\n\nm = n * n\n\nand print it:\n\nprint(m)\n\nDone.', 'n = int(input())\n\n\n\nm = n * n\n\n\n\nprint(m)\n'), 'cut by words': ('if input():\n    print(1)\nAnd if nothing is there:\nelse:\n    print(2)\n', 'if input():\n    print(1)\n\nelse:\n    print(2)\n'),
'with a main': ('Like this:\n\n'+MAIN+'\nUse it so:\n\nprint(solve(3))\n', MAIN), 'nothing to read': ('Sure thing!\n\n'+HELLO+'\nIt greets.', HELLO), 'a command in a fence': (SQUARE+'\n```bash\npython a.py\n```\n', SQUARE), 'its output in a fence': ('So:\n\n'+SQUARE+'\nIt gives\n```\n9\n```\n', SQUARE),
}

@pytest.mark.parametrize('name', AMONG_WHOLE)
def test_a_whole_program_between_words(name):
    r,want = AMONG_WHOLE[name]
    assert unindented(r, extract_code(r))[0]==want

def test_a_shell_in_a_fence_is_read_without_its_prompts():
    r = fence('>>> def f(x):\n...     return x+1\n...\n>>> f(1)\n2\n')
    assert unindented(r, extract_code(r, 'f'))[0]==F+'\nf(1)\n\n'

@given(st.lists(st.sampled_from([F,G,'Note\n','It works (well.\n','\n','- ','> ','>>> ','    ','"""','(',')\n','`','x = 1\n','import math\n','</a>','return x\n','else:\n','é','\r\n']), max_size=30).map(''.join))
@settings(max_examples=500, deadline=None)
def test_a_program_between_words_stands_where_it_is_said_to(r):
    b = extract_code(r, 'f')
    source,lines = unindented(r, b)
    assert r[b.start:b.end]==b.code
    for a,at in lines: assert r[at:].startswith(source[a:].split('\n')[0].rstrip('\r'))

def test_a_program_between_words_is_found_fast_in_hostile_text():
    hostile = ['(\n'*25_000,'x = """ a\n'*5_000,'Note\n'*10_000,'def f(x)\n'*5_000,(F+'\nmany words are here\n\n')*1_000,'. '*25_000,'</a>'*12_000,'> > > def f(x):\n'*3_000,'x \\\n'*12_000,'a b '*12_000,'- '*25_000,
               'import a\nso it is\n'*2_500,'\n'.join(f'def f{i}(x): return f{i+1}(x)\nand then so\n' for i in range(1_100)),'a, '*16_000,': import a.'*4_500,"r'"*25_000]
    t = time.process_time()
    for r in hostile: extract_code(r, 'f')
    assert time.process_time()-t<10
