"""What a loss, targets and passes may be: what can't be meant is one line, and nothing is dropped without a word."""

import pytest
import torch

from llmlab.errors import UserError
from llmlab.slots import Aux, Loss, Pass
from llmlab.training import losses


class Mine:
    def __init__(self, targets=None, passes=None):
        self.counts, self.forwards = targets, passes

    def targets(self, prepared):
        return self.counts

    def passes(self, prepared):
        return self.forwards


def pair(total=1.0, n=2):
    return torch.tensor(total), torch.tensor(n)


NLL = {"nll": pair()}
WRONG = {
    "must return a Loss, but returns a Tensor": torch.tensor(1.0),
    "returns no terms": Loss({}),
    r"terms\['nll'\] must be a sum and a count": Loss({"nll": (torch.tensor(1.0), 2)}),
    r"logs\['each'\] must be a sum and a count": Loss(NLL, logs={"each": (torch.ones(2), torch.tensor(2))}),
    r"terms\['loss'\] has the name of a column of metrics.csv": Loss({"loss": pair()}),
    r"logs\['step'\] has the name of a column": Loss(NLL, logs={"step": pair()}),
    "logs has 'nll', which is a term": Loss(NLL, logs={"nll": pair()}),
    "weights has 'nl', which is no term; did you mean nll": Loss(NLL, {"nl": 2.0}),
    "aux has 'generater', which is no model of it; did you mean generator": Loss(NLL, aux={"generater": Aux()}),
    r"aux\['model'\] must be what `auxiliary` makes": Loss(NLL, aux={"model": None}),
}


@pytest.mark.parametrize("said", WRONG)
def test_a_loss_that_cannot_be_meant_is_said_in_a_line(said):
    with pytest.raises(UserError, match=r"^Mine\.loss.*" + said) as error:
        losses.check(WRONG[said], Mine(), ["generator"])
    assert "\n" not in str(error.value)


def test_a_loss_as_it_should_be():
    losses.check(
        Loss(NLL, {"nll": 0.0}, {"right": pair()}, {"model": Aux(), "generator": Aux()}), Mine(), ["generator"]
    )
    losses.same_names("Mine", ["nll", "right"], {"right": 1, "nll": 2})


def test_a_name_that_comes_and_goes_is_refused():
    with pytest.raises(UserError, match="Mine.loss lacks 'right' in one micro-batch and not in another"):
        losses.same_names("Mine", ["nll", "right"], ["nll"])
    with pytest.raises(UserError, match="Mine.loss has 'right' in one micro-batch"):
        losses.same_names("Mine", ["nll"], ["nll", "right"])


def test_a_log_that_is_called_as_what_is_shown_of_a_likelihood_is_refused():
    mine = Mine()
    mine.measures = {"nll": "nll"}
    losses.check_shown(Loss(NLL, logs={"right": pair()}), mine, True)
    with pytest.raises(UserError, match="'perplexity' is shown of a likelihood already"):
        losses.check_shown(Loss(NLL, logs={"perplexity": pair()}), mine, True)


SAMPLES = {
    r"targets must return the number of targets of each term.*not \[3\]": Mine([3], [Pass(1)]),
    "targets must return .*not {}": Mine({}, [Pass(1)]),
    r"passes must return a list of Pass.*not \[\]": Mine({"nll": 1}, []),
    r"passes must return a list of Pass.*not \[16\]": Mine({"nll": 1}, [16]),
    "passes has a forward over 0 tokens": Mine({"nll": 1}, [Pass(0)]),
}


@pytest.mark.parametrize("said", SAMPLES)
def test_targets_and_passes_that_cannot_be_meant(said):
    with pytest.raises(UserError, match=r"^Mine\." + said):
        losses.check_prepared(SAMPLES[said], {})
