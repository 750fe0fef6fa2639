"""Masks and windows: what they say of many pairs at once, against what they say of each."""

from __future__ import annotations

from typing import Any

import torch

from llmlab.check import plain
from llmlab.check.parts.kernel import DATA
from llmlab.check.parts.of import LENGTH, asked
from llmlab.check.subject import NotApplicable, Subject, Wrong

ROWS = 2


def pairs(subject: Subject) -> None:
    """A mask or window allows the pairs that it says it `sees`, at any offset; `pattern` and `covers` say no other thing."""
    spec = asked(subject, "mask", "window")
    rule = spec.factory()()
    if not hasattr(rule, "sees"):
        raise NotApplicable(f"{spec.slot}={spec.name} has no `sees` that says the same of one pair")
    if missing := [n for n in rule.needs if n not in DATA]:
        raise NotApplicable(f"it reads {', '.join(missing)}, for which the check has no example")
    hash(rule)
    want = torch.tensor([_grid(rule, row) for row in range(ROWS)])
    k = torch.arange(LENGTH)[None]
    for offset in range(LENGTH):
        got = rule.allowed(k[:, offset:].T, k, DATA).expand(ROWS, LENGTH - offset, LENGTH)
        if not torch.equal(got, want[:, offset:]):
            row, q, key = (got != want[:, offset:]).nonzero()[0].tolist()
            verb = "sees" if got[row, q, key] else "does not see"
            raise Wrong(f"of {LENGTH} tokens, {offset} of them before, token {q + offset} {verb} token {key}")
    if spec.slot == "window":
        _covers(rule)
    elif rule.pattern is not None:
        meant = torch.ones(LENGTH, LENGTH).bool()
        if not torch.equal(want[0], meant.tril() if rule.pattern == "causal" else meant):
            raise Wrong(f"its pattern is {rule.pattern!r}, but that is not what it allows")


def _grid(rule: Any, row: int) -> list[list[bool]]:
    data = plain.row_of(DATA, rule.needs, row)
    return [[bool(rule.sees(q, k, data)) for k in range(LENGTH)] for q in range(LENGTH)]


def _covers(rule: Any) -> None:
    """Where it says that it hides nothing of so many tokens, it hides nothing."""
    for length in range(1, LENGTH + 1):
        hides = [(q, k) for q in range(length) for k in range(length) if not rule.sees(q, k, {})]
        if rule.covers(length) and hides:
            raise Wrong(f"it says that it covers {length} tokens, but hides token {hides[0][1]} from {hides[0][0]}")
