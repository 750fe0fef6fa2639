"""Reads `records/SLOT.json`, which tests/check/twins writes.

    {"parts": {NAME: {"defaults": ..., "declares": ..., "like": another part}},
     "records": [{"name", "options", "sizes", "source", "values": {OUTPUT: numbers}, "shapes": {OUTPUT: shape}},
                 {"name", "options", "sizes", "refused": true}, ...]}

A shape that isn't given is that of a row, as long as the numbers are. Most settings change few outputs: what a record doesn't
give is that of the first record of its part, and what that doesn't give is that of the first one of the part which it is
"like", above it; null stands for an output that there isn't.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llmlab import registry, twins
from llmlab.check.reference import noise
from llmlab.check.twins.settings import Setting

FOLDER = Path(__file__).with_name("records")
N_VALUES = 48  # an output of more is kept as sums, in which each of its values counts
N_SUMS = 12

Shapes = Mapping[str, tuple[int, ...]]  # by output
Entry = dict[str, Any]
GROUPS = ("values", "shapes")  # by output, in a record


@dataclass(frozen=True)
class Record:
    """Values that `source` (an implementation and its version, or a paper and equation) computes at a setting, by output."""

    setting: Setting
    source: str = ""
    values: Mapping[str, np.ndarray] = field(default_factory=dict)  # as `kept` has them
    shapes: Shapes = field(default_factory=dict)
    refused: bool = False  # True: the part must be refused at this setting, and there are no values


@cache
def contents(slot: str) -> dict[str, Any]:
    """The file of a slot, in which each record gives all of its own."""
    file = FOLDER / f"{slot}.json"
    if not file.exists():
        return {"parts": {}, "records": []}
    found = json.loads(file.read_text(encoding="utf-8"))
    first: dict[str, Entry] = {}
    found["records"] = [_whole(entry, first, found["parts"]) for entry in found["records"]]
    return {**found, "parts": {name: {k: v for k, v in p.items() if k != "like"} for name, p in found["parts"].items()}}


def _whole(entry: Entry, first: dict[str, Entry], parts: Mapping[str, Any]) -> Entry:
    """The record with what it leaves to another. first: of each part so far."""
    if entry.get("refused"):
        return entry
    name = entry["name"]
    other = first.get(name) or first.get(parts[name].get("like"), {})
    merged = {key: {**other.get(key, {}), **entry.get(key, {})} for key in GROUPS}
    there = {key: {k: v for k, v in of.items() if v is not None} for key, of in merged.items()}
    whole = {**entry, "source": entry.get("source", other.get("source")), **there}
    first.setdefault(name, whole)
    return whole


def shortened(found: Mapping[str, Any]) -> dict[str, Any]:
    """What a file holds, of what `contents` makes of it."""
    first: dict[str, Entry] = {}
    parts: dict[str, Any] = {name: dict(part) for name, part in found["parts"].items()}
    entries = []
    for entry in found["records"]:
        name = entry["name"]
        if entry.get("refused"):
            entries.append(entry)
        elif name in first:
            entries.append(_changed(entry, first[name]))
        else:
            # Of the parts above the one that leaves least to be told, if any leaves less than all.
            ways = {"": _changed(entry, {}), **{other: _changed(entry, of) for other, of in first.items()}}
            like = min(ways, key=lambda other: len(json.dumps(ways[other])))
            parts[name] |= {"like": like} if like else {}
            entries.append(ways[like])
            first[name] = entry
    return {"parts": parts, "records": entries}


def _changed(entry: Entry, other: Entry) -> Entry:
    """What a record must give itself, beside another."""
    made = {key: value for key, value in entry.items() if key not in (*GROUPS, "source")}
    if entry["source"] != other.get("source"):
        made["source"] = entry["source"]
    for key in GROUPS:
        own, known = entry[key], other.get(key, {})
        if told := {k: own.get(k) for k in {**own, **known} if own.get(k) != known.get(k)}:
            made[key] = told
    return made


@cache
def of_slot(slot: str) -> list[Record]:
    """All records of a slot."""
    return [_record(slot, entry) for entry in contents(slot)["records"]]


def of_part(slot: str, name: str) -> list[Record]:
    """The records of one part."""
    return [record for record in of_slot(slot) if record.setting.name == name]


def _record(slot: str, entry: Mapping[str, Any]) -> Record:
    setting = Setting(slot, entry["name"], entry["options"], entry["sizes"])
    if entry.get("refused"):
        return Record(setting, refused=True)
    values = {key: np.array(value, np.float64) for key, value in entry["values"].items()}
    given = {key: tuple(entry["shapes"].get(key, (len(values[key]),))) for key in _outputs(values)}
    return Record(setting, entry["source"], values, given)


def recorded_declaration(slot: str, name: str) -> dict[str, Any]:
    """The `declaration` of a part when it was recorded."""
    return contents(slot)["parts"][name]


def declaration(slot: str, name: str) -> dict[str, Any]:
    """The `defaults` of a part's options, and the attributes that it `declares`, as JSON has them."""
    entry = registry.index()[slot, name]
    defaults = {key: option.default for key, option in entry.options.items()}
    return json.loads(json.dumps({"defaults": defaults, "declares": dict(entry.attrs)}))


def _outputs(values: twins.Arrays) -> list[str]:
    """Names of what a part computes, without the bounds of chance."""
    return [key for key in values if not key.endswith(twins.CHANCE)]


def shapes(outputs: twins.Arrays) -> Shapes:
    """The shape of each output; a bound of chance has that of its output."""
    return {key: np.shape(outputs[key]) for key in _outputs(outputs)}


def kept(outputs: twins.Arrays, of: twins.Arrays) -> dict[str, np.ndarray]:
    """Values that a record keeps of outputs: all of those that have a bound of chance in `of`, else what `sampled` takes."""
    whole = {key.removesuffix(twins.CHANCE) for key in of if key.endswith(twins.CHANCE)}
    whole |= {key + twins.CHANCE for key in whole}
    return {key: np.reshape(value, -1) if key in whole else sampled(value) for key, value in outputs.items()}


def sampled(value: np.ndarray) -> np.ndarray:
    """The values of a small array; of a larger one N_SUMS weighted sums, or N_VALUES evenly far apart if some are infinite."""
    flat = np.asarray(value, np.float64).reshape(-1)
    if flat.size <= N_VALUES:
        return flat
    if not np.isfinite(flat).all():
        return flat[np.linspace(0, flat.size - 1, N_VALUES).round().astype(int)]
    # Weights in [0.5, 1.5), of either sign: none is near 0, and values that change places or cancel are told apart.
    weights = noise("weights", torch.Size([flat.size])).double().numpy()
    return np.array([part.sum() for part in np.array_split(flat * (weights + np.sign(weights) * 0.5), N_SUMS)])
