"""Training on a problem as a run trains: of a method that acts on the policy's own answers, of others on preferences or
ratings that the rewards make.

N answers, S of each prompt, A tokens of each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from llmlab import attributes
from llmlab.data import collate
from llmlab.errors import UserError
from llmlab.objectives import Acts, Answers, LanguageModel, Objective
from llmlab.oracle import bigrams
from llmlab.oracle.bigrams import Bigrams
from llmlab.oracle.problem import Point, Problem

Batch = dict[str, Tensor]
KINDS = ("prompts", "preferences", "rated")
POINTS = 40  # of a curve
CRITIC = 10  # added to the seed of another model that learns
PROMPT = np.array([0])
PAIRS = 16  # of each two answers in a batch


@dataclass(frozen=True)
class Settings:
    """Optimizer steps, answers in each, and the learning rate of Adam, which falls to a share of itself at the end."""

    steps: int = 300
    answers: int = 96
    lr: float = 0.2
    last: float = 0.01


@dataclass(frozen=True)
class Learnt:
    """A policy's log-probabilities (N,) at the end, and where it was on its way."""

    log_p: np.ndarray
    curve: list[Point]


def check(objective: Objective, named: str) -> None:
    """UserError for a method that learns no policy from rewards."""
    reads = attributes.get(objective, "objective", "reads")
    if reads not in KINDS or "tokens" not in attributes.get(objective, "objective", "heads"):
        raise UserError(
            f"{named} learns no policy from rewards or preferences, so that there is no best one to compare with"
        )


def learn(objective: Objective, problem: Problem, seed: int, how: Settings) -> Learnt:
    """A policy that begins as the reference, trained from draws of the seed."""
    policy = Bigrams(problem.models["reference"].table.detach(), problem.special)
    models = _companions(objective, problem, seed)
    learning = [p for m in (policy, *models.values()) for p in m.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(learning, lr=how.lr)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, how.last, how.steps)
    makes: Mapping[str, Callable[..., Iterator[Batch]]] = {
        "prompts": _rollouts,
        "preferences": _preferences,
        "rated": _ratings,
    }
    reads = attributes.get(objective, "objective", "reads")
    batches = makes[reads](objective, problem, policy, models, np.random.default_rng((seed, 1)), how)
    # Closer together at the beginning, where the way is.
    shown = set(np.geomspace(1, how.steps, POINTS).astype(int).tolist())
    curve = [problem.point(policy.log_p(problem.length))]
    for step in range(how.steps):
        optimizer.zero_grad()
        objective.loss(cast(LanguageModel, policy), next(batches), **models).mean().backward()
        optimizer.step()
        schedule.step()
        if step + 1 in shown:
            curve.append(problem.point(policy.log_p(problem.length)))
    return Learnt(policy.log_p(problem.length), curve)


def _companions(objective: Objective, problem: Problem, seed: int) -> dict[str, Any]:
    return {
        role: Bigrams.drawn(seed + CRITIC, problem.special)
        if of.get("trains")
        else problem.models["reference" if of.get("copies") else role]
        for role, of in attributes.get(objective, "objective", "models").items()
    }


def _collated(objective: Objective, samples: list[dict[str, Any]], chance: np.random.Generator) -> Batch:
    prepared = [objective.prepare(sample, chance) for sample in samples]
    return collate.batch(prepared, attributes.get(objective, "objective", "collate"))


# ---------------------------------------------------------------- a method that acts


def _rollouts(
    objective: Acts,
    problem: Problem,
    policy: Bigrams,
    models: Mapping[str, Any],
    chance: np.random.Generator,
    how: Settings,
) -> Iterator[Batch]:
    """As `llmlab.training.feeds.rollout` makes them: answers, what is measured of them, what the method makes of it."""
    rollout, together = objective.rollout, attributes.get(objective, "objective", "together")
    n = max(1, round(how.answers / rollout.samples)) * rollout.samples
    worth = dict(zip(bigrams.answers(problem.length), problem.rewards.tolist(), strict=True))
    size = n * rollout.batches
    while True:
        drawn, log_p = policy.draw(size, problem.length, chance, rollout.temperature)
        rewards = np.array([worth[y] for y in map(tuple, drawn.tolist())])
        rows: dict[str, np.ndarray] = {
            "answer": drawn, "log_probabilities": log_p, "reward": rewards, "truncated": np.zeros(size)
        }  # fmt: skip
        measured = {}
        if (measure := getattr(objective, "measure", None)) is not None:
            with torch.no_grad():
                found = measure(policy, _collated(objective, _samples(rows), chance), **models)
            # The prompt is one token, so that what follows it begins at the first place.
            measured = {name: of[:, : problem.length].double().numpy() if of.dim() > 1 else of.double().numpy()
                        for name, of in found.items()}  # fmt: skip
        lengths = np.full(size, problem.length)
        rows |= objective.credit(Answers(rewards, lengths, lengths < 0, log_p, measured, rollout.samples))
        samples = _groups(rows, rollout.samples) if together else _samples(rows)
        each = len(samples) // rollout.batches
        for _ in range(rollout.epochs):
            order = chance.permutation(len(samples))
            for first in range(0, len(samples), each):
                yield _collated(objective, [samples[i] for i in order[first : first + each]], chance)


def _samples(rows: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    return [{"prompt": PROMPT, **{name: of[i] for name, of in rows.items()}} for i in range(len(rows["answer"]))]


def _groups(rows: Mapping[str, np.ndarray], size: int) -> list[dict[str, Any]]:
    """All answers to a prompt as one sample."""
    named = {"answers" if name == "answer" else name: of.reshape(-1, size, *of.shape[1:]) for name, of in rows.items()}
    return [
        {"prompt": PROMPT, **{name: of[i] for name, of in named.items()}} for i in range(len(rows["answer"]) // size)
    ]


# ---------------------------------------------------------------- methods that read what is there


def _preferences(
    objective: Objective,
    problem: Problem,
    policy: Bigrams,
    models: Mapping[str, Any],
    chance: np.random.Generator,
    how: Settings,
) -> Iterator[Batch]:
    """Of each two answers as many pairs, of which each wins as often as Bradley and Terry's model has it, but for a fraction
    that is drawn: drawing all of them would teach the same, from sixteen times as many."""
    answers = np.array(bigrams.answers(problem.length))
    i, j = np.triu_indices(len(answers), 1)
    both = [[answers[a], answers[b]] for a, b in zip(i, j, strict=True)]
    samples = [{"prompt": PROMPT, "answers": pair} for pair in (*both, *(pair[::-1] for pair in both))]
    # Prepared once: all batches are made of these.
    whole = _collated(objective, samples, chance)
    share = problem.case.preferred[i, j]
    while True:
        won = np.floor(PAIRS * share + chance.random(len(share))).astype(np.int64)
        times = torch.from_numpy(np.concatenate([won, PAIRS - won]))
        yield {name: of.repeat_interleave(times, 0) for name, of in whole.items()}


def _ratings(
    objective: Objective,
    problem: Problem,
    policy: Bigrams,
    models: Mapping[str, Any],
    chance: np.random.Generator,
    how: Settings,
) -> Iterator[Batch]:
    """Answers drawn uniformly, each good with probability sigmoid(r), beside another one where a method asks for it."""
    answers = np.array(bigrams.answers(problem.length))
    good = 1 / (1 + np.exp(-problem.rewards))

    def drawn() -> dict[str, Any]:
        i = chance.integers(len(answers))
        return {"prompt": PROMPT, "answer": answers[i], "good": np.int64(chance.random() < good[i])}

    other = attributes.get(objective, "objective", "other")
    while True:
        samples = [{**drawn(), **({"other": drawn()} if other else {})} for _ in range(how.answers)]
        yield _collated(objective, samples, chance)
