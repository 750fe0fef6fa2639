"""Two streams in one pass: [text; queries] under an order, against two stacks of hidden states kept apart."""

import pytest
import torch
from families import build, ids, mostly_slow, spec, tiny

from llmlab.errors import UserError

LENGTH, TARGETS = 7, [[4, 1, 6], [2, 0, 5]]  # which tokens are asked for, in order; the rest is seen by all
VARIANTS = {
    "xlnet": ("xlnet", "model.dropout=0"),
    "eager, other parts": ("xlnet", "attention=gqa", "ffn=swiglu", "norm=rmsnorm", "kernel=eager"),
    "rope, before the sublayers": ("xlnet", "position=rope", "block=pre", "attention=mla"),
    "bert's bias": ("xlnet", "position=t5_bias"),
}


def asking(text):
    """The batch of two streams: each target's query behind the text."""
    rank = torch.zeros(2, LENGTH, dtype=torch.long)
    for b, targets in enumerate(TARGETS):
        for place, target in enumerate(targets):
            rank[b, target] = place + 1
    asked = torch.tensor(TARGETS)
    where = torch.arange(LENGTH).expand(2, -1)
    return {
        "ids": torch.cat([text, torch.full_like(asked, 3)], 1),
        "positions": torch.cat([where, asked], 1),
        "rank": torch.cat([rank, rank.gather(1, asked)], 1),
        "queries": torch.arange(LENGTH + 3).expand(2, -1) >= LENGTH,
    }


def two_stream(*overrides):
    """A model under mask=permutation. It reads orders that no objective has drawn."""
    from dataclasses import replace

    from llmlab.hub.entry import part
    from llmlab.model.build import build_model

    made = spec(*overrides)
    stacks = tuple(replace(s, mask=part("mask", "permutation")) for s in made.stacks)
    model = build_model(replace(made, stacks=stacks)).eval()
    model.load_state_dict(build(*overrides).state_dict())
    return model


@pytest.mark.parametrize("name", mostly_slow(VARIANTS, list(VARIANTS)[:1]))
@torch.no_grad()
def test_a_query_reads_what_comes_before_it_in_the_order(name):
    model, text = two_stream(*tiny(*VARIANTS[name])), ids(2, LENGTH)
    data = asking(text)
    hidden = model(data).hidden
    for b, targets in enumerate(TARGETS):
        for place, target in enumerate(targets):
            # Neither the token that is asked for nor a later one changes the answer; an earlier one does.
            for other in range(LENGTH):
                changed = {k: x.clone() for k, x in data.items()}
                changed["ids"][b, other] = (changed["ids"][b, other] + 1) % 61
                moved = (model(changed).hidden - hidden)[b, LENGTH + place].abs().max() > 1e-6
                assert moved == (other not in targets[place:]), (target, other)
        text_only = {k: x[:, :LENGTH] for k, x in data.items()}
    torch.testing.assert_close(model(text_only).hidden, hidden[:, :LENGTH], rtol=1e-4, atol=2e-5)  # nobody sees a query


def test_without_queries_their_vector_has_a_gradient_of_zero():
    model = build(*tiny("xlnet"))
    model({"ids": ids(2, LENGTH)}).hidden.square().sum().backward()
    assert model.stacks["main"].embedding.query.weight.grad.abs().sum() == 0


@torch.no_grad()
def test_queries_have_one_vector_whatever_their_id():
    model, data = two_stream(*tiny("xlnet")), asking(ids(2, LENGTH))
    other = {**data, "ids": torch.cat([data["ids"][:, :LENGTH], data["ids"][:, LENGTH:] + 9], 1)}
    assert torch.equal(model(data).hidden, model(other).hidden)


@torch.no_grad()
def test_a_window_that_would_count_queries_as_text_is_refused():
    model = two_stream(*tiny("xlnet", "window=sliding", "window.left=4"))
    with pytest.raises(ValueError, match="window=sliding goes by places .* choose window=full"):
        model(asking(ids(2, LENGTH)))


def test_relative_scores_are_not_split_over_devices():
    from llmlab.training.strategies.tensor_parallel import check

    with pytest.raises(UserError, match="tensor_parallel=2: position=XLNetRelative scores the queries of all heads"):
        check(2, spec(*tiny("xlnet")))


@torch.no_grad()
def test_the_first_of_an_order_of_all_sees_itself_and_is_a_number():
    model, text = two_stream(*tiny("xlnet")), ids(1, 3)
    where = torch.tensor([[0, 1, 2, 0, 1, 2]])
    data = {"ids": text.repeat(1, 2), "positions": where, "rank": where + 1, "queries": torch.arange(6)[None] > 2}
    out = model(data).hidden
    assert torch.isfinite(out).all()
    data["ids"][:, :3] = (data["ids"][:, :3] + 1) % 61
    assert torch.equal(model(data).hidden[:, 3], out[:, 3])
