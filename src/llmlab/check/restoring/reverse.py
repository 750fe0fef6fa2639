"""Reverses: the text that a prepared sample gives back. CheckFailed where it contradicts itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from llmlab.check.subject import CheckFailed
from llmlab.check.twins.observers.infilling import Text
from llmlab.check.twins.observers.infilling import infilled as rearranged
from llmlab.check.twins.observers.texts import SENTENCE_ENDS
from llmlab.values import IGNORED

Prepared = Mapping[str, np.ndarray]
Reverse = Callable[[Prepared, Text, Mapping[str, int]], np.ndarray]


def words(tokens: np.ndarray) -> str:
    return " ".join(map(str, tokens))


def following(prepared: Prepared, text: Text, special: Mapping[str, int]) -> np.ndarray:
    """Each label is the token behind, but for those that are given, and of those that are in the prefix."""
    ids, labels = prepared["ids"], prepared["labels"]
    given = np.zeros(len(ids), bool) if text.given is None else text.given[1:].copy()
    given[: max(prepared.get("prefix_len", 0) - 1, 0)] = True
    known = np.where(labels == IGNORED, text.tokens[1:], labels)
    if not np.array_equal(labels == IGNORED, given) or not np.array_equal(known[:-1], ids[1:]):
        raise CheckFailed("labels are not the tokens that come next")
    return np.append(ids, known[-1])


def masked(prepared: Prepared, text: Text, special: Mapping[str, int]) -> np.ndarray:
    return np.where(prepared["labels"] == IGNORED, prepared["ids"], prepared["labels"])


def diffused(prepared: Prepared, text: Text, special: Mapping[str, int]) -> np.ndarray:
    """`_masked` of all but the first token. Every label is masked, and no token that is given."""
    targets, may = prepared["labels"] != IGNORED, text.tokens[1:] != special["mask"]
    if text.given is not None:
        may &= ~text.given[1:]
    if (targets & ~may).any() or (prepared["ids"][targets] != special["mask"]).any():
        raise CheckFailed("a target is not masked, or is no token of the text")
    if int(prepared["maskable"]) != may.sum():
        raise CheckFailed(f"{prepared['maskable']} tokens are said to be maskable, but {may.sum()} are")
    return np.append(text.tokens[0], masked(prepared, text, special))


def spans(prepared: Prepared, text: Text, special: Mapping[str, int]) -> np.ndarray:
    """The source with each sentinel replaced by what follows it in the labels, both of which end with eos."""
    labels, source = _pair(prepared, special)
    sentinels = [special[f"sentinel_{i}"] for i in range(sum(name.startswith("sentinel_") for name in special))]
    places = [[i for i, token in enumerate(some) if token in sentinels] for some in (source, labels)]
    orders = [[int(some[i]) for i in at] for some, at in zip((source, labels), places, strict=True)]
    if orders[0] != sentinels[: len(orders[0])] or orders[0] != orders[1]:
        raise CheckFailed(
            f"the sentinels {orders[0]} of the source and {orders[1]} of the labels are not the first ones in order"
        )
    if 0 not in places[1]:
        raise CheckFailed("the labels do not begin with a sentinel")
    spans = np.split(labels, places[1][1:])
    kept = np.split(source, np.array(places[0]) + 1)
    # UL2's modes stand before the text.
    modes = [at for name, at in special.items() if name.startswith("mode_")]
    kept[0] = kept[0][1:] if kept[0][0] in modes else kept[0]
    pieces = [piece for before, span in zip(kept, spans, strict=False) for piece in (before[:-1], span[1:])]
    return np.concatenate([*pieces, kept[-1]])


def infilled(prepared: Prepared, text: Text, special: Mapping[str, int]) -> np.ndarray:
    """Each document put together again, and the tokens behind that sentinels left no room for."""
    found = rearranged(prepared, text, special)
    labels, silent = prepared["labels"], np.array([0, *(np.flatnonzero(text.given) if text.given is not None else ())])
    own = np.isin(np.arange(len(found.where)), silent)
    places = found.where[~own & (found.where > 0)]
    if not np.array_equal(np.flatnonzero(labels != IGNORED) + 1, np.sort(places)):
        raise CheckFailed("not all tokens of the text, and these alone, are targets")
    if not np.array_equal(labels[places - 1], found.tokens[places]):
        raise CheckFailed("labels are not the tokens that come next")
    if len(text.tokens) - len(found.where) != 3 * found.rearranged:
        raise CheckFailed(
            f"of {len(text.tokens)} tokens {len(found.where)} are there beside {found.rearranged} x 3 sentinels"
        )
    return np.append(found.tokens[found.where], text.tokens[len(found.where) :])


def pairs(prepared: Prepared, text: Text, special: Mapping[str, int]) -> np.ndarray:
    """The text, where each word that is asked for stands with words of its own document, itself and special tokens not among
    them: what is left out can't come back."""
    tokens = text.tokens[:-1]
    documents = np.zeros_like(tokens) if text.documents is None else text.documents[:-1]
    may = ~np.isin(tokens, list(special.values())) & (True if text.given is None else ~text.given[:-1])
    of = {int(token): int(document) for token, document in zip(tokens[may], documents[may], strict=True)}
    real, ids = (prepared[key].reshape(len(prepared["context"]), -1) for key in ("real", "ids"))
    for group, at in np.argwhere(real == 1):
        word, around = int(ids[group, at]), [int(i) for i in prepared["context"][group] if i >= 0]
        if not around or word in around or any(of.get(i) != of.get(word, -1) for i in around):
            raise CheckFailed(f"the token {word} is asked for by {around}, which are not around it in its document")
    return tokens


def noised(prepared: Prepared, text: Text, special: Mapping[str, int]) -> np.ndarray:
    """The labels up to their eos. What the source has of the text it has once."""
    labels, source = _pair(prepared, special)
    kept = source[source != special["mask"]]
    if len(np.unique(kept)) < len(kept) or not np.isin(kept, labels).all() or len(source) > len(labels):
        raise CheckFailed(f"the source {words(source)} is not {words(labels)} with some left out or masked")
    return labels


def gaps(prepared: Prepared, text: Text, special: Mapping[str, int]) -> np.ndarray:
    """The source with each mask replaced by the next sentence of the labels."""
    labels, source = _pair(prepared, special)
    ends = np.isin(labels, SENTENCE_ENDS)
    whole = iter(np.split(labels, np.flatnonzero(ends) + 1))
    pieces = [next(whole, labels[:0]) if token == special["mask"] else [token] for token in source]
    return np.concatenate([*pieces, *whole]).astype(np.int64)


def blanks(prepared: Prepared, text: Text, special: Mapping[str, int]) -> np.ndarray:
    """The text up to `prefix_len`, each mask replaced by the span that stands at its place. Two tokens a span are no text."""
    ids, labels, n = prepared["ids"], prepared["labels"], int(prepared["prefix_len"])
    place, inside = (*np.atleast_2d(prepared["positions"]), None)[:2]
    left, starts = ids[:n], np.flatnonzero(ids == special["start"])
    masks = [special[name] for name in ("mask", "smask", "gmask") if name in special]
    holes = np.flatnonzero(np.isin(left, masks)).tolist()
    if (labels[:n] != IGNORED).any() or len(ids) != len(text.tokens) - 1 or starts[:1].tolist() != [n]:
        raise CheckFailed("a window is not a text without targets, and spans behind it")
    if not np.array_equal(place[:n], np.arange(n)) or (inside is not None and inside[:n].any()):
        raise CheckFailed("tokens of the text are not at their places in it, outside of spans")
    spans: dict[int, np.ndarray] = {}
    for a, b in zip(starts.tolist(), [*starts[1:].tolist(), len(ids)], strict=True):
        if not np.array_equal(labels[a:b], [*ids[a + 1 : b], special["end"]]):
            raise CheckFailed("a span is not read from start, and written up to end")
        if inside is not None and not np.array_equal(inside[a:b], np.arange(1, b - a + 1)):
            raise CheckFailed("tokens of a span are not counted from 1 at its start")
        # One at the end may go on as if it were text.
        goes_on = np.array_equal(place[a:b], np.arange(n, len(ids)))
        at = holes[-1] if goes_on else int(place[a])
        if at in spans or at not in holes or not (goes_on or (place[a:b] == at).all()):
            raise CheckFailed(f"a span stands at {place[a:b]}, where no mask waits for it")
        spans[at] = ids[a + 1 : b]
    if len(spans) != len(holes):
        raise CheckFailed(f"{len(holes)} masks have {len(spans)} spans")
    return np.concatenate([spans.get(i, left[i : i + 1]) for i in range(n)])


def _pair(prepared: Prepared, special: Mapping[str, int]) -> tuple[np.ndarray, np.ndarray]:
    """(labels, source) without the eos at their ends."""
    source, labels = prepared["source_ids"], prepared["labels"]
    if not np.array_equal(prepared["ids"], np.append(special["pad"], labels[:-1])):
        raise CheckFailed("the decoder does not read the labels shifted by one behind a pad")
    if source[-1] != special["eos"] or labels[-1] != special["eos"]:
        raise CheckFailed("the source and the labels do not both end with eos")
    return labels[:-1], source[:-1]
