"""Positions that are pairs: a place in the text, and one within a block that is filled in there."""

import torch
from torch import Tensor

from llmlab.registry import register
from llmlab.sizes import Sizes
from llmlab.slots import Context, Table, Term
from llmlab_plugins.position.absolute import Absolute
from llmlab_plugins.position.rope import Rope

Tables = tuple[Tensor, Tensor]  # cos and sin
State = list[tuple[Tables, Tables]]  # for queries and for keys: of places in the text, then in the block


class Pair(Absolute):
    """Ids (1 or B, 2, T): the place in the text, and the place in the block, which is 0 outside of blocks.

    The caller's own (GLM: all tokens of a block stand where its mask token is). Else, where the context has `prefix_len`
    (B,), what comes behind the prefix is one block that stands at the prefix's last token. Else there are no blocks.
    """

    counts = 2

    def ids(self, ctx: Context) -> Tensor:
        if ctx.positions is None and "prefix_len" in ctx.data:
            last_B1 = ctx.data["prefix_len"][:, None] - 1
            slots = torch.arange(ctx.offset, ctx.keys, device=last_B1.device)
            return torch.stack([torch.minimum(slots, last_B1.clamp(min=0)), (slots - last_B1).clamp(min=0)], 1)
        ids = super().ids(ctx)
        return ids if ids.dim() == 3 else torch.stack([ids, torch.zeros_like(ids)], -2).view(-1, 2, ids.shape[-1])


def places(ids: Tensor) -> tuple[Tensor, Tensor]:
    """Position ids in the text, and in the block. Ids that are no pairs are outside of blocks."""
    return (ids[:, 0], ids[:, 1]) if ids.dim() == 3 else (ids, torch.zeros_like(ids))


@register("position", "glm_2d")
class GLM2D(Pair):
    """Two learnt vectors, for the place in the text and in the block (GLM: Du et al. 2021, arXiv:2103.10360).

    ids (B, 2, T) -> (B, T, E). Each table has a row for 0 and model.max_positions more.
    """

    def __init__(self, sizes: Sizes, /):
        super().__init__()
        self.rows = sizes.max_positions
        self.table = Table(self.rows + 1, sizes.embed_dim, role="position")
        self.blocks = Table(self.rows + 1, sizes.embed_dim, role="position")

    def ids(self, ctx: Context) -> Tensor:
        if ctx.positions is None and ctx.keys > self.rows:
            raise ValueError(
                f"{ctx.keys} positions are needed, but position=glm_2d has model.max_positions={self.rows}; "
                "train with more of them, or with position=rope_2d"
            )
        return super().ids(ctx)

    def embed(self, ids: Tensor) -> Tensor:
        text, block = places(ids)
        return self.table(text) + self.blocks(block)


@register("position", "rope_2d")
class Rope2D(Pair):
    """Rotary positions of pairs (ChatGLM-6B, after Su et al. 2021, arXiv:2104.09864): half of a head by each place.

    The first half of the rotary width turns by the place in the text, the second by that in the block, each as position=rope
    turns a head of its width. Where halves would be odd, they are smaller and the last two dims are left alone.
    """

    relative = True
    telling = ({"theta": 100.0},)

    def __init__(
        self,
        sizes: Sizes,
        /,
        *,
        theta: float = 10000.0,  # base of the wavelengths
        interleaved: bool = False,  # pairs are neighbours, not half of a half apart
    ):
        super().__init__()
        self.width = sizes.rotary_dim // 4 * 2
        if self.width < 2:
            raise ValueError(
                f"position=rope_2d turns two halves of a head in pairs, but it has {sizes.rotary_dim} dims"
            )
        self.rope = Rope(sizes.but(rotary_dim=self.width), theta=theta, interleaved=interleaved)

    def prepare(self, q_ids: Tensor, k_ids: Tensor) -> State:
        return [self.rope.prepare(q, k) for q, k in zip(places(q_ids), places(k_ids), strict=True)]

    def rotate(self, q_BNTH: Tensor, k_BKSH: Tensor, state: State) -> list[Term]:
        widths = [self.width, self.width, q_BNTH.shape[-1] - 2 * self.width]
        *q_halves, q_rest = q_BNTH.split(widths, -1)
        *k_halves, k_rest = k_BKSH.split(widths, -1)
        terms = [self.rope.rotate(*half)[0] for half in zip(q_halves, k_halves, state, strict=True)]
        return [
            Term(
                torch.cat([*(t.q_BNTH for t in terms), q_rest], -1), torch.cat([*(t.k_BKSH for t in terms), k_rest], -1)
            )
        ]
