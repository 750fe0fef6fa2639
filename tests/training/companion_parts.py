"""Objectives with companions, as a plugin of its user: the module of LLMLAB_PLUGINS in tests of companions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from llmlab.registry import register
from llmlab.slots import Loss, Pass, Vocabulary

IGNORED = -100


@register("objective", "replaced")
class ReplacedTokens:
    """Replaced token detection with its generator (ELECTRA: Clark et al. 2020, arXiv:2003.10555).

    A smaller generator fills masked tokens in; the model tells which tokens of the text are not the original ones.
    """

    mask = "bidirectional"
    heads = {"replaced": "replaced"}
    special = ("mask",)
    topologies = ("encoder",)
    models = {"generator": {"heads": {"tokens": "mlm"}, "trains": True, "shares": ("embedding",)}}

    def __init__(self, vocabulary: Vocabulary, seq_len: int, /, *, rate: float = 0.15, weight: float = 50.0):
        self.seq_len, self.rate, self.weight = seq_len, rate, weight
        self.mask_id = vocabulary.special["mask"]

    def prepare(self, sample: dict[str, Any], rng: Any) -> dict[str, Any]:
        tokens = np.array(sample["tokens"], dtype=np.int64)[: self.seq_len]
        chosen = rng.random(self.seq_len) < self.rate
        chosen[rng.integers(self.seq_len)] = True
        return {
            "ids": np.where(chosen, self.mask_id, tokens),
            "labels": np.where(chosen, tokens, IGNORED),
            "original": tokens,
            "chance": rng.random(self.seq_len),  # drawn here, it does not depend on how the batch is cut
        }

    def targets(self, prepared: dict[str, Any]) -> dict[str, int]:
        return {"generator": int((prepared["labels"] != IGNORED).sum()), "replaced": self.seq_len}

    def passes(self, prepared: dict[str, Any]) -> list[Pass]:
        masked = int((prepared["labels"] != IGNORED).sum())
        generator = Pass(self.seq_len, model="generator", heads={"tokens": masked})
        return [generator, Pass(self.seq_len, heads={"replaced": None})]

    def loss(self, model: Any, batch: Mapping[str, Tensor], *, generator: Any) -> Loss:
        where = batch["labels"] != IGNORED
        logits = generator({"ids": batch["ids"]}, heads={"tokens": where}).heads["tokens"].float()
        labels = batch["labels"][where]
        nll = F.cross_entropy(logits, labels, reduction="sum")
        below = logits.detach().double().softmax(-1).cumsum(-1)  # the guess is where this exceeds the chance
        guesses = (below <= batch["chance"][where][:, None]).sum(-1).clamp(max=logits.shape[-1] - 1)
        ids = batch["original"].clone()
        ids[where] = guesses
        scores = model({"ids": ids}, heads={"replaced": None}).heads["replaced"].float()
        wrong = (ids != batch["original"]).float()
        told = F.binary_cross_entropy_with_logits(scores.view_as(wrong), wrong, reduction="sum")
        count = torch.tensor(ids.numel())
        return Loss({"generator": (nll, where.sum()), "replaced": (told, count)}, {"replaced": self.weight})


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
