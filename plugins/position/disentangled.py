"""Scores of content and distance apart, by the attention's own queries and keys."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from llmlab.registry import register
from llmlab.sizes import Sizes
from llmlab.slots import Position, Table, Term
from llmlab_plugins.position.bias import distances


class State(NamedTuple):
    vectors_LD: Tensor  # of the rows of the table between which all distances are that occur
    rows: Tensor  # (T, S) or (B, T, S): the row of each pair's distance among them
    queries_NLH: Tensor | None = None  # the rows as a layer's attention projects them
    keys_KLH: Tensor | None = None


class TableNorm(nn.LayerNorm):
    constants = {"weight": 1.0}


@register("position", "disentangled")
class Disentangled(Position):
    """Disentangled attention (DeBERTa: He et al. 2020, arXiv:2006.03654; its log buckets: He et al. 2021, arXiv:2111.09543).

    To the product q.k of two tokens are added q.K(d) (content to position) and Q(d).k (position to content), where d is a
    learnt vector of the distance query minus key and Q and K are the attention's own projections of queries and keys; the
    sum of the n terms is divided by sqrt(n). All layers share the table of distances. Half of `buckets` are single
    distances each way, the rest grow by a factor up to `max_distance`, which is in the last. Rows: 2 `buckets`.
    """

    has_bias = True
    relative = True
    projects = True
    small = {"buckets": 8, "max_distance": 40}
    telling = ({"buckets": 6}, {"max_distance": 20}, {"buckets": None, "max_distance": 9})

    def __init__(
        self,
        sizes: Sizes,
        /,
        *,
        buckets: int | None = 256,  # of distances each way; null: one for each distance below max_distance
        max_distance: int = 512,  # the farthest that is told apart
        content_to_position: bool = True,  # the query's product with the distance as a key
        position_to_content: bool = True,  # the key's product with the distance as a query
        normed: bool = True,  # a layer norm on the vectors of distances
    ):
        super().__init__()
        if buckets is not None and not 1 <= buckets // 2 <= max_distance - 2:
            raise ValueError(
                f"position.buckets={buckets} must be at least 2, and half of it at most position.max_distance - 2, but "
                f"position.max_distance={max_distance}"
            )
        if max_distance < 1:
            raise ValueError(f"position.max_distance={max_distance} must be at least 1")
        self.n_terms = 1 + content_to_position + position_to_content
        if self.n_terms == 1:
            raise ValueError(
                "position.content_to_position and position.position_to_content are both false; choose position=none"
            )
        self.buckets, self.max_distance, self.span = buckets, max_distance, buckets or max_distance
        self.to_position, self.to_content = content_to_position, position_to_content
        self.table = Table(2 * self.span, sizes.dim, role="position")
        # A layer norm whatever the model's norm is: `norm_rel_ebd` of the config is "layer_norm" in DeBERTa-v3.
        self.norm = TableNorm(sizes.dim, sizes.norm_eps) if normed else None
        self.dropout = nn.Dropout(sizes.dropout)

    def bucket(self, distance: Tensor) -> Tensor:
        """Query minus key -> its bucket, of the same sign."""
        if self.buckets is None:
            return distance
        single, far = self.buckets // 2, distance.abs()
        # The device is named: under torch.device("meta"), where plans count, the number would be lost.
        most = torch.tensor((self.max_distance - 1) / single, device="cpu").log()  # in float32, as the reference
        grown = torch.log(far.clamp(min=1) / single) / most * (single - 1)
        return torch.where(far <= single, distance, (grown.ceil().long() + single) * distance.sign())

    def prepare(self, q_ids: Tensor, k_ids: Tensor) -> State:
        rows = (self.bucket(-distances(q_ids, k_ids)) + self.span).clamp(0, 2 * self.span - 1)
        first, last = self._first_and_last(rows)
        vectors = self.table(torch.arange(first, last + 1, device=k_ids.device))
        return State(vectors if self.norm is None else self.norm(vectors), rows - first)

    def _first_and_last(self, rows: Tensor) -> tuple[int, int]:
        """The least and the greatest, so that no layer projects rows that do not occur."""
        if not rows.is_meta:
            return int(rows.min()), int(rows.max())
        farthest = torch.tensor(rows.shape[-1] - 1, device="cpu")  # where only shapes count: of a whole text
        far = int(self.bucket(farthest))
        return max(self.span - far, 0), min(self.span + far, 2 * self.span - 1)

    def of_layer(self, state: State, project: Callable[[Tensor], tuple[Tensor, Tensor]]) -> State:
        # Dropped out anew in each layer, as by the `pos_dropout` of each attention in the reference.
        queries, keys = project(self.dropout(state.vectors_LD))
        return state._replace(queries_NLH=queries, keys_KLH=keys)

    def rotate(self, q_BNTH: Tensor, k_BKSH: Tensor, state: State) -> list[Term]:
        # sqrt(n H) divides the sum of all terms (`scaled_size_sqrt`); H's part of it is the score's scale.
        return [Term(q_BNTH * self.n_terms**-0.5, k_BKSH)]

    def bias(self, q_BNTH: Tensor, k_BKSH: Tensor, scale: float, state: State) -> Tensor:
        """Scores of the distances (B, N, T, S). The queries are divided by sqrt(n) already, in `rotate`."""
        assert state.keys_KLH is not None and state.queries_NLH is not None
        n_heads, n_keys = q_BNTH.shape[1], k_BKSH.shape[1]
        rows = state.rows.expand(len(q_BNTH), *state.rows.shape[-2:])[:, None].expand(-1, n_heads, -1, -1)
        scores = []
        if self.to_position:
            far = torch.einsum("bkgth,klh->bkgtl", q_BNTH.unflatten(1, (n_keys, -1)), state.keys_KLH).flatten(1, 2)
            scores.append(far.gather(-1, rows))
        if self.to_content:
            queries = state.queries_NLH.unflatten(0, (n_keys, -1)) * self.n_terms**-0.5
            far = torch.einsum("bksh,kglh->bkgsl", k_BKSH, queries).flatten(1, 2)
            # By key: deberta_v2 looks up -(key minus query) here, which is the same distance, and transposes as well.
            scores.append(far.gather(-1, rows.mT).mT)
        return sum(scores[1:], scores[0]) * scale
