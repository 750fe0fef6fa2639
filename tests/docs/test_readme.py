"""Every command and every program of the README runs as it stands; training is cut to two steps."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "README.md"
SHORT = ["trainer.max_steps=2", "train.validation_batches=1", "model.dim=32", "model.n_layers=2", "train.batch_size=4"]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(), re.S)


def run(words: list[str], folder: Path, **env: str) -> subprocess.CompletedProcess:
    words = [sys.executable, "-m", *words] if words[0] == "llmlab" else [sys.executable, *words[1:]]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(folder), **env}
    done = subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder with a run, a text, and the part of the README's example."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "book.txt").write_text("It was a bright cold day in April, and the clocks were striking thirteen. " * 400)
    part = next(b for b in blocks("python") if "@register" in b)
    (folder / "my_norms.py").write_text(part)
    run(["llmlab", "train", *SHORT, "hydra.run.dir=first"], folder)
    return folder


def commands() -> list[str]:
    return [line for block in blocks("console") for line in block.splitlines() if line.strip()]


@pytest.mark.slow  # some twenty short runs, each a process that imports torch and Lightning: about 2 minutes
@pytest.mark.parametrize("command", commands())
def test_command(command, home):
    words = shlex.split(command.replace("=RUN", "=first").replace("=TEXT", "=book.txt"))
    env = dict(words.pop(0).split("=", 1) for _ in range(len(words)) if "=" in words[0] and words[0][0].isupper())
    if "train" in words and not any(w.startswith("resume=") for w in words):
        typed = {w.partition("=")[0] for w in words}
        words += [s for s in SHORT if s.partition("=")[0] not in typed]
    done = run(words, home, **env)
    assert done.stdout.strip()


@pytest.mark.slow  # builds a MoE and reads a checkpoint back: 15 s of imports and compositions
def test_python(home):
    program = next(b for b in blocks("python") if "import llmlab" in b)
    before = "import llmlab\nllmlab.save_hf(llmlab.build(['model.dim=32']), 'FOLDER')\n"
    after = "\nprint(type(model).__name__, config.model.dim, type(reference).__name__)"
    done = run(["python", "-c", before + program + after], home)
    assert done.stdout.split() == ["Model", "768", "HubModel"]
    assert json.loads((home / "OTHER_FOLDER" / "config.json").read_text())["model_type"] == "llama"
