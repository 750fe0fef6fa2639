"""Classes of texts, learnt from labelled records."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from llmlab.registry import register
from llmlab.slots import Aux, Loss, Vocabulary

from ._loss import IGNORED


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
    bits_per_byte = False
    fixed_count = True

    def __init__(self, vocabulary: Vocabulary, seq_len: int, /):
        pass

    def prepare(self, sample: dict[str, Any], rng: Any) -> dict[str, Any]:
        prepared = {"ids": np.asarray(sample["tokens"], dtype=np.int64), "labels": np.asarray(sample["label"])}
        if "segments" in sample:
            prepared["segments"] = np.asarray(sample["segments"], dtype=np.int64)
        return prepared

    def targets(self, prepared: dict[str, Any]) -> int:
        return int((prepared["labels"] != IGNORED).sum())

    def loss(self, model: Any, batch: Mapping[str, Tensor]) -> Loss:
        output = model(batch, heads={"classes": None})
        scores, labels = output.heads["classes"].float(), batch["labels"]
        nll = F.cross_entropy(scores, labels, ignore_index=IGNORED, reduction="sum")
        count = (labels != IGNORED).sum()
        right = (scores.detach().argmax(-1) == labels).sum()
        aux = output.aux or Aux()
        return Loss(nll, count, {"nll": (nll.detach(), count), "accuracy": (right, count)}, aux.load, aux.loss)
