"""Twins of methods that learn from the model's own answers as sft, dpo and distillation do. From their papers."""

from __future__ import annotations

from typing import Any

import numpy as np

from llmlab.check.twins.observers.scored import BALANCE
from llmlab.twins import Given, twin
from twins.alignment.acting import answers_prepared, log_p, rolls_out, validated
from twins.alignment.pairs import LOSSES
from twins.alignment.pairs import answers_prepared as rows_prepared
from twins.alignment.shared import (
    Arrays,
    Terms,
    Vectors,
    learnt,
    logged,
    prepared,
    read,
    records,
    row_labels,
    rows,
    sigmoid,
    with_answer,
)
from twins.norm import bfloat16
from twins.objective.distill import divergence
from twins.objective.losses import log_softmax


def batch_of(given: Given) -> Arrays:
    return {key.removeprefix("batch/"): value for key, value in given.inputs.items() if key.startswith("batch/")}


def entropy(log_p: np.ndarray) -> float:
    return float(-(np.exp(log_p) * log_p).sum())


def all_answers(given: Given) -> list[dict[str, Any]]:
    """Records; one without answers as one whose answers are as long as may be and worth nothing."""
    o, found = given.options, []
    for record in records(given):
        nothing = {
            "answers": [np.zeros(o["max_new"], int)] * o["samples"],
            "log_probabilities": [np.zeros(o["max_new"])] * o["samples"],
            "reward": np.zeros(o["samples"]),
            "truncated": np.zeros(o["samples"]),
        }
        found.append({**nothing, **record})
    return found


# ---------------------------------------------------------------- the best of several


@twin(
    "alignment",
    "rejection",
    source="Dong et al. 2023, arXiv:2304.06767, algorithm 1; Touvron et al. 2023, arXiv:2307.09288, section 3.2.3",
)
def rejection(given: Given) -> Arrays:
    o, batch = given.options, batch_of(given)
    samples, targets, passes = [], [], []
    for record in all_answers(given):
        reward, cut = record["reward"], record["truncated"]
        candidates = [i for i in range(o["samples"]) if not (o["ended"] and cut[i])]
        # Of equal rewards the first; where none may be learnt the first answer stands for the prompt, or the best one.
        best = max(candidates or [0], key=lambda i: (reward[i], -i))
        kept = bool(candidates) and (o["least"] is None or reward[best] >= o["least"])
        answer = record["answers"][best]
        ids, labels = with_answer(record["prompt"], answer)
        samples.append(
            {
                "ids": ids,
                "labels": labels,
                "log_probabilities": np.append(np.zeros(len(record["prompt"]) - 1), record["log_probabilities"][best]),
                "mean_reward": reward.mean(),
                "reward_std": reward.std(),
                "best_reward": reward[best] if kept else 0.0,
                "kept": kept,
                "truncated": cut[best],
                "answer_length": len(answer),
            }
        )
        targets.append(len(answer) if kept else 0)
        passes.append([len(ids), 1, 1, 1, len(answer)])

    labels = batch["labels"]
    owner = np.argwhere(labels != -100)[:, 0]

    def terms(of: Vectors, fixed: Vectors) -> Terms:
        learns = batch["kept"][owner] == 1
        return {"policy": (-of["tokens"][learns].sum(), int(learns.sum()))}

    n = len(labels)
    ours = log_p(given, "batch", "tokens")
    logs = {
        "reward": (batch["mean_reward"].sum(), n),
        "reward_std": (batch["reward_std"].sum(), n),
        "best_reward": (batch["best_reward"].sum(), batch["kept"].sum()),
        "kept": (batch["kept"].sum(), n),
        "entropy": (entropy(ours), len(ours)),
        "answer_length": (batch["answer_length"].sum(), n),
        "truncated": (batch["truncated"].sum(), n),
    }
    return {
        **learnt(given, labels, terms, temperature=o["temperature"]),
        **logged(logs),
        **validated(given),
        **rolls_out(given),
        **prepared(samples),
        "n_targets/policy": np.array(targets),
        "passes": np.concatenate(passes).astype(np.float64),
    }


# ---------------------------------------------------------------- pairs


def wins(reward: np.ndarray, answers: list[np.ndarray], how: str) -> dict[tuple[int, int], float]:
    """(better, worse): how often the first wins; of pairs that differ in text, and in more of their reward than rounding."""
    found = {}
    for i, a in enumerate(answers):
        for j, b in enumerate(answers):
            if a.tolist() == b.tolist():
                continue
            if how == "bradley_terry":
                found[i, j] = sigmoid(reward[i] - reward[j])
            elif reward[i] > reward[j] and not np.isclose(reward[i], reward[j], rtol=4e-7, atol=0):
                found[i, j] = 1.0
    return found


@twin(
    "alignment",
    "online_dpo",
    source="Guo et al. 2024, arXiv:2402.04792, algorithm 1; of a pair: arXiv:2305.18290, equation 7, arXiv:2310.12036, "
    "equation 17, arXiv:2309.06657, equation 10; the share of a winner: Bradley and Terry 1952",
)
def online_dpo(given: Given) -> Arrays:
    o, batch, labels = {**given.options, "label_smoothing": 0.0}, batch_of(given), row_labels(given)
    owner = np.argwhere(labels != -100)[:, 0]
    every = all_answers(given)
    reward = [each["reward"] - o["no_end"] * each["truncated"] for each in every]
    there = range(len(batch["reward"]))  # the last record, which has no answer yet, is in no batch
    won = [wins(reward[i], every[i]["answers"], o["labels"]) for i in range(len(every))]
    number = {at: n for n, at in enumerate(rows(given))}

    def said(of: Vectors) -> np.ndarray:
        return np.bincount(owner, of["tokens"] - of["reference.tokens"])

    def over_pairs(value: Any) -> tuple[float, int]:
        """value(better, worse) by the shares of a prompt's pairs, summed over prompts that have any."""
        total, count = 0.0, 0
        for p in there:
            if won[p]:
                of = [w * value(number[p, i], number[p, j]) for (i, j), w in won[p].items()]
                total, count = total + sum(of) / sum(won[p].values()), count + 1
        return total, count

    def terms(of: Vectors, fixed: Vectors) -> Terms:
        r = said(of)
        loss = LOSSES[o["loss"]]
        return {"preference": over_pairs(lambda i, j: loss(r[i], r[j], o["beta"] * (r[i] - r[j]), o))}

    scores = {k: given.inputs[f"batch/scores/{k}"] for k in ("tokens", "reference.tokens")}
    size = int(given.inputs["vocabulary"])
    asked = labels[labels != -100]
    own = {k: log_softmax(v[labels != -100][:, :size])[np.arange(len(asked)), asked] for k, v in scores.items()}
    r = said(own)
    n, prompts = len(r), over_pairs(lambda i, j: 1.0)[1]
    every_reward = np.concatenate([reward[p] for p in there])
    logs = {
        "reward": (every_reward.sum(), n),
        "reward_std": (sum(reward[p].std() for p in there), len(there)),
        "flat_groups": (len(there) - prompts, len(there)),
        "answer_length": (sum(len(a) for p in there for a in every[p]["answers"]), n),
        "truncated": (sum(every[p]["truncated"].sum() for p in there), n),
        "kl": (r.sum(), n),
        "accuracy": over_pairs(lambda i, j: float(r[i] > r[j])),
        "margin": over_pairs(lambda i, j: o["beta"] * (r[i] - r[j])),
    }
    ids = np.array([batch["row_ids"][at] for at in rows(given)])
    both = [[with_answer(each["prompt"], answer) for answer in each["answers"]] for each in every]
    samples = [
        {"row_ids": [i for i, _ in of], "row_labels": [a for _, a in of], "reward": r, "truncated": each["truncated"]}
        for of, each, r in zip(both, every, reward, strict=True)
    ]
    return {
        **learnt(given, labels, terms),
        **logged(logs),
        **validated(given, "preference"),
        **read(given, ids, "model", "reference"),
        **rolls_out(given),
        **prepared(samples),
        "n_targets/preference": np.array([float(bool(of)) for of in won]),
        "passes": rows_prepared(given, [each["answers"] for each in every])["passes"],
    }


# ---------------------------------------------------------------- a teacher's distribution


@twin("alignment", "distill", source="Agarwal et al. 2023, arXiv:2306.13649, section 3 and equation 4 with lambda = 1")
def distill(given: Given) -> Arrays:
    o, batch = given.options, batch_of(given)
    size, labels = int(given.inputs["vocabulary"]), batch["labels"]
    at = [tuple(i) for i in np.argwhere(labels != -100)]
    ours, theirs = batch["scores/tokens"], batch["scores/teacher.tokens"]

    def compared(q: np.ndarray, p: np.ndarray) -> tuple[float, np.ndarray]:
        of = [log_softmax(x[:size] / o["softening"]) for x in (p, q)]
        return divergence(of[0], of[1], o["divergence"])

    total, slope = 0.0, np.zeros_like(ours)
    for i in at:
        value, by_scores = compared(ours[i], theirs[i])
        total += value
        slope[i][:size] = by_scores / o["softening"] / len(at)
    half = sum(compared(bfloat16(ours)[i], bfloat16(theirs)[i])[0] for i in at) / len(at)
    agree = sum(int(ours[i][:size].argmax() == theirs[i][:size].argmax()) for i in at)
    logs = {
        "agreement": (agree, len(at)),
        "entropy": (entropy(log_p(given, "batch", "tokens")), len(at)),
        "answer_length": (batch["answer_length"].sum(), len(labels)),
    }
    made = {
        "batch/loss/divergence": np.array([total, len(at)]),
        "batch/mean": np.array(total / len(at) + BALANCE),
        "half/mean": np.array(half + BALANCE),
        "batch/slope/tokens": slope,
        "batch/slope/teacher.tokens": np.zeros_like(theirs),
        "none/mean": np.array(0.0),
        "none/loss/divergence": np.zeros(2),
        **{f"none/log/{name}": np.zeros(2) for name in logs},  # ranks add up what has one name
    }
    passes = [("model", True, 1.0, 1), ("teacher", False, 1.0, 1)]
    targets = {"divergence": lambda record, n: n}
    prepares = answers_prepared(given, (), (), targets, passes, credited=False)
    return {**made, **logged(logs), **read(given, batch["ids"], "model", "teacher"), **prepares}


ROLLS = [({}, {key: 0}) for key in ("max_new", "batches", "epochs", "temperature")]
REFUSED: dict[str, list[Any]] = {
    "rejection": [({}, {"samples": 1}), *ROLLS],
    "online_dpo": [({}, {"samples": 1}), ({}, {"beta": 0.0}), ({}, {"no_end": -0.1}), *ROLLS],
    "distill": [({}, {"divergence": -0.1}), ({}, {"divergence": 1.1}), ({}, {"softening": 0.0}), *ROLLS],
}
MORE: dict[str, list[Any]] = {
    "rejection": [({}, {"least": 2.0, "ended": False}), ({}, {"ended": False, "samples": 2})],
    "online_dpo": [
        ({}, {"loss": "ipo", "labels": "bradley_terry", "samples": 3}),
        ({}, {"loss": "hinge", "beta": 1.5, "samples": 3}),
    ],
    "distill": [({}, {"divergence": 0.2, "softening": 0.5, "temperature": 0.7})],
}
