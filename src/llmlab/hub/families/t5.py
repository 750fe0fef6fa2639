"""T5, versions 1.0 (ReLU, tied, scaled logits) and 1.1 (gated GELU, a head of its own), and mT5, which never scales."""

from __future__ import annotations

from llmlab.config.spec import ModelSpec
from llmlab.hub.entry import STATED, Config, Entry, Head, expect, part, settings
from llmlab.hub.rules import Rule, same

FFNS = {  # of several names of one, the last is the one that is written
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
    "silu": "silu",
    "relu": "relu",
    "gated-gelu_new": "geglu_tanh",
    # T5Config makes gelu_new, the approximation by tanh, of the name "gated-gelu".
    "gated-gelu": "geglu_tanh",
    "gated-silu": "swiglu",
    "gated-relu": "reglu",
}


def _stack(name: str, ffn: int) -> list[Rule]:
    ours, theirs = f"stacks.{name}.layers.{{i}}.", f"{name}.block.{{i}}.layer."
    own = theirs + "0.SelfAttention."
    rules = [
        # Only the first block of a stack has a table of relative biases, which all of them use.
        same(
            f"stacks.{name}.positions.0.table.weight",
            f"{name}.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
        ),
        *(
            same(ours + f"attention.{a}.weight", own + f"{b}.weight")
            for a, b in zip(("q", "k", "v", "out"), "qkvo", strict=True)
        ),
        same(ours + "block.attention_norm.weight", theirs + "0.layer_norm.weight"),
        same(ours + "block.ffn_norm.weight", theirs + f"{ffn}.layer_norm.weight"),
        # Gated (1.1, mT5) the up projection is wi_1 and the gate wi_0; plain (1.0) there is one `wi`.
        same(ours + "ffn.gate.weight", theirs + f"{ffn}.DenseReluDense.wi_0.weight"),
        same(ours + "ffn.up.weight", theirs + f"{ffn}.DenseReluDense.wi_1.weight", needs=ours + "ffn.gate.weight"),
        same(ours + "ffn.up.weight", theirs + f"{ffn}.DenseReluDense.wi.weight"),
        same(ours + "ffn.down.weight", theirs + f"{ffn}.DenseReluDense.wo.weight"),
        same(f"stacks.{name}.norm.weight", f"{name}.final_layer_norm.weight"),
    ]
    if name == "decoder":
        cross = theirs + "1.EncDecAttention."
        rules += [
            *(
                same(ours + f"cross_attention.{a}.weight", cross + f"{b}.weight")
                for a, b in zip(("q", "k", "v", "out"), "qkvo", strict=True)
            ),
            same(ours + "block.cross_attention_norm.weight", theirs + "1.layer_norm.weight"),
        ]
    return rules


# transformers ties both to `shared`; older files may hold all three.
TABLES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
RULES = [
    same("stacks.encoder.embedding.table.weight", "shared.weight", aliases=TABLES),
    same("stacks.encoder.embedding.table.weight", TABLES[0], aliases=TABLES[1:]),
    same("stacks.encoder.embedding.table.weight", TABLES[1]),
    *_stack("encoder", 1),
    *_stack("decoder", 2),
    same("heads.tokens.out.weight", "lm_head.weight"),
]


DEFAULTS: Config = {
    "vocab_size": 32128,
    "d_model": 512,
    # Heads times this need not be the width: 3B has 32 heads of 128 at 1,024.
    "d_kv": 64,
    "d_ff": 2048,
    "num_layers": 6,
    "num_heads": 8,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "dropout_rate": 0.1,
    "layer_norm_epsilon": 1e-6,
    "feed_forward_proj": "relu",
    "pad_token_id": 0,
    "tie_word_embeddings": True,
}


# MT5Config's defaults are the small one's, where T5Config's are T5 small's.
MT5: Config = DEFAULTS | {
    "vocab_size": 250112,
    "d_ff": 1024,
    "num_layers": 8,
    "num_heads": 6,
    "feed_forward_proj": "gated-gelu",
}


def read(c: Config) -> list[str]:
    expect(c, "is_decoder", False, default=False)
    multilingual = c.get("model_type") == "mt5"
    ffn = FFNS[expect(c, "feed_forward_proj", *FFNS)]
    encoder, decoder = c["num_layers"], c.get("num_decoder_layers") or c["num_layers"]
    tied = c["tie_word_embeddings"]
    # The reference scales where config.json says tied, whether or not the file has a head of its own.
    # MT5ForConditionalGeneration never scales, and transformers 5 writes the decision
    # down as scale_decoder_outputs for T5.
    scaled = not multilingual and c.get("scale_decoder_outputs", c.get(STATED, tied))
    buckets = {
        "buckets": c["relative_attention_num_buckets"],
        "max_distance": c["relative_attention_max_distance"],
    }
    values = {
        "dim": c["d_model"],
        "n_layers": encoder + decoder,
        "n_heads": c["num_heads"],
        "head_dim": c["d_kv"],
        "ffn_dim": c["d_ff"],
        "vocab_size": c["vocab_size"],
        "norm_eps": c["layer_norm_epsilon"],
        "tie_embeddings": tied,
        "dropout": c["dropout_rate"],
        # One rate for every dropout of the reference (T5Stack, T5Attention, T5DenseActDense).
        "attention.dropout": c["dropout_rate"],
        "ffn.dropout": c["dropout_rate"],
        # Mesh TensorFlow's convention for a table that the embedding and the logits share; 1.1 dropped it with the tie.
        "logit_scale": c["d_model"] ** -0.5 if scaled else None,
    }
    return [
        f"model={'mt5' if multilingual else 't5_v1_1' if ffn == 'geglu_tanh' else 't5'}",
        f"ffn={ffn}",
        *settings("model", values),
        *settings("position", buckets),
        f"stacks.encoder.n_layers={encoder}",
        f"stacks.decoder.n_layers={decoder}",
    ]


def write(spec: ModelSpec) -> Config:
    s = spec.sizes
    names = {ours: theirs for theirs, ours in FFNS.items()}
    parts = spec.stacks[0].layers[0].parts
    multilingual = spec.family == "mt5"
    return {
        "model_type": "mt5" if multilingual else "t5",
        "d_model": s.dim,
        "d_kv": s.head_dim,
        "d_ff": s.ffn_dim,
        "num_layers": len(spec.stacks[0].layers),
        # Always written: null means as many as the encoder has.
        "num_decoder_layers": len(spec.stacks[-1].layers),
        "num_heads": s.n_heads,
        "vocab_size": s.vocab_size,
        "layer_norm_epsilon": s.norm_eps,
        "feed_forward_proj": names.get(parts["ffn"].name, "relu"),
        "dropout_rate": s.dropout,
        "relative_attention_num_buckets": parts["position"].options.get("buckets", 32),
        "relative_attention_max_distance": parts["position"].options.get("max_distance", 128),
        "tie_word_embeddings": s.tie_embeddings,
        **({} if multilingual else {"scale_decoder_outputs": s.logit_scale is not None}),
        "is_encoder_decoder": len(spec.stacks) > 1,
    }


def _entry(model_type: str, families: tuple[str, ...], name: str, defaults: Config) -> Entry:
    both = {"last_hidden_state": "hidden", "encoder_last_hidden_state": "source"}
    return Entry(
        model_types=(model_type,),
        families=families,
        read=read,
        write=write,
        defaults={**defaults, "model_type": model_type},
        rules=RULES,
        architectures={
            f"{name}ForConditionalGeneration": Head(
                lambda c: {"tokens": part("head", "lm")},
                {"logits": "head:tokens", "encoder_last_hidden_state": "source"},
            ),
            f"{name}Model": Head(lambda c: {}, both),
            # T5EncoderModel's files lack the decoder, and whole files may be read as one
            # (`_keys_to_ignore_on_load_unexpected = ["decoder"]`).
            f"{name}EncoderModel": Head(lambda c: {}, {"last_hidden_state": "hidden"}, stacks=("encoder",)),
        },
        # The first published files hold a table for cross-attention, which T5 has no positions in and does not read.
        ignore=(r"^decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight$",),
        head_key="lm_head.weight",
        embed_key="shared.weight",
        # Files of 1.1 and mT5 say tie_word_embeddings=false, and both classes of
        # transformers 5 set it to true in __post_init__.
        always_tied=True,
    )


ENTRIES = [_entry("t5", ("t5", "t5_v1_1"), "T5", DEFAULTS), _entry("mt5", ("mt5",), "MT5", MT5)]
