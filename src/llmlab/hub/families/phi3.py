"""Phi-3 and Phi-4: LLaMA's layers with fused projections, and longrope."""

from __future__ import annotations

from llmlab.config.spec import ModelSpec
from llmlab.hub.entry import Config, expect, rope, settings
from llmlab.hub.families.decoder import SPANS
from llmlab.hub.families.llama import NORMS, OURS, THEIRS, base, gate, gate_name, layout, sizes, turned
from llmlab.hub.rope import parameters_of_all
from llmlab.hub.rules import fused, linear
from llmlab.hub.windows import read_windows, write_windows

DEFAULTS: Config = {
    "vocab_size": 32064,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "resid_pdrop": 0.0,
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "max_position_embeddings": 4096,
    # At the top of the file, where it counts for more than one within the rope's parameters (standardize_rope_params).
    "original_max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "sliding_window": None,
    "pad_token_id": 32000,
}
FUSED_FFN = [
    # Phi3MLP cuts the product in two with chunk: the first half is the gate.
    *fused([OURS + "ffn.gate", OURS + "ffn.up"], THEIRS + "mlp.gate_up_proj"),
    *linear(OURS + "ffn.down", THEIRS + "mlp.down_proj"),
]
RULES = [
    *NORMS,
    # All queries, then all keys, then all values (Phi3Attention slices at query_pos), however many heads share a key.
    *fused([OURS + f"attention.{n}" for n in "qkv"], THEIRS + "self_attn.qkv_proj"),
    *linear(OURS + "attention.out", THEIRS + "self_attn.o_proj"),
    *FUSED_FFN,
]
# Phi3Config renames both, though "yarn" is another method everywhere else.
OLD = {"su": "longrope", "yarn": "longrope"}  # names of longrope in the first files


def read(c: Config) -> list[str]:
    parameters = dict(parameters_of_all(c))
    kind = str(parameters.get("rope_type", parameters.get("type", "default")))
    parameters["rope_type"] = OLD.get(kind, kind)
    # As Phi3Config: a share within counts for more than one at the top. Phi-4-mini turns 0.75 of a head.
    parameters.setdefault("partial_rotary_factor", c.get("partial_rotary_factor", 1.0))
    expect(parameters, "rope_type", "default", "longrope")
    head = c["hidden_size"] // c["num_attention_heads"]
    even = (
        None if parameters["rope_type"] == "default" else head
    )  # the reference has lists for half of the dims, rounded down
    # Handed over as rope_scaling, which stands above rope_parameters, so that the name
    # made new here is the one that is read.
    position = rope({**c, "rope_scaling": parameters}, partial=1.0, even=even)
    types = ["sliding_attention" if c["sliding_window"] else "full_attention"] * c["num_hidden_layers"]
    return [
        "model=phi3",
        "attention=gqa",
        gate(c),
        *read_windows(types, c["sliding_window"]),
        *settings("model", {**sizes(c), "dropout": c["resid_pdrop"]}),
        *settings("position", position),
    ]


def write(spec: ModelSpec) -> Config:
    position = spec.stacks[0].layers[0].parts["position"].options
    return {
        "model_type": "phi3",
        **base(spec),
        "hidden_act": gate_name(spec),
        "resid_pdrop": spec.sizes.dropout,
        "embd_pdrop": spec.sizes.dropout,
        "sliding_window": write_windows(spec)[1],
        # Always written: a file without it gets the 4,096 of the class, which would count
        # for more than what rope_parameters say.
        "original_max_position_embeddings": position.get("original_max") or spec.sizes.max_positions,
        "rope_parameters": turned(spec, partial=True),
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }


ENTRIES = [layout("Phi3", "phi3", ("phi3",), RULES, read=read, write=write, defaults=DEFAULTS, lacks=(SPANS,))]
