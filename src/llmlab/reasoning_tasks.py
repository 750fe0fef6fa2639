"""The tasks of the package reasoning-gym, which makes questions and scores answers; imported where it is asked for."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from llmlab.errors import UserError, near

FIELD = "reasoning_gym"  # of a record: [task, seed, size, index, CRC-32 of the question], by which it is made again
SEED = 0
# A process of its own, as some tasks (polynomial_multiplication of 0.1.25) go through sets: with another hash seed, which
# Python draws for each process, the same seed gives other questions. Some tasks print.
MAKE = """
import json, sys, zlib, reasoning_gym
out, sys.stdout = sys.stdout, sys.stderr
task, seed, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
for i, made in enumerate(reasoning_gym.create_dataset(task, seed=seed, size=size)):
    how = [task, seed, size, i, zlib.crc32(made["question"].encode())]
    print(json.dumps([made["question"], made["answer"], how]), file=out)
"""


def package() -> Any:
    """The package. UserError without it."""
    try:
        return importlib.import_module("reasoning_gym")
    except ImportError:
        raise UserError('reasoning_gym is not installed: pip install "llmlab[reasoning]"') from None


def tasks() -> list[str]:
    package()
    # "composite" is made of others, which it has to be told.
    return sorted(set(importlib.import_module("reasoning_gym.factory").DATASETS) - {"composite"})


def made(task: str, size: int) -> Iterator[tuple[str, str | None, list[Any]]]:
    """(question, answer, FIELD's value) of a task's first `size` questions, without those that were there before.

    UserError for a task that is none.
    """
    if task not in (known := tasks()):
        raise UserError(f"data.task={task}: reasoning_gym has no such task; {near(task, known)}")
    done = subprocess.run(
        [sys.executable, "-c", MAKE, task, str(SEED), str(size)],
        env={**os.environ, "PYTHONHASHSEED": "0"},
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    if done.returncode:
        raise UserError(f"data.task={task}: reasoning_gym failed: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
    seen = set[str]()
    for line in done.stdout.splitlines():
        question, answer, how = json.loads(line)
        if question not in seen:
            seen.add(question)
            yield question, answer, how


def version() -> str:
    return importlib.metadata.version("reasoning-gym")
