"""Observer of blocks, which wire simple functions here instead of sublayers and norms.

A norm of width D and eps is w x / sqrt(mean(x^2) + eps) + b, with weights `NAME.weight` and `NAME.bias` (D,), where NAME is
what the block calls it. Sublayers of x (B, T, D):

    attention         the mean of x over the tokens up to its own
    cross_attention   cos(x)
    ffn               x^2 - x; like experts, it reports a loss, mean(x), and tokens per expert, (1, 2, 3)

Input: `x` (1, 4, D). Three blocks are built, and their names begin the paths of their weights: `all` with the sublayers
(attention, cross_attention, ffn), `turned` with (ffn, cross_attention, attention), and `two` with (attention, ffn).

Outputs, of which `all` is (1, 4, D) and the other results are the last token's alone, (D,):
- `all`, `turned` and `two`: what these blocks give; `left_out`: `all` called without cross_attention; `attention_alone`: `all`
  called with attention only.
- `KEY.loss`: the loss that each of these but `two` reports, -1 for none; `all.tokens` (3,): the tokens per expert.
- `training`: `all` in training mode, only where model.dropout is 1, so that dropout gives 0.
- `parameters`: the number of parameters of `all`; `final_norm` and `keeps_input`: these attributes, as 0 or 1.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from llmlab import attributes
from llmlab.check.twins.observers.observed import Observed, arrays, build, given, sizes_of, uniform
from llmlab.check.twins.observers.simple import SimpleNorm
from llmlab.check.twins.settings import Setting
from llmlab.slots import Aux

NAMES = ("attention", "cross_attention", "ffn")


def _attention(x: Tensor) -> tuple[Tensor, None]:
    return x.cumsum(1) / torch.arange(1, x.shape[1] + 1)[:, None], None


def _cross_attention(x: Tensor) -> tuple[Tensor, None]:
    return x.cos(), None


def _ffn(x: Tensor) -> tuple[Tensor, Aux]:
    return x.square() - x, Aux(x.mean(), torch.tensor([1, 2, 3]))


SUBLAYERS = {"ffn": _ffn, "attention": _attention, "cross_attention": _cross_attention}


@torch.no_grad()
def observe(setting: Setting) -> Observed:
    sizes = sizes_of(setting)
    block, turned, two = (
        build(setting, sizes, SimpleNorm, names) for names in (NAMES, NAMES[::-1], ("attention", "ffn"))
    )
    x = 2 * uniform("x", 1, 4, sizes.dim) + 0.3
    outputs: dict[str, Any] = {
        "parameters": torch.tensor(float(sum(p.numel() for p in block.parameters()))),
        "final_norm": torch.tensor(float(attributes.get(block, "block", "final_norm"))),
        "keeps_input": torch.tensor(float(attributes.get(block, "block", "keeps_input"))),
    }
    without = {name: f for name, f in SUBLAYERS.items() if name != "cross_attention"}
    for key, used, sublayers in (
        ("all", block, SUBLAYERS),
        ("turned", turned, SUBLAYERS),
        ("two", two, without),
        ("left_out", block, without),
        ("attention_alone", block, {"attention": _attention}),
    ):
        y, aux = used(x, sublayers)
        outputs[key] = y if key == "all" else y[0, -1]
        if key != "two":
            outputs[f"{key}.loss"] = torch.tensor(-1.0) if aux is None else aux.loss
        if key == "all":
            outputs["all.tokens"] = aux.tokens_per_expert
    if sizes.dropout == 1.0:
        outputs["training"] = block.train()(x, SUBLAYERS)[0][0, -1]
    seen = given(setting, {"x": x}, nn.ModuleDict({"all": block, "turned": turned, "two": two}))
    return Observed(seen, arrays(outputs))
