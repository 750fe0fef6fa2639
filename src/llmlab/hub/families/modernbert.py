"""ModernBERT: pre-norm with rotary positions, gated feed-forwards and windows in two layers of three."""

from __future__ import annotations

from typing import Any

from llmlab.config.spec import ModelSpec
from llmlab.hub.entry import (
    Config,
    Entry,
    Head,
    activation,
    by_layer,
    expect,
    n_labels,
    part,
    rope,
    rope_parameters,
    settings,
)
from llmlab.hub.families.bert import ACTIVATIONS, OURS
from llmlab.hub.rules import fused, linear, same

THEIRS = "model.layers.{i}."
KINDS = {"sliding_attention": "local", "full_attention": "global"}
GATES = {
    "gelu": "geglu",
    "gelu_new": "geglu_tanh",
    "gelu_pytorch_tanh": "geglu_tanh",
    "silu": "swiglu",
    "swish": "swiglu",
    "relu": "reglu",
}

RULES = [
    same("stacks.main.embedding.table.weight", "model.embeddings.tok_embeddings.weight"),
    *linear("stacks.main.embedding.norm", "model.embeddings.norm"),
    # Layer 0 has none: nn.Identity there, since the embedding's norm stands right before (ModernBertEncoderLayer).
    *linear(OURS + "block.attention_norm", THEIRS + "attn_norm"),
    *fused([OURS + f"attention.{n}" for n in "qkv"], THEIRS + "attn.Wqkv"),
    *linear(OURS + "attention.out", THEIRS + "attn.Wo"),
    *linear(OURS + "block.ffn_norm", THEIRS + "mlp_norm"),
    # ModernBertMLP calls the halves `input, gate` and activates the first: what it
    # calls input is a gate in GLU's terms.
    *fused([OURS + "ffn.gate", OURS + "ffn.up"], THEIRS + "mlp.Wi"),
    *linear(OURS + "ffn.down", THEIRS + "mlp.Wo"),
    *linear("stacks.main.norm", "model.final_norm"),
    # One transform, `head`, stands before the scores of all four classes.
    *(r for role in ("tokens", "classes", "labels", "span") for r in linear(f"heads.{role}.dense", "head.dense")),
    *(r for role in ("tokens", "classes", "labels", "span") for r in linear(f"heads.{role}.norm", "head.norm")),
    *(r for role in ("classes", "labels", "span") for r in linear(f"heads.{role}.out", "classifier")),
    same("heads.tokens.out.weight", "decoder.weight"),
    same("heads.tokens.bias", "decoder.bias"),
]


DEFAULTS: Config = {
    "vocab_size": 50368,
    "hidden_size": 768,
    "intermediate_size": 1152,
    "num_hidden_layers": 22,
    "num_attention_heads": 12,
    "hidden_activation": "gelu",
    "max_position_embeddings": 8192,
    "norm_eps": 1e-5,
    # One key for all norms, those of the heads too.
    "norm_bias": False,
    "pad_token_id": 50283,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "local_attention": 128,
    "embedding_dropout": 0.0,
    "mlp_bias": False,
    "mlp_dropout": 0.0,
    "decoder_bias": True,
    "classifier_pooling": "cls",
    "classifier_dropout": 0.0,
    "classifier_bias": False,
    "classifier_activation": "gelu",
    "tie_word_embeddings": True,
}


def _kinds(c: Config) -> list[str]:
    types = c.get("layer_types")
    if types is None:
        # The files on the Hub have this key and no layer_types; ModernBertConfig's own default is 3.
        every = c.get("global_attn_every_n_layers", 3)
        types = ["sliding_attention" if i % every else "full_attention" for i in range(c["num_hidden_layers"])]
    return [KINDS[expect({"layer_types": name}, "layer_types", *KINDS)] for name in types]


# Global layers turn slowly for texts of 8,192, local ones at RoPE's own base (Warner et
# al. 2024, arXiv:2412.13663, section 2.1).
THETAS = {"sliding_attention": ("local_rope_theta", 10000.0), "full_attention": ("global_rope_theta", 160000.0)}


def _ropes(c: Config) -> dict[str, Config]:
    """By kind; in the older dialect both are scaled alike."""
    return {KINDS[name]: rope(c, block) for name, block in by_layer(c, THETAS, scaled=THETAS, strict=True).items()}


def read(c: Config) -> list[str]:
    half = c["local_attention"] // 2
    ropes = _ropes(c)
    values = {
        "dim": c["hidden_size"],
        "n_layers": c["num_hidden_layers"],
        "n_heads": c["num_attention_heads"],
        "ffn_dim": c["intermediate_size"],
        "max_positions": c["max_position_embeddings"],
        "vocab_size": c["vocab_size"],
        "norm_eps": c["norm_eps"],
        "tie_embeddings": c["tie_word_embeddings"],
        "dropout": c["embedding_dropout"],
        "attention.qkv_bias": c["attention_bias"],
        "attention.out_bias": c["attention_bias"],
        "attention.dropout": c["attention_dropout"],
        "ffn.bias": c["mlp_bias"],
        "ffn.dropout": c["mlp_dropout"],
    }
    return [
        "model=modernbert",
        f"ffn={activation(c, 'hidden_activation', GATES, 'gelu')}",
        *settings("model", values),
        *settings("embedding", {"pad_id": c["pad_token_id"]}),
        *settings("norm", {"bias": c["norm_bias"]}),
        *settings("position", ropes["local"]),
        *settings("kinds.global.position", ropes["global"]),
        # local_attention is the whole window: half of it on either side, and `left` counts the token itself.
        *settings("kinds.local.window", {"left": half + 1, "right": half}),
        f"layers.first=[{','.join(_kinds(c))}]",
        "layers.cycle=[]",
    ]


def write(spec: ModelSpec) -> Config:
    s, layers = spec.sizes, spec.stacks[0].layers
    theirs = {ours: name for name, ours in KINDS.items()}
    first = {kind: next((la for la in layers if la.kind == kind), layers[0]) for kind in theirs}
    gates = {ours: name for name, ours in reversed(GATES.items())}
    parts = layers[0].parts
    return {
        "model_type": "modernbert",
        "hidden_size": s.dim,
        "num_hidden_layers": len(layers),
        "num_attention_heads": s.n_heads,
        "intermediate_size": s.ffn_dim,
        "max_position_embeddings": s.max_positions,
        "vocab_size": s.vocab_size,
        "hidden_activation": gates.get(parts["ffn"].name, "gelu"),
        "norm_eps": s.norm_eps,
        "norm_bias": parts["norm"].options.get("bias", False),
        "tie_word_embeddings": s.tie_embeddings,
        "attention_bias": s.attention.qkv_bias,
        "attention_dropout": s.attention.dropout,
        "embedding_dropout": s.dropout,
        "mlp_bias": s.ffn.bias,
        "mlp_dropout": s.ffn.dropout,
        # The window's left side counts the token itself, so that the right one is the half.
        "local_attention": 2 * (first["local"].parts["window"].options.get("right") or 0),
        "layer_types": [theirs.get(layer.kind) for layer in layers],
        "rope_parameters": {
            theirs[kind]: rope_parameters(layer.parts["position"].options, s.max_positions)
            for kind, layer in first.items()
        },
        **_written_head(spec),
        # Null, since ModernBertConfig would fill in ids past 50,280: nn.Embedding refuses
        # such a padding_idx for a smaller table.
        **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id")),
    }


def _written_head(spec: ModelSpec) -> Config:
    for head in spec.heads.values():
        o = head.options
        return {
            "classifier_bias": o.get("dense_bias", False),
            "classifier_activation": next((k for k, v in ACTIVATIONS.items() if v == o.get("act")), "gelu"),
            "decoder_bias": o.get("bias", True),
            "classifier_pooling": "mean" if o.get("pool") == "mean" else "cls",
        }
    return {}


def _transform(c: Config) -> dict[str, Any]:
    act = activation(c, "classifier_activation", ACTIVATIONS, "gelu")
    return {"act": act, "dense_bias": c["classifier_bias"]}


def masked(c: Config) -> dict:
    return {"tokens": part("head", "mlm", bias=c["decoder_bias"], **_transform(c))}


def classes(c: Config) -> dict:
    pool = {"cls": "first", "mean": "mean"}[expect(c, "classifier_pooling", "cls", "mean")]
    # `normed`: ModernBertPredictionHead has a norm behind the activation, for classes as for tokens.
    options = {"n_classes": n_labels(c), "dropout": c["classifier_dropout"], "pool": pool, "normed": True}
    return {"classes": part("head", "pooled", **options, **_transform(c))}


def by_token(role: str, name: str, c: Config) -> dict:
    options = {"n_classes": n_labels(c), "dropout": c["classifier_dropout"], "normed": True}
    return {role: part("head", name, **options, **_transform(c))}


ENTRIES = [
    Entry(
        model_types=("modernbert",),
        families=("modernbert",),
        read=read,
        write=write,
        defaults=DEFAULTS,
        rules=RULES,
        architectures={
            "ModernBertForMaskedLM": Head(masked, {"logits": "head:tokens"}),
            "ModernBertModel": Head(lambda c: {}, {"last_hidden_state": "hidden"}, prefix=""),
            "ModernBertForSequenceClassification": Head(classes, {"logits": "head:classes"}),
            "ModernBertForTokenClassification": Head(
                lambda c: by_token("labels", "token", c), {"logits": "head:labels"}
            ),
            "ModernBertForQuestionAnswering": Head(
                lambda c: by_token("span", "span", c), {"start_logits": "head:span:0", "end_logits": "head:span:1"}
            ),
        },
        prefix="model.",
        ignore=(r"rotary_emb\.\w*inv_freq$",),
        head_key="decoder.weight",
        embed_key="model.embeddings.tok_embeddings.weight",
    )
]
