"""Contradictions between strategy, precision, placement and devices, as far as the config alone tells: without torch,
so that each point of a sweep is checked before the first begins."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig

# llmlab is tested on these; Lightning also knows tpu and mps.
ACCELERATORS = ("auto", "cpu", "gpu", "cuda")
ZERO = ("zero1", "zero2", "zero3", "zero2_offload", "zero3_offload")
SHARDED = ("fsdp", "fsdp_tp", "zero3", "zero3_offload")  # no device holds all weights
STRATEGIES = ("single", "ddp", "fsdp", "fsdp_tp", *ZERO)
NEEDS_GPU = "precision=16-mixed needs a GPU; on a CPU choose precision=bf16-mixed"


def problems(cfg: DictConfig) -> list[str]:
    """A line each."""
    wanted, devices, name = str(cfg.trainer.accelerator), str(cfg.trainer.devices), cfg.strategy.name
    nodes, split = int(cfg.trainer.num_nodes), cfg.strategy.tensor_parallel
    lines = []
    if wanted not in ACCELERATORS:
        lines.append(f"trainer.accelerator={wanted}: there is no such accelerator here (valid: auto, cpu, gpu)")
    # Lightning's words for all there are, of which a config without torch knows no number.
    count = 1 if devices in ("auto", "-1") else int(devices) if devices.isdigit() else 0
    if count < 1:
        lines.append(f"trainer.devices={devices} must be a number of devices or auto")
    if nodes < 1:
        lines.append(f"trainer.num_nodes={nodes} must be at least 1")
    if lines:
        return lines
    if count * nodes > 1 and name == "single":
        key = f"trainer.devices={devices}" if count > 1 else f"trainer.num_nodes={nodes}"
        lines.append(f"{key} needs a strategy for several: strategy=ddp or strategy=fsdp")
    if split > 1 and name != "fsdp_tp":
        lines.append(f"strategy.tensor_parallel={split} needs strategy=fsdp_tp, but the strategy is {name}")
    elif devices.isdigit() and count % split:
        lines.append(divide(split, count))
    # Each rank has whole heads: their projections are split by rows.
    elif split > 1 and (heads := cfg.model.n_heads) and heads % split:
        lines.append(f"strategy.tensor_parallel={split} does not divide model.n_heads={heads}")
    return lines + _precision(cfg, name, wanted)


def divide(split: int, count: int) -> str:
    """Said where the number of devices is found too."""
    return f"strategy.tensor_parallel={split} does not divide trainer.devices={count} (of a node); make it a multiple"


def _precision(cfg: DictConfig, name: str, accelerator: str) -> list[str]:
    if cfg.precision == "16-mixed":
        if name in ZERO:
            why = f"DeepSpeed's loss scale would not be in a checkpoint; under strategy={name} choose precision=bf16-mixed"
            return [f"precision=16-mixed: {why}"]
        # Lightning would train in bf16-mixed instead, and say so in a warning alone.
        if accelerator == "cpu":
            return [NEEDS_GPU]
        if name.startswith("fsdp"):
            why = f"Lightning can't scale losses under strategy={name}; choose precision=bf16-mixed, or strategy=ddp"
            return [f"precision=16-mixed: {why}"]
    if cfg.placement.compile and name.startswith("zero3"):
        why = "gathers parameters in hooks, at which every graph breaks; leave it out, or choose strategy=fsdp"
        return [f"placement.compile=true: strategy={name} {why}"]
    return []
