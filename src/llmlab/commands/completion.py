"""Shell completion as Hydra has it, of the whole command: eval "$(llmlab -sc install=bash)", or zsh, or fish.

The shell asks `llmlab -sc query=bash` with the line so far in COMP_LINE; what may follow is printed, separated by spaces.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import fields
from importlib import import_module

from llmlab.errors import UserError

GROUPS = {"parts", "new"}  # commands whose first word is a slot or a group
SHELLS = ("bash", "zsh", "fish")
OVERRIDES = {"train", "plan"}  # commands that take choices and keys of the config


def main(argv: Sequence[str]) -> int:
    """argv: what follows -sc: install=SHELL, uninstall=SHELL or query=SHELL."""
    from llmlab.commands import train

    asked, _, shell = argv[0].partition("=") if argv else ("", "", "")
    if asked not in ("install", "uninstall", "query") or (asked != "query" and shell not in SHELLS):
        raise UserError('-sc needs install=bash (or zsh, or fish), as in: eval "$(llmlab -sc install=bash)"')
    # bash sets it for a completion; Hydra's script for fish does by itself, so that one name serves both.
    line = os.environ.get("COMP_LINE", "")
    command = re.match(r"\s*\S+\s+(\S+)\s", line)
    word = "" if line.endswith(" ") or len(line.split()) < 2 else line.split()[-1]
    if not argv[0].startswith("query=") or (command and command[1] in OVERRIDES):
        # Hydra takes the first word for the program, and all others for what was typed.
        if command:
            os.environ["COMP_LINE"] = line[: command.start(1)] + line[command.end(1) + 1 :]
        train.main(["-sc", *argv])
        if not (command and command[1] == "plan"):
            return 0
    found = _words(command[1] if command else None)
    print(" ".join(w for w in found if w.startswith(word)))
    return 0


def _words(command: str | None) -> list[str]:
    """Words that may be typed behind a command, or the commands."""
    from llmlab import registry
    from llmlab.check.request import SLOTS
    from llmlab.commands.table import COMMANDS
    from llmlab.config.choices import groups

    if command is None:
        return sorted(COMMANDS)
    if command in GROUPS:
        return groups()
    if command == "check":
        return [*(f"{slot}={name}" for slot in SLOTS for name in registry.names(slot)), *_keys(command)]
    if command == "oracle":
        return [*(f"alignment={name}" for name in registry.names("alignment")), *_keys(command)]
    return _keys(command)


def _keys(command: str) -> list[str]:
    """The arguments of a command that are typed by a dataclass."""
    from llmlab.commands.table import COMMANDS

    home = COMMANDS.get(command)
    arguments = getattr(import_module(home.home.partition(":")[0]), "Arguments", None) if home else None
    if arguments is None:
        return []
    # A string, as all annotations in the modules of commands are (`from __future__ import annotations`).
    return [f"{f.name}=" if f.type != "bool" else f"--{f.name}" for f in fields(arguments)]
