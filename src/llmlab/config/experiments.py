"""The choices and sizes of a model that an experiment's file makes, as the words that would be typed for them. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmlab.config.companions import GROUPS, NODES
from llmlab.config.spelling import quoted

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

GROUP = "experiment"
LEARNED = ("tokenizer", "objective", "alignment")  # by which a model has its vocabulary and mask


def words(typed: Sequence[Override], folders: Sequence[Path]) -> list[str]:
    """Of the experiment that is typed, those that nothing else typed stands for. folders: with the groups of configs."""
    there = {o.get_key_element() for o in typed}
    found: dict[str, str] = {}
    for value in [o.value() for o in typed if o.key_or_group == GROUP and not o.is_delete()]:
        for name in value if isinstance(value, list) else [value]:
            found |= dict(_of_file(str(name), folders))
    return [f"{key}={value}" for key, value in found.items() if key not in there]


def _of_file(name: str, folders: Sequence[Path]) -> Iterator[tuple[str, str]]:
    from omegaconf import OmegaConf

    path = next((p for p in (folder / GROUP / f"{name}.yaml" for folder in folders) if p.is_file()), None)
    if path is None:
        return
    content: Any = OmegaConf.to_container(OmegaConf.load(path))
    for entry in content.pop("defaults", None) or ():
        if isinstance(entry, str):
            if entry != "_self_":  # another experiment, on which this one builds
                yield from _of_file(entry, folders)
            continue
        for key, choice in entry.items():
            group = str(key).removeprefix("override ").lstrip("/")
            if group.partition("@")[0] in (*GROUPS, *LEARNED) and choice is not None:
                yield group, str(choice)
    for key, value in content.items():
        if key in (*NODES, *LEARNED):
            yield from _values(str(key), value)


def _values(key: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from _values(f"{key}.{name}", inner)
    else:
        yield key, _spelled(value)


def _spelled(value: Any) -> str:
    """A value in Hydra's grammar."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{k}:{_spelled(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_spelled, value)) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return quoted(value) if isinstance(value, str) else str(value)
