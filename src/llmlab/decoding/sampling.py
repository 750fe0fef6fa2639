"""From logits to a token. V vocabulary, B batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from llmlab.errors import UserError


@dataclass(frozen=True)
class Sampling:
    """temperature 0 is greedy. top_k keeps the k most likely tokens, top_p the fewest that hold that much probability
    (nucleus sampling, Holtzman et al. 2020, arXiv:1904.09751); temperature comes first, then top_k, then top_p.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise UserError(f"temperature={self.temperature} must be at least 0 (0 is greedy)")
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"top_k={self.top_k} must be at least 1")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UserError(f"top_p={self.top_p} must be above 0 and at most 1")

    def distribution(self, logits_BV: Tensor) -> Tensor:
        """(B, V) probabilities in float32; greedy puts all on the most likely token."""
        logits = logits_BV.float()
        if self.temperature == 0:
            return torch.zeros_like(logits).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)
        logits = (logits - logits.amax(-1, keepdim=True)) / max(self.temperature, 1e-30)
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            values, index = logits.topk(self.top_k, -1)
            logits = torch.full_like(logits, float("-inf")).scatter_(-1, index, values)
        p = logits.softmax(-1)
        if self.top_p is not None and self.top_p < 1:
            ordered, index = p.sort(-1, descending=True)
            before = ordered.cumsum(-1) - ordered  # probability of those that are likelier
            p = torch.zeros_like(p).scatter_(-1, index, ordered.masked_fill(before >= self.top_p, 0.0))
            p = p / p.sum(-1, keepdim=True)
        return p

    def draw(self, logits_BV: Tensor, generator: torch.Generator) -> Tensor:
        """(B,) token ids."""
        if self.temperature == 0:
            return logits_BV.argmax(-1)
        return torch.multinomial(self.distribution(logits_BV).cpu(), 1, generator=generator)[:, 0].to(logits_BV.device)
