"""Segment memory: the inputs of each layer for earlier segments, which attention of the next segment reads."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Memory:
    """Segment memory (Transformer-XL: Dai et al. 2019, arXiv:1901.02860): each executed layer's inputs, without gradient.

    `layers[step]` (B, M, D); empty before the first segment. A forward puts them before its own inputs as keys and values,
    and extends them. keep: tokens that are kept, the newest; None: all. reuse: of a segment the first so many are taken in;
    None: all.
    """

    def __init__(self, keep: int | None = None, reuse: int | None = None, layers: Sequence[Tensor] = ()):
        if any(n is not None and n < 1 for n in (keep, reuse)):
            # Not 0: x[:, -0:] is all of x.
            raise ValueError(f"a memory keeps and reuses at least 1 token, but keep={keep} and reuse={reuse}")
        self.keep, self.reuse, self.layers = keep, reuse, list(layers)

    @property
    def length(self) -> int:
        return self.layers[0].shape[1] if self.layers else 0

    def extend(self, inputs: Sequence[Tensor]) -> None:
        # The paper's SG(): no gradient flows into an earlier segment (Dai et al. 2019, arXiv:1901.02860, section 3.2).
        new = [x[:, : self.reuse].detach() for x in inputs]
        if self.layers:
            new = [torch.cat([before, x], 1) for before, x in zip(self.layers, new, strict=True)]
        self.layers = [x if self.keep is None else x[:, -self.keep :] for x in new]
