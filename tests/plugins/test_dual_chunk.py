"""Dual chunk attention against scores computed pair by pair from the paper's tables of positions."""

import cmath

import pytest
import torch
from parts import close, part, randn, sizes, view

from llmlab.slots import Context, Score

OPTIONS = {
    "paper": {},
    "interleaved, part of a head": {"interleaved": True, "fraction": 0.5},
    "yarn": {"scaling": "yarn", "factor": 4.0, "original_max": 64},
    "linear": {"scaling": "linear", "factor": 3.0},
}


def dual_chunk(chunk=6, local=4, width=8, **options):
    return part("position", "dual_chunk", chunk=chunk, local=local, **options)(sizes(rotary_dim=width))


def distances(length, chunk, local):
    """Section 3 of the paper: tables of positions for one chunk, and which of them a pair takes. Seen pairs only."""
    longest = chunk + local
    keys = list(range(chunk))
    intra = list(range(chunk))
    successive = [*range(chunk, chunk + local), *[longest - 1] * chunk][:chunk]
    inter = [longest - 1] * chunk
    table = {}
    for i in range(length):
        for j in range(i + 1):
            chunks = i // chunk - j // chunk
            queries = intra if chunks == 0 else successive if chunks == 1 else inter
            table[i, j] = queries[i % chunk] - keys[j % chunk]
    return table


def products(position, q, k, ids, k_ids=None):
    terms = position.rotate(q, k, position.prepare(ids, ids if k_ids is None else k_ids))
    return sum(torch.where(term.region, term.q_BNTH @ term.k_BKSH.mT, 0.0) for term in terms)


def test_the_distances_of_the_papers_figure():
    """Figure 2: twelve tokens, chunks of six, a length of training of ten. At frequency 1 a product is cos(distance)."""
    rows = {
        5: [5, 4, 3, 2, 1, 0],
        6: [6, 5, 4, 3, 2, 1, 0],
        9: [9, 8, 7, 6, 5, 4, 3, 2, 1, 0],
        10: [9, 8, 7, 6, 5, 4, 4, 3, 2, 1, 0],
        11: [9, 8, 7, 6, 5, 4, 5, 4, 3, 2, 1, 0],
        12: [9, 8, 7, 6, 5, 4, 6, 5, 4, 3, 2, 1, 0],
    }
    x = torch.tensor([1.0, 0.0]).expand(1, 1, 13, 2)
    got = products(dual_chunk(width=2, theta=1.0), x, x, torch.arange(13))
    for i, row in rows.items():
        close(got[0, 0, i, : i + 1], torch.tensor(row).float().cos())


@pytest.mark.parametrize(("chunk", "local"), [(6, 4), (4, 4), (5, 1), (3, 5), (1, 1), (30, 10)])
@pytest.mark.parametrize("name", OPTIONS)
def test_scores_pair_by_pair(name, chunk, local):
    options, length = OPTIONS[name], 20
    position = dual_chunk(chunk, local, **options)
    plain = part("position", "rope", **options)(sizes(rotary_dim=8))
    frequencies, width = plain.frequencies(torch.arange(2)).tolist(), plain.width
    q, k = randn(1, 1, length, 8), randn(1, 1, length, 8, seed=2)
    got = products(position, q, k, torch.arange(length))[0, 0]
    half = width // 2
    pairs = [(2 * i, 2 * i + 1) if options.get("interleaved") else (i, i + half) for i in range(half)]
    for (i, j), distance in distances(length, chunk, local).items():
        a, b = q[0, 0, i].tolist(), k[0, 0, j].tolist()
        want = sum(x * y for x, y in zip(a[width:], b[width:], strict=True))
        for (m, n), frequency in zip(pairs, frequencies, strict=True):
            turned = complex(a[m], a[n]) * cmath.exp(1j * distance * frequency) * complex(b[m], -b[n])
            want += turned.real * plain.amplitude**2
        assert got[i, j].item() == pytest.approx(want, abs=2e-5)


def attend(position, q, k, v, **context):
    return view(q.shape[2], position, **context).attend(q, k, v, Score(0.4))


@pytest.mark.parametrize(("chunk", "local", "length"), [(12, 4, 12), (8, 8, 16), (12, 4, 16)])
def test_a_text_as_long_as_those_of_training_is_ropes(chunk, local, length):
    """Within a chunk bit for bit; over two, distances are true ones, but the angles are rounded elsewhere."""
    q, k, v = randn(2, 4, length, 8), randn(2, 2, length, 8, seed=2), randn(2, 2, length, 8, seed=3)
    got = attend(dual_chunk(chunk, local), q, k, v)
    want = attend(part("position", "rope")(sizes(rotary_dim=8)), q, k, v)
    assert torch.equal(got[:, :, :chunk], want[:, :, :chunk])
    close(got, want)


def test_chunks_are_those_of_each_text():
    """Position ids begin with each document, and after padding; a caller's own count as they are."""
    position = dual_chunk(3, 2)
    documents = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1, 1]])
    assert position.ids(Context(9, documents=documents)).tolist() == [[0, 1, 2, 3, 0, 1, 2, 3, 4]]
    valid = torch.tensor([[0, 0, 1, 1, 1, 1]]).bool()
    assert position.ids(Context(6, valid=valid)).tolist() == [[0, 0, 0, 1, 2, 3]]
    assert position.ids(Context(2, 4, valid=valid)).tolist() == [[2, 3]]
    x, ids = randn(2, 1, 8, 8), torch.stack([torch.arange(8), torch.arange(8) + 2])
    got = products_of_samples(position, x, ids)
    for b in range(2):
        close(got[b], products(position, x[b : b + 1], x[b : b + 1], ids[b])[0], 1e-6)


def products_of_samples(position, x, ids):
    terms = position.rotate(x, x, position.prepare(ids, ids))
    return sum(torch.where(term.region[:, None], term.q_BNTH @ term.k_BKSH.mT, 0.0) for term in terms)


def test_sizes_come_from_the_length_of_training():
    position = part("position", "dual_chunk")(sizes(max_positions=32))
    assert (position.chunk, position.local) == (24, 8)
    position = part("position", "dual_chunk", original_max=16, chunk=10)(sizes(max_positions=32))
    assert (position.chunk, position.local) == (10, 6)


def test_what_it_can_not_do_is_refused():
    with pytest.raises(ValueError, match=r"position\.chunk=0 and position\.local=4 must be at least 1"):
        dual_chunk(chunk=0)
    with pytest.raises(ValueError, match=r"needs mask=causal; choose position=rope"):
        part("position", "dual_chunk")(sizes(causal=False))
