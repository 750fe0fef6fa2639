"""What a model is refused with, told from what it crashes with."""

from __future__ import annotations

import linecache
import traceback
from types import FrameType
from typing import TYPE_CHECKING, Any

from llmlab import registry
from llmlab.errors import UserError

if TYPE_CHECKING:
    from llmlab.config.spec import PartSpec

CHECK_DEVICE = ("cpu", "32-true")  # what checks are run on


def refusal(e: BaseException) -> str | None:
    """The reason, in one line, if `e` is what a user is told: a UserError, or a ValueError that a part or the framework
    raises itself. None for all else, which is a crash."""
    if isinstance(e, UserError) or (isinstance(e, ValueError) and _raised_on_purpose(e)):
        return "; ".join(str(e).split("\n"))
    return None


def reason(e: BaseException) -> str:
    """That of a refusal. A crash goes on its way."""
    if (why := refusal(e)) is None:
        raise e
    return why


def untrainable(part: PartSpec) -> str | None:
    """Why a kernel can't train where checks are run, or None."""
    try:
        kernel: Any = part.factory()()
        if hasattr(kernel, "check_training"):
            kernel.check_training(*CHECK_DEVICE)
    except ValueError as e:
        return reason(e)
    return None


def _raised_on_purpose(e: BaseException) -> bool:
    """By the framework, or the package of a part: the words of others, as of torch or Python, are no reason to a user."""
    frame, line = _innermost_frame(e)
    own = {"llmlab", *(entry.module.partition(".")[0] for entry in registry.index().values())}
    if frame is None or _module_name(frame).partition(".")[0] not in own:
        return False
    return linecache.getline(frame.f_code.co_filename, line).strip().startswith("raise")


def crash(e: BaseException) -> str:
    """One line for what nobody meant to happen, and where."""
    frame, line = _innermost_frame(e)
    where = f" ({_module_name(frame)}:{line})" if frame is not None else ""
    return f"crashed: {type(e).__name__}: {(str(e).splitlines() or [''])[0][:200]}{where}"


def _innermost_frame(e: BaseException) -> tuple[FrameType | None, int]:
    steps = list(traceback.walk_tb(e.__traceback__))
    return steps[-1] if steps else (None, 0)


def _module_name(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))
