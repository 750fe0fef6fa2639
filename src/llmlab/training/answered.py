"""Answers that a model finds in the contexts of questions, compared with the right ones as SQuAD has it."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from llmlab.data import collate
from llmlab.data.question_windows import QuestionWindows
from llmlab.data.records import RecordSamples, Sample

if TYPE_CHECKING:
    from llmlab.data.samples import Samples
    from llmlab.data.tokenizer import Tokenizer
    from llmlab.model.model import Model
    from llmlab.slots import Objective

AT_ONCE = 32
ARTICLES = re.compile(r"\b(a|an|the)\b")


def plain(text: str) -> str:
    """A text without case, punctuation, articles and further white space (`normalize_answer` of SQuAD's evaluate-v1.1.py)."""
    kept = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(ARTICLES.sub(" ", kept).split())


def f1(found: str, right: str) -> float:
    """The harmonic mean of precision and recall over words (Rajpurkar et al. 2016, arXiv:1606.05250, section 6.1); of no answer
    1 where there is none, else 0 (Rajpurkar et al. 2018, arXiv:1806.03822)."""
    one, other = plain(found).split(), plain(right).split()
    if not one or not other:
        return float(one == other)
    common = (Counter(one) & Counter(other)).total()
    return 2 * common / (len(one) + len(other))


@torch.no_grad()
def scores(
    model: Model,
    objective: Objective,
    samples: Samples,
    tokenizer: Tokenizer,
    at_once: int = AT_ONCE,
    n: int | None = None,
) -> dict[str, float]:
    """ "exact_match" and "f1", means over the first n questions, all if None; {} where the objective looks for no spans.

    The span of a question is the best over its windows. That it has none is believed where the first token's score is above
    it in each window, and only if some question has none (SQuAD 2). Both texts are read off the tokens: of a tokenizer that
    changes a text (lower case) it is the changed one.
    """
    if not hasattr(objective, "best_spans") or not isinstance(samples, RecordSamples | QuestionWindows):
        return {}
    records = samples.records if isinstance(samples, RecordSamples) else samples.records.records
    labels = records.labels
    count = records.count if n is None else min(n, records.count)
    if labels is None or not count:
        return {}
    training = model.training
    model.eval()
    found: dict[int, tuple[float, int, int]] = {}
    none = np.full(count, np.inf)
    for some in _together(samples, count, at_once):
        prepared = [objective.prepare(sample, np.random.default_rng(question)) for question, _, sample in some]
        batch = collate.batch(prepared, "pad", samples.pad, most=samples.seq_len)
        device = next(model.parameters()).device
        first, last, score, silent = (
            each.tolist() for each in objective.best_spans(model, {k: v.to(device) for k, v in batch.items()})
        )
        for i, (question, begin, sample) in enumerate(some):
            turn = begin - int(sample["context"][0])
            if score[i] > found.get(question, (-np.inf,))[0]:
                found[question] = score[i], first[i] + turn, last[i] + turn
            none[question] = min(none[question], silent[i])
    model.train(training)
    spans = np.array(labels[:count])
    may_be_none = bool((labels[:, 0] < 0).any())
    pairs = []
    for question in range(count):
        _, (_, context) = records.of(question)
        score_of, a, b = found.get(question, (-np.inf, 0, -1))
        answer = "" if may_be_none and none[question] > score_of else tokenizer.decode(context[a : b + 1].tolist())
        first_right, last_right = spans[question]
        pairs.append(
            (answer, "" if first_right < 0 else tokenizer.decode(context[first_right : last_right + 1].tolist()))
        )
    return {
        "exact_match": sum(plain(answer) == plain(right) for answer, right in pairs) / count,
        "f1": sum(f1(answer, right) for answer, right in pairs) / count,
    }


def _together(
    samples: RecordSamples | QuestionWindows, count: int, at_once: int
) -> Iterator[list[tuple[int, int, Sample]]]:
    """(question, place in its context, sample) of all windows of the first questions, so many at a time."""
    some: list[tuple[int, int, Any]] = []
    for question in range(count):
        for begin, sample in samples.of_question(question):
            some.append((question, begin, sample))
            if len(some) == at_once:
                yield some
                some = []
    if some:
        yield some
