"""A process that does not outlive the one that started it."""

from __future__ import annotations

import ctypes
import os
import signal
import sys


def follow(parent: int) -> None:
    """From now on this process gets SIGTERM when its parent ends, even if that is killed (Linux; elsewhere nothing).

    parent: its id. KeyboardInterrupt if it has ended already.
    """
    if not sys.platform.startswith("linux"):
        return
    # PR_SET_PDEATHSIG of <sys/prctl.h>; Python has no name for it.
    pr_set_pdeathsig = 1
    # CDLL(None): the symbols of this process, in which libc is there already, whatever its file is called.
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, int(signal.SIGTERM))
    # A parent that died before the call sends nothing (prctl(2)), and this process then has another one.
    if os.getppid() != parent:
        raise KeyboardInterrupt
