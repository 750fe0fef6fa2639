"""What rewards run with limits: jobs for the process of `_code_process`, and what became of each."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from llmlab.errors import UserError

SCRIPT = Path(__file__).with_name("_code_process.py")
KEPT = ("LANG", "LC_ALL", "LD_LIBRARY_PATH", "PATH", "TZ")  # of the environment; keys and tokens are not among them
KINDS = ("timed_out", "crashed", "invalid")  # what a job that gives no number may have been


@dataclass(frozen=True)
class Limits:
    """Limits of a job. timeout in seconds, memory and file_size in megabytes; workers: jobs at once, None: one a core.

    ValueError, or UserError where the system has none.
    """

    timeout: float
    memory: int
    file_size: int
    workers: int | None

    def __post_init__(self) -> None:
        for name, value, least in (
            ("memory", self.memory, 64),  # less does not hold Python
            ("file_size", self.file_size, 0),
            ("workers", self.workers, 1),
        ):
            if value is not None and value < least:
                raise ValueError(f"reward.{name} must be at least {least}, but is {value}")
        if not 0 < self.timeout < float("inf"):
            raise ValueError(f"reward.timeout must be more than 0 seconds, but is {self.timeout}")
        if not hasattr(os, "fork") or find_spec("resource") is None:
            raise UserError("this reward limits processes as Linux and macOS can, and there is no such thing here")


def run(jobs: Sequence[tuple[str, Any]], limits: Limits, scorer: str | None = None) -> list[tuple[str, float]]:
    """("ran", its number) of each job, or (one of KINDS, 0). scorer: as `_code_process` knows them."""
    if not jobs:
        return []
    with tempfile.TemporaryDirectory(prefix="llmlab_code_", ignore_cleanup_errors=True) as folder:
        request = {
            "jobs": jobs,
            "scorer": scorer,
            "folder": folder,
            "timeout": limits.timeout,
            "memory": limits.memory << 20,
            "file_size": limits.file_size << 20,
            "workers": min(len(jobs), limits.workers or os.cpu_count() or 1),
        }
        said = _asked(json.dumps(request).encode(), folder)
    found = {number: (kind, value) for number, kind, value in map(json.loads, said.splitlines())}
    if len(found) != len(jobs):
        raise UserError(f"the process that judges answers ended after {len(found)} of {len(jobs)}; was memory short?")
    return [found[i] for i in range(len(jobs))]


def _asked(request: bytes, folder: str) -> bytes:
    environment = {name: os.environ[name] for name in KEPT if name in os.environ}
    # A set's order would differ from run to run.
    environment |= {"HOME": folder, "TMPDIR": folder, "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        # -P and -s: neither this folder nor the user's own packages are imported from.
        [sys.executable, "-P", "-s", str(SCRIPT)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        cwd=folder,
        start_new_session=True,  # so that its group is its own, and can be ended whole
    )
    try:
        return process.communicate(request)[0]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
