"""What a model is refused with, told from what it crashes with."""

from __future__ import annotations

import linecache
import traceback
from types import FrameType

from llmlab.errors import UserError


def refusal(e: BaseException) -> str | None:
    """The reason, in one line, if `e` is what a user is told: a UserError, or a ValueError that a part or the framework
    raises itself. None for all else, which is a crash."""
    if isinstance(e, UserError) or (isinstance(e, ValueError) and _raised_on_purpose(e)):
        return "; ".join(str(e).split("\n"))
    return None


def _raised_on_purpose(e: BaseException) -> bool:
    """Not by torch, numpy or Python's own, whose words are no reason to a user."""
    frame, line = _innermost(e)
    if frame is None or _module(frame).partition(".")[0] in ("torch", "numpy"):
        return False
    return linecache.getline(frame.f_code.co_filename, line).strip().startswith("raise")


def crash(e: BaseException) -> str:
    """One line for what nobody meant to happen, and where."""
    frame, line = _innermost(e)
    where = f" ({_module(frame)}:{line})" if frame is not None else ""
    return f"crashed: {type(e).__name__}: {(str(e).splitlines() or [''])[0][:200]}{where}"


def _innermost(e: BaseException) -> tuple[FrameType | None, int]:
    steps = list(traceback.walk_tb(e.__traceback__))
    return steps[-1] if steps else (None, 0)


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))
