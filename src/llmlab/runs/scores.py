"""What `llmlab eval reward=` finds, in the run's folder: scores/NAME.json, and scores/NAME.jsonl with every answer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NotRequired, TypedDict

from llmlab.files import write_atomic

FOLDER = "scores"


class Measured(TypedDict):
    """A mean over prompts and the ends of its 95 % interval, None for a single prompt."""

    mean: float
    low: float | None
    high: float | None


class BestOf(TypedDict):
    """The best of n answers. chosen_by: the reward that chooses. kl_at_most: to the policy that they are drawn from."""

    n: int
    chosen_by: str
    reward: Measured
    win_rate: NotRequired[Measured]
    kl_at_most: float


class Score(TypedDict):
    """A run by a reward. prompts, answers: numbers of both. ended: the share of answers with an end. kl: of an answer, to the
    reference, nats; no_kl: why there is none; cut: lines on prompts that the model has no room for."""

    run: str
    reward_by: str
    data: str
    reference: str | None
    prompts: int
    answers: int
    samples: int
    max_new: int
    temperature: float
    seed: int
    reward: Measured
    kl: NotRequired[Measured]
    no_kl: NotRequired[str]
    win_rate: NotRequired[Measured]
    best_of: NotRequired[BestOf]
    answer_length: float
    ended: float
    cut: NotRequired[list[str]]


class Answered(TypedDict):
    """An answer. ids: of its tokens, which a text does not always tell. win: how often it is worth more than one of the
    reference; score: by the reward that chooses; chosen: its chance to be the best of n."""

    prompt: str
    answer: str
    ids: list[int]
    reward: float
    ended: bool
    kl: NotRequired[float]
    win: NotRequired[float]
    score: NotRequired[float]
    chosen: NotRequired[float]


def write(home: Path, name: str, score: Score, answers: Sequence[Answered]) -> Path:
    """The file with the answers."""
    folder = home / FOLDER
    folder.mkdir(exist_ok=True)
    at = folder / f"{name}.jsonl"
    # In the letters of the text: \u escapes can't be read by whoever looks into the file.
    write_atomic(at, "".join(json.dumps(a, ensure_ascii=False) + "\n" for a in answers))
    # The numbers last, so that they are never there without the answers that they are of.
    write_atomic(folder / f"{name}.json", json.dumps(score, indent=1) + "\n")
    return at
