"""Rotary positions, and how they are stretched to longer texts."""

import math
from typing import Any, Literal

import torch
from torch import Tensor

from llmlab.registry import register
from llmlab.sizes import Sizes
from llmlab.slots import Context, Position, Term
from llmlab_plugins.position.absolute import Absolute, begins


@register("position", "rope")
class Rope(Absolute):
    """Rotary position embedding (Su et al. 2021, arXiv:2104.09864): pair i is turned by position theta^(-2i/R).

    R = fraction of the rotary width, the first dims of a head; the rest is left alone. Pairs are (i, i + R/2), or
    (2i, 2i + 1) if interleaved. An odd R leaves its frequencies as they are and takes one dim more to turn (GPT-NeoX).
    Angles in float32, then cast.

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
        _check(theta=theta, factor=factor, beta_fast=beta_fast, beta_slow=beta_slow, original_max=original_max)
        _check(low_freq_factor=low_freq_factor, high_freq_factor=high_freq_factor, attention_factor=attention_factor)
        if low_freq_factor >= high_freq_factor or beta_slow >= beta_fast:
            low, high = ("low_freq_factor", "high_freq_factor") if beta_slow < beta_fast else ("beta_slow", "beta_fast")
            raise ValueError(f"position.{low} must be less than position.{high}")
        self.dims = int(sizes.rotary_dim * fraction)
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
        if scaling == "yarn" and theta == 1:
            raise ValueError("position.theta=1 makes all pairs turn alike, which position.scaling=yarn can't stretch")
        if scaling in ("dynamic", "dynamic_steps") and self.dims <= 2:
            raise ValueError(
                f"position.scaling={scaling} needs more than 2 dims of a head to turn, but has {self.dims}"
            )
        self.theta, self.interleaved, self.factor, self.log_n = theta, interleaved, factor, log_n
        stretched = log_n or scaling not in ("none", "linear")
        self.original_max = original_max or (sizes.max_positions if stretched else 0)
        if self.original_max < 2 and (log_n or scaling == "longrope"):
            raise ValueError(
                f"position.original_max={self.original_max} must be at least 2: its logarithm is a divisor"
            )
        self.low_freq_factor, self.high_freq_factor = low_freq_factor, high_freq_factor
        self.beta_fast, self.beta_slow, self.truncate = beta_fast, beta_slow, truncate
        self._of_lengths = getattr(self, f"_{scaling}")
        self.caches_rotated = scaling not in ("dynamic", "dynamic_steps", "longrope")
        self.relative = self.caches_rotated and not log_n
        self._skip_padding = self._skip_padding or not self.relative
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
        """Where more than distances counts, positions begin anew with each document and count no padding, so that a text
        is the same in any company. Where the length counts: (B, 2, T), with the length of each token's document.
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
            return self._of_lengths(ids)
        longest = ids[:, 1] if ids.dim() == 3 else ids.amax(-1, keepdim=ids.dim() == 2) + 1
        return self._of_lengths(longest[..., None])

    def _none(self, lengths: Tensor, theta: float | Tensor | None = None) -> Tensor:
        pairs = torch.arange(0, self.width, 2, device=lengths.device).float()
        return 1.0 / ((self.theta if theta is None else theta) ** (pairs / self.dims))

    def _linear(self, lengths: Tensor) -> Tensor:
        return self._none(lengths) / self.factor

    def _dynamic(self, lengths: Tensor) -> Tensor:
        stretch = self.factor * lengths.clamp(min=self.original_max) / self.original_max - (self.factor - 1)
        return self._none(lengths, self.theta * stretch ** (self.dims / (self.dims - 2)))

    def _dynamic_steps(self, lengths: Tensor) -> Tensor:
        doublings = (lengths / self.original_max).log2().ceil().clamp(min=0)
        return self._none(lengths, self.theta * (2 ** (doublings + 1) - 1) ** (self.dims / (self.dims - 2)))

    def _llama3(self, lengths: Tensor) -> Tensor:
        plain = self._none(lengths)
        turns = self.original_max * plain / (2 * math.pi)
        blend = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        blended = (1 - blend) * plain / self.factor + blend * plain
        scaled = torch.where(turns < self.low_freq_factor, plain / self.factor, blended)
        return torch.where(turns > self.high_freq_factor, plain, scaled)

    def _yarn(self, lengths: Tensor) -> Tensor:
        low, high = (self._pair_that_turns(times) for times in (self.beta_fast, self.beta_slow))
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, self.width - 1)
        high = high + 0.001 if low == high else high
        plain = self._none(lengths)
        ramp = ((torch.arange(self.width // 2, device=lengths.device).float() - low) / (high - low)).clamp(0, 1)
        return plain / self.factor * ramp + plain * (1 - ramp)

    def _longrope(self, lengths: Tensor) -> Tensor:
        short, long = (torch.tensor(d, device=lengths.device, dtype=torch.float32) for d in self.divisors)
        pairs = torch.arange(0, self.width, 2, device=lengths.device).float()
        return 1.0 / (torch.where(lengths > self.original_max, long, short) * self.theta ** (pairs / self.dims))

    def _divisors(self, name: str, given: list[float] | None) -> list[float]:
        if given is None or len(given) != self.width // 2 or not all(0 < x < math.inf for x in given):
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
        q_ids, k_ids = (ids[:, 0] if ids.dim() == 3 else ids for ids in (q_ids, k_ids))
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


def _check(**values: float | None) -> None:
    """ValueError for a number that can't be meant. So large a base or factor is one of a slip of the keys."""
    most = {"theta": 1e12, "factor": 1e6}
    for name, value in values.items():
        high = most.get(name, math.inf)
        if value is not None and not (0 < value <= high and value < math.inf):
            up_to = f" and at most {high:g}" if name in most else " and finite"
            raise ValueError(f"position.{name}={value:g} must be over 0{up_to}")
