"""First values: their standard deviations by role, against closed forms and against the reference implementation's."""

import pytest
import torch
from parts import names, part, sizes

SIZES = sizes(dim=256, n_layers=8, n_heads=4, head_dim=64, ffn_dim=512)


def filled(name, role, shape=(256, 512), changed=SIZES, seed=0, **options):
    tensor = torch.empty(shape)
    part("init", name, **options)().fill(tensor, role, changed, torch.Generator().manual_seed(seed))
    return tensor


def std(*args, **options):
    return pytest.approx(filled(*args, **options).std().item(), rel=0.02)


def test_every_init_is_here():
    assert set(names("init")) == {"normal", "gpt2", "t5", "deepnorm"}


@pytest.mark.parametrize("name", names("init"))
def test_values_are_centred_and_come_from_the_generator_alone(name):
    for role in ("embed", "position", "q", "k", "v", "out", "ffn_in", "ffn_out", "router", "head", "other"):
        first = filled(name, role)
        assert abs(first.mean()) < 0.02 * first.std()
        torch.manual_seed(123)
        assert torch.equal(first, filled(name, role)) and not torch.equal(first, filled(name, role, seed=1))
    assert not filled(name, "bias", (9,)).any()


@pytest.mark.parametrize("name", ["normal", "gpt2"])
def test_gpt2_scales_what_writes_to_the_residual_stream(name):
    for role in ("embed", "position", "q", "k", "v", "ffn_in", "router", "head", "other"):
        assert std(name, role) == 0.02
    for role in ("out", "ffn_out"):
        assert std(name, role) == 0.02 / 16**0.5
        assert std(name, role, residual_scale=False) == 0.02


def test_tables_may_have_their_own_std():
    assert std("normal", "embed", embed_std=0.5) == 0.5
    assert std("normal", "position", embed_std=0.5) == 0.5
    assert std("normal", "q", std=0.1, embed_std=0.5) == 0.1


def test_t5_is_that_of_the_reference():
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=512, d_model=256, d_kv=32, d_ff=512, num_layers=1, num_heads=4, feed_forward_proj="gated-gelu"
    )
    torch.manual_seed(0)
    reference = T5ForConditionalGeneration(config).state_dict()
    block = "encoder.block.0.layer."
    changed = sizes(dim=256, n_heads=4, head_dim=32, ffn_dim=512, attention={"scale": 1.0})
    for key, role in (
        ("shared.weight", "embed"),
        (block + "0.SelfAttention.q.weight", "q"),
        (block + "0.SelfAttention.k.weight", "k"),
        (block + "0.SelfAttention.v.weight", "v"),
        (block + "0.SelfAttention.o.weight", "out"),
        (block + "1.DenseReluDense.wi_0.weight", "ffn_in"),
        (block + "1.DenseReluDense.wo.weight", "ffn_out"),
    ):
        got = filled("t5", role, tuple(reference[key].shape), changed).std().item()
        assert got == pytest.approx(reference[key].std().item(), rel=0.03)
    assert std("t5", "position", (512, 256), changed) == 256**-0.5


def test_t5_leaves_the_scale_to_attention_where_attention_has_one():
    assert std("t5", "q") == 512**-0.5
    assert std("t5", "head", factor=2.0) == 2 * 512**-0.5


def test_experts_are_filled_by_their_inputs():
    assert std("t5", "ffn_in", (4, 64, 256)) == 1 / 16


def test_deepnorm_is_xavier_with_the_papers_beta():
    xavier = (2 / (256 + 512)) ** 0.5
    for role in ("q", "k", "router", "head", "other"):
        assert std("deepnorm", role) == xavier
    for role in ("v", "out", "ffn_in", "ffn_out"):
        assert std("deepnorm", role) == xavier * 64**-0.25
        assert std("deepnorm", role, depth=2.0, exponent=0.5) == xavier / 4
    assert std("deepnorm", "embed", embed_std=0.1) == 0.1
    assert std("deepnorm", "ffn_in", (4, 64, 256)) == (2 / 320) ** 0.5 * 64**-0.25
