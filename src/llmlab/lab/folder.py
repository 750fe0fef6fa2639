"""A run folder as input: its config as it was composed, and its newest sound checkpoint."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmlab import registry
from llmlab.errors import UserError
from llmlab.hub import locate
from llmlab.lab import record
from llmlab.lab.files import write_atomic

if TYPE_CHECKING:
    from llmlab.model.layout import ModelSpec

CONFIG, SPEC, EXPORT = "config.yaml", "model.json", "export.json"


def save(folder: Path, cfg: Any, spec: ModelSpec) -> None:
    """The resolved config as config.yaml and the resolved model as model.json: the run can be read whatever conf/ becomes."""
    from omegaconf import OmegaConf

    from llmlab.model.plain import to_plain

    write_atomic(folder / CONFIG, OmegaConf.to_yaml(cfg, resolve=True))
    write_atomic(folder / SPEC, json.dumps(to_plain(spec), indent=1) + "\n")


def load(run: str | Path) -> tuple[Any, ModelSpec]:
    """(config, resolved model) of a run, or of what was exported from one; UserError if the folder is neither."""
    from omegaconf import OmegaConf

    from llmlab.model.plain import from_plain

    folder = Path(run)
    if not (folder / EXPORT).exists():
        record.read(folder)
    try:
        cfg: Any = OmegaConf.load(folder / CONFIG)
        if "bos" not in cfg.data:  # a run of before there was this key, whose documents have none
            cfg.data.bos = False
        spec = from_plain(json.loads((folder / SPEC).read_text(encoding="utf-8")))
    except FileNotFoundError as e:
        raise UserError(
            f"{run}: there is no {Path(e.filename).name} there; the run ended before it began to train"
        ) from None
    except Exception as e:
        raise UserError(f"{run}: its config can't be read: {e}") from e
    plain: Any = OmegaConf.to_container(cfg)
    _known(folder, record.parts(plain))
    return cfg, spec


def _known(run: Path, parts: Mapping[str, str]) -> None:
    """UserError if a part of a run is not there: one of its user's own, whose module is not named now."""
    for place, name in parts.items():
        parent, _, last = place.rpartition(".")
        slot = "head" if parent == "heads" else "attention" if last == "cross_attention" else last
        if (slot, name) in registry.index() or registry.broken(slot, name):
            continue
        try:
            named = record.read(run).get("plugins")
        except UserError:  # an export has no record
            named = None
        where = f"{registry.VARIABLE}={named or 'MODULE'}"
        was = f"it was trained with {where}: set it again" if named else f"if it is a part of your own, set {where}"
        raise UserError(f"{run}: its {slot}={name} is not known here; {was}, where that module can be imported")


def checkpoint_of(run: str | Path, warn: Callable[[str], None] | None = None) -> Path:
    """The newest sound checkpoint of a run folder, or the folder itself if it is a checkpoint or was exported from one."""
    from llmlab.training import checkpoint

    folder = Path(run)
    if (folder / checkpoint.MANIFEST).exists() or (folder / EXPORT).exists():
        return folder
    record.read(folder)
    found = checkpoint.latest(
        folder / checkpoint.FOLDER, warn or (lambda line: print(f"warning: {line}", file=sys.stderr))
    )
    if found is None:
        raise UserError(f"{run}: it has no sound checkpoint")
    return found


def start_of(init_from: str) -> Path:
    """The checkpoint that a run begins with: of a run, or a Hugging Face folder (`is_foreign`)."""
    name = locate.named(init_from)
    return checkpoint_of(init_from) if name is None else locate.locate(name)


def is_foreign(path: Path) -> bool:
    """Whether a checkpoint is a Hugging Face folder."""
    return (path / "config.json").is_file() and not any((path / n).exists() for n in ("state.pt", EXPORT))


def home(run: str | Path) -> Path:
    """The folder with the config, the model and the tokenizer of what `checkpoint_of` takes."""
    folder = Path(run)
    return folder.parent.parent if folder.name.startswith("step=") and (folder / "manifest.json").exists() else folder


def load_model(run: str | Path) -> tuple[Any, Any]:
    """(model on the CPU in eval mode, tokenizer) of a run, from its newest sound checkpoint; Lightning is not imported."""
    from llmlab.data.tokenizer import Tokenizer
    from llmlab.model import build
    from llmlab.training import checkpoint

    path, folder = checkpoint_of(run), home(run)
    cfg, spec = load(folder)
    model = build.assemble(spec)
    build.materialise(model)
    model.load_state_dict(checkpoint.read_weights(path))
    tokenizer = Tokenizer.load(folder)
    tokenizer.lead = tokenizer.opening(cfg.data.bos)
    return model.eval(), tokenizer


def load_given(run: str | None, hf: str | None) -> tuple[Any, Any]:
    """(model, tokenizer) of a run, or of the checkpoint that hf= names."""
    if hf is None:
        assert run is not None
        return load_model(run)
    from llmlab.hub import text

    return text.load(locate.locate(hf))
