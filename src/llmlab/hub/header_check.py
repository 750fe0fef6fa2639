"""Sizes in config.json, held against the headers of the weights, before a model of that size is laid out or built.

A config.json of a few bytes may ask for any number of layers; laying out a thousand takes a second.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from llmlab.errors import UserError
from llmlab.hub.entry import Config
from llmlab.sizes import MOST_LAYERS

MOST_UNSEEN = 1000  # layers that no tensor vouches for: ALBERT's run again and again, T5's where one stack is read


def check_list_lengths(config: Config, file: Path) -> None:
    """UserError for numbers of which lists are made when config.json is read."""
    for key, value in config.items():
        if ("layer" in key or "group" in key) and isinstance(value, int) and value > MOST_LAYERS:
            raise UserError(f"{file}: {key}={value} is more than {MOST_LAYERS:,}")
    runs, inner = config.get("num_hidden_layers"), config.get("inner_group_num", 1)
    if isinstance(runs, int) and isinstance(inner, int) and inner > 1 and runs * inner > MOST_UNSEEN:
        raise UserError(f"{file}: num_hidden_layers={runs} times inner_group_num={inner} is more than {MOST_UNSEEN:,}")


def check_counts(
    overrides: Sequence[str], stacks: Collection[str] | None, shapes: Mapping[str, Tensor], file: Path
) -> None:
    """UserError where the weights hold fewer layers or experts than a model of these overrides has.

    stacks: those that the class reads, None for all. Whether every tensor is there and of its shape is for the caller to say,
    once the model is laid out: here it is only made sure that it is no larger than its file.
    """
    said = dict(o.partition("=")[::2] for o in overrides)
    there = _numbered(shapes)
    executed = said.get("execute", "")

    def number(key: str) -> int:
        # int() of a text with more than 4,300 digits raises ValueError since Python 3.11; 18 fit 64 bits.
        if not re.fullmatch(r"-?\d{1,18}", value := said.get(key, "0")):
            raise UserError(f"{file}: {key} must be a whole number, but is {value[:40]}")
        return int(value)

    layers = {key: number(key) for key in said if re.fullmatch(r"stacks\.\w+\.n_layers", key)}
    if executed:
        _refuse("layers", executed.count(",") + 1, MOST_UNSEEN, file, "llmlab reads up to")
        layers = {"execute": 1 + max(map(int, re.findall(r"\d+", executed)))}
        # ALBERT's are numbered within numbered groups.
        there = _numbered_within(shapes)
    for key, n in (layers or {"": number("model.n_layers")}).items():
        name = key.removeprefix("stacks.").removesuffix(".n_layers")
        of = f"layers of the {name}" if key.startswith("stacks.") else "layers"
        if key.startswith("stacks.") and stacks is not None and name not in stacks:
            _refuse(of, n, MOST_UNSEEN, file, "llmlab reads up to")
        else:
            _refuse(of, n, there, file)
    # Where there are none each layer is dense, whatever is said.
    experts = {name: t for name, t in shapes.items() if "expert" in name}
    # transformers 5 may hold all experts in one tensor, (E, ...), without a number in its name.
    joined = max((t.shape[0] for t in experts.values() if t.dim() > 2), default=0)
    most = max(_numbered(experts), joined) if experts else MOST_UNSEEN
    _refuse("experts", number("model.moe.n_experts"), most, file)


def _refuse(what: str, said: int, there: int, file: Path, by: str = "the weights hold") -> None:
    if said > there:
        raise UserError(f"{file} says {said:,} {what}, but {by} {there:,}")


def _numbered_within(names: Iterable[str]) -> int:
    """The different numbers of names, those of all their levels together."""
    return len({tuple(re.findall(r"\.(\d+)(?=\.)", name)) for name in names} - {()})


def _numbered(names: Iterable[str]) -> int:
    """The most numbers that follow one prefix: model.layers.0, model.layers.1 ... Layers, or experts of a layer."""
    numbers: dict[str, set[str]] = defaultdict(set)
    for name in names:
        # Lookahead, so that the dot between two numbers counts for both.
        for found in re.finditer(r"\.(\d+)(?=\.)", f".{name}"):
            numbers[name[: found.start()]].add(found[1])
    return max(map(len, numbers.values()), default=0)
