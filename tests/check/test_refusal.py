"""What is a refusal and what is a crash, of a ValueError above all."""

import fractions
import random
import statistics
import textwrap
from unittest import mock

import pytest
import torch

from llmlab import registry
from llmlab.check import case_checks, cases, refusal
from llmlab.check.subject import small_part
from llmlab.memory import Memory
from llmlab.model import build
from llmlab.model.stack import Layer
from llmlab_plugins.kernel.sdpa import SDPA

OWN = """
from llmlab.registry import register


@register("norm", "{name}")
class Mine:
    def __init__(self, dim, eps, /):
        raise ValueError(f"norm={name} needs an even model.dim, but it is {{dim}}")
"""


def crashing(*given):
    return int("x")


def raised(broken):
    with pytest.raises(ValueError) as found:
        broken()
    return found.value


@pytest.mark.parametrize(
    "broken",
    [
        lambda: int("x"),
        lambda: random.sample([1], 3),
        lambda: statistics.quantiles([1, 2], n=0),
        lambda: textwrap.shorten("abc def ghi", 1),
        lambda: fractions.Fraction("x"),
        lambda: torch.optim.SGD([torch.zeros(1)], lr=-1.0),
    ],
)
def test_what_python_and_libraries_raise_is_a_crash(broken):
    e = raised(broken)
    assert refusal.refusal(e) is None and refusal.crash(e).startswith(f"crashed: {type(e).__name__}: ")
    with pytest.raises(ValueError) as again:
        refusal.reason(e)
    assert again.value is e


def test_what_the_framework_and_parts_raise_is_a_refusal(tmp_path, monkeypatch):
    assert refusal.reason(raised(lambda: Memory(keep=0))).startswith("a memory keeps and reuses at least 1 token")
    (tmp_path / "own_even_norm.py").write_text(OWN.format(name="own_even"), encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("LLMLAB_PLUGINS", "own_even_norm")
    e = raised(lambda: registry.load("norm", "own_even", {})(7, 1e-5))
    assert refusal.reason(e) == "norm=own_even needs an even model.dim, but it is 7"


def test_a_kernel_that_crashes_is_not_one_that_cannot_train():
    assert refusal.untrainable(small_part("kernel", "sdpa")) is None
    assert "can't train on a CPU" in (refusal.untrainable(small_part("kernel", "flex")) or "")
    with (
        mock.patch.object(SDPA, "check_training", crashing, create=True),
        pytest.raises(ValueError, match="invalid literal"),
    ):
        refusal.untrainable(small_part("kernel", "sdpa"))


@pytest.mark.slow
def test_a_crash_is_not_taken_for_a_refusal():
    gpt2 = cases.family_case("gpt2")
    with mock.patch.object(Layer, "_read", crashing):
        (found,) = case_checks.check_case(gpt2, ["memory"])[1:]
    assert found.outcome == "failed" and found.message.startswith("crashed: ValueError: invalid literal"), found
    build_model = build.build_model

    def without_dropout(spec, **how):
        return int("x") if spec.sizes.dropout else build_model(spec, **how)

    with mock.patch.object(build, "build_model", without_dropout):
        results = case_checks.check_case(gpt2, ["evaluation", "checkpointing"])[1:]
    assert [r.outcome for r in results] == ["failed", "failed"]
    assert all(r.message.startswith("crashed: ValueError: invalid literal") for r in results)
