"""Rotary positions that never pass those of training, however long the text."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from llmlab.registry import register
from llmlab.sizes import Sizes
from llmlab.slots import Context, Term
from llmlab_plugins.position.absolute import Absolute
from llmlab_plugins.position.rope import Rope


class Chunks(NamedTuple):
    tables: list[tuple[Tensor, Tensor]]  # cos and sin by which a query is turned for the keys of each region
    regions: tuple[Tensor, ...]  # bool: pairs in the same chunk, in neighbours, farther apart


@register("position", "dual_chunk")
class DualChunk(Rope):
    """Dual chunk attention (An et al. 2024, arXiv:2402.17463): rope whose distances stay below those of training.

    Needs no training: weights that were trained with rope read texts of any length with it. Texts are cut into chunks of
    s tokens, and w more positions are for the neighbours: c = s + w is the length of training. Keys are turned by
    j mod s. Queries are turned thrice, for the keys of

      their own chunk       i mod s
      the chunk before      min(s + i mod s, c - 1): the last w tokens keep their true distance
      chunks before that    c - 1, the farthest

    so a text of up to c tokens is scored as by rope (w being at most s). Positions count within a document, without
    padding. Chunks look back only, so the mask must be causal. Scaling stretches rope's frequencies, as position=rope
    says; s and w may then be larger.
    """

    has_regions = True
    _skip_padding = True
    small = {"chunk": 4, "local": 3}
    telling = (
        {"chunk": 7, "local": 2},
        {"theta": 100.0, "interleaved": True, "fraction": 0.5},
        {"scaling": "linear", "factor": 4.0},
        {"scaling": "llama3", "factor": 8.0, "original_max": 32, "low_freq_factor": 0.3, "high_freq_factor": 2.0},
        {"scaling": "yarn", "factor": 4.0, "original_max": 32, "theta": 100.0, "beta_fast": 4.0, "beta_slow": 0.3},
        {"scaling": "yarn", "factor": 4.0, "original_max": 40, "theta": 100.0, "beta_fast": 3.0, "truncate": False},
        {"scaling": "yarn", "factor": 4.0, "original_max": 16, "attention_factor": 0.7},
        {"scaling": "yarn", "factor": 4.0, "original_max": 16, "mscale": 0.7, "mscale_all_dim": 1.2},
    )  # fmt: skip

    def __init__(
        self,
        sizes: Sizes,
        /,
        *,
        chunk: int | None = None,  # s; None: three quarters of original_max, as in the paper
        local: int | None = None,  # w; None: the rest of original_max
        theta: float = 10000.0,  # base of the wavelengths
        interleaved: bool = False,  # pairs are neighbours, not half a width apart
        fraction: float = 1.0,  # share of a head that is rotated, from its first dim on
        scaling: Literal["none", "linear", "llama3", "yarn"] = "none",  # as of position=rope
        factor: float = 1.0,  # by which the frequencies are stretched
        original_max: int | None = None,  # length of training; None: model.max_positions
        low_freq_factor: float = 1.0,  # llama3: turns in original_max under which a pair is stretched
        high_freq_factor: float = 4.0,  # llama3: turns over which it is left alone
        beta_fast: float = 32.0,  # yarn: turns in original_max over which a pair is left alone
        beta_slow: float = 1.0,  # yarn: turns under which it is stretched
        truncate: bool = True,  # yarn: the ramp between them begins and ends at whole pairs
        attention_factor: float | None = None,  # yarn: on cos and sin; None: as of position=rope
        mscale: float | None = None,  # yarn: as of position=rope
        mscale_all_dim: float | None = None,  # yarn: as of position=rope
    ):
        trained = original_max or sizes.max_positions
        super().__init__(
            sizes,
            theta=theta,
            interleaved=interleaved,
            fraction=fraction,
            scaling=scaling,
            factor=factor,
            original_max=trained,
            low_freq_factor=low_freq_factor,
            high_freq_factor=high_freq_factor,
            beta_fast=beta_fast,
            beta_slow=beta_slow,
            truncate=truncate,
            attention_factor=attention_factor,
            mscale=mscale,
            mscale_all_dim=mscale_all_dim,
        )
        # Chunks begin at fixed places, so that a text's scores depend on where it begins.
        self.relative = False
        self.chunk = max(trained * 3 // 4, 1) if chunk is None else chunk
        self.local = max(trained - self.chunk, 1) if local is None else local
        if self.chunk < 1 or self.local < 1:
            raise ValueError(
                f"position.chunk={self.chunk} and position.local={self.local} must be at least 1 for position=dual_chunk"
            )
        if not sizes.causal:
            raise ValueError("position=dual_chunk looks back only, so it needs mask=causal; choose position=rope")

    def ids(self, ctx: Context) -> Tensor:
        return Absolute.ids(self, ctx)

    def prepare(self, q_ids: Tensor, k_ids: Tensor) -> Chunks:
        frequencies = self.frequencies(k_ids)
        within, farthest = q_ids % self.chunk, self.chunk + self.local - 1
        turns = (within, (within + self.chunk).clamp(max=farthest), torch.full_like(within, farthest))
        apart = (q_ids // self.chunk)[..., :, None] - (k_ids // self.chunk)[..., None, :]
        # Keys ahead are hidden by the mask; they count as of the same chunk, so that the regions cover every pair.
        regions = (apart <= 0, apart == 1, apart > 1)
        return Chunks([self._tables(t, frequencies) for t in turns], regions)

    def rotate(self, q_BNTH: Tensor, k_BKSH: Tensor, state: Chunks) -> list[Term]:
        tables, regions = state
        # New keys stand where new queries do, so that the first table serves both.
        k = self._turn(k_BKSH, *tables[0])
        return [Term(self._turn(q_BNTH, *t), k, region) for t, region in zip(tables, regions, strict=True)]
