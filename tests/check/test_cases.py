"""What `llmlab check` asks: models in which parts meet, families, what a part comes with."""

import os
from dataclasses import replace

import pytest

from llmlab import registry
from llmlab.check import cases, combinations, request, setting_rows
from llmlab.check.subject import Subject
from llmlab.errors import UserError


@pytest.mark.slow
def test_every_two_parts_meet_or_are_refused_with_a_reason():
    combinations.combinations.cache_clear()  # rows that other tests asked for would stand among them
    made = cases.all_pairs()
    assert len(made) < 240
    met = {tuple(sorted(pair)) for c in made for pair in _two(c.parts)}
    refused = combinations.combinations().refused()
    # Of objectives that are alike in mask and kind of model one is in the rows.
    every = [(slot, name) for slot in request.MODEL_SLOTS for name in registry.names(slot)]
    every = [item for item in every if item[0] != "objective" or not combinations.combinations().alone(item)]
    for a, b in _two(every):
        if a[0] != b[0]:
            pair = tuple(sorted((a, b)))
            elsewhere = (
                a in combinations.combinations().separate_kernels and b in combinations.combinations().separate_kernels
            )
            assert (pair in met) != (pair in refused) or elsewhere, pair
    assert all(why and "\n" not in why for why in refused.values())
    assert "choose kernel=eager" in refused[("kernel", "sdpa"), ("position", "dual_chunk")]
    assert len(refused) < len(met) / 20


# Those of positions, attention and windows are 300 models more, 40 s: `make conformance`, which checks all, asks for them.
QUICK = ("embedding", "ffn", "moe", "block", "norm", "kernel", "init")


@pytest.mark.slow
def test_every_setting_meets_the_parts_that_it_can_affect(monkeypatch):
    every = setting_rows.INTERACTS
    asked = every if "ALL_SETTINGS" in os.environ else {slot: every[slot] for slot in QUICK}
    monkeypatch.setattr(setting_rows, "INTERACTS", asked)
    rows = setting_rows.SettingRows()
    made = list(rows.cases())
    met = {(word, item) for case in made for word in case.options for item in case.parts}
    for setting, item in ((a, b) if a in rows._options else (b, a) for a, b in rows.wanted()):
        words = setting[1].split()[1:]
        refused = tuple(sorted((setting, item))) in rows.cover.refused
        assert refused or all((word, item) in met for word in words), (setting, item)
    assert len(rows.cover.refused) < len(rows.wanted()) / 7
    assert {case.kind for case in made} == {"setting"}


def _two(items):
    return [(a, b) for i, a in enumerate(items) for b in items[:i]]


@pytest.mark.slow
def test_what_is_composed_is_what_was_put_together():
    """A row is tried without composing it: the composed model has the same parts, with the same options and sizes."""
    assert len(cases.all_pairs()) == len(cases.all_pairs()) > 120
    for made in cases.all_pairs()[::10]:
        items = dict(made.parts)
        tried = combinations.with_parts(combinations.base_spec(combinations.learning_level(items)), items)
        composed = Subject(made).spec
        assert [(s.layers, s.embedding, s.mask, s.cross_attention, s.execute) for s in composed.stacks] == [
            (s.layers, s.embedding, s.mask, s.cross_attention, s.execute) for s in tried.stacks
        ]
        assert (composed.kernel, composed.init, composed.heads) == (tried.kernel, tried.init, tried.heads)
        assert composed.sizes == tried.sizes


@pytest.mark.slow
def test_a_part_comes_with_what_it_needs():
    made = cases.part_case(("position", "dual_chunk"))
    assert "kernel=eager" in made.overrides and "position.chunk=4" in made.overrides
    assert "objective=mlm" in cases.part_case(("moe", "expert_choice")).overrides
    assert "objective=blank_infilling" in cases.part_case(("mask", "prefix")).overrides
    assert cases.combined([("mask", "prefix"), ("objective", "clm")]).mask is None, "typed so, it is refused"


@pytest.mark.slow
def test_families_are_small_and_have_every_kind_of_their_layers():
    gemma3 = Subject(cases.family_case("gemma3")).spec
    assert {layer.kind for layer in gemma3.stacks[0].layers} == {"local", "global"}
    assert "kinds.local.window.left=3" in cases.family_case("gemma3").overrides
    assert [len(stack.layers) for stack in Subject(cases.family_case("t5")).spec.stacks] == [2, 2]
    swapped = cases.family_case("gemma3", ["window=strided"])
    assert swapped.kind == "swap" and {"window=strided", "window.stride=3"} <= set(swapped.overrides)


@pytest.mark.slow
def test_a_part_put_into_a_composed_config_is_as_if_it_were_typed():
    for family in ("gemma3", "t5"):
        for case in [c for c in cases.swap_cases([family]) if c.swap][::7]:
            made = []
            for asked in (case, replace(case, swap=None)):
                try:
                    spec = Subject(asked).spec
                    made.append((replace(spec, notes=()), set(spec.notes)))
                except UserError as e:
                    made.append(str(e))
            assert made[0] == made[1], case.name
