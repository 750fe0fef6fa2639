"""Kinds of measures that an objective declares of its terms and logs, and what their means are called.

Kinds: "nll" and "bits" are likelihoods, of which perplexity is claimed, and of "bits", which covers a whole text, bits per byte
too; "accuracy", "reward" and "margin" are better when higher; any other is just a number.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from llmlab import attributes
from llmlab.errors import UserError

if TYPE_CHECKING:  # reports read measures, and wait for no torch
    from llmlab.slots import Objective

LIKELIHOODS = ("nll", "bits")  # kinds whose exponential is a perplexity
HIGHER_IS_BETTER = ("accuracy", "reward", "margin")
COMPARED = ("exact_match", "f1", "bleu")  # of what a model writes or finds, beside what is right; higher is better
CLOSE = 0.8  # two names are one of which a letter or two are wrong
PERPLEXITY, BITS = "perplexity", "bits_per_byte"


def kinds(objective: Objective) -> dict[str, str]:
    """Kinds of the terms and logs of an objective, by name."""
    return dict(attributes.get(objective, "objective", "measures"))


def check(shown: Collection[str], objective: Objective) -> None:
    """UserError if a measure has the misspelt name of a term or log, which would then be just a number. Others may be of a
    log that only a validation has.
    """
    measured = kinds(objective)
    for name in measured:
        # A log may be one of validation alone, so that a missing name is no fault by itself.
        if name not in shown and (close := difflib.get_close_matches(name, set(shown) - {*measured}, 1, CLOSE)):
            raise UserError(
                f"{type(objective).__name__}.measures has {name!r}, but its loss has no such term or log; did you mean "
                f"{close[0]}?"
            )


def covers_text(objective: Objective) -> bool:
    """True if one of the measures is the negative log-likelihood of all tokens of a text."""
    return "bits" in kinds(objective).values()


def names(terms: Sequence[str], shown: Sequence[str], measures: Mapping[str, str], counts_bytes: bool) -> list[str]:
    """Names of all that `training.totals.Totals.means` gives, in its order.

    A perplexity is called just that if it is of the first likelihood, and by its measure too if it is of another.
    """
    found = ["loss"]
    for name in likelihoods(shown, measures):
        found.append(metric_name(name, PERPLEXITY, shown, measures))
        if measures[name] == "bits" and counts_bytes:
            found.append(metric_name(name, BITS, shown, measures))
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
            # The fourth decimal of a loss is 0.0024 of a perplexity of 24.
            found.append(f"{called} {value:.{2 if name.endswith(PERPLEXITY) else 4}f}")
    return found


def likelihoods(shown: Sequence[str], measures: Mapping[str, str]) -> list[str]:
    """Names of those that are shown."""
    return [name for name, kind in measures.items() if kind in LIKELIHOODS and name in shown]


def metric_name(name: str, what: str, shown: Sequence[str], measures: Mapping[str, str]) -> str:
    """Name of the perplexity or the bits per byte of a likelihood."""
    return what if name == likelihoods(shown, measures)[0] else f"{name}_{what}"
