"""Twins of the masked objectives of encoders, from their papers: exact laws, by enumeration of all that may be drawn."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from typing import NamedTuple

import numpy as np

from llmlab.check.restoring.batches import SIZE
from llmlab.check.twins.observers.scored import BALANCE
from llmlab.twins import Given, twin
from twins import Settings
from twins.norm import bfloat16
from twins.objective.losses import Arrays, cross_entropy, expected, log_softmax

Options = dict[str, float]
REFUSED: Settings = {
    "mlm": [
        ({}, {"rate": 0.0}),
        ({}, {"rate": 1.1}),
        ({}, {"masked": -0.1}),
        ({}, {"random": -0.1}),
        ({}, {"masked": 0.9, "random": 0.2}),
        ({}, {"duplicates": -1}),
        ({}, {"ngram": 0}),
        ({}, {"short": 0.1}),
        ({}, {"pair": "nsp", "short": 1.1}),
        ({}, {"pair": "sop", "short": -0.1}),
    ],
    "span_mlm": [
        ({}, {"rate": 0.0}),
        ({}, {"masked": 0.9, "random": 0.2}),
        ({}, {"stop": 0.0}),
        ({}, {"stop": 1.1}),
        ({}, {"longest": 0}),
    ],
}


class Vocabulary(NamedTuple):
    """special: ids by name; ordinary: all others; continues, goes_on: of words."""

    special: dict[str, int]
    ordinary: list[int]
    continues: np.ndarray
    goes_on: np.ndarray

    def words(self, text: np.ndarray) -> list[list[int]]:
        """The places of each word of a text."""
        found: list[list[int]] = []
        for at, token in enumerate(text):
            if at and self.continues[token] and self.goes_on[text[at - 1]]:
                found[-1].append(at)
            else:
                found.append([at])
        return found

    def may(self, text: np.ndarray) -> np.ndarray:
        return np.isin(text, self.ordinary)


def vocabulary_of(given: Given) -> Vocabulary:
    special = {k.removeprefix("special/"): int(v) for k, v in given.inputs.items() if k.startswith("special/")}
    ordinary = [i for i in range(int(given.inputs["vocabulary"])) if i not in special.values()]
    return Vocabulary(special, ordinary, given.inputs["words/continues"], given.inputs["words/open"])


def shown_share(given: Given, vocabulary: Vocabulary) -> np.ndarray:
    """The share of targets that are read as they are, by intent or by chance, in the vocabulary of the batches."""
    o, n = given.options, len([i for i in range(SIZE) if i not in vocabulary.special.values()])
    return np.array(1 - o["masked"] - o["random"] + o["random"] / n)


# ---------------------------------------------------------------- masked tokens and words


class Law(NamedTuple):
    """What may be masked of a text: how likely each place, each pair of places, and each number of places is."""

    places: np.ndarray  # (T,)
    both: np.ndarray  # (T, T)
    number: np.ndarray  # (T + 1,)


def masked_words(words: list[list[int]], may: np.ndarray, rate: float, ngram: int) -> Law:
    """Each word is masked with probability `rate`, in runs of n words, p(n) = (1/n) / (1 + ... + 1/ngram); where none is, that
    of one place, which is drawn at random. A chain over words, in which it makes no difference where the text begins."""
    length = len(may)
    groups = [[at for at in word if may[at]] for word in words]
    places, both, number = np.zeros(length), np.zeros((length, length)), np.zeros(length + 1)
    if not may.any():  # any place, alone
        number[1] = 1.0
        return Law(np.full(length, 1 / length), both, number)
    start, step = run_states(rate, ngram)
    # By the state of a word, and by the number of targets up to it.
    by_number = np.zeros((ngram + 1, length + 1))
    by_number[:, 0] = start
    for i, group in enumerate(groups):
        by_number = step.T @ by_number if i else by_number
        by_number[1:] = np.roll(by_number[1:], len(group), axis=1)
    number = by_number.sum(0)
    none, number[0] = number[0], 0.0
    for i, group in enumerate(groups):
        share = none * len(group) / may.sum()
        number[len(group)] += share if group else 0.0
        later = np.where(np.arange(ngram + 1) > 0, start, 0.0)  # it is masked
        for one in group:
            places[one] = rate + share
            both[one, group] = rate + share
        for others in groups[i + 1 :]:
            later = later @ step
            for at in group:
                both[at, others] = both[others, at] = later[1:].sum()
    return Law(places, both, number)


def run_states(rate: float, ngram: int) -> tuple[np.ndarray, np.ndarray]:
    """(shares of states, probabilities of the next one): 0 outside of a run, k in one that has k words left, this one too."""
    law = np.array([1 / n for n in range(1, ngram + 1)])
    law /= law.sum()
    mean = sum(n * p for n, p in enumerate(law, 1))
    begins = rate / (rate + mean * (1 - rate))
    step = np.zeros((ngram + 1, ngram + 1))
    for k in range(2, ngram + 1):
        step[k, k - 1] = 1.0
    step[:2] = np.append(1 - begins, begins * law)
    start = np.append(1 - rate, [rate * law[k - 1 :].sum() / mean for k in range(1, ngram + 1)])
    np.testing.assert_allclose(start @ step, start, atol=1e-12)
    return start, step


@twin(
    "objective",
    "mlm",
    source="Devlin et al. 2018, section 3.1 (15 %; 80, 10 and 10 % of these), at least one a sample; nsp: appendix A.1; sop: "
    "Lan et al. 2019, section 3.1; n-grams: its section 4.1",
)
def mlm(given: Given) -> Arrays:
    vocabulary = vocabulary_of(given)
    made = {"fixed_counts": np.array(0.0), "shown": shown_share(given, vocabulary)}
    made["repeats"] = np.array(given.options["duplicates"])
    if given.options["pair"] != "none":
        for name in ("plain", "answered", "only_special"):
            made |= pairs(given, name, vocabulary)
        return made | with_classes(given)
    for name in ("plain", "answered", "only_special"):
        made |= masked(given, name, vocabulary)
    return made | cross_entropy(given, "tokens", True)


def masked(given: Given, name: str, vocabulary: Vocabulary) -> Arrays:
    o, n, ordinary = given.options, float(given.inputs["draws"]), vocabulary.ordinary
    mask = vocabulary.special["mask"]
    text = given.inputs[f"{name}/tokens"][:-1]
    may = vocabulary.may(text)
    if name == "answered":
        may &= ~given.inputs["answered/given"][:-1]
    words = vocabulary.words(text) if o["whole_words"] else [[at] for at in range(len(text))]
    law = masked_words(words, may, o["rate"], o["ngram"])
    read, kept = np.zeros(int(given.inputs["vocabulary"])), 0.0
    for token, p in zip(text, law.places, strict=True):
        read[mask] += p * o["masked"] * (token != mask)
        kept += p * o["masked"] * (token == mask)
        for other in ordinary:
            read[other] += p * o["random"] / len(ordinary) * (other != token)
        kept += p * (1 - o["masked"] - o["random"] + o["random"] / len(ordinary) * (token in ordinary))
    # As one ordinary token that is neither's: each with the same probability.
    alike = sum(
        law.both[i, j] * (o["random"] / len(ordinary)) ** 2 * (len(ordinary) - len({*text[[i, j]]} & {*ordinary}))
        for i, j in combinations(np.flatnonzero(may), 2)
    )
    together = sum(law.both[at, at + 1] for at in range(len(text) - 1))
    known = given.inputs.get(f"{name}/documents")
    wide = o["ngram"]  # targets of a run go together
    return {
        **expected(f"targets/{name}", law.places, n),
        **expected(f"number/{name}", law.number, n),
        **expected(f"together/{name}", together, n, (2 + wide / 2) * together),
        **expected(f"read/{name}", read, n, wide * read),
        **expected(f"kept/{name}", kept, n, wide * kept),
        **expected(f"alike/{name}", alike, n, 9 * alike),  # pairs of one sample go together
        f"documents/{name}": np.array(-1) if known is None else known[:-1],
    }


# ---------------------------------------------------------------- pairs of texts


def drawn_pairs(given: Given, name: str) -> Iterator[tuple[float, np.ndarray, np.ndarray, int]]:
    """(probability, A, B, label) of all pairs that may be drawn."""
    short = 0.1 if given.options["short"] is None else given.options["short"]
    text, other = given.inputs[f"{name}/tokens"], given.inputs.get(f"{name}/other")
    room = len(text) - 1 - 3
    documents = given.inputs.get(f"{name}/documents", np.zeros(len(text)))
    keep = ~given.inputs.get(f"{name}/given", np.zeros(len(text), bool))
    own = text[keep & (documents == _commonest(documents[keep]))]
    theirs = None if other is None else other[documents == _commonest(documents)]
    longest = min(room, len(own))
    for length in range(2, longest + 1):
        p_length = short / (longest - 1) + (1 - short) * (length == longest)
        for cut in range(1, length):
            p = p_length / (length - 1) / 2
            a, b = own[:cut], own[cut:length]
            yield p, a, b, 0
            if given.options["pair"] == "sop":
                yield p, b, a, 1
            elif theirs is None:  # there is no other window to draw
                yield p, a, b, 0
            else:
                yield p, a, theirs[: length - cut], 1


def _commonest(documents: np.ndarray) -> int:
    return int(max(sorted({*documents.tolist()}), key=documents.tolist().count))


def pairs(given: Given, name: str, vocabulary: Vocabulary) -> Arrays:
    o, n, size = given.options, float(given.inputs["draws"]), len(given.inputs[f"{name}/tokens"])
    cls, sep, mask = (vocabulary.special[key] for key in ("cls", "sep", "mask"))
    lengths, first, number = np.zeros(size), np.zeros(size), np.zeros(size)
    label = together = 0.0
    shown = np.zeros(3)
    for p, a, b, which in drawn_pairs(given, name):
        text = np.array([cls, *a, sep, *b, sep])
        words = vocabulary.words(text) if o["whole_words"] else [[at] for at in range(len(text))]
        law = masked_words(words, vocabulary.may(text), o["rate"], o["ngram"])
        lengths[len(text)] += p
        first[len(a)] += p
        label += p * which
        number[: len(law.number)] += p * law.number
        together += p * sum(law.both[at, at + 1] for at in range(len(text) - 1))
        for token, chance in zip(text, law.places, strict=True):
            same = o["random"] / len(vocabulary.ordinary) * (token in vocabulary.ordinary)
            seen = o["masked"] * (token != mask)
            kept = 1 - o["masked"] - o["random"] + same + o["masked"] * (token == mask)
            shown += p * chance * np.array([seen, kept, 1 - seen - kept])
    return {
        **expected(f"lengths/{name}", lengths, n),
        **expected(f"first/{name}", first, n),
        **expected(f"labels/{name}", label, n),
        **expected(f"number/{name}", number, n),
        **expected(f"together/{name}", together, n, 3 * together),
        **expected(f"shown/{name}", shown, n, 3 * shown),
    }


def with_classes(given: Given) -> Arrays:
    """The loss of tokens, and beside it that of classes, each the mean over its own targets."""
    made, term = cross_entropy(given, "tokens", True), given.options["pair"]
    for batch in ("batch", "none"):
        classes, scores = given.inputs[f"{batch}/pair_labels"], given.inputs[f"{batch}/scores/pair"]
        rows = range(len(classes))
        nll = -sum(log_softmax(scores[i])[classes[i]] for i in rows)
        slope = np.exp(log_softmax(scores))
        slope[rows, classes] -= 1
        made[f"{batch}/loss/{term}"] = np.array([nll, len(classes)])
        made[f"{batch}/log/pair_accuracy"] = np.array([(scores.argmax(1) == classes).sum(), len(classes)])
        made[f"{batch}/slope/pair"] = slope / len(classes)
        made[f"{batch}/mean"] = made[f"{batch}/mean"] + nll / len(classes)
        if batch == "batch":
            half = [log_softmax(bfloat16(scores[i]))[classes[i]] for i in rows]
            made["half/mean"] = made["half/mean"] - sum(half) / len(classes)
    return made


# ---------------------------------------------------------------- spans


def masked_spans(may: np.ndarray, words: list[list[int]], budget: int, law: np.ndarray) -> dict[int, float]:
    """How likely each set of places is, as bits: spans of a random number of words, each from the word of a random place that
    is not masked yet, until the budget is spent."""
    word_of = {at: number for number, word in enumerate(words) for at in word}
    open_sets, done = {0: 1.0}, dict[int, float]()
    while open_sets:
        one = min(open_sets, key=int.bit_count)  # all that lead to it have been seen
        p = open_sets.pop(one)
        if one.bit_count() == budget:
            done[one] = p
            continue
        free = [at for at in np.flatnonzero(may).tolist() if not one >> at & 1]
        for anchor in free:
            start = anchor
            while start and may[start - 1] and word_of[start - 1] == word_of[anchor]:
                start -= 1
            for n_words, share in enumerate(law, start=1):
                more, at = one, start
                while at < len(may) and may[at] and word_of[at] < word_of[anchor] + n_words:
                    if more.bit_count() < budget:
                        more |= 1 << at
                    at += 1
                open_sets[more] = open_sets.get(more, 0.0) + p * share / len(free)
    return done


@twin(
    "objective",
    "span_mlm",
    source="Joshi et al. 2020, section 3.1 (spans; the budget cuts the last word, as in its code) and equations of section 3.2 "
    "(the loss of a token is that of the token and that of its boundary)",
)
def span_mlm(given: Given) -> Arrays:
    vocabulary = vocabulary_of(given)
    made = {"fixed_counts": np.array(0.0), "shown": shown_share(given, vocabulary)}
    for name in ("plain", "answered", "only_special"):
        made |= spans(given, name, vocabulary)
    tokens = cross_entropy(given, "tokens", True)
    edges = cross_entropy(_as_labels(given), "boundary", False)
    for batch in ("batch", "none"):
        tokens[f"{batch}/loss/boundary"] = edges[f"{batch}/loss/nll"]
        tokens[f"{batch}/slope/boundary"] = edges[f"{batch}/slope/boundary"]
        tokens[f"{batch}/mean"] = tokens[f"{batch}/mean"] + edges[f"{batch}/mean"] - BALANCE
    tokens["half/mean"] = tokens["half/mean"] + edges["half/mean"] - BALANCE
    return made | tokens


def _as_labels(given: Given) -> Given:
    """The targets of boundaries in the place of those of tokens."""
    moved = {f"{batch}/labels": given.inputs[f"{batch}/boundary_labels"] for batch in ("batch", "none")}
    return Given(given.options, given.sizes, {**given.inputs, **moved}, given.weights)


def spans(given: Given, name: str, vocabulary: Vocabulary) -> Arrays:
    o, n = given.options, float(given.inputs["draws"])
    special, size = vocabulary.special, len(vocabulary.ordinary)
    text = np.array([special["cls"], *given.inputs[f"{name}/tokens"][:-3], special["sep"]])
    may = vocabulary.may(text)
    if name == "answered":
        may[1:-1] &= ~given.inputs["answered/given"][:-3]
    known = given.inputs.get(f"{name}/documents")
    documents = None if known is None else np.array([known[0], *known[:-3], known[-4]])
    if documents is not None:
        for at in range(len(text)):
            inside = 0 < at < len(text) - 1
            may[at] &= inside and documents[at - 1] == documents[at] == documents[min(at + 1, len(text) - 1)]
    lengths = np.array([o["stop"] * (1 - o["stop"]) ** k for k in range(int(o["longest"]))])
    budget = int(np.ceil(o["rate"] * may.sum()))
    places, square = np.zeros(len(text)), 0.0
    spans, alike = np.zeros((2, len(text) + 1)), np.zeros((2, 3))  # means of a sample, and of the squares
    for chosen, p in masked_spans(may, vocabulary.words(text), budget, lengths / lengths.sum()).items():
        at = [place for place in range(len(text)) if chosen >> place & 1]
        places[at] += p
        runs = np.split(np.array(at), np.flatnonzero(np.diff(at) > 1) + 1) if at else []
        longs = np.array([len(run) for run in runs], int)
        number = np.bincount(longs, minlength=len(text) + 1)
        same, none = (1 / size) ** longs, (1 - 1 / size) ** longs
        chances = np.stack(
            [0 * same + o["masked"], 1 - o["masked"] - o["random"] + o["random"] * same, o["random"] * none]
        )
        spans += p * np.stack([number, number**2])
        alike += p * np.stack([chances.sum(1), chances.sum(1) ** 2 + (chances * (1 - chances)).sum(1)])
        square += p * (longs**2).sum()
    shares = np.array([o["masked"], 1 - o["masked"] - o["random"] + o["random"] / size, o["random"] * (1 - 1 / size)])
    return {
        **expected(f"targets/{name}", np.clip(places, 0, 1), n),
        **expected(f"spans/{name}", spans[0], n, spans[1] - spans[0] ** 2),
        # Tokens of a span go together, and spans of a text are few.
        **expected(f"shown/{name}", shares * places.sum(), n, shares * (1 - shares) * square),
        **expected(f"alike/{name}", alike[0], n, alike[1] - alike[0] ** 2),
        f"documents/{name}": np.array(-1) if documents is None else documents,
    }
