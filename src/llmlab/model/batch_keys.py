"""Keys of a batch that nothing reads: what they hold would change nothing, so they are refused."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from torch import Tensor

from llmlab import attributes
from llmlab.errors import UserError, near
from llmlab.slots import Objective

# What `Model.forward` reads by name; masks, heads and positions read others in `Context.data`.
MODEL = ("ids", "valid", "documents", "segments", "positions", "allowed")
SOURCE = ("source", "source_ids", "source_valid", "source_segments")
STAMPED = ("counts", "bytes", "filler", "fresh", "shown")  # by the feed, for the module and what it learns from
# "segmets" is segments, "label" (0.91 of labels, which no model reads) a key of its own.
CLOSE = 0.85


class Watched(dict[str, Any]):
    """A batch that remembers which keys were read. Whoever copies it has read them all: what becomes of copies is not known.

    A dict, for objectives that treat theirs as one; `read` is shared with the views that `without` gives.
    """

    def __init__(self, batch: Mapping[str, Any], read: set[str] | None = None):
        super().__init__(batch)
        self.read: set[str] = set() if read is None else read

    def __getitem__(self, key: str) -> Any:
        self.read.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: object = None) -> Any:
        # dict.get would not call __getitem__ of a subclass.
        if key not in self:
            return default
        return self[key]

    # {**batch} asks for each key only where `__iter__` is not dict's own.
    def __iter__(self) -> Iterator[str]:
        return super().__iter__()

    def items(self) -> Any:
        return self.copy().items()

    def values(self) -> Any:
        return self.copy().values()

    def copy(self) -> dict[str, Any]:
        self.read.update(self.keys())
        return dict(super().items())

    def __or__(self, other: Any) -> Any:
        return self.copy() | other

    def without(self, names: Collection[str]) -> Watched:
        """The rest of the batch, watched as well."""
        # super() works here, since the first iterable of a comprehension is evaluated outside of it.
        return Watched({k: v for k, v in super().items() if k not in names}, self.read)


def check(batch: Watched, objective: Objective) -> None:
    """UserError, after a loss, if there is a key that neither the objective nor a model has read.

    Those that an objective `gives` are an offer, which not every mask takes.
    """
    offered = {*STAMPED, *attributes.get(objective, "objective", "gives")}
    for name in batch:
        if name not in batch.read and name not in offered:
            raise UserError(
                f"objective={type(objective).__name__}: its samples have {name!r}, which neither its loss nor a part of the "
                f"model reads; {near(name, {*MODEL, *SOURCE, *batch.read} - {name})}, or leave it out"
            )


def check_names(names: Collection[str], needs: Collection[str]) -> None:
    """ValueError if a key of a batch is a misspelt one of what a model reads. Others may be anybody's: an objective's, say."""
    known = {*MODEL, *SOURCE, "labels", *needs}
    for name in names:
        if name not in known and (close := difflib.get_close_matches(name, known - {"labels"}, 1, CLOSE)):
            raise ValueError(f"the batch has {name!r}, which this model does not read; did you mean {close[0]}?")


def read_in(data: Mapping[str, Any], plain: Collection[str]) -> Mapping[str, Tensor]:
    """The rest of a batch beside the keys that every model knows: for parts that read it by name."""
    return data.without(plain) if isinstance(data, Watched) else {k: v for k, v in data.items() if k not in plain}
