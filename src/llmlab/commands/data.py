"""`llmlab data ...`: what a run reads."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

from llmlab.errors import UserError, near

# `module:function` and a summary, as in the table of commands, which names this module and so can't be imported here.
SUBCOMMANDS = {
    "show": (
        "llmlab.commands.data_show:main",
        "samples of a run, with what of them is learnt: llmlab data show KEY=VALUE ...",
    ),
}


def main(argv: Sequence[str]) -> int | None:
    if not argv or argv[0] in ("-h", "--help"):
        print("llmlab data COMMAND ...\n")
        print("\n".join(f"  {name:<10}{summary}" for name, (_, summary) in SUBCOMMANDS.items()))
        return 0
    name, *rest = argv
    if name not in SUBCOMMANDS:
        raise UserError(f"llmlab data {name}: there is no such command; {near(name, SUBCOMMANDS)}")
    module, _, function = SUBCOMMANDS[name][0].partition(":")
    code: int | None = getattr(import_module(module), function)(rest)
    return code
