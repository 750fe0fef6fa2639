"""An attention of your own."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import Tensor, nn

from llmlab.registry import register
from llmlab.sizes import Sizes
from llmlab.slots import LayerCache, Linear, Score, Term, View
from llmlab.twins import Given, twin


@register("attention", "my_attention")
class MyAttention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017, arXiv:1706.03762): a key and a value for each query head.

    x (B, T, D) -> (B, T, D). With `source` (B, S, D) it is cross-attention: keys and values come from there, unrotated.
    """

    # Sizes and traits of the model that it can't honour: typed with this part they are an error, not silence.
    unused = ("n_kv_heads", "attention.qk_norm", "attention.clip_qkv", "attention.sink", "attention.scale_over_layer")
    telling = ({"temperature": 2.0},)

    def __init__(
        self,
        sizes: Sizes,
        norm: Callable[[int, float], nn.Module],
        /,
        *,
        temperature: float = 1.0,  # by which the scores are divided
    ):
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"attention.temperature={temperature} must be more than 0")
        traits, width = sizes.attention, sizes.n_heads * sizes.head_dim
        self.head_dim = sizes.head_dim
        # Stated for `llmlab plan`, whose count of FLOPs does not run a kernel.
        self.pair_width = 2 * width  # multiply-adds that a pair of a query and a key costs
        # Roles and not names: init, weight decay and tensor parallelism go by them.
        self.q = Linear(sizes.dim, width, traits.qkv_bias, role="q")
        self.k = Linear(sizes.dim, width, traits.qkv_bias, role="k")
        self.v = Linear(sizes.dim, width, traits.qkv_bias, role="v")
        self.out = Linear(width, sizes.dim, traits.out_bias, role="out")
        # T5 and GPT-Neo have a scale of 1: a family sets it, and a swap keeps it.
        scale = self.head_dim**-0.5 if traits.scale is None else traits.scale
        self.score = Score(scale / temperature, traits.softcap, traits.dropout)

    def forward(
        self, x_BTD: Tensor, view: View, source_BSD: Tensor | None = None, cache: LayerCache | None = None
    ) -> Tensor:
        q_BNTH = self._heads(self.q(x_BTD))
        if source_BSD is None:
            k_BNTH, v_BNTH = self._heads(self.k(x_BTD)), self._heads(self.v(x_BTD))
            # Rotates, caches and weighs.
            o_BNTH = view.attend(q_BNTH, k_BNTH, v_BNTH, self.score, cache=cache)
        else:
            # The source was projected for the first token, and does not change.
            if cache is not None and cache.length:
                k_BNSH, v_BNSH = cache.read()
            else:
                k_BNSH, v_BNSH = self._heads(self.k(source_BSD)), self._heads(self.v(source_BSD))
                if cache is not None:
                    k_BNSH, v_BNSH = cache.update(k_BNSH, v_BNSH)
            o_BNTH = view.weigh([Term(q_BNTH, k_BNSH)], v_BNSH, self.score)
        return self.out(o_BNTH.transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        """(B, T, N * H) -> (B, N, T, H)."""
        # The width is fixed and the number of heads is not: under tensor parallelism a rank has a part of them.
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)


# Not of the class: `llmlab check` holds the part to what this says, at every setting of its options. What a twin is given, and
# which outputs it may give, is listed in the docstring of llmlab.check.twins.observers.attention.
@twin("attention", "my_attention", source="Vaswani et al. 2017, equation 1")
def definition(given: Given) -> dict[str, np.ndarray]:
    x, source, hidden = given.inputs["x"], given.inputs["source"], np.where(given.inputs["valid"], 0.0, -np.inf)
    scale = given.sizes.head_dim**-0.5 / given.options["temperature"]

    def heads(role: str, x: np.ndarray) -> np.ndarray:  # (B, T, D) -> (B, N, T, H)
        y = x @ given.weights[f"{role}.weight"].T
        return y.reshape(*x.shape[:2], given.sizes.n_heads, -1).swapaxes(1, 2)

    def attend(q: np.ndarray, k: np.ndarray, v: np.ndarray, bias: np.ndarray) -> np.ndarray:
        e = np.exp(scale * q @ k.swapaxes(2, 3) + bias)
        o = e / e.sum(-1, keepdims=True) @ v
        return o.swapaxes(1, 2).reshape(len(o), o.shape[2], -1) @ given.weights["out.weight"].T

    q, k = heads("q", x), heads("k", x) * given.inputs["k_factor"]
    later = np.triu(np.full((x.shape[1], x.shape[1]), -np.inf), 1)
    return {
        "self": attend(q * given.inputs["q_factor"], k, heads("v", x), given.inputs["bias"] + later),
        "cross": attend(q, heads("k", source), heads("v", source), hidden[:, None, None]),
    }
