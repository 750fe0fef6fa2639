"""Twin of blank infilling: all spans that may be taken of a short text, with their probabilities."""

from __future__ import annotations

from itertools import combinations, permutations
from math import exp, factorial

import numpy as np

from llmlab.check.twins.observers import sources
from llmlab.twins import Given, twin
from twins import Settings
from twins.objective.losses import Arrays, cross_entropy, expected
from twins.objective.noise import split

REFUSED: Settings = {"blank_infilling": [({}, {"rate": 0.0}), ({}, {"rate": 1.0}), ({}, {"mean_span": 0.0})]}

Spans = tuple[tuple[int, int], ...]  # (begin, length), in the order of the text


def of_tokens(window: int, rate: float, mean: float) -> dict[Spans, float]:
    law: dict[Spans, float] = {}

    def poisson(k: int) -> float:
        return exp(-mean) * mean**k / factorial(k) / (1 - exp(-mean))

    def draw(lengths: tuple[int, ...], p: float) -> None:
        k, taken = len(lengths), sum(lengths)
        room = window - 2 * (k + 1) - taken - k  # a token between any two of the spans
        if taken >= rate * (window - 2 * k) or room < 1:
            put(lengths, p)
            return
        for length in range(1, room + 1):
            # The last is cut to fit.
            q = poisson(length) if length < room else 1 - sum(poisson(i) for i in range(1, room))
            draw((*lengths, length), p * q)

    def put(lengths: tuple[int, ...], p: float) -> None:
        left = window - 2 * len(lengths) - sum(lengths)
        ways = [
            (order, gaps) for order in permutations(lengths) for gaps in combinations(range(left + 1), len(lengths))
        ]
        for order, gaps in ways:
            spans = tuple((gap + sum(order[:i]), order[i]) for i, gap in enumerate(gaps))
            law[spans] = law.get(spans, 0.0) + p / len(ways)

    draw((), 1.0)
    return law


def of_sentences(text: tuple[int, ...], rate: float) -> dict[Spans, float]:
    law: dict[Spans, float] = {}
    orders = list(permutations(range(len(split(text)))))
    for order in orders:
        for n in range(1, len(order) + 1):
            own = text[: len(text) - 2 * n]
            whole = split(own)
            spans = tuple(
                (sum(map(len, whole[:i])), len(whole[i])) for i in sorted([i for i in order if i < len(whole)][:n])
            )
            enough = sum(length for _, length in spans) >= rate * len(own)
            if enough or n + 1 > len(split(text[: len(text) - 2 * (n + 1)])):
                break
        law[spans] = law.get(spans, 0.0) + 1 / len(orders)
    return law


@twin(
    "objective",
    "blank_infilling",
    source="Du et al. 2022, section 2.1 and 2.2; behind a prefix: Zeng et al. 2022, section 2.2",
)
def blank_infilling(given: Given) -> Arrays:
    o, draws = given.options, float(given.inputs["draws"])
    made = {"shown": np.array(0.0), "fixed_counts": np.array(0.0), **cross_entropy(given, "tokens", False)}
    for name in ("plain", "one_sentence"):
        text = tuple(given.inputs[f"{name}/tokens"][:-1].tolist())
        window, n = len(text), len(text) - 2
        if o["variant"] == "token":
            law = of_tokens(window, o["rate"], o["mean_span"])
        elif o["variant"] == "sentence":
            law = of_sentences(text, o["rate"])
        elif o["variant"] == "prefix":
            law = {((begin, n - begin),): 1 / n for begin in range(n)}
        else:
            some = [length for length in range(n + 1) if n / 2 <= length <= n]
            law = {((b, k),): 1 / len(some) / (n - k + 1) for k in some for b in range(n - k + 1)}
        found = []
        for spans, p in law.items():
            ways = list(permutations(spans))
            found += [(sources.of_spans(list(way), window + 1), p / len(ways)) for way in ways]
        made[f"counts/{name}"] = np.array(1.0 + o["pairs"])
        for key in found[0][0]:
            values, p = np.stack([f[key] for f, _ in found]), np.array([p for _, p in found])
            mean = np.tensordot(p, values, 1)
            made |= expected(f"{key}/{name}", mean, draws, np.tensordot(p, (values - mean) ** 2, 1))
    return made
