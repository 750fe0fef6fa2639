"""`llmlab runs [FOLDER...]`: the runs below some folders: what was typed, how far they came, how well."""

from __future__ import annotations

import json as json_module
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypedDict

from llmlab.commands.arguments import dashed, parse
from llmlab.errors import UserError
from llmlab.json_files import read_json
from llmlab.registry import near
from llmlab.runs import record
from llmlab.runs.lock import STATUSES

USAGE = """\
llmlab runs [FOLDER...] [status=completed] [sort=age] [limit=N] [--json]

Lists the run folders below FOLDER (default: runs/ and multirun/), including the points of sweeps: status, command line, steps
of the budget, validation loss, age. status=failed,died lists those only. sort: age (the newest last), loss
(the best first), steps, status or folder. limit=N lists the last N of sort=age and the first N of any other."""

# "waiting": a point of a sweep that has not begun. "unreadable": its run.json is damaged.
SHOWN = (*STATUSES, "waiting", "unreadable")
COLOURS = {"completed": "green", "running": "cyan", "failed": "red", "died": "red", "interrupted": "yellow"}
SORTS = ("age", "loss", "steps", "status", "folder")
NARROW = 70  # columns of a terminal under which a table has fewer
# Bytes: a run that was killed has not said its last step, and for a listing a long metrics.csv is not read whole.
TAIL = 1 << 14


@dataclass
class Arguments:
    status: str | None = None
    sort: str = "age"
    limit: int | None = None
    json: bool = False


def main(argv: Sequence[str]) -> int:
    if "-h" in argv or "--help" in argv:
        print(USAGE)
        return 0
    dashed(argv, Arguments, "runs")
    keys = {f.name for f in fields(Arguments)}
    folders = [w for w in argv if not w.startswith("-") and w.partition("=")[0] not in keys and _is_folder(w)]
    a = parse([w for w in argv if w not in folders], Arguments, "runs")
    if a.sort not in SORTS:
        raise UserError(f"sort={a.sort}: there is no such order; {near(a.sort, SORTS)}")
    wanted = [s.strip() for s in a.status.split(",")] if a.status else list(SHOWN)
    for status in wanted:
        if status not in SHOWN:
            raise UserError(f"status={status}: there is no such status; {near(status, SHOWN)}")
    if a.limit is not None and a.limit < 1:
        raise UserError(f"limit={a.limit} must be at least 1")
    tops = [Path(f) for f in folders] or [p for p in (Path("runs"), Path("multirun")) if p.is_dir()]
    every = ordered(find(tops), a.sort)
    found = [run for run in every if run["status"] in wanted]
    if a.limit is not None:
        found = found[-a.limit :] if a.sort == "age" else found[: a.limit]
    if a.json:
        print(json_module.dumps(found, indent=1, default=str))
    elif found:
        _print(found)
    elif every:
        print(f"none of {len(every)} runs is {' or '.join(wanted)}; llmlab runs lists all")
    else:
        where = " and ".join(str(t) for t in tops) or "runs/ or multirun/ here"
        print(f"there is no run below {where}; llmlab train begins one")
    return 0


def _is_folder(word: str) -> bool:
    if "=" in word and not Path(word).is_dir():
        return False  # a key, which is checked as one
    if not word or not Path(word).is_dir():
        raise UserError(f"{word or repr(word)}: there is no such folder")
    return True


def find(tops: Sequence[Path]) -> list[dict[str, Any]]:
    """One row for each run folder below `tops`, and for each point of a sweep that has none yet."""
    rows: dict[Path, dict[str, Any]] = {}
    for top in tops:
        for folder, files in record.walk(top):
            if record.NAME in files:
                rows[folder] = _row(folder)
            if "sweep.json" in files:
                for point in _points(folder / "sweep.json"):
                    place = folder / point["folder"]
                    if not (place / record.NAME).exists():
                        rows.setdefault(
                            place, {**EMPTY, "folder": record.relative_path(place.absolute()), "status": "waiting"}
                        )
                        rows[place]["typed"] = _typed(point["overrides"])
    return list(rows.values())


class Point(TypedDict):
    """A point in sweep.json."""

    folder: str
    overrides: list[str]


class Points(TypedDict):
    points: list[Point]


def _points(file: Path) -> list[Point]:
    try:
        found: Points = read_json(file, Points)
    except FileNotFoundError:  # gone since it was listed
        return []
    except UserError as e:
        print(f"warning: {e}; points that have not begun are not shown", file=sys.stderr)
        return []
    return found["points"]


EMPTY: dict[str, Any] = {
    "folder": "",
    "status": "unreadable",
    "reason": None,
    "typed": [],
    "family": None,
    "seed": None,
    "parts": {},
    "steps": 0,
    "total": None,
    "val_loss": None,
    "val_bits_per_byte": None,
    "parameters": None,
    "tokens_per_second": None,
    "began": None,
}


def _row(folder: Path) -> dict[str, Any]:
    row = {**EMPTY, "folder": record.relative_path(folder.absolute())}
    try:
        said = record.read(folder)
        metrics, budget = said.get("metrics") or {}, said.get("budget") or {}
        row |= {k: said[k] for k in ("status", "reason", "family", "seed", "parts", "began") if k in said}
        row |= {"typed": _typed(said.get("overrides", [])), "total": budget.get("steps"), "steps": said.get("steps", 0)}
        row |= {k: metrics[k] for k in ("val_loss", "val_bits_per_byte") if k in metrics}
        row |= {
            "parameters": (said.get("parameters") or {}).get("total"),
            "tokens_per_second": said.get("tokens_per_second"),
        }
    # AttributeError and TypeError: a run.json that is JSON, but has a list or a number where an object belongs.
    except (UserError, AttributeError, TypeError) as e:
        return {**row, "status": "unreadable", "reason": str(e)}
    if row["status"] != "completed":
        row |= _last(folder / "metrics.csv", row)
    return row


def _last(file: Path, row: dict[str, Any]) -> dict[str, Any]:
    """Steps and validation loss as metrics.csv has them last: a run that was killed had no time to say so."""
    try:
        # In bytes, as a file opened as text can't seek to a place that `tell` has not given.
        with open(file, "rb") as f:
            header = f.readline().decode().strip().split(",")
            start = max(f.tell(), os.fstat(f.fileno()).st_size - TAIL)
            f.seek(start)
            # What follows the last line break is a line that was being written when the run died.
            lines = f.read().decode().split("\n")[:-1]
        # The tail may begin inside a line, which then has too few cells.
        cells = [
            dict(zip(header, line.split(","), strict=True)) for line in lines if line.count(",") == len(header) - 1
        ]
        losses = [float(c["val_loss"]) for c in cells if c.get("val_loss")]
        steps = max([row["steps"], *(int(c["step"]) for c in cells)])
        return {"steps": steps, "val_loss": losses[-1] if losses else row["val_loss"]}
    except (OSError, ValueError, KeyError, IndexError):
        return {}


def _typed(overrides: Sequence[str]) -> list[str]:
    """The settings that make the run what it is: not where it is."""
    return [str(o) for o in overrides if not str(o).startswith(("hydra.", "hydra/", "sweep="))]


def ordered(rows: list[dict[str, Any]], sort: str) -> list[dict[str, Any]]:
    """Runs that lack what they are sorted by come last, but those without an age first."""
    by_age = sorted(rows, key=lambda r: (r["began"] or "", r["folder"]))
    if sort == "loss":
        # None can't be compared with a number; the flag before it decides first.
        return sorted(by_age, key=lambda r: (r["val_loss"] is None, r["val_loss"] or 0.0))
    if sort == "steps":
        return sorted(by_age, key=lambda r: -(r["steps"] or 0))
    if sort == "status":
        return sorted(by_age, key=lambda r: SHOWN.index(r["status"]) if r["status"] in SHOWN else len(SHOWN))
    return sorted(rows, key=lambda r: r["folder"]) if sort == "folder" else by_age


def age(began: str | None, now: datetime) -> str:
    """ "12 s", "5 min", "3 h", "4 d" since an ISO time."""
    try:
        then = datetime.fromisoformat(str(began))
    except ValueError:
        return ""
    # Python refuses to subtract a time without a zone from one with; clocks of two machines may differ by seconds.
    seconds = max(0.0, (now - (then if then.tzinfo else then.replace(tzinfo=UTC))).total_seconds())
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds // size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _print(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.text import Text

    # Where no one looks, lines are as long as they are: a program cuts them into fields.
    looked_at = sys.stdout.isatty() or "COLUMNS" in os.environ
    console = Console(highlight=False, width=None if looked_at else 240)
    wide = _table(rows, True, False)
    # rich never measures more than max_width, so the table is asked with far more than there is.
    needs = console.measure(wide, options=console.options.update(max_width=10_000)).maximum
    fits = needs <= console.width or not looked_at
    console.print(wide if fits else _table(rows, False, console.width < NARROW))
    for r in rows:
        if r["status"] in ("failed", "died", "unreadable") and r["reason"] and len(rows) <= 20:
            console.print(Text(f"{r['folder']}: {r['reason']}"), soft_wrap=not looked_at)


def _table(rows: list[dict[str, Any]], wide: bool, narrow: bool) -> Any:
    """wide: the folder in a column of its own, else below what was typed; narrow: without age and the steps to come."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("status", no_wrap=True)
    table.add_column("what was typed" if wide else "what was typed, and where", overflow="fold")
    for name in ("steps", "val loss", "age")[: 2 if narrow else 3]:
        table.add_column(name, justify="right", no_wrap=True)
    if wide:
        table.add_column("folder", overflow="fold")
    now = datetime.now(UTC)
    for r in rows:
        total = f"/{r['total']:,}" if r["total"] and not narrow else ""
        typed = " ".join(r["typed"]) or "the default run"
        cells: list[str | Text] = [
            Text(r["status"], style=COLOURS.get(r["status"], "")),
            # Text, not str: rich would take [size=nano] for markup and leave it out.
            Text(typed) if wide else Text.assemble(typed, "\n", (r["folder"], "dim")),
            "" if r["status"] in ("waiting", "unreadable") else f"{r['steps']:,}{total}",
            "" if r["val_loss"] is None else f"{r['val_loss']:.4f}",
            *(() if narrow else (age(r["began"], now),)),
            *((Text(r["folder"]),) if wide else ()),
        ]
        table.add_row(*cells)
    return table
