"""Twins of positions, from their papers."""

from __future__ import annotations

import math

from twins import Settings
from twins.position import added, biases, turned

__all__ = ["MORE", "REFUSED", "added", "biases", "turned"]

ODD = {"rotary_dim": 10, "head_dim": 13}  # half of it is odd, which GPT-NeoX turns as one dim more
YARN = {"scaling": "yarn", "factor": 4.0, "original_max": 16, "theta": 100.0}
LISTS = {"short_factor": [2.0, 1.1, 1.5, 2.0], "long_factor": [1.2, 2.0, 3.0, 7.5]}
LONGROPE = {"scaling": "longrope", "factor": 4.0, "original_max": 16, **LISTS}
MORE: Settings = {
    "rope": [
        (ODD, {"fraction": 0.5}),
        (ODD, {"fraction": 0.5, "scaling": "dynamic", "factor": 2.0, "original_max": 16}),
        ({"max_positions": 16}, {"scaling": "yarn", "factor": 0.5, "theta": 100.0}),
        ({}, {**YARN, "mscale": 0.7, "factor": 1.5}),
        ({}, {**YARN, "mscale_all_dim": 0.7, "factor": 6.0}),
        ({}, {**YARN, "original_max": 800, "theta": 10.0}),  # all pairs turn often
        ({}, {**YARN, "original_max": 2, "factor": 8.0}),  # no pair turns once
        ({"max_positions": 16}, {"log_n": True, "scaling": "dynamic_steps"}),
        ({}, {"scaling": "dynamic_steps", "original_max": 8}),
        ({}, {**LONGROPE, "factor": 1.0}),
        ({}, {**LONGROPE, "factor": 1.5}),
        ({}, {**LONGROPE, "attention_factor": 1.3}),
        ({}, {"theta": 1e12, "scaling": "linear", "factor": 1e6}),
        ({}, {"fraction": 0.5, "scaling": "dynamic", "factor": 2.0, "original_max": 16}),
        ({}, {"log_n": True, "original_max": 2}),
    ],
    "dual_chunk": [
        ({}, {"chunk": None, "local": None, "original_max": 12}),
        ({"max_positions": 20}, {"chunk": 7, "local": None}),
        ({}, {"chunk": 12, "local": None, "original_max": 12}),
        ({}, {"chunk": 1, "local": 2}),
        ({}, {"chunk": None, "local": None, "original_max": 1}),
    ],
    "sinusoidal": [({"embed_dim": 19}, {}), ({"embed_dim": 19}, {"layout": "halves"})],
    # `check` has no model with a token of padding, by whose id these count.
    "learned": [({}, {"offset": 2, "pad_id": 1}), ({"max_positions": 40}, {"offset": 1, "pad_id": 1})],
    "glm_2d": [({"max_positions": 40}, {})],
    "alibi": [({"n_heads": 4}, {}), ({"attention.scale": 0.3}, {"scaled": True}), ({"causal": False}, {})],
    "t5_bias": [
        ({}, {"buckets": 8, "max_distance": 5}),
        ({}, {"buckets": 2, "max_distance": 2}),
        ({"causal": False}, {"buckets": 4}),
        ({"causal": False}, {}),
        ({"causal": False}, {"buckets": 6, "max_distance": 30}),
    ],
    "learned_t5_bias": [({"causal": False}, {}), ({}, {"offset": 2, "pad_id": 1})],
    "disentangled": [
        ({"causal": False}, {}),
        ({}, {"max_distance": 6}),
        ({}, {"buckets": 2}),
        ({}, {"buckets": None, "max_distance": 1}),
    ],
    "xlnet_relative": [
        ({"causal": False}, {"clamp": 5, "segments": True, "both_ways": True}),
        ({}, {"clamp": 1}),
    ],
    "rope_2d": [({"rotary_dim": 10}, {"interleaved": True})],
}
LEARNED = [({}, {"offset": -1}), ({}, {"offset": 0, "pad_id": 1}), ({"max_positions": 39}, {})]
T5 = [({}, {"buckets": 1}), ({}, {"max_distance": 4}), ({"causal": False}, {"buckets": 3})]
REFUSED: Settings = {
    "rope": [
        *(({}, {key: 0.0}) for key in ("theta", "factor", "fraction", "attention_factor", "beta_fast")),
        *(({}, {key: -1.0}) for key in ("beta_slow", "low_freq_factor", "high_freq_factor")),
        *(({}, {"theta": theta}) for theta in (1.1e12, math.inf)),
        *(({}, {"factor": factor}) for factor in (1.1e6, math.inf)),
        ({}, {"beta_fast": math.inf}),
        ({}, {"original_max": -1}),
        ({}, {"fraction": 1.1}),
        ({}, {"fraction": 0.1}),
        ({"rotary_dim": 9}, {"fraction": 1.0}),
        (ODD, {**YARN, "fraction": 0.5}),
        ({}, {"low_freq_factor": 4.0}),
        ({}, {"beta_slow": 32.0}),
        ({}, {**YARN, "theta": 1.0}),
        ({}, {"scaling": "dynamic", "fraction": 0.25}),
        ({}, {"scaling": "dynamic_steps", "fraction": 0.25}),
        ({}, {"log_n": True, "original_max": 1}),
        ({}, {**LONGROPE, "original_max": 1}),
        ({}, {**LONGROPE, "short_factor": None}),
        ({}, {**LONGROPE, "long_factor": None}),
        ({}, {**LONGROPE, "long_factor": [1.0] * 3}),
        ({}, {**LONGROPE, "short_factor": [1.0] * 3 + [0.0]}),
        ({}, {**LONGROPE, "long_factor": [1.0] * 3 + [math.inf]}),
    ],
    "dual_chunk": [({}, {"chunk": 0}), ({}, {"local": 0}), ({"causal": False}, {})],
    "learned": LEARNED,
    "learned_t5_bias": [*LEARNED, *T5],
    "glm_2d": [({"max_positions": 39}, {})],
    "t5_bias": T5,
    "disentangled": [
        ({}, {"buckets": 1}),
        ({}, {"max_distance": 5}),
        ({}, {"buckets": None, "max_distance": 0}),
        ({}, {"content_to_position": False, "position_to_content": False}),
    ],
    "xlnet_relative": [({}, {"clamp": 0})],
    "rope_2d": [({"rotary_dim": 3}, {})],
}
