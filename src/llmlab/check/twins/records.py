"""Reads `records/SLOT.json`: {"records": [{name, options, sizes, source, values}]}, written by tests/check/twins."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from llmlab import twins
from llmlab.check.twins.settings import Setting

FOLDER = Path(__file__).with_name("records")
N_VALUES = 48  # of an output, evenly far apart, where it has more


@dataclass(frozen=True)
class Record:
    """What `source` (an implementation and its version, or a paper and equation) computes at a setting, by output."""

    setting: Setting
    source: str
    values: Mapping[str, np.ndarray]


@cache
def of_slot(slot: str) -> list[Record]:
    """All records of a slot."""
    file = FOLDER / f"{slot}.json"
    entries = json.loads(file.read_text(encoding="utf-8"))["records"] if file.exists() else []
    return [
        Record(
            Setting(slot, e["name"], e["options"], e["sizes"]),
            e["source"],
            {key: np.array(value, np.float64) for key, value in e["values"].items()},
        )
        for e in entries
    ]


def of_part(slot: str, name: str) -> list[Record]:
    """The records of one part."""
    return [record for record in of_slot(slot) if record.setting.name == name]


def kept(outputs: twins.Arrays, of: twins.Arrays) -> dict[str, np.ndarray]:
    """What a record keeps of outputs: all of those that have a bound of chance in `of`, which is value by value."""
    whole = {key.removesuffix(twins.CHANCE) for key in of if key.endswith(twins.CHANCE)}
    whole |= {key + twins.CHANCE for key in whole}
    return {key: np.reshape(value, -1) if key in whole else sampled(value) for key, value in outputs.items()}


def sampled(value: np.ndarray) -> np.ndarray:
    """(at most N_VALUES,): values of an array evenly far apart, the first and the last among them."""
    flat = np.asarray(value, np.float64).reshape(-1)
    if flat.size <= N_VALUES:
        return flat
    return flat[np.linspace(0, flat.size - 1, N_VALUES).round().astype(int)]
