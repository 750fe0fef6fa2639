"""Rules that pair the tensors of a checkpoint with ours, read in both directions.

A rule pairs names of ours with names of theirs; `{i}` runs over stored layers, `{h}` over heads and
`{e}` over experts.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from llmlab.config.spec import ModelSpec

Kind = Literal["same", "folded", "fused", "grouped", "experts", "stacked"]


@dataclass(frozen=True)
class Rule:
    """`same`: one tensor. `fused`: ours, stacked along the first dimension, are theirs. `grouped`: likewise, but a key head
    at a time: queries, key and value of the first, then of the second. `experts`: ours (E, ...) is one of theirs for each
    expert. `stacked`: ours, each (E, ...), are joined along the second dimension in theirs. `folded`: theirs has more
    dimensions, `shape`, of which one may be -1.
    `transpose`: theirs is (in, out).
    """

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    kind: Kind = "same"
    transpose: bool = False
    needs: str | None = None  # a tensor of ours without which the rule says nothing
    copies: tuple[str, ...] = ()  # of theirs, names that bear the same tensor again and are not read
    aliases: tuple[str, ...] = ()  # names that may bear it again: then equal; they are written where they were read
    only: str | None = None  # "block=parallel": the first layer's part with which it holds
    groups: int = 1  # grouped: heads of keys, known once the rule is expanded
    shape: tuple[int | str, ...] = ()  # folded: theirs; a name is that of one of the model's sizes until it is expanded

    def at(self, **index: int) -> Rule:
        def fill(names: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(_fill(name, index) for name in names)

        needs = fill((self.needs,))[0] if self.needs else None
        return replace(
            self,
            ours=fill(self.ours),
            theirs=fill(self.theirs),
            needs=needs,
            copies=fill(self.copies),
            aliases=fill(self.aliases),
        )

    def load(self, theirs: list[Tensor], shapes: list[torch.Size]) -> list[Tensor]:
        """Theirs -> ours, given our shapes."""
        if self.kind == "experts":
            return [torch.stack(theirs)]
        (tensor,) = theirs
        if self.kind == "folded":
            if [n for n, known in zip(tensor.shape, self.shape, strict=True) if known not in (-1, n)]:
                return [tensor]  # does not fit
            ours = shapes[0][::-1] if self.transpose else shapes[0]
            tensor = tensor.reshape(ours)
            return [tensor.mT if self.transpose else tensor]
        if self.transpose:
            # A bias has one dimension, and `.mT` refuses it.
            tensor = tensor.mT if tensor.dim() > 1 else tensor
        if self.kind == "same":
            return [tensor]
        if self.kind == "grouped":
            parts = tensor.unflatten(0, (self.groups, -1)).split([shape[0] // self.groups for shape in shapes], dim=1)
            return [part.flatten(0, 1) for part in parts]
        dim = 0 if self.kind == "fused" else 1
        return list(tensor.split([shape[dim] for shape in shapes], dim=dim))

    def save(self, ours: list[Tensor]) -> list[Tensor]:
        """Ours -> theirs."""
        if self.kind == "experts":
            return list(ours[0].unbind(0))
        if self.kind == "folded":
            return [(ours[0].mT if self.transpose else ours[0]).reshape([int(n) for n in self.shape])]
        if self.kind == "grouped":
            return [torch.cat([t.unflatten(0, (self.groups, -1)) for t in ours], dim=1).flatten(0, 1)]
        tensor = ours[0] if self.kind == "same" else torch.cat(ours, dim=0 if self.kind == "fused" else 1)
        return [tensor.mT if self.transpose and tensor.dim() > 1 else tensor]


def _fill(name: str, index: Mapping[str, int]) -> str:
    for key, value in index.items():
        name = name.replace("{" + key + "}", str(value))
    return name


def same(
    ours: str,
    theirs: str,
    *,
    transpose: bool = False,
    needs: str | None = None,
    copies: tuple[str, ...] = (),
    aliases: tuple[str, ...] = (),
) -> Rule:
    return Rule((ours,), (theirs,), "same", transpose, needs, copies, aliases)


def folded(ours: str, theirs: str, shape: tuple[int | str, ...], *, transpose: bool = False) -> Rule:
    return Rule((ours,), (theirs,), "folded", transpose, shape=shape)


def linear(ours: str, theirs: str, *, transpose: bool = False, only: str | None = None) -> list[Rule]:
    """Weight and, where there is one, bias."""
    rules = [same(f"{ours}.{n}", f"{theirs}.{n}", transpose=transpose) for n in ("weight", "bias")]
    return [replace(rule, only=only) for rule in rules]


def fused(ours: Iterable[str], theirs: str, *, transpose: bool = False) -> list[Rule]:
    """Weight and bias of several linears held as one."""
    names = tuple(ours)
    return [Rule(tuple(f"{o}.{n}" for o in names), (f"{theirs}.{n}",), "fused", transpose) for n in ("weight", "bias")]


def grouped(ours: Iterable[str], theirs: str) -> list[Rule]:
    """Weight and bias of q, k and v held as one, a key head at a time (GPT-NeoX, BLOOM, Falcon)."""
    names = tuple(ours)
    return [Rule(tuple(f"{o}.{n}" for o in names), (f"{theirs}.{n}",), "grouped") for n in ("weight", "bias")]


def experts(ours: str, theirs: str) -> Rule:
    """theirs has an `{e}`."""
    return Rule((ours,), (theirs,), "experts")


def expand(rules: Iterable[Rule], shapes: Mapping[str, torch.Size], spec: ModelSpec) -> list[Rule]:
    """The rules that speak of tensors that the model has, one for each layer."""
    out = []
    n_layers = max(len(stack.layers) for stack in spec.stacks)
    parts = {f"{slot}={part.name}" for slot, part in spec.stacks[0].layers[0].parts.items()}
    for rule in rules:
        if rule.only is not None and rule.only not in parts:
            continue
        # As many as queries have; the norms of key heads that are fewer are no tensors of
        # ours, so their rules fall away below.
        heads = range(spec.sizes.n_heads if "{h}" in rule.ours[0] else 1)
        for i, h in itertools.product(range(n_layers if "{i}" in rule.ours[0] else 1), heads):
            concrete = rule.at(i=i, h=h)
            # Biases that a model does not have, norms of another block: a family's list
            # is of all that its files may hold.
            if not all(name in shapes for name in (*concrete.ours, *([concrete.needs] if concrete.needs else []))):
                continue
            if concrete.kind == "experts":
                (name,) = concrete.theirs
                all_names = tuple(_fill(name, {"e": e}) for e in range(shapes[concrete.ours[0]][0]))
                concrete = Rule(concrete.ours, all_names, "experts", concrete.transpose)
            if concrete.kind == "folded":
                sizes = tuple(getattr(spec.sizes, n) if isinstance(n, str) else n for n in concrete.shape)
                concrete = replace(concrete, shape=sizes)
            if concrete.kind == "grouped":
                # Rows of our k over a head's width: as many groups as key heads, whatever a family calls that number.
                concrete = replace(concrete, groups=shapes[concrete.ours[1]][0] // spec.sizes.head_dim)
            out.append(concrete)
    return out
