"""Likelihood of the best of several answers that the model has drawn itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from llmlab.optima import Case, Optimum, best_answer
from llmlab.policy import IGNORED, answered, entropies, greedy, log_probabilities, prepared
from llmlab.registry import register
from llmlab.slots import Answers, LanguageModel, Loss, Pass, Rollout, Vocabulary, auxiliary

SHOWN = ("mean_reward", "reward_std", "best_reward", "kept", "truncated")


@register("alignment", "rejection")
class RejectionSampling:
    """Rejection sampling: of several answers the best is learnt, again and again (RAFT: Dong et al. 2023, arXiv:2304.06767).

    So does Llama 2 (Touvron et al. 2023, arXiv:2307.09288, section 3.2.3): a model draws `samples` answers to each prompt, and
    the likelihood of the one of the greatest reward is raised, as sft would, by a mean over a step's tokens. Of equal rewards
    it is the first. A rollout's winners last `batches` x `epochs` steps, then the model of that moment draws again; both have
    rounds of some thousand prompts: alignment.batches=100. train.batch_size counts prompts. ids, labels (T,).

    There is no KL to a reference: only the number of steps holds the model back.

    Shown: `reward` and `reward_std` (of a prompt, on average), `best_reward` (of what is learnt), `kept` (the share of prompts
    of which something is), `entropy` of a token, `answer_length` and `truncated` of winners.

    samples: answers to each prompt, of which the best is learnt
    max_new: tokens of an answer at most
    temperature: at which answers are drawn; they are learnt at it too
    batches: optimizer steps that a rollout's winners last, each used once
    epochs: how often a rollout's winners are used
    least: the reward below which even the best is not learnt; null: any is
    ended: answers without an end are not learnt
    """

    reads = "prompts"
    mask = "causal"
    heads = {"tokens": "lm"}
    special = ("eos",)
    topologies = ("decoder",)
    measures = {"policy": "loss", "reward": "reward", "best_reward": "reward"}
    collate = "pad"
    together = True
    telling: ClassVar[tuple[dict[str, Any], ...]] = (
        {"samples": 2, "max_new": 3, "temperature": 0.5, "batches": 3, "epochs": 2},
        {"least": 2.0},
    )

    def __init__(
        self,
        vocabulary: Vocabulary,
        seq_len: int,
        /,
        *,
        samples: int = 4,
        max_new: int = 32,
        temperature: float = 1.0,
        batches: int = 1,
        epochs: int = 1,
        least: float | None = None,
        ended: bool = True,
    ):
        if samples < 2:
            raise ValueError(f"alignment.samples must be at least 2, of which the best is learnt, but is {samples}")
        self.rollout = Rollout(samples, max_new, temperature, batches, epochs)
        self.size, self.least, self.ended = vocabulary.size, least, ended

    def credit(self, answers: Answers) -> dict[str, np.ndarray]:
        return {}

    def optimum(self, case: Case) -> Optimum | None:
        return best_answer(case) if self.least is None else None

    def prepare(self, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        sample = answered(sample, self.rollout)
        rewards, truncated = (np.asarray(sample[name], np.float64) for name in ("reward", "truncated"))
        # An answer that is not to be learnt loses to any other.
        winner = int(np.where(truncated > 0, -np.inf, rewards).argmax()) if self.ended else int(rewards.argmax())
        kept = (self.least is None or rewards[winner] >= self.least) and not (self.ended and truncated[winner])
        best = {
            "prompt": sample["prompt"],
            "answer": sample["answers"][winner],
            "log_probabilities": sample["log_probabilities"][winner],
            "mean_reward": rewards.mean(),
            "reward_std": rewards.std(),
            "best_reward": rewards[winner] * kept,
            "kept": float(kept),
            "truncated": truncated[winner],
        }
        made = prepared(best, self.rollout.max_new, SHOWN)
        del made["advantage"]
        return made

    def targets(self, prepared: dict[str, Any]) -> dict[str, int]:
        return {"policy": int(prepared["answer_length"]) * int(prepared["kept"])}

    def passes(self, prepared: dict[str, Any]) -> list[Pass]:
        return [Pass(len(prepared["ids"]), heads={"tokens": int((prepared["labels"] != IGNORED).sum())})]

    def loss(self, model: LanguageModel, batch: Mapping[str, Tensor]) -> Loss:
        if (judged := greedy(batch, "policy")) is not None:
            return judged
        found = log_probabilities(model, batch, temperature=self.rollout.temperature, vocabulary=self.size)
        kept, lengths = batch["kept"], batch["answer_length"]
        learnt = kept.bool()[found.rows]
        count = torch.tensor(len(kept), device=kept.device)
        logs = {
            "reward": (batch["mean_reward"].sum(), count),
            "reward_std": (batch["reward_std"].sum(), count),
            "best_reward": (batch["best_reward"].sum(), kept.sum()),
            "kept": (kept.sum(), count),
            "entropy": (entropies(found.log_p).sum(), torch.tensor(len(found.now), device=kept.device)),
            "answer_length": (lengths.float().sum(), count),
            "truncated": (batch["truncated"].sum(), count),
        }
        terms = {"policy": (-found.now.where(learnt, 0.0).sum(), (lengths * kept.long()).sum())}
        return Loss(terms, {}, logs, {"model": auxiliary(found.output)})
