"Fixtures that several test files need"

import pytest
from text2grad.pretrained import tiny_lm

@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
    "A folder with a toy model and its tokenizer"
    d = tmp_path_factory.mktemp('tiny')
    model,tok = tiny_lm()
    model.save_pretrained(d)
    tok.save_pretrained(d)
    return d
