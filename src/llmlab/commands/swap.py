"""A trained model under other parts: what has no weights of its own can be exchanged without training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from llmlab import registry
from llmlab.errors import UserError

if TYPE_CHECKING:
    from llmlab.config.spec import PartSpec
    from llmlab.model.model import Model

LAYER, WHOLE = ("position", "window"), ("kernel",)
SLOTS = (*LAYER, *WHOLE)


def split(argv: Iterable[str]) -> tuple[list[str], list[str]]:
    """(the other arguments, those that choose a part or set its options)."""
    words = list(argv)
    chosen = [w.partition("=")[0].partition(".")[0] in SLOTS for w in words]
    return [w for w, c in zip(words, chosen, strict=True) if not c], [
        w for w, c in zip(words, chosen, strict=True) if c
    ]


def swapped(model: Model, typed: Sequence[str]) -> Model:
    """The same weights, which are not copied, under the parts and options that `typed` names, in every layer.

    Of what a layer's part was given, a new one keeps what it knows too: rope's theta, say. UserError for a part or an
    option that does not exist, or that these weights don't fit.
    """
    if not typed:
        return model
    from llmlab.model import build

    spec = model.spec.in_layers(lambda parts: _changed(parts, typed, LAYER))
    other = replace(spec, kernel=_changed({"kernel": spec.kernel}, typed, WHOLE)["kernel"])
    weights = model.state_dict()
    try:
        made = build.assemble(other)
    except ValueError as e:
        raise UserError(str(e)) from e
    if wrong := build.mismatches(made.state_dict(keep_vars=True), weights):
        raise UserError(f"{' '.join(typed)}: the weights do not fit: {'; '.join(wrong[:3])}")
    # The new model is on the meta device, into which nothing can be copied: its parameters become those of the old one.
    made.load_state_dict(weights, assign=True)
    # A new module is in training mode, with dropout.
    return made.train(model.training)


def _changed(parts: Mapping[str, PartSpec], typed: Sequence[str], slots: Sequence[str]) -> dict[str, PartSpec]:
    return {**parts, **{slot: _part(parts[slot], typed) for slot in slots}}


def _part(old: PartSpec, typed: Sequence[str]) -> PartSpec:
    """The part of a slot after the words that are about it."""
    from llmlab.config.compose import compose

    words = [w for w in typed if w.partition("=")[0].partition(".")[0] == old.slot]
    if not words:
        return old
    chosen = next((w.partition("=")[2] for w in words if w.startswith(f"{old.slot}=")), None)
    node: Any = compose(words if chosen else [f"{old.slot}={old.name}", *words], strict=False).cfg[old.slot]
    name, given = node["_part_"], {w.partition("=")[0].partition(".")[2] for w in words}
    options = registry.index()[old.slot, name].options
    # A preset was named, whose values count as typed.
    if chosen not in (None, name):
        given |= {k for k in options if _plain(node[k]) != options[k].default}
    kept = {k: v for k, v in old.options.items() if k in options}
    for key in kept.keys() - given:
        if (valid := options[key].choices) and kept[key] not in valid:
            raise UserError(
                f"{old.slot}={name}: it has no {key}={kept[key]}, which the model's {old.slot}={old.name} has; "
                f"set {old.slot}.{key} ({registry.near(kept[key], map(str, valid))})"
            )
    return replace(old, name=name, options={**kept, **{k: _plain(node[k]) for k in given if k in options}})


def _plain(value: object) -> Any:
    from omegaconf import OmegaConf

    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
