"""Twins of blocks, from their papers' formulas."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from llmlab.twins import Given, twin
from twins import Settings, simple

SIZES = ({"layer": 1}, {"dropout": 1.0}, {"n_layers": 5}, {"norm_eps": 0.1})
MORE: Settings = {
    name: [(sizes, {}) for sizes in SIZES]
    for name in ("pre", "post", "sandwich", "parallel", "deepnorm", "reordered", "scaled_pre", "residual")
}
MORE["pre"] += [
    ({"layer": 1}, {"bare_start": True}),
    ({"dropout": 1.0}, {"normed_residual": True}),
    ({}, {"normed_residual": True, "bare_start": True}),
]
MORE["residual"] += [({"layer": 1}, {"from_start": False}), ({"dropout": 1.0}, {"from_start": False})]
MORE["parallel"] += [({"dropout": 1.0}, {"norms": 2}), ({"layer": 1}, {"norms": 2})]
NAMES = ("attention", "cross_attention", "ffn")


@dataclass
class Wire:
    """The functions that a block wires. `f` calls a sublayer and keeps the loss that it reports; `dropped`: dropout gives 0."""

    given: Given
    block: str
    names: tuple[str, ...]
    sublayers: tuple[str, ...]
    dropped: bool = False
    losses: list[float] = field(default_factory=list)

    def f(self, name: str, x: np.ndarray) -> np.ndarray:
        if name == "attention":
            y = np.stack([x[:, : t + 1].mean(1) for t in range(x.shape[1])], 1)
        elif name == "cross_attention":
            y = np.cos(x)
        else:
            self.losses.append(float(x.mean()))
            y = x * (x - 1)
        return y

    def drop(self, y: np.ndarray) -> np.ndarray:
        return 0 * y if self.dropped else y

    def norm(self, name: str, x: np.ndarray) -> np.ndarray:
        return simple.norm(self.given, f"{self.block}.{name}", x)


Formula = Callable[[Wire, np.ndarray], np.ndarray]


def in_turn(step: Callable[[Wire, str, np.ndarray], np.ndarray]) -> Formula:
    """The formula of one sublayer, for each in the order of the names."""

    def formula(wire: Wire, x: np.ndarray) -> np.ndarray:
        for name in wire.names:
            if name in wire.sublayers:
                x = step(wire, name, x)
        return x

    return formula


def outputs(given: Given, formula: Formula, norms: int, final_norm: bool, keeps_input: bool = False) -> dict:
    """Outputs of a block that computes this formula. norms: how many a block with three sublayers has."""
    x = given.inputs["x"]
    found = {
        "parameters": np.array(norms * 2.0 * given.sizes.dim),
        "final_norm": np.array(float(final_norm)),
        "keeps_input": np.array(float(keeps_input)),
        "all.tokens": np.array([1.0, 2.0, 3.0]),
    }
    for key, block, names, sublayers in (
        ("all", "all", NAMES, NAMES),
        ("turned", "turned", NAMES[::-1], NAMES),
        ("two", "two", ("attention", "ffn"), ("attention", "ffn")),
        ("left_out", "all", NAMES, ("attention", "ffn")),
        ("attention_alone", "all", NAMES, ("attention",)),
    ):
        wire = Wire(given, block, names, sublayers)
        y = formula(wire, x)
        found[key] = y if key == "all" else y[0, -1]
        if key != "two":
            found[f"{key}.loss"] = np.array(wire.losses[0] if wire.losses else -1.0)
    if given.sizes.dropout == 1.0:
        found["training"] = formula(Wire(given, "all", NAMES, NAMES, dropped=True), x)[0, -1]
    return found


@twin(
    "block",
    "pre",
    source="Xiong et al. 2020, table 1; Megatron-LM's apply_residual_connection_post_layernorm; ModernBERT",
)
def pre(given: Given) -> dict[str, np.ndarray]:
    bare = given.options["bare_start"] and given.sizes.layer == 0

    def step(wire: Wire, name: str, x: np.ndarray) -> np.ndarray:
        normed = x if bare and name == wire.names[0] else wire.norm(f"{name}_norm", x)
        return (normed if given.options["normed_residual"] else x) + wire.drop(wire.f(name, normed))

    return outputs(given, in_turn(step), 2 if bare else 3, True)


@twin("block", "scaled_pre", source="THUDM's modeling_chatglm.py, GLMBlock: alpha = (2 num_layers)^0.5")
def scaled_pre(given: Given) -> dict[str, np.ndarray]:
    def step(wire: Wire, name: str, x: np.ndarray) -> np.ndarray:
        alpha = (len(wire.names) * given.sizes.n_layers) ** given.options["exponent"]
        normed = wire.norm(f"{name}_norm", x)
        return alpha * normed + wire.drop(wire.f(name, normed))

    return outputs(given, in_turn(step), 3, True, keeps_input=True)


@twin("block", "residual", source="He et al. 2015, equation 1; Peters et al. 2018, section 3.4, without from_start")
def residual(given: Given) -> dict[str, np.ndarray]:
    def step(wire: Wire, name: str, x: np.ndarray) -> np.ndarray:
        replaces = not given.options["from_start"] and given.sizes.layer == 0 and name == wire.names[0]
        return (0 if replaces else x) + wire.drop(wire.f(name, x))

    return outputs(given, in_turn(step), 0, False)


@twin("block", "post", source="Vaswani et al. 2017, section 3.1: LayerNorm(x + Sublayer(x))")
def post(given: Given) -> dict[str, np.ndarray]:
    def step(wire: Wire, name: str, x: np.ndarray) -> np.ndarray:
        return wire.norm(f"{name}_norm", x + wire.drop(wire.f(name, x)))

    return outputs(given, in_turn(step), 3, False)


@twin("block", "sandwich", source="Ding et al. 2021 (CogView), figure 3: x + LN(f(LN(x)))")
def sandwich(given: Given) -> dict[str, np.ndarray]:
    def step(wire: Wire, name: str, x: np.ndarray) -> np.ndarray:
        return x + wire.drop(wire.norm(f"{name}_post_norm", wire.f(name, wire.norm(f"{name}_norm", x))))

    return outputs(given, in_turn(step), 6, True)


@twin("block", "reordered", source="OLMo et al. 2024 (OLMo 2), equations 1 and 2: x + RMSNorm(f(x))")
def reordered(given: Given) -> dict[str, np.ndarray]:
    def step(wire: Wire, name: str, x: np.ndarray) -> np.ndarray:
        return x + wire.drop(wire.norm(f"{name}_norm", wire.f(name, x)))

    return outputs(given, in_turn(step), 3, True)


@twin(
    "block",
    "deepnorm",
    source="Wang et al. 2022 (DeepNet), figure 2: LayerNorm(alpha x + f(x)), decoder-only alpha = (2 N)^1/4",
)
def deepnorm(given: Given) -> dict[str, np.ndarray]:
    def step(wire: Wire, name: str, x: np.ndarray) -> np.ndarray:
        alpha = (len(wire.names) * given.sizes.n_layers) ** given.options["exponent"]
        return wire.norm(f"{name}_norm", alpha * x + wire.drop(wire.f(name, x)))

    return outputs(given, in_turn(step), 3, False)


@twin("block", "parallel", source="Chowdhery et al. 2022 (PaLM), section 2; two norms as in GPT-NeoX-20B, section 2.1")
def parallel(given: Given) -> dict[str, np.ndarray]:
    def formula(wire: Wire, x: np.ndarray) -> np.ndarray:
        y = x
        for name in wire.sublayers:
            norm = "norm" if given.options["norms"] == 1 else f"{name}_norm"
            y = y + wire.drop(wire.f(name, wire.norm(norm, x)))
        return y

    return outputs(given, formula, 1 if given.options["norms"] == 1 else 3, True)
