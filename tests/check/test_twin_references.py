"""Twins that are written from papers against the functions of the reference implementation (transformers)."""

import numpy as np
import pytest
import torch
from twins.position import added, biases, turned
from twins.record import settings_of_slot

from llmlab.check.twins.observers.observed import options_of, sizes_of

pytestmark = pytest.mark.slow
WIDTH = 8

SCALINGS = ("linear", "dynamic", "llama3", "yarn", "longrope")
ROPES = [
    setting
    for setting in settings_of_slot("position")
    if setting.name == "rope" and setting.options.get("scaling") in SCALINGS and "rotary_dim" not in setting.sizes
]


@pytest.mark.parametrize("setting", ROPES, ids=str)
def test_frequencies(setting):
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    options, sizes = options_of(setting), sizes_of(setting)
    dims = int(sizes.rotary_dim * options["fraction"])
    original = options["original_max"] or sizes.max_positions
    known = ("factor", "low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow", "truncate", "attention_factor")
    names = (*known, "mscale", "mscale_all_dim", "short_factor", "long_factor")
    config = LlamaConfig(
        head_dim=dims,
        max_position_embeddings=original,
        rope_parameters={
            "rope_type": options["scaling"],
            "rope_theta": options["theta"],
            "original_max_position_embeddings": original,
            **{name: options[name] for name in names if options[name] is not None},
        },
    )
    for length in (original - 1, original, original + 1, 2 * original + 3):
        got, amplitude = turned.frequencies(options, dims, original, length)
        want, factor = ROPE_INIT_FUNCTIONS[options["scaling"]](config, None, seq_len=length)
        np.testing.assert_allclose(got, want.double().numpy(), rtol=1e-6)
        assert amplitude == pytest.approx(factor, rel=1e-9)


@pytest.mark.parametrize("n_heads", [1, 4, 6, 12])
def test_slopes(n_heads):
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor

    want = build_alibi_tensor(torch.ones(1, 2), n_heads, torch.float64)[:, 0, 1]
    np.testing.assert_allclose(biases.slopes(n_heads, 8.0), want, rtol=1e-6)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("buckets", "most"), [(32, 128), (8, 10), (6, 30)])
def test_buckets_of_t5(causal, buckets, most):
    from transformers.models.t5.modeling_t5 import T5Attention

    distance = np.arange(-60, 60) + 0
    want = T5Attention._relative_position_bucket(torch.tensor(distance), not causal, buckets, most)
    assert biases.t5_bucket(distance, causal, buckets, most).tolist() == want.tolist()


@pytest.mark.parametrize(("buckets", "most"), [(256, 512), (8, 40), (6, 40), (8, 20)])
def test_buckets_of_deberta(buckets, most):
    from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

    want = make_log_bucket_position(torch.arange(-39, 40), buckets, most)
    options = {"buckets": buckets, "max_distance": most}
    assert [biases.log_bucket(d, options) for d in range(-39, 40)] == want.int().tolist()


def test_sinusoids():
    from transformers.models.marian.modeling_marian import MarianSinusoidalPositionalEmbedding

    table = MarianSinusoidalPositionalEmbedding(40, 12)
    np.testing.assert_allclose(added.sinusoids(np.arange(40), 12, True), table.create_weight(), atol=1e-6)
