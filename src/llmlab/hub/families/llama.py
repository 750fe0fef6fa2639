"""The LLaMA layout, and LLaMA itself. Other families of the layout import its rules and its reading."""

from __future__ import annotations

from collections.abc import Callable

from llmlab.config.spec import ModelSpec
from llmlab.hub.entry import (
    Config,
    Entry,
    activation,
    check_heads,
    n_kv_heads,
    rope,
    rope_parameters,
    settings,
)
from llmlab.hub.families.decoder import GENERIC_HEADS, classes
from llmlab.hub.rules import Rule, linear, same

OURS, THEIRS = "stacks.main.layers.{i}.", "model.layers.{i}."

ENDS = [
    same("stacks.main.embedding.table.weight", "model.embed_tokens.weight"),
    same("stacks.main.norm.weight", "model.norm.weight"),
    same("heads.tokens.out.weight", "lm_head.weight"),
    *GENERIC_HEADS,
]
NORMS = [
    same(OURS + "block.attention_norm.weight", THEIRS + "input_layernorm.weight"),
    # The name tells where it stands, not what it follows: it is the norm before the feed-forward (LlamaDecoderLayer).
    same(OURS + "block.ffn_norm.weight", THEIRS + "post_attention_layernorm.weight"),
]
ATTENTION = [
    *(r for n in "qkv" for r in linear(OURS + f"attention.{n}", THEIRS + f"self_attn.{n}_proj")),
    *linear(OURS + "attention.out", THEIRS + "self_attn.o_proj"),
    # LLaMA has none of these two; Qwen3, Gemma 3 and OLMo 2 do, under these names, and a
    # rule without a tensor of ours says nothing.
    *(same(OURS + f"attention.{n}_norm.weight", THEIRS + f"self_attn.{n}_norm.weight") for n in "qk"),
]
FFN = [r for n in ("gate", "up", "down") for r in linear(OURS + f"ffn.{n}", THEIRS + f"mlp.{n}_proj")]


def routed(shared: str) -> list[Rule]:
    """Experts one by one (as saved), or stacked with gate and up as one (as transformers 5 holds them)."""
    names = ("gate", "up", "down")
    ours = {n: OURS + f"ffn.experts.{n}.weight" for n in names}
    return [
        # A plain parameter in transformers 5 (Qwen2MoeTopKRouter.weight), a Linear
        # before; the name in a file is the same.
        same(OURS + "ffn.router.gate.weight", THEIRS + "mlp.gate.weight"),
        *(Rule((ours[n],), (THEIRS + f"mlp.experts.{{e}}.{n}_proj.weight",), "experts") for n in names),
        # MergeModulelist, then Concatenate(dim=1) in transformers'
        # conversion_mapping.py: (E, 2 F, D) with the gates first.
        Rule((ours["gate"], ours["up"]), (THEIRS + "mlp.experts.gate_up_proj",), "stacked"),
        same(ours["down"], THEIRS + "mlp.experts.down_proj"),
        # Qwen2-MoE has one (`shared_expert`), DeepSeek some (`shared_experts`), which make one FFN together.
        *(same(OURS + f"ffn.shared.{n}.weight", THEIRS + f"mlp.{shared}.{n}_proj.weight") for n in names),
    ]


DEFAULTS: Config = {
    "vocab_size": 32000,
    # LlamaConfig's defaults are the sizes of the first 7B (Touvron et al. 2023, arXiv:2302.13971, table 2).
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    # LLaMA 1 7B's; Llama 2 and 3 say 1e-5 in their files.
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "mlp_bias": False,
    # Only a class that scores a text asks for it: without one transformers takes the
    # last position, and one text at a time.
    "pad_token_id": None,
}


GATES = {
    "silu": "swiglu",
    "swish": "swiglu",
    # ACT2FN's "gelu" is the exact one by erf, "gelu_pytorch_tanh" the approximation.
    "gelu": "geglu",
    "gelu_pytorch_tanh": "geglu_tanh",
    # One formula under two names.
    "gelu_new": "geglu_tanh",
    "relu": "reglu",
    "sigmoid": "glu",
    "linear": "bilinear",
}


def gate(c: Config, key: str = "hidden_act") -> str:
    """The gated ffn whose activation config.json names."""
    return f"ffn={activation(c, key, GATES, c[key])}"


def gate_name(spec: ModelSpec) -> str:
    """The reverse of `gate`, the first layer's. A part that has no name there is found out by reading back."""
    ffn = spec.stacks[0].layers[0].parts["ffn"].name
    return next((theirs for theirs, ours in GATES.items() if ours == ffn), "silu")


def turned(spec: ModelSpec, *, partial: bool = False) -> Config:
    """`rope_parameters` of the first layer."""
    return rope_parameters(
        spec.stacks[0].layers[0].parts["position"].options, spec.sizes.max_positions, partial=partial
    )


def sizes(c: Config) -> Config:
    """Our sizes from the keys that the whole layout shares."""
    return {
        "dim": c["hidden_size"],
        "n_layers": c["num_hidden_layers"],
        "n_heads": c["num_attention_heads"],
        # LlamaConfig's default is None, which means as many as heads: files from before grouped queries lack the key.
        "n_kv_heads": c.get("num_key_value_heads") or c["num_attention_heads"],
        # Heads need not add up to the width: Qwen3-0.6B has 16 of 128 at a width of 1,024.
        "head_dim": c.get("head_dim") or c["hidden_size"] // c["num_attention_heads"],
        "ffn_dim": c["intermediate_size"],
        "max_positions": c["max_position_embeddings"],
        "vocab_size": c["vocab_size"],
        "norm_eps": c["rms_norm_eps"],
        "tie_embeddings": c["tie_word_embeddings"],
        "attention.dropout": c["attention_dropout"],
    }


def base(spec: ModelSpec) -> Config:
    """The reverse of `sizes`."""
    s = spec.sizes
    return {
        "hidden_size": s.dim,
        "num_hidden_layers": s.n_layers,
        "num_attention_heads": s.n_heads,
        "num_key_value_heads": n_kv_heads(spec),
        "head_dim": s.head_dim,
        "intermediate_size": s.ffn_dim,
        "max_position_embeddings": s.max_positions,
        "vocab_size": s.vocab_size,
        "rms_norm_eps": s.norm_eps,
        "tie_word_embeddings": s.tie_embeddings,
        "attention_dropout": s.attention.dropout,
    }


def read(c: Config) -> list[str]:
    values = sizes(c)
    # One key is for all four projections (LlamaAttention), where Qwen2 has its biases on q, k and v alone.
    values["attention.qkv_bias"] = values["attention.out_bias"] = c["attention_bias"]
    values["ffn.bias"] = c["mlp_bias"]
    return ["model=llama3", gate(c), *settings("model", values), *settings("position", rope(c))]


def write(spec: ModelSpec) -> Config:
    check_heads(spec)
    s = spec.sizes
    return {
        "model_type": "llama",
        **base(spec),
        "hidden_act": gate_name(spec),
        # A model whose out_bias differs is found out by reading this back (`save.described`).
        "attention_bias": s.attention.qkv_bias,
        "mlp_bias": s.ffn.bias,
        "rope_parameters": turned(spec),
    }


# LlamaForQuestionAnswering and those of Qwen2, Qwen3 and Qwen3-MoE call their base model `transformer`, for old checkpoints;
# all others of the layout call it `model`, in this class too.
OLD_SPANS = "transformer."


def layout(
    name: str,
    model_type: str,
    families: tuple[str, ...],
    rules: list[Rule],
    *,
    read: Callable[[Config], list[str]],
    write: Callable[[ModelSpec], Config],
    defaults: Config,
    extra_layers: bool = False,
    causal: str | None = None,
    lacks: tuple[str, ...] = (),
    spans: str | None = None,
) -> Entry:
    """An entry whose tensors are laid out as LLaMA's. causal, lacks, spans: see `classes`."""
    return Entry(
        model_types=(model_type,),
        families=families,
        rules=[*ENDS, *rules],
        architectures=classes(name, causal=causal, lacks=lacks, spans=spans),
        prefix="model.",
        # The frequencies: a buffer that transformers saved with the weights until it made it
        # non-persistent; they follow from theta.
        ignore=(r"rotary_emb\.inv_freq$",),
        head_key="lm_head.weight",
        embed_key="model.embed_tokens.weight",
        read=read,
        write=write,
        defaults=defaults,
        extra_layers=extra_layers,
    )


ENTRIES = [
    layout(
        "Llama",
        "llama",
        ("llama3", "llama2", "llama1"),
        [*NORMS, *ATTENTION, *FFN],
        read=read,
        write=write,
        defaults=DEFAULTS,
        spans=OLD_SPANS,
    )
]
