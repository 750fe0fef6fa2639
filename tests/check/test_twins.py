"""Every shipped part has a twin at every setting, records are what twins say, and our parts are what records say."""

import json

import numpy as np
import pytest
from twins.record import contents

from llmlab import registry
from llmlab.check import cases, twins
from llmlab.check.subject import CheckFailed, Subject
from llmlab.check.twins import records
from llmlab.check.twins.observers import OBSERVERS


@pytest.mark.parametrize("slot", OBSERVERS)
def test_records_are_what_the_twins_say(slot):
    anew = json.loads(json.dumps(contents(slot)))
    there = json.loads((records.FOLDER / f"{slot}.json").read_text())
    assert anew["parts"] == there["parts"], "cd tests/check; python -m twins"
    anew, there = anew["records"], there["records"]
    assert [{**r, "values": None} for r in anew] == [{**r, "values": None} for r in there], (
        "cd tests/check; python -m twins"
    )
    for one, other in zip(anew, there, strict=True):
        for key, values in one.get("values", {}).items():
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


SILENT = {"bert": {"width"}}  # it can only be the model's; factorized has others
ALIKE = ("rmsnorm",)  # its weight begins at 1 - offset, so that all offsets norm alike


@pytest.mark.parametrize("slot", OBSERVERS)
def test_every_option_of_a_part_shows(slot):
    """No two settings of a part have the same numbers, and each option is changed by one of them."""
    for name in registry.names(slot):
        found = [record for record in records.of_part(slot, name) if not record.refused]
        for n, one in enumerate(found):
            for other in found[:n]:
                same = one.values.keys() == other.values.keys() and all(
                    value.shape == other.values[key].shape and np.allclose(value, other.values[key], 1e-4, 1e-6)
                    for key, value in one.values.items()
                )
                assert not same or name in ALIKE, f"{one.setting} is {other.setting}"
        changed = {key for record in found for key in record.setting.options}
        assert not set(twins.settings.not_shown(slot, name)) - changed - SILENT.get(name, set()), name
