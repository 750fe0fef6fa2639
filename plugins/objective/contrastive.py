"""Vectors of texts, learnt from which texts are alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from llmlab.registry import register
from llmlab.slots import LanguageModel, Loss, Output, Pass, Vocabulary, auxiliary

from ._rows import flattened, prepared_rows

Pool = Literal["first", "mean", "last"]


def _own(rows: Tensor) -> tuple[Tensor, int]:
    """The rows of one rank, and the number of its first."""
    return rows, 0


def pooled(output: Output, valid_nT: Tensor | None, pool: Pool) -> Tensor:
    """The vector of each text, (n, D) float32, read off the last layer."""
    h_nTD = output.hidden.float()
    if pool == "first":
        return h_nTD[:, 0]
    if valid_nT is None:
        return h_nTD.mean(1) if pool == "mean" else h_nTD[:, -1]
    if pool == "mean":
        return (h_nTD * valid_nT[..., None]).sum(1) / valid_nT.sum(1, keepdim=True)
    return h_nTD[torch.arange(len(h_nTD), device=h_nTD.device), valid_nT.sum(1) - 1]


@register("objective", "contrastive")
class Contrastive:
    """Vectors of texts that find their like among others (SimCSE: Gao et al. 2021, arXiv:2104.08821).

    Each text is to find its like among those of its micro-batch, gathered over all ranks: cross-entropy (nats) of a softmax
    over cosine / temperature, equation 1. Its like is the same text read once more, under other dropout, or the second text
    of a record, whose third, if there is one, is a hard negative for every text of the micro-batch (equation 5, with
    alpha = 1). "accuracy": how often the like has the highest score.

    A text has as many negatives as its micro-batch over all ranks, so that the loss depends on how train.batch_size is cut:
    8 x 4 is another loss than 32 x 1, while 32 on one rank are 16 on each of two. A validation compares within a micro-batch
    of one rank. The vector is read off the last layer by `pool`. With `mlp` a linear and tanh stand behind the first token's:
    where a text's like is itself only in training, so that what is measured is the vector without (sections 3 and 6.3).

    ids (T,), or row_ids of two or three texts, (T,) each.
    """

    reads = "text"
    mask = "bidirectional"
    heads: dict[str, str] = {}
    special = ()
    topologies = ("encoder", "decoder")
    measures = {"accuracy": "accuracy"}
    fixed_counts = True
    joint = True
    when = {
        "positives=dropout": {"needs_dropout": True},
        "positives=pairs": {"reads": "similar", "collate": "pad"},
        "mlp": {"heads": {"vector": "vector"}},
    }
    telling = (
        {"temperature": 0.5},
        {"positives": "pairs", "pool": "last"},
        {"positives": "pairs", "pool": "mean"},
        {"positives": "pairs", "mlp": True},
    )

    def __init__(
        self,
        vocabulary: Vocabulary,
        seq_len: int,
        /,
        *,
        positives: Literal[
            "dropout", "pairs"
        ] = "dropout",  # a text's like: itself under other dropout, or a record's second
        temperature: float = 0.05,  # cosines are divided by it
        pool: Pool = "first",  # the token whose vector is the text's, or the mean of all
        mlp: bool = False,  # a linear and tanh behind it, which SimCSE drops after training where positives=dropout
    ):
        if not temperature > 0:
            raise ValueError(f"objective.temperature must be more than 0, but is {temperature}")
        if mlp and pool != "first":
            raise ValueError(f"objective.mlp=true reads the first token: leave out objective.pool={pool}")
        self.mlp = mlp
        self.pairs, self.temperature, self.pool = positives == "pairs", temperature, pool
        self.gather: Callable[[Tensor], tuple[Tensor, int]] = _own

    def prepare(self, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        if self.pairs:
            return prepared_rows(sample)
        return {"ids": np.asarray(sample["tokens"], dtype=np.int64)[:-1]}

    def targets(self, prepared: dict[str, Any]) -> dict[str, int]:
        return {"contrast": 1}

    def passes(self, prepared: Mapping[str, Any]) -> list[Pass]:
        rows = prepared["row_ids"] if self.pairs else [prepared["ids"]] * 2
        heads: dict[str, int | None] = {"vector": None} if self.mlp else {}
        return [Pass(len(row), heads=heads) for row in rows]

    def loss(self, model: LanguageModel, batch: Mapping[str, Tensor]) -> Loss:
        training = getattr(model, "training", False)
        if self.pairs:
            texts, there_BR = flattened(batch)
        else:
            # Twice in one forward, in which each row has a dropout of its own.
            texts = {"ids": batch["ids"].repeat_interleave(2, 0)}
            there_BR = torch.ones(len(batch["ids"]), 2, dtype=torch.bool, device=batch["ids"].device)
        if self.mlp and (self.pairs or training):
            output = model(texts, heads={"vector": None})
            vectors_nD = output.heads["vector"].float()
        else:
            output = model(texts, heads={})
            vectors_nD = pooled(output, texts.get("valid"), self.pool)
        z_nD = F.normalize(vectors_nD, dim=-1)
        # As many columns on every rank, whether or not a record of its micro-batch has a negative.
        there_BR = F.pad(there_BR, (0, (3 if self.pairs else 2) - there_BR.shape[1]))
        z_BRD = z_nD.new_zeros(*there_BR.shape, z_nD.shape[-1]).masked_scatter(there_BR[..., None], z_nD)
        others_MRD, there_MR, first = z_BRD, there_BR, 0
        # A rank's last validation batch may be smaller than another's, and can't be gathered with it.
        if training:
            # One tensor for both: a collective each would be two round trips.
            both, first = self.gather(torch.cat([z_BRD, there_BR[..., None].to(z_BRD)], -1))
            others_MRD, there_MR = both[..., :-1], both[..., -1] > 0.5
        candidates_nD = others_MRD[:, 1:].transpose(0, 1).flatten(0, 1)
        hidden_n = ~there_MR[:, 1:].T.flatten()
        scores_Bn = (z_BRD[:, 0] @ candidates_nD.T / self.temperature).masked_fill(hidden_n, float("-inf"))
        own_B = torch.arange(len(scores_Bn), device=scores_Bn.device) + first
        count = own_B.new_tensor(len(own_B))
        terms = {"contrast": (F.cross_entropy(scores_Bn, own_B, reduction="sum"), count)}
        right = (scores_Bn.detach().argmax(-1) == own_B).sum()
        return Loss(terms, logs={"accuracy": (right, count)}, aux={"model": auxiliary(output)})


@register("objective", "contrastive_margin")
class ContrastiveMargin:
    """Vectors of texts, near each other where a pair is alike and a margin apart where it is not (Hadsell et al. 2006).

    Of a pair at the Euclidean distance D the loss is D^2 / 2 where its label is the second of two ("1" of 0 and 1), and
    max(0, margin - D)^2 / 2 where it is the first (equation 4, whose Y is 0 of what is alike). "accuracy": how often D is
    below half the margin just where a pair is alike. A record's `confidence` weighs its loss. row_ids, two of (T,);
    labels (); confidence ().
    """

    reads = "labelled"
    collate = "pad"
    mask = "bidirectional"
    heads: dict[str, str] = {}
    special = ()
    topologies = ("encoder", "decoder")
    measures = {"accuracy": "accuracy"}
    fixed_counts = True
    classes = 2
    telling = ({"margin": 0.5}, {"margin": 30.0}, {"pool": "last", "margin": 3.0}, {"pool": "mean", "margin": 3.0})

    def __init__(
        self,
        vocabulary: Vocabulary,
        seq_len: int,
        /,
        *,
        margin: float = 1.0,  # a pair that is unlike pulls no more beyond this distance
        pool: Pool = "first",  # the token whose vector is the text's, or the mean of all
    ):
        if not margin > 0:
            raise ValueError(f"objective.margin must be more than 0, but is {margin}")
        self.margin, self.pool, self.texts = margin, pool, "apart"

    def prepare(self, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        prepared = {**prepared_rows(sample), "labels": np.asarray(int(sample["label"]))}
        if "confidence" in sample:
            prepared["confidence"] = np.asarray(sample["confidence"], dtype=np.float32)
        return prepared

    def targets(self, prepared: dict[str, Any]) -> dict[str, int]:
        return {"margin": 1}

    def passes(self, prepared: Mapping[str, Any]) -> list[Pass]:
        return [Pass(len(row), heads={}) for row in prepared["row_ids"]]

    def loss(self, model: LanguageModel, batch: Mapping[str, Tensor]) -> Loss:
        texts, _ = flattened(batch)
        output = model(texts, heads={})
        z_B2D = pooled(output, texts["valid"], self.pool).unflatten(0, (-1, 2))
        square = (z_B2D[:, 0] - z_B2D[:, 1]).square().sum(-1)
        # The root has no slope at 0, where two equal texts are; a clamp's is 0.
        distance, alike = square.clamp(min=1e-12).sqrt(), batch["labels"] == 1
        loss = torch.where(alike, square, (self.margin - distance).clamp(min=0).square()) / 2
        if "confidence" in batch:
            loss = loss * batch["confidence"]
        right, count = ((distance < self.margin / 2) == alike).sum(), torch.tensor(len(loss), device=loss.device)
        return Loss(
            {"margin": (loss.sum(), count)}, logs={"accuracy": (right, count)}, aux={"model": auxiliary(output)}
        )
