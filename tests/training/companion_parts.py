"""An objective with a companion, as a plugin of its user: the module of LLMLAB_PLUGINS in tests of companions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from llmlab.registry import register
from llmlab.slots import Loss, Vocabulary

IGNORED = -100


@register("objective", "distil")
class Distillation:
    """The next token and a teacher's distribution of it (Hinton et al. 2015, arXiv:1503.02531)."""

    mask = "causal"
    heads = {"tokens": "lm"}
    topologies = ("decoder",)
    measures = {"nll": "bits"}
    models = {"teacher": {"heads": {"tokens": "lm"}, "trains": False}}

    def __init__(self, vocabulary: Vocabulary, seq_len: int, /, *, temperature: float = 2.0, weight: float = 1.0):
        self.seq_len, self.size = seq_len, vocabulary.size
        self.temperature, self.weight = temperature, weight

    def prepare(self, sample: dict[str, Any], rng: Any) -> dict[str, Any]:
        tokens = np.asarray(sample["tokens"], dtype=np.int64)[: self.seq_len + 1]
        return {"ids": tokens[:-1], "labels": tokens[1:]}

    def targets(self, prepared: dict[str, Any]) -> dict[str, int]:
        return {"nll": self.seq_len, "kl": self.seq_len}

    def loss(self, model: Any, batch: Mapping[str, Tensor], *, teacher: Any) -> Loss:
        given = {"ids": batch["ids"]}
        logits = model(given, heads={"tokens": None}).heads["tokens"][..., : self.size].float()
        with torch.no_grad():
            taught = teacher(given, heads={"tokens": None}).heads["tokens"][..., : self.size].float()
        nll = F.cross_entropy(logits.flatten(0, -2), batch["labels"].flatten(), reduction="sum")
        student, target = (F.log_softmax(x / self.temperature, -1) for x in (logits, taught))
        kl = F.kl_div(student, target, reduction="sum", log_target=True) * self.temperature**2
        count = torch.tensor(batch["labels"].numel())
        return Loss({"nll": (nll, count), "kl": (kl, count)}, {"kl": self.weight})
