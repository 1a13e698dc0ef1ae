"What a critic writes is read whole or not at all: keys spelled otherwise, objects closed too early, replies that break off, prose with brackets"
import json,re
import pytest
from hypothesis import HealthCheck,given,settings,strategies as st
from text2grad.alignment.critiques import align,parse_critique,read_critique,why_unreadable

def cases(n): return settings(max_examples=n, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))

R = 'The ferry leaves at noon. Every seat was soaked in rum.'
GOOD,POOR = 'leaves at noon','soaked in rum'
whole = dict(critique='The second sentence is made up.', good_spans=[dict(quote=GOOD, reason='as in the source', severity=1)],
             poor_spans=[dict(quote=POOR, reason='nowhere in the source', severity=3)], missing=['the price'])
J = json.dumps(whole)

def signs(critique):
    "[(words, sign)], or `None` where it is refused"
    c = align(R, critique)
    return None if c is None else sorted((R[s.start:s.end], (s.score>0)-(s.score<0)) for s in c.spans)
both = sorted([(GOOD, 1), (POOR, -1)])

# keys

@pytest.mark.parametrize('good,poor', [
    ('goodSpans','poorSpans'), ('Good_Spans','Poor_Spans'), ('good-spans','poor-spans'), ('GOOD SPANS','POOR SPANS'), ('goodspans','poorspans'), ('good_quotes','bad_quotes'),
    ('positive_spans','negative_spans'), ('spans_good','spans_bad'), ('good_phrases','wrong_phrases'), ('strong_passages','weak_passages'), ('positive_span_list','negative_span_list'),
    ('strengths','weaknesses'), ('praise','issues'), ('good','bad')])
def test_a_key_is_read_by_what_it_says(good, poor):
    d = {'critique':'x', good:whole['good_spans'], poor:whole['poor_spans']}
    for form in (d, json.dumps(d), json.dumps(d)[:-1]+',}', f'Sure:\n```json\n{json.dumps(d)}\n```', dict(result=d), dict(critique='x', spans={good:d[good], poor:d[poor]})):
        assert signs(form)==both, form

@pytest.mark.parametrize('key,value', [
    ('overstated', [POOR]), ('strengths', [GOOD]), ('issues', ['It makes things up.']), ('weaknesses', 'The rum is made up.'), ('bad', POOR), ('spans', [dict(quote=POOR, label='poor')]),
    ('spans', {POOR:-1}), ('word_score_list', [['rum', -1]]), ('wordScores', dict(rum=-1)), ('not_good_spans', [POOR]), ('non_negative_spans', [GOOD]), ('marks', dict(wrong=POOR)),
    ('corrections', [dict(old=POOR, new='dry')]), ('rows', [[[POOR]]]), ('hallucinated_claims', POOR), ('Negative feedback', 'Rum? No.'), ('flaws', dict(first=POOR)), ('poor_passage_and_reason', [POOR, 'x'])])
def test_what_may_be_blame_under_an_unknown_key_is_refused_as_a_whole(key, value):
    d = dict(critique='x', good_spans=whole['good_spans']) | {key:value}
    for form in (d, json.dumps(d), json.dumps(d)[:-1], 'Here:\n'+json.dumps(d), dict(answer=d)): assert signs(form) is None, form

@pytest.mark.parametrize('more', [dict(score=4), dict(title='On ferries'), dict(overall='Mixed'), dict(tags=[]), dict(scores=dict(clarity=3, truth=1)), dict(ratings=[1,2]), dict(positive=True),
                                  dict(negative_count=1), dict(weaknesses=[]), dict(issues='none'), dict(bad_spans=[]), dict(poorSpans=None), dict(model=dict(name='m')), dict(corrected_text='It is dry.'),
                                  dict(spans=[]), dict(error=None), dict(word_count=11), dict(summary='Half right.')])
def test_what_cannot_be_praise_or_blame_has_no_effect(more):
    assert signs(whole | more)==signs(json.dumps(whole | more))==both and read_critique(whole | more)[0]==whole

def test_the_same_part_twice():
    assert signs(whole | {'Poor_spans':[GOOD]}) is None and signs(whole | {'Poor_spans':whole['poor_spans']})==both
    assert signs(dict(good_spans=[GOOD], poor_spans=['seat'], wrong_code=[POOR]))==sorted([(GOOD, 1), ('seat', -1), (POOR, -1)])
    assert parse_critique(dict(poor_spans=[{'quote':POOR, 'Quote':GOOD}])) is None and parse_critique(dict(poor_spans=[dict(quote=POOR, others=[GOOD])])) is None

def test_keys_of_a_mark():
    read = lambda **kw: parse_critique(dict(poor_spans=[kw]))['poor_spans']
    assert read(Quote=POOR, Severity='1')==read(span=POOR, severity_level=1)==[dict(quote=POOR, reason='', severity=1)]
    assert read(quote=None, text=POOR, severity=None, explanation='no')==[dict(quote=POOR, reason='no', severity=3)]

def test_prose_under_another_name_is_kept():
    assert parse_critique(dict(feedback='Half right.', good_spans=[GOOD]))['critique']=='Half right.'
    assert parse_critique({'Critique':'a', 'textual_feedback':'b', 'good_spans':[]})['critique']=='a'

alphabet = st.sampled_from(['good','Good','poor','bad','negative','positive','wrong','spans','Spans','quotes','list','_','-',' ','score','not','x','word','missing','critique','issues','s'])
@cases(1500)
@given(st.lists(alphabet, min_size=1, max_size=4).map(''.join), st.sampled_from([[POOR], [dict(quote=POOR)], dict(quote=POOR), dict(deep=dict(deeper=[POOR])), [[POOR, -1]]]))
def test_no_key_loses_what_it_holds(key, value):
    "Under any name, words that stand in a list are marks of one sign or the other, are named as missing, or the critique is refused"
    d = parse_critique({'good_spans':[GOOD], key:value} if key!='good_spans' else {key:value})
    if d: assert POOR in [o['quote'] for o in d['good_spans']+d['poor_spans']]+d['missing']

# objects and what stands around them

early = ['{"critique": "c", "good_spans": ["%s"]}, "poor_spans": ["%s"]}', '{"critique": "c", "good_spans": ["%s"]},\n"poor_spans": ["%s"]', '{"critique": "c", "good_spans": ["%s"]}, {"quote": "%s"}]}',
         '{"good_spans": ["%s"]}], "poor_spans": [{"quote": "%s"}]}', '{"good_spans": ["%s"]}, "%s"]}', '{"good_spans": ["%s"]}\n["%s"]', '{"good_spans": ["%s"]} "bad": ["%s"]}',
         "{\"good_spans\": [\"%s\"]}, 'poor_spans': ['%s']}", '{"good_spans": ["%s"]}, poor_spans: ["%s"]}', '{"good_spans": ["%s"]}, %s]}', '```json\n{"good_spans": ["%s"]}\n```\nPoor spans:\n- "%s"',
         '{"critique": "a\nb", "good_spans": ["%s"]}, "poor_spans": ["%s"]}', '{"good_spans": [{"quote": "%s"}}, "poor_spans": [{"quote": "%s"}]}', '{"good_spans": ["%s",]}, {"quote": "%s"}]}',
         '{"good_spans": ["%s"]}: {"text": "%s"}']
@pytest.mark.parametrize('text', early)
def test_what_stands_behind_an_object_that_closed_too_early_is_not_dropped(text):
    got = signs(text%(GOOD, POOR))
    assert got in (None, both)

def test_what_stands_before_an_object_is_not_dropped():
    for before in ('"poor_spans": ["%s"], ', '{"overstated": ["%s"], "x": ', '{"poor_spans": ["%s"}, ', 'Poor spans: "%s"\n', '[{"quote": "%s"}, '):
        assert signs(before%POOR+json.dumps(dict(good_spans=[GOOD]))) is None, before

def test_prose_around_an_object_stays_prose():
    for text in (f'Sure! {J} Hope it helps.', f'{J}, as you asked.', f'[{J}]', f'"Here" it is:\n{J}', f'{J}\n(end)', f'In the form {{"critique": "...", "good_spans": [...], "poor_spans": []}}:\n{J}', J+J,
                 f'The source says "noon".\n\n```json\n{J}\n```\n\nNote: "noon" is right.', f'[1] {J} [2]'):
        assert signs(text)==both, text

# replies that break off

@pytest.mark.parametrize('text', [
    '{"critique": "A } in prose.", "good_spans": [{"quote": "%s", "severity": 1}', '{"critique": "c", "good_spans": ["f(){}", "%s"', '{"critique": "}}}", "good_spans": ["%s"',
    '{"critique": "A \\"}\\" there.", "good_spans": ["%s"', '{"critique": "c", "good_spans": ["%s", "a[0]', '{"critique": "the "}" is", "good_spans": ["%s"', '{"good_spans": ["%s"], "poor_spans": ["a[0]',
    '{"critique": "c", "good_spans": [{"quote": "%s", "reason": "see {1}"}', '{"critique": "c", "good_spans": ["%s"], "note": "}'])
def test_brackets_inside_strings_do_not_end_a_reply(text): assert signs(text%GOOD) is None

@cases(400)
@given(st.integers(1, len(J)-1), st.sampled_from(['', '} is', 'f(){}', '[x]', '\\"}\\"', '{']))
def test_a_reply_that_breaks_off_never_pays_without_its_blame(n, words):
    text = json.dumps(whole | dict(critique=words)).replace('noon', 'noon '+words.replace('\\"', "'"))
    d = parse_critique(text[:n] if n<len(text) else text)
    if d: assert [o['quote'] for o in d['poor_spans']]==[POOR]

# replies that are damaged: the same findings, or none

def findings(text):
    "The set of what it praises and blames, punctuation aside, or `None`"
    d,bare = parse_critique(text),lambda o: re.sub(r'[\W_]+', '', o['quote'])
    return None if d is None else {*((1, bare(o)) for o in d['good_spans']), *((-1, bare(o)) for o in d['poor_spans'])}

mark = lambda q,reason,n: dict(quote=q, reason=reason, severity=n)
replies = [json.dumps(d, indent=indent) for indent in (None, 1) for d in (
    whole, dict(textual_feedback='c', good_spans=['the cat'], poor_spans=['a mat','a hat']), dict(critique='c', poor_spans=['a mat','a hat'], good_spans=['the cat']),
    dict(critique='c', good_spans=[mark('the cat', 'f(x)[0] {y}', 1), mark('a dog', '', 2)], poor_spans=[mark('a mat', '[1]', 3), mark('a hat', '(ok)', 1)], missing=[]),
    {'Code Feedback':'c', 'wrong_code':['x+1','y[0]'], 'improvement_code':['z']}, dict(poor_spans=[mark('a mat', 'r', 3)], good_spans=[mark('the cat', 'r', 1)], critique='x'))]

@cases(3000)
@given(st.sampled_from(replies), st.data())
def test_a_bracket_or_mark_that_is_lost_doubled_or_another_loses_no_finding(reply, data):
    "One structural character goes, comes or changes; then the reply may break off"
    i = data.draw(st.sampled_from([i for i,c in enumerate(reply) if c in '[]{}(),:"']))
    text = reply[:i]+data.draw(st.sampled_from(['','']+list('[]{}(:"')))+reply[i+data.draw(st.booleans()):]
    if data.draw(st.integers(0, 2))==0: text = text[:data.draw(st.integers(1, len(text)))]
    got = findings(text)
    assert got is None or got==findings(reply), text

@cases(600)
@given(st.sampled_from(replies), st.data())
def test_a_reply_that_was_cut_and_then_closed_loses_no_finding(reply, data):
    "Servers and models close what they have broken off"
    text = reply[:data.draw(st.integers(1, len(reply)-1))]+data.draw(st.sampled_from(['}','}}','"}','"}}','(}}','(}]}','[}','[}}','[','{',')',']']))
    assert findings(text) in (None, findings(reply)) or json_reads(text) or json_reads(text+'}'), text

def json_reads(text):
    "Does it begin with sound JSON? Nobody can see then that something is gone"
    try: json.JSONDecoder().raw_decode(text)
    except ValueError: return False
    return True

@pytest.mark.parametrize('text', ['{"good_spans": [{"quote": "%s", "reason": (}}', '{"good_spans": [{"quote": "%s", "reason": [}}', '{"good_spans": [{"quote": "%s"}}', '{"good_spans": [{"quote": "%s", "reason": }]}',
    '{"good_spans": ["%s"}', '{"critique": "c", "good_spans": ["%s"], "poor_spans": [}', '{"critique": "c", "good_spans": ["%s"], "poor_spans": (}', '{"good_spans": ["%s", (, "x"]}', '{"good_spans": ["%s"], "poor_spans": }',
    '{"good_spans": ["%s"], "poor_spans" ["x, "y"]}', '{"good_spans": ["%s"], "poor_spans": "x", "y"]}', '{"good_spans": ["%s"], "poor_spans": ["x, "y"]}', '{"good_spans": ["%s"], "poor_spans": ["x", y"]}',
    '{"good_spans": ["%s"], }poor_spans": ["x"]}', '{"good_spans": ["%s"], "poor_spans": []x"]}', '{"good_spans": ["%s"], "poor_spans": [{"quote": "x"] "reason": "r"},', '{"good_spans": ["%s"}, "poor_spans": ["x"'])
def test_a_list_that_never_closes_is_refused(text): assert signs(text%GOOD) is None

@pytest.mark.parametrize('text', [J.replace('"}', '"', 1), J.replace('], "poor', ', "poor'), J.replace('}], "poor', '], "poor'), J.replace('"quote": "soaked', '"quote: "soaked'), J.replace('"reason": "nowhere', 'reason": "nowhere'),
    J.replace('"quote": "soaked', '"quote" "soaked'), J.replace('in rum"', 'in rum'), J.replace('"soaked', 'soaked'), J.replace('"poor_spans":', 'poor_spans:'), J.replace('}]', '},]'), J.replace(', "poor', ' "poor'),
    J.replace('3}', '3},'), J.replace('3', 'None'), '\n'.join([J[:40], J[40:]]), J.replace('["the price"]', '["the price"'), J[:J.index('price')]])
def test_what_only_one_reading_fits_is_read(text): assert signs(text)==both

def test_a_repair_loses_no_words():
    for text in ('{"poor_spans": he said "no" twice\n}', '{"good_spans": ["a"], "poor_spans": b "c" d}', '{"good_spans": ["a"], "poor_spans": ["b" c]}'):
        d = parse_critique(text)
        assert d is None or {'no','twice','c','d'}&set(re.findall(r'\w+', text))<=set(re.findall(r'\w+', str(d))), d
    assert parse_critique('{"poor_spans": he said "no" twice\n}') is None

@pytest.mark.parametrize('text', [J[:-1], J.replace(']', ',]', 1), J.replace('made up', 'made\nup'), J.replace('made up', '"made up"'), J.replace('"poor_spans"', '// the blame\n"poor_spans"'),
                                  J.replace('"severity"', 'severity'), J.replace('3}', '3'), J.replace('", "reason"', '" "reason"'), J[:-1]+'\n\nLet me know.', f'```json\n{J[:-1]}\n```',
                                  J.replace('made up', 'f() {} up').replace(']', ',]', 1)])
def test_what_was_repaired_still_is(text): assert signs(text)==both and read_critique(text)[1]=='repaired'

# prose and JSON

@pytest.mark.parametrize('text', ['[minor] "{0}" is wrong. [style]', '["{0}"] is wrong.', '{{"a", "b"}}: "{0}" is wrong.', '{{"page": 3}}: "{0}" is wrong.', '[[1]] "{0}" is wrong.', '[1, 2] "{0}" is wrong {{sic}}',
                                  '{{}} "{0}" is wrong.', '```\n["rum"]\n```\n"{0}" is wrong.', '{{rows: 3}} "{0}" is wrong. [x]', '[note](a.html) "{0}" is wrong [1]', "{{'a': 1}} \"{0}\" is wrong."])
def test_prose_with_brackets_and_braces_is_prose(text): assert signs(text.format(POOR))==[(POOR, -1)]

@pytest.mark.parametrize('text', ['["a"', '["a", "b"]', '{"page": 3}', '{"rating": [3', '[]', '{}', '[{"x": 1}', '{"bad": ["a"]} I hope it helps.', 'So {"issues": ["a"]} is it.', "{'good_spans': ['a']}",
                                  '```json\n["a"]\n```', '[1, 2', '{"critique" broken', '{a: 1}'])
def test_json_is_not_taken_for_prose(text): assert align(R, text) is None

@pytest.mark.parametrize('critique,why', [
    (dict(good_spans=[GOOD], overstated=[POOR]), "'overstated' is no key"), ('{"good_spans": ["a"]}, "poor_spans": ["b"]}', 'closed too early'), (f'{J} and {{"critique": "b"}}', 'two critiques that differ'),
    (dict(poor_spans=[dict(quote=POOR, severity=7)]), 'poor_spans.0.severity'), ('{"critique": "a", "good_spans": ["b"', 'breaks off'), (dict(poor_spans=[dict(quote=POOR, Quote=GOOD)]), 'stands there twice'),
    (dict(score=3), 'none of the known keys'), ('Fine.', 'no known key'), (None, 'no text'), (whole, ''), (J, '')])
def test_it_says_why_it_could_not_be_read(critique, why):
    assert why in why_unreadable(critique) and bool(why)==bool(why_unreadable(critique))

def test_a_list_may_be_written_as_a_string():
    for form in (json.dumps(whole['poor_spans']), json.dumps([POOR]), json.dumps(whole['poor_spans'][0])): assert signs(whole | dict(poor_spans=form))==both
    for form in (f"['{POOR}']", f'[("{POOR}", -1)]', f'["{POOR}", ]', json.dumps(dict(items=[POOR]))): assert signs(whole | dict(poor_spans=form)) is None, form
    assert parse_critique(dict(wrong_code='[x for x in y]'))['poor_spans'][0]['quote']=='[x for x in y]'

def test_a_mark_that_says_the_other_sign_is_refused():
    for more in (dict(type='bad'), dict(label='Negative'), dict(sentiment='poor'), dict(score=-1), dict(sign='weakness')):
        assert signs(dict(good_spans=[dict(quote=POOR) | more])) is None, more
        assert signs(dict(poor_spans=[dict(quote=POOR) | more]))==[(POOR, -1)]
    assert signs(dict(poor_spans=[dict(quote=POOR, label='good')])) is None and signs(dict(poor_spans=[dict(quote=POOR, reason='error')]))==[(POOR, -1)]

def test_a_comment_or_a_string_does_not_swallow_a_key():
    for text in ('{"good_spans": ["%s"], "poor_spans": //[{"quote": "%s"}]}', '{"good_spans": ["%s"//], "poor_spans": ["%s"]}', '{"good_spans": ["%s", /* "poor_spans": ["%s"]}', '{"good_spans": ["%s"], "critique": //x", "poor_spans": ["%s"]}', '{"good_spans": [{"quote": "%s", "reason": ""U}], "critiqu"e: "x", "poor_spans": ["%s"]}'):
        assert signs(text%(GOOD, POOR)) in (None, both), text

# the paper's word scores

W = 'The cat saw the dog. The dog saw the cat, too.'
EACH = [[w, s] for w,s in zip(W.split(), [0,0,0,0,-1,0,0,0,0,0,1])]
word_forms = dict(pairs=EACH, capitals=[dict(Word=w, Score=f'{s:+d}') for w,s in EACH], objects=[dict(word=w, score=s) for w,s in EACH], bare=[[re.sub(r'\W', '', w), s] for w,s in EACH],
                  python=repr([tuple(p) for p in EACH]), python_objects=repr([dict(word=w, score=s) for w,s in EACH]), text=json.dumps(EACH), strings=[[w, str(s)] for w,s in EACH])
placed = lambda c: c and sorted((s.start, W[s.start:s.end].strip('.,'), s.score) for s in c.spans)

@pytest.mark.parametrize('form', word_forms)
@pytest.mark.parametrize('key', ['word_score_list','word_scores','wordScoreList','Word Scores'])
def test_word_scores_are_read_at_their_places(form, key):
    d = {'textual_feedback':'Which dog?', key:word_forms[form]}
    for reply in (d, json.dumps(d), f'Here:\n```json\n{json.dumps(d, indent=1)}\n```', dict(result=d)):
        c = align(W, reply)
        assert placed(c)==[(16, 'dog', -1.), (42, 'too', 1.)] and c.text=='Which dog?', reply

def test_a_list_of_scored_words_alone_means_every_place():
    assert placed(align(W, dict(word_scores=dict(dog=-1))))==placed(align(W, dict(word_scores=[['dog', -1], ['Dog', -1]])))==[(16, 'dog', -1.), (25, 'dog', -1.)]
    assert placed(align(W, dict(textual_feedback='Fine.', word_scores=[['dog', 0]])))==[] and align(W, dict(word_scores=[['dog', -1], ['dog', 1]])) is None

@pytest.mark.parametrize('bad', [[['dog', 2]], [['dog']], [['dog', -1, 3]], ['dog'], 'dog: -1', [['', -1]], [[3, 1]], [['dog', True]], [['dog', None]], [dict(word='dog')], '[("dog", -1', '__import__("os")', [[['dog', -1]]], '('*3000])
def test_word_scores_of_no_form_are_refused(bad):
    for d in (dict(textual_feedback='x', word_score_list=bad), dict(textual_feedback='x', word_score_list=[['cat', 1], *bad] if isinstance(bad, list) else bad)): assert align(W, d) is align(W, json.dumps(d)) is None

def test_word_scores_beside_other_marks_or_cut_off_are_refused():
    for more in (dict(good_spans=['cat']), dict(poor_spans=['dog']), dict(improvement_code=['dog']), dict(word_scores=[['cat', 1]])): assert align(W, dict(word_score_list=[['dog', -1]]) | more) is None
    text = json.dumps(dict(textual_feedback='x', word_score_list=EACH))
    assert all(align(W, text[:n]) is None for n in range(20, len(text)))
    assert placed(align(W, dict(word_score_list=[['dog', -1]], good_spans=[], missing=['the end'])))==[(16, 'dog', -1.), (25, 'dog', -1.)]

# ---- praise that stands there without a key of blame

PRAISE = '"critique": "c", "good_spans": ["%s"]'%GOOD

@pytest.mark.parametrize('key', 'criticised to_fix improvements suggestions red_flags complaints penalties minus - 1 flagged questionable highlights annotations marks notes details comments 不良'.split())
@pytest.mark.parametrize('value', ['"%s"', '{"%s": "made up"}', '["%s"]', '[{"quote": "%s"}]', '{"quote": "%s"}'])
def test_what_may_be_blame_under_another_name_is_never_lost(key, value):
    assert signs('{%s, "%s": %s}'%(PRAISE, key, value%POOR)) in (None, [(GOOD, 1), (POOR, -1)])

@pytest.mark.parametrize('behind', ['However, "%s" is made up.', '- %s (made up)', 'Weaknesses: %s', 'The rest, %s, is wrong.'])
def test_words_behind_praise_alone_may_be_blame(behind):
    assert signs('{%s}\n%s'%(PRAISE, behind%POOR)) is None and signs('{%s, "poor_spans": []}\n%s'%(PRAISE, 'I hope this helps.'))==[(GOOD, 1)]
    assert signs('{%s}'%PRAISE)==signs('```json\n{%s}\n```'%PRAISE)==[(GOOD, 1)]

def test_a_comment_that_names_our_keys_may_be_a_part_of_it(): assert signs('{%s,\n// poor_spans\n"x": 1}'%PRAISE) is None

@pytest.mark.parametrize('before', ['"go od_spa]ns": ["clear", "short"], ', 'ood_spans: ["clear",\n"short"]]}', ': [\n "clear"\n]}]', 'Good, mostly.",\n "g}]": [ "clear" ]', '"good": [}"clear"', '"praise" : [ {"quote": "clear"}] ', '"feed[back": "Good.",\n "g}]ns" [\n "clear"\n ]}]', '"clear", "reason": "vivid", "severity": 2}], ', ' "clear",\n "short"\n ]'])
def test_a_list_that_a_damaged_key_holds_before_the_object_is_not_lost(before):
    poor = '{"poor_spans": ["wrong"], "good_spans": []}'
    assert read_critique(before+poor)[0] is None and why_unreadable(before+poor)
    for fine in ('Here is my critique of it:\n', 'Critique: ', 'Two things are wrong [see below]: ', 'The score: [3].\n', 'Note: it has 3 parts.\n```json\n'):
        assert read_critique(fine+poor)[0]['poor_spans'][0]['quote']=='wrong', fine
