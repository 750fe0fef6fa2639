"""Real processes that are killed, interrupted, out of space, or several."""

import os
import random
import signal
import subprocess
import sys
import time
from functools import partial

import pytest
import torch
from small_runs import numbers

from llmlab.commands import cli
from llmlab.runs import checkpoint, record
from tests import warm

HARD = [
    "train.micro_batch_size=2",
    "model.dropout=0.2",
    "train.checkpoint_every=7",
    "train.validate_every=10",
    "train.log_every=4",
    "budget.steps=400",
    "trainer.accelerator=cpu",
]


def command(*overrides):
    return [sys.executable, "-m", "llmlab", "train", *map(str, overrides)]


def start(*overrides, begin=warm.Popen):
    out = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return begin(command(*overrides), **out, start_new_session=True)


def here(*overrides):
    """In this process, which has imported Lightning already."""
    assert cli.run(["train", *map(str, overrides)]) == 0


def until(condition, process, seconds=90):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.005)


def newest(folder):
    found = checkpoint.all_of(folder / "checkpoints") if folder.exists() else []
    return checkpoint.step_of(found[-1]) if found else -1


@pytest.mark.slow  # four runs, three of them in processes of their own
def test_killed_at_random_moments_it_goes_on_to_the_same_bits(tiny, tmp_path):
    here(*tiny[:-1], *HARD, f"hydra.run.dir={tmp_path / 'whole'}")
    folder = tmp_path / "killed"
    process = start(*tiny[:-1], *HARD, f"hydra.run.dir={folder}")
    chance = random.Random(os.getpid())
    for attempt in range(3):
        before = newest(folder)
        until(lambda before=before: newest(folder) > before, process)
        time.sleep(chance.random() * 0.4)
        process.kill()
        process.communicate()
        assert record.read(folder)["status"] == "died"
        if attempt < 2:
            process = start(f"resume={folder}")
    here(f"resume={folder}")
    found = record.read(folder)
    assert (found["status"], found["steps"], found["resumed"]) == ("completed", 400, 3)
    assert numbers(folder) == numbers(tmp_path / "whole")
    (ours, state), (theirs, other) = (
        checkpoint.read(tmp_path / r / "checkpoints/step=00000400") for r in ("killed", "whole")
    )
    assert all(torch.equal(ours[n], theirs[n]) for n in theirs)
    mine, its = (s["optimizer_states"][0]["state"] for s in (state, other))
    assert all(torch.equal(mine[n]["exp_avg_sq"], its[n]["exp_avg_sq"]) for n in its)


@pytest.mark.slow  # runs of one and of two processes: up to 10 s
@pytest.mark.parametrize(
    ("ranks", "signum", "reason"),
    [
        (1, signal.SIGINT, "Ctrl-C"),
        (2, signal.SIGTERM, "SIGTERM"),
        (1, signal.SIGHUP, "SIGHUP"),
        ("two, all of which are told", signal.SIGINT, "Ctrl-C"),
    ],
)
def test_ctrl_c_saves_the_last_step_and_says_how_to_go_on(ranks, signum, reason, tiny, tmp_path):
    folder = tmp_path / "run"
    slow = ["budget.steps=100000", "train.checkpoint_every=50000", "train.validate_every=50000", "train.log_every=1"]
    slow += ["train.micro_batch_size=2", "trainer.accelerator=cpu", "data.num_workers=1"]
    two = ["strategy=ddp", "trainer.devices=2"] if ranks != 1 else []
    # Those that the terminal tells are started as a user starts them, the others by warm.py.
    begin = subprocess.Popen if isinstance(ranks, str) else partial(warm.Popen, inherited=True)
    process = start(*tiny[:-1], *slow, *two, f"hydra.run.dir={folder}", begin=begin)
    until(lambda: (folder / "metrics.csv").exists(), process)
    (os.killpg if isinstance(ranks, str) else os.kill)(process.pid, signum)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 130, said
    found = record.read(folder)
    assert (found["status"], found["reason"]) == ("interrupted", reason)
    assert newest(folder) == found["steps"] > 0
    assert said.count("finishing this step") == 1
    assert said.count("interrupted at step") == 1
    assert f"resume={folder}" in said
    assert "Traceback" not in said
    here(f"resume={folder}", f"trainer.max_steps={found['steps'] + 5}", "strategy=single", "trainer.devices=1")
    assert record.read(folder)["steps"] == found["steps"] + 5


@pytest.mark.slow
def test_a_full_disk_fails_in_one_line_and_keeps_the_last_checkpoint(tiny, tmp_path):
    """A limit on the size of files stands for the disk: model.safetensors fits below it at first, state.pt never does."""
    folder = tmp_path / "run"
    here(*tiny, "trainer.max_steps=4", "train.checkpoint_every=2", f"hydra.run.dir={folder}")
    size = (folder / "checkpoints/step=00000004/state.pt").stat().st_size - 500
    limited = (
        f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, resource.RLIM_INFINITY)); "
        "from llmlab.commands.cli import main; main()"
    )
    run = [sys.executable, "-c", limited, "train", f"resume={folder}", "trainer.max_steps=9"]
    done = warm.run(run, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "could not be written" in done.stderr
    assert "step=00000004, is intact" in done.stderr
    assert "Traceback" not in done.stderr
    assert record.read(folder)["status"] == "failed"
    assert checkpoint.problem(folder / "checkpoints/step=00000004") is None
