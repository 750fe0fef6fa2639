"""Scalings of rope to texts longer than those of training: a value for each, which gives frequencies.

R = `dims` dims of a head are rotated, in pairs that are `width` wide together (R, or R + 1 if R is odd). `lengths` (..., 1) are
those of the texts; scalings that don't depend on the length take only its device. Frequencies are (..., R/2).
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor


@dataclass(frozen=True)
class Unscaled:
    """Rope as it is: pair i is turned by theta^(-2i/R) a position (Su et al. 2021, arXiv:2104.09864)."""

    theta: float
    dims: int
    width: int

    by_length: ClassVar[bool] = False  # frequencies change with the text's length, so a cache keeps keys unrotated
    from_original: ClassVar[bool] = False  # it begins from the length of training, `original_max`

    @property
    def amplitude(self) -> float:
        """The factor on cos and sin."""
        return 1.0

    def frequencies(self, lengths: Tensor) -> Tensor:
        return self.plain(lengths)

    def plain(self, like: Tensor, theta: float | Tensor | None = None) -> Tensor:
        # A power in float32, as modeling_rope_utils.py has it: exp(-2i/R ln theta)
        # differs in the last bits, and large positions multiply the difference.
        pairs = torch.arange(0, self.width, 2, device=like.device).float()
        return 1.0 / ((self.theta if theta is None else theta) ** (pairs / self.dims))


@dataclass(frozen=True)
class Linear(Unscaled):
    """Positions over `factor` (Chen et al. 2023, arXiv:2306.15595)."""

    factor: float

    def frequencies(self, lengths: Tensor) -> Tensor:
        # The frequencies over the factor, not the positions: the angles are the same, and ids stay whole numbers.
        return self.plain(lengths) / self.factor


@dataclass(frozen=True)
class Dynamic(Unscaled):
    """A larger theta, for texts longer than original_max only (dynamic NTK)."""

    factor: float
    original_max: int

    by_length = True
    from_original = True
    name: ClassVar[str] = "dynamic"

    def __post_init__(self) -> None:
        # The power of theta, R / (R - 2), has no value for two dims.
        if self.dims <= 2:
            raise ValueError(
                f"position.scaling={self.name} needs more than 2 dims of a head to turn, but has {self.dims}"
            )

    def frequencies(self, lengths: Tensor) -> Tensor:
        # By the text's own length. transformers keeps the longest that it met
        # (`max_seq_len_cached`) until a text shorter than original_max.
        return self.plain(lengths, self.theta * self.stretch(lengths) ** (self.dims / (self.dims - 2)))

    def stretch(self, lengths: Tensor) -> Tensor:
        # 1 up to original_max: transformers takes max(seq_len, max_position_embeddings) too.
        return self.factor * lengths.clamp(min=self.original_max) / self.original_max - (self.factor - 1)


@dataclass(frozen=True)
class DynamicSteps(Dynamic):
    """A larger theta at each doubling of original_max (Qwen: Bai et al. 2023, arXiv:2309.16609); it has no factor."""

    name = "dynamic_steps"

    def stretch(self, lengths: Tensor) -> Tensor:
        doublings = (lengths / self.original_max).log2().ceil().clamp(min=0)
        # Qwen's get_ntk_alpha: 2^ceil(log2(length / seq_length) + 1) - 1, at least 1.
        return 2 ** (doublings + 1) - 1


@dataclass(frozen=True)
class Llama3(Unscaled):
    """Frequencies over `factor` where the wavelength is over original_max / low_freq_factor, as they were under
    original_max / high_freq_factor, blended between (Llama 3.1, arXiv:2407.21783).
    """

    factor: float
    original_max: int
    low_freq_factor: float
    high_freq_factor: float

    from_original = True

    def frequencies(self, lengths: Tensor) -> Tensor:
        plain = self.plain(lengths)
        # modeling_rope_utils.py compares wavelengths with original_max / factor; this is the same, divided by the wavelength.
        turns = self.original_max * plain / (2 * math.pi)
        blend = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        blended = (1 - blend) * plain / self.factor + blend * plain
        scaled = torch.where(turns < self.low_freq_factor, plain / self.factor, blended)
        return torch.where(turns > self.high_freq_factor, plain, scaled)


@dataclass(frozen=True)
class Yarn(Unscaled):
    """Frequencies over `factor` where a pair turns less than beta_slow times in original_max, as they were over beta_fast
    times, a ramp between; cos and sin times attention_factor (Peng et al. 2023, arXiv:2309.00071).
    """

    factor: float
    original_max: int
    beta_fast: float
    beta_slow: float
    truncate: bool
    attention_factor: float | None
    mscale: float | None
    mscale_all_dim: float | None

    from_original = True

    def __post_init__(self) -> None:
        if self.theta == 1:
            raise ValueError("position.theta=1 makes all pairs turn alike, which position.scaling=yarn can't stretch")

    @property
    def amplitude(self) -> float:
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:  # as DeepSeek-V2 has it
            return self._grown(self.mscale) / self._grown(self.mscale_all_dim)
        return self._grown(1.0)

    def _grown(self, mscale: float) -> float:
        # The paper's sqrt(1/t) = 0.1 ln s + 1 on both q and k, so that scores have its square.
        return 1.0 if self.factor <= 1 else 0.1 * mscale * math.log(self.factor) + 1.0

    def frequencies(self, lengths: Tensor) -> Tensor:
        low, high = self._pair_that_turns(self.beta_fast), self._pair_that_turns(self.beta_slow)
        # transformers rounds outwards unless the config says otherwise, as that of gpt-oss does (`"truncate": false`).
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        # width - 1 though there are only width / 2 pairs: transformers bounds it so, and the ramp's slope depends on it.
        low, high = max(low, 0), min(high, self.width - 1)
        # The reference's own 0.001 (`linear_ramp_factor`), against a division by 0.
        high = high + 0.001 if low == high else high
        plain = self.plain(lengths)
        ramp = ((torch.arange(self.width // 2, device=lengths.device).float() - low) / (high - low)).clamp(0, 1)
        return plain / self.factor * ramp + plain * (1 - ramp)

    def _pair_that_turns(self, times: float) -> float:
        """Index, not whole, of the pair that turns so often within original_max positions."""
        # `find_correction_dim`: pair i turns original_max theta^(-2i/R) / (2 pi) times.
        return self.width * math.log(self.original_max / (times * 2 * math.pi)) / (2 * math.log(self.theta))


@dataclass(frozen=True)
class LongRope(Unscaled):
    """Each pair's frequency over a factor of its own, from another list past original_max; cos and sin always times
    attention_factor, else sqrt(1 + ln factor / ln original_max) (Ding et al. 2024, arXiv:2402.13753; Phi-3).
    """

    factor: float
    original_max: int
    attention_factor: float | None
    short_factor: list[float] | None
    long_factor: list[float] | None

    by_length = True
    from_original = True

    def __post_init__(self) -> None:
        for name, given in (("short", self.short_factor), ("long", self.long_factor)):
            if given is None or len(given) != self.width // 2 or not all(0 < x < math.inf for x in given):
                raise ValueError(
                    f"position.scaling=longrope needs position.{name}_factor, {self.width // 2} numbers over 0, "
                    f"but it is {given}"
                )

    @property
    def amplitude(self) -> float:
        if self.attention_factor is not None:
            return self.attention_factor
        # A factor below e.g. 1 / original_max would put a negative number
        # under the root; transformers has 1 up to a factor of 1, too.
        return math.sqrt(1 + math.log(self.factor) / math.log(self.original_max)) if self.factor > 1 else 1.0

    def frequencies(self, lengths: Tensor) -> Tensor:
        lists = self.short_factor, self.long_factor
        short, long = (torch.tensor(f, device=lengths.device, dtype=torch.float32) for f in lists)
        pairs = torch.arange(0, self.width, 2, device=lengths.device).float()
        # By each text: transformers takes the long list for the whole batch as soon as one position in it is that large.
        return 1.0 / (torch.where(lengths > self.original_max, long, short) * self.theta ** (pairs / self.dims))


# Names are those of `rope_type` in config.json; "dynamic_steps" is Qwen 1's own `use_dynamic_ntk`.
SCALINGS: dict[str, type[Unscaled]] = {
    "none": Unscaled,
    "linear": Linear,
    "dynamic": Dynamic,
    "dynamic_steps": DynamicSteps,
    "llama3": Llama3,
    "yarn": Yarn,
    "longrope": LongRope,
}
