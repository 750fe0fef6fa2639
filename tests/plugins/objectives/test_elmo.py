"""ELMo's bidirectional language model: its loss by torch's LSTMs, its cost, and the models that it refuses."""

import numpy as np
import pytest
import torch
from families import composed, spec, tiny
from parts import part
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from llmlab.config import layout
from llmlab.config.spec import PartSpec
from llmlab.data import stand_in
from llmlab.errors import UserError
from llmlab.model.build import build_model
from llmlab.slots import Vocabulary
from llmlab.training import cost

WORDS = tiny("lstm", "objective=elmo", "attention=lstm_apart", "attention.state=40", "block.from_start=false")


@pytest.fixture(scope="module")
def model():
    return build_model(layout.resolve(composed(*WORDS)))


@pytest.fixture(scope="module")
def made():
    return part("objective", "elmo")(Vocabulary(61, {}), 16)


def batch_of(made, documents=None):
    tokens = np.random.default_rng(0).integers(61, size=(2, 17))
    return stand_in.batch(made, tokens, np.random.default_rng(0), documents)


@torch.no_grad()
def from_one_end(model, x_BTE, end):
    """Hidden states (B, T, D / 2) of a stack of torch's LSTMs, of a text that begins at this end."""
    for n, layer in enumerate(model.stacks["main"].layers):
        cell = layer.attention.cells[end]
        lstm = nn.LSTM(16, 40, proj_size=16, batch_first=True)
        lstm.weight_ih_l0.copy_(cell.x.weight)
        lstm.weight_hh_l0.copy_(cell.h.weight)
        lstm.weight_hr_l0.copy_(cell.out.weight)
        lstm.bias_ih_l0.copy_(cell.x.bias)
        lstm.bias_hh_l0.copy_(F.pad(torch.ones(40), (40, 80)))
        y_BTE = lstm(x_BTE)[0]
        x_BTE = y_BTE + x_BTE if n else y_BTE
    return x_BTE


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_the_loss_is_that_of_two_stacks_of_torchs_lstms_that_share_a_softmax(model, made):
    batch = batch_of(made)
    loss = made.loss(model, batch)
    x = model.stacks["main"].embedding.weight[batch["ids"]]
    head = model.heads["neighbours"].out
    forward = head(from_one_end(model, x[..., :16], "from_left"))
    backward = head(from_one_end(model, x[..., 16:].flip(1), "from_right").flip(1))
    want = F.cross_entropy(forward.flatten(0, 1), batch["labels"].flatten())
    behind = F.cross_entropy(backward[:, 1:].flatten(0, 1), batch["ids"][:, :-1].flatten())
    assert loss.mean().item() == pytest.approx((want + behind).item() / 2, rel=1e-5)
    assert [int(n) for _, n in loss.terms.values()] == [32, 30]


def test_documents_of_a_window_are_as_each_alone(model, made):
    documents = np.array([0] * 7 + [1] * 10)
    batch = batch_of(made, documents)
    whole = model(batch).heads["neighbours"]
    for a, b in ((0, 7), (7, 16)):
        torch.testing.assert_close(whole[:, a:b], model({"ids": batch["ids"][:, a:b]}).heads["neighbours"])


def test_the_cost_of_a_step_is_torchs(model, made):
    samples = stand_in.StandIns(made, 1, 16, 16)
    batch = stand_in.collated(made, [made.prepare(samples[0], np.random.default_rng(0))], 16)
    with FlopCounterMode(display=False) as counter:
        made.loss(model, batch).mean().backward()
    assert cost.estimate({"model": model}, made, samples).dense * 16 == pytest.approx(
        counter.get_total_flops(), rel=0.01
    )


def test_a_model_whose_directions_meet_is_refused_with_what_fits():
    fits = spec(*WORDS)
    objective = PartSpec("objective", "elmo")
    layout.check_objective(fits, objective)
    for slot, name, choose in (
        ("attention", "lstm", "attention=lstm_apart"),
        ("attention", "mha", "attention=lstm_apart"),
        ("block", "pre", "block=residual"),
        ("ffn", "gelu", "ffn=none"),
    ):
        other = PartSpec.with_defaults(slot, name)
        with pytest.raises(UserError, match=f"which {slot}={name} joins, so that .*; choose {choose}"):
            layout.check_objective(fits.in_layers(lambda parts, other=other: {**parts, other.slot: other}), objective)
