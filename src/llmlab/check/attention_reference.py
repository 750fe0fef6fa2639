"""The check of a layer's attention against `reference_attention`, one query of one head at a time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from llmlab import attributes
from llmlab.check import reference_attention
from llmlab.check.subject import NotApplicable, Subject, assert_close
from llmlab.model.model import Model
from llmlab.model.view import View
from llmlab.slots import Position


@torch.no_grad()
def attention(subject: Subject) -> None:
    """Without positions attention is out(softmax(scale q.k) v), written out; scale is head_dim^-1/2, or as traits say."""
    model, batch, n_compared = subject.model, subject.batch(), 0
    spec = subject.spec.stacks[-1]
    mask, stack = spec.mask.factory()(), model.all_stacks()[-1]
    for i, layer in enumerate(spec.layers):
        part: Any = stack.layers[i].attention
        if not attributes.get(part, "attention", "textbook"):
            continue
        traits = spec.sizes.attention
        if traits.qk_norm is not None or traits.clip_qkv is not None:
            raise NotApplicable("queries and keys are normed or clipped before they meet")
        n_compared += 1
        x_BTD, view = _called_with(model, part, batch)
        got = part(x_BTD, replace(view, position=Position(), state=None))
        linear = {role: _only(part, role) for role in ("q", "k", "v", "out")}
        heads = {role: linear[role](x_BTD).unflatten(-1, (-1, spec.sizes.head_dim)).transpose(1, 2) for role in "qkv"}
        scale = spec.sizes.head_dim**-0.5 if traits.scale is None else traits.scale
        scale /= i + 1 if traits.scale_over_layer else 1
        window = layer.parts["window"].factory()()
        for row in range(len(x_BTD)):
            o_NTH = reference_attention.attention(
                heads["q"][row],
                heads["k"][row],
                heads["v"][row],
                reference_attention.visible_pairs(mask, window, batch, row),
                scale=scale,
                softcap=traits.softcap,
                sink_N=part.sink if traits.sink else None,
            )
            want = linear["out"](o_NTH.transpose(0, 1).flatten(1).float())
            assert_close(got[row], want, f"layer {i}, against attention written out", 1e-4)
    if not n_compared:
        raise NotApplicable("its attention is not that of the textbook")


def _only(part: nn.Module, role: str) -> nn.Module:
    """The one linear of a role."""
    linears = [m for m in part.modules() if getattr(m, "role", None) == role]
    if len(linears) != 1:
        raise NotApplicable(f"its attention has {len(linears)} linears of the role {role}")
    return linears[0]


def _called_with(model: Model, part: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, View]:
    """The arguments with which a forward of the model calls the part first."""
    calls: list[tuple[Tensor, View]] = []
    hook = part.register_forward_pre_hook(lambda module, args: calls.append(args))
    model(batch)
    hook.remove()
    return calls[0][0], calls[0][1]
