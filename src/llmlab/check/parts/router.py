"""Checks of routers: valid choices of experts, and losses that don't depend on the number of devices."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from llmlab.check.parts.fixtures import build_random, part_sizes, randn, tested_part
from llmlab.check.subject import CheckFailed, NotApplicable, Subject, assert_close
from llmlab.sizes import Sizes
from llmlab.slots import Choice, Router


def _router(subject: Subject) -> tuple[Router, Sizes]:
    """The router with both losses, 4 experts and 2 a token."""
    spec, sizes = tested_part(subject, "moe"), part_sizes(subject)
    if spec.attribute("dense"):
        raise NotApplicable("it has no experts")
    moe = replace(sizes.moe, balance=0.02, z=0.01, n_experts=4, per_token=2)
    sizes = sizes.but(moe=moe, causal=False, sees_all=True)
    return build_random(spec.factory(), sizes), sizes


@torch.no_grad()
def routing(subject: Subject) -> None:
    """A router's experts exist and are different ones, weights are finite and not negative, padding is chosen by none."""
    router, sizes = _router(subject)
    x = randn(9, sizes.dim)
    valid = torch.arange(9) < 6
    routing = router(x, valid)
    moe = sizes.moe
    if isinstance(routing, Choice):
        if routing.tokens.shape[0] != moe.n_experts or routing.tokens.shape != routing.weights.shape:
            raise CheckFailed(f"tokens are {tuple(routing.tokens.shape)} and weights {tuple(routing.weights.shape)}")
        if not valid[routing.tokens].all():
            raise CheckFailed("an expert takes padding")
        same_token = any(len(set(row)) < len(row) for row in routing.tokens.tolist())
    else:
        if routing.experts.shape != (9, moe.per_token) or routing.weights.shape != (9, moe.per_token):
            raise CheckFailed(f"experts are {tuple(routing.experts.shape)}, not (9, model.moe.per_token)")
        if not (int(routing.experts.min()) >= 0 and int(routing.experts.max()) < moe.n_experts):
            raise CheckFailed("there is no such expert")
        same_token = any(len(set(row)) < len(row) for row in routing.experts.tolist())
        alone = router(x[:6], None)
        assert_close(routing.weights[:6], alone.weights, "weights of tokens beside padding", 1e-5)
    if same_token:
        raise CheckFailed("a token meets an expert twice")
    if not torch.isfinite(routing.weights).all() or bool((routing.weights < 0).any()):
        raise CheckFailed("weights are not finite, or negative")
    if routing.loss is not None:
        want = router(x[:6], None).loss
        assert want is not None
        assert_close(routing.loss, want, "the loss of tokens beside padding", 1e-5)


@torch.no_grad()
def ranks(subject: Subject) -> None:
    """Losses of two devices that share a micro-batch are that of one device which has all of it, whatever their number."""
    router, sizes = _router(subject)
    x = randn(12, sizes.dim)
    valid = torch.arange(12) % 5 != 4
    whole = router(x, valid).loss
    if whole is None:
        raise NotApplicable("it has no loss")
    # Unequal, as for equal halves a mean of their means is right by chance.
    halves = (slice(0, 7), slice(7, 12))
    summed: list[list[Tensor]] = []
    for half in halves:
        totals: list[Tensor] = []

        # A default argument, as ruff's B023 warns of a closure over a loop's variable.
        def record(tensor: Tensor, into: list[Tensor] = totals) -> Tensor:
            into.append(tensor)
            return tensor

        router(x[half], valid[half], record)
        summed.append(totals)
    if [len(s) for s in summed] not in ([n, n] for n in range(1, 9)):
        raise NotApplicable("its losses are linear in tokens, each device's its own")
    for half in halves:
        both = iter([one + other for one, other in zip(*summed, strict=True)])
        of_half = router(x[half], valid[half], lambda tensor, sums=both: next(sums)).loss  # type: ignore[misc]
        assert of_half is not None
        assert_close(of_half, whole, "the loss of one of two devices", 1e-5)
