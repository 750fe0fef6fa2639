"""Checks of kernels against the reference attention, in every way that they can be called or must refuse to be."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from llmlab import registry
from llmlab.check import reference_attention
from llmlab.check.parts.fixtures import LENGTH, randn, tested_part
from llmlab.check.parts.stand_in import gpu_calls, replaced_by_reference
from llmlab.check.reference_attention import Pairs
from llmlab.check.refusal import reason, untrainable
from llmlab.check.subject import CheckFailed, NotApplicable, Subject, assert_close, generator, small_part
from llmlab.model.visibility import Visible, VisibleSource
from llmlab.slots import Context, Kernel, Mask, Score, Term, Window

ROWS, HEADS, WIDTH = 2, 4, 6
DATA = {
    "prefix_len": torch.tensor([3, 0]),
    "rank": torch.tensor([[0, 2, 0, 1, 0, 1, 2], [1, 2, 3, 4, 5, 1, 4]]),
    "queries": torch.tensor([[0, 0, 0, 0, 0, 1, 1]] * ROWS).bool(),
}
DOCUMENTS = torch.tensor([[0, 0, 0, 1, 1, 2, 2], [2, 2, 2, 2, 2, 2, 5]])  # ids are per row: 2 is two documents here
RETURNING = torch.tensor([[0, 1, 0, 0, 1, 2, 2], [3, 3, 4, 4, 3, 3, 3]])  # documents that are not contiguous
VALID = torch.tensor([[1, 1, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1, 1]]).bool()
ALLOWED = torch.rand(ROWS, LENGTH, LENGTH, generator=generator(2)) < 0.6
ALLOWED[0, 3] = False  # a query that sees nothing
CONTEXTS: tuple[Mapping[str, Tensor], ...] = (
    {},
    {"documents": DOCUMENTS},
    {"documents": RETURNING},
    {"valid": VALID},
    {"documents": DOCUMENTS, "valid": VALID},
    {"allowed": ALLOWED},
)
ABILITIES = ("softcap", "sink", "bias", "regions", "dropout")


class KernelCall(NamedTuple):
    """The arguments of one call of a kernel beside the mask."""

    kv_heads: int
    v_width: int
    bias: str  # "" for none, "shared" by all rows of a batch, or each row's "own"
    softcap: float | None
    sink: bool

    @property
    def abilities(self) -> dict[str, bool]:
        used = {"softcap": self.softcap is not None, "sink": self.sink, "bias": bool(self.bias)}
        return {ability: used.get(ability, False) for ability in ABILITIES}


ALL_CALLS = [
    KernelCall(*one)
    # Values may be narrower than keys, as those of latent attention are.
    for one in itertools.product((4, 2, 1), (WIDTH, 5), ("", "shared", "own"), (None, 1.5), (False, True))
]


def visibility_cases() -> Iterator[tuple[Mask, Window, Mapping[str, Tensor], str]]:
    """(mask, window, context, description) of every combination for which example data is known."""
    masks = [small_part("mask", n) for n in registry.names("mask")]
    windows = [small_part("window", n) for n in registry.names("window")]
    for mask, window, context in itertools.product(masks, windows, CONTEXTS):
        if set(mask.attribute("needs")) <= set(DATA):
            words = f"mask={mask}, window={window}" + "".join(f", {name}" for name in context)
            yield mask.factory()(), window.factory()(), context, words


def matches_reference(subject: Subject) -> None:
    """A kernel gives softmax(s) v, whatever is seen and asked, or it refuses what it can't do."""
    part = tested_part(subject, "kernel")
    kernel = part.factory()()
    if not untrainable(part):
        _check_values(kernel)
        return
    if gpu_calls(kernel):
        with replaced_by_reference(kernel):
            _check_values(kernel)
    # As it is, too: a kernel for GPUs is slow on a CPU (flex runs unfused there), so each 13th
    # case. 13 is coprime to the number of contexts, so that the sample has all of them.
    _check_values(kernel, every=13)


def gradients(subject: Subject) -> None:
    """A kernel's gradients are those of softmax(s) v; one for GPUs is asked with what PyTorch has for them written out."""
    part = tested_part(subject, "kernel")
    kernel = part.factory()()
    if not untrainable(part):
        _compare_all(kernel, backward=True)
    elif gpu_calls(kernel):
        with replaced_by_reference(kernel):
            _compare_all(kernel, backward=True)
    else:
        raise NotApplicable("the kernel can't train here, and calls nothing that could be written out")


@torch.no_grad()
def _check_values(kernel: Kernel, every: int = 1) -> None:
    _compare_all(kernel, backward=False, every=every)
    plain = KernelCall(HEADS, WIDTH, "", None, False)
    _check_source(kernel, plain)
    _check_cached(kernel, plain, every)
    if supports(kernel, **dict.fromkeys(ABILITIES, False) | {"regions": True}):
        _check_regions(kernel)


def _compare_all(kernel: Kernel, *, backward: bool, every: int = 1) -> None:
    """Compare every visibility, or each `every`-th, under one of the calls that the kernel supports, in turn."""
    supported = [one for one in ALL_CALLS if supports(kernel, **one.abilities)]
    for number, (mask, window, context, words) in list(enumerate(visibility_cases()))[::every]:
        batch = {"ids": torch.zeros(ROWS, LENGTH), **DATA, **context}
        pairs = [reference_attention.visible_pairs(mask, window, batch, row) for row in range(ROWS)]
        visible = Visible(mask, window, Context(LENGTH, data=DATA, **context))  # type: ignore[arg-type]
        # All 72 calls under each visibility would take minutes. 7 is coprime to any number of them that are left (2^a 3^b), so
        # that successive visibilities go through all calls in turn.
        one = supported[7 * number % len(supported)]
        _compare_one(kernel, visible, pairs, one, backward, f"{words}; {_describe(one)}")


def supports(kernel: Kernel, **abilities: bool) -> bool:
    """False if the kernel refuses to be built with these abilities."""
    try:
        kernel.check(**abilities)
    except ValueError as e:
        reason(e)
        return False
    return True


def _describe(one: KernelCall) -> str:
    return ", ".join(f"{k}={v}" for k, v in one._asdict().items() if v)


def _inputs(one: KernelCall, new: int = LENGTH, keys: int = LENGTH) -> tuple[Tensor, ...]:
    q = randn(ROWS, HEADS, new, WIDTH)
    k = randn(ROWS, one.kv_heads, keys, WIDTH, seed=2)
    v = randn(ROWS, one.kv_heads, keys, one.v_width, seed=3)
    bias = randn(*((ROWS,) if one.bias == "own" else ()), HEADS, new, keys, seed=4) if one.bias else None
    sink = randn(HEADS, seed=5) if one.sink else None
    return tuple(t for t in (q, k, v, bias, sink) if t is not None)


def _compare_one(
    kernel: Kernel, visible: Visible, pairs: list[Pairs], one: KernelCall, backward: bool, words: str
) -> None:
    results = []
    for by_hand in (False, True):
        inputs = [t.requires_grad_(backward) for t in _inputs(one)]
        q, k, v = inputs[:3]
        bias = inputs[3] if one.bias else None
        sink = inputs[-1] if one.sink else None
        if by_hand:
            rows = [
                reference_attention.attention(
                    q[row],
                    k[row],
                    v[row],
                    pairs[row],
                    # 0.4, not 6^-0.5 = 0.408, PyTorch's default: a kernel that drops the scale must show it.
                    scale=0.4,
                    bias_NTS=None if bias is None else bias[row] if one.bias == "own" else bias,
                    softcap=one.softcap,
                    sink_N=sink,
                )
                for row in range(ROWS)
            ]
            out = torch.stack(rows)
        else:
            lowered = kernel.lower(visible)
            out = kernel([Term(q, k)], v, lowered, bias, Score(0.4, one.softcap), sink, False)
        if backward:
            (out * randn(*out.shape, seed=9)).sum().backward()
        results.append((out.detach(), *(t.grad for t in inputs if backward)))
    names = ("what it gives", *(f"the gradient of {n}" for n in ("q", "k", "v", "bias or sink", "sink")))
    # Not strict: a call without bias and sink has fewer gradients.
    for name, got, want in zip(names, *results, strict=False):
        if got is None:
            raise CheckFailed(f"{name} is none: {words}")
        assert_close(got, want, f"{name}, {words}", 1e-4)


def _check_source(kernel: Kernel, one: KernelCall) -> None:
    """Compare cross-attention: a source of another length, with padding."""
    q, k, v = _inputs(one, new=LENGTH, keys=4)[:3]
    valid = torch.tensor([[1, 1, 0, 1], [1, 0, 0, 0]]).bool()
    for given in (valid, None):
        got = kernel([Term(q, k)], v, kernel.lower(VisibleSource(given, LENGTH)), None, Score(0.4), None, False)
        for row in range(ROWS):
            pairs = [[given is None or bool(given[row, s]) for s in range(4)] for _ in range(LENGTH)]
            assert_close(
                got[row],
                reference_attention.attention(q[row], k[row], v[row], pairs, scale=0.4),
                "a source of another length",
            )


def _check_cached(kernel: Kernel, one: KernelCall, every: int) -> None:
    """Compare a few new queries over a cache of earlier keys, under each mask and window."""
    plain_texts = [
        (mask, window, words) for mask, window, context, words in visibility_cases() if not (context or mask.needs)
    ]
    for mask, window, words in plain_texts[::every]:
        for new in (1, 3):
            q, k, v = _inputs(one, new=new)[:3]
            visible = Visible(mask, window, Context(new, LENGTH - new))
            got = kernel([Term(q, k)], v, kernel.lower(visible), None, Score(0.4), None, False)
            pairs = reference_attention.visible_pairs(mask, window, {"ids": torch.zeros(1, LENGTH)}, 0)[LENGTH - new :]
            for row in range(ROWS):
                want = reference_attention.attention(q[row], k[row], v[row], pairs, scale=0.4)
                assert_close(got[row], want, f"{new} new tokens behind {LENGTH - new}, {words}")


def _check_regions(kernel: Kernel) -> None:
    """Compare two terms: one for near keys, the other for all others."""
    (q, k, v), other = _inputs(ALL_CALLS[0])[:3], randn(ROWS, HEADS, LENGTH, WIDTH, seed=8)
    near = (torch.arange(LENGTH)[:, None] - torch.arange(LENGTH)).abs() < 2
    full = Visible(small_part("mask", _mask_name("full")).factory()(), _NoWindow(), Context(LENGTH))
    for region in (near, near.expand(ROWS, -1, -1)):
        terms = [Term(other, k, ~region), Term(q, k, region)]
        got = kernel(terms, v, kernel.lower(full), None, Score(0.4), None, False)
        scores = torch.where(near, q @ k.mT, other @ k.mT).double() * 0.4
        assert_close(got, scores.softmax(-1) @ v.double(), "two terms with regions")


def dropout(subject: Subject) -> None:
    """While training, dropout falls on the weights, each head's and query's own, and keeps their mean; else there is none."""
    part = tested_part(subject, "kernel")
    kernel = part.factory()()
    if not supports(kernel, **dict.fromkeys(ABILITIES, False) | {"dropout": True}) or untrainable(part):
        raise NotApplicable("the kernel refuses dropout, or training here")
    rows, heads, length = 2, 2, 300
    # All queries are equal, so that outputs differ only by what is dropped. v[..., 0] is 1: that output is the sum of the
    # weights. v[..., 1] equals v[..., -1]: dropout of v instead of the weights would drop them apart.
    q = randn(WIDTH).expand(rows, heads, length, WIDTH)
    k, v = randn(length, WIDTH, seed=2), randn(length, WIDTH, seed=3)
    v[:, 0], v[:, -1] = 1.0, v[:, 1]
    k, v = k.expand(rows, heads, -1, -1), v.expand(rows, heads, -1, -1)
    full = Visible(small_part("mask", _mask_name("full")).factory()(), _NoWindow(), Context(length))
    score = Score(0.1, dropout=0.5)
    torch.manual_seed(0)
    kept, dropped = (kernel([Term(q, k)], v, kernel.lower(full), None, score, None, t) for t in (False, True))
    assert_close(kept[..., 0], v[..., 0], "weights add up to 1 where nothing is trained", 1e-5)
    if not dropped[..., 0].std() > 0.01:
        raise CheckFailed("a dropout of 0.5 on the weights changes nothing while training")
    if not abs(float(dropped[..., 0].mean()) - 1) < 0.03:
        raise CheckFailed(f"under dropout weights add up to {float(dropped[..., 0].mean()):.3f} on average, not 1")
    if not torch.allclose(dropped[..., 1], dropped[..., -1], atol=1e-6):
        raise CheckFailed("dropout falls on what is read, not on the weights")
    # By default torch.cdist takes |x|^2 + |y|^2 - 2 x.y for more than 25 rows, which cancels to noise at small distances.
    apart = torch.cdist(dropped.flatten(0, 2), dropped.flatten(0, 2), compute_mode="donot_use_mm_for_euclid_dist")
    alike = (apart < 1e-5).fill_diagonal_(False)
    for what, row, head, query in (("rows", 1, 0, 0), ("heads", 0, 1, 0), ("queries", 0, 0, 1)):
        other = (row * heads + head) * length + query
        if alike[0, other]:
            raise CheckFailed(f"dropout takes the same weights in all {what}")
    if alike.any():
        raise CheckFailed("dropout takes the same weights of two queries")


class _NoWindow:
    """A window that hides nothing."""

    def covers(self, length: int) -> bool:
        return True

    def allowed(self, q: Tensor, k: Tensor, data: Mapping[str, Tensor]) -> Tensor:
        return torch.ones(len(q), k.shape[-1], dtype=torch.bool)


def _mask_name(pattern: str) -> str:
    """The name of a mask with this pattern."""
    return next(n for n in registry.names("mask") if registry.index()["mask", n].attribute("pattern") == pattern)
