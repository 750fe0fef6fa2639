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
from typing import Any

from llmlab.errors import UserError
from llmlab.lab import status
from llmlab.lab.files import write_atomic

NAME = "run.json"
SCHEMA = 1
PACKAGES = ("llmlab", "torch", "lightning", "hydra-core", "omegaconf", "numpy", "tokenizers", "safetensors")


class Record:
    """The fields of a run's record, written as a whole at each update. Only the first rank writes."""

    def __init__(self, folder: Path, fields: Mapping[str, Any] | None = None, *, writes: bool = True):
        self.folder, self.writes = folder, writes
        self.fields: dict[str, Any] = dict(fields or {})

    def update(self, **fields: Any) -> None:
        self.fields.update(fields)
        if self.writes:
            write_atomic(self.folder / NAME, json.dumps(self.fields, indent=1, default=str) + "\n")

    def __getitem__(self, name: str) -> Any:
        return self.fields[name]

    def get(self, name: str, default: Any = None) -> Any:
        return self.fields.get(name, default)


def read(folder: str | Path) -> dict[str, Any]:
    """The record of a run folder, its status true even if the run was killed: "running" without a lock is "died"."""
    folder = Path(folder)
    try:
        fields = json.loads((folder / NAME).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        what = f"has no {NAME}, so it is no run folder" if folder.is_dir() else "there is no such folder"
        if folder.is_file():
            what = "it is a file; name the folder of a run"
        if (folder / "export.json").exists():
            what = "holds exported weights, which are no run to go on with; init_from=... starts a new one from them"
        raise UserError(f"{folder}: {what}") from None
    except (OSError, ValueError) as e:
        raise UserError(f"{folder / NAME} can't be read: {e}") from None
    if fields.get("status") == "running" and not status.is_locked(folder):
        fields["status"] = "died"
        fields["reason"] = "the process ended without a word (killed, or the machine went down)"
    return fields


def parts(config: Mapping[str, Any]) -> dict[str, str]:
    """{place: name of the part} of a plain config: {"attention": "gqa", "kinds.local.window": "sliding", ...}."""

    def walk(node: Any, path: str) -> Iterator[tuple[str, str]]:
        if isinstance(node, Mapping):
            if isinstance(node.get("_part_"), str):
                yield path, node["_part_"]
            for name, value in node.items():
                yield from walk(value, f"{path}.{name}" if path else str(name))

    return dict(walk(config, ""))


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    if commit := _commit():
        found["commit"] = commit
    return found


def _commit() -> str | None:
    """The commit of the checkout that llmlab runs from, "+" after it if files differ from it; None where there is none."""
    here = Path(__file__).resolve().parents[3]
    if not (here / ".git").exists():
        return None
    try:
        run = ["git", "-C", str(here), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+"]
        return subprocess.run(run, capture_output=True, text=True, timeout=5, check=True).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None


def hardware(threads: int, devices: list[str]) -> dict[str, Any]:
    """What the run computes on. devices: names of its accelerators, one each, or of the CPU."""
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
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def command() -> str:
    import shlex

    name = Path(sys.argv[0]).name
    return shlex.join([*(["python", "-m", "llmlab"] if name == "__main__.py" else [name]), *sys.argv[1:]])


def program_name() -> str:
    """How `llmlab` is called here: by its name where the shell finds it, else by its path."""
    import shutil

    if shutil.which("llmlab"):
        return "llmlab"
    script = Path(sys.executable).parent / "llmlab"
    return shown(script) if script.exists() else f"{sys.executable} -m llmlab"


def shown(path: Path) -> str:
    """A path as one would type it from the current folder."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
