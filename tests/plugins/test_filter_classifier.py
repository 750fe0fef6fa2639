"""The classifier of documents against scikit-learn's on the same features, and GPT-3's random threshold."""

import json
import random

import numpy as np
import pytest
from filter_documents import NOUNS, VERBS
from parts import part


def texts_of(chance, n, words):
    return [" ".join(chance.choices(words, k=chance.randint(5, 30))) for _ in range(n)]


@pytest.fixture
def files(tmp_path):
    chance = random.Random(0)
    good, bad = texts_of(chance, 30, NOUNS[:20] + VERBS), texts_of(chance, 60, NOUNS[15:] + VERBS)
    (tmp_path / "good.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in good))
    (tmp_path / "bad.txt").write_text("\n\n".join(bad))
    return {"positive": str(tmp_path / "good.jsonl"), "negative": str(tmp_path / "bad.txt")}


@pytest.mark.slow  # its import alone takes seconds
def test_scores_are_scikit_learns(files):
    linear = pytest.importorskip("sklearn.linear_model")
    made = part("filter", "classifier", **files, buckets=500, penalty=0.01)()
    good, bad = made.examples
    assert (len(good), len(bad)) == (30, 60)
    x = np.asarray(made._counts(good + bad).todense())
    assert np.linalg.norm(x, axis=1) == pytest.approx(np.ones(90))
    theirs = linear.LogisticRegression(C=1 / (90 * 0.01), class_weight="balanced", tol=1e-10, max_iter=5000)
    theirs.fit(x, [1] * 30 + [0] * 60)
    new = texts_of(random.Random(1), 40, NOUNS + VERBS)
    scores = [score for score, _ in made.measure(new)]
    want = theirs.predict_proba(np.asarray(made._counts(new).todense()))[:, 1]
    assert scores == pytest.approx(want, abs=1e-5)
    assert [made.reason(v) for v in made.measure(new)] == [None if p >= 0.5 else "a score below 0.5" for p in want]
    assert made.measure(good)[0][0] > 0.5 > made.measure(bad)[0][0]


def test_a_pareto_threshold_keeps_some_of_the_bad_as_often_as_its_formula_says(files):
    made = part("filter", "classifier", **files, acceptance="pareto")()
    texts = [f"{i} {NOUNS[i % 50]}" for i in range(3000)]
    for score in (0.0, 0.5, 0.9):
        kept = sum(made.reason((score, made._threshold(text))) is None for text in texts)
        share = (2 - score) ** -9  # P(draw > x) = (1 + x)^-alpha with x = 1 - score
        assert abs(kept - 3000 * share) < 4 * (3000 * share * (1 - share)) ** 0.5 + 0.5
    assert made.measure(texts[:9]) == [made.measure([text])[0] for text in texts[:9]]
    assert made.reason((0.0, 0.5)) == "a score below GPT-3's random threshold"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"negative": None}, "give it examples of both kinds"),
        ({"least": 2.0}, "between 0 and 1, but is 2.0"),
        ({"buckets": 0}, "buckets must be more than 0, but is 0"),
        ({"positive": "nowhere.txt"}, r"positive=nowhere.txt can't be read \(No such file"),
        ({"positive": "{}"}, 'line 1, must be an object with a string under "text"'),
        ({"positive": "{"}, "line 1, is not JSON"),
        ({"positive": " \n"}, "has no texts"),
        ({"positive": b"\xff"}, "is not UTF-8"),
    ],
)
def test_refused(files, options, said, tmp_path):
    for key, value in options.items():
        if key == "positive" and value != "nowhere.txt":
            (tmp_path / "odd.jsonl").write_bytes(value if isinstance(value, bytes) else value.encode())
            options = {key: str(tmp_path / "odd.jsonl")}
    with pytest.raises(ValueError, match=said) as e:
        part("filter", "classifier", **{**files, **options})()
    assert "\n" not in str(e.value)
