"""Counts of pairs: against a loop, in bounded memory, and kept beside the prepared corpus."""

import pickle
from types import SimpleNamespace

import numpy as np
import pytest

from llmlab.data import pairs
from llmlab.data.corpus import Corpus

SIZE, WINDOW, SPECIAL = 7, 3, (0, 6)


def text(n):
    return np.random.default_rng(n).integers(0, SIZE, n).astype(np.uint16)


def one_by_one(tokens):
    table = np.zeros((SIZE, SIZE))
    for i in range(len(tokens)):
        for j in range(i + 1, min(i + WINDOW + 1, len(tokens))):
            if not np.isin(tokens[i : j + 1], SPECIAL).any():
                table[tokens[i], tokens[j]] += 1 / (j - i)
                table[tokens[j], tokens[i]] += 1 / (j - i)
    return table


@pytest.mark.parametrize("n", [0, 1, 2, 5, 16, 17, 400])
@pytest.mark.parametrize("most", [4, 1 << 23])  # pairs in memory; of 4 each piece goes to disk
def test_pairs_are_counted_as_a_loop_counts_them(n, most, tmp_path, monkeypatch):
    monkeypatch.setattr(pairs, "CHUNK", 16)
    want = one_by_one(text(n))
    assert pairs.write(tmp_path, text(n), SIZE, WINDOW, SPECIAL, most) == np.count_nonzero(np.triu(want))
    found = pickle.loads(pickle.dumps(pairs.Pairs(tmp_path, SIZE)))
    np.testing.assert_allclose(found(*np.indices((SIZE, SIZE))), want, rtol=1e-6)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["keys.npy", "times.npy"]


def test_ranges_are_joined_in_bounded_pieces(tmp_path):
    """No piece of the merge holds many more pairs than may be held."""
    keys = np.arange(5000)
    runs = [pairs._spill(tmp_path, i, (keys[i::2], np.ones(2500))) for i in range(2)]
    pieces = list(pairs._joined(runs, (keys[:100], np.ones(100)), 500))
    assert np.array_equal(np.concatenate([k for k, _ in pieces]), keys) and max(len(k) for k, _ in pieces) < 600
    assert sum(often.sum() for _, often in pieces) == 5100


def test_pairs_are_kept_for_each_corpus_and_window(tmp_path, monkeypatch):
    monkeypatch.setenv("LLMLAB_CACHE", str(tmp_path))
    corpus = Corpus(tmp_path / "a", {"vocab_size": SIZE, "special": {"eos": 0}}, SimpleNamespace(tokens=text(50)), None)
    first = corpus.vocabulary.pairs(2)
    monkeypatch.setattr(pairs, "write", None)  # nothing is counted again
    assert corpus.vocabulary.pairs(2).folder == first.folder
    with pytest.raises(TypeError):
        corpus.vocabulary.pairs(3)
