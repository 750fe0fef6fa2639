"""A run folder as input: its config as it was composed, and its newest sound checkpoint."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from llmlab import registry
from llmlab.config import inherit
from llmlab.config.init_from import hf_name
from llmlab.errors import UserError
from llmlab.files import write_atomic
from llmlab.hub import locate
from llmlab.json_files import read_json
from llmlab.runs import record
from llmlab.runs.files import BESIDE, COMPANIONS, CONFIG, EXPORT, SPEC, TOKENIZER, spec_of, undamaged
from llmlab.slot_names import slot_at

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from llmlab.config.spec import ModelSpec
    from llmlab.data.tokenizer import Tokenizer
    from llmlab.model.model import Model
    from llmlab.model.serialise import ModelShape

home = inherit.home


def save(folder: Path, cfg: DictConfig, spec: ModelSpec, companions: Mapping[str, ModelSpec] | None = None) -> None:
    """The resolved config as config.yaml, the resolved model as model.json and the others that it is trained with as
    models/ROLE.json: the run can be read whatever conf/ becomes."""
    from omegaconf import OmegaConf

    from llmlab.model.serialise import to_dict

    # Resolved: whoever reads it has neither Hydra's resolvers nor the nodes that interpolations point to.
    write_atomic(folder / CONFIG, OmegaConf.to_yaml(cfg, resolve=True))
    write_atomic(folder / SPEC, json.dumps(to_dict(spec), indent=1) + "\n")
    for role, other in (companions or {}).items():
        (folder / COMPANIONS).mkdir(exist_ok=True)
        write_atomic(folder / spec_of(role), json.dumps(to_dict(other), indent=1) + "\n")


def load(run: str | Path) -> tuple[DictConfig, ModelSpec]:
    """(config, resolved model) of a run, or of what was exported from one; UserError if the folder is neither."""
    from llmlab.model.serialise import ModelShape
    from llmlab.runs import settings

    folder = Path(run)
    if not (folder / EXPORT).exists():
        undamaged(folder, (CONFIG, SPEC), record.read(folder))
    try:
        cfg, plain = settings.read(folder / CONFIG)
        # A run of before there was this key, whose documents have none: by default the tokenizer's template decides now.
        if "bos" not in plain["data"]:
            cfg.data.bos = False
        model: ModelShape = read_json(folder / SPEC, ModelShape)
    except FileNotFoundError as e:
        raise UserError(
            f"{run}: there is no {Path(e.filename).name} there; the run ended before it began to train"
        ) from None
    _known(folder, record.parts(plain))
    return cfg, _spec(folder / SPEC, model)


def _spec(file: Path, model: ModelShape) -> ModelSpec:
    from llmlab.model.serialise import from_dict

    try:
        return from_dict(dict(model))
    except Exception as e:
        # A part, a size or an option of another version of llmlab: what a part raises for it, it alone knows.
        raise UserError(f"{file} can't be read: {type(e).__name__}: {str(e).splitlines()[0]}") from e


def companion(folder: Path, role: str) -> ModelSpec:
    """The resolved model of a run's companion; UserError if it is not as the run wrote it."""
    from llmlab.model.serialise import ModelShape

    name = spec_of(role)
    undamaged(folder, (name,), record.read(folder))
    try:
        model: ModelShape = read_json(folder / name, ModelShape)
    except FileNotFoundError:
        raise UserError(f"{folder / name} is gone; bring it back from a copy of the run") from None
    return _spec(folder / name, model)


def _known(run: Path, parts: Mapping[str, str]) -> None:
    """UserError if a part of a run is not there: one of its user's own, whose module is not named now."""
    for place, name in parts.items():
        slot = slot_at(place)
        # A part that is there and broken is said when it is loaded, with its own reason.
        if (slot, name) in registry.index() or registry.broken(slot, name):
            continue
        try:
            modules = record.read(run).get("plugins")
        except UserError:  # an export has no record
            modules = None
        where = f"{registry.VARIABLE}={modules or 'MODULE'}"
        was = f"it was trained with {where}: set it again" if modules else f"if it is a part of your own, set {where}"
        raise UserError(f"{run}: its {slot}={name} is not known here; {was}, where that module can be imported")


def checkpoint_of(run: str | Path, warn: Callable[[str], None] | None = None) -> Path:
    """The newest sound checkpoint of a run folder, or the folder itself if it is a checkpoint or was exported from one."""
    from llmlab.runs import checkpoint

    folder = Path(run)
    if (folder / checkpoint.MANIFEST).exists() or (folder / EXPORT).exists():
        return folder
    record.read(folder)
    newest = checkpoint.latest(
        folder / checkpoint.FOLDER, warn or (lambda line: print(f"warning: {line}", file=sys.stderr))
    )
    if newest is None:
        raise UserError(f"{run}: it has no sound checkpoint")
    return newest


def start_of(init_from: str, *, tokenizer: bool = True) -> Path:
    """The checkpoint that a run begins with: of a run, or a Hugging Face folder (`is_foreign`). tokenizer: it comes along."""
    if (name := hf_name(init_from)) is not None:
        return locate.locate(name)
    folder = home(init_from)
    if tokenizer and not (folder / EXPORT).exists():  # whose weights are checked with all that lies beside them
        undamaged(folder, (*TOKENIZER, *BESIDE), record.read(folder))
    return checkpoint_of(init_from)


def is_foreign(path: Path) -> bool:
    """True if a checkpoint is a Hugging Face folder."""
    # Hugging Face's name for it; a run's checkpoint has a state beside its weights, and an export its own manifest.
    return (path / "config.json").is_file() and not any((path / n).exists() for n in ("state.pt", EXPORT))


def assembled(folder: Path, spec: ModelSpec) -> Model:
    """The model of a run without memory for its tensors; UserError if none can be built from its model.json."""
    from llmlab.model import build

    try:
        return build.assemble(spec)
    except Exception as e:
        # Any part may stumble over sizes and options with which no run could have begun.
        reason = (str(e).splitlines() or [""])[0]
        raise UserError(f"{folder / SPEC}: no model can be built from it: {type(e).__name__} {reason}") from e


def load_model(run: str | Path) -> tuple[Model, Tokenizer]:
    """(model on the CPU in eval mode, tokenizer) of a run, from its newest sound checkpoint; Lightning is not imported."""
    from llmlab.data.tokenizer import Tokenizer
    from llmlab.model import build
    from llmlab.runs import checkpoint

    path, folder = checkpoint_of(run), home(run)
    cfg, spec = load(folder)
    if not checkpoint.is_export(path):  # whose manifest has them all
        undamaged(folder, (*TOKENIZER, *BESIDE), record.read(folder))
    weights = checkpoint.read_weights(path)
    model = assembled(folder, spec)
    build.materialise(model)
    if wrong := build.mismatches(model.state_dict(keep_vars=True), weights):
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise UserError(f"checkpoint {path} is not of the model in {folder / SPEC}: {'; '.join(wrong[:3])}{more}")
    # Strict; misfits are said above, as torch would give one line for each tensor of the model.
    model.load_state_dict(weights)
    tokenizer = Tokenizer.load(folder)
    if tokenizer.vocab_size > spec.sizes.vocab_size:
        raise UserError(
            f"{folder / TOKENIZER[0]} has {tokenizer.vocab_size:,} tokens, but the model knows {spec.sizes.vocab_size:,}"
        )
    tokenizer.lead = tokenizer.opening(cfg.data.bos)
    return model.eval(), tokenizer


def load_given(run: str | None, hf: str | None) -> tuple[Model, Tokenizer]:
    """(model, tokenizer) of a run, or of the checkpoint that hf= names."""
    if hf is None:
        assert run is not None
        return load_model(run)
    from llmlab.hub import text

    return text.load(locate.locate(hf))
