"""Checks of parts that are in no model: schedules, optimizers, rewards and filters."""

from __future__ import annotations

import math
import pickle
from collections.abc import Sequence
from copy import deepcopy
from typing import Any, get_args

import numpy as np
import torch
from torch import nn

from llmlab.check.parts.fixtures import randn, tested_part
from llmlab.check.refusal import refusal
from llmlab.check.subject import CheckFailed, NotApplicable, Subject
from llmlab.filters import Filter
from llmlab.slots import OptimizerPart, Reward, Role, Schedule

TOTALS = (1, 2, 3, 50, 1000)


def factors(subject: Subject) -> None:
    """A schedule's factors are finite and not negative, also behind the end, and follow from step and budget alone."""
    schedule: Schedule = tested_part(subject, "schedule").factory()()
    asked = [(step, total) for total in TOTALS for step in range(total + 3)]
    found = [schedule.factor(*one) for one in asked]
    for (step, total), factor in zip(asked, found, strict=True):
        if not (math.isfinite(factor) and factor >= 0):
            raise CheckFailed(f"the factor of step {step} of {total} is {factor}")
    order = np.random.default_rng(0).permutation(len(asked))
    for i in order:
        if schedule.factor(*asked[i]) != found[i]:
            raise CheckFailed(
                f"step {asked[i][0]} of {asked[i][1]} has another factor after other steps were asked for"
            )
    if not any(found):
        raise CheckFailed("every factor is 0")


def steps(subject: Subject) -> None:
    """An optimizer moves what has a gradient and nothing else, at its rate, and its state goes on with the same steps."""
    part: OptimizerPart = tested_part(subject, "optimizer").factory()()
    params, optimizer = _optimized(part)
    part.build([(path, nn.Parameter(p.detach().to("meta")), role) for path, p, role in params])  # without values
    if any(group["lr"] != part.lr for group in optimizer.param_groups):
        raise CheckFailed(f"its rate is not lr={part.lr}, which a schedule multiplies")
    if {id(p) for group in optimizer.param_groups for p in group["params"]} != {id(p) for _, p, _ in params}:
        raise CheckFailed("it has not got all of the parameters")
    before = {path: p.detach().clone() for path, p, _ in params}
    _step(optimizer, params, 1)
    for path, p, _ in params:
        if not torch.isfinite(p).all():
            raise CheckFailed(f"{path} is not finite after a step")
        if torch.equal(p, before[path]) != (p.grad is None):
            raise CheckFailed(f"{path} has {'no ' * (p.grad is None)}gradient, and it is {_moved(p, before[path])}")
    state = deepcopy(optimizer.state_dict())  # load_state_dict shares its tensors
    values = {path: p.detach().clone() for path, p, _ in params}
    again, other = _optimized(part)
    with torch.no_grad():
        for path, p, _ in again:
            p.copy_(values[path])
    other.load_state_dict(state)
    for which in ((params, optimizer), (again, other)):
        _step(which[1], which[0], 2)
    for (path, p, _), (_, q, _) in zip(params, again, strict=True):
        if not torch.equal(p, q):
            raise CheckFailed(f"{path} makes another step after the state was loaded")


def _moved(now: torch.Tensor, before: torch.Tensor) -> str:
    return "left as it was" if torch.equal(now, before) else "moved"


def _optimized(
    part: OptimizerPart,
) -> tuple[list[tuple[str, nn.Parameter, Role]], torch.optim.Optimizer]:
    """A matrix or a vector of each role, and one more that never has a gradient; with the optimizer over all of them."""
    shapes = {role: (5,) if role in ("norm", "bias") else (5, 4) for role in get_args(Role)}
    params: list[tuple[str, nn.Parameter, Role]] = [
        (role, nn.Parameter(randn(*shape, seed=i)), role) for i, (role, shape) in enumerate(shapes.items())
    ]
    params.append(("unused", nn.Parameter(randn(5, 4, seed=99)), "q"))
    return params, part.build(params)


def _step(optimizer: torch.optim.Optimizer, params: list[tuple[str, nn.Parameter, Role]], number: int) -> None:
    for i, (path, p, _) in enumerate(params):
        p.grad = None if path == "unused" else randn(*p.shape, seed=1000 * number + i)
    optimizer.step()


ANSWERS = ("", "7", " 7\n", "77", "it is 7", "seven.", "\\boxed{7}", "7 apples, then 8")


def scores(subject: Subject) -> None:
    """A reward gives each answer a finite number, by the fields that it `needs`, whatever stands beside it."""
    reward: Reward = tested_part(subject, "reward").factory()()
    records = [
        {"prompt": f"What is {i}?", **{name: str(7 if i % 2 else i) for name in reward.needs}}
        for i in range(len(ANSWERS))
    ]
    try:
        found = list(reward.score(records, ANSWERS))
    except Exception as e:
        if refusal(e) is not None:
            raise
        raise NotApplicable(f"it judges more than texts in the fields of a record: {type(e).__name__}") from e
    if len(found) != len(ANSWERS) or not all(math.isfinite(score) for score in found):
        raise CheckFailed(f"{len(ANSWERS)} answers have the scores {found}")
    backwards = list(reward.score(records[::-1], ANSWERS[::-1]))
    alone = [reward.score([record], [answer])[0] for record, answer in zip(records, ANSWERS, strict=True)]
    if not found == backwards[::-1] == alone:
        raise CheckFailed("an answer's score is another beside other answers")


TEXTS = (
    "A cat.",
    "",
    "A cat.",
    "a  cat.\n",
    "7 dogs and 8 cats",
    "# 7\n# 8 ...",
    "\u00e9t\u00e9 " * 40,
    "7 dogs and 8 cats",
)


def reasons(subject: Subject) -> None:
    """A filter's value of a text is the same alone, beside others and in another process; a reason is a text or None."""
    factory = tested_part(subject, "filter").factory()
    # As filtering does it: in batches, in other processes, and judged in the order of the documents.
    one, other = factory(), factory()
    together = list(one.measure(TEXTS))
    if len(together) != len(TEXTS):
        raise CheckFailed(f"measure() gives {len(together)} values for {len(TEXTS)} texts")
    alone = [pickle.dumps(other.measure([text])[0]) for text in reversed(TEXTS)][::-1]
    found, again = _judged(one, together), _judged(other, [pickle.loads(value) for value in alone])
    if wrong := [why for why in found if not (why is None or (isinstance(why, str) and why))]:
        raise CheckFailed(f"reason() must give a text or None, but gives {wrong[0]!r}")
    for text, first, second in zip(TEXTS, found, again, strict=True):
        if first != second:
            raise CheckFailed(f"{text[:20]!r} beside others is {_verdict(first)}, measured alone {_verdict(second)}")


def _judged(part: Filter, values: Sequence[Any]) -> list[str | None]:
    return [part.reason(value) for value in values]


def _verdict(why: str | None) -> str:
    return "kept" if why is None else f"dropped as {why}"
