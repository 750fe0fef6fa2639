"""Choosing loggers, and the dashboard as code."""

import json

import pytest

from llmlab.commands import workspace
from llmlab.commands.cli import run as command
from llmlab.config import loggers as loggers_config
from llmlab.config.compose import compose
from llmlab.errors import UserError
from llmlab.training import loggers

wandb = pytest.importorskip("wandb")
pytest.importorskip("tensorboard")


@pytest.mark.parametrize(
    ("typed", "line"),
    [
        ("logger=wandbb", r"there is no such logger; did you mean wandb\?"),
        ("logger=[wandb,tensorbord]", r"logger=tensorbord: there is no such logger; did you mean tensorboard\?"),
        ("logger=csv", r"^logger=csv: metrics\.csv is always written, in the run folder; leave logger=csv out, or add"),
        ("logger=[wandb,CSVLogger]", r"^logger=CSVLogger: metrics\.csv is always written"),
        ("logger=none", r"^logger=none: metrics\.csv is always written"),
        ("logger=false", r"^logger=False: metrics\.csv is always written"),
        ("logger=wandb logger.wandb.mode=on", r"logger\.wandb\.mode must be one of auto, online, offline"),
        ("logger=wandb logger.wandb.projct=x", r"logger\.wandb\.projct: .* did you mean project\?"),
        ("logger=wandb logger.wandb.artifact=maybe", r"must be true or false, but is 'maybe'"),
        ("logger.wandb.project=x", r"nothing is chosen at logger\.wandb; choose logger=wandb"),
        ("logger.samples=3", r"logger\.samples: there is no logger; add logger=wandb"),
        ("logger=tensorboard logger.samples=-1", r"logger\.samples must be at least 0"),
        ("attention=[mha,mla]", r"attention is one choice; for a sweep over several, -m attention=mha,mla"),
    ],
)
def test_wrong_configs(typed, line):
    with pytest.raises(UserError, match=line):
        compose(typed.split())


def test_several_at_once_and_none():
    chosen = compose(["logger=[wandb,tensorboard]", "logger.wandb.project=mine"])
    assert chosen.cfg.logger.wandb.project == "mine"
    assert chosen.cfg.logger.tensorboard.flush_seconds == 30
    assert [t.choice for t in chosen.typed] == ["[wandb,tensorboard]"]
    assert compose([]).cfg.logger == {"wandb": None, "tensorboard": None, "samples": 10}


def test_a_missing_package_is_said_before_anything_is_written(monkeypatch, tmp_path):
    (tmp_path / "leftover" / "run").mkdir(parents=True)  # as W&B leaves a folder of its own name where it ran
    monkeypatch.syspath_prepend(tmp_path)
    assert not loggers_config.is_installed("leftover")
    assert loggers_config.is_installed("json")
    monkeypatch.setattr(loggers_config, "is_installed", lambda name: name != "wandb")
    with pytest.raises(UserError, match="the package wandb is not installed; pip install wandb"):
        compose(["logger=[wandb,tensorboard]"])


def test_the_group_is_the_sweep(tmp_path):
    from omegaconf import OmegaConf

    folder = tmp_path / "grid" / "seed=1"
    assert loggers.sweep_of(OmegaConf.create({"sweep": None}), folder) is None
    folder.mkdir(parents=True)
    (folder.parent / "sweep.json").write_text("{}")
    assert loggers.sweep_of(OmegaConf.create({}), folder) == "grid"
    assert loggers.sweep_of(OmegaConf.create({"sweep": "ablation"}), folder) == "ablation"


# ---------------------------------------------------------------- the dashboard


def test_the_workspace_as_json(tmp_path, capsys):
    pytest.importorskip("wandb_workspaces")
    out = tmp_path / "view.json"
    assert command(["wandb", "workspace", "project=mine", "by=attention", "--dry-run", f"out={out}"]) == 0
    view = json.loads(out.read_text())
    assert view["project"] == "mine"
    sections = {s["name"]: s["panels"] for s in view["spec"]["section"]["panelBankConfig"]["sections"]}
    assert list(sections) == ["Loss over tokens", "Loss over flops", "Throughput and gradients", "Experts", "Samples"]
    panels = [p["config"] for section in sections.values() for p in section]
    grouped = {(p["xAxis"], *p["metrics"]) for p in panels if p.get("groupBy") == "parts.value.attention"}
    assert grouped == {("tokens", "val_loss"), ("flops", "val_loss")}
    shown = {m for p in panels for m in p.get("metrics", ())}
    assert {"loss", "val_loss", "tokens_per_second", "grad_norm", "load/max_over_mean"} <= shown


def test_the_workspace_needs_a_key(capsys):
    pytest.importorskip("wandb_workspaces")
    assert command(["wandb", "workspace"]) == 1
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert "no API key" in said[0]
    assert "--dry-run" in said[0]
    assert workspace.Arguments().project == compose(["logger=wandb"]).cfg.logger.wandb.project
