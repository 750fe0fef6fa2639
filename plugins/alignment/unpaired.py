"""Learning from single answers that are good or bad."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from llmlab.registry import register
from llmlab.slots import LanguageModel, Loss, Pass, Vocabulary, auxiliary

from ._answers import answer_passes, prepared_answers, scored


def _own(rows: Tensor) -> tuple[Tensor, int]:
    return rows, 0


@register("alignment", "kto")
class KahnemanTversky:
    """Kahneman-Tversky optimization (Ethayarajh et al. 2024, arXiv:2402.01306) of answers that are good or bad.

    With r the log-probability of an answer less that of the reference, a frozen copy of the model as it begins, and z the
    point that it is compared with: good_weight x (1 - sigmoid(beta (r - z))) of a good answer, bad_weight x
    (1 - sigmoid(beta (z - r))) of a bad one. z estimates the KL divergence of model and reference, is at least 0 and is
    without gradient: the mean of r over answers to other prompts (the paper), over all ranks and of a micro-batch.
    row_ids and row_labels (R, T): the prompt with its answer, and with that of another sample; good ().
    """

    reads = "rated"
    mask = "causal"
    heads = {"tokens": "lm"}
    special = ("eos",)
    topologies = ("decoder",)
    measures = {"value": "loss", "kl": "loss"}
    shows_kl = True
    collate = "pad"
    other = True
    joint = True
    models = {"reference": {"heads": {"tokens": "lm"}, "trains": False, "copies": True}}
    telling = ({"beta": 0.3}, {"good_weight": 2.0}, {"bad_weight": 0.5})
    fixed_counts = True

    def __init__(
        self,
        vocabulary: Vocabulary,
        seq_len: int,
        /,
        *,
        beta: float = 0.1,  # how far the model may go from the reference; large: less
        good_weight: float = 1.0,  # of good answers
        bad_weight: float = 1.0,  # of bad ones
        kl: Literal["mismatched", "own", "none"] = "mismatched",  # z is of other prompts' answers, of the same, or 0
    ):
        if not beta > 0 or good_weight < 0 or bad_weight < 0:
            raise ValueError(
                "alignment.beta must be more than 0, alignment.good_weight and alignment.bad_weight at least 0, but they are "
                f"{beta}, {good_weight} and {bad_weight}"
            )
        self.size, self.seq_len, self.beta, self.kl = vocabulary.size, seq_len, beta, kl
        self.good_weight, self.bad_weight, self.gather = good_weight, bad_weight, _own

    def prepare(self, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        # With a prompt that is not its own it may be too long for the model.
        other = sample.get("other", sample)["answer"][: max(1, self.seq_len + 1 - len(sample["prompt"]))]
        answers = [sample["answer"], other] if self.kl == "mismatched" else [sample["answer"]]
        return {**prepared_answers({**sample, "answers": answers}), "good": np.int64(sample["good"])}

    def targets(self, prepared: dict[str, Any]) -> dict[str, int]:
        return {"value": 1}

    def passes(self, prepared: dict[str, Any]) -> list[Pass]:
        return [*answer_passes(prepared), *answer_passes(prepared, "reference")]

    def loss(self, model: LanguageModel, batch: Mapping[str, Tensor], *, reference: LanguageModel) -> Loss:
        found, theirs = scored(model, batch, self.size), scored(reference, batch, self.size, learn=False)
        ratio = found.sums - theirs.sums
        r, good = ratio[:, 0], batch["good"].bool()
        z = self._point(ratio.detach())
        gap = self.beta * torch.where(good, r - z, z - r)
        weight = torch.where(good, self.good_weight, self.bad_weight)
        count = torch.tensor(len(r), device=r.device)
        reward, shown = self.beta * r.detach(), {}
        for name, which in (("good", good), ("bad", ~good)):
            shown[f"{name}_reward"] = (reward * which).sum(), which.sum()
        logs = {**shown, "kl": (z * len(r), count)}
        return Loss(
            {"value": ((weight * (1 - gap.sigmoid())).sum(), count)}, logs=logs, aux={"model": auxiliary(found.output)}
        )

    def _point(self, ratio_BR: Tensor) -> Tensor:
        if self.kl == "none":
            return ratio_BR.new_zeros(())
        all_ranks, _ = self.gather(ratio_BR[:, -1])
        return all_ranks.mean().clamp(min=0)
