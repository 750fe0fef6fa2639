"""Checks of visibility: which inputs affect which outputs, against a loop over the pairs that mask and windows allow."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping
from typing import cast

import torch
from torch import Tensor, nn

from llmlab import attributes
from llmlab.check import reference_attention
from llmlab.check.equivalences import SPLITS_REASON
from llmlab.check.subject import (
    FIRST_ID,
    LENGTH,
    SOURCE,
    VOCABULARY,
    CheckFailed,
    NotApplicable,
    Subject,
    generator,
    shorten_queries,
)
from llmlab.config.spec import StackSpec
from llmlab.model.model import Model
from llmlab.model.stack import Layer, Stack
from llmlab.slots import Window

Batch = dict[str, Tensor]
# Relative to the largest value. A float32 operation rounds by 2^-24 = 6e-8, so a smaller difference may be rounding.
NOISE = 1e-6
ROWS = 2


def contexts(subject: Subject) -> Iterator[tuple[str, Batch]]:
    """(description, batch) of all that a forward may be given: padding, documents, the caller's own mask, two streams."""
    batch = subject.batch(rows=ROWS)
    places = torch.arange(LENGTH)[None]
    right, left = places < torch.tensor([[LENGTH], [LENGTH - 4]]), places >= torch.tensor([[3], [0]])
    documents = torch.tensor([[0] * 5 + [1] + [2] * 6, [3] * 8 + [4] * 4])
    allowed = torch.rand(ROWS, LENGTH, LENGTH, generator=generator(3)) < 0.7
    yield "a plain text", batch
    yield "a text padded on the right", {**batch, "valid": right}
    yield "documents packed", {**batch, "documents": documents}
    yield "documents packed, padded on the left", {**batch, "documents": documents, "valid": left}
    if any(layer.parts["attention"].attribute("recurrent") for layer in subject.spec.stacks[-1].layers):
        return
    # With the diagonal: a query that sees nothing gives nothing that could be compared.
    yield "a mask of the caller's", {**batch, "allowed": allowed | torch.eye(LENGTH).bool()}
    if "queries" in subject.spec.stacks[-1].mask.attribute("needs"):
        yield "two streams", subject.batch(rows=ROWS, two_streams=True)


def causality(subject: Subject) -> None:
    """A token that changes makes no difference where mask, windows and padding hide it, through all layers."""
    if any(attributes.get(router, "moe", "leaks") for router in subject.model.routers()):
        raise NotApplicable("its experts choose among all tokens, on purpose")
    for where, batch in contexts(subject):
        if subject.expert_choice and "documents" in batch:
            continue
        changed = _changed_outputs(subject, batch, "ids")
        may = torch.tensor([_reachable(subject, batch, row) for row in range(ROWS)])
        counted = batch.get("valid", torch.ones(ROWS, LENGTH, dtype=torch.bool))
        leaks = changed & ~may & counted[:, :, None]
        if leaks.any():
            _, q, k = leaks.nonzero()[0].tolist()
            raise CheckFailed(
                f"token {k} changes what the model says of token {q}, from which it is hidden, in {where}"
            )
        blind = counted & ~changed.diagonal(dim1=1, dim2=2) & ~batch.get("queries", torch.zeros_like(counted))
        if blind.any():
            raise CheckFailed(
                f"token {blind.nonzero()[0, 1]} makes no difference to what is said of itself, in {where}"
            )
    if subject.encoder_decoder:
        _causality_of_source(subject)


def _causality_of_source(subject: Subject) -> None:
    batch = subject.batch(rows=ROWS)
    changed = _changed_outputs(subject, batch, "source_ids")
    for row, k in itertools.product(range(ROWS), range(SOURCE)):
        if batch["source_valid"][row, k] and not changed[row, :, k].any():
            raise CheckFailed(f"token {k} of the source makes no difference")
        if not batch["source_valid"][row, k] and changed[row, :, k].any():
            raise CheckFailed(f"token {k} of the source is padding, but makes a difference")


def _reachable(subject: Subject, batch: Batch, row: int) -> reference_attention.Pairs:
    """Pairs (query, key) of the last stack through all its layers. With expert choice tokens compete for experts, so that each
    affects the others whatever the window."""
    stack = subject.spec.stacks[-1]
    mask = stack.mask.factory()()
    pairs = []
    for i in stack.execute:
        window = stack.layers[i].parts["window"].factory()()
        pairs.append(
            reference_attention.visible_pairs(mask, NoWindow() if subject.expert_choice else window, batch, row)
        )
    after = reference_attention.reachable(pairs)
    if subject.expert_choice and stack.sizes.sees_all:
        return [[True] * LENGTH for _ in range(LENGTH)]
    return after


class NoWindow:
    """A window that hides nothing."""

    def sees(self, q: int, k: int, row: reference_attention.RowData) -> bool:
        return True

    def covers(self, length: int) -> bool:
        return True

    def allowed(self, q: Tensor, k: Tensor, data: Mapping[str, Tensor]) -> Tensor:
        return torch.ones(len(q), k.shape[-1], dtype=torch.bool)


@torch.no_grad()
def _changed_outputs(subject: Subject, batch: Batch, key: str) -> Tensor:
    """(B, T, S) bool: True if the hidden state of a token changes when token s of batch[key] is replaced."""
    keys = batch[key].shape[1]
    many = {k: x.repeat(keys + 1, *(1,) * (x.dim() - 1)) for k, x in batch.items()}
    for k in range(keys):
        # A view: `many` itself is changed.
        token = many[key][(k + 1) * ROWS : (k + 2) * ROWS, k]
        token += 1
        # Not 0: some parts take low ids for padding, and a changed token would vanish instead of differing.
        token[token == VOCABULARY] = FIRST_ID
    hidden = [subject.model(one, heads={}).hidden for one in _forwards(subject, many)]
    # Rounding adds up over the layers.
    return _differs(torch.cat(hidden), keys, 20 * NOISE)


def _forwards(subject: Subject, many: Batch) -> list[Batch]:
    """The batches to run: all rows at once, or one row each where all tokens of a batch affect each other."""
    if subject.splits_batch:
        raise NotApplicable(SPLITS_REASON)
    rows = len(many["ids"])
    return [{k: x[i : i + 1] for k, x in many.items()} for i in range(rows)] if subject.expert_choice else [many]


def _differs(out_CTD: Tensor, keys: int, noise: float) -> Tensor:
    """(B, T, S) bool from (1 + S) groups of B rows, the first of them unchanged: True where an output differs from it."""
    out = out_CTD.unflatten(0, (keys + 1, ROWS))
    apart = (out[1:] - out[:1]).abs().amax(-1)
    # Comparisons with NaN are false, so that a model full of NaN would count as one in which nothing changes.
    if not torch.isfinite(out).all():
        raise CheckFailed("hidden states are not finite")
    return (apart > noise * max(1.0, float(out.abs().max()))).permute(1, 2, 0)


# ---------------------------------------------------------------- one layer


def visibility(subject: Subject) -> None:
    """In each layer a query takes from those keys that its mask, its window, documents and padding show, and no others."""
    model = subject.fresh().eval()
    # With short queries attention is nearly uniform, so that no key's share is lost in rounding.
    shorten_queries(model, 0.01)
    stacks = list(zip(model.all_stacks(), subject.spec.stacks, strict=True))
    for context, batch in contexts(subject):
        stack, spec = stacks[-1]
        mask = spec.mask.factory()()
        pairs: dict[Window, Tensor] = {}
        for i, layer in enumerate(spec.layers):
            window = layer.parts["window"].factory()()
            if window not in pairs:
                pairs[window] = torch.tensor(
                    [reference_attention.visible_pairs(mask, window, batch, row) for row in range(ROWS)]
                )
            counted = batch.get("valid", torch.ones(ROWS, LENGTH, dtype=torch.bool))
            where = f"layer {i} (window={layer.parts['window']}), in {context}"
            _check_layer(subject, model, cast("Layer", stack.layers[i]).attention, batch, pairs[window], counted, where)
    if subject.encoder_decoder:
        _visibility_of_source(subject, model, stacks)


def _visibility_of_source(subject: Subject, model: Model, stacks: list[tuple[Stack, StackSpec]]) -> None:
    batch = subject.batch(rows=ROWS)
    source = {"ids": batch["source_ids"], "valid": batch["source_valid"]}
    encoder, spec = stacks[0]
    for i, layer in enumerate(spec.layers):
        mask, window = spec.mask.factory()(), layer.parts["window"].factory()()
        pairs = torch.tensor([reference_attention.visible_pairs(mask, window, source, row) for row in range(ROWS)])
        where = f"layer {i} of the encoder (window={layer.parts['window']})"
        _check_layer(subject, model, cast("Layer", encoder.layers[i]).attention, batch, pairs, source["valid"], where)
    shown = source["valid"][:, None].expand(-1, LENGTH, -1)
    for i, own in enumerate(stacks[-1][0].layers):
        assert isinstance(own, Layer) and own.cross_attention is not None
        every = torch.ones(ROWS, LENGTH, dtype=torch.bool)
        _check_layer(subject, model, own.cross_attention, batch, shown, every, f"the cross-attention of layer {i}")


def _check_layer(
    subject: Subject, model: Model, attention: nn.Module, batch: Batch, pairs: Tensor, counted: Tensor, where: str
) -> None:
    """Compare the keys that one attention reads with `pairs` (B, T, S). counted (B, T): queries that are not padding."""
    read, diagonal = keys_read(subject, model, attention, batch, pairs.shape[-1])
    wrong = (read != pairs) & counted[:, :, None]
    if not diagonal:
        wrong &= ~torch.eye(*wrong.shape[1:]).bool()
    if wrong.any():
        row, q, k = wrong.nonzero()[0].tolist()
        verb = "takes from token {}, which is hidden from it" if read[row, q, k] else "takes nothing from token {}"
        raise CheckFailed(f"token {q} {verb.format(k)}: {where}")


class _StopForward(Exception):
    """Raised by a hook to end a forward early."""


@torch.no_grad()
def keys_read(subject: Subject, model: Model, attention: nn.Module, batch: Batch, keys: int) -> tuple[Tensor, bool]:
    """(B, T, S) bool: True if the output of `attention` for a query changes with the value of a key, in its first call.

    The second result is False where it has no linear of the role v. Then its inputs are changed instead, which changes the
    query at that position too, so that the diagonal tells nothing.
    """
    many = {k: x.repeat(keys + 1, *(1,) * (x.dim() - 1)) for k, x in batch.items()}
    noise = torch.randn(ROWS, 512, generator=generator(5)) * 5
    values = [m for m in attention.modules() if getattr(m, "role", None) == "v"]
    out: list[Tensor] = []
    n_before = [0]  # rows in the forwards before this one

    def change(x: Tensor) -> Tensor:
        if x.dim() != 3 or x.shape[1] != keys:
            raise NotApplicable(f"its values are {tuple(x.shape)}, not (batch, keys, width)")
        # In place it would change the residual stream itself where a block hands that to its attention without a norm.
        x = x.clone()
        for place in range(len(x)):
            group, row = divmod(n_before[0] + place, ROWS)
            if group:
                x[place, group - 1] += noise[row, : x.shape[-1]]
        return x

    def stop(module: nn.Module, args: tuple[object, ...], result: Tensor) -> None:
        out.append(result)
        raise _StopForward

    hooks = [attention.register_forward_hook(stop)]
    if values:
        # What a forward hook returns replaces the module's output; what a pre-hook returns replaces the arguments.
        hooks += [v.register_forward_hook(lambda module, args, result: change(result)) for v in values]
    else:
        hooks.append(attention.register_forward_pre_hook(lambda module, args: (change(args[0]), *args[1:])))
    try:
        for one in _forwards(subject, many):
            with contextlib.suppress(_StopForward):
                model(one, heads={})
            n_before[0] += len(one["ids"])
    finally:
        for hook in hooks:
            hook.remove()
    return _differs(torch.cat(out), keys, NOISE), bool(values)
