"""Sums and counts of the steps between two lines of metrics, kept by a checkpoint."""

import pytest
import torch

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
    counts = {"mlm": torch.tensor(5), "pairs": torch.tensor(2)}
    for mlm, pairs in ((6.0, 1.0), (4.0, 3.0)):
        found.add({"mlm": torch.tensor(mlm), "pairs": torch.tensor(pairs)}, counts, {"mlm": pair(mlm, 3)})
    found.close(torch.tensor(0.25))
    rows = torch.stack([torch.stack(found.rows)] * 2)
    assert found.peek(one) == Summary([10 / 5 + 4 / 2], [0.25], {"mlm": 10 / 6})
    alone = StepMetrics()
    alone.load(found.state(lambda _: rows), 0, 1)
    assert alone.flush(one) == Summary([20 / 5 + 8 / 2], [0.25], {"mlm": 20 / 12})


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
