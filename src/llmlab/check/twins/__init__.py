"""What a part computes against numbers from an implementation that is not ours.

`records/SLOT.json` holds those numbers for every shipped part, at every setting of its options that a tiny model can show
(`settings.py`), with source and version. They are written by tests/check/twins, where the implementations stand; here
is only what asks our part (`observers/`) and compares. A part of a user's own is held to the twin that it brings
(`llmlab.twins`).
"""

from __future__ import annotations

import numpy as np

from llmlab import registry, twins
from llmlab.check.subject import CheckFailed, NotApplicable, Subject
from llmlab.check.twins import records, settings
from llmlab.check.twins.observers import OBSERVERS

TOLERANCE = 1e-5  # of the largest value: many parts compute in float32 whatever they are given


def definition(subject: Subject) -> None:
    """At each setting that a tiny model can show, a part computes what an implementation that is not ours computes."""
    slot, name = subject.case.parts[0]
    if slot not in OBSERVERS:
        raise NotApplicable("parts of this slot have no outputs of their own to compare")
    recorded = records.of_part(slot, name)
    for record in recorded:
        outputs = records.kept(OBSERVERS[slot](record.setting).outputs, record.values)
        _compare(record.setting, outputs, record.values, record.source)
    if recorded:
        return
    registry.load(slot, name, {})  # importing a user's part defines the twin beside it
    own = twins.twin_of(slot, name)
    if own is None:
        raise NotApplicable("it has no twin to be compared with; llmlab.twins says how to write one")
    for setting in settings.of_part(slot, name):
        observed = OBSERVERS[slot](setting)
        theirs = own.compute(observed.given)
        ours = {key: value for key, value in observed.outputs.items() if key in theirs} if theirs else observed.outputs
        _compare(setting, ours, theirs, own.source)


def _compare(setting: settings.Setting, ours: twins.Arrays, theirs: twins.Arrays, source: str) -> None:
    """CheckFailed unless both have the same names and, up to `TOLERANCE` or chance, the same values."""
    bounds = {key.removesuffix(twins.CHANCE): value for key, value in theirs.items() if key.endswith(twins.CHANCE)}
    theirs = {key: value for key, value in theirs.items() if not key.endswith(twins.CHANCE)}
    if ours.keys() != theirs.keys():
        raise CheckFailed(f"{setting}: the part gives {', '.join(ours)}, the twin {', '.join(theirs)}")
    for key, value in ours.items():
        one, other = np.asarray(value, np.float64), np.asarray(theirs[key], np.float64)
        if one.shape != other.shape:
            raise CheckFailed(f"{setting}: {key} has the shape {one.shape}, but {other.shape} by {source}")
        # A mask's scores of -inf are equal where both have them; a NaN equals nothing.
        apart = np.abs(np.where(one == other, 0.0, one - other))
        wrong = ~(apart <= bounds.get(key, TOLERANCE * np.abs(other[np.isfinite(other)]).max(initial=0.0)))
        if wrong.any():
            at = int(np.where(wrong, np.nan_to_num(apart, nan=np.inf), -1.0).argmax())
            raise CheckFailed(
                f"{setting}: {key} is {one.flat[at]:.8g}, but {other.flat[at]:.8g} by {source} (value {at} of {one.size})"
            )
