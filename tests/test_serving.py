"Who gets past the gate, and what is refused before the app starts"

import asyncio,os,sys,urllib.error,urllib.parse,urllib.request
import pytest
from hypothesis import given,strategies as st
from http.cookiejar import CookieJar
from text2grad.app.page import Gate,check_bind,import_gradio,launch_options,read_auth,serve

def refusal(bind='127.0.0.1', *headers): return Gate(None, bind).refusal(dict(type='http', headers=[(k.encode(), v.encode('latin-1', 'replace')) for k,v in headers]))[0]

names = st.text(st.characters(min_codepoint=33, max_codepoint=255), max_size=40)

@given(names)
def test_only_its_own_names_pass(host):
    own = host.lower().rsplit(':', 1)[0] if ':' in host and not host.endswith(']') else host.lower()
    assert (refusal('127.0.0.1', ('host', host))==0)==(own in ('127.0.0.1','localhost','[::1]'))

@given(names, st.sampled_from(['127.0.0.1','0.0.0.0']))
def test_only_its_own_page_passes(origin, bind):
    assert refusal(bind, ('host', '127.0.0.1:7860'), ('origin', origin))==403
    assert refusal(bind, ('host', '127.0.0.1:7860'), ('origin', 'http://127.0.0.1:7860'))==0

@pytest.mark.parametrize('origin', ['http://127.0.0.1:7860@evil.example','http://evil.example#127.0.0.1:7860','http://127.0.0.1:7860.evil.example','ftp://127.0.0.1:7860','http://127.0.0.1:78600','//127.0.0.1:7860',''])
def test_origins_that_only_look_like_it(origin): assert refusal('127.0.0.1', ('host', '127.0.0.1:7860'), ('origin', origin))==403

@pytest.mark.parametrize('headers', [(), (('host','localhost'),('host','localhost')), (('host','localhost'),('host','evil.example'))])
def test_one_host_and_no_other_number_of_them(headers): assert refusal('127.0.0.1', *headers)==400

def test_two_origins_are_refused_if_one_is_foreign():
    assert refusal('127.0.0.1', ('host','localhost'), ('origin','http://localhost'), ('origin','http://evil.example'))==403

@pytest.mark.parametrize('size,code', [('0',0), ('4000000',0), ('4000001',413), ('-1',413), ('1e3',413), ('',413)])
def test_sizes(size, code): assert refusal('127.0.0.1', ('host','localhost'), ('content-length', size))==code

@pytest.mark.parametrize('host', ['0.0.0.0','::','192.168.1.2','10.0.0.1','example.com','127.0.0.1.example.com','','169.254.169.254'])
def test_another_address_needs_a_password(host):
    with pytest.raises(ValueError, match='set a password'): check_bind(host)
    assert check_bind(host, 'ann:long enough')==('ann','long enough')

@pytest.mark.parametrize('auth', ['', ':', 'ann', 'ann:', ':long enough', 'ann:short', ('ann',), ('ann', 7), ('ann','x','y'), 7])
def test_passwords_that_are_none(auth, monkeypatch):
    monkeypatch.delenv('TEXT2GRAD_APP_PASSWORD', raising=False)
    with pytest.raises(ValueError, match='auth: '): read_auth(auth)

def test_a_password_from_the_environment(monkeypatch):
    monkeypatch.setenv('TEXT2GRAD_APP_PASSWORD', 'correct: horse')
    assert read_auth('ann')==('ann','correct: horse') and read_auth('ann:a:longer one')==('ann','a:longer one')

def test_without_gradio_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, 'gradio', None)
    with pytest.raises(ImportError, match=r'pip install -e "\.\[app\]"'): import_gradio()

def test_an_old_gradio_is_refused_and_telemetry_is_off(monkeypatch):
    for k in ('GRADIO_ANALYTICS_ENABLED','HF_HUB_DISABLE_TELEMETRY'): monkeypatch.setenv(k, 'True')
    gr = import_gradio()
    assert os.environ['GRADIO_ANALYTICS_ENABLED']=='False' and os.environ['HF_HUB_DISABLE_TELEMETRY']=='1'
    monkeypatch.setattr(gr, '__version__', '6.5.1')
    with pytest.raises(ImportError, match='older than the 6.31'): import_gradio()

def test_what_must_be_said_is_said(monkeypatch):
    o = launch_options()
    assert (o['server_name'], o['auth'])==('127.0.0.1', None)
    assert not any(o[k] for k in ('share','run_history','ssr_mode','enable_monitoring','mcp_server','pwa','show_error','num_workers')) and 'allowed_paths' not in o

@pytest.mark.parametrize('path,headers,code', [('/fine', {}, 200), ('/fine', dict(accept_encoding='br'), 200), ('/nowhere', {}, 404), ('/broken', {}, 500), ('/broken', dict(origin='http://127.0.0.1:7860'), 500), ('/elsewhere', {}, 307),
    ('/its_own', {}, 200), ('/fine', dict(host='evil.example'), 400), ('/fine', dict(content_length='9999999999'), 413), ('/fine', dict(method='OPTIONS', origin='http://127.0.0.1:7860', access_control_request_method='GET'), 200),
    ('/fine', dict(method='OPTIONS', origin='http://evil.example', access_control_request_method='POST'), 403), ('/fine', dict(method='OPTIONS', host='evil.example', origin='http://evil.example', access_control_request_method='POST'), 400), ('/fine', dict(method='DELETE'), 405)])
def test_the_gate_stands_in_front_of_every_layer(path, headers, code):
    "Layers that are added later, answers to a preflight, and what a defect is answered with"
    from fastapi import FastAPI
    from starlette.middleware.cors import CORSMiddleware
    from starlette.responses import PlainTextResponse,RedirectResponse
    from starlette.testclient import TestClient
    app = FastAPI(**launch_options()['app_kwargs'])
    app.add_middleware(CORSMiddleware, allow_origins=['*'])
    def broken(): raise RuntimeError('a defect')
    for name,f in dict(fine=lambda: 'x', broken=broken, elsewhere=lambda: RedirectResponse('/fine'), its_own=lambda: PlainTextResponse('x', headers={'X-Frame-Options':'SAMEORIGIN'})).items(): app.get('/'+name)(f)
    headers = {k.replace('_', '-'):v for k,v in headers.items()}
    with TestClient(app, 'http://127.0.0.1:7860', raise_server_exceptions=False, follow_redirects=False) as c: r = c.request(headers.pop('method', 'GET'), path, headers=headers)
    assert r.status_code==code and r.headers.get_list('x-frame-options')==['DENY'] and "frame-ancestors 'none'" in r.headers.get_list('content-security-policy')

async def streamed(accept):
    "A stream through the gate and Gradio's own layers, read by a plain ASGI client that leaves in the middle: `(first message, bodies, seconds until it ended)`"
    from fastapi import FastAPI
    from gradio.brotli_middleware import BrotliMiddleware
    from gradio.route_utils import CustomCORSMiddleware
    from starlette.responses import StreamingResponse
    app,two,left,got,life = FastAPI(**launch_options()['app_kwargs']),asyncio.Event(),asyncio.Event(),asyncio.Queue(),asyncio.Queue()
    app.add_middleware(CustomCORSMiddleware)
    app.add_middleware(BrotliMiddleware, quality=4)
    @app.get('/stream')
    async def stream():
        async def parts():
            yield 'one'
            await two.wait()
            yield 'two'
            await asyncio.Event().wait() # no end, as of a queue that waits for an event
        return StreamingResponse(parts(), media_type='text/event-stream')
    asks = iter([dict(type='http.request', body=b'', more_body=False)])
    async def receive():
        if (m := next(asks, None)): return m
        await left.wait()
        return dict(type='http.disconnect')
    head = dict(host='127.0.0.1:7860', origin='http://127.0.0.1:7860') | (dict(accept_encoding=accept) if accept else {})
    scope = dict(type='http', asgi=dict(version='3.0', spec_version='2.3'), http_version='1.1', method='GET', scheme='http', path='/stream', raw_path=b'/stream', query_string=b'',
                 root_path='', client=('127.0.0.1', 1), server=('127.0.0.1', 7860), headers=[(k.replace('_', '-').encode(), v.encode()) for k,v in head.items()])
    begun = asyncio.create_task(app(dict(type='lifespan', asgi=dict(version='3.0')), life.get, got.put))
    await life.put(dict(type='lifespan.startup'))
    assert (await got.get())['type']=='lifespan.startup.complete' and isinstance(app.middleware_stack, Gate)
    task = asyncio.create_task(app(scope, receive, got.put))
    out = [await got.get(), await got.get()]
    two.set()
    out.append(await got.get())
    left.set()
    await asyncio.wait_for(task, 30)
    await life.put(dict(type='lifespan.shutdown'))
    await asyncio.wait_for(begun, 30)
    return out

@pytest.mark.parametrize('accept', ['', 'gzip', 'br, gzip'])
def test_a_stream_passes_the_gate_as_it_comes(accept):
    import_gradio()   # takes long, and not in the time limit
    start,*bodies = asyncio.run(asyncio.wait_for(streamed(accept), 60))
    assert start['status']==200 and dict(start['headers'])[b'x-frame-options']==b'DENY' and all(b['more_body'] and b['body'] for b in bodies)
    assert accept.startswith('br') or [b['body'] for b in bodies]==[b'one', b'two']

def test_with_a_password_nothing_is_served_before_it():
    gr = import_gradio()
    with gr.Blocks(analytics_enabled=False) as demo: gr.Markdown('the inside')
    serve(demo, **launch_options(auth='ann:correct horse'))
    jar = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPCookieProcessor(CookieJar()))
    def code(path, data=None):
        try: return jar.open(demo.local_url+path, data, timeout=20).status
        except urllib.error.HTTPError as e: return e.code
    login = lambda password: code('login', urllib.parse.urlencode(dict(username='ann', password=password)).encode())
    try:
        assert [code('config'), code('gradio_api/info'), code('gradio_api/call/x', b'{}'), login('wrong')]==[401,401,401,400]
        assert [login('correct horse'), code('config')]==[200,200]
    finally: demo.close(verbose=False)
