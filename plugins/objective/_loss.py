"""What the objectives' losses have in common."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.nn import functional as F

from llmlab.slots import Aux, Loss, Output

IGNORED = -100  # a label that is no target


def token_loss(
    output: Output, logits: Tensor, labels: Tensor, logs: Mapping[str, tuple[Tensor, Tensor]] | None = None
) -> Loss:
    """Cross-entropy (nats, float32) of logits (..., V) at labels (...), and the model's auxiliary loss beside it.

    logs["nll"] is the cross-entropy.
    """
    nll = F.cross_entropy(logits.flatten(0, -2).float(), labels.flatten(), ignore_index=IGNORED, reduction="sum")
    count = (labels != IGNORED).sum()
    aux = output.aux or Aux()
    return Loss(nll, count, {"nll": (nll.detach(), count), **(logs or {})}, aux.load, aux.loss)
