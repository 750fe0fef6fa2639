"""Parts that are defined while Python runs: in a cell, in a script. They are choices like those of files."""

import importlib
import os
import subprocess
import sys
import textwrap

import pytest
import torch

import llmlab
from llmlab import definitions, registry
from llmlab.config.store import schema
from llmlab.errors import UserError
from llmlab.runs.compose import compose
from llmlab.slot_names import SLOTS

SMALL = ["model.dim=16", "model.n_layers=1", "model.n_heads=2", "data.seq_len=8", "tokenizer.vocab_size=257"]
CELL = '''
{future}
from typing import Annotated, Literal
import torch
from torch import nn
from llmlab.registry import register

@register("norm", "mine", power=2.0)
class Mine(nn.Module):
    """Scaled by a power (Nobody 2026).

    way: how it is scaled
    """

    unused = ("norm_eps",)

    def __init__(self, dim: int, eps: float, /, *, power: Annotated[float, "of the weight"] = {default},
                 way: Literal["up", "down"] = "up", ends: tuple[int, ...] | None = None):
        super().__init__()
        self.constants = {{"weight": 1.0}}
        self.power = power
        self.weight = nn.Parameter(torch.empty(dim))

    def forward(self, x):
        return x * self.weight**self.power
'''


@pytest.fixture(autouse=True)
def none_left(monkeypatch):
    monkeypatch.setattr(registry, "_defined", {})


def cell(text, number=1, module="__main__"):
    exec(compile(textwrap.dedent(text), f"<cell {number}>", "exec"), {"__name__": module})


def of(name="mine", slot="norm"):
    return registry.index()[slot, name]


@pytest.mark.parametrize("slot", SLOTS)
def test_what_is_read_from_a_class_is_what_is_read_from_its_file(slot):
    """Every part of llmlab, read both ways: options, attributes, docstring and paper."""
    for name in registry.names(slot):
        static = registry.index()[slot, name]
        cls = getattr(importlib.import_module(static.module), static.qualname)
        own = {k: o.default for k, o in static.options.items() if not o.required}
        mine = definitions.entry(cls, slot, name, own, str(static.path), static.line)
        assert list(mine.options) == list(static.options)
        for key, option in static.options.items():
            assert mine.options[key].default == option.default, (name, key)
            assert mine.options[key].choices == option.choices
            assert mine.options[key].as_tuple == option.as_tuple
            assert mine.options[key].type == option.type, (name, key)
        assert {k: mine.attribute(k) for k in static.attrs} == dict(static.attrs)
        assert (mine.doc, mine.paper, mine.summary) == (static.doc, static.paper, static.summary)
        assert (mine.module, mine.qualname) == (static.module, static.qualname)


@pytest.mark.parametrize("future", ["", "from __future__ import annotations"])
def test_a_part_of_a_cell_is_a_choice(future):
    cell(CELL.format(future=future, default=1.0))
    entry = of()
    assert {k: (o.default, o.choices, o.doc) for k, o in entry.options.items()} == {
        "power": (2.0, (), "of the weight"),
        "way": ("up", ("up", "down"), "how it is scaled"),
        "ends": (None, (), ""),
    }
    assert (entry.paper, entry.attribute("unused"), str(entry.path)) == ("Nobody 2026", ("norm_eps",), "<cell 1>")
    assert llmlab.compose(["norm=mine", "norm.power=3"]).norm.power == 3.0
    model = llmlab.build(["norm=mine", *SMALL])
    part = model.stacks["main"].layers[0].block.attention_norm
    assert type(part).__name__ == "Mine"
    assert part.power == 2.0
    assert torch.isfinite(model({"ids": torch.zeros(1, 8, dtype=torch.long)}).heads["tokens"]).all()


def test_a_cell_that_is_run_again_replaces_its_part():
    cell(CELL.format(future="", default=1.0))
    first = schema("norm", "mine")
    cell(CELL.format(future="", default=1.0).replace("power=2.0", "power=5.0").replace('"up", "down"', '"up"'), 2)
    assert schema("norm", "mine") is not first
    assert llmlab.compose(["norm=mine"]).norm.power == 5.0
    with pytest.raises(UserError, match=r"norm\.way"):
        llmlab.compose(["norm=mine", "norm.way=down"])
    model = llmlab.build(["norm=mine", *SMALL])
    assert model.stacks["main"].layers[0].block.attention_norm.power == 5.0


def test_typed_options_of_a_cells_part_are_checked():
    cell(CELL.format(future="", default=1.0))
    with pytest.raises(UserError, match=r"norm\.powr.*did you mean .*power") as e:
        llmlab.compose(["norm=mine", "norm.powr=1"])
    assert "\n" not in str(e.value)
    with pytest.raises(UserError, match=r"norm\.power"):
        llmlab.compose(["norm=mine", "norm.power=much"])
    with pytest.raises(UserError, match=r"norm=mien.*did you mean mine"):
        llmlab.compose(["norm=mien"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ('"norm", "mine"', '"norm", "rmsnorm"'),
            r"norm=rmsnorm is registered already, at .*rmsnorm\.py:\d+; choose another",
        ),
        (('"norm", "mine"', '"nrom", "mine"'), "there is no slot 'nrom'; did you mean norm"),
        (('"norm", "mine"', '"norm", "my norm"'), "norm=my norm: can't name a part"),
        (("power=2.0", "pwer=2.0"), r"norm=mine \(<cell 1>:\d+\): Mine has no option 'pwer'"),
        (('("norm_eps",)', '("norm_esp",)'), "unused can't be 'norm_esp'; did you mean norm_eps"),
        (("unused =", "unsued ="), "unsued is no attribute of the slot norm .*did you mean unused"),
        (("= 1.0", "= float"), "the default of power must be a literal"),
        (("tuple[int, ...] | None", "complex"), "the type of the option ends must be int, float"),
        (("tuple[int, ...] | None", "Literal[()]"), "the option ends has no choices"),
        (("tuple[int, ...] | None", "'Nothing'"), "the type of the option ends can't be read"),
        ((", /, *,", ", /,"), "arguments are positional-only"),
    ],
)
def test_what_breaks_the_rules_is_refused_in_one_line_and_nothing_is_registered(change, message):
    with pytest.raises(UserError, match=message) as e:
        cell(CELL.format(future="", default=1.0).replace(*change))
    assert "\n" not in str(e.value)
    assert registry.defined() == {}


def test_a_name_of_another_module_or_of_a_preset_is_refused():
    cell(CELL.format(future="", default=1.0))
    with pytest.raises(UserError, match="norm=mine is registered already, at <cell 1>"):
        cell(CELL.format(future="", default=1.0), 2, "elsewhere")
    cell(CELL.format(future="", default=1.0).replace('"norm", "mine"', '"norm", "rmsnorm_offset"'))
    from llmlab.config.model_files import conf_dir

    preset = next((conf_dir() / "norm").glob("*.yaml")).stem
    cell(CELL.format(future="", default=1.0).replace('"norm", "mine"', f'"norm", "{preset}"'))
    with pytest.raises(UserError, match=f"norm={preset} is a preset .*choose another name"):
        llmlab.compose(["norm=mine"])


def test_frozen_values_take_defaults_of_their_slot():
    cell('''
        from dataclasses import dataclass
        from llmlab.registry import register

        @register("mask", "backwards")
        @dataclass(frozen=True)
        class Backwards:
            """Looks ahead alone (Nobody 2026)."""

            by: int = 1

            def allowed(self, q, k, data):
                return k >= q + self.by - 1
    ''')
    assert of("backwards", "mask").options["by"].default == 1
    assert registry.load("mask", "backwards", {"by": 2})().needs == ()
    mlm = llmlab.build(["mask=backwards", "objective=mlm", *SMALL])
    assert torch.isfinite(mlm({"ids": torch.zeros(1, 8, dtype=torch.long)}).hidden).all()


def test_other_processes_are_said_not_to_see_it():
    cell(CELL.format(future="", default=1.0))
    with pytest.raises(UserError, match=r"norm=mine is defined in this process alone .*LLMLAB_PLUGINS") as e:
        compose(["norm=mine", "strategy=ddp", "trainer.devices=2", "trainer.accelerator=cpu"])
    assert "\n" not in str(e.value)
    from llmlab.sweep import grid

    with pytest.raises(UserError, match=r"norm=mine is defined in this process alone"):
        grid.check_points([["norm=mine", "seed=1"], ["norm=rmsnorm", "seed=1"]], ["norm", "seed"], [])


def test_other_processes_do_not_see_it_however_their_number_is_found(tmp_path, monkeypatch):
    """trainer.devices=auto is all GPUs there are."""
    from llmlab.training.run import train

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    cell(CELL.format(future="", default=1.0))
    for devices in ("auto", "-1"):
        composed = compose(["norm=mine", "strategy=ddp", f"trainer.devices={devices}"])
        with pytest.raises(UserError, match=r"norm=mine is defined in this process alone .*LLMLAB_PLUGINS") as e:
            train(composed, tmp_path / "run")
        assert "\n" not in str(e.value) and not (tmp_path / "run").exists()


@pytest.mark.slow  # a process that imports torch
def test_a_script_defines_parts(tmp_path):
    """`python mine.py`, whether or not LLMLAB_PLUGINS names it too."""
    script = tmp_path / "mine.py"
    words = ["norm=mine", *SMALL]
    shows = f"print(llmlab.build({words}).spec.stacks[0].layers[0].parts['norm'])"
    build = f"\nif __name__ == '__main__':\n    import llmlab\n    {shows}\n"
    script.write_text(CELL.format(future="", default=1.0) + build)
    for more in ({}, {"LLMLAB_PLUGINS": "mine"}):
        done = subprocess.run(
            [sys.executable, str(script)], env={**os.environ, **more}, cwd=tmp_path, capture_output=True, text=True
        )
        assert done.stdout.strip() == "mine", done.stderr
