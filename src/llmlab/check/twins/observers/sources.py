"""Statistics of the sources that noise makes of a text, of which a decoder writes all or some."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from llmlab.check.twins.observers.texts import Text
    from llmlab.slots import Objective

Arrays = dict[str, np.ndarray]
LEFT = (30, 31, 20, 32, 21, 33, 34)  # ids of the text that is noised: three sentences, two of which an end closes
REPEATED = (30, 31, 20, 31, 32, 33, 21, 31, 32, 20, 30, 34, 22, 35)  # five sentences, which share tokens


def of_source(source: np.ndarray, tokens: np.ndarray, mask: int) -> Arrays:
    """Statistics of one source of a text of n different tokens, named below."""
    n = len(tokens)
    place = {int(token): i for i, token in enumerate(tokens)}
    known = [place[t] if t in place else n if t == mask else n + 1 for t in source.tolist()]
    some = [i for i in known if i < n]
    shown, before, filled = np.zeros(n), np.zeros((n, n)), np.zeros(n)
    np.add.at(shown, some, 1)
    for a, b, c in zip(known, known[1:], known[2:], strict=False):
        if b == n and a < c < n:
            filled[c - a - 1] += 1
    for at, b in enumerate(some):
        before[some[:at], b] += 1
    first = np.eye(n + 2)[known[0]]
    return {
        "shown": shown,
        "first": first,
        "before": before,
        "filled": filled,
        "masks": np.eye(n + 1)[known.count(n)],
        "lengths": np.array(float(len(source))),
    }


def noised(objective: Objective, name: str, text: Text, special: Mapping[str, int]) -> Arrays:
    """Outputs where a text of different tokens is noised: means over the draws.

    `shown/` how often each token is in the source; `first/` with which it begins (in the end the mask and eos); `before/` which
    come before each other; `filled/` how many tokens of the text are behind
    a mask between two others; `masks/` how many there are; `lengths/` tokens of the source.
    """
    from llmlab.check.twins.observers.texts import draws

    own = text.tokens[:-2]
    found = [of_source(f["source_ids"], own, special["mask"]) for f in draws(objective, text)]
    return {f"{key}/{name}": np.mean([f[key] for f in found], axis=0) for key in found[0]}


def gaps(objective: Objective, name: str, text: Text, special: Mapping[str, int]) -> Arrays:
    """Outputs where whole sentences are left out: `gaps/` how often each mask stands at a place of the source."""
    from llmlab.check.twins.observers.texts import draws

    masks = np.zeros(len(text.tokens))
    found = draws(objective, text, 300)
    for each in found:
        masks[: len(each["source_ids"])] += each["source_ids"] == special["mask"]
    return {f"gaps/{name}": masks / len(found)}
