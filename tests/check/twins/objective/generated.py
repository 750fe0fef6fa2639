"""Twins of the objectives rtd, replace_mlm and all_tokens_mlm, from ELECTRA's paper."""

from __future__ import annotations

import math

import numpy as np

from llmlab.check.restoring.batches import SIZE
from llmlab.check.twins.observers.scored import BALANCE
from llmlab.twins import Given, twin
from twins import Settings
from twins.norm import bfloat16
from twins.objective.losses import Arrays, expected, log_softmax

WRONG = [{"rate": 0.0}, {"rate": 1.1}, {"masked": -0.1}, {"masked": 1.1}, {"weight": 0.0}]
REFUSED: Settings = {name: [({}, options) for options in WRONG] for name in ("rtd", "replace_mlm", "all_tokens_mlm")}


def samples(given: Given, heads) -> Arrays:
    """Of the texts: k = ceil(rate n) of n ordinary tokens, all sets of k as often. heads(k, judged): rows that each model's
    heads see (-1: all), and targets of each term."""
    o, n = given.options, float(given.inputs["draws"])
    special = sorted(int(v) for key, v in given.inputs.items() if key.startswith("special/"))
    made: Arrays = {"fixed_counts": np.array(0.0), "shown": np.array(1 - o["masked"])}
    for name in ("plain", "answered", "only_special"):
        text = given.inputs[f"{name}/tokens"][:-1]
        judged = np.ones(len(text), bool)
        if name == "answered":
            judged = ~given.inputs["answered/given"][:-1]
        may = judged & ~np.isin(text, special)
        m = int(may.sum())
        k = math.ceil(round(o["rate"] * m, 6)) if o["rate"] > 1e-6 else min(m, 1)
        read = np.zeros(int(given.inputs["vocabulary"]))
        read[given.inputs["special/mask"]] = k * o["masked"]
        varies = k * o["masked"] * (1 - o["masked"])
        made |= expected(f"targets/{name}", may * k / max(m, 1), n)
        made |= expected(f"number/{name}", np.eye(len(text) + 1)[k], n)
        both = k * (k - 1) / max(m * (m - 1), 1) * (may[1:] & may[:-1]).sum()
        made |= expected(f"together/{name}", both, n, 3 * both)
        made |= expected(f"read/{name}", read, n, np.where(read > 0, varies, 0.0))
        made |= expected(f"kept/{name}", k * (1 - o["masked"]), n, varies)
        made |= expected(f"alike/{name}", 0.0, n)
        made |= expected(f"chance/{name}", np.full(10, 0.1), n * len(text))
        known = given.inputs.get(f"{name}/documents")
        made[f"documents/{name}"] = np.array(-1) if known is None else known[:-1]
        rows, targets = heads(k, int(judged.sum()))
        made[f"passes/{name}"] = np.array([[model, len(text), 1, *rows[model]] for model in (0, 1)], np.float64)
        made |= {f"n_targets/{term}/{name}": np.array(float(count)) for term, count in targets.items()}
        made[f"judged/{name}"] = judged.astype(np.float64)
    return made


def nll_of(scores: np.ndarray, labels: np.ndarray) -> tuple[float, int, int, np.ndarray]:
    """(sum of -log p at labels, their number, best guesses that are right, the sum's slope by the scores)."""
    slope, nll, right = np.zeros_like(scores), 0.0, 0
    places = np.argwhere(labels >= 0)
    for at in map(tuple, places):
        log_p = log_softmax(scores[at])
        nll, right = nll - log_p[labels[at]], right + int(scores[at].argmax() == labels[at])
        slope[at] = np.exp(log_p) - np.eye(len(log_p))[labels[at]]
    return nll, len(places), right, slope


def filled(scores: np.ndarray, given: Given, batch: str) -> tuple[np.ndarray, np.ndarray]:
    """(the text, the same with the generator's tokens): in order of ids, that in whose share of [0, 1) the chance falls."""
    labels, ids = given.inputs[f"{batch}/labels"], given.inputs[f"{batch}/ids"]
    text = np.where(labels >= 0, labels, ids)
    read = text.copy()
    for at in map(tuple, np.argwhere(labels >= 0)):
        share = np.exp(log_softmax(scores[at][:SIZE]))
        left = given.inputs[f"{batch}/chance"][at]
        for token in range(SIZE):
            read[at] = token
            left -= share[token]
            if left < 0:
                break
    return text, read


def both(given: Given, batch: str, model) -> Arrays:
    """What the generator and what reads its tokens make of a batch. model(inputs, ...) -> its term, and sum, number, logs and
    slopes."""
    made: Arrays = {}
    inputs = {k.removeprefix(f"{batch}/"): v for k, v in given.inputs.items() if k.startswith(f"{batch}/")}
    for kind, rounded in (("", lambda x: x), ("half", bfloat16)):
        scores = rounded(inputs["scores/generator.tokens"])
        nll, n, right, slope = nll_of(scores, inputs["labels"])
        text, read = filled(scores, given, batch)
        term, (loss, count, logs, slopes) = model(inputs, rounded, text, read)
        mean = nll / max(n, 1) + given.options["weight"] * loss / max(count, 1) + 2 * BALANCE
        if kind == "half":
            if batch == "batch":
                made["half/mean"] = np.array(mean)
            continue
        made |= {f"{batch}/log/{key}": np.array(value, np.float64) for key, value in logs.items()}
        made |= {
            f"{batch}/log/generator_accuracy": np.array([right, n], np.float64),
            f"{batch}/loss/generator": np.array([nll, n]),
            f"{batch}/loss/{term}": np.array([loss, count]),
            f"{batch}/weight/{term}": np.array(given.options["weight"]),
            f"{batch}/mean": np.array(mean),
            f"{batch}/slope/generator.tokens": slope / max(n, 1),
            f"{batch}/read/generator": inputs["ids"][None],
            f"{batch}/read/model": read[None],
            **{f"{batch}/documents/{role}/0": inputs["documents"] for role in ("generator", "model")},
        }
        made |= {f"{batch}/slope/{k}": given.options["weight"] * v / max(count, 1) for k, v in slopes.items()}
    return made


@twin(
    "objective",
    "rtd",
    source="Clark et al. 2020, section 3.1; ELECTRA 15%: section 3.4; masked=0.85: its released code",
)
def rtd(given: Given) -> Arrays:
    def heads(k, judged):
        masked = given.options["on"] == "masked"
        return ((k,), (k if masked else -1,)), {"generator": k, "replaced": k if masked else judged}

    def model(inputs, rounded, text, read):
        scores, replaced = rounded(inputs["scores/replaced"]), read != text
        counts = inputs["labels"] >= 0 if given.options["on"] == "masked" else inputs["judged"]
        loss, slope = 0.0, np.zeros_like(scores)
        right = found = there = 0
        for at in map(tuple, np.argwhere(counts)):
            p = 1 / (1 + np.exp(-scores[at]))  # that it was replaced
            loss -= np.log(p if replaced[at] else 1 - p)
            slope[at] = p - replaced[at]
            right += (p > 0.5) == replaced[at]
            found, there = found + (p > 0.5 and replaced[at]), there + replaced[at]
        n = int(counts.sum())
        return "replaced", (loss, n, {"accuracy": [right, n], "found": [found, there]}, {"replaced": slope})

    made = samples(given, heads) | shares(given.options["sharing"])
    return made | both(given, "batch", model) | both(given, "none", model)


def shares(how: str) -> Arrays:
    """The generator has the model's tables of tokens and positions (section 3.2), with a delta of the model's own on the former
    (He et al. 2021, arXiv:2111.09543, section 3), or none of them."""
    return {"shares/generator": np.array({"embedding": [1, 1, 0], "gdes": [1, 1, 1], "none": [0, 0, 0]}[how])}


def originals(given: Given) -> Arrays:
    """Of the masked tokens, or of all: then D of p is on what the model reads, and 1 - D on its softmax."""
    every = given.options["on"] == "all"

    def heads(k, judged):
        return ((k,), (k,)) if not every else ((k, 0), (-1, -1)), {"nll": judged if every else k, "generator": k}

    def model(inputs, rounded, text, read):
        scores = rounded(inputs["scores/tokens"])
        if not every:
            loss, n, right, slope = nll_of(scores, inputs["labels"])
            return "nll", (loss, n, {"accuracy": [right, n]}, {"tokens": slope})
        copies, loss, right = rounded(inputs["scores/copy"]), 0.0, 0
        slopes = {"tokens": np.zeros_like(scores), "copy": np.zeros_like(copies)}
        for at in map(tuple, np.argwhere(inputs["judged"])):
            d, softmax = 1 / (1 + np.exp(-copies[at])), np.exp(log_softmax(scores[at]))
            p = (1 - d) * softmax
            p[read[at]] += d
            x = text[at]
            loss, right = loss - np.log(p[x]), right + (p.argmax() == x)
            slopes["tokens"][at] = -(1 - d) * softmax[x] * (np.eye(len(p))[x] - softmax) / p[x]
            slopes["copy"][at] = -d * (1 - d) * ((x == read[at]) - softmax[x]) / p[x]
        n = int(inputs["judged"].sum())
        return "nll", (loss, n, {"accuracy": [right, n]}, slopes)

    made = samples(given, heads) | shares("embedding")
    if not every:
        made = {key: value for key, value in made.items() if not key.startswith("judged/")}
    return made | both(given, "batch", model) | both(given, "none", model)


@twin("objective", "replace_mlm", source="Clark et al. 2020, section 3.4, Replace MLM")
def replace_mlm(given: Given) -> Arrays:
    return originals(given)


@twin("objective", "all_tokens_mlm", source="Clark et al. 2020, section 3.4, All-Tokens MLM")
def all_tokens_mlm(given: Given) -> Arrays:
    return originals(given)
