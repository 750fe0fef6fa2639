"""The check of an objective that what it prepares of a text gives the text back."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from llmlab import attributes
from llmlab.check.parts import frames
from llmlab.check.parts.fixtures import tested_part
from llmlab.check.subject import CheckFailed, NotApplicable, Subject
from llmlab.check.twins import settings
from llmlab.check.twins.observers import streams, texts
from llmlab.check.twins.observers.infilling import infilled
from llmlab.check.twins.observers.texts import Text
from llmlab.slots import Objective

N_DRAWS = 50
IGNORED = -100
TO_THE_LAST = ("next", "continued", "infilled", "diffused")  # what restores the last token of a window too
Prepared = Mapping[str, np.ndarray]
Reverse = Callable[[Prepared, Text, Mapping[str, int]], np.ndarray]


def reversal(subject: Subject) -> None:
    """What an objective prepares gives the text back, each token once, at every setting, by what it says that it `restores`."""
    spec = tested_part(subject, "objective")
    if spec.attribute("restores") is None:
        raise NotApplicable("it does not say how its samples give the text back (`restores`)")
    for setting in settings.of_part("objective", spec.name):
        special = texts.vocabulary(setting).special
        for name, text in texts.texts(texts.made(setting, texts.SIZE, 40)).items():
            seq_len = len(text.tokens) - 1
            objective = texts.made(setting, texts.SIZE, seq_len)
            before = text.tokens.copy()
            for prepared in texts.draws(objective, text, N_DRAWS):
                _restored(objective, prepared, text, special, f"{setting}, the text {name!r}")
            if not np.array_equal(before, text.tokens):
                raise CheckFailed(f"{setting}: it changes the tokens that it is given")


def _restored(objective: Objective, prepared: Prepared, text: Text, special: Mapping[str, int], where: str) -> None:
    restores = attributes.get(objective, "objective", "restores")
    want = text.tokens if restores in TO_THE_LAST else text.tokens[:-1]
    back = REVERSE[restores](prepared, text, special)
    if not np.array_equal(back, want):
        raise CheckFailed(f"{where}: {_words(want)} comes back as {_words(back)}")
    # A mean may be over all tokens that could have been targets.
    targets = prepared["real"] == 1 if restores == "pairs" else prepared["labels"] != IGNORED
    n = int(prepared.get("maskable", targets.sum()))
    counts = list(objective.targets(dict(prepared)).values())
    wanted = [n, *({"pair": [1], "framed": [n]}.get(restores, []))]
    # Of several terms some may be over other targets than labels.
    if counts != wanted and not (restores in ("sampled", "next") and n in counts):
        raise CheckFailed(f"{where}: it counts {counts} targets of {wanted}")


def _words(tokens: np.ndarray) -> str:
    return " ".join(map(str, tokens))


def _next(prepared: Prepared, text: Text, special: Mapping[str, int]) -> np.ndarray:
    """Each label is the token behind, but for those that are given, and of those that are in the prefix."""
    ids, labels = prepared["ids"], prepared["labels"]
    given = np.zeros(len(ids), bool) if text.given is None else text.given[1:].copy()
    given[: max(prepared.get("prefix_len", 0) - 1, 0)] = True
    known = np.where(labels == IGNORED, text.tokens[1:], labels)
    if not np.array_equal(labels == IGNORED, given) or not np.array_equal(known[:-1], ids[1:]):
        raise CheckFailed("labels are not the tokens that come next")
    return np.append(ids, known[-1])


def _masked(prepared: Prepared, text: Text, special: Mapping[str, int]) -> np.ndarray:
    return np.where(prepared["labels"] == IGNORED, prepared["ids"], prepared["labels"])


def _diffused(prepared: Prepared, text: Text, special: Mapping[str, int]) -> np.ndarray:
    """`_masked` of all but the first token. Every label is masked, and no token that is given."""
    targets, may = prepared["labels"] != IGNORED, text.tokens[1:] != special["mask"]
    if text.given is not None:
        may &= ~text.given[1:]
    if (targets & ~may).any() or (prepared["ids"][targets] != special["mask"]).any():
        raise CheckFailed("a target is not masked, or is no token of the text")
    if int(prepared["maskable"]) != may.sum():
        raise CheckFailed(f"{prepared['maskable']} tokens are said to be maskable, but {may.sum()} are")
    return np.append(text.tokens[0], _masked(prepared, text, special))


def _spans(prepared: Prepared, text: Text, special: Mapping[str, int]) -> np.ndarray:
    """The source with each sentinel replaced by what follows it in the labels, both of which end with eos."""
    source, labels = prepared["source_ids"], prepared["labels"]
    if not np.array_equal(prepared["ids"], np.append(special["pad"], labels[:-1])):
        raise CheckFailed("the decoder does not read the labels shifted by one behind a pad")
    if source[-1] != special["eos"] or labels[-1] != special["eos"]:
        raise CheckFailed("the source and the labels do not both end with eos")
    sentinels = [special[f"sentinel_{i}"] for i in range(sum(name.startswith("sentinel_") for name in special))]
    places = [[i for i, token in enumerate(some) if token in sentinels] for some in (source, labels)]
    orders = [[int(some[i]) for i in at] for some, at in zip((source, labels), places, strict=True)]
    if orders[0] != sentinels[: len(orders[0])] or orders[0] != orders[1]:
        raise CheckFailed(
            f"the sentinels {orders[0]} of the source and {orders[1]} of the labels are not the first ones in order"
        )
    if 0 not in places[1]:
        raise CheckFailed("the labels do not begin with a sentinel")
    spans = np.split(labels[:-1], places[1][1:])
    kept = np.split(source[:-1], np.array(places[0]) + 1)
    pieces = [piece for before, span in zip(kept, spans, strict=False) for piece in (before[:-1], span[1:])]
    return np.concatenate([*pieces, kept[-1]])


def _infilled(prepared: Prepared, text: Text, special: Mapping[str, int]) -> np.ndarray:
    """Each document put together again, and the tokens behind that sentinels left no room for."""
    found = infilled(prepared, text, special)
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


def _pairs(prepared: Prepared, text: Text, special: Mapping[str, int]) -> np.ndarray:
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


REVERSE: dict[str, Reverse] = {
    "next": _next,
    "masked": _masked,
    "sampled": _masked,
    "spans": _spans,
    "pair": frames.pair,
    "queries": streams.asked,
    "framed": frames.framed,
    "continued": _next,
    "infilled": _infilled,
    "diffused": _diffused,
    "pairs": _pairs,
}
