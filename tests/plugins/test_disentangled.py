"""DeBERTa's scores against the formula, a number at a time; its buckets against the reference implementation."""

import math

import pytest
import torch
from families import build as build_model
from families import spec, tiny
from parts import build, close, part, randn, sizes, view

from llmlab.errors import UserError
from llmlab.training.strategies import tensor_parallel

N, K, H, D, SCALE = 4, 2, 6, 24, 0.7
TERMS = {"both": (True, True), "c2p": (True, False), "p2c": (False, True)}


def made(**options):
    return build(part("position", "disentangled", **{"buckets": 4, "max_distance": 9, **options}), sizes())


def bucketed(distance, single, most):
    """The paper's function of a distance (He et al. 2021, section 2.3 of its code's notation)."""
    far = abs(distance)
    if far <= single:
        return distance
    grown = single + math.ceil(math.log(far / single) / math.log((most - 1) / single) * (single - 1))
    return grown if distance > 0 else -grown


@pytest.mark.parametrize("length", [1, 2, 4, 6, 30])
def test_where_only_shapes_count_it_reads_as_many_vectors(length):
    position, ids = made(), torch.arange(length)
    real = position.prepare(ids, ids)
    shaped = position.to("meta").prepare(ids.to("meta"), ids.to("meta"))
    assert shaped.vectors_LD.shape == real.vectors_LD.shape


@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("terms", TERMS)
@torch.no_grad()
def test_is_the_formula(terms, normed):
    to_position, to_content = TERMS[terms]
    position = made(content_to_position=to_position, position_to_content=to_content, normed=normed)
    q_ids, k_ids = torch.arange(3, 7), torch.arange(7)
    q, k = randn(2, N, 4, H), randn(2, K, 7, H, seed=2)
    w_q, w_k = randn(N, H, D, seed=3), randn(K, H, D, seed=4)
    projected = position.of_layer(
        position.prepare(q_ids, k_ids),
        lambda x: (torch.einsum("ld,nhd->nlh", x, w_q), torch.einsum("ld,nhd->nlh", x, w_k)),
    )
    (term,) = position.rotate(q, k, projected)
    got = SCALE * term.q_BNTH @ term.k_BKSH.repeat_interleave(2, 1).mT
    got = got + position.bias(term.q_BNTH, term.k_BKSH, SCALE, projected)
    table = position.table.weight
    if normed:
        table = torch.nn.functional.layer_norm(table, (D,), position.norm.weight, position.norm.bias, 1e-5)
    for b in range(2):
        for n in range(N):
            for t in range(4):
                for s in range(7):
                    vector = table[4 + max(-4, min(3, bucketed(3 + t - s, 2, 9)))]
                    query, key = q[b, n, t], k[b, n // 2, s]
                    want = query @ key
                    want = want + (query @ (w_k[n // 2] @ vector) if to_position else 0)
                    want = want + ((w_q[n] @ vector) @ key if to_content else 0)
                    want = want * SCALE / math.sqrt(1 + to_position + to_content)
                    assert got[b, n, t, s].item() == pytest.approx(want.item(), abs=2e-4)


@pytest.mark.parametrize(("buckets", "most"), [(256, 512), (8, 40), (4, 9), (32, 128), (2, 4)])
def test_buckets_are_the_references(buckets, most):
    from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

    distances = torch.arange(-2 * most, 2 * most)
    got = made(buckets=buckets, max_distance=most).bucket(distances)
    assert torch.equal(got, make_log_bucket_position(distances, buckets, most).long())


@torch.no_grad()
def test_the_layers_own_attention_projects():
    """With all distances alike, each vector is one more token's query and key."""
    position, attention = made(normed=False), build(part("attention", "gqa"), sizes(), part("norm", "layernorm"))
    x, vector = randn(2, 5, D), randn(D, seed=7)
    position.table.weight.copy_(vector.expand_as(position.table.weight))
    seen = view(5, position).of(attention)
    q, k = (linear(x).unflatten(-1, (-1, H)).transpose(1, 2) for linear in (attention.q, attention.k))
    q0, k0 = (linear(vector).unflatten(-1, (-1, H)) for linear in (attention.q, attention.k))
    (term,) = position.rotate(q, k, seen.state)
    want = q @ k0.repeat_interleave(N // k0.shape[0], 0)[None, :, :, None]
    want = want + (k.repeat_interleave(N // k.shape[1], 1) @ q0[None, :, :, None]).mT
    close(position.bias(term.q_BNTH, term.k_BKSH, 1.0, seen.state), want / math.sqrt(3))


def test_what_it_cannot_do_is_refused():
    with pytest.raises(UserError, match="attention=mla does not make of distances; choose attention=mha"):
        build_model(*tiny("deberta_v3", "attention=mla"))
    with pytest.raises(UserError, match="strategy.tensor_parallel=2: position=Disentangled"):
        tensor_parallel.check(2, spec(*tiny("deberta_v3")))


@pytest.mark.parametrize(
    "options",
    [
        {"buckets": 1},
        {"buckets": 16, "max_distance": 9},
        {"buckets": None, "max_distance": 0},
        {"content_to_position": False, "position_to_content": False},
    ],
)
def test_options_without_meaning_are_refused(options):
    with pytest.raises(ValueError, match="^position"):
        made(**options)
