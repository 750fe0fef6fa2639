"""Computes and writes the records of a slot."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from typing import Any

from llmlab import registry, twins
from llmlab.check.twins import records, settings
from llmlab.check.twins.observers import OBSERVERS

DIGITS = 12  # significant ones


def settings_of_slot(slot: str) -> Iterator[settings.Setting]:
    """Each part at each setting of its options, and at the sizes and traits that the module of its twins lists in MORE."""
    more = getattr(importlib.import_module(f"twins.{slot}"), "MORE", {})
    for name in registry.names(slot):
        yield from settings.of_part(slot, name)
        for sizes, options in more.get(name, ()):
            yield settings.Setting(slot, name, {**registry.index()[slot, name].attribute("small"), **options}, sizes)


def record(setting: settings.Setting) -> dict[str, Any]:
    """The entry of a setting in the file."""
    importlib.import_module(f"twins.{setting.slot}")
    own = twins.twin_of(setting.slot, setting.name)
    assert own is not None, f"{setting.slot}={setting.name} has no twin in tests/check/twins/{setting.slot}.py"
    values = own.compute(OBSERVERS[setting.slot](setting).given)
    return {
        "name": setting.name,
        "options": dict(setting.options),
        "sizes": dict(setting.sizes),
        "source": own.source,
        "values": {key: [_rounded(v) for v in value] for key, value in records.kept(values, values).items()},
    }


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def write(slot: str) -> None:
    lines = ",\n".join(json.dumps(record(setting)) for setting in settings_of_slot(slot))
    (records.FOLDER / f"{slot}.json").write_text(f'{{"records": [\n{lines}\n]}}\n', encoding="utf-8")
