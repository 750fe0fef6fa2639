"""ZeRO on two gloo ranks: the numbers of one process, exact resumption, and checkpoints that need no DeepSpeed to read."""

import csv
import importlib.util
import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from llmlab.commands.export import export
from llmlab.config.compose import compose
from llmlab.errors import UserError
from llmlab.model import build
from llmlab.runs import checkpoint
from llmlab.runs import folder as run_folder
from llmlab.training import recipe
from llmlab.training.run import train
from llmlab.training.strategies import zero
from tests.training import ranks
from tests.training.small_runs import numbers

# Odd widths, so that shards of zero3 are padded; two micro-batches a step; clipping at work in every step.
COMMON = [
    "model.dim=15",
    "model.head_dim=4",
    "model.n_heads=3",
    "model.n_layers=2",
    "train.log_every=1",
    "train.validate_every=5",
    "train.checkpoint_every=5",
    "train.keep=9",
    "train.clip=0.5",
    "optimizer.eps=1e-6",
    "budget.steps=10",
    "trainer.accelerator=cpu",
]
TWO = ["trainer.devices=2", "train.micro_batch_size=2"]
MODELS = {
    "llama3": ["model=llama3"],
    "moe": ["model=qwen_moe", "model.moe.n_experts=4", "model.moe.balance=0.1"],
    "t5": ["model=t5"],
    "frozen": ["model=llama3", "train.learns=[stacks.main.layers.0.ffn,stacks.main.norm,heads]"],
}
RUNS = {
    "llama3": ["zero1", "zero2", "zero3", "zero2_offload"],
    "moe": ["zero2", "zero3_offload"],
    "t5": ["zero3"],
    "frozen": ["zero1", "zero2", "zero3", "zero3_offload"],
}
RESUMED = [
    "llama3-zero1",
    "llama3-zero2_offload",
    "moe-zero3_offload",
    "t5-zero3",
    "bf16",
    "frozen-zero2",
    "frozen-bf16",
]
CASES = [(name, strategy) for name, strategies in RUNS.items() for strategy in strategies]


def rows(folder, *columns):
    return [[float(r[c]) for c in columns if r[c]] for r in csv.DictReader((folder / "metrics.csv").open())]


def difference(a, b):
    assert [len(row) for row in a] == [len(row) for row in b]
    return max(abs(x - y) for one, other in zip(a, b, strict=True) for x, y in zip(one, other, strict=True))


@pytest.fixture(scope="module")
def base(tiny):
    own = {o.partition("=")[0] for o in COMMON}
    return [*(o for o in tiny if o.partition("=")[0] not in own), *COMMON]


@pytest.fixture(scope="module")
def runs(base, tmp_path_factory):
    """Every run of the slow tests, two ranks' one after the other in the same two processes."""
    pytest.importorskip("deepspeed")
    root = tmp_path_factory.mktemp("zero")
    for name, model in MODELS.items():
        train(compose([*base, *model, "train.micro_batch_size=4"]), root / f"{name}-single")
    two = []
    for name, s in CASES:
        two.append([*base, *MODELS[name], *TWO, f"strategy={s}", f"hydra.run.dir={root}/{name}-{s}"])
    two.append([*base, *TWO, "strategy=zero1", "precision=bf16-mixed", f"hydra.run.dir={root}/bf16"])
    half = ["strategy=zero3", "precision=bf16-mixed"]
    two.append([*base, *MODELS["frozen"], *TWO, *half, f"hydra.run.dir={root}/frozen-bf16"])
    for run in RESUMED:
        two += [["back", f"{root}/{run}", f"{root}/{run}-cut"], [f"resume={root}/{run}-cut"]]
    for name in ("llama3", "frozen"):
        two.append([f"resume={root}/{name}-single-cut", "trainer.max_steps=-1", "strategy=zero3", *TWO])
        cut = ["train.micro_batch_size=4", "trainer.max_steps=4"]
        train(compose([*base, *MODELS[name], *cut]), root / f"{name}-single-cut")
    compiler = root / "compiler"  # DeepSpeed's Adam for the CPU is compiled, here in half the time
    compiler.write_text('#!/bin/sh\nexec c++ "$@" -O0 -g0\n')
    compiler.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CXX", str(compiler))
        patch.setenv("TORCH_EXTENSIONS_DIR", str(root / "extensions"))
        ranks.train(root / "ranks", *two, timeout=580, real=True)
    return root


@pytest.mark.slow  # 22 runs of two ranks, and the compilation of DeepSpeed's Adam for the CPU
@pytest.mark.parametrize(("name", "strategy"), CASES)
def test_losses_and_gradient_norms_are_those_of_one_process(name, strategy, runs):
    one, two = runs / f"{name}-single", runs / f"{name}-{strategy}"
    assert difference(rows(one, "loss", "val_loss"), rows(two, "loss", "val_loss")) < 2e-6
    norms = rows(one, "grad_norm")
    assert difference(norms, rows(two, "grad_norm")) < 2e-6
    assert min(row[0] for row in norms if row) > 0.5


@pytest.mark.slow
@pytest.mark.parametrize(("name", "strategy"), CASES)
def test_an_export_is_the_model_of_one_process(name, strategy, runs, tmp_path):
    export(runs / f"{name}-{strategy}", tmp_path / "out")
    ours = load_file(tmp_path / "out/model.safetensors")
    theirs = checkpoint.read_weights(runs / f"{name}-single/checkpoints/step=00000010")
    assert ours.keys() == theirs.keys()
    assert max(float((ours[n] - theirs[n]).abs().max()) for n in theirs) < 2e-6


@pytest.mark.slow
@pytest.mark.parametrize("whole", RESUMED)
def test_a_run_cut_short_goes_on_to_the_same_bits(whole, runs):
    cut = f"{whole}-cut"
    assert json.loads((runs / cut / "run.json").read_text())["resumed"] == 1
    assert numbers(runs / cut) == numbers(runs / whole)
    (ours, mine), (theirs, its) = (checkpoint.read(runs / f / "checkpoints/step=00000010") for f in (cut, whole))
    assert all(torch.equal(ours[n], theirs[n]) for n in theirs)
    mine, its = (s["optimizer_states"][0] for s in (mine, its))
    assert all(torch.equal(mine["state"][n]["exp_avg_sq"], s["exp_avg_sq"]) for n, s in its["state"].items())
    assert mine["param_groups"] == its["param_groups"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "run", ["frozen-single", "frozen-zero1", "frozen-zero3_offload", "frozen-bf16", "frozen-single-cut"]
)
def test_what_is_frozen_keeps_its_bits_and_has_no_optimizer_state(run, runs):
    """With bfloat16 too, to which DeepSpeed rounds what it computes with."""
    folder = runs / run
    weights, state = checkpoint.read(folder / "checkpoints/step=00000010")
    cfg, spec = run_folder.load(folder)
    before = build.build_model(spec, cfg.seed).state_dict()
    moved = {n for n in before if not torch.equal(weights[n], before[n])}
    assert moved == {n for n in before if n.startswith(("stacks.main.layers.0.ffn.", "stacks.main.norm.", "heads."))}
    (optimizer,) = state["optimizer_states"]
    assert optimizer["state"].keys() == moved == {n for g in optimizer["param_groups"] for n in g["params"]}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama3", "frozen"])
def test_checkpoints_do_not_know_the_strategy(name, runs, tmp_path):
    """One process goes on under zero3 on two, and a run of zero3 in one process."""
    one = runs / f"{name}-single"
    assert difference(rows(one, "loss", "val_loss"), rows(runs / f"{name}-single-cut", "loss", "val_loss")) < 2e-6
    folder = tmp_path / "run"
    ranks.back(runs / f"{name}-zero3", folder)
    resumed = [
        f"resume={folder}",
        "trainer.max_steps=-1",
        "strategy=single",
        "trainer.devices=1",
        "train.micro_batch_size=4",
    ]
    train(compose(resumed), folder)
    assert difference(rows(one, "loss", "val_loss"), rows(folder, "loss", "val_loss")) < 2e-6


@pytest.mark.slow
def test_half_precision_trains_in_float32(runs):
    weights = checkpoint.read_weights(runs / "bf16/checkpoints/step=00000010")
    assert all(t.dtype == torch.float32 for t in weights.values())
    assert any((t != t.bfloat16().float()).any() for t in weights.values())
    assert difference(rows(runs / "llama3-single", "loss"), rows(runs / "bf16", "loss")) < 0.02


@pytest.mark.slow
def test_deepspeed_says_nothing(runs):
    said = (runs / "ranks/rank0.log").read_text() + (runs / "ranks/rank1.log").read_text()
    assert not [line for line in said.splitlines() if "Warning" in line or "DeepSpeed" in line or "INFO" in line]


# ---------------------------------------------------------------- what is refused


def refused(base, *overrides):
    cfg = compose([*base, *overrides]).cfg
    zero.check(cfg, SimpleNamespace(accelerator="cpu"), None)


@pytest.fixture
def installed(monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: name == "deepspeed" or real(name, *a))


def test_without_deepspeed_the_extra_is_named(base, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: None)
    cfg = SimpleNamespace(strategy=SimpleNamespace(name="zero2"))
    with pytest.raises(UserError, match=r"strategy=zero2 needs DeepSpeed: pip install 'llmlab\[deepspeed\]'"):
        zero.check(cfg, None, None)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["strategy=zero2", "precision=16-mixed"], "choose precision=bf16-mixed"),
        (["strategy=zero3", "placement.compile=true"], "placement.compile=true: strategy=zero3"),
    ],
)
def test_what_can_not_be_is_said_in_a_line(base, overrides, said, installed):
    with pytest.raises(UserError, match=said):
        refused(base, *overrides)


@pytest.mark.parametrize(
    ("strategy", "made", "said"),
    [
        ("zero1", torch.optim.LBFGS, "optimizer=adamw needs whole tensors"),
        ("zero3_offload", torch.optim.SGD, "has only Adam on the CPU"),
    ],
)
def test_optimizers_that_flat_pieces_do_not_serve(base, strategy, made, said, installed, monkeypatch):
    part = SimpleNamespace(build=lambda params: made([p for _, p, _ in params], lr=0.1))
    monkeypatch.setattr(recipe, "part_factory", lambda cfg, slot: lambda: part)
    with pytest.raises(UserError, match=said):
        refused(base, f"strategy={strategy}")
