"""Typed configs of parts in Hydra's ConfigStore, made from what `llmlab.registry` has read of them."""

from __future__ import annotations

import functools
from dataclasses import field, make_dataclass
from typing import TYPE_CHECKING, Any

from llmlab import registry
from llmlab.slot_names import LISTED_SLOTS, Part

if TYPE_CHECKING:
    from omegaconf import DictConfig

_declared: dict[str, Any] = {}


@functools.cache
def _schema(slot: str, name: str, options: tuple[tuple[str, str], ...]) -> type:
    # Not Hydra's `_target_`: that is imported from wherever it says, and a command line can say it.
    fields: list[tuple[str, Any, Any]] = [("_part_", str, field(default=name))]
    for key, option in registry.index()[slot, name].options.items():
        default = option.default
        if option.required:
            default = "???"  # MISSING to OmegaConf: reading it raises, and `strays` names the key
        elif isinstance(default, tuple):
            # OmegaConf makes a ListConfig of it, whatever it was.
            default = list(default)
        # dataclasses refuse a mutable default.
        if isinstance(default, list | dict):
            fields.append((key, option.type, field(default_factory=functools.partial(type(default), default))))
        else:
            fields.append((key, option.type, field(default=default)))
    # OmegaConf names the class in its errors. With a "/" no class that is written in Python has the same name.
    return make_dataclass(f"{slot}/{name}", fields, bases=(Part,))


def schema(slot: str, name: str) -> type:
    """The dataclass of a part's config: `_part_` and its options."""
    entry = registry.index()[slot, name]
    return _schema(slot, name, tuple((k, f"{o.spelled}={o.default!r}") for k, o in entry.options.items()))


def declare() -> int:
    """Store the typed root and the config of every part in Hydra's ConfigStore, once for each set of parts.

    Returns a number that changes when the set does.
    """
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    from llmlab.config import resolvers
    from llmlab.config.schema import root

    # The same object until there are other parts, so that `is` tells.
    entries = registry.index()
    if _declared.get("entries") is entries:
        return int(_declared["count"])
    resolvers.register()
    store = ConfigStore.instance()
    # Hydra 1.3 copies its sources for each config that it composes, and with them all nodes of the store: a third of the
    # time. What is read from the store is a copy anyway.
    ConfigStore.__deepcopy__ = lambda self, memo: self  # type: ignore[attr-defined]
    # The store has no way to take something out: parts that are gone would still be choices.
    for slot, _ in _declared.get("entries", ()):
        store.repo.pop(slot, None)
    for slot, name in entries:
        place = f"{slot}.{name}" if slot in LISTED_SLOTS else None
        store.store(group=slot, name=name, node=schema(slot, name), package=place, provider="llmlab")
    typed = OmegaConf.structured(root())
    # The keys of `models` are the roles of the objective, which are typed without a "+".
    OmegaConf.set_struct(typed.models, False)
    # A name that no YAML file has: Hydra 1.3 would merge that over this one, with a warning.
    store.store(name="schema", node=typed, provider="llmlab")
    _declared.update(entries=entries, count=_declared.get("count", 0) + 1)
    return int(_declared["count"])


def part_factory(cfg: DictConfig, slot: str) -> Any:
    """A factory of the part that `cfg` names in a slot of the recipe, with its options."""
    from omegaconf import OmegaConf

    # Plain values: a part is a class of its own, which knows nothing of OmegaConf's containers.
    options: Any = OmegaConf.to_container(cfg[slot], resolve=True)
    return registry.load(slot, options.pop("_part_"), {k: v for k, v in options.items() if not k.startswith("_")})
