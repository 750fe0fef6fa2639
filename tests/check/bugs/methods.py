"""What is learnt from answers, and through what."""

from __future__ import annotations

import numpy as np

from bugs import around, bug
from llmlab_plugins.adapter.low_rank import LowRank
from llmlab_plugins.alignment import policy_gradient, ppo
from llmlab_plugins.alignment._surrogate import Surrogate
from llmlab_plugins.alignment.sft import SupervisedFineTuning


@bug("an answer is among those whose mean it is compared with", definition="alignment=rloo")
def its_own_baseline():
    def of_groups(original, rewards, how, eps=0.0):
        n = rewards.shape[1]
        return original(rewards, how, eps) * ((n - 1) / n if how == "leave_one_out" else 1)

    return around(policy_gradient, "of_groups", of_groups)


@bug("a gradient goes through the weight that clips it", definition="alignment=cispo")
def weight_learns():
    def surrogate(original, now, log_ratio, advantage, how, low, high):
        found = original(now, log_ratio, advantage, how, low, high)
        weight = log_ratio.exp().clamp(None, 1 + high)
        return Surrogate(-weight * advantage * now, found.clipped) if how == "cispo" else found

    return around(policy_gradient, "surrogate", surrogate)


@bug("advantages are whitened with the padding behind short answers", definition="alignment=ppo")
def padding_whitened():
    def whitened(original, values, lengths):
        return original(values, np.full_like(lengths, values.shape[1]))

    return around(ppo, "whitened", whitened)


@bug("an answer's end is no target", definition="alignment=sft")
def end_not_learnt():
    def prepare(original, self, sample, rng):
        prepared = original(self, sample, rng)
        labels, behind = prepared["labels"], np.append(prepared["labels"][1:], -100)
        return {**prepared, "labels": np.where(behind == -100, -100, labels)}

    return around(SupervisedFineTuning, "prepare", prepare)


@bug("an update is merged without its scale", definition="adapter=lora")
def merged_unscaled():
    def merged(original, self, weight, learnt):
        return weight + (original(self, weight, learnt) - weight) / self.scale

    return around(LowRank, "merged", merged)
