"""ChatGLM in its authors' files, which transformers does not have. The second and third are GLM under other names."""

from __future__ import annotations

from dataclasses import replace

from llmlab.config.spec import ModelSpec
from llmlab.hub.entry import Config, Entry, Head, expect, n_kv_heads, n_labels, part, settings
from llmlab.hub.families import chatglm1
from llmlab.hub.families.decoder import LM
from llmlab.hub.rules import fused, linear, same

OURS, THEIRS = "stacks.main.layers.{i}.", "transformer.encoder.layers.{i}."
RULES = [
    same("stacks.main.embedding.table.weight", "transformer.embedding.word_embeddings.weight"),
    # "encoder" is only what the authors call the stack: it is a causal decoder.
    *linear("stacks.main.norm", "transformer.encoder.final_layernorm"),
    same("heads.tokens.out.weight", "transformer.output_layer.weight"),
    *linear(OURS + "block.attention_norm", THEIRS + "input_layernorm"),
    *linear(OURS + "block.ffn_norm", THEIRS + "post_attention_layernorm"),
    *fused([OURS + f"attention.{n}" for n in "qkv"], THEIRS + "self_attention.query_key_value"),
    *linear(OURS + "attention.out", THEIRS + "self_attention.dense"),
    # One linear for both halves of SwiGLU, the gate's first.
    *fused([OURS + "ffn.gate", OURS + "ffn.up"], THEIRS + "mlp.dense_h_to_4h"),
    *linear(OURS + "ffn.down", THEIRS + "mlp.dense_4h_to_h"),
    *linear("heads.scalar.out", "classifier_head"),
]
DEFAULTS: Config = chatglm1.DEFAULTS | {
    "num_layers": 28,
    # The rows of the table, rounded up; the tokenizer has fewer ids.
    "padded_vocab_size": 65024,
    "hidden_size": 4096,
    "ffn_hidden_size": 13696,
    "kv_channels": 128,
    "num_attention_heads": 32,
    "seq_length": 2048,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "layernorm_epsilon": 1e-5,
    "rmsnorm": True,
    "apply_residual_connection_post_layernorm": False,
    "post_layer_norm": True,
    "add_bias_linear": False,
    "add_qkv_bias": False,
    "multi_query_attention": False,
    # Read under multi_query_attention only; ChatGLM2-6B has 2.
    "multi_query_group_num": 1,
    "original_rope": True,
    "rope_ratio": 1.0,
    "pad_token_id": None,
}


def read(c: Config) -> list[str]:
    if chatglm1.first(c):
        return chatglm1.read({"tie_word_embeddings": True, **c})
    expect(c, "apply_residual_connection_post_layernorm", False)
    expect(c, "post_layer_norm", True)
    expect(c, "original_rope", True)
    expect(c, "rope_ratio", 1)  # of the released programs one divides positions by it, another multiplies the base
    expect(c, "tie_word_embeddings", False, default=False)
    # Prefix tuning, whose vectors would be left over (`transformer.prefix_encoder`).
    expect(c, "pre_seq_len", None)
    bias = c["add_bias_linear"]
    values = {
        "dim": c["hidden_size"],
        "n_layers": c["num_layers"],
        "n_heads": c["num_attention_heads"],
        "n_kv_heads": c["multi_query_group_num"] if c["multi_query_attention"] else c["num_attention_heads"],
        "head_dim": c["kv_channels"],
        "ffn_dim": c["ffn_hidden_size"],
        "max_positions": c["seq_length"],
        "vocab_size": c["padded_vocab_size"],
        "norm_eps": c["layernorm_epsilon"],
        "dropout": c["hidden_dropout"],
        "attention.dropout": c["attention_dropout"],
        # ChatGLM2-6B: on q, k and v, and nowhere else (add_bias_linear=false).
        "attention.qkv_bias": c["add_qkv_bias"] or bias,
        "attention.out_bias": bias,
        "ffn.bias": bias,
    }
    return ["model=chatglm2", *([] if c["rmsnorm"] else ["norm=layernorm"]), *settings("model", values)]


def write(spec: ModelSpec) -> Config:
    if spec.family == "chatglm1":
        return chatglm1.write(spec)
    s = spec.sizes
    return {
        "model_type": "chatglm",
        "hidden_size": s.dim,
        "num_layers": s.n_layers,
        "num_attention_heads": s.n_heads,
        "multi_query_attention": True,
        "multi_query_group_num": n_kv_heads(spec),
        "kv_channels": s.head_dim,
        "ffn_hidden_size": s.ffn_dim,
        "seq_length": s.max_positions,
        "padded_vocab_size": s.vocab_size,
        "layernorm_epsilon": s.norm_eps,
        "rmsnorm": _norm(spec),
        "hidden_dropout": s.dropout,
        "attention_dropout": s.attention.dropout,
        "add_qkv_bias": s.attention.qkv_bias,
        "add_bias_linear": s.attention.out_bias,
        "apply_residual_connection_post_layernorm": False,
        "post_layer_norm": True,
        "original_rope": True,
        "tie_word_embeddings": False,
    }


def _norm(spec: ModelSpec) -> bool:
    return spec.stacks[0].layers[0].parts["norm"].name == "rmsnorm"


LM_HEAD = replace(LM, call=chatglm1.call)
ENTRIES = [
    Entry(
        model_types=("chatglm",),
        families=("chatglm2", "chatglm1"),
        read=read,
        write=write,
        looks_by="mlm",
        rules=[],
        layout=lambda c: chatglm1.RULES if chatglm1.first(c) else RULES,
        architectures={
            "ChatGLMModel": LM_HEAD,
            "ChatGLMForConditionalGeneration": LM_HEAD,
            "ChatGLMForSequenceClassification": Head(
                # The last position, padding or not: the authors' class reads hidden_states[-1], and pads on the left.
                lambda c: {"scalar": part("head", "scalar", n_classes=n_labels(c), pool="end", bias=True)},
                {"logits": "head:scalar"},
            ),
        },
        defaults=DEFAULTS,
        ignore=(r"(rotary_pos_emb|rotary_emb)\.inv_freq$",),
        head_key="lm_head.weight",
        embed_key="transformer.word_embeddings.weight",
    )
]
