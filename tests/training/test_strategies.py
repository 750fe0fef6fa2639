"""Where a run computes changes its numbers by the order of sums only; what can't be done is said before anything is.

Two processes over gloo stand for two devices. The truth is the run of one process, which the gradients by hand of
test_gradients.py are compared with.
"""

import csv
import json
import math
import subprocess
import sys

import pytest
import ranks
import torch
from safetensors.torch import load_file
from small_runs import numbers

from llmlab.commands.export import export
from llmlab.config import layout
from llmlab.config.compose import compose
from llmlab.errors import UserError
from llmlab.model import build
from llmlab.runs import checkpoint
from llmlab.runs import folder as run_folder
from llmlab.training import guard, placement, strategies, trainers
from llmlab.training.placement import Placement
from llmlab.training.step_metrics import Summary

NARROW = ["model.dim=16", "model.n_heads=4", "model.ffn_dim=24"]
SIZES = [*NARROW, "model.n_layers=2"]
MOE = ["model.moe.n_experts=4", "model.moe.ffn_dim=16"]
# A frozen layer below the one that learns, another above it, a frozen router beside experts that learn, norms and biases.
FROZEN = "train.learns=[stacks.main.layers.1,-router,stacks.main.norm,heads]"
MODELS = {
    "llama3": ["model=llama3", "model.n_kv_heads=2", *SIZES],
    # far more balance and z-loss than is sensible
    "qwen_moe": ["model=qwen_moe", *SIZES, *MOE, "model.moe.balance=0.5", "model.moe.z=0.1"],
    "t5": ["model=t5", *SIZES],
    "frozen": ["model=qwen_moe", *NARROW, "model.n_layers=3", *MOE, FROZEN],
}
# Balance is of a micro-batch, over all ranks that see different data: two of 4 sequences a step.
MICRO = {"alone": 4, "ddp": 2, "fsdp": 2, "fsdp_tp": 4}
RESUMED = [("llama3", "ddp"), ("qwen_moe", "fsdp"), ("llama3", "fsdp_tp"), ("t5", "fsdp_tp"), ("frozen", "fsdp")]
TWO = {name: [f"strategy={name}", "trainer.devices=2"] for name in ("ddp", "fsdp", "fsdp_tp")}
DEEPSEEK = ["model=deepseek_v3", *NARROW, *MOE, "model.n_layers=4"]  # the router's bias is a buffer


@pytest.fixture(scope="module")
def common(corpus):
    return [
        *("data=files", f"data.path={corpus}", "tokenizer=char", "data.seq_len=16", "budget.steps=10"),
        *("train.batch_size=8", "train.validation_batches=1", "train.clip=0.5", "train.keep=9"),
        *("train.log_every=1", "train.validate_every=5", "train.checkpoint_every=5", "trainer.accelerator=cpu"),
    ]


@pytest.fixture(scope="module")
def alone(common, tmp_path_factory):
    """Runs of one process, in one process."""
    root = tmp_path_factory.mktemp("alone")

    def run(name, *overrides):
        return [*common, f"hydra.run.dir={root / name}", *overrides, f"train.sample={str(name == 'bf16').lower()}"]

    dropout = [*MODELS["qwen_moe"], "model.dropout=0.2", "model.attention.dropout=0.2"]
    ranks.train(
        root / "logs",
        *(run(name, *overrides, f"train.micro_batch_size={MICRO['alone']}") for name, overrides in MODELS.items()),
        run("deepseek", *DEEPSEEK),
        run("bf16", *DEEPSEEK, "precision=bf16-true"),
        run("dropout", *dropout),
        run("recomputed", *dropout, "placement.activation_checkpointing=true"),
        run("compiled", *MODELS["llama3"], "placement.compile=true", f"train.micro_batch_size={MICRO['alone']}"),
        run("chain", *MODELS["llama3"], "train.micro_batch_size=4", "trainer.max_steps=2"),
        ranks=1,
    )
    return root


@pytest.fixture(scope="module")
def two(common, alone, tmp_path_factory):
    """Runs of two processes, in two processes: each model under each strategy, some once more from their half."""
    root = tmp_path_factory.mktemp("two")
    common = [*common, "train.sample=false"]
    runs = []
    for name, overrides in MODELS.items():
        for strategy, where in TWO.items():
            folder = root / f"{name}-{strategy}"
            micro = f"train.micro_batch_size={MICRO[strategy]}"
            runs.append([*common, f"hydra.run.dir={folder}", *overrides, *where, micro])
            if (name, strategy) in RESUMED:
                runs += [["back", str(folder), f"{folder}-again"], [f"resume={folder}-again"]]
    runs[-1].append("placement.activation_checkpointing=true")  # the last resumes t5
    runs.append([*common, f"hydra.run.dir={root / 'deepseek'}", *DEEPSEEK, *TWO["fsdp"]])
    for strategy, steps in (("fsdp", 4), ("fsdp_tp", 7), ("ddp", -1)):
        runs.append([f"resume={alone / 'chain'}", *TWO[strategy], f"trainer.max_steps={steps}"])
    ranks.train(root / "logs", *runs, real=True)
    return root


def rows(folder):
    """{step: (loss, norm)} of training, {step: loss} of validation."""
    trained, validated = {}, {}
    for row in csv.DictReader((folder / "metrics.csv").open()):
        if row["val_loss"]:
            validated[int(row["step"])] = float(row["val_loss"])
        else:
            trained[int(row["step"])] = (float(row["loss"]), float(row["grad_norm"]))
    return trained, validated


def follows(folder, truth):
    (ours, validated), (theirs, expected) = rows(folder), rows(truth)
    assert ours.keys() == theirs.keys() == set(range(1, 11))
    for step, (loss, norm) in theirs.items():
        assert ours[step][0] == pytest.approx(loss, abs=2e-6), step
        assert ours[step][1] == pytest.approx(norm, abs=5e-6, rel=5e-6), step
    for step, loss in expected.items():
        assert validated[step] == pytest.approx(loss, abs=2e-6), step
    return True


# Two imports of Lightning at once for 31 runs of up to 10 steps, 21 of them on two ranks, take a minute and a half.
@pytest.mark.slow
@pytest.mark.parametrize("strategy", TWO)
@pytest.mark.parametrize("model", MODELS)
def test_two_ranks_follow_one(two, alone, model, strategy):
    folder = two / f"{model}-{strategy}"
    assert max(norm for _, norm in rows(folder)[0].values()) > 0.5  # clipping has something to do
    follows(folder, alone / model)


@pytest.mark.slow
@pytest.mark.parametrize(("model", "strategy"), RESUMED)
def test_two_ranks_resume_to_the_same_bytes(two, model, strategy):
    folder = two / f"{model}-{strategy}"
    again = two / f"{model}-{strategy}-again"
    assert json.loads((again / "run.json").read_text())["resumed"] == 1
    assert numbers(again) == numbers(folder)
    ours, theirs = (checkpoint.read_weights(f / "checkpoints/step=00000010") for f in (again, folder))
    assert all(torch.equal(ours[n], theirs[n]) for n in theirs)


@pytest.mark.slow
def test_a_run_goes_on_under_any_other_strategy(two, alone):
    follows(alone / "chain", alone / "llama3")
    record = json.loads((alone / "chain/run.json").read_text())
    assert (record["status"], record["strategy"], record["devices"], record["resumed"]) == ("completed", "ddp", 2, 3)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", TWO)
def test_an_export_is_the_model_of_one_process(two, alone, strategy, tmp_path):
    for model in MODELS:
        export(two / f"{model}-{strategy}", tmp_path / model)
        ours = load_file(tmp_path / model / "model.safetensors")
        theirs = checkpoint.read_weights(alone / model / "checkpoints/step=00000010")
        assert ours.keys() == theirs.keys()
        for (
            name,
            tensor,
        ) in theirs.items():  # AdamW moves a weight whose gradient is next to nothing as far as any other
            torch.testing.assert_close(ours[name], tensor, rtol=0, atol=2e-5, msg=name)


@pytest.mark.slow
def test_checkpoints_of_all_strategies_have_the_same_tensors(two, alone):
    truth, state = checkpoint.read(alone / "llama3/checkpoints/step=00000010")
    for strategy in TWO:
        weights, other = checkpoint.read(two / f"llama3-{strategy}/checkpoints/step=00000010")
        assert {n: (t.shape, t.dtype) for n, t in weights.items()} == {n: (t.shape, t.dtype) for n, t in truth.items()}
        for path, moments in state["optimizer_states"][0]["state"].items():
            for name, moment in moments.items():
                found = other["optimizer_states"][0]["state"][path][name]
                torch.testing.assert_close(found, moment, rtol=1e-2, atol=1e-5, msg=f"{path} {name}")


def initial(folder):
    """The weights that a run has begun with."""
    cfg, spec = run_folder.load(folder)
    return build.build_model(spec, cfg.seed).state_dict()


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["alone", *TWO])
def test_what_is_frozen_keeps_its_bits_and_has_no_optimizer_state(two, alone, strategy):
    folder = alone / "frozen" if strategy == "alone" else two / f"frozen-{strategy}"
    weights, state = checkpoint.read(folder / "checkpoints/step=00000010")
    before = initial(folder)
    assert weights.keys() == before.keys()
    moved = {n for n in before if not torch.equal(weights[n], before[n])}
    layer = {n for n in before if n.startswith("stacks.main.layers.1.") and ".router." not in n}
    assert moved == layer | {"stacks.main.norm.weight", "heads.tokens.out.weight"}
    (optimizer,) = state["optimizer_states"]
    assert optimizer["state"].keys() == moved == {n for g in optimizer["param_groups"] for n in g["params"]}


@pytest.mark.slow
def test_a_routers_bias_is_that_of_all_ranks(two, alone):
    follows(two / "deepseek", alone / "deepseek")
    ours, theirs = (checkpoint.read_weights(f / "deepseek/checkpoints/step=00000010") for f in (two, alone))
    biases = [n for n in theirs if n.endswith("router.bias")]
    assert biases
    for name in biases:
        assert torch.equal(ours[name], theirs[name])
        assert theirs[name].abs().max() > 0


@pytest.mark.slow
def test_recomputed_activations_change_no_bit(alone):
    assert numbers(alone / "recomputed") == numbers(alone / "dropout")


@pytest.mark.slow
def test_in_bfloat16_altogether_it_learns(alone):
    ours, theirs = rows(alone / "bf16")[1], rows(alone / "deepseek")[1]
    assert abs(ours[10] - theirs[10]) < 0.05 < ours[5] - ours[10]
    weights = checkpoint.read_weights(alone / "bf16/checkpoints/step=00000010")
    assert {t.dtype for n, t in weights.items() if not n.endswith("router.bias")} == {torch.bfloat16}
    assert {t.dtype for n, t in weights.items() if n.endswith("router.bias")} == {torch.float32}
    assert json.loads((alone / "bf16/run.json").read_text())["sample"]["text"]


@pytest.mark.slow  # a process that starts another, each of which imports Lightning
def test_the_command_starts_the_ranks_and_writes_a_sample_from_the_shards(common, two, alone, tmp_path):
    typed = [
        *common,
        *MODELS["llama3"],
        *TWO["fsdp"],
        "train.micro_batch_size=2",
        "train.sample=true",
        f"hydra.run.dir={tmp_path / 'run'}",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "llmlab", "train", *typed], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert numbers(tmp_path / "run") == numbers(two / "llama3-fsdp")
    assert {p.name for p in (tmp_path / "run").iterdir()} == {p.name for p in (alone / "llama3").iterdir()}
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert record["sample"]["text"] and record["devices"] == 2


@pytest.mark.slow
def test_compiled_layers_follow_eager_ones(alone):
    ours, theirs = rows(alone / "compiled"), rows(alone / "llama3")
    assert json.loads((alone / "compiled/run.json").read_text())["status"] == "completed"
    for step, (loss, _) in theirs[0].items():
        assert ours[0][step][0] == pytest.approx(loss, abs=1e-5)
    assert ours[1][10] == pytest.approx(theirs[1][10], abs=1e-5)


# ---------------------------------------------------------------- what can't be done

CANNOT = {
    "single on two": (["trainer.devices=2"], "strategy=ddp or strategy=fsdp"),
    "devices that don't divide": (["strategy=fsdp_tp", "trainer.devices=3"], "tensor_parallel=2 does not divide"),
    "tensor parallel elsewhere": (["strategy=fsdp", "strategy.tensor_parallel=2"], "needs strategy=fsdp_tp"),
    "heads": (["strategy=fsdp_tp", "trainer.devices=2", "model.n_heads=3", "model.dim=24"], "model.n_heads=3"),
    "kv heads": (
        [
            *("strategy=fsdp_tp", "trainer.devices=4", "strategy.tensor_parallel=4"),
            *("model.n_heads=8", "model.dim=64", "model.n_kv_heads=2"),
        ],
        "model.n_kv_heads=2",
    ),
    "ffn": (["strategy=fsdp_tp", "trainer.devices=2", "model.ffn_dim=33"], "33 inner units"),
    "norms of all heads": (
        ["strategy=fsdp_tp", "trainer.devices=2", "model.attention.qk_norm=full", "model.n_kv_heads=4"],
        "qk_norm=full",
    ),
    "sinks": (["strategy=fsdp_tp", "trainer.devices=2", "model.attention.sink=true", "kernel=eager"], "sink"),
    "float16 on a CPU": (["precision=16-mixed"], "precision=16-mixed needs a GPU"),
}


def checked(overrides):
    """As a run does: what the config alone tells, then what the devices and the model do."""
    composed = compose(overrides)
    strategies.check(composed.cfg, trainers.find_devices(composed.cfg), layout.resolve(composed))


@pytest.mark.parametrize("case", CANNOT)
def test_what_a_strategy_cannot_do_is_refused_in_a_line(case):
    overrides, said = CANNOT[case]
    with pytest.raises(UserError, match=said) as error:
        checked(["model.vocab_size=64", "trainer.accelerator=cpu", *overrides])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("strategy", ["fsdp", "fsdp_tp"])
def test_losses_cannot_be_scaled_where_gradients_are_sharded(strategy):
    with pytest.raises(UserError, match=f"strategy={strategy}"):
        compose([f"strategy={strategy}", "precision=16-mixed"])


def test_compiling_needs_a_compiler(monkeypatch, tmp_path):
    composed = compose(["placement.compile=true"])
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(UserError, match=r"g\+\+"):
        placement.check(composed.cfg, "cpu")


@pytest.mark.parametrize(("devices", "split", "groups"), [(1, 1, 1), (2, 1, 2), (2, 2, 1), (8, 2, 4)])
def test_groups_that_see_different_data(devices, split, groups):
    name = "fsdp_tp" if split > 1 else "fsdp"
    overrides = [f"strategy={name}", f"trainer.devices={devices}", "trainer.accelerator=cpu"]
    made = trainers.find_devices(compose(overrides).cfg)
    assert (made.world, made.data_parallel) == (devices, groups)


# ---------------------------------------------------------------- precision


def test_parameters_become_bfloat16_and_buffers_do_not():
    spec = layout.resolve(compose([*DEEPSEEK, "model.vocab_size=64"]))
    model = build.assemble(spec)
    Placement(dtype=torch.bfloat16).apply(model)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    buffers = list(model.buffers())
    assert buffers and {b.dtype for b in buffers} == {torch.float32}


def test_a_skipped_step_is_no_divergence_but_ten_in_a_row_are():
    inf = float("inf")
    assert guard.check(Summary([5.0] * 3, [1.0, inf, inf], {}), 3, 5.0, scaled=True) == 5.0
    with pytest.raises(guard.Diverged, match="gradient norm"):
        guard.check(Summary([5.0] * 3, [1.0, inf, inf], {}), 3, 5.0)
    with pytest.raises(guard.Diverged, match="gradient norm"):
        guard.check(Summary([5.0] * 10, [inf] * 10, {}), 10, 5.0, scaled=True)


@pytest.mark.slow  # two runs: 2 s
def test_scaled_losses_are_clipped_as_plain_ones(common, monkeypatch, tmp_path):
    """float32 with a scale that overflows at first: the steps are skipped, then gradients are what they are without."""
    from lightning.pytorch.plugins import MixedPrecision

    from llmlab.training.run import train

    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, growth_interval=1000)

    class Scaled(MixedPrecision):
        def autocast_context_manager(self):
            return torch.autocast("cpu", enabled=False)

    monkeypatch.setattr(placement, "precision", lambda cfg: {"plugins": [Scaled("16-mixed", "cpu", scaler)]})
    composed = compose([*common, *MODELS["llama3"], "schedule.warmup_share=0"])
    train(composed, tmp_path)
    trained = rows(tmp_path)[0]
    skipped = [step for step, (_, norm) in trained.items() if not math.isfinite(norm)]
    assert skipped and skipped == list(range(1, len(skipped) + 1))
    assert len(skipped) < 8
    assert all(0.1 < trained[step][1] < 10 for step in trained if step not in skipped)
    assert trained[10][0] < trained[1][0]
