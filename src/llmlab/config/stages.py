"""Experiments of several runs: a file of conf/experiment with `stages`, which is no config of one run. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from llmlab.config.model_files import conf_dir

GROUP = "experiment"


def file_of(overrides: Sequence[str], config_dirs: Sequence[str] = ()) -> Path | None:
    """The file of the experiment that is typed, if it has stages."""
    named = [o.partition("=")[2] for o in overrides if o.startswith(f"{GROUP}=")]
    for folder in [*map(Path, config_dirs), conf_dir()] if named else ():
        if (path := folder / GROUP / f"{named[-1]}.yaml").is_file():
            return path if has_stages(path) else None
    return None


def has_stages(path: Path) -> bool:
    # By its text: most experiments have none, and parsing YAML takes 10 ms.
    return any(line.startswith("stages:") for line in path.read_text(encoding="utf-8").splitlines())
