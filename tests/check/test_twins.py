"""Every shipped part has a twin at every setting, records are what twins say, and our parts are what records say."""

import json

import numpy as np
import pytest
import torch
from twins.record import contents

from llmlab import registry
from llmlab.check import twins
from llmlab.check.subject import Case, CheckFailed, NotApplicable, Subject
from llmlab.check.twins import records
from llmlab.check.twins.observers import OBSERVERS
from llmlab.check.twins.settings import Setting
from llmlab.twins import Twin


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


def test_numbers_are_asked_for_in_float32_too(monkeypatch):
    normed = torch.nn.functional.rms_norm
    wrong = lambda x, shape, weight, eps: normed(x, shape, weight, 0.0 if weight is not None else eps)  # noqa: E731
    monkeypatch.setattr("torch.nn.functional.rms_norm", wrong)  # float32 alone is normed with the weight at once
    with pytest.raises(CheckFailed, match="norm=rmsnorm: x is .*, in float32"):
        twins.definition(_subject(("norm", "rmsnorm")))


def test_what_is_recorded_of_a_name_is_asked_of_its_kin(monkeypatch):
    """Traits are recorded of gqa alone, whose class mha is."""
    met = []
    monkeypatch.setattr(twins, "_compare_record", lambda record: met.append(str(record.setting)))
    twins.definition(_subject(("attention", "mha")))
    assert "attention=gqa model.attention.clip_qkv=0.4" in met


@pytest.mark.parametrize(
    ("compute", "said"),
    [
        (lambda given: {"x": given.inputs["x"]}, r"norm=rmsnorm: x is \S+, but \S+ by a book \(value \d+ of 240\)"),
        (lambda given: {"y": given.inputs["x"]}, "its twin gives y; the outputs are x, small, large, half"),
        (lambda given: {}, "its twin gives nothing; the outputs are"),
        (
            lambda given: {"x": given.inputs["z"]},
            r"twin crashed: KeyError: 'z' \(\S+:\d+\); inputs .* small, large, weight",
        ),
        (lambda given: 1 / 0, r"twin crashed: ZeroDivisionError: .*:\d+\)$"),
    ],
)
def test_a_part_of_a_users_own_is_held_to_its_twin(compute, said, monkeypatch):
    monkeypatch.setattr(records, "of_part", lambda *part: [])
    monkeypatch.setattr(records, "recorded_part", lambda *part: None)
    monkeypatch.setattr("llmlab.twins.twin_of", lambda *part: Twin(compute, "a book"))
    with pytest.raises(CheckFailed, match=said):
        twins.definition(_subject(("norm", "rmsnorm")))


def test_settings_that_a_part_of_a_users_own_refuses_are_no_difference(monkeypatch):
    monkeypatch.setattr(records, "of_part", lambda *part: [])
    monkeypatch.setattr(records, "recorded_part", lambda *part: None)
    asked = [Setting("init", "normal", {"std": std}) for std in (-1.0, 0.5)]
    monkeypatch.setattr(twins.settings, "of_part", lambda *part: asked)
    given = []
    monkeypatch.setattr(
        "llmlab.twins.twin_of", lambda *part: Twin(lambda g: given.append(g) or {"bias": np.zeros(7)}, "")
    )
    twins.definition(_subject(("init", "normal")))
    assert [one.options["std"] for one in given] == [0.5]
    asked.pop()
    with pytest.raises(NotApplicable, match="init.std and init.embed_std must be at least 0"):
        twins.definition(_subject(("init", "normal")))


def _all(observed):
    """Outputs and weights: those that begin as a constant may begin as another one, for the same output."""
    return {**observed.outputs, **{f"weight {path}": value for path, value in observed.given.weights.items()}}


SILENT = {("embedding", name): ["width"] for name in ("bert", "factorized")}


@pytest.mark.parametrize("part", PARTS, ids="=".join)
def test_each_telling_option_makes_a_difference(part, monkeypatch):
    """In one of the settings that change it, what comes out is something else without it."""
    monkeypatch.setattr("llmlab.check.twins.observers.texts.N_DRAWS", 20)
    assert twins.settings.not_shown(*part) == SILENT.get(part, []), "no setting changes them"
    first, *others = twins.settings.of_part(*part)
    changed = {
        key for setting in others for key, value in setting.options.items() if first.options.get(key, ...) != value
    }
    told = {key for setting in others for key in changed & setting.options.keys() if _differs(setting, key)}
    assert told == changed


def _differs(setting, key):
    """Whether a setting gives other numbers without an option; or none, as the others mean nothing without it."""
    rest = Setting(setting.slot, setting.name, {k: v for k, v in setting.options.items() if k != key})
    shown = _all(OBSERVERS[setting.slot](setting))
    try:
        without = _all(OBSERVERS[setting.slot](rest))
    except ValueError:
        return True
    return shown.keys() != without.keys() or any(
        shown[name].shape != without[name].shape or not np.allclose(shown[name], without[name], 1e-4, 1e-9)
        for name in shown
    )


def _subject(part):
    return Subject(Case("=".join(part), (), "part", parts=(part,)))
