"""The command line: `python benchmarks/mutants`."""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from mutants import world
from mutants.mutant import Mutant
from mutants.page import page, summary
from mutants.results import FileResult, equivalent, equivalents
from mutants.store import Listed, Outcome, Store
from mutants.targets import GROUPS, ROOT, files, group_of

FIRST = "definition"  # the check that is asked before all others


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mutants", description=__doc__)
    add = parser.add_argument
    add(
        "--files",
        nargs="*",
        default=[],
        metavar="GLOB",
        help="files to change, as 'plugins/norm/*'; by default all groups",
    )
    add(
        "--sample",
        default="100",
        metavar="N[,GROUP=N]",
        help="mutants of each group, spread over its files (100), and of groups that get another number: 150,model=60",
    )
    add("--all", action="store_true", help="every mutant")
    add("--only", default="", metavar="TEXT", help="mutants whose id or change contains it")
    add("--seed", default="0", metavar="N[,GROUP=N]", help="of the sample, and of groups that have another")
    add("--check-only", action="store_true", help="ask `llmlab check` and no tests")
    add("--checks", metavar="NAMES", help="only these checks, as in checks=NAMES; no tests and no page")
    add("--tests-only", action="store_true", help="ask the tests and not `llmlab check`")
    add("--both", action="store_true", help="ask the tests of mutants that `check` kills too")
    add("--slow", action="store_true", help="with the tests that are marked slow")
    add("--jobs", type=int, default=1, metavar="N", help="mutants at a time (1)")
    add("--budget", type=float, default=0, metavar="MINUTES", help="stop after so many minutes")
    add("--known", action="store_true", help="ask nothing: the table of what earlier runs have found")
    add("--list", action="store_true", help="print the mutants and run none")
    add("--again", action="store_true", help="forget the outcomes of an earlier run")
    add("--page", type=Path, metavar="FILE", help="write the table to this file")
    return parser


def by_group(text: str) -> dict[str, int]:
    """A number for each group, from "150,model=60"."""
    default, *others = text.split(",")
    of_group = dict(other.split("=") for other in others)
    if unknown := of_group.keys() - {g.name for g in GROUPS}:
        raise ValueError(f"no group is named {', '.join(sorted(unknown))}")
    return {g.name: int(of_group.get(g.name, default)) for g in GROUPS}


def sample(mutants: dict[str, list[Mutant]], n: int, seed: int) -> dict[str, list[Mutant]]:
    """n mutants, from each file in proportion to how many it has. A larger n keeps those of a smaller one."""
    total = sum(map(len, mutants.values()))
    drawn = {}
    for file, some in mutants.items():
        order = sorted(some, key=lambda m: random.Random(f"{seed} {m.id}").random())
        share = n * len(some) / max(1, total)
        # Where a share is no whole number, the file has a threshold of its own for the next one.
        kept = int(share) + (random.Random(f"{seed} {file}").random() < share % 1)
        drawn[file] = sorted(order[:kept], key=lambda m: (m.line, m.column))
    return drawn


def chosen(a: argparse.Namespace) -> list[FileResult]:
    """The files and the mutants of each that are asked."""
    every: dict[str, list[Mutant]] = {}
    known, listed = equivalents(), Listed(cache_folder())
    for file in files(a.files):
        source = (ROOT / file).read_text(encoding="utf-8")
        every[file] = [m for m in listed.mutants_of(file, source) if equivalent(m, source, known) is None]
    found = []
    sizes, seeds = by_group(a.sample), by_group(a.seed)
    for group in GROUPS:
        of_group = {f: some for f, some in every.items() if group_of(f) is group}
        if a.only:
            drawn = {f: [m for m in some if a.only in m.id or a.only in m.change] for f, some in of_group.items()}
        else:
            drawn = of_group if a.all else sample(of_group, sizes[group.name], seeds[group.name])
        found += [FileResult(f, drawn[f], len(some)) for f, some in of_group.items() if drawn[f] or not a.only]
    return found


def cache_folder() -> Path:
    root = os.environ.get("LLMLAB_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llmlab"
    return Path(root) / "mutants"


class Progress:
    """A line for each mutant that is asked, with the time left. first: who is asked of every mutant."""

    def __init__(self, total: int, first: str):
        self.total, self.first, self.done, self.new = total, first, 0, 0
        self.began: float | None = None  # when the first mutant was, since recordings come before

    def skip(self, n: int, by: str) -> None:
        """n mutants of which it is known what `by` says."""
        self.done += n if by == self.first else 0

    def tell_killed(self, mutant: Mutant, outcome: Outcome) -> None:
        """Tell it if it is killed; else more is asked of the mutant."""
        if outcome.killed:
            self.tell(mutant, outcome)

    def tell(self, mutant: Mutant, outcome: Outcome) -> None:
        self.began = self.began or time.monotonic() - outcome.seconds
        self.new += 1
        self.done += outcome.by == self.first
        left = (time.monotonic() - self.began) / self.new * max(0, self.total - self.done)
        fate = "killed by " if outcome.killed else "SURVIVED "
        print(
            f"{self.done}/{self.total}, {left / 60:.0f} min left: {fate}{outcome.by}, {mutant.file} line {mutant.line}: "
            f"{mutant.change}  [{outcome.how[:100]}] {outcome.seconds:.1f} s",
            flush=True,
        )


def main(argv: Sequence[str]) -> int:
    a = arguments().parse_args(argv)
    if a.checks:
        a.check_only, a.tests_only, a.page = True, False, None
    if a.check_only and a.tests_only:
        print("--check-only and --tests-only leave nothing to ask", file=sys.stderr)
        return 2
    try:
        results = chosen(a)
    except ValueError as e:
        print(f"--sample {a.sample} --seed {a.seed}: {e}", file=sys.stderr)
        return 2
    if not results:
        print(f"no file of the groups matches {' '.join(a.files)} {a.only}".strip(), file=sys.stderr)
        return 2
    if a.list:
        for m in (m for r in results for m in r.mutants):
            print(f"{m.id}  {m.change}")
        return 0
    sides = [side for side, unwanted in (("check", a.tests_only), ("tests", a.check_only)) if not unwanted]
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C, so that nothing is left behind
    try:
        with world.temporary_folder():
            status = run(a, results, sides)
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        return 130
    for line in summary(results, sides):
        print(line)
    if a.page and status == 0:
        a.page.write_text(page(results, sides, about(a), equivalents()), encoding="utf-8")
        print(a.page)
    return status


def about(a: argparse.Namespace) -> str:
    from llmlab.runs.record import cpu_name, versions

    known = versions()
    drawn = "every mutant" if a.all else f"sampled with seed {a.seed}"
    return (
        f"Commit {known.get('commit', 'unknown')}, {cpu_name()}, torch {known['torch']}, Python {known['python']}; {drawn}. "
        "Written by `make mutants`."
    )


def run(a: argparse.Namespace, results: Sequence[FileResult], sides: Sequence[str]) -> int:
    from mutants.ask import Asker
    from mutants.baseline import BaselineFailed, Baselines

    if not a.known:
        world.prepare()
    store, asked = Store(cache_folder(), forget=a.again), [r.file for r in results if r.mutants]
    baselines = {names: Baselines(store, asked, a.slow, names) for names in (a.checks, FIRST, part_checks())}
    progress = Progress(sum(len(r.mutants) for r in results), sides[0])
    end = 0.0 if a.known else time.monotonic() + a.budget * 60 if a.budget else float("inf")
    status = 0
    order = [r for r in results if r.mutants]
    if a.budget:  # so that a run that is stopped has asked files of all folders
        random.Random(a.seed).shuffle(order)
    for result in order:
        for by, names in _stages(result.file, sides, a.checks):
            asker = Asker(result.file, by, baselines[names], a.jobs)
            wanted = [m for m in result.mutants if a.both or not result.killed(m)]
            todo = [m for m in wanted if asker.outcome(m) is None]
            last = names == a.checks
            progress.skip(sum(last or asker.killed(m) for m in wanted if m not in todo), by)
            if todo and time.monotonic() < end:
                try:
                    asker.prepare()
                except BaselineFailed as e:
                    print(e, file=sys.stderr)
                    status = 1
                    break
                asker.run(todo, progress.tell if last else progress.tell_killed, end)
            result.outcomes |= {(m.id, by): o for m in wanted if (o := asker.outcome(m)) and (last or o.killed)}
    return status


def _stages(file: str, sides: Sequence[str], names: str | None) -> list[tuple[str, str | None]]:
    """(who is asked, which checks), one after the other. A part's definition kills most and its other checks most of the rest,
    so that the models of its pairs are recorded for few files."""
    group = group_of(file)
    first: list[str] = []
    if "check" in sides and names is None and group is not None and not group.words:
        from llmlab.check.request import ALONE_SLOTS

        in_models = all(slot not in ALONE_SLOTS for slot, _ in world.parts_of(file))
        first = [FIRST, *([part_checks()] if in_models else [])]
    return [*(("check", some) for some in first), *((by, names) for by in sides)]


@cache
def part_checks() -> str:
    """Names of the checks that are asked of a part by itself."""
    from llmlab.check.parts import PART_CHECKS

    return ",".join(name for name in PART_CHECKS if name != FIRST)
