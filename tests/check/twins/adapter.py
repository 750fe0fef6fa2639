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


@twin("adapter", "ia3", source="Liu et al. 2022, arXiv:2205.05638, section 3.3")
def ia3(given: Given) -> Arrays:
    x, w, bias = given.inputs["x"], given.inputs["weight"], given.inputs["bias"]
    targets, c = given.options["targets"], given.inputs["cotangent"]
    first = next(role for role in ROLES if role in targets)
    reads = first == "ffn_out"  # of a feed-forward what its second linear reads, of others what they give
    name = "read" if reads else "given"
    gain = 1 + given.weights[name]
    whole = w * gain if reads else gain[:, None] * w
    shift = bias if reads else gain * bias
    own = (c @ w) * x if reads else c * (x @ w.T + bias)
    one = whole @ x[0, 0] + shift
    return {
        "adapted": np.array([float(role in targets) for role in ROLES]),
        "plain": x @ whole.T,
        "biased": x @ whole.T + shift,
        "merged": whole,
        "slope/x": c @ whole,
        f"slope/{name}": own.sum((0, 1)),
        "begins": np.array([[0.0, 0.0]]),
        "dropped/mean": one,  # nothing is dropped
        "dropped/square": one**2,
    }


REFUSED: dict[str, list[Any]] = {
    "lora": [
        ({}, {"rank": 0}),
        ({}, {"dropout": -0.1}),
        ({}, {"dropout": 1.0}),
        ({}, {"targets": []}),
        ({}, {"targets": ["router"]}),
    ],
    "ia3": [({}, {"targets": []}), ({}, {"targets": ["router"]})],
}
MORE: dict[str, list[Any]] = {
    "lora": [({}, {"targets": ["q", "k", "v", "out", "ffn_in", "ffn_out"], "rank": 7})],
    "ia3": [({}, {"targets": ["ffn_out"]}), ({}, {"targets": ["ffn_in", "v"]})],
    "dora": [({}, {"dropout": 0.5, "rank": 3, "alpha": 2.0, "rank_stabilised": True})],
}
