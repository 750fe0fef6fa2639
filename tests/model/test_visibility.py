"""What a token sees, against a loop over all pairs."""

import itertools

import pytest
import torch

from llmlab import registry
from llmlab.model.visibility import Visible, VisibleSource
from llmlab.slots import Context

TOTAL, BATCH = 8, 3
PREFIX = (0, 3, 5)
MASKS = {
    "causal": lambda b, q, k: k <= q,
    "bidirectional": lambda b, q, k: True,
    "prefix": lambda b, q, k: k <= q or k < PREFIX[b],
}
WINDOWS = {
    "full": ({}, lambda q, k: True),
    "left": ({"left": 3}, lambda q, k: q - k < 3),
    "both": ({"left": 2, "right": 1}, lambda q, k: q - k < 2 and k - q <= 1),
    "wide": ({"left": 20}, lambda q, k: True),
}
DOCUMENTS = torch.tensor([[0, 0, 0, 1, 1, 2, 2, 2], [0] * 8, [0, 1, 1, 1, 1, 1, 3, 3]])
VALID = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0, 0, 0], [1, 0, 1, 0, 1, 0, 0, 1]]).bool()
ALLOWED = torch.rand(BATCH, TOTAL, TOTAL, generator=torch.Generator().manual_seed(0)) < 0.7


def visible(mask, window, offset, *, documents=False, valid=False, allowed=False) -> Visible:
    options, _ = WINDOWS[window]
    return Visible(
        registry.load("mask", mask, {})(),
        registry.load("window", "sliding" if options else "full", options)(),
        Context(
            TOTAL - offset,
            offset,
            valid=VALID if valid else None,
            documents=DOCUMENTS if documents else None,
            allowed=ALLOWED[:, offset:] if allowed else None,
            data={"prefix_len": torch.tensor(PREFIX)},
        ),
    )


def by_pairs(mask, window, offset, *, documents=False, valid=False, allowed=False) -> torch.Tensor:
    out = torch.zeros(BATCH, 1, TOTAL - offset, TOTAL, dtype=torch.bool)
    for b, q in itertools.product(range(BATCH), range(offset, TOTAL)):
        near = [k for k in range(TOTAL) if MASKS[mask](b, q, k) and WINDOWS[window][1](q, k)]
        near = [k for k in near if not documents or DOCUMENTS[b, q] == DOCUMENTS[b, k]]
        shown = [k for k in near if not valid or VALID[b, k]] or [q]  # padding that sees nothing sees itself
        for k in shown:
            out[b, 0, q - offset, k] = not allowed or bool(ALLOWED[b, q, k])
    return out


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("offset", [0, 3, 7])
def test_every_combination(mask, window, offset):
    for documents, valid, allowed in itertools.product((False, True), repeat=3):
        how = {"documents": documents, "valid": valid, "allowed": allowed}
        seen = visible(mask, window, offset, **how)
        want = by_pairs(mask, window, offset, **how)
        dense = seen.dense()
        assert torch.equal(dense.expand(BATCH, -1, -1, -1), want), how
        if not allowed:
            assert dense.any(-1).all()
        if seen.pattern == "full":
            assert want.all(), how
        if seen.pattern == "causal":
            assert offset == 0
            assert torch.equal(want[0, 0], torch.ones(TOTAL, TOTAL).tril().bool()), how


def test_the_fast_paths_are_taken():
    assert visible("causal", "full", 0).pattern == "causal"
    assert visible("causal", "wide", 0).pattern == "causal"
    assert visible("causal", "left", 0).pattern is None
    assert visible("causal", "full", 7).pattern == "full"
    assert visible("causal", "full", 3).pattern is None
    assert visible("bidirectional", "full", 0).pattern == "full"
    assert visible("causal", "full", 0, valid=True).pattern is None


def test_a_source():
    valid = torch.tensor([[1, 1, 0], [1, 0, 0]]).bool()
    assert VisibleSource(None, 4).pattern == "full"
    seen = VisibleSource(valid, 4)
    assert seen.pattern is None
    assert torch.equal(seen.dense(), valid[:, None, None].expand(2, 1, 4, 3))
