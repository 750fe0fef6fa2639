"""The parameters that learn: a filter over paths and roles sets `requires_grad`; everything else is frozen.

`requires_grad` is all that others read: the optimizer (`roles.learning`), strategies, checkpoints, costs and plans. So
whatever sets it (these words, an adapter that freezes its trunk, a companion that is frozen whole) needs no more.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import get_args

from torch import nn

from llmlab.errors import UserError
from llmlab.model import roles
from llmlab.model.table import ranges
from llmlab.modules import Role
from llmlab.registry import near

KEY = "train.learns"
SHOWN = 3  # names in the line of a run's start


@dataclass(frozen=True)
class Filter:
    """The words of `train.learns`; None: everything learns.

    A word is a role (`bias`), or a path from the model's root (`heads`, `stacks.main.layers.3`), in which `*` stands for
    anything; it means all below. One with a - before it freezes, whatever the others say; with none but such, all else
    learns.
    """

    words: tuple[str, ...] | None = None

    @classmethod
    def from_words(cls, words: Iterable[str] | None) -> Filter:
        """The filter that the value of `train.learns` says."""
        return cls(None if words is None else tuple(words))

    def apply(self, model: nn.Module) -> None:
        """Set `requires_grad` of every parameter, in place. UserError in a line for words that do not fit the model."""
        if self.words is None:
            return
        learning = self.paths(model)
        for path, _, _, parameter, _ in roles.walk(model):
            parameter.requires_grad_(path in learning)

    def paths(self, model: nn.Module) -> frozenset[str]:
        """The paths of the parameters that learn; a shared one has its first path. UserError as `apply`."""
        role_of: dict[str, str] = {path: role for path, _, role in roles.parameters(model)}
        if self.words is None:
            return frozenset(role_of)
        taken = [word for word in self.words if not word.startswith("-")]
        learning = set().union(*(_matched(word, role_of) for word in taken)) if taken else set(role_of)
        for word in self.words:
            if word.startswith("-"):
                learning -= _matched(word[1:], role_of)
        if not learning:
            raise UserError(f"{self}: it freezes every parameter, so nothing would learn; name some that do")
        return frozenset(learning)

    def __str__(self) -> str:
        return f"{KEY}=[{','.join(self.words or ())}]"


def _matched(word: str, role_of: dict[str, str]) -> set[str]:
    """The paths that a word means; UserError if there are none."""
    if word in get_args(Role):
        found = {path for path, role in role_of.items() if role == word}
    else:
        # fnmatch's `*` matches dots too: stacks.*.attention means the attention of every layer.
        whole = re.compile(fnmatch.translate(word))
        found = {path for path in role_of if any(whole.match(place) for place in _places(path))}
    if found:
        return found
    raise UserError(f"{KEY}: {word} {_missing(word, role_of)}")


def _missing(word: str, role_of: dict[str, str]) -> str:
    present = [role for role in get_args(Role) if role in role_of.values()]
    if word in get_args(Role):
        return f"is a role that no parameter of this model has; it has {', '.join(present)}"
    places = list(dict.fromkeys(place for path in role_of for place in _places(path)))
    # A tied one computes with the embedding's table.
    if word == "heads":
        return "matches no parameter: the heads of this model have none but the embedding's table; add embed"
    if inside := [place for place in places if place.endswith(f".{word}")]:
        hint = f"did you mean {' or '.join(inside[:3])}?"
    else:
        hint = near(word, [*present, *places])
        # All the names of a model are too many for a line.
        if not hint.startswith("did you mean"):
            hint = f"name roles ({', '.join(present)}), heads, stacks or paths, which llmlab plan lists"
    return f"matches no parameter of this model; {hint}"


def _places(path: str) -> Iterator[str]:
    """The modules around a parameter from the outermost on, and itself."""
    names = path.split(".")
    return (".".join(names[:n]) for n in range(1, len(names) + 1))


def learns(module: nn.Module) -> bool:
    """True if something of a module learns, or it has nothing that could."""
    parameters = list(module.parameters())
    return not parameters or any(p.requires_grad for p in parameters)


def summary(model: nn.Module) -> str:
    """ "learns: 1,056 of 24,800 parameters (heads.tokens)"."""
    table = roles.parameters(model)
    total = sum(p.numel() for _, p, _ in table)
    learning = [(path, p) for path, p, _ in table if p.requires_grad]
    if len(learning) == len(table):
        return f"learns: all of {total:,} parameters"
    names = _names([path for path, _, _ in table], {path for path, _ in learning})
    more = f", {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    count = sum(p.numel() for _, p in learning)
    return f"learns: {count:,} of {total:,} parameters ({', '.join(names[:SHOWN])}{more})"


def _names(paths: Sequence[str], learning: set[str]) -> list[str]:
    """The outermost modules of which everything learns; like ones of several layers are one name."""
    frozen = {place for path in paths if path not in learning for place in _places(path)}
    whole = dict.fromkeys(next(p for p in _places(path) if p not in frozen) for path in paths if path in learning)
    layers: dict[tuple[str, str], list[int]] = {}
    for name in whole:
        # The lookbehind: only a number right behind `layers.` is a layer's.
        before, number, after = re.fullmatch(r"(.*?)(?:(?<=layers\.)(\d+)(.*))?", name).groups()  # type: ignore[union-attr]
        layers.setdefault((before, after or ""), []).extend([] if number is None else [int(number)])
    return [before + ranges(numbers).replace(", ", ",") + after for (before, after), numbers in layers.items()]
