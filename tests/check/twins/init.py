"""Twins of inits: standard deviations of first values by role, from the papers; all values are normal."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist

import numpy as np

from llmlab.check.twins.observers.init import EXPERTS, QUANTILES, SHAPE
from llmlab.twins import Given, twin
from twins import Settings

NORMAL = [
    ({"n_layers": 5}, {}),
    ({"n_layers": 5}, {"residual_scale": False, "embed_std": 0.5}),
    *(({}, {key: 0.0}) for key in ("std", "embed_std")),
]
MORE: Settings = {
    "normal": NORMAL,
    "gpt2": NORMAL,
    "deepnorm": [
        ({"n_layers": 5}, {}),
        ({"n_layers": 5}, {"depth": 3.0, "exponent": 1.0}),
        ({}, {"depth": 0.5}),
        ({}, {"embed_std": 0.0}),
    ],
    "t5": [
        ({"attention.scale": 1.0, "head_dim": 4}, {}),
        ({"attention.scale": 0.5}, {}),
        ({"tie_embeddings": True}, {}),
        ({"tie_embeddings": True, "logit_scale": 0.2}, {"factor": 3.0}),
        ({"tie_embeddings": True, "gain": 5.0}, {}),
        ({"gain": 5.0, "dim": 96}, {}),
    ],
}
BELOW_0 = [({}, {key: -0.1}) for key in ("std", "embed_std")]
REFUSED: Settings = {
    "normal": BELOW_0,
    "gpt2": BELOW_0,
    "deepnorm": [({}, {"depth": -1.0}), ({}, {"depth": 0.0}), ({}, {"embed_std": -0.1})],
}
ROLES = ("embed", "position", "q", "k", "v", "out", "ffn_in", "ffn_out", "router", "head", "other")


def outputs(std: Callable[[str, int, int], float], logit_variance: float) -> dict[str, np.ndarray]:
    """Quantiles of each role's values, which are normal with the deviation std(role, outputs, inputs)."""
    shapes = {**dict.fromkeys(ROLES, SHAPE), "experts": EXPERTS[1:]}
    found = {"bias": np.zeros(len(QUANTILES)), "logit_variance": np.array(logit_variance)}
    for name, shape in shapes.items():
        spread = std("ffn_in" if name == "experts" else name, *shape)
        found[name] = np.array([spread * NormalDist().inv_cdf(q) for q in QUANTILES])
    return found


@twin("init", "gpt2", source="Radford et al. 2019, section 2.3: N(0, 0.02^2), 1 / sqrt(N) of it for N residual layers")
@twin("init", "normal", source="Radford et al. 2019, section 2.3: N(0, std^2), 1 / sqrt(N) of it for N residual layers")
def normal(given: Given) -> dict[str, np.ndarray]:
    base, tables = given.options["std"], given.options["embed_std"]
    residual_layers = 2 * given.sizes.n_layers if given.options["residual_scale"] else 1

    def std(role: str, n_out: int, n_in: int) -> float:
        if role in ("embed", "position"):
            return base if tables is None else tables
        return base / math.sqrt(residual_layers) if role in ("out", "ffn_out") else base

    return outputs(std, 0.0)


@twin(
    "init",
    "deepnorm",
    source="Wang et al. 2022 (DeepNet), figure 2: xavier_normal_ with gain beta = (8 N)^-1/4 on v, out, ffn",
)
def deepnorm(given: Given) -> dict[str, np.ndarray]:
    beta = 1 / (given.options["depth"] * given.sizes.n_layers) ** given.options["exponent"]

    def std(role: str, n_out: int, n_in: int) -> float:
        if role in ("embed", "position"):
            return given.options["embed_std"]
        return (beta if role in ("v", "out", "ffn_in", "ffn_out") else 1.0) * math.sqrt(2 / (n_in + n_out))

    return outputs(std, 1.0)


@twin(
    "init",
    "t5",
    source="transformers 5.24 modeling_t5.py, _init_weights; heads and tables that are read as heads by fan-in",
)
def t5(given: Given) -> dict[str, np.ndarray]:
    factor, sizes = given.options["factor"], given.sizes

    def std(role: str, n_out: int, n_in: int) -> float:
        if role == "embed":
            read_as_it_is = sizes.tie_embeddings and sizes.logit_scale is None
            return factor / (math.sqrt(n_in) if read_as_it_is else 1.0) / sizes.gain
        if role == "position":
            return factor / math.sqrt(sizes.dim)
        if role == "q" and sizes.attention.scale == 1.0:
            return factor / math.sqrt(n_in * sizes.head_dim)
        return factor / math.sqrt(n_in)

    return outputs(std, 1.0)
