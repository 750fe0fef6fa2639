"""Strays of a composed config: keys that no schema knows, removed ones, parts of another slot, values out of bounds."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

from llmlab import registry
from llmlab.config import guess, limits
from llmlab.registry import near
from llmlab.slot_names import Part, slot_at

if TYPE_CHECKING:
    from omegaconf import DictConfig


def problems(cfg: DictConfig, path: str = "", root: DictConfig | None = None) -> list[str]:
    """Keys that no schema knows, keys that were removed, parts that aren't, values outside a Literal."""
    from omegaconf import DictConfig, ListConfig, OmegaConf

    lines: list[str] = []
    root = cfg if root is None else root
    kind = OmegaConf.get_type(cfg)
    fields = {f.name for f in dataclasses.fields(kind)} if dataclasses.is_dataclass(kind) else None
    options: Any = {}
    if isinstance(kind, type) and issubclass(kind, Part):
        if problem := _wrong_part(cfg, kind, path):
            return [problem]
        # `cfg["_part_"]` would raise where it is missing (???); the node itself is there all the same.
        options = registry.index()[slot_at(path), cfg._get_node("_part_")._value()].options  # type: ignore[union-attr]
    # Hydra's ~KEY takes a field out of a typed config without a word.
    for key in sorted(fields - {str(k) for k in cfg}) if fields is not None else ():
        lines.append(f"~{path + '.' if path else ''}{key}: it can't be removed; give it another value")
    # Not items(), which works out every value and raises at the first that it can't.
    for key in map(str, cfg):
        where = f"{path}.{key}" if path else key
        if fields is not None and key not in fields:
            names = [f for f in fields if not f.startswith("_")]
            hint = guess.below(path, key, names, root) if path else guess.at_root(key, names, root, registry.names)
            lines.append(f"{where}: there is no such key{' in ' + path if path else ''}; {hint}")
            continue
        # Asked before it is read: reading ??? raises MissingMandatoryValue.
        if OmegaConf.is_missing(cfg, key):
            lines.append(f"{where} must be given: it has no default")
            continue
        try:
            value = cfg[key]
        except Exception as e:  # of an interpolation, which OmegaConf works out when it is read, or of a resolver
            if not any(" must be at most " in line for line in lines):  # what it follows from has a line already
                lines.append(f"{where}: {str(e).splitlines()[0]}")
            continue
        # OmegaConf 2.3 refuses a field of type Literal, so that its choices are checked here.
        if key in options and options[key].choices and value is not None and value not in options[key].choices:
            lines.append(limits.not_among(where, value, options[key].choices))
        # Hydra's grammar and YAML both read nan and inf as numbers.
        if isinstance(value, float) and not math.isfinite(value):
            lines.append(f"{where} must be a finite number, but is {value}")
        elif (most := limits.largest(where, value)) is not None:
            lines.append(f"{where} must be at most {most:,}, but is {limits.shortened(value)}")
        # DictConfig is no dict to isinstance.
        elif isinstance(value, DictConfig):
            lines += problems(value, where, root)
        elif isinstance(value, ListConfig) and any(OmegaConf.is_missing(value, i) for i in range(len(value))):
            lines.append(f"{where} must be given in full")
    return lines


def _wrong_part(cfg: DictConfig, kind: type, path: str) -> str | None:
    slot, name = slot_at(path), cfg._get_node("_part_")._value()  # type: ignore[union-attr]
    if kind is Part or "/" not in kind.__name__:
        return f"{path}: a part is chosen by its name, {slot}=NAME, or in a defaults list"
    # The names that `store` gives to the classes.
    its_slot, _, its_name = kind.__name__.partition("/")
    if its_slot != slot:
        return f"{path}: {its_name} is a part of {its_slot}, not of {slot}; {near(its_name, registry.names(slot))}"
    if name != its_name:
        return (
            f"{path}._part_ is {name!r}, but what was chosen is {its_name!r}; a part is chosen by its name, {slot}=NAME"
        )
    return None
