"""`llmlab check`: tests of every part, alone and combined with every other, and of every family.

The command line is read without torch, so that `--help` and a typo answer at once.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields
from pathlib import Path

from llmlab.check import TRACED
from llmlab.commands.arguments import parse
from llmlab.errors import UserError

USAGE = """\
llmlab check                                     every part with every other, every family as it is (minutes)
llmlab check SLOT=PART [SLOT.OPTION=VALUE ...]   one part, of your own too, with every other (half a minute)
llmlab check schedule=PART                       one by itself; so optimizer=, reward=, filter=, adapter= (seconds)
llmlab check SLOT=PART SLOT=PART ...             one model with these parts
llmlab check model=FAMILY [SLOT=PART ...]        one family, or the family with other parts
llmlab check --families                          every family with every part that it does not have

checks=NAME,... only these checks; jobs=N processes (the number of cores); to=FOLDER where conformance.md and
conformance.json are written (conformance/ here, of a whole run; else nowhere); compile=inductor compiles layers as a run
does (a minute a part), where else they are only traced.

Models are tiny, with random weights, on the CPU. Examples of checks: no token sees what is hidden from it, a cache changes
nothing, gradients reach every parameter, kernels agree. Combinations that are not possible are listed with the reason.
Exit code 1 if a check fails; the smallest command that reproduces it is printed."""

FOLDER = "conformance"
BACKENDS = (TRACED, "inductor")


@dataclass
class Arguments:
    """Options of the command; parts and families are given as SLOT=PART beside them."""

    checks: str | None = None
    to: str | None = None
    jobs: int | None = None
    compile: str = TRACED
    families: bool = False


def main(argv: Sequence[str]) -> int:
    if "-h" in argv or "--help" in argv:
        print(USAGE)
        return 0
    from llmlab.check.request import parse_request

    names = {f.name for f in fields(Arguments)}
    mine = [w for w in argv if w.lstrip("-").partition("=")[0] in names or "=" not in w]
    a = parse(mine, Arguments, "check")
    if a.jobs is not None and a.jobs < 1:
        raise UserError(f"jobs={a.jobs} must be at least 1")
    if a.compile not in BACKENDS:
        raise UserError(f"compile={a.compile} must be {' or '.join(BACKENDS)}")
    # An environment variable, since worker processes that are spawned inherit nothing else of this one.
    os.environ["LLMLAB_CHECK_COMPILE"] = a.compile
    typed = [w.partition("=")[0] for w in argv if w not in mine]
    if twice := [key for key in dict.fromkeys(typed) if typed.count(key) > 1]:
        raise UserError(f"{twice[0]} is given twice; leave one of them out")
    request = parse_request([w for w in argv if w not in mine])
    if a.families and not request.whole:
        raise UserError(
            "--families is of all families and parts; leave out the others, or name one: model=FAMILY SLOT=PART"
        )

    from llmlab.check import page, processes, runner, terminal

    folder, name = a.to or (FOLDER if request.whole else None), page.SWAPS if a.families else page.MATRIX
    with page.report_writer(Path(folder), name) if folder else nullcontext() as write, processes.sigterm_as_interrupt():
        began = time.monotonic()
        report = runner.run_swaps(a.checks, a.jobs) if a.families else runner.run_request(request, a.checks, a.jobs)
        report.seconds = time.monotonic() - began
        terminal.show(report)
        terminal.show_files(write(report) if write else [])
    return 1 if report.failed else 0
