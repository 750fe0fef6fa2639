"""`llmlab check` as a user has it: what is asked, what is said, what is written, and how it ends."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch

from llmlab import registry
from llmlab.check import array, cases, page, refusal, report, run, shrink, words
from llmlab.check.checks import MODEL_CHECKS
from llmlab.check.subject import Case, NotApplicable, Subject, Wrong
from llmlab.cli import run as llmlab
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
    def ask(subject):
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


# ---------------------------------------------------------------- the command


@pytest.mark.slow
def test_a_model_as_typed(capsys, tmp_path):
    assert (
        llmlab(["check", "position=alibi", "ffn=relu", "model.n_heads=4", "checks=causality", f"to={tmp_path}/x"]) == 0
    )
    said = capsys.readouterr().out
    assert "✓causality 1" in said and "all 2 checks hold" in said
    data = json.loads((tmp_path / "x" / "conformance.json").read_text())
    assert data["passed"] and data["models"][0]["checks"] == {"built": "passed", "causality": "passed"}
    assert "model.n_heads=4" in data["models"][0]["overrides"]


def test_a_failure_is_the_exit_code(capsys, monkeypatch):
    monkeypatch.setitem(MODEL_CHECKS, "causality", raising(Wrong("a token sees what is behind it")))
    assert llmlab(["check", "model=gpt2", "norm=rmsnorm", "checks=causality"]) == 1
    said = capsys.readouterr().out
    assert "✗ causality: a token sees what is behind it" in said
    assert "  llmlab check model=gpt2 norm=rmsnorm checks=causality" in said
    assert "1 of 2 checks failed" in said


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
def test_ctrl_c_ends_it_and_all_its_processes(tmp_path):
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
    os.killpg(child.pid, signal.SIGINT)
    _, said = child.communicate(timeout=60)
    assert child.returncode == 130
    assert "interrupted" in said and "Traceback" not in said and "leaked" not in said, said
    deadline = time.monotonic() + 20
    while _group(child.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not _group(child.pid) and not list(tmp_path.iterdir())


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
    page.write(made, tmp_path, page.MATRIX)
    text = (tmp_path / "conformance.md").read_text()
    assert "\nold\n" not in text and text.count(page.KEPT) == 1 and text.rstrip().endswith("| bug | caught by |")
    assert "| pair 1 | causality | it sees | llmlab check ffn=glu |" in text
    assert "| norm=rmsnorm | 1 | ✓ | ✗ |" in text
    assert "| kernel=sdpa position=dual\\_chunk | choose another \\| or not |" in text


def _results(case):
    from llmlab.check.subject import Result

    yield Result(case.name, "built", "passed")
    yield Result(case.name, "causality", "failed", "it sees", "llmlab check ffn=glu")


def test_the_page_in_the_docs_has_every_part_and_family():
    text = (page.Path(__file__).parents[2] / "docs" / "conformance.md").read_text()
    missing = [
        f"{s}={n}" for s in words.SLOTS for n in registry.names(s) if f"| {s}={n}".replace("_", "\\_") not in text
    ]
    assert not missing, "make conformance"


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
