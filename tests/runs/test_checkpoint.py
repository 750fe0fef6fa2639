import json
import os
import shutil
import subprocess
import sys

import pytest
import torch

from llmlab.errors import UserError
from llmlab.runs import checkpoint


def write(folder, step, value=1.0):
    path = folder / checkpoint.name(step)
    table = torch.full((50, 4), value)
    weights = {"table": table, "tied": table, "bias": torch.arange(3.0)}
    checkpoint.write(path, weights, {"optimizer": [{"step": torch.tensor(step)}], "name": "adamw"})
    return path


def test_what_was_written_is_read(tmp_path):
    path = write(tmp_path, 7)
    weights, state = checkpoint.read(path)
    assert torch.equal(weights["table"], torch.ones(50, 4))
    assert torch.equal(weights["tied"], weights["table"])
    assert int(state["optimizer"][0]["step"]) == 7
    assert not list(tmp_path.glob(".step*"))
    modes = {file.name: file.stat().st_mode & 0o777 for file in path.iterdir()}
    assert len(set(modes.values())) == 1, f"whoever may read one file may read all: {modes}"


@pytest.mark.parametrize("file", [checkpoint.WEIGHTS, checkpoint.STATE, checkpoint.MANIFEST])
def test_any_flipped_bit_of_any_file_is_seen(file, tmp_path):
    path = write(tmp_path, 1)
    good = (path / file).read_bytes()
    missed = []
    for at in range(0, len(good) * 8, max(1, len(good) * 8 // 150)):
        bad = bytearray(good)
        bad[at // 8] ^= 1 << at % 8
        (path / file).write_bytes(bad)
        if checkpoint.problem(path) is None:
            missed.append(at)
    if file == checkpoint.MANIFEST:  # a space that became another white space, and nothing else
        missed = [at for at in missed if not harmless(good, at)]
    assert not missed
    (path / file).write_bytes(good)
    assert checkpoint.problem(path) is None


def harmless(good, at):
    bad = bytearray(good)
    bad[at // 8] ^= 1 << at % 8
    return json.loads(bytes(bad)) == json.loads(good)


@pytest.mark.parametrize("file", [checkpoint.WEIGHTS, checkpoint.STATE, checkpoint.MANIFEST])
def test_the_one_before_a_truncated_or_missing_file_is_used_and_that_is_said(file, tmp_path):
    old, new = write(tmp_path, 1), write(tmp_path, 2)
    size = (new / file).stat().st_size
    os.truncate(new / file, size // 2)
    said = []
    assert checkpoint.latest(tmp_path, said.append) == old
    assert len(said) == 1
    assert new.name in said[0]
    (new / file).unlink()
    assert checkpoint.latest(tmp_path, said.append) == old
    with pytest.raises(UserError, match=new.name):
        checkpoint.read(new)


FILL = """
import resource, sys, torch
from pathlib import Path
from llmlab.errors import UserError
from llmlab.runs import checkpoint
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    weights, state = {"w": torch.zeros(int(sys.argv[3]))}, {"s": torch.zeros(int(sys.argv[4]))}
    checkpoint.write(Path(sys.argv[1]) / checkpoint.name(2), weights, state)
except UserError as e:
    print(e)
"""


@pytest.mark.parametrize(("weights", "state"), [(100_000, 10), (10, 100_000)])
def test_a_full_disk_leaves_the_last_one_intact_and_says_so(weights, state, tmp_path):
    before = write(tmp_path, 1)
    command = [sys.executable, "-c", FILL, str(tmp_path), "50000", str(weights), str(state)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "could not be written" in done.stdout
    assert f"{before.name}, is intact" in done.stdout
    assert len(done.stdout.splitlines()) == 1
    assert [p.name for p in tmp_path.iterdir()] == [before.name]
    assert checkpoint.problem(before) is None


def test_too_little_space_is_seen_before_anything_is_written(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10))
    with pytest.raises(UserError, match="10 are free"):
        write(tmp_path, 1)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_kills_while_writing_leave_only_whole_checkpoints(tmp_path):
    code = (
        "import sys, torch; from pathlib import Path; from llmlab.runs import checkpoint\n"
        "w = {'w': torch.arange(200_000.0)}\n"
        "step = int(sys.argv[2])\n"
        "print('ready', flush=True)\n"
        "while True:\n"
        "    step += 1; checkpoint.write(Path(sys.argv[1]) / checkpoint.name(step), w, {'step': torch.tensor(step)})\n"
        "    for old in checkpoint.all_of(Path(sys.argv[1]))[:-2]: checkpoint.remove(old)\n"
    )
    step = 0
    for attempt in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path), str(step)], stdout=subprocess.PIPE, text=True
        )
        process.stdout.readline()
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.15 + 0.0371 * attempt)
        process.kill()
        process.wait()
        said = []
        newest = checkpoint.latest(tmp_path, said.append)
        assert not said
        if newest is not None:
            weights, state = checkpoint.read(newest)
            assert torch.equal(weights["w"], torch.arange(200_000.0))
            step = int(state["step"])
            assert checkpoint.step_of(newest) == step
    assert step > 0
    checkpoint.sweep(tmp_path)
    assert all(p.name.startswith("step=") for p in tmp_path.iterdir())
