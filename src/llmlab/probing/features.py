"""Hidden states of a frozen model, one vector a text. B texts, T tokens, D model width."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from llmlab.config.spec import ModelSpec, PartSpec
from llmlab.data import collate
from llmlab.data.collate import Prepared
from llmlab.model.model import reads_hidden
from llmlab.probing.texts import Read

if TYPE_CHECKING:
    from llmlab.model.model import Model


def seeing(spec: ModelSpec) -> ModelSpec:
    """The model under a mask that a text alone decides.

    A mask that needs more of a batch (the order of a permutation, the length of a prefix) sees all of a text, as XLNet and
    T5 do when they are fine-tuned.
    """
    whole = PartSpec.with_defaults("mask", "bidirectional")
    stacks = tuple(
        replace(s, mask=whole, sizes=s.sizes.but(causal=False, sees_all=True)) if s.mask.attribute("needs") else s
        for s in spec.stacks
    )
    return replace(spec, stacks=stacks, sizes=spec.sizes.but(causal=stacks[-1].sizes.causal))


def edge(spec: ModelSpec, read: Read) -> str | None:
    """The token whose hidden state stands for a text: "last" of a model that looks back, "first" of one that looks both
    ways and has a token for it ([CLS]); None where no token does."""
    if spec.topology == "decoder":
        return "last"
    return "first" if spec.topology == "encoder" and read.opened else None


def pools_of(model: Model, read: Read) -> list[str]:
    """The vectors of a text that a probe scores."""
    # Layers that no head reads have learnt nothing.
    if model.heads and not any(reads_hidden(head) for head in model.heads.values()):
        return ["embedding"]
    found = edge(model.spec, read)
    return ["mean", *([] if found is None else [found])]


def prepared(read: Read, i: int, segments: int) -> Prepared:
    """Text i as an objective prepares a record. segments: that the model tells apart, 0 for none."""
    return {"ids": read.ids[i], **({"segments": read.segments[i]} if segments else {})}


@torch.inference_mode()
def features(
    model: Model,
    read: Read,
    pools: Sequence[str],
    *,
    segments: int,
    start: int,
    batch_size: int,
    tick: Callable[[int, int], None],
) -> dict[str, np.ndarray]:
    """{pool: (texts, D) float32} of "mean", over all tokens of a text, its special ones included, "first" and "last"; and of
    "embedding", the mean of the token table's vectors, for a model that was trained without its layers.

    Of an encoder-decoder they are those of its encoder. start: the id that its decoder begins with.
    """
    assert not model.training  # with dropout a text would have other features each time
    n = len(read.ids)
    device = next(model.parameters()).device
    if list(pools) == ["embedding"]:
        table = model.all_stacks()[0].embedding.weight.float().cpu()
        return {"embedding": np.stack([table[torch.from_numpy(ids)].mean(0).numpy() for ids in read.ids])}
    # Texts of like lengths together, as each batch is padded to its longest.
    order = sorted(range(n), key=lambda i: len(read.ids[i]))
    # The first stack is an encoder-decoder's encoder, or the only one.
    found = {pool: np.zeros((n, model.all_stacks()[0].sizes.dim), np.float32) for pool in pools}
    both = model.spec.topology == "encoder_decoder"
    most = model.sizes.max_positions
    for at in range(0, n, batch_size):
        rows = order[at : at + batch_size]
        batch = collate.batch([prepared(read, i, segments) for i in rows], "pad", most=most)
        batch = {k: v.to(device) for k, v in batch.items()}
        if both:
            batch = {f"source_{k}": v for k, v in batch.items()}
            batch["ids"] = torch.full((len(rows), 1), start, device=device)
        output = model(batch, heads={})
        hidden = output.source if both else output.hidden
        valid = batch["source_valid" if both else "valid"]
        for pool in pools:
            found[pool][rows] = pooled(hidden.float(), valid, pool).cpu().numpy()
        tick(min(at + batch_size, n), n)
    return found


def pooled(h_BTD: Tensor, valid_BT: Tensor, pool: str) -> Tensor:
    """(B, D): the mean of the tokens that are no padding, or the first or the last of them."""
    if pool == "first":
        return h_BTD[:, 0]
    if pool == "last":
        return h_BTD[torch.arange(len(h_BTD), device=h_BTD.device), valid_BT.sum(1) - 1]
    weight_BT = valid_BT.to(h_BTD.dtype)
    return (h_BTD * weight_BT[..., None]).sum(1) / weight_BT.sum(1, keepdim=True)
