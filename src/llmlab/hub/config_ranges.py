"""Numbers of config.json: a kind and a range for every key that a family reads, and the kinds of the rest."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from llmlab.errors import UserError
from llmlab.json_files import short_repr
from llmlab.sizes import MOST_LAYERS

# Sizes and ids beyond it fit no tensor that a machine has.
MOST = (1 << 31) - 1
OVER: Literal["over"] = "over"


@dataclass(frozen=True)
class Number:
    """A range from `low` to `high`, both included, but `low` if `end` is "over". whole: 64, not 64.0 or true."""

    low: float
    high: float
    end: Literal["from", "over"] = "from"
    whole: bool = False

    def of(self, key: str, value: object) -> Any:
        """The value, a float unless `whole`. UserError if it is none of these numbers."""
        if not self.holds(value):
            most = f" to {MOST:,}" if self.high == MOST and isinstance(value, int | float) and value > MOST else ""
            raise UserError(f"config.json: {key}={short_repr(value)} must be {self}{most}")
        assert isinstance(value, int | float)
        return value if self.whole else float(value)

    def holds(self, value: object) -> bool:
        # bool is a subclass of int in Python: true would be 1.
        if isinstance(value, bool) or not isinstance(value, int if self.whole else (int, float)):
            return False
        # NaN fails both comparisons and infinity the second; Python's json reads both from a file.
        return self.low <= value <= self.high and (self.end == "from" or value > self.low)

    def __str__(self) -> str:
        kind = "a whole number" if self.whole else "a number"
        low = f"over {self.low:g}" if self.end == OVER else f"from {self.low:g}"
        return f"{kind} {low}" if self.high == MOST else f"{kind} {low} to {self.high:,g}"


COUNT = Number(1, MOST, whole=True)
LAYERS = Number(1, MOST_LAYERS, whole=True)
FROM_0 = Number(0, MOST, whole=True)
AMOUNT = Number(0.0, 1e6, OVER)
THETA = Number(0.0, 1e12, OVER)
SHARE = Number(0.0, 1.0, OVER)
TOKEN = Number(0, MOST, whole=True)
PADDING = Number(-1, MOST, whole=True)  # the first LLaMA's files say -1 for "none"

RULES: tuple[tuple[str, Number], ...] = (  # the first whose pattern matches all of a key; null is left to who reads it
    (r"pad_token_id", PADDING),
    (r".*_token_id", TOKEN),
    (r"max_window_layers|first_k_dense_replace", FROM_0),
    (r"num_(hidden_|decoder_)?layers|n_layers?|(en|de)coder_layers|num_hidden_groups|inner_group_num", LAYERS),
    (r".*drop(out)?(_prob|_rate)?|.*_pdrop", Number(0.0, 1.0)),
    (r"(.*_)?eps(ilon)?", Number(0.0, 1.0)),
    (r".*rope_theta|rope_local_base_freq|rotary_emb_base", THETA),
    (r"partial_rotary_factor|rotary_pct", SHARE),
    (r".*softcapping|clip_qkv|query_pre_attn_scalar", Number(0.0, 1e9, OVER)),
    (r"routed_scaling_factor|router_(aux_loss_coef|jitter_noise)|z_loss_weight", Number(0.0, 1e6)),
    (r"type_vocab_size|n_shared_experts|shared_expert_intermediate_size|qk_nope_head_dim|conv_kernel_size", FROM_0),
    (r"mem_len|reuse_len", FROM_0),
    # -1 means none in DeBERTa's and XLNet's files.
    (r"max_relative_positions|position_buckets|clamp_len", Number(-1, MOST, whole=True)),
    (r"(hidden|embedding|intermediate|\w+_intermediate|inner_hidden|ffn_hidden|vocab|padded_vocab)_size", COUNT),
    (r"d_(model|kv|ff|head|inner)|n_embe?d?|n_inner|dim|\w*head_dim|head_size|attention_head_size", COUNT),
    (r"(\w*ffn|hidden|word_embed_proj)_dim|kv_channels|\w+_lora_rank", COUNT),
    (r"(num_|encoder_|decoder_)?(attention_|key_value_|kv_)?heads|n_heads?|multi_query_group_num", COUNT),
    (r"(n_routed|num|num_local)_experts|num_experts_per_tok|n_group|topk_group", COUNT),
    (r"decoder_sparse_step|moe_layer_freq|global_attn_every_n_layers|_?sliding_window_pattern", COUNT),
    (r"\w*max_position_embeddings|n_positions|max_seq_len|max_sequence_length|seq_length|model_max_length", COUNT),
    (r"sliding_window|window_size|relative_attention_(num_buckets|max_distance)", COUNT),
    (r"num_labels", COUNT),
    # Halved on either side: 1 would leave a window of the token alone.
    (r"local_attention", Number(2, MOST, whole=True)),
)
NESTED: Mapping[str, Any] = {"rope_parameters": {}, "rope_scaling": {}, "layer_types": [], "id2label": {}}


def number(key: str) -> Number | None:
    """The numbers that a key may have; None for any other key."""
    return next((rule for pattern, rule in RULES if re.fullmatch(pattern, key)), None)


def check(config: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """UserError for a value of another kind than the family's default, or that can't be meant."""
    for key, value in config.items():
        rule = number(key)
        if (
            key == "sliding_window"
            and value == 0
            and config.get("use_sliding_window", defaults.get("use_sliding_window")) is False
        ):
            # As the reference writes a window that is not used (Qwen2MoeConfig: 0).
            continue
        if key in defaults or key in NESTED or rule is not None:
            _check(key, value, rule, defaults.get(key, NESTED.get(key)))


def _check(key: str, value: object, rule: Number | None, default: object) -> None:
    if value is None:  # of true or false null is neither; else the reader says what it means
        if isinstance(default, bool):
            raise UserError(f"config.json: {key}=null must be true or false")
        return
    if rule is not None:
        # The only key that may be a list: Llama 3.1's instruction models and GLM-4 end at any of three ids.
        for one in value if key == "eos_token_id" and isinstance(value, list) else [value]:
            rule.of(key, one)
    elif default is not None:
        # JSON has 1 for 1.0 where a writer drops the fraction.
        kinds = (int, float) if isinstance(default, float) else (type(default),)
        if not isinstance(value, kinds) or (isinstance(value, bool) and not isinstance(default, bool)):
            raise UserError(f"config.json: {key}={short_repr(value)} must be like {short_repr(default)}")
