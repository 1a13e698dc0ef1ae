"""The fast setting of span_vs_scalar.ipynb: a small language model that turns facts into a note, a critic that is a program, and runs of
seconds, so that ten seeds an arm cost minutes.

    python nbs/experiments/fast.py pilot          # a learning rate for each arm, on pilot seeds and validation prompts
    python nbs/experiments/fast.py arms           # ten arms, ten seeds, on test prompts
    python nbs/experiments/fast.py matched        # four arms again, at rates with which they end as far from the reference as the scalar
    python nbs/experiments/fast.py noise          # critics that err, and that disagree
    python nbs/experiments/fast.py horizon        # spans again: how far is a word answerable for what follows it?

Each run adds a line to fast.jsonl beside this file; what has a line already is not run again. This is a script and no module of the
library: nobody who installs text2grad needs it. The model is trained once (a minute or two of a core) and kept in the system's folder for
temporary files."""
import json,random,re,sys,tempfile,time
from dataclasses import replace
from functools import partial
from pathlib import Path
import numpy as np, torch
from safetensors.torch import load_file,save_file
from text2grad.core import Critique,Example,Span
from text2grad.critics import Noisy
from text2grad.critics.base import Weighted
from text2grad.data.store import code_digest
from text2grad.files import read_jsonl
from text2grad.span_ppo.baselines import ARMS,arm_trainer,revision_prompt
from text2grad.span_ppo.edits import edit_table
from text2grad.span_ppo.policy import Policy
from text2grad.span_ppo.rollout import judge,sample
from text2grad.span_ppo.trainer import SpanPPO

# What there is to say
FACTS = dict(name='Ada Ben Cora Dev Elif Finn Gita Hugo Ines Jon Kira Leo',
             thing='bread bikes maps lamps boats books plums shoes kites soap tents wool',
             place='Lyon Graz Oslo Bern Turin Porto Ghent Riga Cork Lund Split Brno',
             day='Monday Tuesday Wednesday Thursday Friday Saturday Sunday', hour='noon one two three four five six seven')
FACTS = {k:v.split() for k,v in FACTS.items()}
KIND = {w:k for k,ws in FACTS.items() for w in ws}
FILLERS = ('Well','as','we','heard')
SAID = ('right','wrong','again','filler','missing') # Kinds of marks, in the critic's words
WORDS = (*KIND, *FACTS, *FILLERS, *SAID, *'sells in Come on at , . ; > | / Once more repeat'.split())

def some_facts(rng): return {k:rng.choice(ws) for k,ws in FACTS.items()}

def prompt(facts, rng):
    "The facts in some order"
    return ' '.join(rng.sample(list(facts.values()), len(facts)))

def note(facts, rng, noise):
    "A note as the model learns to write it: `noise` is the chance of a wrong fact, half of it that of leaving one out"
    said = {k:rng.choice(FACTS[k]) if rng.random()<noise else v for k,v in facts.items()}
    with_ = lambda k,word: f'{word} {said[k]} '.lstrip() if rng.random()>noise/2 else ''
    when = with_('day', 'on')+with_('hour', 'at')
    first = f"{said['name']} sells {said['thing']} {with_('place', 'in')}"
    if rng.random()<noise/2: first = f'Well , {first}'
    if rng.random()<noise/2: first += 'as we heard '
    parts = [first, f'Come {when}' if when else '']
    if rng.random()<noise/2: parts.append(f"Once more , {rng.choice(('in '+said['place'], 'on '+said['day']))} ")
    return ' '.join(f'{p}.' for p in parts if p)

def examples(n, seed):
    "Prompts with the facts that they hold, and with how to tell a note of other facts"
    rng = random.Random(seed)
    return [Example(prompt(f, rng), '', meta=dict(facts=f)) for f in (some_facts(rng) for _ in range(n))]

# Who judges
def marks(y, facts):
    "`Span`s of a note: a right fact is praised once, a wrong one, one said again and idle words are blamed, and at the end what is missing"
    seen,out = set(),[]
    for m in re.finditer(r'\S+', y):
        w,k = m[0],KIND.get(m[0])
        if w in FILLERS: kind,score = 'filler',-.25
        elif k is None: continue
        elif facts[k]!=w: kind,score = 'wrong',-1.
        else: kind,score = ('again',-.5) if k in seen else ('right',.5)
        seen |= {k}
        out.append(Span(m.start(), m.end(), score, w, kind))
    return out+[Span(len(y), len(y), -.5, k, 'missing') for k in facts if k not in seen]

class Critic:
    "Says of each note what it thinks of it; `kinds`: of which marks it speaks; `against`: facts of which it thinks the opposite"
    def __init__(self, kinds=SAID, against=()): self.kinds,self.against = kinds,against
    def judge(self, e):
        found = [s for s in marks(e.response, e.meta['facts']) if s.reason in self.kinds]
        if self.against: found = [replace(s, score=-s.score) for s in found if KIND.get(s.quote, s.quote) in self.against]
        return Critique(' ; '.join(f'{s.quote} {s.reason}' for s in found if s.reason!='right') or 'right', found)
    def __call__(self, exs): return [self.judge(e) for e in exs]

def right(e):
    "What the critic does not compute: share of the facts that a reader of the note would get right, from the words and the facts alone"
    told = {k:{w for w in e.response.split() if KIND.get(w)==k} for k in FACTS}
    return sum(ws=={e.meta['facts'][k]} for k,ws in told.items())/len(FACTS)

def named(e): return len({KIND[w] for w in e.response.split() if w in KIND})/len(FACTS)

# Who writes
TEMPLATE = "{% for m in messages %}{{ m.content }}{{ ' | ' if m.role=='assistant' else ' > ' }}{% endfor %}"

def tokenizer():
    from tokenizers import Tokenizer,models,pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    vocab = {w:i for i,w in enumerate(['<pad>','<end>','<unk>', *WORDS])}
    t = Tokenizer(models.WordLevel(vocab, unk_token='<unk>'))
    t.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=t, pad_token='<pad>', eos_token='<end>', unk_token='<unk>', model_max_length=192,
                                   padding_side='left', chat_template=TEMPLATE)

def blank(tok, width=64, layers=2):
    from transformers import LlamaConfig,LlamaForCausalLM
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(vocab_size=len(tok), hidden_size=width, intermediate_size=2*width, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=192, initializer_range=.1, tie_word_embeddings=True,
        eos_token_id=tok.eos_token_id, pad_token_id=tok.pad_token_id, bos_token_id=None)).eval()

def listed(rng, noise):
    "Another task, of which the critic never hears: a prompt and words said again, with the same mistakes"
    ws = [rng.choice(FACTS[k]) for k in rng.sample(list(FACTS), 4)]
    again = [rng.choice(FACTS[KIND[w]]) if rng.random()<noise else w for w in ws]
    return Example(f'repeat {" ".join(ws)}', f'{" ".join(again)} .')

def lessons(rng, noise, n, kind):
    "Something to learn from: notes, notes revised in view of a critique (with half as many mistakes), or lists"
    if kind=='list': return [listed(rng, noise) for _ in range(n)]
    es = examples(n, rng.random())
    first = [replace(e, response=note(e.meta['facts'], rng, noise)) for e in es]
    if kind=='note': return first
    asked = [revision_prompt(replace(e, critique=Critic().judge(e))) for e in first]
    return [replace(a, response=note(e.meta['facts'], rng, noise/2)) for a,e in zip(asked, es)]

def padded(tok, es):
    "What `LlamaForCausalLM` takes, of answered examples; the loss is on the answers"
    chat = lambda e: [dict(role='user', content=e.prompt)] if isinstance(e.prompt, str) else e.prompt
    rows = [(tok(tok.apply_chat_template(chat(e), tokenize=False)).input_ids, tok(e.response).input_ids+[tok.eos_token_id]) for e in es]
    n = max(len(a)+len(b) for a,b in rows)
    pad = lambda r,v: torch.tensor([x+[v]*(n-len(x)) for x in r])
    return dict(input_ids=pad([a+b for a,b in rows], tok.pad_token_id), attention_mask=pad([[1]*len(a+b) for a,b in rows], 0),
                labels=pad([[-100]*len(a)+b for a,b in rows], -100))

def pretrain(steps=600, noise=.5, folder=None):
    "`(model, tokenizer)`, trained on the spot or as it was kept"
    tok = tokenizer()
    made = code_digest(prompt, note, listed, lessons, padded, blank, pretrain)
    model,kept = blank(tok),Path(folder or tempfile.gettempdir())/f'text2grad-fast-{steps}-{noise}-{made[:8]}.safetensors'
    if kept.exists():
        model.load_state_dict(load_file(kept), strict=False)
        model.tie_weights()
        return model,tok
    rng,opt = random.Random(0),torch.optim.AdamW(model.parameters(), 3e-3)
    for i in range(steps):
        for g in opt.param_groups: g['lr'] = 3e-3*min(1, (i+1)/50)*(1-i/steps)
        kind = 'list' if i%8==3 else 'revised' if i%8==7 else 'note'
        loss = model(**padded(tok, lessons(rng, noise*(i>steps//3), 32 if kind=='revised' else 64, kind))).loss
        opt.zero_grad()
        loss.backward()
        opt.step()
        if i%50<1: print(f'pretraining {i}: {loss.item():.3f}', file=sys.stderr, flush=True)
    save_file({k:v.contiguous().clone() for k,v in model.state_dict().items() if k!='lm_head.weight'}, kept)
    return model,tok

# What is run
SHARED = dict(steps=8, batch_size=64, samples_per_prompt=4, minibatch_size=32, micro_batch_size=32, epochs=2,
              max_new_tokens=26, kl_coef=.02)
TRAIN,VALID,TEST = dict(n=256, seed=1),dict(n=96, seed=2),dict(n=96, seed=4) # Prompts
RATES = (3e-4, 1e-3, 3e-3) # For each arm
PILOTS,SEEDS,FEW = (100, 101),range(10),range(5)
MAJOR = ('span','scalar','sentence','random','grpo') # Run again at equal KL
NOISY = ('clean', *(f'{k} {p}' for p in (.25, .5, .1) for k in ('flip','shift','move','drop')),
         'unending 1', 'blame 1', 'praise 1', 'swapped', 'opposed')
HORIZONS = ({f'siblings, gamma {g:g}':dict(baseline='group', gamma=g) for g in (.9, .5, 0.)} |
            {f'values, lambda {l:g}':dict(baseline='value', gamma=1., lam=l) for l in (.95, .5, 0.)} |
            dict(local=dict(baseline='local'))) # Arms with span rewards that differ from `span` in their credit alone
EVERY = 2 # Steps between measurements
KEPT = Path(__file__).with_name('fast.jsonl')

def critic_of(name, seed):
    "The critic that a run trains with; measured is always with the clean one"
    if name=='clean': return Critic()
    if name=='swapped': return Critic(('right','wrong','missing')) # For half of the run; then one that speaks of style alone
    if name=='opposed': return Weighted([Critic(), Critic(against=('day','hour'))], limit=99.)
    kind,share = name.split()
    return Noisy(Critic(), kind, float(share), seed)

@torch.no_grad()
def measured(policy, exs, longest):
    "Answers sampled at the temperature of training, always with the same seed, and what they come to; the KL is exact, nats a response"
    r = judge(sample(policy, exs, longest, 1., seed=7), Critic())
    mean = lambda xs: round(float(sum(xs)/len(exs)), 4)
    return r.examples,dict(kl=mean(policy.exact_kl(*r.forward_args()).sum(1)) if policy.moved else 0.,
                           total=mean(s.score for e in r.examples for s in e.critique.spans), right=mean(map(right, r.examples)),
                           named=mean(map(named, r.examples)), length=mean(r.lengths.tolist()))

BEGUN = {} # Seed of the prompts -> what was measured before training, which is the same in all runs

class Curve:
    "Measures a policy before, during and after a run; may swap the critic after half of it"
    def __init__(self, exs, swap=None, begun=None):
        self.exs,self.swap,self.begun,self.points,self.tokens,self.answers = exs,swap,begun,[],0,[]
    def measure(self, t):
        answers,found = measured(t.policy, self.exs, t.config.max_new_tokens) if t.step or not self.begun else self.begun
        self.points.append(dict(rollouts=t.step*t.config.batch_size, tokens=round(self.tokens)) | found)
        self.answers.append(answers)
    def before_fit(self, t): self.measure(t)
    def after_step(self, t):
        self.tokens += t.stats['length']*t.config.batch_size
        if self.swap and t.step==t.config.steps//2: t.critic = self.swap
        if t.step%EVERY==0 or t.step==t.config.steps: self.measure(t)

def counts(exs):
    "Marks of each kind, and words without a mark, a response"
    spans = [s for e in exs for s in e.critique.spans]
    words = sum(len(e.response.split()) for e in exs)
    found = {k:sum(s.reason==k for s in spans) for k in SAID} | dict(unmarked=words-sum(len(s)>0 for s in spans))
    return {k:round(v/len(exs), 3) for k,v in found.items()}

def moved(policy, before):
    "Mean change of the log-probability of old tokens that were blamed, praised or neither, and of lists, of which the critic never heard"
    rng = random.Random(4)
    table = edit_table(policy, before, [listed(rng, 0.) for _ in range(32)], batch_size=64)
    return {r['tokens']:round(r['value'], 4) for r in table}

def run(base, part, arm, lr, seed, critic='clean', **changed):
    "One run: its curve, and for some arms what became of the answers from before it"
    (model,tok),begun = base,time.process_time()
    lm = blank(tok)
    lm.load_state_dict(model.state_dict())
    cfg = SHARED | dict(lr=lr, seed=seed) | changed
    fields = (ARMS | HORIZONS)[arm]
    policy = Policy.create(lm, tok, lora=None, value_head=fields.get('baseline')=='value', seed=seed)
    on = VALID if part=='pilot' else TEST
    curve = Curve(examples(**on), Critic(('again','filler')) if critic=='swapped' else None, BEGUN.get(on['seed']))
    given = policy,critic_of(critic, seed),examples(**TRAIN)
    (arm_trainer(arm, *given, cfg, callbacks=[curve]) if arm in ARMS else SpanPPO(*given, cfg | fields, callbacks=[curve])).fit()
    BEGUN[on['seed']] = curve.answers[0],{k:v for k,v in curve.points[0].items() if k not in ('rollouts','tokens')}
    out = dict(part=part, arm=arm, lr=lr, seed=seed, critic=critic, curve=curve.points)
    if part=='arms': out |= dict(marks=[counts(curve.answers[0]), counts(curve.answers[-1])])
    if part=='arms' and arm in ('span','scalar','random'): out |= dict(moved=moved(policy, curve.answers[0]))
    return out | dict(seconds=round(time.process_time()-begun, 1))

def rates(rows, arms=(*ARMS, *HORIZONS), grid=RATES, pilots=PILOTS, price=SHARED['kl_coef'], far=np.inf):
    """The rate of each arm at which pilot runs ended highest in what every arm optimises, the total less the price of the KL; a KL over `far`
    is out of the question"""
    def worth(r): return -np.inf if r['curve'][-1]['kl']>far else r['curve'][-1]['total']-price*r['curve'][-1]['kl']
    out = {}
    for arm in arms:
        of = {lr:[worth(r) for r in rows if (r['part'],r['arm'],r['lr'])==('pilot',arm,lr)] for lr in grid}
        if all(len(v)==len(pilots) for v in of.values()): out[arm] = max(of, key=lambda lr: sum(of[lr]))
    return out

def pilot_kl(rows, arm, lr): return np.mean([r['curve'][-1]['kl'] for r in rows if (r['part'],r['arm'],r['lr'])==('pilot', arm, lr)])

def far_rates(rows, far, grid=RATES):
    "The rate with which each arm should end `far[arm]` nats from the reference: on a line between its pilots, KL over log rate"
    return {a:float(f'{np.exp(np.interp(kl, [pilot_kl(rows, a, lr) for lr in grid], np.log(grid))):.2g}') for a,kl in far.items()}

def plan(part, rows):
    "Runs of a part, the more important ones first"
    if part=='pilot': return [dict(arm=a, lr=lr, seed=s) for a in (*ARMS, *HORIZONS) for lr in RATES for s in PILOTS]
    lr = rates(rows)
    if part=='matched': lr = far_rates(rows, {a:pilot_kl(rows, 'scalar', lr['scalar']) for a in MAJOR if a!='scalar'})
    if part=='matched': return [dict(arm=a, lr=lr[a], seed=s) for s in SEEDS for a in lr]
    if part=='arms': return [dict(arm=a, lr=lr[a], seed=s) for s in SEEDS for a in ARMS if a in lr]
    if part=='horizon': return [dict(arm=a, lr=lr[a], seed=s) for s in FEW for a in HORIZONS if a in lr]
    return [dict(arm=a, lr=lr[a], seed=s, critic=c) for s in FEW for c in NOISY[1:] for a in ('span','scalar')]

def run_all(part, specs, one, kept):
    "Run what has no line in the file yet, and add a line for each"
    key = lambda r: (r.get('part', part), r['arm'], r['lr'], r['seed'], r.get('critic', 'clean'), r.get('task'))
    done = {key(r) for r in read_jsonl(kept)} if kept.exists() else set()
    for spec in specs:
        if key(spec) in done: continue
        r = one(part=part, **spec)
        with open(kept, 'a') as f: f.write(json.dumps(r)+'\n')
        print(part, spec, r['curve'][-1], r['seconds'], flush=True)

def main(part):
    rows = read_jsonl(KEPT) if KEPT.exists() else []
    run_all(part, plan(part, rows), partial(run, pretrain()), KEPT)

if __name__=='__main__':
    torch.set_num_threads(1)
    for part in sys.argv[1:] or ('pilot','arms','matched','noise','horizon'): main(part)
