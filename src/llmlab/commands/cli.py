"""The `llmlab` command: dispatch, and errors as lines instead of tracebacks.

Exit codes: 0 done, 1 an error that was explained, 130 interrupted. LLMLAB_DEBUG=1 shows tracebacks.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterable, Sequence
from importlib import import_module

from llmlab.commands.table import COMMANDS
from llmlab.errors import UserError
from llmlab.ranks import is_first

EXAMPLES = """\
examples:
  llmlab train                                        a small LLaMA on the Python documentation, in minutes
  llmlab train model=qwen_moe attention=gqa objective=clm
  llmlab train size=micro data=files data.path=book.txt trainer.max_steps=20
  llmlab parts attention                              the choices of a slot, with their options
  llmlab COMMAND --help                               what a command takes
  eval "$(llmlab -sc install=bash)"                   the Tab key completes commands, choices and keys (also zsh, fish)"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command and exit with its code."""
    # What is imported stays: looking through it again and again took a quarter of a short command.
    gc.set_threshold(100_000, 10, 10)
    code = run(list(sys.argv[1:] if argv is None else argv))
    # Python looks through all that was imported once more as it ends, unless it is frozen.
    gc.freeze()
    sys.exit(code)


def run(argv: list[str]) -> int:
    """The exit code of `llmlab *argv`; errors are printed."""
    held: dict[str, str] = {}
    try:
        return _dispatch(argv, held) or 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        # As shells report a program that SIGINT ended, 128 + 2; 141 below is 128 + 13, SIGPIPE.
        return 130
    except BrokenPipeError:
        # Python flushes stdout once more as it ends, and would print a second error for the reader that is gone.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as e:
        if os.environ.get("LLMLAB_DEBUG", "0") not in ("", "0"):
            raise
        held = {problem: said for problem, said in held.items() if said not in str(e)}
        for line in _lines(e):
            print(f"error: {line}", file=sys.stderr)
        return 1
    finally:
        _print_warnings(held)


def _dispatch(argv: list[str], held: dict[str, str]) -> int | None:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    name, *rest = argv
    if name in ("-V", "--version"):
        from llmlab import __version__

        print(f"llmlab {__version__}")
        return 0
    if name in ("-sc", "--shell-completion"):
        return import_module("llmlab.commands.completion").main(rest)
    if name not in COMMANDS:
        from llmlab.registry import near

        hint = f"; for a run, llmlab train {name} ..." if "=" in name else ""
        raise UserError(f"{name}: there is no such command; {near(name, COMMANDS)}{hint}")
    _warn(name, rest, held)
    module, _, function = COMMANDS[name].home.partition(":")
    # Only the command's own module is imported: all of them take 0.2 s.
    return getattr(import_module(module), function)(rest)


def usage() -> str:
    commands = "\n".join(f"  {name:<10}{c.summary}" for name, c in COMMANDS.items())
    return f"llmlab COMMAND ...: experiments with language models made of interchangeable parts\n\n{commands}\n\n{EXAMPLES}"


def _warn(command: str, words: Sequence[str], held: dict[str, str]) -> None:
    """Plugin files that can't be read, said once, by the first process of a run.

    held: takes the warnings about parts that are typed, with what an error says of them, as the command is to end with one.
    """
    if is_first():
        from llmlab import registry

        # Commands that compose a config end with an error for missing parts: a warning would say it twice.
        absent = registry.missing() if command in ("parts", "new") else []
        held |= registry.problems_of(words)
        _print_warnings(p for p in (*registry.problems(), *absent) if p not in held)


def _print_warnings(problems: Iterable[str]) -> None:
    for problem in problems:
        print(f"warning: {problem}", file=sys.stderr)


def _short(line: str, most: int = 700) -> str:
    """A line of which the middle is left out where it is very long: a word of 5,000 characters was typed."""
    return line if len(line) <= most else f"{line[: most - 230]} ... {line[-200:]}"


def _lines(e: Exception) -> list[str]:
    if isinstance(e, UserError):
        return [_short(line) for line in str(e).splitlines()]
    # A name too long, a folder that can't be read.
    if isinstance(e, OSError) and e.filename is not None and e.strerror:
        return [_short(f"{_short(str(e.filename), 400)}: {e.strerror}")]
    # By name, as importing hydra for isinstance takes 0.1 s, and most commands compose nothing.
    if type(e).__module__.startswith(("hydra", "omegaconf")):
        # OmegaConf's messages have lines of their own for full_key and object_type.
        return [" ".join(str(e).split())[:300]]
    first = (str(e).splitlines() or [""])[0]
    return [f"{type(e).__name__}: {first} (LLMLAB_DEBUG=1 shows where)"]
