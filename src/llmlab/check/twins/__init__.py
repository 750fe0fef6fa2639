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


def definition(subject: Subject) -> None:
    """At each setting that a tiny model can show, a part computes what an implementation that is not ours computes."""
    slot, name = subject.case.parts[0]
    if slot not in OBSERVERS:
        raise NotApplicable("parts of this slot have no outputs of their own to compare")
    recorded = records.of_part(slot, name)
    if was := records.recorded_part(slot, name):
        _compare_declared(slot, name, was)
    known = [record.setting for record in recorded]
    if recorded and (new := [setting for setting in settings.of_part(slot, name) if setting not in known]):
        raise CheckFailed(f"{new[0]}: there is no record of this setting; cd tests/check; python -m twins {slot}")
    for record in recorded:
        if record.refused:
            _refuses(record.setting)
            continue
        observed = OBSERVERS[slot](record.setting)
        outputs = records.kept(observed.outputs, record.values)
        _compare(record.setting, outputs, record.values, record.source, observed.tolerance)
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
        _compare(setting, ours, theirs, own.source, observed.tolerance)


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


def _compare(
    setting: settings.Setting, ours: twins.Arrays, theirs: twins.Arrays, source: str, tolerance: float
) -> None:
    """CheckFailed unless both have the same names and the same values, up to chance or `tolerance` of an output's largest."""
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
        wrong = ~(apart <= bounds.get(key, tolerance * np.abs(other[np.isfinite(other)]).max(initial=0.0)))
        if wrong.any():
            at = int(np.where(wrong, np.nan_to_num(apart, nan=np.inf), -1.0).argmax())
            raise CheckFailed(
                f"{setting}: {key} is {one.flat[at]:.8g}, but {other.flat[at]:.8g} by {source} (value {at} of {one.size})"
            )
