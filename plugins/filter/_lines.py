"""Lines and paragraphs of a text, and how many of them repeat an earlier one."""

from __future__ import annotations

from collections.abc import Sequence

# What ends a sentence, in scripts with such a mark; quotes and brackets may follow it.
TERMINAL = frozenset(
    ".!?\u2026\u203d\u3002\uff01\uff1f\uff0e\uff61\u0964\u0965\u061f\u06d4\u0589\u1362\u1367\u17d4\u17d5\u104b"
)
CLOSING = "\"'\u201d\u2019\u00bb)]}\u300d\u300f\uff09*_"


def lines(text: str) -> list[str]:
    """Lines without white space at their ends; blank ones are left out. A line may end in CR, LF or both."""
    return [line for raw in text.splitlines() if (line := raw.strip())]


def paragraphs(text: str) -> list[str]:
    """Stretches of lines between blank ones, each with its lines stripped."""
    found: list[list[str]] = [[]]
    for raw in text.splitlines():
        if line := raw.strip():
            found[-1].append(line)
        elif found[-1]:
            found.append([])
    return ["\n".join(of) for of in found if of]


def repeated(items: Sequence[str]) -> tuple[int, int]:
    """How many items are equal to an earlier one but for case, and how many characters they have."""
    seen: set[str] = set()
    number = characters = 0
    for item in items:
        if (key := item.casefold()) in seen:
            number, characters = number + 1, characters + len(item)
        else:
            seen.add(key)
    return number, characters


def ends_a_sentence(line: str) -> bool:
    """True for a line whose last character, quotes and brackets behind it aside, ends a sentence."""
    rest = line.rstrip(CLOSING)
    return bool(rest) and rest[-1] in TERMINAL


def checked_shares(**shares: float) -> None:
    """ValueError for a share that is not between 0 and 1."""
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise ValueError(f"{name} must be a share between 0 and 1, but is {share}")
