"""run.json: the record of a run, at the top of its folder."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypedDict

from llmlab.errors import UserError
from llmlab.files import write_atomic, write_over
from llmlab.json_files import read_json
from llmlab.runs import lock

NAME = "run.json"
NO_RUNS = ("checkpoints", "__pycache__", "wandb", "tensorboard", "lightning_logs")  # folders where none is looked for
SCHEMA = 1
PACKAGES = ("llmlab", "torch", "lightning", "hydra-core", "omegaconf", "numpy", "tokenizers", "safetensors")


class Budget(TypedDict, total=False):
    steps: int


class Intervals(TypedDict):
    """Optimizer steps from one to the next, kept when the run goes on."""

    validate_every: int
    checkpoint_every: int


class Text(TypedDict, total=False):
    """fingerprint: of the documents; corpus: its folder in the cache; path: where data=files found it; rules: of how files
    are read and split, the first ones in a record that has none."""

    fingerprint: str
    documents: int
    corpus: str
    path: str | None
    source: str
    rules: int


class Hardware(TypedDict, total=False):
    cpu: str | None
    threads: int
    devices: list[str]


class Batch(TypedDict, total=False):
    """micro: rows in a micro-batch; seq_len: of each row."""

    micro: int | None
    seq_len: int | None


class Fields(TypedDict, total=False):
    """Fields that are read of a record, where they are there: a run that could not begin has a status and a reason only."""

    schema: int
    status: str
    reason: str | None
    command: str
    overrides: list[str]
    typed: list[str]
    seed: int | str  # a text in the record of a point that could not begin
    family: str
    parts: dict[str, str]
    layers: list[str]
    notes: list[str]
    plugins: str | None
    versions: dict[str, str]
    hardware: Hardware
    loggers: dict[str, dict[str, Any]] | None
    began: str
    budget: Budget
    batch: Batch
    intervals: Intervals
    data: Text
    files: dict[str, str]
    parameters: dict[str, int | None]
    flops_per_token: float | None
    tokens_seen: float | None
    steps: int
    resumed: int
    wall_seconds: float | None
    tokens_per_second: float | None
    mfu: float | None
    peak_memory_bytes: float | None
    metrics: dict[str, float | None]
    measures: dict[str, str]  # terms and logs of the objective: name -> kind


class Record:
    """The fields of a run's record, written as a whole at each update. Only the first rank writes."""

    def __init__(self, folder: Path, fields: Mapping[str, Any] | None = None, *, writes: bool = True):
        self.folder, self.writes = folder, writes
        self.fields: dict[str, Any] = dict(fields or {})

    def update(self, **fields: object) -> None:
        self.fields.update(fields)
        if not self.writes:
            return
        try:
            write_atomic(self.folder / NAME, json.dumps(self.fields, indent=1, default=str) + "\n")
        except UserError:
            # On a full disk there is room where the record is; without line breaks it has become no longer.
            if not write_over(self.folder / NAME, json.dumps(self.fields, default=str, separators=(",", ":")) + "\n"):
                raise

    def __getitem__(self, name: str) -> Any:
        return self.fields[name]

    def get(self, name: str, default: object = None) -> Any:
        return self.fields.get(name, default)


def walk(top: str | Path) -> Iterator[tuple[Path, list[str]]]:
    """Folders at and below `top` in which a run may lie, each with the names of its files, in a fixed order."""
    for here, folders, files in os.walk(top):
        # In place: os.walk goes on into those that are left, in this order.
        folders[:] = sorted(f for f in folders if f not in NO_RUNS and not f.startswith("."))
        yield Path(here), files


def read(folder: str | Path) -> dict[str, Any]:
    """The record of a run folder, its status true even if the run was killed: "running" without a lock is "died".

    UserError where there is none, or where a field is not what `Fields` says.
    """
    folder = Path(folder)
    # lexists: a link to nothing is another fault than no record, and is said below.
    if not os.path.lexists(folder / NAME):
        what = f"has no {NAME}, so it is no run folder" if folder.is_dir() else "there is no such folder"
        if folder.is_file():
            what = "it is a file; name the folder of a run"
        if (folder / "export.json").exists():
            what = "holds exported weights, which are no run to go on with; init_from=... starts a new one from them"
        raise UserError(f"{folder}: {what}")
    try:
        fields: dict[str, Any] = read_json(folder / NAME, Fields)
    except FileNotFoundError:  # a link that leads nowhere
        raise UserError(f"{folder / NAME} can't be read: it is a link to nothing") from None
    # The lock and not the process's id, which another process may have by now, or another machine.
    if fields.get("status") == "running" and not lock.is_locked(folder):
        fields["status"] = "died"
        fields["reason"] = "the process ended without a word (killed, or the machine went down)"
    return fields


def parts(config: Mapping[str, Any]) -> dict[str, str]:
    """{place: name of the part} of a plain config: {"attention": "gqa", "kinds.local.window": "sliding", ...}."""

    def walk(node: object, path: str) -> Iterator[tuple[str, str]]:
        if isinstance(node, Mapping):
            if isinstance(node.get("_part_"), str):
                yield path, node["_part_"]
            for name, value in node.items():
                yield from walk(value, f"{path}.{name}" if path else str(name))

    return dict(walk(config, ""))


def versions() -> dict[str, str]:
    by_package = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            # From the packages' metadata: a record must not cost the import of what the run does not use.
            by_package[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    if commit := _commit():
        by_package["commit"] = commit
    return by_package


def _commit() -> str | None:
    """The commit of the checkout that llmlab runs from, "+" after it if files differ from it; None where there is none."""
    here = Path(__file__).resolve().parents[3]
    if not (here / ".git").exists():
        return None
    try:
        # describe and not rev-parse: it says in one call whether files differ, and --exclude=* makes it give no tag's name.
        run = ["git", "-C", str(here), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+"]
        # Five seconds: git looks at every file of the checkout, which may lie on a slow network file system.
        return (
            subprocess.run(
                run, capture_output=True, encoding="utf-8", errors="replace", timeout=5, check=True
            ).stdout.strip()
            or None
        )
    except (OSError, subprocess.SubprocessError):
        return None


def hardware(threads: int, devices: list[str]) -> dict[str, Any]:
    """The machine of a run. devices: names of its accelerators, one each, or of the CPU."""
    # All of the machine's memory, of which a container may have less.
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None
    return {
        "machine": platform.machine(),
        "system": platform.system(),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": threads,
        "memory_bytes": memory,
        "devices": devices,
    }


def cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            # x86 has such a line, Arm has none.
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    # platform.processor() is empty on many Linux systems.
    return platform.processor() or platform.machine()


def command() -> str:
    import shlex

    name = Path(sys.argv[0]).name
    return shlex.join([*(["python", "-m", "llmlab"] if name == "__main__.py" else [name]), *sys.argv[1:]])


def program_name() -> str:
    """The command `llmlab` as it is called here: by its name where the shell finds it, else by its path."""
    import shutil

    # A command that is printed must run as it stands, also where no environment is activated.
    if shutil.which("llmlab"):
        return "llmlab"
    script = Path(sys.executable).parent / "llmlab"  # where pip puts it, whether or not the environment is activated
    return relative_path(script) if script.exists() else f"{sys.executable} -m llmlab"


def relative_path(path: Path) -> str:
    """A path as one would type it from the current folder."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
