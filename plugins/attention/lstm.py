"""A recurrence in the place of attention.

B batch, T tokens, D model width; N directions, I width that a direction reads, P width that it gives, H numbers of its state.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llmlab.registry import register
from llmlab.sizes import Sizes
from llmlab.slots import Context, LayerCache, Linear, Score, View


class Cell(nn.Module):
    """The weights of one direction. Gates are in torch.nn.LSTM's order: input, forget, what is written, output."""

    def __init__(self, n_in: int, state: int, width: int):
        super().__init__()
        self.x = Linear(n_in, 4 * state, True, role="other")
        self.h = Linear(width, 4 * state, role="other")
        self.out = Linear(state, width, role="other")

    def gates(self, x_BTI: Tensor, forget_bias: float) -> Tensor:
        """What a text adds to the gates, (B, T, 4 H), of all its tokens at once."""
        n = len(self.x.bias) // 4
        # A part makes no values when it is built, so the constant is not among the first values of the bias.
        shift = F.pad(self.x.bias.new_full((n,), forget_bias), (n, 2 * n))
        return F.linear(x_BTI, self.x.weight, self.x.bias + shift)


@register("attention", "lstm")
class LSTM(nn.Module):
    """Long short-term memory with a projection (Sak et al. 2014, arXiv:1402.1128, after Hochreiter & Schmidhuber 1997).

    (B, T, D) -> (B, T, D). i, f, g, o are linear in [x_t, h_t-1]; c_t = sigmoid(f + forget_bias) c_t-1 + sigmoid(i) tanh(g);
    h_t = W (sigmoid(o) tanh(c_t)) is the output. Under mask=causal there is one of width D. Under mask=bidirectional there
    are two of width D / 2, one from the left and one from the right (Schuster & Paliwal 1997, "Bidirectional recurrent neural
    networks"). State begins at 0 in each document, and padding leaves it as it is. A cache has h and c of each token.
    """

    recurrent = True
    _apart = False
    telling = ({"state": 30}, {"forget_bias": -0.5})
    unused = (
        "n_kv_heads",
        "attention.qkv_bias",
        "attention.out_bias",
        "attention.qk_norm",
        "attention.scale",
        "attention.scale_over_layer",
        "attention.softcap",
        "attention.sink",
        "attention.clip_qkv",
        "attention.dropout",
    )

    def __init__(
        self,
        sizes: Sizes,
        norm: Callable[[int, float], nn.Module],
        /,
        *,
        state: int
        | None = None,  # numbers of c, of each direction; None: 4 D / 3, for as many weights as a layer has of
        # attention and feed-forward
        forget_bias: float = 1.0,  # on the gate that keeps the state (Jozefowicz et al. 2015, section 4)
    ):
        super().__init__()
        if not (sizes.causal or sizes.sees_all):
            raise ValueError(
                "attention=lstm reads a text from the left, or from both ends; choose mask=causal or mask=bidirectional"
            )
        n = 1 if sizes.causal else 2
        if sizes.dim % n:
            raise ValueError(
                f"attention=lstm reads in two directions, each of half the width, but model.dim={sizes.dim}"
            )
        width = sizes.dim // n
        state = max(1, round(4 * sizes.dim / 3)) if state is None else state
        if state < 1:
            raise ValueError(f"attention.state={state} must be at least 1")
        self.forget_bias = forget_bias
        self.score, self.pair_width = Score(1.0), 0
        names = ("from_left", "from_right")[:n]
        self.cells = nn.ModuleDict({name: Cell(width if self._apart else sizes.dim, state, width) for name in names})

    def forward(
        self, x_BTD: Tensor, view: View, source_BSD: Tensor | None = None, cache: LayerCache | None = None
    ) -> Tensor:
        if source_BSD is not None:
            raise ValueError(
                "attention=lstm reads one text in its order, and no source or memory; choose attention=mha"
            )
        if cache is not None and len(self.cells) > 1:
            raise ValueError("attention=lstm reads from both ends here, so no text can go on; choose mask=causal")
        if view.ctx.allowed is not None:
            raise ValueError("attention=lstm reads tokens in their order, so `allowed` can hide none; leave it out")
        cells: list[Cell] = list(self.cells.values())  # type: ignore[arg-type]
        read = x_BTD.chunk(len(cells), -1) if self._apart else (x_BTD,) * len(cells)
        each = [cell.gates(x, self.forget_bias) for cell, x in zip(cells, read, strict=True)]
        gates = torch.stack([each[0], *(x.flip(1) for x in each[1:])])
        goes_on, real = self._borders(view.ctx)
        weight = torch.stack([cell.h.weight.T for cell in cells])
        project = torch.stack([cell.out.weight.T for cell in cells])
        h, c = self._start(gates, project, cache)
        states: list[tuple[Tensor, Tensor]] = []
        # Written out: torch.lstm with a projection takes as long on a CPU (torch 2.13: both 70 ms for 16 x 128 tokens of width
        # 128), and can neither begin anew within a text nor give the c of each token. `unbind`, as the gradient of gates[:, t]
        # would be as large as all gates.
        for t, gates_NBG in enumerate(gates.unbind(2)):
            if goes_on is not None:
                h, c = h * goes_on[:, :, t], c * goes_on[:, :, t]
            i, f, g, o = (gates_NBG + torch.bmm(h, weight)).chunk(4, -1)
            next_c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            next_h = torch.bmm((o.sigmoid() * next_c.tanh()).to(gates.dtype), project)
            if real is not None:
                next_h, next_c = torch.where(real[:, :, t], next_h, h), torch.where(real[:, :, t], next_c, c)
            h, c = next_h, next_c
            states.append((h, c))
        h_NBTP = torch.stack([h for h, _ in states], 2)
        if cache is not None:
            cache.update(h_NBTP[0], torch.stack([c for _, c in states], 2)[0])
        return torch.cat([h_NBTP[0], *(h.flip(1) for h in h_NBTP[1:])], -1)

    def _start(self, gates: Tensor, project: Tensor, cache: LayerCache | None) -> tuple[Tensor, Tensor]:
        """h (N, B, P) and c (N, B, H) before the first of these tokens."""
        if cache is not None and cache.length:
            h, c = cache.read()
            return h[None, :, -1], c[None, :, -1]
        n, batch = gates.shape[:2]
        # The state adds up over a text, which in bfloat16 would lose what is small beside it.
        exact = torch.promote_types(gates.dtype, torch.float32)
        h = gates.new_zeros(n, batch, project.shape[2])
        return h, gates.new_zeros(n, batch, project.shape[1], dtype=exact)

    def _borders(self, ctx: Context) -> tuple[Tensor | None, Tensor | None]:
        """(N, B, T, 1) bool each: the state of the token before goes on; it is a token and no padding. None: all are."""
        real = None if ctx.valid is None else self._read(ctx.valid[:, ctx.offset :])
        goes_on = None if ctx.documents is None else _goes_on(self._read(ctx.documents), real)
        return (None if goes_on is None else goes_on[..., None]), (None if real is None else real[..., None])

    def _read(self, x_BT: Tensor) -> Tensor:
        """(N, B, T): in the order in which each direction reads it."""
        return torch.stack([x_BT, x_BT.flip(1)][: len(self.cells)])


@register("attention", "lstm_apart")
class ApartLSTM(LSTM):
    """Long short-term memory whose two directions never meet (ELMo: Peters et al. 2018, arXiv:1802.05365).

    As lstm, but under mask=bidirectional each direction reads its own half of the vectors alone: the first half of what it
    gives knows nothing of the tokens to come, the second nothing of those before.
    """

    halves = True
    _apart = True


def _goes_on(documents_NBT: Tensor, real_NBT: Tensor | None) -> Tensor:
    """(N, B, T) bool: True of tokens of the document that the last token before was of. Of the first no state is lost."""
    place = torch.arange(documents_NBT.shape[-1], device=documents_NBT.device).expand_as(documents_NBT)
    if real_NBT is not None:
        place = torch.where(real_NBT, place, 0).cummax(-1).values
    before = F.pad(documents_NBT.gather(-1, place), (1, -1))
    return before == documents_NBT
