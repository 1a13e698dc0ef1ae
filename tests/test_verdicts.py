"The sign of a clause: from the critic's own words, never from those it quotes; and what cannot be told pays nothing"
import json,random,time
from collections import Counter
from pathlib import Path
import pytest
from hypothesis import given,settings,strategies as st
from text2grad.alignment import align,link_phrases
from text2grad.alignment.linking import UNTOLD,linked
from text2grad.alignment.points import points_of
from text2grad.alignment.verdicts import label_of,outside_quotes,polarity,verdict
from text2grad.core import Critique

# 400 clauses, written and labelled without a look at the program. Half of them were looked at while it was made ('seen').
clauses = [json.loads(l) for l in (Path(__file__).parent/'clauses.jsonl').read_text('utf-8').splitlines()]

# ---- words in quotation marks

marks = ['"{}"', '“{}”', '`{}`', '«{}»', "'{}'", '‘{}’', '„{}“', '「{}」']
said = {'is wrong.':-1, 'is correct.':1, 'is not what the passage says.':-1, 'answers the question.':1, 'is filler: cut it.':-1, 'is polite.':1,
        'was never in the source.':-1, 'could not be clearer.':1, 'stands in the second paragraph.':0}
quotes = ['an excellent and helpful offer', 'does not open on Mondays', 'never fails', 'wrong number', 'the tower', 'but it is awful', 'no good. Nothing works',
          'is unclear; drop it', 'good', 'should be better']

@pytest.mark.parametrize('mark', marks)
@pytest.mark.parametrize('quote', quotes)
def test_a_quotation_has_no_vote(mark, quote):
    for words,sign in said.items():
        assert verdict(f'{mark.format(quote)} {words}')==sign==verdict(f'{mark.format("the tower")} {words}')
        assert verdict(f'I say that {mark.format(quote)} {words}')==verdict(f'I say that {mark.format("the tower")} {words}')

@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(st.lists(st.sampled_from('good bad not never wrong clear but should the tower and, is. excellent; lacks without'.split()), min_size=1, max_size=8), st.sampled_from(sorted(said)))
def test_replacing_quoted_words_never_changes_a_sign(words, rest):
    quote,response = ' '.join(words),' '.join(words)+' stands here, and the tower, too.'
    [a],[b] = ({s.score for s in align(response, f'"{q}" {rest}').spans} or {0.} for q in (quote, 'the tower'))
    assert a==b

@pytest.mark.parametrize('text,signs', [
    ('"two halls" is right and "on Mondays" is wrong.', [1, -1]), ('"two halls" and "on Mondays" are wrong.', [-1, -1]),
    ('"two halls" is fine, but "on Mondays" is not what the text says.', [1, -1]), ('I like "two halls", "on Mondays" is made up.', [1, -1]),
    ('"two halls" sounds good but is not true.', [-1])])
def test_quotations_judged_apart(text, signs):
    spans = align('It has two halls and closes on Mondays.', text).spans
    assert [s.score for s in spans]==signs

# ---- what cannot be told

@pytest.mark.parametrize('text', ['"two halls" is frumious.', '"two halls" stands in the first line.', 'Is "two halls" right?', '"two halls"', '"two halls" is polite? "on Mondays" is wrong.'])
def test_what_cannot_be_told_is_unresolved_and_says_so(text):
    c = align('It has two halls and closes on Mondays.', text)
    assert not any('halls' in s.quote for s in c.spans)
    q = next(q for q in c.unresolved if 'halls' in q.text)
    assert q.score==0 and q.reason.startswith(UNTOLD)
    assert align('It has two halls and closes on Mondays.', c)==c                      # and stays so when it is tried again

def test_a_clause_that_goes_on_takes_the_sign_of_what_was_said():
    assert {p.score for p in points_of('The date is wrong. He moved in May.')}=={-1.}
    assert {p.score for p in points_of('He moved in May. The date is wrong.')}=={-1.}
    assert {p.score for p in points_of('He moved in May.')}=={0.}

# ---- headings

@pytest.mark.parametrize('text,signs', [
    ('Strengths:\n- "two halls"\n\nWeaknesses:\n- "on Mondays"', [1, -1]), ('## Pros\n"two halls"\n## Cons\n"on Mondays"', [1, -1]),
    ('**What works**\n* "two halls"\n**What to improve**\n* "on Mondays"', [1, -1]), ('Good points: "two halls". \nBad points: "on Mondays".', [1, -1]),
    ('Weaknesses\n1. "two halls"\n2. "on Mondays" is right, though.', [-1, 1]), ('Summary:\n"two halls" is wrong.\nOther:\n"on Mondays" is right.', [-1, 1]),
    ('+ "two halls" is right\nProblems:\n"on Mondays"', [1, -1])])
def test_headings_give_the_sign(text, signs): assert [s.score for s in align('It has two halls and closes on Mondays.', text).spans]==signs

@pytest.mark.parametrize('line,sign', [('Not good: the date', -1), ("What doesn't work: the date", -1), ('No errors: all is well', 1), ('Nothing wrong: fine', 1),
    ('What is not good:', -1), ('Never wrong:', 1), ('Good: the date', 1), ('**Well done**: the date', 1), ('Several issues with the summary: the date', -1)])
def test_a_denial_turns_the_sign_of_a_heading(line, sign): assert label_of(line)[0]==sign

def test_a_clause_before_a_colon_keeps_its_place():
    r = 'def f(n):\n    for i in range(n):\n        print(i)'
    assert [r[s.start:s.end] for s in align(r, 'Line 2 is wrong: it should start at 1.').spans]==['for i in range(n):']
    r = 'It opened on a Friday in 1962.'
    assert [(r[s.start:s.end], s.score) for s in align(r, 'The date is wrong: it was 1926.').spans]==[('a Friday in 1962', -1.)]

@pytest.mark.parametrize('line', ['The tower is high.', 'Line 2: it stops.', 'Note that it rained: twice.', 'https://example.org/good', '',
    'Line 2 is wrong: it starts at 1.', 'The date is wrong: it was 1926.', 'Problem with the date: it is 1926', 'Errors in line 2: off by one', 'Wrong date: 1926',
    'The second sentence is bad: it repeats.'])
def test_no_heading(line): assert label_of(line)==(None, line)

# ---- sentences

@pytest.mark.parametrize('response,text,words', [
    ('Dr. Lee met Ms. Poe. She left at six. It snowed.', 'The second sentence is wrong.', 'She left at six.'),
    ('It cost $3.50 at St. Mary. He paid Mrs. Ray, e.g. in cash. Fine.', 'The second sentence is wrong.', 'He paid Mrs. Ray, e.g. in cash.'),
    ('彼は帰った。雨が降った。', 'The first sentence is wrong.', '彼は帰った。')])
def test_blame_lands_on_whole_sentences(response, text, words): assert [response[s.start:s.end] for s in link_phrases(text, response)]==[words]

# ---- the clauses

def table(part):
    got = {}
    for c in clauses:
        if c['part']==part: got.setdefault(c['kind'], Counter())['right' if (v := verdict(c['text']))==c['sign'] else 'untold' if not v else 'wrong'] += 1
    return got

def test_signs_of_clauses_that_were_never_looked_at():
    "Of 196 clauses 78% were right and 9% had the wrong sign when this was written, where the rule before it had 33% and 26%"
    got = sum(table('unseen').values(), Counter())
    assert got['right']>=.7*got.total() and got['wrong']<=.13*got.total(), table('unseen')

def test_a_verdict_is_fast():
    verdict('Warm.')
    start = time.process_time()
    for c in clauses: verdict(c['text'])
    assert (time.process_time()-start)/len(clauses)<2e-3                                # a quarter of that on an idle core

@pytest.mark.parametrize('text', ['not '*4000, '"'*9001, "'a "*5000, 'but '*5000, '`'*4000+'x', 'while '*3000, 'no '*3000+'errors', 'a'*30000, '[('*4000, 'very, '*4000])
def test_hostile_feedback_takes_no_long_time(text):
    start = time.process_time()
    verdict(text)
    assert time.process_time()-start<3

def test_many_lines_on_many_places():
    "5,000 places that 700 lines speak of, near the app's limits: .4 s on an idle core; it once took minutes"
    response,text = 'a b '*5000,'\n'.join(f'"a b" is bad {i}.' for i in range(700))
    start = time.process_time()
    assert len(linked(text, response)[0])==5000 and time.process_time()-start<5

@pytest.mark.parametrize('text,sign', [('It gets a few things wrong, including: 1) it says "in May", which is clear, 2) it says "by rail".', -1), ('Two things are right: (1) "in May", 2) "by rail", though it is odd.', 1),
                                       ('There are some errors in it: a) "in May", b) "by rail".', -1)])
def test_a_list_has_the_sign_of_what_introduces_it(text, sign):
    response = 'It came in May by rail.'
    assert {(response[s.start:s.end], s.score) for s in link_phrases(text, response)}=={('in May', sign), ('by rail', sign)}

@pytest.mark.parametrize('text,sign', [('It could not be more wrong.', -1), ('This could not be worse.', -1), ('It has never been worse.', -1), ('It has never been this bad.', -1), ('The date could hardly be more misleading.', -1),
    ('It could not be less accurate.', -1), ('I have never read a worse summary.', -1), ('I have never seen such a mess.', -1), ('It could not be clearer.', 1), ('It has never been this good.', 1), ('I have never read a better summary.', 1),
    ('It could not be more helpful.', 1), ('It has never been so clear.', 1)])
def test_a_superlative_by_denial_has_the_sign_of_its_word(text, sign): assert verdict(text)==sign

# ---- kinds of turns, each with several clauses, and what they say of places

by_kind = [(kind, int(l[:2]), l[3:]) for part in (Path(__file__).parent/'clauses_by_kind.txt').read_text('utf-8').split('# ')[1:]
           for kind,*ls in [part.splitlines()] for l in ls]

@pytest.mark.parametrize('kind', dict.fromkeys(k for k,*_ in by_kind))
def test_signs_by_kind(kind): assert [(s, t) for k,s,t in by_kind if k==kind]==[(verdict(t), t) for k,_,t in by_kind if k==kind]

R = 'The museum opened in 1931. It has two halls. Entry costs ten euros. It closes on Mondays. Everyone loved the cafe.'
halls,euros,mondays,cafe = 'It has two halls','Entry costs ten euros','It closes on Mondays','Everyone loved the cafe'
def marked(text): return {(R[s.start:s.end].rstrip('.'), s.score) for s in align(R, text).spans}

heads = [h.replace('_', ' ').split('/') for h in '''Strengths/Weaknesses PROS/CONS 👍/👎 ✅/❌ What_I_liked/What_I_did_not_like Positive_aspects/Negative_aspects Correct/Incorrect
    Accurate/Inaccurate True/False Supported/Unsupported Faithful/Hallucinated Keep/Remove Keep/Drop Do_more_of/Do_less_of Highlights/Lowlights Wins/Misses Works/Does_not_work
    What's_working/What_isn't_working Verified/Unverified Praise/Blame Helpful/Unhelpful Best_part/Worst_part Green_flags/Red_flags Clear/Unclear Positive_feedback/Constructive_criticism
    Advantages/Disadvantages Well_supported_claims/Hallucinated_claims Supported_by_the_source/Not_supported_by_the_source Passed/Failed OK/Not_OK Correct_statements/Errors
    Commendable/Questionable Relevant/Irrelevant'''.split()]

@pytest.mark.parametrize('good,bad', heads)
def test_pairs_of_headings(good, bad):
    for form in ('{}:\n- "{}"\n\n{}:\n- "{}"', '## {}\n\n"{}"\n\n## {}\n\n"{}"', '**{}**\n1. "{}"\n\n**{}**\n1. "{}"', '{}: "{}"\n{}: "{}"', '**{}:** “{}”\n\n**{}:** “{}”', '* {} - `{}`\n* {} - `{}`', '{}: "{}"; {}: "{}".'):
        assert marked(form.format(good, halls, bad, mondays))=={(halls, 1.), (mondays, -1.)}, form

@pytest.mark.parametrize('line', ['Clarity: the date', 'Accuracy: "two halls"', 'Relevance: 1931', '**The second sentence is wrong**', '## The ending should be shorter', 'Wrong date: 1926', 'Correct answer: two', 'The awful fire: 1931'])
def test_a_label_without_a_sign(line): assert not label_of(line)[0]

A,B,C,D = '"It has two halls"','"It closes on Mondays"','"Entry costs ten euros"','"Everyone loved the cafe"'
apart = [f'| {halls} | correct |\n| {mondays} | wrong |', f'1. {A} ✅\n2. {B} ❌', f'✅ {A}\n❌ {B}', f'(+) {A}\n(-) {B}', f'+ {A}\n- {B}', f'- {A} -> correct\n- {B} -> incorrect', f'- {A} = true\n- {B} = false',
    f'{A} is right, unlike {B}.', f'Unlike {A}, {B} is not in the source.', f'While {A} is right, {B} is not.', f'Keep {A}, cut {B}.', f'Good: {A}; bad: {B}.', f'Good: {A}. Bad: {B}.',
    f'> {mondays}\n\nWrong: it is Fridays.\n\n> {halls}\n\nRight.', f'{A}\nCorrect.\n\n{B}\nWrong.', 'The second sentence is right. The fourth sentence is wrong.', 'Sentence 2 is right, sentence 4 is wrong.',
    'The second sentence is right and the fourth is wrong.', 'Sentence 4: wrong. Sentence 2: right.', '- 2nd sentence: good\n- 4th sentence: bad', f'[correct] {A}\n[hallucination] {B}', f'I liked {A}. I did not like {B}.',
    f'Drop {B}, keep {A}.', f'Leave {A} alone and fix {B}.', f'The source mentions {A} but not {B}.', f"The source doesn't mention {B}, but it does mention {A}.",
    f'The article speaks of {A} but never of {B}.', f'I prefer {A} to {B}.', f'I would rather keep {A} than {B}.', f'{A}, not {B}, is right.', f'{B}, not {A}, is wrong.', f'{B} (wrong), {A} (right)',
    f"{B} isn't in the source; {A} is.", f"{B} doesn't check out; {A} does.", f'{A} ✓, {B} ✗']

@pytest.mark.parametrize('text', apart)
def test_each_thing_has_the_sign_that_it_is_given(text): assert marked(text)=={(halls, 1.), (mondays, -1.)}

@pytest.mark.parametrize('text,want', [
    (f'Correct are {A} and {C}; incorrect is {B}.', {(halls, 1.), (euros, 1.), (mondays, -1.)}), (f'Neither {A} nor {B} is in the source.', {(halls, -1.), (mondays, -1.)}),
    (f'{A} is clearer than {B}.', {(halls, 1.)}), (f'{A} is not as good as {B}.', {(halls, -1.)}), (f'{A} is worse than {B}.', {(halls, -1.)}), (f'{A} goes beyond what the article states.', {(halls, -1.)}),
    (f'{A} sounds right, but the source says three.', {(halls, -1.)}), (f'{A} is well put, though the article gives another number.', {(halls, -1.)}), (f'{A} is right, but the article also mentions a gate.', {(halls, 1.)}),
    (f'{A} is right and the source says so.', {(halls, 1.)}), (f'{A} -> "three halls"', {(halls, -1.)}), (f'The source says the opposite of {A}.', {(halls, -1.)}),
    (f'It says {B} when the source says Fridays.', {(mondays, -1.)}), (f'It says {B} where the source says Fridays.', {(mondays, -1.)}), (f'Everything but {B} is correct.', {(mondays, -1.)}),
    (f'All correct except {B}.', {(mondays, -1.)}), (f'Apart from {B} it is accurate.', {(mondays, -1.)}), (f'Nothing in it is supported except {A}.', {(halls, 1.)}), (f'Other than that, {A} is fine.', {(halls, 1.)}),
    (f'Two problems: {B} and "ten euros".', {(mondays, -1.), ('ten euros', -1.)}), (f'{D} is not an exaggeration: the survey says 100%.', {(cafe, 1.)}), ('The last two sentences are unsupported.', {(mondays, -1.), (cafe, -1.)}),
    ('Sentences 2-3 are right.', {(halls, 1.), (euros, 1.)}), ('Sentences 2 and 4 are wrong.', {(halls, -1.), (mondays, -1.)}), ('Sentence 12 is wrong.', set()), (f'I have one issue with {B}.', {(mondays, -1.)}),
    (f'I have no issue with {B}.', {(mondays, 1.)}), (f'There is an issue: {B}.', {(mondays, -1.)}), ('It should say "nine euros", not "ten euros".', {('ten euros', -1.)}), (f'Is {B} right? No.', set())])
def test_what_is_said_of_several_things(text, want): assert marked(text)==want

def test_two_clauses_without_quotations_are_judged_apart():
    r = 'The date of the trial was May. The place of the trial was Leeds. It rained.'
    assert {(r[s.start:s.end], s.score) for s in align(r, 'The date is right and the place is wrong.').spans}=={('The date of the trial was May.', 1.), ('The place of the trial was Leeds.', -1.)}

def test_labels_without_end(): assert verdict('[x] '*4000+'it is bad')==-1 and verdict('[]'*4000)==0

# ---- turns that were attacked: what denies from afar, what is only wished, and what comes in part

turns = [(1, 'That is hard to fault. | It does not suffer from any of the usual problems. | It would be hard to find a mistake here. | It is wrong about nothing. | There is no need to change this. | It is not easy to spot an error in it. | Was there an error? None that I could find. | It is anything but vague. | I wish all answers were this clear.'),
    (-1, 'It is not so good. | I would not go so far as to call it accurate. | There is no reason at all to believe it is right. | There is little evidence to suppose that it is true. | It is not so much accurate as lucky. | This would be fine if it were true, but it is not. | It is supposed to be helpful but is not. | It is accurate only in part. | It is right about nothing. | I wish it were accurate. | It suffers from vagueness.'),
    (0, 'I have not checked the date. | We did not compare it with the source. | Is it so good?')]
@pytest.mark.parametrize('sign,text', [(s, t) for s,ts in turns for t in ts.split(' | ')])
def test_denials_from_afar_wishes_and_parts(sign, text): assert verdict(text)==sign

@pytest.mark.parametrize('text,sign', [('The second sentence is anything but clear.', -1.), ('The second sentence is nothing but correct.', 1.), ('The second sentence is anything but wrong.', 1.), ('I see no reason whatsoever to believe that the second sentence is right.', -1.)])
def test_anything_but_is_no_exception_where_it_is_said_of_a_thing(text, sign): assert marked(text)=={(halls, sign)}
