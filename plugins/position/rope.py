"""Rotary positions, and how they are stretched to longer texts."""

import math
from dataclasses import fields
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from llmlab.registry import register
from llmlab.sizes import Sizes
from llmlab.slots import Context, Position, Term
from llmlab_plugins.position._scaling import SCALINGS
from llmlab_plugins.position.absolute import Absolute, begins


@register("position", "rope")
class Rope(Absolute):
    """Rotary position embedding (Su et al. 2021, arXiv:2104.09864): pair i is turned by position theta^(-2i/R).

    R = fraction of the rotary width, the first dims of a head; the rest is left alone. Pairs are (i, i + R/2), or
    (2i, 2i + 1) if interleaved. An odd R leaves its frequencies as they are and takes one dim more to turn (GPT-NeoX).
    Angles in float32, then cast.

    `scaling` says how texts longer than `original_max` are turned: each way is a value of `_scaling.py`, with its paper.
    """

    # Where the text's length counts, 16 is more than the tokens of `llmlab check`'s models: once a text is longer, a cache
    # can't give what the whole text gives, since all layers have turned earlier tokens by a shorter length.
    telling: ClassVar[tuple[dict[str, object], ...]] = (
        {"theta": 100.0},
        {"fraction": 0.5, "interleaved": True},
        {"scaling": "linear", "factor": 4.0},
        {"scaling": "dynamic", "factor": 2.0, "original_max": 16},
        {"scaling": "dynamic_steps", "original_max": 16},
        {"scaling": "llama3", "factor": 8.0, "original_max": 32, "theta": 100.0},
        {"scaling": "llama3", "factor": 8.0, "original_max": 32, "low_freq_factor": 0.3, "high_freq_factor": 2.0},
        {"scaling": "yarn", "factor": 4.0, "original_max": 32, "theta": 100.0, "beta_fast": 4.0, "beta_slow": 0.3},
        {"scaling": "yarn", "factor": 4.0, "original_max": 40, "theta": 100.0, "beta_fast": 3.0, "truncate": False},
        {"scaling": "yarn", "factor": 4.0, "original_max": 16, "theta": 100.0, "attention_factor": 0.7},
        {"scaling": "yarn", "factor": 4.0, "original_max": 16, "theta": 100.0, "mscale": 0.7, "mscale_all_dim": 1.2},
        {
            "scaling": "longrope", "factor": 4.0, "original_max": 16,
            "short_factor": [1.0, 1.1, 1.5, 2.0], "long_factor": [1.2, 2.0, 3.0, 7.5],
        },
        {"log_n": True, "original_max": 8},
    )  # fmt: skip

    def __init__(
        self,
        sizes: Sizes,
        /,
        *,
        theta: float = 10000.0,  # base of the wavelengths
        interleaved: bool = False,  # pairs are neighbours, not half a width apart
        fraction: float = 1.0,  # share of a head that is rotated, from its first dim on
        scaling: Literal[
            "none", "linear", "dynamic", "dynamic_steps", "llama3", "yarn", "longrope"
        ] = "none",  # how it is stretched to longer texts
        factor: float = 1.0,  # by which it is stretched
        log_n: bool = False,  # the i-th query's rotary width times log(i) to the base original_max, where i is over it
        original_max: int | None = None,  # positions before stretching; None: model.max_positions
        low_freq_factor: float = 1.0,  # llama3: turns in original_max under which a pair is stretched
        high_freq_factor: float = 4.0,  # llama3: turns over which it is left alone
        beta_fast: float = 32.0,  # yarn: turns in original_max over which a pair is left alone
        beta_slow: float = 1.0,  # yarn: turns under which it is stretched
        truncate: bool = True,  # yarn: the ramp between them begins and ends at whole pairs
        attention_factor: float | None = None,  # yarn, longrope: on cos and sin; None: see mscale, and above
        mscale: float
        | None = None,  # yarn: 0.1 m ln factor + 1 over that of mscale_all_dim, if both are given; else m = 1
        mscale_all_dim: float | None = None,  # yarn: see mscale
        short_factor: list[float] | None = None,  # longrope: a divisor for each pair, up to original_max positions
        long_factor: list[float] | None = None,  # longrope: the same for longer texts
    ):
        super().__init__()
        _check(theta=theta, factor=factor, beta_fast=beta_fast, beta_slow=beta_slow, original_max=original_max)
        _check(low_freq_factor=low_freq_factor, high_freq_factor=high_freq_factor, attention_factor=attention_factor)
        if low_freq_factor >= high_freq_factor or beta_slow >= beta_fast:
            low, high = ("low_freq_factor", "high_freq_factor") if beta_slow < beta_fast else ("beta_slow", "beta_fast")
            raise ValueError(f"position.{low} must be less than position.{high}")
        # Truncated, as transformers' int(head_dim * partial_rotary_factor).
        self.dims = int(sizes.rotary_dim * fraction)
        # arange(0, dim, 2) of an odd dim has (dim + 1) / 2 entries, so that GPT-NeoX turns one dim more.
        self.width = self.dims + self.dims % 2
        if (
            not 0 < fraction <= 1
            or self.dims < 1
            or self.width > sizes.rotary_dim
            or (self.dims % 2 and scaling == "yarn")
        ):
            raise ValueError(
                f"position=rope turns pairs, but position.fraction={fraction} of a head of {sizes.rotary_dim} "
                f"makes {self.dims} dims; choose a fraction up to 1 that makes an even number"
            )
        self.interleaved, self.log_n = interleaved, log_n
        kind = SCALINGS[scaling]
        self.original_max = original_max or (sizes.max_positions if log_n or kind.from_original else 0)
        if self.original_max < 2 and (log_n or scaling == "longrope"):
            raise ValueError(
                f"position.original_max={self.original_max} must be at least 2: its logarithm is a divisor"
            )
        given = {
            "theta": theta,
            "dims": self.dims,
            "width": self.width,
            "factor": factor,
            "original_max": self.original_max,
            "low_freq_factor": low_freq_factor,
            "high_freq_factor": high_freq_factor,
            "beta_fast": beta_fast,
            "beta_slow": beta_slow,
            "truncate": truncate,
            "attention_factor": attention_factor,
            "mscale": mscale,
            "mscale_all_dim": mscale_all_dim,
            "short_factor": short_factor,
            "long_factor": long_factor,
        }
        self.scaling = kind(**{f.name: given[f.name] for f in fields(kind)})  # type: ignore[arg-type]
        self.amplitude = self.scaling.amplitude
        self.caches_rotated = not kind.by_length
        self.relative = self.caches_rotated and not log_n
        self._skip_padding = self._skip_padding or not self.relative

    def ids(self, ctx: Context) -> Tensor:
        """Position ids; (B, 2, T) with the length of each token's document if frequencies depend on it.

        If scores depend on more than distances, positions begin anew with each document and don't count padding, so that a text
        gives the same alone and in a batch.
        """
        if self.caches_rotated and not self.log_n:
            return Position.ids(self, ctx)
        ids = super().ids(ctx)
        if self.caches_rotated or ctx.documents is None:
            return ids
        ids_BT = ids.expand(ctx.documents.shape)
        document_BT = begins(ctx.documents).cumsum(-1) - 1
        last_BT = torch.zeros_like(ids_BT).scatter_reduce(1, document_BT, ids_BT, "amax")
        return torch.stack([ids_BT, last_BT.gather(1, document_BT) + 1], 1)

    def frequencies(self, ids: Tensor) -> Tensor:
        """(R/2,), or where the length counts (B, 1, R/2) of each row, (B, T, R/2) of each token's document."""
        if self.caches_rotated:
            return self.scaling.frequencies(ids)
        longest = ids[:, 1] if ids.dim() == 3 else ids.amax(-1, keepdim=ids.dim() == 2) + 1
        return self.scaling.frequencies(longest[..., None])

    def prepare(self, q_ids: Tensor, k_ids: Tensor) -> Any:
        frequencies = self.frequencies(k_ids)
        q_ids, k_ids = (ids[:, 0] if ids.dim() == 3 else ids for ids in (q_ids, k_ids))
        q = self._tables(q_ids, frequencies)
        k = q if self.caches_rotated else self._tables(k_ids, frequencies)
        return (q, k, self._growth(q_ids)) if self.log_n else (q, k)

    def _growth(self, ids: Tensor) -> Tensor:
        """(T, 1) or (B, 1, T, 1)."""
        # Qwen counts positions from 1 here: log(i) to the base seq_length for i over it, else 1.
        grown = ((ids + 1).float().log() / math.log(self.original_max)).clamp(min=1)[..., None]
        return grown[:, None] if ids.dim() == 2 else grown

    def _tables(self, ids: Tensor, frequencies: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin, (T, R/2) or (B, 1, T, R/2)."""
        # bfloat16 can't tell whole numbers over 256 apart; only cos and sin are cast, as in LlamaRotaryEmbedding.
        angles = ids[..., None].float() * frequencies
        if ids.dim() == 2:
            angles = angles[:, None]
        # On cos and sin, as `attention_scaling` in transformers, so that q.k has its square.
        return angles.cos() * self.amplitude, angles.sin() * self.amplitude

    def rotate(self, q_BNTH: Tensor, k_BKSH: Tensor, state: Any) -> list[Term]:
        q_tables, k_tables, *growth = state
        for grown in growth:
            q_BNTH = q_BNTH * grown.to(q_BNTH.dtype)
        return [Term(self._turn(q_BNTH, *q_tables), self._turn(k_BKSH, *k_tables))]

    def _turn(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        cos, sin = cos.to(x.dtype), sin.to(x.dtype)
        turned, rest = x[..., : self.width], x[..., self.width :]
        # GPT-J, GLM-4 and DeepSeek (`rope_interleave`) turn neighbours, in their checkpoints' own order of rows.
        if self.interleaved:
            a, b = turned[..., 0::2], turned[..., 1::2]
            y = torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2)
        else:
            # Meta's LLaMA turns neighbours; Hugging Face's conversion permutes q and k so that halves do.
            a, b = turned.chunk(2, -1)
            y = torch.cat([a * cos - b * sin, b * cos + a * sin], -1)
        return torch.cat([y, rest], -1) if rest.shape[-1] else y


def _check(**values: float | None) -> None:
    """ValueError for a number that can't be meant. So large a base or factor is one of a slip of the keys."""
    most = {"theta": 1e12, "factor": 1e6}
    for name, value in values.items():
        high = most.get(name, math.inf)
        if value is not None and not (0 < value <= high and value < math.inf):
            up_to = f" and at most {high:g}" if name in most else " and finite"
            raise ValueError(f"position.{name}={value:g} must be over 0{up_to}")
