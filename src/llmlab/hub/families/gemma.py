"""Gemma, and Gemma 2 with its capped scores, four norms a layer and alternating windows."""

from __future__ import annotations

from llmlab.config.spec import ModelSpec
from llmlab.hub.entry import Config, check_heads, expect, rope, settings
from llmlab.hub.families import gemma3
from llmlab.hub.families.decoder import SPANS
from llmlab.hub.families.llama import ATTENTION, FFN, NORMS, base, gate, gate_name, layout, sizes, turned
from llmlab.hub.windows import KINDS, write_windows

GEMMA: Config = {
    "vocab_size": 256000,
    "hidden_size": 3072,
    "intermediate_size": 24576,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    # Not the width over the heads: 16 heads of 256 are 4,096 in the 7B, whose width is 3,072.
    "head_dim": 256,
    "hidden_act": "gelu_pytorch_tanh",
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-6,
    "pad_token_id": 0,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "use_bidirectional_attention": None,
}
GEMMA2: Config = {
    **{key: value for key, value in GEMMA.items() if key != "hidden_act"},
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "hidden_activation": "gelu_pytorch_tanh",
    # The 2B's and 9B's, whose heads are 256 wide; 27B says 144, its width over its heads, for heads of 128.
    "query_pre_attn_scalar": 256.0,
    "sliding_window": 4096,
    "final_logit_softcapping": 30.0,
    "attn_logit_softcapping": 50.0,
}


def read(c: Config) -> list[str]:
    expect(c, "use_bidirectional_attention", False, None)
    by_tanh = {"hidden_act": "gelu_pytorch_tanh"} if c["hidden_act"] == "gelu" else {}  # so the first files call it
    values = sizes(c)
    values["attention.qkv_bias"] = values["attention.out_bias"] = c["attention_bias"]
    return [
        "model=gemma",
        # Named, since the family's own is mqa, the 2B's, and the 7B has a key head for each head.
        "attention=gqa",
        gate({**c, **by_tanh}),
        *settings("model", values),
        *settings("position", rope(c)),
    ]


def write(spec: ModelSpec) -> Config:
    ffn = spec.stacks[0].layers[0].parts["ffn"].name
    return {
        "model_type": "gemma",
        **base(spec),
        "hidden_act": gate_name(spec) if ffn != "geglu" else "gelu_pytorch_tanh",  # "gelu" is read as by tanh
        "attention_bias": spec.sizes.attention.qkv_bias,
        "rope_parameters": turned(spec),
    }


def read_gemma2(c: Config) -> list[str]:
    expect(c, "use_bidirectional_attention", False, None)
    # Gemma2Config begins with a sliding layer: (i + 1) % 2.
    types = c.get("layer_types") or [list(KINDS)[i % 2] for i in range(c["num_hidden_layers"])]
    for kind in types:
        expect({"layer_types": kind}, "layer_types", *KINDS)
    if "sliding_attention" in types and not c["sliding_window"]:
        expect(c, "sliding_window", "a number")
    values = sizes(c)
    values["attention.qkv_bias"] = values["attention.out_bias"] = c["attention_bias"]
    values["attention.scale"] = c["query_pre_attn_scalar"] ** -0.5
    values["attention.softcap"] = c["attn_logit_softcapping"]
    values["logit_softcap"] = c["final_logit_softcapping"]
    return [
        "model=gemma2",
        # Gemma 2 and 3 read this name, and Gemma reads hidden_act.
        gate(c, "hidden_activation"),
        *settings("model", values),
        *settings("position", rope(c)),
        *([f"kinds.local.window.left={c['sliding_window']}"] if c["sliding_window"] else []),
        f"layers.first=[{','.join(KINDS[t] for t in types)}]",
        "layers.cycle=[]",
    ]


def write_gemma2(spec: ModelSpec) -> Config:
    check_heads(spec)
    types, left = write_windows(spec)
    return {
        "model_type": "gemma2",
        **base(spec),
        "hidden_activation": gate_name(spec),
        "attention_bias": spec.sizes.attention.qkv_bias,
        "query_pre_attn_scalar": gemma3.scalar(spec),
        "attn_logit_softcapping": spec.sizes.attention.softcap,
        "final_logit_softcapping": spec.sizes.logit_softcap,
        # The class's default where no layer slides: its masks are made of the number all the same (Gemma2Model.forward).
        "sliding_window": left or GEMMA2["sliding_window"],
        "layer_types": types,
        "rope_parameters": turned(spec),
    }


ENTRIES = [
    layout(
        "Gemma",
        "gemma",
        ("gemma",),
        [*NORMS, *ATTENTION, *FFN],
        read=read,
        write=write,
        defaults=GEMMA,
        lacks=(SPANS,),
    ),
    layout(
        "Gemma2",
        "gemma2",
        ("gemma2",),
        gemma3.RULES,
        read=read_gemma2,
        write=write_gemma2,
        defaults=GEMMA2,
        lacks=(SPANS,),
    ),
]
