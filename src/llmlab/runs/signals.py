"""The signals that ask a run or a sweep to end, and what a terminal that hangs up takes with it."""

from __future__ import annotations

import os
import signal
import stat
from contextlib import suppress


def handled_signals() -> list[signal.Signals]:
    """Signals to be handled: SIGHUP not where it is ignored (nohup)."""
    hangs_up = [] if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else [signal.SIGHUP]
    return [signal.SIGINT, signal.SIGTERM, *hangs_up]


def ends_at_once(signum: int, before: int) -> bool:
    """True if a signal after another (0: none) means to end at once.

    Not with a hang-up: a terminal that closes sends two or three, by the shell and by the kernel.
    """
    return signal.SIGHUP not in (signum, before) and bool(before)


def name(signum: int) -> str:
    """The name of a signal, as a user knows it."""
    return "Ctrl-C" if signum in (0, signal.SIGINT) else signal.Signals(signum).name


def leave_terminal() -> None:
    """Nobody reads what goes to a terminal that has hung up, and writing there would fail in the midst of the last step."""
    for fd in (1, 2):
        with suppress(OSError):
            # A pipe or a file is left as it is: what is redirected goes on being written.
            if stat.S_ISCHR(os.fstat(fd).st_mode):
                # Not closed: the number would be given to the next file that is opened, and prints would go there.
                os.dup2(os.open(os.devnull, os.O_WRONLY), fd)
