"""Twins of the objectives clm, mlm and span_corruption, from their papers: means over many draws and exact samples."""

from __future__ import annotations

from itertools import combinations
from math import comb

import numpy as np

from llmlab.check.twins.observers.objective import SIZE
from llmlab.twins import Given, twin
from twins import Settings
from twins.objective.losses import Arrays, cross_entropy, expected

REFUSED: Settings = {
    "mlm": [
        ({}, {"rate": 0.0}),
        ({}, {"rate": 1.1}),
        ({}, {"masked": -0.1}),
        ({}, {"random": -0.1}),
        ({}, {"masked": 0.9, "random": 0.2}),
    ],
    "span_corruption": [({}, {"density": 0.0}), ({}, {"density": 1.0}), ({}, {"mean_span": 0.9})],
}


@twin("objective", "clm", source="Radford et al. 2018, equation 1")
def clm(given: Given) -> Arrays:
    made = {"shown": np.array(0.0), "fixed_counts": np.array(1.0), **cross_entropy(given, "tokens", False)}
    for name in ("plain", "answered", "only_special"):
        tokens = given.inputs[f"{name}/tokens"]
        labels = tokens[1:].copy()
        if name == "answered":
            labels[given.inputs["answered/given"][1:]] = -100
        made[f"prepared/ids/{name}"], made[f"prepared/labels/{name}"] = tokens[:-1], labels
        if name != "only_special":
            made[f"prepared/documents/{name}"] = given.inputs[f"{name}/documents"][:-1]
        made[f"n_targets/nll/{name}"] = np.array((labels >= 0).sum())
    return made


@twin(
    "objective", "mlm", source="Devlin et al. 2018, section 3.1 (15 %; 80, 10 and 10 % of these), at least one a sample"
)
def mlm(given: Given) -> Arrays:
    o, n = given.options, float(given.inputs["draws"])
    special = sorted(int(v) for key, v in given.inputs.items() if key.startswith("special/"))
    ordinary = [i for i in range(int(given.inputs["vocabulary"])) if i not in special]
    made = {"fixed_counts": np.array(0.0), **cross_entropy(given, "tokens", True)}
    n_small = len([i for i in range(SIZE) if i not in special])
    made["shown"] = np.array(1 - o["masked"] - o["random"] + o["random"] / n_small)
    for name in ("plain", "answered", "only_special"):
        text = given.inputs[f"{name}/tokens"][:-1]
        may = ~np.isin(text, special)
        if name == "answered":
            may &= ~given.inputs["answered/given"][:-1]
        m = int(may.sum())
        number = np.array(
            [comb(m, k) * o["rate"] ** k * (1 - o["rate"]) ** max(m - k, 0) for k in range(len(text) + 1)]
        )
        number[1] += number[0]  # one target is chosen where chance has chosen none
        number[0] = 0.0
        chosen = may * (o["rate"] + (1 - o["rate"]) ** m / m) if m else np.full(len(text), 1 / len(text))
        read = np.zeros(int(given.inputs["vocabulary"]))
        kept = 0.0
        for token, p in zip(text, chosen, strict=True):
            read[given.inputs["special/mask"]] += p * o["masked"] * (token != given.inputs["special/mask"])
            kept += p * o["masked"] * (token == given.inputs["special/mask"])
            for other in ordinary:
                read[other] += p * o["random"] / len(ordinary) * (other != token)
            kept += p * (1 - o["masked"] - o["random"] + o["random"] / len(ordinary) * (token in ordinary))
        made |= expected(f"targets/{name}", chosen, n) | expected(f"number/{name}", number, n)
        made |= expected(f"read/{name}", read, n, read) | expected(f"kept/{name}", kept, n, kept)
        pairs = sum(
            (o["rate"] * o["random"] / len(ordinary)) ** 2 * (len(ordinary) - len({*text[[i, j]]} & {*ordinary}))
            for i, j in combinations(np.flatnonzero(may), 2)
        )
        made |= expected(f"alike/{name}", pairs, n, 9 * pairs)  # pairs of one sample go together
        known = given.inputs.get(f"{name}/documents")
        made[f"documents/{name}"] = np.array(-1) if known is None else known[:-1]
    return made


def parts_of(total: int, n: int) -> np.ndarray:
    """(n + 1, total + 1): [j, s] is the probability that the first j of n random parts of `total` add up to s."""
    law = np.zeros((n + 1, total + 1))
    law[0, 0] = law[n, total] = 1.0
    for j in range(1, n):
        for s in range(j, total - (n - j) + 1):
            law[j, s] = comb(s - 1, j - 1) * comb(total - s - 1, n - j - 1) / comb(total - 1, n - 1)
    return law


@twin(
    "objective",
    "span_corruption",
    source="Raffel et al. 2019, section 3.1.4; lengths of spans: random_spans_noise_mask of its code",
)
def span_corruption(given: Given) -> Arrays:
    text = given.inputs["plain/tokens"][:-1]
    length, draws = len(text), float(given.inputs["draws"])
    noise = int(min(max(np.rint(length * given.options["density"]), 1), length - 1))
    n = int(min(max(np.rint(noise / given.options["mean_span"]), 1), length - noise))
    n, mode = 1 if given.options["at_end"] else n, int(given.options["mode"] != "none")
    kept, gone = parts_of(length - noise, n), parts_of(noise, n)
    taken = np.zeros(length)
    for j in range(1, n + 1):  # the j-th span begins behind j kept parts and j - 1 spans
        begins, ends = np.convolve(kept[j], gone[j - 1]), np.convolve(kept[j], gone[j])
        taken += begins[:length].cumsum() - np.pad(ends, (0, length))[:length].cumsum()
    made = {"shown": np.array(0.0), "fixed_counts": np.array(1.0), **cross_entropy(given, "tokens", False)}
    made["lengths/plain"] = np.array([length - noise + n + 1 + mode, noise + n + 1], np.float64)
    taken = np.clip(taken, 0.0, 1.0)
    made |= expected("taken/plain", taken, draws)
    for name, law in (("span_lengths/plain", gone), ("kept_lengths/plain", kept)):
        made |= expected(name, np.pad(law[1], (0, length + 1 - law.shape[1])), draws * n)
    return made
