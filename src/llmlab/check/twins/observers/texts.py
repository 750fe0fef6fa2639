"""Texts that an objective is given to prepare, and the vocabulary that they are of."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from llmlab import attributes, registry
from llmlab.check.twins.observers.infilling import Text
from llmlab.check.twins.observers.observed import options_of
from llmlab.check.twins.settings import Setting
from llmlab.slots import Objective, Vocabulary, Words

N_DRAWS = 1000
# Special tokens stand at both ends of the vocabulary and between ordinary ones.
SPECIAL = {"pad": 0, "eos": 1, "cls": 13, "mask": 14, "sep": 47}
SENTENCE_ENDS = (7, 20, 21, 22)  # ids whose text ends a sentence
SIZE = 48  # as many values as a record keeps of an output
ORDINARY = ~np.isin(np.arange(SIZE), list(SPECIAL.values()))
# Of the texts below 2 3 4, 6 7 and 46 45 are words: 8 goes on with a word, but 7 ends one; 9 begins one, though 8 may go on.
WORDS = Words(ORDINARY & np.isin(np.arange(SIZE), [3, 4, 7, 8, 45]), ORDINARY & (np.arange(SIZE) != 7))
Arrays = dict[str, np.ndarray]


def vocabulary(setting: Setting, size: int = SIZE) -> Vocabulary:
    """A vocabulary with the special tokens that the objective needs, and those that texts have."""
    entry = registry.declared(setting.slot, setting.name, options_of(setting))
    names = [name for name in entry.special if name not in SPECIAL]
    more = {name: size + len(names) - 1 - i for i, name in enumerate(names)}
    known = {name: at for name, at in SPECIAL.items() if name != "mask" or "mask" in entry.special}
    grown = [np.append(known_of, np.zeros(len(more), bool)) for known_of in WORDS]
    total = size + len(more)
    return Vocabulary(
        total,
        {**known, **more},
        read_words=lambda: Words(*grown),
        counts=lambda: counts(total),
        pairs=lambda window: lambda a, b: near(a, b) * np.float32(window),
        text=text_of,
    )


def counts(size: int) -> np.ndarray:
    """(size,) how often each id is in the training text."""
    return 1 + np.arange(size) * 7 % 11


def near(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """How often two ids are near each other in the training text where a window is one token wide, float32; never, some."""
    return ((a + b) * 7 % 13 * 2.5).astype(np.float32)


def text_of(i: int) -> str:
    """The text of an id."""
    return " a." if i in SENTENCE_ENDS else " a"


def made(setting: Setting, size: int, seq_len: int) -> Objective:
    """The objective at a setting."""
    factory = registry.load(setting.slot, setting.name, options_of(setting))
    objective: Objective = factory(vocabulary(setting, size), seq_len)
    return objective


PLAIN = np.array([13, 2, 3, 4, 5, 1, 6, 7, 8, 9, 47, 46, 45, 10, 0, 14, 11])
GIVEN, DOCUMENTS = np.arange(17) < 5, np.arange(17) // 6
ONLY_SPECIAL = np.tile([0, 1, 13, 47], 5)[:17]
LONG = np.random.default_rng(0).permutation(np.flatnonzero(ORDINARY))[:41]


def usual(objective: Objective) -> dict[str, Text]:
    """`plain` has special tokens among others, of `answered` the first five are given, `only_special` has nothing else."""
    return {
        "plain": Text(PLAIN, None, DOCUMENTS),
        "answered": Text(PLAIN[::-1].copy(), GIVEN, DOCUMENTS),
        "only_special": Text(ONLY_SPECIAL),
    }


def in_frames(objective: Objective) -> dict[str, Text]:
    """The same, of which one has no documents, each with another text where the objective has one drawn."""
    other = np.arange(20, 37) if attributes.get(objective, "objective", "other") else None
    return {
        "plain": Text(PLAIN, other=other),
        "answered": Text(PLAIN[::-1].copy(), GIVEN, DOCUMENTS, other),
        "only_special": Text(ONLY_SPECIAL),
    }


def with_long(objective: Objective) -> dict[str, Text]:
    """And `long`, which has no special tokens and no documents."""
    return {**usual(objective), "long": Text(LONG)}


def only_long(objective: Objective) -> dict[str, Text]:
    return {"plain": Text(LONG)}


def short(*tokens: int) -> Callable[[Objective], dict[str, Text]]:
    """Texts so short that a twin can list all that may come of them. The last two of a window are in no sample."""
    found = {"plain": Text(np.array([*tokens, 43, 44])), "one_sentence": Text(np.array([23, 24, 25, 43, 44]))}
    return lambda objective: found


def draws(objective: Objective, text: Text, n: int = N_DRAWS) -> list[dict[str, np.ndarray]]:
    """n samples that are prepared of a text."""
    rng = np.random.default_rng(0)
    return [objective.prepare(text.sample(), rng) for _ in range(n)]
