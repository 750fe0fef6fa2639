"""Every shipped part has a twin at every setting, records are what twins say, and our parts are what records say."""

import json
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from twins.record import contents, lacking

from llmlab import registry
from llmlab.check import restoring, twins
from llmlab.check.subject import Case, CheckFailed, NotApplicable, Subject
from llmlab.check.twins import records
from llmlab.check.twins.observers import OBSERVERS, norm
from llmlab.check.twins.observers.observed import SIZES, Observed
from llmlab.check.twins.settings import Setting
from llmlab.objective_attributes import RESTORES
from llmlab.twins import Twin
from llmlab_plugins.norm.rmsnorm import RMSNorm
from llmlab_plugins.schedule.cosine import Cosine
from llmlab_plugins.schedule.decays import check

PARTS = [(slot, name) for slot in OBSERVERS for name in registry.names(slot) if name not in lacking(slot)]
STALE = "cd tests/check; python -m twins"


def subject(slot, name):
    return Subject(Case(f"{slot}={name}", (), "part", parts=((slot, name),)))


@pytest.fixture(scope="module")
def made() -> dict[str, Observed]:
    return {}


@pytest.fixture
def shared(made, monkeypatch):
    """Each setting is observed once: the twin, the check and what shows an option ask for the same."""

    def once(observe: Callable[[Setting], Observed], setting: Setting) -> Observed:
        key = setting.as_json()
        if key not in made:
            made[key] = observe(setting)
        return made[key]

    for slot, observe in list(OBSERVERS.items()):
        monkeypatch.setitem(OBSERVERS, slot, partial(once, observe))


LONG = ("objective", "alignment", "position", "reward")


@pytest.mark.usefixtures("shared")
@pytest.mark.parametrize(  # those of objectives draw hundreds of samples and take 12 s
    "slot", [pytest.param(slot, marks=[pytest.mark.slow] * (slot in LONG)) for slot in OBSERVERS]
)
def test_records_are_what_the_twins_say(slot):
    anew = json.loads(json.dumps(contents(slot)))
    there = records.contents(slot)
    assert anew["parts"] == there["parts"], STALE
    anew, there = anew["records"], there["records"]
    assert [{**r, "values": None} for r in anew] == [{**r, "values": None} for r in there], STALE
    for one, other in zip(anew, there, strict=True):
        for key, values in one.get("values", {}).items():
            assert other["values"][key] == pytest.approx(values, rel=1e-6, abs=1e-9), (one["name"], one["options"], key)


@pytest.mark.usefixtures("shared")
@pytest.mark.parametrize("part", PARTS, ids="=".join)
def test_a_part_is_what_its_twin_says(part):
    twins.definition(subject(*part))


SILENT = {("filter", "regex"): ["seconds"]}  # a limit, which only a pattern without end meets
SILENT |= {("filter", "c4"): ["words"]}  # a file of the user's: tests/plugins/test_filter_rules.py
SILENT |= {("reward", "function"): ["path", "timeout"]}  # a file of the user's, and a limit
# limits: tests/plugins/test_reward_code.py
SILENT |= {("reward", "code"): ["timeout", "memory", "file_size", "workers"]}
SILENT |= {("position", name): ["pad_id"] for name in ("learned", "learned_t5_bias")}


@pytest.mark.usefixtures("shared")
@pytest.mark.parametrize("part", PARTS, ids="=".join)
def test_every_option_shows(part):
    """In one of the settings that change it, what comes out is something else without it."""
    assert twins.settings.not_shown(*part) == SILENT.get(part, []), "no setting changes them"
    first, *others = twins.settings.of_part(*part)
    changed: dict[str, list[Setting]] = {}
    for setting in others:
        for key, value in setting.options.items():
            if first.options.get(key, ...) != value:
                changed.setdefault(key, []).append(setting)
    alike = [key for key, settings in changed.items() if not any(_differs(s, key) for s in settings)]
    assert not alike


def _differs(setting, key):
    """True if a setting gives other numbers without an option; or if either is refused, as some mean nothing together."""
    rest = Setting(setting.slot, setting.name, {k: v for k, v in setting.options.items() if k != key})
    try:
        shown = _all(OBSERVERS[setting.slot](setting))
        without = _all(OBSERVERS[setting.slot](rest))
    except ValueError:
        return True
    return shown.keys() != without.keys() or any(
        shown[name].shape != without[name].shape or not np.allclose(shown[name], without[name], 1e-4, 1e-9)
        for name in shown
    )


def _all(observed):
    """Outputs and weights: those that begin as a constant may begin as another one, for the same output."""
    return {**observed.outputs, **{f"weight {path}": value for path, value in observed.given.weights.items()}}


# ---------------------------------------------------------------- what the check finds


def test_another_number_is_found(monkeypatch):
    monkeypatch.setattr(norm, "sizes_of", lambda setting: SIZES.but(norm_eps=2e-3))
    with pytest.raises(CheckFailed, match="norm=rmsnorm: x is"):
        twins.definition(subject("norm", "rmsnorm"))


def test_another_shape_is_found(monkeypatch):
    right = RMSNorm.forward
    monkeypatch.setattr(RMSNorm, "forward", lambda self, x: right(self, x)[None])
    with pytest.raises(CheckFailed, match=r"norm=rmsnorm: x has the shape \(1, 2, 5, 24\), but \(2, 5, 24\) by Zhang"):
        twins.definition(subject("norm", "rmsnorm"))


@pytest.mark.parametrize(
    ("built", "said"),
    [
        (lambda self, **options: vars(self).update(options), "it is not refused"),
        (lambda self, **options: 1 / 0, "crashed: ZeroDivisionError"),
        (lambda self, **options: check(floor=-1.0), "the refusal names nothing of this setting: schedule.floor"),
    ],
)
def test_what_is_not_refused_as_it_must_be_is_found(built, said, monkeypatch):
    (refused, *_) = [record.setting for record in records.of_part("schedule", "cosine") if record.refused]
    twins.require_refusal(refused)
    monkeypatch.setattr(Cosine, "__init__", built)
    with pytest.raises(CheckFailed, match=f"schedule=cosine schedule.warmup_share=-0.1: {said}"):
        twins.require_refusal(refused)


def test_numbers_are_asked_for_in_float32_too(monkeypatch):
    normed = torch.nn.functional.rms_norm
    wrong = lambda x, shape, weight, eps: normed(x, shape, weight, 0.0 if weight is not None else eps)  # noqa: E731
    monkeypatch.setattr("torch.nn.functional.rms_norm", wrong)  # float32 alone is normed with the weight at once
    with pytest.raises(CheckFailed, match="norm=rmsnorm: x is .*, in float32"):
        twins.definition(subject("norm", "rmsnorm"))


def test_what_is_recorded_of_a_name_is_asked_of_its_kin(monkeypatch):
    """Traits are recorded of gqa alone, whose class mha is."""
    met = []
    monkeypatch.setattr(twins, "_compare_record", lambda record: met.append(str(record.setting)))
    twins.definition(subject("attention", "mha"))
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
    monkeypatch.setattr("llmlab.twins.twin_of", lambda *part: Twin(compute, "a book"))
    with pytest.raises(CheckFailed, match=said):
        twins.definition(subject("norm", "rmsnorm"))


def test_settings_that_a_part_of_a_users_own_refuses_are_no_difference(monkeypatch):
    monkeypatch.setattr(records, "of_part", lambda *part: [])
    asked = [Setting("init", "normal", {"std": std}) for std in (-1.0, 0.5)]
    monkeypatch.setattr(twins.settings, "of_part", lambda *part: asked)
    given = []
    monkeypatch.setattr(
        "llmlab.twins.twin_of", lambda *part: Twin(lambda g: given.append(g) or {"bias": np.zeros(7)}, "")
    )
    twins.definition(subject("init", "normal"))
    assert [one.options["std"] for one in given] == [0.5]
    asked.pop()
    with pytest.raises(NotApplicable, match="init.std and init.embed_std must be at least 0"):
        twins.definition(subject("init", "normal"))


def test_every_way_to_restore_a_text_has_a_row():
    assert set(restoring.KINDS) == set(RESTORES)
