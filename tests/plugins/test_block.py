"""Blocks against their formulas, with sublayers of one multiplication."""

import pytest
import torch
from parts import build, close, names, part, randn, sizes

from llmlab.slots import Aux

SUBLAYERS = ("attention", "cross_attention", "ffn")


def sublayers(said=None):
    return {
        "attention": lambda x: (x * 2, None),
        "cross_attention": lambda x: (x.flip(-1), None),
        "ffn": lambda x: (x**2, said),
    }


@pytest.mark.parametrize("name", names("block"))
def test_formula(name):
    block = build(part("block", name), sizes(), part("norm", "layernorm"), SUBLAYERS)
    x = want = randn(2, 5, 24)
    norms = dict(block.named_children())
    for key in SUBLAYERS:
        f, pre = sublayers()[key], norms[f"{key}_norm"]
        if name == "pre":
            want = want + f(pre(want))[0]
        elif name == "post":
            want = pre(want + f(want)[0])
        else:
            want = want + norms[f"{key}_post_norm"](f(pre(want))[0])
    got, aux = block(x, sublayers())
    close(got, want)
    assert aux is None
    assert block.final_norm == (name != "post")


@pytest.mark.parametrize("name", names("block"))
def test_passes_on_what_the_experts_say_and_owns_its_norms_only(name):
    block = build(part("block", name), sizes(), part("norm", "rmsnorm"), ("attention", "ffn"))
    said = Aux(torch.tensor(0.5), torch.tensor([1, 2]))
    assert block(randn(1, 2, 24), sublayers(said))[1] is said
    want = {"attention_norm.weight", "ffn_norm.weight"}
    if name == "sandwich":
        want |= {"attention_post_norm.weight", "ffn_post_norm.weight"}
    assert {key for key, _ in block.named_parameters()} == want


@pytest.mark.parametrize("name", names("block"))
def test_dropout_is_on_each_sublayers_output_while_training(name):
    """With everything dropped a block does what it does when its sublayers give zero."""
    block = build(part("block", name), sizes(dropout=1.0), part("norm", "rmsnorm"), ("attention", "ffn"))
    x, zero = randn(2, 3, 24), lambda x: (torch.zeros_like(x), None)
    want = block(x, {"attention": zero, "ffn": zero})[0]
    close(block.train()(x, sublayers())[0], want)
    assert not torch.allclose(block.eval()(x, sublayers())[0], want)
