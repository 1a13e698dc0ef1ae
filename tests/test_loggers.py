"Loggers: what reaches trackio, Weights & Biases and TensorBoard, in which order, and that a run outlives them"
import inspect,json,logging,math,signal,sys
from configparser import ConfigParser
from pathlib import Path
from types import ModuleType,SimpleNamespace
import pytest
from text2grad.core import EXTRAS,Critique,Example,MissingExtra,Span
from text2grad.files import UserError
from text2grad.pretrained import tiny_lm
from text2grad.reward_model import SpanRewardConfig,SpanRewardModel,TrainConfig,train_reward_model
from text2grad.span_ppo import Callback,Logger,ProgressBar,RunFolder,SpanPPO,TensorBoardLogger,TrackioLogger,WandbLogger
from text2grad.span_ppo.loggers import logger_of

texts = ['Write a letter.', 'Write two letters.', 'Write three letters.', 'Write four letters.']
small = dict(steps=4, batch_size=2, minibatch_size=2, micro_batch_size=2, max_new_tokens=6, lr=1e-3, save_every=2, baseline='local')
def critic(e): return f'"{e.response[:3]}" is wrong.' if e.response.strip() else 'Nothing is there.'
def run(callbacks, heldout=texts[:2], **cfg):
    model,tok = tiny_lm()
    model.name_or_path = '/home/someone/models/toy'
    return SpanPPO((model, tok), critic, texts, small | cfg, heldout=heldout, callbacks=callbacks)

class Book(Logger):
    "Keeps what it is told"
    def open(self, t): self.said = [('open', self.kept['id'])]
    def log(self, numbers, step): self.said.append((step, sorted({k.split('/')[0] for k in numbers})))
    def table(self, rows, step): self.said.append((step, rows))
    def alarm(self, alarm, step): self.said.append((step, alarm.name))
    def close(self, finished): self.said.append(('close', finished))

def test_the_events_come_in_their_order_and_a_bare_object_is_a_callback_too():
    seen = []
    class All(Callback):
        def before_fit(self, t): seen.append('before')
        def on_phase(self, t): seen.append(t.doing)
        def after_step(self, t): seen.append(t.step)
        def after_fit(self, t): seen.append(t.finished)
    run([Callback(), SimpleNamespace(), All()], None, steps=2).fit()
    step = ['rollout','critic','forward','update']
    assert seen==['before', *step, 1, *step, 2, True]

def test_what_was_measured_before_is_step_0_and_after_is_the_last():
    b = Book(every=3)
    t = run([b]).fit()
    numbers = [(s, w) for s,w in b.said[1:-1] if isinstance(w, list) and isinstance(w[0], str)]
    step = ['seconds','train']
    assert numbers==[(0, ['heldout']), (1, step), (2, step), (3, step), (4, step), (4, ['heldout'])] and b.said[-1]==('close', True)
    tables = {s:w for s,w in b.said[1:-1] if isinstance(w, list) and isinstance(w[0], dict)}
    assert list(tables)==[1, 3, 4] and list(tables[4][0])==['prompt','response','critique','total']
    e = t.batch.rollout.examples[0]
    assert tables[4][0]['response']==e.response and tables[4][0]['critique']==critic(e)
    assert tables[4][0]['total']==pytest.approx(float((t.batch.scores*t.batch.mask)[0].sum()), abs=1e-4)

def test_with_eval_every_the_last_measurement_is_logged_once():
    b = Book()
    run([b], eval_every=2).fit()
    assert [s for s,w in b.said[1:-1] if w==['heldout'] or w[:1]==['heldout']]==[0, 2, 4]

def test_no_responses_where_none_are_to_be_logged():
    b = Book()
    run([b], None, log_samples=0).fit()
    assert not any(isinstance(w, list) and w and isinstance(w[0], dict) for _,w in b.said)

def test_an_alarm_is_told_once():
    b = Book()
    def lost(e): return '"not in it at all" is wrong. "neither is this" is wrong.'
    t = SpanPPO(tiny_lm(), lost, texts, small | dict(steps=6), callbacks=[b]).fit()
    assert [a.name for a in t.alarms]==['quotes lost'] and [w for _,w in b.said if isinstance(w, str) and w.startswith('quotes')]==['quotes lost']

def test_a_run_that_goes_on_is_logged_under_its_name_and_no_step_twice(tmp_path):
    class Kill(Callback):
        def after_step(self, t):
            if t.step==3: raise KeyboardInterrupt
    first,second = Book(),Book()
    with pytest.raises(KeyboardInterrupt): run([RunFolder(tmp_path/'r'), first, Kill()]).fit() # step 3 is logged, and its checkpoint is not there
    t = run([RunFolder(tmp_path/'r', resume=True), second]).fit()
    assert t.finished and first.said[0]==second.said[0] and first.said[0][1].startswith('r-') and first.said[-1]==('close', False)
    steps = lambda b: sorted({s for s,_ in b.said if isinstance(s, int)})
    assert steps(first)==[0, 1, 2, 3] and steps(second)==[4]
    (tmp_path/'r/logger.json').write_text('{"id": 3}')
    with pytest.raises(UserError, match='cannot be read; delete it'): run([RunFolder(tmp_path/'r', resume=True), Book()]).fit()

@pytest.mark.parametrize('event', ['log','table','close'])
def test_a_run_outlives_its_logger(event, caplog):
    class Broken(Book): pass
    def fail(self, *args): raise ConnectionError('the server is gone')
    setattr(Broken, event, fail)
    with caplog.at_level(logging.WARNING, 'text2grad'): t = run([Broken()]).fit()
    assert t.finished and caplog.text.count('Broken: stopped logging (ConnectionError: the server is gone); the run goes on')==1

def test_what_fails_before_the_first_step_ends_the_run():
    class Closed(Book):
        def open(self, t): raise UserError('log in first')
    t = run([Closed()])
    with pytest.raises(UserError, match='log in first'): t.fit()
    assert t.step==0

# ---- the training of a reward model, by the same loggers

def learn(folder, callbacks, resume=False, **kw):
    judged = lambda i: Example(f'Question {i}', 'the bad cat saw a good boat', Critique('So.', [Span(4, 7, -1.), Span(18, 22, 1.)]))
    model,tok = tiny_lm()
    model.name_or_path = '/home/someone/models/toy'
    m = SpanRewardModel.create(model, tok, SpanRewardConfig(size=16, layers=1, heads=2, max_length=300, lora='frozen'))
    cfg = TrainConfig(**dict(epochs=2, batch_size=4, micro_batch_size=4, eval_every=2, save_every=2, shown=0) | kw)
    return train_reward_model(m, [judged(i) for i in range(8)], [judged(9)], folder, cfg, resume=resume, progress=False, callbacks=callbacks)

def test_a_reward_model_is_logged_by_its_steps_and_evaluations(tmp_path):
    b = Book()
    learn(tmp_path/'r', [b])
    told = [(s, w) for s,w in b.said[1:-1]]
    assert told==[(1, ['seconds','train']), (2, ['heldout','seconds','train']), (3, ['seconds','train']), (4, ['heldout','seconds','train'])]
    assert b.said[0][1].startswith('r-') and b.said[-1]==('close', True)

def test_a_reward_model_that_goes_on_is_logged_under_its_name_and_no_step_twice(tmp_path):
    class Kill(Callback):
        def after_step(self, t):
            if t.step==3: raise OSError('the power is gone')
    first,second = Book(),Book()
    with pytest.raises(OSError): learn(tmp_path/'r', [first, Kill()])
    learn(tmp_path/'r', [second], resume=True)
    assert first.said[0]==second.said[0] and first.said[-1]==('close', False) and second.said[-1]==('close', True)
    assert [s for s,_ in first.said[1:-1]]==[1, 2, 3] and [s for s,_ in second.said[1:-1]]==[4]

def test_a_callback_stops_a_reward_model_after_the_step_and_it_goes_on(tmp_path):
    class Stop(Callback):
        def after_step(self, t): t.stop = t.step==1
    r = learn(tmp_path/'r', [Stop()])
    assert (r.steps, r.stopped, r.dev)==(1, 0, {}) and str(r)=='1 steps, stopped' and not (tmp_path/'r/model').exists()
    assert learn(tmp_path/'r', [], resume=True).steps==4

def test_the_bar_of_a_reward_model_says_loss_and_best(tmp_path, capsys):
    bar = ProgressBar()
    learn(tmp_path/'r', [bar])
    err = capsys.readouterr().err
    assert 'training: 100%' in err and bar.bar.n==4 and bar.bar.postfix.startswith('loss ') and 'best span F1' in bar.bar.postfix

def test_a_logger_that_cannot_begin_ends_the_training_of_a_reward_model_and_gives_the_signals_back(tmp_path):
    class Closed(Book):
        def open(self, t): raise UserError('log in first')
    was = signal.getsignal(signal.SIGINT)
    with pytest.raises(UserError, match='log in first'): learn(tmp_path/'r', [Closed(), ProgressBar()])
    assert signal.getsignal(signal.SIGINT)==was and learn(tmp_path/'r', []).steps==4

# ---- TensorBoard, the real one

def events(folder):
    "Tag -> {step: value} of all event files"
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    a = EventAccumulator(str(folder), size_guidance=dict(tensors=0, scalars=0)).Reload()
    text = lambda e: e.tensor_proto.string_val[0].decode()
    return {k:{e.step:e.value for e in a.Scalars(k)} for k in a.Tags()['scalars']},{k:{e.step:text(e) for e in a.Tensors(k)} for k in a.Tags()['tensors']}

def test_tensorboard_has_every_step_and_texts_as_they_are(tmp_path):
    def evil(e): return f'"{e.response[:3]}" is wrong.\n![x](http://example.com/p.png)' if e.response.strip() else 'Nothing.'
    t = SpanPPO(tiny_lm(), evil, texts, small, heldout=texts[:2], callbacks=[RunFolder(tmp_path/'r'), TensorBoardLogger(every=2)]).fit()
    numbers,words = events(tmp_path/'r/tensorboard')
    log = [json.loads(l) for l in (tmp_path/'r/metrics.jsonl').read_text().splitlines()]
    for k in ('kl','reward','length','lr'): assert numbers[f'train/{k}']==pytest.approx({r['step']:r[k] for r in log if r[k] is not None}, rel=1e-5)
    assert sorted(numbers['heldout/total'])==[0, 4] and sorted(numbers['seconds/rollout'])==[1, 2, 3, 4]
    assert sorted(words['samples/text_summary'])==[1, 2, 4]
    said = words['samples/text_summary'][4].splitlines()
    assert any(l=='    ![x](http://example.com/p.png)' for l in said) and not [l for l in said if 'http' in l and not l.startswith('    ')]
    assert '/home/' not in words['config/text_summary'][0] and '"steps":4' in words['config/text_summary'][0].replace(' ', '')

# ---- trackio and Weights & Biases, by stand-ins with the signatures of trackio 0.43 and wandb 0.31

class Fake(ModuleType):
    def __init__(self, name):
        super().__init__(name)
        self.calls,self.AlertLevel,self.errors = [],SimpleNamespace(WARN='warn'),SimpleNamespace(Error=type('Error', (Exception,), {}))

@pytest.fixture
def trackio(monkeypatch):
    m = Fake('trackio')
    class Run:
        def log(self, metrics:dict, step:int|None=None): m.calls.append((step, metrics))
        def alert(self, title:str, text:str|None=None, level='warn', step:int|None=None): m.calls.append((step, title, text))
        def finish(self): m.calls.append('finish')
    def init(project:str, name:str|None=None, *, group=None, space_id=None, config:dict|None=None, resume:str='never', embed:bool=True):
        m.calls.append(dict(project=project, name=name, config=config, resume=resume, embed=embed, space_id=space_id))
        return Run()
    m.init,m.Table = init,lambda columns=None, data=None, dataframe=None: ('table', dataframe)
    monkeypatch.setitem(sys.modules, 'trackio', m)
    return m

@pytest.fixture
def wandb(monkeypatch):
    m = Fake('wandb')
    class Run:
        def log(self, data:dict, step:int|None=None, commit=None): m.calls.append((step, data))
        def alert(self, title:str, text:str, level=None, wait_duration=None): m.calls.append((title, text, level))
        def finish(self, exit_code:int|None=None, quiet=None): m.calls.append(('finish', exit_code))
    def init(entity=None, project:str|None=None, dir=None, id:str|None=None, name:str|None=None, config:dict|None=None, group=None, mode=None, resume=None):
        m.calls.append(dict(project=project, id=id, name=name, config=config, resume=resume, mode=mode))
        if mode=='online': raise m.errors.Error('api_key not configured (no-tty)')
        return Run()
    m.init,m.Table = init,lambda columns=None, data=None: ('table', columns, data)
    monkeypatch.setitem(sys.modules, 'wandb', m)
    return m

def test_trackio_is_told(trackio, tmp_path):
    run([RunFolder(tmp_path/'r'), TrackioLogger('letters', space_id='me/board')]).fit()
    first,*calls,last = trackio.calls
    assert first['project']=='letters' and first['name'].startswith('r-') and first['resume']=='allow' and not first['embed'] and first['space_id']=='me/board'
    assert first['config']['steps']==4 and first['config']['model']=='toy' and '/home' not in json.dumps(first['config'])
    assert last=='finish' and [c[0] for c in calls]==[0, 1, 1, 2, 3, 4, 4, 4]
    name,table = calls[2][1]['samples']
    assert list(table.columns)==['prompt','response','critique','total'] and len(table)==2
    assert all(isinstance(v, float) and math.isfinite(v) for c in calls for k,v in c[1].items() if k!='samples')

def test_wandb_is_told(wandb, tmp_path):
    run([RunFolder(tmp_path/'r'), WandbLogger('letters')]).fit()
    first,*calls,last = wandb.calls
    assert first['project']=='letters' and first['name']=='r' and first['id'].startswith('r-') and first['resume']=='allow' and last==('finish', 0)
    steps = [c[0] for c in calls]
    assert steps==sorted(steps) and steps[0]==0 # wandb drops a step that is below the last
    assert calls[2][1]['samples'][1]==['prompt','response','critique','total'] and len(calls[2][1]['samples'][2])==2

def test_wandb_and_trackio_are_told_of_a_reward_model(wandb, trackio, tmp_path):
    learn(tmp_path/'r', [WandbLogger('letters'), TrackioLogger('letters')])
    for m in (wandb, trackio):
        first,*calls,last = m.calls
        assert [c[0] for c in calls]==[1, 2, 3, 4] and all(isinstance(v, float) for c in calls for v in c[1].values())
        assert first['config']['base']=='toy' and first['config']['lr']==2e-4 and '/home' not in json.dumps(first['config'])
        assert {'train/loss','train/lr','heldout/span_f1','seconds/evaluation'}<=set(calls[1][1]) and set(calls[0][1])>={'train/grad_norm','seconds/step'}

def test_wandb_without_a_login_says_what_to_do(wandb):
    with pytest.raises(UserError, match=r'api_key not configured.*\n.*wandb login.*WANDB_MODE=offline'): run([WandbLogger(mode='online')]).fit()

# ---- extras

def test_every_extra_is_described():
    ini = ConfigParser(delimiters=['='])
    ini.read(Path(__file__).resolve().parent.parent/'settings.ini')
    named = {k.removesuffix('_requirements'):v for k,v in ini['DEFAULT'].items() if k.endswith('_requirements')}
    named.pop('dev')
    assert set(named)==set(EXTRAS) and all(EXTRAS[k][0] in v for k,v in named.items())

@pytest.mark.parametrize('name', ['trackio','wandb','tensorboard'])
def test_a_logger_whose_package_is_missing_names_the_extra_at_once(name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtra, match=rf'needs {name} .*pip install -e "\.\[{name}\]"'): logger_of(name)

def test_a_project_is_named_after_the_logger(trackio):
    assert logger_of('trackio:mine').project=='mine' and logger_of('trackio').project=='text2grad'
