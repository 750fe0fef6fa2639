"""Run folders -> a report: plain values, in the order in which they are shown, whatever writes them out."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from llmlab.errors import UserError
from llmlab.lab.report import curves, fairness, stats, verdict
from llmlab.lab.report.collect import Found, Run, collect
from llmlab.lab.report.names import differing
from llmlab.lab.report.variants import Tuned, Variant, baseline, group, higher_is_better
from llmlab.registry import near

SCHEMA = 1
METRIC = "val_loss"
UNITS = {"val_loss": "nats a target", "loss": "nats a target", fairness.BITS: "bits a byte"}


@dataclass(frozen=True)
class Row:
    """A variant: a row of the table. verdict: a word, also "baseline", "not comparable", "no complete run"."""

    name: str
    keys: dict[str, str]
    is_baseline: bool
    parameters: int
    active: int
    flops_per_token: float
    flops: float
    tokens: float
    values: dict[int, float]  # seed -> metric
    mean: float | None
    half_width: float | None
    sd: float | None
    comparison: stats.Comparison | None
    verdict: str
    short: str
    sentence: str | None
    tokens_per_second: float | None
    peak_memory_bytes: int | None
    tuned: Tuned | None
    curve: curves.Curve | None
    difference: curves.Curve | None

    @property
    def n(self) -> int:
        return len(self.values)


@dataclass(frozen=True)
class Line:
    """A run: a row of the last table. link: from the report's folder. why: it is not counted; None: it is.

    beaten: it is sound, but of a value of the tuned key that is not its variant's best.
    """

    name: str
    link: str
    variant: str | None
    seed: int | None
    status: str
    value: float | None
    steps: int
    tokens: int
    tokens_per_second: float | None
    commit: str | None
    why: str | None
    beaten: bool


@dataclass(frozen=True)
class Report:
    title: str
    metric: str
    unit: str
    digits: int
    higher_is_better: bool
    baseline: str | None
    asked: list[dict[str, Any]]  # of each sweep: command, keys, fixed; without a sweep: what all runs were asked
    notices: list[str]
    rows: list[Row]
    keys: dict[str, dict[str, str | None]]  # config keys that differ -> {variant: value}
    drawn: str | None  # the column of the curves
    notes: list[str]
    runs: list[Line]

    @property
    def counted(self) -> int:
        return sum(r.why is None for r in self.runs)

    def plain(self) -> dict[str, Any]:
        rows = [{**asdict(r), "n": r.n} for r in self.rows]
        return {"schema": SCHEMA, **{**asdict(self), "rows": rows}, "method": method(self)}


def build(
    folders: Sequence[Path], out: Path, *, asked: str | None = None, metric: str | None = None, tune: str | None = None
) -> Report:
    """The report over every run below `folders`, as written into `out`. asked: the baseline's name or keys.

    UserError for a folder that is none or has no runs, and for a metric, key or baseline that there is not.
    """
    found = collect(folders)
    chosen = _metric(found, metric)
    variants = group(found, chosen, tune)
    notices = []
    if metric is None and chosen == METRIC and variants and fairness.tokenizers_differ(variants):
        chosen = fairness.BITS
        variants = group(found, chosen, tune)
        notices.append(
            f"The tokenizers differ: compared in {chosen}, as the loss of a token depends on how text is cut."
        )
    if not variants:
        return _without_variants(found, out, chosen)
    base, line = baseline(found, variants, asked)
    refused, more = fairness.judge(variants, base, chosen)
    notices += ([line] if line else []) + more + _missing_baseline(base)
    ordered = [base, *(v for v in variants if v is not base)]
    drawn = curves.column([r for v in ordered for r in v.counted.values()], chosen)
    rows, digits = _rows(ordered, refused, chosen, drawn)
    return Report(
        title=_title(ordered),
        metric=chosen,
        unit=UNITS.get(chosen, ""),
        digits=digits,
        higher_is_better=higher_is_better(chosen),
        baseline=base.name,
        asked=_asked(found),
        notices=notices,
        rows=rows,
        keys={k: dict(zip((v.name for v in ordered), x, strict=True)) for k, x in differing(ordered).items()},
        drawn=drawn,
        notes=_notes(ordered, rows),
        runs=_lines(found, ordered, chosen, out),
    )


def method(report: Report) -> list[str]:
    """How to read the numbers: one sentence each."""
    several = any(r.n > 1 for r in report.rows)
    compared = any(r.comparison is not None and r.comparison.n > 1 for r in report.rows)
    said = [verdict.METHOD, verdict.NEEDED] if compared else []
    if any(r.sentence and "fewer tokens." in r.sentence for r in report.rows):
        said.append(verdict.SOONER)
    return [*said, verdict.MEANS] if several else said


def _metric(found: Found, asked: str | None) -> str:
    known = sorted({m for r in found.runs if r.status == "completed" for m in r.record.get("metrics", {})})
    name = asked or METRIC
    if known and name not in known:
        raise UserError(f"report.metric={name}: no completed run has it; {near(name, known)}")
    return name


def _missing_baseline(base: Variant) -> list[str]:
    return (
        [] if base.counted else [f"The baseline, {base.name}, has no complete run: there is nothing to compare with."]
    )


def _rows(
    ordered: Sequence[Variant], refused: Mapping[str, str], metric: str, drawn: str | None
) -> tuple[list[Row], int]:
    """The rows, and with how many decimals differences are shown."""
    base = ordered[0]
    compared = {v.name: v.values(metric) for v in ordered[1:] if v.counted and v.name not in refused and base.counted}
    comparisons = stats.compare(compared, base.values(metric))
    digits = 4 if all(abs(c.mean or 1.0) >= 0.001 for c in comparisons.values()) else 5
    higher = higher_is_better(metric)
    base_values = list(base.values(metric).values())
    base_curve = curves.of(base.counted, drawn) if drawn else None
    rows = []
    for v in ordered:
        record, values, c = v.a_record(), v.values(metric), comparisons.get(v.name)
        runs = list(v.counted.values())
        said: str | None = None
        if not v.counted:
            what = "no complete run"
        elif v is base:
            what = "baseline"
        elif v.name in refused:
            what, said = "not comparable", f"{v.name} is not comparable with {base.name}: {refused[v.name]}."
        elif not base.counted:
            what = "nothing to compare with"
        else:
            what = verdict.word(c, higher)
            said = verdict.sentence(v.name, base.name, c, what, stats.mean(base_values), digits)
            curve = curves.of(v.counted, drawn) if drawn == metric else None
            if not higher and what in ("better", "worse") and curve and base_curve and _same_tokens(curve, base_curve):
                said += _sooner(what, curve, base_curve)
        speeds = [s for r in runs if (s := r.record.get("tokens_per_second"))]
        tokens = stats.mean([r.record.get("tokens_seen", 0) for r in runs]) if runs else 0
        flops = record.get("flops_per_token") or 0.0
        rows.append(
            Row(
                name=v.name,
                keys=v.keys,
                is_baseline=v is base,
                parameters=record.get("parameters", {}).get("total", 0),
                active=record.get("parameters", {}).get("active", 0),
                flops_per_token=flops,
                flops=flops * tokens,
                tokens=tokens,
                values=values,
                mean=stats.mean(list(values.values())) if values else None,
                half_width=stats.half_width(list(values.values())) if values else None,
                sd=stats.sd(list(values.values())) if values else None,
                comparison=c,
                verdict=what,
                short=verdict.short(c, what),
                sentence=said,
                tokens_per_second=stats.mean(speeds) if speeds else None,
                peak_memory_bytes=max((r.record.get("peak_memory_bytes", 0) for r in runs), default=0) or None,
                tuned=v.tuned,
                curve=curves.of(v.counted, drawn) if drawn else None,
                difference=curves.difference(v.counted, base.counted, drawn) if drawn and c is not None else None,
            )
        )
    return rows, digits


def _same_tokens(a: curves.Curve, b: curves.Curve) -> bool:
    return abs(a.tokens[-1] / b.tokens[-1] - 1) < 0.01


def _sooner(what: str, own: curves.Curve, base: curves.Curve) -> str:
    """The effect in tokens, read off the curves. In mid-run the learning rate is still high, so it is a lower bound."""
    first, second = (own, base) if what == "better" else (base, own)
    reached = first.reaches(second.mean[-1])
    if reached is None or not (share := 1 - reached / second.tokens[-1]) > 0.02:
        return ""
    who = "It" if what == "better" else "The baseline"
    whose = "the baseline's" if what == "better" else "its"
    return f" {who} was at {whose} final loss with {100 * share:.0f} % fewer tokens."


def _title(ordered: Sequence[Variant]) -> str:
    values: dict[str, dict[str, None]] = {}
    for v in ordered:
        for key, value in v.keys.items():
            values.setdefault(key, {})[value] = None
    text = "  ".join(f"{k}={','.join(x)}" for k, x in values.items() if x != {"": None})
    return text if text and len(text) <= 100 else verdict.count(len(ordered), "variant")


def _asked(found: Found) -> list[dict[str, Any]]:
    """Commands: of the sweeps, and what the runs of none have in common."""
    said: list[dict[str, Any]] = [
        {"name": s.name, "command": s.command, "keys": {k: list(v) for k, v in s.keys.items()}, "fixed": list(s.fixed)}
        for s in sorted(found.sweeps, key=lambda s: s.folder)
    ]
    lone = [r for r in found.runs if not any(s.folder in r.folder.parents for s in found.sweeps)]
    if lone:
        each = [[o for o in r.record.get("overrides", ()) if not o.startswith("hydra.")] for r in lone]
        common = [o for o in each[0] if all(o in e for e in each)]
        said.append({"name": None, "command": "", "keys": {}, "fixed": common, "runs": len(lone)})
    return said


def _notes(ordered: Sequence[Variant], rows: Sequence[Row]) -> list[str]:
    """Below the table: seeds that were not paired, and what was tuned."""
    notes = []
    for row in rows:
        c = row.comparison
        for seeds, who in ((c.only_here, row.name), (c.only_baseline, ordered[0].name)) if c else ():
            if seeds:
                which = f"{'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}"
                notes.append(f"{row.name}: {which} of {who} alone, left out of the paired difference.")
        if c and c.n > 1 and c.sd == 0 and not c.identical:
            notes.append(f"{row.name}: the difference is the same in every seed, so its interval has no width.")
    for row in rows:
        t = row.tuned
        if t is None:
            continue
        if t.edge == "only":
            notes.append(f"{row.name}: {t.key}={t.value} is the only value tried: it was not tuned as the others were.")
        elif t.edge:
            notes.append(
                f"{row.name}: its best {t.key}={t.value} is the {t.edge} of its grid, so a better one may lie beyond: widen it."
            )
        if t.seeds_differ:
            notes.append(f"{row.name}: values of {t.key} that ended with fewer seeds than others were no candidates.")
    if key := next((row.tuned.key for row in rows if row.tuned), None):
        notes.append(
            f"Each variant has the best {key} of its own grid, by the mean over seeds. Choosing the best with the same "
            "seeds that it is judged by is optimistic; for a claim, run the chosen values again with new seeds."
        )
    return notes


def _lines(found: Found, variants: Sequence[Variant], metric: str, out: Path) -> list[Line]:
    home = {run.name: v for v in variants for run in v.runs}
    lines = []
    for run in sorted([*found.runs, *found.missing], key=lambda r: r.name):
        v = home.get(run.name) or _of_its_keys(variants, run)
        why: str | None
        if run.name not in home:
            why = f"{run.status}: {run.reason}"
        else:
            why = home[run.name].left_out.get(run.name)
        beaten = run.name in home and run.name in home[run.name].beaten
        lines.append(_line(run, v.name if v else None, why, beaten, metric, out))
    return lines


def _of_its_keys(variants: Sequence[Variant], run: Run) -> Variant | None:
    """The variant that a run without a config was to be of."""
    fits = [v for v in variants if v.keys and all(run.asked.get(k) == x for k, x in v.keys.items())]
    return fits[0] if len(fits) == 1 else None


def _line(run: Run, variant: str | None, why: str | None, beaten: bool, metric: str, out: Path) -> Line:
    record, value = run.record, run.metric(metric)
    link = quote(Path(os.path.relpath(run.folder, os.path.abspath(out))).as_posix(), safe="/=,@~+-._")
    return Line(
        name=run.name,
        link=link,
        variant=variant,
        seed=run.seed,
        status=run.status,
        value=value if value is not None and math.isfinite(value) else None,
        steps=record.get("steps", 0),
        tokens=record.get("tokens_seen", 0),
        tokens_per_second=record.get("tokens_per_second"),
        commit=record.get("versions", {}).get("commit"),
        why=why,
        beaten=beaten,
    )


def _without_variants(found: Found, out: Path, metric: str) -> Report:
    """No run has a config that can be read."""
    runs = _lines(found, [], metric, out)
    notices = ["No run can be read: there is nothing to compare."]
    return Report("no runs", metric, "", 4, False, None, _asked(found), notices, [], {}, None, [], runs)
