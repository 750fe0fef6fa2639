"""Tells a refusal, an error with a message for the user, from a crash."""

from __future__ import annotations

import linecache
import traceback
from types import FrameType
from typing import TYPE_CHECKING

from llmlab import registry
from llmlab.errors import UserError

if TYPE_CHECKING:
    from llmlab.config.spec import PartSpec
    from llmlab.slots import Kernel

CHECK_DEVICE = ("cpu", "32-true")  # device and precision of all checks, as Kernel.check_training takes them


def refusal(e: BaseException) -> str | None:
    """The reason in one line if `e` is meant for the user: a UserError, or a ValueError raised by a part or the framework
    itself. None for anything else, which is a crash."""
    if isinstance(e, UserError) or (isinstance(e, ValueError) and _raised_on_purpose(e)):
        return "; ".join(str(e).split("\n"))
    return None


def reason(e: BaseException) -> str:
    """The reason of a refusal; a crash is raised again."""
    if (why := refusal(e)) is None:
        raise e
    return why


def untrainable(part: PartSpec) -> str | None:
    """Why a kernel can't train where checks are run, or None."""
    try:
        kernel: Kernel = part.factory()()
        check_training = getattr(kernel, "check_training", None)  # optional, so not in the Protocol
        if check_training is not None:
            check_training(*CHECK_DEVICE)
    except ValueError as e:
        return reason(e)
    return None


def _raised_on_purpose(e: BaseException) -> bool:
    """True if a `raise` statement of the framework or of a part's package raised `e`.

    A ValueError from inside torch or Python (int("x"), a failed unpacking) is a bug, though of the same type.
    """
    frame, line = _innermost_frame(e)
    packages = {"llmlab", *(entry.module.partition(".")[0] for entry in registry.index().values())}
    if frame is None or _module_name(frame).partition(".")[0] not in packages:
        return False
    # The innermost frame is also ours where a built-in raises, for C functions have no frame: the source line decides.
    return linecache.getline(frame.f_code.co_filename, line).strip().startswith("raise")


def crash(e: BaseException) -> str:
    """A line for an unexpected exception: its type, its first line, and where it was raised."""
    frame, line = _innermost_frame(e)
    where = f" ({_module_name(frame)}:{line})" if frame is not None else ""
    return f"crashed: {type(e).__name__}: {(str(e).splitlines() or [''])[0][:200]}{where}"


def _innermost_frame(e: BaseException) -> tuple[FrameType | None, int]:
    steps = list(traceback.walk_tb(e.__traceback__))
    return steps[-1] if steps else (None, 0)


def _module_name(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))
