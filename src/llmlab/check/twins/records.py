"""Reads `records/SLOT.json`, written by tests/check/twins: {"parts": {name: {defaults, declares}}, "records": [...]}, of which
each is {name, options, sizes, source, values}, or {name, options, sizes, refused: true}.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
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


@dataclass(frozen=True)
class Record:
    """What `source` (an implementation and its version, or a paper and equation) computes at a setting, by output."""

    setting: Setting
    source: str
    values: Mapping[str, np.ndarray]
    refused: bool = False  # no part can be built at this setting


@cache
def _file(slot: str) -> dict[str, Any]:
    file = FOLDER / f"{slot}.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"records": []}


@cache
def of_slot(slot: str) -> list[Record]:
    """All records of a slot."""
    return [
        Record(
            Setting(slot, e["name"], e["options"], e["sizes"]),
            e.get("source", ""),
            {key: np.array(value, np.float64) for key, value in e.get("values", {}).items()},
            e.get("refused", False),
        )
        for e in _file(slot)["records"]
    ]


def as_recorded(setting: Setting) -> Setting:
    """The setting as JSON gives it back, which has lists and no tuples."""
    return replace(setting, options=json.loads(json.dumps(dict(setting.options))))


def recorded_part(slot: str, name: str) -> dict[str, Any] | None:
    """The defaults and attributes with which a part was recorded; None if that was not kept."""
    return _file(slot).get("parts", {}).get(name)


def declared_part(slot: str, name: str) -> dict[str, Any]:
    """The defaults of its options, and the attributes that it declares, as JSON has them."""
    entry = registry.index()[slot, name]
    defaults = {key: option.default for key, option in entry.options.items()}
    return json.loads(json.dumps({"defaults": defaults, "declares": dict(entry.attrs)}))


def of_part(slot: str, name: str) -> list[Record]:
    """The records of one part."""
    return [record for record in of_slot(slot) if record.setting.name == name]


def kept(outputs: twins.Arrays, of: twins.Arrays) -> dict[str, np.ndarray]:
    """What a record keeps of outputs: all of those that have a bound of chance in `of`, which is value by value."""
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
