"""The twin of the objective span_corruption, from its paper: means over many draws and exact samples."""

from __future__ import annotations

from math import comb

import numpy as np

from llmlab.twins import Given, twin
from twins import Settings
from twins.objective.losses import Arrays, cross_entropy, expected

REFUSED: Settings = {
    "span_corruption": [({}, {"density": 0.0}), ({}, {"density": 1.0}), ({}, {"mean_span": 0.9})],
}


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
