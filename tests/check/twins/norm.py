"""Twins of norms, from their papers."""

from __future__ import annotations

import numpy as np

from llmlab.twins import Given, twin


@twin("norm", "layernorm", source="Ba et al. 2016, equations 3 and 4")
def layernorm(given: Given) -> dict[str, np.ndarray]:
    def normed(x):
        mean = x.mean(-1, keepdims=True)
        y = (x - mean) / np.sqrt(((x - mean) ** 2).mean(-1, keepdims=True) + given.sizes.norm_eps)
        return y * given.weights.get("weight", 1.0) + given.weights.get("bias", 0.0)

    return {key: normed(x) for key, x in given.inputs.items()}


@twin("norm", "rmsnorm", source="Zhang and Sennrich 2019, equation 4; eps under the root as in LLaMA")
def rmsnorm(given: Given) -> dict[str, np.ndarray]:
    def normed(x):
        scale = given.options["offset"] + given.weights["weight"]
        return scale * x / np.sqrt((x**2).mean(-1, keepdims=True) + given.sizes.norm_eps)

    return {key: normed(x) for key, x in given.inputs.items()}
