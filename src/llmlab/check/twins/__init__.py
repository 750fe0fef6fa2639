"""What a part computes against numbers from an implementation that is not ours.

`records/SLOT.json` holds those numbers for every shipped part, at every setting of its options that a tiny model can show
(`settings.py`), with source and version. They are written by tests/check/twins, where the implementations stand; here
is only what asks our part (`observers/`) and compares. A part of a user's own is held to the twin that it brings
(`llmlab.twins`).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from llmlab import registry, twins
from llmlab.check.subject import CheckFailed, NotApplicable, Subject
from llmlab.check.twins import records, settings
from llmlab.check.twins.observers import OBSERVERS
from llmlab.errors import UserError

TOLERANCE = 1e-5  # of the largest value: many parts compute in float32 whatever they are given


def definition(subject: Subject) -> None:
    """At each setting that a tiny model can show, a part computes what an implementation that is not ours computes."""
    slot, name = subject.case.parts[0]
    if slot not in OBSERVERS:
        raise NotApplicable("parts of this slot have no outputs of their own to compare")
    recorded = records.of_part(slot, name)
    if was := records.recorded_part(slot, name):
        _compare_declared(slot, name, was)
    for record in recorded:
        if record.refused:
            _refuses(record.setting)
            continue
        outputs = {key: records.sampled(value) for key, value in OBSERVERS[slot](record.setting).outputs.items()}
        _compare(record.setting, outputs, record.values, record.source)
    if recorded:
        return
    registry.load(slot, name, {})  # importing a user's part defines the twin beside it
    own = twins.twin_of(slot, name)
    if own is None:
        raise NotApplicable("it has no twin to be compared with; llmlab.twins says how to write one")
    for setting in settings.of_part(slot, name):
        observed = OBSERVERS[slot](setting)
        _compare(setting, observed.outputs, own.compute(observed.given), own.source)


def _compare_declared(slot: str, name: str, was: dict[str, Any]) -> None:
    """CheckFailed if the part has other defaults, or declares other attributes, than when it was recorded."""
    now = records.declared_part(slot, name)
    for group, words in (("defaults", "by default"), ("declares", "as it declares")):
        for key in sorted({*now[group], *was[group]}):
            one, other = now[group].get(key), was[group].get(key)
            if one != other:
                raise CheckFailed(
                    f"{slot}={name}: {key} is {one!r} {words}, but {other!r} where its numbers were recorded"
                )


def _refuses(setting: settings.Setting) -> None:
    """CheckFailed unless no part can be built at the setting, and the reason names one of its options or a value."""
    try:
        OBSERVERS[setting.slot](setting)
    except (ValueError, UserError) as e:
        given = {**setting.options, **setting.sizes}
        if any(key.rpartition(".")[2] in str(e) or str(value) in str(e) for key, value in given.items()):
            return
        raise CheckFailed(f"{setting}: refused, but not for that: {e}") from e
    raise CheckFailed(f"{setting}: is not refused")


def _compare(setting: settings.Setting, ours: twins.Arrays, theirs: twins.Arrays, source: str) -> None:
    """CheckFailed unless both have the same names and, up to `TOLERANCE`, the same values."""
    if ours.keys() != theirs.keys():
        raise CheckFailed(f"{setting}: the part gives {', '.join(ours)}, the twin {', '.join(theirs)}")
    for key, value in ours.items():
        one, other = np.asarray(value, np.float64), np.asarray(theirs[key], np.float64)
        if one.shape != other.shape:
            raise CheckFailed(f"{setting}: {key} has the shape {one.shape}, but {other.shape} by {source}")
        # A mask's scores of -inf are equal where both have them; a NaN equals nothing.
        apart = np.abs(np.where(one == other, 0.0, one - other)).max(initial=0.0)
        finite = np.abs(other[np.isfinite(other)]).max(initial=0.0)
        if not apart <= TOLERANCE * finite:
            at = int(np.nanargmax(np.abs(np.where(one == other, 0.0, one - other)))) if np.isfinite(apart) else 0
            raise CheckFailed(
                f"{setting}: {key} is {one.flat[at]:.8g}, but {other.flat[at]:.8g} by {source} (value {at} of {one.size})"
            )
