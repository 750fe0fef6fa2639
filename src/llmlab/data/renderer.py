"""Chat templates are rendered in a process of their own, which is ended where one takes too long or too much memory."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmlab.errors import UserError

SECONDS = 10.0  # of one rendering; a long conversation takes a hundredth
MEMORY = 1 << 30  # bytes of address space; Python and Jinja have 50 MB
LONGEST = 1 << 20  # characters, beside MULTIPLE times what the conversation has
MULTIPLE = 16
SCRIPT = Path(__file__).with_name("render_process.py")
KEPT = ("LANG", "LC_ALL", "LC_TIME", "LD_LIBRARY_PATH", "PATH", "TZ")  # of the environment: a template needs no more


class Renderer:
    """The process, begun by the first request and again after it was ended. One serves all templates of a session."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.owner = 0
        self.lock = threading.Lock()

    def render(self, source: str, values: Mapping[str, Any] | None, where: str) -> str:
        """The text of a template with these values; None: only whether it can be read. UserError begins with `where`."""
        longest = LONGEST + MULTIPLE * len(json.dumps(values))
        said = self._ask({"source": source, "values": values, "longest": longest}, where)
        if "text" in said:
            return _encodable(said["text"], where)
        if "unreadable" in said:
            raise UserError(f"{where}: its chat template can't be read: {said['unreadable']}")
        if "failed" in said:
            raise UserError(f"{where}: its chat template says: {said['failed']}")
        limits = {"length": f"writes more than {longest:,} characters", "memory": f"needs more than {MEMORY:,} bytes"}
        raise UserError(f"{where}: its chat template {limits[said['limit']]}, and was stopped")

    def end(self) -> None:
        process, self.process = self.process, None
        if process is None or self.owner != os.getpid():  # a fork has its parent's pipes and must not close them
            return
        process.kill()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()  # type: ignore[union-attr]
        process.wait()

    def _ask(self, request: Mapping[str, Any], where: str) -> dict[str, str]:
        # A request and its answer belong together, whichever thread asks.
        with self.lock:
            process = self._running()
            try:
                assert process.stdin is not None
                # Without indent JSON holds no line break of its own: a request is a line.
                process.stdin.write(json.dumps(request).encode() + b"\n")
                process.stdin.flush()
                line = self._line(process)
            # It has died before it had read the request.
            except BrokenPipeError:
                line = b""
            except TimeoutError:
                self.end()
                raise UserError(
                    f"{where}: its chat template takes longer than {SECONDS:g} s, and was stopped"
                ) from None
            except BaseException:  # Ctrl-C: its answer would be taken for that to the next question
                self.end()
                raise
            if not line.endswith(b"\n"):
                # A process whose output has ended is about to end.
                code = process.wait()
                self.end()
                raise UserError(f"{where}: its chat template ended the process that renders it (exit code {code})")
            return json.loads(line)

    def _line(self, process: subprocess.Popen[bytes]) -> bytes:
        """Its answer; what was read of it where the process has ended."""
        assert process.stdout is not None
        # The monotonic clock: the wall clock may be set while one waits.
        out, found, until = process.stdout.fileno(), [b""], time.monotonic() + SECONDS
        while not found[-1].endswith(b"\n"):
            ready, _, _ = select.select([out], [], [], max(0.0, until - time.monotonic()))
            if not ready:
                raise TimeoutError
            # Below Python's buffer: select sees the pipe alone, and read(n) would wait for n bytes.
            found.append(os.read(out, 1 << 16))
            if not found[-1]:
                break
        return b"".join(found)

    def _running(self) -> subprocess.Popen[bytes]:
        # DataLoader's workers are forks: two processes on one pair of pipes would read each other's answers.
        if self.process is None or self.owner != os.getpid() or self.process.poll() is not None:
            self.end()
            environment = {name: os.environ[name] for name in KEPT if name in os.environ}
            self.process = subprocess.Popen(
                # -P: else the script's folder, whose modules have names like `cache`, would be looked through first
                [sys.executable, "-P", str(SCRIPT), str(MEMORY), str(SECONDS)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                # A pipe that nobody reads would stop the process once it is full.
                stderr=subprocess.DEVNULL,
                env={**environment, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONUTF8": "1"},
            )
            self.owner = os.getpid()
        return self.process


def _encodable(text: str, where: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(f"{where}: its chat template writes half of a surrogate pair, which is no character") from None
    return text


renderer = Renderer()
atexit.register(renderer.end)
