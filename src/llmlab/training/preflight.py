"""Preflight checks: errors that would end a run after its folder was made, raised before anything is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from llmlab.config.devices import SHARDED
from llmlab.decoding.generate import limit
from llmlab.errors import UserError
from llmlab.model import build, flops, split_table
from llmlab.runs import checkpoint, record, text
from llmlab.runs.folder import home, is_foreign, load
from llmlab.training.companions import naming_role, same_frozen

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from llmlab.config.spec import ModelSpec
    from llmlab.model.model import Model
    from llmlab.runs.vectors import Rows
    from llmlab.slots import OptimizerPart
    from llmlab.training.devices import Devices
    from llmlab.training.recipe import Recipe

MEMINFO, CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup/memory.max")


def check(cfg: DictConfig, recipe: Recipe, devices: Devices, weights: Path | None) -> None:
    """UserError if a part refuses what it was given, the text is longer than the model's positions, the weights to begin
    with are another model's, or the memory can't hold the model and its optimizer.
    """
    parts(recipe.spec, devices.device.type, cfg.precision)
    model = recipe.model
    reaches(model, cfg.data.seq_len, begun=weights is not None)
    if weights is not None and is_foreign(weights):
        from llmlab.hub import begin

        begin.check(weights)
    elif weights is not None:
        _fit(weights, model)
    others = {role: recipe.models[role] for role in recipe.companions}
    for role, other in others.items():
        with naming_role(role):
            parts(other.spec, devices.device.type, cfg.precision)
    counts = [flops.count_parameters(other) for other in others.values()]
    same = 0
    if cfg.strategy.name not in SHARDED:
        same = sum(p.numel() for c in recipe.companions.values() for p in same_frozen(model, c).values())
    _memory(cfg, recipe, devices, counts, same)


def parts(spec: ModelSpec, device: str, precision: str) -> None:
    """UserError if the init refuses its options, or the kernel to train on a `device`, cpu or cuda."""
    try:
        # Built and thrown away: a part refuses bad options in its __init__, with a ValueError.
        spec.init.factory()()
        if check_kernel := getattr(spec.kernel.factory()(), "check_training", None):
            check_kernel(device, precision)
    except ValueError as e:
        raise UserError(str(e)) from e


def reaches(model: Model, length: int, *, begun: bool = False) -> None:
    """UserError if one stack has fewer positions than the text has tokens; what two read, `cost.estimate` tells.

    begun: from weights that are there, whose table of positions can't be longer.
    """
    room = limit(model)
    if model.spec.topology != "encoder_decoder" and room is not None and length > room:
        fix = "set model.max_positions to as many, or choose position=rope"
        if begun:
            fix = f"the weights of init_from have no more, so set data.seq_len={room} or less"
        raise UserError(
            f"data.seq_len={length} is more than the {room} positions that model.max_positions gives; {fix}"
        )


def heads_begun(weights: Path | None, spec: ModelSpec, labels: Sequence[str] | None = None) -> tuple[str, ...]:
    """Notes on heads that the weights to begin with lack, on those of theirs that are not trained, and on one that was trained
    for other classes than the `labels` of the data."""
    if weights is None:
        return ()
    theirs: list[str] | None = None
    if is_foreign(weights):
        from llmlab.hub.load import describe

        there = describe(weights).spec.heads
    else:
        there = load(home(weights))[1].heads
        theirs = (text.recorded_fields(home(weights)).get("data") or {}).get("labels")
    new, unused = ([r for r in a if r not in b] for a, b in ((spec.heads, there), (there, spec.heads)))
    parts = [f"{', '.join(new)} {'is' if len(new) == 1 else 'are'} new"] * bool(new)
    parts += [f"{', '.join(unused)} of it {'is' if len(unused) == 1 else 'are'} left out"] * bool(unused)
    notes: tuple[str, ...] = (f"init_from: of the heads {' and '.join(parts)}",) if parts else ()
    if labels is not None and theirs not in (None, list(labels)) and not new:
        notes += (f"init_from: its head was trained for other classes ({', '.join(theirs[:8])})",)
    return notes


def vectors_fit(start: str, rows: Rows, model: Model) -> None:
    """UserError if the token tables of a model can't begin with these vectors."""
    tables, part = build.token_tables(model), model.spec.stacks[0].embedding
    if not tables:
        raise UserError(
            f"init_from.embedding={start}: embedding={part.name} has no table of token vectors to begin with"
        )
    for path, table in tables.items():
        if table.shape[1] != rows.width:
            option = part.attribute("width_option")
            fix = f"model.dim={rows.width}" + (f" or embedding.{option}={rows.width}" if option else "")
            raise UserError(
                f"init_from.embedding={start}: its vectors have {rows.width} numbers each, but those of {path} "
                f"{table.shape[1]}; give {fix}"
            )


def bounded(spec: ModelSpec) -> bool:
    """True if model.max_positions makes a difference to a model's positions: built for one more they are another."""
    more = spec.sizes.max_positions + 1
    stacks = tuple(replace(s, sizes=s.sizes.but(max_positions=more)) for s in spec.stacks)
    pair = [build.assemble(s) for s in (spec, replace(spec, sizes=spec.sizes.but(max_positions=more), stacks=stacks))]
    one, other = ([_plain(p) for stack in m.all_stacks() for p in stack.positions] for m in pair)
    return one != other


def _plain(module: nn.Module) -> list[Any]:
    values = [(k, v) for k, v in vars(module).items() if isinstance(v, int | float | str | tuple | list)]
    return [*values, *(p.shape for p in module.parameters())]


def _fit(path: Path, model: Model) -> None:
    """From the header of the file alone: no tensor is read."""
    try:
        # safetensors reads the header alone: shapes of a model of any size take milliseconds.
        with safe_open(path / checkpoint.WEIGHTS, "pt") as f:
            there = {n: torch.empty(f.get_slice(n).get_shape(), device="meta") for n in f.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as e:
        raise UserError(f"init_from={record.relative_path(path)}: {checkpoint.problem(path) or e}") from e
    there |= {alias: there[owner] for alias, owner in checkpoint.tied(path).items()}
    there = split_table.fitted(there, model.spec)
    if wrong := build.mismatches(*build.shared(model.state_dict(keep_vars=True), there)):
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise UserError(
            f"init_from={record.relative_path(path)}: the weights do not fit this model: {'; '.join(wrong[:3])}{more}; "
            f"give the sizes and parts that they were trained with{_typed(path)}"
        )


def _typed(path: Path) -> str:
    """The words typed for the run that weights are of, where its record lies beside them."""
    try:
        words = record.read(home(path))["overrides"]
    except (UserError, KeyError):
        return ""
    return f": {' '.join(words) or 'the defaults'}"


def _memory(cfg: DictConfig, recipe: Recipe, devices: Devices, others: Sequence[flops.Parameters], same: int) -> None:
    """Weights, gradients and the optimizer's state must fit: what is computed on the way comes on top and isn't counted.

    same: parameters of the others that are the trained model's own.
    """
    free = available(devices.device)
    # Each process has a copy of all of it.
    whole = cfg.strategy.name in ("single", "ddp")
    if free is None or not (whole or devices.device.type == "cpu"):
        return
    copies = max(1, devices.world // devices.nodes) if whole and devices.device.type == "cpu" else 1
    counts = recipe.cost.parameters
    # Mixed precision keeps parameters, gradients and states in float32: autocast's copies come and go.
    number = 2 if cfg.precision == "bf16-true" else 4
    each = number * (2 + states(recipe.optimizer))
    frozen = counts.total - counts.trainable  # weights alone
    needed = sum(c.trainable * each + (c.total - c.trainable) * number for c in (counts, *others)) - same * number
    needed *= copies
    if needed > free:
        each_process = f" in each of {copies} processes" if copies > 1 else ""
        sizes = recipe.spec.sizes
        learning = f", {counts.trainable:,} of which learn" if frozen else ""
        beside = f" beside the {sum(c.total for c in others) - same:,} of other models" if others else ""
        each_of = f"{each:.0f} bytes each{' that learns' if frozen else ''}{each_process}"
        raise UserError(
            f"model.dim={sizes.dim} and model.n_layers={cfg.model.n_layers} make {counts.total:,} parameters{learning}{beside}"
            f", which need {_gib(needed)} to train ({each_of}: weights, gradients, the optimizer's state), but "
            f"{_gib(free)} are free; choose a smaller size"
        )


def states(optimizer: OptimizerPart) -> float:
    """Numbers that an optimizer keeps for each parameter: 2 for Adam."""
    # A step on a small matrix: what an optimizer of the user's own keeps is nowhere declared.
    weight = nn.Parameter(torch.zeros(8, 8))
    weight.grad = torch.zeros(8, 8)
    try:
        made = optimizer.build([("weight", weight, "q")])
        made.step()
        kept = [v for s in made.state.values() for v in s.values() if isinstance(v, torch.Tensor) and v.dim()]
    except Exception:
        # An optimizer that can't take a lone matrix is counted as if it kept nothing.
        return 0.0
    return sum(v.numel() for v in kept) / weight.numel()


def available(device: torch.device) -> int | None:
    """Bytes that can be had on a device now, of the CPU's within what the container may have; None where it isn't said."""
    if device.type == "cuda":
        # Free by the driver's count: other processes on the device have their share already taken off.
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = dict(line.split(":", 1) for line in MEMINFO.read_text(encoding="utf-8").splitlines())
        # Not MemFree, which leaves out the cache of files that the kernel gives back at once (proc(5)).
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
    try:
        return min(
            free, int(CGROUP.read_text(encoding="utf-8"))
        )  # version 2 of control groups; within a container its own is at the top
    except (OSError, ValueError):  # "max": no limit
        return free


def _gib(n: float) -> str:
    return f"{n / 2**30:,.1f} GiB" if n < 100 * 2**30 else f"{n / 2**30:,.0f} GiB"
