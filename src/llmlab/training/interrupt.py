"""Ctrl-C, SIGTERM, SIGHUP: the optimizer step is finished and saved, then the run ends; a second one ends it at once."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import Any

import torch

from llmlab.ranks import is_first
from llmlab.runs import signals


class Interrupted(Exception):
    """The run was asked to end, and has ended after `step` (None: in the midst of one, nothing was saved)."""

    def __init__(self, step: int | None, signum: int = signal.SIGINT):
        super().__init__("interrupted")
        self.step, self.signum = step, signum


class Interrupt:
    """Within `with`, SIGINT, SIGTERM and SIGHUP only note that the run is to end; a second one raises KeyboardInterrupt.

    With several ranks, of which any may have been told, all end after the same step; before `begin`, while they wait for
    each other to start, the first signal ends the run at once. asked: the signal that came.
    """

    def __init__(self, world: int):
        self.asked = 0
        self._several = world > 1
        self._begun = not self._several
        self._group: Any = None
        self._told: tuple[torch.Tensor, Any] | None = (
            None  # what the ranks had been asked a step ago, and its sum's work
        )
        self._process = os.getpid()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        for signum in signals.handled_signals():
            self._before[signum] = signal.signal(signum, self._handle)
        return self

    def __exit__(self, *unused: object) -> None:
        # Lightning's teardown puts back what it found as well, which are the handlers set above.
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def begin(self) -> None:
        """The ranks are there; all must say so."""
        # Over NCCL an answer would wait for the GPU; `new_group` must be called by all ranks.
        if self._several and torch.distributed.get_backend() != "gloo":
            self._group = torch.distributed.new_group(backend="gloo")
        self._begun = True
        for (
            signum
        ) in self._before:  # Lightning's own for SIGTERM would end in the midst of a step, and broadcast within
            signal.signal(signum, self._handle)

    def poll(self) -> int:
        """The signal that came, 0 if none did; the same on all ranks, which all must ask at the same steps.

        With several it is known a step later: no rank waits for an answer.
        """
        if not self._several:
            return self.asked
        signum = self.end()
        told = torch.tensor(self.asked)
        # Not waited for until the next step: the slowest rank would hold up all others at every step.
        work = torch.distributed.all_reduce(told, torch.distributed.ReduceOp.MAX, group=self._group, async_op=True)
        self._told = told, work
        return signum

    def end(self) -> int:
        """Wait for what is under way, before the ranks part."""
        if self._told is None:
            return 0
        (told, work), self._told = self._told, None
        work.wait()
        return int(told)

    # Python runs handlers in the main thread, between two bytecodes: here only a number is kept, and the step goes on.
    def _handle(self, signum: int, frame: FrameType | None) -> None:
        # First of all: the terminal is gone, and the message below would fail with EIO.
        if signum == signal.SIGHUP:
            signals.leave_terminal()
        before, self.asked = self.asked, self.asked or signum
        if signals.ends_at_once(signum, before) or not self._begun:
            raise KeyboardInterrupt
        # A forked DataLoader worker inherits the handlers.
        first = os.getpid() == self._process and is_first()  # no worker, no other rank
        if first and not before:
            print("\nfinishing this step and saving; press Ctrl-C again to stop at once", file=sys.stderr, flush=True)
