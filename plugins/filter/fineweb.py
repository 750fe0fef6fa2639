"""FineWeb's own filter."""

from __future__ import annotations

from collections.abc import Sequence

from llmlab.registry import register
from llmlab_plugins.filter._lines import checked_shares, ends_a_sentence, lines, repeated


@register("filter", "fineweb")
class FineWeb:
    """FineWeb's three filters beside those of Gopher and C4 (Penedo et al. 2024, section 3.6, arXiv:2406.17557).

    Lines are taken without the white space around them, and blank ones are not counted. A line is repeated where an equal one
    is before it, capitals and small letters being the same.

    punctuation: a document is dropped if no larger share of its lines ends in punctuation
    repeated: a document is dropped if this share of its characters, or more, is in repeated lines
    short: a document is dropped if this share of its lines, or more, is short
    short_line: a line of fewer characters is short
    """

    telling = (
        {"punctuation": 0.4, "short": 1.0},
        {"repeated": 0.4, "punctuation": 0.0, "short_line": 0},
        {"short": 0.3, "punctuation": 0.0},
        {"short_line": 12, "punctuation": 0.0},
    )

    def __init__(self, *, punctuation: float = 0.12, repeated: float = 0.1, short: float = 0.67, short_line: int = 30):
        checked_shares(punctuation=punctuation, repeated=repeated, short=short)
        if short_line < 0:
            raise ValueError(f"short_line must be at least 0 characters, but is {short_line}")
        self.punctuation, self.repeated, self.short, self.short_line = punctuation, repeated, short, short_line

    def measure(self, texts: Sequence[str]) -> list[str | None]:
        return [self._wrong(lines(text)) for text in texts]

    def reason(self, value: str | None) -> str | None:
        return value

    def _wrong(self, found: Sequence[str]) -> str | None:
        n = len(found)
        if sum(map(ends_a_sentence, found)) <= self.punctuation * n:
            return f"punctuation at the end of {self.punctuation:.0%} of lines or fewer"
        if repeated(found)[1] >= self.repeated * sum(map(len, found)):
            return f"{self.repeated:.0%} or more of characters in repeated lines"
        if sum(len(line) < self.short_line for line in found) >= self.short * n:
            return f"{self.short:.0%} or more of lines shorter than {self.short_line} characters"
        return None
