"""Advantages and returns of the tokens of answers, from rewards and values. N answers, A tokens of the longest."""

from __future__ import annotations

import numpy as np

from llmlab.policy import there


def generalised_advantages(
    rewards_NA: np.ndarray, values_NA: np.ndarray, lengths_N: np.ndarray, gamma: float, lam: float
) -> np.ndarray:
    """(N, A): generalized advantage estimation (Schulman et al. 2016, arXiv:1506.02438, equation 16); 0 behind an answer's end,
    where the value is 0 as well."""
    found, after = np.zeros_like(rewards_NA), np.zeros(len(rewards_NA))
    real = there(lengths_N, rewards_NA.shape[1])
    values = np.where(real, values_NA, 0.0)
    for t in reversed(range(rewards_NA.shape[1])):
        following = values[:, t + 1] if t + 1 < values.shape[1] else 0.0
        delta = rewards_NA[:, t] + gamma * following - values[:, t]
        after = found[:, t] = np.where(real[:, t], delta + gamma * lam * after, 0.0)
    return found


def whitened(values_NA: np.ndarray, lengths_N: np.ndarray) -> np.ndarray:
    """Of mean 0 and standard deviation 1 over all tokens that are there; 0 where they are all alike."""
    real = there(lengths_N, values_NA.shape[1])
    of_tokens = values_NA[real]
    std = of_tokens.std()
    return np.where(real, (values_NA - of_tokens.mean()) / (std if std > 0 else 1.0), 0.0)


def explained_variance(values_NA: np.ndarray, returns_NA: np.ndarray, lengths_N: np.ndarray) -> float:
    """1 - Var(returns - values) / Var(returns) of tokens; 0 where all returns are alike."""
    real = there(lengths_N, values_NA.shape[1])
    values, returns = values_NA[real], returns_NA[real]
    spread = returns.var()
    return float(1 - (returns - values).var() / spread) if spread > 0 else 0.0
