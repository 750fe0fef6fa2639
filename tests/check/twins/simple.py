"""The norm that observers give to parts, linears and activations in NumPy."""

from __future__ import annotations

import math

import numpy as np

from llmlab.twins import Given


def norm(given: Given, path: str, x: np.ndarray) -> np.ndarray:
    weight, bias = given.weights[f"{path}.weight"], given.weights[f"{path}.bias"]
    return weight * x / np.sqrt((x**2).mean(-1, keepdims=True) + given.sizes.norm_eps) + bias


def linear(given: Given, path: str, x: np.ndarray) -> np.ndarray:
    """x W^T, plus a bias where there is one."""
    return x @ given.weights[f"{path}.weight"].T + given.weights.get(f"{path}.bias", 0.0)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


ACTIVATIONS = {
    "none": lambda x: x,
    "relu": lambda x: np.where(x > 0, x, 0.0),
    "relu2": lambda x: np.where(x > 0, x * x, 0.0),  # Primer (So et al. 2021), section 4
    "tanh": lambda x: (np.exp(x) - np.exp(-x)) / (np.exp(x) + np.exp(-x)),
    "sigmoid": sigmoid,
    "silu": lambda x: x * sigmoid(x),  # Hendrycks & Gimpel 2016, section 2
    "gelu": lambda x: x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2))),  # the same, equation 1
    "gelu_tanh": lambda x: (
        0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    ),  # the same, equation 2
}
