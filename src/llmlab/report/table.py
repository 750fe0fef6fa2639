"""Tables of variants as text, one for the terminal, Markdown and HTML."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from llmlab.formatting import large, power_of_ten
from llmlab.report import stats
from llmlab.report import verdict as say
from llmlab.report.build import Report
from llmlab.report.collect import PROBE
from llmlab.report.measured import metric_title
from llmlab.report.names import NAMED_KEYS
from llmlab.report.rows import Row, Table

MOST_SENTENCES = 4  # of variants that are not distinguishable, or have one seed; more are one sentence


class Column(NamedTuple):
    name: str
    numeric: bool
    cells: list[str]


def columns(table: Table) -> list[Column]:
    """Only what the table has: no column of differences where nothing is compared, none of a tuned key where none is.
    The verdict comes second, where no narrow page cuts it off."""
    rows = table.rows
    named = metric_title(table.metric)
    found = [
        Column("variant", False, [r.name + (" (baseline)" if r.is_baseline and len(rows) > 1 else "") for r in rows]),
        Column("verdict", False, [r.short if not r.is_baseline or not r.n else "" for r in rows]),
    ]
    if any(r.tuned for r in rows):
        key = next(r.tuned.key for r in rows if r.tuned)
        found.append(Column(key, True, [_tuned(r) for r in rows]))
    found.append(Column(named, True, [mean(table, r) for r in rows]))
    if any(r.comparison is not None for r in rows):
        found.append(Column("difference", True, [difference(table, r) for r in rows]))
    if any(r.comparison is not None and r.comparison.adjusted is not None for r in rows):
        found.append(Column("p (Holm)", True, [say.p(r.comparison.adjusted) if r.comparison else "" for r in rows]))
    for name in sorted({name for r in rows for name in r.probes}):
        if f"{PROBE}{name}" != table.metric:
            found.append(Column(f"{PROBE}{name}", True, [_probe(r.probes.get(name, [])) for r in rows]))
    return [
        *found,
        Column("seeds", True, [str(r.n) for r in rows]),
        Column("parameters", True, [_parameters(r) for r in rows]),
        Column("FLOPs", True, [power_of_ten(r.flops) if r.n else "" for r in rows]),
        Column("tokens", True, [large(r.tokens) if r.n else "" for r in rows]),
        Column("tokens/s", True, [f"{r.tokens_per_second:,.0f}" if r.tokens_per_second else "" for r in rows]),
        Column("memory", True, [say.memory(r.peak_memory_bytes) if r.peak_memory_bytes else "" for r in rows]),
    ]


def _tuned(row: Row) -> str:
    if row.tuned is None:
        return ""
    mark = {"lowest": " (lowest)", "highest": " (highest)", "only": " (untuned)"}
    return row.tuned.value + mark.get(row.tuned.edge or "", "")


def _probe(accuracies: Sequence[float]) -> str:
    """Accuracy in %, with the interval over seeds of training."""
    if not accuracies:
        return ""
    half = stats.half_width(accuracies)
    return f"{100 * stats.mean(accuracies):.1f}" + ("" if half is None else f" \N{PLUS-MINUS SIGN} {100 * half:.1f}")


def _parameters(row: Row) -> str:
    return large(row.parameters) + (f" ({large(row.active)} active)" if row.active != row.parameters else "")


def mean(table: Table, row: Row) -> str:
    if row.mean is None:
        return ""
    half = (
        f" \N{PLUS-MINUS SIGN} {say.format_number(row.half_width, table.digits)}" if row.half_width is not None else ""
    )
    return say.format_number(row.mean, table.digits) + half


def difference(table: Table, row: Row) -> str:
    c = row.comparison
    if c is None or c.mean is None:
        return ""
    return f"{say.signed(c.mean, table.digits)} {say.interval(c, table.digits)}".rstrip()


def grid(report: Report) -> tuple[list[str], list[list[str]]] | None:
    """(head, rows) of the tuned key: a row a variant, a column a value, the mean over seeds; the best is starred."""
    tuned = [(r.name, r.tuned, t.digits) for t in report.tables for r in t.rows if r.tuned]
    if not tuned:
        return None
    values: dict[str, float] = {}
    for _, t, _ in tuned:
        for value, _, _ in t.grid:
            try:
                values[value] = float(value)
            except ValueError:
                values[value] = float("inf")
    order = sorted(values, key=lambda v: (values[v], v))
    body = []
    for name, t, digits in tuned:
        cells = {v: "no run ended" if m is None else say.format_number(m, digits) + f" ({n})" for v, m, n in t.grid}
        body.append([name, *(cells.get(v, "") + (" *" if v == t.value else "") for v in order)])
    return [tuned[0][1].key, *order], body


def answers(report: Report) -> tuple[list[str], list[list[str]]] | None:
    """(head, rows) of what models answered at their last validation."""
    body = []
    for of in report.answers:
        for a in of.answers:
            length = f"{a['tokens']}{'' if a['ended'] else ' (cut)'}"
            body.append([of.variant, a["prompt"], a["answer"], f"{a['reward']:.4g}", length])
    return (["variant", "prompt", "answer", "reward", "tokens"], body) if body else None


def lines(report: Report) -> tuple[list[str], list[list[str]], list[str]]:
    """(head, rows, links of the rows) of the table of all runs."""
    body = []
    for r in report.runs:
        value = "" if r.value is None else f"{r.value:.6f}"
        commit = "" if not r.commit else r.commit[:10] + ("+" if r.commit.endswith("+") else "")
        counted = "yes" if r.why is None else f"no: {r.why}"
        seed = "" if r.seed is None else str(r.seed)
        body.append([r.name, r.variant or "", seed, value, f"{r.steps:,}", f"{r.tokens:,}", commit, counted])
    return (
        ["run", "variant", "seed", report.metric, "steps", "tokens", "commit", "counted"],
        body,
        [r.link for r in report.runs],
    )


def headline(report: Report) -> str:
    """A line that says how much was run, of which how much counts, against what."""
    runs = f"{say.count(report.counted, 'run')} of {len(report.rows)} variant{'s' * (len(report.rows) != 1)}"
    beaten = sum(r.beaten for r in report.runs)
    left = len(report.runs) - report.counted - beaten
    unit = f" ({report.unit}; {'higher' if report.higher_is_better else 'lower'} is better)" if report.unit else ""
    one = len(report.tables) == 1
    against = f", each against {report.baseline}" if report.baseline and len(report.rows) > 1 and one else ""
    text = f"{runs}{against}, on {report.metric}{unit}."
    if not one and report.tables:
        text += f" Not all can be compared with each other: they stand in {len(report.tables)} tables."
    if beaten:
        text += f" {say.count(beaten, 'run')} more with values of the grid that were not the best."
    return text + (f" {say.count(left, 'run')} not counted: see the table of runs." if left else "")


def notices(report: Report, part: Table | None = None) -> list[str]:
    """Lines to be read before the table `part`; without it: those before all tables, where there are several."""
    one = len(report.tables) == 1
    if part is None:
        return [] if one else report.general
    return [*report.general, *part.notices] if one else part.notices


def sentences(table: Table) -> list[tuple[str, str]]:
    """(word, sentence) of each variant with a verdict, the ones that differ first; many without one share a sentence."""
    order = ["better", "worse", "not distinguishable", "identical", "one seed", "no common seed"]
    said = []
    for word in order:
        rows = [r for r in table.rows if r.verdict == word]
        if word in SHARED and len(rows) > MOST_SENTENCES:
            said.append((word, SHARED[word](table, rows)))
        else:
            said += [(word, r.sentence) for r in rows if r.sentence]
    return said


def _undecided(table: Table, rows: Sequence[Row]) -> str:
    each = []
    for r in rows:
        if r.comparison:
            span = say.needed_range(r.comparison)
            each.append(f"{r.name} ({say.needed(r.comparison)}{', ' + span if span else ''})")
    seeds = sorted({r.comparison.n for r in rows if r.comparison})
    with_ = f"{'-'.join(map(str, seeds[:: max(1, len(seeds) - 1)]))} seeds"
    head = f"{len(rows)} variants are not distinguishable from {table.baseline} with {with_}; in brackets, how many"
    return f"{head} would be needed: {say.listed(each)}."


def _one_seed(table: Table, rows: Sequence[Row]) -> str:
    gaps = [r.comparison.mean for r in rows if r.comparison and r.comparison.mean is not None]
    least, most = (say.signed(x, table.digits) for x in (min(gaps), max(gaps)))
    return (
        f"{len(rows)} variants differ from {table.baseline} by {least} to {most}, each in one seed: "
        "that gives no interval and no verdict. Run more seeds, e.g. seed=1,2,3."
    )


SHARED = {"not distinguishable": _undecided, "one seed": _one_seed}


def folded(report: Report) -> bool:
    """True if the keys that differ are too many to be looked at unasked."""
    return len(report.keys) > NAMED_KEYS


def commands(report: Report) -> list[str]:
    """The commands that were typed, a line a sweep."""
    said = []
    for a in report.asked:
        if a["command"]:
            said.append(a["command"])
        elif a["fixed"]:
            said.append(
                f"{say.count(a['runs'], 'run')} with {' '.join(a['fixed'])}" if "runs" in a else " ".join(a["fixed"])
            )
    return said
