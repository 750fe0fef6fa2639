"""Autoregressive generation with a KV cache, of one text or of a batch. B texts, T tokens, V vocabulary."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llmlab import attributes
from llmlab.config.spec import ModelSpec
from llmlab.decoding.sampling import Sampling
from llmlab.errors import UserError
from llmlab.model import finite
from llmlab.model.cache import Cache
from llmlab.model.model import Model


def limit(model: Model, stack: int = -1) -> int | None:
    """Positions that the model has a vector for in a stack, the last; None where it has no such bound."""
    # Tables alone have rows: rope, ALiBi and relative biases are computed for any position.
    rows = [p.rows for p in model.stacks[list(model.stacks)[stack]].positions if hasattr(p, "rows")]
    return min(rows) if rows else None


def generate(
    model: Model,
    prompt: list[int],
    *,
    max_new: int,
    sampling: Sampling | None = None,
    seed: int = 0,
    stop: int | Collection[int] | None = None,
    start: int | None = None,
    vocabulary: int | None = None,
    cached: bool = True,
    cache: Cache | None = None,
    ended: list[str] | None = None,
    forced: tuple[int | None, int | None] = (None, None),
) -> Iterator[int]:
    """Yield up to `max_new` token ids after `prompt`, one at a time; ends at an id of `stop`, or at the last position that
    the model knows. The rest as `generate_all` has it.
    """
    for (token,) in generate_all(
        model,
        [prompt],
        max_new=max_new,
        sampling=sampling,
        seeds=[seed],
        stop=stop,
        start=start,
        vocabulary=vocabulary,
        cached=cached,
        cache=cache,
        ended=ended,
        forced=forced,
    ):
        if token is not None:
            yield token


# torch wraps a generator function so that the mode is on within and off at each
# yield (_wrap_generator in _contextlib.py).
@torch.inference_mode()
def generate_all(
    model: Model,
    prompts: Sequence[list[int]],
    *,
    max_new: int,
    sampling: Sampling | None = None,
    seeds: Sequence[int] | None = None,
    stop: int | Collection[int] | None = None,
    start: int | None = None,
    vocabulary: int | None = None,
    cached: bool = True,
    cache: Cache | None = None,
    ended: list[str] | None = None,
    forced: tuple[int | None, int | None] = (None, None),
    trace: Sequence[list[tuple[int, float]]] | None = None,
) -> Iterator[list[int | None]]:
    """Go on with all prompts at once, over one cache: each step yields one id a prompt, None for those that have ended.

    A prompt gets the ids that it gets alone: it has a generator of its own, seeded by its seed, and shorter prompts are
    padded on the left, which nothing sees and no position counts (`fits_padding` says of which models this is true).

    ended: one string a prompt, "" while it goes on, then why it ended: "eos" (an id of `stop`), "length" (max_new),
    "positions" (the last that the model knows). The caller may end one by a reason of its own.
    start: an encoder-decoder reads the prompts with its encoder, and its decoder begins with this id. vocabulary: ids from
    there on (rows that only round the table up) are never drawn. cached=False computes every step from the beginning:
    the same ids, slowly. cache: one that holds the beginning of the one prompt already, and is gone on with.
    forced: the first id that is written, and the last of a text that has not ended before, whatever the model says (BART).
    trace: one list a prompt, to which each id is appended with its log-probability under `sampling`, that which ends the
    text included.
    """
    sampling = sampling or Sampling()
    stops = () if stop is None else (stop,) if isinstance(stop, int) else stop
    ended = [""] * len(prompts) if ended is None else ended
    device = next(model.parameters()).device
    # On the CPU, where `Sampling.draw` draws, so that a GPU gives the same texts.
    generators = [torch.Generator().manual_seed(seed) for seed in (seeds or [0] * len(prompts))]
    was_training = model.training
    model.eval()
    batch, texts, rooms = _checked(model, prompts, start, max_new, device)
    text = _padded(texts, device)
    if _has_prefix(model.spec):
        # The prompts with what pads them on the left: they end together.
        batch["prefix_len"] = torch.full((len(texts),), text.ids.shape[1], device=device)
    if cache is not None:
        cache.reserve(text.ids.shape[1] + max(rooms))
    elif cached:
        cache = model.new_cache(text.ids.shape[1] + max(rooms))
    vocabulary = vocabulary or model.sizes.vocab_size
    seen = _seen(texts, vocabulary, device) if sampling.repetition_penalty != 1 else None
    try:
        new = _Text(text.ids[:, cache.length :]) if cache is not None and cache.length else text
        for step in range(max(rooms)):
            read = new if cached else text
            # Logits of the last position alone: those of a whole prompt are T x V floats, 500 MB at 1,000 x 128,000.
            last = torch.zeros_like(read.ids, dtype=torch.bool)
            last[:, -1] = True
            logits = model({**batch, **read.batch()}, heads={"tokens": last}, cache=cache).heads["tokens"]
            # Both are kept: a forced id would cover the -1 by which `draw` says that there was no distribution.
            token = drawn = sampling.draw(logits[:, :vocabulary], generators, seen)
            if step == 0 and forced[0] is not None:
                token = torch.full_like(token, forced[0])
            if forced[1] is not None:
                over = torch.tensor([step + 1 >= room for room in rooms], device=device)
                token = token.masked_fill(over, forced[1])
            told: list[int | None] = []
            # One transfer a step from a GPU, which waits for the device.
            if trace is not None:
                chances = sampling.log_probability(logits[:, :vocabulary], token, seen).tolist()
            for i, (value, unforced) in enumerate(torch.stack([token, drawn], 1).tolist()):
                if unforced < 0 and not ended[i]:
                    raise _no_numbers(model, {**batch, **read.batch()}, last, cache, step)
                if trace is not None and not ended[i]:
                    trace[i].append((value, chances[i]))
                if not ended[i] and value in stops:
                    ended[i] = "eos"
                told.append(None if ended[i] else value)
            if any(t is not None for t in told):
                yield told
            for i, room in enumerate(rooms):
                if not ended[i] and step + 1 >= room:
                    ended[i] = "length" if room == max_new else "positions"
            if all(ended):
                return
            if seen is not None:
                seen[torch.arange(len(texts)), token] = True
            new = text.after(token, step, limit(model))
            if not cached:
                text = text.then(new)
    finally:
        # In `finally`: a caller that stops early closes the generator, which raises GeneratorExit at the yield.
        model.train(was_training)


def _no_numbers(model: Model, batch: dict[str, Tensor], last: Tensor, cache: Cache | None, step: int) -> UserError:
    """The error for logits that are not finite: which part of the model they come from."""
    if cache is not None:
        # The forward that failed is run once more to find the part, so the cache forgets these tokens first.
        cache.cut(cache.length - last.shape[1])
    which = finite.first_nonfinite(model, lambda: model(batch, heads={"tokens": last}, cache=cache))
    return UserError(f"the logits of new token {step + 1} are NaN or infinity: {which}")


def goes_on(spec: ModelSpec) -> bool:
    """True if a model has a head for tokens and a mask under which it can go on with a text: what comes behind a prompt sees
    what stands before it."""
    return "tokens" in spec.heads and (spec.sizes.causal or _has_prefix(spec))


def _has_prefix(spec: ModelSpec) -> bool:
    """True if all tokens of a prompt see each other."""
    return tuple(spec.stacks[-1].mask.attribute("needs")) == ("prefix_len",)


def fits_padding(model: Model, length: int) -> bool:
    """True if padding on the left leaves a text of `length` tokens as it is: masks and windows must go by distances.

    Where it does not, prompts in a batch must be equally long.
    """
    if model.spec.topology == "encoder_decoder":
        return True  # its sources are padded on the right, its decoder begins everywhere with one token
    stack = model.all_stacks()[-1]
    # RoBERTa's rows of the table count from behind `pad_id`; where rows are padded, positions are given, counted from 0.
    if any(getattr(position, "pad_id", None) is not None for position in stack.positions):
        return False
    # A pair of a place and one in a block follows from where the prefix ends, not from the one number that padding leaves.
    if _has_prefix(model.spec) and any(
        attributes.get(position, "position", "counts") > 1 for position in stack.positions
    ):
        return False
    k = torch.arange(length)[None]
    for part in {*stack.windows, *(() if _has_prefix(model.spec) else (stack.mask,))}:
        allowed = part.allowed(k.T, k, {}).expand(length, length)
        # Equal along each diagonal, as whatever goes by distance alone is.
        if not torch.equal(allowed[1:, 1:], allowed[:-1, :-1]):
            return False
    return True


# ---------------------------------------------------------------- the batch


@dataclass(frozen=True)
class _Text:
    """ids (B, T); where rows differ in length, valid and positions (B, T), else None: nothing is padded."""

    ids: Tensor
    valid: Tensor | None = None
    positions: Tensor | None = None
    lengths: Tensor | None = None  # (B,) of the prompts

    def batch(self) -> dict[str, Tensor]:
        given = {"ids": self.ids, "valid": self.valid, "positions": self.positions}
        return {k: v for k, v in given.items() if v is not None}

    def after(self, token_B: Tensor, step: int, bound: int | None) -> _Text:
        """The tokens that were drawn. A row that has ended goes on unheard: its position stays one that there is."""
        ids = token_B[:, None]
        if self.lengths is None:
            return _Text(ids)
        positions = (self.lengths + step)[:, None]
        if bound is not None:
            positions = positions.clamp(max=bound - 1)
        return _Text(ids, torch.ones_like(ids, dtype=torch.bool), positions, self.lengths)

    def then(self, new: _Text) -> _Text:
        def both(a: Tensor | None, b: Tensor | None) -> Tensor | None:
            return None if a is None or b is None else torch.cat([a, b], 1)

        ids = torch.cat([self.ids, new.ids], 1)
        return _Text(ids, both(self.valid, new.valid), both(self.positions, new.positions), self.lengths)


def _padded(texts: Sequence[list[int]], device: torch.device) -> _Text:
    ids, valid = _rectangle(texts, device, left=True)
    if valid is None:
        return _Text(ids)
    # Padding would stand at -1: it takes position 0, and is seen by nobody.
    return _Text(ids, valid, (valid.long().cumsum(1) - 1).clamp(min=0), valid.sum(1))


def _rectangle(texts: Sequence[list[int]], device: torch.device, *, left: bool) -> tuple[Tensor, Tensor | None]:
    width = max(map(len, texts))
    if min(map(len, texts)) == width:
        return torch.tensor(texts, device=device), None
    ids = torch.zeros(len(texts), width, dtype=torch.long)
    valid = torch.zeros(len(texts), width, dtype=torch.bool)
    for i, text in enumerate(texts):
        where = slice(width - len(text), None) if left else slice(0, len(text))
        ids[i, where], valid[i, where] = torch.tensor(text), True
    return ids.to(device), valid.to(device)


def _seen(texts: Sequence[list[int]], vocabulary: int, device: torch.device) -> Tensor:
    """(B, V) bool: ids that are in a text."""
    seen = torch.zeros(len(texts), vocabulary, dtype=torch.bool)
    for row, text in zip(seen, texts, strict=True):
        row[[i for i in text if i < vocabulary]] = True
    return seen.to(device)


def _checked(
    model: Model, prompts: Sequence[list[int]], start: int | None, max_new: int, device: torch.device
) -> tuple[dict[str, Tensor], list[list[int]], list[int]]:
    """The batch's source, what the decoder begins with, and how many tokens each may get. UserError for what can't be."""
    if model.spec.topology != "encoder_decoder" and not model.spec.sizes.causal and not _has_prefix(model.spec):
        raise UserError(f"model={model.spec.family} looks both ways and can't generate; train it with objective=clm")
    if "tokens" not in model.heads:
        heads = ", ".join(model.heads) or "none"
        raise UserError(f"model={model.spec.family} has no head for tokens (it has {heads}) and can't generate")
    if not prompts or not all(prompts):
        raise UserError("prompt is empty; give at least one token")
    for ids in prompts:
        if unknown := [i for i in ids if not 0 <= i < model.sizes.vocab_size]:
            raise UserError(f"the prompt has the id {unknown[0]}, but the model knows {model.sizes.vocab_size} tokens")
    batch: dict[str, Tensor] = {}
    texts = list(prompts)
    if model.spec.topology == "encoder_decoder":
        if start is None:
            raise UserError("an encoder-decoder needs the id that its decoder starts with")
        room, longest = limit(model, 0), max(map(len, prompts))
        if room is not None and longest > room:
            raise UserError(f"the prompt has {longest} tokens, but the encoder knows {room} positions")
        batch["source_ids"], valid = _rectangle(prompts, device, left=False)
        if valid is not None:
            batch["source_valid"] = valid
        texts = [[start]] * len(prompts)
    bound = limit(model)
    # One more than there are positions left: the last token that is drawn is never read.
    rooms = [max_new if bound is None else min(max_new, bound - len(ids) + 1) for ids in texts]
    for ids, room in zip(texts, rooms, strict=True):
        if room < 1:
            raise UserError(f"the prompt has {len(ids)} tokens, but the model knows {bound} positions")
    return batch, texts, rooms
