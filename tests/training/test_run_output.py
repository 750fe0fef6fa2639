"""What a run shows: its first lines, a sample, advice, its picture."""

import csv

import pytest
from small_runs import run

from llmlab.training import finish


def test_what_a_short_run_says(tiny, tmp_path, capsys, monkeypatch):
    """Its stand-in objective on the first line, a rate that is never reached, the loss of step 1; no sample of noise."""
    words = [o for o in tiny if not o.startswith("train.sample")]
    monkeypatch.setattr(finish, "once_a_week", lambda: True)
    done = run(tmp_path / "run", *words, "model=gemma3", "schedule.warmup_steps=5000", "trainer.max_steps=3")
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("gemma3: ")
    assert "objective=clm, in place of the paper's distillation of a larger model" in said[0]
    never = "schedule=cosine: the learning rate never exceeds 0.0024 of optimizer.lr in 12 steps"
    assert len([line for line in said if line.startswith(f"note: {never}")]) == 1
    assert not any("stands in" in line for line in said[1:])
    assert done["notes"][0].startswith(
        "objective=clm stands in for what gemma3's paper trains by, distillation of a larger model's next-token probabilities"
    )
    assert any(n.startswith(never) for n in done["notes"])
    assert any(line.startswith("step 1/3  loss ") for line in said)
    assert "try next" in said
    assert not any("sample" in line for line in said)
    assert done["sample"] is None
    rows = list(csv.DictReader((tmp_path / "run/metrics.csv").open()))
    assert (rows[0]["step"], rows[-1]["step"]) == ("1", "3")
    seconds = [float(r["seconds"]) for r in rows]
    assert seconds == sorted(seconds)
    assert 0 < seconds[0] <= seconds[-1] <= done["wall_seconds"]


def test_a_point_of_a_sweep_keeps_its_sample_to_the_record(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(finish, "once_a_week", lambda: pytest.fail("it would be noted as given"))
    done = run(tmp_path / "run", *tiny, "train.sample=true", "trainer.max_steps=1", "sweep=grid")
    said = capsys.readouterr().out
    assert done["sample"]["text"]
    assert "sample" not in said
    assert "try next" not in said


def test_advice_is_given_once_a_week(tmp_path, monkeypatch):
    monkeypatch.setenv("LLMLAB_CACHE", str(tmp_path / "cache"))
    now = finish.time.time()
    given = []
    for days in (0, 1, 6.9, 7.1, 8, 3):  # the last: a clock that was set back
        monkeypatch.setattr(finish.time, "time", lambda days=days: now + days * 86_400)
        given.append(finish.once_a_week())
    assert given == [True, False, False, True, False, True]
    (tmp_path / "cache" / finish.STAMP).write_text("no JSON")
    assert finish.once_a_week()
    monkeypatch.setenv("LLMLAB_CACHE", str(tmp_path / "cache" / finish.STAMP))  # no folder: nothing can be noted
    assert finish.once_a_week()


def test_a_picture_has_curves_or_says_why_not(tmp_path):
    from llmlab.training import plot

    assert plot.why_none([1], []) == plot.why_none([1], [1])
    assert plot.why_none([], []).startswith("no curve: metrics.csv has no point of each loss")
    assert plot.why_none([1, 2], []) is None
    assert plot.why_none([1], [1, 2]) is None
    (tmp_path / "metrics.csv").write_text("step,tokens,loss,val_loss\n1,8,3.5,\n10,80,,3.0\n")
    rows = plot.metrics.read(tmp_path / "metrics.csv")
    assert (plot.points(rows, "loss"), plot.points(rows, "val_loss")) == ([(8.0, 3.5)], [(80.0, 3.0)])
    plot.loss_curve(tmp_path)
    few = (tmp_path / "loss.png").read_bytes()
    (tmp_path / "metrics.csv").write_text("step,tokens,loss,val_loss\n")
    assert plot.loss_curve(tmp_path).read_bytes() != few
