"""The command line: `python benchmarks/mutants`."""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from mutants.mutant import Mutant, mutants_of
from mutants.store import Outcome, Store
from mutants.targets import GROUPS, ROOT, files, group_of


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
    add("--sample", type=int, default=100, metavar="N", help="mutants of each group, spread over its files (100)")
    add("--all", action="store_true", help="every mutant")
    add("--only", default="", metavar="TEXT", help="mutants whose id or change contains it")
    add("--seed", type=int, default=0, help="of the sample")
    add("--check-only", action="store_true", help="ask `llmlab check` and no tests")
    add("--tests-only", action="store_true", help="ask the tests and not `llmlab check`")
    add("--both", action="store_true", help="ask the tests of mutants that `check` kills too")
    add("--slow", action="store_true", help="with the tests that are marked slow")
    add("--jobs", type=int, default=1, metavar="N", help="mutants at a time (1)")
    add("--budget", type=float, default=0, metavar="MINUTES", help="stop after so many minutes")
    add("--list", action="store_true", help="print the mutants and run none")
    add("--again", action="store_true", help="forget the outcomes of an earlier run")
    add("--page", type=Path, metavar="FILE", help="write the table to this file")
    return parser


def sample(mutants: dict[str, list[Mutant]], n: int, seed: int) -> dict[str, list[Mutant]]:
    """n mutants of a group, from each file in proportion to how many it has; with a larger n those of a smaller one stay."""
    total = sum(map(len, mutants.values()))
    drawn = {}
    for file, some in mutants.items():
        order = sorted(some, key=lambda m: random.Random(f"{seed} {m.id}").random())
        share = n * len(some) / max(1, total)
        kept = int(share) + (random.Random(f"{seed} {file}").random() < share % 1)
        drawn[file] = sorted(order[:kept], key=lambda m: (m.line, m.column))
    return drawn


def chosen(a: argparse.Namespace) -> dict[str, list[Mutant]]:
    found: dict[str, list[Mutant]] = {}
    every = {f: mutants_of(f, (ROOT / f).read_text(encoding="utf-8")) for f in files(a.files)}
    if a.only:
        every = {f: [m for m in some if a.only in m.id or a.only in m.change] for f, some in every.items()}
    for group in GROUPS:
        of_group = {f: some for f, some in every.items() if group_of(f) is group}
        found |= of_group if a.all or a.only else sample(of_group, a.sample, a.seed)
    return {f: some for f, some in found.items() if some}


def cache_folder() -> Path:
    root = os.environ.get("LLMLAB_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llmlab"
    return Path(root) / "mutants"


class Progress:
    """A line for each mutant, with the time left."""

    def __init__(self, total: int):
        self.total, self.done, self.began = total, 0, time.monotonic()

    def tell(self, mutant: Mutant, outcome: Outcome) -> None:
        self.done += 1
        left = (time.monotonic() - self.began) / self.done * max(0, self.total - self.done)
        fate = "killed  " if outcome.killed else "SURVIVED"
        print(
            f"{self.done}/{self.total} {left / 60:.0f} min left  {fate} by {outcome.by}  {mutant.file} line {mutant.line}: "
            f"{mutant.change}  [{outcome.how[:100]}] {outcome.seconds:.1f} s",
            flush=True,
        )


def main(argv: Sequence[str]) -> int:
    a = arguments().parse_args(argv)
    mutants = chosen(a)
    if not mutants:
        print(f"no file matches {' '.join(a.files)}", file=sys.stderr)
        return 2
    if a.list:
        for m in (m for some in mutants.values() for m in some):
            print(f"{m.id}  {m.change}")
        return 0
    try:
        return run(a, mutants)
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        return 130


def run(a: argparse.Namespace, mutants: dict[str, list[Mutant]]) -> int:
    from mutants import world
    from mutants.ask import Asker, BaselineFailed, unfinished

    world.prepare()
    store = Store(cache_folder())
    progress = Progress(sum(map(len, mutants.values())))
    end = time.monotonic() + a.budget * 60 if a.budget else float("inf")
    sides = [] if a.tests_only else ["check"]
    sides += [] if a.check_only else ["tests"]
    status, known = 0, {}
    for file, some in mutants.items():
        left = list(some)
        for by in sides:
            asker = Asker(file, by, store, a.jobs, a.slow)
            todo = left if a.again else list(unfinished(left, asker))
            if todo:
                began = time.monotonic()
                try:
                    asker.prepare()
                except BaselineFailed as e:
                    print(e, file=sys.stderr)
                    return 1
                print(f"{file}: {len(asker.asked)} of {by} cover it ({time.monotonic() - began:.0f} s)", flush=True)
                asker.run(todo, progress.tell)
            outcomes = {m: o for m in left if (o := store.get(m.id, by, asker.key))}
            known |= {(m.id, by): o for m, o in outcomes.items()}
            if not a.both:
                left = [m for m in left if m not in outcomes or not outcomes[m].killed]
            if time.monotonic() > end:
                break
    return status
