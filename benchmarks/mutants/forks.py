"""Calls in forked children, several at a time, each with a time limit; a child that outlives it is killed with its children."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

K = TypeVar("K")
MEMORY = 8 << 30  # bytes that a mutant may map beyond what the parent has: a changed size may be of any order
END = b"end\n"
SPARE = 10  # wall-clock seconds allowed for each second of CPU, since other programs may run


@dataclass(frozen=True)
class Ended(Generic[K]):
    """`lines`: what the child wrote; `how`: "done", "timeout" or "died"."""

    key: K
    lines: list[dict]
    how: str
    seconds: float


@dataclass
class _Child(Generic[K]):
    key: K
    pid: int
    pipe: int
    began: float
    limit: float
    data: bytes = b""


Write = Callable[[dict], None]


class Forks(Generic[K]):
    """At most `jobs` children at a time; a context manager that leaves none behind."""

    def __init__(self, jobs: int):
        self.jobs, self.children = jobs, dict[int, _Child[K]]()

    def __enter__(self) -> Forks[K]:
        return self

    def __exit__(self, *unused: object) -> None:
        for child in self.children.values():
            _kill(child.pid)
            os.close(child.pipe)
        self.children.clear()

    @property
    def full(self) -> bool:
        return len(self.children) >= self.jobs

    def start(self, key: K, call: Callable[[Write], None], limit: float) -> None:
        """Run call(write) in a child. limit: seconds of CPU; SPARE times as many of wall-clock time."""
        out, into = os.pipe()
        parent = os.getpid()
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            os.close(out)
            _run(call, into, parent, limit)
        os.close(into)
        self.children[out] = _Child(key, pid, out, time.monotonic(), limit * SPARE)

    def ended(self) -> Iterator[Ended[K]]:
        """Waits until a child ends, and yields those that have."""
        while self.children:
            now = time.monotonic()
            patience = min(c.began + c.limit for c in self.children.values()) - now
            ready, _, _ = select.select(list(self.children), [], [], max(0.0, min(patience, 1.0)))
            found = [e for pipe in ready if (e := self._read(self.children[pipe]))]
            late = [c for c in self.children.values() if time.monotonic() > c.began + c.limit]
            found += [self._close(child, "timeout") for child in late]
            if found:
                yield from found
                return

    def _read(self, child: _Child[K]) -> Ended[K] | None:
        if data := os.read(child.pipe, 1 << 16):
            child.data += data
            # Not the end of the pipe alone: a process that the child started may hold it open.
            return self._close(child, "") if child.data.endswith(END) else None
        return self._close(child, "")

    def _close(self, child: _Child[K], how: str) -> Ended[K]:
        del self.children[child.pipe]
        os.close(child.pipe)
        status = _kill(child.pid)
        if not how:
            by_time = os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL)
            how = "done" if status == 0 else "timeout" if by_time else "died"
        if child.data.endswith(END):
            child.data, how = child.data.removesuffix(END), "done"
        lines = [json.loads(line) for line in child.data.decode().split("\n")[:-1]]
        return Ended(child.key, lines, how, time.monotonic() - child.began)


def call_in_fork(call: Callable[[Write], None], limit: float) -> Ended[None]:
    with Forks[None](1) as forks:
        forks.start(None, call, limit)
        return next(forks.ended())


def _kill(pid: int) -> int:
    """End a child and its process group; its status."""
    done, status = os.waitpid(pid, os.WNOHANG)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)  # what it started too; also after it has ended by itself
    if done:
        return status
    os.kill(pid, signal.SIGKILL)  # before its first line it has no group of its own
    # The child closes its pipe a moment before it ends by itself.
    return os.waitpid(pid, 0)[1]


def _run(call: Callable[[Write], None], pipe: int, parent: int, limit: float) -> None:
    """The life of a child: never returns."""
    code = 1
    try:
        os.setpgid(0, 0)
        if sys.platform.startswith("linux"):
            ctypes.CDLL(None).prctl(1, int(signal.SIGKILL))  # PR_SET_PDEATHSIG: it ends when its parent does
        if os.getppid() != parent:
            os._exit(1)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_CPU, (int(limit) + 1, int(limit) + 2))
        with contextlib.suppress(ValueError, OSError):  # macOS has no such limit
            resource.setrlimit(resource.RLIMIT_AS, (_mapped() + MEMORY,) * 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(nowhere, stream)

        def write(line: dict) -> None:
            os.write(pipe, json.dumps(line).encode() + b"\n")

        call(write)
        os.write(pipe, END)
        code = 0
    except BaseException as e:
        with contextlib.suppress(OSError):
            os.write(pipe, json.dumps({"error": f"{type(e).__name__}: {e}"[:400]}).encode() + b"\n")
    finally:
        os._exit(code)


def _mapped() -> int:
    """Bytes of address space that this process has mapped."""
    with contextlib.suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    return 64 << 30
