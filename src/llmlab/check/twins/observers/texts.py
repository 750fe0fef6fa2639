"""Texts that an objective prepares, and statistics of the samples, which depend on what it `restores`.

A text whose preparation is random is prepared N_DRAWS times. Means over these draws are compared up to the bound that the twin
gives, so that another stream of random numbers passes too. Outputs of a text begin as listed and end in the text's name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import combinations, zip_longest

import numpy as np

from llmlab import attributes, registry
from llmlab.check.twins.observers import frames, sources
from llmlab.check.twins.observers.infilling import Text, infilled
from llmlab.check.twins.observers.observed import options_of
from llmlab.check.twins.settings import Setting
from llmlab.slots import Objective, Vocabulary, Words

N_DRAWS = 1000
FEWER = {"pair": 400, "framed": 300}  # by what is restored, where a sample takes longer
# Special tokens stand at both ends of the vocabulary and between ordinary ones.
SPECIAL = {"pad": 0, "eos": 1, "cls": 13, "mask": 14, "sep": 47}
SENTENCE_ENDS = (7, 20, 21, 22)  # ids whose text ends a sentence
SIZE = 48  # as many values as a record keeps of an output
ORDINARY = ~np.isin(np.arange(SIZE), list(SPECIAL.values()))
# Of the texts below 2 3 4, 6 7 and 46 45 are words: 8 goes on with a word, but 7 ends one; 9 begins one, though 8 may go on.
WORDS = Words(ORDINARY & np.isin(np.arange(SIZE), [3, 4, 7, 8, 45]), ORDINARY & (np.arange(SIZE) != 7))
Arrays = dict[str, np.ndarray]


Observer = Callable[[Objective, str, Text, Mapping[str, int]], Arrays]


def vocabulary(setting: Setting, size: int = SIZE) -> Vocabulary:
    """A vocabulary with the special tokens that the objective needs, and those that texts have."""
    entry = registry.declared("objective", setting.name, options_of(setting))
    names = [name for name in entry.special if name not in SPECIAL]
    more = {name: size + len(names) - 1 - i for i, name in enumerate(names)}
    known = {name: at for name, at in SPECIAL.items() if name != "mask" or "mask" in entry.special}
    grown = [np.append(known_of, np.zeros(len(more), bool)) for known_of in WORDS]
    total = size + len(more)
    return Vocabulary(
        total, {**known, **more}, read_words=lambda: Words(*grown), counts=lambda: counts(total), text=text_of
    )


def counts(size: int) -> np.ndarray:
    """(size,) how often each id is in the training text."""
    return 1 + np.arange(size) * 7 % 11


def text_of(i: int) -> str:
    """The text of an id."""
    return " a." if i in SENTENCE_ENDS else " a"


def made(setting: Setting, size: int, seq_len: int) -> Objective:
    """The objective at a setting."""
    factory = registry.load("objective", setting.name, options_of(setting))
    objective: Objective = factory(vocabulary(setting, size), seq_len)
    return objective


def texts(objective: Objective) -> dict[str, Text]:
    """Texts by name. Without sentinels `plain` has special tokens among others, of `answered` the first five are given, and
    `only_special` has nothing else; where queries ask, `long` has no special tokens and no documents."""
    restores = attributes.get(objective, "objective", "restores")
    if restores in ("noised", "gaps", "blanks"):
        # Short, so that a twin can list all that may come of it. The last two of a window are in no sample.
        chosen = {"noised": sources.LEFT, "gaps": sources.REPEATED, "blanks": sources.SPLIT}[restores]
        return {"plain": Text(np.array([*chosen, 43, 44])), "one_sentence": Text(np.array([23, 24, 25, 43, 44]))}
    ordinary = np.setdiff1d(np.arange(SIZE), list(SPECIAL.values()))
    long = Text(np.random.default_rng(0).permutation(ordinary)[:41])
    if restores == "spans":
        return {"plain": long}
    plain = np.array([13, 2, 3, 4, 5, 1, 6, 7, 8, 9, 47, 46, 45, 10, 0, 14, 11])
    given, documents = np.arange(17) < 5, np.arange(17) // 6
    if attributes.get(objective, "objective", "restores") in ("pair", "framed"):
        other = np.arange(20, 37) if attributes.get(objective, "objective", "other") else None
        return {
            "plain": Text(plain, other=other),
            "answered": Text(plain[::-1].copy(), given, documents, other),
            "only_special": Text(np.tile([0, 1, 13, 47], 5)[:17]),
        }
    return {
        "plain": Text(plain, None, documents),
        "answered": Text(plain[::-1].copy(), given, documents),
        "only_special": Text(np.tile([0, 1, 13, 47], 5)[:17]),
        **({"long": long} if restores == "queries" else {}),
    }


def draws(objective: Objective, text: Text, n: int = N_DRAWS) -> list[dict[str, np.ndarray]]:
    """n samples that are prepared of a text."""
    rng = np.random.default_rng(0)
    return [objective.prepare(text.sample(), rng) for _ in range(n)]


def masked(objective: Objective, name: str, text: Text, special: Mapping[str, int]) -> Arrays:
    """Outputs of denoising.

    `targets/` how often each place is one; `number/` how often a sample has so many; `together/` how many of a sample have
    another one behind them; `read/` how often each id, other than the label, is read at a target, and `kept/` the label, a
    sample; `alike/` how many pairs of targets are read as one ordinary id that is the label of neither, a sample; `documents/`
    (-1: it has none).
    """
    found = draws(objective, text)
    ids, labels = (np.stack([f[key] for f in found]) for key in ("ids", "labels"))
    at, length = labels >= 0, labels.shape[1]
    other = at & (ids != labels)
    replaced = other & ~np.isin(ids, list(special.values()))
    alike = [
        sum(text.tokens[j] != row[i] == row[j] != text.tokens[i] for i, j in combinations(np.flatnonzero(here), 2))
        for row, here in zip(ids, replaced, strict=True)
    ]
    return {
        f"targets/{name}": at.mean(0),
        f"number/{name}": np.bincount(at.sum(1), minlength=length + 1) / len(found),
        f"together/{name}": np.array((at[:, 1:] & at[:, :-1]).sum() / len(found)),
        f"read/{name}": np.bincount(ids[other], minlength=SIZE) / len(found),
        f"kept/{name}": np.array((at & (ids == labels)).sum() / len(found)),
        f"alike/{name}": np.mean(alike),
        f"documents/{name}": found[0].get("documents", np.array(-1)),
    }


def spans(objective: Objective, name: str, text: Text, special: Mapping[str, int]) -> Arrays:
    """Outputs where spans are taken out: `lengths/` tokens of the source and of the labels; `taken/` how often each token is;
    `span_lengths/` and `kept_lengths/` how often a span, and what is kept before it, has so many tokens."""
    found, seq_len = draws(objective, text), len(text.tokens) - 1
    own = text.tokens[:seq_len]
    taken = np.stack([np.isin(own, f["labels"]) for f in found])
    # Row by row, the ends of runs of kept and of taken tokens, which alternate; each text begins with a kept one.
    edges = [np.flatnonzero(np.diff(np.concatenate([[False], row, [False]]).astype(int))) for row in taken]
    runs = [np.diff(np.concatenate([[0], e])) for e in edges]
    kept, gone = (np.concatenate([r[i::2] for r in runs]) for i in (0, 1))
    return {
        f"lengths/{name}": np.array([np.mean([len(f[key]) for f in found]) for key in ("source_ids", "labels")]),
        f"taken/{name}": taken.mean(0),
        f"span_lengths/{name}": np.bincount(gone, minlength=seq_len + 1) / len(gone),
        f"kept_lengths/{name}": np.bincount(kept, minlength=seq_len + 1) / len(kept),
    }


def exact(objective: Objective, name: str, text: Text, special: Mapping[str, int]) -> Arrays:
    """Outputs that do not depend on chance: `prepared/KEY/` of the text, and `n_targets/`."""
    prepared = objective.prepare(text.sample(), np.random.default_rng(0))
    counts = objective.targets(prepared)
    return {
        **{f"prepared/{key}/{name}": np.asarray(value) for key, value in prepared.items()},
        **{f"n_targets/{term}/{name}": np.array(count) for term, count in counts.items()},
    }


def paired(objective: Objective, name: str, text: Text, special: Mapping[str, int]) -> Arrays:
    return frames.pairs(draws(objective, text, FEWER["pair"]), name, special, len(text.tokens) - 1)


def in_spans(objective: Objective, name: str, text: Text, special: Mapping[str, int]) -> Arrays:
    return frames.framed(draws(objective, text, FEWER["framed"]), name, special, len(text.tokens) - 1)


def continued(objective: Objective, name: str, text: Text, special: Mapping[str, int]) -> Arrays:
    """Outputs of a prefix that is drawn: `prefix_len/` how often it is so long, `targets/` how often each place is a target,
    `documents/` as those of denoising."""
    found = draws(objective, text)
    labels = np.stack([f["labels"] for f in found])
    return {
        f"prefix_len/{name}": np.bincount([f["prefix_len"] for f in found], minlength=len(text.tokens)) / len(found),
        f"targets/{name}": (labels >= 0).mean(0),
        f"documents/{name}": found[0].get("documents", np.array(-1)),
    }


def rearranged(objective: Objective, name: str, text: Text, special: Mapping[str, int]) -> Arrays:
    """Outputs of infilling: `rearranged/` how often so many documents are; of the first document `orders/` how often it is as
    it was, its prefix first, its suffix first, and of those that are rearranged `prefix/` and `middle/` how often these have so
    many tokens; `length/` of what is read."""
    found = [infilled(f, text, special) for f in draws(objective, text)]
    first = [f.first for f in found if f.first is not None]
    length = len(text.tokens)

    def often(values: list[int]) -> np.ndarray:
        return np.bincount(values, minlength=length) / max(len(values), 1)

    return {
        f"rearranged/{name}": often([f.rearranged for f in found]),
        f"orders/{name}": np.array(
            [len(found) - len(first), *(sum(f.suffix_first == w for f in first) for w in (0, 1))]
        )
        / len(found),
        f"prefix/{name}": often([f.prefix for f in first]),
        f"middle/{name}": often([f.middle for f in first]),
        f"length/{name}": np.array({len(f.tokens) for f in found}.pop() - 1),
    }


def diffused(objective: Objective, name: str, text: Text, special: Mapping[str, int]) -> Arrays:
    """Outputs of masking at a rate that is drawn: `targets/` how often each place is one; `number/` how often a sample has so
    many; `rate/` the mean rate, by the weights; `weighted/` the mean of weight x number of targets; `maskable/`;
    `documents/` as those of denoising."""
    found = draws(objective, text)
    at = np.stack([f["labels"] for f in found]) >= 0
    weight = np.array([f["weight"] for f in found], np.float64)
    return {
        f"targets/{name}": at.mean(0),
        f"number/{name}": np.bincount(at.sum(1), minlength=len(text.tokens)) / len(found),
        f"rate/{name}": np.mean(1 / weight),
        f"weighted/{name}": np.mean(weight * at.sum(1)),
        f"maskable/{name}": np.array({int(f["maskable"]) for f in found}.pop()),
        f"documents/{name}": found[0].get("documents", np.array(-1)),
    }


def sampled(objective: Objective, name: str, text: Text, special: Mapping[str, int]) -> Arrays:
    """Outputs of `masked`, and: `n_targets/TERM/`, a sample's targets on average; `passes/`, of the first sample by model
    (1: the trained one) tokens, trained, and rows of each of its heads (-1: all; 0 where others have more);
    `chance/` how many chances fall into each tenth of [0, 1), a token; `judged/`, where the sample has it, of each place.
    """
    found = draws(objective, text)
    counts = [objective.targets(f) for f in found]
    outputs = masked(objective, name, text, special)
    outputs |= {f"n_targets/{term}/{name}": np.array(np.mean([c[term] for c in counts])) for term in counts[0]}
    passes = objective.passes(found[0])  # type: ignore[attr-defined]
    rows = zip_longest(*([-1 if n is None else n for n in p.heads.values()] for p in passes), fillvalue=0)
    costs = [
        [p.model == "model", p.tokens, p.trained, *of] for p, of in zip(passes, zip(*rows, strict=True), strict=True)
    ]
    outputs[f"passes/{name}"] = np.array(costs, np.float64)
    chances = np.stack([f["chance"] for f in found])
    outputs[f"chance/{name}"] = np.bincount((chances * 10).astype(int).flat, minlength=10) / chances.size
    if "judged" in found[0]:
        outputs[f"judged/{name}"] = np.mean([f["judged"] for f in found], 0)
    return outputs


def pairs(objective: Objective, name: str, text: Text, special: Mapping[str, int]) -> Arrays:
    """Outputs where tokens stand with those around them: `pairs/` (T, T) how often a sample has the text's i-th token in the
    context of its j-th, `drawn/` how often each id is drawn against one, `number/` of tokens that are asked for and of those
    drawn, a sample, and `places/` for which it has room."""
    found, own = draws(objective, text), text.tokens[:-1]
    place = np.zeros(SIZE, np.int64)
    place[own] = np.arange(len(own))
    met, drawn, number = np.zeros((len(own), len(own))), np.zeros(SIZE), np.zeros(2)
    for f in found:
        real, ids = (f[key].reshape(len(f["context"]), -1) for key in ("real", "ids"))
        groups, words = np.nonzero(real == 1)
        around = f["context"][groups]
        asked = np.broadcast_to(ids[groups, words][:, None], around.shape)
        # Not met[...] += 1, which counts a pair that is there twice once.
        np.add.at(met, (place[around[around >= 0]], place[asked[around >= 0]]), 1)
        drawn += np.bincount(ids[real == 0], minlength=SIZE)[:SIZE]
        number += len(groups), (real == 0).sum()
    n = len(found)
    return {
        f"pairs/{name}": met / n,
        f"drawn/{name}": drawn / n,
        f"number/{name}": number / n,
        f"places/{name}": np.array([*found[0]["context"].shape, len(found[0]["ids"]), len(found[0]["real"])]),
    }


def averaged(of_sample: Callable[[Arrays, np.ndarray, Mapping[str, int]], Arrays]) -> Observer:
    """Outputs that are means over the draws of what is counted of each sample, its tokens and the special ones."""

    def observed(objective: Objective, name: str, text: Text, special: Mapping[str, int]) -> Arrays:
        found = [of_sample(f, text.tokens, special) for f in draws(objective, text)]
        return {f"{key}/{name}": np.mean([f[key] for f in found], axis=0) for key in found[0]}

    return observed


OBSERVED: dict[str | None, Observer] = {
    "masked": masked,
    "sampled": sampled,
    "spans": spans,
    "next": exact,
    "pair": paired,
    "framed": in_spans,
    "continued": continued,
    "infilled": rearranged,
    "diffused": diffused,
    "pairs": pairs,
    "noised": averaged(sources.noised),
    "gaps": averaged(sources.gaps),
    "blanks": averaged(sources.blanks),
}
