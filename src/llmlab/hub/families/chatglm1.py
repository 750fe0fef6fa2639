"""ChatGLM-6B in its authors' files, which say model_type chatglm as those of ChatGLM2 do: the entry is there."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from llmlab.config.spec import ModelSpec
from llmlab.hub.entry import Config, expect, settings
from llmlab.hub.outputs import Argument, Loaded, Outputs, tensors
from llmlab.hub.rules import grouped, linear, same

OURS, THEIRS = "stacks.main.layers.{i}.", "transformer.layers.{i}."
RULES = [
    same("stacks.main.embedding.table.weight", "transformer.word_embeddings.weight"),
    *linear("stacks.main.norm", "transformer.final_layernorm"),
    same("heads.tokens.out.weight", "lm_head.weight"),
    *linear(OURS + "block.attention_norm", THEIRS + "input_layernorm"),
    *linear(OURS + "block.ffn_norm", THEIRS + "post_attention_layernorm"),
    # Head by head, (heads, 3, head_dim), as Megatron-LM lays them out; ChatGLM2 has all queries first.
    *grouped([OURS + f"attention.{n}" for n in "qkv"], THEIRS + "attention.query_key_value"),
    *linear(OURS + "attention.out", THEIRS + "attention.dense"),
    *linear(OURS + "ffn.up", THEIRS + "mlp.dense_h_to_4h"),
    *linear(OURS + "ffn.down", THEIRS + "mlp.dense_4h_to_h"),
]
DEFAULTS: Config = {
    "vocab_size": 150528,
    "inner_hidden_size": None,
    "max_sequence_length": 2048,
    "position_encoding_2d": None,
    # The ids of ChatGLM-6B's first release; files of the smaller vocabulary count from 130,000 on.
    "bos_token_id": 150004,
    "mask_token_id": 150000,
    "gmask_token_id": 150001,
}


def first(c: Config) -> bool:
    """True for a config.json of the first ChatGLM."""
    return c.get("inner_hidden_size") is not None or c.get("position_encoding_2d") is not None


def read(c: Config) -> list[str]:
    """Its prefix comes with each text, so what reads it looks both ways; see `call`."""
    expect(
        {"position_encoding_2d": True, **{k: v for k, v in c.items() if v is not None}}, "position_encoding_2d", True
    )
    expect(c, "pre_seq_len", None)
    # The 4 and 8 bit versions hold whole numbers and scales in the weights' stead.
    expect(c, "quantization_bit", 0, default=0)
    values = {
        "dim": c["hidden_size"],
        "n_layers": c["num_layers"],
        "n_heads": c["num_attention_heads"],
        "ffn_dim": c["inner_hidden_size"] or 4 * c["hidden_size"],
        "max_positions": c["max_sequence_length"],
        "vocab_size": c["vocab_size"],
        "norm_eps": c["layernorm_epsilon"],
        "tie_embeddings": c["tie_word_embeddings"],
    }
    return ["model=chatglm1", "objective=mlm", *settings("model", values)]


def write(spec: ModelSpec) -> Config:
    s = spec.sizes
    return {
        "model_type": "chatglm",
        "hidden_size": s.dim,
        "num_layers": s.n_layers,
        "num_attention_heads": s.n_heads,
        "inner_hidden_size": s.ffn_dim,
        "max_sequence_length": s.max_positions,
        "vocab_size": s.vocab_size,
        "layernorm_epsilon": s.norm_eps,
        "tie_word_embeddings": s.tie_embeddings,
        "position_encoding_2d": True,
    }


def call(model: Loaded, arguments: Mapping[str, Argument]) -> Outputs | None:
    """`attention_mask` (B, 1, T, T) is 1 where a token is hidden, `position_ids` (B, 2, T) are pairs. Without them a text is
    seen both ways up to the start token, and what follows is a block that stands at its mask token.

    None for a later ChatGLM.
    """
    config = {**DEFAULTS, **model.config}
    if not first(model.config):
        return None
    given = tensors(arguments)
    if unknown := given.keys() - {"input_ids", "attention_mask", "position_ids"}:
        raise TypeError(
            f"{min(unknown)} is not an argument of this model; there are input_ids, attention_mask, position_ids"
        )
    ids_BT = given["input_ids"]
    mask, positions = given.get("attention_mask"), given.get("position_ids")
    if mask is not None and mask.dim() != 4:
        raise TypeError(f"attention_mask must be (B, 1, T, T), 1 where a token is hidden, but is {tuple(mask.shape)}")
    where = torch.arange(ids_BT.shape[1], device=ids_BT.device)
    if mask is None or positions is None:
        begin_B1 = _index(ids_BT, config["bos_token_id"], "start")[:, None]
    if mask is None:
        allowed = (where <= where[:, None]) | (where < begin_B1[..., None])
    else:
        allowed = (mask[:, 0] < 1).expand(len(ids_BT), -1, -1)
    if positions is None:
        # The authors' get_position_ids looks for [gMASK], and for [MASK] where a text has none.
        holes = torch.where(
            (ids_BT == config["gmask_token_id"]).any(1), config["gmask_token_id"], config["mask_token_id"]
        )
        place_B1 = _index(ids_BT, holes[:, None], "mask")[:, None]
        # The second number counts from 1 within the block and is 0 before it; the first stands still
        # there (GLM: arXiv:2103.10360, section 2.2).
        block = (where - begin_B1 + 1).clamp(min=0)
        positions = torch.stack([torch.where(block > 0, place_B1, where), block], 1)
    return model.answer(model.model({"ids": ids_BT, "allowed": allowed, "positions": positions}))


def _index(ids_BT: Tensor, token: int | Tensor, name: str) -> Tensor:
    found = ids_BT == token
    if not found.any(1).all():
        raise ValueError(f"input_ids: a text has no {name} token; give attention_mask and position_ids")
    return found.int().argmax(1)
