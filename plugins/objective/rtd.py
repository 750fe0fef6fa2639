"""Replaced token detection, and its ablations in which the model predicts originals: of the replaced tokens, or of all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from llmlab.registry import register
from llmlab.slots import LanguageModel, Loss, Pass, Vocabulary, auxiliary

from ._generated import Masking, generated
from ._loss import IGNORED


@register("objective", "rtd")
class ReplacedTokenDetection:
    """Replaced token detection (ELECTRA: Clark et al. 2020, arXiv:2003.10555): which tokens has a generator replaced?

    The generator, a smaller model that shares the tables of tokens and positions, learns to predict masked tokens (T,). One
    that is drawn from its distribution takes the place of each, without gradient, and the model learns to tell for every
    token whether it is the original; a drawn one that equals the original is original. Loss: the generator's cross-entropy
    a masked token, plus `weight` times the model's binary cross-entropy a token (nats).

    Every token counts but padding and what the text only begins with, special ones too, as in the released code
    (`input_mask` in run_pretraining.py). That code leaves 15 % of the chosen tokens unmasked (`masked=0.85`); the paper's
    large model has `rate=0.25` (objective=rtd_large).

    With sharing=gdes (DeBERTa-v3: He et al. 2021, arXiv:2111.09543, section 3.2; objective=rtd_gdes) the generator reads and
    moves a table E, and the model reads E, without gradient, plus a delta that begins at 0 and is all that its loss moves.
    """

    mask = "bidirectional"
    heads = {"replaced": "replaced"}
    special = ("mask",)
    topologies = ("encoder",)
    models = {
        "generator": {
            "heads": {"tokens": "mlm"},
            "trains": True,
            "shares": ("embedding", "position"),
            "words": ("width=1/4",),
        }
    }
    # A table of positions that both have is one in any case but `none`.
    when = {
        "sharing=gdes": {
            "models": {
                "generator": {
                    "heads": {"tokens": "mlm"},
                    "trains": True,
                    "shares": ("embedding", "position"),
                    "delta": True,
                    "words": ("width=1/4",),
                }
            }
        },
        "sharing=none": {
            "models": {"generator": {"heads": {"tokens": "mlm"}, "trains": True, "words": ("width=1/4",)}}
        },
    }
    measures = {"generator": "nll", "generator_accuracy": "accuracy", "accuracy": "accuracy", "found": "accuracy"}
    restores = "sampled"
    telling = ({"rate": 0.4}, {"rate": 1e-9}, {"rate": 1.0}, {"masked": 0.5}, {"weight": 7.0})
    fixed_counts = False

    def __init__(
        self,
        vocabulary: Vocabulary,
        seq_len: int,
        /,
        *,
        rate: float = 0.15,  # share of tokens that the generator fills in
        masked: float = 1.0,  # share of these that it reads as the mask token, and not as they are
        weight: float = 50.0,  # of the model's loss beside the generator's
        on: Literal[
            "all", "masked"
        ] = "all",  # tokens that the model judges; masked: ELECTRA 15% in the paper's table 5
        sharing: Literal[
            "embedding", "gdes", "none"
        ] = "embedding",  # of the token table: one for both, one and a delta that the model adds, or one each
    ):
        if not weight > 0:
            raise ValueError(f"objective.weight must be more than 0, but is {weight}; objective=mlm trains one model")
        self.masking = Masking(vocabulary, seq_len, rate, masked)
        self.size, self.weight, self.on = vocabulary.size, weight, on
        self.shown = 1 - masked

    def prepare(self, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        return self.masking.prepare(sample, rng)

    def targets(self, prepared: dict[str, Any]) -> dict[str, int]:
        chosen = int((prepared["labels"] != IGNORED).sum())
        return {"generator": chosen, "replaced": chosen if self.on == "masked" else int(prepared["judged"].sum())}

    def passes(self, prepared: dict[str, Any]) -> list[Pass]:
        length, chosen = len(prepared["ids"]), int((prepared["labels"] != IGNORED).sum())
        generator = Pass(length, model="generator", heads={"tokens": chosen})
        return [generator, Pass(length, heads={"replaced": chosen if self.on == "masked" else None})]

    def loss(self, model: LanguageModel, batch: Mapping[str, Tensor], *, generator: LanguageModel) -> Loss:
        made = generated(generator, batch, self.size)
        replaced, judged = made.ids != made.original, batch["judged"]
        if self.on == "masked":
            output = model(made.read, heads={"replaced": made.where})
            replaced, judged = replaced[made.where], judged[made.where]
        else:
            # Scores of all tokens, as picking rows by a mask would wait for the device.
            output = model(made.read, heads={"replaced": None})
        scores = output.heads["replaced"].float()
        if scores.shape != replaced.shape:
            raise ValueError(
                f"heads.replaced gives {tuple(scores.shape)} scores for {tuple(replaced.shape)} tokens, but objective=rtd "
                "needs one a token; set heads.replaced.n_classes=0"
            )
        told = F.binary_cross_entropy_with_logits(scores, replaced.float(), judged.float(), reduction="sum")
        says = scores.detach() > 0
        count, masked = judged.sum(), made.where.sum()
        return Loss(
            {"generator": (made.nll, masked), "replaced": (told, count)},
            {"replaced": self.weight},
            {
                "generator_accuracy": (made.right, masked),
                "accuracy": (((says == replaced) & judged).sum(), count),
                "found": ((says & replaced & judged).sum(), (replaced & judged).sum()),
            },
            {"model": auxiliary(output), "generator": made.aux},
        )


@register("objective", "all_tokens_mlm", on="all")
@register("objective", "replace_mlm")
class ReplaceMLM:
    """Masked language modelling without masks (ELECTRA's ablations, table 5: Clark et al. 2020, arXiv:2003.10555).

    replace_mlm: A generator's tokens stand where a masked language model reads [MASK], and the model predicts the originals.
    all_tokens_mlm: It predicts all tokens instead, each a copy of what it reads with a probability that it also tells.

    The generator learns beside it, as in objective=rtd. ids and labels (T,). With on=all the model's probability of an original
    x, where it reads x', is D [x = x'] + (1 - D) softmax(logits)[x], D being the sigmoid of a score of the head `copy`. Padding
    and what the text only begins with are no targets.
    """

    mask = "bidirectional"
    heads = {"tokens": "mlm"}
    special = ("mask",)
    topologies = ("encoder",)
    models = {
        "generator": {
            "heads": {"tokens": "mlm"},
            "trains": True,
            "shares": ("embedding", "position"),
            "words": ("width=1/4",),
        }
    }
    # Most of what it predicts it may copy, so that no perplexity is claimed of it.
    when = {"on=all": {"heads": {"copy": "replaced"}, "measures": {"nll": "loss"}}}
    measures = {"nll": "nll", "generator": "nll", "accuracy": "accuracy", "generator_accuracy": "accuracy"}
    restores = "sampled"
    telling = ({"rate": 0.4}, {"masked": 0.5}, {"weight": 7.0})
    fixed_counts = False

    def __init__(
        self,
        vocabulary: Vocabulary,
        seq_len: int,
        /,
        *,
        rate: float = 0.15,  # share of tokens that the generator fills in
        masked: float = 1.0,  # share of these that it reads as the mask token, and not as they are
        weight: float = 1.0,  # of the model's loss beside the generator's
        on: Literal["masked", "all"] = "masked",  # tokens that the model predicts; all: with the copy mechanism
    ):
        if not weight > 0:
            raise ValueError(f"objective.weight must be more than 0, but is {weight}; objective=mlm trains one model")
        self.masking = Masking(vocabulary, seq_len, rate, masked)
        self.size, self.weight, self.on = vocabulary.size, weight, on
        self.shown = 1 - masked

    def prepare(self, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        prepared = self.masking.prepare(sample, rng)
        if self.on == "masked":
            prepared.pop("judged")
        return prepared

    def targets(self, prepared: dict[str, Any]) -> dict[str, int]:
        chosen = int((prepared["labels"] != IGNORED).sum())
        return {"nll": chosen if self.on == "masked" else int(prepared["judged"].sum()), "generator": chosen}

    def passes(self, prepared: dict[str, Any]) -> list[Pass]:
        length, chosen = len(prepared["ids"]), int((prepared["labels"] != IGNORED).sum())
        own = {"tokens": chosen} if self.on == "masked" else {"tokens": None, "copy": None}
        return [Pass(length, model="generator", heads={"tokens": chosen}), Pass(length, heads=own)]

    def loss(self, model: LanguageModel, batch: Mapping[str, Tensor], *, generator: LanguageModel) -> Loss:
        made = generated(generator, batch, self.size)
        masked = made.where.sum()
        if self.on == "masked":
            output = model(made.read, heads={"tokens": made.where})
            logits, labels, count = output.heads["tokens"].float(), batch["labels"][made.where], masked
            nll = F.cross_entropy(logits, labels, reduction="sum")
            right = (logits.detach().argmax(-1) == labels).sum()
        else:
            judged = batch["judged"]
            output = model(made.read, heads={"tokens": None, "copy": None})
            each, best = copied(output.heads["tokens"].float(), output.heads["copy"].float(), made.ids, made.original)
            nll, count = each.where(judged, 0.0).sum(), judged.sum()
            right = ((best == made.original) & judged).sum()
        return Loss(
            {"nll": (nll, count), "generator": (made.nll, masked)},
            {"nll": self.weight},
            {"accuracy": (right, count), "generator_accuracy": (made.right, masked)},
            {"model": auxiliary(output), "generator": made.aux},
        )


def copied(logits: Tensor, scores: Tensor, ids: Tensor, original: Tensor) -> tuple[Tensor, Tensor]:
    """-log p of the originals (B, T), nats, and the best guesses (B, T), of p(v) = D [v = ids] + (1 - D) softmax(logits)[v].

    logits (B, T, V); scores (B, T), of which D is the sigmoid.
    """
    if scores.shape != ids.shape:
        raise ValueError(
            f"heads.copy gives {tuple(scores.shape)} scores for {tuple(ids.shape)} tokens, but objective=all_tokens_mlm "
            "needs one a token; set heads.copy.n_classes=0"
        )
    log_z, written = logits.logsumexp(-1), F.logsigmoid(-scores)
    chosen = written + _at(logits, original) - log_z
    # In logarithms: near D = 1 a sum of probabilities has lost 1 - D, all that a replaced token's slope comes from.
    log_p = torch.where(ids == original, torch.logaddexp(F.logsigmoid(scores), chosen), chosen)
    with torch.no_grad():
        most, best = logits.max(-1)
        # Both sides over 1 - D.
        copy = scores.exp() + (_at(logits, ids) - log_z).exp() >= (most - log_z).exp()
    return -log_p, torch.where(copy, ids, best)


def _at(logits: Tensor, ids: Tensor) -> Tensor:
    """The logits (B, T, V) of these ids (B, T)."""
    return logits.gather(-1, ids[..., None])[..., 0]
