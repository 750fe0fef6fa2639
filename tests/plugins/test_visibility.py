"""Masks and windows against a loop over pairs."""

import pytest
import torch
from parts import names, part

MASKS = {
    "causal": lambda b, q, k: k <= q,
    "bidirectional": lambda b, q, k: True,
    "prefix": lambda b, q, k: k <= q or k < (0, 2, 5)[b],
    "permutation": lambda b, q, k: by_order(b, q, k),
    "compensated": lambda b, q, k: compensated(b, q, k),
}
WINDOWS = {
    "full": ({}, lambda q, k: True),
    "left": ({"left": 3}, lambda q, k: q - k < 3),
    "both": ({"left": 2, "right": 1}, lambda q, k: q - k < 2 and k - q <= 1),
    "strided": ({"stride": 3}, lambda q, k: abs(q - k) < 3 or (q - k) % 3 == 0),
    "strided, narrow": ({"stride": 4, "left": 2}, lambda q, k: abs(q - k) < 2 or (q - k) % 4 == 0),
    "strided, wide": ({"stride": 2, "left": 3}, lambda q, k: abs(q - k) < 3 or (q - k) % 2 == 0),
    "strided, everywhere": ({"stride": 1}, lambda q, k: True),
}
# Five tokens of text, of which two are asked for by those behind them; the first asked for comes before all in one order.
RANKS = [[0, 2, 0, 1, 0, 1, 2], [1, 2, 3, 4, 5, 1, 4], [0, 0, 1, 0, 2, 2, 1]]
DATA = {
    "prefix_len": torch.tensor([0, 2, 5]),
    "rank": torch.tensor(RANKS),
    "queries": torch.tensor([[0, 0, 0, 0, 0, 1, 1]] * 3).bool(),
}
# The sixth stands for what it has the rank of, the last asks for it.
COMPENSATED = DATA | {
    "placeholders": (torch.arange(7) == 5).expand(3, -1),
    "queries": (torch.arange(7) == 6).expand(3, -1),
}


def compensated(b, q, k):
    """Either a token of the text or what stands for it."""
    own, other = 0 if q == 5 else RANKS[b][q], RANKS[b][k]
    if k == 6:
        return False
    if k == 5:
        return other > own or (q == 6 and other == own)
    return other < own or (q < 6 and other == own)


def by_order(b, q, k):
    before = [j for j in range(5) if RANKS[b][j] < RANKS[b][q]]
    if q < 5:
        return k in before or (k < 5 and RANKS[b][k] == RANKS[b][q])
    return k in before if before else k == q


def window_of(name):
    registered = "strided" if "strided" in name else "full" if name == "full" else "sliding"
    return part("window", registered, **WINDOWS[name][0])()


def grid(part, offset, total):
    k = torch.arange(total)[None]
    data = COMPENSATED if "placeholders" in part.needs else DATA
    return part.allowed(k[:, offset:].T, k, data).expand(3, total - offset, total)


def test_every_mask_and_window_is_here():
    assert set(names("mask")) == set(MASKS)
    assert set(names("window")) == {"full", "sliding", "strided"}


@pytest.mark.parametrize("offset", [0, 4])
@pytest.mark.parametrize("name", MASKS)
def test_mask(name, offset):
    mask = part("mask", name)()
    want = [[[bool(MASKS[name](b, q, k)) for k in range(7)] for q in range(offset, 7)] for b in range(3)]
    assert grid(mask, offset, 7).tolist() == want
    assert set(mask.needs) <= set(COMPENSATED)


@pytest.mark.parametrize("offset", [0, 4])
@pytest.mark.parametrize("name", WINDOWS)
def test_window(name, offset):
    window, sees = window_of(name), WINDOWS[name][1]
    want = [[bool(sees(q, k)) for k in range(7)] for q in range(offset, 7)]
    assert grid(window, offset, 7)[0].tolist() == want


@pytest.mark.parametrize("name", WINDOWS)
def test_a_window_covers_what_it_hides_nothing_of(name):
    """Under a causal mask when it has no right end, under any mask when it has."""
    window, sees = window_of(name), WINDOWS[name][1]
    for length in range(1, 8):
        hides = any(not sees(q, k) for q in range(length) for k in range(length))
        assert window.covers(length) == (not hides)


@pytest.mark.parametrize("name", MASKS)
def test_a_pattern_says_what_the_mask_allows(name):
    mask = part("mask", name)()
    want = {"causal": torch.ones(5, 5).tril().bool(), "full": torch.ones(5, 5).bool(), None: None}[mask.pattern]
    assert want is None or torch.equal(grid(mask, 0, 5)[0], want)


def test_values_are_frozen_hashable_and_equal_when_they_say_the_same():
    sliding = part("window", "sliding", left=4)
    assert len({sliding(), sliding(), part("window", "sliding", left=5)(), part("window", "full")()}) == 3
    assert part("mask", "causal")() == part("mask", "causal")() != part("mask", "prefix")()
    with pytest.raises(AttributeError):
        sliding().left = 9


def test_a_window_that_sees_nothing_is_refused():
    with pytest.raises(ValueError, match=r"window\.left must be at least 1"):
        part("window", "sliding", left=0)()
    with pytest.raises(ValueError, match=r"window\.stride and window\.left must be at least 1"):
        part("window", "strided", stride=0)()
