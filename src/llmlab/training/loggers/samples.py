"""Samples of what the model writes as it trains: a text at some of its validations, kept in samples.jsonl."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypedDict

from llmlab.errors import UserError
from llmlab.files import write_atomic
from llmlab.json_files import json_lines, parse_json

if TYPE_CHECKING:
    from llmlab.training.module import Offline
    from llmlab.training.recipe import Recipe

NAME = "samples.jsonl"
TOKENS = 40


class Sample(NamedTuple):
    step: int
    prompt: str
    text: str


class Line(TypedDict):
    """A sample as it is written."""

    step: int
    prompt: str
    text: str


class Samples:
    """At most `most` texts over a run of `horizon` steps that validates each `every` steps. Which steps, the numbers alone
    decide, so that a resumed run writes at the same ones."""

    def __init__(self, folder: Path, recipe: Recipe, *, most: int, every: int, horizon: int):
        self.path, self.recipe = folder / NAME, recipe
        self.every = every * math.ceil(max(horizon // every, 1) / most)

    def due(self, step: int) -> bool:
        return step > 0 and step % self.every == 0

    def take(self, step: int, module: Offline) -> tuple[str, str] | None:
        """(prompt, text) from the model as it is; None for one that can't write. UserError where it is sharded or compiled.

        The generator of its own draws, so that the run's random numbers are what they would be without.
        """
        from llmlab.training.sample_text import sample

        if not module.strategy.whole:  # each token would gather all layers, and only the first rank writes
            raise UserError("no device has the whole model while it trains")
        if module.placement.compile:
            raise UserError("it would be compiled anew for every length (placement.compile=true)")
        assert module.model is not None
        text = sample(self.recipe, module.model, tokens=TOKENS)
        if text is not None:
            with open(self.path, "a", encoding="utf-8") as f:
                # In the letters of the text: \u escapes can't be read by whoever looks into the file.
                f.write(json.dumps(Sample(step, *text)._asdict(), ensure_ascii=False) + "\n")
        return text

    def cut(self, step: int) -> None:
        """Drop what was written behind `step`: a resumed run writes it again."""
        if self.path.exists():
            kept = [s for s in read(self.path) if s.step <= step]
            write_atomic(self.path, "".join(json.dumps(s._asdict(), ensure_ascii=False) + "\n" for s in kept))


def read(path: Path) -> list[Sample]:
    """The texts of a samples.jsonl; a torn last line is left out."""
    texts: list[Sample] = []
    if not path.exists():
        return texts
    with path.open(encoding="utf-8", newline=None) as f:
        for _, line in json_lines(f):
            try:
                texts.append(Sample(**parse_json(line, Line, str(path))))
            except (UserError, TypeError):  # torn, or with other keys
                continue
    return texts
