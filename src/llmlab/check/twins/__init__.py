"""Comparison of what a part computes with numbers from an implementation that is not ours.

`records/SLOT.json` holds those numbers, with their sources, for every shipped part at every setting of its options whose effect
a tiny model shows (`settings`), and the settings that a part must refuse. They are written by tests/check/twins, where the
implementations, the "twins", stand. Here is only what asks our part (`observers`) and what compares. A user's own part is
compared with the twin that its author wrote beside it (`llmlab.twins`).
"""

from __future__ import annotations

import numpy as np
import torch

from llmlab import registry, twins
from llmlab.check.refusal import crash, reason, refusal
from llmlab.check.subject import CheckFailed, NotApplicable, Subject
from llmlab.check.twins import records, settings
from llmlab.check.twins.observers import OBSERVERS
from llmlab.check.twins.observers.observed import Observed, computed_in
from llmlab.check.twins.records import Record, Shapes
from llmlab.errors import UserError
from llmlab.slot_names import LISTED_SLOTS

# Modules whose numbers are asked for in float32 as well, in which runs compute: some take another way there, torch's own.
SINGLE = ("attention", "block", "embedding", "ffn", "head", "moe", "norm", "position")
NO_TWIN = "it has no twin: its numbers are compared with nothing"


def definition(subject: Subject) -> None:
    """At each setting that a tiny model can show, a part computes what an implementation that is not ours computes."""
    slot, name = subject.case.parts[0]
    if slot not in OBSERVERS:
        raise NotApplicable("parts of this slot have no outputs of their own to compare")
    if recorded := records.of_part(slot, name):
        _compare_with_records(slot, name, recorded)
    else:
        _compare_with_own_twin(slot, name)


def _compare_with_records(slot: str, name: str, recorded: list[Record]) -> None:
    _compare_declared(slot, name)
    known = {record.setting.as_json() for record in recorded}
    if new := [setting for setting in settings.of_part(slot, name) if setting.as_json() not in known]:
        raise CheckFailed(f"{new[0]}: there is no record of this setting; cd tests/check; python -m twins {slot}")
    # What is recorded beside the settings that options give, traits of the model for one, is recorded under one of a class's
    # names: what is wrong there is wrong under each.
    kin = [record for other in settings.kin(registry.index()[slot, name]) for record in _further(slot, other.name)]
    for record in [*recorded, *kin]:
        _compare_record(record)


def _further(slot: str, name: str) -> list[Record]:
    """Records of a part at settings that its options alone don't give."""
    own = {setting.as_json() for setting in settings.of_part(slot, name)}
    return [record for record in records.of_part(slot, name) if record.setting.as_json() not in own]


def _compare_record(record: Record) -> None:
    """CheckFailed unless our part computes what is recorded, or refuses what is recorded as refused."""
    if record.refused:
        require_refusal(record.setting)
        return
    try:
        observed = OBSERVERS[record.setting.slot](record.setting)
    except (ValueError, UserError) as e:
        raise CheckFailed(f"{record.setting}: it is refused: {reason(e)}") from e
    _compare_shapes(record.setting, records.shapes(observed.outputs), record.shapes, record.source)
    kept = records.kept(observed.outputs, record.values)
    _compare_values(record.setting, kept, record.values, record.source, observed.tolerance)
    if record.setting.slot in SINGLE:
        kept = records.kept(_in_float32(record.setting).outputs, record.values)
        _compare_values(record.setting, kept, record.values, f"{record.source}, in float32", observed.tolerance)


def _compare_with_own_twin(slot: str, name: str) -> None:
    registry.load(slot, name, {})  # importing a user's part defines the twin beside it
    own = twins.twin_of(slot, name)
    if own is None:
        raise NotApplicable(NO_TWIN)
    asked = settings.of_part(slot, name)
    refused: list[str] = []
    for setting in asked:
        try:
            observed = OBSERVERS[slot](setting)
        except (ValueError, UserError) as e:
            refused.append(reason(e))
            continue
        theirs = _computed(setting, own, observed)
        ours = {key: value for key, value in observed.outputs.items() if key in theirs}
        _compare_shapes(setting, records.shapes(ours), records.shapes(theirs), own.source)
        _compare_values(setting, ours, theirs, own.source, observed.tolerance)
        if slot in SINGLE:
            ours = {key: value for key, value in _in_float32(setting).outputs.items() if key in theirs}
            _compare_values(setting, ours, theirs, f"{own.source}, in float32", observed.tolerance)
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


def _compare_declared(slot: str, name: str) -> None:
    """CheckFailed if the part has other defaults, or declares other attributes, than when it was recorded."""
    was, now = records.recorded_declaration(slot, name), records.declaration(slot, name)
    for group, words in (("defaults", "by default"), ("declares", "as it declares")):
        for key in sorted({*now[group], *was[group]}):
            one, other = now[group].get(key), was[group].get(key)
            if one != other:
                raise CheckFailed(
                    f"{slot}={name}: {key} is {one!r} {words}, but {other!r} where its numbers were recorded"
                )


def require_refusal(setting: settings.Setting) -> None:
    """CheckFailed unless the part is refused at the setting, in a line that names an option of it, or a size or its value."""
    try:
        OBSERVERS[setting.slot](setting)
    except Exception as e:
        why = refusal(e)
        if why is None:
            raise CheckFailed(f"{setting}: {crash(e)}") from e
        sizes = [word for key, value in setting.sizes.items() for word in (key.rpartition(".")[2], str(value))]
        # A filter's message names the bare option: those that build it put its place in front.
        options = [key if setting.slot in LISTED_SLOTS else f"{setting.slot}.{key}" for key in setting.options]
        if not any(word in why for word in (*options, *sizes)):
            raise CheckFailed(f"{setting}: the refusal names nothing of this setting: {why}") from e
    else:
        raise CheckFailed(f"{setting}: it is not refused")


def _compare_shapes(setting: settings.Setting, ours: Shapes, theirs: Shapes, source: str) -> None:
    """CheckFailed unless both have the same outputs, of the same shapes."""
    if ours.keys() != theirs.keys():
        raise CheckFailed(f"{setting}: the part gives {', '.join(ours)}, the twin {', '.join(theirs)}")
    for key, shape in ours.items():
        if shape != theirs[key]:
            raise CheckFailed(f"{setting}: {key} has the shape {shape}, but {theirs[key]} by {source}")


def _compare_values(
    setting: settings.Setting, ours: twins.Arrays, theirs: twins.Arrays, source: str, tolerance: float
) -> None:
    """CheckFailed unless values are the same, up to the bound of chance or `tolerance` times the largest of their output."""
    for key, value in ours.items():
        one, other = np.asarray(value, np.float64), np.asarray(theirs[key], np.float64)
        # A mask's scores of -inf are equal where both have them; a NaN equals nothing.
        apart = np.abs(np.where(one == other, 0.0, one - other))
        bound = theirs.get(key + twins.CHANCE, tolerance * np.abs(other[np.isfinite(other)]).max(initial=0.0))
        wrong = ~(apart <= bound)
        if wrong.any():
            at = int(np.where(wrong, np.nan_to_num(apart, nan=np.inf), -1.0).argmax())
            raise CheckFailed(
                f"{setting}: {key} is {one.flat[at]:.8g}, but {other.flat[at]:.8g} by {source} (value {at} of {one.size})"
            )
