"""Checks that one text has one result however it is fed: in pieces over a cache or memory, padded, batched, packed."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace
from typing import TypedDict, Unpack

import torch
from torch import Tensor

from llmlab.check import learning, reference_attention
from llmlab.check.refusal import reason
from llmlab.check.subject import (
    FIRST_ID,
    LENGTH,
    SOURCE,
    VOCABULARY,
    CheckFailed,
    NotApplicable,
    Subject,
    assert_close,
    generator,
    random_ids,
)
from llmlab.memory import Memory
from llmlab.model.cache import Cache
from llmlab.slots import Output

Batch = dict[str, Tensor]
SPLITS_REASON = "what a row gives depends on which half of a batch it is in"


class ForwardState(TypedDict, total=False):
    """The state that a forward continues from, and extends."""

    cache: Cache
    memory: Memory


def slice_batch(batch: Mapping[str, Tensor], row: int | slice, where: slice) -> Batch:
    """Some tokens of some rows, with everything in the batch that belongs to them. A source stays whole."""
    row = slice(row, row + 1) if isinstance(row, int) else row
    length = batch["ids"].shape[1]
    return {
        k: x[row, where] if x.dim() > 1 and x.shape[1] == length and not k.startswith("source") else x[row]
        for k, x in batch.items()
    }


def forward(subject: Subject, batch: Batch, *, texts: bool = False, **state: Unpack[ForwardState]) -> Output:
    """The hidden states and the heads that read one token at a time; with `texts` also those that read a whole text."""
    if subject.splits_batch and len(batch["ids"]) % 2:
        raise NotApplicable(SPLITS_REASON)
    return subject.model(batch, heads=subject.roles if texts else subject.token_roles, **state)


def assert_same_output(subject: Subject, got: Output, want: Output, where: slice, name: str) -> None:
    """Compare hidden states and heads at the tokens `where` with those of a text that has these tokens only."""
    assert_close(got.hidden[:, where], want.hidden, f"{name}, hidden states")
    for role, other in want.heads.items():
        one = got.heads[role]
        assert_close(one[:, where] if role in subject.token_roles else one, other, f"{name}, head {role}")


# ---------------------------------------------------------------- in pieces


@torch.no_grad()
def cache(subject: Subject) -> None:
    """A text read in pieces over a cache, and prompts of unequal length padded on the left, give what the whole text gives.

    What a cache has forgotten leaves no trace in what is read behind it.
    """
    batch = subject.batch()
    first = _first_piece(subject, batch)
    want = forward(subject, batch)
    for cuts in ([0, *range(first, LENGTH + 1)], [0, first + (LENGTH - first) // 2, LENGTH - 1, LENGTH]):
        hidden, logits = _read_in_pieces(subject, batch, sorted(set(cuts)))
        assert_close(hidden, want.hidden, f"read over a cache in pieces that end at {cuts[1:]}")
        for role in want.heads:
            assert_close(logits[role], want.heads[role], f"read over a cache, head {role}")
    # Said of the later pieces only, that they are no padding says it of the first as well.
    told = batch | {"valid": torch.ones_like(batch["ids"], dtype=torch.bool)}
    hidden, _ = _read_in_pieces(subject, told, [0, first, LENGTH], untold=1)
    assert_close(hidden, want.hidden, "read over a cache whose first piece comes without `valid`")
    if not subject.spec.stacks[-1].mask.attribute("needs"):
        _left_padded(subject)
    if subject.case.kind == "family":
        _run_twice(subject, batch, first)


def _first_piece(subject: Subject, batch: Batch) -> int:
    """Number of tokens that must be read together, since one of them sees a later one (a prefix mask)."""
    stack = subject.spec.stacks[-1]
    mask, together = stack.mask.factory()(), 1
    for row in range(len(batch["ids"])):
        data = reference_attention.row_data(batch, mask.needs, row)
        for q, k in itertools.combinations(range(LENGTH), 2):
            if reference_attention.sees(mask, q, k, LENGTH, data):
                together = max(together, k + 1)
    if together >= LENGTH - 1:
        raise NotApplicable(f"mask={stack.mask} looks ahead, so nothing is read a token at a time")
    if subject.expert_choice:
        raise NotApplicable("its experts choose among all tokens that are read at once")
    return together


def _read_in_pieces(
    subject: Subject, batch: Batch, cuts: list[int], untold: int = 0, growing: Cache | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Hidden states and heads of a text read over one cache in pieces between `cuts`, the first `untold` without `valid`.

    growing: a cache that is given room for each piece as it comes.
    """
    kv_cache = subject.model.new_cache(batch["ids"].shape[1]) if growing is None else growing
    out: list[Output] = []
    for start, end in itertools.pairwise(cuts):
        if growing is not None:
            growing.reserve(end)
        piece = slice_batch(batch, slice(None), slice(start, end))
        if len(out) < untold:
            del piece["valid"]
        out.append(forward(subject, piece, cache=kv_cache))
    roles = out[0].heads
    return torch.cat([o.hidden for o in out], 1), {r: torch.cat([o.heads[r] for o in out], 1) for r in roles}


def _run_twice(subject: Subject, batch: Batch, first: int) -> None:
    """Compare a model whose first layer runs again at the end, over a cache, with the whole text."""
    stack = subject.spec.stacks[-1]
    twice = Subject(subject.case)
    stack = replace(stack, execute=(*stack.execute, stack.execute[0]))
    twice.spec = replace(subject.spec, stacks=(*subject.spec.stacks[:-1], stack))
    try:
        hidden, _ = _read_in_pieces(twice, batch, [0, first, LENGTH])
    except ValueError as e:  # no refusal: the same model without a second run was read so
        raise CheckFailed(f"read over a cache by a layer that runs twice: {reason(e)}") from e
    assert_close(hidden, forward(twice, batch).hidden, "read over a cache by a layer that runs twice")


def _left_padded(subject: Subject) -> None:
    """Compare prompts of unequal length, padded on the left as for generation, with each prompt alone."""
    lengths = torch.tensor([8, 5])
    batch = subject.batch()
    starts = 8 - lengths
    places = torch.arange(LENGTH)[None]
    batch["valid"] = places >= starts[:, None]
    # Padding stands before position 0, and a learned table has no row for that.
    batch["positions"] = (places - starts[:, None]).clamp(min=0)
    kv_cache = subject.model.new_cache(0)
    hidden, _ = _read_in_pieces(subject, batch, [0, 8, 9, 10, LENGTH], growing=kv_cache)
    kv_cache.cut(9)
    again, _ = _read_in_pieces(subject, batch, [9, 10, LENGTH], growing=kv_cache)
    assert_close(again, hidden[:, 9:], "read again over a cache that has forgotten it")
    for row, start in enumerate(starts.tolist()):
        prompt = slice_batch(
            {k: x for k, x in batch.items() if k not in ("valid", "positions")}, row, slice(start, None)
        )
        assert_close(
            hidden[row : row + 1, start:],
            forward(subject, prompt).hidden,
            f"a prompt with {start} tokens of padding, over a cache",
        )


@torch.no_grad()
def memory(subject: Subject) -> None:
    """A text read in two segments, the second with a memory of the first, gives what the whole text gives.

    A memory keeps the newest of what it takes in, without gradient.
    """
    batch = subject.batch()
    if subject.encoder_decoder:
        raise NotApplicable("a memory is for one stack")
    if subject.expert_choice:
        raise NotApplicable("its experts choose among all tokens that are read at once")
    _assert_newest_kept(subject, batch)
    if not subject.spec.sizes.causal:
        raise NotApplicable("its mask looks ahead, so a segment differs by what comes after it")
    want, segments = forward(subject, batch).hidden, Memory()
    try:
        pieces = [slice_batch(batch, slice(None), slice(a, b)) for a, b in ((0, 7), (7, LENGTH))]
        out = [forward(subject, piece, memory=segments).hidden for piece in pieces]
    except ValueError as e:
        raise NotApplicable(reason(e)) from None
    assert_close(torch.cat(out, 1), want, "read in two segments with a memory")


def _assert_newest_kept(subject: Subject, batch: dict[str, Tensor]) -> None:
    every, newest, first = memories = Memory(), Memory(keep=3), Memory(keep=4, reuse=5)
    try:
        for memory in memories:
            with torch.enable_grad():
                subject.model(batch, memory=memory)
    except ValueError:
        return  # the same refusal comes again where segments are read
    if any(x.requires_grad for memory in memories for x in memory.layers):
        raise CheckFailed("what a memory holds has a gradient")
    for memory, kept, name in (
        (newest, slice(LENGTH - 3, LENGTH), "keep=3"),
        (first, slice(1, 5), "keep=4 and reuse=5"),
    ):
        for one, whole in zip(memory.layers, every.layers, strict=True):
            assert_close(one, whole[:, kept], f"what a memory of {name} holds against the same of all")


# ---------------------------------------------------------------- padded, and beside others


@torch.no_grad()
def padding(subject: Subject) -> None:
    """Padding on the right, on the left, or in the source makes no difference, to experts' losses neither."""
    learning.require_scale(subject)  # sums in another order would be taken for a difference
    batch, mask = subject.batch(), subject.spec.stacks[-1].mask
    if subject.expert_choice:
        # No token twice: without positions an expert would score both alike, and a tie is broken by order, which padding moves.
        every = [torch.randperm(VOCABULARY - FIRST_ID, generator=generator(row)) for row in range(2)]
        batch["ids"] = FIRST_ID + torch.stack(every)[:, :LENGTH]
    other = random_ids(2, LENGTH, seed=8)
    for row, n in enumerate((7, 10)):
        alone = slice_batch(batch, row, slice(0, n))
        want = forward(subject, alone, texts=True)
        right = slice_batch(batch, row, slice(None))
        right["valid"] = torch.arange(LENGTH)[None] < n
        # Padding holds other tokens instead of one id for all, so that a part which reads any of it shows it.
        right["ids"] = torch.where(right["valid"], right["ids"], other[row : row + 1])
        got = forward(subject, right, texts=True)
        assert_same_output(subject, got, want, slice(0, n), "padded on the right")
        _assert_same_aux(got, want, "padded on the right")
        if not mask.attribute("needs"):
            fill = LENGTH - n
            left = {**alone, "ids": torch.cat([other[row : row + 1, :fill], alone["ids"]], 1)}
            places = torch.arange(LENGTH)[None] - fill
            left |= {"valid": places >= 0, "positions": places.clamp(min=0)}
            got, want = forward(subject, left), forward(subject, alone)
            assert_same_output(subject, got, want, slice(fill, None), "padded on the left")
            _assert_same_aux(got, want, "padded on the left")
    if subject.encoder_decoder:
        cut = slice_batch(batch, 1, slice(None))
        n = int(cut["source_valid"].sum())
        cut |= {"source_ids": cut["source_ids"][:, :n]}
        cut.pop("source_valid")
        got = forward(subject, slice_batch(batch, 1, slice(None)))
        assert_same_output(
            subject, got, forward(subject, cut), slice(None), f"the source padded from {n} to {SOURCE} tokens"
        )


def _assert_same_aux(got: Output, want: Output, name: str) -> None:
    if (got.aux is None) != (want.aux is None):
        raise CheckFailed(f"{name}, there are losses of experts in one case only")
    if got.aux is not None and want.aux is not None:
        if got.aux.loss is not None and want.aux.loss is not None:
            assert_close(got.aux.loss, want.aux.loss, f"{name}, the loss of experts")
        visits, wanted = got.aux.tokens_per_expert, want.aux.tokens_per_expert
        if visits is not None and wanted is not None and not torch.equal(visits, wanted):
            raise CheckFailed(f"{name}, experts are visited {visits.tolist()} times instead of {wanted.tolist()}")


@torch.no_grad()
def batching(subject: Subject) -> None:
    """A text gives the same whatever stands beside it in a batch."""
    if subject.expert_choice:
        raise NotApplicable("its experts choose among all tokens of a batch")
    batch = subject.batch(rows=3)
    batch["valid"] = torch.arange(LENGTH)[None] < torch.tensor([[LENGTH], [7], [10]])
    got = forward(subject, batch, texts=True)
    for row in range(3):
        want = forward(subject, slice_batch(batch, row, slice(None)), texts=True)
        one = Output(got.hidden[row : row + 1], {r: h[row : row + 1] for r, h in got.heads.items()}, None)
        assert_same_output(subject, one, want, slice(None), f"row {row} of a batch, beside others")


@torch.no_grad()
def documents(subject: Subject) -> None:
    """Documents packed into one row, which do not see each other, give what each gives alone."""
    mask = subject.spec.stacks[-1].mask
    if subject.encoder_decoder:
        raise NotApplicable("packed documents would have one source")
    if subject.expert_choice:
        raise NotApplicable("its experts choose among all tokens of a batch")
    if "prefix_len" in mask.attribute("needs"):
        raise NotApplicable("its mask reads a prefix of each row, of which documents that are packed have one")
    # A document of a single token begins and ends at once, where bounds that are off by one show.
    batch, lengths = subject.batch(), (5, 1, 6)
    batch["documents"] = torch.tensor([i for i, n in enumerate(lengths) for _ in range(n)])[None].expand(2, -1)
    got = forward(subject, batch)
    for end, n in zip(itertools.accumulate(lengths), lengths, strict=True):
        where = slice(end - n, end)
        alone = slice_batch({k: x for k, x in batch.items() if k != "documents"}, slice(None), where)
        assert_same_output(
            subject, got, forward(subject, alone), where, f"a document of {n} tokens, packed with others"
        )
