"The app as a program on this machine sees it: what it does for a session, how it starts and how it ends; test_app_faults.py has load, bad input and hostile requests"

import asyncio,os,signal,socket,subprocess,sys,time,urllib.error,urllib.request
import pytest
from pathlib import Path
from text2grad.app.page import app,critics_of
from text2grad.cli.command import main
from text2grad.span_ppo.policy import Policy
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
    said,heat,*_ = client.predict(PROMPT, .7, 0, 6, 'rules', '', *LOOK, api_name='/generate')
    assert isinstance(said, str) and 'Response' in heat
    assert client.predict(PROMPT, .7, 0, 6, 'rules', '', *LOOK, api_name='/generate')[0]==said # The same seed
    heat,spans,note = judge(client)
    assert 'the mat' in spans and '1 span marked' in note
    assert 'kl' in client.predict('kl', 'rank', 'word', api_name='/look')[2]
    assert 'bit for bit' in client.predict(.003, 1, 0, 4, api_name='/apply')[3]
    assert 'Ready' in client.predict(api_name='/undo')[3]
    client.predict(api_name='/stop'); client.predict(api_name='/apply_stop')

def test_sessions_are_apart(served):
    from gradio_client import Client
    a,b = (Client(served.local_url, verbose=False) for _ in range(2))
    judge(a)
    assert 'An example, to begin with' in b.predict(*LOOK, api_name='/look')[2]
    assert 'marked' in a.predict(*LOOK, api_name='/look')[2]

def test_another_address_needs_a_password(capsys):
    assert main(['app', '--host', '0.0.0.0'])==1
    assert 'set a password' in capsys.readouterr().err

def test_the_command_serves_and_ends(tmp_path):
    model,tok = tiny_lm()
    model.save_pretrained(tmp_path/'tiny'); tok.save_pretrained(tmp_path/'tiny')
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    before = {p.name:p.read_bytes() for p in (tmp_path/'tiny').iterdir()}
    p = subprocess.Popen([sys.executable, '-m', 'text2grad.cli.command', 'app', '--model', 'tiny', '--port', str(port)], cwd=tmp_path, stdout=subprocess.PIPE, text=True, env=os.environ|dict(PYTHONPATH=str(Path(__file__).parent.parent)))
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

def test_wrong_passwords_cost_time():
    from text2grad.app.page import Gate,Logins
    tried = []
    async def app(scope, receive, send):
        tried.append(scope['client'][0])
        await send(dict(type='http.response.start', status=200 if scope['right'] else 400, headers=[]))
    gate = Gate(app)
    def login(address, right=False, path='/login'):
        said = []
        async def send(m): said.append(m)
        scope = dict(type='http', method='POST', path=path, client=(address, 1), right=right, headers=[(b'host', b'127.0.0.1:7860')])
        asyncio.run(gate(scope, None, send))
        return said[0]['status']
    assert [login('10.0.0.1', path=p) for p in ['/login','/login/']*30]==[400]*5+[429]*55 and len(tried)==5
    assert login('10.0.0.1', right=True)==429 and login('10.0.0.2', right=True)==200 # each address by itself
    for _ in range(20): assert login('10.0.0.3', right=True)==200 # the right one is never slowed down
    waits,doors = [],Logins()
    for _ in range(12):
        doors.wait('a')
        n,until = doors.wrong['a']
        waits.append(round(until-time.monotonic()))
        doors.wrong['a'] = n,time.monotonic()-1
    assert waits==[0,0,0,0,1,2,4,8,16,32,64,128]
    for i in range(doors.most+5): doors.wait(str(i))
    assert len(doors.wrong)==doors.most

def test_whoever_shares_the_app_is_told():
    from text2grad.app.page import app
    said = lambda auth: ' '.join(str(b.value) for b in app(None, auth=auth, launch=False).blocks.values() if type(b).__name__=='Markdown')
    assert 'Whoever has the password' in said('ann:correct horse') and 'Whoever has the password' not in said(None)
