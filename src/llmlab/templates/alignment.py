"""A method of alignment of your own: a loss of answers to prompts, in the objective's place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from llmlab.registry import register
from llmlab.slots import IGNORED, LanguageModel, Loss, Pass, Vocabulary, auxiliary
from llmlab.twins import Given, twin


@register("alignment", "my_alignment")
class MyAlignment:
    """Unlikelihood of a worse answer beside the likelihood of the best (Welleck et al. 2020, arXiv:1908.04319).

    What a method declares and defines is what an objective does: see llmlab.objectives.Objective. `reads` says which records
    it learns from: chat, preferences, rated or prompts; `models` would name a frozen reference as
    {"reference": {"heads": {"tokens": "lm"}, "trains": False, "copies": True}}, which `loss` then gets.
    """

    reads = "preferences"
    mask = "causal"
    heads = {"tokens": "lm"}
    special = ("eos",)
    topologies = ("decoder",)
    measures = {"nll": "nll"}
    collate = "pad"
    telling = ({"weight": 0.5},)

    def __init__(
        self,
        vocabulary: Vocabulary,
        seq_len: int,
        /,
        *,
        weight: float = 1.0,  # of the unlikelihood
    ):
        if weight < 0:
            raise ValueError(f"alignment.weight={weight} must be at least 0")
        self.weight = weight

    def prepare(self, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        prompt, (best, *_, worst) = sample["prompt"], sample["answers"]
        rows = [np.concatenate([prompt, answer]) for answer in (best, worst)]
        asked = np.full(len(prompt) - 1, IGNORED)
        # A list of arrays named row_* becomes (B, R, T), padded, with row_valid.
        return {"row_ids": [r[:-1] for r in rows], "row_labels": [np.concatenate([asked, a]) for a in (best, worst)]}

    def targets(self, prepared: dict[str, Any]) -> dict[str, int]:
        best, worst = (int((labels != IGNORED).sum()) for labels in prepared["row_labels"])
        return {"nll": best, "unlikely": worst}

    def passes(self, prepared: dict[str, Any]) -> list[Pass]:
        rows = zip(prepared["row_ids"], prepared["row_labels"], strict=True)
        return [Pass(len(ids), heads={"tokens": int((labels != IGNORED).sum())}) for ids, labels in rows]

    def loss(self, model: LanguageModel, batch: Mapping[str, Tensor]) -> Loss:
        terms, outputs = {}, []
        for row, name in enumerate(("nll", "unlikely")):
            labels = batch["row_labels"][:, row]
            where = labels != IGNORED
            read = {key: batch[f"row_{key}"][:, row] for key in ("ids", "valid")}
            outputs.append(model(read, heads={"tokens": where}))
            nll = F.cross_entropy(outputs[-1].heads["tokens"].float(), labels[where], reduction="none")
            # log(1 - p) of a token that is nearly certain has no slope in float32.
            value = nll if name == "nll" else -(1 - (-nll).exp()).clamp(min=1e-6).log()
            terms[name] = value.sum(), where.sum()
        return Loss(terms, weights={"unlikely": self.weight}, aux={"model": auxiliary(*outputs)})


# Not of the class: `llmlab check` holds the part to what this says, at every setting of its options. What a twin is given, and
# which outputs it may give, is listed in the docstring of llmlab.check.twins.observers.alignment.
@twin("alignment", "my_alignment", source="Welleck et al. 2020, equation 4")
def definition(given: Given) -> dict[str, np.ndarray]:
    labels, scores = given.inputs["batch/row_labels"], given.inputs["batch/scores/tokens"]
    scores = scores.reshape(*labels.shape, -1)  # those of each prompt's two answers, one after the other
    p = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    found = {"batch/weight/unlikely": np.array(given.options["weight"])}
    for row, name in enumerate(("nll", "unlikely")):
        said = [p[i, row, t, labels[i, row, t]] for i, t in np.argwhere(labels[:, row] >= 0)]
        log = np.log(said) if name == "nll" else np.log(1 - np.array(said))
        found[f"batch/loss/{name}"] = np.array([-log.sum(), len(said)])
    return found
