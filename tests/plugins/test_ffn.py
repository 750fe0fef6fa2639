"""Feed-forwards against their formulas, one number at a time; dense and grouped by expert."""

import math
from functools import partial

import pytest
import torch
from parts import build, close, names, part, randn

from llmlab.model.experts import GroupedLinear
from llmlab.slots import Linear


def gelu(x):
    return 0.5 * x * (1 + math.erf(x / math.sqrt(2)))


def gelu_tanh(x):
    return 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


PLAIN = {
    "relu": lambda x: max(x, 0.0),
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "silu": lambda x: x * sigmoid(x),
    "relu2": lambda x: max(x, 0.0) ** 2,
}
GATED = {
    "swiglu": PLAIN["silu"],
    "geglu": gelu,
    "geglu_tanh": gelu_tanh,
    "reglu": PLAIN["relu"],
    "glu": sigmoid,
    "bilinear": lambda x: x,
}


def test_every_ffn_is_here():
    assert set(names("ffn")) == {*PLAIN, *GATED, "none"}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", [*PLAIN, *GATED])
def test_formula(name, bias):
    ffn = build(part("ffn", name), 6, 10, partial(Linear, bias=bias))
    x = randn(2, 3, 6)

    def linear(module, v):
        return module.weight.double() @ v + (module.bias.double() if bias else 0)

    for index in ((0, 0), (1, 2)):
        v = x[index].double()
        up = linear(ffn.up, v)
        if name in GATED:
            inner = torch.tensor(
                [GATED[name](g) * u for g, u in zip(linear(ffn.gate, v).tolist(), up.tolist(), strict=True)]
            )
        else:
            inner = torch.tensor([PLAIN[name](u) for u in up.tolist()])
        close(ffn(x)[index], linear(ffn.down, inner.double()))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", ["gelu", "swiglu"])
def test_grouped_is_one_dense_ffn_an_expert(name, bias):
    grouped = build(part("ffn", name), 8, 12, partial(GroupedLinear, 3, bias=bias))
    x = randn(7, 8)
    ends = [2, 2, 7]
    got = grouped(x, torch.tensor(ends, dtype=torch.int32))
    start = 0
    for expert, end in enumerate(ends):
        dense = build(part("ffn", name), 8, 12, partial(Linear, bias=bias))
        for (_, p), (_, stacked) in zip(dense.named_parameters(), grouped.named_parameters(), strict=True):
            p.data.copy_(stacked[expert])
        close(got[start:end], dense(x[start:end]))
        start = end


def test_roles():
    for name in names("ffn"):
        ffn = build(part("ffn", name), 4, 8, Linear)
        assert {key: child.role for key, child in ffn.named_children()} == {
            key: "ffn_out" if key == "down" else "ffn_in" for key, _ in ffn.named_children()
        }
