"""A plan's memory is that of real runs: tensors to the byte, and the peak that PyTorch's allocator has seen."""

from dataclasses import replace

import pytest
import torch

from llmlab import registry
from llmlab.commands.cli import run
from llmlab.config.compose import compose
from llmlab.data import stand_in
from llmlab.model import build, roles
from llmlab.model.trainable import Filter
from llmlab.plan import memory, subject, zero
from llmlab.plan.activations import Numerics, examples, record, share_of_targets
from llmlab.plan.fit import largest
from llmlab.slots import Loss
from llmlab.training.cost import passes
from tests.plan import measured

SIZES = ["model.dim=64", "model.n_heads=4", "model.vocab_size=512", "trainer.accelerator=cpu"]
RUN = [
    "tokenizer=char",
    "train.validation_batches=1",
    "budget.steps=3",
    "train.validate_every=9",
    "train.checkpoint_every=9",
]
TWICE = "train.micro_batch_size=2"  # an optimizer step has two micro-batches
FROZEN = "train.learns=[stacks.main.layers.3,heads]"
STAGES_1_2 = ("zero1", "zero2")
RUNS = {
    "alone": ["model=gpt2", "model.dropout=0.1", "model.n_layers=3", "train.micro_batch_size=4"],
    "ddp": ["strategy=ddp", "model=t5", "model.n_layers=2", TWICE],
    "fsdp": [
        "strategy=fsdp",
        "model=gemma3",
        "model.n_layers=7",
        "precision=bf16-true",
        "placement.activation_checkpointing=true",
    ],
    "fsdp_tp": ["strategy=fsdp_tp", "strategy.tensor_parallel=2", "model=llama3", "model.n_layers=4"],
    "zero1": ["strategy=zero1", "model=llama3", "model.n_layers=3", TWICE],
    "zero1 in bfloat16": ["strategy=zero1", "model=llama3", "model.n_layers=3", "precision=bf16-mixed", TWICE],
    "zero2": ["strategy=zero2", "model=bert", "model.n_layers=3", TWICE],
    "zero2 in bfloat16": ["strategy=zero2", "model=llama3", "model.n_layers=3", "precision=bf16-mixed", TWICE],
    "zero2_offload": ["strategy=zero2_offload", "model=llama3", "model.n_layers=3", TWICE],
    "zero3 in bfloat16": ["strategy=zero3", "model=albert", "model.n_layers=3", "precision=bf16-mixed"],
    "zero3_offload": ["strategy=zero3_offload", "model=llama3", "model.n_layers=3", TWICE],
    # a frozen trunk below one layer that learns, and a frozen one above it
    "alone, frozen": ["model=llama3", "model.n_layers=5", "train.micro_batch_size=4", FROZEN],
    "ddp, frozen": ["strategy=ddp", "model=llama3", "model.n_layers=5", FROZEN, TWICE],
    "fsdp, frozen": ["strategy=fsdp", "model=llama3", "model.n_layers=5", FROZEN],
    "zero2, frozen": ["strategy=zero2", "model=llama3", "model.n_layers=5", FROZEN, TWICE],
    "zero3, frozen": ["strategy=zero3", "model=llama3", "model.n_layers=5", FROZEN, "precision=bf16-mixed"],
    "zero1, frozen in bfloat16": ["strategy=zero1", "model=llama3", "model.n_layers=5", FROZEN, "precision=bf16-mixed"],
}


def words(name):
    """Of short texts where little is kept between micro-batches, so that activations do not hide it."""
    length = 32 if name.startswith(STAGES_1_2) else 64
    devices = 1 if name.startswith("alone") else 2
    own = ["train.batch_size=8", f"data.seq_len={length}", f"trainer.devices={devices}"]
    return [*SIZES, *RUN, *own, *RUNS[name]]


def planned(name):
    of = subject.of_config(compose(words(name)))
    checkpointing = of.cfg.placement.activation_checkpointing
    return memory.plan(of.training, of.where, of.cut.micro, checkpointing=checkpointing)


@pytest.fixture(scope="module")
def small():
    return subject.of_config(compose([*SIZES, "model=gemma2", "model.n_layers=6", "data.seq_len=64"])).training


class Twice:
    """Two forwards of the text, one loss after the other."""

    def __init__(self, once):
        self.once, self.prepare, self.heads = once, once.prepare, once.heads

    def targets(self, prepared):
        (n,) = self.once.targets(prepared).values()
        return {"1": n, "2": n}

    def passes(self, prepared):
        return [*passes(self.once, prepared)] * 2

    def loss(self, model, batch):
        return Loss({i: pair for i in "12" for pair in self.once.loss(model, batch).terms.values()})


@pytest.mark.parametrize("words", [None, ["stacks.main.layers.3", "stacks.main.layers.4.block"]])
@pytest.mark.parametrize("forwards", [1, 2])
def test_a_deep_model_and_any_micro_batch_follow_from_a_shallow_one_and_two(forwards, words, small):
    learns, length = Filter.from_words(words), small.length
    small = replace(small, learns=learns, objective=small.objective if forwards == 1 else Twice(small.objective))
    model = build.assemble(small.spec)
    frozen = frozenset(path for path, *_ in roles.parameters(model)) - learns.paths(model)
    how = {"length": length, "numerics": Numerics(torch.float32), "frozen": frozen}
    whole = record(small.spec, small.objective, rows=3, **how)
    for strategy in ("single", "fsdp", "zero3"):
        where = memory.Where(strategy, 2)
        replay, truth = memory.replayed(small, where, 3, checkpointing=False), memory.replay_of(small, where, forwards)
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


def test_a_reference_beside_an_adapter_takes_no_weights_but_the_adapters():
    words = [*SIZES, "model.n_layers=2", "data.seq_len=64", "alignment=dpo"]
    with_adapter = subject.of_config(compose([*words, "adapter=lora"]))
    training, counts = with_adapter.training, with_adapter.cost.parameters
    own = 4 * (counts.total + counts.trainable)
    # LoRA's tensors are what learns, and the copy's own.
    assert memory.plan(training, memory.Where(), 1).weights == own
    assert memory.plan(training, memory.Where("zero2", 2), 1).weights < 4 * 2 * counts.total
    whole = subject.of_config(compose(words)).training
    assert memory.plan(whole, memory.Where(), 1).weights == 2 * 4 * (counts.total - counts.trainable)
    # Of sharded weights each rank has a shard of both models.
    assert memory.plan(training, memory.Where("fsdp", 2), 1).weights >= 4 * counts.total


@pytest.mark.parametrize(
    ("name", "options", "share"),
    [("mlm", {}, 0.15), ("mlm", {"pair": "sop"}, 0.15), ("rtd", {}, 0.15), ("clm", {}, 1.0)],
)
def test_a_head_of_the_whole_text_is_no_part_of_the_share_that_another_sees(name, options, share):
    special = registry.index()["objective", name].attribute("special")
    of = registry.load("objective", name, options)(stand_in.vocabulary(512, ("mask", "cls", "sep", *special)), 400)
    assert share_of_targets(of, examples(of, 400, documents=False)) == pytest.approx(share, rel=0.1)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("texts")
    for i in range(20):
        (root / f"{i}.txt").write_text("the quick brown fox jumps over a lazy dog " * 50)
    return ["data=files", f"data.path={root}"]


@pytest.fixture(scope="module")
def real(tmp_path_factory, data):
    """What each run's ranks have had: one after the other in the same processes."""
    pytest.importorskip("deepspeed")
    root = tmp_path_factory.mktemp("memory")
    one, two = ([name for name in RUNS if name.startswith("alone") == alone] for alone in (True, False))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLMLAB_CACHE", str(root / "cache"))
        alone = measured.measure(root / "alone", *([*words(name), *data] for name in one), world=1)
        found = measured.measure(root / "two", *([*words(name), *data] for name in two))
    return dict(zip([*one, *two], [*alone, *found], strict=True))


@pytest.mark.slow  # 17 runs, 15 of them on two ranks, of which every allocation is recorded: a minute and a half
@pytest.mark.parametrize("name", RUNS)
def test_weights_gradients_and_states_to_the_byte_and_the_peak(name, real, monkeypatch):
    monkeypatch.setattr(zero, "BUCKET", measured.BUCKET)
    plan = planned(name)
    lasting = ("weights", "gradients", "states", "host")
    if plan.host:  # which is the device's here
        assert sum(getattr(plan, part) for part in lasting) == max(sum(map(rank.get, lasting)) for rank in real[name])
    else:
        for part in lasting[:3]:
            assert getattr(plan, part) == max(rank[part] for rank in real[name]), part
    near = 0.08 if name.startswith(STAGES_1_2) else 0.1  # what they keep between micro-batches is a tenth or so
    assert plan.total + plan.host == pytest.approx(max(rank["peak"] for rank in real[name]), rel=near)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("window", ["full", "sliding"])  # without a mask, and with one
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_the_peak_on_a_gpu(precision, window, data, tmp_path, monkeypatch):
    """Grouped heads, whose weights alone would be more than all that is planned: 2 layers of 4 x 16 x 2048 x 2048."""
    sizes = ["model.dim=512", "model.n_heads=16", "model.n_kv_heads=4", "model.n_layers=2", "model.vocab_size=512"]
    words = ["model=llama3", f"window={window}", *sizes, *RUN, f"precision={precision}", "data.seq_len=2048"]
    words += ["train.batch_size=4", "trainer.accelerator=gpu", "trainer.devices=1"]
    of = subject.of_config(compose(words))
    plan = memory.plan(of.training, of.where, of.cut.micro)
    monkeypatch.setenv("LLMLAB_CACHE", str(tmp_path / "cache"))
    torch.cuda.reset_peak_memory_stats()
    assert run(["train", *words, *data, f"hydra.run.dir={tmp_path}/run", "train.sample=false"]) == 0
    assert plan.total == pytest.approx(torch.cuda.max_memory_allocated(), rel=0.1)
