"""Twins of feed-forwards, from their papers, row by row."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from llmlab.check.twins.observers.ffn import ENDS
from llmlab.twins import Given, twin
from twins import Settings, simple
from twins.roles import roles

PLAIN = ("relu", "gelu", "gelu_tanh", "silu", "relu2")
GATED = ("swiglu", "geglu", "geglu_tanh", "reglu", "glu", "bilinear")
MORE: Settings = {
    name: [({"ffn.bias": True}, {}), ({"ffn.bias": True, "ffn.dropout": 1.0}, {})] for name in (*PLAIN, *GATED)
}
SHAZEER = "Shazeer 2020 (arXiv:2002.05202), equations 5 and 6"


def outputs(
    given: Given, inner: Callable[[Callable[[str], np.ndarray], np.ndarray], np.ndarray]
) -> dict[str, np.ndarray]:
    """Outputs of down(inner(linear)), where linear(name) is what the linear of that name makes of a row."""

    def row(x: np.ndarray, ffn: str, expert: int | None, dropped: bool = False) -> np.ndarray:
        def linear(name: str, x: np.ndarray) -> np.ndarray:
            weight, bias = given.weights[f"{ffn}.{name}.weight"], given.weights.get(f"{ffn}.{name}.bias")
            y = (weight if expert is None else weight[expert]) @ x
            return y if bias is None else y + (bias if expert is None else bias[expert])

        h = inner(lambda name: linear(name, x))
        return linear("down", 0 * h if dropped else h)

    x = given.inputs["x"]
    found = {
        "dense": np.array([row(v, "dense", None) for v in x]),
        "experts": np.array([row(v, "experts", sum(i >= end for end in ENDS)) for i, v in enumerate(x)]),
        "roles": roles(
            [path.removeprefix("dense.") for path in given.weights if path.startswith("dense.")],
            lambda path: "ffn_out" if path.startswith("down") else "ffn_in",
        ),
    }
    if given.sizes.ffn.dropout == 1.0:
        found["training"] = np.array([row(v, "dense", None, dropped=True) for v in x])
    return found


def plain(given: Given) -> dict[str, np.ndarray]:
    return outputs(given, lambda linear: simple.ACTIVATIONS[given.options["act"]](linear("up")))


def gated(given: Given) -> dict[str, np.ndarray]:
    return outputs(given, lambda linear: simple.ACTIVATIONS[given.options["act"]](linear("gate")) * linear("up"))


for name, source in (
    ("relu", "Vaswani et al. 2017, equation 2"),
    ("gelu", "Hendrycks & Gimpel 2016, section 2: x Phi(x)"),
    ("gelu_tanh", "Hendrycks & Gimpel 2016, section 2: by tanh"),
    ("silu", "Hendrycks & Gimpel 2016, section 2: x sigmoid(x)"),
    ("relu2", "So et al. 2021 (Primer), section 4: max(x, 0)^2"),
):
    twin("ffn", name, source=source)(plain)


@twin("ffn", "none", source="its own statement: nothing is added")
def none(given: Given) -> dict[str, np.ndarray]:
    nothing = np.zeros_like(given.inputs["x"])
    return {"dense": nothing, "experts": nothing, "roles": np.zeros(0)}


for name in GATED:
    twin("ffn", name, source=SHAZEER)(gated)
