"Rollouts from a server: a stand-in on 127.0.0.1 that speaks vLLM's completions and adapter endpoints, and what it may do wrong"
import json,math,threading,time
from http.server import BaseHTTPRequestHandler,ThreadingHTTPServer
from pathlib import Path
import pytest,torch
from text2grad.core import Critique,Example,Span
from text2grad.files import UserError
from text2grad.pretrained import tiny_lm
from text2grad.span_ppo import HeldOut,RunFolder,rollout
from text2grad.span_ppo.config import SpanPPOConfig
from text2grad.span_ppo.policy import Policy
from text2grad.span_ppo.server import RolloutServer,ServerError
from text2grad.span_ppo.trainer import SpanPPO

class VLLM(ThreadingHTTPServer):
    "`/v1/completions` with token ids, `/v1/models`, `/v1/load_lora_adapter` and its opposite; the model computes in float64"
    daemon_threads = True
    def __init__(self):
        super().__init__(('127.0.0.1', 0), Handler)
        self.adapters,self.asked,self.lock,self.bend,self.raw = {},[],threading.Lock(),lambda path, body, reply: reply,False
        threading.Thread(target=self.serve_forever, kwargs=dict(poll_interval=.02), daemon=True).start()
    @property
    def url(self): return f'http://127.0.0.1:{self.server_port}/v1'
    def handle_error(self, *a): pass
    def load(self, body):
        from peft import PeftModel
        self.adapters[body['lora_name']] = PeftModel.from_pretrained(tiny_lm()[0], body['lora_path']).double().eval()
        return 200,'Success'
    def unload(self, body): return (200,'Success') if self.adapters.pop(body['lora_name'], None) else (404,dict(error=dict(message='not found')))
    def completion(self, body):
        model = self.adapters.get(body['model'])
        if model is None: return 404,dict(error=dict(message=f'The model `{body["model"]}` does not exist.'))
        rows,lps = self.draw(model, body)
        ends = set(body['stop_token_ids'])
        say = lambda i: dict(index=i, text='', finish_reason='stop' if rows[i][-1] in ends else 'length', token_ids=rows[i],
                             prompt_token_ids=body['prompt'], logprobs=dict(token_logprobs=lps[i], tokens=[], top_logprobs=[], text_offset=[]))
        return 200,dict(id='1', object='text_completion', created=0, model=body['model'], choices=[say(i) for i in range(body['n'])])
    def draw(self, model, body):
        g,T = torch.Generator().manual_seed(body['seed'] % 2**63),body['temperature']
        rows,lps = [],[]
        for _ in range(body['n']):
            ids,out = list(body['prompt']),[]
            while len(ids)<len(body['prompt'])+body['max_tokens'] and (not out or ids[-1] not in body['stop_token_ids']):
                z = model(input_ids=torch.tensor([ids])).logits[0,-1].detach()
                p = (z/T).softmax(-1) if T else torch.zeros_like(z).index_fill(0, z.argmax(), 1.)
                ids.append(int(torch.multinomial(p, 1, generator=g)))
                out.append(float((z if self.raw else z/(T or 1)).log_softmax(-1)[ids[-1]]))
            rows.append(ids[len(body['prompt']):]); lps.append(out)
        return rows,lps

class Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def do_POST(self):
        s,body = self.server,json.loads(self.rfile.read(int(self.headers['content-length'])))
        with s.lock:
            s.asked.append((self.path, body))
            do = {'/v1/completions':s.completion, '/v1/load_lora_adapter':s.load, '/v1/unload_lora_adapter':s.unload}[self.path]
            reply = s.bend(self.path, body, do(body))
        if reply is None: self.close_connection = True; self.connection.close(); return
        self.say(*reply)
    def do_GET(self): self.say(200, dict(object='list', data=[dict(id=n, object='model', created=0, owned_by='me') for n in self.server.adapters]))
    def say(self, status, what):
        raw = json.dumps(what).encode() if isinstance(what, dict) else what.encode()
        self.send_response(status)
        self.send_header('Content-Type', 'application/json' if isinstance(what, dict) else 'text/plain')
        self.send_header('Content-Length', str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)
    def log_message(self, *a): pass

@pytest.fixture
def vllm():
    s = VLLM()
    yield s
    s.shutdown()
    s.server_close()

prompts = [Example(p) for p in ('Write a letter.', 'Write a letter.', 'Spell it.', 'Spell it.')]
def critic(examples): return [Critique('More e.', [Span(i, i+1, .5 if c=='e' else -.1) for i,c in enumerate(e.response)]) for e in examples]
def moved(seed=1):
    "A policy whose adapter is not zero"
    p = Policy.create(*tiny_lm(), value_head=False)
    g = torch.Generator().manual_seed(seed)
    for t in p.trainable().values(): t.data += .05*torch.randn(t.shape, generator=g)
    return p
def server(vllm, tmp_path, **kw): return RolloutServer(vllm.url, tmp_path/'adapters', **dict(dict(timeout=20., max_retries=0), **kw))

def test_a_rollout_from_a_server_is_that_of_the_policy(vllm, tmp_path):
    p,s = moved(),server(vllm, tmp_path)
    r = s(p, prompts, 6, .7, seed=3)
    assert r.foreign and len(r)==4 and r.temperature==.7
    own = p.forward(*r.forward_args(), temperature=.7, with_values=False).logps
    torch.testing.assert_close(own, r.logps, atol=1e-4, rtol=0)
    assert torch.equal(s(p, prompts, 6, .7, seed=3).ids, r.ids) and not torch.equal(s(p, prompts, 6, .7, seed=4).ids, r.ids)
    asked = [b for path,b in vllm.asked if path.endswith('completions')]
    assert [b['n'] for b in asked[:2]]==[2, 2] and {b['repetition_penalty'] for b in asked}=={1.} and {b['top_p'] for b in asked}=={1.}

def test_greedy_is_greedy(vllm, tmp_path):
    p = moved()
    there,here = server(vllm, tmp_path)(p, prompts, 6, 0, allow_off_policy=True),rollout.sample(p, prompts, 6, 0, allow_off_policy=True)
    assert torch.equal(there.ids, here.ids) and there.logps is None

def test_weights_are_pushed_when_they_change_and_only_then(vllm, tmp_path):
    p,s = moved(),server(vllm, tmp_path)
    first = s.push(p)
    assert s.push(p)==first and [path for path,_ in vllm.asked].count('/v1/load_lora_adapter')==1
    next(iter(p.trainable().values())).data += .1
    second = s.push(p)
    assert second!=first and list(vllm.adapters)==[second] and [d.name for d in s.folder.iterdir()]==[second]
    vllm.adapters.clear() # the server was restarted
    assert s.push(p)==second and list(vllm.adapters)==[second]
    assert server(vllm, tmp_path).push(p)==second # a run that goes on

def test_a_run_on_a_server_learns_what_a_run_without_one_learns(vllm, tmp_path):
    cfg = SpanPPOConfig(steps=2, batch_size=4, samples_per_prompt=2, minibatch_size=4, micro_batch_size=4, epochs=1, baseline='group', lam=1.,
                        max_new_tokens=6, lr=.01)
    def run(sampler): return SpanPPO(moved(), critic, ['Write a letter.', 'Spell it.'], cfg, sampler=sampler)
    there = run(server(vllm, tmp_path))
    r = there.rollout()
    there.fit(2)
    assert there.stats['sampler_gap']<1e-4 and there.stats['weights_cut']==0
    whole = {}
    for foreign in (True, False): # the same responses, with the server's log-probabilities and with the policy's own
        r.foreign = foreign
        whole[foreign] = run(lambda *a, **k: r).fit(1).policy.trainable().values()
    for a,b in zip(*whole.values()): torch.testing.assert_close(a, b, atol=1e-6, rtol=0)

def test_a_sampler_that_is_off_is_corrected_and_one_that_is_another_model_refused(vllm, tmp_path, caplog):
    cfg = SpanPPOConfig(steps=1, batch_size=4, samples_per_prompt=2, minibatch_size=4, epochs=1, baseline='group', max_new_tokens=6, temperature=.5)
    run = SpanPPO(moved(), critic, ['Write a letter.', 'Spell it.'], cfg, sampler=server(vllm, tmp_path))
    r = rollout.judge(run.rollout(), critic)
    plain = run.experience(r).advantages
    r.logps = (r.logps-.3)*r.mask
    x = run.experience(r)
    torch.testing.assert_close(x.advantages, plain*math.exp(.3)); assert abs(x.stats['sampler_gap']-.3)<1e-3
    r.logps = (r.logps-.6)*r.mask
    assert (run.experience(r).advantages/plain)[plain.abs()>1e-3].allclose(torch.tensor(2.)) and x.stats['weights_cut']==0
    r.logps = (r.logps-2)*r.mask
    with pytest.raises(UserError, match='base model'): run.experience(r)
    vllm.raw = True # before the temperature, as vLLM says them if nobody asks for others
    run.parted = False
    caplog.clear()
    assert run.experience(rollout.judge(run.rollout(), critic)).stats['sampler_gap']>.1 and 'processed_logprobs' in caplog.text

def test_samples_and_the_greedy_response_come_together(vllm, tmp_path):
    p,s = moved(),server(vllm, tmp_path)
    three = [Example(t) for t in ('Write a letter.', 'Spell it.', 'Spell it.') for _ in range(3)]
    both = s(p, three, 6, .7, seed=3, allow_off_policy=True, siblings=3, greedy=True)
    drawn = s(p, [Example(t) for t in ('Write a letter.', 'Spell it.', 'Spell it.') for _ in range(2)], 6, .7, seed=3)
    best = rollout.sample(p, three[::3], 6, 0, allow_off_policy=True)
    assert [t for i,t in enumerate(both.texts) if i%3<2]==drawn.texts and both.texts[2::3]==best.texts and both.logps is None
    assert sorted((b['n'], b['temperature']) for path,b in vllm.asked[:5] if path.endswith('completions'))==[(1, 0.), (1, 0.), (2, .7), (4, .7)]
    with pytest.raises(ValueError, match='temperature'): s(p, three, 6, 0, allow_off_policy=True, siblings=3, greedy=True)

def held_out_run(vllm, folder, callbacks=(), resume=False):
    cfg = SpanPPOConfig(steps=2, batch_size=4, samples_per_prompt=2, minibatch_size=4, micro_batch_size=4, epochs=1, baseline='group', max_new_tokens=6,
                        lr=.01, temperature=.7, eval_every=1)
    held = HeldOut(['Name one.', 'Say no.'], samples=2, greedy=True)
    return SpanPPO(moved(), critic, ['Write a letter.', 'Spell it.'], cfg, heldout=held, sampler=server(vllm, folder),
                   callbacks=[RunFolder(folder/'run', resume), *callbacks])

def test_held_out_prompts_are_answered_by_the_server_too_with_the_same_seeds(vllm, tmp_path, monkeypatch):
    def local(*a, **kw): raise AssertionError('sampled here')
    monkeypatch.setattr(rollout, '_generate', local)
    t = held_out_run(vllm, tmp_path).fit()
    monkeypatch.undo()
    asked = [b for path,b in vllm.asked if path.endswith('completions')]
    said = [{(tuple(b['prompt']), b['seed'], b['n'], b['temperature']) for b in asked if b['model']==m} for m in dict.fromkeys(b['model'] for b in asked)]
    seeds = lambda told: {o[1] for o in told if o[2:]==(2, .7)}
    assert len(said)==3 and len(seeds(said[0])&seeds(said[1])&seeds(said[2]))==2 # before, after one step, after two
    assert {(n, T) for told in said for *_,n,T in told}=={(2, .7), (1, 0.)}
    for when,policy in (('before', moved()), ('after', t.policy)):
        rows,twice = getattr(t.heldout, when),[Example(p) for p in ('Name one.', 'Say no.') for _ in range(2)]
        assert [r['example'].response for r in rows['heldout']]==server(vllm, tmp_path/'again')(policy, twice, 6, .7).texts
        assert [r['example'].response for r in rows['greedy']]==rollout.sample(policy, twice[::2], 6, 0, allow_off_policy=True).texts
        assert all(r['kl_response']>0 for r in rows['heldout'])

def test_a_signal_while_the_server_answers_held_out_prompts_ends_the_measurement_which_is_made_again(vllm, tmp_path):
    t = held_out_run(vllm, tmp_path)
    def bend(path, body, reply):
        t.stop = path.endswith('completions')
        return reply
    vllm.bend = bend
    t.fit()
    assert (t.step, t.finished)==(0, False) and not (tmp_path/'run/heldout-before.jsonl').exists()
    vllm.bend = lambda path, body, reply: reply
    again = held_out_run(vllm, tmp_path, resume=True).fit()
    assert again.finished and again.heldout.before and again.heldout.after

def choices(f): return lambda path, body, reply: (reply[0], reply[1] | dict(choices=[c | f(c) for c in reply[1]['choices']])) if path.endswith('completions') else reply
def status(n, path='completions', message='too busy'): return lambda p, b, r: (n, dict(error=dict(message=message))) if p.endswith(path) else r
def slow(p, b, r): time.sleep(1.2); return r
FAULTS = dict(
    no_ids=(choices(lambda c: dict(token_ids=None)), 'no token ids.*return_token_ids'),
    no_logps=(choices(lambda c: dict(logprobs=None)), 'no log-probabilities'),
    short_logps=(choices(lambda c: dict(logprobs=dict(token_logprobs=[-1.]*(len(c['token_ids'])+1)))), 'finite numbers'),
    positive=(choices(lambda c: dict(logprobs=dict(token_logprobs=[1.]*len(c['token_ids'])))), 'not above 0'),
    other_vocabulary=(choices(lambda c: dict(token_ids=[99_999]*len(c['token_ids']))), 'same model'),
    other_prompt=(choices(lambda c: dict(prompt_token_ids=[1]+c['prompt_token_ids'])), 'were sent'),
    own_limit=(choices(lambda c: dict(token_ids=[7], finish_reason='length', logprobs=dict(token_logprobs=[-1.]))), 'max-model-len'),
    stop_string=(choices(lambda c: dict(token_ids=[7], finish_reason='stop', logprobs=dict(token_logprobs=[-1.]))), 'ends none'),
    aborted=(choices(lambda c: dict(finish_reason='abort')), 'for the reason'),
    too_few=(lambda p, b, r: (r[0], r[1] | dict(choices=r[1]['choices'][:1])) if p.endswith('completions') else r, '1 responses to a prompt where 2'),
    busy=(status(503), 'status 503: too busy'),
    refused=(status(400, 'load_lora_adapter', 'rank 16 is greater than 8'), 'rank 16 is greater.*VLLM_ALLOW_RUNTIME_LORA_UPDATING=True'),
    gone=(lambda p, b, r: None, 'no connection.*--resume'),
    slow=(slow, 'no reply within 1 s.*--resume'),
    page=(lambda p, b, r: (200, '<html>') if p.endswith('completions') else r, '/v1'))

@pytest.mark.parametrize('fault', FAULTS)
def test_what_a_server_does_wrong_is_said_and_nothing_is_trained(vllm, tmp_path, fault):
    vllm.bend,said = FAULTS[fault]
    with pytest.raises(ServerError, match='(?s)'+said): server(vllm, tmp_path, timeout=1. if fault=='slow' else 20.)(moved(), prompts, 6)

def test_what_passes_is_tried_again(vllm, tmp_path):
    left = [2]
    def bend(path, body, reply):
        left[0] -= path.endswith('completions')
        return (503, dict(error=dict(message='busy'))) if path.endswith('completions') and left[0]>=0 else reply
    vllm.bend = bend
    assert len(server(vllm, tmp_path, max_retries=4)(moved(), prompts, 4))==4

def test_addresses_and_policies_that_cannot_be(tmp_path):
    for url in ('127.0.0.1:8000', 'file:///etc', 'http://me:secret@host/v1', ''):
        with pytest.raises(UserError, match='must be as') as e: RolloutServer(url)
        assert 'secret' not in str(e.value)
    with pytest.raises(UserError, match='takes LoRA adapters'): RolloutServer('http://127.0.0.1:9/v1')(Policy.create(*tiny_lm(), lora=None), prompts, 4)
    with pytest.raises(ServerError, match='is the server running'): RolloutServer('http://127.0.0.1:9/v1', max_retries=0)(moved(), prompts, 4)

def test_train_takes_a_server(vllm, tiny, tmp_path, monkeypatch):
    from text2grad.cli.command import main
    monkeypatch.chdir(tmp_path)
    Path('p.txt').write_text('Write a letter.\nSpell it.\nWrite.\nName one.\n')
    Path('mine.py').write_text("def judge(e): return 'It is short.'\n")
    code = main(f'train --prompts p.txt --critic mine.py:judge --model {tiny} --heldout .25 --steps 1 --batch-size 4 --max-new-tokens 4 --sampler {vllm.url} --out run'.split())
    assert code==0 and json.loads(Path('run/metrics.jsonl').read_text())['sampler_gap']<1
    assert Path('run/heldout-after.jsonl').exists()
