"""What the module does around a step: randomness by seed, step and rank; the load that routers hear of."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from llmlab.errors import UserError
from llmlab.slots import Aux, Loss
from llmlab.training.feeds import Feed
from llmlab.training.module import Offline


def module(rank=0, step=0, accumulate=2, total=lambda t: t, seed=5):
    made = Offline(None, None, None, None, Feed(), seed=seed, horizon=10)
    made.model = SimpleNamespace()
    made.trainer = SimpleNamespace(
        global_step=step,
        accumulate_grad_batches=accumulate,
        strategy=SimpleNamespace(data_rank=rank, data_world=2, sum=total, norm=lambda: torch.tensor(0.5)),
    )
    return made


def draw(micro=0, **how):
    made = module(**how)
    made.micro = micro
    made.on_train_batch_start(None, 0)
    return torch.rand(()).item()


def test_randomness_is_of_the_seed_the_step_the_micro_batch_and_the_rank():
    cases = [{}, {"rank": 1}, {"step": 1}, {"micro": 1}, {"seed": 6}, {"rank": 1, "step": 1, "micro": 1}]
    drawn = [draw(**case) for case in cases]
    assert len(set(drawn)) == len(cases)
    assert drawn == [draw(**case) for case in cases]


class Router(nn.Linear):
    def __init__(self, learns=True):
        super().__init__(2, 2)
        self.heard = []
        self.requires_grad_(learns)

    def after_step(self, load):
        self.heard.append(load.tolist())


def test_a_router_hears_once_a_step_of_all_micro_batches_ranks_and_runs_of_its_layer():
    twice, once, frozen = Router(), Router(), Router(learns=False)
    other_rank = torch.tensor([[0, 5], [1, 0], [2, 2], [3, 3]])
    made = module(total=lambda t: t + other_rank)
    made.model = SimpleNamespace(routers=lambda: [twice, once, twice, frozen])
    made.objective = SimpleNamespace(loss=lambda model, batch: batch["loss"])
    terms = {"nll": (torch.tensor(1.0, requires_grad=True), torch.tensor(4))}
    for load in ([[1, 0], [3, 0], [0, 1], [9, 9]], [[0, 1], [0, 3], [1, 0], [9, 9]]):
        loss = Loss(terms, aux={"model": Aux(tokens_per_expert=torch.tensor(load))})
        made.training_step({"loss": loss, "counts": {"nll": torch.tensor(16)}}, 0)
    optimizer = SimpleNamespace(step=lambda closure=None: None, zero_grad=lambda: None)
    made.optimizer_step(0, 0, optimizer)
    assert twice.heard == [[4, 9]]
    assert once.heard == [[4, 3]]
    assert frozen.heard == []  # its bias is a buffer, but moving it would change where tokens go
    assert made.micro == 0
    made.optimizer_step(0, 0, optimizer)
    assert len(once.heard) == 1


def test_a_loss_is_scaled_against_what_lightning_and_the_strategy_average():
    """2 ranks x 2 micro-batches, each gradient divided by 4 afterwards: what is left is sum / targets of the step."""
    made = module()
    made.objective = SimpleNamespace(loss=lambda model, batch: batch["loss"])
    loss, counts = Loss({"nll": (torch.tensor(3.0, requires_grad=True), torch.tensor(5))}), {"nll": torch.tensor(20)}
    assert made.training_step({"loss": loss, "counts": counts}, 0).item() / 4 == torch.tensor(3 / 20)
    # of both ranks; its mean over the 4 has the gradient of the mean over 2
    loss = loss._replace(aux={"model": Aux(torch.tensor(0.5))})
    scaled = made.training_step({"loss": loss, "counts": counts}, 0).item() / 4
    assert math.isclose(scaled, 3 / 20 + 0.5 / 4, rel_tol=1e-6)


def test_counts_that_a_feed_does_not_know_are_added_up_over_ranks():
    made = module(accumulate=1, total=lambda t: t + torch.tensor([15, 4]))
    made.objective = SimpleNamespace(loss=lambda model, batch: batch["loss"])
    terms = {
        "policy": (torch.tensor(3.0, requires_grad=True), torch.tensor(5)),
        "value": (torch.tensor(2.0), torch.tensor(4)),
    }
    loss = Loss(terms, weights={"value": 0.5})
    found = made.training_step({"loss": loss}, 0).item() / 2
    assert math.isclose(found, 3 / 20 + 0.5 * 2 / 8, rel_tol=1e-6)
    made.trainer.accumulate_grad_batches = 2
    with pytest.raises(UserError, match="micro-batches without `counts` can't be accumulated"):
        made.training_step({"loss": loss}, 0)


def test_a_loss_without_a_gradient_is_refused():
    made = module()
    made.objective = SimpleNamespace(loss=lambda model, batch: batch["loss"])
    batch = {"loss": Loss({"nll": (torch.tensor(3.0), torch.tensor(5))}), "counts": {"nll": torch.tensor(20)}}
    with pytest.raises(UserError, match="loss has no gradient"):
        made.training_step(batch, 0)


@pytest.mark.parametrize("saved_at_the_end_of_a_batch", [False, True])
def test_micro_batches_done_are_counted_anew_where_a_step_has_more_of_them(saved_at_the_end_of_a_batch):
    """Lightning knows by `completed` being one behind `processed` that a batch was done when it was saved."""
    made = module(accumulate=4)
    made._trainer = SimpleNamespace(accumulate_grad_batches=4, strategy=SimpleNamespace(data_rank=0, data_world=1))
    done = {"ready": 6, "started": 6, "processed": 6, "completed": 6 - saved_at_the_end_of_a_batch}
    progress = {"total": dict(done), "current": dict(done)}
    state = {"terms": ["nll"], "names": ["nll"], "rows": None}
    saved = {
        "llmlab": {"step_metrics": state, "world": 2, "accumulate": 2},
        "loops": {"fit_loop": {"epoch_loop.batch_progress": progress}},
    }
    made.on_load_checkpoint(saved)
    expected = {"ready": 12, "started": 12, "processed": 12, "completed": 12 - saved_at_the_end_of_a_batch}
    assert progress == {"total": expected, "current": expected}
