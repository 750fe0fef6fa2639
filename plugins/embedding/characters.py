"""Vectors made of the characters of each token.

B batch, T tokens, L characters of a token, C width of a character, F filters, D model width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from llmlab.registry import register
from llmlab.sizes import Sizes
from llmlab.slots import Context, Embedding, Linear, Position, Table

# Of the widths 1 to 7, in the model whose vectors have 512 numbers (bilm-tf's options.json).
ELMO = (32, 32, 64, 128, 256, 512, 1024)
# Behind the 256 bytes: two marks of a sentence's ends, which are in ELMo's table and in no token here; a token's begin and end;
# nothing; a special token.
BEGIN, END, PAD, SPECIAL, ROWS = 258, 259, 260, 261, 262


class Filters(nn.Module):
    """Convolutions of one width over characters, the largest of each filter over all places: (n, L, C) -> (n, filters)."""

    def __init__(self, width: int, char_dim: int, filters: int):
        super().__init__()
        self.width = width
        self.linear = Linear(width * char_dim, filters, True, role="other")

    def forward(self, x_nLC: Tensor) -> Tensor:
        # A product over what stands side by side, so that it is a linear as others; `unfold` puts the places last.
        beside = x_nLC.unfold(1, self.width, 1).transpose(-1, -2).flatten(2)
        return self.linear(beside).amax(1)


class Highway(nn.Module):
    """g relu(linear(x)) + (1 - g) x with a gate g (Srivastava et al. 2015, arXiv:1505.00387), which begins nearly closed."""

    def __init__(self, dim: int):
        super().__init__()
        self.linear, self.gate = (Linear(dim, dim, True, role="other") for _ in range(2))
        self.gate.constants = {"bias": -2.0}  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        gate = self.gate(x).sigmoid()
        return gate * self.linear(x).relu() + (1 - gate) * x


@register("embedding", "char_cnn")
class CharacterCNN(nn.Module):
    """A token's vector from its characters, by convolutions (Kim et al. 2015, arXiv:1508.06615; ELMo: arXiv:1802.05365).

    ids (B, T) -> (B, T, D). The bytes of the token's text between marks of its ends, `longest` in all, are looked up; filters
    of each width 1, 2, ... give their largest value over all places; then ReLU, highway layers, and a linear to D, or to D / 2
    and that vector twice (`twice`). Then the position's, and dropout. There is no table of tokens to be tied or shared.
    """

    table = False
    unused = ("token_types",)
    small = {"longest": 10}
    telling = (
        {"char_dim": 5},
        {"filters": [8, 6]},
        {"highways": 1},
        {"longest": 8},
        {"twice": True},
    )

    chars: Tensor
    position: Position

    def __init__(
        self,
        sizes: Sizes,
        position: Position,
        norm: Callable[[int, float], nn.Module],
        shared: Embedding | None,
        /,
        *,
        char_dim: int = 16,  # width of a character's vector
        filters: list[int]
        | None = None,  # of the widths 1, 2, ...; None: ELMo's, of 7 widths, in proportion to the vector
        highways: int = 2,  # highway layers
        longest: int = 50,  # characters of a token, the marks of its ends included; what is behind them is cut off
        twice: bool = False,  # a vector of D / 2 twice, so that both directions of attention=lstm_apart begin with the same
    ):
        super().__init__()
        if shared is not None:
            raise ValueError(
                "embedding=char_cnn has no table of tokens, so none can be shared; choose another embedding there"
            )
        if twice and sizes.dim % 2:
            raise ValueError(f"embedding.twice=true takes an even model.dim, but it is {sizes.dim}")
        width = sizes.dim // 2 if twice else sizes.dim
        numbers = [max(1, round(n * width / 512)) for n in ELMO] if filters is None else list(filters)
        if not numbers or min(numbers) < 1 or char_dim < 1 or highways < 0:
            raise ValueError(
                f"embedding.filters={numbers} and embedding.char_dim={char_dim} must be at least 1, and "
                f"embedding.highways={highways} at least 0"
            )
        if longest < max(3, len(numbers)):
            raise ValueError(
                f"embedding.longest={longest} must be at least 3, and as long as the widest filter, {len(numbers)}"
            )
        self.embed_dim, self.twice = sizes.dim, twice
        object.__setattr__(self, "position", position)
        # Kept with the weights: what a token's characters are, only the tokenizer tells, which no model has.
        self.register_buffer("chars", torch.empty(sizes.vocab_size, longest, dtype=torch.long))
        self.table_of_chars = Table(ROWS, char_dim, role="embed")
        self.filters = nn.ModuleList(Filters(k, char_dim, n) for k, n in enumerate(numbers, 1))
        self.highways = nn.ModuleList(Highway(sum(numbers)) for _ in range(highways))
        self.project = Linear(sum(numbers), width, True, role="other")
        self.dropout = nn.Dropout(sizes.dropout)

    @property
    def weight(self) -> Tensor:
        raise ValueError("embedding=char_cnn has no table of tokens that a head could use; choose another embedding")

    @torch.no_grad()
    def spell(self, text: Callable[[int], str]) -> None:
        """Sets the characters of each id. text: what an id stands for, "" for a special token, which its number then tells."""
        longest = self.chars.shape[1]
        rows = []
        for i in range(len(self.chars)):
            inner = list(text(i).encode()) or [SPECIAL, *str(i).encode()]
            row = [BEGIN, *inner[: longest - 2], END]
            rows.append(row + [PAD] * (longest - len(row)))
        self.chars.copy_(torch.tensor(rows))

    def forward(self, ids_BT: Tensor, ctx: Context) -> Tensor:
        x_nLC = self.table_of_chars(self.chars[ids_BT.flatten()])
        x = torch.cat([filters(x_nLC) for filters in self.filters], -1).relu()
        for highway in self.highways:
            x = highway(x)
        x_BTD = self.project(x).unflatten(0, ids_BT.shape)
        if self.twice:
            x_BTD = torch.cat([x_BTD, x_BTD], -1)
        where = self.position.embed(self.position.ids(ctx))
        return self.dropout(x_BTD if where is None else x_BTD + where.to(x_BTD.dtype))
