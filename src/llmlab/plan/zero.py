"""DeepSpeed's ZeRO, as `strategies.zero` sets it up: what its optimizers keep, and when.

Each group of the optimizer is one flat tensor, padded to twice the ranks, of which each rank trains a piece in float32
beside what is computed with. Stages 1 and 2 reduce gradients through a bucket that is there from the first gradient to the
last, whatever the model's size; stage 3's is there all the time.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from llmlab.plan.activations import Op
from llmlab.plan.parameters import flat_state_bytes, groups
from llmlab.plan.replay import Part, Replay, Trained
from llmlab.training.strategies.zero_buckets import BUCKET, KEPT_WHOLE

MASTER = 4  # bytes of a number that is trained, and of its gradient
# Numbers that DeepSpeed's engine reduces at once (MEMORY_OPT_ALLREDUCE_SIZE).
AT_ONCE = 500_000_000
# Numbers: a parameter that is used again within so many is not freed (stage3_max_reuse_distance).
NEAR = 1_000_000_000
# Numbers that are gathered ahead (stage3_prefetch_bucket_size).
AHEAD = 50_000_000


class Zero(Replay):
    """The replay that the stages share. world: ranks. size: bytes of a number that is computed with."""

    def __init__(self, trained: Trained, world: int, *, gpu: bool, offload: bool):
        super().__init__(trained)
        self.world, self.gpu, self.offload = world, gpu, offload
        self.size = trained.dtype.itemsize
        self.groups = groups(trained.optimizer, trained.learning)
        self.filled = 0  # numbers in the bucket

    def masters(self, numbers: int, of: Part) -> None:
        """float32 numbers that are on the device, or with offload in the CPU's memory."""
        if self.offload:
            self.host += MASTER * numbers
        else:
            self.add(of, MASTER * numbers)

    def kept_by(self, pieces: tuple[int, ...]) -> None:
        """The optimizer's state; DeepSpeed's own Adam counts its steps outside of tensors."""
        if self.offload:
            # DeepSpeedCPUAdam: two moments in float32 (fp32_optimizer_states, by default).
            self.host += 2 * MASTER * sum(pieces)
        else:
            self.add("states", flat_state_bytes(self.trained.optimizer, self.trained.learning, pieces))

    def kept_frozen(self, numbers: int, *, on_host: bool = False) -> None:
        """Weights that no optimizer has; of bfloat16 ones the first rank keeps what they were in the CPU's memory."""
        if on_host:
            self.host += self.size * numbers
        else:
            self.add("weights", self.size * numbers)
        if self.size < MASTER:
            self.host += MASTER * sum(p.numel for p in self.trained.frozen)

    def _into_bucket(self, numel: int) -> None:
        if self.filled and self.filled + numel > BUCKET:
            self._reduce()
        # Stays where it is and is reduced by itself (`extra_large_param_to_reduce`).
        if numel > BUCKET:
            self.add("strategy", self.size * numel)
        self.filled += numel

    def _reduce(self) -> None:
        """Reduces the bucket, which is copied once more to be summed."""
        # Added and taken off again, so that only the peak knows of it: `flatten` copies the bucket, which is summed.
        self.add("strategy", self.size * self.filled)
        self.add("strategy", -self.size * self.filled)
        if self.filled > BUCKET:
            self.add("strategy", -self.size * self.filled)
        self.filled = 0


class Sharded12(Zero):
    """Stages 1 and 2: the model is whole, gradients are reduced to the piece that a rank trains."""

    def __init__(self, trained: Trained, world: int, stage: int, *, gpu: bool, offload: bool):
        super().__init__(trained, world, gpu=gpu, offload=offload)
        self.stage = stage
        self.numbers = [sum(p.numel for p in group) for group in self.groups]
        # nccl_start_alignment_factor = 2: pieces begin at multiples of 4 bytes in half precision.
        self.padded = [-(-n // (2 * self.world)) * 2 * self.world for n in self.numbers]
        self.pieces = tuple(n // self.world for n in self.padded)
        self.half = trained.dtype != torch.float32
        # DeepSpeed's BF16_Optimizer: all gradients in float32 beside those of the backward. With offload stage 1 has the
        # optimizer of the other stages.
        self.apart = self.half and stage == 1 and not self.offload
        # Without overlap_comm stage 1 reduces only when all gradients are there (`reduce_gradients`).
        self.at_the_end = stage == 1 and not self.gpu and not self.apart
        self.bucket = 0
        self.reduced = False  # whether some gradients of this micro-batch are
        self.beside = 0  # bytes of those that are still to be added to the ones before

    def begin(self) -> None:
        self.add("weights", self.size * sum(self.padded))
        self.kept_frozen(sum(p.numel for p in self.trained.frozen))
        self.masters(sum(self.pieces), "weights")
        self.kept_by(self.pieces)
        if self.apart:
            self.add("gradients", MASTER * sum(self.padded))
        if self.offload:
            # temp_grad_buffer_for_cpu_offload and _for_gpu_offload: each as large as the largest parameter.
            largest = max(p.numel for p in self.trained.learning)
            self.host += MASTER * sum(self.pieces) + self.size * (sum(self.pieces) + largest)
            self.add("strategy", self.size * largest)
        if self.trained.accumulates:
            self._earlier()

    def _earlier(self) -> None:
        """Memory that the micro-batches before have left: in stage 1 gradients of the whole model, and the bucket, as they are
        reduced in the last one only; in stage 2 the sums of a rank's piece."""
        if self.stage == 1:
            self.add("gradients", self.size * sum(p.numel for p in self.reached))
            if not self.apart:
                self._take_bucket()
        elif self.offload and not self.half:
            self.host += MASTER * max(self._touched(rank) for rank in range(self.world))
        else:
            self.add("gradients", self.own)

    def _take_bucket(self) -> None:
        if not self.bucket:
            # With overlap_comm, as it is set on GPUs, one buffer is filled while the other is reduced.
            self.bucket = self.size * BUCKET * (2 if self.gpu else 1)
            self.add("strategy", self.bucket)

    def grad(self, op: Op) -> None:
        self.add("activations", -op.size)
        numel = self.trained.parameters[op.param].numel
        if not self.apart:
            self._take_bucket()
        if self.apart or self.at_the_end:
            if not self.trained.accumulates:
                self.add("gradients", self.size * numel)
            return
        if self.stage == 1 and self.trained.accumulates:
            self.add("gradients", -self.size * numel)
        self._into_bucket(numel)

    def _reduce(self) -> None:
        """Sums in float32 (of half precision) are added to where they are; float32 gradients come as new tensors."""
        super()._reduce()
        if self.reduced:
            return
        self.reduced = True
        if self.stage == 1 or not self.trained.accumulates:
            self.add("gradients", self.own)
        elif not self.half:
            self.beside = self.own
            self.add("strategy", self.beside)

    @property
    def own(self) -> int:
        """Bytes of the gradients that a rank keeps: those of its piece, in float32 whole tensors of which it has some."""
        if self.offload and not self.half:
            return 0  # in the CPU's memory, where they were counted
        if self.half:
            return MASTER * sum(self.pieces)
        return MASTER * max(self._touched(rank) + self._padding(rank) for rank in range(self.world))

    def _touched(self, rank: int) -> int:
        """Numbers of the tensors that a rank's pieces have a part in."""
        found = 0
        for group, piece in zip(self.groups, self.pieces, strict=True):
            start, place = rank * piece, 0
            for p in group:
                if place < start + piece and place + p.numel > start:
                    found += p.numel
                place += p.numel
        return found

    def _padding(self, rank: int) -> int:
        """Numbers that a rank's pieces are padded with."""
        ends = [piece * (rank + 1) - n for piece, n in zip(self.pieces, self.numbers, strict=True)]
        return sum(max(0, min(piece, end)) for piece, end in zip(self.pieces, ends, strict=True))

    def end(self) -> None:
        if self.apart:
            return
        if self.at_the_end:
            self.add("gradients", -self.now["gradients"])
            for p in self.trained.learning:
                self._into_bucket(p.numel)
        self._reduce()
        self.add("strategy", -self.bucket - self.beside)
        self.bucket = self.beside = 0

    def step(self) -> None:
        if self.apart:
            numbers = min(sum(self.padded), AT_ONCE)
            self.add("strategy", (MASTER + self.size) * numbers)
        elif not self.half and not self.offload:
            self.add("strategy", MASTER * max(self.pieces))


class Sharded3(Zero):
    """Stage 3: parameters are sharded too, each by itself, and gathered layer by layer."""

    def __init__(self, trained: Trained, world: int, order: Sequence[int], *, gpu: bool, offload: bool):
        super().__init__(trained, world, gpu=gpu, offload=offload)
        self.order = order
        # Each parameter is cut by itself here, and padded to a multiple of the ranks.
        self.pieces = tuple(sum(-(-p.numel // self.world) for p in group) for group in self.groups)
        self.layers = dict.fromkeys([-1, *order], 0)  # numbers of each that are gathered
        self.always = 0
        for p in trained.parameters:
            if self.gpu and p.numel <= KEPT_WHOLE:  # as DeepSpeed 0.19 compares (`mark_persistent_parameters`)
                self.always += p.numel
            else:
                self.layers[p.layer] += p.numel
        self.gathered: set[int] = set()
        self.ahead = 0  # bytes of what is gathered ahead, and of which layers
        self.next: list[int] = []

    def begin(self) -> None:
        pieces = sum(self.pieces)
        if self.offload:
            self.host += self.size * pieces
        else:
            self.add("weights", self.size * pieces)
        self.kept_frozen(sum(-(-p.numel // self.world) for p in self.trained.frozen), on_host=self.offload)
        self.masters(pieces, "weights")
        self.kept_by(self.pieces)
        # grad_partitions_flat_buffer, which is there from the beginning, in the type that gradients
        # are added up in: float32.
        self.masters(pieces, "gradients")
        if self.offload:
            self.host += MASTER * pieces  # the optimizer's own copy of them
        self.add("strategy", self.size * (BUCKET + self.always))
        self._gather(-1)
        self._fetch(self.order)

    def _gather(self, layer: int) -> None:
        if layer not in self.gathered:
            self.gathered.add(layer)
            self.add("strategy", self.size * self.layers[layer])

    def _free(self, layer: int) -> None:
        if layer in self.gathered:
            self.gathered.remove(layer)
            self.add("strategy", -self.size * self.layers[layer])

    def _fetch(self, following: Sequence[int]) -> None:
        """The next layers that are not there, into one flat tensor that stays until the last of them is copied out of it."""
        if not self.gathered.issuperset(self.next):
            return
        self.add("strategy", -self.ahead)
        self.next, numbers = [], 0
        for layer in dict.fromkeys(following):
            if layer not in self.gathered and numbers < AHEAD:
                self.next.append(layer)
                numbers = min(numbers + self.layers[layer], AHEAD)
        self.ahead = self.size * numbers
        self.add("strategy", self.ahead)

    def enter(self, op: Op) -> None:
        self._gather(self.order[op.step])
        if following := self.order[op.step + 1 :]:
            self._fetch(following)

    def read(self, op: Op) -> None:
        """The heads lay behind the last layer in what was gathered ahead."""
        self._fetch([])

    def leave(self, op: Op) -> None:
        """Freed if its backward is far, or there is none, as of frozen layers below all that learns."""
        # Modules behind it come in the forward and again in the backward before it is used (`__params_to_release`).
        until = 2 * sum(self.layers[i] for i in self.order[op.step + 1 :]) + self.layers[-1]
        if until >= NEAR or not self._comes_again(op.step):
            self._free(self.order[op.step])

    def _comes_again(self, step: int) -> bool:
        """True if a step's layer runs again later, or its backward does."""
        layer = self.order[step]
        return layer in self.order[step + 1 :] or any(self.order[s] == layer for s in self.returns)

    def back(self, op: Op) -> None:
        self._gather(self.order[op.step])
        self._fetch(self.order[: op.step][::-1])

    def done(self, op: Op) -> None:
        if self.order[op.step] not in self.order[: op.step]:
            self._free(self.order[op.step])

    def grad(self, op: Op) -> None:
        self.add("activations", -op.size)
        self._into_bucket(self.trained.parameters[op.param].numel)

    def end(self) -> None:
        self._reduce()
        for layer in [*self.gathered]:
            self._free(layer)
        self.add("strategy", -self.ahead)

    def step(self) -> None:
        if not self.offload:
            self.add("strategy", MASTER * max(self.pieces))
