"""Clipping by the norm, against PyTorch's."""

import math

import pytest
import torch

from llmlab.training.clipping import clip_by_norm


@pytest.mark.parametrize("limit", [None, 0.5, 1000.0])
def test_clipping_is_torchs(limit):
    torch.manual_seed(0)
    ours, theirs = ([torch.nn.Parameter(torch.zeros(3, 4)), torch.nn.Parameter(torch.zeros(7))] for _ in range(2))
    for a, b in zip(ours, theirs, strict=True):
        a.grad = torch.randn(a.shape)
        b.grad = a.grad.clone()
    norm = clip_by_norm(ours, limit)
    expected = torch.nn.utils.clip_grad_norm_(theirs, math.inf if limit is None else limit)
    torch.testing.assert_close(norm, expected)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad)
