"""Reward models, learnt from ranked answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from llmlab.registry import register
from llmlab.slots import LanguageModel, Loss, Pass, Vocabulary, auxiliary

from ._answers import preferred, row_scores


@register("alignment", "reward")
class RewardModel:
    """A reward model (InstructGPT: Ouyang et al. 2022, arXiv:2203.02155, equation 1): a better answer gets a higher score.

    -log sigmoid(score of the better - score of the worse - margin), of all pairs of the K ranked answers to a prompt but for
    ties, whose scores come of one forward; each prompt has one weight, 1 / C(K, 2) a pair. The score is read at the answer's
    last token.
    row_ids (R, T): the prompt with each answer, the best first.
    """

    reads = "preferences"
    mask = "causal"
    heads = {"scalar": "scalar"}
    special = ("eos",)
    topologies = ("decoder",)
    measures = {"ranking": "loss", "accuracy": "accuracy", "margin": "margin"}
    collate = "pad"
    telling = ({"margin": 0.5}, {"centre": 0.3}, {"score_margin": 0.4})
    fixed_counts = True

    def __init__(
        self,
        vocabulary: Vocabulary,
        seq_len: int,
        /,
        *,
        margin: float = 0.0,  # by which the better answer's score is to be higher (Llama 2: Touvron et al. 2023, section 3.2.2)
        centre: float = 0.0,  # weight of the squared sum of a pair's scores (Eisenstein et al. 2023, arXiv:2312.09244); 0.01
        score_margin: float = 0.0,  # the margin is so many times the difference of the answers' scores, where records have them
    ):
        if centre < 0:
            raise ValueError(f"alignment.centre must be at least 0 (0: none), but is {centre}")
        self.margin, self.centre, self.score_margin = margin, centre, score_margin

    def prepare(self, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        prompt = np.asarray(sample["prompt"], np.int64)
        ids = [np.concatenate([prompt, np.asarray(answer, np.int64)]) for answer in sample["answers"]]
        return {"row_ids": ids, **row_scores(sample, ids)}

    def targets(self, prepared: dict[str, Any]) -> dict[str, int]:
        return {"ranking": 1, **({"centre": 1} if self.centre else {})}

    def passes(self, prepared: dict[str, Any]) -> list[Pass]:
        return [Pass(len(ids), heads={"scalar": None}) for ids in prepared["row_ids"]]

    def loss(self, model: LanguageModel, batch: Mapping[str, Tensor]) -> Loss:
        there = batch["row_valid"].any(-1)
        output = model({name: batch[f"row_{name}"][there] for name in ("ids", "valid")}, heads={"scalar": None})
        score = output.heads["scalar"].float()[:, 0]
        score_BR = score.new_zeros(there.shape).masked_scatter(there, score)
        i, j, both, apart = preferred(batch)
        share, prompts = both / both.sum(-1, keepdim=True).clamp(min=1), both.any(-1).sum()
        better, worse = score_BR[:, i], score_BR[:, j]
        gap = better - worse
        terms = {"ranking": ((-F.logsigmoid(gap - self.margin - self.score_margin * apart) * share).sum(), prompts)}
        weights = {}
        if self.centre:
            terms["centre"], weights["centre"] = (((better + worse).square() * share).sum(), prompts), self.centre
        seen = gap.detach()
        shown = {"accuracy": (seen > 0).float(), "margin": seen, "better": better.detach(), "worse": worse.detach()}
        logs = {name: ((value * share).sum(), prompts) for name, value in shown.items()}
        return Loss(terms, weights, logs, {"model": auxiliary(output)})
