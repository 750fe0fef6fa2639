"""`llmlab plan`: what a run would cost, before there is one. Nothing is built but on the meta device; no data is read."""

from __future__ import annotations

import json as json_module
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from llmlab.commands.arguments import parse
from llmlab.errors import UserError

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from llmlab.config.composed import Composed
    from llmlab.plan.build import ThisMachine
    from llmlab.plan.subject import Subject

USAGE = """\
llmlab plan GROUP=CHOICE KEY=VALUE ...  [device=h100] [mfu=0.4] [memory=GIB] [--json]
llmlab plan hf=FOLDER KEY=VALUE ...     the model of a config.json; no weights are needed

Prints, for the run that `llmlab train` would start with the same choices: parameters by component, the table of layers, FLOPs
and KV cache per token, memory per device under each strategy, the largest micro-batch that fits, and time and energy.
  device=h100    accelerator whose peak, memory and watts count: {devices};
                 without it, on a machine that has no GPU, what this machine would take comes first
  mfu=0.4        model FLOPs utilization: the share of the peak that the run reaches
  memory=80      GiB per device instead of the data sheet's, or per process on CPUs
  --json         parameters.total, .active and .trainable, flops_per_token, kv_bytes_per_token, memory, in numbers and bytes

  llmlab plan model=llama3_8b strategy=zero3 trainer.devices=8 precision=bf16-mixed data.seq_len=8192 budget.tokens=15e12
  llmlab plan model=gpt2_small attention=mla     what a swap costs"""


GIB = 2**30
DEVICE = "h100"


@dataclass
class Arguments:
    hf: str | None = None
    device: str | None = None
    mfu: float = 0.4
    memory: float | None = None
    json: bool = False


def main(argv: Sequence[str]) -> int:
    from llmlab.plan.accelerators import ACCELERATORS, accelerator

    if "-h" in argv or "--help" in argv:
        print(USAGE.format(devices=", ".join(ACCELERATORS)))
        return 0
    own, overrides, folders = _split(argv)
    a = parse(own, Arguments, "plan")
    if going_on := [o for o in overrides if o.lstrip("+~").partition("=")[0] in ("resume", "resume_from")]:
        raise UserError(f"{' '.join(going_on)}: a plan is of a run from its beginning; leave it out")
    device = accelerator(a.device or DEVICE)
    if not 0 < a.mfu <= 1:
        raise UserError(f"mfu={a.mfu:g} must be more than 0 and at most 1")
    if a.memory is not None and not (math.isfinite(a.memory) and a.memory * GIB >= 1):
        raise UserError(f"memory={a.memory:g} must be a number of GiB above 0, of a byte at least")
    composed: Composed | None = None
    # Composed before torch is imported, so that what is wrong with the words is said at once.
    if a.hf is None:
        composed = _composed(overrides, folders)
        _on_cpu(composed.cfg, own)
    elif whole := [o for o in overrides if o.lstrip("+~").partition("=")[0] in ("model", "size")]:
        raise UserError(f"{' '.join(whole)}: hf={a.hf} has a model and sizes of its own; leave out one or the other")

    import torch

    from llmlab.plan import build, subject, terminal
    from llmlab.training import preflight

    if composed is not None:
        planned = subject.of_config(composed)
    else:
        assert a.hf is not None
        planned = subject.of_checkpoint(a.hf, overrides, folders)
    on_cpu = _on_cpu(planned.cfg, own)
    shared = on_cpu and a.memory is None
    capacity = preflight.available(torch.device("cpu")) if shared else device.memory
    if a.memory is not None:
        capacity = int(a.memory * GIB)
    if capacity is None:
        raise UserError("trainer.accelerator=cpu: this machine does not say how much memory it has; give memory=GIB")
    plan = build.build(planned, None if on_cpu else device, a.mfu, capacity, shared=shared)
    if (
        not on_cpu
        and a.device is None
        and not torch.cuda.is_available()
        and str(planned.cfg.trainer.accelerator) == "auto"
    ):
        plan = replace(plan, here=_here(planned, a.mfu))
    if a.json:
        print(json_module.dumps(build.to_json(plan), indent=1))
    else:
        terminal.show(plan)
    return 0


def _here(planned: Subject, mfu: float) -> ThisMachine | None:
    """An estimate of the run on this machine's CPUs, whose best product is measured once."""
    import os

    import torch

    from llmlab.data import cache
    from llmlab.plan import build
    from llmlab.training import meter, preflight
    from llmlab.training.placement import COMPUTED

    cpu = torch.device("cpu")
    if (capacity := preflight.available(cpu)) is None:
        return None
    # cpu_count has all cores of the machine; those that taskset, Slurm
    # or a container's cpuset leave are known to Linux alone.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    peak = meter.matmul_peak(cpu, COMPUTED[planned.cfg.precision], cache.root())
    return build.this_machine(planned, cores, capacity, peak, mfu)


def _on_cpu(cfg: DictConfig, own: Sequence[str]) -> bool:
    """UserError for what was typed of accelerators, which a run on CPUs has none of."""
    if str(cfg.trainer.accelerator) != "cpu":
        return False
    if typed := [w for w in own if w.partition("=")[0] in ("device", "mfu")]:
        raise UserError(
            f"{' '.join(typed)}: not with trainer.accelerator=cpu, for which there are no peaks; leave it out"
        )
    return True


def _composed(overrides: list[str], folders: list[str]) -> Composed:
    from llmlab.config.aliases import ARGUMENTS
    from llmlab.config.guess import argument
    from llmlab.runs.compose import compose

    try:
        return compose(overrides, folders)
    except UserError as e:
        keys = [o.partition("=")[0] for o in overrides]
        mine = Arguments.__annotations__
        said = str(e).splitlines()
        own = [k for k in keys if get_close_matches(k, mine, 1, 0.7) or set(ARGUMENTS.get(k, ())) & set(mine)]
        for key in own:  # in the line of the key itself, where there is one
            at = next((i for i, line in enumerate(said) if line.startswith(f"{key}: there is no such key")), None)
            if at is not None:
                said[at] += f"; of llmlab plan itself, {argument(key, mine)}"
        raise UserError("\n".join(said)) from e


def _split(argv: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """Arguments of plan, overrides as of `llmlab train`, and --config-dir's folders."""
    from llmlab.commands import train

    own = [w for w in argv if w.partition("=")[0].removeprefix("--") in Arguments.__annotations__]
    flags, overrides = train.split([w for w in argv if w not in own])
    if other := [f for f in flags[::2] if f not in train.CONFIG_DIR]:
        raise UserError(f"{other[0]} is for llmlab train; llmlab plan shows one run")
    folders = flags[1::2]
    for folder in folders:
        if not Path(folder).is_dir():
            raise UserError(f"--config-dir {folder}: there is no such folder")
    return own, overrides, folders
