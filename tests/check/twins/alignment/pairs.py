"""Twins of what is learnt from ranked answers: dpo and its kin, and reward models. From their papers, pair by pair."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import combinations
from typing import Any

import numpy as np

from llmlab.twins import Given, twin
from twins.alignment.shared import (
    Arrays,
    Terms,
    Vectors,
    learnt,
    log_sigmoid,
    logged,
    prepared,
    read,
    records,
    row_labels,
    rows,
    sigmoid,
    with_answer,
)

# Of a pair: w and v are what is said of the better and the worse answer; h = beta (w - v) - margin, e = label_smoothing.
Of = Mapping[str, Any]
LOSSES: dict[str, Callable[[float, float, float, Of], float]] = {
    "sigmoid": lambda w, v, h, o: -(1 - o["label_smoothing"]) * log_sigmoid(h) - o["label_smoothing"] * log_sigmoid(-h),
    "robust": lambda w, v, h, o: (
        (o["label_smoothing"] * log_sigmoid(-h) - (1 - o["label_smoothing"]) * log_sigmoid(h))
        / (1 - 2 * o["label_smoothing"])
    ),
    "ipo": lambda w, v, h, o: (w - v - 1 / (2 * o["beta"])) ** 2,
    "hinge": lambda w, v, h, o: max(0.0, 1 - h),
    "apo_zero": lambda w, v, h, o: 1 - sigmoid(o["beta"] * w) + sigmoid(o["beta"] * v),
    "apo_down": lambda w, v, h, o: sigmoid(o["beta"] * w) + 1 - sigmoid(h),
    "sppo": lambda w, v, h, o: (w - 1 / (2 * o["beta"])) ** 2 + (v + 1 / (2 * o["beta"])) ** 2,
    # Of geometric means p of an answer's probabilities, the odds p / (1 - p).
    "odds": lambda w, v, h, o: -log_sigmoid(np.log(np.exp(w) / (1 - np.exp(w))) - np.log(np.exp(v) / (1 - np.exp(v)))),
}


Pairs = list[list[tuple[int, int]]]


def pairs(given: Given) -> tuple[Pairs, list[float]]:
    """Of each record all pairs (better, worse) of its answers, as numbers of rows; and each row's score, 0 without scores.

    With scores answers of equal ones are no pair.
    """
    numbers: dict[int, list[int]] = {}
    scores = []
    for n, (record, answer) in enumerate(rows(given)):
        numbers.setdefault(record, []).append(n)
        scores.append(float(given.inputs["scores"][record][answer]) if "scores" in given.inputs else 0.0)
    tied = lambda i, j: "scores" in given.inputs and scores[i] == scores[j]  # noqa: E731
    return [[(i, j) for i, j in combinations(each, 2) if not tied(i, j)] for each in numbers.values()], scores


def over_pairs(every: Pairs, value: Callable[[int, int], float]) -> tuple[float, int]:
    """(the sum over records that have pairs of the mean over these, the number of such records)."""
    there = [each for each in every if each]
    return sum(sum(value(i, j) for i, j in each) / len(each) for each in there), len(there)


def with_scores(given: Given, learning: Callable[[Given], Arrays]) -> Arrays:
    """What is learnt of `batch` and, as scored/..., of the batch whose answers have scores."""
    scored = {f"batch/{k.removeprefix('scored/')}": v for k, v in given.inputs.items() if k.startswith("scored/")}
    others = {k: v for k, v in given.inputs.items() if not k.startswith(("scores/", "batch/"))}
    every = [v for k, v in given.inputs.items() if k.startswith("scores/")]
    own = Given(given.options, given.sizes, {**others, **scored, "scores": every}, {})  # type: ignore[dict-item]
    made = {
        f"scored/{k.removeprefix('batch/')}": v
        for k, v in learning(own).items()
        if not k.startswith(("half/", "batch/slope/", "batch/read/"))
    }
    valid = given.inputs["scored/row_valid"]
    each = np.zeros(valid.shape)
    for record, of in enumerate(every):
        each[record, : len(of)] = valid[record, : len(of)] * of[:, None]
    return {**learning(given), **made, "scored/row_scores": each}


def preferences(given: Given) -> Arrays:
    answers = [list(record["answers"]) for record in records(given)]
    return with_scores(given, preferred) | answers_prepared(given, answers) | targets(given)


def preferred(given: Given) -> Arrays:
    o, labels = given.options, row_labels(given)
    first = [n for n, (_, answer) in enumerate(rows(given)) if answer == 0]
    every, _ = pairs(given)
    answered, lengths = labels != -100, (labels != -100).sum(1)
    if of_text(o):  # of the best answer's row each token but the first is said, those of the prompt too
        for n in first:
            ids = given.inputs["batch/row_ids"][rows(given)[n]]
            for t in range(int(answered[n].argmax())):
                labels[n, t] = ids[t + 1]
    owner, is_answer = np.argwhere(labels != -100)[:, 0], answered[labels != -100]

    def whole(each: np.ndarray) -> np.ndarray:
        return np.bincount(owner[is_answer], each[is_answer])

    def compared(of: Vectors) -> np.ndarray:
        ratio = whole(of["tokens"]) - (whole(of["reference.tokens"]) if o["reference"] else 0)
        return ratio / lengths if o["average"] else ratio

    def terms(of: Vectors, fixed: Vectors) -> Terms:
        said = compared(of)

        def loss(i: int, j: int) -> float:
            h = o["beta"] * (said[i] - said[j]) - o["margin"]
            return LOSSES[o["loss"]](said[i], said[j], h, o)

        found = {"preference": over_pairs(every, loss)}
        if o["nll"]:
            likely = whole(of["tokens"])[first].sum()
            count = {"tokens": lengths[first].sum(), "answers": len(first), "text": (labels[first] != -100).sum()}
            found["nll"] = -likely - of["tokens"][~is_answer].sum(), count[o["nll_over"]]
        return found

    weights = {"preference": o["weight"], **({"nll": o["nll"]} if o["nll"] else {})}
    seen: list[np.ndarray] = []

    def once(of: Vectors, fixed: Vectors) -> Terms:
        seen.append(o["beta"] * compared(of))
        return terms(of, fixed)

    made = learnt(given, labels, once, weights)
    reward = seen[0]  # at the point itself, before any step to the side
    shown = {
        "accuracy": lambda i, j: float(reward[i] > reward[j]),
        "margin": lambda i, j: reward[i] - reward[j],
        "better": lambda i, j: reward[i],
        "worse": lambda i, j: reward[j],
    }
    made |= logged({name: over_pairs(every, value) for name, value in shown.items()})
    if o["reference"]:
        made |= read(given, np.array([given.inputs["batch/row_ids"][at] for at in rows(given)]), "model", "reference")
    return made


def of_text(o: Of) -> bool:
    return bool(o.get("nll")) and o["nll_over"] == "text"


def answers_prepared(given: Given, answers: list[list[np.ndarray]]) -> Arrays:
    samples, passes = [], []
    for record, each in zip(records(given), answers, strict=True):
        both = [with_answer(record["prompt"], answer) for answer in each]
        samples.append({"row_ids": [ids for ids, _ in both], "row_labels": [labels for _, labels in both]})
        for theirs in (False, True) if given.options.get("reference", True) else (False,):
            for n, ((ids, _), a) in enumerate(zip(both, each, strict=True)):
                all_of_it = of_text(given.options) and not theirs and n == 0
                passes.append([len(ids), not theirs, not theirs, 1, len(ids) if all_of_it else len(a)])
    return prepared(samples) | {"passes": np.array(passes, np.float64).reshape(-1)}


def targets(given: Given) -> Arrays:
    o, every = given.options, records(given)
    made = {"n_targets/preference": np.ones(len(every))}
    if o["nll"]:
        first = [(len(record["prompt"]), len(record["answers"][0])) for record in every]
        of = {"tokens": [a for _, a in first], "answers": [1] * len(every), "text": [p + a - 1 for p, a in first]}
        counts = of[o["nll_over"]]
        made["n_targets/nll"] = np.array(counts)
    return made


SOURCES = {
    "dpo": "Rafailov et al. 2023, arXiv:2305.18290, equation 7",
    "ipo": "Azar et al. 2023, arXiv:2310.12036, equation 17",
    "cdpo": "Mitchell 2023, A note on DPO with noisy preferences, equation 3",
    "robust": "Chowdhury et al. 2024, arXiv:2403.00409, equation 12",
    "hinge": "Liu et al. 2023, arXiv:2309.06657, equation 10",
    "apo_zero": "D'Oosterlinck et al. 2024, arXiv:2408.06266, section 4",
    "apo_down": "D'Oosterlinck et al. 2024, arXiv:2408.06266, section 4",
    "sppo": "Wu et al. 2024, arXiv:2405.00675, section 4.2",
    "simpo": "Meng et al. 2024, arXiv:2405.14734, equation 6",
    "cpo": "Xu et al. 2024, arXiv:2401.08417, section 3",
    "orpo": "Hong et al. 2024, arXiv:2403.07691, equations 4 to 7",
}
for name, source in SOURCES.items():
    twin("alignment", name, source=f"{source}; pairs of a ranking: Ouyang et al. 2022, arXiv:2203.02155, section 3.5")(
        preferences
    )


@twin(
    "alignment",
    "reward",
    source="Ouyang et al. 2022, arXiv:2203.02155, equation 1 and appendix A.1; a margin by scores: Touvron et al. 2023, "
    "arXiv:2307.09288, equation 2",
)
def reward(given: Given) -> Arrays:
    o = given.options
    texts = [[np.array([*record["prompt"], *answer]) for answer in record["answers"]] for record in records(given)]
    terms_of = ("ranking", "centre") if o["centre"] else ("ranking",)
    return {
        **with_scores(given, ranked),
        **prepared({"row_ids": each} for each in texts),
        **{f"n_targets/{term}": np.ones(len(texts)) for term in terms_of},
        "passes": np.concatenate([[len(text), 1, 1, 1, 0] for each in texts for text in each]),
    }


def ranked(given: Given) -> Arrays:
    o = given.options
    every, scores = pairs(given)

    def loss(s: np.ndarray, i: int, j: int) -> float:
        return -log_sigmoid(s[i] - s[j] - o["margin"] - o["score_margin"] * (scores[i] - scores[j]))

    def terms(of: Vectors, fixed: Vectors) -> Terms:
        s = of["scalar"]
        found = {"ranking": over_pairs(every, lambda i, j: loss(s, i, j))}
        return {**found, **({"centre": over_pairs(every, lambda i, j: (s[i] + s[j]) ** 2)} if o["centre"] else {})}

    s = given.inputs["batch/scores/scalar"][:, 0]
    shown = {
        "accuracy": lambda i, j: float(s[i] > s[j]),
        "margin": lambda i, j: s[i] - s[j],
        "better": lambda i, j: s[i],
        "worse": lambda i, j: s[j],
    }
    return {
        **learnt(given, None, terms, {"centre": o["centre"]} if o["centre"] else {}, learns=("scalar",)),
        **logged({name: over_pairs(every, value) for name, value in shown.items()}),
    }


# ipo of means, as TRL has it; a margin beside smoothing; the odds beside another nll.
MORE: dict[str, list[Any]] = {
    "ipo": [({}, {"average": True})],
    "hinge": [({}, {"beta": 1.5})],  # some pairs are beyond the hinge
    "dpo": [({}, {"margin": 0.5, "label_smoothing": 0.2, "average": True}), ({}, {"reference": False, "nll": 0.5})],
    "orpo": [({}, {"nll": 0.0})],
}


def refuses(options: Mapping[str, Any]) -> bool:
    """True where the options can't be, or have no effect together."""
    loss = options.get("loss", "sigmoid")
    smooths, parts = loss in ("sigmoid", "robust"), loss in ("sigmoid", "robust", "hinge", "apo_down")
    return bool((options.get("label_smoothing") and not smooths) or (options.get("margin") and not parts))


REFUSED: dict[str, list[Any]] = {
    "dpo": [
        *(({}, {key: 0.0}) for key in ("beta", "weight")),
        ({}, {"nll": -0.1}),
        *(({}, {"label_smoothing": value}) for value in (-0.1, 0.5)),
    ],
    "reward": [({}, {"centre": -0.1})],
}
