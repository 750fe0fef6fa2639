"""`llmlab report`: run folders -> a verdict, as a table, Markdown, one self-contained HTML file, JSON and a picture.

The same folders give the same files, byte for byte.
"""

from __future__ import annotations

import json as json_module
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llmlab.commands.arguments import dashed, parse
from llmlab.errors import UserError
from llmlab.runs import newest

USAGE = """\
llmlab report FOLDER... [report.baseline=KEY=VALUE] [report.metric=val_loss] [report.tune=KEY] [out=FOLDER] [--json]

Compares all runs below the folders. Runs whose configs differ in the seed only are one variant. Each variant is compared with
the baseline: the first value of each swept key, or report.baseline=attention=mha. Runs that can't be compared (another text,
validation set, objective or tokenizer) are in separate tables.
  report.metric=val_bits_per_byte   any metric that run.json has, or a probe's, "probe brown, frozen mean" (probe: the only one)
                                    Losses of several objectives can't be compared: a probe that all runs have is taken then
  report.tune=KEY                   compare each variant at the best KEY of its own grid (default: optimizer.lr if it was swept;
                                    report.tune=null: never)
Writes report.html, report.md, report.json and report.png into the first folder if it is a sweep, else into report/."""

OPTIONS = ("report.baseline", "report.metric", "report.tune", "out")


@dataclass
class Arguments:
    baseline: str | None = None
    metric: str | None = None
    tune: str = "auto"
    out: str | None = None
    json: bool = False


def main(argv: Sequence[str]) -> int:
    if "-h" in argv or "--help" in argv:
        print(USAGE)
        return 0
    dashed(argv, Arguments, "report")
    folders, rest = [], []
    for word in argv:
        word = newest.resolve_run(word.removeprefix("run=")) if word.removeprefix("run=") in newest.WORDS else word
        key, equals, _ = word.partition("=")
        named = key.removeprefix("report.") in Arguments.__annotations__ and equals
        if word and Path(word).is_dir():
            folders.append(Path(word))
        elif word.startswith("--") or named or (key.startswith("report.") and equals):
            rest.append(word.removeprefix("report.") if named else word)
        elif equals:
            from llmlab.registry import near

            raise UserError(f"{word}: there is no such folder and no such key of llmlab report; {near(key, OPTIONS)}")
        else:
            raise UserError(f"{word or repr(word)}: there is no such folder")
    a = parse(rest, Arguments, "report")
    if not folders:
        raise UserError("name a folder with runs: llmlab report FOLDER...")
    tune = None if a.tune == "auto" else a.tune
    out = None if a.out is None else Path(a.out)
    from llmlab.report.write import write

    found = write(folders, out=out, baseline=a.baseline, metric=a.metric, tune=tune, show=not a.json)
    if a.json:
        print(json_module.dumps(found, indent=1))
    return 0 if found["rows"] else 1  # no run could be read, which the lines above say
