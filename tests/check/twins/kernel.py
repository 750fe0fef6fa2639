"""Twins of kernels: softmax(s) v one query at a time, and the bytes that they keep, by PyTorch's documentation."""

from __future__ import annotations

import math

import numpy as np

from llmlab.check.twins.observers.kernel import (
    ABILITIES,
    CASES,
    HEADS,
    LENGTH,
    ROWS,
    SCALE,
    TRAINS,
    V_WIDTH,
    WIDTH,
    KernelCase,
    region_of,
)
from llmlab.twins import Given, twin


def attention(given: Given, name: str, case: KernelCase) -> np.ndarray:
    inputs, before = given.inputs, LENGTH - case.queries
    region = region_of(case).numpy()
    out = np.zeros((ROWS, HEADS, case.queries, V_WIDTH))
    for b, n, t in np.ndindex(ROWS, HEADS, case.queries):
        head, at = n * case.key_heads // HEADS, before + t
        powers, total = np.zeros(V_WIDTH), math.exp(inputs["sink"][n]) if case.sink else 0.0
        for s in np.flatnonzero(inputs[f"{name}.seen"][b, t]):
            query = inputs["other_q" if case.regions and region[b, at, s] else "q"][b, n, at]
            score = SCALE * (query * inputs["k"][b, head, s]).sum()
            if case.bias:
                score += inputs["own_bias"][b if case.bias == "own" else 0, n, at, s]
            if case.softcap is not None:
                score = case.softcap * math.tanh(score / case.softcap)
            powers, total = powers + math.exp(score) * inputs["v"][b, head, s], total + math.exp(score)
        out[b, n, t] = powers / total if total else 0.0
    return out


def outputs(given: Given, refused: set[str], trains: list[int], kept=None, fused=None) -> dict[str, np.ndarray]:
    out = {"abilities": np.array([a not in refused for a in ABILITIES]), "trains": np.array(trains)}
    for name, case in CASES.items():
        if not {ability for ability, asked in case.flags().items() if asked} & refused:
            out[name] = attention(given, name, case)
            if kept is not None:
                out[f"{name}.kept"] = np.array([kept(name, case, size) for size in (4, 2)])
            if fused is not None:
                out[f"{name}.fused"] = np.array(fused(name))
    return out


def sum_a_query(case: KernelCase) -> int:
    """Bytes of a float32 for each query of each head."""
    return 4 * ROWS * HEADS * case.queries


def of_sdpa(name: str, case: KernelCase, size: int) -> int:
    """Bytes of a sum a query; of a mask, or a bias of each head, in the queries' type; and of k and v, repeated where
    FlashAttention can't run, which takes half types without a mask."""
    plain = not case.context and case.left is None and (case.mask == "bidirectional" or case.queries in (1, LENGTH))
    masked = bool(case.bias) or not plain
    numbers = 0
    if masked:
        rows = ROWS if case.context else 1  # else all rows see the same
        numbers = (HEADS if case.bias else 1) * rows * case.queries * LENGTH
    if masked or size == 4:
        numbers += (HEADS // case.key_heads - 1) * ROWS * case.key_heads * LENGTH * (WIDTH + V_WIDTH)
    return numbers * size + sum_a_query(case)


def of_varlen(name: str, case: KernelCase, size: int) -> int:
    return sum_a_query(case) if "documents" in case.context else of_sdpa(name, case, size)


@twin("kernel", "eager", source="Vaswani et al. 2017, equation 1; a sink as in gpt-oss, a soft cap as in Gemma 2")
def eager(given: Given) -> dict[str, np.ndarray]:
    return outputs(given, set(), [1] * len(TRAINS))


@twin("kernel", "sdpa", source="Vaswani et al. 2017, equation 1; kept: PyTorch's documentation")
def sdpa(given: Given) -> dict[str, np.ndarray]:
    return outputs(given, {"softcap", "sink", "regions"}, [1] * len(TRAINS), of_sdpa)


@twin(
    "kernel", "flex", source="Vaswani et al. 2017, equation 1; a soft cap as in Gemma 2; kept: PyTorch's documentation"
)
def flex(given: Given) -> dict[str, np.ndarray]:
    return outputs(
        given,
        {"sink", "regions", "dropout"},
        [0, 0, 1, 1],
        lambda name, case, size: sum_a_query(case),
        lambda name: True,
    )


@twin("kernel", "varlen", source="Vaswani et al. 2017, equation 1; kept: PyTorch's documentation")
def varlen(given: Given) -> dict[str, np.ndarray]:
    return outputs(given, {*ABILITIES}, [0, 0, 0, 1], of_varlen, lambda name: name in ("packed", "packed_full"))
