"""Wirings of sublayers, norms and the residual, one sublayer after the other."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping

from torch import Tensor, nn

from llmlab.registry import register
from llmlab.sizes import Sizes
from llmlab.slots import Aux

Sublayer = Callable[[Tensor], tuple[Tensor, Aux | None]]
Norms = tuple[nn.Module, ...]


class Residual(nn.Module):
    """Each sublayer in turn, with norms of its own and one dropout. A part says how many norms, and `wire`s them."""

    _norms: tuple[str, ...] = ("norm",)  # of a sublayer f: f_norm ...

    def __init__(self, sizes: Sizes, norm: Callable[[int, float], nn.Module], names: tuple[str, ...], /):
        super().__init__()
        self.names = tuple(names)
        self.dropout = nn.Dropout(sizes.dropout)
        for name in self.names:
            for kind in self._norms:
                self.add_module(f"{name}_{kind}", norm(sizes.dim, sizes.norm_eps))

    def forward(self, x_BTD: Tensor, sublayers: Mapping[str, Sublayer]) -> tuple[Tensor, Aux | None]:
        aux = None
        for name in (n for n in self.names if n in sublayers):
            x_BTD, said = self.wire(
                x_BTD, sublayers[name], tuple(getattr(self, f"{name}_{kind}") for kind in self._norms)
            )
            # A named tuple with fields is true, even if both are None.
            aux = said or aux
        return x_BTD, aux

    @abstractmethod
    def wire(self, x_BTD: Tensor, f: Sublayer, norms: Norms) -> tuple[Tensor, Aux | None]:
        """The stream behind the sublayer f, and what f says."""


@register("block", "pre")
class PreNorm(Residual):
    """Pre-norm (Xiong et al. 2020, arXiv:2002.04745): x + f(norm(x)) for each sublayer f.

    x (B, T, D) -> (B, T, D), aux.
    """

    final_norm = True

    def __init__(
        self,
        sizes: Sizes,
        norm: Callable[[int, float], nn.Module],
        names: tuple[str, ...],
        /,
        *,
        normed_residual: bool = False,  # norm(x) + f(norm(x)) (Megatron's and BLOOM's option)
        bare_start: bool = False,  # the stack's first sublayer has no norm: the embedding's was the last (ModernBERT)
    ):
        super().__init__(sizes, norm, names)
        if bare_start and sizes.layer == 0:
            # ModernBERT has an Identity in layer 0 too, so its checkpoints lack `layers.0.attn_norm.weight`.
            self.add_module(f"{self.names[0]}_norm", nn.Identity())
        self.normed_residual = normed_residual

    def wire(self, x_BTD: Tensor, f: Sublayer, norms: Norms) -> tuple[Tensor, Aux | None]:
        normed_BTD = norms[0](x_BTD)
        y_BTD, aux = f(normed_BTD)
        return (normed_BTD if self.normed_residual else x_BTD) + self.dropout(y_BTD), aux


@register("block", "residual")
class PlainResidual(nn.Module):
    """The residual alone (He et al. 2015, arXiv:1512.03385): x + f(x) for each sublayer f, without norms.

    x (B, T, D) -> (B, T, D), aux.
    """

    final_norm = False
    unnormed = True
    halves = True

    def __init__(
        self,
        sizes: Sizes,
        norm: Callable[[int, float], nn.Module],
        names: tuple[str, ...],
        /,
        *,
        from_start: bool = True,  # False: the stack's first sublayer gives the stream, f(x) instead of x + f(x) (ELMo)
    ):
        super().__init__()
        self.names = tuple(names)
        self.dropout = nn.Dropout(sizes.dropout)
        self.replaces = None if from_start or sizes.layer else self.names[0]

    def forward(self, x_BTD: Tensor, sublayers: Mapping[str, Sublayer]) -> tuple[Tensor, Aux | None]:
        aux = None
        for name in (n for n in self.names if n in sublayers):
            y_BTD, said = sublayers[name](x_BTD)
            y_BTD = self.dropout(y_BTD)
            x_BTD = y_BTD if name == self.replaces else x_BTD + y_BTD
            aux = said or aux
        return x_BTD, aux


@register("block", "scaled_pre")
class ScaledPreNorm(Residual):
    """Pre-norm whose stream is the normed one (ChatGLM-6B, after DeepNorm: Wang et al. 2022, arXiv:2203.00555).

    alpha norm(x) + f(norm(x)) for each sublayer f, alpha = sublayers^exponent, those of the whole stack.
    x (B, T, D) -> (B, T, D), aux.
    """

    final_norm = True
    keeps_input = True
    telling = ({"exponent": 0.25},)

    def __init__(
        self,
        sizes: Sizes,
        norm: Callable[[int, float], nn.Module],
        names: tuple[str, ...],
        /,
        *,
        exponent: float = 0.5,  # alpha = (2 layers)^1/2
    ):
        super().__init__(sizes, norm, names)
        # GLM's alpha counts attention and feed-forward of each layer: (2 * num_layers)^0.5.
        self.alpha = (len(self.names) * sizes.n_layers) ** exponent

    def wire(self, x_BTD: Tensor, f: Sublayer, norms: Norms) -> tuple[Tensor, Aux | None]:
        normed_BTD = norms[0](x_BTD)
        y_BTD, aux = f(normed_BTD)
        return normed_BTD * self.alpha + self.dropout(y_BTD), aux


@register("block", "post")
class PostNorm(Residual):
    """Post-norm (Vaswani et al. 2017, arXiv:1706.03762): norm(x + f(x)) for each sublayer f.

    x (B, T, D) -> (B, T, D), aux.
    """

    # Every layer ends in a norm already.
    final_norm = False

    def wire(self, x_BTD: Tensor, f: Sublayer, norms: Norms) -> tuple[Tensor, Aux | None]:
        y_BTD, aux = f(x_BTD)
        return norms[0](x_BTD + self.dropout(y_BTD)), aux


@register("block", "sandwich")
class SandwichNorm(Residual):
    """Sandwich norm (CogView: Ding et al. 2021, arXiv:2105.13290; Gemma 2 and 3): x + post(f(pre(x))) for each f.

    x (B, T, D) -> (B, T, D), aux. The norms of sublayer f are f_norm and f_post_norm.
    """

    final_norm = True
    _norms = ("norm", "post_norm")

    def wire(self, x_BTD: Tensor, f: Sublayer, norms: Norms) -> tuple[Tensor, Aux | None]:
        pre, post = norms
        y_BTD, aux = f(pre(x_BTD))
        # Gemma 2 norms what a sublayer gives before it is added, so that the stream itself is never normed.
        return x_BTD + self.dropout(post(y_BTD)), aux


@register("block", "reordered")
class ReorderedNorm(Residual):
    """Norms on what the sublayers give only (Swin v2; OLMo 2: OLMo et al. 2024, arXiv:2501.00656): x + norm(f(x)).

    x (B, T, D) -> (B, T, D), aux.
    """

    final_norm = True

    def wire(self, x_BTD: Tensor, f: Sublayer, norms: Norms) -> tuple[Tensor, Aux | None]:
        y_BTD, aux = f(x_BTD)
        return x_BTD + self.dropout(norms[0](y_BTD)), aux


@register("block", "deepnorm")
class DeepNorm(Residual):
    """DeepNorm (Wang et al. 2022, arXiv:2203.00555): norm(alpha x + f(x)) for each f, alpha = sublayers^exponent.

    x (B, T, D) -> (B, T, D), aux. The sublayers of the whole stack count: (2N)^1/4 in a decoder of N layers, as in the
    paper; goes with init=deepnorm.
    """

    final_norm = False
    telling = ({"exponent": 0.5},)

    def __init__(
        self,
        sizes: Sizes,
        norm: Callable[[int, float], nn.Module],
        names: tuple[str, ...],
        /,
        *,
        exponent: float = 0.25,  # 0.5 in GLM-130B
    ):
        super().__init__(sizes, norm, names)
        # Not 2 a layer: a decoder with cross-attention has three sublayers, and (3M)^(1/4) in the paper.
        self.alpha = (len(self.names) * sizes.n_layers) ** exponent

    def wire(self, x_BTD: Tensor, f: Sublayer, norms: Norms) -> tuple[Tensor, Aux | None]:
        y_BTD, aux = f(x_BTD)
        return norms[0](x_BTD * self.alpha + self.dropout(y_BTD)), aux
