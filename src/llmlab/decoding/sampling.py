"""From logits to a token. V vocabulary, B batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llmlab.errors import UserError


@dataclass(frozen=True)
class Sampling:
    """Rules for drawing the next token, applied in this order:

    repetition_penalty  logits of tokens that the text has already: divided by it where positive, else multiplied (CTRL:
                        Keskar et al. 2019, arXiv:1909.05858)
    temperature         logits are divided by it; 0 is greedy
    top_k               the k most likely tokens
    top_p               the fewest tokens that hold that much probability (Holtzman et al. 2020, arXiv:1904.09751)
    min_p               tokens with at least that share of the most likely one's probability (Nguyen et al. 2024,
                        arXiv:2407.01082)
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        # Not `< 0`: NaN fails every comparison, and is to be refused too.
        if not self.temperature >= 0:
            raise UserError(f"temperature={self.temperature} must be at least 0 (0 is greedy)")
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"top_k={self.top_k} must be at least 1")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UserError(f"top_p={self.top_p} must be above 0 and at most 1")
        if self.min_p is not None and not 0 <= self.min_p <= 1:
            raise UserError(f"min_p={self.min_p} must be at least 0 and at most 1")
        if not 0 < self.repetition_penalty < float("inf"):
            raise UserError(f"repetition_penalty={self.repetition_penalty} must be above 0 (1: none)")

    def distribution(self, logits_BV: Tensor, seen_BV: Tensor | None = None) -> Tensor:
        """(B, V) probabilities in float32; greedy puts all on the most likely token. seen: tokens that the text has."""
        logits = self._penalised(logits_BV, seen_BV)
        if self.temperature == 0:
            # argmax takes the first of equal logits (since torch 1.7), so that greedy is one text.
            return torch.zeros_like(logits).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)
        # With the largest at 0 a tiny temperature makes -inf of the others, and no inf - inf of the softmax.
        logits = (logits - logits.amax(-1, keepdim=True)) / max(self.temperature, 1e-30)
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            # By index and not by `logits < kth`, which keeps more than k where logits are equal.
            values, index = logits.topk(self.top_k, -1)
            logits = torch.full_like(logits, float("-inf")).scatter_(-1, index, values)
        p = logits.softmax(-1)
        if self.top_p is not None and self.top_p < 1:
            ordered, index = p.sort(-1, descending=True)
            # The probability of those that are likelier.
            before = ordered.cumsum(-1) - ordered
            # The token that crosses top_p stays, so that there is always one.
            p = torch.zeros_like(p).scatter_(-1, index, ordered.masked_fill(before >= self.top_p, 0.0))
            p = p / p.sum(-1, keepdim=True)
        if self.min_p is not None:
            p = p.masked_fill(p < self.min_p * p.amax(-1, keepdim=True), 0.0)
            p = p / p.sum(-1, keepdim=True)
        return p

    def log_probability(self, logits_BV: Tensor, token_B: Tensor, seen_BV: Tensor | None = None) -> Tensor:
        """(B,) natural logarithms, in float32, of the probability with which `draw` gives these tokens."""
        return self.distribution(logits_BV, seen_BV).gather(-1, token_B[:, None])[:, 0].log()

    def draw(
        self, logits_BV: Tensor, generator: torch.Generator | Sequence[torch.Generator], seen_BV: Tensor | None = None
    ) -> Tensor:
        """(B,) token ids, -1 where the logits are no distribution (NaN, infinity). With a generator for each row a row's
        draws do not depend on the others.
        """
        if self.temperature == 0:
            logits = self._penalised(logits_BV, seen_BV)
            # A NaN is the argmax where there is one: torch takes NaN for the largest.
            best = logits.argmax(-1, keepdim=True)
            return best.masked_fill(~logits.gather(-1, best).isfinite(), -1)[:, 0]
        # Generators of the CPU: a seed draws the same tokens whatever the model runs on.
        p = self.distribution(logits_BV, seen_BV).cpu()
        none = ~p.sum(-1).isfinite()
        # multinomial raises for the whole batch where one row holds a NaN.
        p = p.masked_fill(none[:, None], 1.0)
        if isinstance(generator, torch.Generator):
            drawn = torch.multinomial(p, 1, generator=generator)
        else:
            rows = zip(p, generator, strict=True)
            # A call a row: multinomial takes one generator, from which row 2 would draw after row 1.
            drawn = torch.stack([torch.multinomial(row, 1, generator=own) for row, own in rows])
        return drawn[:, 0].masked_fill(none, -1).to(logits_BV.device)

    def _penalised(self, logits_BV: Tensor, seen_BV: Tensor | None) -> Tensor:
        logits = logits_BV.float()
        if seen_BV is None or self.repetition_penalty == 1:
            return logits
        # CTRL divides; that would raise a negative logit, so it is multiplied, as transformers does.
        penalised = torch.where(logits < 0, logits * self.repetition_penalty, logits / self.repetition_penalty)
        return torch.where(seen_BV, penalised, logits)
