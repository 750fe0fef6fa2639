"""Records of words, questions and choices: what their samples hold, and what is refused with file and line."""

import numpy as np
import pytest

from llmlab.data.record_values import NOBODY, majority

from .test_records import jsonl, opened, refusal, samples

CITIES = ["Paris", "Köln", "New York", "Rome"]


def test_a_span_is_the_tokens_of_the_answer(tmp_path):
    rows = []
    for i in range(24):
        before = "It is said, " * (i % 5) + "that in "
        rows.append({"question": "where?", "context": f"{before}{CITIES[i % 4]}, ä b.", "answer": CITIES[i % 4]})
    rows[3] = {**rows[3], "answer": None}
    corpus = opened(jsonl(tmp_path / "r.jsonl", rows), "questions", split="position", validation=0.05)
    whole = samples(corpus)
    for i in range(len(whole)):
        ids, (first, last) = whole[i]["tokens"], whole[i]["span"]
        if rows[i]["answer"] is None:
            assert (first, last) == (0, 0)
            continue
        text = lambda a, b, ids=ids: corpus.tokenizer.decode(ids[a:b])  # noqa: E731
        assert rows[i]["answer"] in text(first, last + 1)
        assert rows[i]["answer"] not in text(first + 1, last + 1) and rows[i]["answer"] not in text(first, last)
    least = min(int(whole.full[i]) for i in range(len(whole)))
    short = samples(corpus, least)
    lost = [i for i in range(len(short)) if short[i]["span"][0] == -1]
    assert short.lost == len(lost) > 0 == whole.lost
    for i in set(range(len(short))) - set(lost):
        assert np.array_equal(short[i]["span"], whole[i]["span"]) and len(short[i]["tokens"]) <= least
    # The question stays whole while its context is shortened.
    begin = whole[0]["tokens"][: len(corpus.tokenizer.encode("where?")) + 1]
    assert all(np.array_equal(short[i]["tokens"][: len(begin)], begin) for i in range(len(short)))


def test_words_stand_in_a_text_as_they_would_and_keep_their_labels(tmp_path):
    rows = [{"words": ["Anna", "sees", "Rome", "."], "labels": ["PER", "O", "LOC", "O"]} for _ in range(12)]
    corpus = opened(jsonl(tmp_path / "r.jsonl", rows), "tagged", split="position")
    assert corpus.labels == ["LOC", "O", "PER"]
    sample = samples(corpus)[0]
    assert sample["labels"].tolist() == [2, 1, 0, 1]
    assert corpus.tokenizer.decode(sample["tokens"]) == "Anna sees Rome ."
    words = [corpus.tokenizer.decode(sample["tokens"][sample["words"] == i]).strip() for i in range(4)]
    assert words == rows[0]["words"] and sample["words"][0] == sample["words"][-1] == -1


def test_choices_are_read_behind_their_question(tmp_path):
    rows = [{"question": "who", "choices": ["a b", "c", "d"][: 2 + i % 2], "answer": i % 2} for i in range(12)]
    corpus = opened(jsonl(tmp_path / "r.jsonl", rows), "choices", split="position")
    found = samples(corpus)
    assert [len(found[i]["rows"]) for i in range(4)] == [2, 3, 2, 3] and corpus.labels is None
    assert [int(found[i]["answer"]) for i in range(4)] == [0, 1, 0, 1]
    cls, sep = (corpus.tokenizer.special[n] for n in ("cls", "sep"))
    encode = corpus.tokenizer.encode
    assert found[0]["rows"][1].tolist() == [cls, *encode("who"), sep, *encode("c"), sep]


def test_votes_become_a_label_and_the_share_that_agrees(tmp_path, capsys):
    assert majority(["b", None, "a", "b"]) == ("b", 2 / 3) and majority(["b", "a"]) == ("a", 0.5)
    assert majority([None]) == (NOBODY, 0.0)
    rows = [{"text": f"t {i}", "votes": [0, 1, 1, None], "confidence": 0.5} for i in range(8)]
    rows = [{"text": "sure", "label": 0}, *rows, {"text": "unknown", "votes": [None]}]
    corpus = opened(jsonl(tmp_path / "r.jsonl", rows), split="position")
    found = samples(corpus)
    assert [int(found[i]["label"]) for i in (0, 1)] == [0, 1] and len(found) == 8
    assert [float(found[i]["confidence"]) for i in (0, 1)] == pytest.approx([1.0, 1 / 3])
    assert "1 records that nobody has voted on (r.jsonl:10)" in capsys.readouterr().err


BAD = {
    "labelled": [
        ({"text": "x", "label": 1, "confidence": 1.5}, "line 2: confidence must be a number from 0 to 1, but is 1.5"),
        ({"text": "x", "label": 1, "votes": [1]}, "line 2: has both label and votes"),
    ],
    "tagged": [
        ({"words": ["a"], "labels": [1, 2]}, "line 2: has 1 words, but 2 labels"),
        ({"words": ["a", " "], "labels": [1, 2]}, 'line 2: words[1] must be a word, but is " "'),
        ({"words": ["a"], "labels": [None]}, "line 2: labels[0] must be a text or a whole number, but is null"),
    ],
    "questions": [
        ({"question": "q", "context": "a b", "answer": "b", "start": 0}, 'line 2: the context has "a" at start=0'),
        ({"question": "q", "context": "a a", "answer": "a"}, 'line 2: the answer "a" is 2 times in the context'),
        ({"question": "q", "context": "a", "answer": "z"}, 'line 2: the answer "z" is not in the context'),
    ],
    "choices": [
        ({"question": "q", "choices": ["a", "b"], "answer": 2}, "line 2: answer is 2, but there are 2 choices"),
        ({"question": "q", "choices": ["a"], "answer": 0}, "line 2: choices must be a list of two texts or more"),
    ],
    "similar": [
        ({"text": "a"}, "pairs of similar texts (text, positive; optional negative) need positive; it has text")
    ],
}
GOOD = {
    "labelled": {"text": "x", "label": 1},
    "tagged": {"words": ["a"], "labels": [1]},
    "questions": {"question": "q", "context": "a", "answer": "a"},
    "choices": {"question": "q", "choices": ["a", "b"], "answer": 0},
    "similar": {"text": "a", "positive": "b"},
}


@pytest.mark.parametrize("kind", BAD)
def test_what_does_not_fit_is_said_with_file_and_line(tmp_path, kind):
    for row, said in BAD[kind]:
        file = jsonl(tmp_path / "r.jsonl", [GOOD[kind], row])
        assert said in (text := refusal(file, kind)) and "r.jsonl" in text
