"""Kernels: eager against a loop over pairs, the others against eager."""

import itertools

import pytest
import torch
from parts import close, kernels, names, part, randn, softmax_loop
from torch.nn import functional as F

from llmlab.model.visibility import Visible, VisibleSource
from llmlab.slots import Context, Score, Term

B, N, T = 2, 4, 7
DATA = {
    "prefix_len": torch.tensor([3, 0]),
    "rank": torch.tensor([[0, 2, 0, 1, 0, 1, 2], [1, 2, 3, 4, 5, 1, 4]]),
    "queries": torch.tensor([[0, 0, 0, 0, 0, 1, 1]] * 2).bool(),
    "placeholders": torch.tensor([[0, 0, 0, 1, 1, 0, 0]] * 2).bool(),
}
WINDOWS = {"full": part("window", "full")(), "sliding": part("window", "sliding", left=3, right=2)()}
DOCUMENTS = torch.tensor([[0, 0, 0, 1, 1, 2, 2], [4, 4, 4, 4, 4, 4, 5]])
VALID = torch.tensor([[1, 1, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1, 1]]).bool()


def seen(mask="causal", window="full", **context):
    return Visible(part("mask", mask)(), WINDOWS[window], Context(T, data=DATA, **context))


def run(kernel, terms, v, seen, bias=None, score=None, sink=None, training=False):
    kernel = part("kernel", kernel)()
    return kernel(terms, v, kernel.lower(seen), bias, score or Score(0.4), sink, training)


def qkv(kv=N, v_dim=6, n=N):
    return randn(B, n, T, 6), randn(B, kv, T, 6, seed=2), randn(B, kv, T, v_dim, seed=3)


@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("sink", [False, True])
@pytest.mark.parametrize("mask", names("mask"))
def test_eager_is_a_softmax_of_what_is_seen(mask, sink, softcap):
    q, k, v = qkv(kv=2, v_dim=5)
    bias, sinks = randn(N, T, T, seed=4), randn(N, seed=5) if sink else None
    looked = seen(mask, "sliding", documents=DOCUMENTS, valid=VALID)
    got = run("eager", [Term(q, k)], v, looked, bias, Score(0.4, softcap), sinks)
    allowed = looked.dense().expand(B, 1, T, T)
    for b, n in itertools.product(range(B), range(N)):
        want = softmax_loop(
            q[b, n],
            k[b, n // 2],
            v[b, n // 2],
            lambda t, s: allowed[b, 0, t, s].item(),  # noqa: B023
            scale=0.4,
            bias=lambda t, s: bias[n, t, s].item(),  # noqa: B023
            softcap=softcap,
            sink=sinks[n].item() if sink else None,
        )
        close(got[b, n], want)


def test_what_is_seen_is_mask_and_window_and_documents_and_padding():
    """The framework's visibility against a loop: the masks of these tests come from it."""
    got = seen("prefix", "sliding", documents=DOCUMENTS, valid=VALID).dense()
    for b, q in itertools.product(range(B), range(T)):
        near = [k for k in range(T) if (k <= q or k < DATA["prefix_len"][b]) and q - k < 3 and k - q <= 2]
        near = [k for k in near if DOCUMENTS[b, q] == DOCUMENTS[b, k]]
        assert got[b, 0, q].nonzero().flatten().tolist() == ([k for k in near if VALID[b, k]] or [q])


CASES = list(
    itertools.product(
        names("mask"),
        ("full", "sliding"),
        ({}, {"documents": DOCUMENTS}, {"valid": VALID}, {"documents": DOCUMENTS, "valid": VALID}),
        (1, 2, 4),
        (6, 5),
        (False, True),
    )
)


@pytest.mark.parametrize("name", [n for n in kernels() if n != "eager"])
def test_equals_eager_forward_and_backward(name):
    """Every mask x window x documents x padding x shared heads x width of v x bias."""
    for mask, window, context, kv, v_dim, biased in CASES:
        results = []
        for kernel in ("eager", name):
            q, k, v = (t.requires_grad_() for t in qkv(kv, v_dim))
            bias = randn(N, T, T, seed=4).requires_grad_() if biased else None
            o = run(kernel, [Term(q, k)], v, seen(mask, window, **context), bias)
            (o * randn(*o.shape, seed=9)).sum().backward()
            results.append((o, q.grad, k.grad, v.grad, *((bias.grad,) if biased else ())))
        for got, want in zip(*results, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", kernels())
@pytest.mark.parametrize("biased", [False, True])
def test_a_row_that_sees_nothing_gives_zeros_and_no_nan(name, biased):
    allowed = torch.ones(B, T, T).bool()
    allowed[0, 3] = False
    q, k, v = (t.requires_grad_() for t in qkv())
    bias = randn(N, T, T, seed=4) if biased else None
    o = run(name, [Term(q, k)], v, seen("bidirectional", allowed=allowed), bias)
    assert (o[0, :, 3] == 0).all() and (o[0, :, 2] != 0).any()
    o.sum().backward()
    for t in (q, k, v):
        assert torch.isfinite(t.grad).all()


@pytest.mark.parametrize("name", kernels())
def test_bias_of_each_sample_and_cross_attention(name):
    q, k, v = randn(B, N, T, 6), randn(B, N, 4, 6, seed=2), randn(B, N, 4, 6, seed=3)
    bias = randn(B, N, T, 4, seed=4)
    valid = torch.tensor([[1, 1, 0, 1], [1, 0, 0, 0]]).bool()
    for source in (VisibleSource(valid, T), VisibleSource(None, T)):
        got = run(name, [Term(q, k)], v, source, bias)
        for b in range(B):
            kept = valid[b] if source.valid is not None else torch.ones(4).bool()
            s = q[b].double() @ k[b, :, kept].double().mT * 0.4 + bias[b, :, :, kept]
            close(got[b], s.softmax(-1) @ v[b, :, kept].double())


def test_terms_count_where_their_region_says():
    q, k, v = qkv()
    other = randn(B, N, T, 6, seed=8)
    near = (torch.arange(T)[:, None] - torch.arange(T)).abs() < 2
    for region in (near, near.expand(B, T, T)):
        got = run("eager", [Term(other, k, ~region), Term(q, k, region)], v, seen("bidirectional"))
        s = torch.where(near, q @ k.mT, other @ k.mT) * 0.4
        close(got, s.softmax(-1) @ v)


@pytest.mark.parametrize("name", kernels())
def test_dropout_falls_on_the_weights_while_training(name):
    """With v of ones an output is the sum of the weights: 1, and on average still 1 under dropout."""
    q, k, v = randn(1, 1, 400, 6), randn(1, 1, 400, 6, seed=2), torch.ones(1, 1, 400, 3)
    full = Visible(part("mask", "bidirectional")(), WINDOWS["full"], Context(400))
    torch.manual_seed(0)
    score = Score(0.1, dropout=0.5)
    close(run(name, [Term(q, k)], v, full, score=score), torch.ones(1, 1, 400, 3))
    dropped = run(name, [Term(q, k)], v, full, score=score, training=True)
    assert dropped.std() > 0.01 and abs(dropped.mean().item() - 1) < 0.02
    assert torch.equal(dropped[..., 0], dropped[..., 2])


def test_sdpa_makes_no_mask_where_none_is_needed():
    sdpa = part("kernel", "sdpa")()
    for looked in (seen("causal"), seen("bidirectional")):
        q, k, v = qkv()
        lowered = sdpa.lower(looked)
        sdpa([Term(q, k)], v, lowered, None, Score(1.0), None, False)
        assert lowered.made is None
    assert sdpa.lower(seen("causal", "sliding")).made is not None


@pytest.mark.parametrize(("window", "dtype"), [("full", "float32"), ("sliding", "bfloat16"), ("full", "bfloat16")])
def test_sdpa_repeats_grouped_heads_where_flash_attention_can_not_run(window, dtype, monkeypatch):
    """Off the CPU; without it, and with grouped heads, PyTorch would keep all weights."""
    given = {}
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda q, k, v, **kw: given.update(kw, k=k, v=v))
    for device in ("cpu", "meta"):
        q, k, v = (torch.zeros(1, n, T, 6, dtype=getattr(torch, dtype), device=device) for n in (4, 2, 2))
        sdpa, looked = part("kernel", "sdpa")(), seen("causal", window)
        given.clear()
        sdpa([Term(q, k)], v, sdpa.lower(looked), None, Score(1.0), None, True)
        shared = device == "cpu" or (window, dtype) == ("full", "bfloat16")
        assert given.get("enable_gqa", False) is shared
        assert given["k"].shape[1] == given["v"].shape[1] == (2 if shared else 4)


def test_a_kernel_refuses_what_it_cannot_do():
    plain = {"softcap": False, "sink": False, "bias": True, "regions": False, "dropout": True}
    for name in kernels():
        part("kernel", name)().check(**plain)
    part("kernel", "eager")().check(**{**plain, "softcap": True, "sink": True, "regions": True})
    for asked in ("softcap", "sink", "regions"):
        with pytest.raises(ValueError, match=rf"kernel=sdpa can't do .*{asked}.*; choose kernel=eager"):
            part("kernel", "sdpa")().check(**{**plain, asked: True})


@pytest.mark.parametrize("name", kernels())
def test_half_precision_keeps_its_dtype(name):
    q, k, v = (t.bfloat16() for t in qkv(kv=2))
    for bias in (None, randn(N, T, T, seed=4)):
        got = run(name, [Term(q, k)], v, seen(), bias)
        assert got.dtype == torch.bfloat16
        close(got.float(), run(name, [Term(q.float(), k.float())], v.float(), seen(), bias), 0.05)
