"""BART: post-norm encoder and decoder, positions that begin in the third row, a bias on the logits that is not learnt."""

from __future__ import annotations

from llmlab.config.spec import ModelSpec, PartSpec
from llmlab.hub.entry import STATED, Config, Entry, Head, activation, expect, n_labels, part, settings
from llmlab.hub.families.gpt2 import ACTIVATIONS, act_name
from llmlab.hub.rules import Rule, linear, same

TABLE, OTHER = (f"stacks.{name}.embedding.table.weight" for name in ("encoder", "decoder"))


def layers(name: str) -> list[Rule]:
    """Rules for a stack's layers. "self_attn" and "encoder_attn" are attention; "final_layer_norm" is the ffn's norm."""
    ours, theirs = f"stacks.{name}.layers.{{i}}.", f"model.{name}.layers.{{i}}."
    rules = [
        # Two rows more than max_position_embeddings (BartLearnedPositionalEmbedding.offset), as in OPT.
        same(f"stacks.{name}.positions.0.table.weight", f"model.{name}.embed_positions.weight"),
        # BART norms tokens plus positions before the first layer; Pegasus' layers
        # norm their own inputs, and it has none.
        *linear(f"stacks.{name}.embedding.norm", f"model.{name}.layernorm_embedding"),
        *linear(ours + "block.ffn_norm", theirs + "final_layer_norm"),
        *linear(ours + "ffn.up", theirs + "fc1"),
        *linear(ours + "ffn.down", theirs + "fc2"),
    ]
    for own, their in (("attention", "self_attn"), ("cross_attention", "encoder_attn")):
        rules += [
            *(r for n in "qkv" for r in linear(f"{ours}{own}.{n}", f"{theirs}{their}.{n}_proj")),
            *linear(f"{ours}{own}.out", f"{theirs}{their}.out_proj"),
            *linear(f"{ours}block.{own}_norm", f"{theirs}{their}_layer_norm"),
        ]
    return rules


RULES = [
    # Untied stacks have tables of their own; `shared` is then a copy of the encoder's that nothing reads.
    same(TABLE, "model.encoder.embed_tokens.weight", needs=OTHER, copies=("model.shared.weight",)),
    same(OTHER, "model.decoder.embed_tokens.weight"),
    same(
        TABLE, "model.shared.weight", aliases=("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight")
    ),
    same(TABLE, "model.encoder.embed_tokens.weight", aliases=("model.decoder.embed_tokens.weight",)),
    *layers("encoder"),
    *layers("decoder"),
    same("heads.tokens.out.weight", "lm_head.weight"),
    # A buffer, zero unless a checkpoint says otherwise; the reference does not miss it in a file.
    same("heads.tokens.fixed_bias", "final_logits_bias"),
    *linear("heads.classes.dense", "classification_head.dense"),
    *linear("heads.classes.out", "classification_head.out_proj"),
    *linear("heads.span.out", "qa_outputs"),
]
DEFAULTS: Config = {
    "vocab_size": 50265,
    "max_position_embeddings": 1024,
    "encoder_layers": 12,
    "encoder_ffn_dim": 4096,
    "encoder_attention_heads": 16,
    "decoder_layers": 12,
    "decoder_ffn_dim": 4096,
    "decoder_attention_heads": 16,
    "activation_function": "gelu",
    "d_model": 1024,
    "dropout": 0.1,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "classifier_dropout": 0.0,
    "scale_embedding": False,
    "pad_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
    "tie_word_embeddings": True,
}


def sizes(c: Config) -> list[str]:
    """Overrides for the sizes that BART and its kin name alike."""
    values = {
        "dim": c["d_model"],
        "n_layers": c["encoder_layers"] + c["decoder_layers"],
        "n_heads": c["encoder_attention_heads"],
        "ffn_dim": c["encoder_ffn_dim"],
        "max_positions": c["max_position_embeddings"],
        "vocab_size": c["vocab_size"],
        "tie_embeddings": c["tie_word_embeddings"],
        "dropout": c["dropout"],
        "attention.dropout": c["attention_dropout"],
        "ffn.dropout": c["activation_dropout"],
    }
    of_decoder = {"n_heads": c["decoder_attention_heads"], "ffn_dim": c["decoder_ffn_dim"]}
    # Both stacks read one table where config.json says tied, whether or not the file has a head of its own.
    shared = {} if c.get(STATED, c["tie_word_embeddings"]) == c["tie_word_embeddings"] else {"shared_embedding": True}
    return [
        f"ffn={activation(c, 'activation_function', ACTIVATIONS, 'gelu')}",
        *settings("model", values),
        *settings("stacks.encoder", {"n_layers": c["encoder_layers"]}),
        *settings("stacks.decoder", {"n_layers": c["decoder_layers"], **shared}),
        *settings("stacks.decoder", {k: v for k, v in of_decoder.items() if v != values[k]}),
    ]


def wired(c: Config, before: bool) -> None:
    """Keys of older files that say how a family is wired: the reference takes no other. before: norms before sublayers."""
    expect(c, "is_decoder", False, default=False)
    expect(c, "normalize_before", before, default=before)
    expect(c, "add_final_layer_norm", before, default=before)
    expect(c, "static_position_embeddings", before, default=before)
    expect(c, "normalize_embedding", not before, default=not before)
    expect(c, "extra_pos_embeddings", 1 if before else 2, default=1 if before else 2)


def read(c: Config) -> list[str]:
    wired(c, before=False)
    return ["model=bart", *sizes(c), *settings("embedding", {"scale": True} if c["scale_embedding"] else {})]


def base(spec: ModelSpec) -> Config:
    """The reverse of `sizes`."""
    s = spec.sizes
    out: Config = {
        "d_model": s.dim,
        "vocab_size": s.vocab_size,
        "max_position_embeddings": s.max_positions,
        "activation_function": act_name(spec.stacks[0].layers[0].parts["ffn"].name, "gelu"),
        "tie_word_embeddings": s.tie_embeddings,
        "dropout": s.dropout,
        "attention_dropout": s.attention.dropout,
        "activation_dropout": s.ffn.dropout,
        "is_encoder_decoder": True,
    }
    for stack in spec.stacks:
        out[f"{stack.name}_layers"] = len(stack.layers)
        out[f"{stack.name}_attention_heads"] = stack.sizes.n_heads
        out[f"{stack.name}_ffn_dim"] = stack.sizes.ffn_dim
    return out


def write(spec: ModelSpec) -> Config:
    out = {"model_type": "bart", **base(spec)}
    out["scale_embedding"] = spec.stacks[0].embedding.options.get("scale", False)
    if (head := spec.heads.get("classes")) is not None:
        # Written out: BartConfig has three labels, MNLI's, where a file does not say how many.
        out["id2label"] = {str(i): f"LABEL_{i}" for i in range(head.options["n_classes"])}
        out["eos_token_id"] = head.options["only"]
        out["classifier_dropout"] = spec.sizes.dropout if head.options["dropout"] is None else head.options["dropout"]
    return out


def classes(c: Config) -> dict[str, PartSpec]:
    """The head for classes, which reads the decoder's state at the last eos of the source."""
    # BartForSequenceClassification: hidden_states[input_ids.eq(eos_token_id)], the last of each text.
    own = {"pool": "last", "only": c["eos_token_id"], "dropout": float(c["classifier_dropout"]), "input_dropout": True}
    return {"classes": part("head", "pooled", n_classes=n_labels(c, 3), **own)}


def begin(c: Config) -> int:
    return c["decoder_start_token_id"]


GENERATION = Head(
    lambda c: {"tokens": part("head", "lm", fixed_bias=True)},
    {"logits": "head:tokens", "encoder_last_hidden_state": "source"},
    # BartModel makes decoder_input_ids of input_ids where none are given, shifted
    # right; T5's and Pegasus' classes do not.
    begin=begin,
)
SOURCE = {"encoder_last_hidden_state": "source"}
ENTRIES = [
    Entry(
        model_types=("bart",),
        families=("bart",),
        read=read,
        write=write,
        defaults=DEFAULTS,
        rules=RULES,
        architectures={
            "BartForConditionalGeneration": GENERATION,
            "BartModel": Head(lambda c: {}, {"last_hidden_state": "hidden", **SOURCE}, prefix="", begin=begin),
            "BartForSequenceClassification": Head(classes, {"logits": "head:classes", **SOURCE}, begin=begin),
            "BartForQuestionAnswering": Head(
                lambda c: {"span": part("head", "span")},
                {"start_logits": "head:span:0", "end_logits": "head:span:1", **SOURCE},
                begin=begin,
            ),
        },
        prefix="model.",
        # `_keys_to_ignore_on_load_missing` in the class: a file of BartModel lacks it.
        optional=("heads.tokens.fixed_bias",),
        ignore=(r"^(model\.)?(encoder|decoder)\.version$", r"^final_logits_bias$"),
        head_key="lm_head.weight",
        embed_key="model.shared.weight",
    )
]
