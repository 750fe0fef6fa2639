"""Heads against the reference implementations and products written out."""

import pytest
import torch
from parts import build, close, names, part, randn, sizes
from torch import nn

from llmlab.slots import Context

LN = part("norm", "layernorm")
CTX = Context(5)


class Embedded(nn.Module):
    """What a head asks of an embedding."""

    def __init__(self, width=24):
        super().__init__()
        self.weight, self.embed_dim = nn.Parameter(randn(50, width, seed=7)), width


def head(name, embedding=None, options=None, **changes):
    return build(part("head", name, **(options or {})), sizes(**changes), LN, embedding or Embedded())


def test_every_head_is_here():
    tokens = {
        "lm",
        "both_ways",
        "mlm",
        "token",
        "replaced",
        "value",
        "boundary",
        "context",
        "biased_context",
        "subwords",
    }
    assert set(names("head")) == {*tokens, "projection", "pooled", "vector", "scalar", "span"}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_lm_is_a_product_with_the_table(tied, bias):
    made, embedding = head("lm", options={"bias": bias}, tie_embeddings=tied), Embedded()
    h = randn(2, 5, 24)
    want = h @ (embedding.weight if tied else made.out.weight).T + (made.bias if bias else 0)
    close(made(h, CTX), want)
    assert len(list(made.parameters())) == (not tied) + bias


def test_lm_scales_then_caps():
    h, embedding = randn(2, 5, 24), Embedded()
    got = head("lm", embedding, tie_embeddings=True, logit_scale=0.5, logit_softcap=3.0)(h, CTX)
    close(got, 3 * torch.tanh(h @ embedding.weight.T * 0.5 / 3))


def test_mlm_is_scaled_as_lm():
    """T5's rows are of length sqrt(D), so its logits are divided by that."""
    plain, scaled = head("mlm", tie_embeddings=True), head("mlm", tie_embeddings=True, logit_scale=0.5)
    scaled.load_state_dict(plain.state_dict())
    h = randn(2, 5, 24)
    close(scaled(h, CTX), 0.5 * plain(h, CTX))


def test_lm_tied_to_a_narrower_table_goes_down_to_it():
    made, embedding = head("lm", Embedded(8), tie_embeddings=True), Embedded(8)
    h = randn(2, 5, 24)
    close(made(h, CTX), h @ made.down.weight.T @ embedding.weight.T)
    assert head("lm", Embedded(8)).out.weight.shape == (50, 24)


@pytest.mark.parametrize("tied", [True, False])
def test_mlm_equals_bert(tied):
    from transformers import BertConfig
    from transformers.models.bert.modeling_bert import BertLMPredictionHead

    config = BertConfig(vocab_size=50, hidden_size=24, layer_norm_eps=1e-5)
    reference, embedding = BertLMPredictionHead(config), Embedded()
    made = head("mlm", embedding, tie_embeddings=tied)
    with torch.no_grad():
        reference.transform.dense.weight.copy_(made.dense.weight)
        reference.transform.dense.bias.copy_(made.dense.bias)
        reference.transform.LayerNorm.weight.copy_(made.norm.weight)
        reference.transform.LayerNorm.bias.copy_(made.norm.bias)
        reference.decoder.weight.copy_(embedding.weight if tied else made.out.weight)
        reference.decoder.bias.copy_(made.bias)
        reference.bias = reference.decoder.bias
    h = randn(2, 5, 24)
    close(made(h, CTX), reference(h))


def test_mlm_equals_albert_in_the_width_of_its_table():
    from transformers import AlbertConfig
    from transformers.models.albert.modeling_albert import AlbertMLMHead

    config = AlbertConfig(vocab_size=50, hidden_size=24, embedding_size=8, layer_norm_eps=1e-5)
    reference, embedding = AlbertMLMHead(config), Embedded(8)
    made = head("mlm", embedding, {"act": "gelu_tanh"}, tie_embeddings=True)
    with torch.no_grad():
        reference.dense.weight.copy_(made.dense.weight)
        reference.dense.bias.copy_(made.dense.bias)
        reference.LayerNorm.weight.copy_(made.norm.weight)
        reference.LayerNorm.bias.copy_(made.norm.bias)
        reference.decoder.weight.copy_(embedding.weight)
        reference.decoder.bias.copy_(made.bias)
        reference.bias.copy_(made.bias)
    h = randn(2, 5, 24)
    close(made(h, CTX), reference(h))


def test_pooled_reads_the_first_token():
    h = randn(2, 5, 24)
    made = head("pooled", options={"n_classes": 3})
    pooled = torch.tanh(h[:, 0] @ made.dense.weight.T + made.dense.bias)
    close(made(h, CTX), pooled @ made.out.weight.T + made.out.bias)
    bare = head("pooled", options={"n_classes": 0})
    close(bare(h, CTX), torch.tanh(h[:, 0] @ bare.dense.weight.T + bare.dense.bias))


@pytest.mark.parametrize("name", [n for n in names("head") if part("head", n).func.per_token])
def test_a_head_per_token_gives_chosen_rows_as_it_gives_all(name):
    made, h, where = head(name), randn(2, 5, 24), torch.rand(2, 5) < 0.5
    where[0, 0] = True
    close(made(h[where], CTX), made(h, CTX)[where])


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", names("head"))
def test_a_head_does_not_own_the_embedding(name, tied):
    embedding = Embedded()
    made = head(name, embedding, tie_embeddings=tied)
    assert all(p is not embedding.weight for p in made.parameters())


def test_token_and_span_are_a_linear():
    h = randn(2, 5, 24)
    for name in ("token", "span"):
        made = head(name)
        close(made(h, CTX), h @ made.out.weight.T + made.out.bias)
        assert made(h, CTX).shape == (2, 5, 2)


def test_rows_of_the_table_may_be_scaled_to_length_one():
    embedding = Embedded()
    head = build(part("head", "lm", unit_rows=True), sizes(), part("norm", "rmsnorm"), embedding)
    h = randn(2, 5, 24)
    rows = head.out.weight / head.out.weight.square().sum(-1, keepdim=True).sqrt()
    close(head(h, Context(5)), h @ rows.T)


IDS = torch.tensor([[5, 6, 7, 0, 0], [0, 8, 0, 9, 0]])


@pytest.mark.parametrize(
    ("options", "context", "rows"),
    [
        ({}, {}, (4, 4)),
        ({}, {"valid": IDS != 0}, (2, 3)),
        ({"skip": 0}, {"ids": IDS}, (2, 3)),
        ({"skip": 0}, {"ids": IDS + 1, "data": {"source_ids": IDS}}, (2, 3)),
        ({"only": 0}, {"ids": IDS}, (4, 4)),
        ({"only": 6}, {"ids": IDS}, (1, 0)),  # where there is none, the first
        ({"pool": "end"}, {"valid": IDS != 0}, (4, 4)),
        ({"pool": "first"}, {"valid": IDS != 0}, (0, 0)),
    ],
)
def test_a_scalar_is_read_at_the_last_token_that_counts(options, context, rows):
    h, made = randn(2, 5, 24), head("scalar", options=options)
    got = made(h, Context(5, **context))
    close(got, torch.stack([h[i, r] for i, r in enumerate(rows)]) @ made.out.weight.T)
    assert got.shape == (2, 1)


def test_a_scalar_with_a_cache_looks_at_the_new_tokens():
    h, made = randn(2, 2, 24), head("scalar")
    got = made(h, Context(2, offset=3, valid=torch.tensor([[True] * 5, [True] * 4 + [False]])))
    close(got, torch.stack([h[0, 1], h[1, 0]]) @ made.out.weight.T)


def test_the_mean_leaves_padding_out():
    h, made = randn(2, 5, 24), head("pooled", options={"pool": "mean", "act": "gelu", "normed": True})
    valid = IDS != 0
    mean = torch.stack([h[i, valid[i]].mean(0) for i in range(2)])
    inner = torch.nn.functional.gelu(mean @ made.dense.weight.T + made.dense.bias)
    normed = torch.nn.functional.layer_norm(inner, (24,), made.norm.weight, made.norm.bias)
    close(made(h, Context(5, valid=valid)), normed @ made.out.weight.T + made.out.bias)


def test_replaced_equals_electra():
    from transformers import ElectraConfig
    from transformers.models.electra.modeling_electra import ElectraDiscriminatorPredictions

    reference = ElectraDiscriminatorPredictions(ElectraConfig(hidden_size=24))
    made = head("replaced")
    with torch.no_grad():
        reference.dense.weight.copy_(made.dense.weight)
        reference.dense.bias.copy_(made.dense.bias)
        reference.dense_prediction.weight.copy_(made.out.weight)
        reference.dense_prediction.bias.copy_(made.out.bias)
    h = randn(2, 5, 24)
    close(made(h, CTX), reference(h))
    assert made(h, CTX).shape == (2, 5)


def test_dropout_is_the_models_unless_told():
    assert head("pooled", dropout=0.3).dropout.p == 0.3
    assert head("pooled", options={"dropout": 0.1}, dropout=0.3).dropout.p == 0.1


@pytest.mark.parametrize(("tied", "width"), [(True, 24), (True, 8), (False, 24)])
def test_boundary_reads_beside_the_span(tied, width):
    made, embedding, h = head("boundary", Embedded(width), tie_embeddings=tied), Embedded(width), randn(2, 5, 24)
    left, right, offset = (
        torch.tensor([[0, 0, 2], [1, 1, 3]]),
        torch.tensor([[3, 3, 4], [4, 4, 4]]),
        [[0, 1, 0], [0, 1, 0]],
    )
    data = {"boundary_left": left, "boundary_right": right, "boundary_offset": torch.tensor(offset)}
    got = made(h, Context(5, data=data))
    assert got.shape == (2, 3, 50)
    for b in range(2):
        for p in range(3):
            x = torch.cat([h[b, left[b, p]], h[b, right[b, p]], made.offsets.weight[offset[b][p]]])
            for dense, norm in ((made.wide, made.wide_norm), (made.dense, made.norm)):
                x = nn.functional.gelu(x @ dense.weight.T + dense.bias)
                x = nn.functional.layer_norm(x, x.shape, norm.weight, norm.bias)
            close(got[b, p], x @ (embedding.weight if tied else made.out.weight).T + made.bias)
    with pytest.raises(ValueError, match="reads boundary_right and boundary_offset of the batch"):
        made(h, Context(5, data={"boundary_left": left}))
