"""Classes of texts, learnt from labelled records."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from llmlab.registry import register
from llmlab.slots import LanguageModel, Loss, Pass, Vocabulary, auxiliary

from ._loss import IGNORED
from ._rows import flattened, prepared_rows, prepared_text


@register("objective", "classify")
@register("objective", "classification")
class Classification:
    """The class of a text, or of a pair of texts (BERT's fine-tuning: Devlin et al. 2018, arXiv:1810.04805, section 4.1).

    classify: The class of a text, or of a pair of texts (Devlin et al. 2018, arXiv:1810.04805; GPT-1: Radford et al. 2018).
    classification: The same as classify, by its first name (Devlin et al. 2018, arXiv:1810.04805).

    Cross-entropy in nats of one answer a record, from the head of the role `classes`, whose number of classes is that of the
    data: term "nll". A `confidence` (0 to 1) of a record weighs its loss, and the sum is divided by the number of records:
    one that is half believed pulls half as much, and does not make the others pull harder.

    GPT-1's input forms (section 3.3): a text; an entailment, the pair with what the tokenizer puts between texts;
    a similarity, `both_orders`, whose scores of the two orders are added (of a linear head that is the paper's sum of its
    inputs); and a choice of several, which is objective=multiple_choice. Its second term, "lm", is the next-token loss of all
    tokens of the sequence, frame included, times `lm_weight` (0.5 in the paper, section 3.2).

    ids, and segments of a pair, (T,), with both_orders row_ids and row_segments, two of (T,); labels (); confidence ().
    """

    reads = "labelled"
    collate = "pad"
    mask = "bidirectional"
    heads = {"classes": "pooled"}
    special = ()
    topologies = ("encoder", "decoder")
    measures = {"accuracy": "accuracy"}
    fixed_counts = True
    when = {
        "lm_weight": {
            "mask": "causal",
            "heads": {"tokens": "lm"},
            "measures": {"lm": "nll"},
            "fixed_counts": False,
        }
    }
    telling = ({"lm_weight": 0.5}, {"lm_weight": 2.0, "both_orders": True})

    def __init__(
        self,
        vocabulary: Vocabulary,
        seq_len: int,
        /,
        *,
        lm_weight: float = 0.0,  # of the next-token loss on the same text, a second term (GPT-1: 0.5); 0: none
        both_orders: bool = False,  # a pair is read in both orders, and their scores are added (GPT-1's similarity)
    ):
        if not lm_weight >= 0:
            raise ValueError(f"objective.lm_weight must be at least 0, but is {lm_weight}")
        self.lm_weight, self.both_orders = lm_weight, both_orders
        self.texts = "orders" if both_orders else "joined"

    def prepare(self, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        prepared = prepared_rows(sample) if self.both_orders else prepared_text(sample)
        prepared["labels"] = np.asarray(sample["label"])
        if "confidence" in sample:
            prepared["confidence"] = np.asarray(sample["confidence"], dtype=np.float32)
        return prepared

    def targets(self, prepared: dict[str, Any]) -> dict[str, int]:
        n_next = sum(len(row) - 1 for row in self._texts(prepared))
        return {"nll": 1, **({"lm": n_next} if self.lm_weight else {})}

    def passes(self, prepared: Mapping[str, Any]) -> list[Pass]:
        heads = {"classes": None, **({"tokens": None} if self.lm_weight else {})}
        return [Pass(len(row), heads=heads) for row in self._texts(prepared)]

    def _texts(self, prepared: Mapping[str, Any]) -> list[np.ndarray]:
        return list(prepared["row_ids"]) if self.both_orders else [prepared["ids"]]

    def loss(self, model: LanguageModel, batch: Mapping[str, Tensor]) -> Loss:
        texts, labels = flattened(batch)[0] if self.both_orders else batch, batch["labels"]
        output = model(texts, heads={"classes": None, **({"tokens": None} if self.lm_weight else {})})
        scores = output.heads["classes"]
        if self.both_orders:
            # In float32 before they are added: the sum of two bfloat16 is rounded once more.
            scores = scores.float().unflatten(0, (-1, 2)).sum(1)
        if "confidence" in batch:
            nll = (F.cross_entropy(scores.float(), labels, reduction="none") * batch["confidence"]).sum()
        else:
            nll = F.cross_entropy(scores.float(), labels, reduction="sum")
        count = torch.tensor(len(scores), device=scores.device)
        logs = {"accuracy": ((scores.detach().argmax(-1) == labels).sum(), count)}
        terms = {"nll": (nll, count)}
        if not self.lm_weight:
            return Loss(terms, logs=logs, aux={"model": auxiliary(output)})
        following = torch.where(texts["valid"], texts["ids"], IGNORED)[:, 1:]
        logits = output.heads["tokens"][:, :-1]
        lm = F.cross_entropy(logits.flatten(0, 1).float(), following.flatten(), ignore_index=IGNORED, reduction="sum")
        terms["lm"] = (lm, (following != IGNORED).sum())
        return Loss(terms, {"lm": self.lm_weight}, logs, {"model": auxiliary(output)})
