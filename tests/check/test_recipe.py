"""Parts of the recipe, which are in no model: what is asked of them."""

import math

import numpy as np
import pytest
import torch
from told import results
from twins.record import lacking

from llmlab import registry, twins
from llmlab.check import case_checks, cases, page, report, request
from llmlab.check.parts import alone
from llmlab.check.subject import Case, CheckFailed, NotApplicable, Subject
from llmlab.check.twins import definition
from llmlab_plugins.optimizer.adamw import AdamW
from llmlab_plugins.reward.rules import Exact
from llmlab_plugins.schedule.cosine import Cosine


def subject(slot, name):
    return Subject(Case(name, (), "part", parts=((slot, name),)))


LONG = ("reward", "filter")  # processes of theirs; 3 s


@pytest.mark.parametrize(
    "slot", [pytest.param(slot, marks=[pytest.mark.slow] * (slot in LONG)) for slot in request.ALONE_SLOTS]
)
def test_a_part_is_asked_without_a_model(slot, monkeypatch):
    monkeypatch.setattr(Subject, "fresh", lambda self: pytest.fail("a model is built"))
    for name in registry.names(slot):
        found = {r.check: r.outcome for r in case_checks.check_case(cases.part_case((slot, name)))}
        if name in lacking(slot):  # for want of a user's files or of another package
            assert set(found.values()) <= {"passed", "skipped", "refused"}
            continue
        assert found.pop("built") == "passed" and found["definition"] == "passed"
        assert set(found.values()) <= {"passed", "skipped"} and len(found) == 5


def test_options_that_can_not_be_are_refused_as_they_are_typed():
    case = cases.part_case(("schedule", "wsd"), ["schedule.decay_share=0.8", "schedule.hold_share=0.3"])
    (found,) = case_checks.check_case(case)
    assert (found.check, found.outcome) == ("built", "refused") and "must make at most 1" in found.message


def test_the_page_has_a_row_for_each():
    made = report.Report({"built": "", "definition": "", "factors": ""})
    case = cases.part_case(("schedule", "cosine"))
    made.add(case, results(case, built=("passed",), definition=("passed",), factors=("failed", "it is negative")))
    text = page.page_text(made)
    assert "| schedule=cosine | 1 | ✓ | ✓ | ✗ |" in text


@pytest.mark.parametrize(
    ("factor", "said"),
    [
        (lambda self, step, total: -0.1, "the factor of step 0 of 1 is -0.1"),
        (lambda self, step, total: math.nan, "is nan"),
        (lambda self, step, total: 0.0, "every factor is 0"),
        (lambda self, step, total: vars(self).setdefault("said", step) + 1.0, None),
        (lambda self, step, total: vars(self).update(n=vars(self).get("n", 0) + 1) or self.n, "after other steps"),
    ],
)
def test_a_schedule_follows_from_its_arguments(factor, said, monkeypatch):
    monkeypatch.setattr(Cosine, "factor", factor)
    if said is None:
        return alone.factors(subject("schedule", "cosine"))
    with pytest.raises(CheckFailed, match=said):
        alone.factors(subject("schedule", "cosine"))


class Forgets(torch.optim.SGD):
    """Keeps a number of its steps that is in no state."""

    def step(self, closure=None):
        self.done = getattr(self, "done", 0) + 1
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.data -= group["lr"] * self.done * p.grad


class Decays(torch.optim.SGD):
    """Moves what has no gradient too."""

    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.data *= 0.9


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda self, ps: Forgets([p for _, p, _ in ps], lr=self.lr), "makes another step after the state was loaded"),
        (lambda self, ps: Decays([p for _, p, _ in ps], lr=self.lr), "unused has no gradient, and it is moved"),
        (lambda self, ps: torch.optim.SGD([p for _, p, r in ps if r != "norm"], lr=self.lr), "has not got all"),
        (lambda self, ps: torch.optim.SGD([p for _, p, _ in ps], lr=1.0), "its rate is not lr=0.001"),
        (lambda self, ps: torch.optim.SGD([p for _, p, _ in ps], lr=math.inf), "its rate is not"),
        (lambda self, ps: torch.optim.SGD([p for _, p, _ in ps], lr=self.lr, weight_decay=math.nan), "is not finite"),
    ],
)
def test_an_optimizer_moves_what_has_a_gradient(make, said, monkeypatch):
    monkeypatch.setattr(AdamW, "build", make)
    with pytest.raises(CheckFailed, match=said):
        alone.steps(subject("optimizer", "adamw"))


@pytest.mark.parametrize(
    ("score", "said"),
    [
        (lambda self, records, answers: [math.inf] * len(answers), "answers have the scores"),
        (lambda self, records, answers: [1.0], "answers have the scores"),
        (lambda self, records, answers: [i / len(answers) for i in range(len(answers))], "beside other answers"),
    ],
)
def test_a_reward_judges_each_answer_by_itself(score, said, monkeypatch):
    monkeypatch.setattr(Exact, "score", score)
    with pytest.raises(CheckFailed, match=said):
        alone.scores(subject("reward", "exact"))


def test_a_schedule_of_ones_own_is_held_to_its_twin(monkeypatch):
    """And without one there is nothing to hold it to."""
    monkeypatch.setattr(registry, "_defined", {})
    own = subject("schedule", "staircase")
    registry.register("schedule", "staircase")(Staircase)
    with pytest.raises(NotApplicable, match="it has no twin"):
        definition(own)

    def compute(given):
        every = given.options["every"]
        return {name: 0.5 ** (steps // every) for name, steps in given.inputs.items()}

    twins.twin("schedule", "staircase", source="equation 1")(compute)
    definition(own)
    twins.twin("schedule", "staircase", source="equation 1")(lambda given: compute(given) | {"late": np.zeros(26)})
    with pytest.raises(CheckFailed, match=r"schedule=staircase: late is 0\.\d+, but 0 by equation 1"):
        definition(own)


class Staircase:
    """Halves every so many steps (Nobody 2026)."""

    telling = ({"every": 7},)

    def __init__(self, *, every: int = 20):
        self.every = every

    def factor(self, step: int, total: int) -> float:
        return 0.5 ** (step // self.every)


@pytest.mark.parametrize(("name", "slope"), [("gspo", "passed"), ("cispo", "skipped")])
def test_bounds_of_ratios_are_no_fault_of_a_gradient(name, slope):
    """In the samples no ratio is held by its bound, close as that may be; and a weight that is held has no slope."""
    (case,) = cases.pairs_with(("alignment", name))
    outcomes = {r.check: r.outcome for r in case_checks.check_case(case, ["gradients", "slope"])}
    assert outcomes == {"built": "passed", "gradients": "passed", "slope": slope}
