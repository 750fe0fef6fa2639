"""Divergences of two models' distributions over the next token, as methods of distillation have them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def summed_divergence(teacher: Tensor, student: Tensor, beta: float) -> Tensor:
    """The divergence of teacher P = softmax(teacher) and student Q = softmax(student) (n, V), summed over n.

    KL(P | Q) with beta 0, KL(Q | P) with 1, and between them the generalised Jensen-Shannon divergence beta KL(P | M) +
    (1 - beta) KL(Q | M), M = beta P + (1 - beta) Q (Agarwal et al. 2023, arXiv:2306.13649, section 2).
    """
    log_p, log_q = F.log_softmax(teacher, -1), F.log_softmax(student, -1)
    if beta == 0:
        return F.kl_div(log_q, log_p, reduction="sum", log_target=True)
    if beta == 1:
        return F.kl_div(log_p, log_q, reduction="sum", log_target=True)
    # log M by logaddexp: a sum of probabilities would underflow where both are small.
    log_m = torch.logaddexp(log_p + torch.tensor(beta).log(), log_q + torch.tensor(1 - beta).log())
    of_p, of_q = (F.kl_div(log_m, x, reduction="sum", log_target=True) for x in (log_p, log_q))
    return beta * of_p + (1 - beta) * of_q
