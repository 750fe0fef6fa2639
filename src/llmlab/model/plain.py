"""A model's specification as plain JSON and back: a run folder keeps it, so that a run can be read without recomposing."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from llmlab.model.layout import LayerSpec, ModelSpec, PartSpec, StackSpec
from llmlab.sizes import AttentionTraits, FFNTraits, MoETraits, Sizes


def to_plain(spec: ModelSpec) -> dict[str, Any]:
    return asdict(spec)


def from_plain(plain: dict[str, Any]) -> ModelSpec:
    return ModelSpec(
        family=plain["family"],
        sizes=_sizes(plain["sizes"]),
        stacks=tuple(_stack(s) for s in plain["stacks"]),
        heads={role: PartSpec(**part) for role, part in plain["heads"].items()},
        kernel=PartSpec(**plain["kernel"]),
        init=PartSpec(**plain["init"]),
        notes=tuple(plain["notes"]),
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
        layers=tuple(
            LayerSpec(la["kind"], {slot: PartSpec(**part) for slot, part in la["parts"].items()}, la["displaced"])
            for la in plain["layers"]
        ),
        execute=tuple(plain["execute"]),
        mask=PartSpec(**plain["mask"]),
        embedding=PartSpec(**plain["embedding"]),
        cross_attention=None if cross is None else PartSpec(**cross),
        shared_embedding=plain.get("shared_embedding", True),
    )
