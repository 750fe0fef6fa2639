"""What our part makes of inputs that are always the same, by slot."""

from __future__ import annotations

from collections.abc import Callable

from llmlab.check.twins.observers import norm, objective, optimizer, reward, schedule
from llmlab.check.twins.observers.observed import Observed
from llmlab.check.twins.settings import Setting

OBSERVERS: dict[str, Callable[[Setting], Observed]] = {
    "norm": norm.observe,
    "objective": objective.observe,
    "optimizer": optimizer.observe,
    "reward": reward.observe,
    "schedule": schedule.observe,
}
