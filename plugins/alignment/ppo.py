"""Proximal policy optimization with a critic, on answers that a reward judges."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from llmlab.optima import Case, Optimum, best_answer, tilted
from llmlab.policy import IGNORED, Recomputed, entropies, exact_kl, greedy, log_probabilities, prepared, there
from llmlab.registry import register
from llmlab.slots import Answers, LanguageModel, Loss, Output, Pass, Rollout, Vocabulary, auxiliary

from ._returns import explained_variance, generalised_advantages, whitened
from ._surrogate import kl_estimate, surrogate

ADAPTS, MOST = 0.1, 0.2  # Ziegler et al. 2019, section 2.2: K_beta, and the error's bound
OF_ANSWERS = ("reward", "truncated", "kl", "coefficient", "explained_variance")
OF_TOKENS = ("value", "return")


@register("alignment", "ppo")
class ProximalPolicyOptimization:
    """Proximal policy optimization (Schulman et al. 2017, arXiv:1707.06347) of a language model (Ziegler et al. 2019,
    arXiv:1909.08593; InstructGPT: Ouyang et al. 2022, arXiv:2203.02155).

    A token's reward is its KL to the reference, the model as it begins, times -beta, and at an answer's last the answer's
    reward is added. Advantages are generalized estimates (Schulman et al. 2016, arXiv:1506.02438) with the values of a critic,
    whitened over the rollout. The loss is a mean over a step's tokens of the clipped policy loss and, weighed, of the clipped
    value loss.

    Shown: as of grpo but for groups, and `coefficient` (beta), `explained_variance` of the critic before it has learnt of a
    rollout, and `value_clip_fraction` of tokens.

    samples: answers to each prompt
    max_new: tokens of an answer at most
    temperature: at which answers are drawn, and learnt
    batches: optimizer steps that a rollout's answers last, each used once
    epochs: how often a rollout's answers are used
    critic: a model of its own, which begins with the weights of init_from, or as models.critic=RUN does, a reward model or a
        critic; or a second head on the policy (shared)
    beta: weight of the KL; where it adapts, its first
    estimator: of the KL of a token
    target: KL of an answer to which beta adapts, by a tenth at most of the error of 0.2 a rollout; null: beta stays
    gamma: by which later rewards count less
    lam: of the advantages: 0, of the next value alone; 1, of all rewards to come
    clip: by how much a ratio may be below or above 1
    value_clip: by how much a value may be from that of the rollout; null: by any
    value_weight: of the value loss
    whiten: advantages have mean 0 and standard deviation 1 over the rollout
    no_end: taken from the reward of an answer without an end
    """

    reads = "prompts"
    mask = "causal"
    heads = {"tokens": "lm"}
    special = ("eos",)
    topologies = ("decoder",)
    measures = {"policy": "loss", "value": "loss", "reward": "reward"}
    shows_kl = True
    collate = "pad"
    models: ClassVar[dict[str, Any]] = {"reference": {"heads": {"tokens": "lm"}, "trains": False, "copies": True}}
    when = {
        "critic=own": {
            "models": {
                "critic": {
                    "heads": {"value": "value"},
                    "trains": True,
                    "words": (),
                    "warm": True,
                    "heads_from": {"value": "scalar"},
                }
            }
        },
        "critic=shared": {"heads": {"value": "value"}},
    }
    telling: ClassVar[tuple[dict[str, Any], ...]] = (
        {"lam": 0.5},
        {"gamma": 0.5},
        {"beta": 0.3},
        {"clip": 0.1},
        {"samples": 2, "max_new": 3, "temperature": 0.5, "batches": 3, "epochs": 2},
        {"target": 1.0},
        {"value_clip": 0.7},
        {"value_weight": 0.5},
        {"no_end": 0.5},
    )

    def __init__(
        self,
        vocabulary: Vocabulary,
        seq_len: int,
        /,
        *,
        samples: int = 1,
        max_new: int = 32,
        temperature: float = 1.0,
        batches: int = 1,
        epochs: int = 4,
        critic: Literal["own", "shared"] = "own",
        beta: float = 0.05,
        estimator: Literal["k1", "k2", "k3"] = "k1",
        target: float | None = None,
        gamma: float = 1.0,
        lam: float = 0.95,
        clip: float = 0.2,
        value_clip: float | None = 0.2,
        value_weight: float = 0.1,
        whiten: bool = True,
        no_end: float = 0.0,
    ):
        self.rollout = Rollout(samples, max_new, temperature, batches, epochs)
        self.vocabulary, self.critic, self.estimator, self.target = vocabulary.size, critic, estimator, target
        self.coefficient, self.gamma, self.lam, self.clip = beta, gamma, lam, clip
        self.value_clip, self.whiten, self.no_end = value_clip, whiten, no_end
        self.weights = {"value": value_weight}
        for name, value, low, high in (
            ("beta", beta, 0, np.inf), ("gamma", gamma, 0, 1), ("lam", lam, 0, 1), ("clip", clip, 0, 1),
            ("value_clip", value_clip, 0, np.inf), ("value_weight", value_weight, 0, np.inf), ("no_end", no_end, 0, np.inf),
        ):  # fmt: skip
            if value is not None and not low <= value <= high:
                bound = f"in [0, {high}]" if high == 1 else "at least 0"
                raise ValueError(f"alignment.{name} must be {bound}, but is {value}")
        if target is not None and not (target > 0 and beta > 0):
            raise ValueError(f"alignment.target={target} and the beta={beta} that adapts to it must be more than 0")

    # ---------------------------------------------------------------- a rollout

    def measure(
        self,
        model: LanguageModel,
        batch: Mapping[str, Tensor],
        *,
        reference: LanguageModel,
        **companions: LanguageModel,
    ) -> dict[str, Tensor]:
        """Of each answer's tokens (B, T) log p_ref and the value before it; of an answer (B,) its KL to the reference."""
        where = batch["labels"] != IGNORED
        ours, theirs = self._scored(model, batch), self._scored(reference, batch, writer=False)
        found = torch.zeros(where.shape, device=where.device)
        each = {
            "kl": exact_kl(ours.log_p, theirs.log_p),
            "reference": theirs.now,
            "value": self._criticised(companions.get("critic", model), batch).heads["value"].float(),
        }
        by_token = {name: found.masked_scatter(where, of.float()) for name, of in each.items()}
        return {**by_token, "kl": by_token["kl"].sum(1)}

    def credit(self, answers: Answers) -> dict[str, np.ndarray]:
        lengths, real = answers.lengths, there(answers.lengths, answers.log_probabilities.shape[1])
        gap = np.where(real, answers.log_probabilities - answers.measured["reference"], 0.0)
        rewards = -self.coefficient * kl_estimate(torch.from_numpy(gap), self.estimator).numpy()
        rewards[np.arange(len(lengths)), lengths - 1] += answers.rewards - self.no_end * answers.truncated
        values = np.where(real, answers.measured["value"], 0.0)
        advantages = generalised_advantages(rewards, values, lengths, self.gamma, self.lam)
        returns = advantages + values
        known = explained_variance(values, returns, lengths)
        of_all = {"coefficient": self.coefficient, "explained_variance": known}
        if self.target is not None:
            error = np.clip(answers.measured["kl"].mean() / self.target - 1, -MOST, MOST)
            self.coefficient *= 1 + ADAPTS * float(error)
        return {
            "advantage": whitened(advantages, lengths) if self.whiten else advantages,
            "value": values,
            "return": returns,
            "kl": answers.measured["kl"],
            **{name: np.full(len(lengths), of) for name, of in of_all.items()},
        }

    def optimum(self, case: Case) -> Optimum | None:
        """That of the whole answer's reward, as no reward counts less for coming later."""
        if self.rollout.temperature != 1 or self.gamma != 1 or self.target is not None:
            return None
        if not self.coefficient:
            return best_answer(case)
        return tilted(case, self.coefficient) if self.estimator == "k1" else None

    def state(self) -> dict[str, float]:
        """What later rollouts depend on beside the weights."""
        return {} if self.target is None else {"coefficient": self.coefficient}

    def load(self, state: Mapping[str, float]) -> None:
        self.coefficient = state.get("coefficient", self.coefficient)

    # ---------------------------------------------------------------- learning

    def prepare(self, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        n = len(sample["answer"]) if "answer" in sample else self.rollout.max_new
        advantage = np.broadcast_to(np.asarray(sample.get("advantage", 0.0), np.float32), n)
        return prepared({**sample, "advantage": advantage}, self.rollout.max_new, OF_ANSWERS, OF_TOKENS)

    def targets(self, prepared: dict[str, Any]) -> dict[str, int]:
        return dict.fromkeys(("policy", "value"), int(prepared["answer_length"]))

    def passes(self, prepared: dict[str, Any]) -> list[Pass]:
        n = int(prepared["answer_length"])
        own = self.critic == "own"
        policy = Pass(len(prepared["ids"]), heads={"tokens": n} if own else {"tokens": n, "value": n})
        theirs = replace(policy, model="reference", heads={"tokens": n})
        learnt = [policy, *([replace(policy, model="critic", heads={"value": n})] if own else [])]
        rolled = [replace(each, trained=False, times=1 / self.rollout.epochs) for each in (*learnt, theirs)]
        return [*learnt, *rolled]

    def loss(self, model: LanguageModel, batch: Mapping[str, Tensor], **companions: LanguageModel) -> Loss:
        if (judged := greedy(batch, "policy")) is not None:
            return judged
        reward = batch["reward"].float()
        count = reward.new_tensor(len(reward))
        logs = {"reward": (reward.sum(), count), "answer_length": (batch["answer_length"].float().sum(), count)}
        found = self._scored(model, batch)
        then, returns = batch["value"][found.where], batch["return"][found.where]
        each, clipped = surrogate(
            found.now, found.now - found.then, batch["advantage"][found.where], "ppo", self.clip, self.clip
        )
        aux = {"model": auxiliary(found.output)}
        if self.critic == "shared":
            values = found.output.heads["value"].float()
        else:
            criticised = self._criticised(companions["critic"], batch)
            values, aux["critic"] = criticised.heads["value"].float(), auxiliary(criticised)
        off = (values - returns).square()
        held = off
        if self.value_clip is not None:
            held = ((then + (values - then).clamp(-self.value_clip, self.value_clip)) - returns).square()
        n = batch["answer_length"].sum()
        terms = {"policy": (each.sum(), n), "value": (torch.maximum(off, held).sum() / 2, n)}
        logs |= {name: (batch[name].float().sum(), count) for name in OF_ANSWERS if name != "reward"}
        shown = {"entropy": entropies(found.log_p), "clip_fraction": clipped, "value_clip_fraction": held > off}
        logs |= {name: (of.float().sum(), n.to(reward.dtype)) for name, of in shown.items()}
        return Loss(terms, self.weights, logs, aux)

    def _scored(self, model: LanguageModel, batch: Mapping[str, Tensor], writer: bool = True) -> Recomputed:
        temperature, size = self.rollout.temperature, self.vocabulary
        more = ("value",) if writer and self.critic == "shared" else ()
        return log_probabilities(model, batch, temperature=temperature, vocabulary=size, writer=writer, more=more)

    def _criticised(self, critic: LanguageModel, batch: Mapping[str, Tensor]) -> Output:
        """The critic's output, with the value (n,) of what is there before each token of an answer."""
        read = {name: batch[name] for name in ("ids", "valid") if name in batch}
        return critic(read, heads={"value": batch["labels"] != IGNORED})
