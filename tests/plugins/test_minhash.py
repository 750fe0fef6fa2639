"""The filter of near-duplicates: probabilities as in its formula, numbers that tell documents apart, a bounded memory."""

import itertools
import json
import random
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from filter_documents import NOUNS, VERBS, groups
from parts import part


def dropped(texts, **options):
    made = part("filter", "minhash", **options)()
    batches = [texts[i : i + 7] for i in range(0, len(texts), 7)]
    return [made.reason(value) is not None for batch in batches for value in made.measure(batch)]


def test_numbers_symbols_and_short_texts_tell_documents_apart():
    ours = {name: dropped(texts).count(False) for name, texts in groups().items()}
    assert ours == {"weather": 20, "sums": 40, "short, twice": 1, "near": 12, "half": 24}
    theirs = json.loads(Path(__file__).with_name("datatrove.json").read_text())["left by minhash"]
    assert theirs == {"weather": 1, "sums": 1, "short, twice": 2, "near": 12, "half": 24}, "docs/your_data.md"
    assert not any(dropped(["1 + 1", "1 - 1", "1 * 1", "1 / 1", "1 = 1", "?", "!", "..."]))
    assert dropped(["", " ", "a", "(a)", "A."]) == [False, True, False, True, True]


def test_near_duplicates_go_and_no_two_that_stay_share_a_band():
    texts = [*groups()["near"], *groups()["half"]]
    random.Random(0).shuffle(texts)
    out = dropped(texts)
    assert out.count(False) == 24
    made = part("filter", "minhash")()
    keys = [set(np.frombuffer(v, np.uint64).tolist()) for v, o in zip(made.measure(texts), out, strict=True) if not o]
    assert all(one.isdisjoint(other) for one, other in itertools.combinations(keys, 2))


@pytest.mark.parametrize(("bands", "rows"), [(14, 8), (1, 1), (20, 2)])
def test_pairs_are_found_as_often_as_the_formula_says(bands, rows):
    made, n = part("filter", "minhash", words=1, bands=bands, rows=rows)(), 300
    for both, each in ((12, 4), (20, 1), (4, 8)):  # words in both texts and in each of the two alone
        texts = [
            [f"{i}b{j}" for j in range(both)] + [f"{i}{s}{j}" for j in range(each)] for i in range(n) for s in "xy"
        ]
        keys = [np.frombuffer(value, np.uint64) for value in made.measure([" ".join(words) for words in texts])]
        found = sum(bool((one == other).any()) for one, other in zip(keys[::2], keys[1::2], strict=True))
        share = 1 - (1 - (both / (both + 2 * each)) ** rows) ** bands
        assert abs(found - n * share) < 4 * (n * share * (1 - share)) ** 0.5 + 0.5, (both, each)


def test_memory_is_bounded_and_the_verdict_the_same_from_a_file(monkeypatch):
    chance = random.Random(1)
    texts = [" ".join(chance.choices(NOUNS + VERBS, k=12)) for _ in range(600)]
    texts += [*texts[::7], "new words alone"]
    options = {"words": 2, "rows": 2}
    want = dropped(texts, **options)
    assert 80 < sum(want) < 400
    module = sys.modules[type(part("filter", "minhash")()).__module__]
    monkeypatch.setattr(module, "RECENT", 40)
    monkeypatch.setattr(module, "IN_MEMORY", 500)
    assert dropped(texts, **options) == want
    kept = module.Keys()
    tracemalloc.start()
    for i in range(0, 20_000, 10):
        kept.add(np.arange(i, i + 10, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert len(kept.stored) > 20 and held < 100_000  # of 160,000 bytes
    assert kept.has_any(np.array([5 * 0x9E3779B97F4A7C15 % 2**64], dtype=np.uint64))
    assert not kept.has_any(np.array([5, 6], dtype=np.uint64))
