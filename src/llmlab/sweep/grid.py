"""The points of a sweep: expanded as Hydra does it, named by what is swept, composed, checked and hashed."""

from __future__ import annotations

import hashlib
import json
import re
import sys
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, cast

from llmlab.config import data_keys
from llmlab.config.bookkeeping import hashed
from llmlab.config.choices import groups
from llmlab.config.compose import vary
from llmlab.config.composed import Composed
from llmlab.errors import UserError
from llmlab.runs.compose import compose
from llmlab.slot_names import SLOTS

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override


NAME_BYTES = 200  # file systems take 255 (NAME_MAX), and temporary names are longer by a process id and more


def safe_name(text: str, longest: int = 120) -> str:
    """A file name: the text itself if it can be one, else what is left of it and a hash."""
    # Not what a shell or Hydra's grammar would read as something else: spaces, quotes, brackets, slashes.
    kept = re.sub(r"[^\w.=,+@-]+", "_", text)
    if kept == text and len(kept) <= longest and len(kept.encode()) <= NAME_BYTES:
        return kept
    short = kept[: longest - 9].encode()[: NAME_BYTES - 9].decode(errors="ignore")
    # A hash of the whole text: two that begin alike must not share a folder.
    return f"{short}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def point_name(overrides: Iterable[str], keys: Sequence[str]) -> str:
    """The folder of a point: what is swept, sorted, so that the order of typing does not matter."""
    mine = sorted(o for o in overrides if o.partition("=")[0] in keys)
    return safe_name(",".join(mine) or "point")


def digest(composed: Composed) -> str:
    """sha256 of the resolved config as far as it changes numbers, and of the parts that were typed: those win
    over a family's own in every layer, which the config alone does not show."""
    from omegaconf import OmegaConf

    plain: Any = hashed(cast("dict[str, Any]", OmegaConf.to_container(composed.cfg, resolve=True)))
    parts = sorted([t.group, t.package, str(t.choice)] for t in composed.typed if t.group in SLOTS and not t.kept)
    return hashlib.sha256(json.dumps([plain, parts], sort_keys=True, default=str).encode()).hexdigest()


def _values(o: Override) -> list[str]:
    """The values of a sweep; of an interval its two ends."""
    value: Any = o.value()
    if o.is_interval_sweep():
        return [str(value.start), str(value.end)]
    return list(o.sweep_string_iterator())


def n_values(o: Override) -> float:
    """The number of values of an override; of a range by arithmetic, since range(0,1e9) can't be listed."""
    value: Any = o.value()
    if not o.is_range_sweep():
        return len(_values(o))
    return max(0.0, (value.stop - value.start) / value.step) if value.step else 0.0


def first_override(o: Override) -> str:
    """The override with the first of its values. A glob stands for what it finds, which is known later."""
    from hydra.core.override_parser.types import Glob

    if not o.is_sweep_override():
        return f"{o.get_key_element()}={o.get_value_element_as_str()}" if not o.is_delete() else str(o.input_line)
    if isinstance(o.value(), Glob) and o.config_loader is None:
        return ""
    return f"{o.get_key_element()}={next(iter(_values(o)))}"


def grid_points(specs: Sequence[Override]) -> list[list[str]]:
    """The points, expanded as Hydra does it."""
    # Internal to Hydra, but the only code that gives its order and its quoting of each value.
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    return BasicSweeper.split_arguments(list(specs), None)[0]


def sweeper_argument(o: Override) -> str:
    """The override as a sweeper that chooses points is given it: of a range its values, as Hydra's grid lists them.

    The optuna sweeper reads a range with its end (1.2: range(1,3) tries 3), and none that goes down.
    """
    if not o.is_range_sweep():
        return str(o.input_line)
    choice = f"choice({','.join(o.sweep_string_iterator())})"
    tags = sorted(getattr(o.value(), "tags", ()))
    return f"{o.get_key_element()}=" + (f"tag({','.join(tags)},{choice})" if tags else choice)


def trial_points(specs: Sequence[Override]) -> list[list[str]]:
    """Points that stand for those that a sweeper has yet to choose: each value or end of each key, others at their first."""
    base = [first_override(o) for o in specs]
    points = [base]
    for i, o in enumerate(specs):
        if o.is_sweep_override():
            # One key at a time: all combinations may be more than can be composed, and most problems are of one value.
            points += [[*base[:i], f"{o.get_key_element()}={v}", *base[i + 1 :]] for v in _values(o)[1:]]
    return points


def check_points(
    points: Sequence[Sequence[str]], keys: Sequence[str], folders: Sequence[str]
) -> tuple[list[str], frozenset[str]]:
    """The hash of each point, and the keys that compose opened with a "+"; UserError with the problems of all.

    Points that differ in values alone are composed once.
    """
    opened: set[str] = set()
    problems: dict[str, list[str]] = {}
    hashes: list[str] = []
    known: dict[tuple[str, ...], Composed] = {}
    group_names = groups(folders)
    values = [k for k in keys if k not in group_names and "@" not in k]
    began = printed = time.monotonic()
    for i, overrides in enumerate(points):
        typed = {k: v for k, _, v in (o.partition("=") for o in overrides) if k in values}
        rest = tuple(o for o in overrides if o.partition("=")[0] not in typed)
        try:
            # A tenth of the time of composing it anew.
            composed = vary(known[rest], typed) if rest in known else None
            if composed is None:
                composed = known[rest] = compose(overrides, folders)
                data_keys.require_source(composed)
            if alone := composed.of_this_process():
                raise UserError("\n".join(alone))
            hashes.append(digest(composed))
            opened |= {o[1:].partition("=")[0] for o in composed.effective if o[0] == "+" and o not in overrides}
        except UserError as e:
            for line in str(e).splitlines():
                problems.setdefault(line, []).append(point_name(overrides, keys))
            if time.monotonic() - began > 20:
                problems[f"(the sweep has {len(points)} points; the first {i + 1} were checked)"] = []
                break
        if len(points) > 20 and time.monotonic() - printed > 2:
            print(f"checking the points: {i + 1} of {len(points)}", file=sys.stderr, flush=True)
            printed = time.monotonic() + 3
    if problems:
        raise UserError("\n".join(line + _in_points(names, len(points)) for line, names in problems.items()))
    return hashes, frozenset(opened)


def _in_points(names: Sequence[str], total: int) -> str:
    if total == 1 or not names:
        return ""
    if len(names) == total:
        return " (in every point)"
    more = f" and {len(names) - 2} more points" if len(names) > 3 else ""
    return f" (in {', '.join(names[: 2 if more else 3])}{more})"
