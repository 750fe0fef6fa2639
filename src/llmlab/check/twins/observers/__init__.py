"""Observers by slot: each builds our part at a setting, and calls it with inputs that are always the same."""

from __future__ import annotations

from collections.abc import Callable

from llmlab.check.twins.observers import (
    adapter,
    alignment,
    attention,
    block,
    embedding,
    ffn,
    filter,
    head,
    init,
    kernel,
    moe,
    norm,
    objective,
    optimizer,
    position,
    reward,
    schedule,
    visibility,
)
from llmlab.check.twins.observers.observed import Observed
from llmlab.check.twins.settings import Setting

OBSERVERS: dict[str, Callable[[Setting], Observed]] = {
    "adapter": adapter.observe,
    "alignment": alignment.observe,
    "attention": attention.observe,
    "block": block.observe,
    "embedding": embedding.observe,
    "ffn": ffn.observe,
    "filter": filter.observe,
    "head": head.observe,
    "init": init.observe,
    "kernel": kernel.observe,
    "mask": visibility.mask,
    "moe": moe.observe,
    "norm": norm.observe,
    "objective": objective.observe,
    "optimizer": optimizer.observe,
    "position": position.observe,
    "reward": reward.observe,
    "schedule": schedule.observe,
    "window": visibility.window,
}
