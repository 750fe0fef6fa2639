"""Next-token prediction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from llmlab.registry import register
from llmlab.slots import LanguageModel, Loss, Vocabulary

from ._loss import regularised, targets, token_loss
from ._shifted import shifted


@register("objective", "clm")
class CausalLM:
    """Causal language modelling (Radford et al. 2018, "Improving Language Understanding by Generative Pre-Training").

    Every token but the first is predicted from those before it: ids and labels (T,), labels shifted by one. The gradient may
    be that of two terms more, of which `nll` and what is made of it (perplexity, bits per byte) are free:
    z_loss x log^2 Z, Z being the softmax's sum (PaLM: Chowdhery et al. 2022, arXiv:2204.02311, section 5), and label smoothing
    (Szegedy et al. 2015, arXiv:1512.00567, section 7): the target is the token with 1 - label_smoothing, else any id alike.
    """

    mask = "causal"
    heads = {"tokens": "lm"}
    special = ()
    topologies = ("decoder",)
    measures = {"nll": "bits"}
    restores = "next"
    telling = ({"z_loss": 0.3}, {"label_smoothing": 0.2}, {"z_loss": 0.1, "label_smoothing": 1.0})
    fixed_counts = True

    def __init__(
        self,
        vocabulary: Vocabulary,
        seq_len: int,
        /,
        *,
        z_loss: float = 0.0,  # weight of log^2 Z; 1e-4 in PaLM
        label_smoothing: float = 0.0,  # share of a target that all ids have alike
    ):
        if not 0 <= z_loss < float("inf"):
            raise ValueError(f"objective.z_loss must be at least 0 (0: none; PaLM has 1e-4), but is {z_loss}")
        if not 0 <= label_smoothing <= 1:
            raise ValueError(f"objective.label_smoothing must be in [0, 1] (0: none), but is {label_smoothing}")
        self.z_loss, self.label_smoothing, self.vocabulary = z_loss, label_smoothing, vocabulary.size

    def prepare(self, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        return shifted(sample)

    def targets(self, prepared: dict[str, Any]) -> dict[str, int]:
        n = targets(prepared)["nll"]
        return {"nll": n, **({"z": n} if self.z_loss else {}), **({"uniform": n} if self.label_smoothing else {})}

    def loss(self, model: LanguageModel, batch: Mapping[str, Tensor]) -> Loss:
        output = model(batch, heads={"tokens": None})
        logits, labels = output.heads["tokens"], batch["labels"]
        found = token_loss(output, logits, labels)
        if not self.z_loss and not self.label_smoothing:  # what follows computes the softmax's sum again
            return found
        return regularised(found, logits, labels, self.z_loss, self.label_smoothing, self.vocabulary)
