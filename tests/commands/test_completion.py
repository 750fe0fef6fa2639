"""Shell completion: what the shell is told for a line, as Hydra's own tests ask; and once in a real bash."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from llmlab.commands.cli import run
from llmlab.config.choices import groups
from llmlab.slot_names import SLOTS

ROOT = Path(__file__).parents[2]


@pytest.fixture
def offered(monkeypatch, capsys):
    def ask(line):
        monkeypatch.setenv("COMP_LINE", line)
        monkeypatch.setattr(sys, "argv", ["llmlab"])
        assert run(["-sc", "query=bash"]) == 0
        return capsys.readouterr().out.split()

    return ask


@pytest.mark.parametrize(
    ("line", "want"),
    [
        ("llmlab train attention=g", ["attention=gqa"]),
        ("llmlab train optim", ["optimizer.", "optimizer="]),
        ("llmlab train model.di", ["model.dim="]),
        ("llmlab train model=llama3 norm.", ["norm.offset="]),
        ("llmlab train attention=mla attention.kv_", ["attention.kv_rank="]),
        ("llmlab train -m precision=bf", ["precision=bf16-mixed", "precision=bf16-true"]),
        ("llmlab tr", ["train"]),
        ("llmlab plan attention=g", ["attention=gqa"]),
        ("llmlab plan mf", ["mfu="]),
        ("llmlab parts att", ["attention"]),
        ("llmlab new obj", ["objective"]),
        ("llmlab generate run=x tem", ["temperature="]),
        ("llmlab eval --js", ["--json"]),
        ("llmlab check attention=mq", ["attention=mqa"]),
        ("llmlab check optim", ["optimizer=adamw"]),
        ("llmlab check --fam", ["--families"]),
        ("llmlab nothing x", []),
    ],
)
def test_offered(line, want, offered):
    assert offered(line) == want


@pytest.mark.slow  # every group and part in turn
def test_all_that_can_be_chosen_is_offered(offered):
    words = offered("llmlab train ")
    assert {f"{slot}=" for slot in SLOTS} <= set(words) and "seed=" in words
    assert offered("llmlab parts ") == groups()


@pytest.mark.parametrize("typed", [[], ["install=nope"], ["install="], ["install"], ["uninstall=x"], ["foo"]])
def test_what_else_is_refused(typed, capsys):
    assert run(["-sc", *typed]) == 1
    assert 'as in: eval "$(llmlab -sc install=bash)"' in capsys.readouterr().err


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash to complete in")
@pytest.mark.slow
def test_in_bash(tmp_path):
    """Installed as the help says, bash asks, and keeps what fits; for `llmlab` and for `python train.py`."""
    (tmp_path / "train.py").symlink_to(ROOT / "train.py")
    script = """
ask() {  # the words of a line, as bash hands them to the function
  COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
  hydra_bash_completion; echo "${COMPREPLY[@]}"
}
eval "$(llmlab -sc install=bash)"; complete -p llmlab
ask llmlab train attention=g
eval "$(python train.py -sc install=bash)"; complete -p python
ask python train.py attention=g
"""
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)
    first, one, second, other = done.stdout.splitlines()
    assert "-F hydra_bash_completion llmlab" in first and "-F hydra_bash_completion python" in second
    assert (one, other) == ("attention=gqa", "attention=gqa")
