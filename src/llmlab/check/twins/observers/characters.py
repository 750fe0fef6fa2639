"""Observer of embeddings that make vectors of characters (`table` is False), with a position that looks up given vectors.

Inputs: `ids` (B, T); `spelled` (V, longest text), the UTF-8 bytes of the text of each id, -1 behind it: some are empty, as of
special tokens, and some longer than is read; and `places` (P, D) by position id.

Outputs: `alone` (B, T, D) without positions; `placed`, whose first token is at the position OFFSET; `dropped`, in training mode
with sizes.dropout 1; and `learns`, by the path of each parameter in alphabetical order, 1 if `placed` has a gradient for it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from llmlab import registry
from llmlab.check.twins.observers.observed import Observed, arrays, build, given, sizes_of, uniform
from llmlab.check.twins.settings import Setting
from llmlab.slots import Context, Position

LENGTH, OFFSET = 6, 2
TEXTS = ("", "a", " the", "\u00e9t\u00e9", "characters of a long token", "b", "", " them")


def text(i: int) -> str:
    """The text of an id."""
    return TEXTS[i % len(TEXTS)]


def observe(setting: Setting, places: type[Position]) -> Observed:
    sizes = sizes_of(setting)
    table: Any = places(uniform("places", OFFSET + LENGTH, sizes.dim))  # type: ignore[call-arg]
    norm = registry.load("norm", "layernorm", {})
    part, alone, dropped = (
        build(setting, s, p, norm, None)
        for s, p in ((sizes, table), (sizes, Position()), (sizes.but(dropout=1.0), table))
    )
    for each in (part, alone, dropped):
        each.spell(text)
    spelled = [list(text(i).encode()) for i in range(sizes.vocab_size)]
    most = max(map(len, spelled))
    inputs = {
        "ids": torch.tensor([[5, 60, 1, 7, 5, 0], [3, 4, 2, 2, 59, 8]]),
        "spelled": torch.from_numpy(np.array([row + [-1] * (most - len(row)) for row in spelled])),
        "places": table.vectors,
    }
    ids = inputs["ids"]
    ctx = Context(LENGTH, OFFSET, ids=ids)
    placed = part(ids, ctx)
    placed.pow(2).sum().backward()
    with torch.no_grad():
        outputs = {
            "alone": alone(ids, Context(LENGTH, ids=ids)),
            "placed": placed,
            "dropped": dropped.train()(ids, ctx),
            "learns": torch.tensor(
                [p.grad is not None and bool(p.grad.any()) for _, p in sorted(part.named_parameters())]
            ),
        }
    return Observed(given(setting, inputs, part, sizes), arrays(outputs))
