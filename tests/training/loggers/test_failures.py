"""Whatever happens to a logger, the run goes on, its numbers stay, and one line says what happened."""

import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from logged import RUN, history, run, written
from omegaconf import OmegaConf
from small_runs import numbers

from llmlab.config.compose import compose
from llmlab.training.loggers import account, samples, weights_and_biases
from llmlab.training.loggers.guard import Guarded
from llmlab.training.run import train

wandb = pytest.importorskip("wandb")
pytest.importorskip("tensorboard")


def fails_at_begin(patch):
    def init(**unused):
        raise RuntimeError("the server is on fire\nand more")

    patch.setattr(wandb, "init", init)


def fails_at_a_row(patch):
    def row(self, step, tokens, values):
        if step == 4:
            raise OSError(28, "No space left on device")

    patch.setattr(weights_and_biases.WandBSink, "row", row)


def dies(patch):
    kept = weights_and_biases.WandBSink.row

    def row(self, step, tokens, values):
        if step == 4:
            wandb.sdk.wandb_setup.singleton()._connection._proc._process.kill()
            time.sleep(0.2)
        kept(self, step, tokens, values)

    patch.setattr(weights_and_biases.WandBSink, "row", row)


@pytest.mark.slow  # a run each, the longest of 3 s
@pytest.mark.parametrize("harm", [fails_at_begin, fails_at_a_row, dies])
def test_a_failing_wandb_costs_one_line(harm, plain, tiny, tmp_path, monkeypatch, capfd):
    harm(monkeypatch)
    done = run(tmp_path / "run", tiny, "logger=[wandb,tensorboard]")
    assert harm is fails_at_begin or wandb.sdk.wandb_setup._singleton is None  # nothing is left to do at exit
    said = capfd.readouterr()
    assert done["status"] == "completed"
    assert numbers(tmp_path / "run") == numbers(plain)
    lines = [line for line in said.err.splitlines() if "wandb" in line.lower()]
    assert len(lines) == 1, said.err
    assert lines[0].startswith("warning: logger=wandb is switched off: ")
    assert done["loggers"]["wandb"]["failed"] in lines[0]
    assert "failed" not in done["loggers"]["tensorboard"]


class Slow:
    def __init__(self):
        self.calls, self.abandoned = [], 0

    def row(self, n):
        self.calls.append(n)

    def hang(self):
        while not self.abandoned:
            time.sleep(0.01)

    def abandon(self):
        self.abandoned += 1


def test_a_sink_that_hangs_is_left_behind():
    said = []
    sink = Slow()
    guarded = Guarded("x", sink, lambda name, reason: said.append((name, reason)))
    assert guarded.tell("row", 1)
    assert guarded.ask("hang", seconds=0.1) is None
    assert said == [("x", "no answer after 0.1 s")]
    assert sink.calls == [1]
    assert sink.abandoned == 1
    assert not guarded.tell("row", 2)
    guarded.close()
    guarded._thread.join(2)
    assert not guarded._thread.is_alive()
    assert len(said) == 1


def test_a_sink_that_does_not_keep_up_is_left_behind(monkeypatch):
    said = []
    guarded = Guarded("x", Slow(), lambda name, reason: said.append(reason))
    guarded.tell("hang")
    for i in range(2000):
        guarded.tell("row", i)
    assert said == ["it does not answer"]


def test_no_key_no_network(monkeypatch, tmp_path):
    assert account.offline_reason("offline") == ""
    assert "no API key" in account.offline_reason("auto")
    (tmp_path / ".netrc").write_text("machine api.wandb.ai login user password " + "a" * 40 + "\n")
    monkeypatch.setattr(account.socket, "create_connection", lambda *a, **k: SimpleNamespace(close=lambda: None))
    assert account.offline_reason("auto") is None

    def unreachable(*unused, **unused_too):
        raise OSError(101, "Network is unreachable")

    monkeypatch.setattr(account.socket, "create_connection", unreachable)
    for name in account.PROXIES:
        monkeypatch.delenv(name, raising=False)
    assert account.offline_reason("online") == "as api.wandb.ai can't be reached (Network is unreachable)"
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert account.offline_reason("auto") == ""


# ---------------------------------------------------------------- whole processes


@pytest.mark.slow
def test_a_server_that_does_not_answer_leaves_the_run_offline(plain, tiny, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(weights_and_biases, "INIT_SECONDS", 2.0)
    for name in account.PROXIES:
        monkeypatch.delenv(name, raising=False)
    with socket.create_server(("127.0.0.1", 0)) as server:  # it takes connections and says nothing
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
        done = run(tmp_path / "run", tiny, "logger=wandb")
    assert (done["loggers"]["wandb"]["mode"], done["loggers"]["wandb"]["url"]) == ("offline", None)
    assert "failed" not in done["loggers"]["wandb"]
    assert set(history(tmp_path / "run")) == {1, 2, 4, 6, 8}
    said = capfd.readouterr()
    assert [line for line in said.err.splitlines() if "wandb" in line] == []
    assert len([line for line in said.out.splitlines() if line.startswith("wandb: offline, ")]) == 1
    assert numbers(tmp_path / "run") == numbers(plain)


@pytest.mark.slow
def test_a_resumed_run_stays_the_same_run(plain, tiny, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = tmp_path / "run"
    once = run(folder, tiny, "logger=[wandb,tensorboard]", "trainer.max_steps=4")
    done = train(compose([f"resume={folder}", "trainer.max_steps=-1"]), folder)
    assert done["loggers"]["wandb"]["id"] == once["loggers"]["wandb"]["id"]
    assert numbers(folder) == numbers(plain)
    assert len({r.run_id for k, r in written(folder) if k == "run"}) == 1
    assert len(list(folder.glob("wandb/offline-run-*"))) == 2
    assert set(history(folder)) == {1, 2, 4, 6, 8}
    assert [s.step for s in samples.read(folder / samples.NAME)] == [4, 8]
    found = EventAccumulator(str(folder / "tensorboard")).Reload()
    assert [e.step for e in found.Scalars("loss")] == [1, 2, 4, 6, 8]


@pytest.mark.slow
def test_a_logger_may_be_added_to_a_run_that_goes_on(plain, tiny, tmp_path):
    folder = tmp_path / "run"
    run(folder, tiny, "trainer.max_steps=4")
    again = [f"resume={folder}", "trainer.max_steps=-1", "logger=wandb", "logger.wandb.project=late"]
    done = train(compose(again), folder)
    assert done["loggers"]["wandb"]["project"] == "late"
    assert numbers(folder) == numbers(plain)
    assert set(history(folder)) == {6, 8}


@pytest.mark.slow
def test_a_process_ends_though_its_service_hangs(plain, tiny, tmp_path):
    """W&B's process is stopped and does nothing any more; the run waits for it as long as it is told to, here 2 s."""
    last = {o.partition("=")[0]: o for o in (*tiny, *RUN, "logger=wandb", f"hydra.run.dir={tmp_path / 'run'}")}
    code = f"""
import os, signal, sys, time, wandb
from llmlab.commands.cli import run
from llmlab.training.loggers.weights_and_biases import WandBSink
kept = WandBSink.row
def row(self, step, tokens, values):
    if step == 4:
        self.end_seconds = 2.0
        process = wandb.sdk.wandb_setup.singleton()._connection._proc._process
        os.kill(process.pid, signal.SIGSTOP)
        time.sleep(0.2)
    kept(self, step, tokens, values)
WandBSink.row = row
sys.exit(run(["train", *{list(last.values())!r}]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if "wandb" in line]
    assert len(lines) == 1, done.stderr
    assert "logger=wandb is switched off" in lines[0]
    assert "Traceback" not in done.stderr
    assert numbers(tmp_path / "run") == numbers(plain)
    assert Path(tmp_path / "run/run.json").exists()


def test_more_experts_than_bins():
    counts, edges = weights_and_biases._bins(list(range(1025)), 512)
    assert len(counts) == len(edges) - 1 == 342 and edges[-1] == 1025 and counts.sum() == sum(range(1025))
    assert weights_and_biases._bins([3, 1], 512)[0].tolist() == [3, 1]
    wandb.Histogram(np_histogram=(counts, edges))


def test_an_artifact_has_the_time_that_its_upload_may_take(tmp_path):
    for artifact, seconds in ((True, weights_and_biases.UPLOAD_SECONDS), (False, weights_and_biases.FINISH_SECONDS)):
        sink = weights_and_biases.WandBSink(OmegaConf.create({"artifact": artifact}), tmp_path, None)
        assert sink.end_seconds > seconds
