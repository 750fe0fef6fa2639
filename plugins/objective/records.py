"""Labels of words, answers in a text and choices among answers, learnt from records."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from llmlab.registry import register
from llmlab.slots import LanguageModel, Loss, Pass, Vocabulary, auxiliary

from ._loss import IGNORED, targets, token_loss
from ._rows import flattened, prepared_rows, prepared_text


@register("objective", "token_classify")
class TokenClassification:
    """The label of each word, as names of people and places (BERT: Devlin et al. 2018, arXiv:1810.04805, section 5.3).

    Cross-entropy in nats at the first token of each word, from the head of the role `labels`, whose number of classes is
    that of the data; a word's further tokens are no targets. ids, labels (T,).
    """

    reads = "tagged"
    collate = "pad"
    mask = "bidirectional"
    heads = {"labels": "token"}
    special = ()
    topologies = ("encoder", "decoder")
    measures = {"accuracy": "accuracy"}

    def __init__(self, vocabulary: Vocabulary, seq_len: int, /):
        pass

    def prepare(self, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        words = np.asarray(sample["words"], dtype=np.int64)
        first = (words >= 0) & (words != np.concatenate([[-1], words[:-1]]))
        labels = np.full(len(words), IGNORED, dtype=np.int64)
        labels[first] = np.asarray(sample["labels"])[words[first]]
        return {**prepared_text(sample), "labels": labels}

    def targets(self, prepared: dict[str, Any]) -> dict[str, int]:
        return targets(prepared)

    def loss(self, model: LanguageModel, batch: Mapping[str, Tensor]) -> Loss:
        where, labels = batch["labels"] != IGNORED, batch["labels"]
        output = model(batch, heads={"labels": where})
        scores = output.heads["labels"]
        right = (scores.detach().argmax(-1) == labels[where]).sum()
        return token_loss(output, scores, labels[where], {"accuracy": (right, where.sum())})


@register("objective", "qa_span")
class AnswerSpan:
    """The span of a text that answers a question (SQuAD as BERT learns it: Devlin et al. 2018, arXiv:1810.04805, section 4.2).

    The mean of two cross-entropies in nats, at the answer's first token and at its last, each over all tokens of question and
    text, from the head of the role `span`. A question without an answer in the text has its span at the first token
    (section 4.3). "accuracy" is the share of samples both of whose ends are right.

    A text that is too long is cut; of an answer that is cut off there is no target, and "accuracy" counts it as wrong. With
    `stride` it is read in windows, the beginnings of which are so many tokens apart (`doc_stride` of the paper's code, 128 of
    384), and a window that does not hold all of the answer has none.

    At the end of a run and in `llmlab eval` the best span over the windows of a question, of at most `max_answer` tokens, is
    compared with the answer: "exact_match" and "f1" as SQuAD has them (Rajpurkar et al. 2016, arXiv:1606.05250, section 6.1).
    ids, segments (T,); span (2,), -1 of no target; within (2,), the place of the text and its end.
    """

    reads = "questions"
    collate = "pad"
    mask = "bidirectional"
    heads = {"span": "span"}
    special = ()
    topologies = ("encoder", "decoder")
    measures = {"accuracy": "accuracy"}
    gives = ("within",)
    telling = ({"stride": 3}, {"max_answer": 2})

    def __init__(
        self,
        vocabulary: Vocabulary,
        seq_len: int,
        /,
        *,
        stride: int = 0,  # tokens between the beginnings of windows of a long text; 0: it is cut
        max_answer: int = 30,  # tokens of an answer that is looked for (`max_answer_length` of the paper's code)
    ):
        if not 0 <= stride < seq_len:
            raise ValueError(
                f"objective.stride must be from 0 (no windows) to below data.seq_len={seq_len}, but is {stride}"
            )
        if max_answer < 1:
            raise ValueError(f"objective.max_answer must be at least 1, but is {max_answer}")
        self.stride, self.max_answer = stride, max_answer

    def prepare(self, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        own = {"span": sample["span"], "within": sample["context"]}
        return {**prepared_text(sample), **{name: np.asarray(value, dtype=np.int64) for name, value in own.items()}}

    def targets(self, prepared: dict[str, Any]) -> dict[str, int]:
        return {"nll": int((prepared["span"] >= 0).sum())}

    def passes(self, prepared: Mapping[str, Any]) -> list[Pass]:
        return [Pass(len(prepared["ids"]), heads={"span": None})]

    def loss(self, model: LanguageModel, batch: Mapping[str, Tensor]) -> Loss:
        output, span_B2 = model(batch, heads={"span": None}), batch["span"]
        # transformers leaves padding in, by which a loss would depend on the other texts of its batch.
        hidden = ~batch["valid"][:, None]
        scores_B2T = output.heads["span"].float().mT.masked_fill(hidden, float("-inf"))
        nll = F.cross_entropy(scores_B2T.flatten(0, 1), span_B2.flatten(), ignore_index=-1, reduction="sum")
        right = (scores_B2T.detach().argmax(-1) == span_B2).all(-1)
        count = torch.tensor(len(right), device=right.device)
        logs = {"accuracy": (right.sum(), count)}
        return Loss({"nll": (nll, (span_B2 >= 0).sum())}, logs=logs, aux={"model": auxiliary(output)})

    def best_spans(self, model: LanguageModel, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(first, last, score, none), (B,) each: the span of the text whose ends have the highest sum of scores, and the sum at
        the first token, which stands for no answer."""
        begin_BT, end_BT = model(batch, heads={"span": None}).heads["span"].float().unbind(-1)
        places = torch.arange(begin_BT.shape[1], device=begin_BT.device)
        inside_BT = (places >= batch["within"][:, :1]) & (places < batch["within"][:, 1:])
        longer_TT = places[None] - places[:, None]
        may_BTT = inside_BT[:, :, None] & inside_BT[:, None] & (longer_TT >= 0) & (longer_TT < self.max_answer)
        pairs_BTT = (begin_BT[:, :, None] + end_BT[:, None]).masked_fill(~may_BTT, float("-inf"))
        score, at = pairs_BTT.flatten(1).max(1)
        length = len(places)
        return at // length, at % length, score, begin_BT[:, 0] + end_BT[:, 0]


@register("objective", "multiple_choice")
class MultipleChoice:
    """The right one of several answers to a question (GPT-1: Radford et al. 2018, section 3.3; BERT: section 4.4).

    Each choice is read behind the question in a sequence of its own, the head of the role `scalar` gives a score for each,
    and the loss is the cross-entropy in nats of their softmax at the right one. BERT's head is heads.scalar.pool=first
    heads.scalar.act=tanh heads.scalar.bias=true. row_ids, row_segments, a list of (T,); answer ().
    """

    reads = "choices"
    collate = "pad"
    mask = "bidirectional"
    heads = {"scalar": "scalar"}
    special = ()
    topologies = ("encoder", "decoder")
    measures = {"accuracy": "accuracy"}
    fixed_counts = True

    def __init__(self, vocabulary: Vocabulary, seq_len: int, /):
        pass

    def prepare(self, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        return {**prepared_rows(sample), "answer": np.asarray(sample["answer"], dtype=np.int64)}

    def targets(self, prepared: dict[str, Any]) -> dict[str, int]:
        return {"nll": 1}

    def passes(self, prepared: Mapping[str, Any]) -> list[Pass]:
        return [Pass(len(row), heads={"scalar": None}) for row in prepared["row_ids"]]

    def loss(self, model: LanguageModel, batch: Mapping[str, Tensor]) -> Loss:
        texts, there_BR = flattened(batch)
        output = model(texts, heads={"scalar": None})
        scores = output.heads["scalar"].float()
        # A choice that a question does not have can't be chosen.
        scores_BR = scores.new_full(there_BR.shape, float("-inf")).masked_scatter(there_BR, scores[:, 0])
        nll = F.cross_entropy(scores_BR, batch["answer"], reduction="sum")
        right = (scores_BR.detach().argmax(-1) == batch["answer"]).sum()
        count = torch.tensor(len(scores_BR), device=right.device)
        return Loss({"nll": (nll, count)}, logs={"accuracy": (right, count)}, aux={"model": auxiliary(output)})
