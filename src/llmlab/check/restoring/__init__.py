"""The kinds of samples that give a text back: one table of what `restores` says, a row a kind.

`llmlab check` and the twins go by it alone, so that a new kind is one row here and its name in
`llmlab.objective_attributes.RESTORES`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from llmlab import attributes
from llmlab.check.restoring import batches, reverse, reverse_frames, statistics
from llmlab.check.restoring.reverse import IGNORED, Prepared
from llmlab.check.twins.observers import sources, streams, texts
from llmlab.check.twins.observers.texts import Text
from llmlab.slots import Objective


def _labels(prepared: Prepared) -> int:
    return int((prepared["labels"] != IGNORED).sum())


def _none(n: int) -> list[int]:
    return []


@dataclass(frozen=True)
class Kind:
    """What is known of a kind of samples.

    observe: statistics of samples of a text. reverse: the text that a sample gives back. tried_on: texts. draws: of
    each, for the statistics. left_out: tokens at the end of a window that are in no sample; None: the sample's own number
    tells. targets: how many a sample has, and `further` those of further terms, by it; others_count: further terms may be over
    anything. batch: a batch whose loss is computed.
    """

    observe: statistics.Observer
    reverse: reverse.Reverse
    tried_on: Callable[[Objective], dict[str, Text]] = texts.usual
    draws: int = texts.N_DRAWS
    left_out: int | None = 1
    targets: Callable[[Prepared], int] = _labels
    further: Callable[[int], list[int]] = _none
    others_count: bool = False
    batch: batches.Made = batches.labelled


KINDS: Mapping[str, Kind] = {
    "masked": Kind(statistics.masked, reverse.masked, others_count=True),
    "pair": Kind(
        statistics.paired,
        reverse_frames.pair,
        texts.in_frames,
        draws=400,  # a sample takes longer
        further=lambda n: [1],
        batch=batches.pair,
    ),
    "framed": Kind(
        statistics.in_spans,
        reverse_frames.framed,
        texts.in_frames,
        draws=300,
        further=lambda n: [n],
        batch=batches.framed,
    ),
    "sampled": Kind(statistics.sampled, reverse.masked, others_count=True, batch=batches.sampled),
    "diffused": Kind(
        statistics.diffused,
        reverse.diffused,
        left_out=0,
        targets=lambda prepared: int(prepared["maskable"]),  # its mean is over all tokens that could have been targets
        batch=batches.diffused,
    ),
    "spans": Kind(statistics.spans, reverse.spans, texts.only_long),
    "gaps": Kind(statistics.averaged(sources.gaps), reverse.gaps, texts.short(*sources.REPEATED), left_out=2),
    "blanks": Kind(statistics.averaged(sources.blanks), reverse.blanks, texts.short(*sources.SPLIT), left_out=None),
    "noised": Kind(statistics.averaged(sources.noised), reverse.noised, texts.short(*sources.LEFT), left_out=2),
    "next": Kind(statistics.exact, reverse.following, draws=1, left_out=0, others_count=True),
    "continued": Kind(statistics.continued, reverse.following, left_out=0),
    "infilled": Kind(statistics.rearranged, reverse.infilled, left_out=0),
    "queries": Kind(streams.queries, streams.asked, texts.with_long, draws=200, batch=batches.queries),
    "pairs": Kind(
        statistics.pairs,
        reverse.pairs,
        draws=400,
        targets=lambda prepared: int((prepared["real"] == 1).sum()),
        batch=batches.pairs,
    ),
}


def of_any(objective: Objective) -> Kind | None:
    """The kind of what an objective prepares; None where it does not say how its samples give the text back."""
    restores = attributes.get(objective, "objective", "restores")
    return None if restores is None else KINDS[restores]


def of(objective: Objective) -> Kind:
    kind = of_any(objective)
    assert kind is not None
    return kind


def texts_of(objective: Objective) -> dict[str, Text]:
    """The texts that samples of its kind are tried on."""
    return of(objective).tried_on(objective)
