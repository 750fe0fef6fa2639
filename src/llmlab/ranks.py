"""The processes of a run: which of them is the first, that writes files and speaks."""

from __future__ import annotations

import os

# RANK and LOCAL_RANK are torchrun's (which sets no NODE_RANK), SLURM_PROCID srun's; Lightning gives the processes that it
# starts LOCAL_RANK, on top of the NODE_RANK that the user gave each machine.
VARIABLES = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")


def is_first() -> bool:
    """Whether this process writes files: the one that the user started, not a rank that a launcher did."""
    return all(int(os.environ.get(name, 0)) == 0 for name in VARIABLES)


def say(line: str) -> None:
    if is_first():
        print(line, flush=True)
