"""The loss that objectives share: cross-entropy at labels, and the number of targets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from llmlab.slots import IGNORED as IGNORED
from llmlab.slots import Loss, Output, auxiliary


def cross_entropy(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """(sum, number of targets) of the cross-entropy (nats, float32) of logits (..., V) at labels (...)."""
    # A sum with its count: a mean is NaN where no label is a target, and means of micro-batches
    # would weigh tokens unequally. In float32: bfloat16 logits around 10 are 1/16 apart.
    nll = F.cross_entropy(logits.flatten(0, -2).float(), labels.flatten(), ignore_index=IGNORED, reduction="sum")
    return nll, (labels != IGNORED).sum()


def token_loss(
    output: Output, logits: Tensor, labels: Tensor, logs: Mapping[str, tuple[Tensor, Tensor]] | None = None
) -> Loss:
    """Cross-entropy (nats, float32) of logits (..., V) at labels (...), as the one term "nll", and the model's auxiliary
    output."""
    return Loss({"nll": cross_entropy(logits, labels)}, logs=logs or {}, aux={"model": auxiliary(output)})


def regularised(
    loss: Loss, logits: Tensor, labels: Tensor, z_loss: float, label_smoothing: float, vocabulary: int
) -> Loss:
    """`token_loss` with the terms of a z-loss and of label smoothing, where their weights are not 0.

    "z" is log^2 Z; "uniform" the cross-entropy (nats) of all `vocabulary` ids alike, of which the gradient has as much as
    "nll" has less.
    """
    where = labels != IGNORED
    chosen = logits[where].float()
    log_z = chosen.logsumexp(-1)
    terms, weights = dict(loss.terms), dict(loss.weights)
    if z_loss:
        terms["z"], weights["z"] = (log_z.square().sum(), where.sum()), z_loss
    if label_smoothing:
        # Rows of the table behind the vocabulary only round it up: they are no tokens that could come.
        terms["uniform"] = ((log_z - chosen[:, :vocabulary].mean(-1)).sum(), where.sum())
        weights |= {"nll": 1 - label_smoothing, "uniform": label_smoothing}
    return loss._replace(terms=terms, weights=weights)


def targets(prepared: Mapping[str, Any]) -> dict[str, int]:
    """The number of labels that are targets."""
    return {"nll": int((prepared["labels"] != IGNORED).sum())}
