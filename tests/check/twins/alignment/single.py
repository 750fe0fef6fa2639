"""Twins of what is learnt from single answers: conversations, and answers that are good or bad. From their papers."""

from __future__ import annotations

from typing import Any

import numpy as np

from llmlab.check.twins.observers.alignment import ROLES
from llmlab.twins import Given, twin
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


@twin("alignment", "sft", source="Ouyang et al. 2022, arXiv:2203.02155, section 3.5; answers of all turns, packed")
def sft(given: Given) -> Arrays:
    windows: list[dict[str, np.ndarray]] = []
    for number, record in zip(given.inputs["windows"], records(given), strict=True):
        text = [
            (t, ROLES[role]) for message, role in zip(record["messages"], record["roles"], strict=True) for t in message
        ]
        asked = np.array([t if role == "assistant" else -100 for t, role in text[1:]])
        ids = np.array([t for t, _ in text[:-1]])
        if number == len(windows):
            windows.append({key: np.zeros(0, int) for key in ("ids", "labels", "documents", "positions")})
        own = windows[number]
        document = own["documents"].max(initial=-1) + 1
        for key, value in {
            "ids": ids,
            "labels": asked,
            "documents": np.full(len(ids), document),
            "positions": np.arange(len(ids)),
        }.items():
            own[key] = np.append(own[key], value)
    labels, scores = given.inputs["batch/labels"], given.inputs["batch/scores/tokens"]
    asked = labels[labels != -100]
    right = sum(
        scores[tuple(at)][: scores.shape[-1]].argmax() == labels[tuple(at)] for at in np.argwhere(labels != -100)
    )
    return {
        **prepared(windows),
        "n_targets/nll": np.array([(window["labels"] != -100).sum() for window in windows]),
        "batch/documents/model/0": given.inputs["batch/documents"],
        **whole_table(given, labels),
        **logged({"accuracy": (right, len(asked))}),
    }


def whole_table(given: Given, labels: np.ndarray) -> Arrays:
    """-log p of each label over all rows of the table, the sum of which is the loss."""
    wide = Given(
        given.options,
        given.sizes,
        {**given.inputs, "vocabulary": np.array(given.inputs["batch/scores/tokens"].shape[-1])},
        {},
    )

    def terms(of: Vectors, fixed: Vectors) -> Terms:
        return {"nll": (-of["tokens"].sum(), len(of["tokens"]))}

    return learnt(wide, labels, terms)


@twin("alignment", "kto", source="Ethayarajh et al. 2024, arXiv:2402.01306, equation 8 and section 4.2")
def kto(given: Given) -> Arrays:
    o, labels, good = given.options, row_labels(given), given.inputs["batch/good"]
    owner = np.argwhere(labels != -100)[:, 0]
    answers = [answer for _, answer in rows(given)]
    shown: list[tuple[np.ndarray, float]] = []

    def ratios(of: Vectors) -> np.ndarray:
        return np.array([(of["tokens"] - of["reference.tokens"])[owner == n].sum() for n in range(len(labels))])

    def terms(of: Vectors, fixed: Vectors) -> Terms:
        r = ratios(of)[[n for n, answer in enumerate(answers) if answer == 0]]
        other = 1 if o["kl"] == "mismatched" else 0
        against = ratios(fixed)[[n for n, answer in enumerate(answers) if answer == other]]
        z = 0.0 if o["kl"] == "none" else max(0.0, against.mean())
        shown.append((r, z))
        value = [
            o["good_weight"] * (1 - sigmoid(o["beta"] * (x - z)))
            if g
            else o["bad_weight"] * (1 - sigmoid(o["beta"] * (z - x)))
            for x, g in zip(r, good, strict=True)
        ]
        return {"value": (sum(value), len(r))}

    made = learnt(given, labels, terms)
    r, z = shown[0]
    logs = {
        "good_reward": (o["beta"] * r[good == 1].sum(), (good == 1).sum()),
        "bad_reward": (o["beta"] * r[good == 0].sum(), (good == 0).sum()),
        "kl": (z * len(r), len(r)),
    }
    every, samples, passes = records(given), [], []
    for record in every:
        each = [record["answer"]]
        if o["kl"] == "mismatched":
            room = max(1, int(given.inputs["seq_len"]) + 1 - len(record["prompt"]))
            each.append(record.get("other", record["answer"])[:room])
        both = [with_answer(record["prompt"], answer) for answer in each]
        samples.append(
            {"row_ids": [ids for ids, _ in both], "row_labels": [asked for _, asked in both], "good": record["good"]}
        )
        for theirs in (False, True):
            passes += [[len(ids), not theirs, not theirs, 1, len(a)] for (ids, _), a in zip(both, each, strict=True)]
    ids = np.array([given.inputs["batch/row_ids"][at] for at in rows(given)])
    return {
        **made,
        **logged(logs),
        **prepared(samples),
        **read(given, ids, "model", "reference"),
        "n_targets/value": np.ones(len(every)),
        "passes": np.array(passes, np.float64).reshape(-1),
    }


REFUSED: dict[str, list[Any]] = {
    "kto": [({}, {"beta": 0.0}), ({}, {"good_weight": -0.1}), ({}, {"bad_weight": -0.1})],
}
MORE: dict[str, list[Any]] = {"kto": [({}, {"beta": 0.3, "kl": "own"})]}
