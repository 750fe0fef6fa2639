"""A policy of few tokens and steps: a table of bigrams, which is any distribution over answers of two tokens.

V tokens: the first is the prompt, the special ones come last, and neither is ever an answer's, so that all answers are of one
length.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from llmlab.memory import Memory
from llmlab.slots import Output, Vocabulary

TOKENS = 4  # without special ones
LONGEST = 2  # of answers: the table has one row for a token, wherever it stands
FORBIDDEN = -30.0


def vocabulary(special: Sequence[str] = ()) -> Vocabulary:
    return Vocabulary(TOKENS + len(special), {name: TOKENS + i for i, name in enumerate(special)})


def answers(length: int) -> list[tuple[int, ...]]:
    """All that there are."""
    return list(itertools.product(range(1, TOKENS), repeat=length))


class Bigrams(nn.Module):
    """Logits (V, V) of the next token by the last as the head `tokens`; any other head gives a value (V,) of the last token."""

    def __init__(self, table: Tensor, special: int = 0):
        super().__init__()
        self.table = nn.Parameter(table.clone())
        self.values = nn.Parameter(torch.zeros(TOKENS))
        self.special = special

    @classmethod
    def drawn(cls, seed: int, special: int = 0) -> Bigrams:
        return cls(torch.randn(TOKENS, TOKENS, generator=torch.Generator().manual_seed(seed)), special)

    @classmethod
    def of(cls, log_p: np.ndarray, length: int, special: int = 0) -> Bigrams:
        """The table whose answers have the log-probabilities (N,)."""
        table = np.zeros((TOKENS, TOKENS))
        grid = np.exp(log_p).reshape(TOKENS - 1, -1)
        table[0, 1:] = np.log(grid.sum(1))
        if length > 1:
            table[1:, 1:] = np.log(grid / grid.sum(1, keepdims=True))
        return cls(torch.from_numpy(table).float(), special)

    def forward(
        self,
        batch: Mapping[str, Tensor],
        heads: Mapping[str, Tensor | None] | None = None,
        memory: Memory | None = None,
        layers: Sequence[int] = (),
    ) -> Output:
        barred = torch.zeros(TOKENS).index_fill(0, torch.tensor(0), FORBIDDEN)
        table = nn.functional.pad(self.table + barred, (0, self.special), value=FORBIDDEN)
        found = {}
        for role, at in (heads or {"tokens": None}).items():
            of = table if role == "tokens" else self.values
            # Padding may be of any id, a special one too.
            each = of[batch["ids"].clamp(max=TOKENS - 1)]
            found[role] = each if at is None else each[at]
        return Output(batch["ids"], found, None)

    def rows(self, temperature: float = 1.0) -> np.ndarray:
        """(V, 3): log-probabilities of the next token by the last."""
        return (self.table[:, 1:].detach().double() / temperature).log_softmax(-1).numpy()

    def log_p(self, length: int) -> np.ndarray:
        """(N,) of all answers."""
        rows = self.rows()
        return np.array([sum(rows[a, b - 1] for a, b in itertools.pairwise((0, *y))) for y in answers(length)])

    def draw(
        self, n: int, length: int, chance: np.random.Generator, temperature: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """(n, length): answers, and the log-probabilities of their tokens."""
        rows = self.rows(temperature)
        shares = np.exp(rows).cumsum(-1)
        last, found = np.zeros(n, np.int64), []
        for _ in range(length):
            # The last share is 1 but for rounding, above which a draw may be.
            following = 1 + (shares[last] < chance.random(n)[:, None]).sum(1).clip(max=TOKENS - 2)
            found.append((following, rows[last, following - 1]))
            last = following
        return np.stack([y for y, _ in found], 1), np.stack([p for _, p in found], 1)
