"""Checks of a model compiled, and in bfloat16."""

from __future__ import annotations

import contextlib
import os
from copy import deepcopy
from typing import cast

import torch
from torch import Tensor

from llmlab.check import TRACED
from llmlab.check.learning import parameter_gradients, require_gradients
from llmlab.check.parts.fixtures import tested_part
from llmlab.check.subject import CheckFailed, NotApplicable, Subject, assert_close
from llmlab.model.model import Model
from llmlab.model.stack import Layer
from llmlab.slot_names import LAYER_SLOTS
from llmlab.training.placement import Placement, traceable

COMPILED = (*LAYER_SLOTS, "kernel")  # slots of the parts in a layer


def backend() -> str:
    """The torch.compile backend for checks.

    By default TRACED: it traces forward and backward, and runs the traced graph in eager mode, so that a graph break or a
    wrong decomposition shows. A run uses inductor, which takes a minute a part.
    """
    return os.environ.get("LLMLAB_CHECK_COMPILE", TRACED)


def compiled(subject: Subject) -> None:
    """A layer compiles to one graph, which gives what the layer gives, and the same gradients."""
    part = tested_part(subject, *COMPILED)
    require_gradients(subject)
    layers = [layer for stack in subject.model.all_stacks() for layer in stack.layers]
    if part.slot == "moe" and any(layer.routed for layer in layers):
        raise NotApplicable("a run does not compile what sends tokens to experts: its sizes depend on the tokens")
    from torch._dynamo.exc import TorchDynamoException  # here, since importing torch._dynamo takes seconds

    batch = subject.batch()
    eager = subject.model
    traced = deepcopy(eager)
    for layer in cast("list[Layer]", [layer for stack in traced.all_stacks() for layer in stack.layers]):
        for module in traceable(layer):
            # The method, not the module: torch.compile(module) wraps it, and parameters would be
            # named `_orig_mod.*`. fullgraph, as dynamo otherwise breaks a graph without a word.
            module.forward = torch.compile(module.forward, backend=backend(), dynamic=False, fullgraph=True)
    results = []
    for model in (eager, traced):
        try:
            hidden = model(batch, heads={}).hidden
        except TorchDynamoException as e:
            raise CheckFailed(f"a layer can't be compiled to one graph: {str(e).splitlines()[0]}") from e
        # Weighted, for the plain sum of normed values is constant and has no gradient.
        weights = torch.linspace(-1, 1, hidden.numel()).view_as(hidden)
        results.append((hidden.detach(), parameter_gradients(model, (hidden * weights).sum())))
    (want, gradients), (got, traced_gradients) = results
    assert_close(got, want, "hidden states of a compiled model", 1e-4)
    for name, gradient in gradients.items():
        if gradient is not None:
            if traced_gradients[name] is None:
                raise CheckFailed(f"compiled, {name} has no gradient")
            assert_close(cast(Tensor, traced_gradients[name]), gradient, f"the gradient of {name}, compiled", 1e-3)


@torch.no_grad()
def bfloat16(subject: Subject) -> None:
    """In bfloat16, by autocast and altogether, hidden states and what heads say are those of float32 but for a few per cent."""
    batch = subject.batch()
    # With random values: at first values a part adds so little that an error in it is lost.
    whole = subject.model
    half = deepcopy(whole)
    Placement(dtype=torch.bfloat16).apply(half)
    want = _outputs(whole, batch)
    ways = (
        ("autocast", whole, torch.autocast("cpu", torch.bfloat16)),
        ("all of it", half, contextlib.nullcontext()),
    )
    for name, model, context in ways:
        with context:
            got = _outputs(model, batch)
        for what, one in got.items():
            if not torch.isfinite(one).all():
                raise CheckFailed(f"in bfloat16 ({name}) {what} are not finite")
            off = float((one - want[what]).abs().mean() / want[what].abs().mean())
            # bfloat16 has 8 bits: rounding alone makes 1.6 % at most over all parts, 3.5 % where it sends a token to another
            # expert (measured).
            if not off < 0.05:
                raise CheckFailed(f"in bfloat16 ({name}) {what} are off by {off:.0%}")


def _outputs(model: Model, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """{description: tensor} of hidden states and heads, in float32."""
    out = model(batch)
    return {"hidden states": out.hidden.float()} | {f"scores of {r}": x.float() for r, x in out.heads.items()}
