"""Texts that a model writes for held-out records, and what they are compared with."""

from types import SimpleNamespace

import numpy as np
import pytest

from llmlab import registry
from llmlab.decoding.answers import Answer
from llmlab.slots import Vocabulary
from llmlab.training import written

VOCABULARY = Vocabulary(50, {"eos": 1, "pad": 0, "sep": 3})
PAIRS = [([5, 6], [7, 8, 1]), ([9], [10, 1]), ([5, 6], [8, 1])]


class Tokenizer:
    def decode(self, ids):
        return " ".join(f"w{i}" for i in ids if i > 4)


@pytest.mark.parametrize(("name", "start", "end"), [("seq2seq", 0, 1), ("seq2seq_decoder", None, 3)])
def test_texts_are_compared_with_their_own_targets_in_whatever_order_they_are_written(name, start, end, monkeypatch):
    made = registry.load("objective", name, {})(VOCABULARY, 24)
    samples = [{"source": np.array(source), "target": np.array(target)} for source, target in PAIRS]
    wanted = written.asked(made, samples, 9)
    assert [w.prompt for w in wanted] == [[*source, end] for source, _ in PAIRS]
    assert [(w.target, w.start) for w in wanted] == [(target, start) for _, target in PAIRS]
    asked = []

    def answers(model, prompts, *, start, max_new, **how):
        asked.append((len(prompts), max_new, start))
        return [Answer([10, 1] if len(p) == 2 else [7, 8, 1], []) for p in prompts]

    monkeypatch.setattr(written, "answers", answers)
    for alike, batches in ((True, [3]), (False, [1, 2])):
        monkeypatch.setattr(written, "fits_padding", lambda model, length, alike=alike: alike)
        asked.clear()
        found = written.scores(None, made, samples, Tokenizer(), VOCABULARY, 9)
        assert found["exact_match"] == pytest.approx(2 / 3)
        assert asked == [(n, 2 * 3 + written.LONGER, start) for n in batches]
    assert written.scores(None, SimpleNamespace(), samples, Tokenizer(), VOCABULARY, 9) == {}


def test_bleu_is_of_all_texts():
    sacrebleu = pytest.importorskip("sacrebleu")
    texts = ["the cat sat on the mat", "a dog is here today again"]
    targets = ["the cat sat on the mat", "a dog was here today too"]
    want = sacrebleu.corpus_bleu(texts, [targets]).score
    # 100 where the second text is not looked at, as by a list of references for each text.
    assert written.bleu(texts, targets) == pytest.approx(want) and want < 70
