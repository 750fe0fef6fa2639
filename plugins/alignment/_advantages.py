"""Advantages of whole answers: by how much each is better than the others that were drawn with it.

P prompts, S answers to each, N = P S answers, A tokens of the longest.
"""

from __future__ import annotations

import numpy as np

from llmlab.policy import there, without_spread


def of_groups(rewards_PS: np.ndarray, how: str, eps: float = 0.0) -> np.ndarray:
    """(P, S) -> the same. Exactly 0 in a group without spread: (0.1 - mean) / std of eight equal rewards of 0.1 is rounding
    over rounding, from which an optimizer that divides by its gradient's size makes a whole step."""
    n = rewards_PS.shape[1]
    centred = rewards_PS - rewards_PS.mean(1, keepdims=True)
    if how == "leave_one_out":
        others = rewards_PS if n > 1 else rewards_PS.reshape(1, -1)
        if others.shape[1] == 1:
            return rewards_PS
        mean = (others.sum(1, keepdims=True) - others) / (others.shape[1] - 1)
        found = (others - mean).reshape(rewards_PS.shape)
        # With one answer to each prompt, the group is the whole rollout.
        flat = without_spread(others) if n > 1 else np.broadcast_to(without_spread(others), len(rewards_PS))
    else:
        found, flat = centred, without_spread(rewards_PS)
        if how == "group":
            # That of a sample, n - 1, as torch.std has it and TRL 1.16; the paper does not say.
            std = rewards_PS.std(1, ddof=1, keepdims=True)
            found = centred / np.where(flat[:, None], 1.0, std + eps)
        elif how == "mean_batch":
            std = rewards_PS.std(ddof=1) if rewards_PS.size > 1 else 0.0
            found = centred / (std + eps) if std + eps > 0 else centred
    return np.where(flat[:, None], 0.0, found)


def of_tokens(rewards_N: np.ndarray, penalty_NA: np.ndarray, lengths_N: np.ndarray, eps: float = 0.0) -> np.ndarray:
    """(N, A): an answer's reward less the penalties from the token on, its mean and spread those of all tokens."""
    real = there(lengths_N, penalty_NA.shape[1])
    penalty_NA = np.where(real, penalty_NA, 0.0)
    to_go = rewards_N[:, None] - penalty_NA[:, ::-1].cumsum(1)[:, ::-1]
    values = to_go[real]
    if len(values) < 2 or without_spread(values[None])[0]:
        return np.zeros_like(to_go)
    return np.where(real, (to_go - values.mean()) / (values.std(ddof=1) + eps), 0.0)


def overlong(lengths_N: np.ndarray, max_new: int, share: float) -> np.ndarray:
    """(N,) in [-1, 0]: a punishment that grows over the last `share` of the tokens that an answer may have (DAPO: Yu et al.
    2025, arXiv:2503.14476, equation 13)."""
    room = share * max_new
    return np.zeros(len(lengths_N)) if room <= 0 else np.clip((max_new - room - lengths_N) / room, -1.0, 0.0)
