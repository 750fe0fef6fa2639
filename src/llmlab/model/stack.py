"""A stack of layers over one embedding: what differs between layers is prepared once a forward, not per layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from llmlab import attributes
from llmlab.config.spec import LayerSpec, PartSpec, StackSpec
from llmlab.errors import UserError
from llmlab.memory import Memory
from llmlab.model.cache import Cache, join
from llmlab.model.experts import MixtureOfExperts, linears
from llmlab.model.view import LayerCache, View
from llmlab.model.visibility import Visible, VisibleSource
from llmlab.sizes import Sizes
from llmlab.slots import Aux, Context, Kernel, Linear, Position, Window

MOST_TOKENS = 2**40  # more than any text has: a window that covers them hides nothing


class Layer(nn.Module):
    """The sublayers of one layer, wired by its block part. Returns x (B, T, D) and the Aux of its experts, or None."""

    def __init__(self, sizes: Sizes, spec: LayerSpec, cross_attention: PartSpec | None):
        super().__init__()
        norm = spec.parts["norm"].factory()
        ffn = spec.parts["ffn"].factory()
        router = spec.parts["moe"].factory()
        # Without the source's width: in self-attention keys and values come from the layer's own input.
        self.attention = spec.parts["attention"].factory()(sizes.but(source_dim=0), norm)
        self.cross_attention = cross_attention.factory()(sizes, norm) if cross_attention else None
        absent = attributes.get(ffn.func, "ffn", "absent")
        if absent and not attributes.get(router.func, "moe", "dense"):
            raise UserError(
                f"{spec.parts['moe'].slot}={spec.parts['moe'].name} routes tokens to feed-forwards, of which ffn="
                f"{spec.parts['ffn'].name} leaves none; choose moe=none or another ffn"
            )
        if absent:
            self.ffn: nn.Module | None = None
        elif attributes.get(router.func, "moe", "dense"):
            self.ffn = ffn(sizes.dim, sizes.ffn_dim, linears(Linear, sizes.ffn))
        else:
            self.ffn = MixtureOfExperts(sizes, router, ffn)
        names = ("attention", *(("cross_attention",) if cross_attention else ()), *(() if absent else ("ffn",)))
        self.block = spec.parts["block"].factory()(sizes, norm, names)

    @property
    def routed(self) -> bool:
        return isinstance(self.ffn, MixtureOfExperts)

    def forward(
        self,
        x_BTD: Tensor,
        view: View,
        source_view: View | None = None,
        source_BSD: Tensor | None = None,
        cache: Mapping[str, LayerCache] | None = None,
        memory_BMD: Tensor | None = None,
    ) -> tuple[Tensor, Aux | None]:
        def attention(x: Tensor) -> tuple[Tensor, None]:
            seen = None if memory_BMD is None else torch.cat([self._read(memory_BMD), x], 1)
            return self.attention(x, view.of(self.attention), seen, cache["attention"] if cache else None), None

        def cross_attention(x: Tensor) -> tuple[Tensor, None]:
            assert self.cross_attention is not None
            # No view.of: a source has no positions here, as in T5 and BART.
            return self.cross_attention(x, source_view, source_BSD, cache["cross_attention"] if cache else None), None

        def ffn(x: Tensor) -> tuple[Tensor, Aux | None]:
            assert self.ffn is not None
            if self.routed:
                valid = view.ctx.valid
                # `valid` is of all keys, those in the cache included; experts get the new tokens alone.
                return self.ffn(x, None if valid is None else valid[:, view.ctx.offset :])
            return self.ffn(x), None

        sublayers = {"attention": attention, **({} if self.ffn is None else {"ffn": ffn})}
        if source_BSD is not None:
            sublayers["cross_attention"] = cross_attention
        return self.block(x_BTD, sublayers)

    def _read(self, memory_BMD: Tensor) -> Tensor:
        """The memory as attention reads it. The block decides: a pre-norm block norms it first, as it does x."""
        read: list[Tensor] = []

        def attention(x: Tensor) -> tuple[Tensor, None]:
            read.append(x)
            return torch.zeros_like(x), None

        self.block(memory_BMD, {"attention": attention})
        return read[0]


class Stack(nn.Module):
    """Embedding, layers in the order of `execute`, a last norm where the block asks for one.

    `shared` is an earlier stack's embedding whose tables are used; `position` another model's, which all layers have.
    """

    shared_position: nn.Module | None

    def __init__(
        self, spec: StackSpec, kernel: Kernel, shared: nn.Module | None = None, position: nn.Module | None = None
    ):
        super().__init__()
        self.spec, self.sizes = spec, spec.sizes
        # As a child its table would be in the state of both models.
        object.__setattr__(self, "shared_position", position)
        first = spec.layers[0].parts
        norm = first["norm"].factory()

        embedding = spec.embedding.factory()
        # Read before the embedding is built: positions that it adds must be as wide as its table (ELECTRA, ALBERT).
        width = getattr(embedding.func, "width", None)
        self.embed_dim = width(self.sizes, **spec.embedding.options) if width else self.sizes.dim

        self.positions = nn.ModuleList()  # its own
        places: dict[tuple, int] = {}
        self.position_of = [self._position(layer, places) for layer in spec.layers]
        for i, place in enumerate(self.position_of):
            if place != self.position_of[0] and _embeds(self.position_at(place)):
                first_part, part = spec.layers[0].parts["position"], spec.layers[i].parts["position"]
                raise UserError(
                    f"position={part} is added to the embedding, so all layers must have it, but layer 0 has {first_part}"
                )
        self.embedding = embedding(self.sizes, self.position_at(self.position_of[0]), norm, shared)
        if shared is not None and self.embedding.embed_dim != shared.embed_dim:
            raise UserError(
                f"the {spec.name} embeds in {self.embedding.embed_dim} dimensions, the first stack in {shared.embed_dim}; "
                f"give both one width, or stacks.{spec.name}.shared_embedding=false"
            )
        self.layers = nn.ModuleList(
            Layer(self.sizes.but(layer=i), layer, spec.cross_attention) for i, layer in enumerate(spec.layers)
        )
        # The layer that runs last, which need not be the one that is stored last.
        final = spec.layers[spec.execute[-1]].parts
        self.norm = (
            final["norm"].factory()(self.sizes.dim, self.sizes.norm_eps)
            if attributes.get(self.layers[spec.execute[-1]].block, "block", "final_norm")
            else None
        )
        self.mask = spec.mask.factory()()
        if spec.cross_attention is not None and spec.cross_attention.attribute("recurrent"):
            raise UserError(
                f"cross_attention={spec.cross_attention.name} can't read a source; choose "
                f"attention@stacks.{spec.name}.cross_attention=mha"
            )
        self.windows = [layer.parts["window"].factory()() for layer in spec.layers]
        self.kernel = kernel
        for i, layer in enumerate(cast("list[Any]", self.layers)):
            score, position = layer.attention.score, self.position_at(self.position_of[i])
            if attributes.get(layer.attention, "attention", "recurrent"):
                _check_recurrent(spec.layers[i], position, self.windows[i])
            if position.projects and not hasattr(type(layer.attention), "project"):
                parts = spec.layers[i].parts
                raise UserError(
                    f"position={parts['position'].name} scores with the attention's own queries and keys, which "
                    f"attention={parts['attention'].name} does not make of distances; choose attention=mha or another position"
                )
            # At assembly: a kernel that can't do it would otherwise fail in the first
            # step, after the data were prepared.
            kernel.check(
                softcap=score.softcap is not None,
                sink=self.sizes.attention.sink,
                bias=position.has_bias,
                regions=position.has_regions,
                dropout=score.dropout > 0,
            )

    def _position(self, layer: LayerSpec, places: dict[tuple, int]) -> int:
        """One instance serves all layers that name the same part with the same options and width."""
        if self.shared_position is not None:
            return 0
        part, attention = layer.parts["position"], layer.parts["attention"]
        factory = attention.factory()
        rotary_width = getattr(factory.func, "rotary_width", None)
        width = rotary_width(self.sizes, **factory.keywords) if rotary_width else self.sizes.head_dim
        factory = part.factory()
        # T5 and MPNet have one table for all layers, XLNet one a layer (scope "layer"), Gemma 3 a rope a kind.
        own = len(self.positions) if attributes.get(factory.func, "position", "scope") == "layer" else None
        # Options may be lists (longrope's divisors), which can't be keys of a dict; their repr can.
        key = (part.name, repr(sorted(part.options.items())), width, own)
        if key not in places:
            places[key] = len(self.positions)
            self.positions.append(factory(self.sizes.but(rotary_dim=width, embed_dim=self.embed_dim)))
        return places[key]

    def position_at(self, place: int) -> Position:
        """The position part of layers whose `position_of` is `place`."""
        return cast(Position, self.positions[place] if self.shared_position is None else self.shared_position)

    def forward(
        self,
        ids_BT: Tensor,
        ctx: Context,
        *,
        source_BSD: Tensor | None = None,
        source_valid_BS: Tensor | None = None,
        cache: Cache | None = None,
        memory: Memory | None = None,
        layers: Sequence[int] = (),
    ) -> tuple[Tensor, Aux | None, tuple[Tensor, ...]]:
        """layers: numbers of the hidden states that are given as the third value, as `Model.forward` has them."""
        wanted = numbered(layers, len(self.spec.execute))
        x = self.embedding(ids_BT, ctx)
        views = self._views(ctx, cache, memory)
        source_view = None
        if source_BSD is not None:
            lowered = self.kernel.lower(VisibleSource(source_valid_BS, ctx.length))
            source_view = View(ctx, Position(), None, self.kernel, lowered, self.training)
        losses: list[Tensor] = []
        tokens: list[Tensor] = []
        inputs: list[Tensor] = []
        kept = {0: x} if 0 in wanted else {}
        # By steps, not layers: a layer that runs twelve times has twelve caches and memories, for its inputs differ.
        for step, i in enumerate(self.spec.execute):
            layer_cache = cache.layers[step] if cache is not None else None
            before = memory.layers[step] if memory is not None and memory.layers else None
            if memory is not None:
                inputs.append(x)
            x, aux = self.layers[i](x, views[i], source_view, source_BSD, layer_cache, before)
            if aux is not None:
                if aux.loss is not None:
                    losses.append(aux.loss)
                if aux.tokens_per_expert is not None:
                    tokens.append(aux.tokens_per_expert)
            if step + 1 in wanted:
                kept[step + 1] = x
        if memory is not None:
            memory.extend(inputs)
        if self.norm is not None:
            x = self.norm(x)
        states = tuple(x if i == len(self.spec.execute) else kept[i] for i in wanted)
        if not losses and not tokens:
            return x, None, states
        aux = Aux(torch.stack(losses).sum() if losses else None, torch.stack(tokens) if tokens else None)
        return x, aux, states

    def _views(self, ctx: Context, cache: Cache | None, memory: Memory | None) -> list[View]:
        lowered: dict[Any, Any] = {}
        states: dict[int, Any] = {}
        views: dict[tuple, View] = {}
        out = []
        for layer, window, place in zip(self.spec.layers, self.windows, self.position_of, strict=True):
            position = self.position_at(place)
            if "queries" in ctx.data and not window.covers(ctx.keys):
                raise ValueError(
                    f"window={layer.parts['window'].name} goes by places in the sequence, but queries stand behind the text; "
                    "choose window=full"
                )
            # Windows are frozen values: layers with equal ones share one mask, whose (T,
            # S) booleans are made once a forward.
            if window not in lowered:
                lowered[window] = self.kernel.lower(Visible(self.mask, window, ctx))
            if place not in states:
                ids = position.ids(ctx)
                if memory is not None and memory.length:
                    keys = join(_of_memory(position, ctx), ids)
                else:
                    keys = ids if cache is None else cache.extend_positions(ids, place)
                states[place] = position.prepare(ids, keys)
            if (place, window) not in views:
                views[place, window] = View(ctx, position, states[place], self.kernel, lowered[window], self.training)
            out.append(views[place, window])
        return out


def numbered(layers: Sequence[int], n_layers: int) -> list[int]:
    """Numbers of hidden states counted from the embedding, 0, also where they are counted from the end. ValueError for one
    that there isn't."""
    if wrong := [i for i in layers if not -n_layers - 1 <= i <= n_layers]:
        raise ValueError(
            f"hidden states of layer {wrong[0]} are asked for, but the layers are 1 to {n_layers} "
            "(0: the embedding, -1: the last)"
        )
    return [i % (n_layers + 1) for i in layers]


def _of_memory(position: Position, ctx: Context) -> Tensor:
    """Position ids of what a memory holds. ValueError if the position is no sum on the scores."""
    if type(position).rotate is not Position.rotate:
        raise ValueError(
            f"position={type(position).__name__} changes queries and keys, which layer inputs of a memory are not; "
            "choose a position that is only added to the scores"
        )
    ids = None if ctx.ids is None else ctx.ids.new_zeros(len(ctx.ids), ctx.offset)
    return position.ids(Context(ctx.offset, ids=ids))


def _check_recurrent(layer: LayerSpec, position: Position, window: Window) -> None:
    """UserError for what a layer that passes a state from token to token would ignore."""
    name = f"attention={layer.parts['attention'].name}"
    scored = type(position).rotate is not Position.rotate or position.has_bias or position.projects
    if scored:
        raise UserError(
            f"position={layer.parts['position'].name} acts on queries, keys or their scores, of which {name} has none; choose "
            "position=none, or one that is added to the embedding: learned, sinusoidal"
        )
    if not window.covers(MOST_TOKENS):
        raise UserError(f"window={layer.parts['window'].name} hides tokens, which {name} can't; choose window=full")


def _embeds(position: nn.Module) -> bool:
    return getattr(type(position), "embed", None) is not Position.embed
