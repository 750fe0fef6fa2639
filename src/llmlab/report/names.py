"""Names of variants: what was typed where that tells them apart, else the config's keys that do."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from llmlab.config.bookkeeping import makes_no_variant
from llmlab.slot_names import SLOTS

if TYPE_CHECKING:
    from llmlab.report.variant import Variant

NAMED_KEYS = 4  # a variant that differs in more keys is named by some that suffice, and told how many more there are
UNTYPED = "the default run"  # as `llmlab runs` has it


def format_value(value: object) -> str:
    # As it is typed on Hydra's command line: true and null, where Python writes True and None.
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def differing(variants: Sequence[Variant]) -> dict[str, list[str | None]]:
    """{key: its value in each variant} of the keys that differ. A part's options count among those who have the part;
    for the others they are None."""
    found: dict[str, list[str | None]] = {}
    parts = set().union(*(v.parts for v in variants)) if variants else set()
    for key in sorted({k for v in variants for k in v.leaves}, key=_rank):
        values = [format_value(v.leaves.get(key)) for v in variants]
        if len(set(values)) == 1:
            continue
        owner = None if key in parts else _owner(key, parts)
        if owner is None:
            found[key] = list(values)
            continue
        names = [v.leaves.get(owner) for v in variants]
        mixed = {n for n in names if len({x for x, m in zip(values, names, strict=True) if m == n}) > 1}
        if mixed:
            found[key] = [x if n in mixed else None for x, n in zip(values, names, strict=True)]
    return found


def _owner(key: str, parts: Iterable[str]) -> str | None:
    return max((p for p in parts if key.startswith(f"{p}.")), key=len, default=None)


def _rank(key: str) -> tuple[int, str]:
    if key in ("model", "model.family"):
        return 0, key
    return (1 if key.rpartition(".")[2] in SLOTS else 2), key


def assign_names(variants: Sequence[Variant], tuned: str | None) -> None:
    """Sets `keys` and `name` of each; all names are different. tuned: a key that makes no variant."""
    if len(variants) == 1:
        variants[0].name = str(variants[0].a_record().get("family", "runs"))
        return
    asked = [_asked(v, tuned) for v in variants]
    labels = _swept(asked)
    if labels is None:
        few = len(differing(variants)) <= NAMED_KEYS
        labels = _by_config(variants) if few else _by_words(variants, asked)
    seen: dict[str, int] = {}
    for variant, label in zip(variants, labels, strict=True):
        variant.keys = label
        variant.name = ", ".join(f"{k}={v}" if v else k for k, v in label.items()) or UNTYPED
        seen[variant.name] = seen.get(variant.name, 0) + 1
        if seen[variant.name] > 1:
            variant.name += f" ({seen[variant.name]})"


def _asked(variant: Variant, tuned: str | None) -> dict[str, str]:
    """The overrides that were typed in every run of the variant."""
    each = [run.asked for run in variant.runs]
    same = {k: v for k, v in each[0].items() if all(e.get(k) == v for e in each)}
    return {k: v for k, v in same.items() if not makes_no_variant(k) and k != tuned}


def _swept(asked: Sequence[dict[str, str]]) -> list[dict[str, str]] | None:
    """The keys that vary, where each was typed for every variant, as in a sweep, and they tell all apart."""
    keys = {k for a in asked for k in a}
    varied = [k for k in sorted(keys, key=_rank) if len({a.get(k) for a in asked}) > 1]
    if not varied or any(k not in a for k in varied for a in asked):
        return None
    labels = [{k: a[k] for k in varied} for a in asked]
    return labels if _kinds(labels) == len(labels) else None


def _by_words(variants: Sequence[Variant], asked: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """Unlike command lines: the typed keys that are not the same for all, and the model if it was typed for some.
    What was typed alike is told apart by the config."""
    varied = [k for k in sorted({k for a in asked for k in a}, key=_rank) if len({a.get(k) for a in asked}) > 1]
    labels = []
    for variant, words in zip(variants, asked, strict=True):
        label = {k: words[k] for k in varied if k in words}
        if "model" in varied:
            label = {"model": format_value(variant.leaves.get("model.family")), **label}
        labels.append(label)
    alike: dict[tuple, list[int]] = {}
    for i, label in enumerate(labels):
        alike.setdefault(tuple(label.items()), []).append(i)
    _shorten(labels)
    for group in alike.values():
        if len(group) > 1:
            for i, more in zip(group, _by_config([variants[i] for i in group]), strict=True):
                labels[i] = labels[i] | more
    return labels


def _shorten(labels: list[dict[str, str]]) -> None:
    """Labels of more than NAMED_KEYS keys lose the last of those that no label needs to be told from the others."""
    kinds = _kinds(labels)
    for i, label in enumerate(labels):
        for key in reversed(list(label)):
            if len(labels[i]) <= NAMED_KEYS or _rank(key)[0] < 2:
                break
            fewer = {k: v for k, v in labels[i].items() if k != key}
            if _kinds([*labels[:i], fewer, *labels[i + 1 :]]) == kinds:
                labels[i] = fewer
        if dropped := len(label) - len(labels[i]):
            labels[i][_more(dropped)] = ""


def _by_config(variants: Sequence[Variant]) -> list[dict[str, str]]:
    """All keys that differ if they are few, else those that tell most variants apart. What is null goes unsaid."""
    table = differing(variants)
    chosen = list(table)
    if len(chosen) > NAMED_KEYS:
        rows: list[tuple] = [()] * len(variants)
        chosen = []
        while len(set(rows)) < len(variants):
            split = {k: [(*row, x) for row, x in zip(rows, table[k], strict=True)] for k in table if k not in chosen}
            best = max(split, key=lambda k: len(set(split[k])), default="")
            if not best or len(set(split[best])) == len(set(rows)):
                break
            chosen, rows = [*chosen, best], split[best]
        chosen = [k for k in table if k in chosen]
    labels = []
    for i in range(len(variants)):
        said = {"model" if k == "model.family" else k: v for k in chosen if (v := table[k][i]) is not None}
        labels.append({k: v for k, v in said.items() if v != "null"} or dict(list(said.items())[:1]))
        if more := len(table) - len(chosen):
            labels[i][_more(more)] = ""
    return labels


def _kinds(labels: Sequence[dict[str, str]]) -> int:
    return len({tuple(label.items()) for label in labels})


def _more(n: int) -> str:
    return f"{n} more key{'s' * (n != 1)}"
