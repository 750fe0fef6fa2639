"""Sweeps of real runs, small: ranks, Slurm's local stand-in, a sweep that is killed and started again, optuna."""

import json
import shutil
import subprocess
import sys

import pytest

from llmlab.runs import record
from tests import warm
from tests.sweep.test_sweep import until

TINY = ["data=files", "tokenizer=char", "data.seq_len=16", "model.dim=16", "model.n_layers=1", "model.n_heads=2"]
TINY += ["train.batch_size=8", "train.validation_batches=2", "train.sample=false", "trainer.accelerator=cpu"]
# The second rank of seed 2 fails when it starts.
RANK_FAILS = """
import os, sys
if os.environ.get("LOCAL_RANK") == "1" and "seed=2" in sys.orig_argv:
    print("error: this rank fails", file=sys.stderr, flush=True)
    os._exit(1)
"""


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    root = tmp_path_factory.mktemp("sweeps")
    (root / "texts").mkdir()
    for i in range(30):
        (root / "texts" / f"{i}.txt").write_text(" ".join(f"the fox {i * j % 7} jumps" for j in range(60)))
    return root


@pytest.fixture
def start(cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLMLAB_CACHE", str(cache / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def begin(*overrides):
        words = [sys.executable, "-m", "llmlab", "train", "-m", *TINY, f"data.path={cache / 'texts'}", *overrides]
        return warm.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, inherited=True)

    return begin


def finish(process):
    out, err = process.communicate(timeout=180)
    assert "Traceback" not in err, err
    return process.returncode, out, err


@pytest.mark.slow  # a sweep of two points, each of two ranks
def test_points_of_two_ranks(start, tmp_path, monkeypatch):
    """Each point starts its own ranks; one whose second rank fails is one row that says why."""
    (tmp_path / "sitecustomize.py").write_text(RANK_FAILS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    two = ["strategy=ddp", "trainer.devices=2", "budget.steps=2"]
    code, out, err = finish(start("seed=1,2", "sweep=d", *two))
    assert code == 1, out + err
    good, bad = (record.read(tmp_path / f"multirun/d/seed={s}") for s in (1, 2))
    assert (good["status"], good["devices"], good["steps"]) == ("completed", 2, 2)
    assert (bad["status"], bad["reason"]) == ("failed", "this rank fails")


@pytest.mark.slow  # four runs
def test_a_sweep_that_is_killed_and_started_again_ends_with_the_same_report(start, tmp_path):
    long = ["seed=1,2", "budget.steps=300", "train.checkpoint_every=20", "train.log_every=20"]
    process = start(*long, "sweep=cut")
    half = tmp_path / "multirun/cut/seed=2/checkpoints"
    until(lambda: half.exists() and any(half.glob("step=*")), process, seconds=120)
    process.kill()
    process.communicate()
    code, out, err = finish(start(*long, "sweep=cut"))
    assert code == 0, out + err
    assert record.read(half.parent)["resumed"] == 1
    shutil.copytree(tmp_path / "multirun/cut/seed=1", tmp_path / "multirun/whole/seed=1")  # it was not interrupted
    code, out, err = finish(start(*long, "sweep=whole"))
    assert code == 0, err
    assert "1 complete" in out
    cut, whole = (tmp_path / "multirun" / name / "seed=2/metrics.csv" for name in ("cut", "whole"))
    assert numbers(cut) == numbers(whole)
    assert verdict(tmp_path / "multirun/cut") == verdict(tmp_path / "multirun/whole")


def numbers(path):
    """Its lines without the last column, `seconds`."""
    return [line.rpartition(",")[0] for line in path.read_text().splitlines()]


def verdict(folder):
    """What the report says, but for folders, times and what follows from them, which differ from run to run."""
    times = ("second", "memory", "mfu", "command", "folder", "resumed", "commit")

    def without(node):
        if isinstance(node, dict):
            return {k: without(v) for k, v in node.items() if not any(t in k for t in times)}
        if isinstance(node, list):
            return [without(v) for v in node if not (isinstance(v, str) and "commit" in v)]  # the checkout may move on
        return node

    return json.dumps(without(json.loads((folder / "report.json").read_text()))).replace(folder.name, "SWEEP")


@pytest.mark.slow  # two runs
def test_submitits_local_executor(start, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    code, out, err = finish(start("seed=1,2", "sweep=s", "hydra/launcher=submitit_local", "budget.steps=2"))
    assert code == 0, out + err
    assert [record.read(tmp_path / f"multirun/s/seed={s}")["status"] for s in (1, 2)] == ["completed"] * 2
    assert "sweep s: 2 of 2 points complete" in out
