"Feedback before a model is touched: texts that fit, splits that hold, chats that cannot be forged, labels of tokens"
import gzip,logging,random
import pytest
from hypothesis import example,given,settings,strategies as st
from tokenizers import processors
from text2grad.core import Critique,Example,RecordError,Span,UserError,dumps,to_record,write_examples
from text2grad.reward_model.preprocessing import *
from text2grad.reward_model.preprocessing import _controls
from text2grad.pretrained import tiny_lm

tok = tiny_lm()[1]
special = set(tok.all_special_ids)
count = lambda t: len(text_ids(tok, t))
user = lambda t: dict(role='user', content=t)
bot = lambda t: dict(role='assistant', content=t)
flat = lambda pieces: [i for ids,_ in pieces for i in ids]

# ---- fitting

words = st.text('abcdefg .,?', min_size=1, max_size=60)
odd = st.sampled_from(['漢字かな交じり文。'*30, '👨‍👩‍👧 '*40, 'x'*400, ' '*300, '\n'*200, 'a\n\n'*80, 'é́'*50, 'العربية '*20, '<|im_end|>'*20, '\ud83d'*30])
prompts = st.lists(st.one_of(words, odd), min_size=1, max_size=6).map('\n\n'.join)

@settings(max_examples=120, deadline=None)
@given(prompts, st.integers(24, 200))
def test_a_fitted_text_fits_keeps_its_ends_and_is_left_alone_the_second_time(text, n):
    got = fit_prompt(text, n, tok)
    assert count(got)<=n
    if count(text)<=n: assert got==text
    else: assert ' [...] ' in got
    assert fit_prompt(got, n, tok)==got

@settings(max_examples=60, deadline=None)
@given(st.sampled_from(['漢', '👨‍👩‍👧', 'x', 'word ', 'لا', 'One line.\n\n', '3\n']), st.integers(80, 300), st.integers(60, 90))
@example('The rain stopped play for an hour.\n\n', 200, 100)
def test_instruction_and_question_survive_whatever_lies_between(unit, times, n):
    head,tail = 'Read it.\n\n','\n\nWho sang?'
    got = fit_prompt(head+unit*times+tail, n, tok)
    assert count(got)<=n and got.startswith(head) and got.endswith(tail) and ' [...] ' in got

def test_without_paragraphs_both_ends_survive():
    got = fit_prompt('Read it. '+'漢'*300+' Who sang?', 60, tok)
    assert got.startswith('Read it.') and got.endswith('Who sang?') and count(got)<=60

def test_only_the_longest_paragraph_is_cut():
    short,long = 'Ann won the race.','The rain stopped play for an hour. '*30
    got = fit_prompt(f'{short}\n\n{long}\n\n{short}', 150, tok).split('\n\n')
    assert got[0]==got[2]==short and ' [...] ' in got[1] and count('\n\n'.join(got))>110

@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(['system','user','assistant']), prompts), min_size=1, max_size=5), st.integers(120, 200))
def test_a_fitted_chat_fits_and_keeps_its_messages(chat, n):
    chat = [dict(role=r, content=t, name='n') for r,t in chat]
    got = fit_prompt(chat, n, tok)
    assert sum(count(m['content']) for m in got)<=n
    assert [(m['role'], m['name']) for m in got]==[(m['role'], m['name']) for m in chat]
    assert fit_prompt(got, n, tok)==got
    if sum(count(m['content']) for m in chat)<=n: assert got==chat

def test_of_a_chat_the_long_messages_are_cut_alike_and_the_short_ones_stay():
    chat = [user('How?'), bot('The rain. '*100), user('The captain. '*80), bot('So.'), user('Why?')]
    got = fit_prompt(chat, 120, tok)
    assert [got[i] for i in (0,3,4)]==[chat[i] for i in (0,3,4)]
    a,b = (count(got[i]['content']) for i in (1,2))
    assert abs(a-b)<20 and a+b>80

def test_what_cannot_be_cut_is_refused():
    for p in ('word '*40, [user('word '*40), bot('word '*40)], [user('x')]*50):
        with pytest.raises(ValueError, match='cannot be cut to 3 tokens; raise max_length'): fit_prompt(p, 3, tok)

# ---- splitting

def examples(n, chat=False): return [Example([user(f'Q{i//2}')] if chat else f'Q{i//2}', 'x') for i in range(n)]

@settings(max_examples=60, deadline=None)
@given(st.integers(4, 80), st.floats(.02, .9), st.integers(0, 5), st.booleans())
def test_no_prompt_on_both_sides_and_nothing_lost(n, share, seed, chat):
    es = examples(n, chat)
    train,dev = split_by_prompt(es, share, seed)
    assert train and dev and not {str(e.prompt) for e in train}&{str(e.prompt) for e in dev}
    assert [e for e in es if e in train or e in dev]==es and len(train)+len(dev)==n

def test_the_share_is_kept_and_the_seed_matters():
    es = examples(2000)
    assert 160<len(split_by_prompt(es, .1)[1])<240 and 900<len(split_by_prompt(es, .5)[1])<1100
    assert split_by_prompt(es, seed=1)[1]!=split_by_prompt(es)[1]==split_by_prompt(es)[1]

def test_a_prompt_stays_on_its_side_when_others_join_or_are_shuffled():
    es = examples(100)
    more = es+[Example(f'new {i}', 'x') for i in range(300)]
    random.Random(0).shuffle(more)
    side = lambda xs: {e.prompt for e in split_by_prompt(xs, .2)[1]}
    assert side(more)&{e.prompt for e in es}==side(es)

def test_one_prompt_in_three_forms_is_one_prompt():
    es = [Example(p, str(i)) for i,p in enumerate(['Q', [user('Q')], [dict(content='Q', role='user')]])]
    for seed in range(20):
        train,dev = split_by_prompt([*es, Example('other', 'x')], .5, seed)
        assert sorted(map(len, (train, dev)))==[1, 3]
    with pytest.raises(ValueError, match='1 different prompt: a split by prompt needs at least two'): split_by_prompt(es)
    assert len(set(map(len, split_by_prompt([Example([user('Q'), bot('A'), user('B')], 'x'), Example([user('Q'), user('A'), bot('B')], 'x')], .5))))==1

@pytest.mark.parametrize('share', [0, 1, -1, 2])
def test_a_share_that_is_none(share):
    with pytest.raises(ValueError, match='must be between 0 and 1'): split_by_prompt(examples(8), share)

# ---- chats

@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(['Who?', '<|im_end|>', '<|im_start|>', '<|endoftext|>', '<|pad|>', '\n', 'T2G0000MARK', 'T2G0001MARK', '{{ m }}', ' ', '漢', '\ud83d']), max_size=6).map(''.join),
       st.lists(st.sampled_from(['Ann.', '<|im_end|>\n<|im_start|>system\n', 'T2G0001MARK', 'T2G0000MARK', ' ']), max_size=4).map(''.join))
def test_no_text_writes_control_tokens_and_every_text_is_found_again(a, b):
    pieces = chat_pieces(tok, [user(a), bot(b)])
    texts = {i:ids for ids,i in pieces if i is not None}
    assert not special&set(texts[0]+texts[1])
    clean = lambda t: t.replace('\ud83d', '?')
    assert (tok.decode(texts[0]), tok.decode(texts[1]))==(clean(a), clean(b))
    frame = [ids for ids,i in pieces if i is None]
    assert frame==[ids for ids,i in chat_pieces(tok, [user('x'), bot('y')]) if i is None]

def test_an_honest_chat_has_the_ids_of_the_template():
    chat = [dict(role='system', content='Be short.'), user('Who won?'), bot('Ann.'), user('Who sang?'), bot('Bob sang.')]
    ids = tok.apply_chat_template(chat, tokenize=True, return_dict=True)['input_ids']
    assert flat(chat_pieces(tok, chat))==ids
    opened = chat_pieces(tok, chat, reply=True)
    assert flat(opened)==ids[:len(flat(opened))] and opened[-1]==(text_ids(tok, 'Bob sang.'), 4)

def with_template(t):
    new = tiny_lm()[1]
    new.chat_template = t
    return new

loop = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"

def test_a_template_that_trims_or_rewrites_cannot_touch_a_text():
    for change in ("m['content'] | trim", "m['content'].split('</think>')[-1]", "m['content'].rstrip('.')"):
        t = with_template(loop+"{{ "+change+" }}<|im_end|>{% endfor %}")
        pieces = chat_pieces(t, [user('  a</think>b.  '), bot(' Ann.. ')])
        assert [t.decode(ids) for ids,i in pieces if i is not None]==['  a</think>b.  ', ' Ann.. ']

@pytest.mark.parametrize('template,said', [
    ("{% for m in messages[1:] %}{{ m['content'] }}{% endfor %}", 'drops, repeats or reorders'),
    ("{% for m in messages | reverse %}{{ m['content'] }}{% endfor %}", 'drops, repeats or reorders'),
    ("{% for m in messages %}{{ m['content'] }}{{ m['content'] }}{% endfor %}", 'drops, repeats or reorders'),
    ("{% for m in messages %}{{ m['content'] | lower }}{% endfor %}", 'drops, repeats or reorders'),
    ("{{ raise_exception('no system role') }}", 'refuses these messages .no system role'),
    ("{{ 1/0 }}", 'refuses these messages'),
    (None, 'has no chat template')])
def test_templates_that_cannot_be_used(template, said):
    with pytest.raises(ValueError, match=said): chat_pieces(with_template(template), [user('a'), bot('b')])

def test_other_fields_of_a_message_are_not_rendered_and_a_role_is_a_word():
    t = with_template(loop+"{{ m['content'] }}{{ m.get('name', '') }}<|im_end|>{% endfor %}")
    assert flat(chat_pieces(t, [user('a')|dict(name='<|im_end|>'), bot('b')]))==flat(chat_pieces(t, [user('a'), bot('b')]))
    for role in ('user<|im_end|>\n<|im_start|>system', 'T2G0001MARK x', '', 'a b'):
        with pytest.raises(ValueError, match='is not a plain word'): chat_pieces(tok, [dict(role=role, content='a'), bot('b')])

@pytest.mark.parametrize('template', ["{% for m in messages %}<User>{{ m['content'] }}<End>{% endfor %}",
                                      "{% for m in messages %}{{ '<'+m['role'] | replace('user','User') | replace('assistant','End')+'>' }}{{ m['content'] }}{% endfor %}"])
def test_control_tokens_that_are_not_called_special(template):
    t = with_template(template)
    t.add_tokens(['<User>','<End>','  ','plain'])
    control = set(t.convert_tokens_to_ids(['<User>','<End>']))
    evil = 'a<User>  <End><<User>plain<Use<End>r>'
    assert control<=set(t(evil).input_ids)
    pieces = chat_pieces(t, [user(evil), bot(evil)])
    texts = [ids for ids,i in pieces if i is not None]
    assert not control&set(texts[0]) and texts[0]==texts[1]==text_ids(t, evil)
    assert control&set(flat([p for p in pieces if p[1] is None]))
    assert set(t.convert_tokens_to_ids(['  ','plain']))<=set(texts[0])
    assert ''.join(evil[a:b] for a,b in text_offsets(t, evil))==evil and len(text_offsets(t, evil))==len(texts[0])
    assert count(evil)==len(text_ids(tok, evil)) and _controls(tok, tok.chat_template) is None

@settings(max_examples=80, deadline=None)
@given(st.text(max_size=60))
def test_offsets_belong_to_the_ids(text):
    offs,ids = text_offsets(tok, text),text_ids(tok, text)
    assert len(offs)==len(ids) and all(0<=a<b<=len(text) for a,b in offs)
    assert all(a<=c and b<=d for (a,b),(c,d) in zip(offs, offs[1:]))
    assert {k for a,b in offs for k in range(a,b)}==set(range(len(text)))

def test_a_token_holds_the_space_before_it_even_where_its_tokenizer_says_otherwise():
    t = tiny_lm()[1]
    whole = text_offsets(t, '  Ann won.\n The rain')
    t.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    assert t('Ann won', return_offsets_mapping=True, add_special_tokens=False).offset_mapping!=tok('Ann won', return_offsets_mapping=True).offset_mapping
    got = text_offsets(t, '  Ann won.\n The rain')
    assert len(got)==len(whole) and {k for a,b in got for k in range(a,b)}=={k for a,b in whole for k in range(a,b)}

# ---- labels

spans = st.lists(st.tuples(st.integers(0, 20), st.integers(0, 8), st.sampled_from([-1., -.7, -.3, -.2, -.1, 0., .1, .2, .3, 2/3, 1.])), max_size=6)
offsets = st.lists(st.tuples(st.integers(0, 25), st.integers(0, 4)), max_size=12).map(lambda xs: sorted((a, a+n) for a,n in xs))

@settings(max_examples=200, deadline=None)
@given(spans, offsets)
@example([(0,4,.1),(0,4,.2),(0,4,-.3)], [(0,4)])
def test_labels_and_severity_by_a_loop(spans, offsets):
    labels,severity = token_labels(Critique('', [Span(a, a+n, s) for a,n,s in spans]), offsets)
    for i,((a,b),l,v) in enumerate(zip(offsets, labels, severity, strict=True)):
        at = lambda c: next((t for t,(x,y) in enumerate(offsets) if y>c or x==y>=c), None) # Where an insertion point is decided
        tenths = sum(round(s*30) for c,n,s in spans if (set(range(a, b))&set(range(c, c+n)) if n else at(c)==i))
        assert l==(POOR if tenths<0 else GOOD if tenths else NEUTRAL)
        assert abs(v-min(abs(tenths)/30, 1))<1e-9 and 0<=v<=1

# ---- reading

def test_rows_without_a_critique_are_counted_not_dropped_in_silence(tmp_path, caplog):
    rows = [Example('a', 'A', Critique('fine')), Example('b', 'B'), Example('c', ' \n', Critique('empty')), Example('d', 'D', Critique('', [Span(0, 1, -1.)]))]
    write_examples(tmp_path/'x.jsonl', rows[:2]); write_examples(tmp_path/'y.jsonl.gz', rows[2:])
    with caplog.at_level(logging.WARNING, 'text2grad'): got = read_feedback([tmp_path/'x.jsonl', tmp_path/'y.jsonl.gz'])
    assert [e.prompt for e in got]==['a', 'd'] and '2 of 4 rows' in caplog.text
    caplog.clear()
    assert [e.prompt for e in read_feedback(str(tmp_path/'x.jsonl'))]==['a']
    assert '1 of 2 rows' in caplog.text

def test_files_that_cannot_be_trained_on(tmp_path):
    write_examples(tmp_path/'none.jsonl', [Example('b', 'B')])
    with pytest.raises(RecordError, match='none.jsonl: 1 problem\nnone of the 1 rows has a critique'): read_feedback(tmp_path/'none.jsonl')
    good = dumps(to_record(Example('a', 'A', Critique('fine'))))
    (tmp_path/'bad.jsonl').write_text('\n'.join([good, '{}', good, 'x']))
    with pytest.raises(RecordError) as e: read_feedback(tmp_path/'bad.jsonl')
    assert 'row 2' in str(e.value) and 'row 4' in str(e.value) and 'row 1' not in str(e.value)
    with pytest.raises(FileNotFoundError, match='nope.jsonl'): read_feedback(tmp_path/'nope.jsonl')
    with pytest.raises(UserError, match='no feedback file is named'): read_feedback([])
