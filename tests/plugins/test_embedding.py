"""Embeddings against the reference implementations and sums written out."""

import pytest
import torch
from families import spec, tiny
from parts import build, close, names, part, sizes

from llmlab.errors import UserError
from llmlab.model.build import assemble
from llmlab.slots import Context

LN = part("norm", "layernorm")


def embedding(name, position="none", shared=None, **options):
    changed = options.pop("sizes", None) or sizes()
    factory = part("embedding", name, **options)
    width = getattr(factory.func, "width", None)
    embed_dim = width(changed, **factory.keywords) if width else changed.dim
    place = build(part("position", position), changed.but(embed_dim=embed_dim), seed=5)
    return build(factory, changed, place, LN, shared), place


def test_every_embedding_is_here():
    assert set(names("embedding")) == {"token", "scaled", "two_stream", "bert", "factorized", "mtp", "char_cnn"}


@pytest.mark.parametrize("position", ["none", "learned", "sinusoidal"])
@pytest.mark.parametrize("name", ["token", "scaled"])
def test_token_vectors_and_positions(name, position):
    made, place = embedding(name, position)
    ids = torch.tensor([[3, 1, 4], [1, 5, 9]])
    want = made.weight[ids] * (24**0.5 if name == "scaled" else 1.0)
    if position != "none":
        want = want + place.embed(torch.arange(2, 5))
    close(made(ids, Context(3, offset=2)), want)


def test_scaled_rounds_its_factor_as_gemma():
    from transformers.models.gemma3.modeling_gemma3 import Gemma3TextScaledWordEmbedding

    made, _ = embedding("scaled")
    ids = torch.arange(50)[None]
    for dtype in (torch.float32, torch.bfloat16):
        reference = Gemma3TextScaledWordEmbedding(50, 24, None, embed_scale=24**0.5).to(dtype)
        reference.weight.data.copy_(made.to(dtype).weight)
        assert torch.equal(made(ids, Context(50)), reference(ids))


@pytest.mark.parametrize("segments", [True, False])
def test_bert_equals_the_reference(segments):
    from transformers import BertConfig
    from transformers.models.bert.modeling_bert import BertEmbeddings

    config = BertConfig(
        vocab_size=50, hidden_size=24, max_position_embeddings=32, type_vocab_size=2, layer_norm_eps=1e-5
    )
    reference = BertEmbeddings(config).eval()
    made, place = embedding("bert", "learned", sizes=sizes(token_types=2))
    copy_bert(reference, made, place)
    ids, types = torch.tensor([[3, 1, 4], [1, 5, 9]]), torch.tensor([[0, 1, 1], [0, 0, 1]])
    want = reference(ids, token_type_ids=types if segments else None)
    close(made(ids, Context(3, segments=types if segments else None)), want)


def copy_bert(reference, made, place):
    with torch.no_grad():
        reference.word_embeddings.weight.copy_(made.weight)
        reference.position_embeddings.weight.copy_(place.table.weight)
        reference.token_type_embeddings.weight.copy_(made.segments.weight)
        reference.LayerNorm.weight.copy_(made.norm.weight)
        reference.LayerNorm.bias.copy_(made.norm.bias)


@pytest.mark.parametrize("width", [None, 8])
def test_factorized_equals_albert(width):
    from transformers import AlbertConfig
    from transformers.models.albert.modeling_albert import AlbertEmbeddings

    embed_dim = width or 16
    config = AlbertConfig(
        vocab_size=50, embedding_size=embed_dim, max_position_embeddings=32, type_vocab_size=2, layer_norm_eps=1e-5
    )
    reference = AlbertEmbeddings(config).eval()
    made, place = embedding("factorized", "learned", width=width, sizes=sizes(token_types=2))
    assert made.embed_dim == embed_dim and made.weight.shape == (50, embed_dim)
    copy_bert(reference, made, place)
    ids, types = torch.tensor([[3, 1, 4]]), torch.tensor([[0, 1, 1]])
    want = reference(ids, token_type_ids=types) @ made.project.weight.T + made.project.bias
    close(made(ids, Context(3, segments=types)), want)


@pytest.mark.parametrize("position", ["none", "learned"])
def test_a_narrow_table_leads_through_a_linear_before_the_position(position):
    made, place = embedding("token", position, table_width=8)
    assert made.embed_dim == 8 and made.weight.shape == (50, 8) and made.project.bias is None
    ids = torch.tensor([[3, 1, 4], [1, 5, 9]])
    want = made.weight[ids] @ made.project.weight.T
    if position == "learned":
        want = want + place.embed(torch.arange(3))
    close(made(ids, Context(3)), want)


def test_another_width_is_projected():
    made, _ = embedding("bert", width=8)
    assert made.weight.shape == (50, 8) and made.project.weight.shape[1] == 8
    assert embedding("bert")[0].project is None


@pytest.mark.parametrize("name", sorted({*names("embedding")} - {"char_cnn"}))  # which has no table
def test_shared_tables_are_used_and_not_owned(name):
    first, _ = embedding(name)
    second, _ = embedding(name, shared=first)
    assert second.weight is first.weight
    assert not any(p is first.weight or "table" in key for key, p in second.named_parameters())
    assert "table.weight" in dict(first.named_parameters())


@pytest.mark.parametrize(
    "name", sorted({*names("embedding")} - {"mtp", "char_cnn"})
)  # which joins tokens to hidden states
def test_dropout_is_on_what_goes_to_the_layers_while_training(name):
    made, _ = embedding(name, sizes=sizes(dropout=1.0))
    zero = made.project.bias if name == "factorized" else torch.zeros(24)
    ids = torch.arange(6)[None]
    close(made.train()(ids, Context(6)), zero.expand(1, 6, 24))
    assert made.eval()(ids, Context(6)).std() > 0.1


def test_a_position_in_float32_leaves_half_precision_alone():
    made, _ = embedding("token", "sinusoidal")
    assert made.bfloat16()(torch.tensor([[1, 2]]), Context(2)).dtype == torch.bfloat16


def spelled(text, **options):
    made, _ = embedding("char_cnn", **options)
    made.spell(text)
    return made


def test_characters_are_filtered_as_torch_convolves():
    made = spelled(lambda i: "abc" * i, longest=9, filters=[3, 2, 4], highways=0)
    chars = made.table_of_chars.weight[made.chars].mT  # (V, C, L)
    each = []
    for k, filters in enumerate(made.filters, 1):
        conv = torch.nn.Conv1d(16, len(filters.linear.bias), k)
        with torch.no_grad():
            # torch's weight is (filters, C, k), ours over (k, C) side by side.
            conv.weight.copy_(filters.linear.weight.unflatten(1, (k, 16)).mT)
            conv.bias.copy_(filters.linear.bias)
        each.append(conv(chars).amax(-1))
    want = made.project(torch.cat(each, 1).relu())
    close(made(torch.arange(50)[None], Context(50))[0], want)


def test_a_token_is_spelled_between_marks_cut_and_if_it_is_special_numbered():
    made = spelled(lambda i: "" if i < 2 else "\u00e9" if i == 2 else "long" * i, longest=7)
    assert made.chars[:4].tolist() == [
        [258, 261, ord("0"), 259, 260, 260, 260],
        [258, 261, ord("1"), 259, 260, 260, 260],
        [258, 0xC3, 0xA9, 259, 260, 260, 260],
        [258, *b"longl", 259],
    ]


def test_a_vector_twice_is_the_same_for_both_halves():
    made = spelled(str, twice=True)
    x = made(torch.tensor([[3, 1, 4]]), Context(3))
    assert made.project.weight.shape[0] == 12 and torch.equal(x[..., :12], x[..., 12:])


def test_characters_have_no_table_to_tie_or_to_share():
    with pytest.raises(UserError, match=r"model\.tie_embeddings: embedding=char_cnn has no table"):
        assemble(spec(*tiny("lstm", "embedding=char_cnn", "model.tie_embeddings=true")))
    with pytest.raises(ValueError, match="so none can be shared"):
        embedding("char_cnn", shared=embedding("token")[0])
