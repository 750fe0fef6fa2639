"""The processes of a run: which of them is the first, that writes files and speaks."""

from __future__ import annotations

import os
import sys

# RANK and LOCAL_RANK are torchrun's (which sets no NODE_RANK), SLURM_PROCID srun's; Lightning gives the processes that it
# starts LOCAL_RANK, on top of the NODE_RANK that the user gave each machine.
VARIABLES = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")


def is_first() -> bool:
    """True if this process writes files: the one that the user started, not a rank that a launcher did."""
    # The environment and not torch.distributed, which knows no rank before the processes have met.
    return all(int(os.environ.get(name, 0)) == 0 for name in VARIABLES)


def rank_zero_print(line: str) -> None:
    """Print a line of a run's own, once whatever the number of ranks."""
    if is_first():
        # A pipe's stdout is buffered by block, and a killed process loses what is in it.
        print(line, flush=True)


def rank_zero_info(line: str) -> None:
    """Print a note beside a command's output, on stderr, once whatever the number of ranks."""
    if is_first():
        print(f"llmlab: {line}", file=sys.stderr, flush=True)
