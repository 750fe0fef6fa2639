"""Loggers of a run with a companion: the terms of both models, its own shape, and the checkpoint of both as an artifact."""

import json

import pytest
from logged import history, rows, written
from small_runs import numbers, run

from llmlab.runs import record

wandb = pytest.importorskip("wandb")
pytest.importorskip("tensorboard")

ELECTRA = ["model=electra", "model.dim=80", "models.generator=[model.dim=32]"]


@pytest.fixture(scope="module")
def runs(tiny, tmp_path_factory):
    """The same run without loggers and with all of them."""
    here = tmp_path_factory.mktemp("companions")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(here))
        patch.delenv("WANDB_API_KEY", raising=False)
        usual = [*tiny, *ELECTRA, "budget.steps=4", "train.log_every=1", "trainer.accelerator=cpu"]
        run(here / "plain", *usual)
        run(here / "logged", *usual, "logger=[wandb,tensorboard]", "logger.wandb.artifact=true")
    return here / "plain", here / "logged"


@pytest.mark.slow
def test_wandb_has_both_models(runs):
    plain, logged = runs
    assert numbers(plain) == numbers(logged)
    terms = {key for row in rows(logged) for key in row if key.endswith(("generator", "replaced"))}
    assert terms, "the objective's two terms are columns"
    found = history(logged)
    for row in rows(logged):
        assert {key: found[int(row["step"])][key] for key in terms & row.keys()} == {
            k: row[k] for k in terms & row.keys()
        }
    known = dict(written(logged))
    config = {i.key: json.loads(i.value_json) for i in known["run"].config.update}
    assert config["models"]["generator"] == ["model.dim=32"]
    shown = record.read(logged)
    assert shown["loggers"]["wandb"]["id"] == known["run"].run_id
    artifact = next(a for k, a in written(logged) if k == "artifact" and a.type == "model")
    names = {entry.path for entry in artifact.manifest.contents}
    assert {"model.safetensors", "models/generator.safetensors"} <= names
