"""Run folders -> a report: plain values, in the order in which they are shown, whatever writes them out."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from llmlab.errors import UserError
from llmlab.registry import near
from llmlab.report import fairness, verdict
from llmlab.report.collect import PROBE, Found, Run, collect
from llmlab.report.measured import common_probes, higher_is_better
from llmlab.report.names import differing
from llmlab.report.rows import Row, Table, compared, unpaired
from llmlab.report.variant import Variant
from llmlab.report.variants import baseline, group, leading
from llmlab.runs.answers import Line as Answer

SCHEMA = 1
METRIC = "val_loss"
ANSWERS = 4  # of a variant: a run keeps twice as many of each validation


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
class Answered:
    """Answers to held-out prompts at the last validation of a run."""

    variant: str
    run: str
    answers: list[Answer]


@dataclass(frozen=True)
class Report:
    """A report as it is shown. tables: one for variants that can be compared; the first has the baseline that was asked for."""

    title: str
    metric: str
    unit: str
    higher_is_better: bool
    tables: list[Table]
    asked: list[dict[str, Any]]  # of each sweep: command, keys, fixed; without a sweep: what all runs were asked
    general: list[str]  # notices that hold for all tables
    keys: dict[str, dict[str, str | None]]  # config keys that differ -> {variant: value}
    notes: list[str]
    runs: list[Line]
    answers: list[Answered] = field(
        default_factory=list
    )  # of one run of each variant, by a model that writes as it learns

    @property
    def baseline(self) -> str | None:
        return self.tables[0].baseline if self.tables else None

    @property
    def rows(self) -> list[Row]:
        return [r for t in self.tables for r in t.rows]

    @property
    def notices(self) -> list[str]:
        return [*self.general, *(n for t in self.tables for n in t.notices)]

    @property
    def counted(self) -> int:
        return sum(r.why is None for r in self.runs)

    def plain(self) -> dict[str, Any]:
        # Without the tables, whose rows stand in `rows`: every curve would be in the file twice.
        fields = {k: v for k, v in asdict(self).items() if k not in ("general", "tables")}
        said = ("baseline", "digits", "drawn")
        first = self.tables[0] if self.tables else None  # a sweep has this one alone
        tables = [
            {**{k: getattr(t, k) for k in said}, "notices": t.notices, "variants": [r.name for r in t.rows]}
            for t in self.tables
        ]
        rows = [{**asdict(r), "n": r.n} for r in self.rows]
        more = {**{k: getattr(first, k, None) for k in said}, "notices": self.notices, "tables": tables, "rows": rows}
        return {"schema": SCHEMA, **fields, **more, "method": method(self)}


def build(
    folders: Sequence[Path], out: Path, *, asked: str | None = None, metric: str | None = None, tune: str | None = None
) -> Report:
    """The report over every run below `folders`, as written into `out`. asked: the baseline's name or keys.

    UserError for a folder that is none or has no runs, and for a metric, key or baseline that there is not.
    """
    found = collect(folders)
    chosen = _metric(found, metric)
    variants = group(found, chosen, tune)
    general = []
    if metric is None and chosen == METRIC and (several := fairness.objectives(variants)):
        runs = [r for v in variants for r in v.counted.values()]
        if probed := common_probes(runs):
            chosen = probed[0]
            variants = group(found, chosen, tune)
            more = f"; report.metric={probed[1]!r} takes another" if len(probed) > 1 else ""
            general.append(f"The objectives differ ({several}), and so do their losses: compared by {chosen}{more}.")
        else:
            general.append(
                f"The objectives differ ({several}), and so do their losses: `llmlab probe run={_below(found)}` scores the "
                "models by one protocol, by which this report then compares them."
            )
    if metric is None and chosen == METRIC and variants and fairness.tokenizers_differ(variants):
        chosen = fairness.BITS
        # Grouped anew, for which runs count and which value of a grid is best depend on the metric.
        variants = group(found, chosen, tune)
        general.append(
            f"The tokenizers differ: compared in {chosen}, as the loss of a token depends on how text is cut."
        )
    if not variants:
        return _without_variants(found, out, chosen)
    kinds = fairness.kinds(variants, chosen)
    base, line = baseline(found, variants, asked, fairness.largest(kinds))
    general += ([line] if line else []) + _missing_baseline(base)
    general += fairness.versions([v for v in variants if v.counted])
    tables = _tables(found, variants, kinds, base, chosen)
    order = {r.name: i for i, r in enumerate(r for t in tables for r in t.rows)}
    ordered = sorted(variants, key=lambda v: order[v.name])
    return Report(
        title=_title(ordered),
        metric=chosen,
        unit=tables[0].unit,
        higher_is_better=higher_is_better(chosen, found.runs),
        tables=tables,
        asked=_asked(found),
        general=general,
        keys={k: dict(zip((v.name for v in ordered), x, strict=True)) for k, x in differing(ordered).items()},
        notes=_notes(tables),
        runs=_lines(found, ordered, chosen, out),
        answers=[a for v in ordered if (a := _answered(v)) is not None],
    )


def _answered(variant: Variant) -> Answered | None:
    """Of the first of its runs that has some: of other seeds there would only be more of the same."""
    runs = [r for _, r in sorted(variant.counted.items()) if r.answers]
    return Answered(variant.name, runs[0].name, runs[0].answers[:ANSWERS]) if runs else None


def _tables(
    found: Found, variants: Sequence[Variant], kinds: Sequence[Sequence[Variant]], base: Variant, metric: str
) -> list[Table]:
    """Variants that can't be compared stand in several; those that nothing can be compared with share the last."""
    if not base.counted:
        return [compared([base, *(v for v in variants if v is not base)], metric)]
    own = next(k for k in kinds if base in k)
    homes = [own, *(k for k in kinds if k is not own)]
    members = [list(k) for k in homes]
    for v in variants:  # one without a complete run stands where it was to be
        if not v.counted:
            fits = (m for m, k in zip(members, homes, strict=True) if fairness.would_be(v, k[0]))
            next(fits, members[0]).append(v)
    tables = [compared([base, *(v for v in variants if v in members[0] and v is not base)], metric)]
    lone: list[Variant] = []
    for home, here in zip(homes[1:], members[1:], strict=True):
        if len(home) == 1:
            lone += here
            continue
        first = leading(found, home)
        why = f"Not comparable with {base.name}, for {fairness.refusal(first, base, metric)}."
        tables.append(compared([first, *(v for v in variants if v in here and v is not first)], metric, [why]))
    return [*tables, unpaired(lone, base, metric)] if lone else tables


def method(report: Report) -> list[str]:
    """Sentences on how to read the numbers."""
    several = any(r.n > 1 for r in report.rows)
    compared = any(r.comparison is not None and r.comparison.n > 1 for r in report.rows)
    said = [verdict.METHOD, verdict.NEEDED] if compared else []
    if any(r.sentence and "fewer tokens." in r.sentence for r in report.rows):
        said.append(verdict.SOONER)
    return [*said, verdict.MEANS] if several else said


def _metric(found: Found, asked: str | None) -> str:
    completed = [r for r in found.runs if r.status == "completed"]
    known = sorted({m for r in completed for m in r.metrics})
    name = asked or METRIC
    if name == PROBE.strip() and (probed := common_probes(completed)):
        if len(probed) > 1:
            raise UserError(
                f"report.metric=probe: all runs have {len(probed)} of them; name one: {', '.join(map(repr, probed))}"
            )
        return probed[0]
    if known and name not in known:
        raise UserError(f"report.metric={name}: no completed run has it; {near(name, known)}")
    return name


def _below(found: Found) -> str:
    """The folder of the sweep, or of all runs."""
    return os.path.relpath(found.sweeps[0].folder if len(found.sweeps) == 1 else found.root)


def _missing_baseline(base: Variant) -> list[str]:
    return (
        [] if base.counted else [f"The baseline, {base.name}, has no complete run: there is nothing to compare with."]
    )


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


def _notes(tables: Sequence[Table]) -> list[str]:
    """Below the tables: seeds that were not paired, and what was tuned."""
    rows = [r for t in tables for r in t.rows]
    unpaired: dict[str, list[str]] = {}
    same = []
    for row, base in [(r, t.baseline) for t in tables for r in t.rows]:
        c = row.comparison
        for seeds, who in ((c.only_here, row.name), (c.only_baseline, base)) if c else ():
            if seeds:
                which = f"{'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}"
                said = f"{which} of {who} alone, left out of the paired difference."
                unpaired.setdefault(said, []).append(row.name)
        if c and c.n > 1 and c.sd == 0 and not c.identical:
            same.append(f"{row.name}: the difference is the same in every seed, so its interval has no width.")
    notes = [*(f"{verdict.joined_names(names)}: {said}" for said, names in unpaired.items()), *same]
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
    # A sweep's folders are named after overrides; = and , may stand in a URL's path unquoted (RFC 3986, section 3.3).
    link = quote(Path(os.path.relpath(run.folder, os.path.abspath(out))).as_posix(), safe="/=,@~+-._")
    return Line(
        name=run.name,
        link=link,
        variant=variant,
        seed=run.seed,
        status=run.status,
        # json.dumps writes NaN and Infinity, which are no JSON: browsers' JSON.parse refuses the whole file.
        value=value if value is not None and math.isfinite(value) else None,
        steps=record.get("steps", 0),
        tokens=record.get("tokens_seen") or 0,
        tokens_per_second=record.get("tokens_per_second"),
        commit=record.get("versions", {}).get("commit"),
        why=why,
        beaten=beaten,
    )


def _without_variants(found: Found, out: Path, metric: str) -> Report:
    """No run has a config that can be read."""
    runs = _lines(found, [], metric, out)
    general = ["No run can be read: there is nothing to compare."]
    return Report("no runs", metric, "", False, [], _asked(found), general, {}, [], runs)
