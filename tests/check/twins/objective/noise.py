"""Twins of objectives whose decoder writes what an encoder reads noised: all that may come of a short text."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations, permutations, product
from math import ceil, exp, factorial

import numpy as np

from llmlab.check.twins.observers import sources, texts
from llmlab.twins import Given, twin
from twins import Settings
from twins.objective.losses import Arrays, cross_entropy, expected

SHARES = ("infilled", "permuted", "masked", "deleted", "rotated")
REFUSED: Settings = {
    "denoise": [
        *(({}, {name: value}) for name in SHARES for value in (-0.1, 1.1)),
        ({}, {"mean_span": 0.9}),
        ({}, {"infilled": 0.0, "permuted": 0.0}),
    ],
    "gap_sentences": [({}, {"rate": 0.0}), ({}, {"rate": 1.0})],
}

Law = dict[tuple[int, ...], float]  # the probability of each text


def then(law: Law, noise: Callable[[tuple[int, ...]], Law]) -> Law:
    made: Law = {}
    for text, p in law.items():
        for other, q in noise(text).items():
            if q:
                made[other] = made.get(other, 0.0) + p * q
    return made


def split(text: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Sentences; no two ends stand together in these texts."""
    whole: list[tuple[int, ...]] = [()]
    for token in text:
        whole[-1] += (token,)
        if token in texts.SENTENCE_ENDS:
            whole.append(())
    return [one for one in whole if one]


def permuted(text: tuple[int, ...], share: float) -> Law:
    whole = split(text)
    made: Law = {}
    for places in combinations(range(len(whole)), ceil(len(whole) * share)):
        for order in permutations(places):
            moved = dict(zip(places, order, strict=True))
            new = sum((whole[moved.get(i, i)] for i in range(len(whole))), ())
            made[new] = made.get(new, 0.0) + 1.0
    return {new: p / sum(made.values()) for new, p in made.items()}


def each(text: tuple[int, ...], p: float, become: tuple[int, ...]) -> Law:
    """Every token by itself becomes something else with probability p."""
    made: Law = {}
    for hit in product((False, True)[: 2 if p else 1], repeat=len(text)):
        new = sum((become if h else (token,) for token, h in zip(text, hit, strict=True)), ())
        made[new] = made.get(new, 0.0) + p ** sum(hit) * (1 - p) ** (len(hit) - sum(hit))
    return made


def span_lengths(budget: int, mean: float) -> dict[tuple[tuple[int, ...], int], float]:
    """The probability of (lengths above 0, how many of 0): drawn until they are `budget`, of 0 no more than have room."""
    poisson = [exp(-mean) * mean**k / factorial(k) for k in range(budget)]
    law: dict[tuple[tuple[int, ...], int], float] = {}

    def draw(spans: tuple[int, ...], empty: int, p: float) -> None:
        rest = budget - sum(spans)
        if rest == 0:
            key = (tuple(sorted(spans)), min(empty, budget - len(spans)))
            law[key] = law.get(key, 0.0) + p
            return
        some = 1.0
        if empty < budget:
            draw(spans, empty + 1, p * poisson[0])
        else:
            some = 1 / (1 - poisson[0])  # more empty ones change nothing
        for k in range(1, rest):
            draw((*spans, k), empty, p * some * poisson[k])
        draw((*spans, rest), empty, p * some * (1 - sum(poisson[:rest])))

    draw((), 0, 1.0)
    return law


def infilled(text: tuple[int, ...], share: float, mean: float, mask: int) -> Law:
    budget = round(len(text) * share)
    made: Law = {}
    for (some, empty), p in span_lengths(budget, mean).items():
        spans = (*some, *(0,) * empty)
        orders = set(permutations(spans))
        units = len(text) - budget + len(spans)
        places = list(combinations(range(units), len(spans)))
        for order, where in product(orders, places):
            new, at, lengths = [], 0, iter(order)
            for unit in range(units):
                if unit in where:
                    new.append(mask)
                    at += next(lengths)
                else:
                    new.append(text[at])
                    at += 1
            key = tuple(new)
            made[key] = made.get(key, 0.0) + p / len(orders) / len(places)
    return made


def rotated(text: tuple[int, ...], p: float) -> Law:
    made: Law = {text: 1 - p}
    for at in range(len(text)):
        new = text[at:] + text[:at]
        made[new] = made.get(new, 0.0) + p / len(text)
    return made


@twin(
    "objective",
    "denoise",
    source="Lewis et al. 2020, section 2.2; the share of sentences is rounded up as in fairseq's denoising_dataset",
)
def denoise(given: Given) -> Arrays:
    o, draws, mask = given.options, float(given.inputs["draws"]), int(given.inputs["special/mask"])
    shown = (1 - o["masked"]) * (1 - o["deleted"]) * (1 - o["infilled"])
    made = {"shown": np.array(shown), "fixed_counts": np.array(1.0), **cross_entropy(given, "tokens", False)}
    for name in ("plain", "one_sentence"):
        text = tuple(given.inputs[f"{name}/tokens"][:-2].tolist())
        law = then({text: 1.0}, lambda t: permuted(t, o["permuted"]))
        law = then(law, lambda t: each(t, o["deleted"], ()))
        law = then(law, lambda t: each(t, o["masked"], (mask,)))
        law = then(law, lambda t: infilled(t, o["infilled"], o["mean_span"], mask))
        law = then(law, lambda t: rotated(t, o["rotated"]) if t else {t: 1.0})
        eos = int(given.inputs["special/eos"])
        found = [(sources.of_source(np.array([*t, eos]), np.array(text), mask), p) for t, p in law.items()]
        for key in found[0][0]:
            values, p = np.stack([f[key] for f, _ in found]), np.array([p for _, p in found])
            mean = np.tensordot(p, values, 1)
            made |= expected(f"{key}/{name}", mean, draws, np.tensordot(p, (values - mean) ** 2, 1))
    return made


@twin("objective", "gap_sentences", source="Zhang et al. 2020, section 3.1 (Ind-Orig, Random, Lead), on tokens")
def gap_sentences(given: Given) -> Arrays:
    o = given.options
    made = {"shown": np.array(0.0), "fixed_counts": np.array(0.0), **cross_entropy(given, "tokens", False)}
    for name in ("plain", "one_sentence"):
        tokens = given.inputs[f"{name}/tokens"]
        whole = split(tuple(tokens[:-2].tolist()))
        n = max(1, min(round(o["rate"] * len(whole)), len(whole) - 1))
        ways = list(combinations(range(len(whole)), n))
        if o["choice"] == "lead":
            ways = ways[:1]
        elif o["choice"] == "ind_orig":
            best = sorted(range(len(whole)), key=lambda i: -rouge(whole, i))[:n]
            ways = [tuple(best)]
        masks = np.zeros(len(tokens))
        for way in ways:
            at = 0
            for i, one in enumerate(whole):
                masks[at] += (i in way) / len(ways)
                at += 1 if i in way else len(one)
        made |= expected(f"gaps/{name}", masks, float(given.inputs["draws"]))
    return made


def rouge(whole: list[tuple[int, ...]], i: int) -> float:
    """F1 of precision and recall; a token of the one is found in the other as often as that has it."""
    one, rest = list(whole[i]), [t for j, other in enumerate(whole) if j != i for t in other]
    common = sum(min(one.count(t), rest.count(t)) for t in set(one))
    if not common:
        return 0.0
    precision, recall = common / len(one), common / len(rest)
    return 2 * precision * recall / (precision + recall)
