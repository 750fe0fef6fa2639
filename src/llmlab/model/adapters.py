"""Adapters in a model: small modules beside its linears, which learn while all else is frozen, and their end by merging.

An adapted linear keeps its path and its weight; the part's module is its child `adapter`, called behind it. One with a method
`before` changes what the linear reads as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from llmlab.config.spec import ModelSpec
from llmlab.errors import UserError
from llmlab.modules import Linear

CHILD = "adapter"
MARK = f".{CHILD}."


def attach(model: nn.Module, spec: ModelSpec) -> None:
    """Give the model's linears the modules that `spec.adapter` makes for them. UserError where it makes none."""
    if spec.adapter is None:
        return
    part = spec.adapter.factory()()
    linears = [m for m in model.modules() if isinstance(m, Linear)]
    adapted = 0
    for linear in linears:
        if (module := part(linear)) is not None:
            linear.add_module(CHILD, module)
            linear.register_forward_hook(_adapted)
            if hasattr(module, "before"):
                linear.register_forward_pre_hook(_before)
            adapted += 1
    if not adapted:
        roles = ", ".join(dict.fromkeys(m.role for m in linears))
        raise UserError(f"adapter={spec.adapter} adapts no linear of this model, whose linears have the roles {roles}")


def _adapted(linear: Any, given: tuple[Tensor, ...], y: Tensor) -> Tensor:
    # A function of the module and no closure: a copy of a model has hooks that know the copy's own modules.
    out: Tensor = linear.adapter(given[0], y, linear)
    return out


def _before(linear: Any, given: tuple[Any, ...]) -> tuple[Any, ...]:
    return linear.adapter.before(given[0]), *given[1:]


def is_adapted(names: Mapping[str, object]) -> bool:
    """True if weights have those of an adapter among them."""
    return any(MARK in name for name in names)


def without(spec: ModelSpec) -> ModelSpec:
    """The model as it is once its adapter is merged."""
    return replace(spec, adapter=None)


def merged(weights: Mapping[str, Tensor], spec: ModelSpec) -> dict[str, Tensor]:
    """Whole weights of a model with an adapter as those of the same model without."""
    if spec.adapter is None:
        return dict(weights)
    part = spec.adapter.factory()()
    learnt: dict[str, dict[str, Tensor]] = {}
    for name, tensor in weights.items():
        if MARK in name:
            linear, _, inner = name.partition(MARK)
            learnt.setdefault(linear, {})[inner] = tensor
    found = {name: tensor for name, tensor in weights.items() if MARK not in name}
    for linear, own in learnt.items():
        found[f"{linear}.weight"] = part.merged(weights[f"{linear}.weight"], own)
        # An update of the weight alone leaves the bias as it is, and its part has no such method.
        if (bias := weights.get(f"{linear}.bias")) is not None and hasattr(part, "merged_bias"):
            found[f"{linear}.bias"] = part.merged_bias(bias, own)
    return found
