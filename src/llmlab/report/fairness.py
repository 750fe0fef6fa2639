"""Reasons that make runs hard to compare: other text, tokens, compute or machines. Refusals, and lines for above the table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llmlab.record_kinds import KINDS
from llmlab.report.measured import BITS, LOSSES, of_probe
from llmlab.report.names import format_value
from llmlab.report.variant import Variant
from llmlab.report.verdict import joined_names, listed, percent

SHARE = 0.01  # differences in compute beyond this are said
MOST_NAMED = 4  # variants with long names


def traits(variant: Variant) -> dict[str, Any]:
    """Traits that must agree for losses to be comparable, and what they cost; of the variant's first counted run."""
    record, leaves = variant.a_record(), variant.leaves
    batches = leaves.get("train.validation_batches")
    # train.validation_batches counts batches, so micro-batch and devices decide how much text that is.
    part = batches and (batches, record.get("batch", {}).get("micro"), record.get("devices"))
    held_out = (leaves.get("data.validation"), leaves.get("data.split"), part)
    hardware = record.get("hardware", {})
    kind = KINDS.get(record.get("data", {}).get("reads", ""))
    return {
        "text": record.get("data", {}).get("fingerprint"),
        "held_out": held_out,
        "tokenizer": next(iter(variant.counted.values()), variant.runs[0]).tokenizer,
        "per_token": kind is None or not kind.whole,
        "objective": leaves.get("objective"),
        "reward": {k: format_value(v) for k, v in leaves.items() if k == "reward" or k.startswith("reward.")},
        "objective_options": {k: v for k, v in leaves.items() if k.startswith("objective.")},
        "seq_len": record.get("batch", {}).get("seq_len"),
        "batch_size": leaves.get("train.batch_size"),
        "batch_typed": any(w.partition("=")[0] == "train.batch_size" for w in record.get("overrides", ())),
        "tokens": record.get("tokens_seen") or 0,
        "active": record.get("parameters", {}).get("active") or 0,
        "flops": record.get("flops_per_token") or 0.0,
        "machine": (hardware.get("cpu"), tuple(hardware.get("devices", ())), hardware.get("threads")),
    }


def tokenizers_differ(variants: Sequence[Variant]) -> bool:
    """True if the same text was cut in several ways, all of which bits per byte can compare."""
    counted = [v for v in variants if v.counted]
    seen = [traits(v) for v in counted]
    same_text = len({t["text"] for t in seen}) == 1
    several = len({t["tokenizer"] for t in seen}) > 1
    return same_text and several and all(len(v.values(BITS)) == len(v.counted) for v in counted)


def objectives(variants: Sequence[Variant]) -> str:
    """The objectives of variants with complete runs, where they have several."""
    found = list(dict.fromkeys(str(v.leaves.get("objective")) for v in variants if v.counted))
    return ", ".join(found) if len(found) > 1 else ""


def kinds(variants: Sequence[Variant], metric: str) -> list[list[Variant]]:
    """Groups of the variants with complete runs that can be compared with each other; in the order of `variants`."""
    found: list[list[Variant]] = []
    for variant in variants:
        if variant.counted:
            home = next((k for k in found if refusal(variant, k[0], metric) is None), None)
            if home is None:
                found.append([variant])
            else:
                home.append(variant)
    return found


def largest(kinds: Sequence[Sequence[Variant]]) -> Sequence[Variant]:
    """The kind with the most variants, of several the one with the oldest run; none where there is none."""
    return min(kinds, key=lambda k: (-len(k), min(v.born for v in k)), default=[])


def would_be(variant: Variant, other: Variant) -> bool:
    """True if a variant without a complete run was to be of the group of `other`, as far as its config tells."""
    keys = ("data.fingerprint", "data.validation", "data.split", "objective")
    return all(variant.leaves.get(k) == other.leaves.get(k) for k in keys)


def refusal(variant: Variant, to: Variant, metric: str) -> str | None:
    """Why the two can't be compared; None: they can."""
    if of_probe(metric):  # the protocol's texts are the same for all
        return None
    own, base = traits(variant), traits(to)
    if own["text"] != base["text"]:
        return "the text is another one"
    if own["held_out"] != base["held_out"]:
        return "the validation set is another one"
    if own["objective"] != base["objective"] and metric != BITS:
        return f"objective={own['objective']} has another loss than {base['objective']}"
    if own["reward"] != base["reward"]:
        return f"{_reward(own)} gives other rewards than {_reward(base)}"
    cut_otherwise = own["tokenizer"] != base["tokenizer"] and own["per_token"]
    if cut_otherwise and metric != BITS and metric.startswith(("val_", "loss")):
        return f"the tokenizer is another one ({metric} is per token; report.metric={BITS} is not)"
    return None


def _reward(own: Mapping[str, Any]) -> str:
    return " ".join(f"{k}={v}" for k, v in own["reward"].items()) or "no reward"


def warnings(variants: Sequence[Variant], to: Variant, metric: str = LOSSES[0]) -> list[str]:
    """Lines to be read before the table of variants that are compared with `to`."""
    base, others = traits(to), [(v, traits(v)) for v in variants]
    of_losses = [] if of_probe(metric) else _of_losses(others, base, to)
    texts = [v.name for v, t in others if t["text"] != base["text"]] if of_probe(metric) else []
    other = [f"Trained on another text than {_short(to)}: {listed(texts)}."] if texts else []
    return [*of_losses, *other, *_machines(others, base), *_compute(others, base, to)]


def _of_losses(others: Sequence[tuple[Variant, Mapping[str, Any]]], base: Mapping[str, Any], to: Variant) -> list[str]:
    lines = []
    if changed := [f"{v.name} has {t['seq_len']}" for v, t in others if t["seq_len"] != base["seq_len"]]:
        lines.append(
            f"data.seq_len differs: {_short(to)} has {base['seq_len']}, {', '.join(changed)}. More context makes text "
            "easier to predict, so part of a difference in loss is the length, not the variant."
        )
    unlike = [(v, t) for v, t in others if t["batch_size"] != base["batch_size"] and not t["batch_typed"]]
    if unlike and not base["batch_typed"]:
        has = ", ".join(f"{v.name} has {t['batch_size']}" for v, t in unlike)
        lines.append(
            f"train.batch_size differs and was not typed: {_short(to)} has {base['batch_size']}, {has}. A batch that is not "
            "typed is no larger than the data, and equal tokens are another number of steps; type one that all of them fill."
        )
    if changed := [v.name for v, t in others if t["objective_options"] != base["objective_options"]]:
        lines.append(
            f"The objective's options differ in {', '.join(changed)}: the loss may not measure the same thing."
        )
    return lines


def _machines(others: Sequence[tuple[Variant, Mapping[str, Any]]], base: Mapping[str, Any]) -> list[str]:
    machines = {t["machine"] for _, t in others} | {base["machine"]}
    if len(machines) == 1:
        return []
    return ["The runs were made on different machines or thread counts: do not compare tokens/s and memory."]


def _compute(others: Sequence[tuple[Variant, Mapping[str, Any]]], base: Mapping[str, Any], to: Variant) -> list[str]:
    """Which variants cost more or less than the baseline, by how much."""
    unequal, seen, equal_compute = dict[str, list[float]](), dict[str, list[str]](), True
    for variant, own in others:
        changes = [_change(own[key], base[key]) for key in ("active", "flops")]
        if any(abs(c) > SHARE for c in changes):
            unequal[variant.name] = changes
        if text := _more(own["tokens"], base["tokens"], "tokens"):
            seen.setdefault(text, []).append(variant.name)
        total, base_total = own["tokens"] * own["flops"], base["tokens"] * base["flops"]
        equal_compute &= abs(total - base_total) <= SHARE * base_total
    tokens = [f"{joined_names(names)} saw {text}" for text, names in seen.items()]
    base_name = _short(to)
    lines = []
    if tokens and equal_compute:
        lines.append(f"Equal compute is not equal tokens: against {base_name}, {'; '.join(tokens)}.")
    elif tokens:
        lines.append(
            f"The budgets differ: against {base_name}, {'; '.join(tokens)}. More tokens lower the loss by themselves."
        )
    if unequal:
        head = "The total FLOPs agree, but" if tokens and equal_compute else "Equal tokens is not equal compute:"
        lines.append(f"{head} against {base_name}, in active parameters and FLOPs per token, {_changes(unequal)}.")
    return lines


def _short(baseline: Variant) -> str:
    """Its name, unless commas would make it look like several."""
    return "the baseline" if ", " in baseline.name else baseline.name


def _changes(unequal: Mapping[str, Sequence[float]]) -> str:
    """A value of each variant; of many with long names their range, as the table has each."""
    if len(unequal) <= MOST_NAMED or joined_names(list(unequal)) == listed(list(unequal)):
        return "; ".join(f"{name} {' and '.join(map(percent, changes))}" for name, changes in unequal.items())
    ranges = (f"{percent(min(c))} to {percent(max(c))}" for c in zip(*unequal.values(), strict=True))
    return f"{len(unequal)} variants {' and '.join(ranges)}"


def _more(own: float, base: float, what: str) -> str | None:
    change = _change(own, base)
    if abs(change) <= SHARE:
        return None
    return f"{100 * abs(change):.1f} % {'more' if change > 0 else 'fewer'} {what}"


def _change(own: float, base: float) -> float:
    return own / base - 1 if base else 0.0


def versions(variants: Sequence[Variant]) -> list[str]:
    """Lines for all of them: of other commits, and of budgets cut short."""
    lines = []
    records = [r.record for v in variants for r in v.counted.values()]
    # Runs outside of a git checkout have none.
    commits = {r.get("versions", {}).get("commit") for r in records} - {None}
    if len(commits) > 1:
        lines.append(f"The runs come from {len(commits)} commits of the code (see the table of runs).")
    if any(r.get("steps", 0) < r.get("budget", {}).get("steps", 0) for r in records):
        lines.append(
            "Some runs were cut short of their budget by trainer.max_steps: "
            "their schedule had not come to its end, and losses are higher than the budget's would be."
        )
    return lines
