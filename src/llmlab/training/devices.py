"""The devices of a run: how many there are, of which kind, and how many groups of them see different data."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from llmlab.config import devices as devices_of
from llmlab.errors import UserError

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from llmlab.config.composed import Composed


@dataclass(frozen=True)
class Devices:
    """The devices of a run: `world` devices of one kind, of which `data_parallel` groups see different data."""

    accelerator: str  # cpu or gpu
    world: int
    data_parallel: int
    nodes: int
    threads: int

    @property
    def device(self) -> torch.device:
        return (
            # torchrun and Lightning's own launcher set LOCAL_RANK; the launcher in the first process only once it has started.
            torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
            if self.accelerator == "gpu"
            else torch.device("cpu")
        )

    def names(self) -> list[str]:
        name = torch.cuda.get_device_name(self.device) if self.accelerator == "gpu" else "cpu"
        return [name] * self.world


def find_devices(cfg: DictConfig) -> Devices:
    """From trainer.accelerator, trainer.devices, trainer.num_nodes and strategy."""
    if wrong := devices_of.problems(cfg):
        raise UserError("\n".join(wrong))
    wanted = str(cfg.trainer.accelerator)
    cuda = torch.cuda.is_available()
    if wanted in ("gpu", "cuda") and not cuda:
        raise UserError(
            f"trainer.accelerator={wanted}: torch finds no GPU on this machine; use trainer.accelerator=cpu"
        )
    accelerator = "cpu" if wanted == "cpu" or not cuda else "gpu"
    devices = str(cfg.trainer.devices)
    name = cfg.strategy.name
    # As Lightning counts: all GPUs, one CPU.
    if devices in ("auto", "-1"):
        # SingleDeviceStrategy takes one device, however many there are.
        count = torch.cuda.device_count() if accelerator == "gpu" and name != "single" else 1
    else:
        count = int(devices)
    if accelerator == "gpu" and count > torch.cuda.device_count():
        raise UserError(f"trainer.devices={count}: this machine has {torch.cuda.device_count()} GPUs")
    nodes = int(cfg.trainer.num_nodes)
    # Lightning takes LOCAL_RANK for a sign that others have started the processes, and would wait for those that are missing.
    started = os.environ.get("WORLD_SIZE") if "LOCAL_RANK" in os.environ else None  # by torchrun, or by rank 0
    if started not in (None, str(count * nodes)):
        raise UserError(
            f"trainer.devices={devices} x trainer.num_nodes={nodes} is not the {started} processes that were started"
        )
    split = cfg.strategy.tensor_parallel
    if count % split:
        raise UserError(devices_of.divide(split, count))
    return Devices(accelerator, count * nodes, count * nodes // split, nodes, torch.get_num_threads())


def check_parts(composed: Composed, devices: Devices) -> None:
    """UserError if several processes are to train a part that is defined in this one alone, as in a cell of a notebook."""
    # Also where the config could not tell: how many devices trainer.devices=auto comes to.
    models = (composed, *(c.composed for c in composed.companions.values() if c.composed is not None))
    alone = [line for model in models for line in model.of_this_process(ranks=True)]
    if devices.world > 1 and alone:
        raise UserError("\n".join(dict.fromkeys(alone)))
