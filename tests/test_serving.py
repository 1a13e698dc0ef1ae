"Who gets past the gate, and what is refused before the app starts"

import os,sys,urllib.error,urllib.parse,urllib.request
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
