"""Policies at which methods of alignment end, in cases so small that these are known: a method says which is its own
(`Objective.optimum`), and `llmlab oracle` trains it and compares.

N answers to one prompt, which are all that there are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


@dataclass(frozen=True)
class Case:
    """Rewards (N,) of answers of `length` tokens, and by its role the log-probabilities (N,) that a model which does not
    learn gives them.

    Of preferences: both answers are drawn uniformly, and r is preferred to s with probability sigmoid(r - s), as Bradley
    and Terry have it.
    """

    rewards: np.ndarray
    log_p: Mapping[str, np.ndarray]
    length: int

    @property
    def preferred(self) -> np.ndarray:
        """(N, N): how often the first is preferred to the second."""
        gap = self.rewards[:, None] - self.rewards
        return np.exp(-np.logaddexp(0.0, -gap))


class Optimum(NamedTuple):
    """A policy's log-probabilities (N,) of whole answers, -inf of those that it never gives, and how it is written.

    regularised: it is the policy of the greatest reward less beta times the KL to the reference.
    """

    log_p: np.ndarray
    formula: str
    regularised: bool = False


def tilted(case: Case, beta: float) -> Optimum:
    """The policy of the greatest E[r] - beta KL(pi || pi_ref) (Rafailov et al. 2023, arXiv:2305.18290, equation 4)."""
    log_p = normalised(case.log_p["reference"] + case.rewards / beta)
    return Optimum(log_p, f"pi_ref(y) exp(r(y) / {beta:.4g}) / Z", True)


def tilted_backwards(case: Case, beta: float) -> Optimum:
    """The policy of the greatest E[r] - beta KL(pi_ref || pi): beta pi_ref / (c - r), c so that it adds up to 1."""
    reference, r = np.exp(case.log_p["reference"]), case.rewards
    # At max r the sum is infinite, and at max r + beta no term is above its share of the reference.
    low, high = r.max(), r.max() + beta
    for _ in range(200):
        c = (low + high) / 2
        low, high = (c, high) if (beta * reference / np.maximum(c - r, 1e-300)).sum() > 1 else (low, c)
    log_p = normalised(np.log(beta * reference / np.maximum(high - r, 1e-300)))
    return Optimum(log_p, f"{beta:.4g} pi_ref(y) / (c - r(y))")


def best_answer(case: Case) -> Optimum:
    """The answer of the greatest reward alone, to which every method without a KL goes and which none reaches."""
    log_p = np.full(len(case.rewards), -np.inf)
    log_p[case.rewards.argmax()] = 0.0
    return Optimum(log_p, "1 of the best answer, 0 of all others: a limit, as nothing holds the policy back")


def normalised(scores: np.ndarray) -> np.ndarray:
    """Log-probabilities proportional to exp(scores)."""
    return np.asarray(scores - np.logaddexp.reduce(scores))


def divergence(log_p: np.ndarray, of: Optimum) -> float:
    """KL(pi || pi*), exactly; where pi* never gives some answer, and that is infinite, KL(pi* || pi)."""
    if np.isneginf(of.log_p).any():
        kept = ~np.isneginf(of.log_p)
        return float((np.exp(of.log_p[kept]) * (of.log_p[kept] - log_p[kept])).sum())
    return float((np.exp(log_p) * (log_p - of.log_p)).sum())
