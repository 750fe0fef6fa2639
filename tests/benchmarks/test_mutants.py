"""The mutation tester: the changes that it makes, mutants killed and surviving, and a run that goes on where it stopped."""

import ast
import math
import os
import subprocess
import sys
import time

import pytest
from mutants import ask, by_check, serve, targets, world
from mutants.ask import Asker
from mutants.by_check import Task
from mutants.command import FIRST, _stages, by_group, part_checks, sample
from mutants.forks import Forks, call_in_fork
from mutants.mutant import mutants_of
from mutants.page import _waits_for_tests
from mutants.results import Equivalent, FileResult, equivalent, equivalents, wilson
from mutants.store import Listed, Outcome, Store
from mutants.targets import ROOT

TOY = '''"""1 + 1 in a docstring."""
import os
from typing import Literal

import torch


@register("norm", "toy", eps=1e-6)
class Toy:
    relative: bool = True

    def __init__(self, dim: Literal[3] | None, /, *, rate: float = 0.5):
        super().__init__()
        self.rate = rate

    def forward(self, x):
        if x < 3:
            return x.detach()
        if not x:
            raise ValueError(f"{x + 1} is 2 + 2")
        x += self.rate * x
        return F.dropout(x, 0.1)[:, 1:] if x.training and x.sum(-1) else max(x, -x)
'''
CHANGES = """
8 constant eps=1e-06 -> eps=1e-07
10 bool relative: bool = True -> relative: bool = False
12 constant 0.5 -> 1.0
12 constant 0.5 -> 0.0
17 comparison x < 3 -> x <= 3
17 constant x < 3 -> x < 4
17 constant x < 3 -> x < 0
17 constant x < 3 -> x < -3
18 return early return x.detach() -> pass
18 detach x.detach() -> x
19 if if not x: ... -> pass
19 not not x -> x
21 statement x += self.rate * x -> pass
21 arithmetic x += self.rate * x -> x -= self.rate * x
21 arithmetic self.rate * x -> self.rate / x
21 term self.rate * x -> self.rate
21 term self.rate * x -> x
22 branch F.dropout(x, 0.1)[:, 1:] if x.training and x.sum(-1) else max(x, -x) -> F.dropout(x, 0.1)[:, 1:]
22 branch F.dropout(x, 0.1)[:, 1:] if x.training and x.sum(-1) else max(x, -x) -> max(x, -x)
22 arguments F.dropout(x, 0.1) -> F.dropout(0.1, x)
22 dropout F.dropout(x, 0.1) -> x
22 constant F.dropout(x, 0.1) -> F.dropout(x, 0.2)
22 constant F.dropout(x, 0.1) -> F.dropout(x, 0.0)
22 slice 1: -> 1:-1
22 constant 1: -> 2:
22 constant 1: -> 0:
22 constant 1: -> -1:
22 logic x.training and x.sum(-1) -> x.training or x.sum(-1)
22 term x.training and x.sum(-1) -> x.sum(-1)
22 term x.training and x.sum(-1) -> x.training
22 twin x.sum(-1) -> x.mean(-1)
22 constant x.sum(-1) -> x.sum(0)
22 constant x.sum(-1) -> x.sum(1)
22 constant x.sum(-1) -> x.sum(-2)
22 twin max(x, -x) -> min(x, -x)
22 sign max(x, -x) -> max(x, x)
"""


def test_the_changes_of_a_file():
    found = mutants_of("toy.py", TOY)
    assert [f"{m.line} {m.operator} {m.change}" for m in found] == CHANGES.strip().split("\n")
    assert len({m.id for m in found}) == len(found)
    texts = {ast.dump(ast.parse(m.text(TOY))) for m in found}
    assert len(texts) == len(found)  # each can be parsed, and no two are the same
    assert ast.dump(ast.parse(TOY)) not in texts


def test_ids_are_stable_and_samples_nested():
    some = {f: mutants_of(f, TOY) for f in ("a.py", "b.py")}
    few, more = sample(some, 10, seed=0), sample(some, 40, seed=0)
    assert abs(sum(map(len, few.values())) - 10) <= 1
    assert all(set(few[f]) <= set(more[f]) for f in some)
    assert sample(some, 10, seed=0) == few != sample(some, 10, seed=1)


def test_every_file_of_the_groups_has_a_module_and_tests():
    for file in targets.files():
        assert (ROOT / file).exists()
        assert targets.tests_of(file), file
    assert targets.module_of("plugins/norm/rmsnorm.py") == "llmlab_plugins.norm.rmsnorm"
    assert targets.module_of("src/llmlab/model/stack.py") == "llmlab.model.stack"
    assert "tests/plugins/objectives/test_streams.py" in targets.tests_of("plugins/objective/plm.py")


def test_a_module_is_served_here_and_in_processes_that_are_started(tmp_path):
    file = tmp_path / "served_toy.py"
    file.write_text("number = 1\n")
    (tmp_path / "user_of_toy.py").write_text("from served_toy import number\n")

    def child(write):
        sys.path.insert(0, str(tmp_path))
        import user_of_toy

        before = user_of_toy.number
        serve.serve({"served_toy": (str(file), "number = 2\n")})
        serve.tell_children("served_toy", str(file), "number = 2\n", tmp_path / "note.json")
        files = {"served_toy": file, "user_of_toy": tmp_path / "user_of_toy.py"}
        serve.forget(targets.importers("served_toy", files))
        import user_of_toy as again

        code = "import served_toy; print(served_toy.number)"
        started = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
        write({"numbers": [before, again.number, int(started.stdout)], "read": file.read_text()})

    (line,) = call_in_fork(child, 30).lines
    assert line == {"numbers": [1, 2, 2], "read": "number = 2\n"}
    assert "served_toy" not in sys.modules


@pytest.mark.slow  # torch.compile's imports, 3 s
@pytest.mark.filterwarnings("ignore:flex_attention called without")
def test_statements_tell_that_they_run_in_what_flex_attention_traces():
    """It refuses functions of scores that have side effects."""
    import torch
    from torch.nn.attention.flex_attention import flex_attention

    reached, made = set(), {}
    names = {serve.REACH: world.marker(reached), "made": made}
    source = "def f():\n    def double(s, *at):\n        return 2 * s\n    made['score'] = double\n"
    exec(compile(serve.instrumented(ast.parse(source)), "toy.py", "exec"), names)
    names["f"]()
    assert reached == {2, 4}
    q = torch.randn(1, 1, 4, 8)
    with torch.no_grad():
        found = flex_attention(q, q, q, score_mod=made["score"])
        torch.testing.assert_close(found, (2 * q @ q.mT / 8**0.5).softmax(-1) @ q)
    assert reached == {2, 3, 4}


def test_statements_tell_that_they_run():
    source = (
        "def f(x):\n    '''Doc.'''\n    if x:\n        y = 1\n    elif x is None:\n        y = 2\n    return 3\nz = 4\n"
    )
    reached = set()
    names = {serve.REACH: reached.add}
    exec(compile(serve.instrumented(ast.parse(source)), "toy.py", "exec"), names)
    assert not reached
    names["f"](1)
    assert reached == {3, 4, 7}
    names["f"](None)
    assert reached == {3, 4, 5, 6, 7}
    assert reached <= serve.lines_in_functions(source)
    assert 8 not in serve.lines_in_functions(source)


def test_a_child_that_hangs_or_dies_is_ended():
    assert call_in_fork(lambda write: write({"a": 1}), 5).how == "done"
    began = time.monotonic()
    hung = call_in_fork(lambda write: time.sleep(60), 0.02)
    assert (hung.how, hung.lines) == ("timeout", []) and time.monotonic() - began < 30
    failed = call_in_fork(lambda write: 1 / 0, 5)
    assert failed.how == "died" and "ZeroDivisionError" in failed.lines[0]["error"]
    with Forks(2) as forks:
        for i in range(2):
            forks.start(i, lambda write: time.sleep(60), 60)
        pids = [c.pid for c in forks.children.values()]
        assert forks.full
    for pid in pids:  # Ctrl-C leaves none behind
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


class ToyBaselines:
    """One check, of a file with one function."""

    def __init__(self, folder):
        self.store = Store(folder)

    def key(self, file, by):
        return "key"

    def checks(self, file):
        return [Task("", "toy", "works", "passed", 0.01, {2, 3})]


@pytest.mark.slow
def test_mutants_are_killed_or_survive_and_a_second_run_goes_on(tmp_path, monkeypatch):
    source = "def positive(x):\n    if x > 0:\n        return 1 * x\n    return 0\n"
    file = "src/toy_of_mutants.py"
    (tmp_path / "src").mkdir()
    (tmp_path / file).write_text(source)
    for module in (ask, world):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(world, "_temporary", tmp_path)

    def works(tasks, write):
        from toy_of_mutants import positive

        if (positive(2), positive(0)) != (2, 0):
            write({"killer": ["toy", "works"], "message": "it is wrong"})

    monkeypatch.setattr(by_check, "ask", works)
    targets.importers("", world.ours())  # read once here, and not in each child
    asker = Asker(file, "check", ToyBaselines(tmp_path / "cache"), 2)
    asker.prepare()
    mutants, fates = mutants_of(file, source), {}
    asker.run(mutants[:5], lambda m, o: fates.update({m.change: o}), math.inf)
    assert len(fates) == 5
    again = Asker(file, "check", ToyBaselines(tmp_path / "cache"), 2)
    left = [m for m in mutants if again.outcome(m) is None]
    assert left == mutants[5:]
    again.prepare()
    again.run(left, lambda m, o: fates.update({m.change: o}), math.inf)
    survivors = {change for change, o in fates.items() if not o.killed}
    assert survivors == {
        "x > 0 -> x >= 0",
        "x > 0 -> x > 1",
        "1 * x -> x",
        "return 0 -> return 1",
    }, fates
    assert fates["return 0 -> return 1"].how == "not reached"
    assert fates["1 * x -> 2 * x"].how == "toy works: it is wrong"
    monkeypatch.setattr(by_check, "ask", lambda tasks, write: write({"killer": ["toy", "works"], "message": "always"}))
    with pytest.raises(ask.BaselineFailed, match="killed without a change"):
        asker.prepare()


def test_outcomes_survive_a_line_that_was_cut_off(tmp_path):
    one, other = (Outcome(id, "check", True, "", 1.0, "k") for id in ("a", "b"))
    store = Store(tmp_path)
    store.add(one)
    with store.path.open("a") as file:
        file.write('{"id": "b", "by"')
    store = Store(tmp_path)
    assert store.get("a", "check", "k") == one
    assert store.get("a", "check", "of another source") is None
    store.add(other)
    assert Store(tmp_path).get("b", "check", "k") == other
    assert Store(tmp_path, forget=True).get("b", "check", "k") is None


def test_lists_are_kept_and_numbers_are_of_groups(tmp_path, monkeypatch):
    listed = Listed(tmp_path)
    assert listed.mutants_of("toy.py", TOY) == mutants_of("toy.py", TOY)
    monkeypatch.setattr("mutants.mutant.mutants_of", lambda file, source: [])
    assert listed.mutants_of("toy.py", TOY) and not listed.mutants_of("toy.py", TOY + "\n")
    numbers = by_group("20,model=6")
    assert (numbers["plugins"], numbers["model"]) == (20, 6)
    with pytest.raises(ValueError, match="modle"):
        by_group("20,modle=6")


def test_definitions_are_asked_first_of_parts_alone():
    sides = ["check", "tests"]
    asked = [FIRST, part_checks(), None]
    assert _stages("plugins/norm/rmsnorm.py", sides, None) == [*(("check", names) for names in asked), ("tests", None)]
    assert _stages("plugins/schedule/cosine.py", ["check"], None) == [("check", FIRST), ("check", None)]
    assert _stages("src/llmlab/model/stack.py", sides, None) == [("check", None), ("tests", None)]
    assert _stages("plugins/norm/rmsnorm.py", ["check"], "cut") == [("check", "cut")]


def test_shares_are_of_mutants_whose_fate_is_known():
    mutants = mutants_of("toy.py", TOY)[:4]
    killed, survived, of_tests, _ = mutants

    def outcome(mutant, by, is_killed):
        return {(mutant.id, by): Outcome(mutant.id, by, is_killed, "", 0.0, "k")}

    known = outcome(killed, "check", True) | outcome(survived, "check", False) | outcome(survived, "tests", False)
    known |= outcome(of_tests, "check", False) | outcome(of_tests, "tests", True)
    result = FileResult("toy.py", mutants, 9, known)
    assert result.asked(["check", "tests"]) == [killed, survived, of_tests]
    assert result.survivors(["check", "tests"]) == [survived]
    assert not _waits_for_tests([result], ["check", "tests"])
    del result.outcomes[survived.id, "tests"]
    assert _waits_for_tests([result], ["check", "tests"]) and not _waits_for_tests([result], ["check"])
    result.outcomes |= known
    assert wilson(10, 20) == pytest.approx((29.9298, 70.0702), abs=1e-4)  # scipy's binomtest(10, 20), method="wilson"
    assert wilson(17, 20) == pytest.approx((63.9581, 94.7631), abs=1e-4)
    assert wilson(0, 0) == (0.0, 100.0)
    assert wilson(20, 20)[1] == pytest.approx(100)


def test_equivalents_follow_their_line(tmp_path):
    known = [Equivalent("toy.py", "if x < 3:", "x < 3 -> x <= 3", "3 is never met.")]
    moved = "\n\n" + TOY
    left = [m for m in mutants_of("toy.py", moved) if equivalent(m, moved, known) is None]
    assert len(left) == len(mutants_of("toy.py", TOY)) - 1


@pytest.mark.slow
def test_each_equivalent_is_a_mutant_of_its_file():
    by_file = {}
    for one in equivalents():
        by_file.setdefault(one.file, []).append(one)
        assert len(one.argument) > 20, one
    for file, some in by_file.items():
        source = (ROOT / file).read_text(encoding="utf-8")
        lines = source.split("\n")
        known = {(lines[m.line - 1].strip(), m.change) for m in mutants_of(file, source)}
        stale = [one for one in some if (one.line, one.change) not in known]
        assert not stale, f"no such mutants any more: {stale}"
