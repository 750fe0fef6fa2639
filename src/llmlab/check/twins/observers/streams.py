"""Statistics of samples with a second stream: queries behind a text, each of which asks for one of its tokens.

A text's places are named by the order in which they are predicted: 0 is all text that is no target, 1 the first target. Places
are counted in the order of reading, from the end of a text that is read backwards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch

from llmlab import attributes, registry
from llmlab.check.subject import CheckFailed
from llmlab.check.twins.observers.texts import SIZE, Arrays, Text
from llmlab.slots import Mask, Objective
from llmlab.values import IGNORED

N_SEEN = 20  # samples in which pairs are counted


class Streams(NamedTuple):
    """The rows of a prepared sample: of the text, of placeholders and of queries that ask for something. target: (P,) places in
    the text, in the order in which they are predicted."""

    text: np.ndarray
    placeholders: np.ndarray
    queries: np.ndarray
    target: np.ndarray


def streams(prepared: Mapping[str, np.ndarray], length: int) -> Streams:
    """The streams of a sample of a text of `length` tokens. CheckFailed where they contradict each other."""
    rows = np.arange(len(prepared["ids"]))
    none = np.zeros(len(rows), bool)
    asks, stands = prepared["queries"], prepared.get("placeholders", none)
    text = rows[~asks & ~stands]
    length -= len(prepared.get("before_ids", ()))
    if not np.array_equal(text, np.arange(length)):
        raise CheckFailed("the text does not stand before all queries and placeholders")
    rank, at, labels = prepared["rank"], prepared["positions"], prepared["labels"]
    target = np.flatnonzero(rank[text])
    target = target[rank[target].argsort()]
    if not np.array_equal(rank[target], 1 + np.arange(len(target))):
        raise CheckFailed(f"the targets' ranks are {sorted(rank[target].tolist())}, not 1, 2 ... once each")
    queries = rows[labels != IGNORED]
    if not asks[queries].all():
        raise CheckFailed("a label stands at a token that is no query")
    found = Streams(text, rows[stands & (rank > 0)], queries, target)
    for name, some in (("queries", queries), ("placeholders", found.placeholders)):
        if (stands.any() or name == "queries") and not np.array_equal(at[some], at[target]):
            raise CheckFailed(f"the {name} stand at {at[some].tolist()}, the targets at {at[target].tolist()}")
    if len(found.placeholders) and not np.array_equal(prepared["ids"][found.placeholders], prepared["ids"][queries]):
        raise CheckFailed("placeholders are not read as their queries are")
    if not np.array_equal(rank[found.placeholders], rank[target][: len(found.placeholders)]):
        raise CheckFailed("the placeholders have not the ranks of what they stand for")
    return found


def queries(
    objective: Objective, found: Sequence[dict[str, np.ndarray]], name: str, text: Text, special: Mapping[str, int]
) -> Arrays:
    """Outputs of asking for tokens of a text.

    `targets/` how often each place of the text is one; `beside/` how often a place and the next both are; `runs/` how many runs
    of so many targets side by side a sample of the text `long` has; `number/` how often a sample has so many; `first/` how
    often each place is the first target of the order; `rising/` the share of targets next to each other in the order of which
    the second stands behind the first in the text; `places/` positions of the text.
    `visible/` (1 + 3 P, as many): of the pairs of row and column in one document the share which see each other, of text that
    is no target, targets, their placeholders and queries, each in the order of prediction; -1 where there is no such pair, and
    of a query and itself. `alone/` (2,): rows that see nothing, and queries that do not see themselves where they see nothing
    else. `segment/` (3,): tokens that are read before, targets among them, and the share of these that see each other.
    `read/` and `kept/` as of denoising, of queries; `documents/` 1 where those of queries and placeholders are those of
    their targets.
    """
    length = len(text.tokens) - 1
    m = len(found[0].get("before_ids", ()))
    rank, ids, labels = (np.stack([f[key] for f in found]) for key in ("rank", "ids", "labels"))
    # Of a segment that is read before nothing is a target.
    rank = np.pad(rank[:, : length - m], ((0, 0), (m, 0)))
    targets, at = rank > 0, labels != IGNORED
    counts = targets.sum(1)
    order = [np.argsort(row)[length - n :] for row, n in zip(rank, counts, strict=True)]
    rising, steps = sum((np.diff(o) > 0).sum() for o in order), (counts - 1).clip(0).sum()
    other = at & (ids != labels)
    # Where each run begins and where it ends, row by row in turn.
    edges = np.flatnonzero(np.diff(np.pad(targets, ((0, 0), (1, 1))).astype(int)).ravel())
    runs = np.bincount(np.diff(edges)[::2], minlength=length + 1)
    return {
        f"targets/{name}": targets.mean(0),
        f"beside/{name}": (targets[:, 1:] & targets[:, :-1]).mean(0),
        **({f"runs/{name}": runs / len(found)} if name == "long" else {}),
        f"number/{name}": np.bincount(counts, minlength=length + 1) / len(found),
        f"first/{name}": (rank == 1).mean(0),
        f"places/{name}": found[0]["positions"][: length - m],
        f"rising/{name}": np.array(rising / max(steps, 1)),
        f"read/{name}": np.bincount(ids[other], minlength=SIZE) / len(found),
        f"kept/{name}": np.array((at & (ids == labels)).sum() / len(found)),
        **{f"{key}/{name}": value for key, value in _visible(objective, found, text).items()},
    }


def _visible(objective: Objective, found: Sequence[dict[str, np.ndarray]], text: Text) -> Arrays:
    """Who sees whom in the samples, and in the segment that is read before."""
    part: Mask = registry.load("mask", attributes.get(objective, "objective", "mask"), {})()
    length, alone, segment, right = len(text.tokens) - 1, np.zeros(2), np.zeros(3), 1.0
    most = 1 + 3 * int(objective.targets(found[0])["nll"])
    seen, there = np.zeros((most, most)), np.zeros((most, most))
    for prepared in found[:N_SEEN]:
        own, m = streams(prepared, length), len(prepared.get("before_ids", ()))
        n = len(own.target)
        hidden = np.ones(len(own.text), bool)
        hidden[own.target] = False
        kinds = (own.target, own.placeholders, own.queries)
        groups = [own.text[hidden], *(kind[i : i + 1] for kind in kinds for i in range(n))]
        documents = prepared.get("documents", np.zeros(len(prepared["ids"])))
        same = documents[:, None] == documents
        pairs, itself = _pairs(part, prepared) & same, np.eye(len(same), dtype=bool)
        alone += [(~pairs.any(1)).sum(), ((pairs & ~itself).any(1) == pairs.diagonal())[own.queries].sum()]
        same[own.queries, own.queries] = False
        # Of rows and columns of a group, counted at once.
        member = np.zeros((len(same), most))
        for i, group in enumerate(groups):
            member[group, i] = 1
        seen, there = seen + member.T @ (pairs & same) @ member, there + member.T @ same @ member
        if text.documents is not None:
            whole = (text.documents[:length][::-1] if backwards(prepared, text) else text.documents[:length])[m:]
            kept = [documents[some] for some in (own.text, own.placeholders, own.queries)]
            wanted = [whole, whole[own.target[: len(own.placeholders)]], whole[own.target]]
            right *= all(np.array_equal(a, b) for a, b in zip(kept, wanted, strict=True))
        if m:
            before = prepared["before_rank"]
            first = _pairs(part, {"ids": before, "rank": before, "queries": np.zeros(m, bool)})[before > 0]
            segment += [m, len(first), first[:, before > 0].mean() if len(first) else 0.0]
    visible = np.where(there > 0, seen / np.maximum(there, 1), -1.0)
    return {"visible": visible, "alone": alone, "segment": segment / N_SEEN, "documents": np.array(right)}


def backwards(prepared: Mapping[str, np.ndarray], text: Text) -> bool:
    """True if a sample has the text from its end, and not from its beginning."""
    before, length = prepared.get("before_ids", np.zeros(0, np.int64)), len(text.tokens) - 1
    read, own = np.append(before, prepared["ids"])[:length], text.tokens[:length]
    return np.array_equal(read, own[::-1]) and not np.array_equal(read, own)


def _pairs(part: Mask, prepared: Mapping[str, np.ndarray]) -> np.ndarray:
    at = torch.arange(len(prepared["ids"]))
    data = {name: torch.from_numpy(prepared[name])[None] for name in part.needs}
    return part.allowed(at[:, None], at[None], data)[0].numpy()


def asked(prepared: Mapping[str, np.ndarray], text: Text, special: Mapping[str, int]) -> np.ndarray:
    """The text that queries and what is no target give back."""
    own = streams(prepared, len(text.tokens) - 1)
    back = prepared["ids"][own.text].copy()
    back[own.target] = prepared["labels"][own.queries]
    if not np.array_equal(back, prepared["ids"][own.text]):
        raise CheckFailed("the text that targets see is not that of the labels")
    whole = np.concatenate([prepared.get("before_ids", back[:0]), back])
    return whole[::-1] if backwards(prepared, text) else whole
