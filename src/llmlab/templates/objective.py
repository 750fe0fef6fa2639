"""An objective of your own: a loss and the samples that it is computed on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from llmlab.registry import register
from llmlab.slots import LanguageModel, Loss, Vocabulary, auxiliary
from llmlab.twins import Given, twin


@register("objective", "my_objective")
class MyObjective:
    """Next-token prediction with a z-loss (PaLM: Chowdhery et al. 2022, arXiv:2204.02311, section 5).

    `prepare` runs on a worker: {"tokens", "documents"} (seq_len + 1,) -> numpy arrays of fixed shapes, which are stacked to
    the batch. The loss is a weighted sum of means, each given as a sum over targets and their number, so that a batch may be
    cut in any way.
    """

    mask = "causal"  # the mask, the heads and the special tokens that it needs
    heads = {"tokens": "lm"}
    special = ()
    topologies = ("decoder",)
    measures = {
        "nll": "bits"
    }  # the term nll is the text's negative log-likelihood: perplexity and bits per byte are claimed
    fixed_counts = True  # every sample has as many targets
    telling = ({"z": 0.5},)

    def __init__(
        self,
        vocabulary: Vocabulary,
        seq_len: int,
        /,
        *,
        z: float = 1e-4,  # coefficient of the square of the log-partition
    ):
        if z < 0:
            raise ValueError(f"objective.z={z} must be at least 0")
        self.z = z

    def prepare(self, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        tokens = np.asarray(sample["tokens"], dtype=np.int64)
        prepared = {"ids": tokens[:-1], "labels": tokens[1:]}
        if sample.get("documents") is not None:
            # There are documents where the data are packed: tokens then see no other document.
            prepared["documents"] = np.asarray(sample["documents"], dtype=np.int64)[:-1]
        return prepared

    def targets(self, prepared: dict[str, Any]) -> dict[str, int]:
        return {"nll": len(prepared["labels"]), "z": len(prepared["labels"])}

    def loss(self, model: LanguageModel, batch: Mapping[str, Tensor]) -> Loss:
        output = model(batch, heads={"tokens": None})
        # In float32: in bfloat16 a log-probability over 1,024 logits is off by 0.01 on average.
        logits, labels = output.heads["tokens"].flatten(0, -2).float(), batch["labels"].flatten()
        # A sum: the mean of each micro-batch would weigh its tokens by how many there are.
        nll = F.cross_entropy(logits, labels, reduction="sum")
        # PaLM's z: the logarithm of the softmax's normalizer is held near 0.
        square = logits.logsumexp(-1).square().sum()
        count = labels.new_tensor(labels.numel())
        # Each with its own count, for another objective's terms may have other targets.
        terms = {"nll": (nll, count), "z": (square, count)}
        return Loss(terms, weights={"z": self.z}, aux={"model": auxiliary(output)})


# Not of the class: `llmlab check` holds the part to what this says, at every setting of its options. What a twin is given, and
# which outputs it may give, is listed in the docstring of llmlab.check.twins.observers.objective.
@twin("objective", "my_objective", source="Chowdhery et al. 2022, section 5")
def definition(given: Given) -> dict[str, np.ndarray]:
    logits, labels = given.inputs["batch/scores/tokens"], given.inputs["rows"][:, 1:]
    log_partition = np.log(np.exp(logits).sum(-1))
    nll = log_partition - np.take_along_axis(logits, labels[..., None], -1)[..., 0]
    return {
        "batch/loss/nll": np.array([nll.sum(), nll.size]),
        "batch/loss/z": np.array([(log_partition**2).sum(), nll.size]),
        "batch/weight/z": np.array(given.options["z"]),
    }
