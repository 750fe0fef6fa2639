"""Ctrl-C: the current optimizer step is finished and saved, then the run ends; a second one ends it at once."""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import Any


class Interrupted(Exception):
    """The run was asked to end, and has ended after `step` (None: in the midst of one, nothing was saved)."""

    def __init__(self, step: int | None, signum: int = signal.SIGINT):
        super().__init__("interrupted")
        self.step, self.signum = step, signum


class Interrupt:
    """Within `with`, SIGINT and SIGTERM only set `asked`; a second SIGINT raises KeyboardInterrupt.

    Not with several ranks: each would stop at a step of its own, so there the first one ends the run at once.
    """

    def __init__(self, world: int):
        self.asked = 0
        self._graceful = world == 1
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        if self._graceful:
            for signum in (signal.SIGINT, signal.SIGTERM):
                self._before[signum] = signal.signal(signum, self._handle)
        return self

    def __exit__(self, *unused: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = signum
        print("\nfinishing this step and saving; press Ctrl-C again to stop at once", file=sys.stderr, flush=True)
