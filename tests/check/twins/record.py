"""Computes and writes the records of a slot."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from typing import Any

from llmlab import registry, twins
from llmlab.check.twins import records, settings
from llmlab.check.twins.observers import OBSERVERS

DIGITS = 10  # significant ones


def settings_of_slot(slot: str) -> Iterator[settings.Setting]:
    """Each part at each setting of its options, and at the sizes and options that the module of its twins lists in MORE.

    Options there are beside the `small` ones of the part; None is the part's own defaults.
    """
    more = getattr(importlib.import_module(f"twins.{slot}"), "MORE", {})
    for name in registry.names(slot):
        yield from settings.of_part(slot, name)
        for sizes, options in more.get(name, ()):
            yield settings.Setting(slot, name, {} if options is None else {**_small(slot, name), **options}, sizes)


def _small(slot: str, name: str) -> dict[str, Any]:
    return registry.index()[slot, name].attribute("small")


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


def contents(slot: str) -> dict[str, Any]:
    """The file of a slot: REFUSED in the module of its twins lists (sizes, options) per part that no part can be built at."""
    refused = getattr(importlib.import_module(f"twins.{slot}"), "REFUSED", {})
    entries = [record(setting) for setting in settings_of_slot(slot)]
    entries += [
        {"name": name, "options": {**_small(slot, name), **options}, "sizes": sizes, "refused": True}
        for name in refused
        for sizes, options in refused[name]
    ]
    return {"parts": {name: records.declared_part(slot, name) for name in registry.names(slot)}, "records": entries}


def write(slot: str) -> None:
    found = contents(slot)
    parts = ",\n".join(f"{json.dumps(name)}: {json.dumps(part)}" for name, part in found["parts"].items())
    lines = ",\n".join(json.dumps(entry) for entry in found["records"])
    text = f'{{"parts": {{\n{parts}\n}}, "records": [\n{lines}\n]}}\n'
    (records.FOLDER / f"{slot}.json").write_text(text, encoding="utf-8")
