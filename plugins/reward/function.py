"""A reward that is a Python function of the user's."""

from __future__ import annotations

import importlib
import math
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any, ClassVar

from llmlab.errors import UserError, near
from llmlab.registry import register

SHOWN = 60  # characters of an answer that a message quotes


class TooLong(BaseException):
    """The time is up. No Exception, which a function that catches all of them would take for its own."""


@register("reward", "function")
class Function:
    """A Python function of one's own: `def score(answer, record)` gives a number for an answer's text.

    A record has the keys of the data's file; its "prompt" is what the model read, as a chat template wrote it where there is
    one. The function runs in the process that trains: one that
    raises, gives no finite number, or takes too long ends the run with a line that names it.

    path: Python file; null: `name` says where the function is, as package.module.function
    name: of the function
    timeout: seconds that it may take for an answer; it is interrupted only where Python looks for signals, as loops, sleeping
        and regular expressions do
    """

    small: ClassVar[dict[str, str]] = {"name": "operator.eq"}
    telling = ({"name": "operator.ne"},)

    def __init__(self, *, path: str | None = None, name: str = "score", timeout: float = 10.0):
        if path is None and "." not in name:
            raise ValueError("reward.path must be a Python file that has the function: reward.path=FILE.py")
        if not 0 < timeout < math.inf:
            raise ValueError(f"reward.timeout must be more than 0 seconds, but is {timeout}")
        self.timeout, self.needs = timeout, ()
        where, _, self.name = ("", "", name) if path is not None else name.rpartition(".")
        module = _loaded(Path(path)) if path is not None else _imported(where)
        self.path = path or where
        found = getattr(module, self.name, None)
        if not callable(found):
            names = [k for k, v in vars(module).items() if callable(v) and not k.startswith("_")]
            raise UserError(
                f"{self.path} has no function {self.name}; reward.name=NAME names another ({near(self.name, names)})"
            )
        self.function: Callable[[str, Mapping[str, Any]], Any] = found

    def score(self, records: Sequence[Mapping[str, Any]], answers: Sequence[str]) -> list[float]:
        return [self._worth(record, answer) for record, answer in zip(records, answers, strict=True)]

    def _worth(self, record: Mapping[str, Any], answer: str) -> float:
        of = f"of the answer {answer[:SHOWN]!r}{'...' if len(answer) > SHOWN else ''}"
        try:
            with _limit(self.timeout):
                # A copy: what a function writes into a record would be there for the next answer.
                value = self.function(answer, dict(record))
        except TooLong:
            raise UserError(
                f"{self.path}: {self.name} took more than {self.timeout:g} s {of}; reward.timeout=SECONDS gives it more"
            ) from None
        # A function that calls sys.exit() is as wrong as one that raises; Ctrl-C is no fault of its.
        except (Exception, SystemExit) as e:
            raise UserError(f"{self._where(e)}: {self.name} raised {type(e).__name__}: {_line(e)}, {of}") from e
        try:
            worth = float(value)
        except (TypeError, ValueError):
            worth = math.nan
        if not math.isfinite(worth):
            raise UserError(f"{self.path}: {self.name} must give a finite number, but gave {value!r} {of}")
        return worth

    def _where(self, e: Exception | SystemExit) -> str:
        """The file, and the last of its lines that the error went through."""
        file = str(Path(self.path).absolute())
        lines = [f.lineno for f in traceback.extract_tb(e.__traceback__) if f.filename == file]
        return f"{self.path}:{lines[-1]}" if lines else str(self.path)


def _line(e: Exception | SystemExit) -> str:
    return (str(e).splitlines() or [""])[0]


def _imported(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except Exception as e:
        raise UserError(f"reward.name: the module {name} can't be imported: {type(e).__name__}: {_line(e)}") from e


def _loaded(path: Path) -> ModuleType:
    """The file as a module. UserError in a line for one that is not there or can't be run."""
    if not path.is_file():
        raise UserError(f"reward.path={path}: there is no such file")
    name = f"llmlab_reward_{path.stem}"
    module = ModuleType(name)
    module.__file__ = str(path.absolute())
    sys.modules[name] = module  # dataclasses and pickle look a class's module up
    try:
        exec(compile(path.read_bytes(), module.__file__, "exec"), vars(module))
    except SyntaxError as e:
        raise UserError(f"{path}:{e.lineno}: {e.msg}") from e
    except (Exception, SystemExit) as e:
        lines = [f.lineno for f in traceback.extract_tb(e.__traceback__) if f.filename == module.__file__]
        raise UserError(f"{path}{f':{lines[-1]}' if lines else ''}: {type(e).__name__}: {_line(e)}") from e
    return module


@contextmanager
def _limit(seconds: float) -> Iterator[None]:
    """Raises TooLong in what runs longer. Without limit where there are no signals: in another thread than the main one."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise TooLong

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
