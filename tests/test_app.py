"The app as a program on this machine sees it: its endpoints, who it answers, and how it ends"

import os,signal,socket,subprocess,sys,time,urllib.error,urllib.request
import pytest
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from text2grad.app import app,critics_of
from text2grad.cli import main
from text2grad.models import Policy
from text2grad.pretrained import tiny_lm

PROMPT,RESPONSE = 'Where is the cat?','The cat sat on the mat.'
LOOK = ('reward','raw','token')

@pytest.fixture(scope='module')
def served(tmp_path_factory):
    tmp = tmp_path_factory.mktemp('app')
    demo = app(Policy.create(*tiny_lm()), run=tmp/'runs', feedback=tmp/'feedback.jsonl')
    yield demo
    demo.close(verbose=False)

@pytest.fixture
def client(served):
    from gradio_client import Client
    return Client(served.local_url, verbose=False)

def status(url, data=None, **headers):
    try: return urllib.request.urlopen(urllib.request.Request(url, data, {k.replace('_', '-'):v for k,v in headers.items()}), timeout=20).status
    except urllib.error.HTTPError as e: return e.code

def judge(c, words='"the mat" is wrong.'): return c.predict(PROMPT, RESPONSE, 'your own words', words, *LOOK, api_name='/judge')

def test_a_response_is_written_judged_drawn_otherwise_pushed_and_left_as_it_was(client):
    assert 'Response' in client.predict(PROMPT, .7, 0, 6, 'rules', '', *LOOK, api_name='/generate')[1]
    heat,spans,note = judge(client)
    assert 'the mat' in spans and '1 spans marked' in note
    assert 'kl' in client.predict('kl', 'rank', 'word', api_name='/look')[2]
    assert 'bit for bit' in client.predict(-2.5, 1, 0, 4, api_name='/apply')[3]
    assert 'Ready' in client.predict(api_name='/undo')[3]
    client.predict(api_name='/stop'); client.predict(api_name='/apply_stop')

def test_sessions_are_apart(served):
    from gradio_client import Client
    a,b = (Client(served.local_url, verbose=False) for _ in range(2))
    judge(a)
    assert 'Nothing is under the lens' in b.predict(*LOOK, api_name='/look')[2]
    assert 'marked' in a.predict(*LOOK, api_name='/look')[2]

@pytest.mark.parametrize('args,said', [
    ((PROMPT, ' ', 'rules', '', *LOOK), 'response: is empty'),
    ((PROMPT, 'x'*20_001, 'rules', '', *LOOK), 'response: '),
    ((PROMPT, RESPONSE, 'your own words', '', *LOOK), 'your own words: is empty'),
    ((PROMPT, RESPONSE, 'nobody', '', *LOOK), 'nobody'),
    ((PROMPT, RESPONSE, 'rules', '', 'taste', 'raw', 'token'), 'taste')])
def test_bad_input_is_refused_in_words(client, args, said):
    with pytest.raises(Exception) as e: client.predict(*args, api_name='/judge')
    assert said in str(e.value) and 'Traceback' not in str(e.value)
    assert 'marked' in judge(client)[2]

def test_row_20_who_is_answered(served):
    url = served.local_url
    port = url.rstrip('/').rsplit(':', 1)[1]
    assert status(url)==200
    assert status(url, Host='evil.example')==400
    post = lambda **kw: status(f'{url}gradio_api/call/undo', b'{"data":[]}', Content_Type='application/json', **kw)
    assert post(Origin='http://evil.example')==403 and post(Origin='null')==403
    assert post(Origin=f'http://127.0.0.1:{port}')==200
    for path in ('/etc/passwd','../../etc/passwd','http://127.0.0.1:22/','http://169.254.169.254/'): assert status(f'{url}gradio_api/file={path}') in (403,404)
    body = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.txt"\r\nContent-Type: text/plain\r\n\r\n'+b'x'*2_000_000+b'\r\n--b--\r\n'
    assert status(f'{url}gradio_api/upload', body, Content_Type='multipart/form-data; boundary=b')==413
    with socket.socket() as s: # Nobody else can reach it
        host = socket.gethostbyname(socket.gethostname())
        if not host.startswith('127.'): assert s.connect_ex((host, int(port)))!=0

def test_another_address_needs_a_password(capsys):
    assert main(['app', '--host', '0.0.0.0'])==1
    assert 'set a password' in capsys.readouterr().err

def test_row_19_twenty_clients_are_answered_or_refused_in_words(served):
    from gradio_client import Client
    cs = [Client(served.local_url, verbose=False) for _ in range(20)]
    def five(c):
        out = []
        for _ in range(5):
            t = time.monotonic()
            try: judge(c); how = 'answered'
            except Exception as e: how = 'refused' if 'queue' in str(e).lower() else f'{type(e).__name__}: {e}'
            out.append((how, time.monotonic()-t))
        return out
    with ThreadPoolExecutor(20) as pool: got = sum(pool.map(five, cs), [])
    assert len(got)==100 and {how for how,_ in got}<={'answered','refused'} and sum(how=='answered' for how,_ in got)>=5
    assert max(t for _,t in got)<30
    assert 'marked' in judge(cs[0])[2]

def test_the_command_serves_and_ends(tmp_path):
    model,tok = tiny_lm()
    model.save_pretrained(tmp_path/'tiny'); tok.save_pretrained(tmp_path/'tiny')
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    before = {p.name:p.read_bytes() for p in (tmp_path/'tiny').iterdir()}
    p = subprocess.Popen([sys.executable, '-m', 'text2grad.cli', 'app', '--model', 'tiny', '--port', str(port)], cwd=tmp_path, stdout=subprocess.PIPE, text=True, env=os.environ|dict(PYTHONPATH=str(Path(__file__).parent.parent)))
    try:
        assert f'http://127.0.0.1:{port}' in p.stdout.readline()
        assert status(f'http://127.0.0.1:{port}/')==200
        p.send_signal(signal.SIGTERM)
        assert p.wait(30)==0
    finally: p.kill()
    assert before=={p.name:p.read_bytes() for p in (tmp_path/'tiny').iterdir()}

def test_critics_are_named_and_loaded_late():
    assert list(critics_of('api:judge'))==['api:judge'] and list(critics_of('no/such/folder'))==['reward model folder']
    def praise(es): return [None for _ in es]
    assert critics_of(praise)=={'praise':praise} and critics_of(None)=={}
