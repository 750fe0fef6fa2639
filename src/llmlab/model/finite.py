"""NaN and infinity: in weights, and where they first arise in a forward."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from llmlab.errors import UserError


def check(tensors: Mapping[str, Tensor], where: object) -> None:
    """UserError, beginning with `where`, that names the first tensor which holds a NaN or an infinity.

    A sum tells it in one pass at the speed of memory (isfinite().all() writes a tensor first: measured 50 times slower on a
    CPU). Where the sum overflows though all numbers are finite, a second pass decides.
    """
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or tensor.is_meta:
            continue
        # In float32 at least, since a sum of float16 overflows at 65,504.
        total = tensor.sum(dtype=torch.float64 if tensor.dtype == torch.float64 else torch.float32)
        if not total.isfinite() and not (right := tensor.isfinite()).all():
            n = tensor.numel() - int(right.sum())
            raise UserError(f"{where}: {name} holds NaN or infinity in {n:,} of its {tensor.numel():,} numbers")


def first_nonfinite(model: nn.Module, forward: Callable[[], object]) -> str:
    """The module of `model` whose output is the first with a NaN or an infinity as `forward` runs, as a phrase."""
    found: list[str] = []

    def look(name: str, output: object) -> None:
        # A module's hook runs after those of the modules inside of it, so that the first to report is the innermost.
        if not found and any(t.is_floating_point() and not t.isfinite().all() for t in _tensors(output)):
            found.append(name)

    hooks = [
        # The default argument binds this module's name: a closure would see the last of the loop.
        module.register_forward_hook(lambda _, __, output, name=name: look(name, output))
        for name, module in model.named_modules()
    ]
    try:
        forward()
    finally:
        for hook in hooks:
            hook.remove()
    return (
        f"{found[0]} is the first whose output holds NaN or infinity" if found and found[0] else "nothing before it is"
    )


def _tensors(value: object) -> Iterator[Tensor]:
    """All tensors in nested containers, named tuples included."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _tensors(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _tensors(inner)
