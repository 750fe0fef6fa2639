"""Twins of positions that turn queries and keys."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from llmlab.twins import Given, twin
from twins.position.added import pairs
from twins.position.text import SCALE, Text, counted, documents_of, products, scores


def frequencies(options: Mapping[str, Any], dims: int, original: int, length: int) -> tuple[np.ndarray, float]:
    """(pairs,): the angle per position of each pair, for a text of this length; and the factor on cosines and sines."""
    scaling, theta, factor = options["scaling"], options["theta"], options.get("factor", 1.0)
    i = np.arange((dims + 1) // 2)
    plain = theta ** (-2 * i / dims)
    wavelength = 2 * math.pi / plain
    if scaling == "linear":  # Chen et al. 2023, section 2.3: positions over the factor
        return plain / factor, 1.0
    if scaling in ("dynamic", "dynamic_steps"):
        if scaling == "dynamic":  # bloc97 and emozilla: NTK by the length of the text
            stretch = factor * max(length, original) / original - (factor - 1)
        else:  # Qwen's get_ntk_alpha: 2^ceil(log2(length / trained) + 1) - 1, at least 1
            stretch = max(2 ** math.ceil(math.log2(length / original) + 1) - 1, 1)
        return (theta * stretch ** (dims / (dims - 2))) ** (-2 * i / dims), 1.0
    if scaling == "llama3":  # Llama 3.1's apply_scaling
        out = []
        for wave, f in zip(wavelength, plain, strict=True):
            if wave < original / options["high_freq_factor"]:
                out.append(f)
            elif wave > original / options["low_freq_factor"]:
                out.append(f / factor)
            else:
                low, high = options["low_freq_factor"], options["high_freq_factor"]
                smooth = (original / wave - low) / (high - low)
                out.append((1 - smooth) * f / factor + smooth * f)
        return np.array(out), 1.0
    if scaling == "yarn":
        return yarn(options, dims, original, plain), yarn_amplitude(options)
    if scaling == "longrope":  # Ding et al. 2024, equation 3, and Phi-3's code
        amplitude = math.sqrt(1 + math.log(max(factor, 1.0)) / math.log(original))
        given = options["attention_factor"]
        by_pair = options["long_factor" if length > original else "short_factor"]
        return plain / np.array(by_pair), amplitude if given is None else given
    return plain, 1.0


def yarn(options: Mapping[str, Any], dims: int, original: int, plain: np.ndarray) -> np.ndarray:
    """Peng et al. 2023, section 3.2, with the ramp over pairs of the authors' code: gamma is 1 where pairs turn often."""

    def pair_of(turns: float) -> float:
        return dims * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(options["theta"]))

    low, high = pair_of(options["beta_fast"]), pair_of(options["beta_slow"])
    if options["truncate"]:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dims - 1)
    if low == high:
        high += 0.001
    gamma = 1 - np.clip((np.arange(len(plain)) - low) / (high - low), 0, 1)
    return (1 - gamma) * plain / options["factor"] + gamma * plain


def yarn_amplitude(options: Mapping[str, Any]) -> float:
    """Peng et al. 2023, equation 22: sqrt(1/t) = 0.1 ln s + 1; DeepSeek-V2 divides two of them."""

    def grown(m: float) -> float:
        return 0.1 * m * math.log(options["factor"]) + 1 if options["factor"] > 1 else 1.0

    if options["attention_factor"] is not None:
        return options["attention_factor"]
    if options["mscale"] is None or options["mscale_all_dim"] is None:
        return grown(1)
    return grown(options["mscale"]) / grown(options["mscale_all_dim"])


def turn(x: np.ndarray, angles: np.ndarray, amplitude: float, interleaved: bool) -> np.ndarray:
    """x (B, N, S, R), angles (B, S, pairs): each pair as a complex number times amplitude e^(i angle)."""
    n = angles.shape[-1]
    first, second = (slice(0, 2 * n, 2), slice(1, 2 * n, 2)) if interleaved else (slice(0, n), slice(n, 2 * n))
    z = (x[..., first] + 1j * x[..., second]) * amplitude * np.exp(1j * angles[:, None])
    out = x.copy()
    out[..., first], out[..., second] = z.real, z.imag
    return out


def turned_end(given: Given, x: np.ndarray, turned) -> np.ndarray:
    """x (..., H) with `turned` applied to its last rotary_dim numbers."""
    left = x.shape[-1] - given.sizes.rotary_dim
    return np.concatenate([x[..., :left], turned(x[..., left:])], -1)


SOURCES = (
    "Su et al. 2021, equation 34; linear: Chen et al. 2023; dynamic: bloc97's NTK; dynamic_steps and log_n: Qwen's code; "
    "llama3: Llama 3.1's apply_scaling; yarn: Peng et al. 2023; longrope: Ding et al. 2024 and Phi-3's code"
)


@twin("position", "rope", source=SOURCES)
def rope(given: Given) -> dict[str, np.ndarray]:
    options, sizes = given.options, given.sizes
    dims = int(sizes.rotary_dim * options["fraction"])
    original = options["original_max"] or sizes.max_positions
    by_length = options["scaling"] in ("dynamic", "dynamic_steps", "longrope")
    absolute = by_length or options["log_n"]

    def scored(text: Text, q: np.ndarray, k: np.ndarray) -> np.ndarray:
        ids = counted(text, skip_padding=absolute, anew=absolute)
        turns, amplitude = np.zeros((*ids.shape, (dims + 1) // 2)), 1.0
        for row in range(len(ids)):
            for slots in documents_of(text, row) if by_length else [list(range(text.length))]:
                length = ids[row, slots].max() + 1
                turns[row, slots], amplitude = frequencies(options, dims, original, length)
        angles = ids[..., None] * turns
        q, k = (turned_end(given, x, lambda x: turn(x, angles, amplitude, options["interleaved"])) for x in (q, k))
        # Qwen: query i (from 1) times the logarithm of i to the base of the trained length, where that is over 1.
        if options["log_n"]:
            grown = np.maximum(np.log(ids + 1) / math.log(original), 1.0)[:, None, :, None]
            left = q.shape[-1] - sizes.rotary_dim
            q = np.concatenate([q[..., :left], q[..., left:] * grown], -1)
        return products(text, q, k)

    return scores(given, scored)


@twin("position", "rope_2d", source="Su et al. 2021, equation 34, on each half of a head as in ChatGLM-6B's code")
def rope_2d(given: Given) -> dict[str, np.ndarray]:
    half = given.sizes.rotary_dim // 4 * 2

    def scored(text: Text, q: np.ndarray, k: np.ndarray) -> np.ndarray:
        place, block = pairs(text)
        plain = given.options["theta"] ** (-2 * np.arange(half // 2) / half)

        def turned(x: np.ndarray) -> np.ndarray:
            one, other, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
            interleaved = given.options["interleaved"]
            one = turn(one, place[..., None] * plain, 1.0, interleaved)
            return np.concatenate([one, turn(other, block[..., None] * plain, 1.0, interleaved), rest], -1)

        return products(text, turned_end(given, q, turned), turned_end(given, k, turned))

    return scores(given, scored)


@twin("position", "dual_chunk", source="An et al. 2024, sections 3.2 to 3.4")
def dual_chunk(given: Given) -> dict[str, np.ndarray]:
    options, sizes = given.options, given.sizes
    trained = options["original_max"] or sizes.max_positions
    chunk = options["chunk"] or max(trained * 3 // 4, 1)
    reach = chunk + (options["local"] or max(trained - chunk, 1))  # a neighbour is at least as far as a whole chunk
    dims = int(sizes.rotary_dim * options["fraction"])
    per_position, amplitude = frequencies(options, dims, trained, 0)

    def scored(text: Text, q: np.ndarray, k: np.ndarray) -> np.ndarray:
        ids = counted(text, skip_padding=True, anew=True)

        def turned(x: np.ndarray, at: np.ndarray) -> np.ndarray:
            angles = at[..., None] * per_position
            return turned_end(given, x, lambda x: turn(x, angles, amplitude, options["interleaved"]))

        keys = turned(k, ids % chunk)
        own = turned(q, ids % chunk)
        neighbour = turned(q, np.minimum(chunk + ids % chunk, reach - 1))
        far = turned(q, np.full_like(ids, reach - 1))
        out = np.zeros((*q.shape[:3], text.length))
        for b, t, s in np.ndindex(len(ids), text.length, text.length):
            apart = ids[b, t] // chunk - ids[b, s] // chunk
            query = own if apart <= 0 else neighbour if apart == 1 else far
            out[b, :, t, s] = SCALE * (query[b, :, t] * keys[b, :, s]).sum(-1)
        return out

    return scores(given, scored)
