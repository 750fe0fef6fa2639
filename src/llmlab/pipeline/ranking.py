"""Ranked answers of a run: what it says to prompts, in the order of a reward, as preferences are collected of people."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from llmlab.errors import UserError
from llmlab.files import write_atomic
from llmlab.runs.scores import Answered


def lines(prompts: Sequence[str], answers: Sequence[Answered]) -> Iterator[dict[str, Any]]:
    """Records of ranked answers with their scores: of each prompt the different answers that say something, the best first; of
    one whose answers are all worth the same nothing, as it ranks none.

    answers: those to one prompt behind each other.
    """
    each = len(answers) // max(1, len(prompts))
    for i, prompt in enumerate(prompts):
        # In the order in which they were drawn, which sorting keeps among equal ones.
        worth = {a["answer"]: a["reward"] for a in answers[i * each : (i + 1) * each] if a["answer"].strip()}
        if len(set(worth.values())) > 1:
            order = sorted(worth, key=lambda answer: -worth[answer])
            yield {"prompt": prompt, "answers": order, "scores": [worth[answer] for answer in order]}


def write(to: Path, prompts: Path, answers: Sequence[Answered], first: int | None = None) -> int:
    """How many records there are. UserError where the answers are not of these prompts, or none is better than another.

    first: so many of the prompts were asked; None: all.
    """
    asked = [json.loads(line)["prompt"] for line in prompts.read_text(encoding="utf-8").split("\n") if line.strip()]
    asked = asked[:first]
    if not asked or len(answers) % len(asked):
        raise UserError(f"{prompts}: some of its prompts were left out, so that answers can't be told from each other")
    found = list(lines(asked, answers))
    if not found:
        raise UserError(f"{prompts}: all answers to each prompt are worth the same, so that none can be ranked")
    to.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(to, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in found))
    return len(found)
