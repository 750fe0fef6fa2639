"""Checks of what position parts declare of themselves: `relative`, `receding`, `has_bias`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from llmlab import attributes
from llmlab.check.parts.fixtures import LENGTH, build_random, part_sizes, randn, tested_part
from llmlab.check.subject import CheckFailed, NotApplicable, Subject, assert_close
from llmlab.sizes import Sizes
from llmlab.slots import Position

ROWS, SCALE = 2, 0.4


def attention_scores(part: Position, sizes: Sizes, q_ids: Tensor, k_ids: Tensor) -> Tensor:
    """(B, N, T, S): scaled products of queries and keys plus the bias, as attention would compute them."""
    q = randn(ROWS, sizes.n_heads, q_ids.shape[-1], sizes.rotary_dim)
    k = randn(ROWS, sizes.n_heads, k_ids.shape[-1], sizes.rotary_dim, seed=2)
    state = _state(part, sizes, q_ids, k_ids)
    terms = part.rotate(q, k, state)
    total = terms[0].q_BNTH @ terms[0].k_BKSH.mT
    for term in terms[1:]:
        assert term.region is not None
        region = term.region[:, None] if term.region.dim() == 3 else term.region
        total = torch.where(region, term.q_BNTH @ term.k_BKSH.mT, total)
    bias = part.bias(terms[0].q_BNTH, terms[0].k_BKSH, SCALE, state)
    return total * SCALE if bias is None else total * SCALE + bias


def _state(part: Position, sizes: Sizes, q_ids: Tensor, k_ids: Tensor) -> Any:
    """The prepared state of the part, with random projections of a layer where it `projects`."""
    state = part.prepare(q_ids, k_ids)
    if not part.projects:
        return state
    weights = randn(2, sizes.n_heads, sizes.rotary_dim, sizes.dim, seed=3)

    def project(x_LD: Tensor) -> tuple[Tensor, Tensor]:
        q, k = (torch.einsum("ld,nhd->nlh", x_LD, weight) for weight in weights)
        return q, k

    return part.of_layer(state, project)


def _position_ids(part: Position, start: int = 0) -> Tensor:
    """Ids of a text that begins at `start`: (T,), or (1, C, T) of a part that counts C things."""
    places = torch.arange(start, start + LENGTH)
    return places if part.counts == 1 else torch.stack([places, *[torch.zeros_like(places)] * (part.counts - 1)])[None]


@torch.no_grad()
def shift(subject: Subject) -> None:
    """A position that calls itself `relative` scores a text the same wherever it begins."""
    spec, sizes = tested_part(subject, "position"), part_sizes(subject)
    part = build_random(spec.factory(), sizes)
    if not attributes.get(part, "position", "relative"):
        raise NotApplicable("it does not say that only distances count")
    want = attention_scores(part, sizes, _position_ids(part), _position_ids(part))
    for start in (1, 9):
        got = attention_scores(part, sizes, _position_ids(part, start), _position_ids(part, start))
        assert_close(got, want, f"scores of a text that begins at position {start} instead of 0", 1e-4)
    # A part that ignores its ids would pass all of the above.
    if torch.allclose(attention_scores(part, sizes, 2 * _position_ids(part), 2 * _position_ids(part)), want, atol=1e-3):
        raise CheckFailed("scores are the same at twice the distances")


@torch.no_grad()
def recency(subject: Subject) -> None:
    """A position that calls itself `receding` has a bias of 0 for a token on itself, which falls with the distance."""
    spec, sizes = tested_part(subject, "position"), part_sizes(subject)
    part = build_random(spec.factory(), sizes)
    if not attributes.get(part, "position", "receding"):
        raise NotApplicable("it does not say that far tokens count less")
    places = _position_ids(part)
    q = torch.zeros(1, sizes.n_heads, LENGTH, sizes.rotary_dim)
    bias = part.bias(q, q, SCALE, _state(part, sizes, places, places)).expand(1, -1, -1, -1)[0]
    if bias.diagonal(dim1=1, dim2=2).abs().max() > 1e-6:
        raise CheckFailed("a token has a bias on itself")
    for n, t in ((n, t) for n in range(sizes.n_heads) for t in range(LENGTH)):
        falling = bias[n, t, : t + 1].flip(0)  # at distance 0, 1, 2 ...
        if not (falling.diff() < 0).all():
            raise CheckFailed(
                f"the bias of head {n} on tokens at distance 0, 1 ... is {[round(b, 3) for b in falling.tolist()]}"
            )


@torch.no_grad()
def rows(subject: Subject) -> None:
    """Ids that all rows share and the same ids for each row give the same scores, and each row is scored by its own ids."""
    spec, sizes = tested_part(subject, "position"), part_sizes(subject)
    part = build_random(spec.factory(), sizes)
    shared = _position_ids(part)
    each = shared.expand(ROWS, *shared.shape[-2:]) if part.counts > 1 else shared.expand(ROWS, -1)
    one, other = part.embed(shared), part.embed(each)
    if (one is None) != (other is None):
        raise CheckFailed("it embeds ids of a row or of all rows, but not both")
    if one is not None and other is not None:
        assert_close(other, one.expand_as(other), "vectors of ids that each row has")
    assert_close(
        attention_scores(part, sizes, each, each),
        attention_scores(part, sizes, shared, shared),
        "scores by ids that each row has",
    )
    # Twice as far apart, as a relative position scores a mere shift alike.
    own_ids = torch.cat([each[:1], 2 * each[1:] + 1])
    got = attention_scores(part, sizes, own_ids, own_ids)
    for row, ids in enumerate(own_ids):
        alone = ids if part.counts == 1 else ids[None]
        assert_close(
            got[row], attention_scores(part, sizes, alone, alone)[row], "scores of a row with positions of its own"
        )
    bias = part.bias(
        torch.zeros(1, sizes.n_heads, LENGTH, sizes.rotary_dim),
        torch.zeros(1, sizes.n_heads, LENGTH, sizes.rotary_dim),
        SCALE,
        _state(part, sizes, shared, shared),
    )
    if bias is not None and not part.has_bias:
        raise CheckFailed("it has a bias but does not say so (has_bias), so that a kernel would ignore it")
