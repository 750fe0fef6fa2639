"""One text that grows turn by turn, over one KV cache."""

from __future__ import annotations

from collections.abc import Collection, Generator
from typing import Any

from llmlab import attributes
from llmlab.decoding.generate import generate
from llmlab.decoding.sampling import Sampling
from llmlab.model.cache import Cache
from llmlab.model.model import Model


class Session:
    """Each `write` goes on from what the cache has of its prompt, and gives the ids that `generate` gives.

    `ids` are the tokens in the cache, `reused` how many of them the last prompt began with. Where angles go by the length
    of the text, or a prompt is seen both ways, nothing is kept.
    """

    def __init__(self, model: Model):
        self.model = model
        stack: Any = model.all_stacks()[-1]
        rotated = all(attributes.get(p, "position", "caches_rotated") for p in stack.positions)
        self.keeps = rotated and model.spec.topology != "encoder_decoder" and model.spec.sizes.causal
        self.ids: list[int] = []
        self.reused = 0
        self._cache: Cache | None = None

    def clear(self) -> None:
        self.ids, self._cache = [], None

    def write(
        self,
        prompt: list[int],
        *,
        max_new: int,
        sampling: Sampling | None = None,
        seed: int = 0,
        stop: int | Collection[int] | None = None,
        start: int | None = None,
        vocabulary: int | None = None,
        ended: list[str] | None = None,
    ) -> Generator[int, None, None]:
        """Ids after `prompt`, as `generate` has them. May be closed, or interrupted, at any token."""
        # At least one token of the prompt is read again: its logits are not kept.
        self.reused = min(_common(self.ids, prompt), len(prompt) - 1) if self._cache is not None else 0
        cache = None
        if self.keeps:
            # Capacity 0: generate_all reserves what a turn needs.
            cache = self._cache = self._cache or self.model.new_cache(0)
            cache.cut(max(0, self.reused))
        drawn: list[int] = []
        try:
            for token in generate(
                self.model,
                prompt,
                max_new=max_new,
                sampling=sampling,
                seed=seed,
                stop=stop,
                start=start,
                vocabulary=vocabulary,
                cache=cache,
                ended=ended,
            ):
                drawn.append(token)
                yield token
        finally:
            if cache is not None:
                # An interrupted forward may have filled some layers.
                cache.cut(cache.length)
                self.ids = [*prompt, *drawn][: cache.length]


def _common(a: list[int], b: list[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
