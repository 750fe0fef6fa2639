"""Traits of the model that a chosen part can't honour, and choices that change nothing."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from llmlab import registry
from llmlab.config import heads

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from llmlab.config.composed import Composed
    from llmlab.config.spec import ModelSpec


def notes(composed: Composed, spec: ModelSpec) -> list[str]:
    """Traits that the family sets and a chosen part can't honour, a line a part, for the table at the start."""
    return [*(line for line, typed in unused(composed, spec) if not typed), *_without_effect(composed)]


def _without_effect(composed: Composed) -> list[str]:
    """A typed choice that is kept at the top level, while a kind or a stack has another part; a head that nothing trains."""
    found = heads.notes(composed)
    for t in composed.typed:
        if not t.kept or t.package or t.group not in composed.cfg:
            continue
        for places in ("kinds", "stacks"):
            for name, node in composed.cfg[places].items():
                other = node.get(t.group)
                # Hydra replaces the choice of one place only; parts of other places are untouched by it.
                if other is not None and other["_part_"] != t.choice:
                    found.append(
                        f"{t.group}={t.choice} is what model={composed.cfg.model.family} has, so nothing changes: "
                        f"its {name} layers keep {other['_part_']}; "
                        f"{t.group}@{places}.{name}.{t.group}={t.choice} changes those"
                    )
    return found


def unused_by(slot: str, name: str) -> tuple[str, ...]:
    """Keys below `model.` that a part can't honour; kin of one class say so by name."""
    keys = registry.index()[slot, name].attribute("unused")
    return keys.get(name, ()) if isinstance(keys, dict) else keys


@functools.cache
def _defaults() -> DictConfig:
    """The sizes and traits of no family, as nodes, of which `select` takes the same dotted keys as of a config."""
    from omegaconf import OmegaConf

    from llmlab.sizes import ModelConfig

    return OmegaConf.structured(ModelConfig)  # 10 ms


def unused(composed: Composed, spec: ModelSpec) -> list[tuple[str, bool]]:
    """(line, whether the user typed one of them) for each part that can't honour a trait which is set."""
    from omegaconf import OmegaConf

    defaults = _defaults()
    used = {(p.slot, p.name) for stack in spec.stacks for layer in stack.layers for p in layer.parts.values()}
    used |= {("attention", s.cross_attention.name) for s in spec.stacks if s.cross_attention}
    used |= {("embedding", s.embedding.name) for s in spec.stacks}
    used |= {("head", part.name) for part in spec.heads.values()}
    cannot = {part: unused_by(*part) for part in sorted(used)}
    found = []
    said: set[str] = set()
    # The part with the fewest keys first: what two of a slot say alike is said of one.
    for (slot, name), keys in sorted(cannot.items(), key=lambda item: len(item[1])):
        kin = [other for (s, n), other in cannot.items() if s == slot and n != name]
        typed = [k for k in keys if f"model.{k}" in composed.keys and all(k in other for other in kin)]
        for key in [k for k in typed if k not in said]:
            said.add(key)
            fits = [n for n in registry.names(slot) if key not in unused_by(slot, n)]
            choose = f" or choose {slot}={'|'.join(fits)}" if fits else ""
            found.append((f"model.{key}: {slot}={name} does not use it; leave it out{choose}", True))
        given = [k for k in keys if OmegaConf.select(composed.cfg.model, k) != OmegaConf.select(defaults, k)]
        if given := [k for k in given if k not in typed and all(k in other for other in kin)]:
            found.append((f"{name}: {', '.join(given)} not used", False))
    return [*found, *_unused_by_stacks(composed, spec), *_unused_experts(composed, spec)]


def _unused_by_stacks(composed: Composed, spec: ModelSpec) -> list[tuple[str, bool]]:
    """As `unused`, of key heads that a stack has for itself."""
    found = []
    for stack in spec.stacks:
        key = f"stacks.{stack.name}.n_kv_heads"
        parts = {layer.parts["attention"].name for layer in stack.layers}
        parts |= {stack.cross_attention.name} if stack.cross_attention else set()
        own = composed.cfg.stacks.get(stack.name)
        without = all("n_kv_heads" in unused_by("attention", part) for part in parts)
        if without and own is not None and own.n_kv_heads is not None:
            names = "|".join(sorted(parts))
            said = f"{key}: attention={names} does not use it; leave it out or choose attention=gqa"
            found.append((said, key in composed.keys))
    return found


def _unused_experts(composed: Composed, spec: ModelSpec) -> list[tuple[str, bool]]:
    """As `unused`, of traits that are without effect beside the values of others."""
    layers = [layer for stack in spec.stacks for layer in stack.layers]
    routed = [not layer.parts["moe"].attribute("dense") for layer in layers]
    moe = composed.cfg.model.moe
    found = []
    if all(layer.parts["ffn"].attribute("absent") for layer in layers) and "model.ffn_dim" in composed.keys:
        found.append(("model.ffn_dim: no layer has a feed-forward", False))
    if all(routed) and moe.ffn_dim is not None and "model.ffn_dim" in composed.keys:
        found.append(("model.ffn_dim: every layer has experts, whose width is model.moe.ffn_dim", False))
    # Qwen2-MoE's gate weighs a shared expert; without one there is nothing to weigh.
    if any(routed) and moe.shared_gate and not (moe.n_shared or moe.shared_dim):
        typed = "model.moe.shared_gate" in composed.keys
        found.append(("model.moe.shared_gate: there is no shared expert; set model.moe.n_shared", typed))
    routers = {layer.parts["moe"].name for layer in layers}
    # w / w is 1, whatever the router says: its gradient is 0 but for the balance loss.
    if any("moe.renormalise" not in unused_by("moe", r) for r in routers) and moe.per_token == 1 and moe.renormalise:
        typed = bool({"model.moe.per_token", "model.moe.renormalise"} & composed.keys)
        said = "model.moe.renormalise with one expert a token makes every weight 1, from which no router learns"
        found.append((f"{said}; set model.moe.renormalise=false", typed))
    return found
