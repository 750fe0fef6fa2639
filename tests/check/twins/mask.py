"""Twins of masks, from their papers, one pair of a query and a key at a time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from llmlab.check.twins.observers.visibility import LAST, LENGTH, ROWS
from llmlab.twins import Given, twin

Allowed = Callable[[int, int, int], bool]  # (row, query, key)


def pairs(allowed: Allowed) -> dict[str, np.ndarray]:
    whole = np.array([[[allowed(b, q, k) for k in range(LENGTH)] for q in range(LENGTH)] for b in range(ROWS)])
    return {"sees": whole, "whole": whole, "later": whole[:, -LAST:]}


@twin("mask", "causal", source="Vaswani et al. 2017, section 3.2.3")
def causal(given: Given) -> dict[str, np.ndarray]:
    return {**pairs(lambda b, q, k: k in range(q + 1)), "pattern": np.array(1)}


@twin("mask", "bidirectional", source="Devlin et al. 2018, section 3")
def bidirectional(given: Given) -> dict[str, np.ndarray]:
    return {**pairs(lambda b, q, k: True), "pattern": np.array(2)}


@twin("mask", "prefix", source="Raffel et al. 2019, figure 4; Du et al. 2021, figure 2")
def prefix(given: Given) -> dict[str, np.ndarray]:
    lengths = given.inputs["prefix_len"]
    return {**pairs(lambda b, q, k: k in range(q + 1) or k in range(lengths[b])), "pattern": np.array(0)}


@twin("mask", "permutation", source="Yang et al. 2019, equations 3 and 4; a query that nothing precedes sees itself")
def permutation(given: Given) -> dict[str, np.ndarray]:
    rank, asks = given.inputs["rank"], given.inputs["queries"]

    def allowed(b: int, q: int, k: int) -> bool:
        text = [s for s in range(LENGTH) if not asks[b, s]]
        if not asks[b, q]:
            return k in text and bool(rank[b, k] <= rank[b, q])
        before = [s for s in text if rank[b, s] < rank[b, q]]
        return k in (before or [q])

    return {**pairs(allowed), "pattern": np.array(0)}


@twin("mask", "compensated", source="Song et al. 2020, section 2.2 and figure 2")
def compensated(given: Given) -> dict[str, np.ndarray]:
    rank, asks, stands = (given.inputs[name] for name in ("rank", "queries", "placeholders"))

    def allowed(b: int, q: int, k: int) -> bool:
        if asks[b, k]:
            return False
        if asks[b, q]:  # x_{z<t}, and the masks M_{z>=t}
            return bool(rank[b, k] >= rank[b, q] if stands[b, k] else rank[b, k] < rank[b, q])
        if stands[b, q]:  # x_{z<=c}, and all masks M_{z>c}
            return bool(rank[b, k] >= 1 if stands[b, k] else rank[b, k] <= 0)
        return bool(rank[b, k] > rank[b, q] if stands[b, k] else rank[b, k] <= rank[b, q])

    return {**pairs(allowed), "pattern": np.array(0)}
