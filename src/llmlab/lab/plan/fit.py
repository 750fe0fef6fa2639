"""The largest micro-batch that fits a device's memory, and what to do where none does."""

from __future__ import annotations

from dataclasses import dataclass

from llmlab.lab.plan.memory import Memory, Training, Where


@dataclass(frozen=True)
class Fit:
    """micro: sequences, 0 where not one fits; memory: of so many (of one, if none fits); advice: what to choose then."""

    micro: int
    memory: Memory
    advice: str = ""


def largest(training: Training, where: Where, capacity: int, *, checkpointing: bool = False) -> Fit:
    """Sequences a forward that fit `capacity` bytes of each device."""
    raise NotImplementedError
