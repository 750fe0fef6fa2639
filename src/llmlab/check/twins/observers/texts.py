"""Texts that an objective prepares, and statistics of the samples, which depend on what it `restores`.

A text whose preparation is random is prepared N_DRAWS times. Means over these draws are compared up to the bound that the twin
gives, so that another stream of random numbers passes too. Outputs of a text begin as listed and end in the text's name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

from llmlab import attributes, registry
from llmlab.check.twins.observers import sources
from llmlab.check.twins.observers.observed import options_of
from llmlab.check.twins.settings import Setting
from llmlab.slots import Objective, Vocabulary

N_DRAWS = 1000
# Special tokens stand at both ends of the vocabulary and between ordinary ones.
SPECIAL = {"pad": 0, "eos": 1, "cls": 13, "mask": 14, "sep": 47}
SENTENCE_ENDS = (7, 20, 21, 22)  # ids whose text ends a sentence
SIZE = 48  # as many values as a record keeps of an output
Arrays = dict[str, np.ndarray]


class Text(NamedTuple):
    """A text of seq_len + 1 tokens. given: True for tokens that are no targets. documents: their numbers."""

    tokens: np.ndarray
    given: np.ndarray | None = None
    documents: np.ndarray | None = None

    def sample(self) -> dict[str, Any]:
        return {
            "tokens": self.tokens,
            **({"given": self.given} if self.given is not None else {}),
            "documents": self.documents,
        }


Observer = Callable[[Objective, str, Text, Mapping[str, int]], Arrays]


def vocabulary(setting: Setting, size: int = SIZE) -> Vocabulary:
    """A vocabulary with the special tokens that the objective needs, and those that texts have."""
    entry = registry.declared("objective", setting.name, options_of(setting))
    names = [name for name in entry.special if name not in SPECIAL]
    more = {name: size + len(names) - 1 - i for i, name in enumerate(names)}
    known = {name: at for name, at in SPECIAL.items() if name != "mask" or "mask" in entry.special}
    return Vocabulary(size + len(more), {**known, **more}, lambda i: " a." if i in SENTENCE_ENDS else " a")


def made(setting: Setting, size: int, seq_len: int) -> Objective:
    """The objective at a setting."""
    factory = registry.load("objective", setting.name, options_of(setting))
    objective: Objective = factory(vocabulary(setting, size), seq_len)
    return objective


def texts(objective: Objective) -> dict[str, Text]:
    """Texts by name. Without sentinels `plain` has special tokens among others, of `answered` the first five are given, and
    `only_special` has nothing else."""
    restores = attributes.get(objective, "objective", "restores")
    if restores in ("noised", "gaps", "blanks"):
        # Short, so that a twin can list all that may come of it. The last two of a window are in no sample.
        chosen = {"noised": sources.LEFT, "gaps": sources.REPEATED, "blanks": sources.SPLIT}[restores]
        return {"plain": Text(np.array([*chosen, 43, 44])), "one_sentence": Text(np.array([23, 24, 25, 43, 44]))}
    if restores == "spans":
        ordinary = np.setdiff1d(np.arange(SIZE), list(SPECIAL.values()))
        return {"plain": Text(np.random.default_rng(0).permutation(ordinary)[:41])}
    plain = np.array([13, 2, 3, 4, 5, 1, 6, 7, 8, 9, 47, 46, 45, 10, 0, 14, 11])
    given, documents = np.arange(17) < 5, np.arange(17) // 6
    return {
        "plain": Text(plain, None, documents),
        "answered": Text(plain[::-1].copy(), given, documents),
        "only_special": Text(np.tile([0, 1, 13, 47], 5)[:17]),
    }


def draws(objective: Objective, text: Text, n: int = N_DRAWS) -> list[dict[str, np.ndarray]]:
    """n samples that are prepared of a text."""
    rng = np.random.default_rng(0)
    return [objective.prepare(text.sample(), rng) for _ in range(n)]


def masked(objective: Objective, name: str, text: Text, special: Mapping[str, int]) -> Arrays:
    """Outputs of denoising.

    `targets/` how often each place is one; `number/` how often a sample has so many; `read/` how often each id, other than the
    label, is read at a target, and `kept/` the label, a sample; `alike/` how many pairs of targets are read as one
    ordinary id that is the label of neither, a sample; `documents/` (-1: it has none).
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


def averaged(of_sample: Callable[[Arrays, np.ndarray, Mapping[str, int]], Arrays]) -> Observer:
    """Outputs that are means over the draws of what is counted of each sample, its tokens and the special ones."""

    def observed(objective: Objective, name: str, text: Text, special: Mapping[str, int]) -> Arrays:
        found = [of_sample(f, text.tokens, special) for f in draws(objective, text)]
        return {f"{key}/{name}": np.mean([f[key] for f in found], axis=0) for key in found[0]}

    return observed


OBSERVED: dict[str | None, Observer] = {
    "masked": masked,
    "spans": spans,
    "next": exact,
    "noised": averaged(sources.noised),
    "gaps": averaged(sources.gaps),
    "blanks": averaged(sources.blanks),
}
