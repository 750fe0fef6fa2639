"""Packed documents against eager; torch's function, which GPUs only have, is written out."""

import itertools

import pytest
import torch
from parts import part, randn, view
from test_kernel import CASES, DOCUMENTS, WINDOWS, T, qkv, run, seen

from llmlab.check.parts import stand_in
from llmlab.errors import UserError
from llmlab.model.visibility import Visible
from llmlab.slots import Context, Score, Term
from llmlab_plugins.kernel import varlen


@pytest.fixture
def stood_in(monkeypatch):
    """As on a GPU, but in float32."""
    calls = []
    monkeypatch.setattr(varlen, "varlen_attn", lambda *a, **k: calls.append(k) or stand_in.varlen_attn(*a, **k))
    monkeypatch.setattr(varlen.VarLen, "devices", ("cpu",))
    monkeypatch.setattr(varlen.VarLen, "dtypes", (torch.float32,))
    return calls


def lowered(documents, mask="causal"):
    return part("kernel", "varlen")().lower(
        Visible(part("mask", mask)(), WINDOWS["full"], Context(documents.shape[1], documents=documents))
    )


# ---------------------------------------------------------------- where documents lie


def test_bounds_of_documents(stood_in):
    """Against a walk over the tokens. Ids need not grow; those of two rows are two documents though they be equal."""
    chance = torch.Generator().manual_seed(0)
    for case in range(40):
        rows, length = 1 + case % 3, 1 + case
        cuts = torch.rand(rows, length, generator=chance) < (0.1, 0.5, 1.0)[case % 3]
        documents = cuts.long().cumsum(-1) * (1, -1)[case % 2]
        want, before = [], None
        for row, column in itertools.product(range(rows), range(length)):
            if before != (row, documents[row, column]):
                want.append(row * length + column)
            before = (row, documents[row, column])
        packed = lowered(documents)
        assert packed.bounds.tolist() == [*want, rows * length] and packed.bounds.dtype == torch.int32
        longest = max(b - a for a, b in itertools.pairwise(packed.bounds.tolist()))
        assert longest <= packed.longest <= min(max(2 * longest - 1, 1), length)
        assert packed.causal and not lowered(documents, "bidirectional").causal


def test_a_document_in_two_pieces_is_no_run_of_tokens(stood_in):
    documents = torch.tensor([[0, 0, 1, 0, 2, 2, 2], [0, 1, 2, 3, 4, 5, 6]])
    q, k, v = qkv()
    want = run("eager", [Term(q, k)], v, seen(documents=documents))
    torch.testing.assert_close(run("varlen", [Term(q, k)], v, seen(documents=documents)), want)
    assert not stood_in


# ---------------------------------------------------------------- against eager


@pytest.mark.parametrize("shares", [True, False])
def test_documents_forward_and_backward(stood_in, monkeypatch, shares):
    """Every mask x shared heads x width of v. shares: torch's function knows of shared heads."""
    monkeypatch.setattr(varlen, "SHARES", shares)
    for mask, kv, v_dim in itertools.product(("causal", "bidirectional"), (1, 2, 4), (6, 5, 13)):
        results = []
        for name in ("eager", "varlen"):
            q, k, v = (x.requires_grad_() for x in qkv(kv, v_dim))
            o = run(name, [Term(q, k)], v, seen(mask, documents=DOCUMENTS))
            (o * randn(*o.shape, seed=9)).sum().backward()
            results.append((o, q.grad, k.grad, v.grad))
        for want, got in zip(*results, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    assert len(stood_in) == 18 and any("enable_gqa" in call for call in stood_in) == shares


def test_what_else_is_hidden_is_hidden(stood_in):
    """Every mask x window x documents x padding, without gradients: some packed, the rest with a mask."""
    packed = 0
    for mask, window, context, kv, v_dim, biased in CASES:
        if not biased and (kv, v_dim) == (2, 5):
            q, k, v = qkv(kv, v_dim)
            with torch.no_grad():
                got, want = (run(n, [Term(q, k)], v, seen(mask, window, **context)) for n in ("varlen", "eager"))
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
            plain = window == "full" and set(context) == {"documents"} and mask in ("causal", "bidirectional")
            packed += plain
    assert len(stood_in) == packed == 2


def test_a_cache_and_a_window_that_covers_the_text(stood_in):
    q, k, v = qkv()
    for new in (1, 3):
        looked = Visible(part("mask", "causal")(), WINDOWS["full"], Context(new, T - new))
        with torch.no_grad():
            got, want = (run(n, [Term(q[:, :, -new:], k)], v, looked) for n in ("varlen", "eager"))
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    assert not stood_in
    wide = part("window", "sliding", left=T)()
    looked = Visible(part("mask", "causal")(), wide, Context(T, documents=DOCUMENTS))
    torch.testing.assert_close(run("varlen", [Term(q, k)], v, looked), run("eager", [Term(q, k)], v, looked))
    assert len(stood_in) == 1


# ---------------------------------------------------------------- what it refuses


def test_on_a_cpu_it_computes_without_gradients_and_says_what_trains():
    q, k, v = qkv()
    for context in ({}, {"documents": DOCUMENTS}):
        with torch.no_grad():
            got, want = (run(n, [Term(q, k)], v, seen(**context)) for n in ("varlen", "eager"))
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
        q, k, v = (x.detach().requires_grad_() for x in (q, k, v))
        with pytest.raises(UserError, match=r"kernel=varlen can't train on a CPU; choose kernel=sdpa"):
            view(T, kernel="varlen", **context).attend(q, k, v, Score(1.0))


def test_it_refuses_what_it_cannot_do(stood_in, monkeypatch):
    plain = {"softcap": False, "sink": False, "bias": False, "regions": False, "dropout": False}
    part("kernel", "varlen")().check(**plain)
    for asked in plain:
        with pytest.raises(ValueError, match=rf"kernel=varlen can't do .*{asked}; choose kernel=eager"):
            part("kernel", "varlen")().check(**{**plain, asked: True})
    documents = torch.zeros(2, 3).long()
    x = randn(2, 4, 3, 260)
    with pytest.raises(UserError, match=r"heads of up to 256, but they are 264 wide; choose kernel=sdpa"):
        varlen.packed_attention(x, x, x, lowered(documents), 1.0)
    monkeypatch.setattr(varlen.VarLen, "dtypes", (torch.bfloat16,))
    with pytest.raises(UserError, match=r"is given float32; choose precision=bf16-mixed, or kernel=sdpa"):
        run("varlen", [Term(x, x)], x, seen(documents=documents))


def test_training_is_refused_before_it_begins():
    for name in ("varlen", "flex"):
        kernel = part("kernel", name)()
        with pytest.raises(ValueError, match=rf"kernel={name} can't train on a CPU; choose kernel=sdpa"):
            kernel.check_training("cpu", "bf16-mixed")
        kernel.check_training("cuda", "bf16-mixed")
    with pytest.raises(ValueError, match=r"precision=32-true; choose precision=bf16-mixed, or kernel=sdpa"):
        part("kernel", "varlen")().check_training("cuda", "32-true")
