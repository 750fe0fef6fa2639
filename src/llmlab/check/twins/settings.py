"""Settings of a part's options: it is compared with its twin at each, and models are built with each (`setting_rows`)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from llmlab import registry
from llmlab.config.spelling import quoted
from llmlab.slot_names import place_of
from llmlab.source import Entry


@dataclass(frozen=True)
class Setting:
    """A part with options, and sizes and traits of the model by the key below `model.` ("attention.qkv_bias")."""

    slot: str
    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    sizes: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        """Words as they are typed on a command line."""
        place = place_of(self.slot, self.name)
        words = [f"{self.slot}={self.name}", *(override(f"{place}.{k}", v) for k, v in self.options.items())]
        return " ".join([*words, *(override(f"model.{k}", v) for k, v in self.sizes.items())])

    def as_json(self) -> str:
        """A text that is the same for settings that mean the same: a record has lists where a part declares tuples."""
        return json.dumps([self.slot, self.name, self.options, self.sizes], sort_keys=True)


def override(key: str, value: object) -> str:
    """KEY=VALUE as Hydra's override grammar reads it: null, true and false; no blanks, which would end an unquoted value."""
    if isinstance(value, str) and not re.fullmatch(r"[\w.-]+", value, re.ASCII):
        return f"{key}={quoted(value)}"
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    if isinstance(value, tuple):
        text = str([*value])
    return f"{key}={text.replace(' ', '')}"


def of_part(slot: str, name: str) -> list[Setting]:
    """Settings of a part: its `small` options, and these with each entry of `telling` or another value of a bool or Literal."""
    entry = registry.index()[slot, name]
    small, telling = entry.attribute("small"), entry.attribute("telling")
    met = [small]
    for options in telling:  # parts of one class share them: they may be the defaults of this one
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
    """Options that no setting of the part changes, and that are the same by default under the other names of its class."""
    entry = registry.index()[slot, name]
    return [
        key
        for key, option in entry.options.items()
        if all(setting.options.get(key, option.default) == option.default for setting in of_part(slot, name))
        and all(other.options[key].default == option.default for other in kin(entry))
    ]


def kin(entry: Entry) -> list[Entry]:
    """Parts that are the same class under other names, with other defaults."""
    own = (entry.slot, entry.module, entry.qualname)
    return [e for e in registry.index().values() if (e.slot, e.module, e.qualname) == own and e.name != entry.name]


def _choices(options: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """(option, value) of every bool and Literal."""
    for key, option in options.items():
        for value in option.choices or ((False, True) if option.type is bool else ()):
            yield key, value
