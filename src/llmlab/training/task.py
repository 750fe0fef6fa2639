"""A run to be done or gone on with, and the commands that go on with it."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmlab.config.spelling import quoted
from llmlab.errors import UserError
from llmlab.runs import checkpoint, record

if TYPE_CHECKING:
    from collections.abc import Mapping

    from omegaconf import DictConfig

    from llmlab.config.composed import Composed
    from llmlab.config.spec import ModelSpec
    from llmlab.data.corpus import Corpus
    from llmlab.training.companions import Companion

# What may be changed when a run is resumed: all else would make it another run.
MAY_CHANGE: tuple[str, ...] = (
    "trainer.max_steps",
    "trainer.enable_progress_bar",
    "train.keep",
    "train.sample",
    "data.num_workers",
    "data.path",  # where the text lies now: that it is the same, its fingerprint tells
)
# And where it computes, which changes its numbers by the order of sums only.
MAY_CHANGE += ("strategy", "strategy.name", "strategy.tensor_parallel", "train.micro_batch_size")
MAY_CHANGE += ("trainer.accelerator", "trainer.devices", "trainer.num_nodes")
MAY_CHANGE += ("placement.activation_checkpointing", "placement.compile")
MAY_CHANGE += ("logger",)


@dataclass(frozen=True)
class Task:
    """A run to be done: its config and folder; `record`: what an earlier part of it wrote, if it is resumed, and then its
    model, its companions, its text, and the checkpoint to go on from (none: from the start)."""

    composed: Composed
    folder: Path
    record: dict[str, Any]
    spec: ModelSpec | None = None
    companions: Mapping[str, Companion] | None = None
    corpus: Corpus | None = None
    point: Path | None = None
    notes: tuple[str, ...] = ()  # on how it begins

    @property
    def resumes(self) -> bool:
        return bool(self.record)


def steps_text(n: int) -> str:
    return f"{n:,} step{'s' * (n != 1)}"


def last_step(cfg: DictConfig, horizon: int) -> int:
    limit = cfg.trainer.max_steps
    if limit == 0 or limit < -1:
        raise UserError(f"trainer.max_steps={limit} must be at least 1 (or -1: to the end of the budget)")
    return horizon if limit == -1 else min(limit, horizon)


def intact(folder: Path) -> str:
    """Which checkpoint there is to go on from, once what hinders is gone."""
    kept = checkpoint.latest(folder / checkpoint.FOLDER, lambda line: None)
    if kept is None:
        return "there is no checkpoint to go on from"
    return f"the checkpoint of step {checkpoint.step_of(kept):,} is intact: {resume_command(folder)} goes on"


def resume_command(folder: Path) -> str:
    start = "" if checkpoint.all_of(folder / checkpoint.FOLDER) else " resume_from=start"  # which begins it again
    return f"{record.program_name()} train {typed('resume', record.relative_path(folder))}{start}"


def typed(key: str, value: str | Path) -> str:
    """key=value as a shell and Hydra's grammar both take it."""
    # ASCII: Hydra's lexer knows no other letters in a bare word.
    plain = re.fullmatch(r"[\w./~-]+", str(value), re.ASCII)
    return f"{key}={value}" if plain else shlex.quote(f"{key}={quoted(str(value))}")
