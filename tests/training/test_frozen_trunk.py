"""A frozen trunk under a head that learns: its bits, the head's gradient, optimizer state, resumption, other weights."""

import json

import pytest
import torch
from small_runs import numbers, run

from llmlab.config.compose import compose
from llmlab.errors import UserError
from llmlab.model import build
from llmlab.runs import checkpoint
from llmlab.runs import folder as run_folder
from llmlab.training import preflight, recipe, trainers

HEAD = "heads.tokens.out.weight"
ONE_STEP = ["budget.steps=1", "train.clip=null", "schedule.warmup_share=0"]


@pytest.fixture(scope="module")
def two_layers(tiny):
    rest = [o for o in tiny if not o.startswith("model.n_layers=")]
    return [*rest, "model.n_layers=2", "train.checkpoint_every=6", "train.keep=9", "train.log_every=1"]


@pytest.fixture(scope="module")
def frozen(two_layers, tmp_path_factory):
    folder = tmp_path_factory.mktemp("learns") / "frozen"
    run(folder, *two_layers, "train.learns=[heads]")
    return folder


def initial(folder):
    cfg, spec = run_folder.load(folder)
    return build.build_model(spec, cfg.seed).state_dict()


def at(folder, step):
    return checkpoint.read(folder / f"checkpoints/step={step:08d}")


def test_the_trunk_keeps_its_bits_and_the_optimizer_knows_nothing_of_it(frozen):
    weights, state = at(frozen, 12)
    before = initial(frozen)
    assert weights.keys() == before.keys()
    assert [n for n in before if not torch.equal(weights[n], before[n])] == [HEAD]
    (optimizer,) = state["optimizer_states"]
    assert list(optimizer["state"]) == [HEAD] == [n for g in optimizer["param_groups"] for n in g["params"]]
    record = json.loads((frozen / "run.json").read_text())
    assert record["parameters"]["trainable"] == weights[HEAD].numel() < record["parameters"]["total"]


def test_the_first_gradient_of_the_head_is_that_of_the_whole_model(two_layers, tmp_path):
    """So after a step of Adam without clipping its bits are the same."""
    for name, words in (("whole", []), ("head", ["train.learns=[heads]"])):
        run(tmp_path / name, *two_layers, *ONE_STEP, *words)
    (whole, state), (head, own) = at(tmp_path / "whole", 1), at(tmp_path / "head", 1)
    assert torch.equal(whole[HEAD], head[HEAD])
    moments = [s["optimizer_states"][0]["state"][HEAD]["exp_avg"] for s in (state, own)]
    assert torch.equal(*moments) and moments[0].any()
    losses = [json.loads((tmp_path / n / "run.json").read_text())["metrics"]["loss"] for n in ("whole", "head")]
    assert losses[0] == losses[1]


def test_a_run_cut_short_goes_on_to_the_same_bits(frozen, two_layers, tmp_path):
    folder = tmp_path / "run"
    run(folder, *two_layers, "train.learns=[heads]", "trainer.max_steps=6")
    run(folder, f"resume={folder}", "trainer.max_steps=-1")
    assert numbers(folder) == numbers(frozen)
    (ours, mine), (theirs, its) = at(folder, 12), at(frozen, 12)
    assert all(torch.equal(ours[n], theirs[n]) for n in theirs)
    mine, its = (s["optimizer_states"][0]["state"] for s in (mine, its))
    assert mine.keys() == its.keys() and torch.equal(mine[HEAD]["exp_avg_sq"], its[HEAD]["exp_avg_sq"])


def test_it_begins_with_the_weights_of_another_run(frozen, two_layers, tmp_path):
    run(tmp_path, *two_layers, f"init_from={frozen}", "train.learns=[stacks.main.layers.1]", "budget.steps=2")
    (theirs, _), (ours, _) = at(frozen, 12), at(tmp_path, 2)
    moved = {n for n in ours if not torch.equal(ours[n], theirs[n])}
    assert moved == {n for n in ours if n.startswith("stacks.main.layers.1.")}


def test_a_frozen_routers_bias_stays(tiny, tmp_path):
    """It is no parameter, but it decides where tokens go."""
    moe = [
        "model=deepseek_v3",
        "objective=clm",
        "model.moe.n_experts=4",
        "model.n_layers=4",
        "budget.steps=2",
        "train.learns=[-router]",
    ]
    run(tmp_path, *(o for o in tiny if not o.startswith("model.n_layers")), *moe)
    weights, _ = at(tmp_path, 2)
    biases = [n for n in weights if n.endswith("router.bias")]
    assert biases and not any(weights[n].any() for n in biases)


def test_a_line_says_what_learns(two_layers, tmp_path, capsys):
    run(tmp_path, *two_layers, "budget.steps=1", "train.learns=[heads,norm]")
    (line,) = [x for x in capsys.readouterr().out.splitlines() if x.startswith("learns:")]
    assert line.endswith("parameters (stacks.main.layers.0-1.block, stacks.main.norm, heads)")


def test_what_does_not_fit_leaves_no_folder(two_layers, tmp_path):
    with pytest.raises(UserError, match=r"train\.learns: hedas matches no parameter"):
        run(tmp_path / "run", *two_layers, "train.learns=[hedas]")
    assert not (tmp_path / "run").exists()
    for words, said in (("[]", "nothing would learn"), ("heads", "must be a list, in brackets")):
        with pytest.raises(UserError, match=rf"train\.learns=.*{said}"):
            compose([*two_layers, f"train.learns={words}"])


@pytest.mark.parametrize(("precision", "number"), [("32-true", 4), ("bf16-true", 2)])
def test_memory_is_asked_for_what_learns(two_layers, precision, number, monkeypatch):
    """Weights of all; gradients and two moments of what learns."""
    composed = compose([*two_layers, "train.learns=[heads]", f"precision={precision}"])
    made, devices = recipe.Recipe.from_config(composed), trainers.find_devices(composed.cfg)
    counts = made.cost.parameters
    needed = number * (counts.total + 3 * counts.trainable)
    monkeypatch.setattr(preflight, "available", lambda device: needed)
    preflight.check(composed.cfg, made, devices, None)
    monkeypatch.setattr(preflight, "available", lambda device: needed - 1)
    with pytest.raises(UserError, match=f"parameters, {counts.trainable:,} of which learn, .* bytes each that learns:"):
        preflight.check(composed.cfg, made, devices, None)
