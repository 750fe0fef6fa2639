"""Rotary positions, and how they are stretched to longer texts."""

import math
from typing import Any, Literal

import torch
from torch import Tensor

from llmlab.registry import register
from llmlab.sizes import Sizes
from llmlab.slots import Context, Position, Term
from llmlab_plugins.position.absolute import Absolute


@register("position", "rope")
class Rope(Absolute):
    """Rotary position embedding (Su et al. 2021, arXiv:2104.09864): pair i is turned by position theta^(-2i/R).

    R = fraction of the rotary width, the first dims of a head; the rest is left alone. Pairs are (i, i + R/2), or
    (2i, 2i + 1) if interleaved. Angles in float32, then cast.

    Scaling, for texts longer than `original_max` by `factor`:
      linear   positions / factor (Chen et al. 2023, arXiv:2306.15595)
      dynamic  a larger theta, only past original_max (dynamic NTK); a cache then keeps keys unrotated
      dynamic_steps  the same, grown at each doubling of original_max (Qwen: Bai et al. 2023, arXiv:2309.16609)
      llama3   frequencies / factor where the wavelength is over original_max / low_freq_factor, as they were under
               original_max / high_freq_factor, blended between (Llama 3.1, arXiv:2407.21783)
      yarn     frequencies / factor where a pair turns less than beta_slow times in original_max, as they were over
               beta_fast times, a ramp between; cos and sin times attention_factor (Peng et al. 2023, arXiv:2309.00071)
      longrope each pair's frequency over a factor of its own, from another list past original_max; cos and sin always
               times attention_factor, else sqrt(1 + ln factor / ln original_max); a cache then keeps keys unrotated
               (Ding et al. 2024, arXiv:2402.13753; Phi-3)
    """

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
        self.width = int(sizes.rotary_dim * fraction)
        if self.width < 2 or self.width % 2 or fraction > 1:
            raise ValueError(
                f"position=rope turns pairs, but position.fraction={fraction} of a head of {sizes.rotary_dim} "
                f"makes {self.width} dims; choose a fraction up to 1 that makes an even number"
            )
        if theta <= 0:
            raise ValueError(f"position.theta={theta} must be more than 0")
        self.theta, self.interleaved, self.factor, self.log_n = theta, interleaved, factor, log_n
        stretched = log_n or scaling not in ("none", "linear")
        self.original_max = original_max or (sizes.max_positions if stretched else 0)
        self.low_freq_factor, self.high_freq_factor = low_freq_factor, high_freq_factor
        self.beta_fast, self.beta_slow, self.truncate = beta_fast, beta_slow, truncate
        self.frequencies = getattr(self, f"_{scaling}")
        self.caches_rotated = scaling not in ("dynamic", "dynamic_steps", "longrope")
        self.relative = self.caches_rotated and not log_n
        self.amplitude = 1.0
        if scaling == "yarn":
            ratio = _mscale(factor, mscale) / _mscale(factor, mscale_all_dim) if mscale and mscale_all_dim else None
            given = attention_factor if attention_factor is not None else ratio
            self.amplitude = _mscale(factor, 1.0) if given is None else given
        if scaling == "longrope":
            self.divisors = [self._divisors(n, v) for n, v in (("short", short_factor), ("long", long_factor))]
            grown = math.sqrt(1 + math.log(factor) / math.log(self.original_max)) if factor > 1 else 1.0
            self.amplitude = grown if attention_factor is None else attention_factor

    def ids(self, ctx: Context) -> Tensor:
        """Where more than distances counts, positions begin anew with each document."""
        return super().ids(ctx) if self.log_n or not self.caches_rotated else Position.ids(self, ctx)

    def _none(self, ids: Tensor, theta: float | Tensor | None = None) -> Tensor:
        pairs = torch.arange(0, self.width, 2, device=ids.device).float()
        return 1.0 / ((self.theta if theta is None else theta) ** (pairs / self.width))

    def _linear(self, ids: Tensor) -> Tensor:
        return self._none(ids) / self.factor

    def _dynamic(self, ids: Tensor) -> Tensor:
        length = (ids.max() + 1).clamp(min=self.original_max)
        stretch = self.factor * length / self.original_max - (self.factor - 1)
        return self._none(ids, self.theta * stretch ** (self.width / max(self.width - 2, 1)))

    def _dynamic_steps(self, ids: Tensor) -> Tensor:
        doublings = ((ids.max() + 1) / self.original_max).log2().ceil().clamp(min=0)
        return self._none(ids, self.theta * (2 ** (doublings + 1) - 1) ** (self.width / max(self.width - 2, 1)))

    def _llama3(self, ids: Tensor) -> Tensor:
        plain = self._none(ids)
        turns = self.original_max * plain / (2 * math.pi)
        blend = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        blended = (1 - blend) * plain / self.factor + blend * plain
        scaled = torch.where(turns < self.low_freq_factor, plain / self.factor, blended)
        return torch.where(turns > self.high_freq_factor, plain, scaled)

    def _yarn(self, ids: Tensor) -> Tensor:
        low, high = (self._pair_that_turns(times) for times in (self.beta_fast, self.beta_slow))
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, self.width - 1)
        high = high + 0.001 if low == high else high
        plain = self._none(ids)
        ramp = ((torch.arange(self.width // 2, device=ids.device).float() - low) / (high - low)).clamp(0, 1)
        return plain / self.factor * ramp + plain * (1 - ramp)

    def _longrope(self, ids: Tensor) -> Tensor:
        short, long = (torch.tensor(d, device=ids.device, dtype=torch.float32) for d in self.divisors)
        pairs = torch.arange(0, self.width, 2, device=ids.device).float()
        return 1.0 / (torch.where(ids.max() < self.original_max, short, long) * self.theta ** (pairs / self.width))

    def _divisors(self, name: str, given: list[float] | None) -> list[float]:
        if given is None or len(given) != self.width // 2 or min(given) <= 0:
            raise ValueError(
                f"position.scaling=longrope needs position.{name}_factor, {self.width // 2} numbers over 0, "
                f"but it is {given}"
            )
        return list(given)

    def _pair_that_turns(self, times: float) -> float:
        """Index, not whole, of the pair that turns so often within original_max positions."""
        return self.width * math.log(self.original_max / (times * 2 * math.pi)) / (2 * math.log(self.theta))

    def prepare(self, q_ids: Tensor, k_ids: Tensor) -> Any:
        frequencies = self.frequencies(k_ids)
        q = self._tables(q_ids, frequencies)
        k = q if self.caches_rotated else self._tables(k_ids, frequencies)
        return (q, k, self._growth(q_ids)) if self.log_n else (q, k)

    def _growth(self, ids: Tensor) -> Tensor:
        """(T, 1) or (B, 1, T, 1)."""
        grown = ((ids + 1).float().log() / math.log(self.original_max)).clamp(min=1)[..., None]
        return grown[:, None] if ids.dim() == 2 else grown

    def _tables(self, ids: Tensor, frequencies: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin, (T, R/2) or (B, 1, T, R/2)."""
        angles = ids[..., None].float() * frequencies
        if ids.dim() == 2:
            angles = angles[:, None]
        return angles.cos() * self.amplitude, angles.sin() * self.amplitude

    def rotate(self, q_BNTH: Tensor, k_BKSH: Tensor, state: Any) -> list[Term]:
        q_tables, k_tables, *growth = state
        for grown in growth:
            q_BNTH = q_BNTH * grown.to(q_BNTH.dtype)
        return [Term(self._turn(q_BNTH, *q_tables), self._turn(k_BKSH, *k_tables))]

    def _turn(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        cos, sin = cos.to(x.dtype), sin.to(x.dtype)
        turned, rest = x[..., : self.width], x[..., self.width :]
        if self.interleaved:
            a, b = turned[..., 0::2], turned[..., 1::2]
            y = torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2)
        else:
            a, b = turned.chunk(2, -1)
            y = torch.cat([a * cos - b * sin, b * cos + a * sin], -1)
        return torch.cat([y, rest], -1) if rest.shape[-1] else y


def _mscale(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0
