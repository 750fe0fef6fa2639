"""A batch as people read it."""

import sys

import numpy as np
import pytest
import torch

from llmlab.commands.data_show import coloured
from llmlab.data import collate, shown
from llmlab.data.collate import IGNORED
from llmlab.data.tokenizer import char_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return char_tokenizer(["abcdef\x1b\n"], ["eos", "mask"])


def lines(batch, tokenizer, **how):
    return [
        [shown.written(d, colour=False) for row in s for d in row.documents]
        for s in shown.rows(batch, tokenizer, **how)
    ]


def ids(tokenizer, text):
    return np.array(tokenizer.encode(text))


def test_next_tokens_stand_where_they_are_learnt(tokenizer):
    eos = tokenizer.special["eos"]
    one, other = np.append(ids(tokenizer, "ab"), eos), np.append(ids(tokenizer, "acdef"), eos)
    told = [{"ids": t[:-1], "labels": np.where(np.arange(len(t)) > 1, t, IGNORED)[1:]} for t in (one, other)]
    packed = collate.joined(told)
    batch = collate.batch([packed, collate.joined(told[:1])], "pad")
    assert lines(batch, tokenizer) == [["ab⟦⟨<|eos|>⟩⟧", "ac⟦def⟨<|eos|>⟩⟧"], ["ab⟦⟨<|eos|>⟩⟧"]]
    first, second = (rows[0] for rows in shown.rows(batch, tokenizer))
    assert (first.tokens, first.learnt, first.padding) == (7, 5, 1)
    assert (second.tokens, second.learnt, second.padding) == (2, 1, 6)


def test_labels_of_masked_tokens_stand_behind_them(tokenizer):
    text, mask = ids(tokenizer, "abca"), tokenizer.special["mask"]
    read = np.where([0, 1, 0, 0], mask, text)
    batch = {"ids": torch.tensor(read)[None], "labels": torch.tensor(np.where([0, 1, 0, 1], text, IGNORED))[None]}
    assert lines(batch, tokenizer, restores=True) == [["a⟦⟨<|mask|>→b⟩⟧c⟦a⟧"]]
    classes = {
        "ids": torch.tensor(text)[None],
        "labels": torch.tensor([[IGNORED, 0, 3, IGNORED]]),
        "good": torch.tensor([1]),
    }
    assert lines(classes, tokenizer) == [["a⟦b→0c→3⟧a"]]
    assert shown.numbers(classes, 0) == {"good": 1}


def test_text_can_neither_forge_a_token_nor_command_a_terminal(tokenizer):
    batch = {"ids": torch.tensor(ids(tokenizer, "a\x1bb\nc"))[None]}
    ((text,),) = lines(batch, tokenizer)
    assert text == "a\\x1bb↵\nc"


def test_a_source_and_its_target_and_answers_of_which_one_is_missing(tokenizer):
    target = np.append(ids(tokenizer, "cd"), tokenizer.special["eos"])
    sample = {
        "source_ids": ids(tokenizer, "ab"),
        "ids": np.append(tokenizer.special["mask"], target[:-1]),
        "labels": target,
    }
    ((source, aim),) = shown.rows(collate.batch([sample], "pad"), tokenizer)
    assert (source.name, source.learnt, aim.name) == ("source", 0, "target")
    assert shown.written(aim.documents[0], colour=False) == "⟨<|mask|>⟩⟦cd⟨<|eos|>⟩⟧"
    rows = [[ids(tokenizer, t) for t in texts] for texts in (("ab", "c"), ("def",))]
    found = shown.rows(collate.batch([{"row_ids": r} for r in rows], "pad"), tokenizer, several="answer")
    assert [[r.name for r in s] for s in found] == [["answer 1", "answer 2"], ["answer 1"]]


def test_colours_are_for_terminals(tokenizer, monkeypatch):
    pieces = [shown.Piece("a", True, False), shown.Piece("<|eos|>", True, True), shown.Piece("<|eos|>", False, True)]
    assert shown.written(pieces, colour=True) == "".join(
        f"\x1b[{code}m{text}\x1b[0m" for code, text in (("1;32", "a"), ("1;30;42", "<|eos|>"), ("35", "<|eos|>"))
    )
    for terminal, variables, wanted in ((True, {}, True), (False, {}, False), (True, {"NO_COLOR": "1"}, False)):
        for name in ("NO_COLOR", "TERM"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys.stdout, "isatty", lambda terminal=terminal: terminal)
        assert coloured() is wanted
