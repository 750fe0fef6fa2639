"""Attention parts that pass a state from token to token, against torch.nn.LSTM."""

from dataclasses import replace

import pytest
import torch
from families import build as model_of
from families import spec, tiny
from parts import build, close, part, randn, sizes, view
from torch import nn
from torch.nn.utils import rnn

from llmlab.config.spec import PartSpec
from llmlab.errors import UserError
from llmlab.model.build import assemble
from llmlab.model.cache import Cache
from llmlab.model.view import LayerCache
from llmlab.training.strategies import tensor_parallel

RMS = part("norm", "rmsnorm")
BOTH = sizes(causal=False, sees_all=True)


def lstm(name="lstm", of=None, **options):
    return build(part("attention", name, **options), sizes() if of is None else of, RMS, std=0.3)


def reference(cells, inputs: int, state: int, width: int, forget_bias: float = 1.0) -> nn.LSTM:
    """torch's LSTM with the weights of these cells, of which the forget gate's constant is in the second bias."""
    found = nn.LSTM(inputs, state, proj_size=width, batch_first=True, bidirectional=len(cells) > 1)
    with torch.no_grad():
        for cell, end in zip(cells, ("", "_reverse"), strict=False):
            second = torch.zeros(4, state)
            second[1] = forget_bias
            for key, value in (
                ("weight_ih", cell.x.weight),
                ("weight_hh", cell.h.weight),
                ("weight_hr", cell.out.weight),
                ("bias_ih", cell.x.bias),
                ("bias_hh", second.flatten()),
            ):
                getattr(found, f"{key}_l0{end}").copy_(value)
    return found


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize(("of", "mask", "width"), [(sizes(), "causal", 24), (BOTH, "bidirectional", 12)])
def test_equals_torchs_lstm_and_its_gradients(of, mask, width):
    attention = lstm(of=of, state=30, forget_bias=0.7)
    want = reference(list(attention.cells.values()), 24, 30, width, 0.7)
    x, valid = randn(3, 7, 24), torch.arange(7) < torch.tensor([[7], [4], [6]])
    packed = rnn.pack_padded_sequence(x, valid.sum(1), batch_first=True, enforce_sorted=False)
    y = rnn.pad_packed_sequence(want(packed)[0], batch_first=True)[0]
    got = attention(x, view(7, mask=mask, valid=valid)) * valid[..., None]
    close(got, y)
    weight = randn(3, 7, 24, seed=5)
    for one in (got, y):
        (one * weight).sum().backward()
    for cell, end in zip(attention.cells.values(), ("", "_reverse"), strict=False):
        for ours, theirs in (("x", "weight_ih"), ("h", "weight_hh"), ("out", "weight_hr")):
            close(getattr(cell, ours).weight.grad, getattr(want, f"{theirs}_l0{end}").grad)
        close(cell.x.bias.grad, want.get_parameter(f"bias_ih_l0{end}").grad)


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_directions_that_are_apart_are_two_lstms_of_half_the_width():
    attention, x = lstm("lstm_apart", BOTH, state=30), randn(2, 6, 24)
    halves = [
        reference([cell], 12, 30, 12)(half)[0]
        for cell, half in zip(attention.cells.values(), (x[..., :12], x[..., 12:].flip(1)), strict=True)
    ]
    close(attention(x, view(6, mask="bidirectional")), torch.cat([halves[0], halves[1].flip(1)], -1))


def test_a_state_is_cached_and_may_go_back():
    attention, x, cache = lstm(state=30), randn(2, 9, 24), LayerCache(9)
    for start, end in ((0, 5), (5, 6), (6, 9)):
        got = attention(x[:, start:end], view(end - start, offset=start), cache=cache)
        close(got, attention(x[:, :end], view(end))[:, start:])
    assert sum(b.numel() for b in cache.buffers) == 2 * 9 * (24 + 30)
    cache.cut(4)
    other = torch.cat([x[:, :4], randn(2, 2, 24, seed=7)], 1)
    close(attention(other[:, 4:], view(2, offset=4), cache=cache), attention(other, view(6))[:, 4:])


def test_has_as_many_weights_as_attention_and_feed_forward_of_its_width():
    for attention in (lstm(), lstm("lstm_apart", BOTH)):
        assert sum(p.numel() for p in attention.parameters() if p.dim() > 1) == 12 * 24**2


def test_what_a_recurrence_would_ignore_is_refused():
    with pytest.raises(ValueError, match="choose mask=causal or mask=bidirectional"):
        lstm(of=sizes(causal=False))
    with pytest.raises(ValueError, match=r"of half the width, but model\.dim=25"):
        lstm(of=BOTH.but(dim=25))
    with pytest.raises(ValueError, match=r"attention\.state=0 must be at least 1"):
        lstm(state=0)
    attention, x = lstm(), randn(1, 3, 24)
    with pytest.raises(ValueError, match="no source or memory"):
        attention(x, view(3), x)
    with pytest.raises(ValueError, match="`allowed` can hide none"):
        attention(x, view(3, allowed=torch.ones(1, 3, 3, dtype=torch.bool)))
    with pytest.raises(ValueError, match="no text can go on"):
        lstm(of=BOTH)(x, view(3, mask="bidirectional"), cache=LayerCache(3))
    family = spec(*tiny("lstm"))
    for slot, name, said in (
        ("position", "rope", "position=rope acts on queries, keys or their scores"),
        ("position", "alibi", "position=alibi acts on"),
        ("window", "sliding", "window=sliding hides tokens, which attention=lstm can't"),
        ("moe", "topk", "moe=topk routes tokens to feed-forwards, of which ffn=none leaves none"),
    ):
        other = PartSpec.with_defaults(slot, name)
        with pytest.raises(UserError, match=said):
            assemble(family.in_layers(lambda parts, other=other: {**parts, other.slot: other}))
    with pytest.raises(UserError, match="LSTM does not say its n_heads, so it can't be split"):
        tensor_parallel.check(2, family)
    across = replace(family.stacks[0], cross_attention=PartSpec.with_defaults("attention", "lstm"))
    with pytest.raises(UserError, match="cross_attention=lstm can't read a source"):
        assemble(replace(family, stacks=(across,)))


def test_layers_with_and_without_a_state_stand_in_one_stack():
    model = model_of(*tiny("gpt_neo", "attention@kinds.global.attention=lstm"))
    assert [type(layer.attention).__name__ for layer in model.stacks["main"].layers] == ["LSTM", "MultiHeadAttention"]
    ids, cache = torch.randint(1, 61, (2, 8)), Cache(2, 8)
    want = model({"ids": ids}).hidden
    got = [model({"ids": ids[:, a:b]}, cache=cache).hidden for a, b in ((0, 5), (5, 6), (6, 8))]
    close(torch.cat(got, 1), want, 1e-4)
