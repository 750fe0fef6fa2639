"""What twins of alignment methods share: records, log-probabilities of answers, and slopes by steps to either side."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from llmlab.check.twins.observers.scored import BALANCE
from llmlab.twins import Given
from twins.norm import bfloat16
from twins.objective.losses import log_softmax

Arrays = dict[str, np.ndarray]
Vectors = Mapping[str, np.ndarray]  # by head: a number for each token, or answer
Terms = Mapping[str, tuple[float, float]]  # (sum, count)
STEP = 1e-5


def records(given: Given) -> list[dict[str, Any]]:
    """The records, lists as lists."""
    found: list[dict[str, Any]] = []
    for key, value in given.inputs.items():
        if key.startswith("record/"):
            _, number, field, *more = key.split("/")
            found += [{} for _ in range(int(number) + 1 - len(found))]
            found[-1].setdefault(field, []).append(value) if more else found[-1].update({field: value})
    return found


def prepared(samples: Iterable[Mapping[str, Any]]) -> Arrays:
    """`prepared/KEY` and `sizes` of prepared samples."""
    made: dict[str, list[np.ndarray]] = {}
    for sample in samples:
        for key, value in sample.items():
            made.setdefault(key, []).extend(np.asarray(v) for v in (value if isinstance(value, list) else [value]))
    joined = {f"prepared/{key}": np.concatenate([v.reshape(-1) for v in each]) for key, each in made.items()}
    return joined | {"sizes": np.array([v.size for key in sorted(made) for v in made[key]])}


def with_answer(prompt: np.ndarray, answer: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(ids, labels): each token is asked to say the next, of the answer alone."""
    text = [*prompt, *answer]
    asked = [text[i + 1] if i + 1 >= len(prompt) else -100 for i in range(len(text) - 1)]
    return np.array(text[:-1]), np.array(asked)


def rows(given: Given) -> list[tuple[int, int]]:
    """(record, answer) of each row of answers that is there, in the order in which a model reads them."""
    valid = given.inputs["batch/row_valid"]
    return [at for at in np.ndindex(valid.shape[:2]) if valid[at].any()]


def row_labels(given: Given) -> np.ndarray:
    return np.array([given.inputs["batch/row_labels"][at] for at in rows(given)])


def distributions(scores: np.ndarray, labels: np.ndarray, given: Given, temperature: float = 1.0) -> np.ndarray:
    """(n, V): log p over the vocabulary at each label."""
    size = int(given.inputs["vocabulary"])
    every = [scores[tuple(at)][:size] for at in np.argwhere(labels != -100)]
    return log_softmax(np.array(every) / temperature)


def said(log_p: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(n,): log p of each label."""
    return log_p[np.arange(len(log_p)), labels[labels != -100]]


def learnt(
    given: Given,
    labels: np.ndarray | None,
    terms: Callable[[Vectors, Vectors], Terms],
    weights: Mapping[str, float] | None = None,
    models: int = 1,
    temperature: float = 1.0,
    learns: Iterable[str] = ("tokens",),
) -> Arrays:
    """The loss of `batch`, and its slope by the scores of the heads that learn; those of the others are 0.

    terms(vectors, fixed): of what each head says of the labels: the log-probability, or its number; without labels the first
    of the numbers of each text. `fixed` are the same numbers, which are held where a slope is asked for.
    """
    weights = weights or {}
    scores = {k.removeprefix("batch/scores/"): v for k, v in given.inputs.items() if k.startswith("batch/scores/")}

    def vectors(of: Vectors) -> dict[str, np.ndarray]:
        made = {}
        for role, value in of.items():
            if labels is None:
                made[role] = value[:, 0]
            elif value.ndim == labels.ndim:
                made[role] = value[labels != -100]
            else:
                made[role] = said(distributions(value, labels, given, temperature), labels)
        return made

    def mean(found: Terms) -> float:
        return sum(weights.get(name, 1.0) * total / max(count, 1) for name, (total, count) in found.items())

    point = vectors(scores)
    found = terms(point, point)
    made = {f"batch/loss/{name}": np.array([float(v) for v in pair]) for name, pair in found.items()}
    made |= {f"batch/weight/{name}": np.array(weight) for name, weight in weights.items()}
    made["batch/mean"] = np.array(mean(found) + models * BALANCE)
    rounded = vectors({role: bfloat16(value) for role, value in scores.items()})
    made["half/mean"] = np.array(mean(terms(rounded, rounded)) + models * BALANCE)
    for role, value in scores.items():
        slope = np.zeros_like(value)
        for n in range(len(point[role])) if role in learns else ():
            up, down = (
                {**point, role: point[role] + sign * STEP * (np.arange(len(point[role])) == n)} for sign in (1, -1)
            )
            rise = (mean(terms(up, point)) - mean(terms(down, point))) / (2 * STEP)
            if labels is None:
                slope[n, 0] = rise
                continue
            at = tuple(np.argwhere(labels != -100)[n])
            if value.ndim == labels.ndim:
                slope[at] = rise
                continue
            size = int(given.inputs["vocabulary"])
            slope[at][:size] = -rise * np.exp(log_softmax(value[at][:size] / temperature)) / temperature
            slope[at][labels[at]] += rise / temperature
        made[f"batch/slope/{role}"] = slope
    return made


def logged(logs: Mapping[str, tuple[float, float]], batch: str = "batch") -> Arrays:
    return {f"{batch}/log/{name}": np.array([float(total), float(count)]) for name, (total, count) in logs.items()}


def read(given: Given, ids: np.ndarray, *models: str) -> Arrays:
    """Each of the models has read the ids once."""
    return {f"batch/read/{role}": ids[None] for role in models}


def log_sigmoid(x: float) -> float:
    return float(-np.logaddexp(0.0, -x))


def sigmoid(x: float) -> float:
    return float(1 / (1 + np.exp(-x)))
