"""Models in which each setting of a part's options meets every part that it can interact with.

They are a covering array of their own. In the array of parts, any two settings would have to meet as well, in thousands of
models.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from llmlab.check.combinations import combinations, isolated_refusal, pair_case
from llmlab.check.covering_array import CoveringArray, Item, Level, Pair, ordered_pair
from llmlab.check.processes import IsolatedProcess
from llmlab.check.subject import Case
from llmlab.check.twins import settings

# {slot: slots with which its options can interact, whose parts are called with its results or compute with the same tensors}
INTERACTS: Mapping[str, tuple[str, ...]] = {
    "position": ("attention", "mask", "window", "kernel", "embedding"),
    "attention": ("position", "norm", "window", "kernel"),
    "window": ("mask", "kernel"),
    "embedding": ("position", "norm"),
    "ffn": ("moe", "block"),
    "moe": ("ffn",),
    "block": ("norm",),
    "norm": ("block", "attention"),
    "kernel": ("position", "attention"),
    "init": ("block",),
}
Options = Mapping[str, Any]


class SettingRows:
    """The covering array. A level is a part with its `small` options, or a setting, named by the words typed for it."""

    def __init__(self) -> None:
        parts = combinations()
        self._options: dict[Item, Options] = {}
        factors: list[list[Level]] = [list(levels) for levels in parts.cover.factors]
        for levels in factors:
            for (slot, name), *_ in [level for level in levels if level[0][0] in INTERACTS]:
                levels += [((slot, key),) for key in self._settings(slot, name)]
        self.cover = CoveringArray(factors, self._refusal)
        self._process = IsolatedProcess()

    def _settings(self, slot: str, name: str) -> Iterator[str]:
        """Names of a part's settings: the part and overrides. Without the first, which has its `small` options."""
        first, *others = settings.of_part(slot, name)
        for setting in others:
            changed = {k: v for k, v in setting.options.items() if first.options.get(k, ...) != v}
            key = " ".join([name, *(settings.override(f"{slot}.{k}", v) for k, v in changed.items())])
            self._options[slot, key] = setting.options
            yield key

    def _refusal(self, items: Sequence[Item]) -> str | None:
        options = {slot: self._options[slot, key] for slot, key in items if (slot, key) in self._options}
        return isolated_refusal(self._process, [_part(item) for item in items], runs=True, options=options)

    def wanted(self) -> list[Pair]:
        """Pairs that must meet: each setting, and each part, with its `small` options, of the slots that it interacts with."""
        return [
            ordered_pair(setting, item)
            for setting in self._options
            for item in self.cover.known_items()
            if item[0] in INTERACTS[setting[0]] and item not in self._options
        ]

    def cases(self) -> Iterator[Case]:
        """The models, each as soon as the array has found it."""
        for n, row in enumerate(self.cover.cover(self.wanted()), 1):
            items = self.cover.items(row)
            typed = [word for item in items if item in self._options for word in item[1].split()[1:]]
            yield pair_case(f"settings {n}", dict(map(_part, items)), typed, kind="setting")


def _part(item: Item) -> Item:
    """The part of a level."""
    return item[0], item[1].split()[0]


@cache
def setting_rows() -> SettingRows:
    """The one instance, made when first needed."""
    return SettingRows()
