"""Twins of positions that are added to the scores."""

from __future__ import annotations

import math

import numpy as np

from llmlab.twins import Given, twin
from twins.position.added import looked_up, table_size
from twins.position.text import SCALE, Text, counted, distances, products, scores, spread


def bfloat16(x: np.ndarray) -> np.ndarray:
    """Rounded to eight significant bits, ties to even."""
    mantissa, exponent = np.frexp(x)
    return np.ldexp(np.round(mantissa * 256), exponent - 8)


def slopes(n_heads: int, most: float) -> np.ndarray:
    """As the authors' get_slopes: 2^(-most i / n) of a power of two; else those of the next lower, and of every other of the
    next higher."""
    if math.log2(n_heads).is_integer():
        return np.array([2 ** (-most * (i + 1) / n_heads) for i in range(n_heads)])
    lower = 2 ** math.floor(math.log2(n_heads))
    return np.concatenate([slopes(lower, most), slopes(2 * lower, most)[0::2][: n_heads - lower]])


@twin("position", "alibi", source="Press et al. 2021, section 3, and its get_slopes; rounding and scale as in Falcon")
def alibi(given: Given) -> dict[str, np.ndarray]:
    options, sizes = given.options, given.sizes
    slope = slopes(sizes.n_heads, options["max_bias"])[None, :, None, None]
    scale = (sizes.attention.scale or 1 / math.sqrt(sizes.head_dim)) if options["scaled"] else 1.0

    def scored(text: Text, q: np.ndarray, k: np.ndarray) -> np.ndarray:
        ids = counted(text, skip_padding=options["skip_padding"], anew=options["rounded"])
        bias = -slope * np.abs(distances(ids))[:, None]
        if options["rounded"]:
            at = bfloat16(bfloat16(slope) * ids[:, None, None])
            bias = at - np.swapaxes(at, 2, 3)
        return products(text, q, k) + scale * bias

    return scores(given, scored)


def t5_bucket(distance: np.ndarray, causal: bool, buckets: int, most: int) -> np.ndarray:
    """Key minus query -> its bucket (Raffel et al. 2019, section 2.1: logarithmic from half of them on)."""
    out = np.zeros_like(distance)
    for at, d in np.ndenumerate(distance):
        n = buckets if causal else buckets // 2
        first = 0 if causal or d <= 0 else n
        far = max(-d, 0) if causal else abs(d)
        exact = n // 2
        if far >= exact:
            far = min(exact + int(math.log(far / exact) / math.log(most / exact) * (n - exact)), n - 1)
        out[at] = first + far
    return out


def t5_scores(given: Given, ids_of, size: int = 0) -> dict[str, np.ndarray]:
    table, options = given.weights["table.weight"], given.options

    def scored(text: Text, q: np.ndarray, k: np.ndarray) -> np.ndarray:
        bucket = t5_bucket(distances(ids_of(text)), given.sizes.causal, options["buckets"], options["max_distance"])
        return products(text, q, k) + np.moveaxis(table[bucket], -1, 1)

    return scores(given, scored, size=options["buckets"] * given.sizes.n_heads + size)


@twin("position", "t5_bias", source="Raffel et al. 2019, section 2.1, and T5's relative_position_bucket")
def t5_bias(given: Given) -> dict[str, np.ndarray]:
    return t5_scores(given, lambda text: counted(text, skip_padding=False, anew=False))


@twin("position", "learned_t5_bias", source="Song et al. 2020; the bias by places in the sequence, as in its code")
def learned_t5_bias(given: Given) -> dict[str, np.ndarray]:
    table = given.weights["learned.table.weight"]
    biases = t5_scores(given, lambda text: np.tile(np.arange(text.length), (len(text.ids), 1)), table_size(given))
    return {**biases, **looked_up(given, table)}


@twin(
    "position",
    "disentangled",
    source="He et al. 2020, equation 4; buckets and rows as in DeBERTa-v2's code",
)
def disentangled(given: Given) -> dict[str, np.ndarray]:
    options, table = given.options, given.weights["table.weight"]
    span = options["buckets"] or options["max_distance"]
    if options["normed"]:
        apart = table - table.mean(-1, keepdims=True)
        table = apart / np.sqrt((apart**2).mean(-1, keepdims=True) + given.sizes.norm_eps)
        table = table * given.weights["norm.weight"] + given.weights["norm.bias"]
    keys = np.einsum("ld,khd->klh", table, given.inputs["k_projection"])
    queries = np.einsum("ld,nhd->nlh", table, given.inputs["q_projection"])
    n_terms = 1 + options["content_to_position"] + options["position_to_content"]

    def scored(text: Text, q: np.ndarray, k: np.ndarray) -> np.ndarray:
        ids = counted(text, skip_padding=False, anew=False)
        total = np.einsum("bnth,bnsh->bnts", q, k)
        own_keys = spread(keys[None], q.shape[1])[0]
        for b, t, s in np.ndindex(len(ids), text.length, text.length):
            row = min(max(log_bucket(ids[b, t] - ids[b, s], options) + span, 0), 2 * span - 1)
            if options["content_to_position"]:
                total[b, :, t, s] += (q[b, :, t] * own_keys[:, row]).sum(-1)
            if options["position_to_content"]:
                total[b, :, t, s] += (k[b, :, s] * queries[:, row]).sum(-1)
        return SCALE * total / math.sqrt(n_terms)

    size = 2 * span * given.sizes.dim + (2 * given.sizes.dim if options["normed"] else 0)

    def dropped(text: Text, q: np.ndarray, k: np.ndarray) -> np.ndarray:
        return products(text, q, k) / math.sqrt(n_terms)  # the vectors of distances are what is dropped

    return scores(given, scored, size=size, dropped=dropped)


def log_bucket(distance: int, options) -> int:
    """DeBERTa-v2's make_log_bucket_position: single ones up to half of the buckets, then ceil of a logarithm."""
    if options["buckets"] is None or abs(distance) <= options["buckets"] // 2:
        return distance
    middle = options["buckets"] // 2
    grown = math.log(abs(distance) / middle) / math.log((options["max_distance"] - 1) / middle) * (middle - 1)
    return (math.ceil(grown) + middle) * (1 if distance > 0 else -1)


@twin("position", "xlnet_relative", source="Dai et al. 2019, section 3.3; segments: Yang et al. 2019, section 2.5")
def xlnet_relative(given: Given) -> dict[str, np.ndarray]:
    options, weights, sizes = given.options, given.weights, given.sizes
    width = sizes.rotary_dim
    u, v = weights["content_bias"], weights["position_bias"]

    def distance_key(distance: int) -> np.ndarray:
        """(N, width): W r, where r has all sines first."""
        if options["clamp"] is not None:
            distance = min(max(distance, -options["clamp"]), options["clamp"])
        angles = [distance / 10000 ** (2 * i / sizes.dim) for i in range(sizes.dim // 2)]
        r = np.array([*map(math.sin, angles), *map(math.cos, angles)])
        return (weights["project.weight"] @ r).reshape(sizes.n_heads, width)

    known: dict[int, np.ndarray] = {}

    def dropped(text: Text, q: np.ndarray, k: np.ndarray) -> np.ndarray:
        return scored(text, q, k, sinusoid=0.0)

    def scored(text: Text, q: np.ndarray, k: np.ndarray, sinusoid: float = 1.0) -> np.ndarray:
        ids = counted(text, skip_padding=False, anew=False)
        segments = np.zeros_like(text.ids) if text.segments is None else text.segments
        if ids.ndim == 3:
            ids, segments = ids[:, 0], ids[:, 1]
        total = np.einsum("bnth,bnsh->bnts", q, k)
        q, k = q[..., -width:], k[..., -width:]
        for b, t, s in np.ndindex(len(ids), text.length, text.length):
            if ids[b, t] < 0:
                total[b, :, t, s] = 0.0
                continue
            distance = int(ids[b, t] - ids[b, s])
            if options["both_ways"] and b >= len(ids) // 2:
                distance = -distance
            if distance not in known:
                known[distance] = distance_key(distance)
            total[b, :, t, s] += (u * k[b, :, s]).sum(-1) + ((q[b, :, t] + v) * sinusoid * known[distance]).sum(-1)
            if options["segments"]:
                other = int(segments[b, t] != segments[b, s])
                of_segment = weights["segments.weight"][other].reshape(sizes.n_heads, width)
                total[b, :, t, s] += ((q[b, :, t] + weights["segment_bias"]) * of_segment).sum(-1)
        return SCALE * total

    heads = sizes.n_heads * width
    size = sizes.dim * heads + (5 if options["segments"] else 2) * heads  # W, u, v, and w and two e
    return scores(given, scored, size=size, score_width=heads, dropped=dropped)
