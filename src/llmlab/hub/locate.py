"""Where a checkpoint lies that was named as hf=FOLDER, hf=NAME (brought by `llmlab fetch`) or hf=ORG/NAME. No torch."""

from __future__ import annotations

import re
from pathlib import Path

from llmlab.errors import UserError

PREFIXES = ("hf=", "hf:")
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def named(value: str | None) -> str | None:
    """What follows hf= (or hf:) in a value such as that of init_from; None where it is something else."""
    return next((value[len(p) :] for p in PREFIXES if value and value.startswith(p)), None)


def normal(override: str) -> str:
    """init_from=hf=FOLDER quoted as Hydra's grammar wants it; any other override as it is."""
    key, _, value = override.partition("=")
    if key.lstrip("+") != "init_from" or (name := named(value)) is None:
        return override
    escaped = re.sub(r'(\\*)"', r'\1\1\\"', name)  # a quote, and backslashes before one, are escaped
    return f'{key}="hf={escaped}"'


def locate(name: str) -> Path:
    """The folder of a checkpoint; UserError where there is none."""
    folder = Path(name).expanduser()
    if name and folder.is_dir():
        return folder
    raise UserError(f"hf={name}: there is no such folder")
