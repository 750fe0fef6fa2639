"""What the objectives' losses have in common."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.nn import functional as F

from llmlab.slots import Loss, Output

IGNORED = -100  # a label that is no target


def token_loss(
    output: Output, logits: Tensor, labels: Tensor, logs: Mapping[str, tuple[Tensor, Tensor]] | None = None
) -> Loss:
    """Cross-entropy (nats, float32) of logits (..., V) at labels (...), with the model's auxiliary losses on top.

    logs["nll"] is the cross-entropy alone.
    """
    nll = F.cross_entropy(logits.flatten(0, -2).float(), labels.flatten(), ignore_index=IGNORED, reduction="sum")
    count = (labels != IGNORED).sum()
    total, load = nll, None
    if output.aux is not None:
        load = output.aux.load
        if output.aux.loss is not None:
            total = nll + output.aux.loss * count
    return Loss(total, count, {"nll": (nll.detach(), count), **(logs or {})}, load)
