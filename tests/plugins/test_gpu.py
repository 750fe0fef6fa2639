"""The kernels that train on GPUs only, against eager. They need a GPU: on other machines these tests are skipped."""

import pytest
import torch
from parts import part, randn
from test_kernel import N

from llmlab.model.visibility import Visible
from llmlab.slots import Context, Score, Term
from llmlab_plugins.kernel import varlen

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")]
LENGTH = 300
DOCUMENTS = torch.tensor([[0] * 140 + [1] * 159 + [2], [7] * 300])


def texts(mask, window="full", **context):
    context = {k: v.cuda() for k, v in context.items()}
    ids = torch.zeros(2, LENGTH, dtype=torch.long, device="cuda")
    data = {"prefix_len": torch.tensor([30, 0], device="cuda")}
    windows = {"full": part("window", "full")(), "sliding": part("window", "sliding", left=100)()}
    return Visible(part("mask", mask)(), windows[window], Context(LENGTH, ids=ids, data=data, **context))


def same(name, looked, kv=N, k_dim=64, v_dim=64, dtype=torch.bfloat16, softcap=None, biased=False):
    """Output and gradients of a kernel within the rounding of its dtype of eager's in float32."""
    results = []
    for kernel, kept in (("eager", torch.float32), (name, dtype)):
        shapes = (N, k_dim), (kv, k_dim), (kv, v_dim)
        q, k, v = (
            randn(2, n, LENGTH, h, seed=i).to("cuda", kept).requires_grad_() for i, (n, h) in enumerate(shapes, 1)
        )
        bias = randn(N, LENGTH, LENGTH, seed=4).cuda().requires_grad_() if biased else None
        made = part("kernel", kernel)()
        o = made([Term(q, k)], v, made.lower(looked), bias, Score(0.1, softcap), None, True)
        assert o.dtype == kept
        (o * randn(*o.shape, seed=9).to("cuda", kept)).sum().backward()
        results.append([x.float() for x in (o.detach(), q.grad, k.grad, v.grad, *([bias.grad] if biased else []))])
    for want, got in zip(*results, strict=True):
        assert (got - want).norm() < 0.02 * want.norm()


@pytest.mark.parametrize(("kv", "k_dim", "v_dim"), [(N, 64, 64), (2, 64, 64), (1, 20, 20), (N, 24, 16)])
@pytest.mark.parametrize("mask", ["causal", "bidirectional"])
def test_varlen_of_packed_documents(mask, kv, k_dim, v_dim):
    looked = texts(mask, documents=DOCUMENTS)
    assert isinstance(part("kernel", "varlen")().lower(looked), varlen.Packed)
    same("varlen", looked, kv, k_dim, v_dim)


def test_varlen_of_what_it_does_not_pack():
    valid = torch.arange(LENGTH)[None] >= torch.tensor([[0], [40]])
    for looked in (texts("causal"), texts("causal", "sliding", documents=DOCUMENTS), texts("causal", valid=valid)):
        assert not isinstance(part("kernel", "varlen")().lower(looked), varlen.Packed)
        same("varlen", looked, 2)


@pytest.mark.parametrize("mask", ["causal", "bidirectional", "prefix"])
@pytest.mark.parametrize("window", ["full", "sliding"])
def test_flex_trains(mask, window):
    for context in ({}, {"documents": DOCUMENTS}):
        same("flex", texts(mask, window, **context), 2)


def test_flex_trains_with_a_bias_and_a_soft_cap():
    for softcap, biased in ((20.0, False), (None, True), (20.0, True)):
        same("flex", texts("causal", documents=DOCUMENTS), softcap=softcap, biased=biased)


def test_sdpa_of_grouped_heads_keeps_no_weights():
    """In float32, or with a mask: FlashAttention takes neither."""
    for window, dtype in (("full", torch.float32), ("sliding", torch.float32), ("sliding", torch.bfloat16)):
        looked = texts("causal", window)
        same("sdpa", looked, 2, dtype=dtype)
        q, k, v = (randn(2, n, LENGTH, 64).to("cuda", dtype).requires_grad_() for n in (N, 2, 2))
        kernel, before = part("kernel", "sdpa")(), torch.cuda.memory_allocated()
        out = kernel([Term(q, k)], v, kernel.lower(looked), None, Score(0.1), None, True)
        kept = torch.cuda.memory_allocated() - before - out.nbytes - k.nbytes - v.nbytes  # which `kept` counts as gone
        assert kept <= 1.1 * kernel.kept(looked, [Term(q, k)], v, None, Score(0.1)) + 4096
