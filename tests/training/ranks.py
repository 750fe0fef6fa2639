"""Runs of `llmlab train` one after the other in the same processes, one a rank as torchrun starts them.

One import of Lightning for all, or one a rank, not one a rank and run. Results are read from the run folders.
"""

import gc
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path


def start(script: str, folder: Path, ranks: int, runs: Sequence, real: bool = False) -> list[subprocess.Popen]:
    """A process a rank of `script`, which is told the folder, how many they are and what is to be done.

    real: import Lightning in each, as the ranks of a user do, rather than fork them from one process (warm.py).
    """
    from tests import warm  # of no use to the script

    folder.mkdir(parents=True, exist_ok=True)
    env = {**os.environ, "MASTER_ADDR": "127.0.0.1", "NODE_RANK": "0", "OMP_NUM_THREADS": "1"}
    return [
        (subprocess.Popen if real else warm.Popen)(
            [sys.executable, script, str(folder), str(ranks), json.dumps(runs)],
            env={**env, "LOCAL_RANK": str(rank)},
            stdout=(folder / f"rank{rank}.log").open("w"),
            stderr=subprocess.STDOUT,
        )
        for rank in range(ranks)
    ]


def said(folder: Path, ranks: int) -> str:
    """The end of what each rank has written."""
    return "\n".join((folder / f"rank{rank}.log").read_text()[-3000:] for rank in range(ranks))


def train(folder: Path, *runs: list[str], ranks: int = 2, timeout: float = 300, real: bool = False) -> None:
    """Each of `runs` is what is typed behind `llmlab train`, or ["back", run, copy]: the run as it was one checkpoint ago.

    AssertionError with what was said if one fails.
    """
    work(__file__, folder, ranks, runs, timeout, real)
    done = len(list(folder.glob("done-*-0")))  # gloo sometimes aborts at exit, when all is done
    assert done == len(runs), f"run {done} failed: {runs[done]}\n{said(folder, ranks)}"


def work(script: str, folder: Path, ranks: int, runs: Sequence, timeout: float, real: bool = False) -> None:
    """What `start` starts, to its end, or to that of the first rank that fails."""
    started = start(script, folder, ranks, runs, real)
    try:
        end = time.monotonic() + timeout
        while any(process.poll() is None for process in started) and time.monotonic() < end:
            if any(process.poll() for process in started):  # the others would wait for it
                break
            time.sleep(0.05)
    finally:
        for process in started:
            process.kill()
            process.wait()


def port(folder: Path, run: int, rank: str) -> str:
    """A port for each run, as a rank that is ahead would meet the store of the run before.

    Rank 0 chooses one that is free now, below those that connections of others are given.
    """
    file = folder / f"port-{run}"
    while rank == "0" and not file.exists():
        port = random.Random(os.urandom(8)).randrange(15_000, 30_000)
        with socket.socket() as s:
            if s.connect_ex(("127.0.0.1", port)):
                file.with_suffix(".new").write_text(str(port))
                file.with_suffix(".new").rename(file)
    while not file.exists():
        time.sleep(0.01)
    return file.read_text()


def _work(folder: Path, ranks: int, runs: list[list[str]]) -> None:
    from llmlab.commands.cli import run

    gc.set_threshold(100_000, 10, 10)  # as the command line does
    rank, code = os.environ["LOCAL_RANK"], 0
    for i, argv in enumerate(runs):
        os.environ["MASTER_PORT"] = port(folder, i, rank)
        os.environ["WORLD_SIZE"] = str(ranks)  # which Lightning deletes at the end of a run
        if argv[0] != "back":
            code = run(["train", *argv])
        elif rank == "0":
            code = back(Path(argv[1]), Path(argv[2]))
        if code:
            os._exit(code)
        (folder / f"done-{i}-{rank}").touch()
        while len(list(folder.glob(f"done-{i}-*"))) < ranks:
            time.sleep(0.01)
    gc.freeze()  # the end of a process would look through all that it has


def back(run: Path, copy: Path) -> int:
    """The run as it was one checkpoint ago."""
    shutil.copytree(run, copy)
    *_, before, last = sorted(copy.glob("checkpoints/step=*"))
    shutil.rmtree(last)
    record = json.loads((copy / "run.json").read_text())
    record.update(status="interrupted", steps=int(before.name[5:]))
    (copy / "run.json").write_text(json.dumps(record))
    return 0


if __name__ == "__main__":
    _work(Path(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3]))
