"""Run folders and sweeps below some folders, as they were written. Nothing is judged here but whether a run can be read."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypedDict

from llmlab.config.spelling import unquoted
from llmlab.errors import UserError
from llmlab.files import absolute
from llmlab.json_files import read_json, read_yaml
from llmlab.runs import answers, metrics, probes, record
from llmlab.runs.files import CONFIG
from llmlab.runs.metrics import METRICS

SWEEP = "sweep.json"
PROBE = "probe "  # before the protocol of a `llmlab probe`, whose accuracy is a metric of a run too


@dataclass(frozen=True)
class Run:
    """A run folder. name: its path below the common folder of all that were given. config: as it was resolved, nested."""

    folder: Path
    name: str
    record: Mapping[str, Any]
    config: Mapping[str, Any]
    status: str
    reason: str | None

    @property
    def seed(self) -> int | None:
        return self.record.get("seed")

    @property
    def began(self) -> str:
        return str(self.record.get("began", ""))

    @property
    def asked(self) -> dict[str, str]:
        """The typed overrides: {key or group: value}."""
        return dict(split_override(o) for o in self.record.get("overrides", ()))

    @property
    def metrics(self) -> dict[str, float | None]:
        """Its last values by name, and the accuracies of probes."""
        return {**self.record.get("metrics", {}), **{f"{PROBE}{name}": value for name, value in self.probes.items()}}

    def metric(self, name: str) -> float | None:
        return self.metrics.get(name)

    @cached_property
    def tokenizer(self) -> str:
        """A mark of the tokenizer that cut the text: a hash of tokenizer.json, else what the config says."""
        try:
            # 48 bits tell some thousand tokenizers apart.
            return hashlib.sha256((self.folder / "tokenizer.json").read_bytes()).hexdigest()[:12]
        except OSError:
            chosen = self.config.get("tokenizer") or {}
            return f"{chosen.get('kind')}-{self.record.get('data', {}).get('vocabulary')}"

    @cached_property
    def probes(self) -> dict[str, float]:
        """{protocol: accuracy} of `llmlab probe`; none of a file that can't be read."""
        try:
            found = probes.read(self.folder)
        except UserError as e:
            print(f"warning: {str(e).replace(str(self.folder), self.name)}; its probes are not shown", file=sys.stderr)
            return {}
        return {probes.title(p, found): p["accuracy"] for p in found}

    @cached_property
    def answers(self) -> list[answers.Line]:
        """Those of its last validation; none of a run that writes none."""
        found = answers.read(self.folder)
        return [a for a in found if a["step"] == found[-1]["step"]]

    @cached_property
    def rows(self) -> dict[str, list[tuple[float, float]]]:
        """{column: [(tokens, value)]} of metrics.csv, in the order of steps; none of a file that can't be read."""
        found: dict[str, list[tuple[float, float]]] = {}
        try:
            for row in metrics.read(self.folder / METRICS):
                at = row.get("tokens")
                for name, value in row.items():
                    if at is not None and value is not None and (name == "loss" or name.startswith("val_")):
                        found.setdefault(name, []).append((at, value))
        except (UserError, OSError) as e:
            print(f"warning: {str(e).replace(str(self.folder), self.name)}; no curve is drawn of it", file=sys.stderr)
            return {}
        return found


@dataclass(frozen=True)
class Sweep:
    """sweep.json. keys: a swept key -> its values, in the order typed. points: [{"folder", "overrides", ...}]."""

    folder: Path
    name: str | None
    command: str
    keys: Mapping[str, Sequence[str]]
    fixed: Sequence[str] = ()
    points: Sequence[Mapping[str, Any]] = ()


class PointFile(TypedDict):
    """A point in sweep.json."""

    folder: str
    overrides: list[str]


class SweepFile(TypedDict, total=False):
    """sweep.json."""

    name: str | None
    command: str
    keys: dict[str, list]
    fixed: list[str]
    points: list[PointFile]


@dataclass(frozen=True)
class Found:
    """All runs by name; all sweeps, those of the folders given first in front; points that have no run folder."""

    root: Path
    runs: list[Run]
    sweeps: list[Sweep] = field(default_factory=list)
    missing: list[Run] = field(default_factory=list)


def split_override(text: str) -> tuple[str, str]:
    """ "+a.b='c'" -> ("a.b", "c"); "~a" -> ("a", "null")."""
    key, equals, value = text.partition("=")
    return key.lstrip("+~"), unquoted(value) if equals else "null"


def collect(folders: Sequence[Path]) -> Found:
    """Every run and sweep below `folders`. UserError where a folder is not there or there is no run in any of them."""
    tops = [Path(absolute(f)) for f in folders]
    for given, top in zip(folders, tops, strict=True):
        if not top.is_dir():
            raise UserError(f"{given}: there is no such folder")
    root = Path(os.path.commonpath(tops))
    # A single run was given: below itself its name would be ".".
    if (root / record.NAME).is_file():
        root = root.parent
    # Folders that are given may lie in each other, and a run counts once.
    places: dict[Path, None] = {}
    sweeps: dict[Path, Sweep] = {}
    for top in tops:
        for here, files in record.walk(top):
            if record.NAME in files:
                places[here] = None
            if SWEEP in files and here not in sweeps:
                sweeps[here] = read_sweep(here)
    runs = sorted((_run(p, root) for p in places), key=lambda r: r.name)
    missing = [_missing(s, p, root) for s in sweeps.values() for p in s.points if not _has_run(s.folder / p["folder"])]
    if not runs:
        below = " and ".join(str(f) for f in folders)
        raise UserError(f"{below}: there is no run folder (one with a {record.NAME}) in it or below it")
    return Found(root, runs, list(sweeps.values()), sorted(missing, key=lambda r: r.name))


def _has_run(folder: Path) -> bool:
    return (folder / record.NAME).is_file()


def _name(folder: Path, root: Path) -> str:
    return Path(os.path.relpath(folder, root)).as_posix()


def _run(folder: Path, root: Path) -> Run:
    name = _name(folder, root)
    try:
        fields = record.read(folder)
        complete = fields.get("status") == "completed"
        if not isinstance(fields.get("metrics", {}), dict) or (complete and not isinstance(fields.get("seed"), int)):
            raise UserError(f"{record.NAME} is not the record of a run")
        fields.setdefault("seed", _seed(fields.get("overrides", ())))
    # AttributeError: a run.json that holds a list has no `get`.
    except (UserError, AttributeError) as e:
        return Run(folder, name, {}, {}, "unreadable", str(e).replace(str(folder), name))
    try:
        config = _yaml(folder / CONFIG)
    except (UserError, OSError) as e:
        if not complete:  # it ended before it began to train
            return Run(folder, name, fields, {}, str(fields.get("status")), fields.get("reason"))
        gone = f"its {CONFIG} is gone" if isinstance(e, FileNotFoundError) else str(e)
        reason = gone.replace(str(folder), name)
        return Run(folder, name, fields, {}, "unreadable", reason)
    return Run(folder, name, fields, config, str(fields.get("status")), fields.get("reason"))


def _missing(sweep: Sweep, point: Mapping[str, Any], root: Path) -> Run:
    overrides = [*sweep.fixed, *point.get("overrides", ())]
    fields = {"overrides": overrides, "seed": _seed(overrides)}
    folder = sweep.folder / point["folder"]
    return Run(folder, _name(folder, root), fields, {}, "not run", "the sweep has no run folder for this point")


def _seed(overrides: Sequence[str]) -> int | None:
    """The seed that was typed, for a run that ended before it had a record."""
    typed = dict(split_override(o) for o in overrides).get("seed", "")
    return int(typed) if typed.lstrip("-").isdigit() else None


def _yaml(path: Path) -> Mapping[str, Any]:
    import yaml

    # PyYAML's loader in C reads a config of 200 lines in 1 ms, the one in Python in 7; some builds lack it.
    return read_yaml(path, dict, loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # of maybe a thousand runs


def read_sweep(folder: Path) -> Sweep:
    """Read a sweep's sweep.json. UserError if it is damaged."""
    try:
        found: SweepFile = read_json(folder / SWEEP, SweepFile)
    except UserError as e:
        raise UserError(f"{e}; delete it, or run the sweep again") from None
    return Sweep(
        folder,
        found.get("name"),
        found.get("command", ""),
        {k: [unquoted(str(v)) for v in values] for k, values in found.get("keys", {}).items()},
        found.get("fixed", []),
        found.get("points", []),
    )
