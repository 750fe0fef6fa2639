"""Positions that are added: to the embedding or to the scores."""

import math

import pytest
import torch
from parts import build, close, names, part, randn, sizes

from llmlab.slots import Context, Position


def test_every_position_is_here():
    added = {"none", "learned", "sinusoidal", "glm_2d", "alibi", "t5_bias", "learned_t5_bias", "xlnet_relative"}
    assert set(names("position")) == {*added, "disentangled", "rope", "rope_2d", "dual_chunk"}


def added(position, q_ids, k_ids):
    """A bias that does not depend on queries and keys."""
    nothing = randn(1, 1, 1, 1)
    return position.bias(nothing, nothing, 1.0, position.prepare(q_ids, k_ids))


@pytest.mark.parametrize("name", names("position"))
def test_what_a_position_says_of_itself(name):
    position = build(part("position", name), sizes())
    ids = torch.arange(5)
    state = position.of_layer(position.prepare(ids, ids), lambda x: (randn(4, len(x), 6), randn(2, len(x), 6)))
    q, k = randn(2, 4, 5, 6), randn(2, 2, 5, 6)
    bias = position.bias(q, k, 1.0, state)
    assert position.has_bias == (bias is not None)
    assert bias is None or bias.shape in ((4, 5, 5), (2, 4, 5, 5))
    x = position.embed(ids)
    assert x is None or x.shape == (5, 24)
    terms = position.rotate(q, k, state)
    assert (name in ("rope", "rope_2d", "dual_chunk", "disentangled")) != torch.equal(terms[0].q_BNTH, q)
    assert position.has_regions == (len(terms) > 1) == any(term.region is not None for term in terms)
    if position.has_regions:
        assert (sum(term.region.int() for term in terms) == 1).all(), "each pair counts in one term"
        assert not position.caches_rotated or all(torch.equal(term.k_BKSH, terms[0].k_BKSH) for term in terms)
    assert not list(position.buffers())


@pytest.mark.parametrize("name", names("position"))
def test_ids_count_on_from_the_cache_unless_given(name):
    position = build(part("position", name), sizes())
    given = torch.tensor([[4, 2]])
    ids, own = position.ids(Context(3, offset=5)), position.ids(Context(2, positions=given))
    if position.counts == 1:
        assert ids.tolist() == [5, 6, 7] and own is given
    else:
        assert ids.tolist() == [[[5, 6, 7], [0, 0, 0]]] and own.tolist() == [[[4, 2], [0, 0]]]


def test_none_is_the_identity():
    none = part("position", "none")(sizes())
    assert isinstance(none, Position) and none.embed(torch.arange(3)) is None


@pytest.mark.parametrize("dim", [8, 7])
@pytest.mark.parametrize("layout", ["interleaved", "halves"])
def test_sinusoidal_closed_form(layout, dim):
    position = part("position", "sinusoidal", layout=layout)(sizes(embed_dim=dim))
    ids = torch.tensor([[0, 1, 2], [5, 100, 3000]])
    got = position.embed(ids)
    half = (dim + 1) // 2
    for b in range(2):
        for t in range(3):
            angles = [ids[b, t].item() / 10000 ** (2 * i / dim) for i in range(half)]
            for d in range(dim):
                sine, i = (d % 2 == 0, d // 2) if layout == "interleaved" else (d < half, d % half)
                want = math.sin(angles[i]) if sine else math.cos(angles[i])
                assert got[b, t, d] == pytest.approx(want, abs=5e-4)


def test_sinusoidal_halves_are_those_of_marian():
    from transformers.models.marian.modeling_marian import MarianSinusoidalPositionalEmbedding

    reference = MarianSinusoidalPositionalEmbedding(30, 8)
    want = reference.create_weight()
    close(part("position", "sinusoidal", layout="halves")(sizes(embed_dim=8)).embed(torch.arange(30)), want, 1e-5)


def test_learned_looks_up_and_refuses_what_it_has_no_rows_for():
    position = build(part("position", "learned"), sizes(max_positions=8))
    ids = torch.tensor([[3, 1], [7, 0]])
    assert torch.equal(position.embed(ids), position.table.weight[ids])
    assert position.table.role == "position"
    assert position.ids(Context(3, offset=5)).tolist() == [5, 6, 7]
    with pytest.raises(ValueError, match=r"9 positions are needed, but position=learned has model.max_positions=8"):
        position.ids(Context(4, offset=5))


def test_learned_may_count_what_is_not_padding_as_opt():
    from transformers.models.opt.modeling_opt import OPTLearnedPositionalEmbedding

    position = build(part("position", "learned", offset=2, skip_padding=True), sizes())
    reference = OPTLearnedPositionalEmbedding(32, 24)
    reference.weight.data.copy_(position.table.weight)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0], [0, 1, 0, 1, 1, 0]])
    for offset in (0, 4):
        ctx = Context(6 - offset, offset=offset, valid=mask.bool())
        got, want = position.embed(position.ids(ctx)), reference(mask, offset)
        kept = mask[:, offset:].bool()
        close(got[kept], want[kept])
    close(position.embed(position.ids(Context(3))), reference(torch.ones(1, 3).long())[0])
    given = torch.tensor([[4, 0]])
    close(position.embed(position.ids(Context(2, positions=given))), reference(mask, position_ids=given))


def paper_slopes(n):
    """The rule as the ALiBi paper states it, for any number of heads."""
    if math.log2(n).is_integer():
        start = 2 ** (-(2 ** -(math.log2(n) - 3)))
        return [start * start**i for i in range(n)]
    closest = 2 ** math.floor(math.log2(n))
    return paper_slopes(closest) + paper_slopes(2 * closest)[0::2][: n - closest]


@pytest.mark.parametrize("n", [1, 2, 3, 4, 6, 8, 12, 16, 20, 71])
def test_alibi_slopes(n):
    assert part("position", "alibi")(sizes(n_heads=n)).slopes == pytest.approx(paper_slopes(n))


def test_alibi_slopes_of_eight_heads_are_powers_of_a_half():
    assert part("position", "alibi")(sizes(n_heads=8)).slopes == [2.0**-i for i in range(1, 9)]


def test_alibi_punishes_distance():
    position = part("position", "alibi")(sizes(n_heads=6))
    ids = torch.arange(9)
    bias = added(position, ids, ids)
    assert (bias <= 0).all() and (bias.diagonal(dim1=-2, dim2=-1) == 0).all()
    assert (bias[:, -1].diff(dim=-1) > 0).all()
    for head, slope in enumerate(paper_slopes(6)):
        assert bias[head, 7, 2].item() == pytest.approx(-5 * slope)
        assert bias[head, 2, 7].item() == pytest.approx(-5 * slope)


def test_alibi_weighs_as_bloom():
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor

    position = part("position", "alibi")(sizes(n_heads=6))
    ids, unseen = torch.arange(9), ~torch.ones(9, 9).tril().bool()
    scores = randn(6, 9, 9)
    got = added(position, ids, ids) + scores
    want = build_alibi_tensor(torch.ones(1, 9), 6, torch.float32).view(6, 1, 9) + scores
    close(got.masked_fill(unseen, -1e9).softmax(-1), want.masked_fill(unseen, -1e9).softmax(-1), 1e-5)


PADDED = torch.tensor([[1] * 9, [0] * 4 + [1] * 5, [0, 1, 1, 0, 0, 1, 1, 1, 1]])


@pytest.mark.parametrize("heads", [4, 6, 16])
def test_alibi_over_padding_weighs_as_bloom_and_falcon(heads):
    """What padding takes from positions shows where it is in the midst of a text; Falcon's are rounded."""
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor as bloom
    from transformers.models.falcon.modeling_falcon import build_alibi_tensor as falcon

    scores = randn(3, heads, 9, 9)
    unseen = ~(torch.ones(9, 9).tril().bool() & PADDED.bool()[:, None, None])
    kept = PADDED.bool()[:, None, :, None].expand_as(scores)
    options = dict(skip_padding=True), dict(skip_padding=True, rounded=True, scaled=True)
    for build_alibi, more, scale in zip((bloom, falcon), options, (1.0, 6**-0.5), strict=True):
        position = part("position", "alibi", **more)(sizes(n_heads=heads))
        ids = position.ids(Context(9, valid=PADDED.bool()))
        got = added(position, ids, ids) + scores
        want = build_alibi(PADDED, heads, torch.float32).view(3, heads, 1, 9) * scale + scores
        got, want = (x.masked_fill(unseen, -1e9).softmax(-1) for x in (got, want))
        close(got[kept], want[kept], 1e-5)


@pytest.mark.parametrize("heads", [4, 6])
def test_alibi_with_another_greatest_exponent_is_mpts(heads):
    from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor

    position = part("position", "alibi", max_bias=5.0)(sizes(n_heads=heads))
    ids = torch.arange(7)
    close(position.prepare(ids, ids)[:, -1], build_mpt_alibi_tensor(heads, 7, alibi_bias_max=5)[:, 0])


@pytest.mark.parametrize(("buckets", "max_distance"), [(32, 128), (8, 20), (16, 64)])
@pytest.mark.parametrize("causal", [True, False])
def test_t5_buckets(causal, buckets, max_distance):
    from transformers.models.t5.modeling_t5 import T5Attention

    position = part("position", "t5_bias", buckets=buckets, max_distance=max_distance)(sizes(causal=causal))
    distance = torch.arange(-400, 401)
    want = T5Attention._relative_position_bucket(distance, not causal, buckets, max_distance)
    assert torch.equal(position.bucket(distance), want)
    assert position.bucket(distance).max() == buckets - 1


@pytest.mark.parametrize("causal", [True, False])
def test_t5_bias_is_the_table_at_the_bucket(causal):
    position = build(part("position", "t5_bias"), sizes(causal=causal))
    assert position.table.role == "position"
    q_ids, k_ids = torch.arange(60, 64), torch.arange(64)
    bias = added(position, q_ids, k_ids)
    for t in range(4):
        for s in (0, 20, 58, 61, 63):
            want = position.table.weight[position.bucket(k_ids[s] - q_ids[t])]
            assert torch.equal(bias[:, t, s], want)
    bias.sum().backward()
    assert position.table.weight.grad is not None


@pytest.mark.parametrize("name", ["alibi", "t5_bias"])
def test_bias_of_ids_of_each_sample(name):
    position = build(part("position", name), sizes())
    ids = torch.tensor([[0, 1, 2, 3], [0, 0, 5, 9]])
    bias = position.prepare(ids, ids)
    assert bias.shape == (2, 4, 4, 4)
    for b in range(2):
        assert torch.equal(bias[b], position.prepare(ids[b], ids[b]))


def test_too_few_buckets_are_refused():
    with pytest.raises(ValueError, match=r"position\.buckets=2"):
        part("position", "t5_bias", buckets=2)(sizes(causal=False))


def test_positions_of_a_batch_count_from_0_with_a_row_of_padding_too():
    """Two records in one window, whose positions begin anew, are what each is alone."""
    made = build(part("position", "learned", pad_id=1, offset=2), sizes())
    alone = made.ids(Context(3, ids=torch.tensor([[5, 6, 7]])))
    packed = Context(6, ids=torch.tensor([[5, 6, 7, 5, 6, 7]]), positions=torch.tensor([[0, 1, 2, 0, 1, 2]]))
    assert torch.equal(made.ids(packed), alone.repeat(1, 2))
