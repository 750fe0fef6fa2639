"""What loggers write is read back with other readers; the run's numbers stay."""

import json
import os

import numpy as np
import pytest
import torch
from logged import history, rows, weights, written
from small_runs import numbers

from llmlab.runs import record
from llmlab.training.loggers import samples

wandb = pytest.importorskip("wandb")
pytest.importorskip("tensorboard")


@pytest.mark.slow
def test_numbers_are_the_same_with_loggers(plain, both):
    """Though samples are written as it trains: what they draw, and eval mode, would show in what dropout leaves out."""
    assert numbers(plain) == numbers(both)
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
