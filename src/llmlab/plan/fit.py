"""The largest micro-batch that fits a device's memory, and what to do where none does."""

from __future__ import annotations

from dataclasses import dataclass

from llmlab.plan.memory import Memory, Training, Where, most, plan


@dataclass(frozen=True)
class Fit:
    """micro: sequences, 0 where not one fits; memory: of so many (of one, if none fits); advice: what to choose then."""

    micro: int
    memory: Memory
    advice: str = ""


def largest(training: Training, where: Where, capacity: int, *, checkpointing: bool = False) -> Fit:
    """Sequences a forward that fit `capacity` bytes of each device."""
    micro = most(training, where, capacity, checkpointing=checkpointing)
    memory = plan(training, where, max(1, micro), checkpointing=checkpointing)
    return Fit(micro, memory, "" if micro else advice(memory, where, capacity, checkpointing))


def advice(one: Memory, where: Where, capacity: int, checkpointing: bool) -> str:
    """For a model of which not one sequence fits."""
    lasting = one.weights + one.gradients + one.states
    if lasting > capacity:
        if where.strategy in ("single", "ddp"):
            return "weights, gradients and optimizer alone are too much: choose strategy=fsdp over more devices"
        if where.strategy in ("zero1", "zero2"):
            return "weights, gradients and optimizer alone are too much: choose strategy=zero3, or more trainer.devices"
        return "weights, gradients and optimizer alone are too much: give it more trainer.devices"
    if not checkpointing:
        return "one sequence is too much: choose placement.activation_checkpointing=true, or a shorter data.seq_len"
    return "one sequence is too much: choose a shorter data.seq_len, or more devices with strategy=fsdp_tp"
