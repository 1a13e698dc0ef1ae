"""How the cost of a step grows, and what it needs in memory beside what `estimate_memory` says: the measurements of growth.ipynb.

    python nbs/benchmarks/growth.py memory   # peak memory of whole steps of the trainer, and what was estimated
    python nbs/benchmarks/growth.py grow     # seconds of a core and peak memory by phase, over one size at a time
    python nbs/benchmarks/growth.py rows     # `annotate` with a critic that costs nothing, and the readers, over the number of rows

Each measurement is a process of its own with one thread, and adds a line to growth.jsonl beside this file; what has a line is not measured again.
Models are shapes with random weights: what a step costs does not depend on their values. A script and no module of the library."""
import json,multiprocessing,os,random,subprocess,sys,tempfile,time
from pathlib import Path

HERE = Path(__file__).resolve().parent if '__file__' in globals() else Path('.')
DONE = HERE/'growth.jsonl'
SHAPES = dict(tiny=dict(vocab=400, hidden=48, inner=96, layers=2, heads=4, kv=2), small=dict(vocab=8192, hidden=256, inner=768, layers=6, heads=4, kv=2),
              broad=dict(vocab=49152, hidden=576, inner=1536, layers=6, heads=9, kv=3), words=dict(vocab=128256, hidden=256, inner=768, layers=4, heads=4, kv=4),
              smol=dict(vocab=49152, hidden=576, inner=1536, layers=30, heads=9, kv=3))
USUAL = dict(shape='small', batch=8, minibatch=8, micro=4, prompt=64, response=64, samples=1, lora=True, value=True, checkpointing=False, epochs=2,
             heldout=0, spans=2)

def shape_of(shape):
    "The transformers config of a Llama"
    from transformers import LlamaConfig
    s = SHAPES[shape] if isinstance(shape, str) else shape
    return LlamaConfig(vocab_size=s['vocab'], hidden_size=s['hidden'], intermediate_size=s['inner'], num_hidden_layers=s['layers'],
                       num_attention_heads=s['heads'], num_key_value_heads=s['kv'], tie_word_embeddings=True, max_position_embeddings=4096,
                       bos_token_id=0, eos_token_id=s['vocab']-1, pad_token_id=s['vocab']-1)

def config_of_run(o):
    from text2grad.span_ppo import SpanPPOConfig
    return SpanPPOConfig(steps=1, batch_size=o['batch'], minibatch_size=o['minibatch'], micro_batch_size=o['micro'], max_new_tokens=o['response'],
                         samples_per_prompt=o['samples'], epochs=o['epochs'], baseline='value' if o['value'] else 'group',
                         gradient_checkpointing=o['checkpointing'])

def words_tokenizer(n):
    "A tokenizer of n words, one token each"
    from tokenizers import Tokenizer,decoders,models,pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    t = Tokenizer(models.WordLevel({f'w{i}':i for i in range(n-1)} | {'<end>':n-1}, unk_token='w0'))
    t.pre_tokenizer,t.decoder = pre_tokenizers.WhitespaceSplit(),decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=t, eos_token='<end>', pad_token='<end>', unk_token='w0', padding_side='left')

def memory_now():
    "Bytes of this process: now and at most"
    said = dict(l.split(':') for l in open('/proc/self/status') if l.startswith('Vm'))
    return [int(said[k].split()[0])*1024 for k in ('VmRSS','VmHWM')]

def step(o):
    "One step of the trainer on random weights: seconds of a core by phase, and the process's memory"
    import torch
    from transformers import AutoModelForCausalLM
    from text2grad.core import Critique,Example,Span
    from text2grad.span_ppo import Policy,SpanPPO
    rng,cfg = random.Random(0),config_of_run(o)
    torch.manual_seed(0)
    shape = shape_of(o['shape'])
    tok = words_tokenizer(shape.vocab_size)
    words = lambda: ' '.join(f'w{rng.randrange(1, shape.vocab_size-1)}' for _ in range(o['prompt']))
    policy = Policy.create(AutoModelForCausalLM.from_config(shape).eval(), tok, **({} if o['lora'] else dict(lora=None)), value_head=o['value'])
    if o['checkpointing']: policy = Policy.of(policy, gradient_checkpointing=True)
    def critic(es): return [Critique('', tuple(Span(i*len(e.response)//(o['spans']+1), (i+1)*len(e.response)//(o['spans']+1), 1.-2*(i%2)) for i in range(o['spans'])))
                            for e in es]
    class Clock:
        "Seconds of the core and the peak of each phase"
        def __init__(self): self.at,self.seconds,self.peaks = ('begin',time.process_time()),{},{}
        def on_phase(self, t): self.mark(t.doing)
        def after_fit(self, t): self.mark('end')
        def mark(self, name):
            was,since = self.at
            self.seconds[was] = self.seconds.get(was, 0)+time.process_time()-since
            self.peaks[was] = memory_now()[1]
            Path('/proc/self/clear_refs').write_text('5') # the peak begins anew
            self.at = (name,time.process_time())
    clock,before = Clock(),memory_now()
    t = SpanPPO(policy, critic, [Example(words(), '') for _ in range(max(2, o['batch']))], cfg, callbacks=[clock],
                heldout=[Example(words(), '') for _ in range(o['heldout'])] or None)
    t.fit()
    return dict(before=before, after=memory_now(), seconds=clock.seconds, peaks=clock.peaks, peak=max(before[1], *clock.peaks.values(), memory_now()[1]),
                length=t.stats['length'])

def estimated(o):
    "What `estimate_memory` says of such a step"
    from text2grad.loaded import LORA
    from text2grad.span_ppo import estimate_memory
    e = estimate_memory(config_of_run(o), shape_of(o['shape']), o['prompt'], lora=LORA if o['lora'] else None, heldout=o['heldout'])
    return dict(peak=e.peak, phase=e.phase, phases=e.phases, parts=e.parts)

def made(n, file):
    "Write a file of n rows of some 150 bytes, a Parquet file in one row group"
    rows = (dict(id=f'r{i}', prompt=f'Summarise text {i} in a sentence.', response=f'Text {i} says that a fox jumps over a dog and goes home.') for i in range(n))
    if file.suffix=='.parquet':
        import pyarrow as pa, pyarrow.parquet as pq
        return pq.write_table(pa.Table.from_pylist(list(rows)), file, row_group_size=n)
    with file.open('w', newline='') as f:
        if file.suffix=='.csv':
            import csv
            w = csv.DictWriter(f, ['id','prompt','response'])
            w.writeheader()
            return w.writerows(rows)
        if file.suffix=='.json': return json.dump(list(rows), f)
        f.writelines(json.dumps(r)+'\n' for r in rows)

def watched(o, work):
    "`work(file)` for a new file of rows: seconds of the core, and the process's memory"
    with tempfile.TemporaryDirectory() as d:
        file = Path(d)/f'in.{o["file"]}'
        subprocess.run([sys.executable,__file__,'make',str(o['rows']),file], check=True) # what writing takes is not this process's
        before = memory_now()
        Path('/proc/self/clear_refs').write_text('5')
        start = time.process_time()
        work(file)
        return dict(before=before, peak=memory_now()[1], seconds=time.process_time()-start, bytes=file.stat().st_size)

def annotating(o):
    from text2grad.core import Critique
    from text2grad.data.annotation import annotate
    critic = lambda es: [Critique('Read.') for _ in es]
    def work(file):
        did = annotate(file, critic, file.with_name('out.jsonl'), cache=None, progress=False)
        assert did.judged==o['rows']
    return watched(o, work)

def reading(o):
    import pyarrow.parquet
    from text2grad.files import rows
    def work(file): assert sum(1 for _ in rows(file))==o['rows']
    return watched(o, work)

def key(o): return json.dumps(o, sort_keys=True)

def known(): return {r['key']:r for r in map(json.loads, DONE.read_text().splitlines())} if DONE.exists() else {}

def measure(kind, o):
    "A measurement in a process of its own, unless it has a line already"
    k = key(dict(kind=kind, **o))
    if k in known(): return known()[k]
    load = os.getloadavg()[0]
    with multiprocessing.get_context('fork').Pool(1) as pool: did = pool.apply(globals()[kind], (o,))
    r = dict(key=k, kind=kind, asked=o, load=round(load, 1), **did)
    with DONE.open('a') as f: f.write(json.dumps(r)+'\n')
    print(kind, {k:v for k,v in o.items() if USUAL.get(k)!=v}, round(r.get('peak', 0)/1e6), 'MB', flush=True)
    return r

MEMORY = [dict(shape='tiny'), dict(shape='tiny', batch=32, minibatch=32, micro=32, prompt=256, response=128), dict(shape='small'), dict(lora=False),
          dict(micro=8, prompt=256, response=128), dict(micro=8, prompt=256, response=128, checkpointing=True), dict(samples=4, value=False, prompt=256),
          dict(shape='words'), dict(shape='words', micro=1), dict(shape='words', lora=False), dict(shape='broad'), dict(shape='broad', micro=8, heldout=8),
          dict(shape='broad', lora=False), dict(shape='broad', micro=2, prompt=256, checkpointing=True, value=False, samples=2),
          dict(shape='smol', response=32), dict(shape='smol', response=32, micro=2, checkpointing=True), dict(shape='smol', response=16, micro=2, lora=False),
          dict(shape='smol', response=32, micro=8), dict(shape='smol', response=32, lora=False, checkpointing=True)]

GROW = dict(batch=[4,8,16,32], response=[32,64,128,256], prompt=[32,64,128,256,512], samples=[1,2,4,8], vocab=[8192,49152,128256], spans=[0,2,8,32])

ROWS = [('reading', f) for f in ('jsonl','csv','parquet')]+[('annotating', 'jsonl')]

if __name__=='__main__' and sys.argv[1]=='make': made(int(sys.argv[2]), Path(sys.argv[3]))
elif __name__=='__main__' and sys.argv[1]=='rows':
    import text2grad.data
    for n in (10_000, 100_000, 1_000_000):
        for kind,file in ROWS: measure(kind, dict(rows=n, file=file))
    measure('reading', dict(rows=100_000, file='json')) # which is one value, and read as a whole
elif __name__=='__main__':
    import peft,torch,transformers,text2grad.all # once: a measurement is a fork of this process
    from transformers import LlamaForCausalLM
    torch.set_num_threads(1)
    if sys.argv[1]=='memory':
        for o in MEMORY:
            measure('step', USUAL | o)
            measure('estimated', USUAL | o)
    if sys.argv[1]=='grow':
        for k,vs in GROW.items():
            for v in vs: measure('step', USUAL | (dict(shape=SHAPES['small'] | dict(vocab=v, layers=4)) if k=='vocab' else {k:v}))
