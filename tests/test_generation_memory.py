"""slm.generation: memory for texts and their caches is asked for before the first token."""

import pytest
import torch

import slm.generation
import slm.hardware
from slm.data.tokenizer import get_tokenizer
from slm.errors import SlmError
from slm.generation import Sampling, generate, generate_tokens, stream
from slm.model.config import GPTConfig
from slm.model.gpt import GPT


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return GPT(GPTConfig(1024, 24, n_layers=2, n_heads=2, d_model=16, d_ff=32)).eval()


def test_a_text_that_no_memory_holds_is_refused_at_the_call(model):
    tokenizer = get_tokenizer("stories")
    sliding = {"max_tokens": 10**15, "overflow": "slide"}
    for door in (generate, stream):
        with pytest.raises(
            SlmError, match="tokens needs at least .* smaller max_token"
        ):
            door(model, tokenizer, "once", **sliding)


def test_caches_count_and_what_fits_is_not_refused(model, monkeypatch):
    """Two layers of 16 channels, keys and values in 32 bits, for 11 positions; and 8 bytes a token."""
    for use_cache, need in ((True, 2 * 2 * 16 * 4 * 11 + 8 * 11), (False, 8 * 11)):
        sampling = Sampling(max_tokens=10, use_cache=use_cache)
        monkeypatch.setattr(slm.hardware, "free_memory", lambda device, n=need: n)
        assert len(list(generate_tokens(model, [[1]], sampling))) == 10
        monkeypatch.setattr(slm.hardware, "free_memory", lambda device, n=need: n - 1)
        with pytest.raises(SlmError, match="1 × 11 tokens needs at least"):
            generate_tokens(model, [[1]], sampling)


def test_memory_that_ends_while_writing_is_a_sentence(model, monkeypatch):
    def full(*tokens):
        raise MemoryError

    monkeypatch.setattr(slm.generation._Reader, "__call__", full)
    with pytest.raises(SlmError, match="the memory is full"):
        list(generate_tokens(model, [[1]]))
