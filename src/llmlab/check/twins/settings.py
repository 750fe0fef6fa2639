"""The settings of a part's options at which it is compared with its twin, and met in the models of the matrix."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from llmlab import registry
from llmlab.source import Entry


@dataclass(frozen=True)
class Setting:
    """A part with options, and sizes and traits of the model by the key below `model.` ("attention.qkv_bias")."""

    slot: str
    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    sizes: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        """As it is typed."""
        words = [f"{self.slot}={self.name}", *(f"{self.slot}.{key}={value}" for key, value in self.options.items())]
        return " ".join([*words, *(f"model.{key}={value}" for key, value in self.sizes.items())])


def of_part(slot: str, name: str) -> list[Setting]:
    """The part with its `small` options, with each other value of a bool or a Literal, and each of its `telling` options."""
    entry = registry.index()[slot, name]
    small, telling = entry.attribute("small"), entry.attribute("telling")
    met = [small]
    for options in telling:  # of kin, one may have what is told by default
        if any(
            {**small, **options}.get(key, option.default) != small.get(key, option.default)
            for key, option in entry.options.items()
        ):
            met.append({**small, **options})
    for key, value in _choices(entry.options):
        if any(other.options[key].default == value for other in kin(entry)):
            continue
        if not any(options.get(key, entry.options[key].default) == value for options in met):
            met.append({**small, key: value})
    return [Setting(slot, name, options) for options in met]


def not_shown(slot: str, name: str) -> list[str]:
    """Options of the part that no setting changes, nor kin has otherwise by default."""
    entry = registry.index()[slot, name]
    return [
        key
        for key, option in entry.options.items()
        if all(setting.options.get(key, option.default) == option.default for setting in of_part(slot, name))
        and all(other.options[key].default == option.default for other in kin(entry))
    ]


def kin(entry: Entry) -> list[Entry]:
    """The other names of its class, each a part of its own."""
    own = (entry.slot, entry.module, entry.qualname)
    return [e for e in registry.index().values() if (e.slot, e.module, e.qualname) == own and e.name != entry.name]


def _choices(options: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """(option, value) of every bool and Literal."""
    for key, option in options.items():
        for value in option.choices or ((False, True) if option.type is bool else ()):
            yield key, value
