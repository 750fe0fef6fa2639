"""Twins of norms, from their papers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from llmlab.twins import CHANCE, Given, twin

NEAR = 1e-5  # float32 is off by less: a value so near to where bfloat16 rounds the other way may be rounded either way


def bfloat16(x: np.ndarray) -> np.ndarray:
    """The nearest numbers of 8 binary digits."""
    digits, power = np.frexp(x)
    return np.ldexp(np.rint(digits * 256) / 256, power)


def rounded(of_half: Callable[[float, float], np.ndarray]) -> dict[str, np.ndarray]:
    """of_half(one, two): what comes out where what is rounded first is `one` times as much, and what is rounded last `two`."""
    value = of_half(1, 1)
    either = [of_half(1 + a * NEAR, 1 + b * NEAR) for a in (-1, 1) for b in (-1, 1)]
    return {"half": value, "half" + CHANCE: np.abs(np.array(either) - value).max(0) + 1e-9}


@twin("norm", "layernorm", source="Ba et al. 2016, equations 3 and 4")
def layernorm(given: Given) -> dict[str, np.ndarray]:
    def normed(x):
        mean = x.mean(-1, keepdims=True)
        y = (x - mean) / np.sqrt(((x - mean) ** 2).mean(-1, keepdims=True) + given.sizes.norm_eps)
        return y * given.weights.get("weight", 1.0) + given.weights.get("bias", 0.0)

    half = bfloat16(given.inputs["x"][0, :2])
    return {
        **{key: normed(x) for key, x in given.inputs.items()},
        **rounded(lambda one, two: bfloat16(two * normed(half))),
    }


@twin(
    "norm", "rmsnorm", source="Zhang and Sennrich 2019, equation 4; eps under the root and roundings as in LLaMA, Gemma"
)
def rmsnorm(given: Given) -> dict[str, np.ndarray]:
    offset = given.options["offset"]
    scale = offset + given.weights["weight"]

    def normed(x):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + given.sizes.norm_eps)

    def in_half(one: float, two: float) -> np.ndarray:
        y = normed(bfloat16(given.inputs["x"][0, :2]))
        return bfloat16(two * scale * (y if offset else bfloat16(one * y)))

    return {**{key: scale * normed(x) for key, x in given.inputs.items()}, **rounded(in_half)}
