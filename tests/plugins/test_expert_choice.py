"""Experts that choose their tokens, against the paper's formulas written out."""

import math

import pytest
import torch
from parts import build, close, part, randn, sizes

from llmlab.model.experts import MixtureOfExperts

FULL = {"sees_all": True}


def router(options=None, **traits):
    return build(part("moe", "expert_choice", **(options or {})), sizes(moe={"n_experts": 4, **traits}, **FULL))


def mixture(ffn="swiglu", options=None, **traits):
    own = sizes(moe={"n_experts": 4, "ffn_dim": 8, **traits}, **FULL)
    return build(lambda s: MixtureOfExperts(s, part("moe", "expert_choice", **(options or {})), part("ffn", ffn)), own)


def by_hand(module, rows, capacity):
    """Section 3.2: S = softmax(X W), each expert's k largest of a column of S, out = sum P G X_e; and who took whom."""
    n, n_experts = len(rows), module.n_experts
    s = (rows @ module.router.gate.weight.T).softmax(-1)
    takes = math.ceil(n * capacity / n_experts)
    out, chosen = [torch.zeros(rows.shape[1]) for _ in range(n)], []
    for e in range(n_experts):
        best = sorted(range(n), key=lambda i: -s[i, e].item())[:takes]
        chosen.append(best)
        for i in best:
            groups = torch.tensor([0] * e + [1] * (n_experts - e), dtype=torch.int32)
            out[i] = out[i] + s[i, e] * module.experts(rows[i][None], groups)[0]
    return torch.stack(out), chosen


@pytest.mark.parametrize("ffn", ["swiglu", "gelu"])
@pytest.mark.parametrize(("per_token", "capacity"), [(1, None), (2, None), (2, 0.5), (1, 2.5), (2, 4.0)])
def test_a_loop_over_experts_and_their_tokens(per_token, capacity, ffn):
    module = mixture(ffn, {"capacity": capacity}, per_token=per_token, scale=1.5)
    x = randn(2, 5, 24).requires_grad_()
    y, aux = module(x, None)
    want, chosen = by_hand(module, x.flatten(0, 1), capacity or per_token)
    close(y.flatten(0, 1), 1.5 * want)
    _, tokens, loss = module.router(x.flatten(0, 1), None)
    assert [sorted(row) for row in tokens.tolist()] == [sorted(row) for row in chosen]
    assert aux.tokens_per_expert.tolist() == [len(row) for row in chosen] and loss is None and aux.loss is None
    inputs = [x, *module.parameters()]
    direction = randn(2, 5, 24, seed=7)
    got = torch.autograd.grad((y * direction).sum(), inputs)
    slow = torch.autograd.grad((1.5 * want.view_as(x) * direction).sum(), inputs)
    for a, b in zip(got, slow, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("count", [0, 1, 5, 7])
def test_padding_is_never_chosen(count):
    """Nor does it make room: what the others get is what they get without it."""
    module, x = mixture(z=0.1), randn(1, 7, 24)
    valid = torch.arange(7)[None] < count
    y, aux = module(x, valid)
    _, tokens, _ = module.router(x[0], valid[0])
    assert (tokens < count).all() and tokens.shape == (4, math.ceil(count * 2 / 4))
    assert (y[0, count:] == 0).all() and torch.isfinite(aux.loss)
    if count:
        alone, said = module(x[:, :count], None)
        close(y[:, :count], alone)
        assert torch.equal(aux.tokens_per_expert, said.tokens_per_expert)
        close(aux.loss, said.loss)


def test_a_token_that_no_expert_takes_has_the_shared_one_only():
    module, x = mixture(options={"capacity": 0.5}, n_shared=1), randn(1, 8, 24)
    y, aux = module(x, None)
    left = set(range(8)) - set(module.router(x[0], None).tokens.flatten().tolist())
    assert len(left) >= 4 and aux.tokens_per_expert.tolist() == [1] * 4
    for i in left:
        close(y[0, i], module.shared(x[0, i]))


def test_z_loss_is_that_of_topk():
    x, valid = randn(9, 24), torch.tensor([True] * 6 + [False] * 3)
    made, other = router(z=0.2), build(part("moe", "topk"), sizes(moe={"n_experts": 4, "z": 0.2, "balance": 0.0}))
    other.gate.weight.data.copy_(made.gate.weight)
    close(made(x, valid).loss, other(x, valid).loss)


def test_logits_are_float32_under_autocast():
    made, x = router(), randn(10, 24)
    want = made(x, None)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = made(x, None)
    assert torch.equal(got.weights, want.weights) and torch.equal(got.tokens, want.tokens)


def test_what_can_not_be_is_refused():
    for given in (0.0, 4.5):
        with pytest.raises(ValueError, match=r"moe\.capacity=.* at most model\.moe\.n_experts=4"):
            router({"capacity": given})
    own = sizes(moe={"n_experts": 4})
    for changed in (own, own.but(causal=False)):
        with pytest.raises(ValueError, match=r"choose moe=topk, or moe\.leak_future=true"):
            part("moe", "expert_choice")(changed)
        part("moe", "expert_choice", leak_future=True)(changed)
