"""Results of the mutants of a file; and equivalents, changes that are argued to make no difference."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from mutants.mutant import Mutant
from mutants.store import Outcome

EQUIVALENTS = Path(__file__).with_name("equivalents.toml")


@dataclass(frozen=True)
class Equivalent:
    """A change without any effect that can be seen. `line`: the source of its line, since numbers change; `argument`: why."""

    file: str
    line: str
    change: str
    argument: str


@cache
def equivalents(path: Path = EQUIVALENTS) -> tuple[Equivalent, ...]:
    return tuple(Equivalent(**entry) for entry in tomllib.loads(path.read_text(encoding="utf-8")).get("equivalent", ()))


def equivalent(mutant: Mutant, source: str, known: Sequence[Equivalent]) -> Equivalent | None:
    line = source.split("\n")[mutant.line - 1].strip()
    return next((e for e in known if (e.file, e.line, e.change) == (mutant.file, line, mutant.change)), None)


@dataclass
class FileResult:
    """`total`: how many mutants the file has, of which `mutants` were drawn; equivalents are in neither."""

    file: str
    mutants: Sequence[Mutant]
    total: int = 0
    outcomes: dict[tuple[str, str], Outcome] = field(default_factory=dict)  # by id and by who was asked

    def killed_by(self, mutant: Mutant, by: str) -> bool:
        outcome = self.outcomes.get((mutant.id, by))
        return outcome is not None and outcome.killed

    def killed(self, mutant: Mutant) -> bool:
        return self.killed_by(mutant, "check") or self.killed_by(mutant, "tests")

    def asked(self, sides: Sequence[str]) -> list[Mutant]:
        """Mutants whose fate is known: killed by one side (check or tests), or alive after all of `sides` were run."""
        return [m for m in self.mutants if self.killed(m) or all((m.id, by) in self.outcomes for by in sides)]

    def survivors(self, sides: Sequence[str]) -> list[Mutant]:
        return [m for m in self.asked(sides) if not self.killed(m)]


def wilson(hits: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927), in percent."""
    if n == 0:
        return 0.0, 100.0
    p = hits / n
    middle, spread = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = (100 * (middle + side) / (1 + z * z / n) for side in (-spread, spread))
    return max(0.0, low), min(100.0, high)


def share(hits: int, n: int, whole: bool) -> str:
    """A percentage, with its interval where only a sample was asked."""
    if n == 0:
        return "–"
    text = f"{100 * hits / n:.1f} %"
    return text if whole else f"{text} ({'{:.0f}–{:.0f}'.format(*wilson(hits, n))})"
