"""Limits of single values: the choices of a key, the least and the most that a number may be."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from llmlab import registry
from llmlab.config import devices
from llmlab.config.init_from import TYPED
from llmlab.sizes import MOST_LAYERS

if TYPE_CHECKING:
    from omegaconf import DictConfig

CHOICES = {
    "precision": ("32-true", "bf16-mixed", "bf16-true", "16-mixed"),
    "strategy.name": devices.STRATEGIES,
    "data.source": ("python_docs", "python_code", "arithmetic", "reasoning_gym", "files"),
    "data.split": ("document", "position"),
    "data.votes": ("majority", "label_model"),
    "tokenizer.kind": ("bpe", "char", "file"),
    "model.attention.qk_norm": ("head", "each_head", "full"),
    "logger.wandb.mode": ("auto", "online", "offline"),
    "resume_from": ("start",),
    "init_tokenizer": ("own", "new"),
}
AT_LEAST = {
    "seed": 0,
    **{f"model.{k}": 1 for k in ("dim", "n_layers", "n_heads", "n_kv_heads", "head_dim", "ffn_dim", "vocab_size")},
    **{f"model.{k}": 1 for k in ("max_positions", "moe.n_experts", "moe.per_token", "moe.ffn_dim", "moe.shared_dim")},
    **{f"model.{k}": 0 for k in ("token_types", "moe.n_shared", "moe.balance", "moe.z")},
    **{f"train.{k}": 1 for k in ("batch_size", "micro_batch_size", "checkpoint_every", "validate_every", "log_every")},
    "train.validation_batches": 1,
    # Not 1: a resume goes back to the one before where the newest is damaged.
    "train.keep": 2,
    "data.seq_len": 2,
    "data.max_documents": 1,
    "data.n_records": 2,
    "data.num_workers": 0,
    # 256 bytes, and the token that ends a document.
    "tokenizer.vocab_size": 257,
    "budget.steps": 1,
    "logger.samples": 0,
    "logger.tensorboard.flush_seconds": 1,
    "strategy.tensor_parallel": 1,
}
POSITIVE: tuple[str, ...] = (
    "model.norm_eps",
    "model.attention.scale",
    "model.attention.softcap",
    "model.attention.clip_qkv",
)
POSITIVE += ("model.logit_softcap", "train.clip", "budget.tokens", "budget.flops", "budget.minutes", "optimizer.lr")
POSITIVE += ("data.validation", "train.stop_kl")
MOST, MOST_FLOAT, MOST_SEED = 10**15, 10**30, 2**63 - 1
SHARES = ("model.dropout", "model.attention.dropout", "model.ffn.dropout")


def problems(cfg: DictConfig) -> list[str]:
    from omegaconf import OmegaConf

    lines = []

    def value(key: str) -> Any:
        # None for a path under a node that is null, as of a part without that option.
        return OmegaConf.select(cfg, key)

    chosen = [(k, value(k), valid) for k, valid in CHOICES.items() if value(k) is not None]
    lines += [not_among(TYPED.get(k, k), v, valid) for k, v, valid in chosen if v not in valid]
    lines += [f"{k} must be more than 0, but is {value(k)}" for k in POSITIVE if value(k) is not None and value(k) <= 0]
    if cfg.data.validation >= 1:
        lines.append(f"data.validation must be less than 1, but is {cfg.data.validation}")
    lines += [f"{k} must be at least 0 and less than 1, but is {value(k)}" for k in SHARES if not 0 <= value(k) < 1]
    lines += [
        f"{slot}: one is needed; choose {slot}=NAME ({', '.join(registry.names(slot))})"
        # `attention=null` in a file composes: every slot's field is Optional.
        for slot in registry.SLOTS_NEEDED
        if cfg.get(slot) is None
    ]
    return lines


def too_small(cfg: DictConfig) -> list[str]:
    from omegaconf import OmegaConf
    from omegaconf.errors import InterpolationResolutionError

    lines = []
    for key, least in AT_LEAST.items():
        if key == "tokenizer.vocab_size" and cfg.tokenizer.kind != "bpe":
            continue
        try:
            value = OmegaConf.select(cfg, key)
        # It follows from another value that is wrong, and has a line of its own.
        except InterpolationResolutionError:
            continue
        if value is not None and value < least:
            lines.append(f"{key} must be at least {least}, but is {value}")
    return lines


def largest(where: str, value: object) -> int | None:
    """The limit that a number, or one in a list, goes beyond, or None. Tensors count in 64 bits, Python without end."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return next((most for v in value if (most := largest(where, v)) is not None), None)
    # A bool is an int to Python.
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    most = MOST_LAYERS if where.endswith(".n_layers") else MOST_SEED if where.endswith("seed") else MOST
    most = MOST_FLOAT if isinstance(value, float) else most
    return most if abs(value) > most else None


def shortened(value: object) -> str:
    text = str(value)
    # Python's ints have no end, and this one was too large.
    return text if len(text) < 40 else f"{text[:20]}... ({len(text)} characters)"


def not_among(where: str, value: object, valid: Sequence[object]) -> str:
    # difflib compares texts alone.
    close = difflib.get_close_matches(str(value), [str(v) for v in valid], 1, 0.5)
    hint = f"; did you mean {close[0]}?" if close else ""
    return f"{where} must be one of {', '.join(map(str, valid))}, but is {value}{hint}"
