"""Cost of a model: parameters, and the floating-point operations that its mask really requires.

A product of (m, k) and (k, n) is 2 m k n operations. Norms, softmax, activations and look-ups are not counted, as in
Kaplan et al. 2020 (arXiv:2001.08361) and the PaLM paper's model FLOPs (arXiv:2204.02311, appendix B).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypedDict, Unpack, cast

import torch
from torch import nn

from llmlab import attributes
from llmlab.config.spec import PartSpec
from llmlab.model import backward
from llmlab.model.experts import GroupedLinear, MixtureOfExperts, linears
from llmlab.model.model import Model, reads_hidden
from llmlab.model.probe import CostSource, Meter
from llmlab.model.stack import Layer, Stack
from llmlab.sizes import Sizes
from llmlab.slots import Context, Linear, Mask, Window


class Parameters(NamedTuple):
    """Numbers of parameters."""

    total: int
    active: int  # those that a token uses: of the routed experts, per_token
    embedding: int  # of them, look-up tables: token, position and segment
    trainable: int  # of all, those that learn


def count_parameters(model: Model) -> Parameters:
    """Count parameters; tied and shared ones once, as `Module.parameters` lists them."""
    total = sum(p.numel() for p in model.parameters())
    idle = 0
    for module in model.modules():
        if isinstance(module, MixtureOfExperts):
            routed = sum(p.numel() for p in module.experts.parameters())
            # per_token may be a fraction: where experts choose, a token meets so many on average.
            idle += routed - int(routed * module.per_token // module.n_experts)
    tables = sum(
        p.numel()
        for m in model.modules()
        if getattr(m, "role", None) in ("embed", "position")
        for p in m.parameters(False)
    )
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return Parameters(total, total - idle, tables, trainable)


def linear_flops(module: nn.Module) -> float:
    """FLOPs of the linears inside `module` for a token, forward; of routed experts only those that a token visits."""
    total = 0.0
    for child in module.modules():
        # Biases are not counted: one addition beside the 2 k operations of an output of width k.
        if isinstance(child, nn.Linear):
            total += 2 * child.weight.numel()
        elif isinstance(child, MixtureOfExperts):
            grouped = sum(m.weight.numel() for m in child.modules() if isinstance(m, GroupedLinear))
            total += 2 * grouped / child.n_experts * child.per_token
    return total


def allowed_pairs(mask: Mask, window: Window, length: int, prefix: int | None = None, rows: int = 64) -> int:
    """(query, key) pairs that mask and window let see each other in a text of `length` tokens; exact, by counting.

    Where both go by q - k alone, the last row tells of every distance back and the first of every distance ahead. Else a few
    rows at a time: a block that stays in the processor's cache, without the keys that a causal mask hides anyway.
    """
    data = {} if prefix is None else {"prefix_len": torch.tensor([prefix])}
    if prefix is None and "prefix_len" in mask.needs:
        data = {"prefix_len": torch.tensor([0])}
    k = torch.arange(length)[None, :]
    if "rank" in mask.needs:  # an order has as many pairs as any other
        data |= {"rank": k, **dict.fromkeys(("queries", "placeholders"), torch.zeros_like(k, dtype=torch.bool))}

    def seen(q: torch.Tensor, keys: int = length) -> torch.Tensor:
        """(rows, keys) bool."""
        # A bidirectional mask answers with one row, or one number, for all: without the
        # broadcast its pairs would count once.
        both = mask.allowed(q, k[:, :keys], data) & window.allowed(q, k[:, :keys], data)
        return torch.broadcast_to(both, (*both.shape[:-2], len(q), keys)).reshape(-1, keys)

    if prefix is None and attributes.get(mask, "mask", "relative") and attributes.get(window, "window", "relative"):
        back, ahead = seen(torch.tensor([[length - 1]])), seen(torch.tensor([[0]]))
        # Distance d back is had by T - d queries, as is d ahead; distance 0 is in both rows and counts once.
        return int(((k + 1) * back).sum() + ((length - k) * ahead)[:, 1:].sum())
    # 64 rows at a time: 8,192 tokens with a prefix take 0.06 s on one CPU, all rows in one block 0.22 s.
    total = 0
    for start in range(0, length, rows):
        end = min(start + rows, length)
        keys = end if mask.pattern == "causal" else length
        total += int(seen(torch.arange(start, end)[:, None], keys).count_nonzero())
    return total


def order_pairs(mask: Mask, window: Window, data: Mapping[str, torch.Tensor]) -> int:
    """Pairs that mask and window let see each other in one sequence, by what the mask reads of it: each (1, ...), and
    `documents` (1, T), if there are any."""
    length = data["rank"].shape[1]
    k = torch.arange(length)[None, :]
    seen = mask.allowed(k.T, k, data) & window.allowed(k.T, k, data)
    if "documents" in data:
        seen = seen & (data["documents"][:, :, None] == data["documents"][:, None])
    return int(seen.expand(1, length, length).count_nonzero())


class Item(NamedTuple):
    """FLOPs of a forward of one sequence. place: the stack, or "heads"; what: "attention", "scores", "feed-forward" ..."""

    place: str
    what: str
    flops: float
    dense: float  # with the pairs that the mask hides, as an implementation that computes them does


@dataclass(frozen=True)
class Account:
    """The items of a forward of one sequence. sources: for each part that is more than linears, how its FLOPs are known.

    without_gradient: FLOPs of what has no gradient whatever learns. learning: the share of the backward that is done, and
    with the pairs that the mask hides, where some parameters are frozen.
    """

    items: tuple[Item, ...]
    length: int
    source_length: int | None
    without_gradient: float
    sources: tuple[CostSource, ...]
    learning: tuple[float, float] | None = None

    @property
    def tokens(self) -> int:
        """Tokens of the sequence and its source."""
        return self.length + (self.source_length or 0)

    def forward(self, *, dense: bool = False) -> float:
        """FLOPs of a forward of the sequence. dense: with the pairs that the mask hides."""
        return sum(item.dense if dense else item.flops for item in self.items)

    def training(self, *, dense: bool = False) -> float:
        """FLOPs a token of a forward and a backward. The backward has two products for each of the forward: the gradients of
        the input and of the weight (Kaplan et al. 2020), unless nothing that learns wants them."""
        forward = self.forward(dense=dense)
        if self.learning is None:
            return (3 * forward - self.without_gradient) / self.tokens
        return forward * (1 + 2 * self.learning[dense]) / self.tokens


class AccountOptions(TypedDict, total=False):
    """Options of `account`."""

    source_length: int | None
    heads: Mapping[str, float] | None
    documents: Sequence[Sequence[int]] | None
    orders: Sequence[Mapping[str, torch.Tensor]] | None
    places: int | None
    memory: int


def forward_flops(model: Model, length: int, *, dense: bool = False, **options: Unpack[AccountOptions]) -> float:
    """FLOPs of a forward of one sequence. options: those of `account`; dense: with the pairs that the mask hides."""
    return account(model, length, **options).forward(dense=dense)


def training_flops_per_token(
    model: Model, length: int, *, dense: bool = False, **options: Unpack[AccountOptions]
) -> float:
    """FLOPs of a forward and a backward of one sequence, a token."""
    return account(model, length, **options).training(dense=dense)


def account(
    model: Model,
    length: int,
    *,
    source_length: int | None = None,
    heads: Mapping[str, float] | None = None,
    documents: Sequence[Sequence[int]] | None = None,
    orders: Sequence[Mapping[str, torch.Tensor]] | None = None,
    places: int | None = None,
    memory: int = 0,
) -> Account:
    """Account for one sequence of `length` tokens (in an encoder-decoder the decoder's; its encoder reads `source_length`).

    It is that of a sequence alone: what a position does once for a whole batch, as projecting distances (xlnet_relative,
    disentangled), is counted in each of its sequences.

    heads: roles of the heads that are computed, and the share of the positions at which each is; None: all heads, at all.
    documents: lengths of the documents that do not see each other, of each of a few sequences, over which the pairs are
    averaged; None: one document a sequence. orders: what a mask that goes by an order reads of each of a few sequences, over
    which pairs are averaged. places: positions at which the tokens stand, where a second stream stands at those of the first;
    None: one each. memory: tokens of a segment memory that all see.
    """
    stands = (places or length) + memory
    meter, stacks = Meter(places), model.all_stacks()
    items: list[Item] = []
    without = 0.0

    def pairs_of(stack: Stack, window: Window, own: int) -> float:
        if orders:
            return own * memory + sum(order_pairs(stack.mask, window, data) for data in orders) / len(orders)
        each = [[own]] if documents is None else documents
        # Lengths repeat among documents: each is counted once.
        counts = {n: allowed_pairs(stack.mask, window, n) for n in {n for lengths in each for n in lengths}}
        return own * memory + sum(counts[n] for lengths in each for n in lengths) / len(each)

    # As Model.forward, which runs no layers for heads that read none of them.
    layers = not heads or any(reads_hidden(model.heads[role]) for role in heads)
    for stack in stacks if layers else ():
        own = (source_length or length) if len(stacks) > 1 and stack is stacks[0] else length
        for what, flops, dense in _of_stack(
            stack, own, source_length or length, pairs_of, meter, stands if own == length else own, memory
        ):
            items.append(Item(stack.spec.name, what, flops, dense))
        # Sinusoids need no gradient. A memory has none, but is read in one product with what has.
        without += _projected(stack, stands)
    shares = dict.fromkeys(model.heads, 1.0) if heads is None else heads
    of_heads = sum(_of_head(model, role, length, share, meter) for role, share in shares.items())
    items.append(Item("heads", "head", of_heads, of_heads))
    sources, learning = [*meter.sources.values()], None
    # Both tables of a head that reads no hidden states learn, whatever else is frozen.
    if layers and backward.frozen(model):
        found = backward.share(model, length, source_length or length, shares, pairs_of)
        if isinstance(found, str):
            sources.append(CostSource("train.learns", "as if all learnt", found))
        else:
            learning = found
    return Account(tuple(items), length, source_length, without, tuple(sources), learning)


def _of_head(model: Model, role: str, length: int, share: float, meter: Meter) -> float:
    head: Any = model.heads[role]
    # A head that answers once a text reads one vector of its `length`.
    share = share if _by_rows(head) else 1 / length
    # A tied head computes with the embedding's table, of which its own modules know nothing.
    tied = getattr(head, "out", None) is None and getattr(head, "embedding", None) is not None
    table = 2 * head.embedding.weight.numel() if tied else 0
    each = linear_flops(head) + table
    rows = length if _by_rows(head) else 1

    # A head of all layers reads what the first one does too, as in Model._heads.
    states = (len(model.spec.stacks[-1].execute) + 1,) if attributes.get(head, "head", "every_layer") else ()

    def run(head: nn.Module) -> None:
        head(
            torch.empty(*states, 1, length, model.sizes.dim),
            Context(length, ids=torch.zeros(1, length, dtype=torch.long)),
        )

    beyond = meter.extra_flops(head, model.spec.heads[role], rows * each, run, tokens=length)
    return length * share * each + length * share / rows * beyond


def _by_rows(head: Any) -> bool:
    """True if a head computes as many rows as it is asked for, not one a text."""
    return any(attributes.get(head, "head", name) for name in ("per_token", "per_target"))


def _of_stack(
    stack: Stack,
    length: int,
    source_length: int,
    pairs_of: Callable[[Stack, Window, int], float],
    meter: Meter,
    stands: int,
    memory: int,
) -> Iterator[tuple[str, float, float]]:
    """(what, FLOPs, FLOPs with hidden pairs) of a forward. stands: positions at which keys stand."""
    text = torch.Size((1, length))

    def embed(part: nn.Module) -> None:
        part(torch.zeros(text, dtype=torch.long), meter.context(length))

    counted = length * linear_flops(stack.embedding)
    embedding = counted + meter.extra_flops(stack.embedding, stack.spec.embedding, counted, embed, tokens=length)
    yield "embedding", embedding, embedding

    prepared: dict[int, float | None] = {}
    for i, place in enumerate(stack.position_of):
        if place not in prepared:
            part = stack.spec.layers[i].parts["position"]
            prepared[place] = meter.prepare_flops(stack.position_at(place), part, length)
    sums = {"positions": _projected(stack, stands) + sum(flops or 0.0 for flops in prepared.values())}
    dense = 0.0
    pairs: dict[Window, float] = {}
    # Each stored layer is run once by the meter, however often it is executed (ALBERT: one layer, twelve times).
    layers = {i: _of_layer(stack, i, length, source_length, prepared, meter) for i in dict.fromkeys(stack.spec.execute)}
    for i in stack.spec.execute:
        window = stack.windows[i]
        if window not in pairs:
            pairs[window] = pairs_of(stack, window, length)
        width, parts = layers[i]
        for what, flops in parts.items():
            sums[what] = sums.get(what, 0.0) + flops
        sums["scores"] = sums.get("scores", 0.0) + 2 * pairs[window] * width
        sums["attention"] += memory * _keys(cast(Layer, stack.layers[i]).attention)
        # XLNet's queries are multiplied by the vector of every distance before they are shifted into place (rel_shift).
        sums["positions"] += (
            2 * length * _distances(stands) * cast(Any, stack.position_at(stack.position_of[i])).score_width
        )
        dense += 2 * (length * (length + memory)) * width
    for what, flops in sums.items():
        yield what, flops, dense if what == "scores" else flops


def _of_layer(
    stack: Stack, i: int, length: int, source_length: int, prepared: dict[int, float | None], meter: Meter
) -> tuple[float, dict[str, float]]:
    """(multiply-adds of a pair in self-attention, FLOPs by what they are for) of a layer."""
    layer, sizes, parts = stack.layers[i], stack.sizes, stack.spec.layers[i].parts
    assert isinstance(layer, Layer)
    place = stack.position_of[i]
    position: Any = stack.position_at(place)
    x = (length, sizes.dim)
    counted = length * linear_flops(layer.attention)
    beyond, width = meter.attention(layer.attention, parts["attention"], counted, x)
    turned = meter.position_flops(layer.attention, parts["attention"], position, parts["position"], prepared[place], x)
    found = {"attention": counted + beyond}
    found["positions"] = turned
    if layer.ffn is not None:
        found["feed-forward"] = length * linear_flops(layer.ffn) + _beyond_ffn(layer, sizes, parts, length, meter)
    found["block"] = meter.extra_flops(
        layer.block, parts["block"], 0.0, lambda part: _wired(part, layer, x), tokens=length
    )
    if layer.cross_attention is not None:
        attention, spec = layer.cross_attention, stack.spec.cross_attention
        assert spec is not None
        # Keys and values read the source's tokens, query and output the decoder's.
        of_source = _keys(attention)
        counted = source_length * of_source + length * (linear_flops(attention) - of_source)
        source = (source_length, sizes.source_dim or sizes.dim)
        beyond, across = meter.attention(attention, spec, counted, x, source)
        found["cross-attention"] = counted + beyond + 2 * length * source_length * across
    return width, found


def _wired(block: nn.Module, layer: Layer, x: tuple[int, int]) -> None:
    names = ["attention", *(["cross_attention"] if layer.cross_attention is not None else []), "ffn"]
    block(torch.empty(1, *x), {name: lambda y: (y, None) for name in names})


def _beyond_ffn(layer: Layer, sizes: Sizes, parts: Mapping[str, PartSpec], length: int, meter: Meter) -> float:
    """FLOPs of the feed-forward, or of router and experts, beyond those of linears."""
    ffn: Any = layer.ffn

    def beyond(part: nn.Module, slot: str, rows: int) -> float:
        counted = rows * linear_flops(part)
        x = (rows, sizes.dim) if slot == "moe" else (1, rows, sizes.dim)
        more = (None,) if slot == "moe" else ()
        return meter.extra_flops(part, parts[slot], counted, lambda copied: copied(torch.empty(x), *more), tokens=rows)

    if not isinstance(ffn, MixtureOfExperts):
        return beyond(ffn, "ffn", length)
    # One expert, for each of its tokens.
    with torch.device("meta"):
        expert = parts["ffn"].factory()(sizes.dim, sizes.moe.ffn_dim, linears(Linear, sizes.ffn))
    shared = 0.0 if ffn.shared is None else beyond(ffn.shared, "ffn", length)
    return beyond(ffn.router, "moe", length) + beyond(expert, "ffn", max(1, round(length * ffn.per_token))) + shared


def _distances(length: int) -> int:
    return 2 * length - 1


def _keys(attention: Any) -> float:
    """FLOPs of the linears that make keys and values of a token."""
    return sum(2 * m.weight.numel() for m in attention.modules() if getattr(m, "role", "") in ("k", "v"))


def _projected(stack: Stack, length: int) -> float:
    """FLOPs of the linears in position parts that score distances: each projects the sinusoid of every distance."""
    parts = [stack.position_at(stack.position_of[i]) for i in stack.spec.execute]
    return _distances(length) * sum(linear_flops(part) for part in parts if part.score_width)


def cached_numbers(model: Model) -> tuple[int, int]:
    """Numbers that a token leaves in the KV cache, in all executed layers of the decoding stack; and a source's token."""
    stack, meter = model.all_stacks()[-1], Meter()
    own = across = 0
    for i in stack.spec.execute:
        layer: Any = stack.layers[i]
        own += meter.cached_numbers(layer.attention, stack.spec.layers[i].parts["attention"], stack.sizes.dim)
        if layer.cross_attention is not None:
            spec, width = cast(Any, stack.spec.cross_attention), stack.sizes.source_dim or stack.sizes.dim
            across += meter.cached_numbers(layer.cross_attention, spec, stack.sizes.dim, width)
    return own, across
