"""FLOPs and cache of parts beyond their linears: as a part declares them (`cost`), else as they are measured.

A part is run once on tensors that have a shape and a device but no memory, under torch's FLOP counter. A stand-in for the
kernel notes how wide the products of queries and keys are and computes none: how many there are, the mask decides.
The batch is one text: T tokens, S keys, D model width.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from llmlab.config.spec import PartSpec
from llmlab.model.view import LayerCache, View
from llmlab.slots import Context, Cost, Position, Term

Shape = tuple[int, int]  # tokens, width
CACHED = 4  # tokens of the text by which a cache is measured


class CostSource(NamedTuple):
    """The source of a part's cost beyond its linears."""

    part: str  # "ffn=my_ffn"
    how: Literal["declared", "measured", "unknown", "as if all learnt"]
    why: str = ""  # if unknown

    def __str__(self) -> str:
        if self.how == "unknown":
            return f"{self.part} can't be run alone ({self.why}), so of it only linears are counted; give it cost()"
        if self.how == "as if all learnt":
            return f"{self.part}: the backward is counted {self.how}, as the model can't be run without values ({self.why})"
        return f"{self.part}: what it computes beside linears is {self.how}"


class Observation(NamedTuple):
    """The result of running a part under the FLOP counter."""

    flops: int
    value: Any


class Meter:
    """Runs parts under the FLOP counter, equal ones once. `sources`: of the parts that are more than linears.

    places: positions at which tokens stand, where there are fewer than tokens.
    """

    def __init__(self, places: int | None = None) -> None:
        self.places = places
        self.sources: dict[str, CostSource] = {}
        self._known: dict[Hashable, Observation | str] = {}

    def extra_flops(
        self,
        part: nn.Module,
        spec: PartSpec,
        counted: float,
        run: Callable[..., Any],
        *more: nn.Module,
        tokens: int,
        keys: int | None = None,
        how: Hashable = None,
    ) -> float:
        """FLOPs beyond those `counted` by a part's linears, of a text of `tokens` tokens that reads `keys`.

        run: calls the part as the model does, given copies of it and of `more`. how: tells this run from others of the part.
        """
        own = declared(part, tokens, keys or tokens)
        if own.flops is not None:
            if not _close(own.flops, counted):
                self._note(spec, "declared")
            return own.flops - counted
        ran = self._run(spec, how or tokens, run, part, *more)
        if ran is None or _close(ran.flops, counted):
            return 0.0
        self._note(spec, "measured")
        return ran.flops - counted

    def prepare_flops(self, position: Position, spec: PartSpec, tokens: int) -> float | None:
        """FLOPs of a position part once a forward; None where it declares them (for a layer) or can't be run."""
        if position.score_width or declared(position, tokens, tokens).flops is not None:
            return None
        ran = self._run(spec, ("prepare", tokens), lambda part: _state(part, self.context(tokens)), position)
        if ran is not None and ran.flops:
            self._note(spec, "measured")
        return None if ran is None else ran.flops

    def attention(
        self, part: nn.Module, spec: PartSpec, counted: float, x: Shape, source: Shape | None = None
    ) -> tuple[float, float]:
        """(FLOPs beyond those counted, multiply-adds of a pair of a query and a key) of an attention part.

        x, source: tokens and width of the inputs. What its position adds to a layer is asked for with `position_flops`.
        """
        run, where = _attention_run(x, source, self.context), Position()
        keys, how = (source or x)[0], (x, source)
        beyond = self.extra_flops(part, spec, counted, run, where, tokens=x[0], keys=keys, how=how)
        width = getattr(part, "pair_width", None)
        if width is None:
            ran = self._run(spec, how, run, part, where)
            width = 0 if ran is None else ran.value
        return beyond, width

    def position_flops(
        self,
        part: nn.Module,
        spec: PartSpec,
        position: Position,
        position_spec: PartSpec,
        prepared: float | None,
        x: Shape,
    ) -> float:
        """FLOPs of a position part in each layer: it rotates queries and keys, and adds to their scores.

        Measured as the difference of two runs of the attention `part`, with this position and with none.
        """
        tokens = x[0]
        own = declared(position, tokens, tokens)
        if own.flops is not None:
            self._note(position_spec, "declared")
            return own.flops
        if prepared is None or declared(part, tokens, tokens).flops is not None:
            return 0.0
        # The same key as `attention` gives: this run is known already.
        run = _attention_run(x, None, self.context)
        alone = self._run(spec, (x, None), run, part, Position())
        both = self._run(
            position_spec,
            (x, str(spec)),
            lambda position, part: run(part, position),
            position,
            part,
        )
        if alone is None or both is None or _close(both.flops, alone.flops + prepared):
            return 0.0
        self._note(position_spec, "measured")
        return both.flops - alone.flops - prepared

    def cached_numbers(self, part: nn.Module, spec: PartSpec, width: int, source_width: int | None = None) -> int:
        """Numbers that a token leaves in the cache of an attention part, a token of the source in cross-attention."""
        own = declared(part, CACHED, CACHED)
        if own.kv is not None:
            return own.kv
        source = None if source_width is None else (CACHED, source_width)
        ran = self._run(
            spec,
            ("kept", source),
            _attention_run((CACHED, width), source, self.context, cached=True),
            part,
            Position(),
        )
        return 0 if ran is None else ran.value

    def context(self, tokens: int) -> Context:
        """A forward of a text of so many tokens, of which those beyond `places` stand where others do."""
        positions = None
        if self.places is not None and self.places < tokens:
            positions = torch.arange(tokens)[None] % self.places
        return Context(tokens, ids=torch.zeros(1, tokens, dtype=torch.long), positions=positions)

    def _run(self, spec: PartSpec, how: Hashable, run: Callable[..., Any], *parts: nn.Module) -> Observation | None:
        key = (str(spec), how, *(_shapes(part) for part in parts))
        if key not in self._known:
            self._known[key] = _observe(run, parts)
        known = self._known[key]
        if isinstance(known, str):
            self._note(spec, "unknown", known)
            return None
        return known

    def _note(
        self, spec: PartSpec, how: Literal["declared", "measured", "unknown", "as if all learnt"], why: str = ""
    ) -> None:
        name = f"{spec.slot}={spec.name}"
        # The first reason stays: a part that fails in one layer fails alike in the others.
        self.sources.setdefault(name, CostSource(name, how, why))


def declared(part: nn.Module, tokens: int, keys: int) -> Cost:
    """The cost that a part declares; an empty Cost where it has no `cost`."""
    cost = getattr(part, "cost", None)
    return Cost() if cost is None else cost(tokens, keys)


class _CountingKernel:
    """A kernel that computes nothing and counts `width`: multiply-adds of one query-key pair, over all heads and calls."""

    width = 0

    def __call__(self, terms: Sequence[Term], v_BKSH: Tensor, *rest: object) -> Tensor:
        q_BNTH = terms[0].q_BNTH
        self.width += q_BNTH.shape[1] * (q_BNTH.shape[-1] + v_BKSH.shape[-1])
        # Not a product of its own: the counter would count all pairs, and the mask decides how many there are.
        return q_BNTH.new_empty(*q_BNTH.shape[:-1], v_BKSH.shape[-1])


def _attention_run(
    x: Shape, source: Shape | None, context: Callable[[int], Context], *, cached: bool = False
) -> Callable[..., int]:
    """A function that runs an attention part with a position: the width of a pair, or with `cached` numbers kept a token."""

    def run(part: nn.Module, position: Position) -> int:
        kernel, cache, ctx = _CountingKernel(), LayerCache(x[0]) if cached else None, context(x[0])
        view = View(ctx, position, _state(position, ctx), kernel, None)  # type: ignore[arg-type]
        part(torch.empty(1, *x), view.of(part), None if source is None else torch.empty(1, *source), cache)
        return kernel.width if cache is None else sum(b.numel() // b.shape[-2] for b in cache.buffers)

    return run


def _state(position: Position, ctx: Context) -> Any:
    ids = position.ids(ctx)
    return position.prepare(ids, ids)


def _observe(run: Callable[..., Any], parts: tuple[nn.Module, ...]) -> Observation | str:
    """Run copies of parts without memory under the FLOP counter; the error, as text, if they can't be run so.

    First on the meta device; torch.is_autocast_enabled raises for it, so a part that asks runs on fake CPU tensors.
    """
    from torch.utils.flop_counter import FlopCounterMode

    why = ""
    for context in (lambda: torch.device("meta"), fake_tensor_mode):
        # In one call, so that what two parts share is shared by their copies; the model's own tensors stay as they are.
        copies = copy.deepcopy(parts)
        try:
            with context(), torch.no_grad():
                for part in copies:
                    _without_memory(part, set())
                # FlopCounterMode prints a table as it ends unless display is False.
                with FlopCounterMode(display=False, custom_mapping=_formulas()) as counter:
                    value = run(*copies)
            return Observation(counter.get_total_flops(), value)
        # A part that needs values, as .item() or an if on a tensor, fails in its own way.
        except Exception as e:
            why = f"{type(e).__name__}: {(str(e).splitlines() or [''])[0]}"[:160]
    return why


def fake_tensor_mode() -> AbstractContextManager[Any]:
    from torch._subclasses.fake_tensor import FakeTensorMode

    # A part may hold real tensors that are neither parameters nor buffers; without this the mode raises for them.
    return FakeTensorMode(allow_non_fake_inputs=True)


def _without_memory(module: nn.Module, seen: set[int]) -> None:
    """Replace parameters and buffers by empty ones on the current device, also in modules that are held unregistered (a head
    holds the embedding), which Module.to does not reach."""
    for m in module.modules():
        if id(m) in seen:
            continue
        seen.add(id(m))
        for name, parameter in m._parameters.items():
            if parameter is not None:
                empty = torch.empty(parameter.shape, dtype=parameter.dtype)
                m._parameters[name] = nn.Parameter(empty, requires_grad=False)
        for name, buffer in m._buffers.items():
            if buffer is not None:
                m._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)
        for held in vars(m).values():
            if isinstance(held, nn.Module):
                _without_memory(held, seen)


def _formulas() -> dict[Any, Callable[..., int]]:
    """FLOP formulas of products that torch's counter does not know, and counts as 0 (torch 2.13): attention on a CPU, and
    grouped products."""
    from torch.utils.flop_counter import sdpa_flop

    aten = torch.ops.aten
    formulas = {aten._scaled_dot_product_flash_attention_for_cpu: sdpa_flop}
    if hasattr(aten, "_grouped_mm"):
        # The counter hands a formula the shapes of tensors, not the tensors (shape_wrapper of flop_counter.py).
        formulas[aten._grouped_mm] = lambda a, b, *rest, out_shape=None, **more: 2 * a[-2] * a[-1] * b[-1]
    return formulas


def _close(one: float, other: float) -> bool:
    # FLOPs reach 1e15 as floats, whose sums may differ in the last of 53 bits.
    return abs(one - other) <= 1e-9 * max(one, other)


def _shapes(module: nn.Module) -> tuple[Any, ...]:
    return (type(module), *((name, tuple(p.shape)) for name, p in module.named_parameters()))
