"""Runs -> variants: those whose configs are equal but for the seed (and a tuned key), named by the keys that differ."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from llmlab.config.bookkeeping import ADDED, makes_no_variant
from llmlab.errors import UserError
from llmlab.registry import near
from llmlab.report import names, stats
from llmlab.report.collect import Found, Run, split_override
from llmlab.report.measured import higher_is_better
from llmlab.report.names import format_value
from llmlab.report.variant import Tuned, Variant

TUNED = "optimizer.lr"


def flatten(config: Mapping[str, Any]) -> tuple[dict[str, Any], set[str]]:
    """{dotted key: value} without nulls, and which keys are parts: a part is its name, its options lie below it."""
    leaves: dict[str, Any] = {}
    parts: set[str] = set()

    def walk(node: object, path: str) -> None:
        if not isinstance(node, Mapping):
            # A key that says nothing says no more than one that is missing: runs from before it existed make no other variant.
            if node is not None and not (path in ADDED and node == ADDED[path]):
                leaves[path] = _listed(node) if isinstance(node, list) else node
            return
        if isinstance(node.get("_part_"), str):
            leaves[path] = node["_part_"]
            parts.add(path)
        for name, value in node.items():
            if name != "_part_":
                walk(value, f"{path}.{name}" if path else str(name))

    walk(config, "")
    return leaves, parts


def _listed(values: list[Any]) -> str:
    """A list as it is typed: [heads,bias], [size=nano]; of other things than words as JSON."""
    words = all(isinstance(v, str) and re.fullmatch(r"[\w.*/+=@:-]+", v) for v in values)
    return f"[{','.join(values)}]" if words else json.dumps(values)


def group(found: Found, metric: str, tune: str | None) -> list[Variant]:
    """The variants, each with the runs that count, named, in the order of their sweep, else of their names.

    tune: the key of which each variant has a grid to choose from; None: optimizer.lr where some variant has several;
    "null": none. UserError if a tuned key that was asked for is none, or is never varied.
    """
    flat = _flat(found.runs)
    known = {key for _, leaves, _ in flat for key in leaves}
    key = _tuned_key(flat, tune, known)
    groups: dict[tuple, Variant] = {}
    for run, leaves, parts in flat:
        kept = {k: v for k, v in leaves.items() if not makes_no_variant(k) and k != key}
        groups.setdefault(_identity(kept), Variant(kept, parts, [])).runs.append(run)
    variants = list(groups.values())
    for variant in variants:
        _count(variant, metric, key)
    # Named before they are sorted: among runs of no sweep the name decides.
    names.assign_names(variants, key)
    return sorted(variants, key=lambda v: (_place(found, v), v.name))


def _flat(runs: Sequence[Run]) -> list[tuple[Run, dict[str, Any], set[str]]]:
    """Each run with its flat config; one text, or tokenizer, that was typed as several paths has one of them."""
    flat = [(run, *flatten(run.config)) for run in runs if run.config]
    paths: dict[str, str] = {}
    texts: dict[tuple, str] = {}
    for run, leaves, _ in flat:
        if text := run.record.get("data", {}).get("fingerprint"):
            texts[_data(leaves)] = text[:12]
            if path := leaves.get("data.path"):
                paths[text[:12]] = min(paths.get(text[:12], path), path)
    files: dict[str, str] = {}
    for run, leaves, _ in flat:
        if path := leaves.get("tokenizer.path"):
            files[run.tokenizer] = min(files.get(run.tokenizer, path), path)
    for run, leaves, _ in flat:
        if "tokenizer.path" in leaves:
            leaves["tokenizer.path"] = files[run.tokenizer]
    # A run that failed before it read its text takes that of the runs with the same keys of the data.
    for run, leaves, _ in flat:
        text = (run.record.get("data", {}).get("fingerprint") or texts.get(_data(leaves), "unknown"))[:12]
        if "data.path" in leaves:
            leaves["data.path"] = paths.get(text, leaves["data.path"])
        leaves["data.fingerprint"] = text
    return flat


def _data(leaves: Mapping[str, Any]) -> tuple:
    # repr, as 1 == 1.0 == True in Python: as values of a dict's key they would be one config.
    return tuple((k, repr(v)) for k, v in sorted(leaves.items()) if k.startswith("data."))


def _identity(leaves: Mapping[str, Any]) -> tuple:
    return tuple((k, repr(v)) for k, v in sorted(leaves.items()))


def _tuned_key(flat: Sequence[tuple[Run, dict[str, Any], set[str]]], tune: str | None, known: set[str]) -> str | None:
    if tune in ("null", "none"):
        return None
    key = tune or TUNED
    if tune and tune not in known:
        raise UserError(f"report.tune={tune}: no run has such a key; {near(tune, known)}")
    grids: dict[tuple, set[str]] = {}
    for _, leaves, _ in flat:
        rest = {k: v for k, v in leaves.items() if not makes_no_variant(k) and k != key}
        grids.setdefault(_identity(rest), set()).add(format_value(leaves.get(key)))
    if any(len(values) > 1 for values in grids.values()):
        return key
    if tune:
        raise UserError(f"report.tune={tune}: no variant has more than one value of it; leave it out")
    return None


# ---------------------------------------------------------------- which runs count


def _count(variant: Variant, metric: str, key: str | None) -> None:
    """Fill `counted`, `left_out` and `tuned`."""
    steps = max((r.record.get("steps", 0) for r in variant.runs if r.status == "completed"), default=0)
    grid: dict[str, dict[int, Run]] = {}
    for run in sorted(variant.runs, key=lambda r: (r.began, r.name)):
        value = format_value(flatten(run.config)[0].get(key)) if key else ""
        held = grid.setdefault(value, {})
        reason = _why_not(run, metric, steps)
        if reason:
            variant.left_out[run.name] = reason
            continue
        assert run.seed is not None
        if run.seed in held:  # the later one comes second
            variant.left_out[held[run.seed].name] = f"a newer run of the same seed is counted: {run.name}"
        held[run.seed] = run
    if key is None:
        variant.counted = grid.get("", {})
        return
    most = max(len(held) for held in grid.values())
    means = {
        value: stats.mean([m for r in held.values() if (m := r.metric(metric)) is not None]) if held else None
        for value, held in grid.items()
    }
    ordered = sorted(grid, key=_number)
    higher = higher_is_better(metric, variant.runs)
    best = sorted(
        # A value that ran with fewer seeds may be the best by the luck of those that it has.
        (-m if higher else m, _number(v), v)
        for v, m in means.items()
        if m is not None and len(grid[v]) == most
    )
    if not best:
        return
    value = best[0][2]
    edge = "only" if len(grid) == 1 else {ordered[0]: "lowest", ordered[-1]: "highest"}.get(value)
    fewer = any(len(held) < most for held in grid.values())
    variant.tuned = Tuned(key, value, [(v, means[v], len(grid[v])) for v in ordered], edge, fewer)
    variant.counted = grid[value]
    for other, held in grid.items():
        if other != value:
            for run in held.values():
                variant.beaten.add(run.name)
                variant.left_out[run.name] = f"{key}={other} is not the best of the variant's grid"


def _number(value: str) -> tuple[float, str]:
    try:
        return float(value), value
    except ValueError:
        return math.inf, value


def _why_not(run: Run, metric: str, steps: int) -> str | None:
    if run.status != "completed":
        return f"{run.status}: {run.reason}" if run.reason else run.status
    value = run.metric(metric)
    if value is None:
        return f"it has no {metric}"
    if not math.isfinite(value):
        return f"its {metric} is {value}"
    done, budget = run.record.get("steps", 0), run.record.get("budget", {})
    # A budget in minutes ends at another step in each run.
    if done < steps and budget.get("unit") != "minutes":
        return f"it was cut short at step {done:,}, where others of the variant have {steps:,}"
    return None


# ---------------------------------------------------------------- order


def _place(found: Found, variant: Variant) -> tuple[str, int]:
    """The sweep and the first of its points that the variant has; runs of no sweep come last."""
    mine = {run.folder for run in variant.runs}
    for sweep in sorted(found.sweeps, key=lambda s: s.folder):
        for i, point in enumerate(sweep.points):
            if sweep.folder / point["folder"] in mine:
                return sweep.folder.as_posix(), i
    # Sorts behind the name of any folder.
    return "\uffff", 0


# ---------------------------------------------------------------- the baseline


def baseline(
    found: Found, variants: Sequence[Variant], asked: str | None, pool: Sequence[Variant]
) -> tuple[Variant, str | None]:
    """The variant to compare with, and a line where that is not the one that was to be expected.

    `asked`, as "attention=gqa" or "attention=gqa,ffn=gelu"; else the first value of each key of the first sweep; else the
    variant with the oldest run, of `pool` if there is one in it. Keys left open by `asked` take their first value in the
    sweep. UserError if none fits.
    """
    first = _first_values(found, variants)
    if asked:
        return _asked_for(variants, asked, first), None
    complete = [v for v in variants if v.counted]
    if first and (fits := [v for v in variants if _fits(v, first)]):
        chosen = next((v for v in fits if v.counted), None)
        if chosen:
            return chosen, None
        if not complete:
            return fits[0], None
    oldest = min(pool or variants, key=lambda v: v.born)
    expected = ", ".join(f"{k}={v}" for k, v in first.items())
    line = f"The sweep's first variant, {expected}, has no complete run; compared with {oldest.name} instead."
    return oldest, line if first and complete else None


def leading(found: Found, variants: Sequence[Variant]) -> Variant:
    """The variant that leads a table without a baseline of its own: the first of a sweep, else the one with the oldest run."""
    return min(variants, key=lambda v: (_place(found, v), v.born))


def _first_values(found: Found, variants: Sequence[Variant]) -> dict[str, str]:
    tuned = {v.tuned.key for v in variants if v.tuned}
    for sweep in found.sweeps:
        keys = {k: values[0] for k, values in sweep.keys.items() if values}
        kept = {k: v for k, v in keys.items() if not makes_no_variant(k) and k not in tuned}
        if kept:
            return kept
    return {}


def _fits(variant: Variant, wanted: Mapping[str, str]) -> bool:
    """True if each key was typed so, or is so in the config."""
    said = [{**run.asked, **variant.keys} for run in variant.runs]
    for key, value in wanted.items():
        path = "model.family" if key == "model" else key
        if format_value(variant.leaves.get(path)) != value and not any(s.get(key) == value for s in said):
            return False
    return True


def _asked_for(variants: Sequence[Variant], asked: str, first: Mapping[str, str]) -> Variant:
    # A comma separates only before another `key=`: values like [heads,bias] have commas of their own.
    wanted = dict(split_override(piece) for piece in re.split(r",\s*(?=[^,=\s]+=)", asked))
    if exact := [v for v in variants if v.name == asked] or [v for v in variants if v.keys == wanted]:
        return exact[0]
    known = [v.name for v in variants]
    fits = [v for v in variants if "=" in asked and _fits(v, wanted)]
    for key, value in first.items():
        if key not in wanted:
            fits = [v for v in fits if _fits(v, {key: value})] or fits
    if not fits:
        raise UserError(f"report.baseline={asked}: there is no such variant; {near(asked, known)}")
    if len(fits) > 1:
        more = "; ".join(v.name for v in fits)
        raise UserError(f"report.baseline={asked} names {len(fits)} variants: {more}; name one of them")
    return fits[0]
