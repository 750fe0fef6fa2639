import itertools
import math
from collections import Counter

import numpy as np
import pytest

from llmlab.ngram import KneserNey, kneser_ney


class Slow:
    """Interpolated Kneser-Ney with dictionaries, from the definition."""

    def __init__(self, tokens, vocab_size, order):
        self.vocab_size = vocab_size
        tokens = tuple(tokens)
        self.counts = {order: Counter(tokens[i : i + order] for i in range(len(tokens) - order + 1))}
        for n in range(order - 1, 0, -1):
            self.counts[n] = Counter(gram[1:] for gram in self.counts[n + 1])
        self.discounts = {}
        for n, counts in self.counts.items():
            of = Counter(counts.values())
            self.discounts[n] = of[1] / (of[1] + 2 * of[2]) if of[1] else 0.5

    def p(self, gram):
        n = len(gram)
        if n == 0:
            return 1 / self.vocab_size
        counts, d = self.counts[n], self.discounts[n]
        followers = {g: c for g, c in counts.items() if g[:-1] == gram[:-1]}
        lower = self.p(gram[1:]) if n > 1 else 1 / self.vocab_size
        if not followers:
            return lower
        total = sum(followers.values())
        return max(counts[gram] - d, 0) / total + d * len(followers) / total * lower


def sample(n, vocab_size, seed):
    rng = np.random.default_rng(seed)
    return (rng.zipf(1.5, size=n) * rng.integers(1, 3, size=n)) % vocab_size


@pytest.mark.parametrize("order", [1, 2, 3])
def test_equals_the_slow_twin(order):
    vocab_size = 9
    tokens = sample(120, vocab_size, 1)
    slow, fast = Slow(tokens.tolist(), vocab_size, order), KneserNey(tokens, vocab_size, order)
    grams = list(itertools.product(range(vocab_size), repeat=order))
    np.testing.assert_allclose(fast.probabilities(np.array(grams)), [slow.p(g) for g in grams], rtol=1e-12)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize(
    "tokens", [sample(120, 9, 2), [3] * 20, [1, 2, 3], [0, 1, 2, 3, 4, 5, 6, 7, 8], [0, 1] * 30], ids=len
)
def test_sums_to_one_after_any_history(order, tokens):
    model = KneserNey(np.array(tokens), 9, order)
    grams = np.array(list(itertools.product(range(9), repeat=order)))
    p = model.probabilities(grams)
    assert (p > 0).all()
    np.testing.assert_allclose(p.reshape(-1, 9).sum(1), 1, rtol=1e-12)


def test_bits_of_a_text_are_those_of_its_tokens():
    train, text = sample(200, 7, 3), sample(30, 7, 4).tolist()
    slow = Slow(train.tolist(), 7, 3)
    expected = -sum(math.log2(slow.p(tuple(text[max(0, i - 2) : i + 1]))) for i in range(len(text)))
    assert KneserNey(train, 7, 3).bits(np.array(text)) == pytest.approx(expected, rel=1e-12)


def test_bits_per_byte_divide_by_the_bytes():
    train, text = sample(500, 7, 5), sample(60, 7, 6)
    found = kneser_ney(train, text, 123, 7)
    for order in (2, 3):
        assert found[order] == pytest.approx(KneserNey(train, 7, order).bits(text) / 123)


def test_a_long_text_is_looked_up_in_pieces(monkeypatch):
    model, text = KneserNey(sample(500, 7, 5), 7, 3), sample(60, 7, 6)
    whole = model.bits(text)
    monkeypatch.setattr("llmlab.ngram.CHUNK", 7)
    assert model.bits(text) == pytest.approx(whole, rel=1e-12)


def test_uniform_noise_costs_its_entropy():
    rng = np.random.default_rng(0)
    train, text = rng.integers(16, size=60_000), rng.integers(16, size=20_000)
    assert kneser_ney(train, text, len(text), 16)[2] == pytest.approx(4, abs=0.01)


def test_text_without_bytes():
    with pytest.raises(ValueError, match="no text"):
        kneser_ney(np.array([0, 1, 0]), np.array([0, 0]), 0, 2)
