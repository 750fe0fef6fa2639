"""What a part computes against numbers from an implementation that is not ours.

`records/SLOT.json` holds those numbers for every shipped part, at every setting of its options that a tiny model can show
(`settings.py`), with source and version. They are written by tests/check/twins, where the implementations stand; here
is only what asks our part (`observers/`) and compares. A part of a user's own is held to the twin that it brings
(`llmlab.twins`).
"""

from __future__ import annotations

from inspect import unwrap
from typing import Any

import numpy as np
import torch

from llmlab import registry, twins
from llmlab.check.refusal import crash, reason
from llmlab.check.subject import CheckFailed, NotApplicable, Subject
from llmlab.check.twins import records, settings
from llmlab.check.twins.observers import OBSERVERS
from llmlab.check.twins.observers.observed import Observed, computed_in
from llmlab.errors import UserError

# Modules whose numbers are asked for in float32 as well, in which runs compute: some take another way there, torch's own.
SINGLE = ("attention", "block", "embedding", "ffn", "head", "moe", "norm", "position")
NO_TWIN = "it has no twin: its numbers are compared with nothing"


def definition(subject: Subject) -> None:
    """At each setting that a tiny model can show, a part computes what an implementation that is not ours computes."""
    slot, name = subject.case.parts[0]
    if slot not in OBSERVERS:
        raise NotApplicable("parts of this slot have no outputs of their own to compare")
    recorded = records.of_part(slot, name)
    if was := records.recorded_part(slot, name):
        _compare_declared(slot, name, was)
    known = [record.setting for record in recorded]
    asked = settings.of_part(slot, name)
    if recorded and (new := [setting for setting in asked if records.as_recorded(setting) not in known]):
        raise CheckFailed(f"{new[0]}: there is no record of this setting; cd tests/check; python -m twins {slot}")
    # Traits of the model are recorded under one of a class's names: what is wrong there is wrong under each.
    kin = [
        record for other in settings.kin(registry.index()[slot, name]) for record in records.of_part(slot, other.name)
    ]
    for record in [*recorded, *(kin if recorded else [])]:
        _compare_record(record)
    if not recorded:
        _compare_with_own(slot, name)


def _compare_record(record: records.Record) -> None:
    """CheckFailed unless our part computes what is recorded, or refuses what is recorded as refused."""
    if record.refused:
        _refuses(record.setting)
        return
    observed = OBSERVERS[record.setting.slot](record.setting)
    outputs = records.kept(observed.outputs, record.values)
    _compare(record.setting, outputs, record.values, record.source, observed.tolerance)
    if record.setting.slot in SINGLE:
        outputs = records.kept(_in_float32(record.setting).outputs, record.values)
        _compare(record.setting, outputs, record.values, f"{record.source}, in float32", observed.tolerance)


def _compare_with_own(slot: str, name: str) -> None:
    """The same of a part of a user's own and the twin beside it."""
    registry.load(slot, name, {})  # importing the part defines it
    own = twins.twin_of(slot, name)
    if own is None:
        raise NotApplicable(NO_TWIN)
    asked = settings.of_part(slot, name)
    refused: list[str] = []
    for setting in asked:
        try:
            observed = unwrap(OBSERVERS[slot])(setting)  # with the reason of a refusal, which a record has not
        except (ValueError, UserError) as e:
            refused.append(reason(e))
            continue
        theirs = _computed(setting, own, observed)
        ours = {key: value for key, value in observed.outputs.items() if key in theirs}
        _compare(setting, ours, theirs, own.source, observed.tolerance)
        if slot in SINGLE:
            ours = {key: value for key, value in _in_float32(setting).outputs.items() if key in theirs}
            _compare(setting, ours, theirs, f"{own.source}, in float32", observed.tolerance)
    if len(refused) == len(asked):
        raise NotApplicable(refused[0])


def _in_float32(setting: settings.Setting) -> Observed:
    with computed_in(torch.float32):
        return OBSERVERS[setting.slot](setting)


def _computed(setting: settings.Setting, own: twins.Twin, observed: Observed) -> twins.Arrays:
    """Outputs of a user's twin, each one that the part has too."""
    try:
        theirs = {key: np.asarray(value, np.float64) for key, value in own.compute(observed.given).items()}
    except Exception as e:
        names = ", ".join([*observed.given.inputs, *observed.given.weights])
        given = f"; inputs and weights are {names}" if isinstance(e, KeyError) else ""
        raise CheckFailed(f"{setting}: its twin {crash(e)}{given}") from e
    known = {*observed.outputs, *(key + twins.CHANCE for key in observed.outputs)}
    if unknown := [key for key in theirs if key not in known] or ([] if theirs else ["nothing"]):
        raise CheckFailed(
            f"{setting}: its twin gives {', '.join(unknown)}; the outputs are {', '.join(observed.outputs)}"
        )
    return theirs


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
