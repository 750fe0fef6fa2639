"""answers.jsonl: some answers of a model to held-out prompts with their rewards, at each validation of a run that acts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TypedDict

from llmlab.errors import UserError
from llmlab.files import write_atomic
from llmlab.json_files import json_lines, parse_json

NAME = "answers.jsonl"
SHOWN = 8  # of a validation, always to the same prompts
COLUMNS = ("step", "prompt", "answer", "reward", "tokens", "ended")


class Judged(NamedTuple):
    """An answer and what it is worth. tokens: its length. ended: it has an end, and was not cut at the longest length."""

    prompt: str
    answer: str
    reward: float
    tokens: int
    ended: bool


class Line(TypedDict):
    """An answer as it is written."""

    step: int
    prompt: str
    answer: str
    reward: float
    tokens: int
    ended: bool


def append(folder: Path, step: int, judged: Sequence[Judged]) -> None:
    with open(folder / NAME, "a", encoding="utf-8") as f:
        # In the letters of the text: \u escapes can't be read by whoever looks into the file.
        f.writelines(json.dumps({"step": step, **j._asdict()}, ensure_ascii=False) + "\n" for j in judged)


def read(folder: Path) -> list[Line]:
    """The answers of a run, in the order of steps; none of a run that wrote none. A torn last line is left out."""
    found: list[Line] = []
    path = folder / NAME
    if path.exists():
        with path.open(encoding="utf-8", newline=None) as f:
            for _, line in json_lines(f):
                try:
                    found.append(parse_json(line, Line, str(path)))
                except UserError:
                    continue
    return found


def cut(folder: Path, step: int, *, keep_validation: bool) -> None:
    """Drop what was written behind `step`, and, where not wanted, of the validation at `step` itself: as rows of
    metrics.csv."""
    if (folder / NAME).exists():
        kept = [a for a in read(folder) if a["step"] < step or (a["step"] == step and keep_validation)]
        write_atomic(folder / NAME, "".join(json.dumps(a, ensure_ascii=False) + "\n" for a in kept))
