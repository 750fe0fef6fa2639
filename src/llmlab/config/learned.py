"""The part that a run learns by: its alignment method where one is chosen, which takes the objective's place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from llmlab import registry, slot_names

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from llmlab.config.composed import Composed


SLOTS = slot_names.LEARNED_SLOTS


def slot(cfg: DictConfig) -> str:
    return "objective" if cfg.get("alignment") is None else "alignment"


def node(cfg: DictConfig) -> Any:
    """Its node of the config; None of a config that has no objective."""
    return cfg[slot(cfg)]


def entry(cfg: DictConfig) -> registry.Entry:
    """As it declares itself at its options."""
    return registry.of_node(slot(cfg), node(cfg))


def typed(cfg: DictConfig) -> str:
    """As it is typed: "objective=clm", "alignment=dpo"."""
    return f"{slot(cfg)}={node(cfg)['_part_']}"


def reads(cfg: DictConfig) -> str:
    """The kind of samples that it reads: "text" or a kind of record."""
    if node(cfg) is None:
        return "text"
    kind: str = entry(cfg).attribute("reads")
    return kind


def heads(cfg: DictConfig) -> Mapping[str, str]:
    """The heads that it trains, by role."""
    found: Mapping[str, str] = entry(cfg).attribute("heads")
    return found


def problems(composed: Composed) -> list[str]:
    """A line for a typed objective, which would do nothing beside a method."""
    cfg = composed.cfg
    if cfg.alignment is None:
        return []
    chosen = [f"{t.group}={t.choice}" for t in composed.typed if t.group == "objective"]
    chosen += sorted(k for k in composed.keys if k.startswith("objective."))[:1]
    return [f"{word}: {typed(cfg)} takes the objective's place; leave one of them out" for word in chosen[:1]]
