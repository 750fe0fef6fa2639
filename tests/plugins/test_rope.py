"""Rotary positions against complex numbers, their relative property, and the reference implementation's scalings."""

import cmath
import math
from dataclasses import fields

import pytest
import torch
from parts import close, part, randn, sizes
from transformers import DeepseekV3Config, LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from llmlab import registry
from llmlab_plugins.position._scaling import SCALINGS as KINDS

SCALINGS = {
    "none": {},
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 2.0, "original_max": 16},
    "dynamic_steps": {"original_max": 8},
    "llama3": {"factor": 8.0, "original_max": 16, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "yarn": {"factor": 4.0, "original_max": 64},
    "longrope": {
        "factor": 4.0,
        "original_max": 16,
        "short_factor": [1.0, 1.1, 1.5, 2.0],
        "long_factor": [1.0, 2.0, 3.0, 7.5],
    },
}
SHORT, LONG = [1 + i / 40 for i in range(32)], [1 + i / 3 for i in range(32)]


def rope(name="none", width=8, **options):
    return part("position", "rope", scaling=name, **{**SCALINGS[name], **options})(sizes(rotary_dim=width))


def rotated(position, q, k, q_ids, k_ids=None):
    k_ids = q_ids if k_ids is None else k_ids
    (term,) = position.rotate(q, k, position.prepare(q_ids, k_ids))
    assert term.region is None
    return term.q_BNTH, term.k_BKSH


@pytest.mark.parametrize("fraction", [1.0, 0.5])
@pytest.mark.parametrize("interleaved", [False, True])
def test_is_a_rotation_of_complex_numbers(interleaved, fraction):
    x, ids = randn(1, 2, 5, 8), torch.tensor([0, 1, 2, 7, 30])
    got, _ = rotated(rope(interleaved=interleaved, fraction=fraction, theta=500.0), x, x, ids)
    width = int(8 * fraction)
    pairs = [(2 * i, 2 * i + 1) if interleaved else (i, i + width // 2) for i in range(width // 2)]
    want = x.double().clone()
    for t, position in enumerate(ids.tolist()):
        for i, (a, b) in enumerate(pairs):
            turn = cmath.exp(1j * position * 500.0 ** (-2 * i / width))
            for head in range(2):
                z = complex(x[0, head, t, a], x[0, head, t, b]) * turn
                want[0, head, t, a], want[0, head, t, b] = z.real, z.imag
    close(got, want)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("name", SCALINGS)
def test_scores_depend_on_the_distance_alone(name, interleaved):
    """Turning all by the same distance changes no product of a query and a key (a length stays the same length)."""
    position = rope(name, interleaved=interleaved)
    q, k = randn(2, 4, 6, 8), randn(2, 2, 6, 8, seed=2)
    frequencies = position.frequencies(torch.arange(40))
    scores = []
    for ids in (torch.arange(6), torch.arange(6) + 9):
        tables = position._tables(ids, frequencies)
        (term,) = position.rotate(q, k, (tables, tables))
        scores.append(term.q_BNTH @ term.k_BKSH.repeat_interleave(2, 1).transpose(-2, -1))
    close(*scores, 1e-4)
    assert not torch.allclose(scores[0], q @ k.repeat_interleave(2, 1).transpose(-2, -1), atol=1e-2)


REFERENCES = [
    ("linear", {}, {"rope_type": "linear", "factor": 4.0}),
    ("dynamic", {}, {"rope_type": "dynamic", "factor": 2.0}),
    ("llama3", {}, {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}),
    ("yarn", {}, {"rope_type": "yarn", "factor": 4.0}),
    ("yarn", {"attention_factor": 0.7}, {"rope_type": "yarn", "factor": 4.0, "attention_factor": 0.7}),
    ("yarn", {"truncate": False}, {"rope_type": "yarn", "factor": 4.0, "truncate": False}),
    (
        "yarn",
        {"beta_fast": 8.0, "beta_slow": 2.0},
        {"rope_type": "yarn", "factor": 4.0, "beta_fast": 8, "beta_slow": 2},
    ),
    (
        "yarn",
        {"mscale": 0.7, "mscale_all_dim": 1.2},
        {"rope_type": "yarn", "factor": 4.0, "mscale": 0.7, "mscale_all_dim": 1.2},
    ),
    ("yarn", {"mscale": 0.7}, {"rope_type": "yarn", "factor": 4.0, "mscale": 0.7}),
    *(
        (
            "longrope",
            {"short_factor": SHORT, "long_factor": LONG, **more},
            {"rope_type": "longrope", "factor": 4.0, "short_factor": SHORT, "long_factor": LONG, **more},
        )
        for more in ({}, {"attention_factor": 1.3}, {"factor": 1.0})
    ),
]


@pytest.mark.parametrize("theta", [10000.0, 500000.0])
@pytest.mark.parametrize(("name", "options", "reference"), REFERENCES)
def test_frequencies_of_the_reference(name, options, reference, theta):
    original, width = 128, 64
    config = LlamaConfig(
        hidden_size=4 * width,
        num_attention_heads=4,
        max_position_embeddings=original,
        rope_parameters={"rope_theta": theta, "original_max_position_embeddings": original, **reference},
    )
    position = rope(name, width, theta=theta, **{**options, "original_max": original})
    for length in (50, 128, 300):
        want, amplitude = ROPE_INIT_FUNCTIONS[name](config, "cpu", seq_len=length)
        torch.testing.assert_close(position.frequencies(torch.arange(length)), want, rtol=1e-6, atol=0)
        assert position.amplitude == pytest.approx(amplitude)


def test_angles_are_those_of_llama_and_deepseek():
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import (
        DeepseekV3RotaryEmbedding,
        apply_rotary_pos_emb_interleave,
    )
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

    q, k, ids = randn(2, 4, 9, 16), randn(2, 1, 9, 16, seed=2), torch.arange(9) + 40
    config = LlamaConfig(hidden_size=64, num_attention_heads=4)
    want = apply_rotary_pos_emb(q, k, *LlamaRotaryEmbedding(config)(q, ids[None]))
    got = rotated(rope(width=16), q, k, ids)
    assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1])

    parameters = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "mscale": 1.0, "mscale_all_dim": 0.5}
    config = DeepseekV3Config(
        qk_rope_head_dim=16,
        max_position_embeddings=512,
        rope_parameters={**parameters, "original_max_position_embeddings": 128},
    )
    q_want, k_want = apply_rotary_pos_emb_interleave(q, k, *DeepseekV3RotaryEmbedding(config)(q, ids[None]))
    position = rope("yarn", 16, interleaved=True, original_max=128, mscale=1.0, mscale_all_dim=0.5)
    q_got, k_got = rotated(position, q, k, ids)
    close(q_got @ k_got.mT, q_want @ k_want.mT, 1e-5)


def test_ids_of_each_sample():
    position, x = rope(), randn(3, 2, 4, 8)
    ids = torch.tensor([[0, 1, 2, 3], [0, 0, 0, 1], [9, 8, 7, 6]])
    got, _ = rotated(position, x, x, ids)
    for b in range(3):
        close(got[b : b + 1], rotated(position, x[b : b + 1], x[b : b + 1], ids[b])[0], 1e-6)


@pytest.mark.parametrize("name", ["dynamic", "dynamic_steps", "longrope"])
def test_all_keys_turn_by_the_length_of_all(name):
    position = rope(name)
    assert not position.caches_rotated and rope("yarn").caches_rotated
    q, k = randn(1, 1, 1, 8), randn(1, 1, 40, 8, seed=2)
    got_q, got_k = rotated(position, q, k, torch.tensor([39]), torch.arange(40))
    all_q, all_k = rotated(position, q.expand(1, 1, 40, 8), k, torch.arange(40))
    close(got_k, all_k, 1e-6)
    close(got_q[0, 0, 0], all_q[0, 0, 39], 1e-6)


def test_dynamic_is_plain_up_to_its_length():
    k, ids = randn(1, 1, 16, 8), torch.arange(16)
    close(rotated(rope("dynamic"), k, k, ids)[0], rotated(rope(), k, k, ids)[0])


@pytest.mark.parametrize("length", [16, 17])
def test_longrope_takes_the_longer_factors_past_its_length(length):
    k, ids = randn(1, 1, length, 8), torch.arange(length)
    options = SCALINGS["longrope"]
    divisors = options["long_factor" if length > 16 else "short_factor"]
    grown = (1 + math.log(4) / math.log(16)) ** 0.5
    got, _ = rotated(rope("longrope"), k, k, ids)
    for t in range(length):
        for i, divisor in enumerate(divisors):
            z = complex(k[0, 0, t, i], k[0, 0, t, i + 4]) * cmath.exp(1j * t * 10000.0 ** (-i / 4) / divisor) * grown
            close(got[0, 0, t, [i, i + 4]], torch.tensor([z.real, z.imag]))


@pytest.mark.parametrize(("length", "stretch"), [(3, 1), (8, 1), (9, 3), (16, 3), (17, 7), (33, 15)])
def test_theta_grows_in_steps(length, stretch):
    """alpha = 2^ceil(log2(n / original) + 1) - 1, and theta alpha^(R / (R - 2))."""
    k, ids = randn(1, 1, length, 8), torch.arange(length)
    got = rotated(rope("dynamic_steps"), k, k, ids)
    close(got[1], rotated(rope(theta=10000.0 * stretch ** (8 / 6)), k, k, ids)[1])


def test_queries_past_the_length_grow_with_its_logarithm():
    plain, grown = rope(), rope(log_n=True, original_max=8)
    q, k, ids = randn(2, 2, 20, 8), randn(2, 2, 20, 8, seed=2), torch.arange(20)
    want, got = rotated(plain, q, k, ids), rotated(grown, q, k, ids)
    assert torch.equal(got[1], want[1])
    assert torch.equal(got[0][:, :, :8], want[0][:, :, :8])
    for i in range(8, 20):
        close(got[0][:, :, i], want[0][:, :, i] * math.log(i + 1, 8))
    one = rotated(grown, q[:, :, 11:12], k, torch.tensor([11]), ids)
    close(one[0][:, :, 0], got[0][:, :, 11], 1e-6)
    close(rotated(grown, q, k, ids.expand(2, 20))[0], got[0], 1e-6)


def test_longrope_without_a_factor_for_each_pair_is_refused():
    with pytest.raises(ValueError, match=r"needs position\.long_factor, 4 numbers over 0, but it is None"):
        rope("longrope", long_factor=None)
    with pytest.raises(ValueError, match=r"needs position\.short_factor"):
        rope("longrope", short_factor=[1.0] * 3)


def test_angles_are_float32_under_bfloat16():
    """Position 4001 is no bfloat16: angles computed in it would be far off."""
    x = randn(1, 1, 1, 8)
    ids = torch.tensor([4001])
    got, _ = rotated(rope(), x.bfloat16(), x.bfloat16(), ids)
    assert got.dtype == torch.bfloat16
    close(got, rotated(rope(), x, x, ids)[0], 0.05)


@pytest.mark.parametrize("fraction", [0.05, 0.0, -0.5, 1.5])
def test_a_fraction_that_makes_no_pairs_is_refused(fraction):
    with pytest.raises(ValueError, match=r"position\.fraction="):
        rope(fraction=fraction, width=10)


def test_an_odd_number_of_dims_that_fits_no_head_is_refused():
    with pytest.raises(ValueError, match=r"a head of 9 makes 9 dims"):
        rope(width=9)
    with pytest.raises(ValueError, match=r"a head of 10 makes 5 dims"):
        rope("yarn", width=10, fraction=0.5)


@pytest.mark.parametrize("name", ["none", "linear", "llama3", "dynamic"])
@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.75, 0.9])
def test_an_odd_number_of_dims_turns_one_more_as_in_gpt_neox(fraction, name):
    from transformers import GPTNeoXConfig
    from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXRotaryEmbedding, apply_rotary_pos_emb

    if name == "dynamic" and fraction == 0.1:
        return  # 1 dim has no exponent there
    parameters = {"rope_theta": 10000.0, "partial_rotary_factor": fraction, "rope_type": name, **DIALECT.get(name, {})}
    parameters["rope_type"] = {"none": "default"}.get(name, name)
    config = GPTNeoXConfig(
        hidden_size=40, num_attention_heads=4, max_position_embeddings=16, rope_parameters=parameters
    )
    q, k, ids = randn(2, 4, 20, 10), randn(2, 4, 20, 10, seed=2), torch.arange(20)
    want = apply_rotary_pos_emb(q, k, *GPTNeoXRotaryEmbedding(config)(q, ids[None]))
    got = rotated(rope(name, width=10, fraction=fraction), q, k, ids)
    close(got[0], want[0])
    close(got[1], want[1])


DIALECT = {
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 2.0},
    "llama3": {
        "factor": 8.0,
        "original_max_position_embeddings": 16,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    },
}

NEVER_MEANT = [
    *(("none", {"theta": x}, "theta") for x in (0.0, -1.0, math.nan, math.inf, 1e308)),
    *(("linear", {"factor": x}, "factor") for x in (0.0, -1.0, math.nan, 1e308)),
    ("llama3", {"low_freq_factor": 4.0}, "low_freq_factor must be less"),
    ("llama3", {"low_freq_factor": 0.0}, "low_freq_factor"),
    ("yarn", {"beta_fast": 0.5}, "beta_slow must be less"),
    ("yarn", {"beta_slow": -1.0}, "beta_slow"),
    ("yarn", {"attention_factor": 0.0}, "attention_factor"),
    ("yarn", {"original_max": -3}, "original_max"),
    ("yarn", {"theta": 1.0}, "theta=1 makes"),
    ("longrope", {"original_max": 1}, "original_max"),
    ("longrope", {"long_factor": [1.0, 2.0, math.nan, 1.0]}, "long_factor"),
    ("dynamic", {"fraction": 0.25}, "scaling=dynamic needs more than 2"),
]


@pytest.mark.parametrize(("name", "options", "said"), NEVER_MEANT)
def test_numbers_that_are_never_meant_are_refused(name, options, said):
    with pytest.raises(ValueError, match=rf"position\.{said}"):
        rope(name, **options)


def test_every_scaling_is_a_choice_and_takes_options_of_the_part_alone():
    for name in ("rope", "dual_chunk"):
        options = registry.index()["position", name].options
        chosen = options["scaling"].choices
        assert set(chosen) <= set(KINDS)
        for scaling in chosen:
            assert {f.name for f in fields(KINDS[scaling])} <= {*options, "dims", "width"}
    assert registry.index()["position", "rope"].options["scaling"].choices == tuple(KINDS)
