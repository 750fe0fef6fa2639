"""What a model costs: parameters, and floating-point operations that its mask really asks for.

A product of (m, k) and (k, n) is 2 m k n operations. Norms, softmax, activations and look-ups are not counted, as in
Kaplan et al. 2020 (arXiv:2001.08361) and the PaLM paper's model FLOPs (arXiv:2204.02311, appendix B).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import nn

from llmlab.model.experts import GroupedLinear, MixtureOfExperts
from llmlab.model.model import Model
from llmlab.model.stack import Layer, Stack
from llmlab.slots import Mask, Window


class Parameters(NamedTuple):
    total: int
    active: int  # those that a token uses: of the routed experts, per_token
    embedding: int  # of them, look-up tables: token, position and segment


def count_parameters(model: Model) -> Parameters:
    """Tied and shared parameters count once."""
    total = sum(p.numel() for p in model.parameters())
    idle = 0
    for module in model.modules():
        if isinstance(module, MixtureOfExperts):
            routed = sum(p.numel() for p in module.experts.parameters())
            idle += routed - int(routed * module.per_token // module.n_experts)
    tables = sum(
        p.numel()
        for m in model.modules()
        if getattr(m, "role", None) in ("embed", "position")
        for p in m.parameters(False)
    )
    return Parameters(total, total - idle, tables)


def linear_flops(module: nn.Module) -> float:
    """Of the linears inside `module`, a token, forward; of routed experts only those that the token visits."""
    total = 0.0
    for child in module.modules():
        if isinstance(child, nn.Linear):
            total += 2 * child.weight.numel()
        elif isinstance(child, MixtureOfExperts):
            grouped = sum(m.weight.numel() for m in child.modules() if isinstance(m, GroupedLinear))
            total += 2 * grouped / child.n_experts * child.per_token
    return total


def allowed_pairs(mask: Mask, window: Window, length: int, prefix: int | None = None, rows: int = 1024) -> int:
    """(query, key) pairs that mask and window let see each other in a text of `length` tokens; exact, by counting."""
    data = {} if prefix is None else {"prefix_len": torch.tensor([prefix])}
    if prefix is None and "prefix_len" in mask.needs:
        data = {"prefix_len": torch.tensor([0])}
    k = torch.arange(length)[None, :]
    if "rank" in mask.needs:  # an order has as many pairs as any other
        data |= {"rank": k, "queries": torch.zeros_like(k, dtype=torch.bool)}
    total = 0
    for start in range(0, length, rows):
        q = torch.arange(start, min(start + rows, length))[:, None]
        seen = mask.allowed(q, k, data) & window.allowed(q, k, data)
        total += int(torch.broadcast_to(seen, (*seen.shape[:-2], len(q), length)).sum())
    return total


def forward_flops(
    model: Model,
    length: int,
    *,
    source_length: int | None = None,
    head_share: float = 1.0,
    documents: Sequence[Sequence[int]] | None = None,
    dense: bool = False,
) -> float:
    """Of one sequence of `length` tokens (an encoder-decoder's decoder; its encoder reads `source_length`).

    head_share: share of the positions whose heads are computed. documents: lengths of the documents that do not see each
    other, of each of a few sequences, over which the pairs are averaged; None: one document a sequence. dense: count the
    pairs that the mask hides too, as an implementation that computes them does.
    """
    stacks = model.all_stacks()
    total = 0.0

    def pairs_of(stack: Stack, window: Window, own: int) -> float:
        if dense:
            return own * own
        each = [[own]] if documents is None else documents
        counts = {n: allowed_pairs(stack.mask, window, n) for n in {n for lengths in each for n in lengths}}
        return sum(counts[n] for lengths in each for n in lengths) / len(each)

    for stack in stacks:
        own = (source_length or length) if len(stacks) > 1 and stack is stacks[0] else length
        total += own * linear_flops(stack.embedding) + _stack_flops(stack, own, source_length or length, pairs_of)
    for head in cast("list[Any]", list(model.heads.values())):
        share = head_share if getattr(head, "per_token", False) else 1 / length
        tied = getattr(head, "out", None) is None and getattr(head, "embedding", None) is not None
        table = 2 * head.embedding.weight.numel() if tied else 0
        total += length * share * (linear_flops(head) + table)
    return total


def _stack_flops(
    stack: Stack, length: int, source_length: int, pairs_of: Callable[[Stack, Window, int], float]
) -> float:
    total = _projected(stack, length)
    pairs: dict[Window, float] = {}
    for i in stack.spec.execute:
        layer, window = stack.layers[i], stack.windows[i]
        assert isinstance(layer, Layer)
        if window not in pairs:
            pairs[window] = pairs_of(stack, window, length)
        total += length * (linear_flops(layer.attention) + linear_flops(layer.ffn))
        total += 2 * pairs[window] * layer.attention.pair_width
        width = getattr(stack.positions[stack.position_of[i]], "score_width", 0)
        total += 2 * length * _distances(length) * width
        if layer.cross_attention is not None:
            attention = layer.cross_attention
            of_source = sum(2 * m.weight.numel() for m in attention.modules() if getattr(m, "role", "") in ("k", "v"))
            total += source_length * of_source + length * (linear_flops(attention) - of_source)
            total += 2 * length * source_length * attention.pair_width
    return total


def _distances(length: int) -> int:
    return 2 * length - 1


def _projected(stack: Stack, length: int) -> float:
    """Of the linears in position parts, which read the sinusoid of each distance."""
    return _distances(length) * sum(linear_flops(stack.positions[stack.position_of[i]]) for i in stack.spec.execute)


def training_flops_per_token(model: Model, length: int, **how) -> float:
    """Forward and backward (twice the forward), divided by the tokens of the sequence, source tokens included."""
    tokens = length + (how.get("source_length") or 0)
    without_gradient = sum(_projected(stack, length) for stack in model.all_stacks())  # sinusoids need none
    return (3 * forward_flops(model, length, **how) - without_gradient) / tokens
