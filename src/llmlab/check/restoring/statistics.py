"""Statistics of the samples that an objective prepares of a text, by what it `restores`.

Means over samples are compared up to the bound that the twin gives, so that another stream of random numbers passes too.
Outputs of a text begin as listed and end in the text's name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations, zip_longest

import numpy as np

from llmlab.check.twins.observers import frames
from llmlab.check.twins.observers.infilling import Text, infilled
from llmlab.check.twins.observers.texts import SIZE, Arrays
from llmlab.slots import Objective

Samples = Sequence[dict[str, np.ndarray]]
Observer = Callable[[Objective, Samples, str, Text, Mapping[str, int]], Arrays]


def masked(objective: Objective, found: Samples, name: str, text: Text, special: Mapping[str, int]) -> Arrays:
    """Outputs of denoising.

    `targets/` how often each place is one; `number/` how often a sample has so many; `together/` how many of a sample have
    another one behind them; `read/` how often each id, other than the label, is read at a target, and `kept/` the label, a
    sample; `alike/` how many pairs of targets are read as one ordinary id that is the label of neither, a sample;
    `documents/` (-1: it has none).
    """
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


def spans(objective: Objective, found: Samples, name: str, text: Text, special: Mapping[str, int]) -> Arrays:
    """Outputs where spans are taken out: `lengths/` tokens of the source and of the labels; `taken/` how often each token is;
    `span_lengths/` and `kept_lengths/` how often a span, and what is kept before it, has so many tokens."""
    seq_len = len(text.tokens) - 1
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


def exact(objective: Objective, found: Samples, name: str, text: Text, special: Mapping[str, int]) -> Arrays:
    """Outputs that do not depend on chance: `prepared/KEY/` of the text, and `n_targets/`."""
    prepared = found[0]
    counts = objective.targets(prepared)
    return {
        **{f"prepared/{key}/{name}": np.asarray(value) for key, value in prepared.items()},
        **{f"n_targets/{term}/{name}": np.array(count) for term, count in counts.items()},
    }


def paired(objective: Objective, found: Samples, name: str, text: Text, special: Mapping[str, int]) -> Arrays:
    return frames.pairs(found, name, special, len(text.tokens) - 1)


def in_spans(objective: Objective, found: Samples, name: str, text: Text, special: Mapping[str, int]) -> Arrays:
    return frames.framed(found, name, special, len(text.tokens) - 1)


def continued(objective: Objective, found: Samples, name: str, text: Text, special: Mapping[str, int]) -> Arrays:
    """Outputs of a prefix that is drawn: `prefix_len/` how often it is so long, `targets/` how often each place is a target,
    `documents/` as those of denoising."""
    labels = np.stack([f["labels"] for f in found])
    return {
        f"prefix_len/{name}": np.bincount([f["prefix_len"] for f in found], minlength=len(text.tokens)) / len(found),
        f"targets/{name}": (labels >= 0).mean(0),
        f"documents/{name}": found[0].get("documents", np.array(-1)),
    }


def rearranged(objective: Objective, found: Samples, name: str, text: Text, special: Mapping[str, int]) -> Arrays:
    """Outputs of infilling: `rearranged/` how often so many documents are; of the first document `orders/` how often it is as
    it was, its prefix first, its suffix first, and of those that are rearranged `prefix/` and `middle/` how often these have so
    many tokens; `length/` of what is read."""
    put = [infilled(f, text, special) for f in found]
    first = [f.first for f in put if f.first is not None]
    length = len(text.tokens)

    def often(values: list[int]) -> np.ndarray:
        return np.bincount(values, minlength=length) / max(len(values), 1)

    return {
        f"rearranged/{name}": often([f.rearranged for f in put]),
        f"orders/{name}": np.array(
            [len(found) - len(first), *(sum(f.suffix_first == w for f in first) for w in (0, 1))]
        )
        / len(found),
        f"prefix/{name}": often([f.prefix for f in first]),
        f"middle/{name}": often([f.middle for f in first]),
        f"length/{name}": np.array({len(f.tokens) for f in put}.pop() - 1),
    }


def diffused(objective: Objective, found: Samples, name: str, text: Text, special: Mapping[str, int]) -> Arrays:
    """Outputs of masking at a rate that is drawn: `targets/` how often each place is one; `number/` how often a sample has so
    many; `rate/` the mean rate, by the weights; `weighted/` the mean of weight x number of targets; `maskable/`;
    `documents/` as those of denoising."""
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


def sampled(objective: Objective, found: Samples, name: str, text: Text, special: Mapping[str, int]) -> Arrays:
    """Outputs of `masked`, and: `n_targets/TERM/`, a sample's targets on average; `passes/`, of the first sample by model
    (1: the trained one) tokens, trained, and rows of each of its heads (-1: all; 0 where others have more);
    `chance/` how many chances fall into each tenth of [0, 1), a token; `judged/`, where the sample has it, of each place.
    """
    counts = [objective.targets(f) for f in found]
    outputs = masked(objective, found, name, text, special)
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


def pairs(objective: Objective, found: Samples, name: str, text: Text, special: Mapping[str, int]) -> Arrays:
    """Outputs where tokens stand with those around them: `pairs/` (T, T) how often a sample has the text's i-th token in the
    context of its j-th, `drawn/` how often each id is drawn against one, `number/` of tokens that are asked for and of those
    drawn, a sample, and `places/` for which it has room. Where a sample says how near they are, and how often in the training
    text, `near/` and `times/` (T, T) of the pairs. Where it has hashes of n-grams, `ngrams/`: their sum over 2^32 and their
    number, over all that is asked for.
    """
    own = text.tokens[:-1]
    place = np.zeros(SIZE, np.int64)
    place[own] = np.arange(len(own))
    met, drawn, number = np.zeros((len(own), len(own))), np.zeros(SIZE), np.zeros(2)
    grams = np.zeros(2)
    for f in found:
        real, ids = (f[key].reshape(len(f["context"]), -1) for key in ("real", "ids"))
        groups, words = np.nonzero(real == 1)
        around = f["context"][groups]
        asked = np.broadcast_to(ids[groups, words][:, None], around.shape)
        # Not met[...] += 1, which counts a pair that is there twice once.
        np.add.at(met, (place[around[around >= 0]], place[asked[around >= 0]]), 1)
        drawn += np.bincount(ids[real == 0], minlength=SIZE)[:SIZE]
        number += len(groups), (real == 0).sum()
        if "subwords" in f:
            hashes = f["subwords"][groups]
            grams += (hashes * (hashes >= 0)).sum() / 2**32, (hashes >= 0).sum()
    n = len(found)
    said = {f"ngrams/{name}": grams / n} if "subwords" in found[0] else {}
    for key in ("near", "times"):
        if key in found[0]:
            said[f"{key}/{name}"] = table = np.zeros((len(own), len(own)))
            f = found[0]
            # A pair is there once, so that adding is writing.
            for group, at in np.argwhere(f["real"].reshape(len(f["context"]), -1) == 1):
                table[place[f["context"][group, 0]], place[f["ids"][group + at]]] = f[key][group + at]
    return {
        **said,
        f"pairs/{name}": met / n,
        f"drawn/{name}": drawn / n,
        f"number/{name}": number / n,
        f"places/{name}": np.array([*found[0]["context"].shape, len(found[0]["ids"]), len(found[0]["real"])]),
    }


def averaged(of_sample: Callable[[Arrays, np.ndarray, Mapping[str, int]], Arrays]) -> Observer:
    """Outputs that are means over the draws of what is counted of each sample, its tokens and the special ones."""

    def observed(objective: Objective, found: Samples, name: str, text: Text, special: Mapping[str, int]) -> Arrays:
        counted = [of_sample(f, text.tokens, special) for f in found]
        return {f"{key}/{name}": np.mean([c[key] for c in counted], axis=0) for key in counted[0]}

    return observed
