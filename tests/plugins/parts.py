"""What the tests of parts share: building one as the framework does, and small sizes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llmlab import registry
from llmlab.model.view import View
from llmlab.model.visibility import Visible
from llmlab.sizes import AttentionTraits, MoETraits, Sizes
from llmlab.slots import Context, Position

SIZES = Sizes(
    dim=24,
    n_layers=3,
    n_heads=4,
    n_kv_heads=None,
    head_dim=6,
    ffn_dim=40,
    vocab_size=50,
    max_positions=32,
    norm_eps=1e-5,
    rotary_dim=6,
    embed_dim=24,
)


def sizes(*, attention: dict | None = None, moe: dict | None = None, **changes: Any) -> Sizes:
    """Small sizes with some of them changed."""
    return SIZES.but(attention=AttentionTraits(**(attention or {})), moe=MoETraits(**(moe or {})), **changes)


def part(slot: str, name: str, /, **options: Any) -> Any:
    """The factory of a registered part."""
    return registry.load(slot, name, options)


def names(slot: str) -> list[str]:
    """The names of a slot's parts, but for those that have a test file of their own, as `llmlab new` writes it."""
    return sorted(
        e.name
        for e in registry.index().values()
        if e.slot == slot and e.module.startswith("llmlab_plugins.") and not _own_test(slot, e.name)
    )


def _own_test(slot: str, name: str) -> bool:
    file = Path(__file__).with_name(f"test_{name}.py")
    return file.exists() and "from llmlab.testing import" in file.read_text(encoding="utf-8")


def kernels() -> list[str]:
    """The kernels that train on a CPU. Those for GPUs have tests of their own."""
    return [name for name in names("kernel") if name not in ("flex", "varlen")]


def build(factory: Any, *args: Any, seed: int = 0, std: float = 0.5) -> Any:
    """A part built on the meta device, then given memory and random values."""
    with torch.device("meta"):
        module = factory(*args)
    return fill(module.to_empty(device="cpu"), seed, std)


def fill(module: nn.Module, seed: int = 0, std: float = 0.5) -> Any:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in [*module.parameters(), *module.buffers()]:
            tensor.normal_(0.0, std, generator=generator) if tensor.is_floating_point() else tensor.zero_()
    return module.eval()


def randn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def view(
    length: int,
    position: Position | None = None,
    *,
    kernel: str = "eager",
    mask: str = "causal",
    window: Any = None,
    training: bool = False,
    key_ids: Tensor | None = None,
    **context: Any,
) -> View:
    """What a layer is called with, as a stack would prepare it."""
    ctx = Context(length, **context)
    position = position or Position()
    kernel_part = part("kernel", kernel)()
    ids = position.ids(ctx)
    state = position.prepare(ids, torch.arange(ctx.keys) if key_ids is None else key_ids)
    lowered = kernel_part.lower(Visible(part("mask", mask)(), window or part("window", "full")(), ctx))
    return View(ctx, position, state, kernel_part, lowered, training)


def softmax_loop(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    seen: Any,
    *,
    scale: float,
    bias: Any = None,
    softcap: float | None = None,
    sink: Any = None,
) -> Tensor:
    """Attention of one head, (T, H), (S, H), (S, H'), one weight at a time in Python floats. seen(t, s) -> bool."""
    out = torch.zeros(len(q), v.shape[1], dtype=torch.float64)
    for t in range(len(q)):
        scores = {}
        for s in range(len(k)):
            if seen(t, s):
                value = scale * sum(a * b for a, b in zip(q[t].tolist(), k[s].tolist(), strict=True))
                value += bias(t, s) if bias else 0.0
                scores[s] = softcap * math.tanh(value / softcap) if softcap else value
        total = sum(math.exp(x) for x in scores.values()) + (math.exp(sink) if sink is not None else 0.0)
        for s, x in scores.items():
            out[t] += math.exp(x) / total * v[s].double()
    return out


def close(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(a.detach().double(), b.detach().double(), rtol=tolerance, atol=tolerance)
