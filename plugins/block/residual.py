"""How sublayers, norms and the residual are wired."""

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from llmlab.registry import register
from llmlab.sizes import Sizes
from llmlab.slots import Aux

Sublayers = Mapping[str, Callable[[Tensor], tuple[Tensor, Aux | None]]]


@register("block", "pre")
class PreNorm(nn.Module):
    """Pre-norm (Xiong et al. 2020, arXiv:2002.04745): x + f(norm(x)) for each sublayer f.

    x (B, T, D) -> (B, T, D), aux.
    """

    final_norm = True

    def __init__(self, sizes: Sizes, norm: Callable[[int, float], nn.Module], names: tuple[str, ...], /):
        super().__init__()
        self.names = tuple(names)
        self.dropout = nn.Dropout(sizes.dropout)
        for name in self.names:
            self.add_module(f"{name}_norm", norm(sizes.dim, sizes.norm_eps))

    def forward(self, x_BTD: Tensor, sublayers: Sublayers) -> tuple[Tensor, Aux | None]:
        aux = None
        for name in self.names:
            y_BTD, said = sublayers[name](self.get_submodule(f"{name}_norm")(x_BTD))
            x_BTD = x_BTD + self.dropout(y_BTD)
            aux = said or aux
        return x_BTD, aux


@register("block", "post")
class PostNorm(nn.Module):
    """Post-norm (Vaswani et al. 2017, arXiv:1706.03762): norm(x + f(x)) for each sublayer f.

    x (B, T, D) -> (B, T, D), aux.
    """

    final_norm = False

    def __init__(self, sizes: Sizes, norm: Callable[[int, float], nn.Module], names: tuple[str, ...], /):
        super().__init__()
        self.names = tuple(names)
        self.dropout = nn.Dropout(sizes.dropout)
        for name in self.names:
            self.add_module(f"{name}_norm", norm(sizes.dim, sizes.norm_eps))

    def forward(self, x_BTD: Tensor, sublayers: Sublayers) -> tuple[Tensor, Aux | None]:
        aux = None
        for name in self.names:
            y_BTD, said = sublayers[name](x_BTD)
            x_BTD = self.get_submodule(f"{name}_norm")(x_BTD + self.dropout(y_BTD))
            aux = said or aux
        return x_BTD, aux


@register("block", "sandwich")
class SandwichNorm(nn.Module):
    """Sandwich norm (CogView: Ding et al. 2021, arXiv:2105.13290; Gemma 2 and 3): x + post(f(pre(x))) for each f.

    x (B, T, D) -> (B, T, D), aux. The norms of sublayer f are f_norm and f_post_norm.
    """

    final_norm = True

    def __init__(self, sizes: Sizes, norm: Callable[[int, float], nn.Module], names: tuple[str, ...], /):
        super().__init__()
        self.names = tuple(names)
        self.dropout = nn.Dropout(sizes.dropout)
        for name in self.names:
            self.add_module(f"{name}_norm", norm(sizes.dim, sizes.norm_eps))
            self.add_module(f"{name}_post_norm", norm(sizes.dim, sizes.norm_eps))

    def forward(self, x_BTD: Tensor, sublayers: Sublayers) -> tuple[Tensor, Aux | None]:
        aux = None
        for name in self.names:
            y_BTD, said = sublayers[name](self.get_submodule(f"{name}_norm")(x_BTD))
            x_BTD = x_BTD + self.dropout(self.get_submodule(f"{name}_post_norm")(y_BTD))
            aux = said or aux
        return x_BTD, aux
