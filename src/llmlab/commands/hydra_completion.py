"""Hydra's own completion of choices and keys, without the words that nobody types."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO

HIDDEN = "_part_"  # Hydra offers it as a key; a part is chosen by SLOT=NAME


def offer(ask: Callable[[], object]) -> None:
    """Print what Hydra prints when it is asked, but for words that can't be typed."""
    with redirect_stdout(StringIO()) as said:
        ask()
    for line in said.getvalue().splitlines():
        print(" ".join(w for w in line.split(" ") if HIDDEN not in w))
