"""What an objective returns, held to its contract: else a misspelt weight would change nothing, and a log could stand in the
place of the loss, without a word."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch

from llmlab import measures
from llmlab.errors import UserError, near
from llmlab.slots import Aux, Loss, Objective, Pass

MODEL = "model"  # the role of the model that is trained
# Columns of metrics.csv beside what an objective shows, and `bytes`, which a validation adds up beside them.
TAKEN = ("step", "tokens", "loss", "lr", "grad_norm", "seconds", "bytes")


def check(loss: object, objective: Objective, companions: Collection[str]) -> None:
    """UserError if a loss is not as `slots.Loss` says. It reads no value, so that nothing waits for the device."""
    name = f"{type(objective).__name__}.loss"
    if not isinstance(loss, Loss):
        raise UserError(f"{name} must return a Loss, but returns a {type(loss).__name__}")
    if not loss.terms:
        raise UserError(f"{name} returns no terms; give {{name: (sum, number of targets)}}")
    for kind, pairs in (("terms", loss.terms), ("logs", loss.logs)):
        for key, pair in pairs.items():
            if not (isinstance(pair, tuple) and len(pair) == 2 and all(map(_scalar, pair))):
                raise UserError(f"{name}: {kind}[{key!r}] must be a sum and a count, two tensors of one number each")
            if key in TAKEN:
                raise UserError(f"{name}: {kind}[{key!r}] has the name of a column of metrics.csv; choose another")
    if twice := [key for key in loss.logs if key in loss.terms]:
        raise UserError(f"{name}: logs has {twice[0]!r}, which is a term and shown as it is; leave it out of the logs")
    if unknown := [key for key in loss.weights if key not in loss.terms]:
        raise UserError(f"{name}: weights has {unknown[0]!r}, which is no term; {near(unknown[0], loss.terms)}")
    roles = (MODEL, *companions)
    for role, aux in loss.aux.items():
        if role not in roles:
            raise UserError(f"{name}: aux has {role!r}, which is no model of it; {near(role, roles)}")
        if not isinstance(aux, Aux):
            raise UserError(f"{name}: aux[{role!r}] must be what `auxiliary` makes of the model's outputs")


def _scalar(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.dim() == 0


def with_shown(loss: Loss, batch: Mapping[str, Any]) -> Loss:
    """The loss, which logs what the batch shows of each of its samples too, as a mean."""
    shown: Mapping[str, torch.Tensor] | None = batch.get("shown")
    if not shown:
        return loss
    return loss._replace(logs={**loss.logs, **{k: (v.sum(), v.new_tensor(len(v))) for k, v in shown.items()}})


def check_shown(loss: Loss, objective: Objective, counts_bytes: bool) -> None:
    """UserError if what is shown has the name of a perplexity, or of bits per byte, that is shown too."""
    names = measures.names(tuple(loss.terms), tuple(loss.shown), measures.kinds(objective), counts_bytes)
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(
            f"{type(objective).__name__}.loss: {twice[0]!r} is shown of a likelihood already; choose another name"
        )


def same_names(objective: str, before: Sequence[str], now: Collection[str]) -> None:
    """UserError if a micro-batch shows other names than those before it: sums over ranks go by their order."""
    if other := sorted({*before} ^ {*now}):
        has = "has" if other[0] in now else "lacks"
        raise UserError(
            f"{objective}.loss {has} {other[0]!r} in one micro-batch and not in another; give it each time, where there is "
            "nothing as a sum and a count of 0"
        )


def check_prepared(objective: Objective, prepared: dict[str, Any]) -> None:
    """UserError if what an objective says of a sample, its targets and passes, is not as `slots.Objective` has it."""
    name = type(objective).__name__
    counts: object = objective.targets(prepared)
    if not isinstance(counts, Mapping) or not counts:
        raise UserError(f"{name}.targets must return the number of targets of each term, {{name: n}}, not {counts!r}")
    found: object = objective.passes(prepared) if hasattr(objective, "passes") else [Pass(1)]
    if not isinstance(found, list | tuple) or not found or not all(isinstance(each, Pass) for each in found):
        raise UserError(f"{name}.passes must return a list of Pass, one for each forward, not {found!r}")
    if empty := [each for each in found if each.tokens < 1]:
        raise UserError(f"{name}.passes has a forward over {empty[0].tokens} tokens")
