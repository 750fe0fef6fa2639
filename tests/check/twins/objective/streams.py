"""Twins of the objectives plm and mpnet, from their papers: means over many draws, and who sees whom."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np

from llmlab.twins import CHANCE, Given, twin
from twins import Settings
from twins.objective.losses import Arrays, cross_entropy, expected

REFUSED: Settings = {
    "plm": [
        ({}, {"one_in": 0}),
        ({}, {"max_span": 0}),
        ({}, {"memory": -1}),
        ({}, {"memory": 6}),
        ({}, {"backwards": -0.1}),
        ({}, {"backwards": 1.1}),
    ],
    "mpnet": [
        ({}, {"rate": 0.0}),
        ({}, {"rate": 1.1}),
        ({}, {"masked": -0.1}),
        ({}, {"random": -0.1}),
        ({}, {"masked": 0.9, "random": 0.2}),
    ],
}
TEXTS, N_DRAWN = ("plain", "answered", "only_special", "long"), 800


def span_law(may: np.ndarray, n: int, one_in: int, max_span: int) -> np.ndarray:
    """(n + 1, 2 T): by the number of targets that spans have taken, the probability that each place is one of them, and that
    it and the next both are; the last column, of no place, is that of the number."""
    length = len(may)
    chances = 1 / np.arange(1, max_span + 1)
    chances = chances / chances.sum()

    @cache
    def law(begin: int, taken: int) -> np.ndarray:
        found = np.zeros((n + 1, 2 * length))
        if taken == n:
            found[taken, -1] = 1.0
            return found
        for drawn, chance in enumerate(chances, 1):
            span = min(drawn, n - taken)
            starts = range(begin, begin + one_in * span - span + 1)
            for start in starts:
                share = chance / len(starts)
                if start + span > length:
                    found[taken, -1] += share
                    continue
                new = [i for i in range(start, start + span) if may[i]]
                after = share * law(begin + one_in * span, taken + len(new))
                found += after
                for i in new:  # the spans behind take none of these
                    found[:, i] += after[:, -1]
                    if i + 1 in new:
                        found[:, length + i] += after[:, -1]
                # A span that begins behind the last place of this one: both may be targets.
                if new and start + span < length:
                    edge = start + span - 1
                    if edge in new:
                        found[:, length + edge] += after[:, edge + 1]
        return found

    return law(0, 0)


def whole_words(given: Given, tokens: np.ndarray, may: np.ndarray, n: int) -> Arrays:
    """Means of n places drawn here word by word, each word with all of its places, but for the last where there is no room."""
    rng, length = np.random.default_rng(6), len(tokens)
    words: list[list[int]] = []
    for i in range(length):
        goes_on = i and given.inputs["words/continues"][tokens[i]] and given.inputs["words/open"][tokens[i - 1]]
        words = [*words[:-1], [*words[-1], i]] if goes_on else [*words, [i]]
    words = [kept for kept in ([i for i in word if may[i]] for word in words) if kept]
    found = np.zeros((N_DRAWN, length))
    for row in found:
        drawn = [i for at in rng.permutation(len(words)) for i in words[at]]
        row[drawn[:n]] = 1
    return {"places": found, "pairs": found[:, 1:] * found[:, :-1]}


def drawn_here(name: str, found: np.ndarray, draws: float) -> Arrays:
    """A mean of what is drawn here, with the bound that its own deviation gives."""
    return {name: found.mean(0), name + CHANCE: 5 * np.sqrt(found.var(0) * (1 / draws + 1 / len(found))) + 5 / draws}


def laws(given: Given, name: str, may: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Probability that each place is a target, and that it and the next both are; what spans leave is drawn from the rest."""
    length, m = len(may), int(may.sum())
    if not n:
        return np.zeros(length), np.zeros(length - 1)
    if name == "plm":
        law = span_law(may, n, given.options["one_in"], given.options["max_span"])
    else:
        law = np.zeros((n + 1, 2 * length))
        law[0, -1] = 1.0
    one, two = np.zeros(length), np.zeros(length - 1)
    for taken, row in enumerate(law):
        more, rest, alone, pair = n - taken, m - taken, row[:length], row[length : 2 * length - 1]
        another, both = (more / rest, more * (more - 1) / max(rest * (rest - 1), 1)) if rest else (0.0, 0.0)
        one += alone + (row[-1] - alone) * may * another
        left, right = may[:-1], may[1:]
        two += pair + (alone[:-1] - pair) * right * another + (alone[1:] - pair) * left * another
        two += (row[-1] - alone[:-1] - alone[1:] + pair) * left * right * both
    return one, two


def lengths_of_runs(chosen: Sequence[float]) -> np.ndarray:
    """How many runs there are of 0, 1, 2 ... places."""
    found, here = np.zeros(len(chosen) + 1), 0
    for one in (*chosen, 0):
        if one:
            here += 1
        elif here:
            found[here] += 1
            here = 0
    return found


def runs(given: Given, name: str, may: np.ndarray, n: int, draws: float) -> Arrays:
    """How many runs of so many targets a sample has: means of samples drawn here, span by span, with their own deviation."""
    rng, length = np.random.default_rng(5), len(may)
    found = np.zeros((N_DRAWN, length + 1))
    for row in found:
        chosen: set[int] = set()
        begin = 0
        while name == "plm" and len(chosen) < n:
            k, shares = given.options["one_in"], 1 / np.arange(1, given.options["max_span"] + 1)
            span = min(1 + int((shares.cumsum() < rng.random() * shares.sum()).sum()), n - len(chosen))
            start = begin + int(rng.random() * (k * span - span + 1))
            if start + span > length:
                break
            chosen |= {*range(start, start + span)}
            begin += k * span
        rest = [i for i in rng.permutation(length) if i not in chosen]
        chosen |= {*rest[: n - len(chosen)]}
        row[:] = lengths_of_runs([i in chosen for i in range(length)])
    return drawn_here("runs/long", found, draws)


def seen(unpredicted: bool, n: int, compensated: bool) -> np.ndarray:
    """Equations of the papers over [unpredicted; x_1 ... x_n; placeholders; queries], -1 where there is none."""
    groups = [("text", 0), *((kind, i) for kind in ("text", "placeholder", "query") for i in range(1, n + 1))]
    found = np.zeros((len(groups), len(groups)))
    for a, (kind, i) in enumerate(groups):
        for b, (other, j) in enumerate(groups):
            if other == "text" and kind == "text":
                found[a, b] = j <= i  # XLNet, equation 4; MPNet: x_{z<=t}
            elif other == "text" and kind == "query":
                found[a, b] = j < i  # XLNet, equation 3; MPNet: x_{z<t}
            elif other == "text":
                found[a, b] = j == 0  # MPNet: masks see x_{z<=c}
            elif other == "placeholder" and kind == "text":
                found[a, b] = j > i  # M_{z>t}
            elif other == "placeholder" and kind == "query":
                found[a, b] = j >= i  # M_{z>=t}
            elif other == "placeholder":
                found[a, b] = 1  # masks see M_{z>c}
            if "placeholder" in (kind, other) and not compensated:
                found[a, b] = -1
            if not unpredicted and (a == 0 or b == 0):
                found[a, b] = -1
            if kind == other == "query" and i == j:
                found[a, b] = -1
    return found


def second_stream(given: Given, name: str, n_queries: int, memory: int) -> Arrays:
    """What both have: a text, of which n_queries tokens are asked for, or all if there are fewer that may be."""
    draws = float(given.inputs["draws"])
    special = [int(v) for key, v in given.inputs.items() if key.startswith("special/")]
    made = {"fixed_counts": np.array(0.0), **cross_entropy(given, "tokens", True)}
    for text in TEXTS:
        tokens = given.inputs[f"{text}/tokens"][:-1]
        length = len(tokens)
        may = ~np.isin(tokens, special)
        if text == "answered":
            may &= ~given.inputs["answered/given"][:-1]
        own = may[memory:]
        n = min(n_queries(length - memory), int(own.sum()))
        one, two = laws(given, name, own, n)
        one, two = np.pad(one, (memory, 0)), np.pad(two, (memory, 0))
        one, two = np.clip(one, 0, 1), np.clip(two, 0, 1)
        if text == "long":
            made |= {key: np.pad(value, (0, memory)) for key, value in runs(given, name, own, n, draws).items()}
        number = np.zeros(length + 1)
        number[n] = 1
        made |= expected(f"targets/{text}", one, draws) | expected(f"beside/{text}", two, draws)
        if given.options.get("whole_words"):
            found = whole_words(given, tokens, may, n)
            one = found["places"].mean(0)
            made |= drawn_here(f"targets/{text}", found["places"], draws)
            made |= drawn_here(f"beside/{text}", found["pairs"], draws)
            if text == "long":
                made |= drawn_here("runs/long", np.array([lengths_of_runs(row) for row in found["places"]]), draws)
        made |= expected(f"number/{text}", number, draws) | expected(f"first/{text}", one / max(n, 1), draws)
        made[f"rising/{text}"] = np.array(0.5 if n > 1 else 0.0)
        # The number of rises of a random order of n has the variance (n + 1) / 12.
        made[f"rising/{text}{CHANCE}"] = np.array(5 * np.sqrt((n + 1) / 12 / draws) / max(n - 1, 1) if n > 1 else 1e-9)
        made[f"visible/{text}"] = seen(n < length - memory, n, name == "mpnet")
        # Where a memory goes before, places are counted through; else each document has its own.
        documents = np.zeros(length) if memory else given.inputs.get(f"{text}/documents", np.zeros(length + 1))[:-1]
        made[f"places/{text}"] = np.array([i - list(documents).index(documents[i]) for i in range(memory, length)])
        made[f"alone/{text}"] = np.zeros(2)
        made[f"documents/{text}"] = np.array(1.0)
        first = min(memory // given.options.get("one_in", 1), int(may[:memory].sum())) if memory else 0
        made[f"segment/{text}"] = np.array([memory, first, (first + 1) / (2 * first) if first else 0.0])
    return made


def from_the_end(given: Given) -> Given:
    """Texts as they are read backwards; the last token, which is in no sample, stays behind."""
    flipped = dict(given.inputs)
    for text in TEXTS:
        for key in (k for k in given.inputs if k in (f"{text}/tokens", f"{text}/given", f"{text}/documents")):
            flipped[key] = np.append(given.inputs[key][:-1][::-1], given.inputs[key][-1:])
    return Given(given.options, given.sizes, flipped, given.weights)


@twin(
    "objective",
    "plm",
    source="Yang et al. 2019, equations 3 to 5, sections 2.3 and 3.1 (spans in contexts; half backwards); lengths: "
    "data_utils.py of its code",
)
def plm(given: Given) -> Arrays:
    o = given.options
    if o["backwards"]:
        assert o["backwards"] == 1, "a mixture of both directions"
        given = from_the_end(given)
    made = second_stream(given, "plm", lambda length: max(1, length // o["one_in"]), o["memory"])
    for text in TEXTS:
        read = np.zeros(int(given.inputs["vocabulary"]))
        read[given.inputs["special/mask"]] = made[f"number/{text}"].argmax()
        made |= {f"read/{text}": read, f"kept/{text}": np.array(0.0)}
    for batch in ("batch", "none") if o["memory"] else ():
        before, own = (given.inputs[f"{batch}/{key}"] for key in ("before_documents", "documents"))
        whole = np.concatenate([before, own], 1)
        made[f"{batch}/allowed/model/0"] = (before[:, :, None] == before[:, None]).astype(float)
        made[f"{batch}/allowed/model/1"] = (own[:, :, None] == whole[:, None]).astype(float)
    return made | {"shown": np.array(0.0)}


@twin(
    "objective",
    "mpnet",
    source="Song et al. 2020, sections 2.2 and 2.3, figure 2; placeholders as shown by masked_permutation_lm.py of its code",
)
def mpnet(given: Given) -> Arrays:
    o, draws = given.options, float(given.inputs["draws"])
    made = second_stream(given, "mpnet", lambda length: max(1, int(np.rint(length * o["rate"]))), 0)
    special = [int(v) for key, v in given.inputs.items() if key.startswith("special/")]
    vocabulary = int(given.inputs["vocabulary"])
    ordinary = [i for i in range(vocabulary) if i not in special]
    for text in TEXTS:
        read, kept = np.zeros(vocabulary), 0.0
        for token, p in zip(given.inputs[f"{text}/tokens"][:-1], made[f"targets/{text}"], strict=True):
            read[given.inputs["special/mask"]] += p * o["masked"]
            kept += p * (1 - o["masked"] - o["random"] + o["random"] / len(ordinary))
            for other in ordinary:
                read[other] += p * o["random"] / len(ordinary) * (other != token)
        made |= expected(f"read/{text}", read, draws, read) | expected(f"kept/{text}", kept, draws, kept)
    n_small = len([i for i in range(9) if i not in special])
    return made | {"shown": np.array(1 - o["masked"] - o["random"] + o["random"] / n_small)}
