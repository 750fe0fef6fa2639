"""The output of a running sweep: a line for each point as it begins and ends, and the progress of those that run."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from pathlib import Path
from typing import Any, TextIO

from llmlab.sweep import point as points
from llmlab.sweep.plan import Plan
from llmlab.training.progress import duration

LOOK, LIVE, PLAIN = 0.2, 0.5, 60.0  # seconds between looks at the folders, updates in a terminal, and lines in a log
BEGINS = {"new": "begins", "again": "begins again", "resume": "goes on", "complete": "is complete already"}


class Board:
    """Watches the folders of the points from a thread of its own.

    Files, since a launcher may run the points in other processes or on other machines, which share nothing else.
    """

    def __init__(self, plan: Plan, invocation: str, done: set[str], stream: TextIO | None = None):
        self.plan, self.invocation, self.stream = plan, invocation, stream or sys.stdout
        self.terminal = self.stream.isatty()
        self.number = {p.folder: i for i, p in enumerate(plan.points, 1)}
        self.begun: dict[str, dict[str, Any]] = {}
        self.ended: dict[str, float] = {}  # seconds of each that ran
        self.done = set(done)
        self.at_once = plan.jobs  # points that run together; on a cluster the number is seen as they begin
        # An RLock: a signal handler says something too, in the main thread, which may hold the lock at that moment.
        self._lock, self._end, self._open = threading.RLock(), threading.Event(), False
        self._next = time.monotonic() + (0 if self.terminal else PLAIN)
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Board:
        self._thread.start()
        return self

    def __exit__(self, *unused: object) -> None:
        self._end.set()
        self._thread.join()
        self.look()
        self._clear()

    def say(self, line: str) -> None:
        """Print a line, above the live one."""
        with self._lock:
            self._clear()
            self.stream.write(line + "\n")
            self.stream.flush()

    def _watch(self) -> None:
        while not self._end.wait(LOOK):
            self.look()
            if time.monotonic() >= self._next:
                self._next = time.monotonic() + (LIVE if self.terminal else PLAIN)
                self._live()

    # ---------------------------------------------------------------- begins and ends

    def look(self) -> None:
        """Print which points have begun or ended since the last look."""
        with self._lock:
            for folder in self._open_points():
                note = points.read_note(folder)
                if note.get("invocation") != self.invocation:
                    continue
                name = folder.name
                if name not in self.begun:
                    self.begun[name] = note
                    self.number.setdefault(name, len(self.number) + 1)
                    self.at_once = max(self.at_once, sum(n not in self.done for n in self.begun))
                    if note["how"] != "complete":
                        self.say(f"{self._head(name)}  {BEGINS[note['how']]}")
                if note.get("ended") is not None:
                    self._ends(name, note)

    def _open_points(self) -> list[Path]:
        if self.plan.adaptive:
            # By time: glob gives any order, and numbers are given in this one.
            found = sorted((p.parent for p in self.plan.folder.glob(f"*/{points.NAME}")), key=_began)
        else:
            found = [self.plan.folder / p.folder for p in self.plan.points]
        return [f for f in found if f.name not in self.done]

    def _ends(self, name: str, note: dict[str, Any]) -> None:
        self.done.add(name)
        fields = points.outcome(self.plan.folder / name)
        seconds = note["ended"] - note["began"]
        loss = points.validation_loss(fields)
        shown = f"val loss {loss:.4f}" if loss is not None else "no validation"
        if note["how"] == "complete":
            return self.say(f"{self._head(name)}  {BEGINS['complete']}: {shown}")
        self.ended[name] = seconds
        if fields.get("status") != "completed":
            shown = f"{fields.get('status', 'failed')}: {fields.get('reason')}"
        left = self._left()
        self.say(f"{self._head(name)}  {shown}  {duration(seconds)}" + (f"  (about {left} left)" if left else ""))

    def _head(self, name: str) -> str:
        width = len(str(self.plan.total))
        return f"[{self.number[name]:>{width}}/{self.plan.total}] {name}"

    def _left(self) -> str:
        """The time that the rest will take if its points take as long as those before, as many at once."""
        rest = self.plan.total - len(self.done)
        if rest <= 0 or not self.ended:
            return ""
        mean = sum(self.ended.values()) / len(self.ended)
        now = time.time()
        running = [n["began"] for name, n in self.begun.items() if name not in self.done]
        spent = sum(min(mean, max(0.0, now - began)) for began in running)
        left = (rest * mean - spent) / min(self.at_once, rest)
        return duration(left) if left >= 1 else ""

    # ---------------------------------------------------------------- how far the running points are

    def _live(self) -> None:
        with self._lock:
            lines = []
            for name, note in self.begun.items():
                if name not in self.done:
                    step = _last_step(self.plan.folder / name / points.LOG, note.get("log", 0)) or "starting"
                    lines.append(f"{name}  {duration(time.time() - note['began'])}  {step}")
            if not lines:
                return
            if not self.terminal:
                return self.say("\n".join(f"    {line}" for line in lines))
            self._clear()
            more = f"  (and {len(lines) - 1} more)" if len(lines) > 1 else ""
            self.stream.write(("    " + lines[0] + more)[: shutil.get_terminal_size().columns - 1])
            self.stream.flush()
            self._open = True

    def _clear(self) -> None:
        if self._open:
            self.stream.write("\r\x1b[2K")
            self.stream.flush()
            self._open = False


def _began(folder: Path) -> float:
    return points.read_note(folder).get("began") or 0.0


def _last_step(path: Path, begin: int) -> str:
    """The last progress line that a run wrote to its log after byte `begin`."""
    try:
        with open(path, "rb") as f:
            # From `begin` on, as the log of a point that is done again still has its earlier attempt;
            # the end is enough, and logs grow.
            f.seek(max(begin, path.stat().st_size - 4000))
            # It may begin, or end, in the midst of a letter.
            lines = f.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.startswith("step ")), "")
