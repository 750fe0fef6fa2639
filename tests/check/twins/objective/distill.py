"""Twin of the objective distill, from its papers."""

from __future__ import annotations

import numpy as np

from llmlab import registry
from llmlab.check.restoring.batches import SIZE
from llmlab.check.twins.observers.scored import BALANCE, N_LAYERS
from llmlab.twins import Given, twin
from twins import Settings
from twins.norm import bfloat16
from twins.objective.causal import clm
from twins.objective.encoders import mlm
from twins.objective.losses import Arrays, log_softmax

REFUSED: Settings = {
    "distill": [
        ({}, {"temperature": 0.0}),
        ({}, {"beta": -0.1}),
        ({}, {"beta": 1.1}),
        ({}, {"weight": 0.0}),
        ({}, {"data": -1.0}),
        ({}, {"hidden": "mse", "hidden_weight": 0.0}),
        ({}, {"hidden_weight": 2.0}),
        ({}, {"layers": [1], "teacher_layers": [2]}),
        ({}, {"projection": True}),
        ({}, {"hidden": "mse", "layers": [1, 2]}),
        ({}, {"hidden": "mse", "layers": [], "teacher_layers": []}),
    ]
}


def divergence(log_p: np.ndarray, log_q: np.ndarray, beta: float) -> tuple[float, np.ndarray]:
    """(value, slope by the student's scores over the temperature)."""
    p, q = np.exp(log_p), np.exp(log_q)
    if beta == 0:
        return float((p * (log_p - log_q)).sum()), q - p
    if beta == 1:
        by_q = log_q - log_p
        return float((q * by_q).sum()), q * (by_q - (q * by_q).sum())
    log_m = np.log(beta * p + (1 - beta) * q)
    by_q = (1 - beta) * (log_q - log_m)  # of beta p log(p / m) + (1 - beta) q log(q / m), the rest of it cancels
    value = beta * (p * (log_p - log_m)).sum() + (1 - beta) * (q * (log_q - log_m)).sum()
    return float(value), q * (by_q - (q * by_q).sum())


def state(token: int, layer: int, rows: int) -> int:
    """The row of the table that is a token's hidden state behind a layer of N_LAYERS, or counted from the last, -1."""
    behind = layer + 1 if layer < 0 else layer - N_LAYERS
    return (token + behind) % rows


def loss(given: Given, batch: str, rounded) -> Arrays:
    o, inputs = given.options, {k.removeprefix(f"{batch}/"): v for k, v in given.inputs.items()}
    t = o["temperature"]
    ours, theirs, labels = rounded(inputs["scores/tokens"]), rounded(inputs["scores/teacher.tokens"]), inputs["labels"]
    nll = total = agree = n = compared = 0.0
    slope_nll, slope = np.zeros_like(ours), np.zeros_like(ours)
    for at in np.ndindex(labels.shape):
        if labels[at] >= 0:
            log_p = log_softmax(ours[at])
            nll, n = nll - log_p[labels[at]], n + 1
            slope_nll[at] = np.exp(log_p) - np.eye(len(log_p))[labels[at]]
        if labels[at] >= 0 or o["at"] == "all":
            p, q = theirs[at][:SIZE], ours[at][:SIZE]
            value, by_scores = divergence(log_softmax(p / t), log_softmax(q / t), o["beta"])
            total, compared, agree = total + t**2 * value, compared + 1, agree + (p.argmax() == q.argmax())
            slope[at][:SIZE] = t * by_scores  # T^2 / T
    mean = o["data"] * nll / max(n, 1) + o["weight"] * total / max(compared, 1) + BALANCE
    made = {
        "loss/nll": [nll, n],
        "loss/divergence": [total, compared],
        "weight/nll": o["data"],
        "weight/divergence": o["weight"],
        "log/agreement": [agree, compared],
        "slope/tokens": o["data"] * slope_nll / max(n, 1) + o["weight"] * slope / max(compared, 1),
        "slope/teacher.tokens": np.zeros_like(theirs),
        "read/model": inputs["ids"][None],
        "read/teacher": inputs["ids"][None],
        **{f"documents/{role}/0": inputs["documents"] for role in ("model", "teacher")},
    }
    if o["hidden"] != "none":
        table, known = given.inputs["hidden"], given.inputs["hidden/teacher"]
        distance, by_table = 0.0, np.zeros_like(table)
        turn = given.inputs["project"] if o["projection"] else np.eye(table.shape[1])
        pairs = list(zip(o["layers"], o["teacher_layers"], strict=True))
        for token, (one, other) in ((t, p) for t in inputs["ids"].flat for p in pairs):
            at, there = (state(token, layer, len(table)) for layer in (one, other))
            a, b = table[at] @ turn, known[there]
            if o["hidden"] == "cosine":
                norms = np.linalg.norm(a) * np.linalg.norm(b)
                distance += 1 - a @ b / norms
                by_table[at] += (a * (a @ b) / (a @ a) / norms - b / norms) @ turn.T
            else:
                distance += ((a - b) ** 2).mean()
                by_table[at] += 2 * (a - b) / len(a) @ turn.T
        mean += o["hidden_weight"] * distance / labels.size
        made |= {"loss/hidden": [distance, labels.size], "weight/hidden": o["hidden_weight"]}
        made["slope/hidden"] = o["hidden_weight"] * by_table / labels.size
    return {key: np.asarray(value, np.float64) for key, value in (made | {"mean": mean}).items()}


@twin(
    "objective",
    "distill",
    source="Hinton et al. 2015, section 2; Agarwal et al. 2023, equation 1; hidden: Sanh et al. 2019, section 3, "
    "and Jiao et al. 2019, equations 7 and 8",
)
def distill(given: Given) -> Arrays:
    of_text = registry.index()["objective", given.options["text"]].options  # at their defaults
    options = {**given.options, **{key: option.default for key, option in of_text.items()}}
    text = (clm if given.options["text"] == "clm" else mlm)(Given(options, given.sizes, given.inputs, given.weights))
    made = {key: value for key, value in text.items() if not key.startswith(("batch/", "none/", "half/", "n_targets/"))}
    made.pop("repeats", None)  # which is of the copies that mlm makes
    made["fixed_counts"] = np.array(0.0)
    for name in ("plain", "answered", "only_special") if given.options["text"] == "clm" else ():
        n, length = int((made[f"prepared/labels/{name}"] >= 0).sum()), len(made[f"prepared/labels/{name}"])
        counts = {"nll": n, "divergence": length if given.options["at"] == "all" else n}
        if given.options["hidden"] != "none":
            counts["hidden"] = length
        made |= {f"n_targets/{term}/{name}": np.array(count) for term, count in counts.items()}
    for batch in ("batch", "none"):
        made |= {f"{batch}/{key}": value for key, value in loss(given, batch, lambda x: x).items()}
    made["half/mean"] = loss(given, "batch", bfloat16)["mean"]
    return made
