"""my_ffn within a model, as the experts of another, and against its formula."""

import torch

from llmlab import registry
from llmlab.slots import Linear
from llmlab.testing import learns


def test_a_model_learns_with_it():
    learns("ffn=my_ffn")


def test_a_mixture_of_experts_learns_with_it():
    learns("model=qwen_moe", "ffn=my_ffn")


def test_formula():
    ffn = registry.load("ffn", "my_ffn", {"beta": 2.0})(3, 5, Linear)
    for parameter in ffn.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(2, 3)
    g = x @ ffn.gate.weight.T
    inner = g / (1 + torch.exp(-2.0 * g)) * (x @ ffn.up.weight.T)
    torch.testing.assert_close(ffn(x), inner @ ffn.down.weight.T)
