"""The share of a backward that is done where some parameters are frozen.

A product of A and B costs as much again for the gradient of each of the two, where it is wanted. So below the first
parameter that learns a backward costs nothing, and a frozen layer above it half of what one that learns does. Autograd
itself says what is wanted: the model runs once, on tensors without memory, and each product is asked which of its operands
require a gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from llmlab import attributes
from llmlab.model import roles
from llmlab.model.experts import GroupedLinear, MixtureOfExperts
from llmlab.model.model import Model
from llmlab.model.probe import fake_tensor_mode
from llmlab.model.stack import Stack
from llmlab.model.visibility import Visible
from llmlab.slots import Choice, Routing, Score, Seen, Term, Window

# Names of the functions that multiply, and where their two factors stand among the arguments.
PRODUCTS = {
    **dict.fromkeys(("linear", "matmul", "__matmul__", "mm", "bmm", "mv", "inner", "conv1d"), slice(0, 2)),
    # addmm(input, a, b) and einsum(equation, a, b): the factors are the second and third argument.
    **dict.fromkeys(("addmm", "baddbmm", "einsum"), slice(1, 3)),
}
Pairs = Callable[[Stack, Window, int], float]


def frozen(model: nn.Module) -> bool:
    """True if some parameter does not learn."""
    return not all(p.requires_grad for p in model.parameters())


def share(
    model: Model, length: int, source_length: int, head_shares: Mapping[str, float], pairs_of: Pairs
) -> tuple[float, float] | str:
    """Share of a sequence's backward that is done, from 0 to 1; and the same where hidden pairs of scores are computed too.

    The arguments are those of `flops.account`. Where the model can't be run without values: why.
    """
    lengths = [source_length, length] if len(model.stacks) > 1 else [length]
    pairs = [
        {window: pairs_of(stack, window, own) for window in set(stack.windows)}
        for stack, own in zip(model.all_stacks(), lengths, strict=True)
    ]
    why = ""
    # On the meta device, which is soon there; where a part asks what a device can do (torch.autocast refuses "meta"), on a
    # CPU that is feigned (fake tensors).
    for place in (lambda: torch.device("meta"), fake_tensor_mode):
        products = Products(length)
        try:
            with place():
                twin = _twin(model)
                _prepare(twin, products, pairs, source_length, head_shares)
                batch = {"ids": torch.zeros(1, length, dtype=torch.long)}
                if len(twin.stacks) > 1:
                    batch["source_ids"] = torch.zeros(1, source_length, dtype=torch.long)
                with products:
                    twin(batch)
            return products.wanted / products.whole, products.wanted_dense / products.whole_dense
        # A part that needs values fails in its own way on meta tensors.
        except Exception as e:
            why = f"{type(e).__name__}: {(str(e).splitlines() or [''])[0]}"[:160]
    return why


def _twin(model: Model) -> Model:
    """A model without memory, of which the same learns."""
    # In training mode, since a part may compute otherwise in it; dropout has no FLOPs that are counted.
    twin = Model(model.spec).train()
    learning = {path: p.requires_grad for path, p, _ in roles.parameters(model)}
    for path, parameter, _ in roles.parameters(twin):
        parameter.requires_grad_(learning[path])
    return twin


def _prepare(
    twin: Model,
    products: Products,
    pairs: Sequence[Mapping[Window, float]],
    source_length: int,
    head_shares: Mapping[str, float],
) -> None:
    for stack, own in zip(twin.all_stacks(), pairs, strict=True):
        stack.kernel = Scores(products, own, source_length)  # type: ignore[assignment]
    for module in twin.modules():
        if isinstance(module, MixtureOfExperts):
            # bincount has no kernel for meta tensors (torch 2.13): the size of its result depends on values.
            module._sent = module._chosen = Sent(module)  # type: ignore[method-assign]
        elif isinstance(module, GroupedLinear):
            module.forward = One(module)  # type: ignore[method-assign]
    for role, head in cast("list[tuple[str, Any]]", list(twin.heads.items())):  # of the positions that have targets
        share = head_shares.get(role, 0.0)
        share = share if attributes.get(head, "head", "per_token") else float(share > 0)
        # The default argument binds this head's share: a closure would see the last of the loop.
        head.register_forward_pre_hook(lambda *_, share=share: setattr(products, "share", share))
        head.register_forward_hook(lambda *_: setattr(products, "share", 1.0))


class Products(TorchFunctionMode):
    """Adds up FLOPs of the backward of products, of `share` of their rows: those that are wanted, and of all that learns.

    dense: with the hidden pairs of scores.
    """

    def __init__(self, length: int):
        super().__init__()
        self.length, self.share = length, 1.0
        self.wanted = self.wanted_dense = self.whole = self.whole_dense = 0.0

    def add(self, flops: float, wanted: float, dense: float = 1.0) -> None:
        """flops: of the forward. wanted: gradients of its factors, of two. dense: times as many with hidden pairs."""
        self.wanted += self.share * flops * wanted
        self.whole += self.share * flops * 2
        self.wanted_dense += self.share * flops * wanted * dense
        self.whole_dense += self.share * flops * 2 * dense

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        name = getattr(func, "__name__", "")
        # Meta tensors have no values: booleans read as False, numbers as the farthest distance of two tokens.
        if name in ("item", "__int__", "__bool__"):
            return False if args[0].dtype == torch.bool else self.length - 1
        if (place := PRODUCTS.get(name)) is None:
            return func(*args, **(kwargs or {}))
        from torch.utils.flop_counter import FlopCounterMode

        factors = [t for t in args[place] if isinstance(t, Tensor)]
        with FlopCounterMode(display=False) as counter:
            out = func(*args, **(kwargs or {}))
        self.add(counter.get_total_flops(), sum(t.requires_grad for t in factors))
        return out


class Scores:
    """Stands for a kernel: computes nothing, and counts the pairs that are seen."""

    def __init__(self, products: Products, pairs: Mapping[Window, float], source_length: int):
        self.products, self.pairs, self.source_length = products, pairs, source_length

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
        q_BNTH, length = terms[0].q_BNTH, terms[0].q_BNTH.shape[2]
        of_q, of_k = (any(t.requires_grad for t in side) for side in zip(*(term[:2] for term in terms), strict=True))
        # Learnt biases are inside of the softmax: their gradient needs that of the scores.
        inside = [t for t in (bias, sink) if t is not None and t.requires_grad]
        of_scores, of_v = of_q or of_k or bool(inside), v_BKSH.requires_grad
        every = length * (length if isinstance(seen, Visible) else self.source_length)
        pairs = self.pairs[seen.window] if isinstance(seen, Visible) else every
        each = 2 * pairs * q_BNTH.shape[1]
        self.products.add(each * q_BNTH.shape[-1], of_q + of_k, every / pairs)
        self.products.add(each * v_BKSH.shape[-1], of_scores + of_v, every / pairs)
        # An empty tensor has no history: whether a gradient is wanted is passed on by hand.
        out = q_BNTH.new_empty(*q_BNTH.shape[:-1], v_BKSH.shape[-1])
        return out.requires_grad_(of_scores or of_v)


class Sent:
    """Stands for the dispatch of a mixture, which needs values: as many rows as there are on average go to the experts."""

    def __init__(self, mixture: MixtureOfExperts):
        self.mixture = mixture

    def __call__(self, x_nD: Tensor, routing: Routing | Choice, valid_n: Tensor | None) -> tuple[Tensor, Tensor]:
        rows = torch.zeros(max(1, round(len(x_nD) * self.mixture.per_token)), dtype=torch.long)
        y = self.mixture.experts(x_nD[rows], rows)
        out = torch.empty(len(x_nD), y.shape[-1]).requires_grad_(y.requires_grad or routing[0].requires_grad)
        return out, torch.empty(self.mixture.n_experts)


class One:
    """Stands for the linears of all experts, of which each row visits one."""

    def __init__(self, grouped: GroupedLinear):
        self.grouped = grouped

    def __call__(self, x: Tensor, groups: Tensor) -> Tensor:
        return F.linear(x, self.grouped.weight[0], None if self.grouped.bias is None else self.grouped.bias[0])
