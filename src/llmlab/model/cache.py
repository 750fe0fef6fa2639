"""The KV cache of a model: its state between two calls of generation."""

from __future__ import annotations

import torch
from torch import Tensor

from llmlab.model.view import LayerCache


class Cache:
    """Keys and values of every executed layer of the decoding stack, and what goes with the positions so far.

    `steps` counts executed layers, not stored ones. An encoder-decoder's encoder output is kept in `source`.
    """

    def __init__(self, steps: int, capacity: int):
        self.capacity = capacity
        self.length = 0
        # Capacity 0 for a source: its buffer is made as long as it is when it is read.
        self.layers = [{"attention": LayerCache(capacity), "cross_attention": LayerCache(0)} for _ in range(steps)]
        self.valid: Tensor | None = None
        self.positions: dict[int, Tensor] = {}  # by position part
        self.source: Tensor | None = None
        self.source_valid: Tensor | None = None

    def extend_valid(self, new: Tensor | None, batch: int, length: int) -> Tensor | None:
        """(B, S) validity of all keys so far, or None while none was ever padding."""
        if new is None and self.valid is None:
            # None, not all True: without a mask tensor a kernel may take its causal path.
            return None
        if new is None:
            assert self.valid is not None
            new = self.valid.new_ones(batch, length)
        before = self.valid if self.valid is not None else new.new_ones(batch, self.length)
        self.valid = torch.cat([before, new], 1)
        return self.valid

    def extend_positions(self, new: Tensor, place: int = 0) -> Tensor:
        """Position ids (..., S) of all keys so far, as the position part at `place` counts them."""
        before = self.positions.get(place)
        self.positions[place] = new if before is None else join(before, new)
        return self.positions[place]

    def cut(self, length: int) -> None:
        """Forget all tokens but the first `length`, and whatever a forward that was interrupted has left."""
        self.length = min(self.length, length)
        for layer in self.layers:
            # Cross-attention's cache stays: a text that is cut still reads the same source.
            layer["attention"].cut(self.length)
        self.valid = None if self.valid is None else self.valid[:, : self.length]
        self.positions = {place: ids[..., : self.length] for place, ids in self.positions.items()}

    def reserve(self, capacity: int) -> None:
        """Room for as many tokens; those that are there stay."""
        self.capacity = max(self.capacity, capacity)
        for layer in self.layers:
            layer["attention"].reserve(capacity)

    def bytes(self) -> int:
        """Memory of the buffers, as allocated."""
        caches = [c for layer in self.layers for c in layer.values()]
        return sum(b.numel() * b.element_size() for c in caches for b in c.buffers)


def join(before: Tensor, new: Tensor) -> Tensor:
    """Position ids (..., M) and (..., T) -> (..., M + T). Either may lack a batch that the other has."""
    lead = torch.broadcast_shapes(before.shape[:-1], new.shape[:-1])
    return torch.cat([before.expand(*lead, -1), new.expand(*lead, -1)], -1)
