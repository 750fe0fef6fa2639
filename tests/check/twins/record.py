"""Computes and writes the records of a slot."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from llmlab import registry, twins
from llmlab.check.twins import records, settings
from llmlab.check.twins.observers import OBSERVERS
from llmlab.check.twins.observers.observed import options_of
from llmlab.check.twins.settings import Setting

DIGITS, FEW_DIGITS = 8, 3  # significant ones; numbers are compared to 1e-5 of an output's largest


def settings_of_slot(slot: str) -> Iterator[Setting]:
    """Each part at each setting of its options, and at those that the module of its twins lists in MORE."""
    _module(slot)  # a caller may ask for the twins with the first setting
    for name in registry.names(slot):
        yield from settings.of_part(slot, name)
        yield from listed(slot, name, "MORE")


def listed(slot: str, name: str, table: str) -> Iterator[Setting]:
    """A part's settings in a table of the module of its twins, MORE or REFUSED."""
    small = registry.index()[slot, name].attribute("small")
    for sizes, options in getattr(_module(slot), table, {}).get(name, ()):
        yield Setting(slot, name, {} if options is None else {**small, **options}, sizes)


def lacking(slot: str) -> dict[str, str]:
    """Parts that have no twin yet, and the tests that hold what they compute to another truth until then."""
    found: dict[str, str] = getattr(_module(slot), "LACKING", {})
    return found


def _module(slot: str) -> object:
    return importlib.import_module(f"twins.{slot}")


def contents(slot: str) -> dict[str, Any]:
    """What `llmlab.check.twins.records` makes of a slot's file."""
    parts = {name: records.declaration(slot, name) for name in registry.names(slot) if name not in lacking(slot)}
    refuses = getattr(_module(slot), "refuses", lambda name, options: False)
    entries = [
        {**_head(setting), "refused": True} if refuses(setting.name, options_of(setting)) else _record(setting)
        for setting in settings_of_slot(slot)
        if setting.name not in lacking(slot)
    ]
    for name in parts:
        entries += [{**_head(setting), "refused": True} for setting in listed(slot, name, "REFUSED")]
    return {"parts": parts, "records": entries}


def _record(setting: Setting) -> dict[str, Any]:
    own = twins.twin_of(setting.slot, setting.name)
    assert own is not None, f"{setting.slot}={setting.name} has no twin in tests/check/twins/{setting.slot}.py"
    outputs = own.compute(OBSERVERS[setting.slot](setting).given)
    values = _values(records.kept(outputs, outputs))
    shapes = {key: [*shape] for key, shape in records.shapes(outputs).items() if [*shape] != [len(values[key])]}
    return {**_head(setting), "source": own.source, "values": values, "shapes": shapes}


def _head(setting: Setting) -> dict[str, Any]:
    return {"name": setting.name, "options": dict(setting.options), "sizes": dict(setting.sizes)}


def _values(kept: Mapping[str, np.ndarray]) -> dict[str, list[float]]:
    """Numbers of each output; of means over draws, and of what chance explains of them, no more digits than matter."""
    found = {}
    for key, value in kept.items():
        if key.endswith(twins.CHANCE):
            found[key] = [_rounded(bound, FEW_DIGITS) for bound in value]
        elif (bounds := kept.get(key + twins.CHANCE)) is not None:
            bounds = np.maximum(np.broadcast_to(bounds, value.shape), 1e-9)
            places = (FEW_DIGITS - math.floor(math.log10(bound)) for bound in bounds)
            found[key] = [round(float(v), n) for v, n in zip(value, places, strict=True)]
        else:
            found[key] = [_rounded(v, DIGITS) for v in value]
    return found


def _rounded(value: np.floating, digits: int) -> float:
    return float(f"{value:.{digits}g}")


def write(slot: str) -> None:
    """Writes `records/SLOT.json`, with a part and a record a line."""
    found = records.shortened(contents(slot))
    compact = json.JSONEncoder(separators=(",", ":")).encode
    parts = ",\n".join(f"{compact(name)}:{compact(part)}" for name, part in found["parts"].items())
    lines = ",\n".join(compact(entry) for entry in found["records"])
    text = f'{{"parts":{{\n{parts}\n}},"records":[\n{lines}\n]}}\n'
    (records.FOLDER / f"{slot}.json").write_text(text, encoding="utf-8")
