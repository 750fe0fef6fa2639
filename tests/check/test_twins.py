"""Every shipped part has a twin at every setting, records are what twins say, and our parts are what records say."""

import json
from dataclasses import replace

import numpy as np
import pytest
from twins.record import record, settings_of_slot

from llmlab import registry
from llmlab.check import twins
from llmlab.check.subject import Case, CheckFailed, Subject
from llmlab.check.twins import records
from llmlab.check.twins.observers import OBSERVERS


@pytest.mark.parametrize("slot", OBSERVERS)
def test_records_are_what_the_twins_say(slot):
    anew = [json.loads(json.dumps(record(setting))) for setting in settings_of_slot(slot)]
    there = json.loads((records.FOLDER / f"{slot}.json").read_text())["records"]
    assert [{**r, "values": None} for r in anew] == [{**r, "values": None} for r in there], (
        "cd tests/check; python -m twins"
    )
    for one, other in zip(anew, there, strict=True):
        for key, values in one["values"].items():
            assert other["values"][key] == pytest.approx(values, rel=1e-6, abs=1e-9), (one["name"], one["options"], key)


PARTS = [(slot, name) for slot in OBSERVERS for name in registry.names(slot)]


@pytest.mark.parametrize("part", PARTS, ids="=".join)
def test_a_part_is_what_its_twin_says(part):
    twins.definition(_subject(part))


def test_another_number_is_found(monkeypatch):
    monkeypatch.setattr(
        "llmlab.check.twins.observers.observed.SIZES", twins.observers.observed.SIZES.but(norm_eps=2e-3)
    )
    with pytest.raises(CheckFailed, match="norm=rmsnorm: x is"):
        twins.definition(_subject(("norm", "rmsnorm")))


SILENT = {("embedding", "bert"): ["width"]}  # it can only be the model's; factorized has others


@pytest.mark.parametrize("part", PARTS, ids="=".join)
def test_every_option_of_a_setting_shows(part):
    assert twins.settings.not_shown(*part) == SILENT.get(part, [])
    small, *others = twins.settings.of_part(*part)
    for other in others:
        for key, value in other.options.items():
            if value != small.options.get(key, registry.index()[part].options[key].default):
                without = {k: v for k, v in other.options.items() if k != key or k in small.options}
                without.update({key: small.options[key]} if key in small.options else {})
                assert _outputs(other) != _outputs(replace(other, options=without)), (
                    f"{other} is the same without {key}"
                )


def _outputs(setting):
    return {key: value.tolist() for key, value in OBSERVERS[setting.slot](setting).outputs.items()}


def _subject(part):
    return Subject(Case("=".join(part), (), "part", parts=(part,)))
