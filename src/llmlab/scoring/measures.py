"""What the rewards of answers tell: win rates, and what the best of n is worth. No torch.

P prompts, M answers to each, R answers of the reference to each.
"""

from __future__ import annotations

import math

import numpy as np

from llmlab.intervals import Interval, shares, student


def wins(rewards_PM: np.ndarray, reference_PR: np.ndarray) -> np.ndarray:
    """(P, M): how often an answer is worth more than one of the reference to the same prompt; a tie is half."""
    ours, theirs = rewards_PM[:, :, None], reference_PR[:, None, :]
    return np.asarray(((ours > theirs) + 0.5 * (ours == theirs)).mean(-1))


def chances(scores_M: np.ndarray, n: int) -> np.ndarray:
    """(M,): the probability of an answer to be chosen as the best of n that are drawn out of all M without replacement; of
    equal ones each is as likely.

    Weighting the M answers by it is the unbiased estimate of least variance of what the best of n gives, where a single draw
    of n uses one of C(M, n) choices.
    """
    values, which, counts = np.unique(scores_M, return_inverse=True, return_counts=True)
    at_most = np.concatenate([[0], counts.cumsum()]).tolist()
    whole = math.comb(len(scores_M), n)
    # The highest of n is among those of one score: all n are at most that, and not all are below.
    of_value = [(math.comb(at_most[i + 1], n) - math.comb(at_most[i], n)) / whole for i in range(len(values))]
    return (np.array(of_value) / counts)[which.reshape(-1)]


def best_of(values_PM: np.ndarray, scores_PM: np.ndarray, n: int) -> np.ndarray:
    """(P,): the expected value of the answer of the highest score out of n."""
    return np.array([chances(s, n) @ v for v, s in zip(values_PM, scores_PM, strict=True)])


def best_of_kl(n: int) -> float:
    """The largest KL of the best of n to the policy that is drawn from, nats: log n - (n - 1) / n.

    It is that of answers of which no two are equal, and a bound of any others (Beirami et al. 2024, arXiv:2401.01879).
    """
    return math.log(n) - (n - 1) / n


def interval(values_P: np.ndarray, *, share: bool, most: int = 1) -> Interval:
    """Of a mean over prompts, each of which has the mean of `most` answers: the answers to one prompt are alike, so that they
    don't count as so many. share: the values lie between 0 and 1."""
    values = values_P.tolist()
    return shares(values, most) if share else student(values)
