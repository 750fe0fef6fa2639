"""What a check may say, which command shows it again, and what of processes that die."""

import os
from concurrent.futures import wait

import pytest
import torch
from told import raising

from llmlab.check import case_checks, cases, combinations, processes, refusal, report, shrink
from llmlab.check.checks import MODEL_CHECKS
from llmlab.check.subject import Case, CheckFailed, NotApplicable
from llmlab.commands.cli import run as llmlab
from llmlab.errors import UserError


def outcome(ask, monkeypatch, case=None):
    monkeypatch.setitem(MODEL_CHECKS, "mine", ask)
    return case_checks.check_case(case or Case("a", ("model.dim=32", "model.n_layers=1")), ["mine"])[-1]


@pytest.mark.parametrize(
    ("error", "what", "says"),
    [
        (CheckFailed("it is 2"), "failed", "it is 2"),
        (NotApplicable("no experts"), "skipped", "no experts"),
        (UserError("a\nb"), "refused", "a; b"),
        (ValueError("of nobody's part"), "failed", "crashed: ValueError: of nobody's part ("),
        (RuntimeError("shape"), "failed", "crashed: RuntimeError: shape ("),
    ],
)
def test_what_a_check_may_say(error, what, says, monkeypatch):
    found = outcome(raising(error), monkeypatch)
    assert found.outcome == what and found.message.startswith(says)


def test_a_value_error_that_nobody_raised_on_purpose_is_a_crash():
    for broken in (lambda: int("x"), lambda: torch.zeros(2).view(torch.Size([3]), 4, wrong=1), lambda: [].remove(1)):
        with pytest.raises(Exception) as found:
            broken()
        assert refusal.refusal(found.value) is None and refusal.crash(found.value).startswith("crashed: ")


@pytest.mark.slow
def test_a_model_that_can_not_be_had_is_refused_once():
    found = case_checks.check_case(cases.combined([("kernel", "sdpa"), ("position", "dual_chunk")]))
    assert [(r.check, r.outcome) for r in found] == [("built", "refused")]
    assert found[0].message == "kernel=sdpa can't do a position with regions; choose kernel=eager"


def test_the_command_has_what_was_typed_once(monkeypatch):
    case = Case("gpt2 norm=rmsnorm model.n_heads=8", (), "swap", parts=(("norm", "rmsnorm"),))
    words = ["model.n_heads=8"]
    want = "llmlab check model=gpt2 norm=rmsnorm model.n_heads=8 checks=compiled"
    assert shrink.command(case, "compiled", case.parts, words) == want
    monkeypatch.setenv("LLMLAB_CHECK_COMPILE", "inductor")
    assert shrink.command(case, "compiled", case.parts, words) == want + " compile=inductor"
    both = Case("a", (), "pair", parts=(("ffn", "glu"), ("position", "rope")))
    typed = ["ffn.act=relu", "position.theta=3", "model.dim=64"]
    said = shrink.command(both, "cache", both.parts[1:], typed)
    assert said.startswith("llmlab check position=rope position.theta=3 model.dim=64 checks=cache")


@pytest.mark.slow
@pytest.mark.parametrize(("broken", "said"), [("rmsnorm", " norm=rmsnorm"), ("", "")])
def test_of_a_family_with_other_parts_the_culprit_is_named(broken, said, monkeypatch, capsys):
    def ask(subject):
        if broken in subject.spec.stacks[0].layers[0].parts["norm"].name:
            raise CheckFailed("it is wrong")

    monkeypatch.setitem(MODEL_CHECKS, "causality", ask)
    assert llmlab(["check", "model=gpt2", "ffn=relu", "norm=rmsnorm", "model.n_heads=8", "checks=causality"]) == 1
    assert f"\n  llmlab check model=gpt2{said} model.n_heads=8 checks=causality\n" in capsys.readouterr().out


@pytest.mark.slow
def test_the_smallest_command_names_the_culprits(monkeypatch):
    def ask(subject):
        parts = subject.spec.stacks[0].layers[0].parts
        if parts["ffn"].name == "glu" and parts["position"].name == "alibi":
            raise CheckFailed("together they are wrong")

    monkeypatch.setitem(MODEL_CHECKS, "mine", ask)
    made = report.Report({"mine": ""})
    others = [case for case in cases.pairs_with(("position", "alibi")) if ("ffn", "glu") not in case.parts]
    for case in (*cases.pairs_with(("ffn", "glu")), *others):
        made.add(case, case_checks.check_case(case, ["mine"]))
    # Two of the rows may have both: which ones they are depends on what the array already held.
    assert made.failed
    shrink.add_commands(made)
    assert {r.command for r in made.failed} == {"llmlab check position=alibi ffn=glu checks=mine"}


def test_a_check_that_ends_its_process_fails(monkeypatch):
    """What was checked before it stands; the next case gets another process."""
    monkeypatch.setitem(MODEL_CHECKS, "mine", lambda subject: os._exit(139) if subject.case.name == "a" else None)
    both = [Case(name, ("model.dim=32", "model.n_layers=1")) for name in "ab"]
    found = {}
    case_checks.check_cases(both, ["mine"], 1, lambda case, some: found.update({case.name: [r[1:4] for r in some]}))
    assert found["a"] == [("built", "passed", ""), ("mine", "failed", case_checks.DIED_MESSAGE)]
    assert found["b"] == [("built", "passed", ""), ("mine", "passed", "")]


def test_a_model_that_ends_the_process_is_for_the_checks_to_find(monkeypatch):
    monkeypatch.setattr(combinations, "run_once", lambda spec: os._exit(139))
    with processes.IsolatedProcess() as process:
        assert combinations.isolated_refusal(process, (), runs=True) is None
        with pytest.raises(processes.ProcessDied):
            process(os._exit, 3)


@pytest.mark.slow
def test_of_processes_that_die_only_the_culprit_is_blamed(monkeypatch):
    """While cases are still handed out, and when all are."""
    monkeypatch.setitem(MODEL_CHECKS, "causality", lambda subject: os._exit(139) if subject.case.name == "a" else None)
    a, b, c, d = (Case(name, ("model.dim=32", "model.n_layers=1")) for name in "abcd")
    with case_checks.Pool(2) as pool:
        pool.add(a, ["causality"])
        for more in ((b, c), (d,)):
            for process in list(pool.pool._processes.values()):
                process.kill()  # they do not know of the check that ends them; what is checked alone does
            wait(pool.open)
            for case in more:
                pool.add(case, ["causality"])
        found = {case.name: some[-1].outcome for case, some in pool.results()}
    assert found == {"a": "failed", "b": "passed", "c": "passed", "d": "passed"}
