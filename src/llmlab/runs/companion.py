"""A companion that a run has trained, as a model of its own: whole, with the tensors that it shares with the trained model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from llmlab.errors import UserError
from llmlab.files import save_tensors, write_atomic
from llmlab.registry import near
from llmlab.runs import checkpoint, folder, record
from llmlab.runs.files import CONFIG, SPEC

if TYPE_CHECKING:
    from llmlab.model.model import Model


def trains(home: Path, role: str) -> None:
    """UserError if the run in `home` has not trained a companion of that role."""
    if not (home / record.NAME).is_file():
        raise UserError(f"role={role}: {home} is no run; a companion is exported from the run that has trained it")
    models = record.read(home).get("models") or {}
    if role not in models:
        raise UserError(f"role={role}: the run has no such model beside its own; {near(role, models)}")
    if not models[role]["trains"]:
        source = models[role]["source"] or "its first values"
        raise UserError(f"role={role}: the run has not trained it, it is as it came from {source}")


def weights(path: Path, home: Path, role: str) -> dict[str, Tensor]:
    """The tensors of a companion in the checkpoint `path` of the run in `home`, by the paths of the model alone."""
    from llmlab.model import build, split_table

    spec, trained = folder.companion(home, role), folder.load(home)[1]
    tensors = checkpoint.read_weights(path, role)
    whole = split_table.bare(checkpoint.read_weights(path))
    # A part leaves out the tables that it is given, under whatever names: those of its own are there when it is alone.
    mine, theirs = (f"stacks.{each.stacks[0].name}." for each in (spec, trained))
    lent = (f"{mine}embedding.", f"{mine}positions.")
    for name in build.assemble(spec).state_dict():
        if name not in tensors and name.startswith(lent) and (shared := theirs + name.removeprefix(mine)) in whole:
            tensors[name] = whole[shared]
    return tensors


def load(path: Path, home: Path, role: str) -> Model:
    """The model on the CPU, in evaluation."""
    from llmlab.model import build

    model = folder.assembled(home, folder.companion(home, role))
    build.materialise(model)
    try:
        build.load(model, weights(path, home, role))
    except UserError as e:
        raise UserError(f"checkpoint {path}: models.{role}: {e}") from None
    return model.eval()


def write(path: Path, home: Path, role: str, to: Path) -> None:
    """model.safetensors, model.json and config.yaml of the companion as a folder of its own has them."""
    from omegaconf import OmegaConf

    from llmlab.model.serialise import to_dict

    model = load(path, home, role)
    save_tensors(to / checkpoint.WEIGHTS, model.state_dict())
    write_atomic(to / SPEC, json.dumps(to_dict(model.spec), indent=1) + "\n")
    cfg = folder.load(home)[0]
    cfg.models = {}
    write_atomic(to / CONFIG, OmegaConf.to_yaml(cfg, resolve=True))
