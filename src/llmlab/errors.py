"""Errors that a user can mend, and what was probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """One line that names the key, file or value that is wrong, and the fix. Shown without a traceback."""


def near(word: str, words: Iterable[str]) -> str:
    """ "did you mean ...?" and, where they are few, the valid names."""
    words = sorted({str(w) for w in words})
    word = str(word)
    # A beginning is no close match to difflib where the rest is long: the ratio of "sig" and "sigmoid_grouped" is 0.33.
    begun = [w for w in words if len(word) > 2 and w.startswith(word)][:3]
    close = begun or difflib.get_close_matches(word, words, 3, 0.55)
    hint = [f"did you mean {' or '.join(close)}?"] if close else []
    if words and (not close or len(words) <= 12):
        hint.append(f"valid: {', '.join(words)}")
    return hint[0] + (f" ({hint[1]})" if len(hint) > 1 else "") if hint else "nothing can be named there"
