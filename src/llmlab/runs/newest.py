"""`run=latest`: the run that began last, below runs/ and multirun/ of the current folder. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from llmlab.errors import UserError
from llmlab.runs import record

WORDS = ("latest", "last")
PLACES = ("runs", "multirun")


def resolve_run(run: str, key: str = "run") -> str:
    """The folder that a value of run= or resume= names: itself, or the newest run's where it is "latest" or "last".

    UserError where there is no run. A folder of that name goes before.
    """
    if run not in WORDS or Path(run).is_dir():
        return run
    # By the time in the record: a folder's own changes when it is copied, resumed or looked at by a logger.
    # Times in ISO 8601 and all in UTC, so that texts are in the order of what they say.
    began = [(str(fields.get("began", "")), str(folder)) for folder, fields in _records()]
    if not began:
        raise UserError(f"{key}={run}: there is no run below {' or '.join(f'{p}/' for p in PLACES)} here")
    return max(began)[1]


def _records() -> Iterator[tuple[Path, dict]]:
    for top in PLACES:
        for here, files in record.walk(top):
            if record.NAME in files:
                try:
                    yield here, record.read(here)
                except UserError:  # damaged: `llmlab runs` says so
                    continue
