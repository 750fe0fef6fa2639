"""What real runs take: `llmlab train` in processes of their own, one a rank, whose tensors and allocations are added up.

As a script it is one rank. Weights, gradients and states are the storages that these tensors have before an optimizer step;
the peak is PyTorch's own record of what its CPU allocator gave and took back, over one whole step, from the run's beginning.
"""

import gc
import json
import os
import sys
import time
from pathlib import Path
from unittest.mock import Mock

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))

import ranks

BUCKET = 20_000  # elements, of ZeRO: with 50,000,000 all else would be little beside it
STEP = 2  # the one that is measured: the optimizer's state is there, buckets are as they stay


def measure(folder: Path, *runs: list[str], world: int = 2, timeout: float = 300) -> list[list[dict[str, int]]]:
    """Of each of `runs`, what is typed behind `llmlab train`: bytes by rank."""
    started = ranks.start(__file__, folder, world, runs)
    try:
        codes = [process.wait(timeout) for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()
    found = [[folder / f"{i}-{rank}.json" for rank in range(world)] for i in range(len(runs))]
    assert all(f.exists() for files in found for f in files), f"{codes}\n{ranks.said(folder, world)}"
    return [[json.loads(f.read_text()) for f in files] for files in found]


# ---------------------------------------------------------------- one rank


def bytes_of(*tensors) -> int:
    """Of the storages of tensors, each once."""
    from torch.distributed.tensor import DTensor

    local = [t.to_local() if isinstance(t, DTensor) else t for t in tensors if t is not None]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in local}.values())


def states(optimizer):
    import torch

    return [v for s in optimizer.state.values() for v in s.values() if isinstance(v, torch.Tensor)]


def plain(strategy):
    optimizer = strategy.optimizers[0]
    parameters = list(strategy.lightning_module.model.parameters())
    return {
        "weights": bytes_of(*parameters),
        "gradients": bytes_of(*(p.grad for p in parameters)),
        "states": bytes_of(*states(optimizer)),
    }


def zero(strategy):
    """DeepSpeed's optimizers name what they keep differently."""
    o = strategy.deepspeed_engine.optimizer
    parameters = list(strategy.lightning_module.model.parameters())

    def of(*names):
        return [t for name in names for t in flatten(getattr(o, name, ()))]

    return {
        "weights": bytes_of(
            *of("bit16_groups_flat", "single_partition_of_fp32_groups"),
            *of("bf16_groups_flat", "fp32_groups_flat_partition"),
            *of("lp_param_buffer", "fp32_partitioned_groups_flat", "param_groups_fp16_flat_cpu_memory"),
            *(
                getattr(p, "ds_tensor", p) for p in parameters if not p.requires_grad
            ),  # of which DeepSpeed keeps nothing
        ),
        "gradients": bytes_of(
            *of("averaged_gradients", "all_grad_tensors", "fp32_groups_gradients_flat", "grad_partitions_flat_buffer"),
            *(t.grad for t in of("single_partition_of_fp32_groups", "fp32_partitioned_groups_flat")),
            *(p.grad for p in parameters),
        ),
        "states": bytes_of(*states(o.optimizer)),
        "host": bytes_of(  # beside those of the three above that offload puts there
            *of("temp_grad_buffer_for_cpu_offload", "param_buffer_of_bit16_for_cpu_offload_groups"),
            *of("accumulated_grads_in_cpu"),
            *strategy._unrounded.values(),  # frozen weights as they were
        ),
    }


def flatten(value):
    import torch

    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    return [t for v in value for t in flatten(v)] if hasattr(value, "__iter__") else []


def watch(found: dict) -> None:
    """Let a run say what it has before the step that is measured, and mark that step.

    Whether the run's thread or one of gloo's gives back what both had is a race, and only the first is recorded: so DDP's
    first broadcast (of weights that are equal already) is left out, and the run's thread lets gloo's finish.
    """
    import torch
    from torch.nn.parallel import distributed

    from llmlab.training.module import Offline

    distributed._sync_module_states = lambda *_, **__: None
    for name in ("all_gather_into_tensor", "all_gather", "all_reduce", "broadcast", "reduce", "reduce_scatter_tensor"):
        setattr(torch.distributed, name, lingering(getattr(torch.distributed, name)))
    begin, step = Offline.on_train_batch_start, Offline.optimizer_step
    mark: list = []

    def begins(self, batch, index):
        if index == STEP * self.trainer.accumulate_grad_batches:
            mark.append(torch.profiler.record_function("measured"))
            mark[0].__enter__()
        begin(self, batch, index)

    def before(self):
        if self.trainer.global_step == STEP:
            strategy = self.strategy
            found.update((zero if hasattr(strategy, "deepspeed_engine") else plain)(strategy))

    def steps(self, epoch, index, optimizer, closure=None):
        def first():
            loss = closure()
            before(self)
            return loss

        step(self, epoch, index, optimizer, first)
        if mark:
            mark.pop().__exit__(None, None, None)

    Offline.on_train_batch_start, Offline.optimizer_step = begins, steps


def lingering(collective):
    """Its tensors stay the caller's until gloo's thread has let go of them."""

    def call(*given, **options):
        done = collective(*given, **options)
        time.sleep(0.005)
        return done

    return call


def lighten_zero() -> None:
    """A small bucket; and nothing is compiled, as what DeepSpeed's Adam for the CPU keeps, Python makes."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    from deepspeed.ops.op_builder import CPUAdamBuilder

    from llmlab.training.strategies import zero

    zero.BUCKET = BUCKET
    CPUAdamBuilder.load = lambda *_, **__: Mock()


def peak(profile) -> int:
    """The most bytes in use within the step, of all that were given since the profile began.

    What gloo copies for itself is left out: its own threads give that back, which is not recorded.
    """
    from torch._C._profiler import _EventType

    results = profile.profiler.kineto_results
    mark = next(e for e in results.events() if e.name() == "measured")
    changes, todo = [], [(e, False) for e in results.experimental_event_tree()]
    while todo:
        event, of_gloo = todo.pop()
        if event.tag == _EventType.Allocation:
            fields = event.extra_fields
            changes.append((event.start_time_ns, fields.alloc_size, fields.ptr, of_gloo))
        todo += [(child, of_gloo or event.name.startswith("c10d::")) for child in event.children]
    held: dict[int, int] = {}
    now = highest = 0
    for at, size, place, of_gloo in sorted(changes):
        now -= held.pop(place, 0)
        if size > 0 and not of_gloo:
            held[place] = size
            now += size
        if mark.start_ns() <= at <= mark.start_ns() + mark.duration_ns():
            highest = max(highest, now)
    return highest


def work(folder: Path, world: int, runs: list[list[str]]) -> None:
    import torch

    from llmlab.commands.cli import run

    rank, found = os.environ["LOCAL_RANK"], {}
    watch(found)
    if world > 1:
        lighten_zero()
    for i, argv in enumerate(runs):
        os.environ["MASTER_PORT"] = ranks.port(folder, i, rank)
        os.environ["WORLD_SIZE"] = str(world)
        found.clear()
        gc.collect()  # what the run before has left would be given back in this one
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            code = run(["train", *argv, f"hydra.run.dir={folder}/run-{i}", "train.sample=false"])
        if code:
            os._exit(code)
        (folder / f"{i}-{rank}.json").write_text(json.dumps({**found, "peak": peak(profile)}))
        while len(list(folder.glob(f"{i}-*.json"))) < world:
            time.sleep(0.01)
    os._exit(0)  # gloo sometimes aborts at exit


if __name__ == "__main__":
    work(Path(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3]))
