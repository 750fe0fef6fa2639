"""Hydra's own completion of choices and keys, without the words that nobody types."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO

# Hydra's completion offers every key of the schema, this one too; a part is chosen by SLOT=NAME.
HIDDEN = "_part_"


def offer(ask: Callable[[], object]) -> None:
    """Print what Hydra prints when it is asked, but for words that can't be typed."""
    with redirect_stdout(StringIO()) as said:
        ask()
    for line in said.getvalue().splitlines():
        print(" ".join(w for w in line.split(" ") if HIDDEN not in w))
