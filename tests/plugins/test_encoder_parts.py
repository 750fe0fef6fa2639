"""What encoders add to parts: positions that tell padding by its id, a bias beside learnt positions, a bare first layer."""

import pytest
import torch
from parts import build, close, part, randn, sizes
from torch import nn

from llmlab.slots import Context

LN = part("norm", "layernorm")
PAD = 2
IDS = torch.tensor([[PAD, PAD, 7, 8, 9], [5, 6, 7, PAD, PAD], [5, PAD, 7, 8, 9]])


def test_positions_that_tell_padding_by_its_id_are_robertas():
    from transformers.models.roberta.modeling_roberta import RobertaEmbeddings

    reference = RobertaEmbeddings.create_position_ids_from_input_ids
    learned = build(part("position", "learned", pad_id=PAD, offset=PAD + 1), sizes())
    assert learned.table.weight.shape[0] == 32 + PAD + 1
    for masked in (None, torch.ones(3, 5, dtype=torch.bool)):  # whatever is masked
        assert torch.equal(learned.ids(Context(5, ids=IDS, valid=masked)), reference(IDS, PAD))
    assert torch.equal(learned.ids(Context(5, ids=IDS, offset=4)), reference(IDS, PAD, 4))
    given = torch.tensor([[3, 9, 4, 4, 3]])
    assert torch.equal(learned.ids(Context(5, ids=IDS, positions=given)), given + PAD + 1)  # they count from 0
    close(learned.embed(given), learned.table.weight[given])


def test_positions_of_documents_begin_behind_the_padding():
    learned = build(part("position", "learned", pad_id=0, offset=1), sizes())
    documents = torch.tensor([[0, 0, 1, 1, 1]])
    ids = learned.ids(Context(5, ids=torch.tensor([[5, 6, 7, 8, 9]]), documents=documents))
    assert ids.tolist() == [[1, 2, 1, 2, 3]]


PADDED_DOCUMENTS = ([PAD, 5, PAD, 6, PAD], [PAD, PAD, 7, 8], [9, PAD], [PAD, 5])


@pytest.mark.parametrize(
    "made",
    [
        ("learned", {"skip_padding": True}),
        ("learned", {"skip_padding": True, "offset": 2}),
        ("learned", {"pad_id": PAD, "offset": PAD + 1}),
        ("learned_t5_bias", {"skip_padding": True}),
        ("dual_chunk", {"chunk": 4, "local": 3}),
        ("rope", {"log_n": True, "original_max": 4}),
        ("rope", {"scaling": "dynamic", "factor": 2.0, "original_max": 4}),
        ("alibi", {"rounded": True, "skip_padding": True}),
    ],
    ids=str,
)
def test_a_document_that_begins_with_padding_has_the_ids_that_it_has_alone(made):
    position = build(part("position", made[0], **made[1]), sizes())

    def found(*documents):
        ids = torch.tensor([[id for document in documents for id in document]])
        number = torch.cat([torch.full((len(d),), i) for i, d in enumerate(documents)])[None]
        given = position.ids(Context(ids.shape[1], ids=ids, valid=ids != PAD, documents=number))
        return given.expand(1, *given.shape[1:])[..., ids[0] != PAD]

    alone = [found(document) for document in PADDED_DOCUMENTS]
    assert found(*PADDED_DOCUMENTS).tolist() == torch.cat(alone, -1).tolist()


def test_opts_first_token_behind_padding_is_the_first_of_its_document():
    from transformers.models.opt.modeling_opt import OPTLearnedPositionalEmbedding

    learned = build(part("position", "learned", skip_padding=True, offset=2), sizes())
    reference = OPTLearnedPositionalEmbedding(32, 24)
    with torch.no_grad():
        reference.weight.copy_(learned.table.weight)
    ids = torch.tensor([document + [PAD] * (5 - len(document)) for document in PADDED_DOCUMENTS])
    valid, packed = ids != PAD, ids.reshape(1, -1)
    one = Context(20, ids=packed, valid=packed != PAD, documents=torch.arange(4).repeat_interleave(5)[None])
    ours = learned.embed(learned.ids(one)).reshape(4, 5, -1)
    close(ours[valid], reference(valid.long())[valid])


def test_the_vector_of_padding_is_not_trained():
    learned = build(part("position", "learned", pad_id=PAD, offset=PAD + 1), sizes())
    embedding = build(part("embedding", "bert", pad_id=PAD), sizes(), learned, LN, None)
    embedding(IDS, Context(5, ids=IDS)).square().sum().backward()
    assert embedding.table.weight.grad[PAD].abs().max() == 0 < embedding.table.weight.grad[7].abs().max()
    assert learned.table.weight.grad[PAD].abs().max() == 0 < learned.table.weight.grad[PAD + 1].abs().max()


def test_no_row_for_padding_is_refused():
    with pytest.raises(ValueError, match=r"position\.offset=0 must be at least 1"):
        build(part("position", "learned", pad_id=0), sizes())


def test_the_bias_beside_learnt_positions_is_mpnets():
    from transformers import MPNetConfig
    from transformers.models.mpnet.modeling_mpnet import MPNetEncoder

    reference = MPNetEncoder(MPNetConfig(hidden_size=24, num_attention_heads=4, num_hidden_layers=1))
    made = build(part("position", "learned_t5_bias", pad_id=1, offset=2), sizes(causal=False, max_positions=200))
    with torch.no_grad():
        reference.relative_attention_bias.weight.copy_(made.table.weight)
    ids = torch.randint(0, 4, (2, 150), generator=torch.Generator().manual_seed(3))  # padding in between counts here
    where, nothing = made.ids(Context(150, ids=ids)), randn(1, 1, 1, 1)
    bias = made.bias(nothing, nothing, 1.0, made.prepare(where, where))
    close(bias.expand(2, -1, -1, -1), reference.compute_position_bias(torch.empty(2, 150, 24)))
    close(made.embed(where), made.learned.table.weight[where])
    late = made.bias(nothing, nothing, 1.0, made.prepare(where[:, 147:], where))  # the newest of a cache
    close(late, bias[..., 147:, :])


@pytest.mark.parametrize("layer", [0, 1])
def test_the_first_sublayer_of_a_stack_may_be_bare(layer):
    block = build(part("block", "pre", bare_start=True), sizes(layer=layer), LN, ("attention", "ffn"))
    x = randn(2, 5, 24)
    f = {"attention": lambda x: (2 * x, None), "ffn": lambda x: (torch.zeros_like(x), None)}
    normed = nn.functional.layer_norm(x, (24,))
    if layer == 1:
        normed = normed * block.attention_norm.weight + block.attention_norm.bias
    close(block(x, f)[0], x + 2 * (x if layer == 0 else normed))
    assert len(list(block.parameters())) == (2 if layer == 0 else 4)


@pytest.mark.parametrize("name", ["pre", "post", "parallel"])
def test_a_sublayer_that_is_not_given_is_left_out(name):
    three = build(part("block", name), sizes(), LN, ("attention", "cross_attention", "ffn"))
    two = build(part("block", name), sizes(), LN, ("attention", "ffn"))
    two.load_state_dict({k: v for k, v in three.state_dict().items() if not k.startswith("cross_attention")})
    f = {"attention": lambda x: (2 * x, None), "ffn": lambda x: (x.square(), None)}
    x = randn(2, 5, 24)
    close(three(x, f)[0], two(x, f)[0])
