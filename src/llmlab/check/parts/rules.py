"""Checks of masks and windows: `allowed`, of all pairs at once, against `sees`, of one pair in plain Python."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Protocol, get_args

import torch

from llmlab import registry
from llmlab.check import reference_attention
from llmlab.check.parts.fixtures import LENGTH, tested_part
from llmlab.check.parts.kernel import DATA
from llmlab.check.reference_attention import RowData
from llmlab.check.subject import CheckFailed, NotApplicable, Subject
from llmlab.config.spec import PartSpec
from llmlab.slots import Mask, Window

ROWS = 2


class Rule(Mask, Window, Protocol):
    """A mask or a window with a `sees`; of the attributes of either it has its own slot's."""

    def sees(self, q: int, k: int, row: RowData) -> bool: ...


def pairs(subject: Subject) -> None:
    """A mask or window allows the pairs that it `sees`, at any offset, and its `pattern` and `covers` agree with them."""
    spec = tested_part(subject, "mask", "window")
    rules = list(variants(spec))
    if not hasattr(rules[0][1], "sees"):
        raise NotApplicable(f"{spec.slot}={spec.name} has no `sees` that says the same of one pair")
    if missing := [n for n in rules[0][1].needs if n not in DATA]:
        raise NotApplicable(f"it reads {', '.join(missing)}, for which the check has no example")
    for variant, rule in rules:
        try:
            _check_pairs(rule, spec.slot)
        except CheckFailed as e:
            raise CheckFailed(f"{variant}: {e}") from None
    if len({rule for _, rule in rules}) != len(rules):
        # A stack lowers one mask for all layers whose windows are equal.
        raise CheckFailed("with other options it is equal to itself, so that layers would share what is seen")


def variants(spec: PartSpec) -> Iterator[tuple[PartSpec, Rule]]:
    """The part with its small options, and with some other values of each option that is an integer."""
    yield spec, spec.factory()()
    for key, option in registry.index()[spec.slot, spec.name].options.items():
        for value in (1, 2, 4) if int in (option.type, *get_args(option.type)) else ():
            variant = PartSpec(spec.slot, spec.name, {**spec.options, key: value})
            if value != spec.options[key]:
                # The part may refuse a value, as one that makes no sense beside its other options.
                with suppress(ValueError):
                    yield variant, variant.factory()()


def _check_pairs(rule: Rule, slot: str) -> None:
    want = torch.tensor([_pairs_one_by_one(rule, row) for row in range(ROWS)])
    k = torch.arange(LENGTH)[None]
    for offset in range(LENGTH):
        got = rule.allowed(k[:, offset:].T, k, DATA).expand(ROWS, LENGTH - offset, LENGTH)
        if not torch.equal(got, want[:, offset:]):
            row, q, key = (got != want[:, offset:]).nonzero()[0].tolist()
            verb = "sees" if got[row, q, key] else "does not see"
            raise CheckFailed(f"of {LENGTH} tokens, {offset} of them before, token {q + offset} {verb} token {key}")
    if slot == "window":
        _check_covers(rule)
    elif rule.pattern is not None:
        full = torch.ones(LENGTH, LENGTH).bool()
        if not torch.equal(want[0], full.tril() if rule.pattern == "causal" else full):
            raise CheckFailed(f"its pattern is {rule.pattern!r}, but that is not what it allows")


def _pairs_one_by_one(rule: Rule, row: int) -> list[list[bool]]:
    data = reference_attention.row_data(DATA, rule.needs, row)
    return [[bool(rule.sees(q, k, data)) for k in range(LENGTH)] for q in range(LENGTH)]


def _check_covers(rule: Rule) -> None:
    """CheckFailed if `covers(length)` is True though a pair among that many tokens is hidden."""
    for length in range(1, LENGTH + 1):
        hides = [(q, k) for q in range(length) for k in range(length) if not rule.sees(q, k, {})]
        if rule.covers(length) and hides:
            raise CheckFailed(
                f"it says that it covers {length} tokens, but hides token {hides[0][1]} from {hides[0][0]}"
            )
