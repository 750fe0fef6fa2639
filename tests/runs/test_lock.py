import json
import os
import signal
import subprocess
import sys
import time

import pytest

from llmlab.errors import UserError
from llmlab.runs import lock, record

HOLD = """
import sys, time
from pathlib import Path
from llmlab.runs import lock, record
folder = Path(sys.argv[1])
lock.lock(folder)
record.Record(folder).update(status="running", steps=3)
if len(sys.argv) > 2:  # a forked child that outlives its parent, as a DataLoader worker does
    import os
    if os.fork() == 0:
        time.sleep(3)
        os._exit(0)
print("ready", flush=True)
time.sleep(60)
"""


def start(*args):
    process = subprocess.Popen([sys.executable, "-c", HOLD, *map(str, args)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline().strip() == "ready"
    return process


@pytest.mark.parametrize("child", [[], ["child"]])
def test_running_until_it_is_killed_then_died(child, tmp_path):
    process = start(tmp_path, *child)
    try:
        assert record.read(tmp_path)["status"] == "running"
        with pytest.raises(UserError, match="another process"):
            lock.lock(tmp_path)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert record.read(tmp_path)["status"] == "died"
    assert json.loads((tmp_path / "run.json").read_text())["status"] == "running"
    lock.lock(tmp_path)
    lock.unlock(tmp_path)


def test_looking_does_not_free_the_own_lock(tmp_path):
    lock.lock(tmp_path)
    record.Record(tmp_path).update(status="running")
    assert record.read(tmp_path)["status"] == "running"
    probe = (
        "import sys; from pathlib import Path; from llmlab.runs import lock; print(lock.is_locked(Path(sys.argv[1])))"
    )
    done = subprocess.run([sys.executable, "-c", probe, str(tmp_path)], capture_output=True, text=True)
    assert done.stdout.strip() == "True"
    lock.unlock(tmp_path)
    assert not lock.is_locked(tmp_path)


def test_a_reader_never_sees_half_a_record(tmp_path):
    code = (
        "import sys; from pathlib import Path; from llmlab.runs.record import Record\n"
        "r = Record(Path(sys.argv[1])); i = 0\n"
        "while True: i += 1; r.update(status='completed', filler='x' * (i % 7) * 5000, i=i)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
    try:
        while not (tmp_path / "run.json").exists():
            time.sleep(0.01)
        seen, deadline = set(), time.monotonic() + 20
        while len(seen) < 8 and time.monotonic() < deadline:
            seen.add(record.read(tmp_path)["i"])
    finally:
        process.kill()
        process.wait()
    assert len(seen) == 8


def test_only_the_first_rank_writes(tmp_path):
    record.Record(tmp_path, writes=False).update(status="running")
    assert not os.listdir(tmp_path)


def test_a_folder_without_a_record_is_named(tmp_path):
    with pytest.raises(UserError, match="no run folder"):
        record.read(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        record.read(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("field", "value"), [("batch", "x"), ("batch", True), ("batch", {"micro": []}), ("hardware", {"cpu": []})]
)
def test_a_record_whose_batch_or_machine_is_of_another_kind_is_named(field, value, tmp_path):
    (tmp_path / record.NAME).write_text(json.dumps({"schema": 1, "status": "completed", field: value}))
    with pytest.raises(UserError, match=rf"run\.json: {field}"):
        record.read(tmp_path)
