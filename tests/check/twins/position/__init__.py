"""Positions from their papers."""

from __future__ import annotations

from typing import Any

from twins.position import added, biases, turned

__all__ = ["MORE", "added", "biases", "turned"]

Settings = list[tuple[dict[str, Any], dict[str, Any]]]  # (sizes and traits, options)

ODD = {"rotary_dim": 10, "head_dim": 13}  # half of it is odd, which GPT-NeoX turns as one dim more
YARN = {"scaling": "yarn", "factor": 4.0, "original_max": 16, "theta": 100.0}
LISTS = {"short_factor": [2.0, 1.1, 1.5, 2.0], "long_factor": [1.2, 2.0, 3.0, 7.5]}
LONGROPE = {"scaling": "longrope", "factor": 4.0, "original_max": 16, **LISTS}
MORE: dict[str, Settings] = {
    "rope": [
        (ODD, {"fraction": 0.5}),
        (ODD, {"fraction": 0.5, "scaling": "dynamic", "factor": 2.0, "original_max": 16}),
        ({"max_positions": 16}, {"scaling": "yarn", "factor": 0.5, "theta": 100.0}),
        ({}, {**YARN, "mscale": 0.7}),
        ({}, {**YARN, "original_max": 2, "factor": 8.0}),  # no pair turns once
        ({"max_positions": 16}, {"log_n": True, "scaling": "dynamic_steps"}),
        ({}, {**LONGROPE, "factor": 1.0}),
        ({}, {**LONGROPE, "attention_factor": 1.3}),
    ],
    "dual_chunk": [
        ({}, {"chunk": None, "local": None, "original_max": 12}),
        ({"max_positions": 20}, {"chunk": 7, "local": None}),
    ],
    "sinusoidal": [({"embed_dim": 19}, {}), ({"embed_dim": 19}, {"layout": "halves"})],
    "alibi": [({"n_heads": 6}, {}), ({"attention.scale": 0.3}, {"scaled": True}), ({"causal": False}, {})],
    "t5_bias": [({"causal": False}, {}), ({"causal": False}, {"buckets": 6, "max_distance": 30})],
    "learned_t5_bias": [({"causal": False}, {})],
    "disentangled": [({"causal": False}, {})],
    "xlnet_relative": [({"causal": False}, {"clamp": 5, "segments": True, "both_ways": True})],
    "rope_2d": [({"rotary_dim": 10}, {"interleaved": True})],
}
