"""XLNet; with attn_type uni its segments look back, as Transformer-XL's do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from llmlab import attributes
from llmlab.config.spec import ModelSpec, PartSpec
from llmlab.hub.entry import (
    LABELS,
    SPAN,
    Config,
    Entry,
    Head,
    activation,
    check_heads,
    expect,
    n_labels,
    part,
    settings,
)
from llmlab.hub.outputs import Argument, Loaded, Outputs, tensors
from llmlab.hub.rules import folded, linear, same
from llmlab.memory import Memory

OURS, THEIRS = "stacks.main.layers.{i}.", "transformer.layer.{i}."
POSITION, ATTENTION = "stacks.main.positions.{i}.", THEIRS + "rel_attn."
ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "relu": "relu", "silu": "silu"}
# XLNet's projections are (dim, heads, head_dim) tensors for einsum, not linears.
HEADS = ("dim", "n_heads", -1)

RULES = [
    same("stacks.main.embedding.table.weight", "transformer.word_embedding.weight"),
    # The one vector that all queries of the second stream begin with, (1, 1, D) for broadcasting (XLNetModel.mask_emb).
    folded("stacks.main.embedding.query.weight", "transformer.mask_emb", (1, 1, -1)),
    *(folded(OURS + f"attention.{n}.weight", ATTENTION + n, HEADS, transpose=True) for n in "qkv"),
    # Not transposed: `o` is (dim, heads, head_dim), and einsum "ibnd,hnd->ibh" reads it as a linear's (out, in).
    folded(OURS + "attention.out.weight", ATTENTION + "o", HEADS),
    folded(POSITION + "project.weight", ATTENTION + "r", HEADS, transpose=True),
    # Learnt biases of the query, one each for content (w), distance (r) and segment
    # (s); each layer has its own (untie_r).
    same(POSITION + "content_bias", ATTENTION + "r_w_bias"),
    same(POSITION + "position_bias", ATTENTION + "r_r_bias"),
    same(POSITION + "segment_bias", ATTENTION + "r_s_bias"),
    folded(POSITION + "segments.weight", ATTENTION + "seg_embed", (2, "n_heads", -1)),
    *linear(OURS + "block.attention_norm", ATTENTION + "layer_norm"),
    *linear(OURS + "ffn.up", THEIRS + "ff.layer_1"),
    *linear(OURS + "ffn.down", THEIRS + "ff.layer_2"),
    *linear(OURS + "block.ffn_norm", THEIRS + "ff.layer_norm"),
    same("heads.tokens.bias", "lm_loss.bias"),
    same("heads.tokens.out.weight", "lm_loss.weight"),
    *linear("heads.classes.dense", "sequence_summary.summary"),
    *linear("heads.classes.out", "logits_proj"),
    *linear("heads.labels.out", "classifier"),
    *linear("heads.span.out", "qa_outputs"),
]
DEFAULTS: Config = {
    "vocab_size": 32000,
    "d_model": 1024,
    "n_layer": 24,
    "n_head": 16,
    "d_inner": 4096,
    "ff_activation": "gelu",
    "attn_type": "bi",
    "layer_norm_eps": 1e-12,
    "dropout": 0.1,
    # XLNetConfig's; the published files say null, which keeps all of the past.
    "mem_len": 512,
    "reuse_len": None,
    "use_mems_eval": True,
    "use_mems_train": False,
    "bi_data": False,
    "same_length": False,
    "tie_word_embeddings": True,
}


def read(c: Config) -> list[str]:
    dropout = c["dropout"]
    values = {
        "dim": c["d_model"],
        "n_layers": c["n_layer"],
        "n_heads": c["n_head"],
        "head_dim": c.get("d_head") or c["d_model"] // c["n_head"],
        "ffn_dim": c["d_inner"],
        "vocab_size": c["vocab_size"],
        "norm_eps": c["layer_norm_eps"],
        "tie_embeddings": c["tie_word_embeddings"],
        # One key for all: embedding, probabilities, residuals, and between the feed-forward's two linears.
        "dropout": dropout,
        "attention.dropout": dropout,
        "ffn.dropout": dropout,
    }
    clamp = c.get("clamp_len") or -1
    return [
        "model=xlnet",
        f"ffn={activation(c, 'ff_activation', ACTIVATIONS, 'gelu')}",
        # A checkpoint has no order of its own: its text is read both ways, or back only.
        "objective=" + {"bi": "mlm", "uni": "clm"}[str(expect(c, "attn_type", "bi", "uni", default="bi"))],
        *settings("model", values),
        *settings("position", {"clamp": clamp if clamp > 0 else None, "both_ways": c["bi_data"]}),
    ]


def write(spec: ModelSpec) -> Config:
    check_heads(spec, exactly=True)
    s, parts = spec.sizes, spec.stacks[0].layers[0].parts
    names = {ours: theirs for theirs, ours in ACTIVATIONS.items()}
    position = parts["position"].options
    return {
        "model_type": "xlnet",
        "d_model": s.dim,
        "n_layer": s.n_layers,
        "n_head": s.n_heads,
        "d_head": s.head_dim,
        "d_inner": s.ffn_dim,
        "vocab_size": s.vocab_size,
        "ff_activation": names.get(parts["ffn"].name, "gelu"),
        "layer_norm_eps": s.norm_eps,
        "tie_word_embeddings": s.tie_embeddings,
        "dropout": s.dropout,
        "attn_type": "uni" if s.causal else "bi",
        "bi_data": position.get("both_ways", False),
        "clamp_len": position.get("clamp") or -1,
        # Null for both, so that a reader keeps all; 512 of the class would cut a longer memory.
        "mem_len": None,
        "reuse_len": None,
    }


# ---------------------------------------------------------------- the reference's arguments

MASKS = ("attention_mask", "input_mask", "perm_mask")
ARGUMENTS = ("input_ids", *MASKS, "target_mapping", "token_type_ids", "mems", "use_mems")


def call(model: Loaded, arguments: Mapping[str, Argument]) -> Outputs:
    """L tokens, of which P are asked for (`target_mapping`), behind a memory of M: [text; queries] in one pass.

    A query sees what its token sees, the token itself included where `perm_mask` does not hide it. Where that is nothing it
    reads the mean of all tokens, as in the reference, the answer among them. `mems.N` is the N-th of `mems`.
    """
    layers = {
        int(name[5:]): x
        for name, x in arguments.items()
        if name.startswith("mems.") and name[5:].isdigit() and isinstance(x, Tensor)
    }
    others = {name: x for name, x in arguments.items() if x is not None and not name.startswith("mems.")}
    if unknown := [name for name in others if name not in ARGUMENTS]:
        raise TypeError(f"{unknown[0]} is not an argument of this model; there are {', '.join(ARGUMENTS)}")
    given = tensors({name: x for name, x in others.items() if name not in ("mems", "use_mems")})
    mems = others.get("mems") or [layers[i] for i in sorted(layers)]
    assert isinstance(mems, Sequence)
    config = {**DEFAULTS, **model.config}
    ids_BL = given["input_ids"]
    size, length = ids_BL.shape
    # The reference keeps time first, (M, B, D), in `mems` as inside the model.
    before = [x.transpose(0, 1) for x in mems if isinstance(x, Tensor)]
    # 0 and null mean "all" for mem_len, and for reuse_len (cache_mem).
    memory = Memory(config["mem_len"] or None, min(config["reuse_len"] or length, length), before)

    batch: dict[str, Tensor] = {"ids": ids_BL}
    if "token_type_ids" in given:
        batch["segments"] = given["token_type_ids"]
    seen_BLS = _seen(given, config, memory.length)
    heads: dict[str, Tensor | None] | None = None
    if "target_mapping" in given:
        if any(not attributes.get(head, "head", "per_token") for head in model.model.heads.values()):
            raise TypeError("target_mapping: this class gives one answer a text")
        batch = _asking(batch, given["target_mapping"], seen_BLS, memory.length)
        heads = dict.fromkeys(model.model.heads, batch["queries"])
    elif given.keys() & MASKS or config["attn_type"] == "uni":
        # In the content stream a token sees itself whatever a mask says: the reference
        # subtracts the identity (non_tgt_mask).
        batch["allowed"] = seen_BLS | _itself(seen_BLS)
    out = model.model(batch, heads=heads, memory=memory)
    if heads is not None:
        asked = {role: x.unflatten(0, (size, -1)) for role, x in out.heads.items()}
        out = out._replace(hidden=out.hidden[:, length:], heads=asked)
    said = model.answer(out)
    if others.get("use_mems", config["use_mems_train" if model.model.training else "use_mems_eval"]):
        said["mems"] = tuple(x.transpose(0, 1) for x in memory.layers)
    return said


def _seen(given: Mapping[str, Tensor], config: Config, before: int) -> Tensor:
    """(B, L, M + L) bool: what each token sees. Masks may hide it from itself."""
    if "attention_mask" in given and "input_mask" in given:
        raise TypeError("input_mask is the opposite of attention_mask; give one of them")
    size, length = given["input_ids"].shape
    # No mask of a caller hides the memory: XLNetModel.forward puts zeros before them (mems_mask).
    hidden = given["input_ids"].new_zeros(size, length, before + length, dtype=torch.bool)
    if "attention_mask" in given:
        hidden[..., before:] |= given["attention_mask"][:, None] < 1
    if "input_mask" in given:
        hidden[..., before:] |= given["input_mask"][:, None] > 0
    if "perm_mask" in given:
        hidden[..., before:] |= given["perm_mask"] > 0
    if config["attn_type"] == "uni":
        hidden |= torch.ones_like(hidden[0]).triu(before + 1)
        if config["same_length"]:  # no farther back than the memory reaches
            hidden |= torch.ones_like(hidden[0]).tril(-1)
    return ~hidden


def _itself(seen_BLS: Tensor) -> Tensor:
    """(L, M + L) bool: whether the key is the token itself."""
    length, keys = seen_BLS.shape[1:]
    return torch.ones_like(seen_BLS[0]).triu(keys - length).tril(keys - length)


def _asking(batch: dict[str, Tensor], mapping_BPL: Tensor, seen_BLS: Tensor, before: int) -> dict[str, Tensor]:
    """The batch with P queries behind its text. A row of the mapping without a 1 asks for nothing."""
    # The reference multiplies by the mapping, so that a row could mix tokens; only
    # choices are a question about one token.
    ones = mapping_BPL == 1
    if not (ones | (mapping_BPL == 0)).all() or (ones.sum(1) > 1).any() or (ones.sum(2) > 1).any():
        raise ValueError("target_mapping must have one 1 in a row, and ask for a token once")
    where_BP, some_BP = ones.int().argmax(-1), ones.any(-1)
    (size, asked), length = where_BP.shape, mapping_BPL.shape[-1]
    sample = torch.arange(size, device=where_BP.device)[:, None]
    positions_BL = torch.arange(length, device=where_BP.device).expand(size, -1)
    of_queries = seen_BLS[sample, where_BP]
    nothing_BP = ~of_queries.any(-1)
    # -1e30 on every score leaves them equal to the softmax in float32: the reference's mean over all keys.
    of_queries = (of_queries | nothing_BP[..., None]) & some_BP[..., None]
    rows = torch.cat([seen_BLS | _itself(seen_BLS), of_queries], 1)
    out = {
        # Id 0 stands for no token: the embedding puts mask_emb in a query's place.
        "ids": torch.cat([batch["ids"], torch.zeros_like(where_BP)], 1),
        "positions": torch.cat([positions_BL + before, torch.where(nothing_BP, -1, where_BP + before)], 1),
        "queries": torch.cat([torch.zeros_like(batch["ids"], dtype=torch.bool), torch.ones_like(some_BP)], 1),
        # No one sees a query: keys and values are of the content stream alone (h, never g).
        "allowed": torch.cat([rows, torch.zeros_like(rows[..., :1]).expand(-1, -1, asked)], -1),
    }
    if "segments" in batch:
        out["segments"] = torch.cat([batch["segments"], batch["segments"][sample, where_BP]], 1)
    return out


def _lm(c: Config) -> dict[str, PartSpec]:
    return {"tokens": part("head", "lm", bias=True)}


# Without a cls_index, which our inputs have none of, "cls_index" reads the last position too (XLNetSequenceSummary).
POOLS = {"last": "end", "cls_index": "end", "first": "first", "mean": "mean"}


def _summary(c: Config) -> dict[str, PartSpec]:
    pool = POOLS[expect(c, "summary_type", *POOLS, default="last")]
    projects = c.get("summary_use_proj", True)
    act = expect(c, "summary_activation", *(("tanh",) if projects else (None, "")), default="tanh") or "none"
    dropout = float(c.get("summary_last_dropout", 0.1))
    return {"classes": part("head", "pooled", n_classes=n_labels(c), pool=pool, act=act, dropout=dropout)}


ARCHITECTURES = {
    "XLNetLMHeadModel": Head(_lm, {"logits": "head:tokens"}),
    "XLNetModel": Head(lambda c: {}, {"last_hidden_state": "hidden"}, prefix=""),
    "XLNetForSequenceClassification": Head(_summary, {"logits": "head:classes"}),
    "XLNetForTokenClassification": LABELS,
    "XLNetForQuestionAnsweringSimple": SPAN,
}
ENTRIES = [
    Entry(
        model_types=("xlnet",),
        families=("xlnet",),
        read=read,
        write=write,
        looks_by="mlm",
        defaults=DEFAULTS,
        rules=RULES,
        architectures={name: replace(head, call=call) for name, head in ARCHITECTURES.items()},
        prefix="transformer.",
        head_key="lm_loss.weight",
        embed_key="transformer.word_embedding.weight",
        ignore=(r"^lm_loss\.",),
    )
]
