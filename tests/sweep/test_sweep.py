"""Sweeps through the real command line; what a point's process does is stood in for (tests/sweep/conftest.py)."""

import signal
import time
from types import SimpleNamespace

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from llmlab import sweep
from llmlab.runs import record
from llmlab.sweep.point import assigned_gpus, claim_slot

JOBLIB = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]


@pytest.mark.slow
def test_failures_are_rows_and_the_same_command_goes_on(lab):
    """One point is killed, one fails with a checkpoint, one ends without a word. Then the same command again."""
    lab.monkeypatch.setenv("LOCAL_RANK", "3")
    lab.monkeypatch.setenv("MASTER_PORT", "1")
    what = {"2": "kill", "3": "checkpoint fail", "4": "exit"}
    code, out, err = lab.run("seed=1,2,3,4", "sweep=a", what=what)
    assert code == 1
    assert [point for point, _ in lab.calls()] == ["seed=1", "seed=2", "seed=3", "seed=4"]
    first = lab.record("a", "seed=1")
    assert (first["status"], first["ranks"], first["sweep"]) == ("completed", [], "a")
    reasons = {s: lab.record("a", f"seed={s}")["reason"] for s in (2, 3, 4)}
    assert reasons == {
        2: "killed by SIGKILL (out of memory?)",
        3: "it failed",
        4: "it ended with exit code 7 and without a word",
    }
    for seed, reason in reasons.items():
        assert lab.record("a", f"seed={seed}")["status"] == "failed"
        assert f"failed: seed={seed}: {reason}  (see multirun/a/seed={seed}/output.log)" in err
    assert "sweep a: 1 of 4 points complete" in out
    assert "[1/4] seed=1  begins\n[1/4] seed=1  val loss 1.0000  " in out

    code, out, err = lab.run("sweep=a", "seed=1,2,3,4")
    assert (code, lab.calls()) == (0, [["seed=2", False], ["seed=3", True], ["seed=4", False]])
    assert "1 complete, 1 to go on with, 2 to run again" in out
    assert "sweep a: 4 of 4 points complete" in out
    code, out, err = lab.run("sweep=a", "seed=1,2,3,4")
    assert (code, lab.calls()) == (0, [])


@pytest.mark.slow
def test_sweep_json_says_what_was_asked_and_another_config_is_refused(lab):
    code, _, err = lab.run("seed=2,1", "attention=mha,mla", "size=micro", "sweep=b", what={"2": "fail"})
    assert code == 1
    found = lab.sweep("b")
    assert (found["schema"], found["name"]) == (1, "b")
    assert found["keys"] == {"seed": ["2", "1"], "attention": ["mha", "mla"]}
    assert found["fixed"] == ["size=micro", "sweep=b"]
    assert [p["folder"] for p in found["points"]] == [f"attention={a},seed={s}" for s in (2, 1) for a in ("mha", "mla")]
    assert len({p["hash"] for p in found["points"]}) == 4
    assert found["points"][0]["overrides"] == ["seed=2", "attention=mha", "size=micro", "sweep=b"]
    assert len(lab.calls()) == 4

    code, _, err = lab.run("seed=2,1", "attention=mha,mla", "size=mini", "sweep=b")
    assert (code, lab.calls()) == (1, [])
    assert err.startswith(
        "error: multirun/b/attention=mha,seed=2 holds a run with another config; choose another sweep="
    )
    assert len(err.splitlines()) == 1

    # more seeds under the same name: what is there stays, also in sweep.json
    code, _, err = lab.run("seed=3,1", "attention=mha,mla", "size=micro", "sweep=b")
    assert (code, len(lab.calls())) == (0, 2)
    assert lab.sweep("b")["keys"] == {"seed": ["3", "1", "2"], "attention": ["mha", "mla"]}
    assert len(lab.sweep("b")["points"]) == 6


def test_a_config_error_in_any_point_comes_before_everything(lab):
    code, out, err = lab.run("attention=mha,gqa,mla", "model.n_kv_heads=2", "seed=1,2")
    assert (code, out) == (1, "")
    first, second = err.splitlines()
    said = "error: model.n_kv_heads: attention={0} does not use it; leave it out or choose attention=gqa"
    assert first == said.format("mha") + " (in attention=mha,seed=1, attention=mha,seed=2)"
    assert second == said.format("mla") + " (in attention=mla,seed=1, attention=mla,seed=2)"
    assert [p.name for p in lab.folder.iterdir()] == ["sitecustomize.py"]  # nothing was written


@pytest.mark.slow
def test_a_slot_of_a_kind_is_swept_as_it_is_typed(lab):
    """Hydra wants a "+" where the family names no part; llmlab does not, and neither do the points' names."""
    slot = "norm@kinds.global.norm"
    code, _, err = lab.run("model=gemma3", f"{slot}=layernorm,rmsnorm", "seed=1", "sweep=n")
    assert code == 0, err
    assert [point for point, _ in lab.calls()] == [f"{slot}=layernorm", f"{slot}=rmsnorm"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ("alignment=dpo,ipo", "alignment.beta=0.2", "data=arithmetic"),
        ("adapter=lora,dora", "adapter.rank=2", "adapter.targets=[q,v]"),
    ],
)
def test_one_value_of_an_option_of_swept_parts_is_of_every_point(words, lab):
    """The config that Hydra composes beside the points has no part in that slot, which is null unless typed."""
    code, _, err = lab.run(*words, "seed=1", "sweep=o")
    assert code == 0, err
    slot, _, names = words[0].partition("=")
    assert [point for point, _ in lab.calls()] == [f"{slot}={name}" for name in names.split(",")]
    assert lab.sweep("o")["fixed"] == [*words[1:], "seed=1", "sweep=o"]


@pytest.mark.parametrize(
    ("value", "is_"),
    [("null", None), ("6", 6), ("", ""), ("'a,b'", "a,b"), ("[1,'b c']", [1, "b c"]), ("true", True)],
)
def test_an_option_beside_a_swept_part_stays_what_was_typed(value, is_):
    parser = OverridesParser.create()
    plan = SimpleNamespace(adaptive=False, handed=[f"alignment.x={value}"], keys={"alignment": ["grpo", "rloo"]})
    (word,) = sweep._beside_swept(plan)
    (text,) = parser.parse_override(word).sweep_string_iterator()
    assert parser.parse_override(f"alignment.x={text}").value() == is_


@pytest.mark.slow
def test_two_points_at_once(lab):
    """joblib: the cores are shared out, unless the user says how many threads, and the GPUs; one that is killed is a row."""
    lab.monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    code, _, err = lab.run("seed=1,2,3", "sweep=j", *JOBLIB, what={"2": "kill"})
    assert code == 1, err
    assert sorted(point for point, _ in lab.calls()) == ["seed=1", "seed=2", "seed=3"]
    assert lab.record("j", "seed=2")["reason"].startswith("killed by SIGKILL")
    assert int(lab.record("j", "seed=1")["threads"]) >= 1
    assert {lab.record("j", f"seed={s}")["gpus"] for s in (1, 2, 3)} <= {"4", "7"}
    lab.monkeypatch.setenv("OMP_NUM_THREADS", "5")
    code, _, err = lab.run("seed=1,2,3", "sweep=j", *JOBLIB)
    assert (code, [point for point, _ in lab.calls()]) == (0, ["seed=2"])
    assert lab.record("j", "seed=2")["threads"] == "5"


def test_points_that_run_at_once_have_gpus_of_their_own(tmp_path):
    with claim_slot(tmp_path, 2) as one, claim_slot(tmp_path, 2) as two:
        assert {one, two} == {0, 1}
    with claim_slot(tmp_path, 2) as again:
        assert again == 0
    four = ("0", "1", "2", "3")
    assert [assigned_gpus(four, i, 4, 1) for i in range(4)] == [("0",), ("1",), ("2",), ("3",)]
    assert [assigned_gpus(four, i, 2, 2) for i in range(2)] == [("0", "1"), ("2", "3")]
    assert [assigned_gpus(four, i, 2, None) for i in range(2)] == [("0", "1"), ("2", "3")]
    assert [assigned_gpus(four, i, 3, 2) for i in range(3)] == [
        ("0", "1"),
        ("2", "3"),
        ("0", "1"),
    ]  # more than there are
    assert assigned_gpus(four, 0, 2, 8) == assigned_gpus(four, 0, 1, 1) == assigned_gpus((), 0, 2, 1) == ()


def test_one_point_and_a_report_that_fails(lab):
    lab.report_error = RuntimeError("no room")
    code, _, err = lab.run("seed=3", "hydra.sweep.dir=out")
    assert (code, err) == (0, "warning: no report: RuntimeError: no room\n")
    found = record.read(lab.folder / "out/point")
    assert (found["seed"], found["sweep"]) == ("3", "seed=3")
    assert lab.reports == [lab.folder / "out"]


def until(condition, process, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def status_of(folder):
    try:
        return record.read(folder)["status"]
    except Exception:
        return None


@pytest.mark.slow  # real processes that are waited for
@pytest.mark.parametrize(("launcher", "signum"), [([], signal.SIGTERM), (JOBLIB, signal.SIGINT)])
def test_ctrl_c_lets_points_save_and_says_how_to_go_on(lab, launcher, signum):
    process = lab.start("seed=1,2,3,4", "sweep=c", *launcher, what=dict.fromkeys("234", "wait"))
    until(lambda: status_of(lab.folder / "multirun/c/seed=2") == "running", process)
    code, _, err = lab.run("seed=1,2,3,4", "sweep=c")
    assert (code, err) == (1, "error: multirun/c: another process is running this sweep\n")
    time.sleep(0.3)
    process.send_signal(signum)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert lab.record("c", "seed=2")["status"] == "interrupted"
    assert lab.record("c", "seed=2")["reason"] == signum.name
    assert not (lab.folder / "multirun/c/seed=4").exists()
    assert f"train -m {' '.join(['seed=1,2,3,4', 'sweep=c', *launcher])}" in err
    assert "Traceback" not in err
    lab.calls()
    code, _, err = lab.run("seed=1,2,3,4", "sweep=c")
    assert code == 0, err
    assert [point for point, _ in lab.calls()] == ["seed=2", "seed=3", "seed=4"]


@pytest.mark.slow
def test_a_sweep_that_is_killed_leaves_no_run_behind(lab):
    process = lab.start("seed=1,2", "sweep=k", what={"2": "wait"})
    until(lambda: status_of(lab.folder / "multirun/k/seed=2") == "running", process)
    process.kill()
    process.communicate()
    code, _, err = lab.run("seed=1,2", "sweep=k")  # waits for the run, which ends by itself
    assert code == 0, err
    assert [point for point, _ in lab.calls()] == ["seed=1", "seed=2", "seed=2"]


@pytest.mark.slow
def test_optuna_asks_for_the_same_points_again(lab):
    """A point that fails ends no study; the same command skips what is complete and goes on with more trials."""
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    search = ["hydra/sweeper=optuna", "optimizer.lr=tag(log, interval(1e-4,1e-2))", "seed=1,2", "sweep=o"]
    code, out, err = lab.run(*search, "hydra.sweeper.n_trials=3", what={"1": "fail"})
    asked = [point for point, _ in lab.calls()]
    assert len(asked) == 3
    failed = [point for point in asked if point.endswith("seed=1")]
    assert (code, err.count("failed: ")) == (int(bool(failed)), len(failed))
    found = lab.sweep("o")
    assert [p["folder"] for p in found["points"]] == asked
    assert len(found["keys"]["optimizer.lr"]) == 3

    code, out, err = lab.run(*search, "hydra.sweeper.n_trials=4", what={"1": "fail"})
    again = [point for point, _ in lab.calls()]
    assert len(again) == len(failed) + 1
    assert again[:-1] == failed
    assert out.count("is complete already") == 3 - len(failed)
