"""The loss of a policy's tokens: ratios to the policy that drew them, how they are clipped, and over what their mean is taken.

n tokens of all answers of a batch, B answers; `rows` (n,) is the answer of each token.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Surrogate(NamedTuple):
    """`each` (n,): the loss of each token; `clipped` (n,) bool: it is flat there, or its weight is held."""

    each: Tensor
    clipped: Tensor


def by_answer(values_n: Tensor, rows_n: Tensor, answers: int) -> Tensor:
    """(B,): sums over each answer's tokens."""
    return values_n.new_zeros(answers).index_add(0, rows_n, values_n)


def log_ratios(now_n: Tensor, then_n: Tensor, rows_n: Tensor, answers: int, how: str) -> Tensor:
    """(n,): of a token; of its answer ("product"), or the mean over its answer's tokens ("sequence")."""
    gap = now_n - then_n
    if how == "token":
        return gap
    whole = by_answer(gap, rows_n, answers)
    if how == "sequence":
        whole = whole / rows_n.bincount(minlength=answers).clamp(min=1)
    return whole[rows_n]


def surrogate(
    now_n: Tensor, log_ratio_n: Tensor, advantage_n: Tensor, how: str, low: float | None, high: float | None
) -> Surrogate:
    """low, high: by how much a ratio may be below and above 1; None: by any. how: "ppo", the pessimistic one of the clipped and
    the unclipped objective, or "cispo", advantage x log-probability weighted by the clipped ratio as a constant."""
    ratio = log_ratio_n.exp()
    bounds = (None if low is None else 1 - low, None if high is None else 1 + high)
    held = ratio if bounds == (None, None) else ratio.clamp(*bounds)
    if how == "cispo":
        return Surrogate(-held.detach() * advantage_n * now_n, held != ratio)
    if held is ratio:
        return Surrogate(-ratio * advantage_n, torch.zeros_like(ratio, dtype=torch.bool))
    free, bounded = ratio * advantage_n, held * advantage_n
    return Surrogate(-torch.minimum(free, bounded), bounded < free)


def aggregated(each_n: Tensor, rows_n: Tensor, lengths_B: Tensor, how: str, length: int) -> tuple[Tensor, Tensor]:
    """(sum, count), of which the mean over an optimizer step is the loss; answers of length 0 don't count.

    sequence_mean: a mean over answers of the mean over each one's tokens; token_mean: over all tokens; sequence_sum: over
    answers of the sum over tokens; constant: that, divided by `length` for every answer.
    """
    answers = (lengths_B > 0).sum()
    if how == "token_mean":
        return each_n.sum(), lengths_B.sum()
    if how == "sequence_mean":
        return (by_answer(each_n, rows_n, len(lengths_B)) / lengths_B.clamp(min=1)).sum(), answers
    total = each_n.sum()
    return (total / length if how == "constant" else total), answers


def kl_estimate(log_ratio: Tensor, how: str) -> Tensor:
    """Of KL(policy || reference), from log p - log p_ref of what the policy drew (Schulman 2020, "Approximating KL
    divergence").

    k1: unbiased, of either sign; k2: its square / 2, whose gradient is that of the KL of a token; k3: unbiased, never
    negative, whose gradient is that of KL(reference || policy).
    """
    if how == "k1":
        return log_ratio
    if how == "k2":
        return log_ratio.square() / 2
    return torch.expm1(-log_ratio) + log_ratio
