"""Classes of texts, learnt from labelled records."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llmlab.registry import register
from llmlab.slots import Loss, Vocabulary

from ._loss import token_loss


@register("objective", "classification")
class Classification:
    """The class of a text, or of a pair of texts (BERT's fine-tuning: Devlin et al. 2018, arXiv:1810.04805, section 4.1).

    Cross-entropy of one answer a record, from the head of the role `classes`, whose number of classes is that of the data.
    ids, and segments of a pair, (T,); labels ().
    """

    reads = "labelled"
    collate = "pad"
    mask = "bidirectional"
    heads = {"classes": "pooled"}
    special = ()
    topologies = ("encoder", "decoder")
    measures = {"accuracy": "accuracy"}
    fixed_counts = True

    def __init__(self, vocabulary: Vocabulary, seq_len: int, /):
        pass

    def prepare(self, sample: dict[str, Any], rng: Any) -> dict[str, Any]:
        prepared = {"ids": np.asarray(sample["tokens"], dtype=np.int64), "labels": np.asarray(sample["label"])}
        if "segments" in sample:
            prepared["segments"] = np.asarray(sample["segments"], dtype=np.int64)
        return prepared

    def targets(self, prepared: dict[str, Any]) -> dict[str, int]:
        return {"nll": 1}

    def loss(self, model: Any, batch: Mapping[str, Tensor]) -> Loss:
        output = model(batch, heads={"classes": None})
        scores = output.heads["classes"]
        right = (scores.detach().argmax(-1) == batch["labels"]).sum()
        count = torch.tensor(len(scores), device=scores.device)
        return token_loss(output, scores, batch["labels"], {"accuracy": (right, count)})
