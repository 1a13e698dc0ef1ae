"""A step of span PPO and a step of TRL 1.12.0, side by side: the measurements of span_ppo.ipynb.

    python -m venv /tmp/trl && /tmp/trl/bin/pip install -c constraints.txt torch transformers accelerate datasets peft trl==1.12.0 requests
    TRL_PYTHON=/tmp/trl/bin/python python nbs/benchmarks/span_ppo.py 7 lora whole grpo         # rounds, blocks; one thread
    TRL_PYTHON=/tmp/trl/bin/python python nbs/benchmarks/span_ppo.py 7 lora-2 whole-2 grpo-2   # two threads
    TRL_PYTHON=/tmp/trl/bin/python python nbs/benchmarks/span_ppo.py count                     # tokens that go through the models
    python nbs/benchmarks/span_ppo.py write                                                    # what a written token costs, and why
    python nbs/benchmarks/span_ppo.py 5 read                                                   # siblings read by the reward model

Each contestant is a process of its own, TRL's in its own environment. They wait side by side and take steps in turn, so that what else the
machine does falls on all of them; the order turns with the rounds. Each step adds a line to span_ppo.jsonl beside this file; rounds that
are complete there are not run again, so the commands can be stopped at any time, and a larger number of rounds adds to what is there. A
block that goes on warms up anew. A step of PPO has two epochs; the second is booked as 'more'. Each epoch is the same work, so that a step
with one epoch is one without it, and a step with four has it three times."""
import json,os,subprocess,sys,tempfile,time
from collections import Counter,defaultdict
from pathlib import Path

PROMPT,RESPONSE,BATCH,MICRO,GROUP = 64,64,8,4,4 # Tokens, tokens, responses a step, responses a pass with gradient, responses to a prompt
EPOCHS,LR,KL = 2,1e-6,.04
BLOCKS = {b:(f'ours-{b}',f'trl-{b}') for b in ('whole','lora','grpo','grpo-lora')}
KEPT = Path(__file__).with_name('span_ppo.jsonl')

# What is measured
class Meter:
    "CPU and wall seconds of the phases of a step, the tokens that went through the models in each, and the peak of memory"
    def __init__(self): self.begin('rest')
    def begin(self, base):
        self.seconds,self.tokens,self.stack = defaultdict(lambda: [0.,0.]),Counter(),[base]
        Path('/proc/self/clear_refs').write_text('5') # the peak of memory begins anew
        self.at = time.process_time(),time.perf_counter()
    def book(self):
        "What passed since the last time belongs to the phase on top"
        now = time.process_time(),time.perf_counter()
        for i in (0,1): self.seconds[self.stack[-1]][i] += now[i]-self.at[i]
        self.at = now
    def base(self, name): self.book(); self.stack[0] = name
    def phase(self, name, f):
        "`f`, its time booked on a phase"
        def timed(*args, **kw):
            self.book(); self.stack.append(name)
            try: return f(*args, **kw)
            finally: self.book(); self.stack.pop()
        return timed
    def watch(self, model):
        "Count the tokens that go through a model's layers, and through its output layer"
        import torch
        seen = lambda what,n: self.tokens.update({f"{self.stack[-1]} {what}{' with gradient' if torch.is_grad_enabled() else ''}":n})
        def body(m, args, kw):
            x = next(v for v in (kw.get('input_ids'), kw.get('inputs_embeds'), *args) if v is not None)
            seen('body', x.shape[0]*x.shape[1])
        V = model.config.vocab_size
        for m in model.modules():
            if type(m).__name__=='LlamaModel': m.register_forward_pre_hook(body, with_kwargs=True)
            elif getattr(m, 'out_features', 0)==V and not hasattr(m, 'base_layer'):
                m.register_forward_pre_hook(lambda m,args: seen('head', args[0].shape[:-1].numel()))
    def row(self):
        self.book()
        peak = next(int(l.split()[1])/1024 for l in open('/proc/self/status') if l.startswith('VmHWM'))
        total = lambda i: round(sum(v[i] for v in self.seconds.values()), 3)
        return dict(cpu=total(0), wall=total(1), peak=round(peak), phases={k:[round(x, 3) for x in v] for k,v in self.seconds.items()},
                    tokens=dict(self.tokens))

class Gate:
    "Where a contestant waits for its turn, and tells what its last step cost"
    def __init__(self, out): self.out,self.meter,self.begun = out,Meter(),False
    def say(self, **kw): print(json.dumps(kw), file=self.out, flush=True)
    def wait(self, base):
        "Until the next step, and how many epochs it has"
        self.say(**(self.meter.row() if self.begun else dict(ready=True)))
        line = sys.stdin.readline()
        if not line.strip(): os._exit(0)
        self.begun = True
        self.meter.begin(base)
        return json.loads(line)['epochs']

# Contestants
def lora_of(): return dict(r=16, lora_alpha=32, lora_dropout=0., target_modules='all-linear', task_type='CAUSAL_LM')

def ours(gate, folder, prompts, whole, grpo):
    from dataclasses import replace
    from text2grad.core import Critique,Example,Span
    from text2grad.pretrained import load_model
    from text2grad.span_ppo import Policy,SpanPPO,SpanPPOConfig
    model,tok = load_model(folder)
    gate.meter.watch(model)
    lora = None if whole else dict(r=16, alpha=32)
    critic = lambda es: [Critique('', tuple(Span(i, i+1, .1) for i,c in enumerate(e.response) if c=='e')) for e in es]
    how = dict(batch_size=BATCH, minibatch_size=BATCH, micro_batch_size=MICRO, max_new_tokens=RESPONSE, lr=LR, steps=10_000)
    if grpo: how |= dict(baseline='grpo', samples_per_prompt=GROUP, kl_in='loss', kl_kind='k3', kl_coef=KL)
    t = SpanPPO(Policy.create(model, tok, lora, value_head=not grpo), critic, [Example(p, '') for p in prompts], SpanPPOConfig(**how))
    for name,of in (('sample','rollout'), ('update','update')): setattr(t, of, gate.meter.phase(name, getattr(t, of)))
    minibatch,more = t.minibatch,gate.meter.phase('more', t.minibatch)
    while True:
        t.config,calls = replace(t.config, epochs=gate.wait('score')),iter([minibatch])
        t.minibatch = lambda *args: next(calls, more)(*args)
        t.one_step()
        assert t.batch.mask.sum()==BATCH*RESPONSE and t.batch.taught.all() and t.batch.rollout.prompt_mask.sum()==BATCH*PROMPT
        t.step += 1

def trl_args(folder):
    return dict(output_dir=folder+'/out', per_device_train_batch_size=MICRO, gradient_accumulation_steps=BATCH//MICRO, learning_rate=LR,
                bf16=False, use_cpu=True, gradient_checkpointing=False, report_to=[], save_strategy='no', logging_steps=100_000,
                disable_tqdm=True, temperature=1.)

def trl_models(folder):
    import torch
    from transformers import AutoModelForCausalLM,AutoTokenizer
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),AutoTokenizer.from_pretrained(folder)

def trl_ppo(gate, folder, prompts, whole):
    "As its own example is: a value model that is trained whole and a reward model, each as large as the policy"
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForSequenceClassification
    from trl.experimental.ppo import PPOConfig,PPOTrainer,ppo_trainer as module
    model,tok = trl_models(folder)
    judge = lambda: AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=torch.float32)
    value,reward = judge(),judge()
    args = PPOConfig(**trl_args(folder), total_episodes=10_000*BATCH, num_ppo_epochs=EPOCHS, num_mini_batches=1, response_length=RESPONSE,
                     local_rollout_forward_batch_size=BATCH, num_sample_generations=0, kl_coef=.05)
    ids = tok(prompts).input_ids
    t = PPOTrainer(args, tok, model, None, reward, Dataset.from_dict(dict(input_ids=ids)), value,
                   peft_config=None if whole else LoraConfig(**lora_of()))
    for m in {model, t.ref_model, value, reward}-{None}: gate.meter.watch(m)
    get_reward,forward,calls = module.get_reward,module.forward,[]
    def update(model, *rest):
        if torch.is_grad_enabled():
            calls.append(1)
            gate.meter.base('update' if len(calls)<=BATCH//MICRO else 'more')
        return forward(model, *rest)
    timed = gate.meter.phase('reward', get_reward)
    module.get_reward = lambda m,*rest: (timed if m is t.reward_model else get_reward)(m, *rest)
    module.forward,module.batch_generation = update,gate.meter.phase('sample', module.batch_generation)
    class Batches:
        def __iter__(self):
            args.num_ppo_epochs = gate.wait('score')
            calls.clear()
            yield dict(input_ids=torch.tensor(ids))
    t.dataloader = Batches()
    t.train()

def trl_grpo(gate, folder, prompts, whole):
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl import GRPOConfig,GRPOTrainer
    model,tok = trl_models(folder)
    class Turn(TrainerCallback):
        def on_step_begin(self, *args, **kw): gate.wait('update')
    args = GRPOConfig(**trl_args(folder), num_generations=GROUP, max_completion_length=RESPONSE, beta=KL, max_steps=10_000)
    t = GRPOTrainer(model, lambda completions, **kw: [.1*c.count('e') for c in completions], args, Dataset.from_dict(dict(prompt=prompts)),
                    processing_class=tok, callbacks=[Turn()], peft_config=None if whole else LoraConfig(**lora_of()))
    for m in {model, t.ref_model}-{None}: gate.meter.watch(m)
    t._generate_and_score_completions = gate.meter.phase('score', t._generate_and_score_completions)
    t._generate_single_turn = gate.meter.phase('sample', t._generate_single_turn)
    t.train()

def contestant(name, folder, threads):
    "One process: it takes steps when told to, and says what each cost"
    gate = Gate(os.fdopen(os.dup(1), 'w'))
    os.dup2(2, 1) # what libraries print is no answer
    import torch
    torch.set_num_threads(int(threads))
    torch.manual_seed(0)
    prompts,(side,*rest) = json.loads((Path(folder)/'prompts.json').read_text()),name.split('-')
    whole,grpo = 'lora' not in rest,'grpo' in rest
    if side=='ours': ours(gate, folder, prompts, whole, grpo)
    else: (trl_grpo if grpo else trl_ppo)(gate, folder, prompts, whole)

# The race
def prepare(folder):
    "SmolLM2-135M with an end token that is never sampled, and eight prompts of as many tokens"
    from text2grad.data import summarize
    from text2grad.pretrained import default_model,load_model
    model,tok = load_model(default_model())
    tok.chat_template,never = None,'<jupyter_output>'
    tok.eos_token = tok.pad_token = never
    model.config.eos_token_id = model.config.pad_token_id = tok.eos_token_id
    model.generation_config.eos_token_id = model.generation_config.pad_token_id = tok.eos_token_id
    model.save_pretrained(folder)
    tok.save_pretrained(folder)
    texts = (tok.decode(tok(e.prompt[-1]['content']).input_ids[:PROMPT]) for e in summarize().train)
    prompts = [t for t in texts if len(tok(t).input_ids)==PROMPT][:BATCH]
    assert len(set(prompts))==BATCH
    (Path(folder)/'prompts.json').write_text(json.dumps(prompts))

def start(name, folder, threads):
    env = os.environ | dict(OMP_NUM_THREADS=str(threads), MKL_NUM_THREADS=str(threads), HF_HUB_OFFLINE='1', TOKENIZERS_PARALLELISM='false')
    if name.startswith('trl'): env.pop('PYTHONPATH', None)
    py = os.environ['TRL_PYTHON'] if name.startswith('trl') else sys.executable
    p = subprocess.Popen([py, __file__, 'contestant', name, folder, str(threads)], env=env, text=True, stdin=-1, stdout=-1)
    if json.loads(p.stdout.readline() or '{}')!=dict(ready=True): raise SystemExit(f'{name} did not start')
    return p

def step(p, epochs):
    print(json.dumps(dict(epochs=epochs)), file=p.stdin, flush=True)
    line = p.stdout.readline()
    if not line: raise SystemExit(f'a contestant ended: {p.args}')
    return json.loads(line)

def running(): return int(open('/proc/loadavg').read().split()[3].split('/')[0])-1 # threads that want a core, but this one

def race(block, folder, rounds):
    "The rounds of a block that are not there yet, after one to warm up"
    base,two,_ = block.partition('-2')
    names,threads,epochs = BLOCKS[base],2 if two else 1,1 if 'grpo' in base else EPOCHS
    old = [json.loads(l) for l in KEPT.read_text().splitlines()] if KEPT.exists() else []
    todo = sorted(set(range(rounds))-{r['round'] for r in old if r['block']==block})
    if not todo: return
    procs = {n:start(n, folder, threads) for n in names}
    for p in procs.values(): step(p, 1)
    for i in todo:
        rows = []
        for n in (names if i%2<1 else names[::-1]):
            beside = running()
            rows.append(dict(block=block, round=i, name=n, epochs=epochs, threads=threads, beside=beside) | step(procs[n], epochs))
        with open(KEPT, 'a') as f: f.writelines(json.dumps(r)+'\n' for r in rows)
        print(block, i, *(f"{r['name']} {r['cpu']}s {r['peak']}M" for r in rows), flush=True)
    for p in procs.values():
        p.stdin.close()
        p.wait()

def keep(**row):
    with open(KEPT, 'a') as f: f.write(json.dumps(row)+'\n')
    print(row, flush=True)

# What needs no race
def tiny(folder):
    "A model of two narrow layers in place of the real one: as many tokens go through it"
    from transformers import LlamaConfig,LlamaForCausalLM
    c = LlamaConfig.from_pretrained(folder)
    c.hidden_size = c.intermediate_size = 64
    c.num_hidden_layers,c.num_attention_heads,c.num_key_value_heads,c.head_dim = 2,2,1,32
    LlamaForCausalLM(c).save_pretrained(folder)

def count(folder):
    "Tokens through layers and output layers in one step of each contestant, which do not depend on the width of a model"
    tiny(folder)
    done = [r['name'] for r in map(json.loads, KEPT.read_text().splitlines()) if r['block']=='count'] if KEPT.exists() else []
    for n in ('ours-lora','ours-whole','ours-grpo','trl-lora','trl-whole','trl-grpo'):
        if n in done: continue
        p,epochs = start(n, folder, 1),1 if 'grpo' in n else EPOCHS
        step(p, 1) # before it, an adapter is zero and needs no reference
        keep(block='count', name=n, epochs=epochs, tokens=step(p, epochs)['tokens'])
        p.stdin.close()
        p.wait()

def median(f, n=5):
    "Median CPU seconds of a call"
    def once():
        t = time.process_time(); f()
        return time.process_time()-t
    return sorted(once() for _ in range(n))[n//2]

def write():
    "Bandwidth of memory, speed of a linear layer, and what a token costs that is read or written, for some batches"
    import torch
    from text2grad.pretrained import load_model
    torch.set_num_threads(1)
    big,ws = torch.ones(2**26),[torch.randn(1536, 576) for _ in range(60)]
    rate = lambda B: 60*1536*576*4/1e9/median(lambda x=torch.randn(B, 576): [torch.nn.functional.linear(x, w) for w in ws])
    keep(block='write', what='memory', beside=running(), read=round(2**28/1e9/median(big.sum), 2),
         linear={B:round(rate(B), 2) for B in (1,8,128)})
    del big
    model = load_model()[0].eval()
    for B in (1,4,8): keep(block='write', what='model', beside=running(), B=B, **one_token(model, B))

def one_token(model, B, P=343, n=5):
    "CPU seconds a token read and a step written (layers, output layer), after prompts of `P` tokens; operations a step"
    import torch
    with torch.no_grad():
        ids,t = torch.randint(100, 4000, (B, P)),time.process_time()
        cache = model.model(input_ids=ids, use_cache=True).past_key_values
        read = (time.process_time()-t)/B/P
        x = ids[:,-1:]
        go = lambda: model.model(input_ids=x, past_key_values=cache, use_cache=True).last_hidden_state
        h = go()
        body,head = median(go, n),median(lambda: model.lm_head(h), n)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as prof: go()
    ops = prof.key_averages()
    mm = sum(e.self_cpu_time_total for e in ops if e.key in ('aten::mm','aten::addmm'))/sum(e.self_cpu_time_total for e in ops)
    return dict(read=round(read, 5), body=round(body, 4), head=round(head, 4), matmul=round(mm, 3), operations=sum(e.count for e in ops),
                weights=round(sum(p.numel() for p in model.parameters())*4/1e9, 3))

def read(rounds):
    "CPU seconds of a reward model for four responses of 98 tokens to one prompt of 245, the prompt read once and four times, in turn"
    import torch
    from text2grad.core import Example
    from text2grad.pretrained import load_model
    from text2grad.reward_model import SpanRewardConfig,SpanRewardModel
    torch.set_num_threads(1)
    m = SpanRewardModel.create(*load_model(), SpanRewardConfig(lora='frozen', size=192))
    torch.nn.init.normal_(m.reader.out.weight) # it begins at zero, and all probabilities would be equal
    words = 'the red house stands near a small river and its old owner likes to read long books about ships '.split()
    say = lambda n,k: ' '.join(words[i*k%len(words)] for i in range(n))
    es = [Example(say(220, 1), say(98, k)) for k in (1,3,5,7)]
    size = lambda e: (m.encode(e).before, len(m.encode(e).offsets))
    def scored(shares):
        m.shares,t = shares,time.process_time()
        got = m.scores(es)
        return got,time.process_time()-t
    for i in range(-1, int(rounds)):
        (a,together),(b,alone) = (scored(s) for s in (True,False)) if i%2 else reversed([scored(s) for s in (False,True)])
        off = max(abs(x.probs-y.probs).max() for x,y in zip(a, b))
        if i<0: continue
        keep(block='read', round=i, beside=running(), rows=[size(e) for e in es], together=round(together, 3), alone=round(alone, 3),
             off=float(off))

def main(*args):
    if args==('write',): return write()
    if args[1:]==('read',): return read(args[0])
    with tempfile.TemporaryDirectory() as folder:
        prepare(folder)
        if args==('count',): return count(folder)
        for b in args[1:]: race(b, folder, int(args[0]))

if __name__=='__main__':
    if sys.argv[1:2]==['contestant']: contestant(*sys.argv[2:])
    else: main(*sys.argv[1:])
