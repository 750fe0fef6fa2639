"""Each check fails on something broken that it is for. Those that find a bug of `bugs` are tested there; here the others."""

from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any
from unittest import mock

import pytest
import torch
from bugs import around, every, replaced
from torch.nn import functional as F

from llmlab.check import case_checks, cases, gradcheck
from llmlab.check.subject import Case, CheckFailed, NotApplicable, Subject, assert_close
from llmlab.decoding import generate
from llmlab.model.roles import parameters
from llmlab_plugins.block.parallel import Parallel
from llmlab_plugins.embedding.token import TokenEmbedding
from llmlab_plugins.ffn.gated import GatedFeedForward
from llmlab_plugins.filter.length import Length
from llmlab_plugins.head.vocabulary import LanguageModelHead
from llmlab_plugins.norm.rmsnorm import RMSNorm
from llmlab_plugins.optimizer.adamw import AdamW
from llmlab_plugins.reward.rules import Exact
from llmlab_plugins.schedule.cosine import Cosine


@dataclass(frozen=True)
class Broken:
    """`message`: what the check tells of it, in part."""

    where: str
    patch: Callable[[], AbstractContextManager[Any]]
    message: str


def norm_over_the_batch(self, x):
    mean = x.float().square().mean((0, -1), keepdim=True)
    return (self.weight * x * (mean + self.eps).rsqrt()).to(x.dtype)


def norm_of_the_token_before(original, self, x):
    return original(self, x + 0.1 * x.roll(1, -2))


def norm_in_half_precision(self, x):
    return x * (x.square().mean(-1, keepdim=True) + self.eps).rsqrt() * self.weight.to(x.dtype)


def norm_that_overflows(original, self, x):
    return original(self, x) if x.dtype == torch.float32 else original(self, x * 1e38 * 1e3)


def ffn_when_compiled(original, self, x, groups=None):
    return original(self, x, groups) * (1.1 if torch.compiler.is_compiling() else 1.0)


def ffn_of_the_first_expert(original, self, x, groups=None):
    return original(
        self, x, None if groups is None else F.pad(groups[-1:].expand(len(groups) - 1), (1, 0)) + groups * 0
    )


def logits_of_the_batch(original, self, h, ctx):
    return original(self, h, ctx) + (h.mean() if h.dim() == 2 else 0.0)


def vectors_of_the_place(original, self, ids, ctx):
    return original(self, ids, ctx) + torch.arange(ids.shape[1])[:, None]


def padded_text_without_its_positions(original, texts, device):
    return replace(original(texts, device), positions=None)


def leaking_when_there_are_two_norms(original, self, x, sublayers):
    y, aux = original(self, x, sublayers)
    return (y + y.mean(1, keepdim=True) if len(set(self.norm_of.values())) > 1 else y), aux


BROKEN = {
    "batch": Broken("norm=rmsnorm", lambda: replaced(RMSNorm, forward=norm_over_the_batch), "row 0 of a batch"),
    "tokens": Broken("norm=rmsnorm", lambda: around(RMSNorm, "forward", norm_of_the_token_before), "tokens"),
    "first_norm": Broken(
        "norm=rmsnorm", lambda: replaced(RMSNorm, forward=norm_in_half_precision), "in bfloat16 values"
    ),
    "bfloat16": Broken("norm=rmsnorm", lambda: around(RMSNorm, "forward", norm_that_overflows), "not finite"),
    "generation": Broken(
        "position=learned",
        lambda: around(generate, "_padded", padded_text_without_its_positions),
        "is continued by",
    ),
    "chosen_rows": Broken("head=lm", lambda: around(LanguageModelHead, "forward", logits_of_the_batch), "some tokens"),
    "vectors": Broken(
        "embedding=token", lambda: around(TokenEmbedding, "forward", vectors_of_the_place), "another order"
    ),
    "compiled": Broken("ffn=swiglu", lambda: around(GatedFeedForward, "forward", ffn_when_compiled), "compiled model"),
    "experts": Broken("ffn=swiglu", lambda: around(GatedFeedForward, "forward", ffn_of_the_first_expert), "expert"),
    "options": Broken(
        "block=parallel",
        lambda: around(Parallel, "forward", leaking_when_there_are_two_norms),
        "block.norms=2: causality",
    ),
    "factors": Broken(
        "schedule=cosine",
        lambda: replaced(Cosine, factor=lambda self, step, total: 1 - step / total),
        "the factor of step",
    ),
    "steps": Broken(
        "optimizer=adamw", lambda: around(AdamW, "build", without_the_last), "not got all of the parameters"
    ),
    "scores": Broken("reward=exact", lambda: around(Exact, "score", added_up), "beside other answers"),
    "reasons": Broken(
        "filter=length", lambda: around(Length, "measure", added_up_lengths), "measured alone dropped as"
    ),
}


def without_the_last(original, self, params):
    return original(self, params[:-1])


def added_up(original, self, records, answers):
    return list(accumulate(original(self, records, answers)))


def added_up_lengths(original, self, texts):
    return list(accumulate(original(self, texts)))


def case_of(check: str, where: str) -> Case:
    slot, _, name = where.partition("=")
    return cases.part_case((slot, name)) if check in case_checks.checks_of("part") else cases.combined([(slot, name)])


@pytest.mark.parametrize("check", [c if c == "tokens" else pytest.param(c, marks=pytest.mark.slow) for c in BROKEN])
def test_what_is_broken_is_found(check):
    broken = BROKEN[check]
    case = case_of(check, broken.where)
    assert case_checks.check_case(case, [check])[-1].outcome == "passed"
    with broken.patch():
        found = case_checks.check_case(case, [check])[-1]
    assert found.outcome == "failed" and broken.message in found.message, found
    assert not found.message.startswith("crashed")


def test_every_check_finds_something():
    found = {check for bug in every() for check in bug.caught} | set(BROKEN)
    assert set(case_checks.every_check()) - found <= {
        "built"
    }  # what can't be built is refused, or crashes: see test_run


# ---------------------------------------------------------------- what checks are made of


def test_attention_written_out_is_a_softmax():
    from llmlab.check import reference_attention

    chance = torch.Generator().manual_seed(1)
    shapes = ((4, 5, 3), (2, 5, 3), (2, 5, 2), (4, 5, 5))
    q, k, v, bias = (torch.randn(*shape, generator=chance) for shape in shapes)
    pairs = torch.ones(5, 5).tril().bool()
    got = reference_attention.attention(q, k, v, pairs.tolist(), scale=0.7, bias_NTS=bias)
    scores = (q @ k.repeat_interleave(2, 0).mT * 0.7 + bias).masked_fill(~pairs, float("-inf"))
    torch.testing.assert_close(got, (scores.softmax(-1) @ v.repeat_interleave(2, 0)).double(), rtol=1e-5, atol=1e-5)
    empty = reference_attention.attention(q, k, v, [[False] * 5] * 5, scale=0.7, sink_N=torch.zeros(4))
    assert not empty.any()


def test_reach_is_the_product_of_what_layers_see():
    from llmlab.check import reference_attention

    near = [[q - k in (0, 1) for k in range(6)] for q in range(6)]
    none = [[False] * 6] * 6
    assert reference_attention.reachable([near, near])[5] == [False, False, False, True, True, True]
    assert reference_attention.reachable([none]) == [[q == k for k in range(6)] for q in range(6)]  # by the residual


def test_rules_that_say_nothing_of_one_pair_are_asked_what_they_allow():
    from llmlab.check import reference_attention
    from llmlab.check.subject import small_part

    for slot, name in (("mask", "prefix"), ("mask", "permutation"), ("window", "strided")):
        rule = small_part(slot, name).factory()()
        row = {"prefix_len": 3, "rank": [0, 2, 0, 1, 0, 1, 2], "queries": [False] * 5 + [True] * 2}
        data = {n: row[n] for n in rule.needs}
        want = [[reference_attention.sees(rule, q, k, 7, data) for k in range(7)] for q in range(7)]
        with mock.patch.object(type(rule), "sees", new=None):
            del type(rule).sees
            got = [[reference_attention.sees(rule, q, k, 7, data) for k in range(7)] for q in range(7)]
        assert got == want, name


def test_same_is_not_fooled():
    one = torch.tensor([1.0, float("nan")])
    for other in (one, torch.tensor([1.0, 2.0]), torch.tensor([1.0])):
        with pytest.raises(CheckFailed):
            assert_close(one, other, "these")
    assert_close(torch.tensor(1.0), torch.tensor(1.00001), "these")


@pytest.mark.slow
@pytest.mark.parametrize(("family", "factor"), [("llama3", 0.9), ("qwen2_moe", 0.02)])
def test_a_slope_tells_a_gradient_that_is_too_small(family, factor):
    subject = Subject(cases.family_case(family))
    gradcheck.slope(subject)
    real, roles = gradcheck.parameter_gradients, {role: set() for _, _, role in parameters(subject.model)}
    for path, _, role in parameters(subject.model):
        roles[role].add(path)
    for role, own in roles.items():

        def scaled(model, loss, own=own):
            return {n: g if g is None or n not in own else factor * g for n, g in real(model, loss).items()}

        with (
            mock.patch.object(gradcheck, "parameter_gradients", scaled),
            pytest.raises(CheckFailed, match=f"of the role {role} "),
        ):
            gradcheck.slope(subject)


def test_a_slope_tells_two_wrong_gradients_that_cancel():
    """Of parameters of one shape: each moves in a direction of its own."""
    subject = Subject(cases.family_case("llama3"))
    real = gradcheck.parameter_gradients
    one, other, *_ = (path for path, _, role in parameters(subject.model) if role == "q")

    def wrong(model, loss):
        found = dict(real(model, loss))
        found[one], found[other] = 2 * found[one], found[other] - found[one]
        return found

    with (
        mock.patch.object(gradcheck, "parameter_gradients", wrong),
        pytest.raises(CheckFailed, match="of the role q "),
    ):
        gradcheck.slope(subject)


def test_a_loss_without_a_slope_is_not_called_right_or_wrong():
    subject = Subject(cases.family_case("llama3"))
    forward = RMSNorm.forward

    def rounds(self, x):
        unseen = torch.from_numpy(x.numpy().astype("float32")).double() if x.dtype == torch.float64 else x
        return forward(self, unseen)

    with replaced(RMSNorm, forward=rounds), pytest.raises(NotApplicable, match="along embed, .* has no slope"):
        gradcheck.slope(subject)

    def needs_float32(self, x):
        if x.dtype == torch.float64:
            raise RuntimeError("not implemented for 'Double'")
        return forward(self, x)

    with replaced(RMSNorm, forward=needs_float32), pytest.raises(NotApplicable, match="in float64: not implemented"):
        gradcheck.slope(subject)


def test_in_float64_nothing_is_rounded_on_its_way():
    with gradcheck.in_float64():
        found = [torch.ones(1, dtype=torch.float32), torch.ones(1).bfloat16().float(), torch.ones(1).to(torch.float32)]
        found += [torch.arange(2) / 3, torch.full((1,), 0.1), torch.ones(2).softmax(-1, dtype=torch.float32)]
    assert {t.dtype for t in found} == {torch.float64}
    assert torch.ones(1).dtype == torch.ones(1).double().float().dtype == torch.float32


@pytest.mark.slow
def test_checks_leave_the_model_as_it_is():
    subject = Subject(cases.combined([("moe", "topk")]))
    before = {n: t.clone() for n, t in subject.model.state_dict().items()}
    for check in case_checks.checks_of("pair").values():
        with suppress(NotApplicable):
            check(subject)
    assert all(torch.equal(t, before[n]) for n, t in subject.model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in subject.model.modules())


@pytest.mark.slow
@pytest.mark.parametrize("slot", cases.SLOTS)
def test_what_new_writes_keeps_what_is_asked_of_parts(slot, monkeypatch):
    monkeypatch.setenv("LLMLAB_PLUGINS", "llmlab.templates")
    name = f"my_{slot}"
    typed = () if slot in ("mask", "head") else (f"{slot}={name}",)
    case = Case(
        name,
        (*cases.TINY, "model.n_heads=4", "model.n_layers=2", *typed),
        "part",
        mask=name if slot == "mask" else None,
        head=name if slot == "head" else None,
        parts=((slot, name),),
    )
    checks = [c for c in case_checks.checks_of("part") if c != "compiled"]
    found = case_checks.check_case(case, checks) + case_checks.check_case(replace(case, kind="pair"))[1:]
    assert not [f for f in found if f.outcome in ("failed", "refused")]
