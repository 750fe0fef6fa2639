"""The interface of a logger."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from llmlab.runs.answers import Judged


class Sink(Protocol):
    """Something that a run reports to. Every method runs in a thread of the sink's own and may raise or hang."""

    end_seconds: float  # after which `end` is given up

    def begin(self, record: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
        """Fields that run.json keeps of it; `see`: how to look at it, `say`: a line for the user or None."""

    def row(self, step: int, tokens: int, values: Mapping[str, float]) -> None: ...
    def sample(self, step: int, prompt: str, text: str) -> None: ...
    def answers(self, step: int, judged: Sequence[Judged]) -> None:
        """Answers to some held-out prompts at a validation, with their rewards."""

    def load(self, step: int, counts: Mapping[str, list[int]]) -> None:
        """Tokens that each expert of each routed layer had in the optimizer step."""

    def end(self, record: Mapping[str, Any], checkpoint: Path | None) -> None:
        """checkpoint: the final one, of a run that is complete."""

    def abandon(self) -> None:
        """It failed or hangs: leave nothing that could hold up the process. Called from any thread."""
