"""The real setting of span_vs_scalar.ipynb: SmolLM2-135M-Instruct on a bundled task, each arm run as the quickstart runs spans.

    python nbs/experiments/real.py summarize pilot    # a learning rate for each arm, on training prompts that are held back
    python nbs/experiments/real.py summarize arms     # five seeds for the major arms, three for the others, on the held-out prompts
    python nbs/experiments/real.py summarize matched  # major arms that ended elsewhere than spans, at rates with which they should not

Among the arms is one that learns nothing: `reflect` answers, is told the critique, and answers again. Each run adds a line to real.jsonl
beside this file; what has a line already is not run again, so a command can be stopped at any time and a second one can work on another
task. A run takes some minutes of a core. Like fast.py, a script and no module of the library."""
import resource,sys,time
from dataclasses import replace
from pathlib import Path
import numpy as np, torch
from fast import MAJOR,far_rates,pilot_kl,rates,run_all
from text2grad.cli.quickstart import LR,task_critic,task_settings
from text2grad.cli.train import tuned
from text2grad.data.tasks import load_task
from text2grad.evaluation.complaints import compare_complaints
from text2grad.files import read_jsonl
from text2grad.span_ppo.baselines import ARMS,arm_trainer,revision_prompt
from text2grad.span_ppo.edits import edit_table
from text2grad.span_ppo.heldout import HeldOut,means
from text2grad.span_ppo.rollout import judge,make_rollout,sample

GRID = (1e-4, 3e-4, 9e-4, 2.7e-3) # Times the task's pace
PILOTS,SEEDS,FEW,BACK = (100,),range(5),range(3),16 # `BACK` training prompts are held back from pilots, to measure them on
SAMPLES = dict(summarize=2, answer=4, code=8) # Responses to each prompt that is measured
KL_ROWS,EDITS,PRICE = 32,16,.05
FAR,NEAR = 10,1 # Nats a response: over `FAR` the trainer warns, so no such rate is chosen; within `NEAR` counts as equal
KEPT = Path(__file__).with_name('real.jsonl')
BEGUN = {} # What was measured before training, which is the same in all runs of a task and part

def grid(task): return [float(f'{lr*task_settings(task)["pace"]:g}') for lr in GRID]

def point(rows, rollouts=0, tokens=0):
    "Means over responses; the KL is exact, nats a response, and not measured on greedy ones"
    m = {k.removeprefix('heldout_'):round(v, 5) for k,v in means(rows).items()}
    return dict(rollouts=rollouts, tokens=round(tokens)) | m | dict(kl=m.get('kl_response'))

def slopes(rows, samples):
    "What one more token goes with, by number: least squares among the responses to a prompt, to compare arms at equal length"
    inside = lambda k: (v := np.array([r[k] for r in rows], float).reshape(-1, samples))-v.mean(1, keepdims=True)
    x,known = inside('length'),[k for k,v in rows[0].items() if k not in ('example','length','kl','kl_response')]
    return {k:round(float((x*inside(k)).sum()/max((x*x).sum(), 1e-9)), 6) for k in known if all(r[k] is not None for r in rows)}

class Sampled:
    "Counts tokens"
    tokens = 0
    def after_step(self, t): self.tokens += t.stats['length']*t.config.batch_size

def moved(t, task, before):
    "How far the log-probs of responses from before the training have moved, by what the critic said of them; and those of another task"
    other = load_task('answer' if task!='answer' else 'summarize').heldout[:EDITS]
    firsts = [r['example'] for r in before[::SAMPLES[task]][:EDITS]]
    probe = [replace(e, response=e.reference if isinstance(e.reference, str) else e.reference[0]) for e in other]
    table = edit_table(t.policy, firsts, probe, temperature=t.config.temperature)
    return {r['tokens']:round(r['value'], 4) for r in table}

class Reflecting:
    "`sample`, but what comes out is a second answer, in view of what the critic said of the first"
    def __init__(self, critic, seed): self.critic,self.seed = critic,seed
    def __call__(self, policy, examples, longest, temperature, seed, siblings=1, greedy=False, **how):
        first = judge(sample(policy, examples, longest, temperature, seed+self.seed, siblings=siblings, greedy=greedy, **how), self.critic)
        quiet = torch.arange(len(first))%siblings==siblings-1 if greedy else torch.zeros(len(first), dtype=torch.bool)
        ids = torch.full((len(first), longest), policy.pad_id)
        for rows,heat in ((~quiet, temperature), (quiet, 0.)):
            if not rows.any(): continue
            asked = [revision_prompt(first.examples[i]) for i in rows.nonzero().flatten().tolist()]
            again = sample(policy, asked, longest, heat, seed+self.seed, batch_size=16, allow_off_policy=True)
            ids[rows,:again.ids.shape[1]] = again.ids
        return make_rollout(policy, examples, first.prompt_ids, first.prompt_mask, ids, temperature)

def run(task, part, arm, lr, seed):
    "One run: means and complaints before and after it, sampled and greedy"
    began,own,bundled,pilot,sampled = time.process_time(),task_settings(task),load_task(task),part=='pilot',Sampled()
    given = dict(samples_per_prompt=own['siblings'], max_new_tokens=bundled.max_new_tokens, kl_coef=PRICE, lr=lr, seed=seed)
    train,on = (bundled.train[:-BACK],bundled.train[-BACK:]) if pilot else (bundled.train,bundled.heldout)
    config = tuned({k:own[k] for k in ('steps','batch_size','temperature')} | given, LR)
    t = arm_trainer('span' if arm=='reflect' else arm, None, task_critic(task), train, config, callbacks=[sampled])
    held = HeldOut(on, bundled, samples=SAMPLES[task], greedy=not pilot, kl_rows=KL_ROWS)
    if (task,pilot) not in BEGUN: BEGUN[task,pilot] = held.measure(t, 'before')
    if arm=='reflect': t.sampler,held.kl_rows = Reflecting(t.critic, seed),0 # how far another prompt leads is no KL of the policy
    else: t.fit()
    before,after = BEGUN[task,pilot],held.measure(t, 'after')
    said = compare_complaints(before['heldout'], after['heldout'], least=0)
    out = dict(part=part, task=task, arm=arm, lr=lr, seed=seed,
               curve=[point(before['heldout']), point(after['heldout'], t.step*t.config.batch_size, sampled.tokens)],
               complaints={r['complaint']:[round(r['before'], 4), round(r['after'], 4)] for r in said})
    if not pilot and arm in ('span','scalar','random'): out |= dict(moved=moved(t, task, before['heldout']))
    if not pilot: out |= dict(greedy=[point(before['greedy']), point(after['greedy'])], slopes=slopes(after['heldout'], SAMPLES[task]))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss//1024 # of all runs so far
    return out | dict(seconds=round(time.process_time()-began, 1), memory_mb=memory)

def chosen(rows, task):
    "Each arm's rate by its pilots; on other tasks than summaries the minor arms have none and take that of summaries, times the pace"
    own = rates([r for r in rows if r.get('task')==task], ARMS, grid(task), PILOTS, PRICE, FAR)
    if task=='summarize': return own
    return own | {a:float(f'{lr*grid(task)[0]/GRID[0]:g}') for a,lr in chosen(rows, 'summarize').items() if a not in MAJOR}

def plan(task, part, rows):
    "Runs of a part, the more important ones first"
    one = lambda a,lr,s: dict(task=task, arm=a, lr=lr, seed=s)
    piloted = [*MAJOR, *([a for a in ARMS if a not in MAJOR] if task=='summarize' else [])]
    if part=='pilot': return [one(a, lr, s) for a in piloted for lr in grid(task) for s in PILOTS]
    lr,rows = chosen(rows, task),[r for r in rows if r.get('task')==task]
    if part=='matched':
        ends = {a:[r['curve'][-1]['kl'] for r in rows if (r['part'],r['arm'])==('arms', a)] for a in MAJOR}
        more = {a:np.mean(ends['span'])-np.mean(v) for a,v in ends.items() if len(v)==len(ends['span'])==len(SEEDS)}
        lr = far_rates(rows, {a:pilot_kl(rows, a, lr[a])+d for a,d in more.items() if abs(d)>NEAR}, grid(task))
        return [one(a, lr[a], s) for s in SEEDS for a in lr]
    minor = {a:lr[a] for a in ARMS if a in lr and a not in MAJOR} | dict(reflect=0.)
    return [one(a, lr[a], s) for s in SEEDS for a in MAJOR if a in lr]+[one(a, minor[a], s) for s in FEW for a in minor]

def main(task, part): run_all(part, plan(task, part, read_jsonl(KEPT) if KEPT.exists() else []), run, KEPT)

if __name__=='__main__':
    torch.set_num_threads(1)
    for part in sys.argv[2:] or ('pilot','arms','matched'): main(sys.argv[1], part)
