"""Static embeddings from counts of pairs (GloVe): a token table that any model can begin with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from llmlab.registry import register
from llmlab.slots import LanguageModel, Loss, Pass, Vocabulary, auxiliary

NOTHING = -1  # in `context` no token, in `real` a place without a pair


@register("objective", "glove")
class GloVe:
    """GloVe (Pennington et al. 2014, EMNLP, D14-1162): products of vectors are logarithms of how often two words are near.

    Only the model's token table, a second one and a bias of each word in both learn; `init_from.embedding=RUN` begins any model
    with the sum of the two, as in section 4.2. With X the sum of 1 / distance over the places where two words are at most
    `window` apart in the training text, counted once, the loss is f(X) (u.v + a + b - log X)^2, f(X) = min(1, X / x_max)^alpha,
    of each pair whose X is not 0 (equation 8). A text stands for the pairs at its places, each with the share 1 / distance / X
    of its loss: over an epoch these add up to 1 but for what the ends of samples cut off. Words of a held-out text that
    are never near in the training text are no targets.

    ids and real (T 2 window,): the word at a place around, 1 where there is one; context (T 2 window, 1); near its 1 / distance
    and times its X, float32 (T 2 window,). error: |u.v + a + b - log X| on average over places.
    """

    mask = "bidirectional"
    heads = {"context": "biased_context"}
    special = ()
    topologies = ("decoder", "encoder")
    measures = {"pairs": "loss", "error": "loss"}
    learns = ("heads", "stacks.*.embedding.table")
    restores = "pairs"
    fixed_counts = False
    telling = ({"window": 2}, {"window": 1}, {"x_max": 20.0}, {"alpha": 0.25}, {"alpha": 0.0})

    def __init__(
        self,
        vocabulary: Vocabulary,
        seq_len: int,
        /,
        *,
        window: int = 10,  # words on either side
        x_max: float = 100.0,  # pairs that are near so often have the weight 1
        alpha: float = 0.75,  # power of a count over x_max that is a rarer pair's weight
    ):
        if window < 1 or not 0 < x_max < float("inf") or not 0 <= alpha < float("inf"):
            raise ValueError(
                "objective.window must be at least 1, objective.x_max more than 0 and objective.alpha at least 0, and both "
                f"finite, but they are {window}, {x_max} and {alpha}"
            )
        self.seq_len, self.window, self.x_max, self.alpha = seq_len, window, x_max, alpha
        self.special_ids = np.array(sorted(vocabulary.special.values()), dtype=np.int64)
        self.times = None if vocabulary.pairs is None else vocabulary.pairs(window)
        steps = np.concatenate([np.arange(-window, 0), np.arange(1, window + 1)])
        self.steps, self.near = steps, np.float32(1) / np.abs(steps).astype(np.float32)

    def prepare(self, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        tokens = np.asarray(sample["tokens"], dtype=np.int64)[: self.seq_len]
        silent = np.isin(tokens, self.special_ids)
        # As pairs are counted: a special token ends a document.
        document = np.cumsum(silent)
        if sample.get("given") is not None:
            silent |= sample["given"][: self.seq_len]
        own = sample.get("documents")
        own = document if own is None else np.asarray(own)[: self.seq_len]
        n = self.seq_len
        places = np.arange(n)[:, None] + self.steps
        there = (places >= 0) & (places < n)
        places = places.clip(0, n - 1)
        there &= ~silent[:, None] & ~silent[places]
        there &= (document[places] == document[:, None]) & (own[places] == own[:, None])
        around, words = tokens[places], np.broadcast_to(tokens[:, None], places.shape)
        times = np.ones(places.shape, np.float32) if self.times is None else self.times(words, around)
        there &= times > 0
        return {
            "context": np.where(there, words, NOTHING).reshape(-1, 1),
            "ids": around.ravel(),
            "real": np.where(there, 1, NOTHING).ravel(),
            "near": np.broadcast_to(self.near, places.shape).ravel().copy(),
            "times": np.where(there, times, 1).astype(np.float32).ravel(),
        }

    def targets(self, prepared: dict[str, Any]) -> dict[str, int]:
        return {"pairs": int((prepared["real"] == 1).sum())}

    def passes(self, prepared: dict[str, Any]) -> list[Pass]:
        return [Pass(len(prepared["ids"]), heads={"context": None})]

    def loss(self, model: LanguageModel, batch: Mapping[str, Tensor]) -> Loss:
        output = model(batch, heads={"context": None})
        scores, real, times = output.heads["context"].float(), batch["real"] == 1, batch["times"]
        error = torch.where(real, scores - times.log(), 0.0)
        weight = (times / self.x_max).clamp(max=1) ** self.alpha
        # Each place has its share of the pair's loss, which the text counts once an epoch.
        loss = (batch["near"] / times * weight * error**2).sum()
        count = real.sum()
        return Loss(
            {"pairs": (loss, count)},
            logs={"error": (error.detach().abs().sum(), count)},
            aux={"model": auxiliary(output)},
        )

    @staticmethod
    def vectors(model: nn.Module) -> Tensor:
        """(V, width): the sum of both tables, of which neither is the better."""
        head: Any = model.get_submodule("heads.context")
        both: Tensor = head.vectors()
        return both
