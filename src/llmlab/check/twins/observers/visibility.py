"""Observers of masks and windows: the pairs of a query and a key that they allow, in two rows of LENGTH tokens.

Inputs: `prefix_len` (B,), `rank`, `queries` and `placeholders` (B, S), the data that a mask may need.

Outputs: `whole` (B, S, S), 1 for each pair that is allowed; `later` (B, T, S), the same if only the last T tokens are queries;
`sees` (B, S, S), what the method `sees` says of each pair, if the part has it; `pattern`, 0 for none, 1 for causal and 2 for
full. Of a window also `covers` (2 LENGTH,), 1 for each length 1, 2 ... of a text in which it hides nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from llmlab.check.subject import NotApplicable
from llmlab.check.twins.observers.observed import Observed, arrays, build, given
from llmlab.check.twins.settings import Setting

ROWS, LENGTH, LAST = 2, 9, 3
PATTERNS = (None, "causal", "full")


def data() -> dict[str, Tensor]:
    """Data that masks need: in row 0 text stands before all queries, in row 1 before the second only."""
    return {
        "prefix_len": torch.tensor([4, 0]),
        "rank": torch.tensor([[0, 2, 0, 1, 0, 3, 1, 2, 3], [2, 4, 2, 3, 5, 4, 1, 5, 2]]),
        "queries": torch.tensor([[0] * 6 + [1] * 3] * ROWS).bool(),
        "placeholders": torch.tensor([[0] * 4 + [1] * 2 + [0] * 3] * ROWS).bool(),
    }


def mask(setting: Setting) -> Observed:
    part, inputs = build(setting), data()
    return Observed(given(setting, inputs), arrays(_pairs(part, inputs)))


def window(setting: Setting) -> Observed:
    part, inputs = build(setting), data()
    covers = torch.tensor([part.covers(length) for length in range(1, 2 * LENGTH + 1)])
    return Observed(given(setting, inputs), arrays({**_pairs(part, inputs), "covers": covers}))


def _pairs(part: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    if unknown := [name for name in part.needs if name not in inputs]:
        raise NotApplicable(f"it reads {', '.join(unknown)}, for which there is no example")
    places = torch.arange(LENGTH)
    whole, later = (part.allowed(q[:, None], places[None], inputs) for q in (places, places[-LAST:]))
    rows = [{name: value[row].tolist() for name, value in inputs.items()} for row in range(ROWS)]
    every = range(LENGTH)
    sees = [[[part.sees(q, k, row) for k in every] for q in every] for row in rows] if hasattr(part, "sees") else None
    return {
        **({} if sees is None else {"sees": torch.tensor(sees)}),
        "whole": whole.expand(ROWS, LENGTH, LENGTH),
        "later": later.expand(ROWS, LAST, LENGTH),
        "pattern": torch.tensor(PATTERNS.index(part.pattern)),
    }
