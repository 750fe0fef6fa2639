"""The slots: what a part of each is given when it is built, what it is called with, what it returns.

Shapes: B batch, T queries, S keys (the cache's included), D model width, N heads, K key-value heads,
H head width, V vocabulary, E experts, F feed-forward width. A suffix gives a tensor's shape: `q_BNTH`.

How parts are built. The framework calls a part's class with the positional-only arguments written
in its Protocol's `__init__` below, under `torch.device("meta")`. A part therefore allocates and never
fills: first values come from the `init` part, by role. A module may carry `constants`, a dict
{parameter name: value} for its own parameters that begin as a constant (a norm's weight); biases
begin at 0. Persistent buffers begin at 0; a part keeps no other buffers (tables are made in `prepare`).

What a part declares of itself stands on its class as literals, read without importing it: `llmlab.attributes` has a table of
them for each slot, with types and defaults. Any other public literal there is refused; a part's own begin with "_".

What parts cost. Linears are counted; for what a part computes beside them a module may have `cost(tokens, keys) -> Cost`, of
one text of so many tokens that look at so many keys. One that has none and computes something else is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

# `as` of the same name: ruff, mypy and pyright take such an import for one that is offered on.
from llmlab.memory import Memory as Memory
from llmlab.modules import Linear as Linear
from llmlab.modules import Role as Role
from llmlab.modules import Table as Table
from llmlab.objectives import Acts as Acts
from llmlab.objectives import Answers as Answers
from llmlab.objectives import LanguageModel as LanguageModel
from llmlab.objectives import Loss as Loss
from llmlab.objectives import Objective as Objective
from llmlab.objectives import Pass as Pass
from llmlab.objectives import Reward as Reward
from llmlab.objectives import Rollout as Rollout
from llmlab.objectives import Scored as Scored
from llmlab.objectives import Vocabulary as Vocabulary
from llmlab.objectives import Words as Words
from llmlab.objectives import Writing as Writing
from llmlab.record_kinds import ANSWER as ANSWER
from llmlab.sizes import Sizes
from llmlab.values import IGNORED as IGNORED
from llmlab.values import Aux as Aux
from llmlab.values import Choice as Choice
from llmlab.values import Context as Context
from llmlab.values import Cost as Cost
from llmlab.values import Output as Output
from llmlab.values import Routing as Routing
from llmlab.values import Score as Score
from llmlab.values import Term as Term
from llmlab.values import auxiliary as auxiliary

# ---------------------------------------------------------------- slots whose parts are modules


class Norm(Protocol):
    """norm(dim, eps, /): (..., dim) -> (..., dim), same dtype, computed in float32."""

    # Positional only: a part's own names for them are its affair, and options are keywords.
    def __init__(self, dim: int, eps: float, /): ...
    def __call__(self, x: Tensor) -> Tensor: ...


class Position(nn.Module):
    """position(sizes, /): where a token stands. Six hooks; the defaults do nothing, so this class is "no position".

    One instance serves all layers of a stack that name it with the same options and width; with `scope` "layer" each has
    its own. Ids are (T,) or (B, T), or (1 or B, C, T) of a part that `counts` C things (a place and one in a block); what else
    a part packs into the ids that it hands to itself is its own affair.
    """

    scope: Literal["stack", "layer"] = "stack"
    counts: int = 1

    caches_rotated: bool = True  # False: angles depend on the length, so a cache keeps keys as they were projected
    has_regions: bool = False  # whether `rotate` returns several terms; where `caches_rotated`, all have the same keys

    splits: bool = False  # whether what a row gives depends on which half of the batch it is in
    relative: bool = False  # whether scores are the same wherever a text begins
    receding: bool = False  # whether a token has a bias of 0 on itself, which falls with the distance of others

    projects: bool = False  # whether it scores with the attention's projections, so that each layer asks `of_layer`

    score_width: int = 0  # numbers of a query that every distance is scored with; linears make as many of it

    def ids(self, ctx: Context) -> Tensor:
        """Position ids of the T new tokens. The caller's own, else offset, offset + 1, ..."""
        if ctx.positions is not None:
            if ctx.positions.dim() > 2 and ctx.positions.shape[1] != self.counts:
                n = ctx.positions.shape[1]
                raise ValueError(f"positions count {n} things, but position={type(self).__name__} {self.counts}")
            return ctx.positions
        device = ctx.ids.device if ctx.ids is not None else None
        return torch.arange(ctx.offset, ctx.keys, device=device)

    def embed(self, ids: Tensor) -> Tensor | None:
        """(T,) or (B, T) -> (T, embed_dim) or (B, T, embed_dim), added by the embedding part; or None."""
        return None

    def prepare(self, q_ids: Tensor, k_ids: Tensor) -> Any:
        """Once a forward: what `rotate` and `bias` need (cos and sin; a bias). q_ids (..., T), k_ids (..., S)."""
        return None

    def of_layer(self, state: Any, project: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Any:
        """In each layer, where it `projects`: the state with what its attention's `project` makes of vectors (L, D)."""
        return state

    def rotate(self, q_BNTH: Tensor, k_BKSH: Tensor, state: Any) -> list[Term]:
        """The T new queries and keys (all S keys where `caches_rotated` is False) -> terms. `rotary_dim` wide."""
        return [Term(q_BNTH, k_BKSH)]

    def bias(self, q_BNTH: Tensor, k_BKSH: Tensor, scale: float, state: Any) -> Tensor | None:
        """(N, T, S) or (B, N, T, S), added to the products of q and k, which are scaled already; or None."""
        return None

    has_bias: bool = False  # whether `bias` ever returns a tensor: a kernel that can't add one refuses when built


class Embedding(Protocol):
    """embedding(sizes, position, norm, shared, /): ids -> vectors, the position's `embed` added where its paper adds it.

    `norm` is the model's norm factory (dim, eps) -> module. `shared` is the embedding of an earlier stack whose tables
    are used instead of own ones (held unregistered), or None. `weight` (V, width) is the token table; a static method
    `width(sizes, **options) -> int` says its width where that is not sizes.dim. `position` is held unregistered.
    `width_option` (a literal): the option that gives the table's width, which a model that uses the tables of another, wider or
    narrower one takes over.
    """

    weight: Tensor
    embed_dim: int

    def __call__(self, ids_BT: Tensor, ctx: Context) -> Tensor: ...  # (B, T, D)


class Block(Protocol):
    """block(sizes, norm, names, /): how sublayers, norms and residual are wired.

    `names` lists the sublayers in order ("attention", "cross_attention", "ffn"); the part owns its norms only, named
    after them. `sublayers[name](x)` -> (y, aux); one that is not given is left out. Residual dropout (sizes.dropout) is
    the block's. `final_norm` says whether the stack needs a norm after its last layer.
    """

    final_norm: bool

    def __call__(
        self, x_BTD: Tensor, sublayers: Mapping[str, Callable[[Tensor], tuple[Tensor, Aux | None]]]
    ) -> tuple[Tensor, Aux | None]: ...


# ---------------------------------------------------------------- what an attention part is called with


class LayerCache(Protocol):
    """Keys and values (or whatever an attention part keeps) of one executed attention, along dimension -2."""

    length: int  # rows that are there

    def update(self, *new: Tensor) -> tuple[Tensor, ...]:
        """Append the new rows of each tensor; all rows so far."""
        ...

    def read(self) -> tuple[Tensor, ...]:
        """All rows so far."""
        ...


class View(Protocol):
    """One layer's view of one forward: positions, the lowered mask and the kernel; `ctx`, of what they are made."""

    @property
    def position(self) -> Position: ...

    @property
    def ctx(self) -> Context: ...

    def rotate(self, q_BNTH: Tensor, k_BKTH: Tensor) -> list[Term]:
        """Queries and keys as the position turns them: the terms of the scores."""
        ...

    def weigh(self, terms: Sequence[Term], v_BKSH: Tensor, score: Score, sink: Tensor | None = None) -> Tensor:
        """Terms over all S keys -> (B, N, T, H')."""
        ...

    def attend(
        self,
        q_BNTH: Tensor,
        k_BKTH: Tensor,
        v_BKTH: Tensor,
        score: Score,
        *,
        sink: Tensor | None = None,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """Rotate, cache, weigh: (B, N, T, H'), all that most attention parts need."""
        ...


class Attention(Protocol):
    """attention(sizes, norm, /): projections of q, k, v and the output, as linears with these roles.

    The rest comes with `view` (below): `view.attend(q, k, v, score, sink=, cache=)`. A static method
    `rotary_width(sizes, **options) -> int` says what width the position rotates where that is not sizes.head_dim.
    `score` is its Score. `pair_width`: multiply-adds that a pair of a query and a key costs, N (H_qk + H_v); without it what it
    hands to the kernel tells.
    `sizes.source_dim`, unless 0, is the width of the `source` whose keys and values a cross-attention takes.
    `n_heads`, and `n_kv_heads` where there are fewer: tensor parallelism lowers both to a rank's own. It splits the linears
    by heads, but for those named in `latents` (a tuple), which all heads share.
    A method `project(x_LD) -> (queries (N, L, H), keys (K, L, H))`, if it has one, treats vectors that are no tokens as it
    does tokens: a position that `projects` scores distances with it.
    `textbook = True` on the class: without positions, norms and clipping it is out(softmax(scale q.k) v) of one linear of each
    of these roles, heads being slices in order.
    `unused` (a literal class attribute, a tuple of keys below `model.`, or a dict of such tuples by registered name)
    lists the sizes and traits that the part can't honour ("n_kv_heads", "attention.qkv_bias").
    """

    score: Score
    pair_width: int

    def __call__(
        self, x_BTD: Tensor, view: View, source_BSD: Tensor | None = None, cache: LayerCache | None = None
    ) -> Tensor: ...


class FFN(Protocol):
    """ffn(dim, ffn_dim, linear, /): the feed-forward. `linear(n_in, n_out, role=...)` makes its linears, dense or
    grouped by expert; they are called as `self.up(x, groups)`. That of the role ffn_out drops out its input by
    model.ffn.dropout. What lies between is by element, so that it can be split. x (..., dim) -> (..., dim).
    """

    def __call__(self, x: Tensor, groups: Tensor | None = None) -> Tensor: ...


def no_reduce(tensor: Tensor) -> Tensor:
    """The sum over the ranks where there is but one."""
    return tensor


class Router(Protocol):
    """moe(sizes, /): a router (n, D) -> Routing, or Choice where experts choose tokens. `valid` (n,) bool or None: padding
    counts in no loss, and is not chosen. `per_token`: experts that a token visits on average, if not model.moe.per_token.
    `leaks`, if it is there: whether tokens count for those before them, on purpose.

    `total` sums a tensor over the ranks that see other tokens of the same micro-batch, with the gradient that the mean over
    their gradients needs; with one rank, and in evaluation, it returns what it is given. A loss that is not linear in its
    tokens (the balance of experts) is one of all ranks if it is made of totals. Over the micro-batches of an accumulated
    step it is a mean: it can't be one of all of them, for the first is done before the last is seen.

    `dense = True` on the class means that there is no routing (moe=none): the layer has one plain FFN.
    Dispatch, experts, shared experts and `sizes.moe.scale` are the framework's. A part may have
    `after_step(load)`, called once an optimizer step with the (E,) counts of its layer, summed over micro-batches and ranks.
    """

    dense: bool

    def __call__(
        self, x_nD: Tensor, valid: Tensor | None, total: Callable[[Tensor], Tensor] = no_reduce
    ) -> Routing | Choice: ...


class Head(Protocol):
    """head(sizes, norm, embedding, /): what is read off the hidden states. (B, T, D), ctx -> a tensor.

    `embedding` is the (first) stack's embedding part, held unregistered: a tied head uses `embedding.weight`.
    `per_token = True` on the class: it may be given the rows (n, D) of chosen tokens instead of (B, T, D).
    Literal class attributes: `needs`, names of the batch data that it reads from ctx.data, if any; `hidden`, False where it
    reads no hidden states, so that layers need not run (h is then (B, T, 0)); `scores`, of what it gives scores ("vocabulary",
    "neighbours", "token", "text", "span", "context"): where an objective asks for one of them, no other can stand; `layers`,
    True where it reads all the hidden states that the objective asks for, (n, B, T, D); `every_layer`, True where it reads what
    the first layer reads and what each of the `sizes.n_layers` gives, (n + 1, B, T, D); `exported`, False where it serves
    training alone. An option `n_classes` follows the data where they are labelled, `width` a companion where the objective
    `widths` says so; `pool` "first" is refused under a causal mask.
    """

    per_token: bool

    def __call__(self, h: Tensor, ctx: Context) -> Tensor: ...


# ---------------------------------------------------------------- slots whose parts are plain values


class Mask(Protocol):
    """A frozen dataclass: in which direction a token looks. q (T, 1) and k (1, S) are absolute slots.

    `pattern`: "causal" or "full" where the mask is just that, so that a kernel may take its fast path; else None.
    `needs`: names of the batch data that it reads from `data`. Returns bool, broadcastable to (B, T, S). `relative = True` on
    the class: it goes by q - k alone (with an empty prefix, in the text's own order), so that pairs are counted by distance.
    A method `sees(q: int, k: int, row) -> bool`, if it has one, says the same as `allowed` of one pair in plain Python; `row`
    has the data of one row as numbers and lists. `llmlab check` holds models to it.
    """

    pattern: Literal["causal", "full"] | None
    needs: tuple[str, ...]

    def allowed(self, q: Tensor, k: Tensor, data: Mapping[str, Tensor]) -> Tensor: ...


class Window(Protocol):
    """A frozen dataclass: how far a token looks. As Mask; `covers(length)`: it hides nothing among that many slots."""

    def covers(self, length: int) -> bool: ...
    def allowed(self, q: Tensor, k: Tensor, data: Mapping[str, Tensor]) -> Tensor: ...


class Seen(Protocol):
    """The argument of `Kernel.lower`: mask & window & documents & valid keys & the caller's mask.

    `pattern`: "causal" (T = S), "full" (every key is seen), or None. `dense()`: bool (1|B, 1, T, S); only the caller's mask
    leaves a row empty. `within`: the pattern inside each of the `documents` (B, T), if nothing else hides a key.
    `one_for_all`: all samples see alike."""

    @property
    def pattern(self) -> Literal["causal", "full"] | None: ...
    @property
    def within(self) -> Literal["causal", "full"] | None: ...
    @property
    def documents(self) -> Tensor | None: ...
    @property
    def one_for_all(self) -> bool: ...
    def dense(self) -> Tensor: ...


class Kernel(Protocol):
    """kernel(/): how softmax(s) v is computed.

    `check(softcap=, sink=, bias=, regions=, dropout=)`, all bool, raises ValueError in one line when the model is built
    and asks for what the kernel can't do. `lower(seen)` once a forward. Called: terms, v (B, K, S, H'), the lowered mask,
    bias or None, score, sink (N,) or None, training -> (B, N, T, H'). K divides N (grouped queries). A kernel may have
    `check_training(device, precision)`, "cpu" or "cuda" and `precision` as configured, which raises ValueError where it
    can't train: it is asked before a run writes anything. It may say what it keeps for the backward on a GPU beside q, k,
    v and its result: `kept(seen, terms, v, bias, score)`, bytes, of tensors without values; `llmlab plan` asks. One that
    doesn't is taken to keep what PyTorch keeps of its operations. One that computes, or trains, on GPUs only may name them
    in `devices`, and its types in `dtypes`, and go by these alone: `llmlab check` asks it on a CPU, with PyTorch's functions
    for GPUs written out.
    """

    def check(self, *, softcap: bool, sink: bool, bias: bool, regions: bool, dropout: bool) -> None: ...
    def lower(self, seen: Seen) -> Any: ...
    def __call__(
        self,
        terms: Sequence[Term],
        v_BKSH: Tensor,
        lowered: Any,
        bias: Tensor | None,
        score: Score,
        sink: Tensor | None,
        training: bool,
    ) -> Tensor: ...


class Init(Protocol):
    """init(/): first values by role. Fills `tensor` (whole, float32, CPU) in place from `generator`.

    `sizes.gain`: what the owner of a table multiplies its vectors by, which an init may make up for.
    `logit_variance` (a literal; else 0): what that of a model's first logits is at most, where they are meant to vary.
    """

    def fill(self, tensor: Tensor, role: Role, sizes: Sizes, generator: torch.Generator) -> None: ...


# ---------------------------------------------------------------- slots of the recipe


class OptimizerPart(Protocol):
    """optimizer(/): `build(params)` makes a torch optimizer; params is a list of (path, parameter, role).

    Weight decay and other splits go by role, never by name. `lr` is an option of every optimizer part.
    """

    lr: float

    def build(self, params: Sequence[tuple[str, nn.Parameter, Role]]) -> torch.optim.Optimizer: ...


class Schedule(Protocol):
    """schedule(/): `factor(step, total)` on the learning rate; step counts from 0, total is the budget in steps."""

    def factor(self, step: int, total: int) -> float: ...
