"""Flex attention against eager, without gradients: on a CPU it has none."""

import itertools

import pytest
import torch
from parts import names, part, randn, view
from test_kernel import CASES, DOCUMENTS, VALID, B, N, T, qkv, run, seen

from llmlab.errors import UserError
from llmlab.model.visibility import Visible, VisibleSource
from llmlab.slots import Context, Score, Term
from llmlab_plugins.kernel import flex

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


def same(terms, v, looked, bias=None, score=None):
    with torch.no_grad():
        got, want = (run(kernel, terms, v, looked, bias, score) for kernel in ("flex", "eager"))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("every", [53, 7])
def test_equals_eager(every):
    """Mask x window x documents x padding x shared heads x width of v x bias: some of them, by a step prime to all."""
    for i, (mask, window, context, kv, v_dim, biased) in enumerate(CASES):
        if i % every == 0:
            q, k, v = qkv(kv, v_dim)
            bias = randn(N, T, T, seed=4) if biased else None
            same([Term(q, k)], v, seen(mask, window, **context), bias)


@pytest.mark.parametrize("softcap", [1.5, pytest.param(None, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "mask", ["causal", *(pytest.param(m, marks=pytest.mark.slow) for m in names("mask") if m != "causal")]
)
def test_soft_cap_and_biases(mask, softcap):
    q, k, v = qkv(kv=2)
    looked = seen(mask, "sliding", documents=DOCUMENTS, valid=VALID)
    for bias in (None, randn(N, T, T, seed=4), randn(B, N, T, T, seed=5)):
        same([Term(q, k)], v, looked, bias, Score(0.4, softcap))


@pytest.mark.slow
def test_more_than_a_block_of_tokens():
    """Blocks are of 128: some are seen whole, some in part, some not."""
    length = 300
    q, k, v = (randn(2, 2, length, 8, seed=s) for s in (1, 2, 3))
    documents = torch.tensor([[0] * 140 + [1] * 160, [0] * 300])
    for mask, context in itertools.product(("causal", "bidirectional"), ({}, {"documents": documents})):
        ctx = Context(length, **context)
        looked = Visible(part("mask", mask)(), part("window", "full")(), ctx)
        same([Term(q, k)], v, looked)
    blocks = part("kernel", "flex")().lower(looked.__class__(part("mask", "causal")(), looked.window, ctx))
    assert blocks.kv_num_blocks.sum() + blocks.full_kv_num_blocks.sum() < 2 * 9


@pytest.mark.slow
def test_rows_that_see_nothing_a_source_and_a_cache():
    allowed = torch.ones(B, T, T).bool()
    allowed[0, 3] = False
    q, k, v = qkv()
    same([Term(q, k)], v, seen("bidirectional", allowed=allowed))
    source = torch.tensor([[1, 1, 0, 1], [1, 0, 0, 0]]).bool()
    for looked in (VisibleSource(source, T), VisibleSource(None, T)):
        same([Term(q, k[:, :, :4])], v[:, :, :4], looked)
    window = part("window", "full")()
    for new in (1, 3):
        looked = Visible(part("mask", "causal")(), window, Context(new, T - new))
        same([Term(q[:, :, -new:], k)], v, looked)


def test_half_precision_keeps_its_dtype():
    q, k, v = qkv(kv=2)
    with torch.no_grad():
        got = run("flex", [Term(q, k.bfloat16())], v.bfloat16(), seen())
        want = run("eager", [Term(q, k)], v, seen())
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), want, rtol=0.05, atol=0.05)


def test_training_on_a_cpu_is_refused_with_what_fits():
    q, k, v = (x.requires_grad_() for x in qkv())
    with pytest.raises(UserError, match=r"kernel=flex can't train on a CPU; choose kernel=sdpa"):
        view(T, kernel="flex").attend(q, k, v, Score(1.0))


def test_it_refuses_what_it_cannot_do():
    plain = {"softcap": True, "sink": False, "bias": True, "regions": False, "dropout": False}
    part("kernel", "flex")().check(**plain)
    for asked in ("sink", "regions", "dropout"):
        with pytest.raises(ValueError, match=rf"kernel=flex can't do .*{asked}; choose kernel=eager"):
            part("kernel", "flex")().check(**{**plain, asked: True})


def test_a_causal_mask_of_one_length_is_made_once():
    flex.causal_blocks.cache_clear()
    q, k, v = qkv()
    for _ in range(3):
        same([Term(q, k)], v, seen())
    assert flex.causal_blocks.cache_info().misses == 1
    flex.causal_blocks.cache_clear()
    with torch.inference_mode():
        assert not flex.causal_blocks(T, torch.device("cpu")).kv_indices.is_inference()


@pytest.mark.slow  # it compiles C++
def test_compiled_equals_eager():
    q, k, v = (randn(2, 4, 200, 16, seed=s) for s in (1, 2, 3))
    bias, documents = randn(4, 200, 200, seed=4), torch.tensor([[0] * 90 + [1] * 110, [0] * 200])
    looked = Visible(part("mask", "causal")(), part("window", "full")(), Context(200, documents=documents))
    blocks = part("kernel", "flex")().lower(looked)
    with torch.no_grad():
        got = flex.fused()(q, k, v, score_mod=flex.scored(bias, 2.0), block_mask=blocks, scale=0.3)
        want = run("eager", [Term(q, k)], v, looked, bias, Score(0.3, 2.0))
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)
