"""A layer's view of one forward and its cache, which `llmlab.slots` promises to attention parts. Shapes as there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from torch import Tensor, nn

from llmlab.slots import Context, Kernel, Position, Score, Term


class LayerCache:
    """Keys and values (or whatever an attention part keeps) of one executed attention, along dimension -2.

    `update(a, b)` appends the new rows of each tensor and returns all rows so far. Buffers are allocated once, for
    `capacity` rows. `frozen` contents (a cross-attention's) are read with `read()`.
    """

    def __init__(self, capacity: int):
        self.capacity = capacity
        self.length = 0
        self.buffers: list[Tensor] = []

    def update(self, *new: Tensor) -> tuple[Tensor, ...]:
        # One allocation: torch.cat for each new token would copy all earlier ones.
        if not self.buffers:
            # A source longer than the capacity is stored as it is: a cross-attention's length is known as it is read.
            self.buffers = [t.new_empty(*t.shape[:-2], max(self.capacity, t.shape[-2]), t.shape[-1]) for t in new]
        end = self.length + new[0].shape[-2]
        if end > self.buffers[0].shape[-2]:
            raise ValueError(f"the KV cache holds {self.buffers[0].shape[-2]} positions, but {end} are needed")
        for buffer, t in zip(self.buffers, new, strict=True):
            buffer[..., self.length : end, :] = t
        self.length = end
        return self.read()

    def read(self) -> tuple[Tensor, ...]:
        # Views: copying the cache for each token would cost what it saves.
        return tuple(b[..., : self.length, :] for b in self.buffers)

    def cut(self, length: int) -> None:
        """Forget all rows but the first `length`."""
        self.length = min(self.length, length)

    def reserve(self, capacity: int) -> None:
        """Room for as many rows, which are kept."""
        self.capacity = max(self.capacity, capacity)
        if self.buffers and self.buffers[0].shape[-2] < self.capacity:
            kept = self.read()
            self.buffers = [t.new_empty(*t.shape[:-2], self.capacity, t.shape[-1]) for t in kept]
            for buffer, t in zip(self.buffers, kept, strict=True):
                buffer[..., : self.length, :] = t


@dataclass(frozen=True)
class View:
    """The view of a layer in one forward, made once for all layers with the same position, mask and window.

    Only a position that projects has a state of its own for each layer (`of`).
    """

    ctx: Context
    position: Position
    state: Any  # what position.prepare returned
    kernel: Kernel
    lowered: Any  # what kernel.lower returned
    training: bool = False

    def of(self, attention: nn.Module) -> View:
        """The view of one layer, whose attention a position may project with."""
        if not self.position.projects:
            return self
        return replace(self, state=self.position.of_layer(self.state, cast("Any", attention).project))

    def rotate(self, q_BNTH: Tensor, k_BKTH: Tensor) -> list[Term]:
        return self.position.rotate(q_BNTH, k_BKTH, self.state)

    def weigh(self, terms: Sequence[Term], v_BKSH: Tensor, score: Score, sink: Tensor | None = None) -> Tensor:
        """Terms over all S keys -> (B, N, T, H')."""
        bias = self.position.bias(terms[0].q_BNTH, terms[0].k_BKSH, score.scale, self.state)
        return self.kernel(terms, v_BKSH, self.lowered, bias, score, sink, self.training)

    def attend(
        self,
        q_BNTH: Tensor,
        k_BKTH: Tensor,
        v_BKTH: Tensor,
        score: Score,
        *,
        sink: Tensor | None = None,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """Rotate, cache, weigh: (B, N, T, H'). What most attention parts need."""
        # Dynamic NTK and longrope turn all keys anew as a text grows, so that the cache keeps them unrotated.
        if cache is not None and not self.position.caches_rotated:
            k_BKTH, v_BKTH = cache.update(k_BKTH, v_BKTH)
        terms = self.rotate(q_BNTH, k_BKTH)
        if cache is not None and self.position.caches_rotated:
            k_BKSH, v_BKTH = cache.update(terms[0].k_BKSH, v_BKTH)
            terms = [term._replace(k_BKSH=k_BKSH) for term in terms]
        return self.weigh(terms, v_BKTH, score, sink)
