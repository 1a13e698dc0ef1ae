"Both trainers on two processes: the same update, one log, one checkpoint; a process that fails or is killed ends the run, and it goes on elsewhere"
import inspect,json,os,random,signal,subprocess,sys,time
from pathlib import Path
from types import SimpleNamespace
import numpy as np, pytest, torch
from text2grad.core import Critique,Example,Span,write_examples
from test_server import VLLM,moved
from text2grad.files import UserError,read_jsonl,write_file
from text2grad.pretrained import tiny_lm
from text2grad.span_ppo import HeldOut,Policy,RunFolder,SpanPPO
from text2grad.processes import Processes,_sharded
from text2grad.reward_model import SpanRewardConfig,SpanRewardModel,TrainConfig,train_reward_model
from text2grad.span_ppo.server import RolloutServer
from text2grad.span_ppo.trainer import _in_shards

prompts = [f'Write {n} letters, '+'please '*(i%4) for i,n in enumerate('one two three four five six seven'.split())]
small = dict(steps=2, batch_size=6, minibatch_size=4, micro_batch_size=2, max_new_tokens=12, lr=1e-3, epochs=2, save_every=1, kl_target=.5, eval_every=2)
kinds = dict(value=dict(value_warmup=1, entropy_coef=.01), group=dict(baseline='group', samples_per_prompt=2))

def critic(examples):
    "More of the letter e; some responses are not judged"
    score = lambda ch: .5 if ch=='e' else -.1
    return [None if len(e.response)%4==1 else Critique('More e.', [Span(i, i+1, score(ch)) for i,ch in enumerate(e.response)]) for e in examples]

class Log:
    everywhere = True
    def __init__(self): self.rows = []
    def after_step(self, t): self.rows.append(dict(t.stats))

def trained(kind, folder, judge=critic, data=prompts, callbacks=(), resume=False, upto=None, accelerator=None, held=True, **kw):
    "A short run, all that it logged and where it ended"
    log,held = Log(),HeldOut(prompts[:3], samples=2, batch_size=4) if held else None
    policy = Policy.create(*tiny_lm(), value_head=kind=='value')
    policy.eos_ids = sorted({*policy.eos_ids, *range(0, policy.lm.config.vocab_size, 9)}) # so that lengths differ
    t = SpanPPO(policy, judge, data, small | kinds[kind] | kw, heldout=held, callbacks=[RunFolder(folder/kind, resume), log, *callbacks],
                accelerator=accelerator).fit(upto)
    with t.procs.whole(policy): weights = {k:w.detach().clone() for k,w in policy.state_dict().items()}
    after = held.after['heldout'] if held and held.after else []
    return dict(weights=weights, log=log.rows, said=[r['example'].response for r in after], step=t.step, totals=[r['total'] for r in after])

def judged(i): return Example(f'Question {i}', f'the bad {"cat "*(i%4)}saw a good boat', Critique('So.', [Span(4, 7, -1.), Span(19+4*(i%4), 23+4*(i%4), 1.)]), meta=dict(id=f'e{i}'))
rows,held = [judged(i) for i in range(11)],[judged(i) for i in range(100, 103)]

def learnt(folder, data=rows, resume=False, forward=None, callbacks=(), **kw):
    "A short run of a reward model with an adapter and dropout: what it logged, and where it ended"
    m = SpanRewardModel.create(*tiny_lm(), SpanRewardConfig(size=16, layers=1, heads=2, max_length=300, lora=dict(r=2, alpha=4)))
    if forward: m.forward = forward(m.forward)
    cfg = TrainConfig(**dict(epochs=2, batch_size=4, micro_batch_size=2, lr=1e-2, save_every=2, shown=1) | kw)
    r = train_reward_model(m, data, held, folder, cfg, resume=resume, progress=False, callbacks=callbacks)
    return dict(weights=m.state(), dev=r.dev, steps=r.steps, stopped=r.stopped, best=r.best_step, config=m.config)
def lines(folder): return [{k:v for k,v in r.items() if k not in ('seconds','dev')} for r in read_jsonl(folder/'metrics.jsonl')]

def refused(f):
    try: f()
    except Exception as e: return f'{type(e).__name__}: {e}'

class StopHere:
    everywhere = True
    def after_step(self, t): t.stop = t.procs.rank==1

class CannotBegin:
    def before_fit(self, t): raise UserError('log in first')

def on_a_server(folder, stop=False):
    "A step whose responses, held-out ones too, come from a server that the first process asks; a signal may come there meanwhile"
    url,first = folder/'url',os.environ.get('RANK', '0')=='0'
    if first:
        vllm = VLLM()
        write_file(url, vllm.url.encode())
    while not url.exists(): time.sleep(.1)
    t = SpanPPO(moved(), critic, prompts, dict(steps=1, batch_size=4, minibatch_size=4, max_new_tokens=6, epochs=1, samples_per_prompt=2, baseline='group'),
                heldout=HeldOut(prompts[:2], samples=2, greedy=True), callbacks=[RunFolder(folder/'run')], sampler=RolloutServer(url.read_text(), folder/'adapters', timeout=60.))
    if first and stop:
        def signalled(path, body, reply):
            t.stop = True
            return reply
        vllm.bend = signalled
    t.fit()
    return dict(step=t.step, said={k:[r['example'].response for r in rows] for k,rows in (t.heldout.before or {}).items()}, kl=t.stats.get('kl'))

def job(folder):
    "What each of two processes does"
    from accelerate import Accelerator
    from text2grad.cli.command import main
    rank = int(os.environ['RANK'])
    def only_one(examples):
        if rank: raise ValueError('no critic here')
        return critic(examples)
    def broken(forward): return lambda **b: {k:v*(float('nan') if rank else 1) for k,v in forward(**b).items()}
    out = {k:trained(k, folder) for k in kinds}
    shards = Processes(Accelerator(cpu=True), sharded=True)
    for resume in (False, True): out['shards'] = trained('value', folder/'shards', resume=resume, upto=2 if resume else 1, accelerator=shards)
    out['stopped'] = trained('group', folder/'stopped', callbacks=[StopHere()], held=False, steps=9)['step']
    out['other data'] = refused(lambda: trained('group', folder/'other', data=prompts[rank:], held=False))
    out['one critic fails'] = refused(lambda: trained('group', folder/'fails', judge=only_one, held=False))
    out['drawn'] = [random.random(), float(np.random.rand()), float(torch.rand(()))]
    out['reward model'] = learnt(folder/'rm')
    out['reward model, other data'] = refused(lambda: learnt(folder/'rm-other', data=rows[rank:]))
    out['reward model, no number'] = refused(lambda: learnt(folder/'rm-nan', forward=broken))
    out['reward model, stopped'] = learnt(folder/'rm-stopped', callbacks=[StopHere()])
    out['reward model, no login'] = refused(lambda: learnt(folder/'rm-login', callbacks=[CannotBegin()]))
    out['server'],out['server, signal'] = on_a_server(folder/'server'),on_a_server(folder/'server-signal', stop=True)
    out['reward model, again'] = refused(lambda: learnt(folder/'rm'))
    out['code'] = main(['train', '--config', str(folder/'train.json'), '--out', str(folder/'cli')])
    out['again'] = main(['train', '--config', str(folder/'train.json'), '--out', str(folder/'cli')])
    torch.save(out, folder/f'{rank}.pt')

def launch(*args, **env):
    "Two processes of a script or module; what they wrote and how it ended"
    how = 'launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no --main_process_port 0'.split()
    own = os.environ | dict(GLOO_SOCKET_IFNAME='lo', PYTHONPATH=os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get('PYTHONPATH', '')])) | env
    p = subprocess.Popen([sys.executable, '-m', 'accelerate.commands.accelerate_cli', *how, *args], env=own, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                         text=True, start_new_session=True)
    try: out,err = p.communicate(timeout=500)
    finally:
        try: os.killpg(p.pid, signal.SIGKILL) # what is left behind, if it is
        except ProcessLookupError: pass
    return p.returncode,out,err

def settings(folder):
    m,tok = tiny_lm()
    m.save_pretrained(folder/'tiny'); tok.save_pretrained(folder/'tiny')
    (folder/'prompts.txt').write_text('\n'.join(prompts))
    (folder/'mine.py').write_text('from text2grad.core import Critique,Span\n'+inspect.getsource(critic).replace('critic', 'both', 1)+'''
import os,signal
calls = [0]
def critic(examples):
    calls[0] += 1
    if os.environ.get('RANK')=='1' and calls[0]==int(os.environ.get('KILL_AT', 0)): os.kill(os.getpid(), signal.SIGKILL)
    return both(examples)
''')
    said = dict(prompts=str(folder/'prompts.txt'), critic=f'{folder/"mine.py"}:critic', model=str(folder/'tiny'), heldout='0.3', samples=2)
    (folder/'train.json').write_text(json.dumps(said | small | kinds['group'] | dict(steps=2, epochs=1)))

@pytest.fixture(scope='module')
def two(tmp_path_factory):
    "Both processes' results, and what the launcher's streams hold"
    d = tmp_path_factory.mktemp('two')
    settings(d)
    code,out,err = launch(__file__, str(d))
    assert code==0, err[-3000:]
    return [torch.load(d/f'{i}.pt', weights_only=False) for i in (0, 1)],out,err,d

@pytest.mark.parametrize('kind', kinds)
def test_two_processes_make_the_update_of_one(two, kind, tmp_path):
    (a,b),*_ = two
    one = trained(kind, tmp_path)
    assert 0<one['log'][0]['finished']<1 and one['log'][0]['judged']<6 # lengths differ, and some are not judged
    for k,w in one['weights'].items():
        assert torch.equal(a[kind]['weights'][k], b[kind]['weights'][k])
        torch.testing.assert_close(a[kind]['weights'][k], w, rtol=0, atol=1e-6)
    assert a[kind]['said']==one['said'] and a[kind]['totals']==one['totals']
    assert [r.keys() for r in a[kind]['log']]==[r.keys() for r in one['log']] and a[kind]['log']==b[kind]['log']
    for x,y in zip(a[kind]['log'], one['log']): assert x==pytest.approx(y, abs=2e-6, nan_ok=True)

def test_weights_in_shards_make_the_same_update_and_go_on_from_a_checkpoint(two, tmp_path):
    (a,b),_,_,d = two
    one = trained('value', tmp_path)
    saved = Policy.load(d/'shards/value/policy', tiny_lm()[0], tiny_lm()[1]).state_dict()
    for k,w in one['weights'].items():
        torch.testing.assert_close(a['shards']['weights'][k], w, rtol=0, atol=1e-6)
        assert torch.equal(a['shards']['weights'][k], b['shards']['weights'][k]) and torch.equal(a['shards']['weights'][k], saved[k])

def test_a_run_is_written_and_said_once(two, tmp_path):
    (a,b),out,err,d = two
    assert (a['code'],b['code'])==(0,0) and out.count('holds the log, samples and checkpoints')==1
    assert [r['step'] for r in read_jsonl(d/'cli/metrics.jsonl')]==[1,2]
    assert sorted(p.name for p in (d/'cli/checkpoints').iterdir())==['ckpt-000001','ckpt-000002']
    assert {p.name for p in (d/'cli/checkpoints/ckpt-000002').glob('rng*')}=={'rng.safetensors','rng-1.safetensors'}
    assert (a['again'],b['again'])==(1,1) and err.count('already holds a run')==1

def test_what_stops_or_fails_in_one_process_does_so_in_both(two):
    (a,b),*_ = two
    assert a['stopped']==b['stopped']==1
    assert a['other data']==b['other data']=='ProcessError: process 1: has another data than process 0'
    assert b['one critic fails']=='ValueError: no critic here' and a['one critic fails']=='ProcessError: process 1: ValueError: no critic here'
    assert all(x!=y for x,y in zip(a['drawn'], b['drawn']))

def test_a_killed_process_ends_the_run_which_goes_on_with_one(tmp_path, capsys):
    from text2grad.cli.command import main
    settings(tmp_path)
    code,out,err = launch('-m', 'text2grad', 'train', '--config', str(tmp_path/'train.json'), '--out', str(tmp_path/'run'), KILL_AT='3')
    assert code!=0 and 'another process of this run has ended' in err and '--resume' in err
    assert [r['step'] for r in read_jsonl(tmp_path/'run/metrics.jsonl')]==[1]
    assert main(['train', '--resume', '--out', str(tmp_path/'run')])==0
    assert main(['train', '--config', str(tmp_path/'train.json'), '--out', str(tmp_path/'whole')])==0
    a,b = ([{k:v for k,v in r.items() if k!='seconds'} for r in read_jsonl(tmp_path/f'{k}/metrics.jsonl')] for k in ('run','whole'))
    for x,y in zip(a, b, strict=True): assert x==pytest.approx(y, abs=2e-6)

def test_two_processes_train_a_reward_model_as_one_does(two, tmp_path):
    (a,b),_,_,d = two
    a,b,one = a['reward model'],b['reward model'],learnt(tmp_path/'rm')
    for k,w in one['weights'].items():
        assert torch.equal(a['weights'][k], b['weights'][k])
        torch.testing.assert_close(a['weights'][k], w, rtol=0, atol=1e-6)
    assert a['dev']==b['dev']==one['dev'] and (a['steps'],a['best'],a['config'])==(one['steps'],one['best'],one['config'])==(6,b['best'],b['config'])
    for x,y in zip(lines(d/'rm'), lines(tmp_path/'rm'), strict=True): assert x==pytest.approx(y, abs=2e-6)
    assert sorted(p.name for p in (d/'rm/checkpoints').iterdir())==sorted(p.name for p in (tmp_path/'rm/checkpoints').iterdir())

def test_what_fails_in_one_process_of_a_reward_model_fails_in_both(two):
    (a,b),*_ = two
    assert a['reward model, other data']==b['reward model, other data']=='ProcessError: process 1: has another data than process 0'
    said = b['reward model, no number']
    assert said.startswith('TrainingError: step 0: the loss is nan') and a['reward model, no number']==f'ProcessError: process 1: {said.removeprefix("TrainingError: ")}'
    assert 'RunFolderError' in a['reward model, again'] and 'already holds a run' in b['reward model, again']

def test_callbacks_of_a_reward_model_stop_or_end_it_in_both(two):
    (a,b),*_ = two
    for x in (a, b): assert (x['reward model, stopped']['steps'], x['reward model, stopped']['stopped'])==(1, 0)
    assert a['reward model, no login']=='UserError: log in first' and b['reward model, no login']=='ProcessError: process 0: log in first'

def test_a_server_is_asked_by_one_process_for_held_out_prompts_too(two, tmp_path):
    (a,b),*_ = two
    one = on_a_server(tmp_path)
    assert a['server']['said']==b['server']['said']==one['said'] and [len(one['said'][k]) for k in ('heldout','greedy')]==[4, 2]
    assert a['server']['kl']==b['server']['kl']==pytest.approx(one['kl'], abs=2e-6)
    assert a['server, signal']['step']==b['server, signal']['step']==0 and not a['server, signal']['said']

def dies(folder):
    "`train-rm` on two processes, the second of which is killed in its third pass"
    from text2grad.cli.command import main
    forward,passes = SpanRewardModel.forward,iter(range(1, 99))
    def kill(self, **batch):
        if os.environ['RANK']=='1' and next(passes)==3: os.kill(os.getpid(), signal.SIGKILL)
        return forward(self, **batch)
    SpanRewardModel.forward = kill
    sys.exit(main(rm_args(folder, 'run')))

def rm_args(d, out): return ['train-rm', '--data', str(d/'a.jsonl'), '--dev', str(d/'d.jsonl'), '--kind', 'span', '--model', str(d/'tiny'), '--lora', '2', '--epochs', '2',
                             '--batch-size', '8', '--max-length', '300', '--lr', '.01', '--out', str(d/out)]

def test_a_reward_model_goes_on_with_one_process_after_another_was_killed(tmp_path):
    from text2grad.cli.command import main
    settings(tmp_path)
    write_examples(tmp_path/'a.jsonl', [judged(i) for i in range(15)])
    write_examples(tmp_path/'d.jsonl', held)
    code,out,err = launch(__file__, 'dies', str(tmp_path))
    assert code!=0 and 'another process of this run has ended' in err and '--resume' in err, err[-3000:]
    assert [r['step'] for r in lines(tmp_path/'run')]==[1,2,2] and sorted(p.name for p in (tmp_path/'run/checkpoints').glob('ckpt-*'))==['ckpt-000000','ckpt-000002']
    assert main(['train-rm', '--resume', '--out', str(tmp_path/'run')])==0 and main(rm_args(tmp_path, 'whole'))==0
    for x,y in zip(lines(tmp_path/'run'), lines(tmp_path/'whole'), strict=True): assert x==pytest.approx(y, abs=2e-6)

def test_more_processes_than_there_is_work():
    def of(rank, count):
        p = Processes()
        p.rank,p.count,p.parts = rank,count,count
        return p
    for n,k,count in ((8,2,3), (4,4,3), (7,1,4), (1,1,2)):
        own = [range(n)[of(i, count).rows(n, k)] for i in range(count)]
        assert sum(map(list, own), [])==[*range(n)] and all(len(o)%k==0 for o in own)
    assert of(1, 2).part_size(4, 8)==2 and of(0, 1).part_size(4, 8)==8

recipes = sorted((Path(__file__).parents[1]/'recipes'/'accelerate').glob('*.yaml'))

@pytest.mark.parametrize('path', recipes, ids=lambda p: p.stem)
def test_the_recipes_are_what_this_accelerate_takes(path):
    from accelerate.commands.launch import _validate_launch_command,launch_command_parser
    from accelerate.utils import DistributedType,FullyShardedDataParallelPlugin,patch_environment
    from accelerate.utils.launch import prepare_multi_gpu_env
    assert len(recipes)==5
    args,known,_ = _validate_launch_command(launch_command_parser().parse_args(['--config_file', str(path), '-m', 'text2grad', 'train']))
    assert args.num_processes==dict(one_gpu=1, two_nodes=16).get(path.stem, 8) and args.num_machines==1+('two' in path.stem)
    if known.distributed_type=='FSDP':
        with patch_environment(**prepare_multi_gpu_env(args)): plugin = FullyShardedDataParallelPlugin()
        a = SimpleNamespace(distributed_type=DistributedType.FSDP, state=SimpleNamespace(fsdp_plugin=plugin))
        assert _sharded(a) is ('zero3' in path.stem)

@pytest.mark.parametrize('kind,plugin,says', [('DEEPSPEED', {}, 'DEEPSPEED'), ('FSDP', dict(fsdp_version=1), 'version 1'),
    ('FSDP', dict(fsdp_version=2, cpu_offload=True, cpu_ram_efficient_loading=False), 'fsdp_offload_params'),
    ('FSDP', dict(fsdp_version=2, cpu_ram_efficient_loading=True), 'fsdp_cpu_ram_efficient_loading')])
def test_an_engine_that_is_not_understood_is_refused(kind, plugin, says):
    from accelerate.utils import DistributedType,FullyShardedDataParallelPlugin
    made = FullyShardedDataParallelPlugin(**plugin) if kind=='FSDP' else None
    with pytest.raises(UserError, match=says):
        _sharded(SimpleNamespace(distributed_type=DistributedType[kind], state=SimpleNamespace(fsdp_plugin=made)))

def test_a_policy_that_is_trained_whole_is_not_cut_into_shards():
    with pytest.raises(UserError, match='trained whole'): _in_shards(Policy.create(*tiny_lm(), lora=None), Processes())

def test_a_reward_model_is_not_cut_into_shards_and_nothing_is_loaded_or_left_behind(tmp_path, monkeypatch, capsys):
    from text2grad.cli.command import main
    cut = Processes()
    cut.sharded = True
    with pytest.raises(UserError, match='FSDP: .* whole. Start the processes with accelerate launch --multi_gpu'):
        train_reward_model(None, rows, held, tmp_path/'rm', accelerator=cut)
    monkeypatch.setattr('text2grad.processes.processes', lambda *a: cut)
    assert main(['train-rm', '--data', str(tmp_path/'no such file'), '--kind', 'span', '--out', str(tmp_path/'rm')])==1
    assert 'accelerate launch --multi_gpu' in capsys.readouterr().err and not (tmp_path/'rm').exists()

if __name__=='__main__': dies(Path(sys.argv[2])) if sys.argv[1]=='dies' else job(Path(sys.argv[1]))
