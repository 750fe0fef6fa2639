"""What stands in for PyTorch's functions for GPUs, against PyTorch."""

import pytest
import torch
from torch.nn import functional as F
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from llmlab.check.parts import stand_in
from llmlab.check.parts.fixtures import randn
from llmlab.check.subject import CheckFailed
from llmlab_plugins.kernel import varlen

BOUNDS = torch.tensor([0, 3, 4, 9]).int()


@pytest.mark.parametrize("causal", [False, True])
def test_texts_end_to_end_are_texts_by_themselves(causal):
    q, k, v = randn(9, 4, 8), randn(9, 2, 8, seed=2), randn(9, 2, 8, seed=3)
    window = (-1, 0 if causal else -1)
    got = stand_in.varlen_attn(q, k, v, BOUNDS, BOUNDS, 5, 5, scale=0.4, window_size=window, enable_gqa=True)
    for a, b in ((0, 3), (3, 4), (4, 9)):
        one = [x[a:b].transpose(0, 1)[None] for x in (q, k, v)]
        want = F.scaled_dot_product_attention(*one, is_causal=causal, scale=0.4, enable_gqa=True)
        torch.testing.assert_close(got[a:b], want[0].transpose(0, 1))


def test_what_varlen_attn_would_not_take_is_wrong():
    q, wide = randn(9, 4, 8), randn(9, 4, 6)
    for bounds, longest, x in ((BOUNDS.long(), 5, q), (BOUNDS[:-1], 5, q), (BOUNDS, 4, q), (BOUNDS, 5, wide)):
        with pytest.raises(CheckFailed, match="varlen_attn is given"):
            stand_in.varlen_attn(x, x, x, bounds, bounds, longest, longest, scale=1.0)


@pytest.mark.slow  # torch's own is traced
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_is_torchs():
    q, k, v = randn(2, 4, 7, 8), randn(2, 2, 7, 8, seed=2), randn(2, 2, 7, 5, seed=3)
    bias, rows = randn(2, 4, 7, 7, seed=4), torch.tensor([3, 0])
    blocks = create_block_mask(lambda b, h, i, j: (j < i) & (i > rows[b]), 2, None, 7, 7, device="cpu")
    for mask, scale in ((blocks, 0.4), (None, None)):
        given = {"block_mask": mask, "scale": scale, "enable_gqa": True}
        results = [
            attention(q, k, v, score_mod=lambda s, b, h, i, j: torch.tanh(s + bias[b, h, i, j]), **given)
            for attention in (stand_in.flex_attention, flex_attention)
        ]
        torch.testing.assert_close(*results)


def test_a_kernel_that_calls_nothing_is_wrong_and_is_as_it_was_afterwards():
    kernel = varlen.VarLen()
    before = varlen.varlen_attn
    with pytest.raises(CheckFailed, match="it never calls varlen_attn"), stand_in.replaced_by_reference(kernel):
        assert kernel.devices == ("cpu",) and varlen.varlen_attn is not before
    assert kernel.devices == ("cuda",) and torch.float32 not in kernel.dtypes and varlen.varlen_attn is before
