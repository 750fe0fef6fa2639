"""Long contexts of questions: their windows beside BERT's own loop, and the best answer over them."""

import numpy as np
import pytest
import torch

from llmlab import registry
from llmlab.data.question_windows import QuestionWindows
from llmlab.slots import Vocabulary
from llmlab.training import answered

from .test_records import jsonl, opened, samples

ROOM, STRIDE = 40, 19


def questions(n=30):
    chance = np.random.default_rng(0)
    for i in range(n):
        words = [f"w{i}x{k:02}" for k in range(int(chance.integers(1, 30)))]
        at = int(chance.integers(len(words)))
        answer = {} if i % 7 == 3 else {"answer": " ".join(words[at : at + 1 + i % 9])}
        yield {"question": "which " * (1 + 40 * (i == 5)) + "?", "context": " ".join(words), **answer}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    rows = list(questions())
    return opened(jsonl(tmp_path_factory.mktemp("q") / "r.jsonl", rows), "questions", split="position", validation=0.04)


def docspans(n, room):
    """(start, length) of the windows of n tokens: the loop of run_squad.py, convert_examples_to_features."""
    found, start = [], 0
    while start < n:
        length = min(n - start, room)
        found.append((start, length))
        if start + length == n:
            break
        start += min(length, STRIDE)
    return found


def test_windows_are_those_of_bert(corpus):
    records = samples(corpus, ROOM)
    windows, at, lost = QuestionWindows(records, STRIDE), 0, 0
    for i in range(records.records.count):
        (_, question), (_, context) = records.records.of(i)
        room = int(records.room(np.array(len(question)), np.array(len(context))))
        held = []
        for start, length in docspans(len(context), room):
            sample, (first, end) = windows[at], windows[at]["context"]
            assert np.array_equal(sample["tokens"][first:end], context[start : start + length])
            assert len(sample["tokens"]) == windows.lengths[at] <= ROOM and windows.place(at) == (i, start)
            a, b = records.records.labels[i]
            held.append(a >= 0 and start <= a and b < start + length)
            assert sample["span"].tolist() == ([first + a - start, first + b - start] if held[-1] else [0, 0])
            at += 1
        lost += int(records.records.labels[i][0] >= 0 and not any(held))
        assert [begin for begin, _ in windows.of_question(i)] == [start for start, _ in docspans(len(context), room)]
    assert at == len(windows) > 1.5 * records.records.count and windows.lost == lost > 0 and windows.cut == 1
    assert windows.tokens_per_sample == pytest.approx(np.mean([len(windows[i]["tokens"]) for i in range(at)]))
    assert windows.told("data.seq_len=40") == [
        f"29 questions are read in {at} windows, whose contexts begin 19 tokens apart",
        "1 of 29 questions cut at data.seq_len=40",
        f"{lost} answers are whole in no window, as if the context had none",
    ]
    assert "objective.stride=13 reads long contexts in windows" in records.told("data.seq_len=40")[1]


class Knowing(torch.nn.Module):
    """A model that scores the answer's ends where a window has all of it, and its first token where not; `sure` of spans that
    are none, too."""

    def __init__(self, table, sure=-9.0):
        super().__init__()
        self.none, self.table, self.sure = torch.nn.Parameter(torch.zeros(1)), table, sure

    def forward(self, batch, heads):
        scores = torch.full((*batch["ids"].shape, 2), self.sure)
        for row, span in enumerate(batch["span"]):
            scores[row, span, [0, 1]] = 9.0 if span[0] else 3.0
        return type("Output", (), {"heads": {"span": scores}})


@pytest.mark.parametrize("stride", [0, STRIDE])
def test_the_best_answer_over_windows(corpus, stride):
    objective = registry.load("objective", "qa_span", {"stride": stride})(Vocabulary(300, {}), ROOM)
    records = samples(corpus, ROOM)
    read = QuestionWindows(records, stride) if stride else records
    got = answered.scores(Knowing(None), objective, read, corpus.tokenizer, at_once=7)
    # An answer that no window holds is said not to be there; of one that is cut away nothing is known: of 0.
    right = 1 - read.lost / 29
    assert got["exact_match"] == pytest.approx(right) and got["f1"] == pytest.approx(right)
    first = answered.scores(Knowing(None), objective, read, corpus.tokenizer, n=3)
    assert first["exact_match"] in (1 / 3, 2 / 3, 1.0)
    unsure = answered.scores(Knowing(None, sure=8.9), objective, read, corpus.tokenizer)
    assert unsure["exact_match"] < got["exact_match"]


def test_texts_are_compared_as_squad_does():
    assert answered.plain("  The Cat,  an\tApple!") == "cat apple"
    assert answered.f1("the cat sat", "Cat sat down.") == pytest.approx(2 * 2 / (2 + 3))
    assert answered.f1("b b a", "b c") == pytest.approx(2 * 1 / (2 + 2))  # of "b b", as "a" is an article
    assert [answered.f1(*pair) for pair in (("", ""), ("x", ""), ("", "x"), ("x", "y"))] == [1, 0, 0, 0]
