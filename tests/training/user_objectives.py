"""A user's objectives that fit no likelihood, as a module that LLMLAB_PLUGINS names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from llmlab.registry import register
from llmlab.slots import Loss, Pass, Vocabulary, auxiliary


@register("objective", "simcse")
class SimCSE:
    """Unsupervised SimCSE (Gao et al. 2021, arXiv:2104.08821): two forwards of a text, under other dropout, find each other
    among those of the other texts of a micro-batch."""

    mask = "bidirectional"
    heads = {}
    special = ()
    topologies = ("encoder", "decoder")
    measures = {"accuracy": "accuracy"}
    fixed_counts = True

    def __init__(self, vocabulary: Vocabulary, seq_len: int, /, *, temperature: float = 0.05):
        self.temperature = temperature

    def prepare(self, sample: dict[str, Any], rng: Any) -> dict[str, Any]:
        return {"text": np.asarray(sample["tokens"], dtype=np.int64)[:-1]}

    def targets(self, prepared: dict[str, Any]) -> dict[str, int]:
        return {"contrast": 1}

    def passes(self, prepared: dict[str, Any]) -> list[Pass]:
        return [Pass(len(prepared["text"]))] * 2

    def loss(self, model: Any, batch: Mapping[str, Tensor]) -> Loss:
        outputs = [model({"ids": batch["text"]}, heads={}) for _ in range(2)]
        one, other = (F.normalize(output.hidden.mean(1).float(), dim=-1) for output in outputs)
        scores, own = one @ other.T / self.temperature, torch.arange(len(one), device=one.device)
        found, n = (scores.argmax(-1) == own).sum(), own.new_tensor(len(own))
        terms = {"contrast": (F.cross_entropy(scores, own, reduction="sum"), n)}
        return Loss(terms, logs={"accuracy": (found, n)}, aux={"model": auxiliary(*outputs)})


@register("objective", "masked_pairs")
class MaskedPairs:
    """Two terms with counts of their own: masked tokens, and of every other text or so how unlike it is to its masked self."""

    mask = "bidirectional"
    heads = {"tokens": "mlm"}
    special = ("mask",)
    topologies = ("encoder",)
    measures = {"masked": "nll"}

    def __init__(self, vocabulary: Vocabulary, seq_len: int, /, *, weight: float = 3.0):
        self.weight, self.mask_id = weight, vocabulary.special["mask"]

    def prepare(self, sample: dict[str, Any], rng: Any) -> dict[str, Any]:
        whole = np.asarray(sample["tokens"], dtype=np.int64)[:-1]
        masked = rng.random(len(whole)) < rng.uniform(0.1, 0.6)
        ids = np.where(masked, self.mask_id, whole)
        return {"ids": ids, "whole": whole, "masked": masked, "paired": rng.random() < 0.6}

    def targets(self, prepared: dict[str, Any]) -> dict[str, int]:
        return {"masked": int(prepared["masked"].sum()), "pairs": int(prepared["paired"])}

    def passes(self, prepared: dict[str, Any]) -> list[Pass]:
        tokens = len(prepared["ids"])
        return [Pass(tokens, heads={"tokens": int(prepared["masked"].sum())}), Pass(tokens, heads={})]

    def loss(self, model: Any, batch: Mapping[str, Tensor]) -> Loss:
        where, paired = batch["masked"], batch["paired"]
        shown, whole = model({"ids": batch["ids"]}, heads={"tokens": where}), model({"ids": batch["whole"]}, heads={})
        nll = F.cross_entropy(shown.heads["tokens"].float(), batch["whole"][where], reduction="sum")
        unlike = 1 - F.cosine_similarity(shown.hidden.mean(1), whole.hidden.mean(1))
        terms = {"masked": (nll, where.sum()), "pairs": (unlike[paired].sum(), paired.sum())}
        return Loss(terms, weights={"pairs": self.weight}, aux={"model": auxiliary(shown, whole)})
