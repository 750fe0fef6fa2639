"""Top-k, top-p and temperature against their definitions, a token at a time; draws against the distribution."""

import math

import pytest
import torch

from llmlab.decoding.sampling import Sampling
from llmlab.errors import UserError


def by_definition(logits, temperature, top_k, top_p):
    """Probabilities of one row as a list."""
    order = sorted(range(len(logits)), key=lambda i: -logits[i])
    if top_k is not None:
        order = order[:top_k]
    weight = {i: math.exp((logits[i] - logits[order[0]]) / temperature) for i in order}
    total = sum(weight.values())
    if top_p is not None:
        kept, mass = [], 0.0
        for i in order:
            if mass >= top_p:
                break
            kept.append(i)
            mass += weight[i] / total
        weight = {i: weight[i] for i in kept}
        total = sum(weight.values())
    return [weight.get(i, 0.0) / total for i in range(len(logits))]


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("top_k", [None, 1, 4, 99])
@pytest.mark.parametrize("top_p", [None, 0.05, 0.6, 0.95, 1.0])
def test_distribution(temperature, top_k, top_p):
    logits = torch.randn(5, 23, generator=torch.Generator().manual_seed(0)) * 2
    got = Sampling(temperature, top_k, top_p).distribution(logits)
    want = [by_definition(row, temperature, top_k, top_p if top_p != 1.0 else None) for row in logits.tolist()]
    torch.testing.assert_close(got, torch.tensor(want), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(got.sum(-1), torch.ones(5))


def test_greedy():
    logits = torch.tensor([[0.0, 3.0, 1.0], [2.0, -1.0, 0.5]])
    assert Sampling(0).distribution(logits).tolist() == [[0, 1, 0], [1, 0, 0]]
    assert Sampling(0).draw(logits, torch.Generator()).tolist() == [1, 0]


def test_greedy_of_equal_logits_is_the_first():
    """As argmax has it, so that a greedy text has one course."""
    logits = torch.tensor([[0.0, 2.0, 2.0], [1.0, 1.0, 1.0]])
    assert Sampling(0).distribution(logits).tolist() == [[0, 1, 0], [1, 0, 0]]
    assert Sampling(0).draw(logits, torch.Generator()).tolist() == [1, 0]


def test_equal_logits_still_keep_only_k():
    p = Sampling(top_k=2).distribution(torch.zeros(1, 6))
    assert (p > 0).sum() == 2


def test_a_tiny_temperature_is_greedy():
    logits = torch.tensor([[1.0, 1.5, -2.0]])
    for temperature in (1e-3, 1e-30, 1e-42):
        torch.testing.assert_close(Sampling(temperature).distribution(logits), torch.tensor([[0.0, 1.0, 0.0]]))


def test_draws_follow_the_distribution():
    logits = torch.randn(1, 8, generator=torch.Generator().manual_seed(1))
    sampling = Sampling(0.8, 5, 0.9)
    n = 20000
    drawn = sampling.draw(logits.expand(n, -1), torch.Generator().manual_seed(2))
    share = torch.bincount(drawn, minlength=8) / n
    p = sampling.distribution(logits)[0]
    assert (share[p == 0] == 0).all()
    assert ((share - p).abs() < 4 * (p * (1 - p) / n).sqrt() + 1e-9).all()


def test_a_half_precision_row_is_weighed_in_float32():
    logits = torch.randn(2, 50).to(torch.bfloat16)
    assert Sampling().distribution(logits).dtype == torch.float32


@pytest.mark.parametrize(
    ("how", "name"),
    [({"temperature": -0.1}, "temperature=-0.1"), ({"top_k": 0}, "top_k=0"), ({"top_p": 0.0}, "top_p=0.0"),
     ({"top_p": 1.1}, "top_p=1.1"), ({"temperature": float("nan")}, "temperature=nan")],
)  # fmt: skip
def test_settings_out_of_range(how, name):
    with pytest.raises(UserError, match=name):
        Sampling(**how)


def rows(n=4, vocabulary=11, seed=0):
    return torch.randn(n, vocabulary, generator=torch.Generator().manual_seed(seed)) * 3


def generators(n, seed=7):
    return [torch.Generator().manual_seed(seed + i) for i in range(n)]


def test_a_token_at_the_threshold():
    """Of min_p it stays; of top_p it goes, as what is before it already holds that much."""
    half = torch.tensor([[0.5, 0.25, 0.25]]).log()
    assert Sampling(min_p=0.5).distribution(half)[0].tolist() == pytest.approx([0.5, 0.25, 0.25])
    assert Sampling(min_p=0.51).distribution(half)[0].tolist() == [1.0, 0.0, 0.0]
    assert Sampling(top_p=0.5).distribution(half)[0].tolist() == [1.0, 0.0, 0.0]
    assert Sampling(top_p=0.51).distribution(half)[0].tolist() == pytest.approx([2 / 3, 1 / 3, 0.0])


@pytest.mark.parametrize("penalty", [0.5, 1.0, 1.7])
@pytest.mark.parametrize("temperature", [0.0, 1.0, 2.5])
def test_the_penalty_is_in_draws_and_log_probabilities_alike(penalty, temperature):
    logits, seen = torch.linspace(-2, 2, 44).view(4, 11).flip(1), rows(seed=1) > 0
    want = torch.tensor(
        [[x if not s else x / penalty if x > 0 else x * penalty for x, s in zip(*both, strict=True)]
         for both in zip(logits.tolist(), seen.tolist(), strict=True)]
    )  # fmt: skip
    plain, sampling = Sampling(temperature), Sampling(temperature, repetition_penalty=penalty)
    torch.testing.assert_close(sampling.distribution(logits, seen), plain.distribution(want))
    torch.testing.assert_close(sampling.distribution(logits), plain.distribution(logits))
    assert sampling.draw(logits, generators(4), seen).tolist() == plain.draw(want, generators(4)).tolist()
    token = want.argmax(-1)
    torch.testing.assert_close(sampling.log_probability(logits, token, seen), plain.log_probability(want, token))


def test_a_penalty_makes_no_seen_token_likelier():
    """Whatever the sign of its logit; 0 stays 0."""
    logits = torch.tensor([[-2.0, 0.0, 2.0, 1.0]])
    for token in range(3):
        seen = torch.arange(4)[None] == token
        before = Sampling().distribution(logits)[0, token]
        after = Sampling(repetition_penalty=2.0).distribution(logits, seen)[0, token]
        assert after < before or (token == 1 and after == before)


@pytest.mark.parametrize("sampling", [Sampling(0), Sampling(), Sampling(0.5, 3, 0.9, 0.1, 1.3)])
def test_a_rows_draw_is_its_own(sampling):
    """With a generator for each row: alone, and in another order, it draws the same."""
    logits = rows(6)
    seen = rows(6, seed=1) > 0
    drawn = sampling.draw(logits, generators(6), seen)
    alone = [sampling.draw(logits[i : i + 1], generators(6)[i : i + 1], seen[i : i + 1]).item() for i in range(6)]
    assert drawn.tolist() == alone and drawn.dtype == torch.int64
    order = torch.tensor([3, 0, 5, 1, 2, 4])
    turned = sampling.draw(logits[order], [generators(6)[i] for i in order], seen[order])
    assert turned.tolist() == drawn[order].tolist()


@pytest.mark.parametrize("sampling", [Sampling(0), Sampling(), Sampling(0.7, 3, 0.9, 0.1)])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_row_that_is_no_distribution_gives_no_token(sampling, bad):
    """-1 for it, and for the others what they would have drawn."""
    logits = rows()
    whole = sampling.draw(logits, generators(4)).tolist()
    logits[2, 5] = bad
    drawn = sampling.draw(logits, generators(4)).tolist()
    assert drawn == [*whole[:2], -1, whole[3]]
    one = sampling.draw(logits, torch.Generator().manual_seed(3)).tolist()
    assert one[2] == -1 and min(one[:2]) >= 0 and one[3] >= 0
    assert sampling.draw(torch.full((1, 3), -math.inf), generators(1)).tolist() == [-1]


def test_a_token_that_can_not_be_is_no_fault():
    """-inf is a probability of 0, as a mask makes it."""
    logits = rows()
    logits[:, 1:9] = -math.inf
    for sampling in (Sampling(0), Sampling(), Sampling(0.3, 2, 0.9, 0.1)):
        assert set(sampling.draw(logits, generators(4)).tolist()) <= {0, 9, 10}
        assert (sampling.distribution(logits)[:, 1:9] == 0).all()


def test_one_generator_draws_a_row_after_the_other():
    """A batch of one generator is torch's own draw from the distribution."""
    p = Sampling(1.3, 6).distribution(rows(50))
    want = torch.multinomial(p, 1, generator=torch.Generator().manual_seed(3))[:, 0]
    assert Sampling(1.3, 6).draw(rows(50), torch.Generator().manual_seed(3)).tolist() == want.tolist()


def test_log_probabilities_are_of_the_tokens_given():
    logits, sampling = rows(), Sampling(0.8, 4)
    token = torch.tensor([3, 0, 10, 2])
    p = sampling.distribution(logits)
    want = [math.log(p[i, t]) if p[i, t] > 0 else -math.inf for i, t in enumerate(token.tolist())]
    assert sampling.log_probability(logits, token).tolist() == pytest.approx(want)


def test_a_number_added_to_all_logits_changes_nothing():
    for sampling in (Sampling(0), Sampling(0.7, 4, 0.8, 0.05)):
        torch.testing.assert_close(
            sampling.distribution(rows() + 50), sampling.distribution(rows()), atol=1e-5, rtol=1e-4
        )


def test_a_large_vocabulary_at_a_tiny_temperature():
    """What is far below the likeliest is 0, and none is NaN."""
    for scale in (1e-4, 1e4, 1e12):
        p = Sampling(1e-42).distribution(rows(2, 1000) * scale)
        assert p.sum(-1).tolist() == [1.0, 1.0] and p.amax(-1).tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("how", "said"),
    [({"temperature": -1e-9}, "at least 0 .0 is greedy"), ({"top_k": 0}, "at least 1"), ({"top_k": -1}, "at least 1"),
     ({"top_p": 0}, "above 0 and at most 1"), ({"top_p": 1.0001}, "at most 1"), ({"min_p": -0.001}, "min_p=-0.001 must be"),
     ({"min_p": 1.0001}, "at least 0 and at most 1"), ({"repetition_penalty": 0}, "above 0"),
     ({"repetition_penalty": -1}, "above 0"), ({"repetition_penalty": math.inf}, "above 0"),
     ({"repetition_penalty": math.nan}, "above 0"), ({"min_p": math.nan}, "min_p=nan"), ({"top_p": math.nan}, "top_p=nan")],
)  # fmt: skip
def test_what_is_refused(how, said):
    with pytest.raises(UserError, match=said):
        Sampling(**how)


def test_the_ends_of_what_is_allowed():
    for how in ({"temperature": 0}, {"top_k": 1}, {"top_p": 1}, {"top_p": 1e-9}, {"min_p": 0}, {"min_p": 1},
                {"repetition_penalty": 1e-9}, {"temperature": 1e9}):  # fmt: skip
        p = Sampling(**how).distribution(rows(), rows() > 0)
        torch.testing.assert_close(p.sum(-1), torch.ones(4))
        if {"top_k", "top_p", "min_p"} & how.keys() and how not in ({"top_p": 1}, {"min_p": 0}):
            assert (p > 0).sum(-1).tolist() == [1] * 4  # the likeliest alone
    default = Sampling()
    assert (default.temperature, default.top_k, default.top_p, default.min_p, default.repetition_penalty) == (
        1,
        None,
        None,
        None,
        1,
    )
