"""Policy gradients from rewards of whole answers: REINFORCE, GRPO and their kin."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from llmlab.optima import Case, Optimum, best_answer, tilted, tilted_backwards
from llmlab.policy import (
    IGNORED,
    Recomputed,
    entropies,
    exact_kl,
    greedy,
    log_probabilities,
    prepared,
    there,
    without_spread,
)
from llmlab.registry import register
from llmlab.slots import Answers, LanguageModel, Loss, Pass, Rollout, Vocabulary, auxiliary

from ._advantages import of_groups, of_tokens, overlong
from ._surrogate import aggregated, kl_estimate, log_ratios, surrogate


@register(
    "alignment",
    "reinforce",
    advantage="leave_one_out",
    clip_low=None,
    clip_high=None,
    aggregation="sequence_sum",
    kl="none",
    beta=0.0,
    samples=4,
)
@register(
    "alignment",
    "rloo",
    advantage="leave_one_out",
    clip_low=None,
    clip_high=None,
    aggregation="sequence_sum",
    kl="reward",
    beta=0.05,
    samples=4,
)
@register("alignment", "reinforce_pp", advantage="batch", aggregation="token_mean", kl="reward", beta=0.01, samples=1)
@register("alignment", "gspo", ratio="sequence", clip_low=3e-4, clip_high=4e-4, kl="none", beta=0.0)
@register(
    "alignment", "cispo", clip="cispo", clip_low=None, clip_high=4.0, aggregation="token_mean", kl="none", beta=0.0
)
@register("alignment", "dapo", clip_high=0.28, aggregation="token_mean", overlong=0.2, kl="none", beta=0.0)
@register("alignment", "dr_grpo", advantage="mean", aggregation="constant", kl="none", beta=0.0)
@register("alignment", "grpo")
class PolicyGradient:
    """Policy gradients from rewards of the model's own answers, without a critic (GRPO: Shao et al. 2024, arXiv:2402.03300).

    grpo: Group relative policy optimization (Shao et al. 2024, arXiv:2402.03300, equation 3), with k3 in the loss.
    dr_grpo: GRPO without division by the standard deviation or by an answer's length (Liu et al. 2025, arXiv:2503.20783).
    dapo: GRPO with a higher bound of ratios, a mean over all tokens, long answers punished (Yu et al. 2025, arXiv:2503.14476).
    cispo: GRPO whose clipped ratios only weigh the log-probability (MiniMax-M1: 2025, arXiv:2506.13585).
    gspo: GRPO with one ratio an answer, the geometric mean of its tokens' (Zheng et al. 2025, arXiv:2507.18071).
    reinforce_pp: Returns of tokens, normalised over the rollout (REINFORCE++: Hu 2025, arXiv:2501.03262).
    rloo: Rewards with a KL, less the mean of the other answers to the prompt (Ahmadian et al. 2024, arXiv:2402.14740).
    reinforce: REINFORCE (Williams 1992, doi:10.1007/BF00992696) less the mean of the other answers (Kool et al. 2019).

    In grpo and most kin an answer's advantage is its reward less the mean of those to its prompt, over their standard
    deviation. The upper bound of cispo is that of ScaleRL (Khatri et al. 2025, arXiv:2510.13786). Groups without spread are
    counted; resample=N answers other prompts in their place, which dapo's paper does until there are none (dynamic sampling).
    reinforce with samples=1 compares an answer with all others of the rollout.

    The loss of a validation is the negative mean reward of greedy answers. A step in which no answer is better than another,
    and whose loss has no KL, is not made. Shown: `reward` and `reward_std` (of a group, on average), `flat_groups` (the share
    without spread), `kl` (of an answer to the reference, exact for the contexts that were drawn), `entropy` of a token,
    `clip_fraction` of tokens, `answer_length` and `truncated` (the share of answers without an end).

    samples: answers to each prompt
    max_new: tokens of an answer at most
    temperature: at which answers are drawn, and learnt
    batches: optimizer steps that a rollout's answers last, each used once
    epochs: how often a rollout's answers are used
    resample: times that other prompts are answered in place of those whose answers are all of one reward, at most
    advantage: rewards by the mean and standard deviation of their prompt's answers (group), by that mean (mean), by it and the
        standard deviation of the rollout (mean_batch), by the mean of the others (leave_one_out), or returns of tokens by the
        mean and standard deviation of the rollout's (batch)
    std_eps: added to a standard deviation; TRL has 1e-4
    ratio: of a token, the geometric mean over its answer (sequence), or the answer's own (product)
    clip: how ratios are clipped
    clip_low: by how much a ratio may be below 1; null: by any
    clip_high: by how much a ratio may be above 1; null: by any
    aggregation: the loss is a mean over answers of the mean over their tokens, a mean over all tokens, or a mean over answers
        of the sum over their tokens, which `constant` divides by one length for all
    length: the constant; null: max_new
    kl: where the KL to the reference, the model as it begins, counts
    estimator: of the KL; null: k3 in the loss, k1 in the reward
    beta: weight of the KL
    overlong: share of max_new, at its end, over which an answer's reward falls by 1
    mask_truncated: answers without an end are not learnt from
    """

    reads = "prompts"
    mask = "causal"
    heads = {"tokens": "lm"}
    special = ("eos",)
    topologies = ("decoder",)
    measures = {"policy": "loss", "reward": "reward"}
    collate = "pad"
    when = {
        "clip=cispo": {"estimates": True},
        "kl=shown": {
            "models": {"reference": {"heads": {"tokens": "lm"}, "trains": False, "copies": True}},
            "shows_kl": True,
        },
        "kl=loss": {
            "models": {"reference": {"heads": {"tokens": "lm"}, "trains": False, "copies": True}},
            "shows_kl": True,
        },
        "kl=reward": {
            "models": {"reference": {"heads": {"tokens": "lm"}, "trains": False, "copies": True}},
            "shows_kl": True,
        },
    }
    telling: ClassVar[tuple[dict[str, Any], ...]] = (
        {"samples": 2, "max_new": 3, "temperature": 0.5, "batches": 3, "epochs": 2},
        {"advantage": "mean_batch", "std_eps": 0.3, "samples": 3},
        {"clip_low": 0.1, "clip_high": 0.15},
        {"aggregation": "constant", "length": 5},
        {"kl": "shown", "beta": 0.0},
        {"kl": "loss", "beta": 0.3, "estimator": "k2"},
        {"kl": "reward", "beta": 0.3, "estimator": "k1"},
        {"kl": "reward", "beta": 0.3, "estimator": "k3"},
        {"overlong": 0.5, "max_new": 6, "aggregation": "sequence_sum"},
        {"samples": 3, "resample": 2},
    )

    def __init__(
        self,
        vocabulary: Vocabulary,
        seq_len: int,
        /,
        *,
        samples: int = 8,
        max_new: int = 32,
        temperature: float = 1.0,
        batches: int = 1,
        epochs: int = 1,
        resample: int = 0,
        advantage: Literal["group", "mean", "mean_batch", "leave_one_out", "batch"] = "group",
        std_eps: float = 0.0,
        ratio: Literal["token", "sequence", "product"] = "token",
        clip: Literal["ppo", "cispo"] = "ppo",
        clip_low: float | None = 0.2,
        clip_high: float | None = 0.2,
        aggregation: Literal["sequence_mean", "token_mean", "sequence_sum", "constant"] = "sequence_mean",
        length: int | None = None,
        kl: Literal["none", "shown", "loss", "reward"] = "loss",
        estimator: Literal["k1", "k2", "k3"] | None = None,
        beta: float = 0.04,
        overlong: float = 0.0,
        mask_truncated: bool = False,
    ):
        self.rollout = Rollout(samples, max_new, temperature, batches, epochs, resample)
        self.vocabulary, self.eos = vocabulary.size, vocabulary.special.get("eos")
        self.advantage, self.std_eps, self.ratio, self.clip = advantage, std_eps, ratio, clip
        self.clip_low, self.clip_high, self.aggregation = clip_low, clip_high, aggregation
        self.length, self.kl, self.beta, self.overlong = length or max_new, kl, beta, overlong
        self.estimator = estimator or ("k3" if kl == "loss" else "k1")
        self.mask_truncated = mask_truncated
        self._check(samples, length, estimator)

    @property
    def _shown(self) -> tuple[str, ...]:
        """Numbers of an answer that are shown as they are."""
        more = {"kl": self.kl == "reward", "resampled": self.rollout.resample > 0}
        return ("reward_std", "flat_groups", "truncated", *(name for name, there in more.items() if there))

    def _check(self, samples: int, length: int | None, estimator: str | None) -> None:
        """ValueError for options that can't be, or have no effect together."""
        if samples < 2 and self.advantage in ("group", "mean", "mean_batch"):
            raise ValueError(
                f"alignment.samples must be at least 2 with advantage={self.advantage}, which compares the answers to a "
                f"prompt, but is {samples}; or advantage=batch"
            )
        for name, low in (
            ("std_eps", 0),
            ("beta", 0),
            ("overlong", 0),
            ("clip_low", 0),
            ("clip_high", 0),
            ("length", 1),
        ):
            value = length if name == "length" else getattr(self, name)
            if value is not None and not low <= value < float("inf"):
                raise ValueError(f"alignment.{name} must be at least {low}, but is {value}")
        if self.overlong > 1 or (self.clip_low or 0) > 1:
            raise ValueError(
                f"alignment.overlong and alignment.clip_low must be at most 1, but are {self.overlong} and {self.clip_low}"
            )
        weighs = self.kl in ("loss", "reward")
        if weighs != (self.beta > 0):
            raise ValueError(
                f"alignment.beta={self.beta} is the weight of the KL, which kl={self.kl} "
                f"{'has: give one above 0, or kl=shown' if weighs else 'has not: give kl=loss or kl=reward, or beta=0'}"
            )
        if estimator is not None and not weighs:
            raise ValueError(f"alignment.estimator={estimator} has no effect with kl={self.kl}; leave it out")
        if self.kl == "loss" and self.estimator == "k1":
            raise ValueError(
                "alignment.estimator=k1 has a gradient of mean 0 in the loss (the score's mean): give k2 or k3, or kl=reward"
            )
        if length is not None and self.aggregation != "constant":
            raise ValueError(
                f"alignment.length={length} has no effect with aggregation={self.aggregation}; leave it out"
            )
        if self.advantage == "batch" and self.ratio == "product":
            raise ValueError(
                "alignment.advantage=batch has a return for each token, and alignment.ratio=product one for each answer"
            )

    # ---------------------------------------------------------------- a rollout

    @torch.no_grad()
    def measure(
        self, model: LanguageModel, batch: Mapping[str, Tensor], *, reference: LanguageModel | None = None
    ) -> dict[str, Tensor]:
        """What a KL in the reward needs of each answer: log p_ref of its tokens (B, T), and its KL to the reference (B,)."""
        if self.kl != "reward" or reference is None:
            return {}
        where = batch["labels"] != IGNORED
        both = [self._scored(model, batch), self._scored(reference, batch, writer=False)]
        found = torch.zeros(where.shape, device=where.device)
        exact = found.masked_scatter(where, exact_kl(both[0].log_p, both[1].log_p))
        return {"reference": found.masked_scatter(where, both[1].now), "kl": exact.sum(1)}

    def credit(self, answers: Answers) -> dict[str, np.ndarray]:
        """Advantages (N,), or (N, A) where each token has its own, and what is shown of the rewards."""
        rewards = answers.rewards + overlong(answers.lengths, self.rollout.max_new, self.overlong)
        grid = rewards.reshape(-1, answers.samples)
        penalty = np.zeros_like(answers.log_probabilities)
        if self.kl == "reward":
            real = there(answers.lengths, penalty.shape[1])
            gap = torch.from_numpy(np.where(real, answers.log_probabilities - answers.measured["reference"], 0.0))
            penalty = self.beta * kl_estimate(gap, self.estimator).numpy()
        if self.advantage == "batch":
            advantages = of_tokens(rewards, penalty, answers.lengths, self.std_eps)
        else:
            advantages = self.advantages(grid - penalty.sum(1).reshape(grid.shape)).reshape(-1)
        shown = {"flat_groups": without_spread(grid).astype(np.float64), "reward_std": grid.std(1)}
        found = {"advantage": advantages, **{name: of.repeat(answers.samples) for name, of in shown.items()}}
        return {**found, **({"kl": answers.measured["kl"]} if self.kl == "reward" else {})}

    def optimum(self, case: Case) -> Optimum | None:
        """With k1 in the reward all answers are worth the same there, whatever the advantage. In the loss the gradient of an
        estimate is the KL's for a single token alone: of an answer's first it leaves out what follows from it."""
        if self.rollout.temperature != 1:
            return None
        if self.kl in ("none", "shown") or not self.beta:
            return best_answer(case)
        if self.kl == "reward":
            return tilted(case, self.beta) if self.estimator == "k1" else None
        if case.length > 1 or self.advantage not in ("mean", "leave_one_out") or self.ratio != "token":
            return None
        # The mean of n answers has the answer itself in it: on average the advantage is (n - 1) / n of r - E[r].
        n = self.rollout.samples
        beta = self.beta * (n / (n - 1) if self.advantage == "mean" else 1.0)
        return tilted(case, beta) if self.estimator == "k2" else tilted_backwards(case, beta)

    def advantages(self, rewards_PS: np.ndarray) -> np.ndarray:
        """(prompts, samples) -> the same, of rewards that have no penalty of single tokens."""
        if self.advantage == "batch":
            n = rewards_PS.size
            return of_tokens(rewards_PS.reshape(-1), np.zeros((n, 1)), np.ones(n), self.std_eps).reshape(
                rewards_PS.shape
            )
        return of_groups(rewards_PS, self.advantage, self.std_eps)

    # ---------------------------------------------------------------- learning

    def prepare(self, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        return prepared(sample, self.rollout.max_new, ("reward", *self._shown))

    def targets(self, prepared: dict[str, Any]) -> dict[str, int]:
        n = int(prepared["answer_length"])
        learnt = not (self.mask_truncated and prepared["truncated"])
        count = (n if self.aggregation == "token_mean" else 1) if learnt else 0
        return {"policy": count, **({"penalty": count} if self.kl == "loss" else {})}

    def passes(self, prepared: dict[str, Any]) -> list[Pass]:
        tokens, heads = len(prepared["ids"]), {"tokens": int(prepared["answer_length"])}
        learnt = Pass(tokens, heads=heads)
        theirs = Pass(tokens, model="reference", trained=False, heads=heads)
        if self.kl == "reward":  # once a rollout, by both
            rolled = [replace(each, trained=False, times=1 / self.rollout.epochs) for each in (learnt, theirs)]
            return [learnt, *rolled]
        return [learnt] if self.kl == "none" else [learnt, theirs]

    def loss(
        self, model: LanguageModel, batch: Mapping[str, Tensor], *, reference: LanguageModel | None = None
    ) -> Loss:
        if (judged := greedy(batch, "policy")) is not None:
            return judged
        reward = batch["reward"].float()
        count = reward.new_tensor(len(reward))
        logs = {"reward": (reward.sum(), count), "answer_length": (batch["answer_length"].float().sum(), count)}
        logs |= {name: (batch[name].float().sum(), count) for name in self._shown}
        found, lengths = self._scored(model, batch), batch["answer_length"]
        if self.mask_truncated:
            lengths = lengths * ~batch["truncated"].bool()
        learnt = (lengths > 0)[found.rows]

        def mean(each: Tensor) -> tuple[Tensor, Tensor]:
            # where() and not a product: a ratio of an answer that is left out may be infinite.
            each = each.where(learnt, 0.0) if self.mask_truncated else each
            return aggregated(each, found.rows, lengths, self.aggregation, self.length)

        log_ratio = log_ratios(found.now, found.then, found.rows, len(reward), self.ratio)
        advantage = batch["advantage"]
        by_token = advantage[found.where] if advantage.dim() > 1 else advantage[found.rows]
        each, clipped = surrogate(found.now, log_ratio, by_token, self.clip, self.clip_low, self.clip_high)
        terms, tokens = {"policy": mean(each)}, reward.new_tensor(len(found.now))
        if reference is not None and self.kl != "reward":
            with torch.no_grad():
                theirs = self._scored(reference, batch, writer=False)
                logs["kl"] = exact_kl(found.log_p, theirs.log_p).sum(), count
            if self.kl == "loss":
                terms["penalty"] = mean(kl_estimate(found.now - theirs.now, self.estimator))
        logs["entropy"] = entropies(found.log_p).sum(), tokens
        logs["clip_fraction"] = clipped.float().sum(), tokens
        weights = {"penalty": self.beta} if "penalty" in terms else {}
        return Loss(terms, weights, logs, {"model": auxiliary(found.output)})

    def _scored(self, model: LanguageModel, batch: Mapping[str, Tensor], writer: bool = True) -> Recomputed:
        temperature, size = self.rollout.temperature, self.vocabulary
        return log_probabilities(model, batch, temperature=temperature, vocabulary=size, writer=writer)
