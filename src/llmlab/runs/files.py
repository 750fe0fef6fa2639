"""Files that a run writes once, when it begins, and the hashes by which damage to them is seen."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from llmlab.errors import UserError
from llmlab.files import sha256
from llmlab.runs import record

CONFIG, SPEC, EXPORT = "config.yaml", "model.json", "export.json"
TOKENIZER = ("tokenizer.json", "special.json")
BESIDE = ("tokenizer_config.json", "chat_template.jinja")  # where the tokenizer came with them
FILES = (CONFIG, SPEC, *TOKENIZER, *BESIDE)  # written once, when a run begins
COMPANIONS = "models"  # the folder of models/ROLE.json, the other models that its objective works with


def spec_of(role: str) -> str:
    """The file of a companion's model, as model.json is of the trained one's."""
    return f"{COMPANIONS}/{role}.json"


def hashes(folder: Path) -> dict[str, str]:
    """{name: sha256} of what a run writes once, for its record."""
    # Sorted: glob gives the order of the file system.
    names = [*FILES, *(f"{COMPANIONS}/{p.name}" for p in sorted((folder / COMPANIONS).glob("*.json")))]
    return {n: sha256(folder / n) for n in names if (folder / n).is_file()}


def identity(folder: Path) -> str | None:
    """A hash of the model and the tokenizer of a run, by which its checkpoints know it; None where no record has
    their hashes, as in older folders.
    """
    try:
        files = record.read(folder).get("files") or {}
    except UserError:
        return None
    # Not the config, of which a run that goes on may change some keys.
    text = json.dumps([files.get(n) for n in (SPEC, *TOKENIZER)])
    return hashlib.sha256(text.encode()).hexdigest() if files else None


def damaged(folder: Path, names: Iterable[str], fields: Mapping[str, Any]) -> dict[str, str]:
    """{file: what is wrong with it}, of those whose hash the record has."""
    problems = {}
    for name in names:
        if (expected := (fields.get("files") or {}).get(name)) is None:
            continue
        try:
            # A pipe would wait for a writer.
            if not (folder / name).is_file():
                problems[name] = "is no ordinary file" if (folder / name).exists() else "is gone"
            elif sha256(folder / name) != expected:
                problems[name] = f"is not as the run wrote it (its sha256 is not the one in {record.NAME})"
        except OSError as e:
            problems[name] = f"can't be read: {e.strerror}"
    return problems


def undamaged(folder: Path, names: Iterable[str], fields: Mapping[str, Any]) -> None:
    """UserError for the first file that is not as the run wrote it."""
    for name, why in damaged(folder, names, fields).items():
        raise UserError(f"{folder / name} {why}; bring it back from a copy of the run")
