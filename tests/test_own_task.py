"A task of one's own: prompts, critics and models in every form that a user has them, and what a run leaves"
import json,logging,re
from dataclasses import asdict
from pathlib import Path
import pytest, torch
from text2grad.alignment.asking import CriticError,judgements_of
from text2grad.core import Critique,Example,Judgement,Span
from text2grad.files import RecordError,UserError,read_jsonl
from text2grad.data.annotation import annotate
from text2grad.data.readers import examples_from
from text2grad.data.tasks import load_task,subset
from text2grad.pretrained import ModelError,tiny_lm
from text2grad.span_ppo import HeldOut,Policy,RunFolder,SpanPPO,SpanPPOConfig,evaluate,judge,sample

small = dict(steps=2, batch_size=2, minibatch_size=2, micro_batch_size=2, max_new_tokens=6, lr=1e-3)
texts = ['Write a letter.', 'Write two letters.', 'Write three letters.', 'Write four letters.']

# ---- critics

WIRE = dict(critique='No.', good_spans=[], poor_spans=[dict(quote='wrong', reason='No.', severity=3)], missing=[])
def prose(e): return '"wrong" is a mistake.' if 'wrong' in e.response else None
def prose_of_many(es): return [prose(e) for e in es]
def annotated(e:'Example'): return prose(e)
def wire(e): return WIRE if 'wrong' in e.response else None
def finished(es): return tuple(Critique('No.', [Span(8, 13, -1.)]) if 'wrong' in e.response else None for e in es)
def generated(es): yield from finished(es)
def judged(es): return [Judgement(c) for c in finished(es)]
class Called:
    def __call__(self, example:Example): return prose(example)
every_form = pytest.mark.parametrize('critic', [prose, prose_of_many, annotated, wire, finished, generated, judged, Called(), lambda e: json.dumps(WIRE) if 'wrong' in e.response else None])
said = [Example('p', 'This is wrong.'), Example('p', 'Fine.')]

@every_form
def test_a_critic_says_what_it_likes_and_all_programs_hear_the_same(critic, tmp_path):
    js = judgements_of(critic, said)
    assert [(s.start, s.end, s.score<0) for s in js[0].critique.spans]==[(8, 13, True)] and js[1]==Judgement()
    annotate(said, critic, tmp_path/'o.jsonl', cache=None, progress=False)
    rows = read_jsonl(tmp_path/'o.jsonl')
    assert [s['text'] for s in rows[0]['spans']]==['wrong'] and 'spans' not in rows[1] and 'error' not in rows[1]

def test_a_critic_of_one_trains_as_one_of_many():
    def one(e): return f'"{e.response[:3]}" is wrong.' if len(e.response)>3 else None
    runs = [SpanPPO(tiny_lm(), c, texts, small).fit() for c in (one, lambda es: [one(e) for e in es])]
    assert runs[0].stats['spans']>0 and all(torch.equal(a, b) for a,b in zip(*(r.policy.state_dict().values() for r in runs)))

def test_an_error_of_the_critic_itself_is_not_taken_for_a_critic_of_one():
    def broken(es): return [e.respnse for e in es]
    with pytest.raises(AttributeError, match='respnse'): judgements_of(broken, said)
    with pytest.raises(AttributeError, match="'list' object"): judgements_of(lambda es: [[].response for e in es], said)

@pytest.mark.parametrize('said_of_one,remedy', [(.5, '`reward=`'), (True, '`reward=`'), (Span(0, 1, 1.), 'put it into a critique'), ((0, 1, 1.), 'make spans of it'), (b'No.', 'return prose'), (Example('p'), 'the critique alone')])
def test_what_is_no_critique_is_refused_in_one_sentence(said_of_one, remedy):
    for critic in (lambda e: e.response and said_of_one, lambda es: [said_of_one for _ in es]):
        with pytest.raises(CriticError, match=remedy) as e: judgements_of(critic, said)
        assert '\n' not in str(e.value)

def test_an_async_critic_is_told_how_to_be_called():
    async def later(es): return [None for _ in es]
    with pytest.raises(CriticError, match='asyncio.run'): judgements_of(later, said)

def test_what_cannot_be_read_pays_nothing_and_is_logged(caplog):
    r = sample(Policy.of(tiny_lm()), [Example(t) for t in texts[:2]], 4)
    with caplog.at_level(logging.WARNING, 'text2grad'): judge(r, lambda e: '{"good_spans": [')
    assert r.critiques==[None]*2 and '2 of 2 judgements failed; the first: the critique cannot be read' in caplog.text

# ---- prompts

def test_prompts_in_every_form(tmp_path):
    from datasets import Dataset
    rows = [dict(prompt=t, tone='kind', reference='A.') for t in texts]
    whole = [Example(t, '', None, ['A.'], dict(tone='kind')) for t in texts]
    assert examples_from(rows)==examples_from(Dataset.from_list(rows))==examples_from(r for r in rows)==examples_from(whole)==whole
    (tmp_path/'p.jsonl').write_text(''.join(json.dumps(r)+'\n' for r in rows))
    (tmp_path/'p.txt').write_text('\n'.join(texts)+'\n\n')
    assert examples_from(tmp_path/'p.jsonl')==whole and examples_from(str(tmp_path/'p.txt'))==examples_from(texts)==[Example(t) for t in texts]
    task = load_task('summarize')
    assert examples_from(task)==task.train

@pytest.mark.parametrize('rows,says', [([dict(text='x')], "row 1: prompt: missing; the fields here are text"), (['a', ''], 'row 2: prompt: is empty'), ([], 'no rows'), (['a', 3], 'row 2: '), ([dict(prompt='a', reference=[1])], 'row 1: reference'), ([dict(prompt=[dict(role='user')])], 'row 1: prompt: message 0')])
def test_prompts_that_cannot_be_used_are_named(rows, says):
    with pytest.raises(RecordError, match=says): examples_from(rows)

# ---- models and configs

def test_a_model_in_every_form(tmp_path):
    from peft import LoraConfig,get_peft_model
    model,tok = tiny_lm()
    model.save_pretrained(tmp_path/'m'); tok.save_pretrained(tmp_path/'m')
    peft = get_peft_model(tiny_lm()[0], LoraConfig(r=2, target_modules='all-linear'))
    for given in (str(tmp_path/'m'), tiny_lm(), (peft, tok), Policy.create(*tiny_lm()), tmp_path/'m'):
        t = SpanPPO(given, prose, texts, small)
        assert isinstance(t.policy, Policy) and t.policy.reference_model==('adapter' if given==(peft, tok) else 'off')
    t.policy.save_pretrained(tmp_path/'run'/'policy')
    assert Policy.of(tmp_path/'run').moved is False
    for given,says in ((tiny_lm()[0], 'comes without its tokenizer'), (3, 'int is no model'), ('no such/folder/at all', 'no such folder')):
        with pytest.raises(ModelError, match=says): SpanPPO(given, prose, texts, small)

def test_a_new_policy_has_the_parts_that_the_config_asks_for():
    assert SpanPPO(tiny_lm(), prose, texts, small).policy.value_head is not None
    assert SpanPPO(tiny_lm(), prose, texts, small | dict(baseline='local')).policy.value_head is None
    assert asdict(SpanPPO(tiny_lm(), prose, texts).config)==asdict(SpanPPOConfig())

@pytest.mark.parametrize('config,says', [(dict(batchsize=2), "did you mean 'batch_size'"), (dict(zzz=1), 'there are reward'), (3, 'int is no config'), (dict(lr='x'), 'lr')])
def test_a_config_that_cannot_be_is_named(config, says):
    with pytest.raises((UserError,ValueError), match=says): SpanPPO(tiny_lm(), prose, texts, config)

# ---- measuring

def test_evaluate_needs_no_task_and_takes_metrics_of_ones_own():
    rows = evaluate(tiny_lm(), prose, texts, max_new_tokens=5, metrics=dict(short=lambda e: len(e.response)<9, odd=lambda e: None))
    assert len(rows)==4 and all(r['length']<=5 and r['short'] in (0., 1.) and r['odd'] is None for r in rows)
    for f,says in ((lambda e: 'x', "'m' gave 'x'"), (lambda e: float('nan'), "'m' gave nan")):
        with pytest.raises(UserError, match=says): evaluate(tiny_lm(), prose, texts[:1], max_new_tokens=2, metrics=dict(m=f))
    with pytest.raises(UserError, match="'kl' is taken"): evaluate(tiny_lm(), prose, texts[:1], max_new_tokens=2, metrics=dict(kl=len))

def test_a_share_is_held_out_of_training_and_never_trained_on():
    t = SpanPPO(tiny_lm(), prose, texts, small, heldout=.25)
    kept = [e.prompt for e in t.heldout.examples]
    assert len(kept)==1 and sorted(kept+[e.prompt for e in t.examples])==sorted(texts)
    assert [e.prompt for e in SpanPPO(tiny_lm(), prose, texts, small, heldout=.25).heldout.examples]==kept
    for share in (0., 1., .01):
        with pytest.raises(UserError, match='must leave some'): SpanPPO(tiny_lm(), prose, texts, small, heldout=share)
    task = subset(load_task('summarize'), 3, 2)
    assert len(SpanPPO(tiny_lm(), prose, task, small, heldout=True).heldout)==2

def test_measuring_changes_nothing_and_its_means_are_logged():
    seen = []
    class Log:
        def after_step(self, t): seen.append(t.stats.get('heldout_total'))
    cfg = small | dict(steps=4)
    a = SpanPPO(tiny_lm(), prose, texts, cfg, heldout=texts[:2], callbacks=[Log()])
    b = SpanPPO(tiny_lm(), prose, texts, cfg | dict(eval_every=2), heldout=texts[:2], callbacks=[Log()])
    a.fit(),b.fit()
    assert all(torch.equal(x, y) for x,y in zip(a.policy.state_dict().values(), b.policy.state_dict().values()))
    assert b.finished and [k for k in b.heldout.before]==['heldout'] and len(b.heldout.after['heldout'])==2
    assert len(seen)==8 and b.heldout.summary()['heldout']==2
