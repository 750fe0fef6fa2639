"""my_head within a model, tied and with weights of its own."""

import torch

from llmlab.testing import VOCABULARY, ids, learns, tiny


def test_a_model_learns_with_it():
    learns("+head@heads.tokens=my_head", "heads.tokens.bias=true")


def test_a_model_with_one_table_learns_with_it():
    learns("model=gpt2", "+head@heads.tokens=my_head")


@torch.no_grad()
def test_logits_for_every_token_or_for_some():
    model = tiny("+head@heads.tokens=my_head")
    text = ids()
    all_of_them = model({"ids": text}).heads["tokens"]
    assert all_of_them.shape == (*text.shape, VOCABULARY)
    last = torch.zeros_like(text, dtype=torch.bool)
    last[:, -1] = True
    some = model({"ids": text}, heads={"tokens": last}).heads["tokens"]
    torch.testing.assert_close(some, all_of_them[:, -1])
