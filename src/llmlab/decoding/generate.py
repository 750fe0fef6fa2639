"""Autoregressive generation with a KV cache."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from llmlab.decoding.sampling import Sampling
from llmlab.errors import UserError
from llmlab.model.model import Model


def limit(model: Model) -> int | None:
    """Positions that the model has a vector for; None where it has no such bound."""
    rows = [p.rows for p in model.stacks[list(model.stacks)[-1]].positions if hasattr(p, "rows")]
    return min(rows) if rows else None


@torch.inference_mode()
def generate(
    model: Model,
    prompt: list[int],
    *,
    max_new: int,
    sampling: Sampling | None = None,
    seed: int = 0,
    stop: int | None = None,
    start: int | None = None,
    vocabulary: int | None = None,
    cached: bool = True,
) -> Iterator[int]:
    """Yield up to `max_new` token ids after `prompt`, one at a time; ends at the id `stop`, or at the last position that
    the model knows.

    start: an encoder-decoder reads the prompt with its encoder, and its decoder begins with this id. vocabulary: ids from
    there on (rows that only round the table up) are never drawn. cached=False computes every step from the beginning:
    the same ids, slowly.
    """
    sampling = sampling or Sampling()
    generator = torch.Generator().manual_seed(seed)
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    batch: dict[str, Tensor] = {}
    if model.spec.topology == "encoder_decoder":
        if start is None:
            raise UserError("an encoder-decoder needs the id that its decoder starts with")
        batch["source_ids"] = torch.tensor([prompt], device=device)
        prompt = [start]
    elif not model.spec.sizes.causal:
        raise UserError(f"model={model.spec.family} looks both ways and can't generate; train it with objective=clm")
    if not prompt:
        raise UserError("prompt is empty; give at least one token")
    given = batch["source_ids"][0].tolist() if "source_ids" in batch else prompt
    unknown = [i for i in given if not 0 <= i < model.sizes.vocab_size]
    if unknown:
        raise UserError(f"the prompt has the id {unknown[0]}, but the model knows {model.sizes.vocab_size} tokens")
    bound = limit(model)
    room = max_new if bound is None else min(max_new, bound - len(prompt) + 1)
    if room < 1:
        raise UserError(f"the prompt has {len(prompt)} tokens, but the model knows {bound} positions")
    cache = model.new_cache(len(prompt) + room) if cached else None
    ids = torch.tensor([prompt], device=device)
    try:
        new = ids
        for _ in range(room):
            read = new if cached else ids
            last = torch.zeros_like(read, dtype=torch.bool)
            last[:, -1] = True
            logits = model({**batch, "ids": read}, heads={"tokens": last}, cache=cache).heads["tokens"]
            token = sampling.draw(logits[:, :vocabulary], generator)
            value = int(token)
            if value == stop:
                return
            yield value
            new = token[:, None]
            if not cached:
                ids = torch.cat([ids, new], 1)
    finally:
        model.train(was_training)
