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
    path = (folder / LOCK).resolve()
    if path in _mine:
        return
    try:
        file = open(path, "a+")  # noqa: SIM115 - held until unlock
    except OSError as e:
        reason = e.strerror or "its .lock is no ordinary file"
        raise UserError(f"{folder} can't be written ({reason}): copy it to where it can, and resume the copy") from e
    for attempt in range(5):  # a reader of the status may hold it for an instant
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError:
            if attempt == 4:
                file.close()
                raise UserError(f"{folder}: another process is training in this run folder") from None
            time.sleep(0.05)
    _mine[path] = file  # kept open: the lock ends with its descriptor


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
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # should it be a pipe
    except OSError:
        return False
    try:
        fcntl.lockf(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared, as it is read; an exclusive one needs a writable file
        return False
    except OSError:
        return True
    finally:
        os.close(fd)
