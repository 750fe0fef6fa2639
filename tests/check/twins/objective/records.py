"""Twins of objectives over records and pairs, from their papers."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from llmlab.check.twins.observers.scored import BALANCE
from llmlab.twins import Given, twin
from twins import Settings
from twins.norm import bfloat16
from twins.objective.losses import Arrays, log_softmax

REFUSED: Settings = {
    "classify": [({}, {"lm_weight": -0.1})],
    "contrastive": [({}, {"temperature": 0.0}), ({}, {"mlp": True, "pool": "mean"})],
    "contrastive_margin": [({}, {"margin": 0.0})],
    "qa_span": [({}, {"stride": -1}), ({}, {"stride": 40}), ({}, {"max_answer": 0})],
}
NAMES = ("batch", "none", "weighed")


class Computed(NamedTuple):
    """Terms and logs as (sum, count), and slopes of the weighted sum of the terms' means."""

    terms: dict[str, tuple[float, int]]
    logs: dict[str, tuple[float, int]]
    slopes: Arrays
    weights: dict[str, float] = {}

    @property
    def mean(self) -> float:
        return BALANCE + sum(self.weights.get(n, 1.0) * s / max(c, 1) for n, (s, c) in self.terms.items())


Compute = Callable[[Given, str, Arrays, Arrays], Computed]  # (given, batch's name, batch, scores by role)


def losses(given: Given, compute: Compute) -> Arrays:
    """What `compute` says of each batch; and of `batch` with scores that are rounded to bfloat16, the mean."""
    made: Arrays = {}
    for name in NAMES:
        batch = {k.removeprefix(f"{name}/"): v for k, v in given.inputs.items() if k.startswith(f"{name}/")}
        if not batch:
            continue
        scores = {k.removeprefix("scores/"): v for k, v in batch.items() if k.startswith("scores/")}
        found = compute(given, name, batch, scores)
        made |= {f"{name}/loss/{key}": np.array(v, np.float64) for key, v in found.terms.items()}
        made |= {f"{name}/log/{key}": np.array(v, np.float64) for key, v in found.logs.items()}
        made |= {f"{name}/weight/{key}": np.array(v) for key, v in found.weights.items()}
        made |= {f"{name}/slope/{key}": v for key, v in found.slopes.items()}
        made[f"{name}/mean"] = np.array(found.mean)
        if name == "batch":
            half = compute(given, name, batch, {role: bfloat16(v) for role, v in scores.items()})
            made["half/mean"] = np.array(half.mean)
    return made


def surprise(scores: np.ndarray, right: int) -> tuple[float, np.ndarray]:
    """-log softmax(scores)[right], and its gradient by the scores."""
    log_p = log_softmax(scores)
    slope = np.exp(log_p)
    slope[right] -= 1
    return -log_p[right], slope


def next_tokens(batch: Arrays, scores: np.ndarray) -> tuple[float, int, np.ndarray]:
    """(sum, number, slope of the sum) of the surprise at labels that are no -100."""
    total, n, slope = 0.0, 0, np.zeros_like(scores)
    for at in zip(*np.nonzero(batch["labels"] != -100), strict=True):
        nll, slope[at] = surprise(scores[at], batch["labels"][at])
        total, n = total + nll, n + 1
    return total, n, slope


def record(given: Given, i: int) -> Arrays:
    return {k.removeprefix(f"record/{i}/"): v for k, v in given.inputs.items() if k.startswith(f"record/{i}/")}


def n_records(given: Given) -> int:
    return 1 + max(int(k.split("/")[1]) for k in given.inputs if k.startswith("record/"))


def rows(fields: Arrays) -> list[np.ndarray]:
    return [fields[f"rows/{j}"] for j in range(sum(k.startswith("rows/") for k in fields))]


def declared(fixed: bool) -> Arrays:
    return {"shown": np.array(0.0), "fixed_counts": np.array(float(fixed))}


def prepared_rows(fields: Arrays, i: int, n_heads: int) -> Arrays:
    """Each sequence as it is, and a pass for each, whose heads read all of the text."""
    texts = rows(fields)
    made: Arrays = {f"prepared/row_ids/{i}/{j}": row for j, row in enumerate(texts)}
    made |= {
        f"prepared/row_segments/{i}/{j}": fields[f"row_segments/{j}"]
        for j in range(len(texts))
        if f"row_segments/{j}" in fields
    }
    return {**made, f"passes/{i}": np.array([[len(row), 1, 1, *[0] * n_heads] for row in texts], np.float64)}


def prepared_text(fields: Arrays, i: int) -> Arrays:
    made = {f"prepared/ids/{i}": fields["tokens"]}
    return made | ({f"prepared/segments/{i}": fields["segments"]} if "segments" in fields else {})


# ---------------------------------------------------------------- classes of texts


def class_loss(given: Given, name: str, batch: Arrays, scores: Arrays) -> Computed:
    """GPT-1, equations 3 to 5: -log softmax(scores)[class], and `lm_weight` times the next-token loss."""
    o, of = given.options, scores["classes"]
    both, n = o["both_orders"], len(batch["labels"])
    slopes = {"classes": np.zeros_like(of)}
    total, right = 0.0, 0
    for b in range(n):
        mine = [2 * b, 2 * b + 1] if both else [b]
        added = sum(of[i] for i in mine)
        nll, slope = surprise(added, batch["labels"][b])
        weight = batch["confidence"][b] if "confidence" in batch else 1.0
        total, right = total + weight * nll, right + (added.argmax() == batch["labels"][b])
        for i in mine:
            slopes["classes"][i] = weight * slope / n
    terms, weights = {"nll": (total, n)}, {}
    if o["lm_weight"]:
        ids, valid = (batch[f"row_{k}" if both else k] for k in ("ids", "valid"))
        ids, valid = ids.reshape(-1, ids.shape[-1]), valid.reshape(-1, ids.shape[-1])
        labels = np.full(ids.shape, -100)
        labels[:, :-1] = np.where(valid[:, 1:], ids[:, 1:], -100)
        lm, n_next, slope = next_tokens({"labels": labels}, scores["tokens"])
        terms["lm"], weights["lm"] = (lm, n_next), o["lm_weight"]
        slopes["tokens"] = o["lm_weight"] * slope / n_next
    return Computed(terms, {"accuracy": (right, n)}, slopes, weights)


def classify(given: Given) -> Arrays:
    o = given.options
    made = {**declared(not o["lm_weight"]), **losses(given, class_loss)}
    n_heads = 2 if o["lm_weight"] else 1
    for i in range(n_records(given)):
        fields = record(given, i)
        texts = rows(fields) if o["both_orders"] else [fields["tokens"]]
        if o["both_orders"]:
            made |= prepared_rows(fields, i, n_heads)
        else:
            made |= prepared_text(fields, i)
            made[f"passes/{i}"] = np.array([[len(texts[0]), 1, 1, *[0] * n_heads]], np.float64)
        made |= {f"prepared/labels/{i}": fields["label"], f"n_targets/nll/{i}": np.array(1)}
        if "confidence" in fields:
            made[f"prepared/confidence/{i}"] = fields["confidence"]
        if o["lm_weight"]:
            made[f"n_targets/lm/{i}"] = np.array(sum(len(text) - 1 for text in texts))
    return made


for _name in ("classification", "classify"):
    twin(
        "objective",
        _name,
        source="Devlin et al. 2018, section 4.1; Radford et al. 2018, section 3.3 and equations 3 to 5",
    )(classify)


# ---------------------------------------------------------------- labels of words, answers, choices


def word_loss(given: Given, name: str, batch: Arrays, scores: Arrays) -> Computed:
    total, n, slope = next_tokens(batch, scores["labels"])
    where = batch["labels"] != -100
    right = int((scores["labels"].argmax(-1) == batch["labels"])[where].sum())
    return Computed({"nll": (total, n)}, {"accuracy": (right, n)}, {"labels": slope / max(n, 1)})


@twin("objective", "token_classify", source="Devlin et al. 2018, section 5.3: the first sub-token of each word")
def token_classify(given: Given) -> Arrays:
    made = {**declared(False), **losses(given, word_loss)}
    for i in range(n_records(given)):
        fields, seen = record(given, i), set()
        labels = np.full(len(fields["tokens"]), -100)
        for t, word in enumerate(fields["words"].tolist()):
            if word >= 0 and word not in seen:
                labels[t] = fields["labels"][word]
            seen.add(word)
        made |= {**prepared_text(fields, i), f"prepared/labels/{i}": labels}
        made[f"n_targets/nll/{i}"] = np.array((labels != -100).sum())
    return made


def span_loss(given: Given, name: str, batch: Arrays, scores: Arrays) -> Computed:
    total, n, right, slope = 0.0, 0, 0, np.zeros_like(scores["span"])
    for b, (span, valid) in enumerate(zip(batch["span"], batch["valid"], strict=True)):
        of = scores["span"][b, valid]
        right += (of.argmax(0) == span).all()
        for end in (0, 1):
            if span[end] >= 0:
                nll, slope[b, valid, end] = surprise(of[:, end], span[end])
                total, n = total + nll, n + 1
    return Computed({"nll": (total, n)}, {"accuracy": (right, len(batch["span"]))}, {"span": slope / max(n, 1)})


def best_spans(given: Given) -> Arrays:
    """Of all spans of the text of at most `max_answer` tokens that with the highest sum of scores."""
    found = []
    for scores, (begin, end) in zip(given.inputs["batch/scores/span"], given.inputs["batch/within"], strict=True):
        spans = [(a, b) for a in range(begin, end) for b in range(a, min(end, a + given.options["max_answer"]))]
        a, b = max(spans, key=lambda span: scores[span[0], 0] + scores[span[1], 1])
        found.append((a, b, scores[a, 0] + scores[b, 1], scores[0].sum()))
    columns = zip(*found, strict=True)
    return {f"best/{name}": np.array(next(columns)) for name in ("first", "last", "score", "none")}


@twin("objective", "qa_span", source="Devlin et al. 2018, sections 4.2 and 4.3")
def qa_span(given: Given) -> Arrays:
    made = {
        **declared(False),
        **losses(given, span_loss),
        **best_spans(given),
        "stride": np.array(given.options["stride"]),
    }
    for i in range(n_records(given)):
        fields = record(given, i)
        made |= {**prepared_text(fields, i), f"prepared/span/{i}": fields["span"]}
        made[f"prepared/within/{i}"] = fields["context"]
        made[f"n_targets/nll/{i}"] = np.array((fields["span"] >= 0).sum())
        made[f"passes/{i}"] = np.array([[len(fields["tokens"]), 1, 1, 0]], np.float64)
    return made


def choice_loss(given: Given, name: str, batch: Arrays, scores: Arrays) -> Computed:
    total, right, at, slope = 0.0, 0, 0, np.zeros_like(scores["scalar"])
    n_choices, answers = batch["row_valid"].any(-1).sum(-1), batch["answer"]
    for n, answer in zip(n_choices, answers, strict=True):
        mine = scores["scalar"][at : at + n, 0]
        nll, slope[at : at + n, 0] = surprise(mine, answer)
        total, right, at = total + nll, right + (mine.argmax() == answer), at + n
    count = len(answers)
    return Computed({"nll": (total, count)}, {"accuracy": (right, count)}, {"scalar": slope / count})


@twin("objective", "multiple_choice", source="Radford et al. 2018, section 3.3; Devlin et al. 2018, section 4.4")
def multiple_choice(given: Given) -> Arrays:
    made = {**declared(True), **losses(given, choice_loss)}
    for i in range(n_records(given)):
        fields = record(given, i)
        made |= {**prepared_rows(fields, i, 1), f"prepared/answer/{i}": fields["answer"]}
        made[f"n_targets/nll/{i}"] = np.array(1)
    return made


# ---------------------------------------------------------------- targets from sources


def token_loss(given: Given, name: str, batch: Arrays, scores: Arrays) -> Computed:
    total, n, slope = next_tokens(batch, scores["tokens"])
    return Computed({"nll": (total, n)}, {}, {"tokens": slope / max(n, 1)})


@twin("objective", "seq2seq", source="Sutskever et al. 2014, equation 1; shifted as in Raffel et al. 2019, section 2.1")
def seq2seq(given: Given) -> Arrays:
    made = {**declared(False), **losses(given, token_loss)}
    for i in range(n_records(given)):
        source, target = (record(given, i)[key].tolist() for key in ("source", "target"))
        eos, pad = (int(given.inputs[f"special/{name}"]) for name in ("eos", "pad"))
        made |= {
            f"prepared/source_ids/{i}": np.array(source + [eos] * (source[-1:] != [eos])),
            f"prepared/ids/{i}": np.array([pad, *target[:-1]]),
            f"prepared/labels/{i}": np.array(target),
            f"n_targets/nll/{i}": np.array(len(target)),
        }
    return made


@twin("objective", "seq2seq_decoder", source="Liu et al. 2018, section 4.2.3, with the loss on the target alone")
def seq2seq_decoder(given: Given) -> Arrays:
    made = {**declared(False), **losses(given, token_loss)}
    for i in range(n_records(given)):
        source, target = (record(given, i)[key].tolist() for key in ("source", "target"))
        text = [*source, int(given.inputs["special/sep"]), *target]
        made |= {
            f"prepared/ids/{i}": np.array(text[:-1]),
            f"prepared/labels/{i}": np.array([-100] * len(source) + target),
            f"prepared/prefix_len/{i}": np.array(len(source) + 1),
            f"n_targets/nll/{i}": np.array(len(target)),
        }
    return made


# ---------------------------------------------------------------- vectors


def texts_of(given: Given, name: str, batch: Arrays) -> list[list[np.ndarray]]:
    """The ids of the texts of each sample, without padding."""
    if "ids" in batch:
        return [[ids, ids] for ids in batch["ids"]]
    pairs = zip(batch["row_ids"], batch["row_valid"], strict=True)
    return [[ids[v] for ids, v in zip(row_ids, valid, strict=True) if v.any()] for row_ids, valid in pairs]


def weights_of(pool: str, n: int) -> np.ndarray:
    """The share that each of n tokens has in the vector of their text."""
    at = {"first": 0, "last": n - 1}.get(pool)
    return np.full(n, 1 / n) if at is None else np.eye(n)[at]


def contrast(given: Given, name: str, batch: Arrays, scores: Arrays) -> Computed:
    """Gao et al. 2021, equations 1 and 5 (alpha = 1)."""
    o, hidden = given.options, given.inputs["hidden"]
    texts = texts_of(given, name, batch)
    # A model that is not trained has no MLP where a text's like is itself.
    projected = scores.get("vector") if o["positives"] == "pairs" else None
    unit = lambda v: v / np.linalg.norm(v)  # noqa: E731
    rows = iter(range(sum(map(len, texts))))
    numbered = [[(next(rows), ids) for ids in sample] for sample in texts]
    vector = lambda row, ids: (  # noqa: E731
        weights_of(o["pool"], len(ids)) @ hidden[ids] if projected is None else projected[row]
    )
    queries = [sample[0] for sample in numbered]
    keys = [sample[j] for j in (1, 2) for sample in numbered if len(sample) > j]
    q, k = (np.stack([vector(*text) for text in found]) for found in (queries, keys))
    z, c = (np.stack([unit(v) for v in found]) for found in (q, k))
    total, right, dz, dc = 0.0, 0, np.zeros_like(z), np.zeros_like(c)
    for i in range(len(z)):
        cosines = z[i] @ c.T / o["temperature"]
        nll, slope = surprise(cosines, i)
        total, right = total + nll, right + (cosines.argmax() == i)
        dz[i] += slope @ c / o["temperature"] / len(z)
        dc += slope[:, None] * z[i] / o["temperature"] / len(z)
    table = np.zeros_like(hidden)
    by_role = {role: np.zeros_like(value) for role, value in scores.items()}
    for found, raw, units, slopes in ((queries, q, z, dz), (keys, k, c, dc)):
        for (row, ids), v, u, d in zip(found, raw, units, slopes, strict=True):
            slope = (d - u * (u @ d)) / np.linalg.norm(v)
            if projected is None:
                np.add.at(table, ids, np.outer(weights_of(o["pool"], len(ids)), slope))
            else:
                by_role["vector"][row] += slope
    n = len(z)
    # Hidden states that are read by a head alone have no slope of their own here.
    hidden_slope = {"hidden": table} if projected is None else {}
    return Computed({"contrast": (total, n)}, {"accuracy": (right, n)}, by_role | hidden_slope)


@twin("objective", "contrastive", source="Gao et al. 2021, equations 1 and 5; the MLP: section 6.3")
def contrastive(given: Given) -> Arrays:
    made = {**declared(True), **losses(given, contrast)}
    for i in range(n_records(given) if given.options["positives"] == "pairs" else 0):
        made |= {
            **prepared_rows(record(given, i), i, int(given.options["mlp"])),
            f"n_targets/contrast/{i}": np.array(1),
        }
    return made


def margin_loss(given: Given, name: str, batch: Arrays, scores: Arrays) -> Computed:
    """Hadsell et al. 2006, equation 4, whose Y is 1 of what is unlike."""
    o, hidden, n = given.options, given.inputs["hidden"], len(batch["labels"])
    total, right, table = 0.0, 0, np.zeros_like(hidden)
    for b, (one, other) in enumerate(texts_of(given, name, batch)):
        shares = [weights_of(o["pool"], len(ids)) for ids in (one, other)]
        apart = shares[0] @ hidden[one] - shares[1] @ hidden[other]
        d, alike = np.linalg.norm(apart), batch["labels"][b] == 1
        weight = batch["confidence"][b] if "confidence" in batch else 1.0
        total += weight * (d**2 if alike else max(0.0, o["margin"] - d) ** 2) / 2
        by_d = d if alike else -max(0.0, o["margin"] - d)
        slope = weight * by_d * apart / d / n if d else np.zeros_like(apart)  # at 0 there is no direction
        np.add.at(table, one, np.outer(shares[0], slope))
        np.add.at(table, other, np.outer(shares[1], -slope))
        right += (d < o["margin"] / 2) == alike
    return Computed({"margin": (total, n)}, {"accuracy": (right, n)}, {"hidden": table})


@twin("objective", "contrastive_margin", source="Hadsell et al. 2006, equation 4")
def contrastive_margin(given: Given) -> Arrays:
    made = {**declared(True), **losses(given, margin_loss)}
    for i in range(n_records(given)):
        fields = record(given, i)
        made |= {**prepared_rows(fields, i, 0), f"n_targets/margin/{i}": np.array(1)}
        made[f"prepared/labels/{i}"] = fields["label"]
        if "confidence" in fields:
            made[f"prepared/confidence/{i}"] = fields["confidence"]
    return made
