"""A plan's memory is that of real runs: tensors to the byte, and the peak that PyTorch's allocator has seen."""

import pytest
import torch

from llmlab.config.compose import compose
from llmlab.lab.plan import memory, subject
from llmlab.lab.plan.activations import Numerics, record
from llmlab.lab.plan.fit import largest
from tests.lab.plan import measured

SIZES = ["model.dim=64", "model.n_heads=4", "model.vocab_size=512", "data.seq_len=64", "trainer.accelerator=cpu"]
RUN = [
    "tokenizer=char",
    "train.batch_size=8",
    "train.validation_batches=1",
    "budget.steps=4",
    "train.validate_every=9",
    "train.checkpoint_every=9",
]
RUNS = {
    "alone": ["model=gpt2", "model.dropout=0.1", "model.n_layers=3", "train.micro_batch_size=4"],
    "ddp": ["strategy=ddp", "model=t5", "model.n_layers=2"],
    "ddp accumulating": ["strategy=ddp", "model=bert", "model.n_layers=3", "train.micro_batch_size=2"],
    "fsdp": [
        "strategy=fsdp",
        "model=gemma3",
        "model.n_layers=7",
        "precision=bf16-true",
        "placement.activation_checkpointing=true",
    ],
    "fsdp of experts": ["strategy=fsdp", "model=qwen_moe", "model.n_layers=4", "precision=bf16-mixed"],
    "fsdp_tp": ["strategy=fsdp_tp", "strategy.tensor_parallel=2", "model=llama3", "model.n_layers=4"],
    "zero1": ["strategy=zero1", "model=llama3", "model.n_layers=4", "precision=bf16-mixed"],
    "zero2": ["strategy=zero2", "model=bert", "model.n_layers=4", "train.micro_batch_size=2"],
    "zero3": ["strategy=zero3", "model=llama3", "model.n_layers=4", "train.micro_batch_size=2"],
    "zero3 in bfloat16": ["strategy=zero3", "model=albert", "model.n_layers=4", "precision=bf16-mixed"],
}


def planned(name):
    of = subject.of_config(compose([*SIZES, *RUN, *RUNS[name], f"trainer.devices={1 if name == 'alone' else 2}"]))
    checkpointing = of.cfg.placement.activation_checkpointing
    return memory.plan(of.training, of.where, of.cut.micro, checkpointing=checkpointing)


@pytest.fixture(scope="module")
def small():
    return subject.of_config(compose([*SIZES, "model=gemma2", "model.n_layers=6"])).training


def test_a_deep_model_and_any_micro_batch_follow_from_a_shallow_one_and_two(small):
    length = small.length
    whole = record(small.spec, small.objective, rows=3, length=length, numerics=Numerics(torch.float32))
    for strategy in ("single", "fsdp", "zero3"):
        where = memory.Where(strategy, 2)
        replay, truth = memory.replayed(small, where, 3, checkpointing=False), memory.replay_of(small, where)
        truth.run(whole)
        assert (replay.highest, replay.kept, replay.gradients) == (truth.highest, truth.kept, truth.gradients)


def test_the_largest_micro_batch_fits_and_the_next_does_not(small):
    where, capacity = memory.Where("fsdp", 2), 30_000_000
    fit = largest(small, where, capacity)
    assert fit.micro > 1 and fit.memory == memory.plan(small, where, fit.micro) and not fit.advice
    assert fit.memory.total <= capacity < memory.plan(small, where, fit.micro + 1).total
    assert "activation_checkpointing=true" in largest(small, where, 5_000_000).advice
    none = largest(small, memory.Where(), 1_000_000)
    assert none.micro == 0 and "strategy=fsdp" in none.advice


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """What each run's ranks have had: one after the other in the same processes."""
    pytest.importorskip("deepspeed")
    root = tmp_path_factory.mktemp("memory")
    (root / "texts").mkdir()
    for i in range(20):
        (root / "texts" / f"{i}.txt").write_text("the quick brown fox jumps over a lazy dog " * 50)
    own = [*SIZES, *RUN, "data=files", f"data.path={root / 'texts'}"]
    two = [name for name in RUNS if name != "alone"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLMLAB_CACHE", str(root / "cache"))
        (alone,) = measured.measure(root / "alone", [*own, *RUNS["alone"]], world=1)
        found = measured.measure(root / "two", *([*own, *RUNS[name], "trainer.devices=2"] for name in two))
    return {"alone": alone, **dict(zip(two, found, strict=True))}


@pytest.mark.slow  # 10 runs, 9 of them on two ranks, of which every allocation is recorded: a minute
@pytest.mark.parametrize("name", RUNS)
def test_weights_gradients_and_states_to_the_byte_and_the_peak(name, real):
    plan = planned(name)
    for part in ("weights", "gradients", "states"):
        assert getattr(plan, part) == max(rank[part] for rank in real[name]), part
    for rank in real[name]:
        assert plan.total == pytest.approx(rank["peak"], rel=0.1)
