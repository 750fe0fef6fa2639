"""One line that says how far a run is: redrawn in a terminal, elsewhere printed now and then."""

from __future__ import annotations

import shutil
import sys
import time
from typing import TextIO

TERMINAL_SECONDS, PLAIN_SECONDS = 0.5, 10.0


class Progress:
    """`update` costs one look at the clock unless it is time to print."""

    def __init__(self, steps: int, *, stream: TextIO | None = None, enabled: bool = True):
        self.steps, self.enabled = steps, enabled
        self.stream = stream or sys.stdout
        self.terminal = self.stream.isatty()
        self.every = TERMINAL_SECONDS if self.terminal else PLAIN_SECONDS
        self._next = 0.0
        self._open = False  # an unfinished line stands in the terminal

    def update(
        self, step: int, loss: float | None, rate: float | None, tokens_per_step: int, *, force: bool = False
    ) -> None:
        if not self.enabled:
            return
        now = time.monotonic()
        if now < self._next and not force:
            return
        self._next = now + self.every
        fields = [f"step {step:,}/{self.steps:,}"]
        if loss is not None:
            fields.append(f"loss {loss:.4f}")
        if rate:
            left = (self.steps - step) * tokens_per_step / rate
            fields += [f"{rate:,.0f} tokens/s", f"{duration(left)} left"]
        if self.terminal:
            width = 24
            done = round(width * step / max(self.steps, 1))
            line = f"[{'=' * done}{' ' * (width - done)}] {'  '.join(fields)}"
            self.stream.write("\r\x1b[2K" + line[: shutil.get_terminal_size().columns - 1])
            self._open = True
        else:
            self.stream.write("  ".join(fields) + "\n")
        self.stream.flush()

    def say(self, text: str) -> None:
        """A line of its own, above the progress."""
        if self.enabled:
            self.close()
            self.stream.write(text + "\n")
            self.stream.flush()
            self._next = 0.0 if self.terminal else self._next

    def close(self) -> None:
        if self._open:
            self.stream.write("\n")
            self.stream.flush()
            self._open = False


def duration(seconds: float) -> str:
    """ "42 s", "3:07" or "2:05:00"."""
    seconds = int(seconds + 0.5)
    if seconds < 60:
        return f"{seconds} s"
    minutes, s = divmod(seconds, 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}" if hours else f"{m}:{s:02d}"
