"""Every shipped part has a twin at every setting, records are what twins say, and our parts are what records say."""

import json

import pytest
from twins.record import record, settings_of_slot

from llmlab import registry
from llmlab.check import cases, twins
from llmlab.check.subject import CheckFailed, Subject
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


@pytest.mark.parametrize("part", [(s, n) for s in OBSERVERS for n in registry.names(s)], ids="=".join)
def test_a_part_is_what_its_twin_says(part):
    twins.definition(Subject(cases.part_case(part)))


def test_another_number_is_found(monkeypatch):
    monkeypatch.setattr(
        "llmlab.check.twins.observers.observed.SIZES", twins.observers.observed.SIZES.but(norm_eps=2e-3)
    )
    with pytest.raises(CheckFailed, match="norm=rmsnorm: x is"):
        twins.definition(Subject(cases.part_case(("norm", "rmsnorm"))))


@pytest.mark.parametrize("slot", OBSERVERS)
def test_every_setting_of_an_option_shows(slot):
    for name in registry.names(slot):
        assert twins.settings.not_shown(slot, name) == [], name
        small, *others = twins.settings.of_part(slot, name)
        values = {str(r.setting): {k: v.tolist() for k, v in r.values.items()} for r in records.of_part(slot, name)}
        same = [other for other in others if values[str(other)] == values[str(small)]]
        assert not same, f"{same[0]} gives what {small} gives"
