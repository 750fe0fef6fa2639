"""Twins of adapters, from their papers, in whole matrices."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np

from llmlab.check.twins.observers.adapter import ROLES
from llmlab.twins import Given, twin
from twins.objective.losses import expected

Arrays = dict[str, np.ndarray]


def low_rank(given: Given) -> Arrays:
    o, x, w, bias = given.options, given.inputs["x"], given.inputs["weight"], given.inputs["bias"]
    a, b = given.weights["a.weight"], given.weights["b.weight"]
    scale = o["alpha"] / (np.sqrt(o["rank"]) if o["rank_stabilised"] else o["rank"])
    updated = w + scale * b @ a
    if o["decomposed"]:  # equation 5: m V / |V|, of which |V| is a constant to the gradient (section 4.3)
        lengths = np.sqrt((updated**2).sum(1))
        gain = (np.sqrt((w**2).sum(1)) + given.weights["magnitude"]) / lengths
    else:
        gain = np.ones(len(w))
    merged = gain[:, None] * updated
    c = given.inputs["cotangent"]
    pulled = c * gain
    made: Arrays = {
        "adapted": np.array([float(role in o["targets"]) for role in ROLES]),
        "plain": x @ merged.T,
        "biased": x @ merged.T + bias,
        "merged": merged,
        "slope/x": c @ merged,
        "slope/a.weight": scale * np.einsum("bto,or,bti->ri", pulled, b, x),
        "slope/b.weight": scale * np.einsum("bto,bti,ri->or", pulled, x, a),
    }
    begins = [[x.shape[-1] ** -0.5, 0.0], [0.0, 0.0]]
    if o["decomposed"]:
        made["slope/magnitude"] = (c * (x @ updated.T)).sum((0, 1)) / lengths
        begins.append([0.0, 0.0])
    made["begins"] = np.array(begins)
    # Every way to drop inputs of the update, by its chance. As PEFT: of dora the whole of what the update changes sees it.
    p, one = o["dropout"], x[0, 0]
    outs, chances = [], []
    for kept in product((0.0, 1.0), repeat=len(one)):
        seen = one * kept / (1 - p)
        outs.append(w @ one + bias + (gain - 1) * (w @ seen) + gain * scale * (b @ (a @ seen)))
        chances.append(np.prod([1 - p if k else p for k in kept]))
    ways, share = np.array(outs), np.array(chances)[:, None]
    for name, value in (("mean", ways), ("square", ways**2)):
        mean = (share * value).sum(0)
        variance = (share * (value - mean) ** 2).sum(0)
        made |= expected(
            f"dropped/{name}", mean, float(given.inputs["draws"]), np.where(variance > 1e-9, variance, 1e-10)
        )
    return made


@twin(
    "adapter",
    "lora",
    source="Hu et al. 2021, arXiv:2106.09685, equation 3; rank-stabilised: arXiv:2312.03732, section 3",
)
def lora(given: Given) -> Arrays:
    return low_rank(given)


@twin(
    "adapter",
    "dora",
    source="Liu et al. 2024, arXiv:2402.09353, equations 5 and 11; dropout: PEFT 0.21.2 tuners/lora/dora.py",
)
def dora(given: Given) -> Arrays:
    return low_rank(given)


REFUSED: dict[str, list[Any]] = {
    "lora": [
        ({}, {"rank": 0}),
        ({}, {"dropout": -0.1}),
        ({}, {"dropout": 1.0}),
        ({}, {"targets": []}),
        ({}, {"targets": ["router"]}),
    ],
}
MORE: dict[str, list[Any]] = {
    "lora": [({}, {"targets": ["q", "k", "v", "out", "ffn_in", "ffn_out"], "rank": 7})],
    "dora": [({}, {"dropout": 0.5, "rank": 3, "alpha": 2.0, "rank_stabilised": True})],
}
