"""The plan in a terminal: what the model is made of, what it computes and keeps, what training it takes."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from llmlab.config import stand_ins
from llmlab.formatting import large, power_of_ten
from llmlab.plan.accelerators import Accelerator
from llmlab.plan.build import Plan
from llmlab.plan.fit import Fit
from llmlab.training.progress import duration

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table as RichTable

DAY = 86_400
WIDE, NARROW = 100, 70  # columns of a terminal from which tables have all of theirs, and under which they have few


def show(plan: Plan) -> None:
    from rich.console import Console
    from rich.text import Text

    # rich takes 80 columns where there is no terminal, too few for these tables in a file or a pipe.
    console = Console(highlight=False, width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 120)
    # Text throughout: in a str rich would read [brackets] as markup.
    console.print(Text(plan.subject.name, style="bold"))
    counts = plan.subject.cost.parameters
    active = f", {counts.active:,} active" if counts.active != counts.total else ""
    learning = f", {counts.trainable:,} that learn" if counts.trainable != counts.total else ""
    spec = plan.subject.spec
    console.print(
        Text.assemble(
            f"{spec.family}: ",
            (f"{counts.total:,} parameters{active}", "green"),
            f", {counts.embedding:,} of them in look-up tables{learning}; vocabulary {spec.sizes.vocab_size:,}",
        )
    )
    if (note := stand_ins.note(plan.subject.cfg)) is not None:
        console.print(Text(f"note: {note}", style="yellow"))
    for line in plan.subject.assumed:
        console.print(Text(f"assumed: {line}", style="yellow"))
    _here(console, plan)
    _parameters(console, plan)
    _title(console, "layers")
    for line in plan.layers:
        console.print(Text(line))
    _flops(console, plan)
    _cache(console, plan)
    _memory(console, plan)
    _budget(console, plan)


def _here(console: Console, plan: Plan) -> None:
    from rich.text import Text

    here = plan.here
    if here is None:
        return
    _title(console, f"this machine: {here.cores} CPU core{'s' * (here.cores != 1)}, no GPU")
    style = "red" if here.total > here.capacity else "green"
    most = f"micro-batches of up to {here.micro:,} fit" if here.micro else "not one sequence fits"
    console.print(Text.assemble("memory: ", (size(here.total), style), f" of {size(here.capacity)} free; {most}"))
    if here.seconds is not None:
        took = f"{here.seconds / DAY:,.1f} days" if here.seconds > 2 * DAY else duration(here.seconds)
        rate = f"{100 * plan.mfu:g} % of the {here.flops_per_second / 1e9:,.0f} GFLOP/s measured here"
        console.print(Text.assemble("time: about ", (took, "green"), f" for the budget, at {rate}"))
    if plan.device is not None:
        console.print(Text(f"below, as on {plan.device.name}: device=NAME chooses another", style="dim"))


def _title(console: Console, title: str) -> None:
    from rich.rule import Rule
    from rich.text import Text

    console.print()
    console.print(Rule(Text(title, style="bold"), align="left", style="dim"))


def _table(columns: Sequence[tuple[str, bool]]) -> RichTable:
    """Columns as (name, whether of numbers)."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold")
    for name, numeric in columns:
        # no_wrap: rich would break numbers in two where the terminal is narrow; the first column has the names.
        table.add_column(name, justify="right" if numeric else "left", no_wrap=numeric or not table.columns)
    return table


def _parameters(console: Console, plan: Plan) -> None:
    from rich.text import Text

    total = plan.subject.cost.parameters.total + sum(c.total for c in plan.others.values())
    active = plan.subject.cost.parameters.active + sum(c.active for c in plan.others.values())
    sparse = active != total
    narrow = console.width < WIDE + 18 * sparse
    shown = {"component": True, "shape": console.width > NARROW, "each": not narrow, "parameters": True}
    shown |= {"share": console.width > NARROW, "active": sparse}
    table = _table([(name, name not in ("component", "shape")) for name, here in shown.items() if here])

    def row(style: str, name: str, shape: str, each: str, number: int, used: float) -> None:
        cells = [name, shape, each, f"{number:,}", _share(number, total), f"{int(used):,}"]
        table.add_row(*(Text(c) for c, here in zip(cells, shown.values(), strict=True) if here), style=style)

    for group in plan.groups:
        alone = len(group.lines) == 1 and group.times == 1
        times = f"{group.times} x {group.each:,}" if group.times > 1 else ""
        shape = f"{group.times} layers" if narrow and group.times > 1 else group.lines[0].shape if alone else ""
        row("bold", group.name, shape, times, group.total, group.active)
        for line in () if alone else group.lines:
            of = line.total * group.times
            each = f"{line.total:,}" if group.times > 1 else ""
            row("dim", f"  {line.name}", line.shape, each, of, of * line.share_active)
    table.add_section()
    row("bold", "total", "", "", total, active)
    _title(console, "parameters")
    console.print(table)


def _share(part: float, total: float) -> str:
    return f"{100 * part / total:.1f} %"


def _flops(console: Console, plan: Plan) -> None:
    from rich.text import Text

    cost, length = plan.subject.cost, plan.subject.cfg.data.seq_len
    forward = cost.forward
    allowed, dense = (sum(pair[i] for pair in forward.values()) for i in (0, 1))
    table = _table([("forward", False), ("as masked", True), ("share", True), ("all pairs", True)])
    for what, (one, other) in forward.items():
        table.add_row(Text(f"  {what}"), power_of_ten(one), _share(one, allowed), power_of_ten(other), style="dim")
    table.add_row("forward", power_of_ten(allowed), "", power_of_ten(dense), style="bold")
    training = (power_of_ten(cost.flops_per_token), "", power_of_ten(cost.dense))
    table.add_row("forward and backward", *training, style="bold")
    _title(console, f"FLOPs of a token, in texts of {length:,}")
    console.print(table)
    for said in cost.sources:
        console.print(Text(f"note: {said}", style="yellow"))


def _cache(console: Console, plan: Plan) -> None:
    from rich.text import Text

    _title(console, "KV cache")
    spec, length = plan.subject.spec, plan.subject.cfg.data.seq_len
    if not plan.kv:
        console.print(Text("none: an encoder reads a text at once"))
        return
    steps = len(spec.stacks[-1].execute)
    each = plan.kv_numbers / steps
    says = f"{plan.kv:,} bytes a token: {each:,.6g} numbers of {plan.kv // plan.kv_numbers} bytes in each of {steps} layers"
    console.print(Text(f"{says}; {size(plan.kv * length)} for {length:,} tokens"))
    if plan.kv_source:
        console.print(Text(f"{plan.kv_source:,} bytes a token of the source, beside"))


def _memory(console: Console, plan: Plan) -> None:
    from rich.text import Text

    cut, cfg = plan.subject.cut, plan.subject.cfg
    micro = f"{cut.micro} x {cfg.data.seq_len:,} tokens"
    _title(console, f"memory of a device, {cfg.precision}, micro-batch of {micro}")
    if not plan.held:
        console.print(Text("not planned: the model has no head that its objective trains; choose another objective"))
        return
    wide = console.width >= WIDE
    parts = ("weights", "gradients", "optimizer", "strategy", "activations") if wide else ()
    table = _table([("", False), *((name, True) for name in (*parts, "peak", "fits"))])
    chosen = bool(cfg.placement.activation_checkpointing)
    for held in plan.held:
        on = f"{held.strategy} on {held.devices}" if held.devices > 1 else held.strategy
        rows = ((on, held.plain, held.fit), ("  checkpointed", held.recomputed, held.recomputed_fit))
        for checkpointed, (name, memory, fit) in enumerate(rows):
            style = "bold" if held is plan.held[0] and checkpointed == chosen else "dim"
            numbers = (memory.weights, memory.gradients, memory.states, memory.strategy, memory.kept)
            peak = Text(size(memory.total), style="red" if memory.total > held.capacity else "green")
            table.add_row(Text(name), *map(size, numbers[: len(parts)]), peak, Text(_fits(fit)), style=style)
    console.print(table)
    whose = "" if plan.device is None else f" ({plan.device.name})"
    if len({held.capacity for held in plan.held}) > 1:
        whose = ", the run's own share of this machine's; other rows have theirs"
    console.print(Text(f"fits: the largest micro-batch within {size(plan.capacity)}{whose}", style="dim"))
    console.print(Text("checkpointed: with placement.activation_checkpointing=true", style="dim"))
    if wide:
        console.print(Text("activations: what a forward keeps for its backward, the loss included", style="dim"))
        says = "peak: the most at once, with temporaries; as gradients come activations go, so the parts may be more"
        console.print(Text(says, style="dim"))
    if any(held.plain.host for held in plan.held):
        hosts = {held.strategy: held.plain.host for held in plan.held if held.plain.host}
        beside = ", ".join(f"{name} {size(n)}" for name, n in hosts.items())
        console.print(Text(f"beside, of the CPU's memory for each device: {beside}", style="dim"))
    own = plan.held[0]
    if advice := (own.recomputed_fit if chosen else own.fit).advice:
        console.print(Text(advice, style="yellow"))


def _fits(fit: Fit) -> str:
    return f"{fit.micro:,}" if fit.micro else "none"


def _budget(console: Console, plan: Plan) -> None:
    from rich.text import Text

    run, device = plan.run, plan.device
    if run is None or device is None:
        return
    count = plan.devices
    _title(console, f"budget of {large(run.tokens)} tokens on {count} x {device.name} at {100 * plan.mfu:g} % MFU")
    days = f"{run.seconds / DAY:,.1f} days" if run.seconds > 2 * DAY else duration(run.seconds)
    console.print(
        Text.assemble(
            f"{power_of_ten(run.flops)} FLOPs: ",
            (days, "green"),
            f", {_number(run.seconds * count / 3600)} device hours, {run.tokens_per_second:,.0f} tokens/s; ",
            (f"{_number(run.kilowatt_hours)} kWh", "green"),
            f" at {device.watts:g} W a board",
        )
    )
    console.print(Text(_peak(device, plan), style="dim"))


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _peak(device: Accelerator, plan: Plan) -> str:
    precision = plan.subject.cfg.precision
    return f"{device.name}: {device.peak(precision) / 1e12:g} TFLOP/s under {precision} ({device.source})"


def size(n: float) -> str:
    """ "1.25 GiB"."""
    for unit, letter in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if n >= unit:
            return f"{n / unit:,.2f} {letter}" if n < 100 * unit else f"{n / unit:,.0f} {letter}"
    return f"{n:,.0f} B"
