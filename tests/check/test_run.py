"""`llmlab check` as a user has it: what is asked, what is said, what is written, and how it ends."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import wait
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from llmlab import registry
from llmlab.check import (
    BACKENDS,
    array,
    ask,
    cases,
    page,
    processes,
    refusal,
    report,
    run,
    shrink,
    swap_page,
    terminal,
    words,
)
from llmlab.check.checks import MODEL_CHECKS
from llmlab.check.subject import Case, NotApplicable, Subject, Wrong
from llmlab.cli import run as llmlab
from llmlab.config.compose import families
from llmlab.errors import UserError

# ---------------------------------------------------------------- the matrix


@pytest.mark.slow
def test_every_two_parts_meet_or_are_refused_with_a_reason():
    made = cases.pairs()
    assert len(made) < 170
    met = {tuple(sorted(pair)) for c in made for pair in _two(c.parts)}
    refused = array.array().refused()
    every = [(slot, name) for slot in words.SLOTS for name in registry.names(slot)]
    for a, b in _two(every):
        if a[0] != b[0]:
            pair = tuple(sorted((a, b)))
            elsewhere = a in array.array().apart and b in array.array().apart
            assert (pair in met) != (pair in refused) or elsewhere, pair
    assert all(why and "\n" not in why for why in refused.values())
    assert "choose kernel=eager" in refused[("kernel", "sdpa"), ("position", "dual_chunk")]
    assert len(refused) < len(met) / 20


def _two(items):
    return [(a, b) for i, a in enumerate(items) for b in items[:i]]


@pytest.mark.slow
def test_what_is_composed_is_what_was_put_together():
    """A row is tried without composing it: the composed model has the same parts, with the same options and sizes."""
    assert len(cases.pairs()) == len(cases.pairs()) > 120
    for made in cases.pairs()[::10]:
        items = dict(made.parts)
        tried = array.replaced(array.base(array.aim(items)), items)
        composed = Subject(made).spec
        assert [(s.layers, s.embedding, s.mask, s.cross_attention, s.execute) for s in composed.stacks] == [
            (s.layers, s.embedding, s.mask, s.cross_attention, s.execute) for s in tried.stacks
        ]
        assert (composed.kernel, composed.init, composed.heads) == (tried.kernel, tried.init, tried.heads)
        assert composed.sizes == tried.sizes


@pytest.mark.slow
def test_a_part_comes_with_what_it_needs():
    made = cases.part(("position", "dual_chunk"))
    assert "kernel=eager" in made.overrides and "position.chunk=4" in made.overrides
    assert "objective=mlm" in cases.part(("moe", "expert_choice")).overrides
    assert cases.part(("mask", "prefix")).mask == "prefix"
    assert cases.together([("mask", "prefix"), ("objective", "clm")]).mask is None, "typed so, it is refused"


@pytest.mark.slow
def test_families_are_small_and_have_every_kind_of_their_layers():
    gemma3 = Subject(cases.family("gemma3")).spec
    assert {layer.kind for layer in gemma3.stacks[0].layers} == {"local", "global"}
    assert "kinds.local.window.left=3" in cases.family("gemma3").overrides
    assert [len(stack.layers) for stack in Subject(cases.family("t5")).spec.stacks] == [2, 2]
    swapped = cases.family("gemma3", ["window=strided"])
    assert swapped.kind == "swap" and {"window=strided", "window.stride=3"} <= set(swapped.overrides)


# ---------------------------------------------------------------- outcomes


def outcome(ask, monkeypatch, case=None):
    monkeypatch.setitem(MODEL_CHECKS, "mine", ask)
    return run.check(case or Case("a", ("model.dim=32", "model.n_layers=1")), ["mine"])[-1]


def raising(error):
    def ask(*unused):
        raise error

    return ask


@pytest.mark.parametrize(
    ("error", "what", "says"),
    [
        (Wrong("it is 2"), "failed", "it is 2"),
        (NotApplicable("no experts"), "skipped", "no experts"),
        (UserError("a\nb"), "refused", "a; b"),
        (ValueError("of nobody's part"), "failed", "crashed: ValueError: of nobody's part ("),
        (RuntimeError("shape"), "failed", "crashed: RuntimeError: shape ("),
    ],
)
def test_what_a_check_may_say(error, what, says, monkeypatch):
    found = outcome(raising(error), monkeypatch)
    assert found.outcome == what and found.says.startswith(says)


def test_a_value_error_that_nobody_raised_on_purpose_is_a_crash():
    for broken in (lambda: int("x"), lambda: torch.zeros(2).view(torch.Size([3]), 4, wrong=1), lambda: [].remove(1)):
        with pytest.raises(Exception) as found:
            broken()
        assert refusal.refusal(found.value) is None and refusal.crash(found.value).startswith("crashed: ")


@pytest.mark.slow
def test_a_model_that_can_not_be_had_is_refused_once():
    found = run.check(cases.together([("kernel", "sdpa"), ("position", "dual_chunk")]))
    assert [(r.check, r.outcome) for r in found] == [("built", "refused")]
    assert found[0].says == "kernel=sdpa can't do a position with regions; choose kernel=eager"


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
            raise Wrong("it is wrong")

    monkeypatch.setitem(MODEL_CHECKS, "causality", ask)
    assert llmlab(["check", "model=gpt2", "ffn=relu", "norm=rmsnorm", "model.n_heads=8", "checks=causality"]) == 1
    assert f"\n  llmlab check model=gpt2{said} model.n_heads=8 checks=causality\n" in capsys.readouterr().out


@pytest.mark.slow
def test_the_smallest_command_names_the_culprits(monkeypatch):
    def ask(subject):
        parts = subject.spec.stacks[0].layers[0].parts
        if parts["ffn"].name == "glu" and parts["position"].name == "alibi":
            raise Wrong("together they are wrong")

    monkeypatch.setitem(MODEL_CHECKS, "mine", ask)
    made = report.Report({"mine": ""})
    for case in cases.pairs():
        if {("ffn", "glu"), ("position", "alibi")} & set(case.parts):
            made.add(case, run.check(case, ["mine"]))
    assert len(made.failed) == 1
    shrink.blame(made)
    assert made.failed[0].command == "llmlab check position=alibi ffn=glu checks=mine"


# ---------------------------------------------------------------- processes that die


def test_a_check_that_ends_its_process_fails(monkeypatch):
    """What was checked before it stands; the next case gets another process."""
    monkeypatch.setitem(MODEL_CHECKS, "mine", lambda subject: os._exit(139) if subject.case.name == "a" else None)
    both = [Case(name, ("model.dim=32", "model.n_layers=1")) for name in "ab"]
    found = {}
    run.every(both, ["mine"], 1, lambda case, some: found.update({case.name: [r[1:4] for r in some]}))
    assert found["a"] == [("built", "passed", ""), ("mine", "failed", run.DIED)]
    assert found["b"] == [("built", "passed", ""), ("mine", "passed", "")]


def test_a_model_that_ends_the_process_is_for_the_checks_to_find(monkeypatch):
    monkeypatch.setattr(array, "run_once", lambda spec: os._exit(139))
    matrix = array.Array.__new__(array.Array)
    matrix.apart, matrix._elsewhere = {}, processes.Alone()
    with matrix._elsewhere:
        assert matrix._refuse(()) is None
        with pytest.raises(processes.Died):
            matrix._elsewhere(os._exit, 3)


@pytest.mark.slow
def test_of_processes_that_die_only_the_culprit_is_blamed(monkeypatch):
    """While cases are still handed out, and when all are."""
    monkeypatch.setitem(MODEL_CHECKS, "causality", lambda subject: os._exit(139) if subject.case.name == "a" else None)
    a, b, c, d = (Case(name, ("model.dim=32", "model.n_layers=1")) for name in "abcd")
    with run.Pool(2) as pool:
        pool.add(a, ["causality"])
        for more in ((b, c), (d,)):
            for process in list(pool.pool._processes.values()):
                process.kill()  # they do not know of the check that ends them; what is checked alone does
            wait(pool.open)
            for case in more:
                pool.add(case, ["causality"])
        found = {case.name: some[-1].outcome for case, some in pool.results()}
    assert found == {"a": "failed", "b": "passed", "c": "passed", "d": "passed"}


# ---------------------------------------------------------------- the command


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
    monkeypatch.setitem(MODEL_CHECKS, "causality", raising(Wrong("a token sees what is behind it")))
    assert llmlab(["check", "model=gpt2", "norm=rmsnorm", "checks=causality"]) == 1
    said = capsys.readouterr().out
    assert "✗ causality: a token sees what is behind it" in said
    assert "  llmlab check model=gpt2 norm=rmsnorm checks=causality" in said
    assert "1 of 1 check failed" in said


def results(case, **checks):
    return [report.Result(case.name, check, *said) for check, said in checks.items()]


def test_a_part_that_fails_is_not_shown_as_refused(capsys):
    made = report.Report({"causality": ""}, item=("position", "alibi"))
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
    made = report.Report({"built": "", "balance": ""}, named=["balance"])
    case = Case("gpt2", (), "family")
    made.add(case, results(case, built=("passed",), balance=said))
    terminal.show(made)
    shown = capsys.readouterr().out
    assert verdict in shown and ("skipped: balance: no experts" in shown) == (said[0] == "skipped")


def test_where_it_is_written_is_known_to_be_good_before_the_work(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(ask, "everything", raising(AssertionError("it has begun")))
    (tmp_path / "conformance.md").write_bytes(b"\xe4")
    for folder, why in ((tmp_path, "it is not UTF-8"), (tmp_path / "conformance.md", "File exists")):
        assert llmlab(["check", f"to={folder}"]) == 1
        assert why in capsys.readouterr().err
    monkeypatch.setattr(ask, "everything", raising(KeyboardInterrupt()))
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
    "optimizer=adamw": "optimizer: llmlab check takes SLOT=PART",
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
    code = f"import sys; from llmlab.cli import run; {ask}; print('torch' in sys.modules)"
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
    return subprocess.run(
        [sys.executable, "-m", "llmlab", "check", *typed], cwd=folder, env=env, capture_output=True, text=True, **how
    )


@pytest.mark.slow
@pytest.mark.parametrize(("kill", "number"), [(os.killpg, "SIGINT"), (os.kill, "SIGTERM")])
def test_a_signal_ends_it_and_all_its_processes(kill, number, tmp_path):
    child = subprocess.Popen(
        [sys.executable, "-m", "llmlab", "check", "attention=mqa", "jobs=2"],
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
from llmlab.check import cases, run
run.every([cases.family(name, ["norm=mine"]) for name in ("gpt2", "llama3")], ["causality"], 2, print)
"""


@pytest.mark.slow
@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="elsewhere no process is told that its parent has ended"
)
def test_processes_end_with_one_that_is_killed(tmp_path):
    (tmp_path / "mine.py").write_text(PART.partition("        return")[0] + SLEEPS)
    env = {**os.environ, "PYTHONPATH": str(tmp_path), "LLMLAB_PLUGINS": "mine"}
    child = subprocess.Popen([sys.executable, "-c", TWO], cwd=tmp_path, env=env, start_new_session=True)
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


# ---------------------------------------------------------------- what is written


def test_the_page_keeps_what_others_wrote_and_names_what_failed(tmp_path):
    made = report.Report({"built": "It is built.", "causality": "Nothing is seen."}, seconds=1.0)
    case = Case("pair 1", (), parts=(("norm", "rmsnorm"), ("ffn", "glu")))
    made.add(case, _results(case))
    made.refused = {(("kernel", "sdpa"), ("position", "dual_chunk")): "choose another | or not"}
    (tmp_path / "conformance.md").write_text(f"# Old\n\nold\n\n{page.KEPT}\n\n| bug | caught by |\n")
    with page.place(tmp_path, page.MATRIX) as write:
        write(made)
    text = (tmp_path / "conformance.md").read_text()
    assert "\nold\n" not in text and text.count(page.KEPT) == 1 and text.rstrip().endswith("| bug | caught by |")
    assert "| pair 1 | causality | it sees | llmlab check ffn=glu |" in text
    assert "| norm=rmsnorm | 1 | ✓ | ✗ |" in text
    assert "| kernel=sdpa position=dual\\_chunk | choose another \\| or not |" in text


def _results(case):
    from llmlab.check.subject import Result

    yield Result(case.name, "built", "passed")
    yield Result(case.name, "causality", "failed", "it sees", "llmlab check ffn=glu")


def test_no_family_refuses_a_part_for_its_tiny_size():
    for name in ("gpt_neox", "stablelm"):  # of whose heads a quarter is rotated, and MLA rotates half of a head
        assert Subject(cases.family(name, ["attention=mla"])).spec.stacks[-1].layers[0].parts["attention"].name == "mla"


def test_no_refusal_in_the_docs_quotes_a_tiny_size():
    text = (Path(__file__).parents[2] / "docs" / "families.md").read_text(encoding="utf-8")
    told = [line.split(" | ")[-1] for line in text.partition("## Refused")[2].splitlines() if line.startswith("| ")]
    sizes = [why for why in told if re.search(r"(?<![\w.])\d", why)]
    assert told and not sizes, "llmlab check --families to=docs"


def test_the_page_of_families_says_that_they_train_only_where_that_was_asked():
    said = [
        swap_page.text(report.Report(dict.fromkeys(names, ""))) for names in (["causality"], ["trains", "causality"])
    ]
    assert ["train for two steps" in text for text in said] == [False, True]
    assert all("keep the promises that are asked of them (causality)" in text for text in said)


def test_the_page_and_its_data_name_what_compiles(monkeypatch):
    made = report.Report({"compiled": "It compiles."})
    for name in BACKENDS:
        monkeypatch.setenv("LLMLAB_CHECK_COMPILE", name)
        assert f"compiled by `{name}`" in page.text(made) and page.plain(made)["compile"] == name
    assert "compiled" not in page.text(report.Report({"causality": "Nothing is seen."}))


def test_the_page_in_the_docs_is_of_what_there_is_today():
    """And says that all of it holds."""
    text = (Path(__file__).parents[2] / "docs" / "conformance.md").read_text(encoding="utf-8").replace("\\_", "_")
    said = {}
    for section in text.split("\n## "):
        rows = [line.split(" | ")[0].removeprefix("| ") for line in section.splitlines() if line.startswith("| ")]
        said[section.partition("\n")[0].strip()] = set(rows[2:])  # below the head
    assert said["Promises"] == set(run.checks_of("part")) | set(run.checks_of("family")), "make conformance"
    assert said["Parts"] == {f"{s}={name}" for s in words.SLOTS for name in registry.names(s)}, "make conformance"
    assert said["Families"] == set(families()), "make conformance"
    assert not [line for line in text.splitlines() if line.startswith("| ") and "✗" in line]
    assert text.count("✗") == 1 and "## Failures" not in text  # in the legend


@pytest.mark.slow
def test_a_part_put_into_a_composed_config_is_as_if_it_were_typed():
    for family in ("gemma3", "t5"):
        for case in [c for c in cases.swaps([family]) if c.swap][::7]:
            made = []
            for asked in (case, replace(case, swap=None)):
                try:
                    spec = Subject(asked).spec
                    made.append((replace(spec, notes=()), set(spec.notes)))
                except UserError as e:
                    made.append(str(e))
            assert made[0] == made[1], case.name
