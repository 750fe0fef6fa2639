"""A label model: classes of records from several voters' labels, by how often each voter turns out to be right.

Voters (Snorkel's labelling functions) vote independently of each other given the class, abstain independently of it, and
where they are wrong each other class is as likely (data programming: Ratner et al. 2016, arXiv:1605.07723, section 2; of many
classes). No class is known: the voters' shares of right votes and the classes' frequencies are those under which the votes
are most likely, found by EM (Dempster et al. 1977; Dawid & Skene 1979), which begins with the majority's labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llmlab.data.record_files import Record
from llmlab.errors import UserError

ABSTAINS = -1
STEPS, NEAR = 1000, 1e-8  # of EM at most, and the change of any number at which it ends
LARGEST = 1 << 27  # numbers that are held at once, one for each pattern of votes and class
LEAST = 3  # voters: of two that differ nothing tells which is right
SHOWN = 12


@dataclass(frozen=True)
class LabelModel:
    """accuracy (m,): the share of right ones among a voter's votes; prior (K,): the classes' frequencies."""

    accuracy: np.ndarray
    prior: np.ndarray

    def classes(self, votes: np.ndarray) -> np.ndarray:
        """(n, K): how likely each class is of votes (n, m), numbers of classes or ABSTAINS."""
        log_p = np.tile(np.log(self.prior), (len(votes), 1))
        others = max(len(self.prior) - 1, 1)
        for voted, right in zip(votes.T, self.accuracy, strict=True):
            there = np.flatnonzero(voted != ABSTAINS)
            # All classes as one of the wrong ones, then the one that is voted for.
            log_p[there] += np.log((1 - right) / others)
            log_p[there, voted[there]] += np.log(right * others / (1 - right))
        p = np.exp(log_p - log_p.max(1, keepdims=True))
        found: np.ndarray = p / p.sum(1, keepdims=True)
        return found


def fit(votes: np.ndarray, n_classes: int) -> LabelModel:
    """EM on votes (n, m). One right and one wrong vote are added to each voter's and one record to each class, so that no
    share is 0 or 1 and a voter who hardly votes counts for little."""
    # Many records have the same votes: of 5 voters on two classes there are 3^5 patterns.
    patterns, times = np.unique(votes, axis=0, return_counts=True)
    if len(patterns) * n_classes > LARGEST:
        raise UserError(
            f"data.votes=label_model: {len(patterns):,} patterns of votes and {n_classes:,} classes are too many; "
            "use data.votes=majority"
        )
    cast = patterns != ABSTAINS
    rows, voters = np.nonzero(cast)
    counts = np.zeros((len(patterns), n_classes))
    np.add.at(counts, (rows, patterns[rows, voters]), 1.0)
    p = counts / counts.sum(1, keepdims=True)
    of_voter = times @ cast
    model = before = None
    for _ in range(STEPS):
        right = np.zeros(votes.shape[1])
        np.add.at(right, voters, times[rows] * p[rows, patterns[rows, voters]])
        model = LabelModel((right + 1) / (of_voter + 2), (times @ p + 1) / (len(votes) + n_classes))
        now = np.concatenate([model.accuracy, model.prior])
        if before is not None and np.abs(now - before).max() < NEAR:
            break
        before, p = now, model.classes(patterns)
    assert model is not None
    return model


def relabel(parts: dict[str, list[Record]]) -> list[str]:
    """Give records with votes the likelier class as their label, and its probability as the weight of their confidence; lines
    on the voters. The voters are judged by their votes on the training part alone.

    UserError where there are no votes, too few voters, or lists of votes of several lengths.
    """
    voted = {part: [r for r in records if "votes" in r] for part, records in parts.items()}
    lengths = {len(r["votes"]) for records in voted.values() for r in records}
    if not voted["train"]:
        raise UserError("data.votes=label_model: no training record has votes, a list of labels; leave it out")
    if len(lengths) > 1:
        raise UserError(
            f"data.votes=label_model: there are lists of {min(lengths)} and of {max(lengths)} votes; a voter must have the "
            "same place in each, null where it abstains"
        )
    if (m := lengths.pop()) < LEAST:
        raise UserError(
            f"data.votes=label_model needs {LEAST} voters or more, as two that differ are as likely to be right, but there "
            f"{'is' if m == 1 else 'are'} {m}; use data.votes=majority"
        )
    names = sorted({v for records in voted.values() for r in records for v in r["votes"] if v is not None})
    number = {name: i for i, name in enumerate(names)}
    votes = {part: _numbers(records, number, m) for part, records in voted.items()}
    model = fit(votes["train"], len(names))
    for part, records in voted.items():
        p = model.classes(votes[part])
        for record, best, share in zip(records, p.argmax(1), p.max(1), strict=True):
            record["label"] = names[best]
            record["confidence"] = record.get("confidence", 1.0) * float(share)
    share = (votes["train"] != ABSTAINS).mean(0)
    each = [f"{right:.2f} ({n:.0%})" for right, n in zip(model.accuracy, share, strict=True)]
    shown = ", ".join(each[:SHOWN]) + (" ..." if m > SHOWN else "")
    return [
        f"votes: a label model of {m} voters on {len(votes['train']):,} training records; the share of each one's votes that "
        f"is right, and of the records that it votes on: {shown}"
    ]


def _numbers(records: Sequence[Record], number: dict[str, int], m: int) -> np.ndarray:
    rows = [[ABSTAINS if v is None else number[v] for v in r["votes"]] for r in records]
    return np.array(rows, dtype=np.int64).reshape(-1, m)
