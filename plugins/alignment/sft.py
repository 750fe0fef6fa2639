"""Supervised fine-tuning on conversations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from llmlab.registry import register
from llmlab.slots import ANSWER, IGNORED, LanguageModel, Loss, Vocabulary, auxiliary


@register("alignment", "sft")
class SupervisedFineTuning:
    """Supervised fine-tuning (InstructGPT: Ouyang et al. 2022, arXiv:2203.02155): the answers of all turns are learnt.

    Cross-entropy (nats) of the tokens of each assistant's message and of the mark that ends it, given what the template
    writes before; nothing else is a target. ids and labels (T,), labels shifted by one, -100 where there is no target.
    Conversations are packed into windows and do not see each other.
    """

    reads = "chat"
    mask = "causal"
    heads = {"tokens": "lm"}
    special = ("eos",)
    topologies = ("decoder",)
    measures = {"nll": "nll", "accuracy": "accuracy"}
    collate = "pack"

    def __init__(self, vocabulary: Vocabulary, seq_len: int, /):
        pass

    def prepare(self, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        tokens = np.concatenate(sample["messages"])
        answered = [
            np.full(len(m), role == ANSWER) for m, role in zip(sample["messages"], sample["roles"], strict=True)
        ]
        # Shifted by one: a message's first token is the target of the last before it.
        return {"ids": tokens[:-1], "labels": np.where(np.concatenate(answered), tokens, IGNORED)[1:]}

    def targets(self, prepared: dict[str, Any]) -> dict[str, int]:
        return {"nll": int((prepared["labels"] != IGNORED).sum())}

    def loss(self, model: LanguageModel, batch: Mapping[str, Tensor]) -> Loss:
        where = batch["labels"] != IGNORED
        output = model(batch, heads={"tokens": where})
        logits, labels = output.heads["tokens"].float(), batch["labels"][where]
        nll = F.cross_entropy(logits, labels, reduction="sum")
        right = (logits.detach().argmax(-1) == labels).sum()
        return Loss(
            {"nll": (nll, where.sum())}, logs={"accuracy": (right, where.sum())}, aux={"model": auxiliary(output)}
        )
