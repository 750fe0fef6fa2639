"""my_block within a model, and against its formula."""

import torch

from llmlab import registry
from llmlab.testing import SIZES, learns


def test_a_model_learns_with_it():
    learns("block=my_block")


def test_a_mixture_of_experts_learns_with_it():
    learns("model=qwen_moe", "block=my_block")


def test_formula():
    norm = registry.load("norm", "rmsnorm", {})
    block = registry.load("block", "my_block", {"scale": 0.5})(SIZES, norm, ("attention", "ffn"))
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter)
    sublayers = {"attention": lambda x: (x * 2, None), "ffn": lambda x: (x**2, None)}
    x = torch.randn(2, 3, SIZES.dim)
    y = x + 0.5 * 2 * block.norms["attention"](x)
    y = y + 0.5 * block.norms["ffn"](y) ** 2
    torch.testing.assert_close(block(x, sublayers)[0], y)
