"""Typed overrides: their choices in groups, as Hydra wants them spelt, and the budgets that a typed one replaces."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from llmlab import registry
from llmlab.config.composed import Typed
from llmlab.config.explain import Known
from llmlab.config.schema import Budget
from llmlab.slot_names import LISTED_SLOTS, SLOTS

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override
    from omegaconf import DictConfig


def with_plus(
    overrides: Sequence[str], parsed: Sequence[Override], run: Callable[[Sequence[str]], DictConfig]
) -> tuple[str, ...]:
    """The overrides with a "+" where Hydra wants one: at a slot of a kind or a stack, or a head's role, for which the family
    names no part. Hydra refuses to override what has no entry in the defaults list."""
    from omegaconf import OmegaConf

    chosen = [
        str(o.input_line) for o in parsed if o.key_or_group in ("model", "size", "experiment", "objective", "alignment")
    ]
    base: DictConfig | None = None
    out = []
    for text, o in zip(overrides, parsed, strict=True):
        at, _, slot = (o.package or "").rpartition(".")
        if slot in SLOTS and at.startswith(("kinds.", "stacks.")) and text[0] not in "+~":
            try:
                base = run(chosen) if base is None else base
                # In the config without typed slots, as what is asked is what the family's file names there.
                node = OmegaConf.select(base, at)
                if node is not None and node.get(slot) is None:
                    run([*chosen, text])
            except Exception as e:
                # Hydra 1.3 says so of a group that is not in the defaults list, and offers +GROUP=.
                text = f"+{text}" if "Could not override" in str(e) else text
        elif o.key_or_group in LISTED_SLOTS and at == o.key_or_group and text[0] not in "+~":
            text = f"+{text}"  # another one of that part, under a name of its own
        elif o.key_or_group == "head" and at == "heads" and text[0] not in "+~":
            try:
                base = run(chosen) if base is None else base
                text = text if slot in base.heads else f"+{text}"
            except Exception:  # what is wrong with the others is said of them
                base = None
        out.append(text)
    return tuple(out)


def choices(parsed: Sequence[Override], known: Known, run: Callable[[Sequence[str]], DictConfig]) -> list[Typed | None]:
    """The choice of each override in a group, None for a value. Compared with the config without typed slots."""
    from omegaconf import OmegaConf

    recipe = [o for o in parsed if o.key_or_group in known.groups and o.key_or_group not in SLOTS]
    slots = [o for o in parsed if o.key_or_group in SLOTS]
    base = run([str(o.input_line) for o in recipe]) if slots else None
    typed: list[Typed | None] = []
    for o in parsed:
        if o.key_or_group not in known.groups:
            typed.append(None)
            continue
        choice = None if o.is_delete() or o.value() is None else _name(o.value())
        kept = False
        # Other spellings are for Hydra to refuse.
        plain = not (o.is_add() or o.is_force_add() or o.package == o.key_or_group)
        if plain and (o.key_or_group, choice) in registry.index():
            here = OmegaConf.select(base, o.package or o.key_or_group) if base is not None else None
            kept = here is not None and here.get("_part_") == choice
        typed.append(Typed(o.key_or_group, choice_key(o.key_or_group, o.package), choice, kept))
    return typed


def choice_key(group: str, package: str | None) -> str:
    """The place of a choice: its package without the name of the slot."""
    if not package:
        return ""
    # `window@kinds.local.window`: Hydra's package is the node itself, its last name the slot's.
    parent, _, last = package.rpartition(".")
    return parent if last == group else package


def _name(value: object) -> str:
    # As it is typed: logger=[wandb,tensorboard].
    return f"[{','.join(map(str, value))}]" if isinstance(value, list) else str(value)


def other_budgets(parsed: Sequence[Override]) -> tuple[str, ...]:
    """A budget that was typed replaces any other."""
    mine = {o.key_or_group for o in parsed if o.key_or_group.startswith("budget.") and o.value() is not None}
    keys = [f"budget.{f.name}" for f in dataclasses.fields(Budget)]
    # conf/budget/default.yaml sets one, and Hydra would leave it beside the typed one.
    return tuple(f"{key}=null" for key in keys if key not in mine) if len(mine) == 1 else ()
