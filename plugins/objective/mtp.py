"""Predicting several tokens ahead."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from torch import Tensor

from llmlab.registry import register
from llmlab.slots import LanguageModel, Loss, Pass, Vocabulary, auxiliary

from ._loss import IGNORED, cross_entropy
from ._shifted import shifted


@register("objective", "mtp")
class MultiTokenPrediction:
    """Multi-token prediction (DeepSeek-V3: DeepSeek-AI 2024, arXiv:2412.19437, section 2.2).

    Beside the next token, module k of `depth` predicts the k-th behind it: it is one layer that reads the hidden states of the
    model (or of module k - 1) and the tokens k ahead (embedding=mtp), and shares the model's table and head. ids and labels
    (T,), labels shifted by one; terms nll, and nll_2 ... of the tokens 2 ... ahead, each weighted by `weight` / depth.
    A module is a companion, `models.module_1`, and has no part in what the model writes.
    """

    mask = "causal"
    heads = {"tokens": "lm"}
    special = ()
    topologies = ("decoder",)
    models = {
        "module_1": {
            "heads": {},
            "trains": True,
            "shares": ("embedding",),
            "words": ("model.n_layers=1", "layers.first=[]", "embedding=mtp"),
        },
    }
    when = {
        "depth=2": {
            "models": {
                "module_2": {
                    "heads": {},
                    "trains": True,
                    "shares": ("embedding",),
                    "words": ("model.n_layers=1", "layers.first=[]", "embedding=mtp"),
                },
            },
        },
    }
    measures = {"nll": "bits", "nll_2": "nll", "nll_3": "nll"}
    restores = "next"
    telling = ({"weight": 0.1}, {"weight": 1.5}, {"depth": 2, "weight": 0.5})
    fixed_counts = True

    def __init__(
        self,
        vocabulary: Vocabulary,
        seq_len: int,
        /,
        *,
        depth: Literal[1, 2] = 1,  # modules, each of which predicts one token further ahead
        weight: float = 0.3,  # of the mean of the modules' losses; V3 lowers it to 0.1 for its last third
    ):
        if not 0 < weight < float("inf"):
            raise ValueError(f"objective.weight must be above 0 (objective=clm has no modules), but is {weight}")
        if seq_len <= depth:
            raise ValueError(f"objective.depth={depth} needs data.seq_len of at least {depth + 1}, but it is {seq_len}")
        self.depth, self.weight = depth, weight

    def prepare(self, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        return shifted(sample)

    def targets(self, prepared: dict[str, Any]) -> dict[str, int]:
        where = prepared["labels"] != IGNORED
        return {_term(k): int(where[k:].sum()) for k in range(self.depth + 1)}

    def passes(self, prepared: dict[str, Any]) -> list[Pass]:
        n = len(prepared["ids"])
        # The model's head reads what the modules give as well.
        rows = sum(n - k for k in range(self.depth + 1))
        modules = [Pass(n - k, model=f"module_{k}") for k in range(1, self.depth + 1)]
        return [Pass(n, heads={"tokens": rows}), *modules]

    def loss(self, model: LanguageModel, batch: Mapping[str, Tensor], **modules: LanguageModel) -> Loss:
        output = model(batch, heads={"tokens": None})
        labels, hidden = batch["labels"], output.hidden
        terms = {_term(0): cross_entropy(output.heads["tokens"], labels)}
        aux = {"model": auxiliary(output)}
        for k in range(1, self.depth + 1):
            n = labels.shape[1] - k
            # Place i has read tokens 0 to i, is given token i + k, and predicts the one behind it.
            ahead = {"ids": batch["ids"][:, k:], "hidden": hidden[:, :n]}
            if "documents" in batch:
                ahead["documents"] = batch["documents"][:, :n]
            further = modules[f"module_{k}"](ahead, heads={})
            hidden = further.hidden
            logits = model({"hidden": hidden}, heads={"tokens": None}).heads["tokens"]
            terms[_term(k)] = cross_entropy(logits, labels[:, k:])
            aux[f"module_{k}"] = auxiliary(further)
        return Loss(terms, weights={_term(k): self.weight / self.depth for k in range(1, self.depth + 1)}, aux=aux)


def _term(k: int) -> str:
    """The name of the term of module k, 0 being the model."""
    return f"nll_{k + 1}" if k else "nll"
