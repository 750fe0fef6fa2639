"""my_mask within a model, and against a loop over pairs."""

import torch

from llmlab import registry
from llmlab.testing import learns


def test_a_model_learns_with_it():
    learns("model=bert", "mask=my_mask", "mask.ahead=2")


def test_a_loop_over_pairs():
    mask = registry.load("mask", "my_mask", {"ahead": 3})()
    k = torch.arange(8)[None]
    want = [[j - q <= 3 for j in range(8)] for q in range(8)]
    assert mask.allowed(k.T, k, {}).tolist() == want
    assert mask.allowed(k[:, 5:].T, k, {}).tolist() == want[5:], "the newest tokens of a cache"
