"""Losses that twins of objectives share, and bounds of means over many draws."""

from __future__ import annotations

import numpy as np

from llmlab.check.twins.observers.scored import BALANCE
from llmlab.twins import CHANCE, Given
from twins.norm import bfloat16

Arrays = dict[str, np.ndarray]


def expected(name: str, mean: np.ndarray | float, n: float, most: np.ndarray | float | None = None) -> Arrays:
    """A mean of n draws, with its bound. most: the variance of a draw, p (1 - p) if None. Without variance it is exact."""
    mean = np.asarray(mean, np.float64)
    variance = mean * (1 - mean) if most is None else np.asarray(most)
    bound = np.where(variance > 1e-12, 5 * np.sqrt(np.maximum(variance, 0) / n) + 5 / n, 1e-9)
    return {name: mean, name + CHANCE: bound}


# ---------------------------------------------------------------- losses


def log_softmax(x: np.ndarray) -> np.ndarray:
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def cross_entropy(given: Given, role: str, accuracy: bool) -> Arrays:
    """-log p of each label, summed; its mean's gradient is (p - 1 at the label) / number of labels."""
    made: Arrays = {}
    for batch in (b for b in ("batch", "none") if f"{b}/labels" in given.inputs):
        labels, scores = given.inputs[f"{batch}/labels"], given.inputs[f"{batch}/scores/{role}"]
        slope, nll, count, right = np.zeros_like(scores), 0.0, 0, 0
        for at in np.ndindex(labels.shape):
            if labels[at] == -100:
                continue
            log_p = log_softmax(scores[at])
            nll, count, right = nll - log_p[labels[at]], count + 1, right + (scores[at].argmax() == labels[at])
            slope[at] = np.exp(log_p)
            slope[at][labels[at]] -= 1
        made |= {
            f"{batch}/loss/nll": np.array([nll, count]),
            f"{batch}/mean": np.array(nll / max(count, 1) + BALANCE),
            f"{batch}/slope/{role}": slope / max(count, 1),
        }
        if batch == "batch":
            terms = [
                log_softmax(bfloat16(scores[at]))[labels[at]] for at in zip(*np.nonzero(labels != -100), strict=True)
            ]
            made["half/mean"] = np.array(BALANCE - sum(terms) / max(count, 1))
        if accuracy:
            made[f"{batch}/log/accuracy"] = np.array([right, count])
    return made
