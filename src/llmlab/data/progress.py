"""A progress bar for the preparation of a corpus, and for other work of several steps."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from llmlab.ranks import is_first


class Bar(Protocol):
    def __call__(self, what: str, done: int | None, total: int | None) -> None: ...


@contextmanager
def progress(work: str = "preparing the corpus") -> Iterator[Bar]:
    """A progress bar on a terminal, else nothing. work: its first words."""
    if not sys.stderr.isatty() or not is_first():
        yield lambda what, done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (TextColumn(f"{work}: {{task.description}}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    # rich writes to stdout by default, which a command's own output may be piped from.
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=None)
        # completed=None would leave the bar of the step before as it was.
        yield lambda what, done, total: progress.update(task, description=what, completed=done or 0, total=total)
