"""A variant: the runs whose configs are equal but for the seed, and for a tuned key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from llmlab.report.collect import Run


@dataclass
class Tuned:
    """The grid of a variant's tuned key: its best value by the mean over seeds."""

    key: str
    value: str
    grid: list[tuple[str, float | None, int]]  # (value, mean over seeds or None where no run ended, seeds)
    edge: str | None  # "lowest" or "highest" where the best is the grid's end, "only" where nothing was chosen from
    seeds_differ: bool = False  # values that fewer seeds have were no candidates


@dataclass
class Variant:
    """leaves: the flat config. counted: seed -> the run whose numbers are used. left_out: why the others are not."""

    leaves: dict[str, Any]
    parts: set[str]
    runs: list[Run]
    name: str = ""
    keys: dict[str, str] = field(default_factory=dict)
    counted: dict[int, Run] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    beaten: set[str] = field(default_factory=set)  # those of values of the tuned key that are not the best
    tuned: Tuned | None = None

    def values(self, metric: str) -> dict[int, float]:
        return {s: v for s, r in sorted(self.counted.items()) if (v := r.metric(metric)) is not None}

    @property
    def born(self) -> tuple[str, str]:
        """When its oldest run began."""
        return min((r.began, r.name) for r in self.runs)

    def a_record(self) -> Mapping[str, Any]:
        return next(iter(self.counted.values()), self.runs[0]).record
