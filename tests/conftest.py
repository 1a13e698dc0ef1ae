"Fixtures that several test files need"

import shutil
import pytest

def pytest_make_parametrize_id(val, argname):
    "Packed bytes may differ between two processes (gzip writes the time), and a test's name must not"
    if isinstance(val, bytes) and not val.isascii(): return argname

@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
    "A folder with a toy model and its tokenizer"
    from text2grad.pretrained import tiny_lm
    d = tmp_path_factory.mktemp('tiny')
    model,tok = tiny_lm()
    model.config.max_position_embeddings = tok.model_max_length = 1024 # 400 words make long prompts of the bundled tasks
    model.save_pretrained(d)
    tok.save_pretrained(d)
    return d

@pytest.fixture(scope='module')
def browser():
    "A real Chromium; where there is none the tests fail, they do not skip"
    from playwright.sync_api import sync_playwright
    path = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
    assert path, 'no Chromium: apt-get install chromium'
    flags = '--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync --disable-dev-shm-usage'
    with sync_playwright() as p:
        b = p.chromium.launch(executable_path=path, args=flags.split())
        yield b
        b.close()
