"""A method of alignment from several seeds, compared with where it is to end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from llmlab import optima, registry
from llmlab.data.progress import Bar
from llmlab.errors import UserError
from llmlab.objectives import Objective
from llmlab.oracle import bigrams, learning
from llmlab.oracle.learning import Settings
from llmlab.oracle.problem import Point, Problem

BETA = 0.5  # where a method has none: of a teacher, and of the rewards' spread
BETAS = np.geomspace(0.02, 20.0, 300)  # of a frontier, in standard deviations of the rewards
CONTEXT = 16


@dataclass(frozen=True)
class Outcome:
    """A seed: KL to the fixed point at the end and at the beginning, None where no fixed point is known; the way there."""

    seed: int
    gap: float | None
    before: float | None
    curve: list[Point]
    frontier: list[Point]
    end: Point | None

    @property
    def last(self) -> Point:
        return self.curve[-1]

    @property
    def greatest(self) -> float:
        """The reward of the frontier at the last KL."""
        kl, reward = zip(*self.frontier, strict=True)
        return float(np.interp(self.last.kl, kl, reward))


@dataclass(frozen=True)
class Found:
    """length: tokens of an answer. formula: of the fixed point, None where none is known. regularised: it is the one of the
    greatest reward less beta KL. limit: no policy reaches it."""

    length: int
    formula: str | None
    regularised: bool
    limit: bool
    outcomes: list[Outcome]

    def missed(self, bound: float) -> list[Outcome]:
        """The seeds that did not come as near as the bound; of a limit none is asked to."""
        return [] if self.limit else [o for o in self.outcomes if o.gap is not None and not o.gap < bound]


def made(name: str, options: dict[str, Any]) -> Objective:
    """The method, over the vocabulary of the problem. UserError for options that can't be."""
    special = registry.declared("alignment", name, options).special
    try:
        objective: Objective = registry.load("alignment", name, options)(bigrams.vocabulary(special), CONTEXT)
    except ValueError as e:
        raise UserError(f"alignment={name}: {e}") from e
    learning.check(objective, f"alignment={name}")
    return objective


def beta_of(options: dict[str, Any]) -> float:
    """The method's own, by which rewards are scaled: the best policy then is neither the reference nor one answer."""
    beta = options.get("beta")
    return beta if isinstance(beta, float) and beta > 0 else BETA


def run(
    name: str,
    options: dict[str, Any],
    seeds: Sequence[int],
    how: Settings,
    length: int | None = None,
    bar: Bar | None = None,
) -> Found:
    """length: None: two tokens, or one where the method's fixed point is known of one only. bar: told of each seed."""
    at = dict(options)

    def objective_of(tokens: int) -> Objective:
        if "max_new" in registry.index()["alignment", name].options:
            at["max_new"] = tokens
        return made(name, at)

    beta = beta_of(options)
    lengths = [length] if length is not None else [bigrams.LONGEST, 1]
    known = [n for n in lengths if _optimum(objective_of(n), n, beta) is not None]
    tokens = (known or lengths)[0]
    outcomes: list[Outcome] = []
    optimum = None
    with _one_thread():
        for seed in seeds:
            if bar is not None:
                bar(f"seed {seed}", len(outcomes), len(seeds))
            # Anew for each: a method may keep a state, as a coefficient that adapts.
            objective = objective_of(tokens)
            problem = Problem.drawn(objective, seed, tokens, beta)
            optimum = problem.optimum(objective)
            learnt = learning.learn(objective, problem, seed, how)
            outcomes.append(_outcome(problem, learnt, optimum, seed))
    limit = optimum is not None and bool(np.isneginf(optimum.log_p).any())
    return Found(
        tokens,
        None if optimum is None else optimum.formula,
        optimum is not None and optimum.regularised,
        limit,
        outcomes,
    )


def _optimum(objective: Objective, length: int, beta: float) -> optima.Optimum | None:
    return Problem.drawn(objective, 0, length, beta).optimum(objective)


def _outcome(problem: Problem, learnt: learning.Learnt, optimum: optima.Optimum | None, seed: int) -> Outcome:
    gap = before = end = None
    if optimum is not None:
        gap = optima.divergence(learnt.log_p, optimum)
        before = optima.divergence(problem.case.log_p["reference"], optimum)
        end = None if np.isneginf(optimum.log_p).any() else problem.point(optimum.log_p)
    return Outcome(seed, gap, before, learnt.curve, problem.frontier(BETAS * problem.rewards.std()), end)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Tables of twenty numbers: threads that wait for each other cost more than they compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
