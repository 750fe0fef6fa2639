"""The label model beside EM in plain Python, on votes whose truth is known, and of a file of records."""

import math

import numpy as np
import pytest

from llmlab.data import label_model
from llmlab.data.record_values import majority

from .test_records import jsonl, opened, refusal, samples

RIGHT = (0.9, 0.75, 0.55, 0.8, 0.65)


def drawn(n, n_classes, prior=None, votes_on=0.7, seed=0):
    """(classes, votes) of voters who are right as often as RIGHT says."""
    chance = np.random.default_rng(seed)
    truth = chance.choice(n_classes, n, p=prior)
    wrong = (truth[:, None] + chance.integers(1, n_classes, (n, len(RIGHT)))) % n_classes
    votes = np.where(chance.random((n, len(RIGHT))) < RIGHT, truth[:, None], wrong)
    votes[chance.random(votes.shape) > votes_on] = label_model.ABSTAINS
    # Records without any vote never come to the model.
    kept = (votes != label_model.ABSTAINS).any(1)
    return truth[kept], votes[kept]


def plain_em(votes, n_classes, steps):
    """Dawid & Skene's EM with one accuracy a voter, record by record and class by class."""
    p = [[sum(v == k for v in row) / sum(v >= 0 for v in row) for k in range(n_classes)] for row in votes]
    for _ in range(steps):
        accuracy = []
        for j in range(votes.shape[1]):
            mine = [(row[j], q) for row, q in zip(votes, p, strict=True) if row[j] >= 0]
            accuracy.append((1 + sum(q[v] for v, q in mine)) / (2 + len(mine)))
        prior = [(1 + sum(q[k] for q in p)) / (n_classes + len(p)) for k in range(n_classes)]
        p = []
        for row in votes:
            likely = [
                prior[k]
                * math.prod(
                    a if v == k else (1 - a) / (n_classes - 1) for v, a in zip(row, accuracy, strict=True) if v >= 0
                )
                for k in range(n_classes)
            ]
            p.append([x / sum(likely) for x in likely])
    return accuracy, prior, p


@pytest.mark.parametrize("n_classes", [2, 3])
def test_it_is_em(n_classes):
    _, votes = drawn(50, n_classes)
    model = label_model.fit(votes, n_classes)
    accuracy, prior, p = plain_em(votes, n_classes, 150)
    np.testing.assert_allclose(model.accuracy, accuracy, atol=1e-5)
    np.testing.assert_allclose(model.prior, prior, atol=1e-5)
    np.testing.assert_allclose(model.classes(votes), p, atol=1e-4)


@pytest.mark.parametrize(("n_classes", "prior"), [(2, [0.3, 0.7]), (4, [0.1, 0.2, 0.3, 0.4])])
def test_it_finds_out_how_often_each_voter_is_right(n_classes, prior):
    truth, votes = drawn(20_000, n_classes, prior)
    model = label_model.fit(votes, n_classes)
    np.testing.assert_allclose(model.accuracy, RIGHT, atol=0.02)
    np.testing.assert_allclose(model.prior, prior, atol=0.02)
    p = model.classes(votes)
    by_majority = np.array([int(majority([str(v) if v >= 0 else None for v in row])[0]) for row in votes])
    right = (p.argmax(1) == truth).mean()
    assert right > (by_majority == truth).mean() + 0.02
    assert p.max(1).mean() == pytest.approx(right, abs=0.01)  # it is as sure as it is right


def test_a_voter_who_is_mostly_wrong_is_outvoted(tmp_path):
    # Two voters agree always, a third says the opposite of them nearly always, a fourth is one of the two's kind.
    rows = [{"text": f"text {i}", "votes": [i % 2, i % 2, 1 - i % 2, i % 2 if i % 3 else None]} for i in range(40)]
    rows += [{"text": f"torn {i}", "votes": [0, None, 1, None], "confidence": 0.5} for i in range(4)]
    rows += [{"text": "sure", "label": 1}, {"text": "nobody", "votes": [None] * 4}]
    file = jsonl(tmp_path / "r.jsonl", rows)
    corpus = opened(file, split="position", validation=0.05, votes="label_model")
    found = samples(corpus)
    assert [int(found[i]["label"]) for i in range(40)] == [i % 2 for i in range(40)]
    torn = found[40]
    assert int(torn["label"]) == 0 and 0.45 < float(torn["confidence"]) <= 0.5  # by majority it would be 0.25
    (note,) = corpus.manifest["notes"]
    assert "a label model of 4 voters on 43 training records" in note
    assert note.endswith("0.98 (100%), 0.98 (93%), 0.02 (100%), 0.96 (60%)")
    assert int(opened(file, split="position", validation=0.05).train.count) == corpus.train.count


def test_what_can_be_no_vote_is_said(tmp_path):
    def said(*votes):
        rows = [{"text": f"t {i}", "votes": v} if v else {"text": f"t {i}", "label": i} for i, v in enumerate(votes)]
        return refusal(jsonl(tmp_path / f"{len(votes)}{votes[0]}.jsonl", rows), split="position", votes="label_model")

    assert "no training record has votes" in said(None, None, None)
    assert "there are lists of 2 and of 3 votes" in said([1, 0], [1, 0, 1], [0, 0])
    assert "needs 3 voters or more" in said([1, 0], [0, 0], [1, 1])
