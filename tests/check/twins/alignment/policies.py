"""Twins of methods that act without a critic: REINFORCE, GRPO and their kin. From their papers, answer by answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from llmlab.twins import Given, twin
from twins.alignment.acting import (
    aggregate,
    answers_prepared,
    estimate,
    exact,
    log_p,
    measured,
    ratio_logs,
    rollout,
    validated,
)
from twins.alignment.shared import Arrays, Terms, Vectors, learnt, logged, read


def too_long(length: int, max_new: int, share: float) -> float:
    """DAPO's equation 13."""
    cache = share * max_new
    if cache == 0 or length <= max_new - cache:
        return 0.0
    return ((max_new - cache) - length) / cache if length <= max_new else -1.0


def alike(values: np.ndarray) -> bool:
    return bool(np.allclose(values, values[0], rtol=1e-6, atol=0))


def advantages(rewards: list[float], penalties: list[np.ndarray], o: Mapping[str, Any]) -> np.ndarray:
    """Of each answer; or (N, A) of each token where they are those of returns."""
    n, how, eps = o["samples"], o["advantage"], o["std_eps"]
    if how == "batch":
        returns = [[r - p[t:].sum() for t in range(len(p))] for r, p in zip(rewards, penalties, strict=True)]
        every = np.array([g for each in returns for g in each])
        made = np.zeros((len(returns), max(map(len, returns))))
        for i, each in enumerate(returns):
            if not alike(every):
                made[i, : len(each)] = (np.array(each) - every.mean()) / (every.std(ddof=1) + eps)
        return made
    worth = np.array([r - p.sum() for r, p in zip(rewards, penalties, strict=True)])
    made = np.zeros(len(worth))
    for i in range(len(worth)):
        group = worth[i - i % n : i - i % n + n]
        if how == "leave_one_out":
            others = np.delete(worth, i) if n == 1 else np.delete(group, i % n)
            every = worth if n == 1 else group
            made[i] = worth[i] if len(others) == 0 else 0.0 if alike(every) else worth[i] - others.mean()
        elif not alike(group):
            by = {"group": group.std(ddof=1) + eps, "mean": 1.0, "mean_batch": worth.std(ddof=1) + eps}[how]
            made[i] = (worth[i] - group.mean()) / by
    return made


def credited(given: Given, first: bool) -> Arrays:
    """What the rollout is credited with, or its first prompt's answers alone."""
    o, of = given.options, rollout(given, given.options["samples"] if first else None)
    rewards = [r + too_long(n, o["max_new"], o["overlong"]) for r, n in zip(of["rewards"], of["lengths"], strict=True)]
    penalties = [np.zeros(n) for n in of["lengths"]]
    if o["kl"] == "reward":
        how = o["estimator"] or "k1"
        gaps = of["log_probabilities"] - of["measured/reference"]
        penalties = [
            np.array([o["beta"] * estimate(gap, how) for gap in each[:n]])
            for each, n in zip(gaps, of["lengths"], strict=True)
        ]
    found = advantages(rewards, penalties, o)
    if found.ndim > 1:
        found = np.pad(found, ((0, 0), (0, of["log_probabilities"].shape[1] - found.shape[1])))
    groups = [np.array(rewards[i : i + o["samples"]]) for i in range(0, len(rewards), o["samples"])]
    made = {
        "advantage": found,
        "flat_groups": np.repeat([float(alike(group)) for group in groups], o["samples"]),
        "reward_std": np.repeat([group.std() for group in groups], o["samples"]),
    }
    return {**made, **({"kl": of["measured/kl"]} if o["kl"] == "reward" else {})}


def policy(given: Given) -> Arrays:
    o, batch = given.options, {k.removeprefix("batch/"): v for k, v in given.inputs.items() if k.startswith("batch/")}
    labels = batch["labels"]
    at = np.argwhere(labels != -100)
    owner, n_answers = at[:, 0], len(labels)
    then = batch["log_probabilities"][labels != -100]
    advantage = batch["advantage"][labels != -100] if batch["advantage"].ndim > 1 else batch["advantage"][owner]
    lengths = batch["answer_length"] * (1 - batch["truncated"] if o["mask_truncated"] else 1)
    low = -np.inf if o["clip_low"] is None else 1 - o["clip_low"]
    high = np.inf if o["clip_high"] is None else 1 + o["clip_high"]

    def ratios(now: np.ndarray) -> np.ndarray:
        gap = now - then
        sums = np.array([gap[owner == i].sum() for i in owner])
        sizes = np.array([(owner == i).sum() for i in owner])
        return np.exp({"token": gap, "product": sums, "sequence": sums / sizes}[o["ratio"]])

    def over(each: np.ndarray) -> tuple[float, float]:
        return aggregate(each, owner, lengths, o["aggregation"], o["length"] or o["max_new"])

    def terms(of: Vectors, fixed: Vectors) -> Terms:
        ratio = ratios(of["tokens"])
        if o["clip"] == "cispo":
            each = -np.clip(ratios(fixed["tokens"]), low, high) * advantage * of["tokens"]
        else:
            each = -np.minimum(ratio * advantage, np.clip(ratio, low, high) * advantage)
        found = {"policy": over(each)}
        if o["kl"] == "loss":
            gaps = of["tokens"] - of["reference.tokens"]
            found["penalty"] = over(np.array([estimate(gap, o["estimator"] or "k3") for gap in gaps]))
        return found

    ours = log_p(given, "batch", "tokens")
    ratio = ratios(ours[np.arange(len(ours)), labels[labels != -100]])
    bounded = np.clip(ratio, low, high)
    clipped = bounded != ratio if o["clip"] == "cispo" else bounded * advantage < ratio * advantage
    answers = {
        name: (batch[name].sum(), n_answers)
        for name in ("reward", "answer_length", "reward_std", "flat_groups", "truncated")
    }
    if o["resample"]:
        answers["resampled"] = batch["resampled"].sum(), n_answers
    if o["kl"] in ("loss", "shown"):
        answers["kl"] = exact(ours, log_p(given, "batch", "reference.tokens")).sum(), n_answers
    elif o["kl"] == "reward":
        answers["kl"] = batch["kl"].sum(), n_answers
    made = learnt(
        given, labels, terms, {"penalty": o["beta"]} if o["kl"] == "loss" else {}, temperature=o["temperature"]
    )
    made |= logged({**answers, **ratio_logs(ours, clipped)}) | validated(given)
    if o["kl"] != "none":
        made |= read(given, batch["ids"], "model", *(("reference",) if o["kl"] != "reward" else ()))
    for name, first in (("credit", False), ("one", True)):
        made |= {f"{name}/{key}": value for key, value in credited(given, first).items()}
    if o["kl"] == "reward":
        made |= measured(given)
    return made | all_prepared(given)


def all_prepared(given: Given) -> Arrays:
    o = given.options

    def count(record: Mapping[str, Any], n: int) -> float:
        left_out = o["mask_truncated"] and record.get("truncated", 0)
        return 0 if left_out else n if o["aggregation"] == "token_mean" else 1

    own, theirs, once = ("model", True, 1.0), ("reference", False, 1.0), 1 / o["epochs"]
    passes = {"none": [own], "reward": [own, ("model", False, once), ("reference", False, once)]}.get(
        o["kl"], [own, theirs]
    )
    shown = ("reward", "flat_groups", "reward_std", "truncated", *(("kl",) if o["kl"] == "reward" else ()))
    shown = (*shown, "resampled") if o["resample"] else shown
    terms = {"policy": count, **({"penalty": count} if o["kl"] == "loss" else {})}
    return answers_prepared(given, shown, (), terms, [(*each, 1) for each in passes])


SOURCES = {
    "grpo": "Shao et al. 2024, arXiv:2402.03300, equations 3 and 4; k3: Schulman 2020",
    "dr_grpo": "Liu et al. 2025, arXiv:2503.20783, section 3.2",
    "dapo": "Yu et al. 2025, arXiv:2503.14476, equations 8 and 13",
    "cispo": "MiniMax 2025, arXiv:2506.13585, equation 4",
    "gspo": "Zheng et al. 2025, arXiv:2507.18071, equations 5 to 7",
    "reinforce_pp": "Hu 2025, arXiv:2501.03262, section 3",
    "rloo": "Ahmadian et al. 2024, arXiv:2402.14740, equation 6",
    "reinforce": "Williams 1992, doi:10.1007/BF00992696; Kool et al. 2019, Buy 4 REINFORCE samples",
}
for name, source in SOURCES.items():
    twin("alignment", name, source=source)(policy)


def refuses(options: Mapping[str, Any]) -> bool:
    """True where returns of tokens would have one ratio an answer."""
    return options["advantage"] == "batch" and options["ratio"] == "product"


MORE: dict[str, list[Any]] = {
    "reinforce": [({}, {"samples": 1})],
    "grpo": [
        ({}, {"aggregation": "token_mean", "mask_truncated": True}),
        ({}, {"aggregation": "constant", "mask_truncated": True}),
        ({}, {"advantage": "batch", "kl": "reward", "std_eps": 0.3}),
        ({}, {"clip_low": None}),
        ({}, {"clip_high": None}),
    ],
}
REFUSED: dict[str, list[Any]] = {
    "grpo": [
        *(({}, {key: -0.1}) for key in ("std_eps", "beta", "overlong", "clip_low", "clip_high")),
        *(({}, {key: 1.1}) for key in ("overlong", "clip_low")),
        *(({}, {key: 0}) for key in ("samples", "max_new", "batches", "epochs", "temperature")),
        ({}, {"samples": 1}),
        ({}, {"resample": -1}),
        ({}, {"samples": 1, "resample": 1, "advantage": "batch"}),
        ({}, {"aggregation": "constant", "length": 0}),
        ({}, {"length": 5}),
        ({}, {"beta": 0.0}),
        ({}, {"kl": "none", "beta": 0.04}),
        ({}, {"kl": "none", "beta": 0.0, "estimator": "k2"}),
        ({}, {"estimator": "k1"}),
    ],
}
