"""my_attention within a model: it learns, never looks ahead, and gives the same with a cache."""

import pytest
import torch

from llmlab.testing import cached_is_uncached, ids, learns, looks_back_only, tiny


def test_a_model_learns_with_it():
    learns("attention=my_attention")


def test_a_token_sees_none_that_come_after_it():
    looks_back_only(tiny("attention=my_attention"))


@pytest.mark.parametrize("position", ["rope", "alibi", "learned"])
def test_generation_with_a_cache_is_that_without(position: str):
    cached_is_uncached(tiny("attention=my_attention", f"position={position}"))


def test_an_encoder_decoder_learns_with_it_as_cross_attention():
    learns("model=t5", "attention@stacks.decoder.cross_attention=my_attention")


def test_a_high_temperature_changes_what_a_model_says():
    cold, hot = (tiny("attention=my_attention", f"attention.temperature={t}") for t in (1, 100))
    assert not torch.allclose(cold({"ids": ids()}).hidden, hot({"ids": ids()}).hidden)


def test_no_temperature_is_refused():
    with pytest.raises(ValueError, match=r"attention\.temperature=0"):
        tiny("attention=my_attention", "attention.temperature=0")
