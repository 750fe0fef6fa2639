"""A plan: all that is known of a run before it has begun, as one value that is shown or written."""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from llmlab.config import rollouts, stand_ins
from llmlab.config.devices import STRATEGIES, ZERO, problems
from llmlab.model import flops
from llmlab.model.table import describe
from llmlab.plan import components, memory
from llmlab.plan.accelerators import Accelerator, Run, run
from llmlab.plan.fit import Fit, largest
from llmlab.plan.subject import Subject
from llmlab.training.budget import horizon
from llmlab.training.placement import COMPUTED
from llmlab.training.strategies import elementwise

if TYPE_CHECKING:
    from omegaconf import DictConfig


SPREAD = tuple(s for s in STRATEGIES if s not in ("single", "fsdp_tp"))
COMPARED = 8  # devices of the strategies beside a run on one


@dataclass(frozen=True)
class Held:
    """Memory of a device under a strategy, as the micro-batch is, and the largest micro-batch that fits its capacity.

    recomputed, recomputed_fit: with placement.activation_checkpointing=true, where the others are without it.
    """

    strategy: str
    devices: int
    capacity: int
    micro: int
    plain: memory.Memory
    recomputed: memory.Memory
    fit: Fit
    recomputed_fit: Fit


@dataclass(frozen=True)
class ThisMachine:
    """This machine's CPUs: bytes that a process of the run may have, what it takes, and the budget's time.

    seconds: at a share `mfu` of flops_per_second, what its best matrix product was measured at; None where the budget
    itself is a time.
    """

    cores: int
    capacity: int
    total: int
    micro: int
    flops_per_second: float
    seconds: float | None


@dataclass(frozen=True)
class Plan:
    """capacity: bytes of a device under the run's own strategy. kv, kv_source: bytes that a token leaves in the cache, one
    of the text, one of what an encoder has read."""

    subject: Subject
    device: Accelerator | None
    mfu: float
    capacity: int
    groups: tuple[components.Group, ...]
    layers: tuple[str, ...]
    kv_numbers: int
    kv: int
    kv_source: int
    held: tuple[Held, ...]  # the first is the run's own
    run: Run | None
    here: ThisMachine | None = None  # where there is no GPU and no device was named

    @property
    def others(self) -> dict[str, flops.Parameters]:
        """Parameters of the objective's other models, by role, without what they share."""
        return {role: flops.count_parameters(model) for role, model in self.subject.others.items()}

    @property
    def devices(self) -> int:
        return self.subject.where.data_parallel * self.subject.where.tensor_parallel


def build(subject: Subject, device: Accelerator | None, mfu: float, capacity: int, *, shared: bool = False) -> Plan:
    """capacity: bytes of a device; shared: of a node, for all of its devices."""
    cfg = subject.cfg
    numbers, of_source = flops.cached_numbers(subject.model) if subject.spec.topology != "encoder" else (0, 0)
    size = COMPUTED[cfg.precision].itemsize
    tokens_per_step = subject.cut.batch_size * cfg.data.seq_len
    devices = subject.where.data_parallel * subject.where.tensor_parallel
    timed = None
    beside = [group for role, model in subject.others.items() for group in components.groups(model, role)]
    if device is not None:
        a_token = subject.cost.flops_per_token
        a_minute = 60 * mfu * device.peak(cfg.precision) * devices / a_token
        budget = horizon(cfg.budget, tokens_per_step, a_token, lambda minutes: minutes * a_minute)
        timed = run(budget.tokens, a_token, device, devices, cfg.precision, mfu)
    return Plan(
        subject=subject,
        device=device,
        mfu=mfu,
        capacity=_share(subject, devices, capacity) if shared else capacity,
        groups=(*components.groups(subject.model), *beside),
        layers=tuple(describe(subject.spec)),
        kv_numbers=numbers,
        kv=numbers * size,
        kv_source=of_source * size,
        held=tuple(_held(subject, capacity, shared)),
        run=timed,
    )


def this_machine(
    subject: Subject, cores: int, capacity: int, flops_per_second: float, mfu: float
) -> ThisMachine | None:
    """The run on this machine's CPUs; None where it can't be trained."""
    if subject.training is None:
        return None
    cfg, own = subject.cfg, subject.where
    checkpointing = bool(cfg.placement.activation_checkpointing)
    room = _share(subject, own.data_parallel * own.tensor_parallel, capacity)
    taken = memory.plan(subject.training, own, subject.cut.micro, checkpointing=checkpointing)
    fit = largest(subject.training, own, room, checkpointing=checkpointing)
    seconds = None
    if cfg.budget.minutes is None:
        a_token = subject.cost.flops_per_token
        # The function is never called: it is for a budget in minutes.
        budget = horizon(cfg.budget, subject.cut.batch_size * cfg.data.seq_len, a_token, lambda minutes: minutes)
        seconds = budget.tokens * a_token / (mfu * flops_per_second)
    return ThisMachine(cores, room, taken.total, fit.micro, flops_per_second, seconds)


def _share(subject: Subject, devices: int, capacity: int) -> int:
    """The memory of one of the devices of a node; others than the run's are all on one."""
    own = subject.where.data_parallel * subject.where.tensor_parallel
    nodes = int(subject.cfg.trainer.num_nodes) if devices == own else 1
    return capacity * nodes // devices


def _held(subject: Subject, capacity: int, shared: bool) -> list[Held]:
    training, own = subject.training, subject.where
    if training is None:
        return []
    devices = own.data_parallel * own.tensor_parallel
    # Strategies that shard say nothing on one device: a run on one is held against eight.
    spread = devices if devices > 1 else COMPARED
    others = [memory.Where("single", accumulates=own.accumulates)]
    others += [memory.Where(name, spread, accumulates=own.accumulates) for name in SPREAD]
    wheres = [own, *(w for w in others if w.strategy != own.strategy and _allowed(subject.cfg, w))]
    found = []
    for where in wheres:
        plain, recomputed = (memory.plan(training, where, subject.cut.micro, checkpointing=c) for c in (False, True))
        count = where.data_parallel * where.tensor_parallel
        room = _share(subject, count, capacity) if shared else capacity
        fits = (largest(training, where, room, checkpointing=c) for c in (False, True))
        found.append(Held(where.strategy, count, room, subject.cut.micro, plain, recomputed, *fits))
    return found


def _allowed(cfg: DictConfig, where: memory.Where) -> bool:
    """True if the run could be under another strategy, with the precision, placement and optimizer that it has."""
    # A copy, as the config is the run's own and is shown.
    other = copy.deepcopy(cfg)
    other.strategy.name, other.strategy.tensor_parallel = where.strategy, 1
    other.trainer.devices, other.trainer.num_nodes = where.data_parallel, 1
    try:
        if where.strategy in ZERO:
            elementwise.check(other)
    # UserError is one.
    except ValueError:
        return False
    return not problems(other) and not rollouts.problems(other)


def to_json(plan: Plan) -> dict[str, Any]:
    """As JSON: `parameters.total`, `.active` and `.trainable`, `flops_per_token` (of training, as a run's record has it),
    `kv_bytes_per_token` and `memory` (of the run's own strategy, in bytes of a device), and what they are made of."""
    subject = plan.subject
    counts, cost = subject.cost.parameters, subject.cost
    forward = cost.forward
    own = plan.held[0] if plan.held else None
    chosen = bool(subject.cfg.placement.activation_checkpointing)
    return {
        "parameters": {
            "total": counts.total,
            "active": counts.active,
            "trainable": counts.trainable,
            "embedding": counts.embedding,
            "components": [_group(g) for g in plan.groups],
        },
        "models": {
            role: {"total": c.total, "active": c.active, "trainable": c.trainable} for role, c in plan.others.items()
        },
        "layers": list(plan.layers),
        "flops_per_token": cost.flops_per_token,
        "flops": {
            "forward": sum(f for f, _ in forward.values()),
            "forward_dense": sum(d for _, d in forward.values()),
            "training": cost.flops_per_token,
            "training_dense": cost.dense,
            "by": {what: flops for what, (flops, _) in forward.items()},
            "notes": [str(source) for source in cost.sources],
        },
        "kv_bytes_per_token": plan.kv,
        "kv_bytes_per_source_token": plan.kv_source,
        "memory": None if own is None else {**_memory(own, chosen), "strategies": [_memory(h) for h in plan.held]},
        "budget": None if plan.run is None else {**asdict(plan.run), "mfu": plan.mfu, "devices": plan.devices},
        "device": None if plan.device is None else {**asdict(plan.device), "capacity": plan.capacity},
        "here": None if plan.here is None else asdict(plan.here),
        "assumed": list(subject.assumed),
        "notes": [n for n in [stand_ins.note(subject.cfg)] if n],
    }


def _group(group: components.Group) -> dict[str, Any]:
    lines = [
        {"name": x.name, "shapes": x.shapes, "modules": x.times, "each": x.each, "total": x.total} for x in group.lines
    ]
    return {"name": group.name, "times": group.times, "each": group.each, "total": group.total, "lines": lines}


def _memory(held: Held, checkpointing: bool = False) -> dict[str, Any]:
    def of(found: memory.Memory, most: Fit) -> dict[str, Any]:
        return {**asdict(found), "largest_micro_batch": most.micro, "advice": most.advice}

    return {
        "name": held.strategy,
        "devices": held.devices,
        "capacity": held.capacity,
        "micro_batch": held.micro,
        "activation_checkpointing": checkpointing,
        **(of(held.recomputed, held.recomputed_fit) if checkpointing else of(held.plain, held.fit)),
        "checkpointed": of(held.recomputed, held.recomputed_fit),
    }
