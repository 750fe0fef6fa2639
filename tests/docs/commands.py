"""Does what a page of the documentation shows, in the current folder: python commands.py STEPS.json

Commands run in this process, which saves the imports; those with processes or an environment of their own run as typed.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

from llmlab import cli

ROOT = Path(__file__).parents[2]


def alone(words: list[str]) -> bool:
    """Whether a command needs a process of its own."""
    return "-m" in words or any(w.startswith("strategy=") for w in words) or "LLMLAB_PLUGINS" in os.environ


def here(words: list[str]) -> tuple[int, str]:
    said = io.StringIO()
    sys.argv = words
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = cli.run(words[1:] if words[0] == "llmlab" else ["train", *words[2:]])
    return code, said.getvalue()


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
        code, said = typed(words) if alone(words) else here(words)
    os.environ.clear()
    os.environ.update(before)
    print(f"$ {shlex.join(words)}\n{said}", flush=True)
    if code or not said.strip():
        sys.exit(f"exit code {code}: {shlex.join(words)}")


for kind, *rest in json.loads(Path(sys.argv[1]).read_text()):
    if kind == "file":
        Path(rest[0]).parent.mkdir(parents=True, exist_ok=True)
        Path(rest[0]).write_text(rest[1])
    elif kind == "python":
        exec(compile(rest[0], "<page>", "exec"), {})
    else:
        run(rest)
