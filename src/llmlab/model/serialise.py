"""A model's specification as plain JSON and back: a run folder keeps it, so that a run can be read without recomposing."""

from __future__ import annotations

import typing
from dataclasses import MISSING, asdict, fields
from typing import Any, NotRequired, TypedDict

from llmlab.config.spec import LayerSpec, ModelSpec, PartSpec, StackSpec
from llmlab.sizes import AttentionTraits, FFNTraits, MoETraits, Sizes


def _shape(cls: Any) -> Any:
    """A dataclass as the shape of what `asdict` makes of it: `NotRequired` where it has a default."""
    # `fields(cls)` has types as text, since annotations are postponed (PEP 563).
    hints = typing.get_type_hints(cls)
    named = {f.name: _TRAITS.get(hints[f.name], hints[f.name]) for f in fields(cls)}
    needed = {f.name for f in fields(cls) if (f.default, f.default_factory) == (MISSING, MISSING)}
    return TypedDict(cls.__name__, {n: h if n in needed else NotRequired[h] for n, h in named.items()})  # type: ignore[operator]


_TRAITS: dict[Any, Any] = {}
_TRAITS |= {cls: _shape(cls) for cls in (AttentionTraits, FFNTraits, MoETraits)}
SizesShape: Any = _shape(Sizes)


class PartShape(TypedDict):
    slot: str
    name: str
    options: dict[str, Any]


class LayerShape(TypedDict):
    kind: str
    parts: dict[str, PartShape]
    displaced: dict[str, str]


class StackShape(TypedDict):
    name: str
    sizes: SizesShape
    layers: list[LayerShape]
    execute: list[int]
    mask: PartShape
    embedding: PartShape
    cross_attention: PartShape | None
    shared_embedding: NotRequired[bool]


class ModelShape(TypedDict):
    """model.json."""

    family: str
    sizes: SizesShape
    stacks: list[StackShape]
    heads: dict[str, PartShape]
    kernel: PartShape
    init: PartShape
    notes: list[str]
    adapter: NotRequired[PartShape | None]
    table_delta: NotRequired[bool]


def to_dict(spec: ModelSpec) -> dict[str, Any]:
    return asdict(spec)


def from_dict(plain: dict[str, Any]) -> ModelSpec:
    return ModelSpec(
        family=plain["family"],
        sizes=_sizes(plain["sizes"]),
        stacks=tuple(_stack(s) for s in plain["stacks"]),
        heads={role: PartSpec(**part) for role, part in plain["heads"].items()},
        kernel=PartSpec(**plain["kernel"]),
        init=PartSpec(**plain["init"]),
        notes=tuple(plain["notes"]),
        adapter=None if plain.get("adapter") is None else PartSpec(**plain["adapter"]),
        table_delta=plain.get("table_delta", False),
    )


def _sizes(plain: dict[str, Any]) -> Sizes:
    traits = {
        "attention": AttentionTraits(**plain["attention"]),
        "ffn": FFNTraits(**plain["ffn"]),
        "moe": MoETraits(**plain["moe"]),
    }
    return Sizes(**{**plain, **traits})


def _stack(plain: dict[str, Any]) -> StackSpec:
    cross = plain["cross_attention"]
    return StackSpec(
        name=plain["name"],
        sizes=_sizes(plain["sizes"]),
        # JSON has no tuples, and specs are compared by ==, to which (0,) and [0] differ.
        layers=tuple(
            LayerSpec(la["kind"], {slot: PartSpec(**part) for slot, part in la["parts"].items()}, la["displaced"])
            for la in plain["layers"]
        ),
        execute=tuple(plain["execute"]),
        mask=PartSpec(**plain["mask"]),
        embedding=PartSpec(**plain["embedding"]),
        cross_attention=None if cross is None else PartSpec(**cross),
        # Files of older runs lack the key: stacks shared one table always.
        shared_embedding=plain.get("shared_embedding", True),
    )
