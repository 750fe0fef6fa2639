"""Does what a page of the documentation shows, in the current folder: python commands.py STEPS.json

A command runs in a copy (fork) of this process, which has imported what is heavy and nothing of llmlab: as if it were typed,
but for seconds of imports. Those that start processes of their own are typed.
"""

from __future__ import annotations

import gc
import json
import os
import shlex
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

gc.disable()
import lightning.pytorch  # noqa: E402, F401

gc.freeze()
gc.enable()

ROOT = Path(__file__).parents[2]


def starts_others(words: list[str]) -> bool:
    return "-m" in words or any(w.startswith("strategy=") for w in words)


def forked(work: Callable[[], int | None]) -> tuple[int, str]:
    """The exit code of `work` in a copy of this process, and what it said."""
    with tempfile.TemporaryFile("w+") as said:
        if (child := os.fork()) == 0:
            code = 1
            try:
                os.dup2(said.fileno(), 1)
                os.dup2(said.fileno(), 2)
                sys.path[:0] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
                code = work() or 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        said.seek(0)
        return code, said.read()


def here(words: list[str]) -> int:
    from llmlab.commands import cli

    sys.argv = words
    return cli.run(words[1:] if words[0] == "llmlab" else ["train", *words[2:]])


def program(text: str) -> None:
    exec(compile(text, "<page>", "exec"), {})


def typed(words: list[str]) -> tuple[int, str]:
    module = ["-m", "llmlab", *words[1:]] if words[0] == "llmlab" else [str(ROOT / words[1]), *words[2:]]
    done = subprocess.run([sys.executable, *module], capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def run(words: list[str]) -> None:
    if words[0] == "export":
        os.environ.update([words[1].split("=", 1)])
        return
    before = dict(os.environ)
    while "=" in words[0]:
        os.environ.update([words.pop(0).split("=", 1)])
    if words[0] not in ("llmlab", "python"):
        code, said = 0, subprocess.run(words, check=True, capture_output=True, text=True).stdout
    else:
        code, said = typed(words) if starts_others(words) else forked(lambda: here(words))
    os.environ.clear()
    os.environ.update(before)
    print(f"$ {shlex.join(words)}\n{said}", flush=True)
    if code or not said.strip():
        sys.exit(f"exit code {code}: {shlex.join(words)}")


def main() -> None:
    for kind, *rest in json.loads(Path(sys.argv[1]).read_text()):
        if kind == "file":
            Path(rest[0]).parent.mkdir(parents=True, exist_ok=True)
            Path(rest[0]).write_text(rest[1])
        elif kind == "python":
            code, said = forked(lambda text=rest[0]: program(text))
            if code:
                sys.exit(f"exit code {code}:\n{rest[0]}\n{said}")
        else:
            run(rest)


if __name__ == "__main__":  # processes that a command starts read this file, too
    main()
