"""my_embedding with positions that are added, with one table for two stacks, and its formula."""

from typing import Any

import torch

from llmlab.slots import Context
from llmlab.testing import cached_is_uncached, ids, learns, tiny


def test_a_model_learns_with_it():
    learns("embedding=my_embedding", "position=learned")


def test_an_encoder_decoder_learns_with_it():
    learns("model=t5", "embedding=my_embedding")


def test_generation_with_a_cache_is_that_without():
    cached_is_uncached(tiny("embedding=my_embedding", "position=sinusoidal"))


@torch.no_grad()
def test_formula():
    model = tiny("embedding=my_embedding", "embedding.scale=3", "position=none")
    embedding: Any = model.get_submodule("stacks.main.embedding")
    text = ids()
    ctx = Context(text.shape[1], ids=text)
    torch.testing.assert_close(embedding(text, ctx), 3 * embedding.weight[text])
