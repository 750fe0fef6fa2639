"""The same numbers everywhere, for every registered objective: however a batch is cut, on one rank and on two, in one go and
from a checkpoint on; and the FLOPs that are claimed are those of the loss."""

from copy import deepcopy
from pathlib import Path

import numpy as np
import objective_runs
import pytest
import ranks
import torch
from gradients import of
from small_runs import numbers, run
from torch.utils.flop_counter import FlopCounterMode

from llmlab import attributes, registry
from llmlab.config.compose import compose, vary
from llmlab.data import collate
from llmlab.model import build
from llmlab.runs import checkpoint
from llmlab.training import cost
from llmlab.training.recipe import Recipe
from llmlab.training.run import train

CASES = objective_runs.cases()
# Cut in fast tests too: a text, several terms, records of unlike lengths, several objectives.
QUICK = ("clm", "mlm objective.pair=nsp", "span_mlm", "classify", "mix")
# Forwards of several models, second ones of a part of a model, and second streams.
SHARDED = ("mtp", "mix", "rtd", "replace_mlm", "distill", "plm", "mpnet", "contrastive")


def strategies(case):
    name = case.split()[0]
    if name == "reinforce":
        return ["ddp"]
    if name in objective_runs.METHODS:  # strategies under which each device can generate by itself
        return ["ddp", "zero2"]
    return ["ddp", "fsdp", *(["zero3"] if name in SHARDED else [])]


def slowly(cases, quick=()):
    return [c if c in quick else pytest.param(c, marks=pytest.mark.slow) for c in cases]


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(registry.VARIABLE, "user_objectives")
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))
        root = tmp_path_factory.mktemp("objectives")
        patch.setenv("LLMLAB_CACHE", str(root / "cache"))
        yield objective_runs.write(root)


@pytest.fixture(scope="module")
def whole(texts):
    """(config, recipe, gradients of the whole batch at once) of a case, made once."""
    known = {}

    def made(case):
        if case not in known:
            composed = compose([*CASES[case], objective_runs.data(case, texts)])
            recipe = Recipe.from_config(composed)
            found = of(composed, texts / "whole" / case, recipe)
            assert max(float(g.abs().max()) for g in found.values()) > 1e-3
            known[case] = composed, recipe, found
        return known[case]

    return made


def same(found, want):
    """To 1e-6 of the largest gradient, or to what is left in float32 where larger ones cancel out."""
    assert found.keys() == want.keys()
    largest = max(float(g.abs().max()) for g in want.values())
    apart = {n: float((found[n] - g).abs().max()) for n, g in want.items()}
    name = max(apart, key=apart.__getitem__)
    assert apart[name] <= 1e-6 * largest + 2e-7, f"{name}: {apart[name]:.2g}, of {largest:.2g}"


# Those that are joint compare the samples of a micro-batch.
@pytest.mark.parametrize("case", slowly([c for c in CASES if not objective_runs.joint(c)], QUICK))
def test_a_batch_that_is_cut_has_the_gradient_of_the_whole(case, whole, tmp_path):
    composed, recipe, want = whole(case)
    composed = deepcopy(composed)
    composed.cfg.train.micro_batch_size = 2
    same(of(composed, tmp_path, recipe), want)


@pytest.fixture(scope="module")
def two(texts, request):
    """Steps of all cases that are asked for on two ranks, one after the other in the same two processes."""
    pytest.importorskip("deepspeed")
    mine = [i for i in request.session.items if i.path == request.path and "two" in i.fixturenames]
    asked = {i.callspec.params["case"] for i in mine}
    runs = []
    for case, words in CASES.items():
        if case not in asked:
            continue
        cut = f"train.micro_batch_size={4 if objective_runs.joint(case) else 2}"
        typed = [*words, objective_runs.data(case, texts), "trainer.devices=2", "strategy=ddp", cut]
        runs.append((case, strategies(case), typed))
    ranks.work(objective_runs.__file__, texts / "two", 2, runs, timeout=550)
    return texts / "two"


@pytest.mark.slow
@pytest.mark.parametrize(("case", "strategy"), [(c, s) for c in CASES for s in strategies(c)])
def test_two_ranks_have_the_gradient_of_one(case, strategy, two, whole):
    file = two / f"{case}-{strategy}.pt"
    assert file.exists(), ranks.said(two, 2)
    same(torch.load(file, weights_only=True), whole(case)[2])


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_run_goes_on_from_its_middle_to_the_same_bits(case, whole, tmp_path):
    """With dropout, where a config can be varied without composing it anew."""
    composed, *_ = whole(case)
    train(vary(composed, {"model.dropout": "0.1"}) or deepcopy(composed), tmp_path / "run")
    ranks.back(tmp_path / "run", tmp_path / "again")
    assert run(tmp_path / "again", f"resume={tmp_path / 'again'}")["resumed"] == 1
    assert numbers(tmp_path / "again") == numbers(tmp_path / "run")
    (ours, mine), (theirs, its) = (
        checkpoint.read(tmp_path / name / "checkpoints/step=00000004") for name in ("again", "run")
    )
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in theirs)
    (mine,), (its,) = mine["optimizer_states"], its["optimizer_states"]
    assert mine["param_groups"] == its["param_groups"] and mine["state"].keys() == its["state"].keys()
    for path, values in its["state"].items():
        assert all(torch.equal(mine["state"][path][name], value) for name, value in values.items())


@pytest.mark.slow
@pytest.mark.parametrize("case", [c for c in CASES if not objective_runs.acts(c)])  # whose rollouts have a test
def test_its_flops_are_those_of_the_loss(case, whole):
    """Of the samples that the cost is made of, each alone, as padding is no cost of theirs."""
    _, recipe, _ = whole(case)
    model = build.build_model(recipe.spec, 1)
    others = {}
    for role, companion in recipe.companions.items():
        others[role] = companion.assemble(model)
        build.materialise(others[role])
        companion.fill(others[role], 1)
    samples, objective = recipe.samples, recipe.objective
    chosen = samples.spread(min(cost.SAMPLES, len(samples)))
    how = attributes.get(objective, "objective", "collate")
    with FlopCounterMode(display=False) as counter:
        for i, at in enumerate(chosen):
            rng = np.random.default_rng(i)
            prepared = collate.prepare(objective, collate.drawn(objective, samples, at, rng), rng)
            batch = collate.batch([prepared], how, samples.pad, most=1)
            objective.loss(model, batch, **others).mean().backward()
    told = recipe.cost.dense * recipe.cost.seq_len * len(chosen)
    assert told == pytest.approx(counter.get_total_flops(), rel=0.01)
