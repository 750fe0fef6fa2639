"""Twins of the objectives skipgram, cbow and glove, from their papers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import combinations
from typing import Any

import numpy as np

from llmlab.check.twins.observers.scored import BALANCE
from llmlab.check.twins.observers.texts import SIZE, text_of
from llmlab.twins import Given, twin
from twins import Settings
from twins.norm import bfloat16
from twins.objective.losses import Arrays, expected

WRONG = [{"window": 0}, {"negatives": 0}, {"subsample": -0.1}, {"power": float("inf")}]
WRONG += [{"ngrams": wrong} for wrong in ((3,), (0, 3), (4, 3))]
REFUSED: Settings = {name: [({}, wrong) for wrong in WRONG] for name in ("skipgram", "cbow", "fasttext")}
REFUSED["glove"] = [({}, {"window": 0}), ({}, {"x_max": 0.0}), ({}, {"alpha": -0.5}), ({}, {"alpha": float("nan")})]


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def over_batches(
    given: Given, term: str, log: str, value: Callable[[str, np.ndarray], tuple[float, np.ndarray, float]]
) -> Arrays:
    """The loss of each batch, a mean over its real pairs. value(batch, scores): (its sum, the sum's slope, the log's sum)."""
    made: Arrays = {}
    for batch in ("batch", "none"):
        scores = given.inputs[f"{batch}/scores/context"]
        count = int((given.inputs[f"{batch}/real"] == 1).sum())
        total, slope, shown = value(batch, scores)
        made |= {
            f"{batch}/loss/{term}": np.array([total, count]),
            f"{batch}/mean": np.array(total / max(count, 1) + BALANCE),
            f"{batch}/slope/context": slope / max(count, 1),
            f"{batch}/log/{log}": np.array([shown, count]),
        }
        if batch == "batch":
            made["half/mean"] = np.array(value(batch, bfloat16(scores))[0] / max(count, 1) + BALANCE)
    return made


def sampled(given: Given) -> Arrays:
    """Equation 4 of Mikolov et al. 2013b: -log s(score) of what is real, -log s(-score) of what is drawn."""
    each = 1 + given.options["negatives"]

    def value(batch: str, scores: np.ndarray) -> tuple[float, np.ndarray, float]:
        real, loss, slope, first = given.inputs[f"{batch}/real"], 0.0, np.zeros_like(scores), 0
        for at in np.ndindex(real.shape):
            if real[at] >= 0:
                loss -= np.log(sigmoid((1 if real[at] else -1) * scores[at]))
                slope[at] = sigmoid(scores[at]) - real[at]
            if real[at] == 1:
                others = slice(at[1] + 1, at[1] + each)
                first += all(scores[at] > s for s in scores[at[0], others][real[at[0], others] == 0])
        return loss, slope, first

    return over_batches(given, "sampled", "accuracy", value)


def together(kept: np.ndarray, documents: np.ndarray, window: int) -> np.ndarray:
    """(T, T): the probability that j is in the window of i. kept: the chance of each token to be in the text."""
    n = len(kept)
    p = np.zeros((n, n))
    for i in range(n):
        for j in range(i + 1, n):
            between = np.array([1.0])  # of how many of the tokens between them are kept
            for k in range(i + 1, j):
                between = np.convolve(between, [1 - kept[k], kept[k]])
            # A window reaches 1 to `window` words, each as likely: beyond d others with (window - d) / window.
            inside = sum(q * max(0, window - d) / window for d, q in enumerate(between))
            p[i, j] = p[j, i] = kept[i] * kept[j] * inside * (documents[i] == documents[j])
    return p


def static(given: Given, one_word: bool) -> Arrays:
    o, n = given.options, float(given.inputs["draws"])
    special = [int(v) for key, v in given.inputs.items() if key.startswith("special/")]
    counts = given.inputs["counts"].astype(np.float64)
    counts[special] = 0
    chance = counts ** o["power"] * (counts > 0)
    chance /= chance.sum()
    made = {"shown": np.array(0.0), "fixed_counts": np.array(0.0), **sampled(given)}
    for name in ("plain", "answered", "only_special"):
        text = given.inputs[f"{name}/tokens"][:-1]
        share = counts[text] / counts.sum()
        # Equation 5: a word is left out with 1 - sqrt(t / f).
        kept = np.array(
            [0.0 if f == 0 else 1.0 if o["subsample"] == 0 else min(1, np.sqrt(o["subsample"] / f)) for f in share]
        )
        if name == "answered":
            kept[given.inputs["answered/given"][:-1]] = 0
        documents = given.inputs.get(f"{name}/documents", np.zeros(len(text) + 1))[:-1]
        pairs = together(kept, documents, o["window"])
        asked = pairs.sum(0)
        if one_word:  # a word that has any other of its document before or behind it
            alone = [np.prod(1 - np.delete(kept, i)[np.delete(documents, i) == documents[i]]) for i in range(len(text))]
            asked = kept * (1 - np.array(alone))
        drawn = np.zeros(len(chance))
        for word, times in zip(text, asked, strict=True):
            drawn += times * o["negatives"] * np.where(np.arange(len(chance)) == word, 0, chance)
        if name == "only_special":
            pairs, asked, drawn = pairs * 0, asked * 0, drawn * 0
        totals = np.array([asked.sum(), drawn.sum()])
        made |= expected(f"pairs/{name}", pairs, n)
        # Words of a sample go together, and so does what is drawn against them.
        made |= expected(f"drawn/{name}", drawn[:SIZE], n, drawn[:SIZE] * (1 + drawn[:SIZE]))
        made |= expected(f"number/{name}", totals, n, totals * (1 + totals / 4))
        each = 2 * o["window"]
        groups = len(text) * (1 if one_word or o["ngrams"] else each)
        scored = len(text) * (1 if one_word else each) * (1 + o["negatives"])
        made[f"places/{name}"] = np.array([groups, each if one_word else 1, scored, scored])
        if o["ngrams"]:
            made |= hashed(name, text, pairs, n, o)
    return made


def hashed(name: str, text: np.ndarray, pairs: np.ndarray, n: float, options: Mapping[str, Any]) -> Arrays:
    """Sums over the n-grams of the words around each that is asked for: Bojanowski et al. 2017, section 3.2."""
    shortest, longest = options["ngrams"]
    totals = np.zeros(2)
    for word, times in zip(text, pairs.sum(1), strict=True):
        marked = "<" + text_of(word).strip() + ">"
        every = {
            (i, j): marked[i:j] for i, j in combinations(range(len(marked) + 1), 2) if shortest <= j - i <= longest
        }
        for gram in every.values():
            if gram not in "<>":
                hashed_to = 2166136261
                for byte in np.frombuffer(gram.encode(), np.int8):
                    hashed_to = (hashed_to ^ int(byte)) % 2**32 * 16777619 % 2**32
                totals += times * np.array([hashed_to / 2**32, 1])
    # At a window of 1 and of all words nothing is drawn.
    drawn = options["window"] > 1 or options["subsample"] > 0
    return expected(f"ngrams/{name}", totals, n, totals * (1 + totals / 4) * drawn)


SOURCE = (
    "Mikolov et al. 2013, arXiv:1310.4546, equations 4 and 5 and section 2.2; windows: arXiv:1301.3781, section 3.2"
)


@twin("objective", "fasttext", source=SOURCE + "; Bojanowski et al. 2017, arXiv:1607.04606, section 3.2")
@twin("objective", "skipgram", source=SOURCE)
def skipgram(given: Given) -> Arrays:
    return static(given, False)


@twin("objective", "cbow", source=SOURCE + "; the mean of the context: word2vec.c")
def cbow(given: Given) -> Arrays:
    return static(given, True)


@twin("objective", "glove", source="Pennington et al. 2014, EMNLP (D14-1162), equations 7 to 9 and section 4.2")
def glove(given: Given) -> Arrays:
    o, n = given.options, float(given.inputs["draws"])
    special = [int(v) for key, v in given.inputs.items() if key.startswith("special/")]
    made = {"shown": np.array(0.0), "fixed_counts": np.array(0.0), **least_squares(given)}
    for name in ("plain", "answered", "only_special"):
        text = given.inputs[f"{name}/tokens"][:-1]
        documents = given.inputs.get(f"{name}/documents", np.zeros(len(text) + 1))
        silent = given.inputs.get(f"{name}/given", np.zeros(len(text) + 1, bool))
        size = (len(text), len(text))
        pairs, near, times = np.zeros(size), np.zeros(size), np.zeros(size)
        for i, j in np.ndindex(size):
            between = text[min(i, j) : max(i, j) + 1]
            often = given.inputs["near"][text[i], text[j]] * o["window"]
            apart = i == j or abs(i - j) > o["window"] or documents[i] != documents[j]
            if not (apart or silent[i] or silent[j] or np.isin(between, special).any() or often == 0):
                pairs[i, j], near[i, j], times[i, j] = 1, 1 / abs(i - j), often
        made |= {f"near/{name}": near, f"times/{name}": times}
        made |= expected(f"pairs/{name}", pairs, n) | expected(f"drawn/{name}", np.zeros(SIZE), n)
        made |= expected(f"number/{name}", np.array([pairs.sum(), 0]), n, np.zeros(2))
        room = len(text) * 2 * o["window"]
        made[f"places/{name}"] = np.array([room, 1, room, room])
    return made


def least_squares(given: Given) -> Arrays:
    """Equation 8, of whose sum each place has the share 1 / distance / X."""
    o = given.options

    def value(batch: str, scores: np.ndarray) -> tuple[float, np.ndarray, float]:
        near, times = given.inputs[f"{batch}/near"], given.inputs[f"{batch}/times"]
        loss, slope, error = 0.0, np.zeros_like(scores), 0.0
        for at in zip(*np.nonzero(given.inputs[f"{batch}/real"] == 1), strict=True):
            weight = (times[at] / o["x_max"]) ** o["alpha"] if times[at] < o["x_max"] else 1.0
            share = near[at] / times[at] * weight
            difference = scores[at] - np.log(times[at])
            loss += share * difference**2
            error += abs(difference)
            slope[at] = 2 * share * difference
        return loss, slope, error

    return over_batches(given, "pairs", "error", value)
