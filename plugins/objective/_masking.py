"""Masking that objectives of encoders share: which tokens may be targets, and what is shown in their place."""

from __future__ import annotations

from typing import Any

import numpy as np

from llmlab.slots import Vocabulary, Words

Array = np.ndarray


class Masking:
    """BERT's 80, 10 and 10 % (Devlin et al. 2018, arXiv:1810.04805, section 3.1): a target is shown as the mask token with
    probability `masked`, as a random ordinary token with `random`, else as it is."""

    def __init__(self, vocabulary: Vocabulary, rate: float, masked: float, random: float):
        if not 0 < rate <= 1 or masked < 0 or random < 0 or masked + random > 1:
            raise ValueError(
                f"objective.rate must be in (0, 1] and objective.masked + objective.random at most 1, "
                f"but they are {rate} and {masked} + {random}"
            )
        self.masked, self.random = masked, random
        self.mask_id = vocabulary.special["mask"]
        self.special_ids = np.array(sorted(vocabulary.special.values()), dtype=np.int64)
        self.ordinary = np.setdiff1d(np.arange(vocabulary.size), self.special_ids)
        # A random token may be the one that was there.
        self.shown = max(0.0, 1 - masked - random + random / len(self.ordinary))

    def may(self, tokens: Array, given: Array | None = None) -> Array:
        """True for tokens that may be targets: ordinary ones that are not given."""
        may = ~np.isin(tokens, self.special_ids)
        return may if given is None else may & ~given

    def corrupt(self, tokens: Array, chosen: Array, fate: Array, rng: np.random.Generator) -> Array:
        """The tokens as a model is shown them. fate: in [0, 1) of each, which decides what a chosen one is shown as."""
        # BERT's script draws from the whole vocabulary, [CLS] and [MASK] included, which text never has inside.
        # Drawn for every token, so that what is drawn after it does not depend on how many were chosen.
        replacement = self.ordinary[rng.integers(len(self.ordinary), size=len(tokens))]
        ids = np.where(chosen & (fate < self.masked), self.mask_id, tokens)
        return np.where(chosen & (fate >= self.masked) & (fate < self.masked + self.random), replacement, ids)


class Runs:
    """Runs of n <= `longest` neighbours, n with a probability that goes as 1/n, so that each place is in one with `rate`."""

    def __init__(self, rate: float, longest: int):
        lengths = np.arange(1, longest + 1)
        law = 1 / lengths / (1 / lengths).sum()
        mean = float(law @ lengths)
        self.rate, self.longest, self.law = rate, longest, law.cumsum()[:-1]  # that one is no longer than 1, 2 ...
        # Of what may begin, a run of `mean` places or one place outside, so many are runs where a share `rate` is inside.
        self.begins = rate / (mean * (1 - rate) + rate)
        # What is left of the run that the first place is in: any of its places alike.
        self.rest = (law[::-1].cumsum()[::-1] / mean).cumsum()[:-1]

    def drawn(self, n: int, rng: np.random.Generator) -> Array:
        """(n,) bool: places in runs."""
        # Each token (or word) by itself, as transformers' collator does; BERT's script takes a fixed 15 % of each text.
        if self.longest == 1:
            return rng.random(n) < self.rate
        begins, chance = np.full(n, self.begins), rng.random(n)
        begins[0] = self.rate
        inside = rng.random(n) < begins
        length = np.where(inside, 1 + self.law.searchsorted(chance, "right"), 1)
        if inside[0]:
            length[0] = 1 + self.rest.searchsorted(chance[0], "right")
        return np.repeat(inside, length)[:n]


def known_words(vocabulary: Vocabulary, what: str) -> Words:
    """The words of a vocabulary. ValueError where its tokenizer does not tell them."""
    if (words := vocabulary.words) is None:
        raise ValueError(
            f"{what} needs to know where words begin, which this tokenizer does not tell; choose tokenizer=bpe or char, or a "
            "tokenizer.json of WordPiece, byte-level BPE or SentencePiece"
        )
    return words


def given_of(sample: dict[str, Any], length: int) -> Array | None:
    """True for each of the first tokens of a sample that is no text of its own; None without any."""
    given: Array | None = sample.get("given")
    return None if given is None else given[:length]
