"""A block of your own: how sublayers, norms and the residual are wired."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from torch import Tensor, nn

from llmlab.registry import register
from llmlab.sizes import Sizes
from llmlab.slots import Aux
from llmlab.twins import Given, twin


@register("block", "my_block")
class MyBlock(nn.Module):
    """Pre-norm (Xiong et al. 2020, arXiv:2002.04745): x + scale f(norm(x)) for each sublayer f in turn.

    x (B, T, D) -> (B, T, D), and what the experts say. `names` are those of the sublayers, in order: attention,
    cross_attention where there is a source, ffn.
    """

    final_norm = True  # the stack needs a norm after its last layer
    telling = ({"scale": 0.5},)

    def __init__(
        self,
        sizes: Sizes,
        norm: Callable[[int, float], nn.Module],
        names: tuple[str, ...],
        /,
        *,
        scale: float = 1.0,  # of what a sublayer adds
    ):
        super().__init__()
        self.scale, self.dropout = scale, nn.Dropout(sizes.dropout)
        # By sublayer's name, so that a checkpoint finds each norm whatever the order of sublayers is.
        self.norms = nn.ModuleDict({name: norm(sizes.dim, sizes.norm_eps) for name in names})

    def forward(
        self, x_BTD: Tensor, sublayers: Mapping[str, Callable[[Tensor], tuple[Tensor, Aux | None]]]
    ) -> tuple[Tensor, Aux | None]:
        aux = None
        for name, norm in self.norms.items():
            # Cross-attention without a source.
            if name not in sublayers:
                continue
            y_BTD, said = sublayers[name](norm(x_BTD))
            x_BTD = x_BTD + self.scale * self.dropout(y_BTD)
            aux = said or aux
        return x_BTD, aux


# Not of the class: `llmlab check` holds the part to what this says, at every setting of its options. What a twin is given, and
# which outputs it may give, is listed in the docstring of llmlab.check.twins.observers.block.
@twin("block", "my_block", source="Xiong et al. 2020, figure 1b, with a scale")
def definition(given: Given) -> dict[str, np.ndarray]:
    x = given.inputs["x"]
    counts = np.arange(1, x.shape[1] + 1)[:, None]
    sublayers: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "attention": lambda y: y.cumsum(1) / counts,
        "cross_attention": np.cos,
        "ffn": lambda y: y**2 - y,
    }
    for name, f in sublayers.items():
        weight, bias = (given.weights[f"all.norms.{name}.{key}"] for key in ("weight", "bias"))
        normed = weight * x / np.sqrt((x**2).mean(-1, keepdims=True) + given.sizes.norm_eps) + bias
        x = x + given.options["scale"] * f(normed)
    return {"all": x, "final_norm": np.ones(())}
