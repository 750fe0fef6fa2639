"""Answers to a prompt as rows that a model reads, and their log-probabilities.

B prompts, R answers of the prompt that has most, n answers that there are, T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from llmlab.slots import IGNORED as IGNORED
from llmlab.slots import LanguageModel, Output, Pass


class Scored(NamedTuple):
    """Log-probabilities of whole answers (B, R) under a model, their numbers of tokens (B, R), 0 where there is no answer.

    asked: of the prompt with the first answer alone, without the prompt's first token: (log-probabilities, tokens), (B,).
    """

    sums: Tensor
    lengths: Tensor
    output: Output
    asked: tuple[Tensor, Tensor] | None = None

    @property
    def means(self) -> Tensor:
        """The mean over an answer's tokens."""
        return self.sums / self.lengths.clamp(min=1)


def prepared_answers(sample: Mapping[str, Any]) -> dict[str, Any]:
    """row_ids and row_labels, lists of (T,), the prompt with each answer: labels are the next tokens, -100 at the prompt."""
    prompt = np.asarray(sample["prompt"], np.int64)
    answers = [np.asarray(answer, np.int64) for answer in sample["answers"]]
    asked = np.full(len(prompt) - 1, IGNORED)
    ids = [np.concatenate([prompt, answer])[:-1] for answer in answers]
    labels = [np.concatenate([asked, answer]) for answer in answers]
    return {"row_ids": ids, "row_labels": labels, **row_scores(sample, ids)}


def row_scores(sample: Mapping[str, Any], rows: Sequence[np.ndarray]) -> dict[str, Any]:
    """row_scores, lists of (T,) float32 where the sample has "scores": that of its answer at each token of a row."""
    # Rows are padded by token, and have no other values.
    found = sample.get("scores", ())
    return (
        {"row_scores": [np.full(len(r), s, np.float32) for r, s in zip(rows, found, strict=True)]} if len(found) else {}
    )


def preferred(batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(i, j, which, gap) of the pairs of a prompt's answers: the numbers of the better and the worse (pairs,), (B, pairs) bool
    where both are there and one is better, and by how much its score is higher, (B, pairs), 0 of records without scores."""
    there = batch["row_valid"].any(-1)
    i, j = torch.triu_indices(there.shape[1], there.shape[1], 1, device=there.device)
    both = there[:, i] & there[:, j]
    if "row_scores" not in batch:
        return i, j, both, torch.zeros(both.shape, device=both.device)
    scores = batch["row_scores"][..., 0]
    gap = scores[:, i] - scores[:, j]
    # Of a tie there is nothing to learn (InstructGPT: Ouyang et al. 2022, appendix A.1: ties are dropped).
    return i, j, both & (gap > 0), gap


def answer_passes(prepared: Mapping[str, Any], model: str = "model", *, asked: bool = False) -> list[Pass]:
    """The forwards that `scored` makes of a sample."""
    rows = zip(prepared["row_ids"], prepared["row_labels"], strict=True)
    targets = [(len(ids), int((labels != IGNORED).sum())) for ids, labels in rows]
    return [
        Pass(n, model=model, trained=model == "model", heads={"tokens": n if asked and not i else answer})
        for i, (n, answer) in enumerate(targets)
    ]


def scored(
    model: LanguageModel, batch: Mapping[str, Tensor], vocabulary: int, *, learn: bool = True, asked: bool = False
) -> Scored:
    """The answers of a batch of `prepared_answers`. learn: with gradients. asked: the first prompt of each sample too."""
    there = batch["row_valid"].any(-1)
    read = {name: batch[f"row_{name}"][there] for name in ("ids", "valid")}
    labels = batch["row_labels"][there]
    answered = where = labels != IGNORED
    if asked:
        # A prompt's next tokens are those that are read: its labels are only those of the answer.
        following = torch.cat([read["ids"][:, 1:], read["ids"][:, :1]], 1)
        is_first = (torch.arange(there.shape[1], device=there.device) == 0).expand_as(there)[there]
        before_answer = labels.ne(IGNORED).cumsum(1).eq(0) & read["valid"]
        where = answered | (before_answer & is_first[:, None])
        labels = torch.where(answered, labels, following)
    with nullcontext() if learn else torch.no_grad():
        output = model(read, heads={"tokens": where})
        # Rows of the table behind the vocabulary only round it up, and are no tokens that could come. In float32: in bfloat16 a
        # log-probability over 1,024 logits is off by 0.01 on average, and an answer has a hundred.
        logits = output.heads["tokens"][:, :vocabulary].float()
        each = -F.cross_entropy(logits, labels[where], reduction="none")
        # A mask flattens row by row, and so do the tokens.
        rows = torch.arange(len(labels), device=labels.device)[:, None].expand_as(where)[where]
        prompts = None
        if asked:
            of_answer = answered[where]
            prompt = each.new_zeros(len(labels)).index_add(0, rows[~of_answer], each[~of_answer])
            prompts = prompt[is_first], (where & ~answered).sum(-1)[is_first]
            rows, each = rows[of_answer], each[of_answer]
        sums = each.new_zeros(len(labels)).index_add(0, rows, each)
        lengths = answered.sum(-1).to(each.dtype)
        by_prompt = [each.new_zeros(there.shape).masked_scatter(there, of) for of in (sums, lengths)]
        return Scored(by_prompt[0], by_prompt[1], output, prompts)
