"""config.yaml of a run folder: the settings under which it trains, with the types that they had when it was composed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

from llmlab import files, registry, slot_names
from llmlab.config import companions, init_from, schema, store
from llmlab.config.trainer import Trainer
from llmlab.data import chat_templates
from llmlab.errors import UserError
from llmlab.json_files import read_yaml
from llmlab.sizes import ModelConfig

if TYPE_CHECKING:
    from omegaconf import DictConfig

NODES: dict[str, Any] = {
    "model": ModelConfig,
    "data": schema.Data,
    "tokenizer": schema.Tokenizer,
    "train": schema.Train,
    "budget": schema.Budget,
    "strategy": schema.Strategy,
    "placement": schema.Placement,
    "logger": schema.Logger,
    "trainer": Trainer,
}


# Methods that were objectives once.
MOVED = ("reinforce",)


class Shape(TypedDict):
    seed: int
    precision: str
    model: dict[str, Any]
    data: dict[str, Any]
    tokenizer: dict[str, Any]
    train: dict[str, Any]
    budget: dict[str, Any]
    strategy: NotRequired[dict[str, Any]]
    placement: NotRequired[dict[str, Any]]
    logger: NotRequired[dict[str, Any] | None]
    trainer: dict[str, Any]
    objective: dict[str, Any]
    alignment: NotRequired[dict[str, Any] | None]
    reward: NotRequired[dict[str, Any] | None]
    filter: NotRequired[dict[str, dict[str, Any]]]
    optimizer: dict[str, Any]
    schedule: dict[str, Any]
    models: NotRequired[dict[str, list[str] | str]]
    init_from: NotRequired[str | None]
    init_adapter: NotRequired[str | None]
    init_embedding: NotRequired[str | None]
    init_tokenizer: NotRequired[str | None]
    resume: NotRequired[str | None]
    resume_from: NotRequired[str | None]
    published: NotRequired[str | None]
    experiment_name: NotRequired[str | None]
    sweep: NotRequired[str | None]


def read(path: Path) -> tuple[DictConfig, dict[str, Any]]:
    """(config, the same as it stands in the file). Keys that came later have their defaults, keys that are no more are left
    out. UserError names the key that is not what it must be; FileNotFoundError as it is.
    """
    from omegaconf import OmegaConf

    plain: dict[str, Any] = _upgraded(read_yaml(path, Shape))
    cfg: DictConfig = OmegaConf.create(plain)
    for name, cls in NODES.items():
        cfg[name] = _typed(path, name, plain.get(name) or {}, cls)
    for slot in slot_names.RECIPE_SLOTS:
        if plain.get(slot) is None and slot not in registry.SLOTS_NEEDED:
            cfg[slot] = None  # runs were once without it
            continue
        cfg[slot] = _part(path, slot, slot, plain[slot])
    for slot in slot_names.LISTED_SLOTS:
        cfg[slot] = {}  # runs were once without it
        for label, given in (plain.get(slot) or {}).items():
            cfg[slot][label] = _part(path, f"{slot}.{label}", slot, given)
    for name in ("init_from", "resume", "resume_from", "published", "experiment_name", "sweep"):
        cfg.setdefault(name, None)
    for name in init_from.TYPED:
        cfg.setdefault(name, None)
    cfg.setdefault("models", {})
    cfg.setdefault("adapter", None)
    return cfg, plain


def _upgraded(plain: dict[str, Any]) -> dict[str, Any]:
    """A config in which methods stand where they do now."""
    if (plain.get("objective") or {}).get("_part_") not in MOVED:
        return plain
    # The objective that a method takes the place of does nothing, but one must be there.
    return {**plain, "objective": {"_part_": "clm"}, "alignment": plain["objective"]}


def absolute(cfg: DictConfig) -> DictConfig:
    """A copy whose paths mean the same from any folder: of the text, the tokenizer, the weights to begin with, filters."""
    import copy

    # The run goes on with what was typed, which its messages name.
    cfg = copy.deepcopy(cfg)
    for node, key in ((cfg.data, "path"), (cfg.tokenizer, "path")):
        if node[key] is not None:
            node[key] = files.absolute(node[key])
    if cfg.tokenizer.template not in (None, *chat_templates.PRESETS):
        cfg.tokenizer.template = files.absolute(cfg.tokenizer.template)
    if cfg.init_from is not None:
        cfg.init_from = init_from.absolute(cfg.init_from)
    for key in ("init_embedding", "init_adapter"):
        if cfg[key] is not None:
            cfg[key] = files.absolute(cfg[key])
    companions.absolute(cfg.models)
    for part in [cfg.reward, *(cfg.reward.get("options") or ())] if cfg.reward is not None else ():
        if part.get("path") is not None:  # a user's function
            part["path"] = files.absolute(part["path"])
    for part in cfg.filter.values():
        for option in registry.declared("filter", part["_part_"], {}).attribute("files"):
            if part[option] is not None:
                part[option] = files.absolute(part[option])
    return cfg


def _part(path: Path, key: str, slot: str, given: dict[str, Any]) -> Any:
    """A part of a slot, as it stands in the file where there is no such part here."""
    if "_part_" not in given:
        raise UserError(f"{path}: {key}._part_ is missing")
    part = (slot, given["_part_"])
    return _typed(path, key, given, store.schema(*part)) if part in registry.index() else given


def _typed(path: Path, name: str, given: dict[str, Any], cls: Any) -> Any:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    node: Any = OmegaConf.structured(cls)
    for key in (k for k in given if k not in node):
        print(f"warning: {path}: {name}.{key} is no key of this version of llmlab; it is left out", file=sys.stderr)
    try:
        # Into a typed node: OmegaConf converts and checks each value by its dataclass, and raises with the full key.
        return OmegaConf.merge(node, {k: v for k, v in given.items() if k in node})
    except OmegaConfBaseException as e:
        at = getattr(e, "full_key", None)
        reason = str(e).splitlines()[0]
        raise UserError(f"{path}: {name}{'.' + str(at) if at else ''}: {reason}") from None
