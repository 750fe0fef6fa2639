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


FORMULAS = {  # the stream behind a sublayer f with the norms n
    "pre": lambda x, f, n: x + f(n("norm", x)),
    "post": lambda x, f, n: n("norm", x + f(x)),
    "sandwich": lambda x, f, n: x + n("post_norm", f(n("norm", x))),
    "reordered": lambda x, f, n: x + n("norm", f(x)),
    "scaled_pre": lambda x, f, n: 3 * n("norm", x) + f(n("norm", x)),
    "deepnorm": lambda x, f, n: n("norm", 9**0.25 * x + f(x)),  # three sublayers in each of three layers
}


def built(name, keys=SUBLAYERS, **options):
    return build(part("block", name, **options), sizes(), part("norm", "layernorm"), keys)


def one_after_the_other(block, formula, x):
    norms = dict(block.named_children())
    for key in SUBLAYERS:
        x = formula(x, lambda v, key=key: sublayers()[key](v)[0], lambda kind, v, key=key: norms[f"{key}_{kind}"](v))
    return x


@pytest.mark.parametrize("name", FORMULAS)
def test_formula(name):
    block, x = built(name), randn(2, 5, 24)
    got, aux = block(x, sublayers())
    close(got, one_after_the_other(block, FORMULAS[name], x))
    assert aux is None
    assert block.final_norm == (name not in ("post", "deepnorm"))


def test_every_block_is_here():
    assert set(names("block")) == {*FORMULAS, "parallel", "residual"}


def test_the_first_sublayer_of_a_stack_may_give_the_stream():
    x = randn(1, 3, 24)
    for layer, want in ((0, 2 * x + (2 * x) ** 2), (1, x + 2 * x + (x + 2 * x) ** 2)):
        factory = part("block", "residual", from_start=False)
        block = build(factory, sizes(layer=layer), part("norm", "rmsnorm"), ("attention", "ffn"))
        close(block(x, sublayers())[0], want)


@pytest.mark.parametrize("norms", [1, 2])
def test_parallel_sublayers_read_the_same_stream(norms):
    block, x = built("parallel", norms=norms), randn(2, 5, 24)
    own = dict(block.named_children())
    assert len(own) == 1 + (1 if norms == 1 else 3)
    want = x + sum(sublayers()[key](own["norm" if norms == 1 else f"{key}_norm"](x))[0] for key in SUBLAYERS)
    got, aux = block(x, sublayers())
    close(got, want)
    assert aux is None and block.final_norm


def test_a_residual_may_be_the_normed_stream():
    block, x = built("pre", normed_residual=True), randn(2, 5, 24)
    close(block(x, sublayers())[0], one_after_the_other(block, lambda x, f, n: n("norm", x) + f(n("norm", x)), x))


def test_deepnorm_with_an_exponent():
    block, x = built("deepnorm", ("attention", "ffn"), exponent=0.5), randn(2, 5, 24)
    y = block.attention_norm(6**0.5 * x + 2 * x)
    close(block(x, sublayers())[0], block.ffn_norm(6**0.5 * y + y**2))


@pytest.mark.parametrize("name", names("block"))
def test_passes_on_what_the_experts_say_and_owns_its_norms_only(name):
    block = build(part("block", name), sizes(), part("norm", "rmsnorm"), ("attention", "ffn"))
    said = Aux(torch.tensor(0.5), torch.tensor([1, 2]))
    assert block(randn(1, 2, 24), sublayers(said))[1] is said
    want = {"attention_norm.weight", "ffn_norm.weight"}
    if name == "sandwich":
        want |= {"attention_post_norm.weight", "ffn_post_norm.weight"}
    if name in ("parallel", "residual"):
        want = {"parallel": {"norm.weight"}, "residual": set()}[name]
    assert {key for key, _ in block.named_parameters()} == want


@pytest.mark.parametrize("name", names("block"))
def test_dropout_is_on_each_sublayers_output_while_training(name):
    """With everything dropped a block does what it does when its sublayers give zero."""
    block = build(part("block", name), sizes(dropout=1.0), part("norm", "rmsnorm"), ("attention", "ffn"))
    x, zero = randn(2, 3, 24), lambda x: (torch.zeros_like(x), None)
    want = block(x, {"attention": zero, "ffn": zero})[0]
    close(block.train()(x, sublayers())[0], want)
    assert not torch.allclose(block.eval()(x, sublayers())[0], want)
