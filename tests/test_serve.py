"A real OpenAI-compatible server, `transformers serve` with SmolLM2-135M on this machine, and both critics that can talk to that model"
import os,signal,socket,subprocess,sys,time,urllib.request
from contextlib import contextmanager
from urllib.error import URLError
import fastapi,openai,pytest,uvicorn # without the extra dev this test fails, it does not skip
from text2grad.critics.api import ApiCritic
from text2grad.core import Example
from text2grad.critics.local import ModelCritic
from text2grad.pretrained import default_model,load_model
from text2grad.critics.llm import Ask

def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]

@contextmanager
def serving(folder, log, wait=240):
    "`transformers serve` on a free port; its process group is killed at the end whatever happens"
    port,env = free_port(),os.environ | dict(HF_HUB_OFFLINE='1', OMP_NUM_THREADS='1', TOKENIZERS_PARALLELISM='false', NO_COLOR='1')
    cmd = [sys.executable, '-c', 'from transformers.cli.transformers import main; main()', 'serve', str(folder), '--host', '127.0.0.1', '--port', str(port), '--device', 'cpu', '--dtype', 'float32']
    with open(log, 'wb') as out: p = subprocess.Popen(cmd, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=env, start_new_session=True)
    try:
        end = time.monotonic()+wait
        while True:
            if p.poll() is not None or time.monotonic()>end: raise RuntimeError(f'no server after {wait} s (exit code {p.poll()}): {log.read_text(errors="replace")[-1500:]}')
            try:
                with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f'http://127.0.0.1:{port}/health', timeout=2) as r:
                    if r.status==200: break
            except (URLError, OSError): time.sleep(.3)
        yield f'http://127.0.0.1:{port}/v1'
    finally:
        for s in (signal.SIGTERM, signal.SIGKILL):
            try: os.killpg(p.pid, s); p.wait(3)
            except (ProcessLookupError, subprocess.TimeoutExpired): pass

@pytest.mark.timeout(400)
def test_the_server_and_the_local_model_say_the_same(tmp_path):
    folder = default_model(progress=False)
    document = 'A ferry with 148 passengers ran aground near Soro on Sunday after its engine lost power. Nobody was hurt.'
    exs = [Example('Summarize the text in one sentence.', r, meta=dict(document=document)) for r in ('A ferry ran aground near Soro.', 'A "ferry" sank.')]
    how = dict(again=False, fence_seed=0)
    with serving(folder, tmp_path/'log.txt') as url:
        api = ApiCritic(str(folder), url, task='generic', max_tokens=24, timeout=120, concurrency=1, **how)
        js = api.judgements(exs[:1])
        got = api.ask([Ask(api.prompt_for(e), {}, e.response) for e in exs])
    assert [(j.info['asked'], j.info['tokens_out'], bool(j.critique) != bool(j.error)) for j in js]==[(1, 24, True)]
    assert all(j.info['tokens_in']>300 and j.info['read']=='unreadable' and 'allow more tokens' in j.error for j in js)
    local = ModelCritic(load_model(folder, 'cpu'), 'generic', max_new_tokens=24, batch_size=2, **how)
    want = local.ask([Ask(local.prompt_for(e), {}, e.response) for e in exs])
    assert [(r.text, r.tokens_in, r.tokens_out, r.finish) for r in got]==[(r.text, r.tokens_in, r.tokens_out, r.finish) for r in want]
    assert all(len(r.text)>20 for r in got)
