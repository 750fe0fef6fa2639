"""XLNet's relative scores against the formula, a number at a time, and the second stream against two passes."""

import math

import pytest
import torch
from parts import build, close, part, randn, sizes

from llmlab.slots import Context

N, H, D = 4, 6, 24


def made(**options):
    return build(part("position", "xlnet_relative", **options), sizes())


def score(position, q, k, n, distance, differs=None):
    """(q + v).W r + u.k, with segments (q + w).e, of one head and one pair, before it is scaled."""
    sinusoid = [math.sin(distance / 10000 ** (2 * i / D)) for i in range(D // 2)]
    sinusoid += [math.cos(distance / 10000 ** (2 * i / D)) for i in range(D // 2)]
    far = position.project.weight[n * H : (n + 1) * H].double() @ torch.tensor(sinusoid, dtype=torch.float64)
    total = (q + position.position_bias[n]).double() @ far + position.content_bias[n].double() @ k.double()
    if differs is not None:
        vector = position.segments.weight[int(differs), n * H : (n + 1) * H]
        total = total + (q + position.segment_bias[n]).double() @ vector.double()
    return total


@pytest.mark.parametrize("clamp", [None, 2])
@pytest.mark.parametrize("both_ways", [False, True])
@pytest.mark.parametrize("segments", [False, True])
@torch.no_grad()
def test_is_the_formula(clamp, both_ways, segments):
    position = made(clamp=clamp, both_ways=both_ways, segments=segments)
    types = torch.tensor([[0, 1, 1, 2], [3, 3, 0, 0]])
    q_ids = position.ids(Context(4, offset=2, segments=types if segments else None))
    k_ids = torch.arange(6)
    if segments:
        k_ids = torch.stack([k_ids.expand(2, -1), torch.cat([torch.zeros(2, 2).long(), types], 1)], 1)
    q, k = randn(2, N, 4, H), randn(2, 2, 6, H, seed=2)
    got = position.bias(q, k, 0.7, position.prepare(q_ids, k_ids))
    assert got.shape == (2, N, 4, 6)
    every = torch.cat([torch.zeros(2, 2).long(), types], 1)
    for b in range(2):
        for n in range(N):
            for t in range(4):
                for s in range(6):
                    distance = (2 + t - s) * (-1 if both_ways and b else 1)
                    distance = max(-clamp, min(clamp, distance)) if clamp else distance
                    differs = types[b, t] != every[b, s] if segments else None
                    want = 0.7 * score(position, q[b, n, t], k[b, n // 2, s], n, distance, differs)
                    assert got[b, n, t, s].item() == pytest.approx(want.item(), abs=2e-5)


@torch.no_grad()
def test_the_part_of_a_head_that_is_not_rotated_is_not_scored():
    position = made()
    q, k, ids = randn(1, N, 3, H + 5), randn(1, N, 3, H + 5, seed=2), torch.arange(3)
    state = position.prepare(ids, ids)
    close(position.bias(q, k, 1.0, state), position.bias(q[..., 5:], k[..., 5:], 1.0, state))


@torch.no_grad()
def test_positions_that_are_given_count_by_distance():
    position, q, k = made(), randn(2, N, 3, H), randn(2, N, 3, H, seed=2)
    given = torch.tensor([[4, 9, 5], [0, 2, 1]])
    ids = position.ids(Context(3, positions=given))
    shifted = position.ids(Context(3, positions=given + 100))
    one, two = (position.bias(q, k, 1.0, position.prepare(i, i)) for i in (ids, shifted))
    close(one, two)
    close(
        one[1:, :, 2:, 1:2],
        position.bias(q[1:, :, 2:], k[1:, :, 1:2], 1.0, position.prepare(ids[1:, 2:], ids[1:, 1:2])),
    )


@pytest.mark.parametrize("kv_heads", [1, 2, N])
@torch.no_grad()
def test_for_a_query_that_stands_nowhere_all_weighs_alike(kv_heads):
    position, q, k = made(segments=True), randn(2, N, 3, H), randn(2, kv_heads, 3, H, seed=2)
    ids = position.ids(Context(3, positions=torch.tensor([[0, -1, 2], [-1, 1, 2]])))
    bias = position.bias(q, k, 0.4, position.prepare(ids, ids))
    scores = 0.4 * q @ k.repeat_interleave(N // kv_heads, 1).mT + bias
    assert (scores[0, :, 1].abs().max() < 1e-5) and (scores[1, :, 0].abs().max() < 1e-5)
    usual = position.ids(Context(3))
    want = position.bias(q, k, 0.4, position.prepare(usual, usual))
    close(bias[:, :, 2, 1:][0:1, :, 1:], want[0:1, :, 2, 2:])


def test_ids_are_pairs_with_segments():
    position = made(segments=True)
    assert position.counts == 2 and position.ids(Context(3, offset=1)).tolist() == [[[1, 2, 3], [0, 0, 0]]]
    types = torch.tensor([[1, 0], [2, 2]])
    assert position.ids(Context(2, segments=types)).tolist() == [[[0, 1], [1, 0]], [[0, 1], [2, 2]]]
    with pytest.raises(ValueError, match="positions count 2 things, but position=Rope 1"):
        part("position", "rope")(sizes()).ids(Context(3, positions=torch.zeros(1, 2, 3).long()))


def test_a_distance_to_clamp_at_is_positive():
    with pytest.raises(ValueError, match=r"position\.clamp=0 must be at least 1"):
        made(clamp=0)
