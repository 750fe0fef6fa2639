"""Text from a model that looks both ways: all new tokens are masked at first, and unmasked step by step.

B texts, T tokens, V vocabulary, n tokens that are drawn.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llmlab.decoding.generate import limit
from llmlab.decoding.sampling import Sampling
from llmlab.errors import UserError
from llmlab.model import finite
from llmlab.model.model import Model


@dataclass(frozen=True)
class Unmasking:
    """The order of unmasking. mask: the id of the mask token. steps: forwards in all, at most one a token (None: just that).
    block: so many tokens are unmasked before those behind them are begun; None: all together."""

    mask: int
    steps: int | None = None
    block: int | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "block"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UserError(f"{name}={value} must be at least 1")

    def plan(self, room: int) -> list[tuple[int, int]]:
        """For each step, how many tokens are unmasked, and before which place of `room` new ones they stand."""
        block, steps, found = min(self.block or room, room), min(self.steps or room, room), []
        for end in [*range(block, room, block), room]:
            n = end - (end - 1) // block * block
            # As LLaDA's get_num_transfer_tokens: evenly, the first steps have one more. A last, shorter block has fewer steps.
            times = max(1, min(n, round(steps * n / room)))
            found += [(n // times + (i < n % times), end) for i in range(times)]
        return found


@torch.inference_mode()
def unmask_all(
    model: Model,
    prompts: Sequence[list[int]],
    *,
    max_new: int,
    how: Unmasking,
    sampling: Sampling | None = None,
    seeds: Sequence[int] | None = None,
    stop: Collection[int] = (),
    vocabulary: int | None = None,
    ended: list[str] | None = None,
) -> list[list[int]]:
    """`max_new` ids after each prompt, cut before the first of `stop` (LLaDA: Nie et al. 2025, arXiv:2502.09992, algorithm 5).

    In each step every masked token of the block is drawn by `sampling`, and of these the ones of the highest probability stay
    ("low-confidence remasking"). A prompt gets the ids that it gets alone. ended: one string a prompt, which becomes "eos" (an
    id of `stop`), "length" or "positions", as `generate_all` has them. vocabulary: ids from there on are never drawn.
    """
    sampling = sampling or Sampling()
    ended = [""] * len(prompts) if ended is None else ended
    vocabulary = vocabulary or model.sizes.vocab_size
    rooms = _rooms(model, prompts, max_new)
    device = next(model.parameters()).device
    width = max(len(p) + room for p, room in zip(prompts, rooms, strict=True))
    text = torch.full((len(prompts), width), how.mask)
    for row, prompt in zip(text, prompts, strict=True):
        row[: len(prompt)] = torch.tensor(prompt, dtype=torch.long)
    # On the CPU, where `Sampling.draw` draws, so that a GPU gives the same texts.
    generators = [torch.Generator().manual_seed(seed) for seed in (seeds or [0] * len(prompts))]
    lengths = [len(p) + room for p, room in zip(prompts, rooms, strict=True)]
    valid = torch.arange(width) < torch.tensor(lengths)[:, None]
    plans = [how.plan(room) for room in rooms]
    # A mask token in the prompt is left as it is: what the prompt says is not the model's to write.
    masked = torch.stack([torch.arange(width) >= len(p) for p in prompts]) & valid
    was_training = model.training
    model.eval()
    try:
        for step in range(max(map(len, plans))):
            now = masked.clone()
            for row, prompt, plan in zip(now, prompts, plans, strict=True):
                row[len(prompt) + plan[step][1] if step < len(plan) else 0 :] = False
            batch = {"ids": text.to(device), **({} if valid.all() else {"valid": valid.to(device)})}
            where = now.to(device)
            logits = model(batch, heads={"tokens": where}).heads["tokens"][:, :vocabulary].float()
            logits[:, how.mask] = float("-inf")  # MDLM, section 3.2.3: the mask is no token of a text
            rows = zip(logits.split(now.sum(1).tolist()), plans, generators, strict=True)
            for i, (scores, plan, chance) in enumerate(rows):
                if step < len(plan):
                    seen = _seen(text[i], masked[i] | ~valid[i], vocabulary).to(device)
                    drawn = sampling.draw(scores, chance, seen.expand(len(scores), -1))
                    if (drawn < 0).any():
                        which = finite.first_nonfinite(model, lambda: model(batch, heads={"tokens": where}))  # noqa: B023
                        raise UserError(f"the logits of step {step + 1} are NaN or infinity: {which}")
                    sure = scores.softmax(-1).gather(-1, drawn[:, None])[:, 0]
                    # Stable: of equal ones the first, whatever else is drawn.
                    kept = sure.sort(descending=True, stable=True).indices[: plan[step][0]].cpu()
                    at = now[i].nonzero()[:, 0][kept]
                    text[i, at], masked[i, at] = drawn.cpu()[kept], False
    finally:
        model.train(was_training)
    found = []
    for i, (row, prompt, length) in enumerate(zip(text.tolist(), prompts, lengths, strict=True)):
        new = row[len(prompt) : length]
        end = next((at for at, token in enumerate(new) if token in stop), None)
        ended[i] = "eos" if end is not None else "length" if len(new) == max_new else "positions"
        found.append(new[:end])
    return found


def _rooms(model: Model, prompts: Sequence[list[int]], max_new: int) -> list[int]:
    """New tokens of each prompt. UserError for a model that can't write so, or a prompt that leaves none."""
    if "tokens" not in model.heads or model.spec.topology == "encoder_decoder":
        raise UserError(f"model={model.spec.family} has no stack with a head for tokens and can't unmask text")
    bound, rooms = limit(model), []
    for prompt in prompts:
        if unknown := [i for i in prompt if not 0 <= i < model.sizes.vocab_size]:
            raise UserError(f"the prompt has the id {unknown[0]}, but the model knows {model.sizes.vocab_size} tokens")
        rooms.append(max_new if bound is None else min(max_new, bound - len(prompt)))
        if rooms[-1] < 1:
            raise UserError(f"the prompt has {len(prompt)} tokens, but the model knows {bound} positions")
    return rooms


def _seen(row: Tensor, hidden: Tensor, vocabulary: int) -> Tensor:
    """(V,) bool: ids that a text has by now."""
    seen = torch.zeros(vocabulary, dtype=torch.bool)
    ids = row[~hidden]
    seen[ids[ids < vocabulary]] = True
    return seen
