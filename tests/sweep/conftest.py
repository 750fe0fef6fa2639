import contextlib
import io
import json
import os
import subprocess
import sys

import pytest

# In place of a point's process: no config is composed and nothing is trained; what STAND_IN says of the seed happens.
STAND_IN = """
import sys

words = sys.orig_argv
if "train" in words and "-m" not in words[words.index("train"):]:
    import json, os, signal, time
    from pathlib import Path
    from llmlab.runs import lock, record

    typed = {k: v.strip('"') for k, _, v in (w.partition("=") for w in words if "=" in w)}
    resume = "resume" in typed
    folder = Path(typed["resume" if resume else "hydra.run.dir"])
    seed = typed.get("seed") or json.loads((folder / record.NAME).read_text())["seed"]
    lr = float(typed.get("optimizer.lr", 0.002))
    with open(os.environ["CALLS"], "a") as f:
        f.write(json.dumps([folder.name, resume]) + "\\n")
    lock.lock(folder)
    run = record.Record(folder, {"schema": 1, "seed": seed, "sweep": typed.get("sweep"), "metrics": {}})
    ranks = [k for k in ("LOCAL_RANK", "MASTER_PORT") if k in os.environ]
    seen = {"threads": os.environ.get("OMP_NUM_THREADS"), "gpus": os.environ.get("CUDA_VISIBLE_DEVICES")}
    what = json.loads(os.environ["STAND_IN"]).get(str(seed), "")
    if "wait" in what:  # before anyone is told that it runs
        told = []
        def stop(signum, frame):
            told.append(signal.Signals(signum).name)
            raise KeyboardInterrupt
        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)
        import ctypes
        ctypes.CDLL(None).prctl(1, int(signal.SIGTERM))
    run.update(status="running", reason=None, ranks=ranks, **seen)
    if "checkpoint" in what:
        (folder / "checkpoints/step=00000001").mkdir(parents=True, exist_ok=True)
        (folder / "checkpoints/step=00000001/manifest.json").write_text("{}")
    if "kill" in what:
        os.kill(os.getpid(), signal.SIGKILL)
    if "wait" in what:
        try:
            time.sleep(60)
        except KeyboardInterrupt:
            run.update(status="interrupted", reason=told[0])
            os._exit(130)
    if "fail" in what:
        run.update(status="failed", reason="it failed")
        os._exit(1)
    if "exit" in what:
        os._exit(7)
    run.update(status="completed", steps=1, metrics={"val_loss": abs(lr - 0.002) + int(seed)})
    os._exit(0)
"""


class Lab:
    """A folder to type `llmlab train -m` in, where training takes no time."""

    def __init__(self, folder, monkeypatch):
        self.folder, self.monkeypatch = folder, monkeypatch
        (folder / "sitecustomize.py").write_text(STAND_IN)
        self.calls_file = folder / "calls"
        monkeypatch.chdir(folder)
        for name in [k for k in os.environ if k.endswith("_NUM_THREADS")]:
            monkeypatch.delenv(name)
        monkeypatch.setenv("PYTHONPATH", str(folder))
        monkeypatch.setenv("CALLS", str(self.calls_file))
        self.reports, self.report_error = [], None
        monkeypatch.setattr("llmlab.report.write.write", self.report)
        self.stand_in({})

    def report(self, folders, *, out):
        assert list(folders) == [out]
        self.reports.append(out)
        if self.report_error:
            raise self.report_error

    def stand_in(self, what):
        self.monkeypatch.setenv("STAND_IN", json.dumps(what))

    def start(self, *overrides, what=None):
        self.stand_in(what or {})
        words = [sys.executable, "-m", "llmlab", "train", "-m", *overrides]
        return subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )

    def run(self, *overrides, what=None):
        """(exit code, stdout, stderr) of the command in this process: it starts sooner."""
        from llmlab.commands import cli

        self.stand_in(what or {})
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = cli.run(["train", "-m", *overrides])
        return code, out.getvalue(), err.getvalue()

    def calls(self):
        """[point, whether resumed] of every process since the last look."""
        if not self.calls_file.exists():
            return []
        found = [json.loads(line) for line in self.calls_file.read_text().splitlines()]
        self.calls_file.unlink()
        return found

    def record(self, *path):
        return json.loads(self.folder.joinpath("multirun", *path, "run.json").read_text())

    def sweep(self, name):
        return json.loads((self.folder / "multirun" / name / "sweep.json").read_text())


@pytest.fixture
def lab(tmp_path, monkeypatch):
    return Lab(tmp_path, monkeypatch)
