"""Variants -> a table: their rows, each compared with the baseline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llmlab.report import curves, fairness, stats, verdict
from llmlab.report.collect import Run
from llmlab.report.measured import higher_is_better, unit
from llmlab.report.variant import Tuned, Variant


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
    probes: dict[str, list[float]]  # protocol of `llmlab probe` -> an accuracy a seed

    @property
    def n(self) -> int:
        return len(self.values)


@dataclass(frozen=True)
class Table:
    """Variants that can be compared with each other, the baseline first; without a baseline, those that stand alone.

    digits: decimals of differences. drawn: the column of the curves. notices: to be read before the table.
    """

    metric: str
    unit: str
    digits: int
    higher_is_better: bool
    baseline: str | None
    notices: list[str]
    rows: list[Row]
    drawn: str | None

    @property
    def title(self) -> str:
        one = sum(r.n > 0 for r in self.rows) == 1
        return f"Against {self.baseline}" if self.baseline else f"On {'its' if one else 'their'} own"


def compared(ordered: Sequence[Variant], metric: str, notices: Sequence[str] = ()) -> Table:
    """Each variant against the first, which is the baseline. notices: those before what fairness has to say."""
    runs = [r for v in ordered for r in v.runs]
    base, higher = ordered[0], higher_is_better(metric, runs)
    drawn = curves.column([r for v in ordered for r in v.counted.values()], metric)
    both = {v.name: v.values(metric) for v in ordered[1:] if v.counted and base.counted}
    comparisons = stats.compare(both, base.values(metric))
    # With four decimals a difference of 0.0004 would have a single digit.
    digits = 4 if all(abs(c.mean or 1.0) >= 0.001 for c in comparisons.values()) else 5
    base_mean = stats.mean(list(base.values(metric).values())) if base.counted else 0.0
    base_curve = curves.mean_curve(base.counted, drawn) if drawn else None
    rows = []
    for v in ordered:
        c, said = comparisons.get(v.name), None
        curve = curves.mean_curve(v.counted, drawn) if drawn else None
        if not v.counted:
            what = "no complete run"
        elif v is base:
            what = "baseline"
        elif not base.counted:
            what = "nothing to compare with"
        else:
            what = verdict.word(c, higher)
            said = verdict.sentence(v.name, base.name, c, what, base_mean, digits)
            if drawn == metric and not higher and what in ("better", "worse") and curve and base_curve:
                said += _sooner(what, curve, base_curve)
        gap = curves.difference(v.counted, base.counted, drawn) if drawn and c is not None else None
        rows.append(_row(v, metric, what, said, v is base, c, curve, gap))
    found = [*notices, *fairness.warnings([v for v in ordered[1:] if v.counted], base, metric)]
    return Table(metric, unit(metric, runs), digits, higher, base.name, found, rows, drawn)


def unpaired(variants: Sequence[Variant], base: Variant, metric: str) -> Table:
    """Variants that can be compared with no other: no differences, no curves side by side. Lines say why not."""
    rows, reasons = [], dict[str, list[str]]()
    for v in variants:
        what, said = "no complete run", None
        if v.counted:
            why = fairness.refusal(v, base, metric) or ""
            reasons.setdefault(why, []).append(v.name)
            what, said = "not comparable", f"{v.name} is not comparable with {base.name}: {why}."
        rows.append(_row(v, metric, what, said))
    lines = [f"Not comparable with {base.name}, for {why}: {verdict.listed(names)}." for why, names in reasons.items()]
    runs = [r for v in variants for r in v.runs]
    return Table(metric, unit(metric, runs), 4, higher_is_better(metric, runs), None, lines, rows, None)


def _row(
    v: Variant,
    metric: str,
    what: str,
    sentence: str | None,
    is_baseline: bool = False,
    comparison: stats.Comparison | None = None,
    curve: curves.Curve | None = None,
    difference: curves.Curve | None = None,
) -> Row:
    record, values, runs = v.a_record(), v.values(metric), list(v.counted.values())
    numbers = list(values.values())
    speeds = [s for r in runs if (s := r.record.get("tokens_per_second"))]
    tokens = stats.mean([(r.record.get("tokens_seen") or 0) for r in runs]) if runs else 0
    flops = record.get("flops_per_token") or 0.0
    return Row(
        name=v.name,
        keys=v.keys,
        is_baseline=is_baseline,
        parameters=record.get("parameters", {}).get("total") or 0,
        active=record.get("parameters", {}).get("active") or 0,
        flops_per_token=flops,
        flops=flops * tokens,
        tokens=tokens,
        values=values,
        mean=stats.mean(numbers) if numbers else None,
        half_width=stats.half_width(numbers),
        sd=stats.sd(numbers),
        comparison=comparison,
        verdict=what,
        short=verdict.short(comparison, what),
        sentence=sentence,
        tokens_per_second=stats.mean(speeds) if speeds else None,
        # Speed is a mean over seeds, memory the largest: each run has to fit.
        peak_memory_bytes=max((r.record.get("peak_memory_bytes", 0) for r in runs), default=0) or None,
        tuned=v.tuned,
        curve=curve,
        difference=difference,
        probes=_probes(runs),
    )


def _probes(runs: Sequence[Run]) -> dict[str, list[float]]:
    """Accuracies of the runs that were probed, by protocol."""
    names = sorted({name for r in runs for name in r.probes})
    return {name: [r.probes[name] for r in runs if name in r.probes] for name in names}


def _sooner(what: str, own: curves.Curve, base: curves.Curve) -> str:
    """The effect in tokens, read off the curves. In mid-run the learning rate is still high, so it is a lower bound."""
    # Curves of other lengths are at other points of their schedules.
    if abs(own.tokens[-1] / base.tokens[-1] - 1) >= 0.01:
        return ""
    first, second = (own, base) if what == "better" else (base, own)
    reached = first.reaches(second.mean[-1])
    if reached is None or not (share := 1 - reached / second.tokens[-1]) > 0.02:
        return ""
    who = "It" if what == "better" else "The baseline"
    whose = "the baseline's" if what == "better" else "its"
    return f" {who} was at {whose} final loss with {100 * share:.0f} % fewer tokens."
