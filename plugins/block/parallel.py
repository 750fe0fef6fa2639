"""Sublayers that all read the same stream and are added up."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

from torch import Tensor, nn

from llmlab.registry import register
from llmlab.sizes import Sizes
from llmlab.slots import Aux

Sublayer = Callable[[Tensor], tuple[Tensor, Aux | None]]


@register("block", "parallel")
class Parallel(nn.Module):
    """Parallel sublayers (GPT-J; PaLM: Chowdhery et al. 2022, arXiv:2204.02311): x + the sum of f(norm(x)) over all f.

    x (B, T, D) -> (B, T, D), aux. With one norm it is called `norm`, with two each sublayer f has its own f_norm.
    """

    final_norm = True

    def __init__(
        self,
        sizes: Sizes,
        norm: Callable[[int, float], nn.Module],
        names: tuple[str, ...],
        /,
        *,
        norms: Literal[1, 2] = 1,  # one that all sublayers share (Phi, Falcon 7B), or one each (GPT-NeoX, Falcon 40B)
    ):
        super().__init__()
        self.names = tuple(names)
        self.dropout = nn.Dropout(sizes.dropout)
        self.norm_of = {name: "norm" if norms == 1 else f"{name}_norm" for name in self.names}
        # Not a set: strings hash differently in each process, so ranks would hold their parameters in different orders.
        for name in dict.fromkeys(self.norm_of.values()):
            self.add_module(name, norm(sizes.dim, sizes.norm_eps))

    def forward(self, x_BTD: Tensor, sublayers: Mapping[str, Sublayer]) -> tuple[Tensor, Aux | None]:
        aux, y_BTD = None, x_BTD
        # A shared norm runs once a layer, not once for each sublayer: Phi and Falcon 7B feed the same normed stream to both.
        normed = {name: getattr(self, name)(x_BTD) for name in dict.fromkeys(self.norm_of.values())}
        for name in (n for n in self.names if n in sublayers):
            out_BTD, said = sublayers[name](normed[self.norm_of[name]])
            # Each sublayer drops out by itself, as `post_attention_dropout` and `post_mlp_dropout` of GPT-NeoX.
            y_BTD = y_BTD + self.dropout(out_BTD)
            aux = said or aux
        return y_BTD, aux
