"""A problem whose best policy is known: a reference and rewards, drawn from a seed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from llmlab import attributes, optima
from llmlab.errors import UserError
from llmlab.oracle import bigrams
from llmlab.oracle.bigrams import Bigrams
from llmlab.slots import Objective

# Standard deviation of rewards / beta: the best policy is neither the reference nor a single answer. Of rewards it is 1 at
# most: above, a preference is so certain that it does not tell by how much.
SPREAD, MOST = 2.0, 1.0


class Point(NamedTuple):
    """A policy's KL to the reference, and its expected reward."""

    kl: float
    reward: float


@dataclass(frozen=True)
class Problem:
    """rewards (N,) of all answers of `length` tokens; models: by role the tables that do not learn; special: tokens beside."""

    rewards: np.ndarray
    models: Mapping[str, Bigrams]
    length: int
    special: int

    @classmethod
    def drawn(cls, objective: Objective, seed: int, length: int, beta: float) -> Problem:
        """A frozen model of a method that is no copy of what learns, such as a teacher, is the best policy at beta."""
        special = len(attributes.get(objective, "objective", "special"))
        reference = Bigrams.drawn(seed, special).requires_grad_(False)
        n = len(bigrams.answers(length))
        rewards = min(SPREAD * beta, MOST) * np.random.default_rng(seed).normal(size=n)
        case = optima.Case(rewards, {"reference": reference.log_p(length)}, length)
        taught = Bigrams.of(optima.tilted(case, beta).log_p, length, special).requires_grad_(False)
        others = {
            role: taught
            for role, of in attributes.get(objective, "objective", "models").items()
            if not of.get("trains") and not of.get("copies")
        }
        return cls(rewards, {"reference": reference, **others}, length, special)

    @cached_property
    def case(self) -> optima.Case:
        log_p = {role: model.log_p(self.length) for role, model in self.models.items()}
        return optima.Case(self.rewards, log_p, self.length)

    def optimum(self, objective: Objective) -> optima.Optimum | None:
        """The policy that the method says it ends at; None where it says none. UserError for one that is none."""
        says = getattr(objective, "optimum", None)
        found: optima.Optimum | None = None if says is None else says(self.case)
        if found is None:
            return None
        if np.shape(found.log_p) != self.rewards.shape or not abs(np.logaddexp.reduce(found.log_p)) < 1e-6:
            raise UserError(
                f"{type(objective).__name__}.optimum must give log-probabilities of {len(self.rewards)} answers that add up "
                f"to 1, but gave {np.round(found.log_p, 3).tolist()}"
            )
        return found

    def point(self, log_p: np.ndarray) -> Point:
        p = np.exp(log_p)
        return Point(float((p * (log_p - self.case.log_p["reference"])).sum()), float(p @ self.rewards))

    def frontier(self, betas: np.ndarray) -> list[Point]:
        """The greatest reward at each KL: the best policies of all betas, from the reference on."""
        started = self.point(self.case.log_p["reference"])
        return [started, *(self.point(optima.tilted(self.case, beta).log_p) for beta in sorted(betas, reverse=True))]
