"""`llmlab check` as it is typed: what is said, what is refused, and how it ends."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from told import raising, results

from llmlab.check import report, runner, terminal
from llmlab.check.checks import MODEL_CHECKS
from llmlab.check.subject import Case, CheckFailed
from llmlab.commands.cli import run as llmlab
from tests import warm


@pytest.mark.slow
def test_a_model_as_typed(capsys, tmp_path):
    assert (
        llmlab(["check", "position=alibi", "ffn=relu", "model.n_heads=4", "checks=causality", f"to={tmp_path}/x"]) == 0
    )
    said = capsys.readouterr().out
    assert "✓causality 1" in said and "the check holds" in said
    data = json.loads((tmp_path / "x" / "conformance.json").read_text())
    assert data["passed"] and data["models"][0]["checks"] == {"built": "passed", "causality": "passed"}
    assert "model.n_heads=4" in data["models"][0]["overrides"]


def test_a_failure_is_the_exit_code(capsys, monkeypatch):
    monkeypatch.setitem(MODEL_CHECKS, "causality", raising(CheckFailed("a token sees what is behind it")))
    assert llmlab(["check", "model=gpt2", "norm=rmsnorm", "checks=causality"]) == 1
    said = capsys.readouterr().out
    assert "✗ causality: a token sees what is behind it" in said
    assert "  llmlab check model=gpt2 norm=rmsnorm checks=causality" in said
    assert "1 of 1 check failed" in said


def test_a_part_that_fails_is_not_shown_as_refused(capsys):
    made = report.Report({"causality": ""}, checked_part=("position", "alibi"))
    made.refused = {(("kernel", "varlen"), ("position", "alibi")): "no bias"}
    case = Case("position=alibi, 1", (), parts=(("position", "alibi"), ("norm", "rmsnorm")))
    command = "llmlab check position=alibi checks=causality"
    made.add(case, results(case, built=("passed",), causality=("failed", "it sees", command)))
    terminal.show(made)
    said = capsys.readouterr().out
    assert "✗alibi" in said and "✓rmsnorm" in said and "–varlen" in said


@pytest.mark.parametrize(
    ("said", "verdict"),
    [
        (("skipped", "no experts"), "nothing was checked: 1 model"),
        (("refused", "choose another"), "refused: 1 model"),
        (("passed",), "the check holds: 1 model"),
    ],
)
def test_that_a_model_can_be_built_is_no_answer_to_what_was_asked(said, verdict, capsys):
    made = report.Report({"built": "", "balance": ""}, requested_checks=["balance"])
    case = Case("gpt2", (), "family")
    made.add(case, results(case, built=("passed",), balance=said))
    terminal.show(made)
    shown = capsys.readouterr().out
    assert verdict in shown and ("skipped: balance: no experts" in shown) == (said[0] == "skipped")


def test_where_it_is_written_is_known_to_be_good_before_the_work(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(runner, "run_request", raising(AssertionError("it has begun")))
    (tmp_path / "conformance.md").write_bytes(b"\xe4")
    for folder, why in ((tmp_path, "it is not UTF-8"), (tmp_path / "conformance.md", "File exists")):
        assert llmlab(["check", f"to={folder}"]) == 1
        assert why in capsys.readouterr().err
    monkeypatch.setattr(runner, "run_request", raising(KeyboardInterrupt()))
    assert llmlab(["check", f"to={tmp_path}/new"]) == 130 and not (tmp_path / "new").exists()


WRONG = {
    "position=albi": "position=albi: there is no such position; did you mean alibi?",
    "postion=alibi": "did you mean position?",
    "position=rope_500k": "position=rope_500k is a preset; name the part",
    "attention=mla attention.kv_rnk=3": "attention.kv_rnk: mla has no such option; did you mean kv_rank",
    "attention.kv_rank=3": "attention.kv_rank: of which attention? Add attention=NAME",
    "model=lama3": "model=lama3: there is no such family; did you mean llama3",
    "attention=mla model.dimm=3": "model.dimm",
    "model.dim=64": "which model is it for? Add SLOT=PART or model=FAMILY",
    "checks=causalty": "checks=causalty: there is no such check; did you mean causality?",
    "jobs=0": "jobs=0 must be at least 1",
    "jobs=x": "jobs=x: must be a whole number or null",
    "norm=rmsnorm norm=layernorm": "norm is given twice; leave one of them out",
    "optimizer=adam": "optimizer=adam: there is no such optimizer; did you mean adamw?",
    "model=gpt2 schedule=cosine": "schedule=cosine is in no model, so it is checked by itself: llmlab check schedule=cosine",
    "norm=rmsnorm reward=exact": "reward=exact is in no model, so it is checked by itself",
    "optimizer=adamw optimizer.betal=3": "optimizer.betal: adamw has no such option; did you mean beta2 or beta1",
    "schedule=wsd schedule.shape=square": "schedule.shape must be one of linear, cosine, sqrt, exponential, but is square",
    "schedule=cosine checks=causality": "checks=causality: it is asked of parts that a model has",
    "data=x": "data: llmlab check takes SLOT=PART",
    "--families attention=mla": "--families is of all families and parts",
    "--familes": "did you mean families",
    "model=gpt2 attention.kv_rnk=3": "attention.kv_rnk: there is no such key in attention (mha)",
    "model=gpt2 position=learned position.offset=abc": "position.offset=abc: must be a whole number",
    "attention=mla attention.kv_rank=abc": "attention.kv_rank=abc: must be a whole number",
    "head=lm head.bias=true": "head.bias: heads are checked with the options that",
    "model=gpt2 norm=rmsnorm checks=bfloat16": "checks=bfloat16: it is asked of a part by itself, llmlab check SLOT=PART",
    "--families checks=first_norm": "checks=first_norm: it is asked of a part by itself",
    "checks=causality,trains": "checks=trains: it is asked of a family with other parts, llmlab check model=FAMILY",
    "checks=,": "checks=,: name one, or leave it out for all",
    "checks=causality to=/dev/null/x": "to=/dev/null/x: the folder can't be made: Not a directory",
}


@pytest.mark.parametrize("typed", WRONG)
def test_what_can_not_be_asked(typed, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert llmlab(["check", *typed.split()]) == 1
    said = capsys.readouterr().err
    assert WRONG[typed] in said and "Traceback" not in said
    assert not list(tmp_path.iterdir())


def test_help_and_errors_are_light():
    ask = "run(['check', '--help']); run(['check', 'ffn=x'])"
    code = f"import sys; from llmlab.commands.cli import run; {ask}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.rstrip().endswith("False") and "error: ffn=x" in done.stderr


PART = '''
from llmlab.registry import register
from llmlab_plugins.norm.rmsnorm import RMSNorm


@register("norm", "mine")
class Mine(RMSNorm):
    """A norm of a user's own (Nobody 2026)."""

    def __init__(self, dim: int, eps: float, /):
        super().__init__(dim, eps)

    def forward(self, x):
        return super().forward(x.cumsum(1).flip(1){back})
'''


@pytest.mark.slow
@pytest.mark.parametrize(("back", "code"), [("", 1), (".flip(1).diff(dim=1, prepend=x[:, :1] * 0)", 0)])
def test_a_part_of_the_users_own_takes_part(back, code, tmp_path):
    """One that looks ahead is found out by what every model is asked, in other processes too; one that doesn't passes."""
    (tmp_path / "mine.py").write_text(PART.format(back=back))
    done = command(tmp_path, "norm=mine", "checks=causality,built", "to=out", "jobs=2")
    assert done.returncode == code, done.stdout + done.stderr
    text = (tmp_path / "out" / "conformance.md").read_text()
    assert "norm=mine" in text
    assert ("llmlab check norm=mine checks=causality" in done.stdout) == bool(code)


def command(folder, *typed, **how):
    env = {**os.environ, "PYTHONPATH": str(folder), "LLMLAB_PLUGINS": "mine"}
    words = [sys.executable, "-m", "llmlab", "check", *typed]
    return warm.run(words, inherited=True, cwd=folder, env=env, capture_output=True, text=True, **how)


# as the `llmlab` script does: of a module that is run (-m) Python says SIGINT instead of 130 where it was interrupted
# within an exec(), of a dataclass being made, say
LLMLAB = "from llmlab.commands.cli import main; main()"


@pytest.mark.slow
@pytest.mark.parametrize(("kill", "number"), [(os.killpg, "SIGINT"), (os.kill, "SIGTERM")])
def test_a_signal_ends_it_and_all_its_processes(kill, number, tmp_path):
    child = subprocess.Popen(
        [sys.executable, "-c", LLMLAB, "check", "attention=mqa", "jobs=2"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background job ignores it
    )
    deadline = time.monotonic() + 60
    while (
        len(_group(child.pid)) < 4 and time.monotonic() < deadline
    ):  # it, two that check, and what tracks their resources
        time.sleep(0.1)
    time.sleep(1)
    kill(child.pid, getattr(signal, number))
    _, said = child.communicate(timeout=60)
    assert child.returncode == 130
    assert "interrupted" in said and "Traceback" not in said and "leaked" not in said, said
    assert _ends(child.pid) and not list(tmp_path.iterdir())


SLEEPS = """
        import os, pathlib, time
        pathlib.Path(f"{os.getpid()}.begun").touch()
        time.sleep(100)
"""
TWO = """
from llmlab.check import case_checks, cases
asked = [cases.family_case(name, ["norm=mine"]) for name in ("gpt2", "llama3")]
case_checks.check_cases(asked, ["causality"], 2, print)
"""


@pytest.mark.slow
@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="elsewhere no process is told that its parent has ended"
)
def test_processes_end_with_one_that_is_killed(tmp_path):
    (tmp_path / "mine.py").write_text(PART.partition("        return")[0] + SLEEPS)
    env = {**os.environ, "PYTHONPATH": str(tmp_path), "LLMLAB_PLUGINS": "mine"}
    how = {"cwd": tmp_path, "env": env, "start_new_session": True, "inherited": True}
    child = warm.Popen([sys.executable, "-c", TWO], **how)
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("*.begun"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert len(_group(child.pid)) > 2
    child.kill()
    child.wait()
    assert _ends(child.pid)


def _ends(leader):
    """Whether its group is empty soon."""
    deadline = time.monotonic() + 20
    while _group(leader) and time.monotonic() < deadline:
        time.sleep(0.1)
    return not _group(leader)


def _group(leader):
    listed = subprocess.run(["ps", "-eo", "pid,pgid"], capture_output=True, text=True).stdout
    return [pid for pid, group in re.findall(r"(\d+)\s+(\d+)", listed) if int(group) == leader]
