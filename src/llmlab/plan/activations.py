"""Memory that one micro-batch takes and gives back, in the order in which it does: a training step on tensors without values.

The objective's own loss runs through the model's own forward and backward (PyTorch's fake tensors), and every storage that
is made or freed leaves an op. So what is counted is what the code does: what autograd keeps, what a recomputed layer keeps
instead, casts under autocast, logits, temporaries of each operation. Memory that an operation takes inside itself is not
seen. A kernel that says what it keeps on a GPU (`kept`) is asked where it is to run on one.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.function import FunctionCtx
from torch.utils._python_dispatch import TorchDispatchMode

from llmlab.config.spec import ModelSpec
from llmlab.data import stand_in
from llmlab.model import batch_keys, roles
from llmlab.model.model import Model
from llmlab.plan.split import split
from llmlab.slots import Aux, Kernel, Objective, Output, Score, Seen, Term
from llmlab.training.companions import Companion
from llmlab.training.companions import frozen as as_declared
from llmlab.training.cost import passes

Kind = Literal["take", "free", "grad", "enter", "leave", "read", "backward", "wake", "back", "done"]


class Op(NamedTuple):
    """take and free: `size` bytes; a free says in `param` which op took them. grad: a parameter's gradient is there, `size`
    of the bytes taken are it, `param` is its number. Of the layer that is executed as number `step`: enter and leave: its
    forward begins (`param`: the layer, counted over all stacks of all models) and ends; back: the gradient of its hidden
    states has come; done: those of its inputs are there. read: a model's forward is over; backward: the loss is there; wake: a
    gradient of one of a model's outputs has come.
    """

    kind: Kind
    size: int = 0
    step: int = -1
    param: int = -1


@dataclass(frozen=True)
class Numerics:
    """dtype of the parameters, and what autocast computes products in (None: as they are)."""

    parameters: torch.dtype
    computed: torch.dtype | None = None


def record(
    spec: ModelSpec,
    objective: Objective,
    *,
    rows: int,
    length: int,
    numerics: Numerics,
    checkpointing: bool = False,
    gpu: bool = False,
    documents: bool = False,
    tensor_parallel: int = 1,
    frozen: frozenset[str] = frozenset(),
    companions: Mapping[str, Companion] | None = None,
) -> list[Op]:
    """The ops of a micro-batch of `rows` sequences, from the batch that is there to the last gradient.

    gpu: kernels keep what they say that they keep on one. tensor_parallel: of one of so many ranks that share a layer.
    frozen: paths of the parameters that do not learn. companions: the objective's other models, by role.
    """
    from llmlab.training.placement import Placement

    samples = examples(objective, length, documents)
    one = stand_in.collated(objective, samples[:1], length)
    with ExitStack() as stack:
        # A part may hold constants as real tensors: they are made fake when an op meets them, instead of an error.
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        model = Model(spec).train()
        for path, parameter, _ in roles.parameters(model):
            parameter.requires_grad_(path not in frozen)
        others = {
            role: as_declared(Model(c.spec, c.shared(model)).train(), c) for role, c in (companions or {}).items()
        }
        of_loss = {r: each for r, each in others.items() if not (companions or {})[r].declared.judges}
        for each in (model, *others.values()):
            for module in each.modules():
                for name, p in module._parameters.items():
                    if p is not None and p.dtype != numerics.parameters:
                        module._parameters[name] = nn.Parameter(
                            p.detach().to(numerics.parameters), requires_grad=p.requires_grad
                        )
            if tensor_parallel > 1:
                split(each, tensor_parallel)
            Placement(activation_checkpointing=checkpointing).apply(each)
            for stack_ in each.all_stacks() if gpu else ():
                stack_.kernel = (
                    cast("Kernel", OnGPU(cast("KeepingKernel", stack_.kernel)))
                    if hasattr(stack_.kernel, "kept")
                    else stack_.kernel
                )
        # Made before the recorder looks, as tensors of the loader are; `taken` then enters each once.
        batch = {k: torch.empty(rows, *v.shape[1:], dtype=v.dtype) for k, v in one.items()}
        recorder = Recorder(share_of_targets(objective, samples), farthest_distance(objective, samples))
        # Parameters are known before the first op: a strategy counts them, and no op may.
        recorder.watch(model, *others.values())
        stack.enter_context(recorder)
        for tensor in batch.values():
            recorder.taken(tensor)
        # Fake tensors are on the CPU, whatever the device that is planned; "cuda" would cast nothing of theirs.
        with torch.autocast("cpu", numerics.computed, enabled=numerics.computed is not None):
            watched = batch_keys.Watched(batch)
            loss = objective.loss(model, watched, **of_loss)
            total = loss.mean()
        batch_keys.check(watched, objective)
        recorder.ops.append(Op("backward"))
        total.backward()
    return recorder.ops


def examples(objective: Objective, length: int, documents: bool, n: int = 4) -> list[dict[str, np.ndarray]]:
    """Samples of random tokens as the objective prepares them; only their shapes count, and how many targets they have."""
    found = []
    for seed in range(n):
        chance = np.random.default_rng(seed)
        of = np.zeros(length + 1, dtype=np.int64) if documents else None
        sample = stand_in.prepared(objective, chance.integers(0, 8, length + 1), seed, chance, of)
        found.append({k: np.asarray(v) for k, v in sample.items()})
    return found


def share_of_targets(objective: Objective, samples: Sequence[dict[str, np.ndarray]]) -> float:
    """The share of tokens at which heads are computed: tensors without values don't tell how many of a mask are True."""
    # A head that reads all of a text beside one that reads 15 % (a pair's, a discriminator's) is given no mask.
    every = [(p.tokens, rows) for s in samples for p in passes(objective, s) for rows in p.heads.values()]
    asked = [(tokens, rows) for tokens, rows in every if rows is not None and rows < tokens]
    return sum(rows for _, rows in asked) / sum(tokens for tokens, _ in asked) if asked else 1.0


def farthest_distance(objective: Objective, samples: Sequence[dict[str, np.ndarray]]) -> int:
    return max(p.tokens for s in samples for p in passes(objective, s)) - 1


class Recorder(TorchDispatchMode):
    """Leaves an op for each storage that is made or freed. What tensors without values don't tell: share, of the True in a
    mask that rows are chosen by, and the farthest distance of two tokens."""

    def __init__(self, share: float, farthest: int):
        super().__init__()
        self.share, self.farthest = share, farthest
        self.ops: list[Op] = []
        self.step = -1
        self.rows = 1  # that are counted by group
        self._known: dict[int, Any] = {}
        self._gradients: dict[int, int] = {}  # a storage: the parameter whose gradient it is

    # ---------------------------------------------------------------- storages

    def __torch_dispatch__(
        self, func: OpOverload, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        # `tensor.device` comes here too, as an op of its own: two of three calls.
        if func is torch.ops.prim.device.default:
            return args[0].fake_device
        kwargs = kwargs or {}
        stand_in = INSTEAD.get(func)
        out = stand_in(self, func, args, kwargs) if stand_in is not None else func(*args, **kwargs)
        if isinstance(out, Tensor):
            self.taken(out)
        elif isinstance(out, tuple | list):
            for value in out:
                if isinstance(value, Tensor):
                    self.taken(value)
        return out

    def taken(self, tensor: Tensor) -> None:
        # PyTorch keeps one Python object for a storage as long as it lives, whichever view it is asked of: so a weak
        # reference dies when the memory is freed, not when this function returns.
        storage = tensor.untyped_storage()
        # The address of the C++ storage: a fake one has no memory, and its data_ptr is 0 for all (torch 2.13).
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes()
        taken_by = len(self.ops)
        self._known[key] = weakref.ref(storage, lambda _: self._freed(key, size, taken_by))
        self.ops.append(Op("take", size))

    def _freed(self, key: int, size: int, taken_by: int) -> None:
        del self._known[key]
        if key in self._gradients:
            self.ops.append(Op("grad", size, param=self._gradients.pop(key)))
        else:
            self.ops.append(Op("free", size, param=taken_by))

    # ---------------------------------------------------------------- the model

    def watch(self, *models: Model) -> None:
        for number, (_, p, _) in enumerate([found for model in models for found in roles.parameters(model)]):
            # No weak reference: parameters outlive the step, and their memory is the strategy's to count.
            self._known[p.untyped_storage()._cdata] = None
            if p.requires_grad:
                # Called when p.grad is there; a tensor hook is called before, while p.grad is still what it was.
                p.register_post_accumulate_grad_hook(lambda p, number=number: self._arrived(p, number))
        layers = [layer for model in models for stack in model.all_stacks() for layer in stack.layers]
        for number, layer in enumerate(layers):
            layer.register_forward_pre_hook(functools.partial(self._enters, number))
            layer.register_forward_hook(self._leaves)
        for model in models:
            model.register_forward_hook(self._read)

    def _arrived(self, p: nn.Parameter, number: int) -> None:
        """Whatever keeps it, it is no temporary any more."""
        assert p.grad is not None
        self._gradients[p.grad.untyped_storage()._cdata] = number
        # Setting it to None frees the gradient, which `_freed` records: the strategy says where a gradient lives on.
        p.grad = None

    def _enters(self, number: int, layer: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        self.step += 1
        self.ops.append(Op("enter", step=self.step, param=number))
        # Under a frozen embedding the first layer's inputs have no gradient, so no `done` comes; a
        # strategy's `end` sees to it.
        places = [i for i, a in enumerate(args) if isinstance(a, Tensor) and a.requires_grad]
        if not places:
            return args
        given = list(args)
        for i, t in zip(places, Behind.apply(self, self.step, *(args[i] for i in places)), strict=True):
            given[i] = t
        return tuple(given)

    def _read(self, model: nn.Module, args: tuple[Any, ...], out: Output) -> None:
        self.ops.append(Op("read"))
        for x in (out.hidden, *out.heads.values()):
            if x.requires_grad:
                # As FSDP2 does (`_register_pre_backward_hook`): the first gradient of any output gathers the root.
                x.register_hook(lambda _: self.ops.append(Op("wake")))

    def _leaves(self, layer: nn.Module, args: tuple[Any, ...], out: tuple[Tensor, Aux | None]) -> None:
        step = self.step
        self.ops.append(Op("leave", step=step))
        if out[0].requires_grad:  # not of frozen layers below all that learns
            out[0].register_hook(lambda _: self.ops.append(Op("back", step=step)))


class LayerContext(FunctionCtx):
    """The context of `Behind`, from its forward to its backward."""

    recorder: Recorder
    step: int


class Behind(torch.autograd.Function):
    """Itself; in the backward it says that a layer's inputs have their gradients."""

    @staticmethod
    def forward(ctx: LayerContext, recorder: Recorder, step: int, *tensors: Tensor) -> Any:
        ctx.recorder, ctx.step = recorder, step
        return tensors

    @staticmethod
    def backward(ctx: LayerContext, *gradients: Tensor | None) -> Any:
        ctx.recorder.ops.append(Op("done", step=ctx.step))
        return (None, None, *gradients)


# ---------------------------------------------------------------- what values would tell


# A fake tensor has a shape and no numbers. Without a ShapeEnv PyTorch raises DynamicOutputShapeException for ops whose
# result is as long as numbers say (index by a mask, bincount), and DataDependentOutputException for `.item()`. With one
# (as torch.export has it) sizes would be symbols, of which no bytes can be told.


def _chosen_rows(recorder: Recorder, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Rows chosen by a mask: as many as are expected."""
    x, indices = args
    given: list[Tensor | None] = []
    for index in indices:
        if index is not None and index.dtype == torch.bool:
            n = max(1, round(recorder.share * index.numel()))
            places = torch.empty(index.dim(), n, dtype=torch.int64)
            given += list(places.unbind())
        else:
            given.append(index)
    return func(x, given, **kwargs)


def _counted(recorder: Recorder, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    recorder.rows = args[0].numel()
    # bincount(self, weights, minlength): the third where it is given by place.
    minlength = kwargs.get("minlength", args[2] if len(args) > 2 else 0)
    return torch.empty(max(1, minlength), dtype=torch.int64)


def _number(recorder: Recorder, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The end of a group, of which all are as large; a number by itself is the farthest distance in a text, and
    nothing is so of a whole one."""
    t = args[0]
    if t.dtype == torch.bool:
        return False
    groups = t.untyped_storage().nbytes() // t.element_size()
    if groups == 1:
        return recorder.farthest
    return recorder.rows * (t.storage_offset() + 1) // groups


def _grouped(recorder: Recorder, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Products by group, whose shape PyTorch tells for bfloat16 only (`_meta_grouped_mm_common` checks both types)."""
    # _grouped_mm(self, mat2, offs): two matrices of two dimensions are cut along what is summed, and
    # give one product a group.
    a, b, groups = (*args, *[kwargs.get("offs")])[:3]
    shape = (a.shape[-2], b.shape[-1])
    return a.new_empty(groups.numel(), *shape) if a.dim() == b.dim() == 2 else a.new_empty(shape)


aten = torch.ops.aten
INSTEAD = {
    aten._grouped_mm.default: _grouped,
    aten.index.Tensor: _chosen_rows,
    aten.bincount.default: _counted,
    aten._local_scalar_dense.default: _number,
}


class KeepingKernel(Kernel, Protocol):
    """A kernel that says what it keeps on a GPU."""

    def kept(
        self, seen: Seen, terms: Sequence[Term], v_BKSH: Tensor, bias: Tensor | None, score: Score
    ) -> int | None: ...


class OnGPU:
    """A kernel as on a GPU: it keeps what it is given, its result, and the bytes that it says."""

    def __init__(self, kernel: KeepingKernel):
        self.kernel = kernel

    def lower(self, seen: Seen) -> Seen:
        return seen

    def __call__(
        self,
        terms: Sequence[Term],
        v_BKSH: Tensor,
        seen: Seen,
        bias: Tensor | None,
        score: Score,
        sink: Tensor | None,
        training: bool,
    ) -> Tensor:
        size = self.kernel.kept(seen, terms, v_BKSH, bias, score)
        if size is None:
            return self.kernel(terms, v_BKSH, self.kernel.lower(seen), bias, score, sink, training)
        (q_BNTH, k_BKSH, _), *_ = terms
        return Kept.apply(size, q_BNTH.to(v_BKSH.dtype), k_BKSH.to(v_BKSH.dtype), v_BKSH, bias)


class KernelContext(FunctionCtx):
    """The context of `Kept`, with what autograd sets on it for the backward."""

    saved_tensors: tuple[Tensor, ...]
    needs_input_grad: tuple[bool, ...]


class Kept(torch.autograd.Function):
    """The memory of a fused attention."""

    @staticmethod
    def forward(ctx: KernelContext, size: int, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        # Saved together as fused kernels do: inputs, result and what the kernel names (its log-sums of exponentials).
        o = q.new_empty(*q.shape[:-1], v.shape[-1])
        # None may be saved, which PyTorch's own type leaves out.
        ctx.save_for_backward(q, k, v, bias, o, torch.empty(size, dtype=torch.uint8))  # type: ignore[arg-type]
        return o

    @staticmethod
    def backward(ctx: KernelContext, *gradients: Tensor) -> Any:
        q, k, v, bias, _, _ = ctx.saved_tensors
        wanted = ctx.needs_input_grad[4]
        return None, *(torch.empty_like(t) for t in (q, k, v)), torch.empty_like(bias) if wanted else None
