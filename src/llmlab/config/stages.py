"""Experiments of several runs: a file of conf/experiment with `stages`, which is no config of one run. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

GROUP = "experiment"


def file_of(overrides: Sequence[str], folders: Sequence[Path]) -> Path | None:
    """The file of the experiment that is typed, if it has stages. folders: with the groups of configs."""
    named = [o.partition("=")[2] for o in overrides if o.startswith(f"{GROUP}=")]
    path = next(
        (p for p in (folder / GROUP / f"{n}.yaml" for n in named[-1:] for folder in folders) if p.is_file()), None
    )
    return path if path is not None and has_stages(path) else None


def has_stages(path: Path) -> bool:
    # By its text: most experiments have none, and parsing YAML takes 10 ms.
    return any(line.startswith("stages:") for line in path.read_text(encoding="utf-8").splitlines())
