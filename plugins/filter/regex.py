"""A filter by regular expressions of the user."""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from llmlab.registry import register

FLAGS = re.MULTILINE  # ^ and $ match at the beginning and the end of every line


@register("filter", "regex")
class Regex:
    """Drops documents in which a pattern is found, or is not, as C4's "lorem ipsum" (Raffel et al. 2020, arXiv:1910.10683).

    Patterns are those of Python's re; ^ and $ match at the beginning and the end of every line, (?i) in front ignores case. A
    pattern that backtracks without end is an error after some seconds, in the main thread only, since a search in any other
    can't be interrupted.

    drop: a pattern; documents in which it is found are dropped
    keep: a pattern; documents in which it is not found are dropped
    seconds: a pattern that takes longer on one document is an error
    """

    small = {"drop": "[0-9]"}

    def __init__(self, *, drop: str | None = None, keep: str | None = None, seconds: float = 10.0):
        if drop is None and keep is None:
            raise ValueError("give it a pattern, drop=PATTERN or keep=PATTERN")
        if not seconds > 0:
            raise ValueError(f"seconds must be more than 0, but is {seconds}")
        self.drop, self.keep = self._compiled("drop", drop), self._compiled("keep", keep)
        self.seconds = seconds

    def measure(self, texts: Sequence[str]) -> list[str | None]:
        return [self._wrong(text) for text in texts]

    def reason(self, value: str | None) -> str | None:
        return value

    def _compiled(self, option: str, pattern: str | None) -> re.Pattern[str] | None:
        try:
            return None if pattern is None else re.compile(pattern, FLAGS)
        except (re.error, RecursionError, OverflowError) as e:
            raise ValueError(f"{option}={pattern!r} is no regular expression: {e}") from None

    def _wrong(self, text: str) -> str | None:
        with self._limit(text):
            if self.drop is not None and self.drop.search(text):
                return f"with {self.drop.pattern}"
            if self.keep is not None and not self.keep.search(text):
                return f"without {self.keep.pattern}"
        return None

    @contextmanager
    def _limit(self, text: str) -> Iterator[None]:
        # re handles signals while it searches, and Python delivers them to the main thread only.
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def stop(number: int, frame: FrameType | None) -> None:
            raise ValueError(
                f"the pattern takes longer than seconds={self.seconds:g} on the document that begins with {text[:80]!r}; "
                "it may go back and forth without end: write it another way"
            )

        before = signal.signal(signal.SIGALRM, stop)
        signal.setitimer(signal.ITIMER_REAL, self.seconds)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
