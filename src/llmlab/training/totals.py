"""Means over a held-out text of all that an objective shows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from llmlab.measures import BITS, PERPLEXITY, likelihoods, metric_name
from llmlab.slots import Loss

MOST = 700.0  # nats; exp of more overflows a float
BYTES = "bytes"


class Totals:
    """Sums and counts over micro-batches, on the device."""

    def __init__(self, measures: Mapping[str, str]):
        self.measures = measures
        self.terms: tuple[str, ...] = ()
        self.weights: Mapping[str, float] = {}
        self.pairs: dict[str, Tensor] = {}  # of what is shown, and bytes; on all ranks in the order of the first batch

    @property
    def names(self) -> list[str]:
        """What is shown, once there was a micro-batch."""
        return [name for name in self.pairs if name != BYTES]

    def add(self, loss: Loss, batch: Mapping[str, Tensor]) -> None:
        """One micro-batch; one that is a `filler`, with which a rank keeps others company, adds nothing."""
        pairs = {name: torch.stack([t.detach().double() for t in pair]) for name, pair in loss.shown.items()}
        self.terms, self.weights = tuple(loss.terms), loss.weights
        if BYTES in batch:
            size = batch[BYTES].sum().double()
            pairs[BYTES] = torch.stack([size, torch.zeros_like(size)])
        for name, pair in pairs.items():
            # Zeros and not left out: all ranks reduce one table, whose rows must be the same names.
            if "filler" in batch:
                pair = torch.zeros_like(pair)
            self.pairs[name] = pair if name not in self.pairs else self.pairs[name] + pair

    def reduced(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, tuple[float, float]]:
        """(sum, count) of each name over all ranks; one transfer from the device."""
        table = reduce(torch.stack(list(self.pairs.values()))).tolist()
        return {name: (total, count) for name, (total, count) in zip(self.pairs, table, strict=True)}

    def counts(self) -> dict[str, int]:
        """Targets of each term on this rank."""
        return {name: int(self.pairs[name][1]) for name in self.terms}

    @property
    def bytes(self) -> int:
        """Bytes of the text, where they are counted."""
        return int(self.pairs[BYTES][0]) if BYTES in self.pairs else 0

    def means(self, reduce: Callable[[Tensor], Tensor] = lambda t: t) -> dict[str, float]:
        """ "loss", the weighted sum of the terms' means without the balance loss of experts; perplexities and bits per byte of
        likelihoods; and the mean of all else that is shown, but for a lone term, which the loss is."""
        totals = self.reduced(reduce)
        size = totals.pop(BYTES, (0.0, 0.0))[0]
        each = {name: total / max(count, 1) for name, (total, count) in totals.items()}
        values = {"loss": sum(self.weights.get(name, 1.0) * each[name] for name in self.terms)}
        shown = list(totals)
        for name in likelihoods(shown, self.measures):
            # Of the mean over all tokens: a mean of batches' perplexities would be larger, by Jensen's inequality.
            values[metric_name(name, PERPLEXITY, shown, self.measures)] = math.exp(min(each[name], MOST))
            # Nats over all tokens, in bits, by the bytes of their text: the one measure that two tokenizers share.
            if self.measures[name] == "bits" and size:
                values[metric_name(name, BITS, shown, self.measures)] = totals[name][0] / math.log(2) / size
        return {**values, **{name: mean for name, mean in each.items() if [name] != list(self.terms)}}
