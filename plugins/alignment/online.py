"""DPO on answers of the model's own, which a reward compares as they are written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from llmlab.optima import Case, Optimum, best_answer, tilted
from llmlab.policy import EQUAL, answered, greedy
from llmlab.registry import register
from llmlab.slots import Answers, LanguageModel, Loss, Pass, Rollout, Vocabulary, auxiliary

from ._answers import answer_passes, prepared_answers, scored
from .preference import LOSSES, Pairs


@register("alignment", "online_dpo")
class OnlinePreferences:
    """DPO on pairs of answers that the model itself draws, the better one by the reward (Guo et al. 2024, arXiv:2402.04792).

    Two answers to each prompt are drawn, and the loss is that of dpo of the pair, relative to the reference, a frozen copy of
    the model as it begins. Of more answers all pairs are learnt, each prompt with one weight. Equal answers, or answers of
    equal rewards, teach nothing. train.batch_size counts prompts. row_ids, row_labels (R, T) and row_reward (R,).

    With labels=bradley_terry the best policy is that of the reward less beta times the KL to the reference; with ranked, as the
    paper has it, the better answer is as certain to win by a little as by much, and nothing holds the policy back.

    Shown: `reward` and `reward_std` (of a prompt, on average), `flat_groups` (the share of prompts without a pair), `accuracy`
    and `margin` of pairs, `kl` of an answer to the reference (an estimate of either sign), `answer_length`, `truncated`.

    samples: answers to each prompt
    max_new: tokens of an answer at most
    temperature: at which answers are drawn
    batches: optimizer steps that a rollout's answers last, each used once
    epochs: how often a rollout's answers are used
    loss: of a pair, as alignment=dpo, ipo and hinge have it
    labels: the answer of the greater reward wins (ranked), or both do, each by its share in Bradley and Terry's model
    beta: how far the model may go from the reference; large: less
    no_end: taken from the reward of an answer without an end
    """

    reads = "prompts"
    mask = "causal"
    heads = {"tokens": "lm"}
    special = ("eos",)
    topologies = ("decoder",)
    measures = {"preference": "loss", "reward": "reward", "accuracy": "accuracy", "margin": "margin"}
    collate = "pad"
    together = True
    shows_kl = True
    models: ClassVar[dict[str, Any]] = {"reference": {"heads": {"tokens": "lm"}, "trains": False, "copies": True}}
    telling: ClassVar[tuple[dict[str, Any], ...]] = (
        {"samples": 3, "max_new": 3, "temperature": 0.5, "batches": 3, "epochs": 2},
        {"beta": 0.3},
        {"no_end": 0.5},
    )

    def __init__(
        self,
        vocabulary: Vocabulary,
        seq_len: int,
        /,
        *,
        samples: int = 2,
        max_new: int = 32,
        temperature: float = 1.0,
        batches: int = 1,
        epochs: int = 1,
        loss: Literal["sigmoid", "ipo", "hinge"] = "sigmoid",
        labels: Literal["ranked", "bradley_terry"] = "ranked",
        beta: float = 0.1,
        no_end: float = 0.0,
    ):
        if samples < 2:
            raise ValueError(f"alignment.samples must be at least 2, which are compared, but is {samples}")
        if not beta > 0 or no_end < 0:
            raise ValueError(
                f"alignment.beta must be more than 0 and alignment.no_end at least 0, but they are {beta} and {no_end}"
            )
        self.rollout = Rollout(samples, max_new, temperature, batches, epochs)
        self.size, self.named, self.labels, self.beta, self.no_end = vocabulary.size, loss, labels, beta, no_end

    def credit(self, answers: Answers) -> dict[str, np.ndarray]:
        return {}

    def optimum(self, case: Case) -> Optimum | None:
        """Of all pairs at once, so that it is one of any pairs that are drawn."""
        if self.named != "sigmoid":
            return None
        return tilted(case, self.beta) if self.labels == "bradley_terry" else best_answer(case)

    def prepare(self, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        sample = answered(sample, self.rollout)
        truncated = np.asarray(sample["truncated"], np.float32)
        return {
            **prepared_answers(sample),
            "reward": np.asarray(sample["reward"], np.float32) - np.float32(self.no_end) * truncated,
            "truncated": truncated,
        }

    def targets(self, prepared: dict[str, Any]) -> dict[str, int]:
        wins = self._wins(torch.from_numpy(prepared["reward"])[None], _different([prepared["row_labels"]]))
        return {"preference": int((wins.sum() > 0).item())}

    def passes(self, prepared: dict[str, Any]) -> list[Pass]:
        return [*answer_passes(prepared), *answer_passes(prepared, "reference")]

    def loss(
        self, model: LanguageModel, batch: Mapping[str, Tensor], *, reference: LanguageModel | None = None
    ) -> Loss:
        if (judged := greedy(batch, "preference")) is not None:
            return judged
        assert reference is not None  # of a run, whose objective declares it
        found = scored(model, batch, self.size)
        theirs = scored(reference, batch, self.size, learn=False)
        learnt = found.sums - theirs.sums
        reward, labels = batch["reward"].float(), batch["row_labels"]
        # Answers that are alike have no better one, whatever a reward that draws says of them.
        wins = self._wins(reward, (labels[:, :, None] != labels[:, None]).any(-1))
        pair = Pairs(learnt[:, :, None], learnt[:, None], self.beta, 0.0, 0.0)
        of_all = wins.sum((1, 2))
        share = wins / of_all.clamp(min=1e-9)[:, None, None]
        prompts = (of_all > 0).sum()
        each = LOSSES[self.named](pair)
        gap = self.beta * (pair.better - pair.worse).detach()
        answers = torch.tensor(reward.numel(), device=reward.device)
        count = torch.tensor(len(reward), device=reward.device)
        logs = {
            "reward": (reward.sum(), answers),
            "reward_std": (reward.std(1, correction=0).sum(), count),
            "flat_groups": (count - prompts, count),
            "answer_length": (found.lengths.sum(), answers),
            "truncated": (batch["truncated"].sum(), answers),
            "kl": (learnt.detach().sum(), answers),
            "accuracy": (((gap > 0) * share).sum(), prompts),
            "margin": ((gap * share).sum(), prompts),
        }
        return Loss({"preference": ((each * share).sum(), prompts)}, {}, logs, {"model": auxiliary(found.output)})

    def _wins(self, reward_BR: Tensor, different_BRR: Tensor) -> Tensor:
        """(B, R, R): how often the first answer of a pair is the better one; 0 where that says nothing."""
        gap = reward_BR[:, :, None] - reward_BR[:, None]
        if self.labels == "bradley_terry":
            return gap.sigmoid() * different_BRR
        most = EQUAL * torch.maximum(reward_BR.abs()[:, :, None], reward_BR.abs()[:, None])
        return ((gap > most) & different_BRR).float()


def _different(rows: list[list[np.ndarray]]) -> Tensor:
    """(B, R, R): two answers are not the same text."""
    found = [[[not np.array_equal(a, b) for b in each] for a in each] for each in rows]
    return torch.tensor(found)
