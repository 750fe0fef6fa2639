"""Observer of positions: scores of queries and keys, and vectors for the embedding, in texts of two rows.

Inputs: `q` (B, N, S, H) and `k` (B, K, S, H), of which a text of S tokens takes the first S. The part acts on the last
sizes.rotary_dim numbers of each head, or on whole heads if it `projects`; such a part is also given `q_projection` (N, H, D)
and `k_projection` (K, H, D). For each TEXT

    whole     one long text
    later     the first `later.before` tokens are in a cache when the rest is read
    padded    the same with padding, in front in one row and behind in the other; one token has the id of padding, and one
              place of padding has another id
    packed    several documents in a row; some of their numbers occur twice
    placed    positions given by the caller, below 0 too if the part is `relative`
    prefix    only of a part that `counts` two things: the first `prefix.prefix_len` (B,) tokens are seen by all

there are `TEXT.ids` (B, S), `TEXT.before` and `TEXT.seen` (B, T, S), the pairs that count, and where it has them `TEXT.valid`,
`TEXT.documents`, `TEXT.segments` (B, S) and `TEXT.positions` (B, S) or (B, 2, S).

Outputs:
- `TEXT.scores` (B, N, T, S) of the T tokens read last: `scale` (an input) times the products of queries and keys that the part
  has turned, plus its bias; 0 where a pair does not count.
- `dropped.scores`: those of the text `later` in training mode with sizes.dropout 1.
- Of a part that embeds: `TEXT.vectors` (B, T, E), and `TEXT.trained`, how many rows of its tables get a gradient from them.
- `size`: the number of its parameters; `score_width`, as in `llmlab.slots`.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from llmlab import attributes
from llmlab.check.twins.observers.observed import Observed, arrays, build, given, sizes_of, uniform
from llmlab.check.twins.settings import Setting
from llmlab.model.cache import join
from llmlab.model.view import View
from llmlab.sizes import Sizes
from llmlab.slots import Context, Position, Term

ROWS, KEY_HEADS, SCALE = 2, 2, 0.4
LONGEST = 40
PADDING = 1  # the id of padding
OWN_SIZES = {
    "embed_dim": 20,
    "head_dim": 11,
    "n_heads": 6,
}  # neither is the width of another thing; some of a head is not turned


@dataclass(frozen=True)
class Text:
    """Tokens of two rows, of which `before` are in a cache when the others are read."""

    ids: Tensor
    before: int = 0
    valid: Tensor | None = None
    documents: Tensor | None = None
    positions: Tensor | None = None
    segments: Tensor | None = None
    prefix_len: Tensor | None = None

    @property
    def length(self) -> int:
        return self.ids.shape[1]

    def context(self, begin: int, end: int) -> Context:
        def new(x: Tensor | None) -> Tensor | None:
            return None if x is None else x[..., begin:end]

        return Context(
            end - begin,
            begin,
            new(self.ids),
            new(self.positions),
            None if self.valid is None else self.valid[:, :end],
            self.documents,
            new(self.segments),
            data={} if self.prefix_len is None else {"prefix_len": self.prefix_len},
        )

    def seen(self, causal: bool) -> Tensor:
        """(B, T, S) bool: both are tokens of one document, and no key is ahead of a query in a causal stack."""
        token = torch.ones_like(self.ids, dtype=torch.bool) if self.valid is None else self.valid
        document = torch.zeros_like(self.ids) if self.documents is None else self.documents
        pairs = (token[:, :, None] & token[:, None]) & (document[:, :, None] == document[:, None])
        return (pairs.tril() if causal else pairs)[:, self.before :]

    def inputs(self, causal: bool) -> dict[str, Tensor]:
        named = {key: value for key, value in vars(self).items() if isinstance(value, Tensor)}
        return {**named, "before": torch.tensor(self.before), "seen": self.seen(causal)}


def observe(setting: Setting) -> Observed:
    sizes = sizes_of(setting).but(**{key: value for key, value in OWN_SIZES.items() if key not in setting.sizes})
    part = build(setting, sizes)
    width = sizes.rotary_dim if part.projects else sizes.head_dim  # attention that projects distances turns whole heads
    inputs = {
        "q": 1.5 * uniform("q", ROWS, sizes.n_heads, LONGEST, width),
        "k": 1.5 * uniform("k", ROWS, KEY_HEADS, LONGEST, width),
        "scale": torch.tensor(SCALE).double(),
    }
    if part.projects:
        inputs["q_projection"] = uniform("q_projection", sizes.n_heads, width, sizes.dim)
        inputs["k_projection"] = uniform("k_projection", KEY_HEADS, width, sizes.dim)
    size = sum(parameter.numel() for parameter in part.parameters())
    outputs = {"size": torch.tensor(size), "score_width": torch.tensor(part.score_width)}
    for name, text in texts(part).items():
        inputs |= {f"{name}.{key}": value for key, value in text.inputs(sizes.causal).items()}
        vectors, scores = _read(part, sizes, text, inputs)
        seen = text.seen(sizes.causal)
        outputs[f"{name}.scores"] = torch.where(seen[:, None], scores, 0.0)
        if vectors is not None:
            outputs[f"{name}.trained"] = _rows_trained(part, vectors)
            outputs[f"{name}.vectors"] = vectors.detach().expand(ROWS, *vectors.shape[-2:])
    text = texts(part)["later"]
    seen = text.seen(sizes.causal)
    dropped = build(setting, sizes.but(dropout=1.0)).train()
    outputs["dropped.scores"] = torch.where(seen[:, None], _read(dropped, sizes, text, inputs)[1], 0.0)
    return Observed(given(setting, inputs, part, sizes), arrays(outputs))


def texts(part: Position) -> dict[str, Text]:
    """The texts that the part is asked about, by name."""
    ids = (20 * uniform("ids", ROWS, LONGEST)).long() + 30
    valid = torch.ones(ROWS, 19, dtype=torch.bool)
    valid[0, :4] = valid[1, 6] = valid[1, 17:] = False  # the one between tokens counts in some distances
    padded = torch.where(valid, ids[:, :19], PADDING)
    padded[0, 16] = PADDING  # a token, by `valid`
    padded[1, 18] = 7  # padding, by `valid`
    segments = torch.tensor([[0] * 9 + [1] * 6 + [0] * 4, [1] * 3 + [0] * 12 + [1] * 4])
    documents = torch.tensor([[4] * 18 + [2] * 8, [3] * 5 + [1] * 2 + [3] * 19])
    steps = torch.tensor([[0, 1, 1, 1, 2, 5, 1, 1, 9, 1, 1, 3], [0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]])
    first = torch.tensor([[-3], [2]]) if attributes.get(part, "position", "relative") else torch.tensor([[0], [2]])
    placed = steps.cumsum(1) + first
    if part.counts > 1:
        placed = torch.stack([placed, torch.tensor([[0] * 5 + [1, 2, 3] + [0] * 4, [0, 1] * 6])], 1)
    known = {
        "whole": Text(ids),
        "later": Text(ids[:, 3:22], 14, segments=segments),
        "padded": Text(padded, 14, valid),
        "packed": Text(ids[:, :26], documents=documents, segments=segments.repeat(1, 2)[:, :26]),
        "placed": Text(ids[:, :12], positions=placed),
    }
    return known | ({"prefix": Text(ids, 7, prefix_len=torch.tensor([6, 0]))} if part.counts > 1 else {})


def _rows_trained(part: Position, vectors: Tensor) -> Tensor:
    tables = list(part.parameters())
    slopes = torch.autograd.grad(vectors.pow(2).sum(), tables, allow_unused=True) if tables else ()
    return torch.tensor(sum(int((slope != 0).any(1).sum()) for slope in slopes if slope is not None))


def _read(part: Position, sizes: Sizes, text: Text, inputs: dict[str, Tensor]) -> tuple[Tensor | None, Tensor]:
    """Vectors (T, E) or (B, T, E), if it embeds, and scores (B, N, T, S) of the tokens that are read last."""
    turned = sizes.rotary_dim
    earlier, earlier_keys, vectors, scores = None, None, None, torch.empty(0)
    for begin, end in ((0, text.before), (text.before, text.length))[0 if text.before else 1 :]:
        ctx = text.context(begin, end)
        new = part.ids(ctx)
        earlier = new if earlier is None else join(earlier, new)
        vectors = part.embed(new)
        state = View(ctx, part, part.prepare(new, earlier), _NO_KERNEL, None).of(_projections(inputs)).state
        q, k = inputs["q"][:, :, begin:end], inputs["k"][:, :, :end]
        if part.caches_rotated:  # each key as it was turned when it was read
            terms = part.rotate(q[..., -turned:], k[:, :, begin:, -turned:], state)
            keys = terms[0].k_BKSH if earlier_keys is None else torch.cat([earlier_keys, terms[0].k_BKSH], 2)
            earlier_keys, terms = keys, [term._replace(k_BKSH=keys) for term in terms]
        else:
            terms = part.rotate(q[..., -turned:], k[..., -turned:], state)
        scores = _scores(part, [_widened(q, k, term, turned) for term in terms], state)
    return vectors, scores


_NO_KERNEL: Any = None  # only scores are computed


def _widened(q: Tensor, k: Tensor, term: Term, turned: int) -> Term:
    """The term with the numbers of a head that are not turned in front, as MLA's attention has it."""
    return term._replace(
        q_BNTH=torch.cat([q[..., :-turned], term.q_BNTH], -1), k_BKSH=torch.cat([k[..., :-turned], term.k_BKSH], -1)
    )


def _scores(part: Position, terms: list[Term], state: Any) -> Tensor:
    """(B, N, T, S): scaled products where each counts, plus the bias."""
    total = torch.zeros(())
    for q, k, region in terms:
        product = q @ k.repeat_interleave(q.shape[1] // k.shape[1], 1).mT * SCALE
        here = torch.ones_like(product, dtype=torch.bool) if region is None else region
        total = torch.where(here if here.dim() == 4 else here.expand(ROWS, *here.shape[-2:])[:, None], product, total)
    bias = part.bias(terms[0].q_BNTH, terms[0].k_BKSH, SCALE, state)
    return total if bias is None else total + bias


def _projections(inputs: dict[str, Tensor]) -> Any:
    """A stand-in for an attention part, whose `project` a position may ask for."""

    def project(x_LD: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.einsum("ld,nhd->nlh", x_LD, inputs[f"{name}_projection"]) for name in "qk")

    return SimpleNamespace(project=project)
