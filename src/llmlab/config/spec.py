"""The resolved model: its stacks, layers and heads, and the part that stands in each slot. Plain values, no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from llmlab import registry
from llmlab.sizes import Sizes


@dataclass(frozen=True)
class PartSpec:
    """One chosen part: its slot, its name and its options as plain values."""

    slot: str
    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def with_defaults(cls, slot: str, name: str, /, **options: Any) -> PartSpec:
        """A part with its defaults but for the options given."""
        known = registry.index()[slot, name].options.items()
        return cls(slot, name, {**{k: o.default for k, o in known if not o.required}, **options})

    def factory(self) -> Any:
        return registry.load(self.slot, self.name, dict(self.options))

    def attribute(self, name: str) -> Any:
        """An attribute that the part declares, read without importing it, or the default of its slot."""
        return registry.declared(self.slot, self.name, self.options).attribute(name)

    def __str__(self) -> str:
        defaults = registry.index()[self.slot, self.name].options
        # Only what differs from the part's own defaults: presets of one class are told apart by it.
        changed = [f"{k}={v}" for k, v in self.options.items() if k not in defaults or defaults[k].default != v]
        return self.name + (f"({', '.join(changed)})" if changed else "")


@dataclass(frozen=True)
class LayerSpec:
    """One stored layer: its kind, a part for every layer slot, and what a typed choice displaced there."""

    kind: str
    parts: Mapping[str, PartSpec]
    displaced: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class StackSpec:
    name: str
    sizes: Sizes
    layers: tuple[LayerSpec, ...]
    execute: tuple[int, ...]
    mask: PartSpec
    embedding: PartSpec
    cross_attention: PartSpec | None = None
    shared_embedding: bool = True  # its token table is the first stack's


@dataclass(frozen=True)
class ModelSpec:
    """All that is needed to build a model."""

    family: str
    sizes: Sizes
    stacks: tuple[StackSpec, ...]
    heads: Mapping[str, PartSpec]
    kernel: PartSpec
    init: PartSpec
    notes: tuple[str, ...] = ()
    adapter: PartSpec | None = None
    table_delta: bool = False  # its token table is that of a companion plus a delta, which alone it moves

    @property
    def topology(self) -> str:
        """ "encoder_decoder", "decoder" (its mask never looks ahead) or "encoder"."""
        if len(self.stacks) > 1:
            return "encoder_decoder"
        return "decoder" if self.stacks[-1].sizes.causal else "encoder"

    @property
    def segments(self) -> int:
        """Segments of a text that the model tells apart: 0 where it does not."""
        layers = (layer for stack in self.stacks for layer in stack.layers)
        relative = any(layer.parts["position"].options.get("segments") for layer in layers)
        return 3 if relative else self.sizes.token_types  # a relative position has but the same segment and another

    def in_layers(self, change: Callable[[Mapping[str, PartSpec]], Mapping[str, PartSpec]]) -> ModelSpec:
        """The model whose every layer has the parts that `change` makes of its own."""
        stacks = (
            replace(stack, layers=tuple(replace(layer, parts=change(layer.parts)) for layer in stack.layers))
            for stack in self.stacks
        )
        return replace(self, stacks=tuple(stacks))
