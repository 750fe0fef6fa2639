"""`llmlab plan`: what it says against what a run records and arithmetic, and what it refuses in a line."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from llmlab.commands.cli import run
from llmlab.config.devices import ZERO
from llmlab.plan import accelerators
from llmlab.plan.terminal import size
from llmlab.training import preflight
from tests import warm

TINY = ["model.dim=32", "model.n_layers=2", "model.n_heads=4", "data.seq_len=32", "train.batch_size=8"]


class Matrices(torch.optim.Optimizer):
    """Keeps a number for each of the weights that it is given."""

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})

    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p] = {"momentum": torch.zeros_like(p)}


@dataclass(frozen=True)
class Part:
    made: Any

    def build(self, parameters):
        return self.made([p for _, p, _ in parameters], lr=0.1)


def optimizer(monkeypatch, made):
    """Chosen whatever the config says."""
    from llmlab.training import recipe

    real = recipe.part_factory
    monkeypatch.setattr(
        recipe, "part_factory", lambda cfg, slot: (lambda: Part(made)) if slot == "optimizer" else real(cfg, slot)
    )


@pytest.fixture
def planned(capsys):
    def plan(*words):
        assert run(["plan", *words, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return plan


@pytest.mark.slow
def test_a_small_gpt2(planned):
    found = planned("model=gpt2", *TINY, "model.vocab_size=64", "strategy=ddp", "trainer.devices=2", "budget.steps=10")
    layer = 4 * (32 * 32 + 32) + 2 * 32 * 128 + 128 + 32 + 4 * 32
    assert found["parameters"]["total"] == found["parameters"]["active"] == 64 * 32 + 32 * 32 + 2 * layer + 64
    assert found["parameters"]["trainable"] == found["parameters"]["total"]
    pairs = 32 * 33 // 2
    forward = 2 * (2 * (4 * 32 * 32 + 2 * 32 * 128) + 32 * 64) + 2 * 2 * pairs * 2 * 32 / 32
    assert found["flops"]["forward"] == forward and found["flops_per_token"] == 3 * forward
    assert found["flops"]["forward_dense"] - forward == 2 * 2 * (32 * 32 - pairs) * 2 * 32 / 32
    assert found["kv_bytes_per_token"] == 2 * 2 * 32 * 4
    own = found["memory"]
    assert (own["name"], own["devices"], own["micro_batch"]) == ("ddp", 2, 4)
    assert own["weights"] == own["gradients"] == 4 * found["parameters"]["total"]
    assert own["states"] == 8 * found["parameters"]["total"] + 4 * (2 + 2 * 16 + 2)  # and a step of each tensor
    # Of a token in a layer: the residual twice, what both norms give, q, k, v, what heads give and the same side by side,
    # 4 and 4 widths of the feed-forward; mean and scale of each norm, and a sum of each head. Ids and places are int64.
    tokens, a_layer, of_logits = 4 * 32, (2 + 2 + 3 + 2 + 4 + 4) * 32 + 2 * 2 + 4, 2 * 32 + 2 + 64
    ends = 4 * tokens * of_logits + 8 * (2 * tokens + 32)
    assert 0 <= own["kept"] - (4 * tokens * 2 * a_layer + ends) <= 64  # a few sums and counts
    assert 0 <= own["checkpointed"]["kept"] - (4 * tokens * 2 * 32 + ends) <= 64
    parts = sum(own[k] for k in ("weights", "gradients", "states", "strategy", "activations"))
    assert own["weights"] + own["states"] < own["total"] <= parts
    assert own["checkpointed"]["total"] < own["total"] and own["largest_micro_batch"] > 4
    others = [held["name"] for held in own["strategies"]]
    assert others[:2] == ["ddp", "single"] and {"fsdp", "zero1", "zero2", "zero3", "zero3_offload"} <= set(others)
    assert found["budget"]["tokens"] == 10 * 8 * 32
    words = ("model=gpt2", *TINY, "model.vocab_size=64", "strategy=ddp", "trainer.devices=2")
    recomputed = planned(*words, "placement.activation_checkpointing=true")["memory"]
    assert recomputed["activation_checkpointing"] and recomputed["total"] == own["checkpointed"]["total"]


@pytest.mark.slow
def test_only_strategies_that_the_precision_allows_are_compared(planned):
    found = planned("model=gpt2", *TINY, "precision=16-mixed", "device=v100")
    assert [held["name"] for held in found["memory"]["strategies"]] == ["single", "ddp"]


@pytest.mark.slow
def test_processes_share_a_machine(planned, monkeypatch, capsys):

    words = ["model=gpt2", *TINY, "trainer.accelerator=cpu"]
    monkeypatch.setattr(preflight, "available", lambda device: 2**33)
    found = planned(*words, "strategy=ddp", "trainer.devices=2")["memory"]
    rooms = {held["name"]: held["capacity"] for held in found["strategies"]}
    assert rooms["single"] == 2**33 and rooms["ddp"] == rooms["fsdp"] == 2**32
    fits = {held["name"]: held["largest_micro_batch"] for held in found["strategies"]}
    assert fits["single"] / fits["ddp"] == pytest.approx(2, rel=0.01)
    found = planned(*words, "strategy=ddp", "trainer.devices=2", "memory=4")["memory"]
    assert {held["capacity"] for held in found["strategies"]} == {2**32}
    monkeypatch.setattr(preflight, "available", lambda device: None)
    assert run(["plan", *words]) == 1
    assert "give memory=GIB" in capsys.readouterr().err


@pytest.mark.slow
def test_what_is_assumed_of_the_place(planned):
    said = planned("model=gpt2", *TINY, "trainer.devices=auto", "placement.compile=true")["assumed"]
    assert any(line.startswith("trainer.devices=auto: 1,") for line in said)
    assert "placement.compile=true: memory as it is without" in said
    words = ("strategy=fsdp_tp", "strategy.tensor_parallel=2", "trainer.devices=auto")
    found = planned("model=llama3", *TINY, *words)
    assert any(line.startswith("trainer.devices=auto: 2,") for line in found["assumed"])
    assert found["memory"]["devices"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("made", [torch.optim.SGD, torch.optim.Adafactor, Matrices])
def test_strategies_that_the_optimizer_allows_are_compared(made, planned, monkeypatch):
    """Of those here, SGD alone treats each number by itself. Adafactor's step asks for values."""
    optimizer(monkeypatch, made)
    found = planned("model=gpt2", *TINY)["memory"]
    names = {held["name"] for held in found["strategies"]}
    assert {"single", "ddp", "fsdp"} <= names
    assert names & set(ZERO) == ({"zero1", "zero2", "zero3"} if made is torch.optim.SGD else set())
    # Adafactor has a number for each row and each column, of a vector for each number, and counts steps.
    a_layer = 4 * (32 + 32) + 2 * (32 + 128) + (4 * 32 + 128 + 32) + 4 * 32
    factored = (1024 + 32) + (32 + 32) + 2 * a_layer + 2 * 32
    kept = {torch.optim.SGD: 0, torch.optim.Adafactor: 4 * (factored + 2 + 2 * 16 + 2), Matrices: found["weights"]}
    assert found["states"] == kept[made]


@pytest.mark.slow
def test_an_optimizer_that_can_not_do_a_step(capsys, monkeypatch):
    optimizer(monkeypatch, torch.optim.LBFGS)
    assert run(["plan", "model=gpt2", *TINY]) == 1
    assert "error: optimizer: a step of LBFGS can't be done without values" in capsys.readouterr().err


def test_time_and_energy():
    device = accelerators.accelerator("a100")
    found = accelerators.run(10**9, 6e9, device, 4, "bf16-mixed", 0.5)
    assert found.flops == 6e18
    assert found.seconds == pytest.approx(6e18 / (4 * 0.5 * 312e12))
    assert found.tokens_per_second * found.seconds == pytest.approx(1e9)
    assert found.kilowatt_hours == pytest.approx(found.seconds / 3600 * 4 * 0.4)


def test_a_device_is_one_that_a_trainer_counts():
    """The board of an MI250X is two: its data sheet has 383 and 47.9 TFLOP/s, 128 GB and 560 W."""
    die = accelerators.accelerator("mi250x")
    assert [2 * n for n in (die.half, die.single, die.gigabytes, die.watts)] == [383, 47.9, 128, 560]


@pytest.mark.slow
@pytest.mark.parametrize(
    "choices", [("model=qwen_moe",), ("model=t5",), ("model=bert",), ("model=llama3", "train.learns=[heads]")]
)
def test_it_says_what_a_run_records(choices, planned, tmp_path, monkeypatch):
    from llmlab.config.compose import compose
    from llmlab.training.recipe import Recipe

    words = [*choices, "data.seq_len=64", "data.max_documents=20"]
    if choices == ("model=bert",):  # which tokens are targets is chance; ends of texts never are
        words.append("objective.rate=1.0")
    found, cost = planned(*words), Recipe.from_config(compose(words)).cost
    for name in ("total", "active", "trainable"):
        assert found["parameters"][name] == getattr(cost.parameters, name), name
    exact = choices != ("model=bert",)
    assert found["flops_per_token"] == (
        cost.flops_per_token if exact else pytest.approx(cost.flops_per_token, rel=0.01)
    )


PART = '''
import torch
from torch import nn

from llmlab.registry import register


@register("ffn", "tall")
class Tall(nn.Module):
    """Linears with a product of a parameter between."""

    def __init__(self, dim: int, ffn_dim: int, linear, /):
        super().__init__()
        self.up, self.down = linear(dim, ffn_dim, role="ffn_in"), linear(ffn_dim, dim, role="ffn_out")
        self.turn = nn.Parameter(torch.empty(ffn_dim, ffn_dim))

    def forward(self, x, groups=None):
        return self.down(self.up(x, groups) @ self.turn, groups)
'''


@pytest.mark.slow  # three processes
def test_a_part_of_ones_own(tmp_path):
    """Measured, and the same in a run's record; heavy modules stay out of what is refused."""
    (tmp_path / "tall.py").write_text(PART)
    env = {**os.environ, "LLMLAB_PLUGINS": "tall", "LLMLAB_CACHE": str(tmp_path / "cache")}

    def llmlab(*words, run=warm.run):
        done = run([sys.executable, *words], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout

    words = ["ffn=tall", *TINY, "data.max_documents=4", "model.ffn_dim=48", "model.vocab_size=1024"]
    found = json.loads(llmlab("-m", "llmlab", "plan", *words, "--json"))
    counted = 2 * 2 * (2 * 32 * 48 + 48 * 48)
    assert found["flops"]["by"]["feed-forward"] == counted
    assert found["flops"]["notes"] == ["ffn=tall: what it computes beside linears is measured"]
    llmlab("-m", "llmlab", "train", *words, "trainer.max_steps=1", "train.sample=false", "hydra.run.dir=run")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["flops_per_token"] == found["flops_per_token"]
    assert "ffn=tall: what it computes beside linears is measured" in record["notes"]
    light = (
        "import sys; from llmlab.commands.cli import run; run(['plan', 'model=llama9']); print('torch' in sys.modules)"
    )
    assert llmlab("-c", light, run=subprocess.run).split() == ["False"]


def bare(folder, **config):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    return f"hf={folder}"


@pytest.mark.slow
def test_this_machine_comes_first_where_it_has_no_gpu(planned, capsys, monkeypatch):
    from llmlab.training import meter

    monkeypatch.setattr(meter, "matmul_peak", lambda *_: 2e11)
    monkeypatch.setattr(preflight, "available", lambda device: 2**33)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    words = ("model=gpt2", *TINY, "model.vocab_size=64", "budget.steps=10", "mfu=0.5")
    found = planned(*words)
    here, flops = found["here"], found["flops_per_token"]
    assert (here["capacity"], here["flops_per_second"]) == (2**33, 2e11)
    tokens = found["budget"]["tokens"]
    assert here["seconds"] == pytest.approx(tokens * flops / (0.5 * 2e11))
    own = planned(*words[:-1], "trainer.accelerator=cpu")
    assert own["here"] is None  # counted as for a CPU, whose step holds a little less
    assert here["micro"] == pytest.approx(own["memory"]["largest_micro_batch"], rel=0.1)
    assert planned(*words, "device=h100")["here"] is None
    assert planned(*words[:-2], "budget.minutes=3")["here"]["seconds"] is None
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert planned(*words)["here"] is None
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert run(["plan", *words]) == 0
    shown = capsys.readouterr().out
    assert -1 < shown.index("this machine: ") < shown.index("parameters \N{BOX DRAWINGS LIGHT HORIZONTAL}")
    assert "of 8.00 GiB free" in shown and "at 50 % of the 200 GFLOP/s measured here" in shown


@pytest.mark.slow
def test_a_bare_config(planned, tmp_path, capsys):
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    llama = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 96, **sizes}
    hf = bare(tmp_path / "llama", **llama, quantization_config={"bits": 4})
    found = planned(hf, "precision=bf16-mixed", "data.seq_len=64")
    assert found["parameters"]["total"] == 2 * 96 * 32 + 2 * (4 * 32 * 32 + 3 * 32 * 64 + 2 * 32) + 32
    assert found["kv_bytes_per_token"] == 2 * 2 * 32 * 2
    assert found["memory"]["weights"] and any("quantization" in line for line in found["assumed"])
    assert run(["plan", hf, "attention=mla", "model.n_kv_heads=2"]) == 1
    assert "model.n_kv_heads: attention=mla does not use it" in capsys.readouterr().err
    bert = bare(tmp_path / "bert", model_type="bert", architectures=["BertModel"], vocab_size=96, **sizes)
    found = planned(bert)
    assert found["parameters"]["components"][-1]["name"] == "head pooled"
    assert found["memory"] is None and found["kv_bytes_per_token"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("width", [60, 80, 130])
def test_what_is_shown(width, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    assert run(["plan", "model=t5", "moe=topk", *TINY, "strategy=zero3_offload", "trainer.devices=2"]) == 0
    shown = capsys.readouterr().out
    for what in (
        "parameters",
        "decoder layer 0",
        "cross-attention",
        "KV cache",
        "zero3_offload on 2",
        "% MFU",
        "kWh",
    ):
        assert what in shown
    assert max(map(len, shown.splitlines())) <= width


@pytest.mark.slow
def test_activations_are_shown_as_a_forward_keeps_them(planned, capsys, monkeypatch):
    words = ("model=gpt2", *TINY, "strategy=zero3", "trainer.devices=2")
    held = planned(*words)["memory"]
    monkeypatch.setenv("COLUMNS", "120")
    assert run(["plan", *words]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("zero3 on 2", "  checkpointed"))]
    for row, memory in zip(rows[:2], (held, held["checkpointed"]), strict=True):
        assert size(memory["kept"]) in row and memory["kept"] != memory["activations"]


def split(n):
    return ["strategy=fsdp_tp", f"strategy.tensor_parallel={n}", f"trainer.devices={n}", "train.batch_size=12"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["device=h10"], "did you mean h100"),
        (["devic=h100"], "of llmlab plan itself, did you mean device?"),
        (
            ["model.dim=1000000000000"],
            "a tensor of 1,000,000,000,000 x 1,000,000,000,000, which is more than torch can count",
        ),
        (["mfu=1.5"], "at most 1"),
        (["memory=0"], "GiB above 0"),
        (["memory=inf"], "GiB above 0"),
        (["memory=1e-12"], "of a byte at least"),
        (
            ["device=a100", "mfu=0.5", "trainer.accelerator=cpu"],
            "device=a100 mfu=0.5: not with trainer.accelerator=cpu",
        ),
        (["-m", "seed=1,2"], "-m is for llmlab train"),
        (["--config-dir", "nowhere"], "there is no such folder"),
        (["model=lama3"], "did you mean llama3"),
        (["hf=nowhere"], "there is no such folder"),
        (
            ["hf=nowhere", "model=gpt2", "size=nano"],
            "model=gpt2 size=nano: hf=nowhere has a model and sizes of its own",
        ),
        (["kernel=varlen"], "can't train with precision=32-true"),
        (["kernel=flex", "trainer.accelerator=cpu"], "can't train on a CPU"),
        ([*split(4), "model=llama3", "model.n_heads=8", "model.n_kv_heads=2"], "does not divide model.n_kv_heads=2"),
        ([*split(2), "model=xlnet"], "choose strategy=fsdp"),
        ([*split(2), "model=llama3", "kernel=eager", "model.attention.sink=true"], "sink can't be split"),
        ([*split(3), "model.n_heads=6", "model.dim=96", "model.ffn_dim=100"], "does not divide the 100 inner units"),
        (["strategy=ddp", "trainer.devices=3"], "can't be shared by trainer.devices=3"),
        (["trainer.devices=2"], "strategy=ddp"),
        (["model=gpt2", "data.seq_len=64", "model.max_positions=32"], "more than the 32 positions"),
        (["precision=bf16-mixed", "device=v100"], "has no bfloat16"),
        (["tokenizer=file", "tokenizer.path=nowhere.json"], "there is no such file"),
    ],
)
def test_refused(words, says, capsys):
    assert run(["plan", *words]) == 1
    out, err = capsys.readouterr()
    assert says in err and all(line.startswith("error: ") for line in err.splitlines()) and not out
