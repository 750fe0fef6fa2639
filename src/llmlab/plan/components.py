"""The parameters of a model by component: equal layers are one group, equal modules of one place one line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from llmlab.model.experts import MixtureOfExperts
from llmlab.model.model import Model
from llmlab.model.stack import Stack
from llmlab.model.table import ranges


@dataclass
class Line:
    """Modules of one name, "" for what is named by its group. shapes: of the parameters of each; each: their number;
    times: how many such modules."""

    name: str
    shapes: list[str] = field(default_factory=list)
    each: int = 0
    times: int = 1
    share_active: float = 1.0  # of the parameters, those that a token uses

    @property
    def total(self) -> int:
        return self.each * self.times

    @property
    def shape(self) -> str:
        return (f"{self.times} x " if self.times > 1 else "") + " + ".join(self.shapes)


@dataclass(frozen=True)
class Group:
    """times: how many layers are like this one. `lines` are of one."""

    name: str
    lines: tuple[Line, ...]
    times: int = 1

    @property
    def each(self) -> int:
        return sum(line.total for line in self.lines)

    @property
    def total(self) -> int:
        return self.each * self.times

    @property
    def active(self) -> int:
        return self.times * sum(int(line.total * line.share_active) for line in self.lines)


def groups(model: Model, role: str = "") -> list[Group]:
    """Tied and shared tables are with the first that has them. role: of a companion, which its groups are named after."""
    found = []
    for stack in model.all_stacks():
        of = f"{role} " * bool(role) + (f"{stack.spec.name} " if len(model.stacks) > 1 else "")
        found.append(Group(f"{of}embedding", component_lines(stack.embedding)))
        found.append(Group(f"{of}positions", component_lines(stack.positions)))
        found += _layers(stack, of)
        if stack.norm is not None:
            found.append(Group(f"{of}last norm", component_lines(stack.norm)))
    companion = f"{role} " * bool(role)
    for role, head in model.heads.items():
        tied = getattr(head, "out", None) is None and getattr(head, "embedding", None) is not None
        found.append(Group(f"{companion}head {role}" + (" (tied)" if tied else ""), component_lines(head)))
    return [group for group in found if group.total or "head " in group.name]


def _layers(stack: Stack, of: str) -> Iterator[Group]:
    alike: dict[Any, list[int]] = {}
    for i, layer in enumerate(stack.layers):
        # Grouped by names and shapes: layers of other kinds (windows, positions) with equal weights are alike here.
        shapes = tuple((name, tuple(p.shape)) for name, p in layer.named_parameters())
        alike.setdefault(shapes, []).append(i)
    for places in alike.values():
        noun = "layer" if len(places) == 1 else "layers"
        yield Group(f"{of}{noun} {ranges(places)}", component_lines(stack.layers[places[0]]), len(places))


def component_lines(module: nn.Module) -> tuple[Line, ...]:
    """A line for each group of equal modules, those with the same names and shapes."""
    places: dict[str, Line] = {}
    shares = _shares(module)
    for path, parameter in module.named_parameters():
        owner, _, leaf = path.rpartition(".")
        place = owner if leaf in ("weight", "bias") else path
        # Numbers of layers and experts become *, so that equal ones have one name.
        name = re.sub(r"(^|\.)\d+(?=\.|$)", r"\1*", place)
        line = places.setdefault(place, Line(name, share_active=shares.get(owner, 1.0)))
        # A parameter without dimensions has an empty shape and one number.
        line.shapes.append(" x ".join(f"{n:,}" for n in parameter.shape) or "1")
        line.each += parameter.numel()
    lines: dict[tuple[str, ...], Line] = {}
    for line in places.values():
        if (same := lines.setdefault((line.name, *line.shapes), line)) is not line:
            same.times += 1
    return tuple(lines.values())


def _shares(module: nn.Module) -> dict[str, float]:
    """Paths of the modules of which a token uses a share: routed experts."""
    found = {}
    for path, m in module.named_modules():
        if isinstance(m, MixtureOfExperts):
            inside = f"{path}.experts" if path else "experts"
            names = (f"{inside}.{name}".rstrip(".") for name, _ in m.experts.named_modules())
            # Shared experts are beside `experts` and every token uses them.
            found.update(dict.fromkeys(names, m.per_token / m.n_experts))
    return found
