"""Sums and counts of the steps between two lines of metrics, kept by a checkpoint."""

import pytest
import torch

from llmlab.errors import UserError
from llmlab.training.step_metrics import StepMetrics, Summary


def one(x):
    return x


def pair(total, n):
    return torch.tensor(float(total)), torch.tensor(n)


def test_a_summary_is_sums_over_counts():
    found = StepMetrics()
    for micro in ([(6.0, 2, 1.0), (3.0, 1, 4.0)], [(10.0, 4, 0.0), (2.0, 2, 3.0)]):
        targets = {"nll": torch.tensor(sum(n for _, n, _ in micro))}
        for total, n, right in micro:
            found.add({"nll": torch.tensor(total)}, targets, {"accuracy": pair(right, n)})
        found.close(torch.tensor(0.5))
    summary = found.flush(one)
    assert summary.losses == [9 / 3, 12 / 6]
    assert summary.norms == [0.5, 0.5]
    assert summary.loss == 2.5
    assert summary.logs == {"accuracy": 8 / 9}
    assert len(found) == 0


def filled(total):
    found = StepMetrics()
    found.add({"nll": torch.tensor(total)}, {"nll": torch.tensor(4)}, {"nll": pair(total, 2)})
    found.close(torch.tensor(1.0))
    return found


def test_two_terms_have_a_count_each():
    found = StepMetrics()
    counts = {"mlm": torch.tensor(12), "pairs": torch.tensor(4)}
    for mlm, pairs in ((6.0, 1.0), (4.0, 3.0)):
        found.add({"mlm": torch.tensor(mlm), "pairs": torch.tensor(pairs)}, counts, {"mlm": pair(mlm, 3)})
    found.close(torch.tensor(0.25))
    rows = torch.stack([torch.stack(found.rows)] * 2)
    assert found.peek(lambda t: 2 * t) == Summary([20 / 12 + 8 / 4], [0.25], {"mlm": 20 / 12})
    alone = StepMetrics()
    alone.load(found.state(lambda _: rows), 0, 1)
    assert alone.flush(one) == Summary([20 / 12 + 8 / 4], [0.25], {"mlm": 20 / 12})


def test_a_term_that_is_counted_otherwise_than_it_was_divided_is_refused():
    with pytest.raises(UserError, match=r"'nll' of the objective has 2 targets by its `loss` and 4 by its `targets`"):
        filled(2.0).flush(one)  # of one rank of two: the other's are missing


def test_names_that_came_since_a_checkpoint_are_of_its_steps_without_a_count():
    before = filled(2.0)
    again = StepMetrics()
    again.load(before.state(lambda rows: rows[None]), 0, 1)
    shown = {"nll": pair(2.0, 4), "new": pair(3.0, 2)}
    again.widen(shown)
    again.add({"nll": torch.tensor(2.0)}, {"nll": torch.tensor(4)}, shown)
    again.close(torch.tensor(1.0))
    double = [row.clone() for row in again.rows]
    assert len(double[0]) == len(double[1]) and again.names == ("nll", "new")
    again.widen({"nll": pair(2.0, 4), "later": pair(1.0, 1)})  # only right behind the checkpoint
    assert again.names == ("nll", "new")


def test_names_may_come_in_another_order():
    found = StepMetrics()
    counts = {"a": torch.tensor(3), "b": torch.tensor(4)}
    for names in ("ab", "ba"):
        sums = {name: torch.tensor({"a": 3.0, "b": 8.0}[name]) for name in names}
        shown = {name: pair(sums[name], {"a": 1.5, "b": 2}[name]) for name in names}
        found.add(sums, {name: counts[name] for name in names}, shown)
    found.close(torch.tensor(1.0))
    assert found.flush(one) == Summary([6 / 3 + 16 / 4], [1.0], {"a": 2.0, "b": 4.0})


@pytest.mark.parametrize("old", [False, True])
def test_steps_of_two_ranks_are_restored_on_two_and_on_one(old):
    ranks = filled(2.0), filled(6.0)
    rows = torch.stack([torch.stack(r.rows) for r in ranks])
    state = ranks[0].state(lambda _: rows)
    if old:  # as checkpoints had it before a loss had several terms
        del state["terms"]
    again = StepMetrics()
    again.load(state, 1, 2)
    assert torch.equal(torch.stack(again.rows), torch.stack(ranks[1].rows))
    alone = StepMetrics()
    alone.load(state, 0, 1)
    assert alone.flush(one) == Summary([2.0], [1.0], {"nll": 2.0})
