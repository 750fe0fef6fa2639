"""Diffusion over text whose noise is masking."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from llmlab.registry import register
from llmlab.slots import LanguageModel, Loss, Pass, Vocabulary, auxiliary

from ._loss import IGNORED


@register("objective", "masked_diffusion")
class MaskedDiffusion:
    """Masked diffusion (LLaDA: Nie et al. 2025, arXiv:2502.09992, equation 3; MDLM: Sahoo et al. 2024, arXiv:2406.07524).

    A rate t is drawn for each sample, uniformly from `least` to 1, and each token is masked with probability t. The loss is
    the cross-entropy at masked tokens over t, a token of the text (nats): its mean over t bounds the negative
    log-likelihood of the text from above, and `nll` is one draw of that bound. With `counted` every number of masked tokens
    from 1 to all n is as likely, and t is the number over n (LLaDA, equation 6): the same mean, and draws that vary less.
    `llmlab generate` unmasks step by step.
    ids and labels (T,), the window without its first token, the last of the window before; `weight` () float32, 1 / t;
    `maskable` () the tokens that could be masked.
    """

    mask = "bidirectional"
    heads = {"tokens": "lm"}
    special = ("mask",)
    topologies = ("encoder", "decoder")
    measures = {"nll": "bits"}
    generates = "unmasking"
    restores = "diffused"
    telling = ({"least": 0.5}, {"least": 1.0}, {"counted": True})
    fixed_counts = False

    def __init__(
        self,
        vocabulary: Vocabulary,
        seq_len: int,
        /,
        *,
        least: float = 0.001,  # the smallest rate: its inverse is the largest weight of a token
        counted: bool = False,  # the number of masked tokens is drawn, and not each token's mask
    ):
        if not 0 < least <= 1:
            raise ValueError(f"objective.least must be a rate, above 0 and at most 1, but is {least}")
        if counted and least != 0.001:
            raise ValueError(
                f"objective.least={least} is no rate of objective.counted=true, which masks at least a token"
            )
        self.counted = counted
        self.least, self.mask_id = least, vocabulary.special["mask"]

    def prepare(self, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        tokens = np.asarray(sample["tokens"], dtype=np.int64)[1:]
        may = tokens != self.mask_id
        if sample.get("given") is not None:
            may &= ~sample["given"][1:]
        masked, rate = self._masked(may, rng)
        prepared = {
            "ids": np.where(masked, self.mask_id, tokens),
            "labels": np.where(masked, tokens, IGNORED),
            "weight": np.float32(1 / rate),
            "maskable": np.int64(may.sum()),
        }
        if sample.get("documents") is not None:
            prepared["documents"] = np.asarray(sample["documents"], dtype=np.int64)[1:]
        return prepared

    def _masked(self, may: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, float]:
        """Tokens that are masked, and the rate."""
        # MDLM spreads the rates of a batch evenly; a sample is prepared by itself, so that each draws its own.
        drawn, chance = rng.random(), rng.random(len(may))
        if not self.counted:
            rate = self.least + (1 - self.least) * drawn
            return may & (chance < rate), rate
        n = int(may.sum())
        number = int(drawn * n) + 1
        masked = np.zeros(len(may), bool)
        masked[np.flatnonzero(may)[np.argsort(chance[may])[:number]]] = True
        return masked, number / max(n, 1)

    def targets(self, prepared: dict[str, Any]) -> dict[str, int]:
        return {"nll": int(prepared["maskable"])}

    def passes(self, prepared: dict[str, Any]) -> list[Pass]:
        return [Pass(len(prepared["ids"]), heads={"tokens": int((prepared["labels"] != IGNORED).sum())})]

    def loss(self, model: LanguageModel, batch: Mapping[str, Tensor]) -> Loss:
        labels = batch["labels"]
        where = labels != IGNORED
        output = model(batch, heads={"tokens": where})
        # In float32: bfloat16 logits around 10 are 1/16 apart.
        nll = F.cross_entropy(output.heads["tokens"].float(), labels[where], reduction="none")
        weight = batch["weight"][:, None].expand(labels.shape)[where]
        terms = {"nll": ((weight * nll).sum(), batch["maskable"].sum())}
        return Loss(terms, aux={"model": auxiliary(output)})
