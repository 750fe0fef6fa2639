"""Attention from its papers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from llmlab.check.twins.observers.attention import BEFORE
from llmlab.sizes import Sizes
from llmlab.twins import Given, twin
from twins import Settings, lstm

BOTH_WAYS = {"causal": False, "sees_all": True}

TRAITS: list[dict[str, Any]] = [
    {"attention.qkv_bias": True},
    {"attention.out_bias": True},
    {"attention.qk_norm": "head"},
    {"attention.qk_norm": "each_head", "attention.qkv_bias": True},
    {"attention.qk_norm": "full"},
    {"attention.scale": 0.7},
    {"attention.scale_over_layer": True, "layer": 2},
    {"attention.scale_over_layer": True, "layer": 2, "attention.scale": 0.7},
    {"attention.softcap": 0.8},
    {"attention.sink": True},
    {"attention.clip_qkv": 0.4},
    {"attention.dropout": 1.0, "attention.out_bias": True},
    {"source_dim": 20},
    {"source_dim": 20, "attention.qk_norm": "head"},
]
MORE: Settings = {
    "gqa": [
        *((traits, {}) for traits in TRAITS),
        *(({"n_heads": n, "n_kv_heads": None}, {}) for n in (3, 4, 8, 12)),
    ],
    "mha": [({"attention.qk_norm": "each_head", "attention.sink": True, "layer": 1}, {})],
    "mqa": [({"attention.qk_norm": "full", "attention.clip_qkv": 0.9, "attention.out_bias": True}, {})],
    "mla": [
        *((traits, {"q_rank": 11}) for traits in TRAITS if not {"attention.qk_norm", "attention.clip_qkv"} & {*traits}),
        ({"head_dim": 3}, {}),
        ({"head_dim": 10}, {}),
    ],
    **{n: [({}, {"state": 31}), (BOTH_WAYS, {}), (BOTH_WAYS, {"state": 9, "forget_bias": 0.5})] for n in lstm.TWINS},
}
REFUSED: Settings = {
    "gqa": [({"n_kv_heads": 4}, {}), ({"attention.qk_norm": "each"}, {})],
    **{n: [({}, {"state": 0}), ({"causal": False}, {}), ({**BOTH_WAYS, "dim": 25}, {})] for n in lstm.TWINS},
    "mla": [({}, {key: 0}) for key in ("q_rank", "kv_rank", "nope_dim", "rope_dim", "v_dim")],
}


def softmax_attention(given: Given, q, k, v, seen, bias, scale: float) -> np.ndarray:
    """softmax(softcap(scale q.k + bias)) v of (B, N, T, H), (B, N, S, H), (B, N, S, V); the sink is one more logit."""
    traits = given.sizes.attention
    scores = scale * np.einsum("bnth,bnsh->bnts", q, k) + bias
    if traits.softcap is not None:
        scores = traits.softcap * np.tanh(scores / traits.softcap)
    powers = np.where(seen, np.exp(scores), 0.0)
    total = powers.sum(-1, keepdims=True)
    if traits.sink:
        total = total + np.exp(given.weights["sink"])[None, :, None, None]
    return np.einsum("bnts,bnsv->bntv", powers / total, v)


def scale_of(sizes: Sizes, width: int) -> float:
    traits = sizes.attention
    scale = 1 / math.sqrt(width) if traits.scale is None else traits.scale
    return scale / (1 + sizes.layer) if traits.scale_over_layer else scale


def linear(given: Given, name: str, x: np.ndarray) -> np.ndarray:
    y = np.einsum("...i,oi->...o", x, given.weights[f"{name}.weight"])
    return y + given.weights[f"{name}.bias"] if f"{name}.bias" in given.weights else y


def layernorm(given: Given, name: str, x: np.ndarray, eps: float) -> np.ndarray:
    apart = x - x.mean(-1, keepdims=True)
    y = given.weights[f"{name}.weight"] * apart / np.sqrt((apart**2).mean(-1, keepdims=True) + eps)
    return y + given.weights.get(f"{name}.bias", 0.0)


def calls(given: Given, of_text, of_source) -> dict[str, np.ndarray]:
    """Outputs by call, of of_text() -> (B, T, D) and of_source() -> (B, T, D)."""
    cross = of_source()
    out = {"cross": cross, "crossed": cross[:, BEFORE:]}
    if given.sizes.source_dim in (0, given.sizes.dim):
        whole = of_text()
        out |= {"self": whole, "cached": whole[:, BEFORE:], "unturned": whole[:, BEFORE:]}
        if given.sizes.attention.dropout == 1.0:  # all weights are 0
            out["training"] = np.broadcast_to(
                linear(given, "out", np.zeros(given.weights["out.weight"].shape[1])), whole.shape
            )
    return out


def merged(o: np.ndarray) -> np.ndarray:
    """Heads side by side: (B, N, T, V) -> (B, T, N V)."""
    return np.concatenate([o[:, n] for n in range(o.shape[1])], -1)


def causal(length: int) -> np.ndarray:
    return np.tril(np.ones((length, length), bool))


def multi_head(given: Given) -> dict[str, np.ndarray]:
    sizes, traits, inputs = given.sizes, given.sizes.attention, given.inputs
    n, width = sizes.n_heads, sizes.head_dim
    groups = {"none": n, "all": 1, "groups": sizes.n_kv_heads or fewest(n)}[given.options["share"]]

    def heads(name: str, x: np.ndarray, count: int) -> np.ndarray:
        """Linear, norm and clip of each head: (..., T, in) -> (..., count, T, width)."""
        y = linear(given, name, x)
        kind = traits.qk_norm if name != "v" else None
        if kind == "full":
            y = layernorm(given, f"{name}_norm", y, sizes.norm_eps)
        each = [y[..., i * width : (i + 1) * width] for i in range(count)]
        if kind == "head":
            each = [layernorm(given, f"{name}_norm", one, sizes.norm_eps) for one in each]
        if kind == "each_head":
            each = [layernorm(given, f"{name}_norm.{i}", one, sizes.norm_eps) for i, one in enumerate(each)]
        if traits.clip_qkv is not None:
            each = [np.minimum(np.maximum(one, -traits.clip_qkv), traits.clip_qkv) for one in each]
        return np.stack(each, -3)

    def attended(q, k, v, seen, bias) -> np.ndarray:
        k, v = (np.stack([x[:, i * groups // n] for i in range(n)], 1) for x in (k, v))
        return linear(given, "out", merged(softmax_attention(given, q, k, v, seen, bias, scale_of(sizes, width))))

    def of_text() -> np.ndarray:
        x = inputs["x"]
        q, k, v = heads("q", x, n), heads("k", x, groups), heads("v", x, groups)
        return attended(q * inputs["q_factor"], k * inputs["k_factor"], v, causal(x.shape[1]), inputs["bias"])

    def of_source() -> np.ndarray:
        x = inputs["source"]
        seen = inputs["valid"][:, None, None, :]
        return attended(heads("q", inputs["x"], n), heads("k", x, groups), heads("v", x, groups), seen, 0.0)

    out = calls(given, of_text, of_source)
    if "self" in out:
        out |= {"queries": heads("q", inputs["vectors"], n), "keys": heads("k", inputs["vectors"], groups)}
    return {**out, "pair_width": np.array(n * (width + width))}


def fewest(n: int) -> int:
    """The key-value heads of gqa by default: the largest divisor of n that is at most a quarter of it, else 1."""
    return max([d for d in range(1, n + 1) if n % d == 0 and 4 * d <= n], default=1)


twin("attention", "mha", source="Vaswani et al. 2017, section 3.2; traits as `model.attention` says")(multi_head)
twin("attention", "gqa", source="Ainslie et al. 2023, section 2.2; traits as `model.attention` says")(multi_head)
twin("attention", "mqa", source="Shazeer 2019, section 3; traits as `model.attention` says")(multi_head)


@twin("attention", "mla", source="DeepSeek-AI 2024 (V2), equations 9 to 19; the latents' eps as in its code")
def mla(given: Given) -> dict[str, np.ndarray]:
    options, sizes, inputs = given.options, given.sizes, given.inputs
    n = sizes.n_heads
    kv_rank, nope = options["kv_rank"] or 4 * sizes.head_dim, options["nope_dim"] or sizes.head_dim
    rope = options["rope_dim"] or max(2, 2 * (sizes.head_dim // 4))
    v_dim = options["v_dim"] or sizes.head_dim

    def split(y: np.ndarray, count: int, first: int) -> tuple[np.ndarray, np.ndarray]:
        """(B, T, count * width) -> each head's first numbers and its last ones (B, count, T, .)."""
        width = y.shape[-1] // count
        each = np.stack([y[..., i * width : (i + 1) * width] for i in range(count)], 1)
        return each[..., :first], each[..., first:]

    def attended(source, seen, bias, q_factor, k_factor) -> np.ndarray:
        x = inputs["x"]
        if options["q_rank"] is None:
            q = linear(given, "q", x)
        else:
            q = linear(given, "q_up", layernorm(given, "q_norm", linear(given, "q_down", x), 1e-6))
        q_content, q_turned = split(q, n, nope)
        down = linear(given, "kv_down", source)
        latent = layernorm(given, "kv_norm", down[..., :kv_rank], 1e-6)
        k_turned = np.repeat(down[:, None, :, kv_rank:], n, 1)
        k_content, v = split(linear(given, "kv_up", latent), n, nope)
        q = np.concatenate([q_content, q_turned * q_factor], -1)
        k = np.concatenate([k_content, k_turned * k_factor], -1)
        return linear(given, "out", merged(softmax_attention(given, q, k, v, seen, bias, scale_of(sizes, nope + rope))))

    def of_text() -> np.ndarray:
        x = inputs["x"]
        return attended(x, causal(x.shape[1]), inputs["bias"], inputs["q_factor"], inputs["k_factor"])

    def of_source() -> np.ndarray:
        return attended(inputs["source"], inputs["valid"][:, None, None, :], 0.0, 1.0, 1.0)

    return {**calls(given, of_text, of_source), "pair_width": np.array(n * (nope + rope + v_dim))}
