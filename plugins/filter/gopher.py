"""Gopher's filter: rules of quality and of repetition."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from llmlab.registry import register
from llmlab_plugins.filter._lines import checked_shares, lines, paragraphs, repeated

STOP_WORDS = frozenset(("the", "be", "to", "of", "and", "that", "have", "with"))
BULLETS = tuple("\u2022\u2023\u25b6\u25c0\u25e6\u25a0\u25a1\u25aa\u25ab\u25cf\u25cb\u2013")
DASHES = ("- ", "* ", "-\t", "*\t")  # with a space, since a line may begin with a negative number or a word in bold
ELLIPSES = ("...", "\u2026")
EDGES = ".,;:!?\"'()[]\u201c\u201d\u2018\u2019"
TOP, REPEATED = (2, 3, 4), (5, 6, 7, 8, 9, 10)  # n of the n-grams of table A1


@register("filter", "gopher")
class Gopher:
    """Gopher's rules of quality and of repetition (Rae et al. 2021, appendix A.1.1 and table A1, arXiv:2112.11446).

    Words are separated by white space, so the rules are for languages that write spaces, and those about stop words for
    English. Lines and paragraphs are taken without the white space around them, blank lines are not counted, and case and the
    kind of line ends change no verdict. Shares are those of the document, of its characters without white space for n-grams;
    a line, paragraph or n-gram is repeated where an equal one is before it, and a character in several repeated n-grams
    counts once. A share of 1 as a limit switches its rule off.

    rules: which of them apply
    least_words: a document of fewer words is dropped
    most_words: a document of more words is dropped
    least_length: characters of a word on average; below this a document is dropped
    most_length: above this it is dropped
    symbols: most "#" for each word, and most "..." for each word
    bullets: most lines that begin with a bullet point
    ellipses: most lines that end in an ellipsis
    letters: least words that have a letter
    stop_words: how many different ones of the, be, to, of, and, that, have, with there must be
    repeated_lines: most lines that repeat an earlier one
    repeated_paragraphs: most paragraphs that repeat an earlier one
    line_characters: most characters in repeated lines
    paragraph_characters: most characters in repeated paragraphs
    top_grams: most characters in the most frequent n-gram, where it occurs twice or more, for n = 2, 3 and 4
    repeated_grams: most characters in repeated n-grams, for n = 5 to 10
    """

    small = {"least_words": 0, "least_length": 0.0, "letters": 0.0, "stop_words": 0}
    telling = (
        {"least_words": 50, "least_length": 3.0, "letters": 0.8, "stop_words": 2},
        {"least_words": 4},
        {"most_words": 9},
        {"least_length": 3.5},
        {"most_length": 6.0},
        {"symbols": 0.4},
        {"bullets": 0.3, "symbols": 1.0},
        {"ellipses": 0.6, "symbols": 1.0},
        {"letters": 0.5, "symbols": 1.0},
        {"stop_words": 1},
        {"repeated_lines": 0.6, "line_characters": 1.0},
        {"repeated_paragraphs": 0.6, "paragraph_characters": 1.0, "line_characters": 1.0, "repeated_lines": 1.0},
        {"line_characters": 0.7, "repeated_lines": 1.0, "paragraph_characters": 1.0, "repeated_paragraphs": 1.0},
        {"paragraph_characters": 0.7, "repeated_paragraphs": 1.0, "line_characters": 1.0, "repeated_lines": 1.0},
        {"top_grams": (0.5, 0.3, 0.1), "repeated_grams": (1.0, 1.0, 1.0, 1.0, 1.0, 1.0)},
        {"top_grams": (1.0, 1.0, 1.0), "repeated_grams": (0.6, 0.5, 0.4, 0.3, 0.2, 0.1)},
    )

    def __init__(
        self,
        *,
        rules: Literal["all", "quality", "repetition"] = "all",
        least_words: int = 50,
        most_words: int = 100_000,
        least_length: float = 3.0,
        most_length: float = 10.0,
        symbols: float = 0.1,
        bullets: float = 0.9,
        ellipses: float = 0.3,
        letters: float = 0.8,
        stop_words: int = 2,
        repeated_lines: float = 0.30,
        repeated_paragraphs: float = 0.30,
        line_characters: float = 0.20,
        paragraph_characters: float = 0.20,
        top_grams: tuple[float, ...] = (0.20, 0.18, 0.16),
        repeated_grams: tuple[float, ...] = (0.15, 0.14, 0.13, 0.12, 0.11, 0.10),
    ):
        if least_words > most_words:
            raise ValueError(f"least_words={least_words} is more than most_words={most_words}: none would be kept")
        if least_length > most_length:
            raise ValueError(
                f"least_length={least_length:g} is more than most_length={most_length:g}: none would be kept"
            )
        if not 0 <= stop_words <= len(STOP_WORDS):
            raise ValueError(f"stop_words must be 0 to {len(STOP_WORDS)}, but is {stop_words}")
        checked_shares(bullets=bullets, ellipses=ellipses, letters=letters)
        checked_shares(repeated_lines=repeated_lines, line_characters=line_characters)
        checked_shares(repeated_paragraphs=repeated_paragraphs, paragraph_characters=paragraph_characters)
        for name, limits, sizes in (("top_grams", top_grams, TOP), ("repeated_grams", repeated_grams, REPEATED)):
            if len(limits) != len(sizes):
                raise ValueError(
                    f"{name} must have {len(sizes)} shares, for n = {sizes[0]} to {sizes[-1]}, but has {len(limits)}"
                )
            checked_shares(**{f"{name}[{i}]": share for i, share in enumerate(limits)})
        self.quality, self.repetition = rules != "repetition", rules != "quality"
        self.least_words, self.most_words = least_words, most_words
        self.least_length, self.most_length = least_length, most_length
        self.symbols, self.bullets, self.ellipses, self.letters = symbols, bullets, ellipses, letters
        self.stop_words = stop_words
        self.repeated_lines, self.line_characters = repeated_lines, line_characters
        self.repeated_paragraphs, self.paragraph_characters = repeated_paragraphs, paragraph_characters
        self.top_grams, self.repeated_grams = tuple(top_grams), tuple(repeated_grams)

    def measure(self, texts: Sequence[str]) -> list[str | None]:
        return [self._wrong(text, text.split()) for text in texts]

    def reason(self, value: str | None) -> str | None:
        return value

    def _wrong(self, text: str, words: list[str]) -> str | None:
        if self.quality and (why := self._poor(text, words)):
            return why
        if self.repetition and words:
            return self._repeats(text) or self._repeats_grams(words)
        return None

    def _poor(self, text: str, words: list[str]) -> str | None:
        n = len(words)
        if n < self.least_words:
            return f"fewer than {self.least_words:,} words"
        if n > self.most_words:
            return f"more than {self.most_words:,} words"
        if n == 0:
            return None
        length = sum(map(len, words)) / n
        if length < self.least_length:
            return f"words shorter than {self.least_length:g} characters on average"
        if length > self.most_length:
            return f"words longer than {self.most_length:g} characters on average"
        if text.count("#") > self.symbols * n:
            return f"more than {self.symbols:g} hashes a word"
        if sum(map(text.count, ELLIPSES)) > self.symbols * n:
            return f"more than {self.symbols:g} ellipses a word"
        found = lines(text)
        if sum(_is_bullet(line) for line in found) > self.bullets * len(found):
            return f"more than {self.bullets:.0%} of lines with a bullet point"
        if sum(line.endswith(ELLIPSES) for line in found) > self.ellipses * len(found):
            return f"more than {self.ellipses:.0%} of lines with an ellipsis at the end"
        if sum(word.isalpha() or any(map(str.isalpha, word)) for word in words) < self.letters * n:
            return f"letters in fewer than {self.letters:.0%} of words"
        if self.stop_words and len(STOP_WORDS.intersection(w.strip(EDGES).lower() for w in words)) < self.stop_words:
            return f"fewer than {self.stop_words} of the stop words"
        return None

    def _repeats(self, text: str) -> str | None:
        for what, items, most, most_characters in (
            ("lines", lines(text), self.repeated_lines, self.line_characters),
            ("paragraphs", paragraphs(text), self.repeated_paragraphs, self.paragraph_characters),
        ):
            number, characters = repeated(items)
            if number > most * len(items):
                return f"more than {most:.0%} of {what} repeated"
            if characters > most_characters * sum(map(len, items)):
                return f"more than {most_characters:.0%} of characters in repeated {what}"
        return None

    def _repeats_grams(self, words: Sequence[str]) -> str | None:
        numbers: dict[str, int] = {}
        ids = np.array([numbers.setdefault(word.casefold(), len(numbers)) for word in words], dtype=np.int64)
        sizes = np.array([len(word) for word in words], dtype=np.int64)
        whole = int(sizes.sum())
        limits = dict(zip((*TOP, *REPEATED), (*self.top_grams, *self.repeated_grams), strict=True))
        # Where an n-gram begins that occurs twice, and its number; a longer one can only be where both of its parts are such.
        often, gram = np.bincount(ids)[ids] > 1, ids.copy()
        for n, limit in limits.items():
            at = np.flatnonzero(often[:-1] & often[1:])
            at = at[at + n <= len(words)]
            keys = gram[at] * len(numbers) + ids[at + n - 1]
            _, first, which, counts = np.unique(keys, return_index=True, return_inverse=True, return_counts=True)
            often[:] = False
            often[at] = counts[which] > 1
            if not often.any():
                return None
            gram[at] = which
            if n in TOP:
                most = np.flatnonzero(counts == counts.max())
                lengths = sizes[at[first[most]][:, None] + np.arange(n)].sum(1)
                # Of equally frequent ones the longest, and of these the first.
                chosen = min(zip(-lengths, first[most], most, strict=True))[2]
                starts, what = at[which == chosen], f"the most frequent {n}-gram"
            else:
                again = often[at]
                again[first] = False
                starts, what = at[again], f"repeated {n}-grams"
            if _covered(starts, n, sizes) > limit * whole:
                return f"more than {limit:.0%} of characters in {what}"
        return None


def _is_bullet(line: str) -> bool:
    return line.startswith(BULLETS) or line.startswith(DASHES) or line in ("-", "*")


def _covered(starts: np.ndarray, n: int, sizes: np.ndarray) -> int:
    """Characters of the words that lie in n-grams which begin at `starts`, each counted once."""
    edges = np.zeros(len(sizes) + 1, dtype=np.int64)
    np.add.at(edges, starts, 1)
    np.add.at(edges, starts + n, -1)
    return int(sizes[np.cumsum(edges)[:-1] > 0].sum())
