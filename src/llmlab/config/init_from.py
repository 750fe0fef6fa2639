"""Values of init_from on the command line: hf=FOLDER, or the folder of a run. No torch."""

from __future__ import annotations

import difflib
import os

from llmlab import files
from llmlab.config.spelling import quoted

# "hf:" needs no quotes in Hydra's grammar, "hf=" is what the other commands take.
PREFIXES = ("hf=", "hf:")
# Keys that are typed below init_from, which is a text and has none below it.
TYPED = {
    "init_tokenizer": "init_from.tokenizer",
    "init_embedding": "init_from.embedding",
    "init_adapter": "init_from.adapter",
}


def hf_name(value: str | None) -> str | None:
    """The name after hf= (or hf:) in a value such as that of init_from; None if it has no such prefix."""
    return next((value[len(p) :] for p in PREFIXES if value and value.startswith(p)), None)


def normalise(override: str) -> str:
    """An override as Hydra's grammar wants it: init_from=hf=FOLDER quoted, and what is typed below init_from as the key that
    it is (`TYPED`). Any other as it is."""
    key, equals, value = override.partition("=")
    key = next((k for k, typed in TYPED.items() if typed == key.lstrip("+")), key)
    override = f"{key}{equals}{value}"
    if key.lstrip("+") not in ("init_from", "init_embedding", "init_adapter"):
        return override
    if (name := hf_name(value)) is None:  # a checkpoint of a run, RUN/checkpoints/step=00000040
        return f"{key}={quoted(value)}" if "=" in value and value[0] not in "'\"\\" else override
    return f"{key}={quoted(f'hf={name}')}"


def problem(value: str) -> str | None:
    """Why a value can't be the folder of a run, one of its checkpoints or an export; None if it seems to be."""
    start = files.expanded(value)
    if not os.path.exists(start):
        return f"there is no such run folder{similar(str(start))}"
    # The files of a run, of one of its checkpoints and of an export.
    if not any((start / name).is_file() for name in ("run.json", "manifest.json", "export.json")):
        return "there is no run.json in it; RUN is the folder of a run"
    return None


def vectors_problem(value: str) -> str | None:
    """Why a value can be neither a run nor a file of vectors; None if it seems to be one."""
    if hf_name(value) is not None:
        return "it is the folder of a run or a file of vectors; init_from=hf=FOLDER begins with all weights of a checkpoint"
    start = files.expanded(value)
    if not os.path.exists(start):
        return f"there is no such run folder or file of vectors{similar(str(start))}"
    return problem(value) if start.is_dir() else None


def absolute(value: str) -> str:
    """A value that means the same from any folder; what is to be downloaded, or was, as it is."""
    if (name := hf_name(value)) is None:
        return files.absolute(value)
    # A name on the hub is no path, and stays what it is from any folder.
    return f"hf={files.absolute(name)}" if files.expanded(name).is_dir() else value


def similar(path: str) -> str:
    """A hint at a path that is spelt nearly so, for the end of a line."""
    wanted = files.expanded(path)
    try:
        close = difflib.get_close_matches(wanted.name, [p.name for p in wanted.parent.iterdir()], 1, 0.6)
    except OSError:
        return f"; {wanted.parent} is not a folder"
    return f"; did you mean {wanted.parent / close[0]}?" if close else ""
