"""The table of variants as text, one for the terminal, Markdown and HTML."""

from __future__ import annotations

from typing import NamedTuple

from llmlab.lab.report import verdict as say
from llmlab.lab.report.build import Report, Row

MOST_SENTENCES = 4  # of variants that are not distinguishable; more are one sentence


class Column(NamedTuple):
    name: str
    numeric: bool
    cells: list[str]


def columns(report: Report) -> list[Column]:
    """Only what the report has: no column of differences where nothing is compared, none of a tuned key where none is."""
    rows = report.rows
    named = {"val_loss": "validation loss", "val_bits_per_byte": "bits per byte"}.get(report.metric, report.metric)
    found = [
        Column("variant", False, [r.name + (" (baseline)" if r.is_baseline and len(rows) > 1 else "") for r in rows])
    ]
    if any(r.tuned for r in rows):
        key = next(r.tuned.key for r in rows if r.tuned)
        found.append(Column(key, True, [_tuned(r) for r in rows]))
    found += [
        Column("parameters", True, [_parameters(r) for r in rows]),
        Column("FLOPs", True, [say.power_of_ten(r.flops) if r.n else "" for r in rows]),
        Column("tokens", True, [say.large(r.tokens) if r.n else "" for r in rows]),
        Column(named, True, [mean(report, r) for r in rows]),
    ]
    if any(r.comparison is not None for r in rows):
        found.append(Column("difference", True, [difference(report, r) for r in rows]))
    if any(r.comparison is not None and r.comparison.adjusted is not None for r in rows):
        found.append(Column("p (Holm)", True, [say.p(r.comparison.adjusted) if r.comparison else "" for r in rows]))
    found += [
        Column("tokens/s", True, [f"{r.tokens_per_second:,.0f}" if r.tokens_per_second else "" for r in rows]),
        Column("memory", True, [say.memory(r.peak_memory_bytes) if r.peak_memory_bytes else "" for r in rows]),
        Column("seeds", True, [str(r.n) for r in rows]),
        Column("verdict", False, [r.short if not r.is_baseline or not r.n else "" for r in rows]),
    ]
    return found


def _tuned(row: Row) -> str:
    if row.tuned is None:
        return ""
    mark = {"lowest": " (lowest)", "highest": " (highest)", "only": " (untuned)"}
    return row.tuned.value + mark.get(row.tuned.edge or "", "")


def _parameters(row: Row) -> str:
    return say.large(row.parameters) + (f" ({say.large(row.active)} active)" if row.active != row.parameters else "")


def mean(report: Report, row: Row) -> str:
    if row.mean is None:
        return ""
    half = f" \N{PLUS-MINUS SIGN} {say.plain(row.half_width, report.digits)}" if row.half_width is not None else ""
    return say.plain(row.mean, report.digits) + half


def difference(report: Report, row: Row) -> str:
    c = row.comparison
    if c is None or c.mean is None:
        return ""
    return f"{say.signed(c.mean, report.digits)} {say.interval(c, report.digits)}".rstrip()


def grid(report: Report) -> tuple[list[str], list[list[str]]] | None:
    """(head, rows) of the tuned key: a row a variant, a column a value, the mean over seeds; the best is starred."""
    tuned = [(r.name, r.tuned) for r in report.rows if r.tuned]
    if not tuned:
        return None
    values: dict[str, float] = {}
    for _, t in tuned:
        for value, _, _ in t.grid:
            try:
                values[value] = float(value)
            except ValueError:
                values[value] = float("inf")
    order = sorted(values, key=lambda v: (values[v], v))
    body = []
    for name, t in tuned:
        cells = {v: "no run ended" if m is None else say.plain(m, report.digits) + f" ({n})" for v, m, n in t.grid}
        body.append([name, *(cells.get(v, "") + (" *" if v == t.value else "") for v in order)])
    return [tuned[0][1].key, *order], body


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
    """How much was run, of which how much counts, against what."""
    runs = f"{say.count(report.counted, 'run')} of {len(report.rows)} variant{'s' * (len(report.rows) != 1)}"
    beaten = sum(r.beaten for r in report.runs)
    left = len(report.runs) - report.counted - beaten
    unit = f" ({report.unit}; {'higher' if report.higher_is_better else 'lower'} is better)" if report.unit else ""
    against = f", each against {report.baseline}" if report.baseline and len(report.rows) > 1 else ""
    text = f"{runs}{against}, on {report.metric}{unit}."
    if beaten:
        text += f" {say.count(beaten, 'run')} more with values of the grid that were not the best."
    return text + (f" {say.count(left, 'run')} not counted: see the table of runs." if left else "")


def sentences(report: Report) -> list[tuple[str, str]]:
    """(word, sentence) of each variant with a verdict, the ones that differ first."""
    order = ["better", "worse", "not distinguishable", "identical", "one seed", "no common seed", "not comparable"]
    open_ = [r for r in report.rows if r.verdict == "not distinguishable"]
    many = len(open_) > MOST_SENTENCES
    said = [(r.verdict, r.sentence) for r in report.rows if r.sentence and not (many and r in open_)]
    if many:
        each = ", ".join(f"{r.name} ({say.needed(r.comparison)})" for r in open_ if r.comparison)
        seeds = sorted({r.comparison.n for r in open_ if r.comparison})
        with_ = f"{'-'.join(map(str, seeds[:: max(1, len(seeds) - 1)]))} seeds"
        head = (
            f"{len(open_)} variants are not distinguishable from {report.baseline} with {with_}; in brackets, how many"
        )
        said.append(("not distinguishable", f"{head} would be needed: {each}."))
    return sorted(said, key=lambda s: order.index(s[0]))


def commands(report: Report) -> list[str]:
    """What was asked, a line a sweep."""
    said = []
    for a in report.asked:
        if a["command"]:
            said.append(a["command"])
        elif a["fixed"]:
            said.append(
                f"{say.count(a['runs'], 'run')} with {' '.join(a['fixed'])}" if "runs" in a else " ".join(a["fixed"])
            )
    return said
