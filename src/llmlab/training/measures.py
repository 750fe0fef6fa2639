"""Means of what an objective shows over a held-out text, and what they may be called by its `measures`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from llmlab.slots import Loss, Objective

LIKELIHOODS = ("nll", "bits")  # kinds whose exponential is a perplexity
MOST = 700.0  # nats; exp of more overflows a float
BYTES = "bytes"
PERPLEXITY, BITS = "perplexity", "bits_per_byte"


def of(objective: Objective) -> dict[str, str]:
    """What the terms and logs of an objective are: name -> kind."""
    return dict(getattr(objective, "measures", {}))


def covers_text(objective: Objective) -> bool:
    """True if one of the measures is the negative log-likelihood of all tokens of a text."""
    return "bits" in of(objective).values()


def names(terms: Sequence[str], shown: Sequence[str], measures: Mapping[str, str], counts_bytes: bool) -> list[str]:
    """Names of all that `Totals.means` gives, in its order.

    A perplexity is called just that if it is of the first likelihood, and by its measure too if it is of another.
    """
    found = ["loss"]
    for name in _likelihoods(shown, measures):
        found.append(_called(name, PERPLEXITY, shown, measures))
        if measures[name] == "bits" and counts_bytes:
            found.append(_called(name, BITS, shown, measures))
    return found + [name for name in shown if [name] != list(terms)]


def words(validation: Mapping[str, float]) -> list[str]:
    """A validation (`Offline.validation`) as it is printed."""
    found = []
    for name, value in validation.items():
        called = name.removeprefix("val_").replace("_", " ")
        if name == "val_loss":
            found.append(f"validation loss {value:.4f}")
        elif name.endswith(BITS):
            found.append(f"{value:.4f} {called}")
        else:
            found.append(f"{called} {value:.{2 if name.endswith(PERPLEXITY) else 4}f}")
    return found


def _likelihoods(shown: Sequence[str], measures: Mapping[str, str]) -> list[str]:
    return [name for name, kind in measures.items() if kind in LIKELIHOODS and name in shown]


def _called(name: str, what: str, shown: Sequence[str], measures: Mapping[str, str]) -> str:
    return what if name == _likelihoods(shown, measures)[0] else f"{name}_{what}"


class Totals:
    """Sums and counts over micro-batches, on the device."""

    def __init__(self, measures: Mapping[str, str]):
        self.measures = measures
        self.terms: tuple[str, ...] = ()
        self.weights: Mapping[str, float] = {}
        self.pairs: dict[str, Tensor] = {}  # of what is shown, and bytes

    def add(self, loss: Loss, batch: Mapping[str, Tensor]) -> None:
        """One micro-batch; one that is a `filler`, with which a rank keeps others company, adds nothing."""
        pairs = {name: torch.stack([t.detach().double() for t in pair]) for name, pair in loss.shown.items()}
        self.terms, self.weights = tuple(loss.terms), loss.weights
        if BYTES in batch:
            size = batch[BYTES].sum().double()
            pairs[BYTES] = torch.stack([size, torch.zeros_like(size)])
        for name, pair in pairs.items():
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
        """Of the text, where they are counted."""
        return int(self.pairs[BYTES][0]) if BYTES in self.pairs else 0

    def means(self, reduce: Callable[[Tensor], Tensor] = lambda t: t) -> dict[str, float]:
        """ "loss", the weighted sum of the terms' means without the balance loss of experts; perplexities and bits per byte of
        likelihoods; and the mean of all else that is shown, but for a lone term, which the loss is."""
        totals = self.reduced(reduce)
        size = totals.pop(BYTES, (0.0, 0.0))[0]
        each = {name: total / max(count, 1) for name, (total, count) in totals.items()}
        found = {"loss": sum(self.weights.get(name, 1.0) * each[name] for name in self.terms)}
        shown = list(totals)
        for name in _likelihoods(shown, self.measures):
            found[_called(name, PERPLEXITY, shown, self.measures)] = math.exp(min(each[name], MOST))
            if self.measures[name] == "bits" and size:
                found[_called(name, BITS, shown, self.measures)] = totals[name][0] / math.log(2) / size
        return {**found, **{name: mean for name, mean in each.items() if [name] != list(self.terms)}}
