"""`llmlab runs`: every run below a folder with its true status, without torch, whatever state its files are in."""

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest

from llmlab.commands import cli, runs, train
from llmlab.commands.arguments import parse
from llmlab.commands.export import Arguments as Export
from llmlab.commands.generate import Arguments as Generate
from llmlab.errors import UserError
from llmlab.runs import newest

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


def make(folder, **fields):
    folder.mkdir(parents=True)
    known = {
        "schema": 1,
        "status": "completed",
        "overrides": ["attention=mla", "hydra.run.dir=x"],
        "family": "llama3",
        "budget": {"steps": 1172},
        "steps": 1172,
        "metrics": {"val_loss": 4.25},
        "began": (NOW - timedelta(hours=3)).isoformat(timespec="seconds"),
    }
    (folder / "run.json").write_text(json.dumps({**known, **fields}))
    return folder


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "runs" / "a")
    died = make(
        tmp_path / "runs" / "day" / "b", status="running", steps=0, metrics={}, began="2026-03-01T11:00:00+00:00"
    )
    (died / "metrics.csv").write_text("step,tokens,loss,val_loss\n10,20480,5.5,\n10,20480,,5.25\n20,40960,5.1,\n30,61")
    make(tmp_path / "runs" / "c", status="failed", reason="loss is not finite", metrics={}, steps=7, overrides=[])
    (tmp_path / "runs" / "torn").mkdir()
    (tmp_path / "runs" / "torn" / "run.json").write_text('{"status": "comp')
    sweep = tmp_path / "multirun" / "heads"
    make(sweep / "seed=1", overrides=["seed=1", "sweep=heads"], metrics={"val_loss": 3.5})
    points = [{"folder": f"seed={i}", "overrides": [f"seed={i}"], "hash": ""} for i in (1, 2)]
    (sweep / "sweep.json").write_text(json.dumps({"schema": 1, "points": points}))
    (tmp_path / "runs" / "a" / "checkpoints" / "step=1").mkdir(parents=True)
    return tmp_path


def rows(capsys, *argv):
    assert runs.main([*argv, "--json"]) == 0
    return {r["folder"]: r for r in json.loads(capsys.readouterr().out)}


def test_all_that_there_is(home, capsys):
    found = rows(capsys)
    assert {f: r["status"] for f, r in found.items()} == {
        "runs/a": "completed",
        "runs/day/b": "died",
        "runs/c": "failed",
        "runs/torn": "unreadable",
        "multirun/heads/seed=1": "completed",
        "multirun/heads/seed=2": "waiting",
    }
    assert found["runs/a"]["typed"] == ["attention=mla"]
    assert (found["runs/a"]["steps"], found["runs/a"]["total"], found["runs/a"]["val_loss"]) == (1172, 1172, 4.25)
    assert (found["runs/day/b"]["steps"], found["runs/day/b"]["val_loss"]) == (20, 5.25), "as far as it came"
    assert found["multirun/heads/seed=2"]["typed"] == ["seed=2"]


def test_a_damaged_list_of_points_is_said(home, capsys):
    for text, said in (
        ("{", "not valid JSON"),
        ("[" * 5000, "nested"),
        ("{}", "points is missing"),
        ('{"points": [3]}', "points[0]"),
    ):
        (home / "multirun/heads/sweep.json").write_text(text)
        assert runs.main(["--json"]) == 0
        out, err = capsys.readouterr()
        assert "multirun/heads/seed=2" not in {r["folder"] for r in json.loads(out)}
        (line,) = [x for x in err.splitlines() if "sweep.json" in x]
        assert line.startswith("warning: multirun/heads/sweep.json: ") and said in line


def test_a_run_that_is_locked_is_running(home, capsys):
    folder = str(home / "runs" / "day" / "b")
    code = f"import pathlib; from llmlab.runs.lock import lock; lock(pathlib.Path({folder!r})); print(1, flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        other.stdout.readline()
        assert rows(capsys)["runs/day/b"]["status"] == "running"
        other.communicate("\n")
    assert rows(capsys)["runs/day/b"]["status"] == "died"


def test_choosing_and_sorting(home, capsys):
    assert list(rows(capsys, "status=died,failed")) == ["runs/c", "runs/day/b"]
    assert list(rows(capsys, "sort=loss"))[:2] == ["multirun/heads/seed=1", "runs/a"]
    assert list(rows(capsys, "sort=folder", "limit=2")) == ["multirun/heads/seed=1", "multirun/heads/seed=2"]
    assert list(rows(capsys, "limit=1")) == ["runs/day/b"]
    assert list(rows(capsys, "multirun/heads/seed=1")) == ["multirun/heads/seed=1"], "a folder with = in its name"


def test_the_table(home, capsys):
    assert runs.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["status", "what", "was", "typed", "steps", "val", "loss", "age", "folder"]
    (a,) = [line for line in lines if line.rstrip().endswith("runs/a")]
    assert a.split()[:4] == ["completed", "attention=mla", "1,172/1,172", "4.2500"]
    (c,) = [line for line in lines if line.rstrip().endswith("runs/c")]
    assert "the default run" in c
    assert "runs/c: loss is not finite" in lines


def test_nothing_there(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    runs.main([])
    assert capsys.readouterr().out == "there is no run below runs/ or multirun/ here; llmlab train begins one\n"
    runs.main(["."])
    assert capsys.readouterr().out == "there is no run below .; llmlab train begins one\n"
    make(tmp_path / "runs" / "a")
    runs.main(["status=failed"])
    assert capsys.readouterr().out == "none of 1 runs is failed; llmlab runs lists all\n"


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("nowhere", "nowhere: there is no such folder"),
        ("sort=size", "sort=size: there is no such order; .*valid: age"),
        ("status=dead", r"status=dead: there is no such status; "),
        ("limit=0", "limit=0 must be at least 1"),
        ("statsu=died", "statsu: there is no such key of llmlab runs; did you mean status"),
        ("--jsn", r"--jsn: must be KEY=VALUE; did you mean json"),
    ],
)
def test_refused(typed, said, home):
    with pytest.raises(UserError, match=said):
        runs.main([typed])


@pytest.mark.parametrize(
    ("seconds", "said"), [(5, "5 s"), (150, "2 min"), (7300, "2 h"), (200_000, "2 d"), (-9, "0 s")]
)
def test_age(seconds, said):
    assert runs.age((NOW - timedelta(seconds=seconds)).isoformat(), NOW) == said
    assert runs.age(None, NOW) == ""


def test_a_thousand_runs_take_no_torch_and_no_second(tmp_path):
    for i in range(1000):
        make(tmp_path / "runs" / str(i))
    code = """
import pathlib, sys, time
from llmlab.commands import runs
began = time.perf_counter()
assert len(runs.find([pathlib.Path("runs")])) == 1000
print(time.perf_counter() - began, "torch" in sys.modules)
"""
    out = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    seconds, torch = out.split()
    assert torch == "False" and float(seconds) < 1.5


@pytest.mark.parametrize("columns", [160, 80, 60, 50])
def test_it_fits_the_terminal(home, capsys, monkeypatch, columns):
    make(home / "runs" / "2026-11-30" / "07-16-41-qwen_moe", overrides=["model=qwen_moe", "train.micro_batch_size=4"])
    make(
        home / "runs" / "long",
        status="failed",
        reason="the loss is not finite " * 9,
        steps=117200,
        budget={"steps": 10**6},
    )
    monkeypatch.setenv("COLUMNS", str(columns))
    assert runs.main([]) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= columns
    whole = "".join(shown.split())
    assert "completed" in shown and "117,200" in shown and "4.2500" in shown and "\N{HORIZONTAL ELLIPSIS}" not in shown
    assert "2026-11-30" in whole and ("/1,000,000" in shown) == (columns >= 70)


@pytest.mark.parametrize("word", ["latest", "last"])
def test_the_latest_run(home, word, monkeypatch):
    assert newest.resolve_run(word) == "runs/day/b"  # began an hour ago, the others three
    make(home / "multirun" / "heads" / "seed=3", began="2026-03-01T11:59:00+00:00")
    assert newest.resolve_run(word) == "multirun/heads/seed=3"
    assert parse([f"run={word}", "prompt=a"], Generate, "generate").run == "multirun/heads/seed=3"
    assert parse([f"run={word}", "to=a"], Export, "export").run == "multirun/heads/seed=3"
    assert train.resumed([f"resume={word}"])[0] == 'resume="multirun/heads/seed=3"'
    assert train.resumed([f"init_from={word}", f"seed={word}"]) == ['init_from="multirun/heads/seed=3"', f"seed={word}"]
    (home / word).mkdir()
    assert newest.resolve_run(word) == word


def test_no_latest_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for words in (["generate", "run=latest"], ["eval", "run=last"], ["report", "run=latest"], ["report", "latest"]):
        assert cli.run(words) == 1
        assert "there is no run below runs/ or multirun/ here" in capsys.readouterr().err
    assert cli.run(["train", "resume=last"]) == 1
    assert capsys.readouterr().err == "error: resume=last: there is no run below runs/ or multirun/ here\n"
