"""Bad input that needs a run: other weights, own parts that are gone, a full disk; and folders that are no run."""

import json
import os
import re
import resource
import shutil

import pytest

from llmlab.commands.cli import run

SMALL = ["data=files", "data.path=text.txt", "tokenizer=char", "model.n_layers=1", "model.n_heads=2", "data.seq_len=16"]
SMALL += ["train.batch_size=4", "train.validation_batches=1", "train.sample=false"]

NORM = """
import torch
from torch import nn
from llmlab.registry import register


@register("norm", "halved")
class Halved(nn.Module):
    def __init__(self, dim: int, eps: float, /):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(dim))
        self.constants = {"weight": 0.5}

    def forward(self, x):
        return self.weight * x
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a text, a run, and one with a part of its user's own."""
    folder = tmp_path_factory.mktemp("bad")
    (folder / "text.txt").write_text("It was a bright cold day in April.\n" * 100)
    (folder / "empty").mkdir()
    (folder / "my_part.py").write_text(NORM)
    patch = pytest.MonkeyPatch()
    patch.chdir(folder)
    patch.setenv("LLMLAB_CACHE", str(folder / "cache"))
    assert run(["train", *SMALL, "model.dim=32", "trainer.max_steps=1", "hydra.run.dir=first"]) == 0
    with patch.context() as known:
        known.setenv("LLMLAB_PLUGINS", "my_part")
        own = ["norm=halved", "model.dim=32", "trainer.max_steps=1", "hydra.run.dir=own"]
        assert run(["train", *SMALL, *own]) == 0
    yield folder
    patch.undo()


def said(capsys, *argv):
    capsys.readouterr()
    assert run(list(argv)) == 1
    err = capsys.readouterr().err
    assert "Traceback" not in err
    (line,) = [x for x in err.splitlines() if x.startswith("error: ")]
    return line.removeprefix("error: ")


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("generate run=empty prompt=a", r"empty: has no run\.json, so it is no run folder"),
        ("eval run=empty", r"empty: has no run\.json, so it is no run folder"),
        ("generate run=empty prompt=a max_new=2 max_new=3", r"max_new is given twice; leave one of them out"),
        ("generate run=first prompt=", r"prompt=: give it a value, or leave it out"),
        ("eval run=first data=", r"data=: give it a value, or leave it out"),
        ("plan resume=first", r"resume=first: a plan is of a run from its beginning; leave it out"),
        ("train resume=empty", r"resume=empty: there is no run\.json in it; resume=RUN names the folder of a run"),
        ("train init_from=empty", r"init_from=empty: there is no run\.json in it; .*"),
        ("report empty", r"empty: there is no run folder .*"),
        ("export run=empty to=x", r"empty: has no run\.json, so it is no run folder"),
        ("generate run=text.txt prompt=a", r"text\.txt: it is a file; name the folder of a run"),
        ("eval run=nowhere", r"nowhere: there is no such folder"),
        ("runs nowhere", r"nowhere: there is no such folder"),
        ("eval run=first data=nowhere.txt", r"data\.path=nowhere\.txt: there is no such file or folder"),
    ],
)
def test_a_folder_that_is_no_run(typed, message, home, capsys):
    before = set(os.listdir(home))
    assert re.fullmatch(message, said(capsys, *typed.split()))
    assert set(os.listdir(home)) == before


def test_nothing_is_no_folder(home, capsys):
    for command in ("runs", "report"):
        assert said(capsys, command, "") == "'': there is no such folder"


def test_a_report_on_runs_that_can_not_be_read_has_failed(home, capsys):
    (home / "torn").mkdir()
    (home / "torn/run.json").write_text("{")
    assert run(["report", "torn", "out=compared"]) == 1
    assert "No run can be read: there is nothing to compare." in capsys.readouterr().out


def test_weights_of_another_model_are_refused_before_a_folder_is_made(home, capsys):
    line = said(capsys, "train", *SMALL, "model.dim=64", "init_from=first", "hydra.run.dir=never")
    assert re.match(r"init_from=first/checkpoints/step=00000001: the weights do not fit this model: \S+ is \(", line)
    assert " there and " in line and not (home / "never").exists()


@pytest.mark.parametrize(
    "typed", ["generate run=own prompt=It", "eval run=own", "train resume=own trainer.max_steps=2"]
)
def test_a_part_of_ones_own_that_is_not_named_now(typed, home, capsys):
    line = said(capsys, *typed.split())
    assert line.startswith(
        "own: its norm=halved is not known here; it was trained with LLMLAB_PLUGINS=my_part: set it again"
    )


def test_positions_that_bound_nothing_are_said(home, capsys):
    small = [*SMALL, "model.dim=32", "trainer.max_steps=1", "model.max_positions=64"]
    for position, useless in (("alibi", True), ("learned", False)):
        assert run(["train", *small, f"position={position}", f"hydra.run.dir={position}"]) == 0
        out = capsys.readouterr().out
        assert ("note: model.max_positions: no position part here is bounded by it" in out) == useless
    assert "run: 1 step of 4 x 16 tokens" in out


def test_a_disk_that_is_full_during_a_checkpoint(home, capsys):
    """Files can't grow beyond what the second checkpoint needs: the first stays, and is gone on with when there is room."""
    assert run(["train", *SMALL, "model.dim=96", "trainer.max_steps=1", "hydra.run.dir=full"]) == 0
    weights = next((home / "full").glob("checkpoints/*/model.safetensors")).stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (weights // 2, hard))
    try:
        line = said(capsys, "train", "resume=full", "trainer.max_steps=2")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert re.search(
        r"checkpoint full/checkpoints/step=00000002 could not be written: .+; the last one, step=00000001, is intact",
        line,
    )
    assert [p.name for p in (home / "full" / "checkpoints").iterdir()] == ["step=00000001"], "nothing half-written"
    record = json.loads((home / "full" / "run.json").read_text())
    assert record["status"] == "failed" and "could not be written" in record["reason"]
    assert run(["train", "resume=full", "trainer.max_steps=2"]) == 0
    assert json.loads((home / "full" / "run.json").read_text())["steps"] == 2
    shutil.rmtree(home / "full")


def test_memory_that_is_asked_for_is_counted_in_copies():
    import torch

    from llmlab import registry
    from llmlab.training import preflight

    assert preflight.states(registry.load("optimizer", "adamw", {})()) == 2.0
    free = preflight.available(torch.device("cpu"))
    assert free is None or 2**20 < free < 2**50
