"Training: a run killed at any moment ends like one that was not, what stops a run, what is kept, and what is said of it"
import hashlib,json,multiprocessing,os,random,re,signal,time
from dataclasses import dataclass,replace
from pathlib import Path
import pytest,torch
from safetensors.torch import load_file
from torch import nn
from text2grad.alignment.critiques import align
from text2grad.checkpoints import CheckpointError,RunFolderError,check_checkpoint,latest_checkpoint
from text2grad.core import Critique,Example,Judgement,Span,read_examples,read_jsonl
from text2grad.reward_model.generative import GenerativeConfig,GenerativeRewardModel
from text2grad.pretrained import tiny_lm
from text2grad.reward_model.base import RewardModel
from text2grad.reward_model.training import TrainConfig,TrainingError,batches,train_reward_model,usable
from text2grad.reward_model.span_model import SpanRewardConfig,SpanRewardModel

@dataclass(frozen=True)
class ToyConfig:
    lora:str|None='frozen'
    max_length:int=200
    hint:float=0.

class Toy(RewardModel):
    "A linear head on the mean embedding, with dropout, so that the generators matter"
    kind,Config = '',ToyConfig
    def __init__(self, model, tokenizer, config):
        super().__init__(model, tokenizer, config)
        self.head,self.drop,self.f1s,self.poison,self.slow = nn.Linear(self.lm.config.hidden_size, 1),nn.Dropout(.5),None,None,0.
    def ids(self, e): return self.tokenizer(e.response).input_ids
    def lengths(self, examples): return [len(self.ids(e)) for e in examples]
    def check(self, examples): return [f'{i}: the response alone has {len(self.ids(e))} tokens; raise max_length' for i,e in enumerate(examples) if len(self.ids(e))>self.config.max_length]
    def prepare(self, examples): self.config = replace(self.config, hint=len(examples)/100)
    def collate(self, examples):
        rows = [torch.tensor(self.ids(e)) for e in examples]
        y = [float(sum(s.score for s in e.critique.spans)) if e.critique else 0. for e in examples]
        return dict(ids=nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1), y=torch.tensor(y))
    def forward(self, ids, y):
        if self.slow: time.sleep(self.slow)
        m = (ids>=0)[...,None]
        h = (self.lm.get_input_embeddings()(ids.clamp(min=0))*m).sum(1)/m.sum(1)
        loss = ((self.head(self.drop(h))[:,0]-y)**2).mean()
        if self.poison: loss = self.poison(loss, y)
        return dict(loss=loss, square=loss.detach())
    def evaluate(self, examples):
        if self.f1s: return dict(span_f1=self.f1s.pop(0))
        assert not self.training
        x = self.collate(examples)
        with torch.no_grad(): return dict(span_f1=1/(1+float(self.forward(**x)['loss'])), note=None)
    def judgements(self, examples): return [Judgement(Critique('<script>alert(1)</script>', [Span(0, 3, -1.)])) for e in examples]

def toy(seed=0, **kw): return Toy.create(*tiny_lm(), ToyConfig(**kw), seed=seed)
def example(i, n): return Example(f'Question {i}', f'the {"good " if i%2 else "bad "}{"cat "*n}sat', Critique('c', [Span(4, 7, 1. if i%2 else -1.)]), meta=dict(id=f'e{i}'))
train,dev = [example(i, i%7) for i in range(21)],[example(i, i%5) for i in range(100, 106)]
cfg = TrainConfig(epochs=4, batch_size=8, micro_batch_size=2, lr=.02, save_every=2, patience=0, eval_every=3, shown=2)
def run(model, out, cfg=cfg, **kw): return train_reward_model(model, train, dev, out, cfg, progress=False, **kw)
def weights(r): return load_file(sorted(Path(r.path).glob('checkpoints/ckpt-[0-9]*'))[-1]/'trained.safetensors')
def same(a, b): return a.keys()==b.keys() and all(torch.equal(a[k], b[k]) for k in a)
def log(r): return [{k:v for k,v in o.items() if k!='seconds'} for o in read_jsonl(r.path/'metrics.jsonl')]

@pytest.fixture(scope='module')
def whole(tmp_path_factory): return run(toy(), tmp_path_factory.mktemp('whole')/'r')

# ---- stopped and resumed

def child(out, slow=.05):
    m = toy()
    m.slow = slow
    run(m, out, resume=True)
    os._exit(0)

def start(out):
    p = multiprocessing.get_context('fork').Process(target=child, args=(out,))
    p.start()
    return p

def test_killed_at_random_moments_ends_like_a_run_never_killed(tmp_path, whole):
    rng,kills,out = random.Random(0),0,tmp_path/'r'
    for _ in range(8):
        p = start(out)
        time.sleep(rng.uniform(.1, .9))
        if p.is_alive(): p.kill(); kills += 1
        p.join()
        if any(out.glob('checkpoints/ckpt-[0-9]*')): assert not check_checkpoint(latest_checkpoint(out/'checkpoints')[0])
    r = run(toy(), out, resume=True)
    assert kills>=4 and same(weights(r), weights(whole)) and log(r)==log(whole) and (r.dev, r.best_step)==(whole.dev, whole.best_step)
    assert same(load_file(out/'model/heads.safetensors'), load_file(whole.path/'model/heads.safetensors'))
    assert not list(out.rglob('*.tmp*'))

@pytest.mark.parametrize('sig', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_returns_and_the_run_goes_on(tmp_path, whole, sig):
    m,n = toy(),iter(range(1000))
    forward = m.forward
    def noisy(**batch):
        if next(n)==13: os.kill(os.getpid(), sig)
        return forward(**batch)
    m.forward = noisy
    r = run(m, tmp_path/'r')
    assert (r.stopped, r.steps, r.dev)==(sig, 4, {}) and latest_checkpoint(tmp_path/'r/checkpoints')[0].name=='ckpt-000004'
    assert 'has not finished' in (tmp_path/'r/report.html').read_text() and not (tmp_path/'r/summary.json').exists()
    r = run(toy(), tmp_path/'r', resume=True)
    assert same(weights(r), weights(whole)) and log(r)==log(whole)

def test_a_signal_in_an_evaluation_stops_behind_it(tmp_path, whole):
    m = toy()
    evaluate = m.evaluate
    def noisy(examples):
        os.kill(os.getpid(), signal.SIGINT)
        return evaluate(examples)
    m.evaluate = noisy
    r = run(m, tmp_path/'r')
    assert (r.stopped, r.steps)==(signal.SIGINT, 3)
    assert log(run(toy(), tmp_path/'r', resume=True))==log(whole)

def test_dropout_in_a_real_reader_and_lora_resume_to_the_bit(tmp_path):
    def model(): return SpanRewardModel.create(*tiny_lm(), SpanRewardConfig(size=16, layers=1, heads=2, max_length=200, lora=dict(r=2, alpha=4)))
    few = replace(cfg, epochs=2, shown=0)
    a = run(model(), tmp_path/'a', few)
    m,n = model(),iter(range(1000))
    forward = m.forward
    def dies(**batch):
        if next(n)==18: raise KeyboardInterrupt
        return forward(**batch)
    m.forward = dies
    with pytest.raises(KeyboardInterrupt): run(m, tmp_path/'b', few)
    b = run(model(), tmp_path/'b', few, resume=True)
    assert same(weights(a), weights(b)) and log(a)==log(b) and a.dev==b.dev

def test_a_damaged_checkpoint_is_passed_over(tmp_path, whole, caplog):
    r = run(toy(), tmp_path/'r')
    newest = sorted((tmp_path/'r/checkpoints').glob('ckpt-*'))[-1]
    (newest/'optimizer.safetensors').write_bytes(b'x')
    r = run(toy(), tmp_path/'r', resume=True)
    assert f'{newest.name}: optimizer.safetensors is not the file that was saved' in caplog.text and same(weights(r), weights(whole)) and log(r)==log(whole)

def test_resuming_a_finished_run_trains_no_more(tmp_path, whole):
    r = run(toy(), tmp_path/'r')
    m = toy()
    m.poison = lambda *_: pytest.fail('trained') if m.training else _[0]
    again = run(m, tmp_path/'r', resume=True)
    assert (again.dev, again.steps, log(again))==(r.dev, r.steps, log(whole))

def test_what_cannot_be_resumed_is_refused(tmp_path):
    run(toy(), tmp_path/'r')
    with pytest.raises(RunFolderError, match='already holds a run'): run(toy(), tmp_path/'r')
    with pytest.raises(CheckpointError, match='lr is 0.02 there and 0.5 here'): run(toy(), tmp_path/'r', replace(cfg, lr=.5), resume=True)
    with pytest.raises(CheckpointError, match='data is'): train_reward_model(toy(), train[1:], dev, tmp_path/'r', cfg, resume=True, progress=False)
    with pytest.raises(CheckpointError, match='model.max_length is 200 there'): run(toy(max_length=100), tmp_path/'r', resume=True)
    for p in (tmp_path/'r/checkpoints').glob('best-*'): p.unlink()
    with pytest.raises(CheckpointError, match='best weights so far are gone'): run(toy(), tmp_path/'r', resume=True)
    run(toy(), tmp_path/'r2', resume=True)

def test_two_processes_cannot_share_a_folder(tmp_path):
    m = toy()
    def second(loss, y):
        with pytest.raises(RunFolderError, match='another process'): run(toy(), tmp_path/'r', resume=True)
        return loss
    m.poison = second
    run(m, tmp_path/'r', replace(cfg, epochs=1))

# ---- what is kept

def test_checkpoints_hold_what_is_trained_and_no_pickle(whole):
    files = [p for p in whole.path.rglob('*') if p.is_file()]
    assert {p.suffix for p in files}<={'.safetensors','.json','.jsonl','.html','.jinja','.md',''} and not any(p.read_bytes()[:1] in (b'\x80', b'P') for p in files)
    assert set(weights(whole))=={'head.weight','head.bias'}
    assert len(list(whole.path.glob('checkpoints/ckpt-*')))==2 and len(list(whole.path.glob('checkpoints/best-*')))<=2

def test_the_best_weights_are_kept_and_training_stops_early(tmp_path):
    m = toy()
    m.f1s = [.1, .5, .4, .5, .3, .9]
    r = run(m, tmp_path/'r', replace(cfg, eval_every=1, patience=3))
    assert (r.steps, r.best_step)==(5, 2) and [o['dev']['span_f1'] for o in read_jsonl(tmp_path/'r/metrics.jsonl') if 'dev' in o]==[.1, .5, .4, .5, .3]
    assert same({k:p.detach() for k,p in m.trained().items()}, load_file(tmp_path/'r/checkpoints/best-000002.safetensors'))
    m = toy()
    m.f1s = [.7]
    assert run(m, tmp_path/'r', replace(cfg, eval_every=1, patience=3), resume=True).steps==5

def test_no_figure_to_choose_by_keeps_the_last(tmp_path, caplog):
    m = toy()
    m.f1s = [None]*9
    r = run(m, tmp_path/'r', replace(cfg, epochs=2))
    assert r.best_step==r.steps==6 and 'the last weights are kept' in caplog.text

def test_only_what_is_trained_moves(tmp_path):
    m = toy()
    before = {k:v.clone() for k,v in m.state_dict().items()}
    run(m, tmp_path/'r', replace(cfg, epochs=1))
    assert {k for k,v in m.state_dict().items() if not torch.equal(v, before[k])}=={'head.weight','head.bias'} and m.config.hint==.27

def test_full_training_keeps_every_weight(tmp_path):
    m = toy(lora=None)
    r = run(m, tmp_path/'r', replace(cfg, epochs=1, lr=1e-3))
    assert len(weights(r))==len(list(m.named_parameters())) and (tmp_path/'r/model/model.safetensors').exists()

# ---- the loop

def test_the_loss_does_not_depend_on_how_a_batch_is_cut(tmp_path):
    "21 examples: the last batch of an epoch has 5, its last micro-batch 1"
    got = []
    for micro in (8, 4, 2):
        m = toy()
        m.drop.p = 0.
        r = run(m, tmp_path/str(micro), replace(cfg, micro_batch_size=micro, epochs=1))
        got.append((weights(r), [o['loss'] for o in log(r) if 'dev' not in o], [o['grad_norm'] for o in log(r) if 'dev' not in o]))
    for w,losses,norms in got[1:]:
        assert all(torch.allclose(w[k], got[0][0][k], atol=1e-5) for k in w)
        assert losses==pytest.approx(got[0][1], rel=1e-4) and norms==pytest.approx(got[0][2], rel=1e-3)

def test_the_schedule_and_the_counts_of_the_log(tmp_path):
    r = run(toy(), tmp_path/'r', replace(cfg, epochs=4, warmup=.25, eval_every=None))
    steps = [o for o in log(r) if 'dev' not in o]
    lrs = [o['lr'] for o in steps]
    assert lrs==pytest.approx([.02*(i/3 if i<3 else (12-i)/9) for i in range(12)])
    assert [o['examples'] for o in steps]==[8,8,5]*4 and steps[-1]['tokens']==4*sum(toy().lengths(train)) and steps[-1]['epoch']==4
    assert [o['step'] for o in log(r) if 'dev' in o]==[3,6,9,12] and all(o['seconds']>=0 for o in read_jsonl(r.path/'metrics.jsonl'))

def test_a_rate_for_heads_of_their_own(tmp_path):
    moved = {}
    for name,kw in dict(low=dict(lr=.01, head_lr=1e-9), high=dict(lr=1e-9, head_lr=.01)).items():
        m = toy(lora=None)
        before = {k:p.detach().clone() for k,p in m.trained().items()}
        run(m, tmp_path/name, replace(cfg, epochs=1, weight_decay=0, **kw))
        moved[name] = {k:float((p.detach()-before[k]).abs().max()) for k,p in m.trained().items()}
    emb = 'model.model.embed_tokens.weight'
    assert moved['low'][emb]>1e-3>1e-6>moved['low']['head.weight'] and moved['high']['head.weight']>1e-3>1e-6>moved['high'][emb]

def test_rows_of_like_length_come_together_and_every_row_once():
    rng = random.Random(0)
    for n in (1, 7, 64, 203):
        ls = [rng.randrange(5, 500) for _ in range(n)]
        got = torch.cat(batches(ls, 8, 3, 0)).tolist()
        assert sorted(got)==list(range(n)) and (n<9 or torch.cat(batches(ls, 8, 3, 1)).tolist()!=got)
    spread = lambda rows: sum(max(ls[i] for i in rows[k:k+8])-min(ls[i] for i in rows[k:k+8]) for k in range(0, 200, 8))
    assert spread(got)<.4*spread(list(range(203)))

def test_same_seed_same_run(tmp_path, whole):
    assert log(run(toy(), tmp_path/'a'))==log(whole)!=log(run(toy(), tmp_path/'b', replace(cfg, seed=1)))

# ---- what stops a run

@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_a_loss_that_is_no_number_names_its_examples(tmp_path, value):
    m = toy()
    m.poison = lambda loss, y: loss*value if (y<0).any() else loss
    before = m.state()
    with pytest.raises(TrainingError, match=r'step 0: the loss is (nan|inf), for e\d+ \(.the bad') as e: run(m, tmp_path/'r')
    saved = read_examples(tmp_path/'r/nonfinite-000000.jsonl')
    assert saved and all('bad' in o.response for o in saved) and all(o.meta['id'] in str(e.value) for o in saved) and same(before, m.state())

def test_a_gradient_that_is_no_number_stops_before_the_optimizer(tmp_path):
    m = toy()
    m.poison = lambda loss, y: loss+(m.head.weight.sum()*0).sqrt()
    before = m.state()
    with pytest.raises(TrainingError, match='gradient norm is nan'): run(m, tmp_path/'r')
    assert same(before, m.state()) and len(read_examples(tmp_path/'r/nonfinite-000000.jsonl'))==8

@pytest.mark.parametrize('bad', [dict(batch_size=0), dict(batch_size=5), dict(lr=float('nan')), dict(epochs=0), dict(warmup=1.), dict(eval_every=0), dict(patience=-1), dict(max_steps=0), dict(seed=-1)])
def test_config_refuses(bad):
    with pytest.raises(ValueError, match=next(iter(bad))): TrainConfig(**bad)

# ---- the data

def test_what_is_left_out_is_counted_and_named(tmp_path, caplog):
    long,shared = example(50, 300),Example(dev[0].prompt, 'the bad cat', Critique('c'))
    r = train_reward_model(toy(), [*train, long, shared], [*dev, long], tmp_path/'r', replace(cfg, epochs=1), progress=False)
    c = r.counts
    assert (c['train'], c['dev'], c['prompt_is_held_out'], c['unfit'], c['unfit_dev'], c['train_prompts'])==(21, 6, 2, 0, 1, 21)
    r = train_reward_model(toy(), [*train, long], dev, tmp_path/'r2', replace(cfg, epochs=1), progress=False)
    assert r.counts['unfit']==1 and re.search(r'1 of 22 training examples cannot be used.*\n21: the response alone has \d+ tokens', caplog.text)
    assert json.loads((tmp_path/'r2/config.json').read_text())['counts']==r.counts

def test_data_that_leaves_nothing():
    with pytest.raises(ValueError, match='0 examples to choose by|and 0 to choose by'): usable(toy(), train, [])
    with pytest.raises(ValueError, match='every training prompt is among'): usable(toy(), dev, dev)
    with pytest.raises(ValueError, match='0 of 1 training .*raise max_length'): usable(toy(), [example(1, 300)], dev)

# ---- what is said

def test_nothing_is_printed_and_nothing_appears_elsewhere(tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(toy(), tmp_path/'r', replace(cfg, epochs=1))
    o = capfd.readouterr()
    assert o.out=='' and o.err=='' and [p.name for p in tmp_path.iterdir()]==['r']

def test_the_report_is_one_safe_page(whole):
    html = (whole.path/'report.html').read_text()
    assert '<script' not in html and '&lt;script&gt;alert(1)' in html and not re.search(r'https?:(?!//www\.w3\.org/2000/svg)', html.replace('%3A', ':'))
    for word in ('Results','Data','gold','predicted','dev.span_f1','grad_norm','max_grad_norm','prompt is held out'): assert word in html, word
    s = json.loads((whole.path/'summary.json').read_text())
    assert s['dev']==whole.dev and s['best_step']==whole.best_step and s['counts']==whole.counts

def test_the_generative_model_trains_by_the_same_call(tmp_path):
    def says(i):
        r = f'the {"good" if i%2 else "bad"} cat'
        return Example(f'Q {i}', r, align(r, dict(critique='So.', good_spans=[dict(quote='good', reason='', severity=3)]*(i%2), poor_spans=[dict(quote='bad', reason='', severity=3)]*(1-i%2), missing=[])))
    rows = [says(i) for i in range(10)]
    m = GenerativeRewardModel.create(*tiny_lm(), GenerativeConfig(lora=dict(r=4, alpha=8), max_length=512, max_new_tokens=16, eval_examples=2))
    r = train_reward_model(m, rows[:8], rows[8:], tmp_path/'r', TrainConfig(epochs=3, batch_size=4, micro_batch_size=2, lr=1e-2, shown=1), progress=False)
    losses = [o['loss'] for o in log(r) if 'loss' in o]
    assert len(losses)==6 and losses[-1]<losses[0] and RewardModel.from_pretrained(tmp_path/'r/model', device='cpu', model=tiny_lm()[0]).kind=='generative'

# ---- whose run it is, and what else lies in its folder

def test_another_base_or_tokenizer_of_the_same_shape_is_refused(tmp_path, caplog):
    few = replace(cfg, epochs=1)
    run(toy(), tmp_path/'r', few)
    with torch.no_grad(): (one := tiny_lm())[0].model.layers[0].mlp.up_proj.weight[0,0] += 1e-6
    (other := tiny_lm())[1].chat_template += ' '
    for model,says in ((one, 'base is'), (tiny_lm(5), 'base is'), (other, 'tokenizer is')):
        with pytest.raises(CheckpointError, match=says): run(Toy.create(*model, ToyConfig()), tmp_path/'r', few, resume=True)
    assert not caplog.text and run(toy(), tmp_path/'r', few, resume=True)

def rewrite(at, name, change):
    "Change a JSON file of a checkpoint, and its manifest with it"
    d = change(json.loads((at/name).read_text()))
    (at/name).write_text(json.dumps(d))
    m = json.loads((at/'MANIFEST.json').read_text())
    m['files'][name] = dict(sha256=hashlib.sha256((at/name).read_bytes()).hexdigest(), size=(at/name).stat().st_size)
    (at/'MANIFEST.json').write_text(json.dumps(m))

def test_a_checkpoint_of_an_older_version_goes_on_with_a_warning(tmp_path, whole, caplog):
    m,n = toy(),iter(range(1000))
    forward = m.forward
    def dies(**batch):
        if next(n)==20: raise KeyboardInterrupt
        return forward(**batch)
    m.forward = dies
    with pytest.raises(KeyboardInterrupt): run(m, tmp_path/'r')
    rewrite(latest_checkpoint(tmp_path/'r/checkpoints')[0], 'state.json', lambda d: {k:v for k,v in d.items() if k not in ('identity','best_sha256')})
    r = run(toy(), tmp_path/'r', resume=True)
    assert re.search('resumed without comparing base .*; tokenizer', caplog.text) and same(weights(r), weights(whole)) and log(r)==log(whole)

@pytest.mark.parametrize('change', [lambda d: [], lambda d: None, lambda d: d | dict(stale='x'), lambda d: d | dict(best=3), lambda d: d | dict(best=dict(step='1')),
    lambda d: d | dict(settings=[]), lambda d: d | dict(step=7), lambda d: d | dict(step='3'), lambda d: d | dict(tokens=None),
    lambda d: {k:v for k,v in d.items() if k!='tokens'}])
def test_a_whole_checkpoint_with_an_odd_state_is_an_error_that_names_it(tmp_path, change):
    run(toy(), tmp_path/'r', replace(cfg, epochs=1))
    at = latest_checkpoint(tmp_path/'r/checkpoints')[0]
    rewrite(at, 'state.json', change)
    with pytest.raises(CheckpointError, match=at.name): run(toy(), tmp_path/'r', replace(cfg, epochs=1), resume=True)

def test_what_the_user_put_beside_the_checkpoints_stays(tmp_path, whole):
    root = tmp_path/'r/checkpoints'
    for n in ('ckpt-best','ckpt-old','ckpt.tmp-mine'): (root/n).mkdir(parents=True)
    for n in ('best-mine.safetensors','best-of-all.safetensors','best-zz.safetensors'): (root/n).write_text('x')
    r = run(toy(), tmp_path/'r')
    assert same(weights(r), weights(whole)) and {'ckpt-best','ckpt-old','ckpt.tmp-mine','best-mine.safetensors','best-of-all.safetensors','best-zz.safetensors'}<={p.name for p in root.iterdir()}
    assert len(list(root.glob('ckpt-0*')))==2 and (root/f'best-{r.best_step:06d}.safetensors').exists()

def test_damaged_best_weights_are_refused(tmp_path):
    r = run(toy(), tmp_path/'r')
    p = tmp_path/f'r/checkpoints/best-{r.best_step:06d}.safetensors'
    data = bytearray(p.read_bytes())
    data[-2] ^= 1
    p.write_bytes(data)
    with pytest.raises(CheckpointError, match='the best weights so far are not the file that was saved'): run(toy(), tmp_path/'r', resume=True)

@pytest.mark.parametrize('text', ['[]', 'null', '{', ''])
def test_a_damaged_config_is_written_anew(tmp_path, whole, caplog, text):
    run(toy(), tmp_path/'r')
    (tmp_path/'r/config.json').write_text(text)
    with open(tmp_path/'r/metrics.jsonl', 'a') as f: f.write('[1]\n{"step": 1, "dev": 3}\n')
    assert log(run(toy(), tmp_path/'r', resume=True))[:-1]==log(whole)
    assert json.loads((tmp_path/'r/config.json').read_text())['lr']==cfg.lr and 'written anew' in caplog.text and '1 lines are no rows' in caplog.text
