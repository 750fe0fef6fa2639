"""Distillation on the student's own answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from llmlab.divergences import summed_divergence
from llmlab.optima import Case, Optimum
from llmlab.policy import IGNORED, entropies, log_probabilities, prepared
from llmlab.registry import register
from llmlab.slots import Answers, LanguageModel, Loss, Pass, Rollout, Vocabulary, auxiliary

SHOWN = ("agreement", "entropy", "answer_length")


@register("alignment", "distill")
class OnPolicyDistillation:
    """On-policy distillation: a frozen teacher corrects the model's own answers (GKD: Agarwal et al. 2023, arXiv:2306.13649).

    The teacher is named by models.teacher=RUN or hf=FOLDER, and has the run's vocabulary. The model answers a prompt, and at
    each token of the answer it learns the teacher's distribution P: the loss is the divergence of P and its own Q, a token. It
    is KL(P | Q) with `divergence` 0, KL(Q | P) with 1, and between them the generalised Jensen-Shannon divergence, as
    objective=distill has it of a text that is there. No gradient goes through the drawing (equation 4 with lambda 1), and
    there is no reward.

    Shown: `agreement` (tokens of which both models think the same the most likely), `entropy` of a token, `answer_length`. A
    validation is over greedy answers.

    samples: answers to each prompt
    max_new: tokens of an answer at most
    temperature: at which answers are drawn
    batches: optimizer steps that a rollout's answers last, each used once
    epochs: how often a rollout's answers are used
    divergence: 0: the teacher's KL to the student, 1: reverse, between: generalised Jensen-Shannon
    softening: by which both models' scores are divided in the divergence
    """

    reads = "prompts"
    mask = "causal"
    heads = {"tokens": "lm"}
    special = ("eos",)
    topologies = ("decoder",)
    measures = {"divergence": "loss", "agreement": "accuracy"}
    collate = "pad"
    judged = False
    models: ClassVar[dict[str, Any]] = {"teacher": {"heads": {"tokens": "lm"}, "trains": False}}
    telling: ClassVar[tuple[dict[str, Any], ...]] = (
        {"samples": 2, "max_new": 3, "temperature": 0.5, "batches": 3, "epochs": 2},
        {"divergence": 0.0},
        {"divergence": 1.0},
        {"softening": 2.0},
    )

    def __init__(
        self,
        vocabulary: Vocabulary,
        seq_len: int,
        /,
        *,
        samples: int = 1,
        max_new: int = 32,
        temperature: float = 1.0,
        batches: int = 1,
        epochs: int = 1,
        divergence: float = 0.5,
        softening: float = 1.0,
    ):
        if not 0 <= divergence <= 1 or not softening > 0:
            raise ValueError(
                "alignment.divergence must be in [0, 1] and alignment.softening more than 0, but they are "
                f"{divergence} and {softening}"
            )
        self.rollout = Rollout(samples, max_new, temperature, batches, epochs)
        self.size, self.divergence, self.softening = vocabulary.size, divergence, softening

    def credit(self, answers: Answers) -> dict[str, np.ndarray]:
        return {}

    def optimum(self, case: Case) -> Optimum | None:
        return Optimum(case.log_p["teacher"], "pi_teacher(y)")

    def prepare(self, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        made = prepared(sample, self.rollout.max_new, of_answers=())
        del made["advantage"]
        return made

    def targets(self, prepared: dict[str, Any]) -> dict[str, int]:
        return {"divergence": int(prepared["answer_length"])}

    def passes(self, prepared: dict[str, Any]) -> list[Pass]:
        tokens, heads = len(prepared["ids"]), {"tokens": int(prepared["answer_length"])}
        return [Pass(tokens, heads=heads), Pass(tokens, model="teacher", trained=False, heads=heads)]

    def loss(self, model: LanguageModel, batch: Mapping[str, Tensor], *, teacher: LanguageModel | None = None) -> Loss:
        if "ids" not in batch:  # a rank for which a validation has no prompt left
            nothing = batch["reward"].sum()
            # Under the names of the other ranks, which add all of them up in one collective.
            return Loss({"divergence": (nothing, nothing.long())}, {}, dict.fromkeys(SHOWN, (nothing, nothing)))
        assert teacher is not None  # of a run, whose objective declares it
        found = log_probabilities(model, batch, temperature=self.rollout.temperature, vocabulary=self.size)
        where = batch["labels"] != IGNORED
        with torch.no_grad():
            taught = teacher({name: batch[name] for name in ("ids", "valid") if name in batch}, heads={"tokens": where})
        # A table may be rounded up to more rows than there are tokens, by another number in each model.
        student, theirs = (x.heads["tokens"][:, : self.size].float() for x in (found.output, taught))
        total = summed_divergence(theirs / self.softening, student / self.softening, self.divergence)
        tokens, answers = batch["answer_length"].sum(), torch.tensor(len(where), device=where.device)
        alike = (student.detach().argmax(-1) == theirs.argmax(-1)).sum()
        shown = (alike, tokens), (entropies(found.log_p).sum(), tokens), (tokens.float(), answers)
        logs = dict(zip(SHOWN, shown, strict=True))
        return Loss({"divergence": (total, tokens)}, {}, logs, {"model": auxiliary(found.output)})
