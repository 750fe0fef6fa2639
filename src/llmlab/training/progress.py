"""One line that says how far a run is: redrawn in a terminal, elsewhere printed now and then."""

from __future__ import annotations

import shutil
import sys
import time
from typing import TextIO

from llmlab.training.intervals import FORWARD_SHARE, Intervals

TERMINAL_SECONDS, PLAIN_SECONDS = 0.5, 10.0


class Progress:
    """`update` costs one look at the clock unless it is time to print."""

    def __init__(self, steps: int, *, stream: TextIO | None = None, enabled: bool = True):
        self.steps, self.enabled = steps, enabled
        # Looked up here and not as a default: tests and notebooks replace sys.stdout.
        self.stream = stream or sys.stdout
        self.terminal = self.stream.isatty()
        self.every = TERMINAL_SECONDS if self.terminal else PLAIN_SECONDS
        self._next = 0.0
        self._open = False  # an unfinished line stands in the terminal

    def update(
        self,
        step: int,
        loss: float | None,
        rate: float | None,
        left: float | None,
        *,
        reward: float | None = None,
        force: bool = False,
    ) -> None:
        """rate: tokens a second. left: seconds. reward: of answers that the model drew, whose loss says little."""
        if not self.enabled:
            return
        # Not time.time(), which may be set back, and the line would then stand still.
        now = time.monotonic()
        if now < self._next and not force:
            return
        self._next = now + self.every
        fields = [f"step {step:,}/{self.steps:,}"]
        if loss is not None:
            fields.append(f"loss {loss:.4f}")
        if reward is not None:
            fields.append(f"reward {reward:.4f}")
        if rate:
            fields.append(f"{rate:,.0f} tokens/s")
        if left is not None:
            fields.append(f"{duration(left)} left")
        if self.terminal:
            width = 24
            done = round(width * step / max(self.steps, 1))
            line = f"[{'=' * done}{' ' * (width - done)}] {'  '.join(fields)}"
            # Back to the first column and erase the line (ECMA-48); a longer one would wrap, and half of it stay.
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


class Remaining:
    """Seconds that a run has still to go: training, validations and checkpoints, each as long as those before."""

    def __init__(self, steps: int, tokens_per_step: int, intervals: Intervals):
        self.steps, self.tokens_per_step, self.intervals = steps, tokens_per_step, intervals
        self._validation, self._save = Mean(), Mean()

    def validated(self, seconds: float) -> None:
        self._validation.add(seconds)

    def saved(self, seconds: float) -> None:
        self._save.add(seconds)

    def seconds(self, step: int, rate: float | None) -> float | None:
        """rate: tokens a second of training; None before it is known."""
        if not rate:
            return None
        validation = self._validation.value
        if validation is None:  # before the first
            validation = self.intervals.validation_tokens * FORWARD_SHARE / rate
        return (
            (self.steps - step) * self.tokens_per_step / rate
            + self.intervals.validations_left(step, self.steps) * validation
            + self.intervals.saves_left(step, self.steps) * (self._save.value or 0.0)
        )


class Mean:
    """The mean of what was added; None before anything was."""

    def __init__(self) -> None:
        self._sum, self._n = 0.0, 0

    def add(self, x: float) -> None:
        self._sum, self._n = self._sum + x, self._n + 1

    @property
    def value(self) -> float | None:
        return self._sum / self._n if self._n else None


def duration(seconds: float) -> str:
    """ "42 s", "3:07" or "2:05:00"."""
    # round() goes to the even number: 2.5 to 2.
    seconds = int(seconds + 0.5)
    if seconds < 60:
        return f"{seconds} s"
    minutes, s = divmod(seconds, 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}" if hours else f"{m}:{s:02d}"
