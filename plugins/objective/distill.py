"""Distillation: a model that learns from a frozen teacher beside its text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from llmlab.divergences import summed_divergence
from llmlab.registry import register
from llmlab.slots import LanguageModel, Loss, Output, Pass, Vocabulary, auxiliary

from ._loss import IGNORED, token_loss
from .clm import CausalLM
from .mlm import MaskedLM


@register("objective", "distill")
class Distillation:
    """Distillation (Hinton et al. 2015, arXiv:1503.02531): a frozen teacher's distributions are learnt.

    The teacher is named by models.teacher=RUN or hf=FOLDER. Loss: `weight` x T^2 x the divergence of teacher P and student Q
    at temperature T, a target; plus `data` x the cross-entropy of the text's own tokens; plus `hidden_weight` x a distance of
    both models' hidden states, a token (nats). The divergence is KL(P | Q) with `beta` 0, KL(Q | P) with 1, and between
    them the generalised Jensen-Shannon divergence beta KL(P | M) + (1 - beta) KL(Q | M), M = beta P + (1 - beta) Q (Agarwal
    et al. 2023, arXiv:2306.13649, section 2).

    text: what is learnt of it, as objective=clm has it or as objective=mlm, whose masks the teacher reads too. hidden: cosine
    is 1 - cos (DistilBERT: Sanh et al. 2019, arXiv:1910.01108), mse the mean of squared differences (TinyBERT: Jiao et al.
    2019, arXiv:1909.10351, equations 7 and 8), summed over pairs of layers. Layer 0 is what the first one reads, i what the
    i-th gives, -1 the last, behind the model's last norm. TinyBERT's map of 4 layers to 12 is layers=[0,1,2,3,4]
    teacher_layers=[0,3,6,9,12].
    projection: the model's states pass a linear that is learnt, the same for all layers (TinyBERT's W_h), so that the teacher
    may be of any width. ids and labels (T,).
    """

    mask = "causal"
    heads = {"tokens": "lm"}
    special = ()
    topologies = ("decoder",)
    models = {"teacher": {"heads": {"tokens": "lm"}, "trains": False}}
    measures = {"nll": "bits", "agreement": "accuracy"}
    restores = "next"
    when = {
        "text=mlm": {
            "mask": "bidirectional",
            "heads": {"tokens": "mlm"},
            "special": ("mask",),
            "topologies": ("encoder",),
            "models": {"teacher": {"heads": {"tokens": "mlm"}, "trains": False}},
            "measures": {"nll": "nll"},
            "restores": "masked",
        },
        "projection": {"heads": {"hidden": "projection"}, "widths": {"hidden": "teacher"}},
    }
    telling = (
        {"temperature": 1.0},
        {"beta": 1.0},
        {"beta": 0.3},
        {"weight": 3.0, "data": 0.5},
        {"data": 0.0, "text": "mlm", "at": "all"},
        {"at": "all"},
        {"hidden": "cosine", "hidden_weight": 2.0},
        {"hidden": "mse", "layers": [0, 1, -1], "teacher_layers": [0, 2, -2]},
        {"hidden": "mse", "layers": [0, 1], "teacher_layers": [1, 2], "projection": True},
        {"hidden": "cosine", "projection": True},
    )
    fixed_counts = False

    def __init__(
        self,
        vocabulary: Vocabulary,
        seq_len: int,
        /,
        *,
        text: Literal["clm", "mlm"] = "clm",  # what is learnt of a text, as the objective of that name has it
        temperature: float = 2.0,  # by which both models' scores are divided
        beta: float = 0.0,  # 0: the teacher's KL to the student (forward), 1: reverse, between: generalised Jensen-Shannon
        weight: float = 1.0,  # of the divergence
        data: float = 1.0,  # of the cross-entropy of the text's own tokens
        at: Literal[
            "targets", "all"
        ] = "targets",  # tokens whose distributions are compared: text=mlm has targets of 15 %
        hidden: Literal["none", "cosine", "mse"] = "none",  # distance of hidden states
        hidden_weight: float = 1.0,  # of that distance
        layers: tuple[int, ...] = (-1,),  # of the model, that are compared; 0: the embedding, -1: the last
        teacher_layers: tuple[int, ...] = (-1,),  # of the teacher, the one that each of these is compared with
        projection: bool = False,  # the model's are led to the teacher's width first, by a linear that is learnt
    ):
        if not temperature > 0:
            raise ValueError(f"objective.temperature must be more than 0, but is {temperature}")
        if not 0 <= beta <= 1:
            raise ValueError(f"objective.beta must be in [0, 1], but is {beta}")
        if not weight > 0 or data < 0 or not hidden_weight > 0:
            raise ValueError(
                "objective.weight and objective.hidden_weight must be more than 0 and objective.data at least 0, but they are "
                f"{weight}, {hidden_weight} and {data}"
            )
        pairs = [list(layers), list(teacher_layers)]
        given = {"hidden_weight": hidden_weight != 1.0, "layers": pairs != [[-1], [-1]], "projection": projection}
        if hidden == "none" and (idle := [name for name, is_given in given.items() if is_given]):
            raise ValueError(f"objective.{idle[0]} has no effect without objective.hidden=cosine or mse")
        if len(layers) != len(teacher_layers) or not layers:
            raise ValueError(
                f"objective.layers={pairs[0]} and objective.teacher_layers={pairs[1]} must name as many, and at least one; "
                "each of the model's is compared with the teacher's at its place"
            )
        self.text: CausalLM | MaskedLM = (
            CausalLM(vocabulary, seq_len) if text == "clm" else MaskedLM(vocabulary, seq_len)
        )
        self.shown = getattr(self.text, "shown", 0.0)
        self.size, self.temperature, self.beta, self.at, self.hidden = vocabulary.size, temperature, beta, at, hidden
        self.layers, self.their_layers, self.projection = tuple(layers), tuple(teacher_layers), projection
        self.weights = {"nll": data, "divergence": weight, "hidden": hidden_weight}

    def prepare(self, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        return self.text.prepare(sample, rng)

    def targets(self, prepared: dict[str, Any]) -> dict[str, int]:
        n, length = int((prepared["labels"] != IGNORED).sum()), len(prepared["ids"])
        counts = {"nll": n, "divergence": length if self.at == "all" else n}
        return counts if self.hidden == "none" else {**counts, "hidden": length}

    def passes(self, prepared: dict[str, Any]) -> list[Pass]:
        length, n = len(prepared["ids"]), self.targets(prepared)["divergence"]
        ours, theirs = ((), ()) if self.hidden == "none" else (self.layers, self.their_layers)
        heads = {"tokens": n, **({"hidden": length * len(ours)} if self.projection else {})}
        return [
            Pass(length, heads=heads, layers=ours),
            Pass(length, model="teacher", trained=False, heads={"tokens": n}, layers=theirs),
        ]

    def loss(self, model: LanguageModel, batch: Mapping[str, Tensor], *, teacher: LanguageModel) -> Loss:
        labels = batch["labels"]
        where = torch.ones_like(labels, dtype=torch.bool) if self.at == "all" else labels != IGNORED
        if self.hidden == "none":  # as a model of one's own may be, which gives no hidden states
            output = model(batch, heads={"tokens": where})
            with torch.no_grad():
                taught = teacher(batch, heads={"tokens": where})
        else:
            heads = {"tokens": where, **({"hidden": None} if self.projection else {})}
            output = model(batch, heads=heads, layers=self.layers)
            with torch.no_grad():
                taught = teacher(batch, heads={"tokens": where}, layers=self.their_layers)
        logits = output.heads["tokens"]
        # A table may be rounded up to more rows than there are tokens, by another number in each model.
        student, theirs = (x[:, : self.size].float() for x in (logits, taught.heads["tokens"]))
        t = self.temperature
        divergence = t**2 * summed_divergence(theirs / t, student / t, self.beta)
        agree = (student.detach().argmax(-1) == theirs.argmax(-1)).sum()
        found = token_loss(output, logits, labels[where])
        terms = {"nll": found.terms["nll"], "divergence": (divergence, where.sum())}
        if self.hidden != "none":
            # Of no texts, as of a mixture's batch without any for it, there are no states to be compared.
            distance = self._distance(output, taught) if labels.numel() else output.hidden.sum()
            terms["hidden"] = distance, torch.tensor(labels.numel(), device=labels.device)
        weights = {name: self.weights[name] for name in terms}
        return Loss(terms, weights, {"agreement": (agree, where.sum())}, {"model": auxiliary(output)})

    def _distance(self, output: Output, taught: Output) -> Tensor:
        states = tuple(output.heads["hidden"]) if self.projection else output.layers
        found = []
        for ours, theirs in zip(states, taught.layers, strict=True):
            if ours.shape != theirs.shape:
                raise ValueError(
                    f"objective.hidden={self.hidden} compares hidden states of one width, but the model's are "
                    f"{ours.shape[-1]} wide and the teacher's {theirs.shape[-1]}; set objective.projection=true"
                )
            # In float32: of bfloat16 states a mean of squares is good to two digits.
            a, b = ours.float(), theirs.float()
            if self.hidden == "cosine":
                found.append((1 - F.cosine_similarity(a, b, dim=-1)).sum())
            else:
                found.append((a - b).square().mean(-1).sum())
        return torch.stack(found).sum()
