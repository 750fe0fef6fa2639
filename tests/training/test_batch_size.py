"""A batch that nobody typed is no larger than the data; one that was typed stays what it is."""

from dataclasses import replace

import pytest

from llmlab.config.compose import compose
from llmlab.training import batch_size
from llmlab.training.cut import Cut


@pytest.fixture(scope="module")
def sft():
    return compose(["alignment=sft", "data=arithmetic"])


def fitted(composed, n, world=1, micro=None, typed=()):
    cfg = composed.cfg.copy()
    cfg.train.micro_batch_size = micro
    found, notes = batch_size.fitted(replace(composed, cfg=cfg, keys=composed.keys | {*typed}), range(n), world)
    return found.cfg.train.batch_size, found.cfg.train.micro_batch_size, notes


@pytest.mark.parametrize(
    ("n", "world", "micro", "typed", "batch", "cut"),
    [
        (16, 1, None, (), 16, None),
        (15, 1, None, (), 15, None),
        (1, 1, None, (), 1, None),
        (7, 2, None, (), 6, None),
        (7, 1, 2, ("train.micro_batch_size",), 6, 2),
        (7, 2, 2, ("train.micro_batch_size",), 4, 2),
        (7, 1, 8, (), 7, None),  # an experiment's micro-batches are larger than what there is
        (7, 1, 8, ("train.micro_batch_size",), 16, 8),  # none fits: the loader refuses
        (1, 2, None, (), 16, None),
        (7, 1, None, ("train.batch_size",), 16, None),
    ],
)
def test_it_is_the_largest_that_the_samples_fill(n, world, micro, typed, batch, cut, sft):
    size, left, notes = fitted(sft, n, world, micro, typed)
    assert (size, left) == (batch, cut)
    assert bool(notes) is (size != 16)
    assert Cut.make(size, left, world).batch_size == size
    assert sft.cfg.train.batch_size == 16, "another run's config"


def test_the_note_says_what_it_became_and_why(sft):
    (note,) = fitted(sft, 7, 2)[2]
    assert note == (
        "train.batch_size=6 in place of 16 (the default): the training part has 7 samples, shared by 2 devices; "
        "more records would fill it"
    )
    cfg = sft.cfg.copy()
    cfg.experiment_name = "sft"
    (note,) = fitted(replace(sft, cfg=cfg), 1)[2]
    assert "16 (that of experiment=sft): the training part has 1 sample; more" in note


def test_rollouts_go_over_few_prompts_again():
    prompts = compose(["alignment=grpo", "reward=contains", "data=arithmetic"])
    assert fitted(prompts, 3) == (16, None, ())
