"""The lock that shows that a run is alive: the process that trains holds it, and the system frees it when that dies.

POSIX record locks (`lockf`), not `flock`: a forked DataLoader worker inherits the latter and would keep it.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from typing import IO

from llmlab.errors import UserError

STATUSES = ("running", "completed", "failed", "interrupted", "died")
LOCK = ".lock"

# Closing any descriptor of a locked file frees the process's lock on it, so own locks are known, not probed.
_mine: dict[Path, IO[str]] = {}


def lock(folder: Path) -> None:
    """Take the folder for this process until it ends or `unlock`s; UserError if another one trains there."""
    # Resolved: one folder under two paths is one lock.
    path = (folder / LOCK).resolve()
    if path in _mine:
        return
    try:
        # a+: an exclusive lock needs a descriptor for writing (EBADF otherwise, fcntl(2)), a shared
        # one for reading; and w would truncate.
        file = open(path, "a+", encoding="utf-8")  # noqa: SIM115 - held until unlock
    except OSError as e:
        reason = e.strerror or "its .lock is no ordinary file"
        raise UserError(f"{folder} can't be written ({reason}): copy it to where it can, and resume the copy") from e
    # A reader of the status may hold a shared lock for an instant.
    for attempt in range(5):
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError:
            if attempt == 4:
                file.close()
                raise UserError(f"{folder}: another process is training in this run folder") from None
            time.sleep(0.05)
    # Kept open: the lock ends with its descriptor, and Python closes a file that nobody refers to.
    _mine[path] = file


def unlock(folder: Path) -> None:
    file = _mine.pop((folder / LOCK).resolve(), None)
    if file is not None:
        file.close()


def is_locked(folder: Path) -> bool:
    """True if some process trains in this folder."""
    path = (folder / LOCK).resolve()
    if path in _mine:
        return True
    try:
        # O_NONBLOCK: should it be a pipe, opening it would wait for a writer.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        # Shared, as it is open for reading: a run folder may be another user's, where an exclusive
        # lock can't be asked for.
        fcntl.lockf(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except OSError:
        return True
    finally:
        os.close(fd)
