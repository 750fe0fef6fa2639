"""A deep model's step from a shallow one's: of layers that are alike one is traced between the first and the last."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace

from llmlab.config.spec import ModelSpec, StackSpec
from llmlab.model import build
from llmlab.model.model import Model
from llmlab.model.stack import Stack
from llmlab.model.trainable import Filter
from llmlab.plan.activations import Op
from llmlab.plan.parameters import table
from llmlab.plan.split import split

# A part of a step: "forward" or "back" of an executed layer, or what lies between, and its number.
Place = tuple[str, int]


def shortened(model: Model) -> tuple[ModelSpec, list[int]]:
    """(the shallow model, for each executed step of the deep one the step of the shallow one that stands for it)."""
    stacks: list[StackSpec] = []
    stands_for: list[int] = []
    spec = model.spec
    for built in model.all_stacks():
        stack = built.spec
        kept, own = _kept(_kinds(built))
        before = sum(len(s.execute) for s in stacks)
        stands_for += [before + kept.index(step) for step in own]
        stored = sorted({stack.execute[step] for step in kept})
        execute = tuple(stored.index(stack.execute[step]) for step in kept)
        stacks.append(replace(stack, layers=tuple(stack.layers[i] for i in stored), execute=execute))
    return replace(spec, stacks=tuple(stacks)), stands_for


def _kinds(built: Stack) -> list[Hashable]:
    """Kinds of steps, of which all take the same memory: by a step's parts, whether it is the stack's first layer, whether
    its layer runs earlier or later too (gradients of the runs are added up), what of it learns, and whether something below
    does."""
    stack = built.spec
    found: list[Hashable] = []
    below = any(p.requires_grad for part in (built.embedding, built.positions) for p in part.parameters())
    for step, i in enumerate(stack.execute):
        parts = tuple((part.name, repr(sorted(part.options.items()))) for part in stack.layers[i].parts.values())
        own = (*built.layers[i].parameters(), *built.position_at(built.position_of[i]).parameters())
        learn = tuple(p.requires_grad for p in own)
        # repr of the options: some are lists, which have no hash.
        found.append((parts, i == 0, i in stack.execute[:step], i in stack.execute[step + 1 :], learn, below))
        below = below or any(learn)
    return found


def _kept(kinds: Sequence[Hashable]) -> tuple[list[int], list[int]]:
    """Steps that stay (the ends, and one of each kind), and for every step the one that stands for it."""
    places: dict[Hashable, list[int]] = {}
    for step, kind in enumerate(kinds):
        places.setdefault(kind, []).append(step)
    # Ops behind the layers are recorded with the last layer, so that it stays and stands for no other.
    last = len(kinds) - 1
    between = {kind: (own := [i for i in at if i != last] or at)[len(own) // 2] for kind, at in places.items()}
    kept = {0, last, *between.values()}
    return sorted(kept), [step if step in kept else between[kind] for step, kind in enumerate(kinds)]


class Deep:
    """A model, and what of it is traced. parameters: as one of `tensor_parallel` ranks has them. order: the layer of each
    executed step, counted over all stacks. frozen: paths in what is traced of what does not learn."""

    def __init__(self, spec: ModelSpec, tensor_parallel: int = 1, learns: Filter = Filter()):  # noqa: B008  frozen
        model = build.assemble(spec)
        learns.apply(model)
        self.short, self.stands_for = shortened(model)
        short = build.assemble(self.short)
        if tensor_parallel > 1:
            split(model, tensor_parallel)
        self.parameters = tuple(table(model))
        self.order: list[int] = []
        stored = 0
        for stack in model.all_stacks():
            self.order += [stored + i for i in stack.spec.execute]
            stored += len(stack.layers)
        # Numbered by path: in a shallow model the numbers differ.
        self.number = {p.path: i for i, p in enumerate(self.parameters)}
        self.traced = table(short)
        self.places, self.traced_places = places(model), places(short)
        self.frozen = frozenset(p.path for p in self.traced if not self.parameters[self._original(p.path)].learns)

    def lengthened(self, ops: Sequence[Op]) -> list[Op]:
        """This model's ops from the shallow one's. A layer's part of them begins when its forward or backward does.

        Steps count on through all forwards that the loss makes of the model.
        """
        parts: dict[Place, list[Op]] = {}
        now: Place = ("before", -1)
        part_of: list[Place] = []
        forwards = 0
        for op in ops:
            if op.kind == "enter":
                now = ("forward", op.step)
            elif op.kind == "read":
                now = ("read", forwards)
                forwards += 1
            elif op.kind == "backward":
                now = ("backward", -1)
            elif op.kind == "back":
                # A loss with several forwards may interleave them, which this way of lengthening can't tell.
                assert now[0] == "backward" or op.step < now[1], "layers' backwards are in the order of their forwards"
                now = ("back", op.step)
            parts.setdefault(now, []).append(op)
            part_of.append(now)
        short, deep = len(self.traced_places), len(self.stands_for)
        steps = [
            (i * short + own, i * deep + step) for i in range(forwards) for step, own in enumerate(self.stands_for)
        ]
        out = list(parts["before", -1])
        for i in range(forwards):
            for own, step in steps[i * deep : (i + 1) * deep]:
                # A forward for heads that read no hidden states runs no layer.
                out += [op._replace(step=step) if op.step >= 0 else op for op in parts.get(("forward", own), ())]
            for op in parts["read", i]:
                out += self._for_each(op, part_of)
        for op in parts["backward", -1]:
            out += self._for_each(op, part_of)
        for own, step in reversed(steps):
            # Frozen layers below all that learns have no backward.
            for op in parts.get(("back", own), ()):
                if op.kind == "grad":
                    out.append(op._replace(param=self._number(op.param, own % short, step % deep)))
                else:
                    out.append(op._replace(step=step) if op.step == own else op)
        return out

    def _for_each(self, op: Op, part_of: Sequence[Place]) -> list[Op]:
        """Between the layers' forwards and backwards: what frees something of a layer does so for each."""
        if op.kind == "grad":
            return [op._replace(param=self._number(op.param, -1, -1))]
        if op.kind == "free":
            what, own = part_of[op.param]
            return [op] * (self.stands_for.count(own % len(self.traced_places)) if what in ("forward", "back") else 1)
        return [op]

    def _number(self, number: int, own: int, step: int) -> int:
        """The number of the parameter of this model that one of the shallow model stands for, in a layer or in its position."""
        path = self.traced[number].path
        if own >= 0 and (renamed := self._renamed(path, own, step)) is not None:
            return self.number[renamed]
        return self.number[path]

    def _renamed(self, path: str, own: int, step: int) -> str | None:
        """A path in the traced step `own` as it is in this model's `step`; None for what is of no layer."""
        for before, after in zip(self.traced_places[own], self.places[step], strict=True):
            if path.startswith(before):
                return after + path.removeprefix(before)
        return None

    def _original(self, path: str) -> int:
        """The number of the parameter here that is traced under `path`."""
        for step, own in enumerate(self.stands_for):
            if (renamed := self._renamed(path, own, step)) is not None:
                return self.number[renamed]
        return self.number[path]


def places(model: Model) -> list[tuple[str, str]]:
    """For each executed step, how the paths of its layer's and its position's parameters begin."""
    found = []
    for name, stack in model.stacks.items():
        for i in stack.spec.execute:  # type: ignore[union-attr]
            place = stack.position_of[i]  # type: ignore[index]
            found.append((f"stacks.{name}.layers.{i}.", f"stacks.{name}.positions.{place}."))
    return found
