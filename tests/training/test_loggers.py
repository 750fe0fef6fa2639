"""Loggers: what they write is read back with other readers; whatever happens to them, the run's numbers stay."""

import csv
import json
import os
import random
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from llmlab import workspace
from llmlab.cli import run as command
from llmlab.config import validate
from llmlab.config.compose import compose
from llmlab.errors import UserError
from llmlab.lab import account, record
from llmlab.training import checkpoint, loggers
from llmlab.training.loggers import samples, weights_and_biases
from llmlab.training.loggers.guard import Guarded
from llmlab.training.run import train

wandb = pytest.importorskip("wandb")
pytest.importorskip("tensorboard")

RUN = ["model=qwen_moe", "model.n_layers=2", "budget.steps=8", "train.log_every=2", "train.validate_every=4"]
RUN += ["model.dropout=0.1"]


def run(folder, tiny, *overrides):
    last = {o.partition("=")[0]: o for o in (*tiny, *RUN, *overrides)}
    return train(compose(list(last.values())), folder)


@pytest.fixture(autouse=True)
def nowhere(monkeypatch, tmp_path):
    """No key, no settings and no folder of the user's."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in [n for n in os.environ if n.startswith("WANDB") or n == "NETRC"]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def plain(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "plain"
    run(folder, tiny)
    return folder


@pytest.fixture(scope="module")
def both(tiny, tmp_path_factory):
    """A run with every logger, in a sweep's folder."""
    folder = tmp_path_factory.mktemp("runs") / "grid" / "seed=1"
    folder.parent.mkdir()
    (folder.parent / "sweep.json").write_text("{}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(folder.parent))
        patch.delenv("WANDB_API_KEY", raising=False)
        run(folder, tiny, "logger=[wandb,tensorboard]", "logger.wandb.artifact=true", "logger.wandb.tags=[mine]")
    return folder


def rows(folder):
    with open(folder / "metrics.csv", newline="") as f:
        return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(f)]


def written(folder):
    """The records of the .wandb files of a run: LevelDB's log format, in blocks of 32 KiB, behind 7 bytes of W&B's own."""
    from wandb.proto import wandb_internal_pb2

    found = []
    for path in sorted(folder.glob("wandb/offline-run-*/run-*.wandb")):
        data, at, whole = path.read_bytes(), 7, b""
        while at + 7 <= len(data):
            left = 32768 - at % 32768
            if left < 7:
                at += left
                continue
            _, length, kind = struct.unpack("<IHB", data[at : at + 7])
            whole += data[at + 7 : at + 7 + length]
            at += 7 + length
            if kind in (1, 4):  # whole, or the last of several
                found.append(wandb_internal_pb2.Record())
                found[-1].ParseFromString(whole)
                whole = b""
    return [(r.WhichOneof("record_type"), getattr(r, r.WhichOneof("record_type"))) for r in found]


def history(folder):
    """{step: {key: value}}"""
    found = {}
    for _, h in (r for r in written(folder) if r[0] == "history"):
        found[h.step.num] = {i.key or ".".join(i.nested_key): json.loads(i.value_json) for i in h.item}
    return found


def weights(folder):
    return checkpoint.read(folder / "checkpoints" / checkpoint.name(8))


# ---------------------------------------------------------------- what is written


def test_numbers_are_the_same_with_loggers(plain, both):
    assert (plain / "metrics.csv").read_bytes() == (both / "metrics.csv").read_bytes()
    (ours, state), (theirs, other) = weights(plain), weights(both)
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)
    assert {k: v for k, v in state.items() if k == "loops"} == {k: v for k, v in other.items() if k == "loops"}


def test_wandb_has_the_rows_of_metrics_csv(both):
    found, expected = history(both), {}
    for row in rows(both):
        expected.setdefault(int(row.pop("step")), {}).update(row)
    assert found.keys() == expected.keys()
    flops = record.read(both)["flops_per_token"]
    for step, row in expected.items():
        assert {k: found[step][k] for k in row} == row
        assert found[step]["flops"] == row["tokens"] * flops
    assert any("tokens_per_second" in row for row in found.values())


def test_wandb_knows_what_the_run_is(both):
    kinds = dict(written(both))
    known, it = record.read(both), kinds["run"]
    assert (it.project, it.run_group, it.job_type, it.display_name) == ("llmlab", "grid", "train", "seed=1")
    assert it.run_id == known["loggers"]["wandb"]["id"]
    assert {"attention=gqa", "moe=topk", "mine"} <= set(it.tags)
    config = {i.key: json.loads(i.value_json) for i in it.config.update}
    assert config["model"]["n_layers"] == 2
    assert config["parts"]["moe"] == "topk"
    metrics = {m.name or m.glob_name: m for k, m in written(both) if k == "metric"}
    assert metrics["*"].step_metric == "tokens"
    assert "flops" in metrics
    summary = {}
    for _, s in (r for r in written(both) if r[0] == "summary"):
        summary |= {i.key or ".".join(i.nested_key): json.loads(i.value_json) for i in s.update}
    assert summary["status"] == "completed"
    for name in ("tokens_per_second", "mfu"):
        assert summary[name] == known[name]
    assert summary["val_loss"] == known["metrics"]["val_loss"]
    model = [a for k, a in written(both) if k == "artifact" and a.type == "model"]
    assert len(model) == 1
    assert "model.safetensors" in {entry.path for entry in model[0].manifest.contents}


def test_samples_and_load_in_wandb(both):
    found = history(both)
    kept = samples.read(both / samples.NAME)
    assert [s.step for s in kept] == [4, 8]
    assert all(s.prompt and s.text for s in kept)
    file = both / record.read(both)["loggers"]["wandb"]["folder"] / "files" / found[8]["samples.path"]
    assert json.loads(file.read_text())["data"] == [list(s) for s in kept]
    for step in (2, 4, 6, 8):
        for layer in ("00", "01"):  # every one of a step's tokens visits per_token experts
            assert sum(found[step][f"load/layer {layer}.values"]) == 8 * 16 * 2
        assert found[step]["load/max_over_mean"] >= 1


def test_tensorboard_has_the_same(both):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(both / "tensorboard"), size_guidance={"tensors": 0, "scalars": 0}).Reload()
    tags = found.Tags()
    for row in rows(both):
        for name, value in row.items():
            if name not in ("step", "tokens"):
                at = {e.step: e.value for e in found.Scalars(name)}
                assert at[int(row["step"])] == np.float32(value)
        if "loss" in row:
            assert int(row["tokens"]) in {e.step for e in found.Scalars("tokens/loss")}
    assert "load/layer 00" in tags["histograms"]
    assert sum(found.Histograms("load/layer 01")[0].histogram_value.bucket) == 8 * 16 * 2
    text = found.Tensors("sample/text_summary")[-1].tensor_proto.string_val[0].decode()
    assert samples.read(both / samples.NAME)[-1].text.split()[0] in text
    assert {"config/text_summary", "command/text_summary"} <= set(tags["tensors"])
    assert "_hparams_/session_start_info" in found.summary_metadata


def test_the_record_names_the_loggers_and_nothing_is_left(both):
    known = record.read(both)["loggers"]
    assert known["wandb"]["mode"] == "offline"
    assert (both / known["wandb"]["folder"]).is_dir()
    assert known["wandb"]["see"].startswith("wandb sync ")
    assert known["tensorboard"]["folder"] == "tensorboard"
    assert not any(name in os.environ for name in ("WANDB_SERVICE", "WANDB_DATA_DIR", "WANDB_CACHE_DIR"))
    assert not (both.parent / ".local").exists()  # HOME of that run
    assert not (both.parent / ".cache").exists()


def test_writing_a_sample_leaves_random_numbers_alone(both, tmp_path):
    from llmlab.lab.folder import load_model

    model, tokenizer = load_model(both)
    model.train()
    ids = np.array(tokenizer.encode("the quick brown fox jumps over the lazy dog"))
    corpus = SimpleNamespace(
        validation=SimpleNamespace(tokens=ids),
        token_bytes=np.ones(model.sizes.vocab_size, int),
        vocabulary=SimpleNamespace(size=int(ids.max()) + 1, special={}),
        tokenizer=tokenizer,
    )
    made = samples.Samples(tmp_path, SimpleNamespace(corpus=corpus, spec=model.spec), most=10, every=1, horizon=10)
    module = SimpleNamespace(
        model=model,
        placement=SimpleNamespace(compile=False),
        trainer=SimpleNamespace(strategy=SimpleNamespace(whole=True)),
    )
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    first, again = made.take(1, module), made.take(2, module)
    assert first == again
    assert model.training
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[1:]


@pytest.mark.parametrize(("every", "horizon"), [(1, 7), (1, 10), (1, 11), (3, 100), (50, 1000), (7, 5)])
def test_at_most_ten_samples(every, horizon, tmp_path):
    made = samples.Samples(tmp_path, None, most=10, every=every, horizon=horizon)
    due = [s for s in range(0, horizon + 1, every) if made.due(s)]
    assert len(due) <= 10
    assert len(due) >= min(5, horizon // every)


def test_samples_behind_the_checkpoint_are_dropped(tmp_path):
    made = samples.Samples(tmp_path, None, most=10, every=1, horizon=10)
    kept = [samples.Sample(4, "a", "b\nc"), samples.Sample(8, "a", "é")]
    made.path.write_text("".join(json.dumps(s._asdict()) + "\n" for s in kept) + '{"step": 9, "pro')
    assert samples.read(made.path) == kept
    made.cut(5)
    assert samples.read(made.path) == kept[:1]


# ---------------------------------------------------------------- what goes wrong


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


SLOW = [pytest.param(harm, marks=pytest.mark.slow) for harm in (fails_at_a_row, dies)]


@pytest.mark.parametrize("harm", [fails_at_begin, *SLOW])
def test_a_failing_wandb_costs_one_line(harm, plain, tiny, tmp_path, monkeypatch, capfd):
    harm(monkeypatch)
    done = run(tmp_path / "run", tiny, "logger=[wandb,tensorboard]")
    assert harm is fails_at_begin or wandb.sdk.wandb_setup._singleton is None  # nothing is left to do at exit
    said = capfd.readouterr()
    assert done["status"] == "completed"
    assert (tmp_path / "run/metrics.csv").read_bytes() == (plain / "metrics.csv").read_bytes()
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


# ---------------------------------------------------------------- config


@pytest.mark.parametrize(
    ("typed", "line"),
    [
        ("logger=wandbb", r"there is no such logger; did you mean wandb\?"),
        ("logger=[wandb,tensorbord]", r"logger=tensorbord: there is no such logger; did you mean tensorboard\?"),
        ("logger=wandb logger.wandb.mode=on", r"logger\.wandb\.mode must be one of auto, online, offline"),
        ("logger=wandb logger.wandb.projct=x", r"logger\.wandb\.projct: .* did you mean project\?"),
        ("logger=wandb logger.wandb.artifact=maybe", r"must be true or false, but is 'maybe'"),
        ("logger.wandb.project=x", r"nothing is chosen at logger\.wandb; choose logger=wandb"),
        ("logger.samples=3", r"logger\.samples: there is no logger; add logger=wandb"),
        ("logger=tensorboard logger.samples=-1", r"logger\.samples must be at least 0"),
        ("attention=[mha,mla]", r"attention is one choice; for a sweep over several, -m attention=mha,mla"),
    ],
)
def test_wrong_configs(typed, line):
    with pytest.raises(UserError, match=line):
        compose(typed.split())


def test_several_at_once_and_none():
    chosen = compose(["logger=[wandb,tensorboard]", "logger.wandb.project=mine"])
    assert chosen.cfg.logger.wandb.project == "mine"
    assert chosen.cfg.logger.tensorboard.flush_seconds == 30
    assert [t.choice for t in chosen.typed] == ["[wandb,tensorboard]"]
    assert compose([]).cfg.logger == {"wandb": None, "tensorboard": None, "samples": 10}


def test_a_missing_package_is_said_before_anything_is_written(monkeypatch, tmp_path):
    (tmp_path / "leftover" / "run").mkdir(parents=True)  # as W&B leaves a folder of its own name where it ran
    monkeypatch.syspath_prepend(tmp_path)
    assert not validate._installed("leftover")
    assert validate._installed("json")
    monkeypatch.setattr(validate, "_installed", lambda name: name != "wandb")
    with pytest.raises(UserError, match="the package wandb is not installed; pip install wandb"):
        compose(["logger=[wandb,tensorboard]"])


def test_the_group_is_the_sweep(tmp_path):
    from omegaconf import OmegaConf

    folder = tmp_path / "grid" / "seed=1"
    assert loggers.sweep_of(OmegaConf.create({"sweep": None}), folder) is None
    folder.mkdir(parents=True)
    (folder.parent / "sweep.json").write_text("{}")
    assert loggers.sweep_of(OmegaConf.create({}), folder) == "grid"
    assert loggers.sweep_of(OmegaConf.create({"sweep": "ablation"}), folder) == "ablation"


# ---------------------------------------------------------------- the dashboard


def test_the_workspace_as_json(tmp_path, capsys):
    pytest.importorskip("wandb_workspaces")
    out = tmp_path / "view.json"
    assert command(["wandb", "workspace", "project=mine", "by=attention", "--dry-run", f"out={out}"]) == 0
    view = json.loads(out.read_text())
    assert view["project"] == "mine"
    sections = {s["name"]: s["panels"] for s in view["spec"]["section"]["panelBankConfig"]["sections"]}
    assert list(sections) == ["Loss over tokens", "Loss over flops", "Throughput and gradients", "Experts", "Samples"]
    panels = [p["config"] for section in sections.values() for p in section]
    grouped = {(p["xAxis"], *p["metrics"]) for p in panels if p.get("groupBy") == "parts.value.attention"}
    assert grouped == {("tokens", "val_loss"), ("flops", "val_loss")}
    shown = {m for p in panels for m in p.get("metrics", ())}
    assert {"loss", "val_loss", "tokens_per_second", "grad_norm", "load/max_over_mean"} <= shown


def test_the_workspace_needs_a_key(capsys):
    pytest.importorskip("wandb_workspaces")
    assert command(["wandb", "workspace"]) == 1
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert "no API key" in said[0]
    assert "--dry-run" in said[0]
    assert workspace.Arguments().project == compose(["logger=wandb"]).cfg.logger.wandb.project


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
    assert set(history(tmp_path / "run")) == {2, 4, 6, 8}
    said = capfd.readouterr()
    assert [line for line in said.err.splitlines() if "wandb" in line] == []
    assert len([line for line in said.out.splitlines() if line.startswith("wandb: offline, ")]) == 1
    assert (tmp_path / "run/metrics.csv").read_bytes() == (plain / "metrics.csv").read_bytes()


@pytest.mark.slow
def test_a_resumed_run_stays_the_same_run(plain, tiny, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = tmp_path / "run"
    once = run(folder, tiny, "logger=[wandb,tensorboard]", "trainer.max_steps=4")
    done = train(compose([f"resume={folder}", "trainer.max_steps=-1"]), folder)
    assert done["loggers"]["wandb"]["id"] == once["loggers"]["wandb"]["id"]
    assert (folder / "metrics.csv").read_bytes() == (plain / "metrics.csv").read_bytes()
    assert len({r.run_id for k, r in written(folder) if k == "run"}) == 1
    assert len(list(folder.glob("wandb/offline-run-*"))) == 2
    assert set(history(folder)) == {2, 4, 6, 8}
    assert [s.step for s in samples.read(folder / samples.NAME)] == [4, 8]
    found = EventAccumulator(str(folder / "tensorboard")).Reload()
    assert [e.step for e in found.Scalars("loss")] == [2, 4, 6, 8]


@pytest.mark.slow
def test_a_logger_may_be_added_to_a_run_that_goes_on(plain, tiny, tmp_path):
    folder = tmp_path / "run"
    run(folder, tiny, "trainer.max_steps=4")
    again = [f"resume={folder}", "trainer.max_steps=-1", "logger=wandb", "logger.wandb.project=late"]
    done = train(compose(again), folder)
    assert done["loggers"]["wandb"]["project"] == "late"
    assert (folder / "metrics.csv").read_bytes() == (plain / "metrics.csv").read_bytes()
    assert set(history(folder)) == {6, 8}


@pytest.mark.slow
def test_a_process_ends_though_its_service_hangs(plain, tiny, tmp_path):
    """W&B's process is stopped and does nothing any more; the run waits for it as long as it is told to, here 2 s."""
    last = {o.partition("=")[0]: o for o in (*tiny, *RUN, "logger=wandb", f"hydra.run.dir={tmp_path / 'run'}")}
    code = f"""
import os, signal, sys, time, wandb
from llmlab.cli import run
from llmlab.training import loggers
from llmlab.training.loggers.weights_and_biases import WandBSink
kept = WandBSink.row
def row(self, step, tokens, values):
    if step == 4:
        process = wandb.sdk.wandb_setup.singleton()._connection._proc._process
        os.kill(process.pid, signal.SIGSTOP)
        time.sleep(0.2)
    kept(self, step, tokens, values)
WandBSink.row = row
loggers.Loggers.end.__defaults__ = (None, 2.0)
sys.exit(run(["train", *{list(last.values())!r}]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if "wandb" in line]
    assert len(lines) == 1, done.stderr
    assert "logger=wandb is switched off" in lines[0]
    assert "Traceback" not in done.stderr
    assert (tmp_path / "run/metrics.csv").read_bytes() == (plain / "metrics.csv").read_bytes()
    assert Path(tmp_path / "run/run.json").exists()
