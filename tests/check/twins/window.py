"""Twins of windows, from their papers, one pair of a query and a key at a time."""

from __future__ import annotations

import numpy as np

from llmlab.check.twins.observers.visibility import LENGTH
from llmlab.twins import Given, twin
from twins import Settings
from twins.mask import pairs

MORE: Settings = {
    "sliding": [({}, {"left": 1})],
    "strided": [({}, {"stride": 1}), ({}, {"stride": 2}), ({}, {"left": 1})],
}
REFUSED: Settings = {
    "sliding": [({}, {"left": 0}), ({}, {"right": -1})],
    "strided": [({}, {"stride": 0}), ({}, {"left": 0})],
}


def outputs(allowed, pattern: int = 0) -> dict[str, np.ndarray]:
    """Outputs of allowed(query, key)."""
    covers = [all(allowed(q, k) for q in range(n) for k in range(n)) for n in range(1, 2 * LENGTH + 1)]
    return {**pairs(lambda b, q, k: allowed(q, k)), "pattern": np.array(pattern), "covers": np.array(covers)}


@twin("window", "full", source="Vaswani et al. 2017, section 3.2.1")
def full(given: Given) -> dict[str, np.ndarray]:
    return outputs(lambda q, k: True, pattern=2)


@twin("window", "sliding", source="Beltagy et al. 2020, section 3.1; the token itself counts, as in Mistral's code")
def sliding(given: Given) -> dict[str, np.ndarray]:
    left, right = given.options["left"], given.options["right"]

    def allowed(q: int, k: int) -> bool:
        return q - k in range(left) if k <= q else right is None or k - q in range(right + 1)

    return outputs(allowed)


@twin("window", "strided", source="Child et al. 2019, section 4.2, both patterns in one head as in GPT-3")
def strided(given: Given) -> dict[str, np.ndarray]:
    stride, left = given.options["stride"], given.options["left"]
    near = range(stride if left is None else left)
    return outputs(lambda q, k: abs(q - k) in near or abs(q - k) in range(0, 2 * LENGTH, stride))
