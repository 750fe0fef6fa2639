"""Next-token prediction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from llmlab.registry import register
from llmlab.slots import LanguageModel, Loss, Vocabulary

from ._loss import IGNORED, targets, token_loss


@register("objective", "clm")
class CausalLM:
    """Causal language modelling (Radford et al. 2018, "Improving Language Understanding by Generative Pre-Training").

    Every token but the first is predicted from those before it: ids and labels (T,), labels shifted by one.
    """

    mask = "causal"
    heads = {"tokens": "lm"}
    special = ()
    topologies = ("decoder",)
    measures = {"nll": "bits"}
    restores = "next"
    fixed_counts = True

    def __init__(self, vocabulary: Vocabulary, seq_len: int, /):
        pass

    def prepare(self, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        tokens = np.asarray(sample["tokens"], dtype=np.int64)
        # Shifted here: transformers' models shift inside their loss, and are given labels that equal the ids.
        prepared = {"ids": tokens[:-1], "labels": tokens[1:]}
        if sample.get("given") is not None:
            prepared["labels"] = np.where(sample["given"][1:], IGNORED, tokens[1:])
        if sample.get("documents") is not None:
            prepared["documents"] = np.asarray(sample["documents"], dtype=np.int64)[:-1]
        return prepared

    def targets(self, prepared: dict[str, Any]) -> dict[str, int]:
        return targets(prepared)

    def loss(self, model: LanguageModel, batch: Mapping[str, Tensor]) -> Loss:
        output = model(batch, heads={"tokens": None})
        return token_loss(output, output.heads["tokens"], batch["labels"])
