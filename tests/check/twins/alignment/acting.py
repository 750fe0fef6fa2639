"""What twins of methods that act share: their rollouts, estimates of a KL, means over tokens and answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from llmlab.twins import Given
from twins.alignment.shared import Arrays, distributions, logged, prepared, records, said, with_answer


def rollout(given: Given, first: int | None) -> Arrays:
    """The answers of the rollout, all or the first ones."""
    return {k.removeprefix("rollout/"): v[:first] for k, v in given.inputs.items() if k.startswith("rollout/")}


def rolls_out(given: Given) -> Arrays:
    keys = ("samples", "max_new", "temperature", "batches", "epochs", "resample")
    return {"rollout": np.array([given.options.get(key, 0) for key in keys])}


def estimate(gap: float, how: str) -> float:
    """Of KL(policy || reference), from log p - log p_ref (Schulman 2020)."""
    return float({"k1": gap, "k2": gap**2 / 2, "k3": np.exp(-gap) - 1 + gap}[how])


def log_p(given: Given, batch: str, role: str) -> np.ndarray:
    """(n, V) of the labels' tokens, at the temperature of the rollout."""
    labels = given.inputs[f"{batch}/labels"]
    return distributions(given.inputs[f"{batch}/scores/{role}"], labels, given, given.options["temperature"])


def exact(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """(n,) KL(policy || reference)."""
    return (np.exp(ours) * (ours - theirs)).sum(-1)


def aggregate(each: np.ndarray, owner: np.ndarray, lengths: np.ndarray, how: str, constant: int) -> tuple[float, float]:
    """(sum, count) of each token's loss, by answer; one of length 0 is left out."""
    answers = [(each[owner == i], n) for i, n in enumerate(lengths) if n > 0]
    if how == "token_mean":
        return sum(of.sum() for of, _ in answers), sum(n for _, n in answers)
    by = {"sequence_mean": lambda n: n, "sequence_sum": lambda n: 1, "constant": lambda n: constant}[how]
    return sum(of.sum() / by(n) for of, n in answers), len(answers)


def ratio_logs(ours: np.ndarray, clipped: np.ndarray) -> dict[str, tuple[float, float]]:
    entropy = -(np.exp(ours) * ours).sum()
    return {"entropy": (entropy, len(ours)), "clip_fraction": (clipped.sum(), len(ours))}


def validated(given: Given, term: str = "policy") -> Arrays:
    """The loss of a validation: the negative mean reward."""
    reward, length = given.inputs["none/reward"], given.inputs["none/answer_length"]
    n = len(reward)
    logs = logged({"reward": (reward.sum(), n), "answer_length": (length.sum(), n)}, "none")
    return {"none/mean": -reward.mean(), f"none/loss/{term}": np.array([-reward.sum(), n]), **logs}


def measured(given: Given) -> Arrays:
    labels = given.inputs["measured/labels"]
    ours, theirs = (log_p(given, "measured", role) for role in ("tokens", "reference.tokens"))
    reference, kl = np.zeros(labels.shape), np.zeros(labels.shape)
    reference[labels != -100] = said(theirs, labels)
    kl[labels != -100] = exact(ours, theirs)
    return {"measured/reference": reference, "measured/kl": kl.sum(1)}


def answers_prepared(
    given: Given,
    of_answers: Sequence[str],
    of_tokens: Sequence[str],
    terms: Mapping[str, Callable[[Mapping[str, Any], int], float]],
    passes: Sequence[tuple[str, bool, float, int]],
    credited: bool = True,
) -> Arrays:
    """Samples, numbers of targets, and passes (model, trained, times, heads) of the records."""
    samples, costs = [], []
    counts: dict[str, list[float]] = {name: [] for name in terms}
    for record in records(given):
        answer = record.get("answer", np.zeros(given.options["max_new"], int))
        before, n = np.zeros(len(record["prompt"]) - 1), len(answer)
        ids, labels = with_answer(record["prompt"], answer)
        sample: dict[str, Any] = {"ids": ids, "labels": labels}
        for name in ("log_probabilities", *(name for name in of_tokens if name != "advantage")):
            sample[name] = np.append(before, record.get(name, np.zeros(n)))
        if credited:
            advantage = np.asarray(record.get("advantage", np.zeros(n) if "advantage" in of_tokens else 0.0))
            sample["advantage"] = np.append(before, advantage) if advantage.ndim else advantage
        sample |= {name: record.get(name, 0.0) for name in of_answers}
        samples.append({**sample, "answer_length": n})
        for name, count in terms.items():
            counts[name].append(count(record, n))
        for model, trained, times, heads in passes:
            costs += [len(ids), float(model == "model"), float(trained), times, *[n] * heads]
    return {
        **rolls_out(given),
        **prepared(samples),
        **{f"n_targets/{name}": np.array(each) for name, each in counts.items()},
        "passes": np.array(costs, np.float64),
    }
