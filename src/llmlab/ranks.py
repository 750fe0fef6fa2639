"""The processes of a run: which of them is the first, that writes files and speaks."""

from __future__ import annotations

import os


def is_first() -> bool:
    """True if this process writes files: the one that the user started, not a rank that Lightning did."""
    return int(os.environ.get("LOCAL_RANK", 0)) == 0 and int(os.environ.get("NODE_RANK", 0)) == 0


def say(line: str) -> None:
    if is_first():
        print(line, flush=True)
