"A critic behind a server that misbehaves: a real one on 127.0.0.1, with every fault that a server was seen or thought to have"
import asyncio,gzip,json,logging,pickle,re,socket,struct,sys,threading,time,traceback
from http.server import BaseHTTPRequestHandler,ThreadingHTTPServer
from urllib.parse import quote
import openai,pytest
from text2grad.critics.api import ApiCritic,ApiError
from text2grad.core import Example

KEY = 'sk-canary-7f3a91c2d4e5'
BOMB = gzip.compress(b' '*50_000_000) # packed before a clock runs
good = dict(critique='Short.', good_spans=[dict(quote='Rain', reason='true', severity=2)], poor_spans=[], missing=[])
example = Example('Summarize.', 'Rain fell.', meta=dict(id='a', task='summarize', document='Rain fell on Monday.'))

def envelope(content=json.dumps(good), finish='stop', **message):
    return dict(model='m', choices=[dict(index=0, finish_reason=finish, message=dict(role='assistant', content=content)|message)], usage=dict(prompt_tokens=100, completion_tokens=20))

class Handler(BaseHTTPRequestHandler):
    "Answers as `server.plan` says: a function of (handler, number of the request) per path"
    protocol_version = 'HTTP/1.1'
    def do_POST(self):
        body = self.rfile.read(int(self.headers.get('content-length', 0)))
        with self.server.lock:
            self.server.seen.append((self.path, {k.lower():v for k,v in self.headers.items()}, json.loads(body)))
            n = len(self.server.seen)-1
        try: self.server.plan(self, n)
        except (ConnectionError, BrokenPipeError): self.close_connection = True
    do_GET = lambda self: (self.server.seen.append((self.path, dict(self.headers), None)), self.send(envelope()))
    def send(self, body, status=200, kind='application/json', **headers):
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for k,v in {'Content-Type':kind, 'Content-Length':str(len(raw)), **{k.replace('_', '-'):v for k,v in headers.items()}}.items(): self.send_header(k, v)
        self.end_headers()
        self.wfile.write(raw)
    def log_message(self, *a): pass

class Server(ThreadingHTTPServer):
    daemon_threads = True
    def __init__(self):
        super().__init__(('127.0.0.1', 0), Handler)
        self.seen,self.lock,self.plan = [],threading.Lock(),lambda h,n: h.send(envelope())
        threading.Thread(target=self.serve_forever, kwargs=dict(poll_interval=.02), daemon=True).start()
    def handle_error(self, *a): pass
    @property
    def url(self): return f'http://127.0.0.1:{self.server_port}/v1'

@pytest.fixture
def server():
    s = Server()
    yield s
    s.shutdown()
    s.server_close()

@pytest.fixture(autouse=True)
def clean(monkeypatch):
    for k in ('OPENAI_BASE_URL','HTTP_PROXY','http_proxy','ALL_PROXY'): monkeypatch.delenv(k, raising=False)
    monkeypatch.setenv('OPENAI_API_KEY', KEY)
    monkeypatch.setattr('text2grad.critics.api._pause.__defaults__', (.01,))

def critic(server, **kw): return ApiCritic('m', server.url, **dict(dict(timeout=.5, total_timeout=2., max_retries=2, max_wait=1.), **kw))
def judge(server, **kw): return critic(server, **kw).judgements([example])[0]

# what a server does well

def test_a_good_reply(server):
    j = judge(server, prices=(1., 2.), seed=3)
    assert not j.error and [s.quote for s in j.critique.spans]==['Rain'] and j.critique.source=='api/m/summarize@1'
    assert j.info | dict(prompt='')==dict(model='m', prompt='', read='json', asked=1, quotes=1, quotes_found=1, tokens_in=100, tokens_out=20, structured='json_schema', cost=.00014)
    path,headers,body = server.seen[0]
    assert path=='/v1/chat/completions' and headers['authorization']==f'Bearer {KEY}' and headers['accept-encoding']=='identity'
    assert body['temperature']==0 and body['seed']==3 and body['max_tokens']==1024 and body['response_format']['json_schema']['strict']

def test_order_is_kept_and_concurrency_is_bounded(server):
    now,most = [0],[0]
    def plan(h, n):
        with server.lock: now[0] += 1; most[0] = max(most[0], now[0])
        time.sleep(.02)
        with server.lock: now[0] -= 1
        body = server.seen[n][2]['messages'][1]['content']
        h.send(envelope(json.dumps(dict(good, critique='one' if 'One fell' in body else 'other'))))
    server.plan = plan
    examples = [Example('Say.', 'One fell. Rain.') if i%3==0 else Example('Say.', 'Rain.') for i in range(20)]
    out = critic(server, concurrency=4)(examples)
    assert [c.text for c in out]==['one' if i%3==0 else 'other' for i in range(20)] and 1<most[0]<=4

def test_in_a_running_loop_and_asynchronously(server):
    async def main():
        c = critic(server)
        inside = c.judgements([example])[0]
        js = await asyncio.gather(*[c.ajudge(example) for _ in range(5)])
        await c.aclose()
        return [inside, *js]
    assert all(j.critique.text=='Short.' for j in asyncio.run(main()))

def test_wrong_quotes_are_sent_back_once(server):
    server.plan = lambda h,n: h.send(envelope(json.dumps(dict(good, good_spans=[dict(quote='Snow', reason='', severity=1)])) if n==0 else json.dumps(good)))
    j = judge(server)
    assert j.info['asked']==2 and j.info['quotes_found']==1 and j.info['first_found']==0 and j.info['tokens_in']==200
    assert [m['role'] for m in server.seen[1][2]['messages']]==['system','user','assistant','user'] and '"Snow"' in server.seen[1][2]['messages'][-1]['content']

def test_structured_output_falls_back_and_remembers(server):
    def plan(h, n):
        form = server.seen[n][2].get('response_format', {}).get('type')
        h.send(dict(error=dict(message=f'{form} is not supported')), 400) if form=='json_schema' else h.send(envelope())
    server.plan = plan
    c = critic(server)
    before = c.fingerprint
    assert [c.judgements([example])[0].info['structured'] for _ in range(2)]==['json_object']*2
    assert len(server.seen)==3 and c.fingerprint==before

def test_a_400_that_is_not_about_the_format_is_reported_as_it_was(server):
    server.plan = lambda h,n: h.send(dict(error=dict(message='maximum context length is 10 tokens' if n==0 else 'second')), 400)
    c = critic(server)
    assert 'maximum context length' in c.judgements([example])[0].error and len(server.seen)==3
    server.plan = lambda h,n: h.send(envelope())
    assert c.judgements([example])[0].info['structured']=='json_schema'

# 24 faults: (what the server does, what the error says, requests at most, seconds at most)

def slowly(h, n):
    "A byte every tenth of a second, each in time, and never an end"
    h.send_response(200); h.send_header('Content-Type', 'application/json'); h.send_header('Content-Length', '100000'); h.end_headers()
    for _ in range(100): h.wfile.write(b' '); h.wfile.flush(); time.sleep(.1)

def reset(h, n):
    h.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
    h.connection.close()
    h.close_connection = True

def half(h, n):
    h.send_response(200); h.send_header('Content-Type', 'application/json'); h.send_header('Content-Length', '5000'); h.end_headers()
    h.wfile.write(b'{"choices": ['); h.close_connection = True

def endless(h, n):
    "A body of 40 MB in pieces, without a length"
    h.send_response(200); h.send_header('Content-Type', 'application/json'); h.send_header('Transfer-Encoding', 'chunked'); h.end_headers()
    for _ in range(40): h.wfile.write(b'100000\r\n'+b' '*0x100000+b'\r\n')
    h.wfile.write(b'0\r\n\r\n')

faults = dict(
    too_many=(lambda h,n: h.send(dict(error=dict(message='slow down')), 429, Retry_After='0'), 'answered 429: slow down .tried 3 times', 3, 2),
    wait_an_hour=(lambda h,n: h.send({}, 429, Retry_After='3600'), 'asks to wait 3600 s, more than max_wait', 1, 1),
    wait_until=(lambda h,n: h.send({}, 503, Retry_After='Fri, 01 Jan 2100 00:00:00 GMT'), 'asks to wait', 1, 1),
    error_500=(lambda h,n: h.send(b'<h1>oops</h1>', 500, 'text/html'), 'answered 500: .*oops.*tried 3', 3, 2),
    error_503=(lambda h,n: h.send(dict(detail='loading'), 503, Retry_After='nan'), 'answered 503: loading', 3, 2),
    timeout=(lambda h,n: time.sleep(1), 'no whole reply within 0.5 s|total_timeout', 3, 2.6),
    slow_drip=(slowly, 'no whole reply within 0.5 s|total_timeout', 3, 2.6),
    reset=(reset, 'no connection|broke off', 3, 2),
    half_a_body=(half, 'broke off', 3, 2),
    long_body=(lambda h,n: h.send(b' '*12_000_000), 'longer than 10,000,000 bytes', 1, 2),
    long_error=(lambda h,n: h.send(b' '*12_000_000, 500), 'longer than 10,000,000 bytes', 1, 2),
    endless=(endless, 'longer than 10,000,000 bytes', 1, 2),
    packed=(lambda h,n: h.send(BOMB, Content_Encoding='gzip'), 'packed, though', 1, 2),
    not_json=(lambda h,n: h.send(b'{"choices": [{'), 'not JSON', 1, 1),
    login_page=(lambda h,n: h.send(b'<html>please log in', kind='text/html'), 'text/html that is not JSON.*mostly /v1', 1, 1),
    not_utf8=(lambda h,n: h.send(b'\xff\xfe\x00', kind='application/json'), 'not JSON', 1, 1),
    deep=(lambda h,n: h.send(b'['*100_000), 'not JSON', 1, 1),
    wrong_shape=(lambda h,n: h.send([1, 2]), 'no choices', 1, 1),
    no_choices=(lambda h,n: h.send(dict(envelope(), choices=[])), 'no choices', 1, 1),
    odd_choice=(lambda h,n: h.send(dict(envelope(), choices=['hello'])), 'choice without a message', 1, 1),
    null_content=(lambda h,n: h.send(envelope(None)), 'the model wrote nothing', 1, 1),
    number_content=(lambda h,n: h.send(envelope(5)), 'no text but int', 1, 1),
    refusal=(lambda h,n: h.send(envelope(None, refusal='I cannot help')), "refused: 'I cannot help'", 1, 1),
    filtered=(lambda h,n: h.send(envelope('', 'content_filter')), 'content filter', 1, 1),
    only_reasoning=(lambda h,n: h.send(envelope('', 'length')), 'raise max_tokens', 1, 1),
    cut_off=(lambda h,n: h.send(envelope('{"critique": "It is', 'length')), 'cut off, so allow more tokens', 1, 1),
    nan_scores=(lambda h,n: h.send(envelope('{"critique": "x", "good_spans": [{"quote": "Rain", "reason": "", "severity": NaN}]}')), 'no critique', 2, 1),
    huge_scores=(lambda h,n: h.send(envelope('{"critique": "x", "good_spans": [{"quote": "Rain", "reason": "", "severity": 1e999}]}')), 'no critique', 2, 1),
    prose=(lambda h,n: h.send(envelope('A lovely summary!')), 'no critique', 2, 1),
    error_in_200=(lambda h,n: h.send(dict(error=dict(message='out of memory'))), 'reports an error: out of memory', 1, 1),
    bad_request=(lambda h,n: h.send(dict(error='max_tokens too large'), 400), 'answered 400: max_tokens too large', 3, 1),
    odd_usage=(lambda h,n: h.send(dict(envelope(), usage=dict(prompt_tokens='many', completion_tokens=-4))), '', 1, 1),
    null_usage=(lambda h,n: h.send(dict(envelope(), usage=None)), '', 1, 1),
    other_model=(lambda h,n: h.send(dict(envelope(), model='another')), '', 1, 1),
    parts=(lambda h,n: h.send(envelope([dict(type='text', text=json.dumps(good))])), '', 1, 1),
    redirect_to_file=(lambda h,n: h.send(b'', 302, Location='file:///etc/passwd'), 'redirects to another place .302.', 1, 1),
    redirect_loop=(lambda h,n: h.send(b'', 307, Location='/v1/chat/completions'), 'not followed', 1, 1),
    recovers=(lambda h,n: h.send({}, 500) if n<2 else h.send(envelope()), '', 3, 2))

@pytest.mark.parametrize('name', faults)
def test_fault(server, name):
    "Reliability row 13: bounded retries and time, one failed judgement, and a message that says what to do"
    server.plan,says,requests,seconds = faults[name]
    c = critic(server)
    start = time.perf_counter()
    j = c.judgements([example])[0]
    assert time.perf_counter()-start<seconds+.7
    assert len(server.seen)<=requests
    if says:
        assert j.critique is None and re.search(says, j.error), j.error
    else: assert not j.error and [s.score for s in j.critique.spans]==[pytest.approx(2/3)]
    json.dumps(j.info, allow_nan=False)
    assert KEY not in j.error+json.dumps(j.info)
    if name=='other_model': assert j.info['served']=='another'
    if 'usage' in name: assert j.info['tokens_in']==j.info['tokens_out']==0

def test_retry_after_is_respected(server):
    server.plan = lambda h,n: h.send({}, 429, Retry_After='0.4') if n==0 else h.send(envelope())
    start = time.perf_counter()
    assert not judge(server).error and time.perf_counter()-start>=.4

def test_total_time_is_bounded_whatever_is_configured(server):
    server.plan = lambda h,n: time.sleep(.15) or h.send({}, 500)
    start = time.perf_counter()
    j = judge(server, max_retries=10**6, total_timeout=1.)
    assert j.error and time.perf_counter()-start<2 and len(server.seen)<12

def test_nobody_listens():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    c = ApiCritic('m', f'http://127.0.0.1:{port}/v1', max_retries=1, total_timeout=3.)
    assert 'is the server running' in c.judgements([example])[0].error

def test_partial_results_are_kept(server):
    def plan(h, n): h.send(envelope()) if 'Rain' in server.seen[n][2]['messages'][1]['content'] else h.send({}, 500)
    server.plan = plan
    js = critic(server).judgements([Example('Say.', 'Rain.'), Example('Say.', 'Sun.'), Example('Say.', 'Rain!')])
    assert [bool(j.error) for j in js]==[False, True, False]

@pytest.mark.parametrize('status,says', [(401, 'does not accept the API key'), (403, 'does not let this key use'), (404, "knows no model 'm'.*mostly /v1"), (402, 'no credit left'), (429, 'no credit left')])
def test_what_would_fail_for_everybody_stops_the_batch(server, status, says):
    server.plan = lambda h,n: h.send(dict(error=dict(message=f'wrong {KEY}', code='insufficient_quota' if status==429 else None)), status)
    with pytest.raises(ApiError, match=says) as e: critic(server, concurrency=2).judgements([example]*50)
    assert len(server.seen)<=4 and KEY not in str(e.value)
    assert KEY not in ''.join(traceback.format_exception(e.value)) and e.value.__context__ is None
    with pytest.raises(ApiError): asyncio.run(critic(server).ajudge(example))

# the key

def test_the_key_follows_no_redirect(server):
    "To another host, or to another port of the same host"
    other = Server()
    try:
        for status in (301, 302, 303, 307, 308):
            server.plan = lambda h,n: h.send(b'', status, Location=f'http://localhost:{other.server_port}/v1/chat/completions')
            assert f'redirects to localhost:{other.server_port}' in judge(server).error
        assert not other.seen
    finally: other.shutdown(); other.server_close()

def test_the_key_goes_through_no_proxy(server, monkeypatch):
    proxy = Server()
    try:
        for k in ('HTTP_PROXY','http_proxy','ALL_PROXY','all_proxy'): monkeypatch.setenv(k, f'http://127.0.0.1:{proxy.server_port}')
        monkeypatch.delenv('NO_PROXY', raising=False)
        assert not judge(server).error and not proxy.seen
    finally: proxy.shutdown(); proxy.server_close()

def test_the_key_is_read_when_it_is_needed(server, monkeypatch):
    c = critic(server, key_env='MY_KEY')
    with pytest.raises(ApiError, match='set the environment variable MY_KEY'): c.judgements([example])
    for k in ('first-key-123','second-key-45\n'):
        monkeypatch.setenv('MY_KEY', k)
        c.judgements([example])
    assert [h['authorization'] for _,h,_ in server.seen]==['Bearer first-key-123', 'Bearer second-key-45']
    monkeypatch.setenv('MY_KEY', 'schlüssel-'+KEY)
    with pytest.raises(ApiError, match='no key can hold') as e: c.judgements([example])
    assert KEY not in ''.join(traceback.format_exception(e.value))

def test_key_canary(server, caplog, capfd):
    "Reliability row 23: a server that repeats the key everywhere, all logs on, and not one hit"
    caplog.set_level(logging.DEBUG)
    for name in ('httpcore','httpcore2'): caplog.set_level(logging.INFO, logger=name) # at DEBUG it prints the headers of responses: what a server sends there is not ours to hide
    echo = lambda body: json.dumps(body).replace('KEY', KEY).encode()
    plans = [lambda h,n: h.send(echo(envelope(json.dumps(dict(good, critique='KEY', missing=['KEY'])))), X_Echo='x'), lambda h,n: h.send(echo(dict(error=dict(message='bad key KEY'))), 401),
             lambda h,n: h.send(echo(envelope('KEY'))), lambda h,n: h.send(b'<html>'+KEY.encode(), kind='text/html'), lambda h,n: h.send(echo(dict(error='KEY')), 500),
             lambda h,n: h.send(echo(envelope(None, refusal='no, KEY'))), lambda h,n: h.send(b'', 302, Location=f'http://{KEY}.example/'), reset]
    trail = []
    for given in (None, KEY):
        c = critic(server, api_key=given, max_retries=1)
        for server.plan in plans:
            try: trail += [repr(c.judgements([example])), repr(c([example]))]
            except ApiError as e: trail += [''.join(traceback.format_exception(e)), pickle.dumps(e).decode('latin1')]
        trail += [repr(c), str(vars(c)), c.fingerprint, pickle.dumps(c).decode('latin1'), json.dumps(c.prompt_for(example)), repr(pickle.loads(pickle.dumps(c)))]
    trail += [caplog.text, *capfd.readouterr(), *[repr(r.__dict__) for r in caplog.records], json.dumps([b for _,_,b in server.seen])]
    assert not [t for t in trail if KEY in t]
    assert all(h['authorization']==f'Bearer {KEY}' for _,h,_ in server.seen)

def test_refused_addresses():
    for url in ('http://me:secret@127.0.0.1/v1', 'https://x.example/v1?key=secret'):
        with pytest.raises(ValueError, match='must hold no user name') as e: ApiCritic('m', url)
        assert 'secret' not in str(e.value)
    for url in ('file:///etc/passwd', 'ftp://x/v1', '127.0.0.1:8000/v1'):
        with pytest.raises(ValueError, match='must be like'): ApiCritic('m', url)
    with pytest.raises(ValueError, match='structured'): ApiCritic('m', structured='yaml')

def test_fingerprint_holds_what_decides_and_no_more():
    a,b = (ApiCritic('m', 'http://127.0.0.1:1/v1', api_key=k, timeout=t, concurrency=t) for k,t in (('one-key-1234', 1), ('two-key-1234', 9)))
    assert a.fingerprint==b.fingerprint
    for kw in (dict(temperature=.5), dict(seed=1), dict(max_tokens=5), dict(base_url='http://127.0.0.1:2/v1'), dict(task='summarize'), dict(extra=dict(top_k=1)), dict(limit=2.), dict(again=False)):
        assert ApiCritic('m', **dict(dict(base_url='http://127.0.0.1:1/v1'), **kw)).fingerprint!=a.fingerprint

def test_without_the_sdk_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, 'openai', None)
    with pytest.raises(ImportError, match=r'pip install -e "\.\[api\]"'): ApiCritic('m', 'http://127.0.0.1:1/v1').judgements([example])

# where the reply is

J = json.dumps(good)
def call(args, name='critique', kind='function'): return dict(id='1', type=kind, **{kind:dict(name=name, **{'arguments' if kind=='function' else 'input':args})})
placed = dict(
    reasoning_content=(dict(reasoning_content=J), 'stop', 'reasoning_content'), reasoning=(dict(reasoning='\n'+J+'\n'), 'stop', 'reasoning'),
    no_finish=(dict(reasoning_content=J), None, 'reasoning_content'), thought_and_reply=(dict(reasoning_content=f'<think>Perhaps.</think>{J}'), 'stop', 'reasoning_content'),
    details=(dict(reasoning_details=[dict(type='reasoning.text', text=J)]), 'stop', 'reasoning_details'), empty_then_full=(dict(reasoning_content=' ', reasoning=J), 'stop', 'reasoning'),
    blocks=(dict(thinking_blocks=[dict(type='thinking', thinking=J, signature='x')]), 'stop', 'thinking_blocks'), nested=(dict(reasoning=dict(summary=[dict(type='summary_text', text=J)])), 'stop', 'reasoning'),
    deeper=(dict(reasoningContent=dict(reasoningText=dict(text=J))), 'stop', 'reasoningContent'), of_a_provider=(dict(provider_specific_fields=dict(reasoning_content=J, citations=None)), 'stop', 'reasoning_content'),
    bare_list=(dict(reasoning_content=[J]), 'stop', 'reasoning_content'), thought_part=(dict(content=[dict(text=J, thought=True)]), 'stop', 'content'), not_thoughts=(dict(reasoning_effort='low', reasoning_tokens=9, thinking=J), 'stop', 'thinking'),
    tool=(dict(tool_calls=[call(J)]), 'tool_calls', 'a tool call'), tool_of_another_name=(dict(tool_calls=[call(J, 'report')]), 'tool_calls', 'a tool call'),
    tool_with_an_object=(dict(tool_calls=[call(good)]), 'stop', 'a tool call'), custom_tool=(dict(tool_calls=[call(J, kind='custom')]), 'tool_calls', 'a tool call'),
    function_call=(dict(function_call=dict(name='critique', arguments=J)), 'function_call', 'a tool call'), one_of_two=(dict(tool_calls=[call('{}', 'look'), call(J)]), 'tool_calls', 'a tool call'),
    beside_words=(dict(content='I call the tool.', tool_calls=[call(J)]), 'tool_calls', 'a tool call'), with_reasoning=(dict(reasoning_content='Hm.', tool_calls=[call(J)]), 'tool_calls', 'a tool call'),
    parts=(dict(content=[dict(type='thinking', thinking=[dict(type='text', text='no')], text='Perhaps {"critique": "draft", "good_spans": []}'), dict(type='text', text=J)]), 'stop', None),
    an_object=(dict(content=good), 'stop', None),
    content=(dict(content=J, reasoning_content='Perhaps {"critique": "draft", "good_spans": []}'), 'stop', None))
lost = dict(
    draft=(dict(reasoning_content=f'Perhaps {J}, but'), 'stop', 'nothing but reasoning.*in reasoning_content.*enable_thinking'), two=(dict(reasoning=J+J.replace('Short', 'Long')), 'stop', 'nothing but reasoning'),
    prose=(dict(reasoning='Let me see.'), 'stop', 'nothing but reasoning.*raise max_tokens'), endless=(dict(reasoning_content=f'<think>Perhaps {J}'), 'stop', 'nothing but reasoning'),
    cut_off=(dict(reasoning_content=J), 'length', 'all tokens went into reasoning, so raise max_tokens'), cut_off_by_another_name=(dict(reasoning=J), 'MAX_TOKENS', 'raise max_tokens'),
    cut_off_by_a_third=(dict(thinking=J), 'max_output_tokens', 'raise max_tokens'), another_tool=(dict(tool_calls=[call('{"q": "rain"}', 'search')]), 'tool_calls', r'called a tool \(search\) instead'),
    two_critiques=(dict(tool_calls=[call(J), call(J.replace('Short', 'Long'))]), 'tool_calls', 'called a tool'), odd_call=(dict(tool_calls=[5, None, {}, dict(function=7), call(None), call([1])]), 'stop', 'called a tool'),
    odd_calls=(dict(tool_calls=7, reasoning=9, reasoning_details=[3, dict(text=4)]), 'stop', 'the model wrote nothing'), refused=(dict(refusal='I will not', reasoning=J), 'stop', "refused: 'I will not'"),
    encrypted=(dict(reasoning_details=[dict(type='reasoning.encrypted', data='xx')]), 'stop', 'nothing but reasoning.*in reasoning_details'), blocks=(dict(thinking_blocks=[dict(type='thinking', thinking='Let me see.')]), 'stop', 'nothing but reasoning'),
    only_settings=(dict(reasoning_effort='low', thinking_budget='9'), 'stop', 'the model wrote nothing$'), cut_off_in_parts=(dict(content=[dict(type='thinking', thinking=J)]), 'length', 'raise max_tokens'),
    refused_in_parts=(dict(content=[dict(type='refusal', refusal='I will not')]), 'stop', "refused: 'I will not'"))

@pytest.mark.parametrize('name', placed)
def test_a_reply_that_stands_elsewhere_is_found(server, name):
    message,finish,where = placed[name]
    contents = [message['content']] if 'content' in message else [None, '', '\n\n', []]
    for content in contents:
        server.plan = lambda h,n: h.send(envelope(content, finish, **{k:v for k,v in message.items() if k!='content'}))
        j = judge(server)
        assert not j.error and j.critique.text=='Short.' and j.info.get('reply_in')==where, (j, content)

@pytest.mark.parametrize('name', lost)
def test_thoughts_and_other_tools_are_no_reply(server, name):
    message,finish,says = lost[name]
    server.plan = lambda h,n: h.send(envelope(message.get('content'), finish, **{k:v for k,v in message.items() if k!='content'}))
    j = judge(server)
    assert j.critique is None and re.search(says, j.error), j.error

# fields that a server refuses

def refuses(server, *names, status=400, say="Unsupported parameter: '{}' is not supported with this model.", format=False):
    def plan(h, n):
        body = server.seen[n][2]
        bad = next((k for k in names if k in body), None)
        if bad: h.send(dict(error=dict(message=say.format(bad), param=bad, code='unsupported_parameter')), status)
        elif format and body.get('response_format', {}).get('type')=='json_schema': h.send(dict(error=dict(message='response_format json_schema is not supported')), 400)
        else: h.send(envelope())
    server.plan = plan
    server.seen.clear()

@pytest.mark.parametrize('status,say', [(400, "Unsupported parameter: '{}' is not supported with this model. Use 'max_completion_tokens' instead."), (422, 'Extra inputs are not permitted: {}'), (400, 'unknown field "{}"'), (400, '{} is deprecated'), (400, '`{}` isn\'t supported'), (422, 'Unrecognized request argument supplied: {}')])
def test_the_other_name_of_the_length_is_tried_once(server, caplog, status, say):
    refuses(server, 'max_tokens', status=status, say=say, format=True)
    c = critic(server)
    before = c.fingerprint
    js = c.judgements([example])+c.judgements([example])
    assert not any(j.error for j in js) and c.fingerprint==before
    assert [sorted({'max_tokens','max_completion_tokens'}&set(b))[0] for _,_,b in server.seen]==['max_tokens','max_completion_tokens','max_completion_tokens','max_completion_tokens']
    assert server.seen[-1][2]['max_completion_tokens']==1024 and caplog.text.count('refuses max_tokens; going on with max_completion_tokens')==1
    assert pickle.loads(pickle.dumps(c))._length=='max_completion_tokens'

def test_a_server_that_knows_neither_name(server):
    refuses(server, 'max_tokens', 'max_completion_tokens')
    j = judge(server)
    assert "'max_tokens' is not supported" in j.error and 'max_tokens=None (--max-tokens none) leaves it out' in j.error and len(server.seen)<=6
    assert not judge(server, max_tokens=None).error and not {'max_tokens','max_completion_tokens'}&set(server.seen[-1][2])

def test_too_large_is_not_unknown(server):
    server.plan = lambda h,n: h.send(dict(error='max_tokens: 1024 is larger than the context of 512'), 400)
    assert 'larger than' in judge(server).error and all('max_tokens' in b for _,_,b in server.seen) and len(server.seen)==3

def test_extra_replaces_and_leaves_out(server):
    for extra in (dict(max_completion_tokens=500), dict(max_tokens=500), dict(max_completion_tokens=None)):
        refuses(server)
        assert not judge(server, extra=extra).error
        body = server.seen[-1][2]
        assert {k:v for k,v in body.items() if 'max_' in k}=={k:v for k,v in extra.items() if v}
    assert not judge(server, extra=dict(temperature=None, seed=None, top_p=.9, response_format=None), seed=4).error
    assert set(server.seen[-1][2])=={'model','messages','max_tokens','top_p'}
    assert not judge(server, extra=dict(temperature=1)).error and server.seen[-1][2]['temperature']==1

def test_the_error_says_how_to_leave_a_field_out(server):
    for name,kw,how in (('temperature', {}, r'temperature=None .--temperature none. leaves it out'), ('seed', dict(seed=1), 'seed=None leaves it out'), ('top_k', dict(extra=dict(top_k=1)), 'leave top_k out of extra')):
        refuses(server, name)
        assert re.search(how+'$', judge(server, **kw).error)
    assert not judge(server, temperature=None).error

# the key, spelled otherwise

def spelled(key, how):
    return dict(escapes=''.join(f'\\u{ord(c):04x}' for c in key), capitals=''.join(f'\\u{ord(c):04X}' for c in key), half=''.join(c if i%2 else f'\\u{ord(c):04x}' for i,c in enumerate(key)),
                twice=''.join(f'\\\\u{ord(c):04x}' for c in key), slashes=key.replace('/', '\\/'), slashes_twice=key.replace('/', '\\\\\\/'), plain=key,
                link=quote(key, safe=''), link_all=''.join(f'%{ord(c):02x}' for c in key), page=''.join(f'&#{ord(c)};' for c in key), page_hex=''.join(f'&#x{ord(c):X};' for c in key))[how]

@pytest.mark.parametrize('key', [KEY, 'abc/def+ghi/jkl==', 'k"ey\\with-all(.*)[of]it'])
@pytest.mark.parametrize('how', ['escapes','capitals','half','twice','slashes','slashes_twice','plain','link','page_hex'])
def test_no_spelling_of_the_key_gets_through(server, key, how, caplog, tmp_path):
    "In a critique, in a critique that is a string in a string, in errors, in fields of any kind; in the judgement, the log, the output and the cache"
    from text2grad.core import write_jsonl
    from text2grad.data.annotation import annotate
    raw = spelled(key, how)
    if how=='plain' or 'slashes' in how: raw = raw.replace('"', '\\"') if '"' in key else raw
    inner = json.dumps(dict(good, critique='KEY', missing=['KEY'], poor_spans=[dict(quote='KEY', reason='KEY', severity=1)]))
    double = json.dumps(inner)[1:-1]
    bodies = [(json.dumps(envelope('CONTENT')).replace('CONTENT', double), 200), (json.dumps(envelope('so KEY so')), 200), (json.dumps(envelope(None, refusal='KEY')), 200), (json.dumps(dict(envelope(), model='KEY')), 200),
              (json.dumps(envelope(None, reasoning_content='CONTENT')).replace('CONTENT', double), 200), (json.dumps(envelope(None, tool_calls=[call('CONTENT')])).replace('CONTENT', double), 200), (json.dumps(envelope(None, tool_calls=[call('{}', 'KEY')])), 200),
              (json.dumps(dict(error=dict(message='KEY'))), 500), (json.dumps(dict(detail=[dict(input='KEY')])), 400), ('not JSON KEY', 500), ('[KEY', 200), (json.dumps(dict(error='KEY')), 200),
              (json.dumps(envelope([dict(type='text', text=key[:6].replace('"', '')+'PART')])).replace('PART', ''), 200)]
    seen = []
    for body,status in bodies:
        server.plan = lambda h,n: h.send(body.replace('KEY', raw).encode(), status)
        c = critic(server, api_key=key, max_retries=0, min_similarity=.5, prose=True)
        trail = [repr(c.judgements([example])), repr(vars(c)), c.fingerprint, pickle.dumps(c).decode('latin1')]
        seen += [(body, t) for t in trail]
        if bodies.index((body,status)) not in (0, 5, 7, 9): continue
        write_jsonl(tmp_path/'in.jsonl', [dict(prompt='Say.', response='Rain fell.', task='summarize', document='Rain.')])
        annotate(tmp_path/'in.jsonl', c, tmp_path/'out.jsonl', cache=tmp_path/'cache.db', resume=False, progress=False)
        trail += [f.read_bytes().decode('latin1') for f in tmp_path.iterdir() if f.name!='in.jsonl']
        seen += [(body, t) for t in trail]
    for body,t in seen+[('', caplog.text)]:
        for k in (key, json.dumps(key)[1:-1], repr(key)[1:-1], *([raw] if how[:4] in ('link','page') else [])): assert k not in t, (body, t)

def test_parts_that_are_the_key_together(server):
    server.plan = lambda h,n: h.send(envelope([dict(type='text', text=json.dumps(dict(good, critique=KEY))[:25]), dict(type='text', text=json.dumps(dict(good, critique=KEY))[25:])]))
    j = judge(server)
    assert KEY not in repr(j) and '***' in j.critique.text

def test_annotate_strikes_out_the_key_of_each_part(server, tmp_path):
    "A critic that keeps a key of its own gives it to `annotate`, also from within a sum"
    from text2grad.core import Critique,write_jsonl
    from text2grad.critics.base import rule_critic
    from text2grad.data.annotation import annotate
    from text2grad.critics.unit_tests import UnitTestCritic
    c = critic(server, api_key='canary-of-mine-1234')
    assert c.secrets()=={'canary-of-mine-1234':'api_key'} and (c+rule_critic('summarize')+UnitTestCritic()).secrets()==c.secrets()
    class Loud:
        secrets = lambda self: {'canary-of-mine-1234':'api_key'}
        def __call__(self, exs): return [Critique('I say canary-of-mine-1234')]*len(exs)
    write_jsonl(tmp_path/'in.jsonl', [dict(prompt='Say.', response='Rain fell.')])
    annotate(tmp_path/'in.jsonl', Loud(), tmp_path/'out.jsonl', cache=None, progress=False)
    assert '[api_key]' in (tmp_path/'out.jsonl').read_text() and 'canary' not in (tmp_path/'out.jsonl').read_text()

# nested too deeply, and other things that no server should say

deep = b'['*200_000
def nested(n, end=b'0'): return b'['*n+end+b']'*n
odd_bodies = [deep, b'{"a":'*200_000, nested(300), nested(490), nested(700), nested(960), nested(5000), b'{"error":'+nested(700)+b'}', b'{"error":{"message":'+nested(900)+b'}}', b'{"detail":'+nested(480, b'"x"')+b'}',
              b'9'*5000, b'{"error":'+b'9'*5000+b'}', b'{"error": 1e999}', b'\xff'*99, b'null', b'', b'"'+b'x'*100_000]

@pytest.mark.parametrize('i', range(len(odd_bodies)))
@pytest.mark.parametrize('status', [200, 400, 404, 429, 500])
def test_no_body_loses_the_batch(server, i, status):
    server.plan = lambda h,n: h.send(odd_bodies[i] if 'Rain' in server.seen[n][2]['messages'][1]['content'] else envelope(), status if 'Rain' in server.seen[n][2]['messages'][1]['content'] else 200)
    c = critic(server, max_retries=0, timeout=5, total_timeout=9)
    sun = Example('Say.', 'Sun.')
    if status in (401, 404):
        with pytest.raises(ApiError): c.judgements([example])
        return
    js = c.judgements([sun, example, sun])
    assert [bool(j.error) for j in js]==[False, True, False] and len(js[1].error)<2000

@pytest.mark.parametrize('message', [dict(tool_calls=[dict(function=dict(name='critique', arguments='DEEP'))]), dict(reasoning='DEEP'), dict(refusal='DEEP'), dict(content='DEEP'), dict(reasoning_details='DEEP'), dict(tool_calls='DEEP')])
@pytest.mark.parametrize('depth', [300, 600, 940])
def test_no_field_loses_the_batch(server, message, depth):
    body = json.dumps(envelope(**dict(dict(content=None), **message))).encode()
    for raw in (body.replace(b'"DEEP"', nested(depth)), body.replace(b'"DEEP"', b'{"a":'*depth+b'1'+b'}'*depth), body.replace(b'DEEP', b'{\\"critique\\":'*depth)):
        server.plan = lambda h,n: h.send(raw)
        j = judge(server, timeout=5, total_timeout=9)
        assert j.error and not j.critique
    for more in (dict(usage=dict(prompt_tokens=10**400)), dict(choices=[dict(message=dict(content=J), finish_reason=['stop'])]), dict(model=['m'])):
        server.plan = lambda h,n: h.send(dict(envelope(), **more))
        j = judge(server, prices=(1., 1.))
        assert not j.error and j.info['tokens_in']<10**12

def test_odd_headers(server):
    for head in (dict(Retry_After='inf'), dict(Retry_After='-5'), dict(Retry_After='Mon, 99 Foo 0000'), dict(Retry_After='Sat, 01 Jan 0001 00:00:00 +2359'), dict(retry_after_ms='x')):
        server.plan = lambda h,n: h.send({}, 503, **head)
        assert judge(server).error
    for to in ('http://[', 'http://a b/', '//', 'x'*5000):
        server.plan = lambda h,n: h.send(b'', 302, Location=to)
        assert 'redirects to' in judge(server).error

@pytest.mark.parametrize('spell', [lambda c: f'%25{ord(c):02x}', lambda c: f'%2525{ord(c):02X}', lambda c: f'&amp;#{ord(c)};', lambda c: {'/':'&sol;','+':'&plus;','=':'&amp;equals;','_':'&lowbar;'}.get(c, c)])
def test_a_key_is_struck_out_when_it_was_escaped_twice_or_by_name(spell):
    critic = ApiCritic('m', 'http://127.0.0.1:9/v1', api_key='sk-secret/Key_12+34==')
    critic._key()
    assert critic.struck('so '+''.join(map(spell, 'sk-secret/Key_12+34=='))+' it is')=='so *** it is'
