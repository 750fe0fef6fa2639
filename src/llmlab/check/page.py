"""Writes a report as conformance.md or families.md, and as JSON beside it."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from llmlab import registry
from llmlab.check import swap_page
from llmlab.check.case_checks import checks_of
from llmlab.check.covering_array import Item
from llmlab.check.parts.computed import backend
from llmlab.check.report import MARKS, Report
from llmlab.check.request import SLOTS
from llmlab.check.subject import Case, Result
from llmlab.check.twins import settings
from llmlab.errors import UserError
from llmlab.files import write_atomic
from llmlab.formatting import markdown_table

SCHEMA = 1
PROVES = """\
## What a green row proves, and what it does not

- It holds in the models that were built: a dozen tokens, widths of 24 to 64, two to four layers, random weights, on a CPU.
  What shows only in long texts, in large tensors, on a GPU or after thousands of steps is not seen.
- Every two parts have met, and every setting of a part's options each part that it can affect. Three that fail only
  together may never have met.
- `definition` compares a part's numbers with those of its twin, an implementation of the paper's formulas in NumPy that shares
  no code with the part, at each setting in the table of options; `twins/records` beside the code names the sources. The
  other promises hold for any definition: a part may keep all of them and be another than its paper's.
- A part of a user's own is compared with the twin below it (`llmlab new` writes one). Without a twin its `definition` is ·,
  and it is named below the table of parts.
- `generation` compares texts with forwards of whole texts and the rules of sampling, written out, of which the rules, ends,
  refusals and turns of a conversation are asked of families alone: no part has a say in them. Steps of training, clipping of
  gradients among them, saved runs and reports are no part either: tests of llmlab hold them.
- Nothing here says that a part helps, or how fast it is.

How far a green matrix can be trusted is measured by mutation: small changes are made to the source, and `llmlab check`
has to see them. The table is docs/mutants.md of llmlab."""
KINDS = ("pair", "setting", "family", "part")  # of the models of a whole run
MATRIX, SWAPS = "conformance", "families"  # names of the files
COMPILED_BY = {
    "aot_eager": "Layers are compiled by `aot_eager`: traced forward and backward, and what was traced is run as it is; "
    "`compile=inductor` compiles them as a run does.",
    "inductor": "Layers are compiled by `inductor`, as a run compiles them.",
}
TWINS_PAGE = "docs/your_part.md"
PRESERVED = "## Bugs that it catches"  # a section that another program writes into the same page


@contextmanager
def report_writer(folder: Path, name: str) -> Iterator[Callable[[Report], list[Path]]]:
    """Context that yields a function which writes name.md and name.json and returns their paths.

    UserError at once if the folder can't be written to, since checks take minutes. A folder that it created and that
    stays empty is removed again.
    """
    try:
        existed = folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"to={folder}: the folder can't be made: {e.strerror}") from e
    if not os.access(folder, os.W_OK):
        raise UserError(f"to={folder}: nothing can be written there; name another folder")
    page, data = folder / f"{name}.md", folder / f"{name}.json"
    rest = "" if name == SWAPS else preserved_section(page)

    def write(report: Report) -> list[Path]:
        write_atomic(page, swap_page.page_text(report) if name == SWAPS else page_text(report) + rest)
        write_atomic(data, format_json(to_json(report)))
        return [page, data]

    try:
        yield write
    finally:
        if not existed:
            with suppress(OSError):  # it is not empty
                folder.rmdir()


def preserved_section(page: Path) -> str:
    """The page from the preserved section on; "" if there is none."""
    try:
        before = page.read_text(encoding="utf-8") if page.exists() else ""
    except (OSError, UnicodeDecodeError) as e:
        why = e.strerror if isinstance(e, OSError) else "it is not UTF-8"
        raise UserError(f"{page} can't be read, whose section {PRESERVED[3:]!r} is kept: {why}; move it away") from e
    return "\n" + before[before.index(PRESERVED) :] if PRESERVED in before else ""


def to_json(report: Report) -> dict[str, object]:
    """The whole report as a JSON object."""
    import torch

    from llmlab import __version__

    results: dict[str, list[Result]] = {name: [] for name in report.cases}
    for r in report.results:
        results[r.case].append(r)
    return {
        "schema": SCHEMA,
        "llmlab": __version__,
        "torch": torch.__version__,
        "seconds": round(report.seconds, 1),
        "compile": backend(),
        "passed": not report.failed,
        "checks": report.checks,
        "without_twin": [f"{slot}={name}" for slot, name in report.without_twin],
        "refused": [{"pair": dict(pair), "reason": why} for pair, why in sorted(report.refused.items())],
        "models": [_model_entry(case, results[case.name]) for case in report.cases.values()],
    }


def _model_entry(case: Case, results: Sequence[Result]) -> dict[str, object]:
    """A model and its results: of each check "passed", or {outcome: message}."""
    checks = {
        r.check: r.outcome if r.outcome == "passed" else {r.outcome: r.message} | _command_entry(r) for r in results
    }
    typed = {"overrides": case.overrides, "mask": case.mask, "head": case.head}
    return {"name": case.name, "kind": case.kind, "parts": dict(case.parts), **typed, "checks": checks}


def _command_entry(r: Result) -> dict[str, str]:
    return {"command": r.command} if r.command else {}


def format_json(fields: dict[str, object]) -> str:
    """JSON with a line for each key and for each item of a list, so that a diff in git shows the models that changed."""
    lines = []
    for key, value in fields.items():
        one = json.dumps(value, ensure_ascii=False)
        if isinstance(value, list) and value:
            one = "[\n" + ",\n".join(json.dumps(item, ensure_ascii=False) for item in value) + "\n]"
        lines.append(f"{json.dumps(key)}: {one}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def page_text(report: Report) -> str:
    """The whole of conformance.md but the preserved section."""
    lines = [
        "# Conformance",
        "",
        *_introduction(report),
        "",
        PROVES,
        "",
        *swap_page.failures(report),
        *_checks(report),
        *_parts(report),
    ]
    return "\n".join([*lines, *_options(report), *_families(report), *_refused(report)])


def _introduction(report: Report) -> list[str]:
    kinds = {k: sum(c.kind == k for c in report.cases.values()) for k in KINDS}
    met = len(report.pairs())
    return [
        "Written by `llmlab check`. Every promise of the first table is asked of tiny models with random weights: "
        f"{kinds['pair']} in which every two parts of two slots meet that can ({met:,} pairs), {kinds['setting']} in which "
        "the settings of a part's options meet the parts that they can affect, "
        f"{kinds['family']} families as they are, and {kinds['part']} parts by themselves. Combinations that are refused "
        "stand below, with the reason that a user is told."
        + (f" {COMPILED_BY[backend()]}" if "compiled" in report.checks else ""),
        "",
        f"{MARKS['passed']} holds in all models that have it; {MARKS['failed']} fails in one; {MARKS['refused']} refused; "
        f"{MARKS['skipped']} has nothing to ask. `conformance.json`, written beside this page, names every model and why.",
    ]


def _checks(report: Report) -> Iterator[str]:
    rows = []
    for name, promise in report.checks.items():
        counts = [report.tally(name, k) for k in KINDS]
        if any(c["passed"] or c["failed"] for c in counts):
            rows.append([name, promise, *map(_count, counts)])
    yield from ["## Promises", "", "In how many models it holds; of the others it asks nothing.", ""]
    yield from [*markdown_table(["check", "what holds", "pairs", "settings", "families", "parts"], rows), ""]


def _count(outcomes: Counter[str]) -> str:
    failed = f"{MARKS['failed']} {outcomes['failed']}" if outcomes["failed"] else ""
    return ", ".join(t for t in (str(outcomes["passed"] or ""), failed) if t)


def _parts(report: Report) -> Iterator[str]:
    names = [n for n in report.checks if n in checks_of("pair") and any(report.tally(n, "pair").values())]
    part_only = [n for n in report.checks if n in checks_of("part") and n not in names and report.tally(n, "part")]
    if not names and not part_only:
        return
    rows = []
    for slot, part in checked_parts(report):
        several, alone = report.cases_with((slot, part), "pair"), report.cases_with((slot, part), "part")
        several = several or [name for name in alone if report.cases[name].alone]
        marks = [_mark(report, several, n) for n in names] + [_mark(report, alone, n) for n in part_only]
        rows.append([f"{slot}={part}", str(len(several)), *marks])
    yield from ["## Parts", "", "In how many models, and what holds in all of them.", ""]
    yield from [*markdown_table(["part", "models", *names, *part_only], rows), ""]
    if lacking := ", ".join(f"`{slot}={part}`" for slot, part in report.without_twin):
        yield from [f"Without a twin, so that their numbers were compared with nothing ({TWINS_PAGE}): {lacking}", ""]


def checked_parts(report: Report) -> list[Item]:
    """Every part that is in a case, by slot."""
    seen = {item for c in report.cases.values() for item in c.parts}
    return sorted((item for item in seen if item in registry.index()), key=lambda i: (SLOTS.index(i[0]), i[1]))


def _mark(report: Report, cases: Sequence[str], check: str) -> str:
    return MARKS[report.outcome(cases, check)]


def _options(report: Report) -> Iterator[str]:
    rows = []
    for slot, name in checked_parts(report):
        _, *others = settings.of_part(slot, name)
        hidden = settings.not_shown(slot, name)
        if others or hidden:
            rows.append([f"{slot}={name}", ", ".join(map(_setting, others)), ", ".join(hidden)])
    if rows:
        words = (
            "The settings at which a part is checked beside its defaults, and the options that none of them changes: "
            "those are not shown by a model of a dozen tokens, and nothing here speaks for them."
        )
        yield from ["## Options", "", words, "", *markdown_table(["part", "settings", "not shown"], rows), ""]


def _setting(setting: settings.Setting) -> str:
    return " ".join(f"{key}={value}" for key, value in setting.options.items())


def _families(report: Report) -> Iterator[str]:
    families = [c.name for c in report.cases.values() if c.kind == "family"]
    names = [n for n in report.checks if any(report.tally(n, "family").values())]
    if families:
        rows = [[f, *(_mark(report, [f], n) for n in names)] for f in families]
        yield from ["## Families", "", *markdown_table(["family", *names], rows), ""]


def _refused(report: Report) -> Iterator[str]:
    rows = [[", ".join(what), why] for why, what in report.reasons().items()]
    if rows:
        yield from ["## Refused", "", *markdown_table(["what", "what a user is told"], rows), ""]
