"""Policy gradients from rewards of whole answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from llmlab.policy import log_probabilities, prepared
from llmlab.registry import register
from llmlab.slots import Loss, Pass, Rollout, Vocabulary, auxiliary


@register("objective", "reinforce")
class Reinforce:
    """REINFORCE (Williams 1992, doi:10.1007/BF00992696) on answers of the model to prompts, each an episode with one reward.

    An answer's advantage is its reward less the mean of the other answers to its prompt (leave-one-out: Kool et al. 2019,
    "Buy 4 REINFORCE Samples, Get a Baseline for Free!"); with samples=1, of all others of the rollout. The gradient is that
    of advantage x log-probability, summed over an answer's tokens; in steps after the first of a rollout, each token is
    weighted by its importance ratio. The loss of a validation is the negative mean reward of greedy answers.

    samples: answers to each prompt
    max_new: tokens of an answer at most
    temperature: at which answers are drawn, and learnt
    batches: optimizer steps that a rollout's answers last, each used once
    epochs: how often a rollout's answers are used
    """

    reads = "prompts"
    mask = "causal"
    heads = {"tokens": "lm"}
    special = ("eos",)
    topologies = ("decoder",)
    measures = {"policy": "loss", "reward": "reward"}
    collate = "pad"
    fixed_counts = True
    telling = ({"samples": 2}, {"max_new": 3}, {"temperature": 0.5}, {"batches": 3}, {"epochs": 2})

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
    ):
        self.rollout = Rollout(samples, max_new, temperature, batches, epochs)
        self.vocabulary = vocabulary.size

    def advantages(self, rewards_PS: np.ndarray) -> np.ndarray:
        """(prompts, samples) -> the same."""
        others = rewards_PS if rewards_PS.shape[1] > 1 else rewards_PS.reshape(1, -1)
        n = others.shape[1]
        if n == 1:
            return rewards_PS
        return (others - (others.sum(1, keepdims=True) - others) / (n - 1)).reshape(rewards_PS.shape)

    def prepare(self, sample: dict[str, Any], rng: Any) -> dict[str, Any]:
        return prepared(sample, self.rollout.max_new)

    def targets(self, prepared: dict[str, Any]) -> dict[str, int]:
        return {"policy": 1}

    def passes(self, prepared: dict[str, Any]) -> list[Pass]:
        return [Pass(len(prepared["ids"]), heads={"tokens": int(prepared["answer_length"])})]

    def loss(self, model: Any, batch: Mapping[str, Tensor]) -> Loss:
        reward = batch["reward"].float()
        count = reward.new_tensor(len(reward))
        logs = {"reward": (reward.sum(), count), "answer_length": (batch["answer_length"].float().sum(), count)}
        if "labels" not in batch:  # greedy answers of a validation
            return Loss({"policy": (-reward.sum(), count)}, logs=logs)
        found = log_probabilities(model, batch, temperature=self.rollout.temperature, vocabulary=self.vocabulary)
        # 1 in a rollout's first step, but its gradient is that of the log-probability.
        ratio = (found.now - found.then).exp()
        loss = -(ratio * batch["advantage"][found.rows]).sum()
        return Loss({"policy": (loss, count)}, logs=logs, aux={"model": auxiliary(found.output)})
