"""distill: its cost beside torch's counter, and its divergences where they are known."""

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from llmlab import registry
from llmlab.config.compose import compose
from llmlab.data import stand_in
from llmlab.errors import UserError
from llmlab.hub import load_hf, save_hf
from llmlab.model import build
from llmlab.slots import Vocabulary
from llmlab.training import companions, cost

LENGTH, SIZE = 24, 61
TEACHER = "models.teacher=[model.n_layers=3,model.ffn_dim=80]"
MAPPED = {"projection": True, "layers": [0, 1, 2], "teacher_layers": [0, 2, 3]}
TINY = ("model.dim=32", "model.n_layers=2", f"model.vocab_size={SIZE}", "kernel=eager")


def made(model, *words, **options):
    """(objective, the model, its teacher, a batch)."""
    words = [f"model={model}", *TINY, "objective=distill", *(f"objective.{k}={v}" for k, v in options.items()), *words]
    composed = compose([word.replace(" ", "").replace("True", "true") for word in words])
    student = build.build_model(companions.fitted(composed.spec, composed))
    (companion,) = companions.resolve(composed, student, None).values()
    teacher = companion.assemble(student)
    build.materialise(teacher)
    companion.fill(teacher, 2)
    objective = registry.load("objective", "distill", options)(Vocabulary(SIZE, {"pad": 0, "mask": 4}), LENGTH)
    rows = np.random.default_rng(1).integers(5, SIZE, size=(2, LENGTH + 1))
    return objective, student, teacher, stand_in.batch(objective, rows, np.random.default_rng(2))


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("gpt2", {}),
        ("distilbert", {"text": "mlm", "at": "all", "hidden": "mse"}),
        ("gpt2", {"hidden": "cosine", **MAPPED}),
    ],
)
def test_the_cost_of_a_step_is_torchs_with_the_teachers_forward(model, options):
    teacher = "models.teacher=[model.n_layers=3,model.ffn_dim=80,model.dim=48]" if "projection" in options else TEACHER
    objective, student, teacher, batch = made(model, teacher, **options)
    with FlopCounterMode(display=False) as counter:
        objective.loss(student, batch, teacher=teacher).mean().backward()
    told = cost.estimate(
        {"model": student, "teacher": teacher}, objective, stand_in.StandIns(objective, 2, LENGTH, SIZE)
    )
    assert 2 * told.dense * LENGTH == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_divergences_of_two_points():
    from llmlab.divergences import summed_divergence

    p, q = torch.tensor([[0.9, 0.1]]).log(), torch.tensor([[0.5, 0.5]]).log()
    forward, reverse = 0.9 * np.log(1.8) + 0.1 * np.log(0.2), 0.5 * np.log(0.5 / 0.9) + 0.5 * np.log(5)
    half = (0.9 * np.log(0.9 / 0.7) + 0.1 * np.log(0.1 / 0.3) + 0.5 * np.log(0.5 / 0.7) + 0.5 * np.log(0.5 / 0.3)) / 2
    for beta, want in ((0.0, forward), (1.0, reverse), (0.5, half)):
        assert float(summed_divergence(p, q, beta)) == pytest.approx(want, rel=1e-6)
    assert float(summed_divergence(p, q, 1e-4)) / 1e-4 == pytest.approx(forward, rel=1e-2)  # beta to 0: the forward one


def test_hidden_states_of_two_widths_are_refused():
    objective, student, teacher, batch = made("gpt2", "models.teacher=[model.dim=48]", hidden="cosine")
    with pytest.raises(ValueError, match="the model's are 32 wide and the teacher's 48.*objective.projection=true"):
        objective.loss(student, batch, teacher=teacher)


def test_a_projection_is_as_wide_as_the_teacher_learns_and_is_left_out_of_an_export(tmp_path):
    objective, student, teacher, batch = made(
        "gpt2", "models.teacher=[model.n_layers=3,model.dim=48]", hidden="mse", **MAPPED
    )
    projection = student.heads["hidden"].out.weight
    assert projection.shape == (48, 32)
    loss = objective.loss(student, batch, teacher=teacher)
    loss.mean().backward()
    states = zip(student(batch, layers=[0, 1, 2]).layers, teacher(batch, layers=[0, 2, 3]).layers, strict=True)
    right = sum(float(((a @ projection.T - b) ** 2).mean(-1).sum().detach()) for a, b in states)
    assert float(loss.terms["hidden"][0].detach()) == pytest.approx(right, rel=1e-5)
    assert projection.grad.abs().max() > 0
    save_hf(student, tmp_path)
    again = load_hf(tmp_path, verbose=False).model
    assert set(again.heads) == {"tokens"}
    torch.testing.assert_close(again(batch).hidden, student(batch).hidden)  # by another kernel


def test_a_layer_that_a_model_has_not_is_named_before_anything_is_trained():
    objective, student, teacher, _ = made("gpt2", TEACHER, hidden="mse", layers=[1], teacher_layers=[4])
    with pytest.raises(
        UserError, match="the model 'teacher': hidden states of layer 4 are asked for, but the layers are 1 to 3"
    ):
        cost.estimate({"model": student, "teacher": teacher}, objective, stand_in.StandIns(objective, 2, LENGTH, SIZE))


def test_another_width_of_the_projection_is_refused():
    with pytest.raises(UserError, match="heads.hidden.width=7, but models.teacher is 32 wide; leave it out"):
        made("gpt2", TEACHER, "heads.hidden.width=7", hidden="mse", projection=True)
