"""Steps of a budget, and the micro-batches of a step."""

import json
import math
import threading

import pytest

from llmlab.errors import UserError
from llmlab.training import run
from llmlab.training.budget import horizon
from llmlab.training.cut import Cut


@pytest.mark.parametrize(
    ("budget", "steps"),
    [
        ({"tokens": 1000}, 8),
        ({"tokens": 1024}, 8),
        ({"tokens": 1025}, 9),
        ({"steps": 5}, 5),
        ({"flops": 2560.0}, 2),
        ({"minutes": 2.0}, 4),
    ],
)
def test_a_budget_is_covered_by_whole_steps(budget, steps):
    found = horizon(budget, 128, 10.0, lambda minutes: minutes * 200)
    assert (found.steps, found.tokens) == (steps, steps * 128)


@pytest.mark.parametrize("budget", [{}, {"tokens": 5, "steps": 5}, {"tokens": 0}, {"flops": math.inf}])
def test_a_budget_that_is_none(budget):
    with pytest.raises(UserError, match=r"budget\."):
        horizon(budget, 128, 10.0, lambda minutes: 0)


def test_a_batch_is_cut_evenly_or_not_at_all():
    assert Cut.make(32, None, 2) == Cut(32, 16, 2, 1)
    assert Cut.make(32, 4, 2) == Cut(32, 4, 2, 4)
    with pytest.raises(UserError, match=r"train.micro_batch_size=5 .* 1, 2, 4, 8"):
        Cut.make(8, 5, 1)
    with pytest.raises(UserError, match=r"trainer.devices=3"):
        Cut.make(8, None, 3)


def test_processes_that_started_with_the_first_wait_for_what_it_measures(tmp_path):
    """As torchrun starts them; the record is not there yet."""
    record = {"schema": 1, "status": "running", "budget": {"steps": 7, "unit": "minutes"}}
    threading.Timer(0.15, (tmp_path / "run.json").write_text, [json.dumps(record)]).start()
    assert run._budget_of_first(tmp_path)["steps"] == 7
    with pytest.raises(UserError, match="the first process has written no run.json in 0.1 s"):
        run._budget_of_first(tmp_path / "other", seconds=0.1)
