"""FSDP2's memory: a layer is a group of parameters that are gathered and reduced together, the rest is another.

What is done when is that of torch.distributed.fsdp's `fully_shard` as `strategies.fsdp` calls it: layers are freed behind
their forward, the rest stays; while a layer is computed the flat result of its gathering is kept in the forward, the next
one's is fetched in the backward, and the flat gradient of the layer before is still being reduced.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from llmlab.plan.activations import Op
from llmlab.plan.parameters import Parameter, state_bytes
from llmlab.plan.replay import Replay, Trained

REST = -1


class FSDP(Replay):
    """world: data-parallel ranks. order: the layer of each executed step."""

    def __init__(self, trained: Trained, world: int, order: Sequence[int]):
        super().__init__(trained)
        self.world, self.order = world, order
        # Bytes when gathered, padding included: dimension 0 is padded to a multiple of the ranks
        # (`padded_sharded_param_size`).
        self.whole = self._by_group(trained.parameters)
        self.gathered: set[int] = set()
        self.fetched: set[int] = set()  # gathered, but not yet laid out
        # Memory that the forward keeps of the last all-gather (`comm_ctx.all_gather_state`).
        self.flat = 0
        self.unreduced: dict[int, int] = {}  # gradients of groups
        self.reducing = 0
        # Groups in the order in which their forward ended (`post_forward_order`), each as often as it ran.
        self.visits: list[int] = []
        self.visits_of: dict[int, list[int]] = {}  # places in it
        self.awake: set[int] = set()  # groups whose backward has begun and not ended

    def _by_group(self, parameters: tuple[Parameter, ...]) -> dict[int, int]:
        found = dict.fromkeys([REST, *self.order], 0)
        for p in parameters:
            found[p.layer] += self.world * math.prod(p.shard(self.world)) * self.trained.dtype.itemsize
        return found

    def begin(self) -> None:
        self.reduced = self._by_group(self.reached)
        # The first rank's shard, which is the padded size on every rank.
        self.add("weights", sum(self.whole.values()) // self.world)
        self.add("states", state_bytes(self.trained.optimizer, self.reached, self.trained.dtype, self.world))
        if self.trained.accumulates:
            self.add("gradients", sum(self.reduced.values()) // self.world)
        # The root's own parameters are not resharded after the forward: the backward would gather them at once again.
        self._gather(REST, forward=True)

    # ---------------------------------------------------------------- gathering

    def _fetch(self, group: int) -> None:
        if group not in self.gathered and group not in self.fetched:
            self.add("strategy", self._flat(group))
            self.fetched.add(group)

    def _gather(self, group: int, forward: bool) -> None:
        if group in self.gathered:
            return
        self._fetch(group)
        # In the forward FSDP2 keeps the result of a gathering until the next one waits for it (`all_gather_state`), so that
        # copying out overlaps with that one.
        if forward:
            self.add("strategy", -self.flat)
        self.add("strategy", self.whole[group])
        self.fetched.remove(group)
        self.gathered.add(group)
        if forward:
            self.flat = self._flat(group)
        else:
            self.add("strategy", -self._flat(group))

    def _flat(self, group: int) -> int:
        """With one rank parameters are copied as they are."""
        return self.whole[group] if self.world > 1 else 0

    def _free(self, group: int) -> None:
        if group in self.gathered:
            self.gathered.remove(group)
            self.add("strategy", -self.whole[group])

    # ---------------------------------------------------------------- the step

    def enter(self, op: Op) -> None:
        # FSDP2 gathers nothing ahead in the forward unless it is told to (`set_modules_to_forward_prefetch`).
        self._gather(self.order[op.step], forward=True)

    def leave(self, op: Op) -> None:
        self._free(self.order[op.step])
        self._visited(self.order[op.step])

    def _visited(self, group: int) -> None:
        self.visits_of.setdefault(group, []).append(len(self.visits))
        self.visits.append(group)

    def read(self, op: Op) -> None:
        # The root's post-forward drops the last result of a gathering.
        self.add("strategy", -self.flat)
        self.flat = 0
        self._visited(REST)

    def wake(self, op: Op) -> None:
        self._wake(REST)

    def back(self, op: Op) -> None:
        self._wake(self.order[op.step])

    def _wake(self, group: int) -> None:
        """Gathered, and the one before it in the forward is fetched."""
        if group in self.awake:
            return
        self.awake.add(group)
        self._gather(group, forward=False)
        # `_backward_prefetch`: the target is the one before in `post_forward_order`.
        if (place := self.visits_of[group].pop()) > 0:
            self._fetch(self.visits[place - 1])

    def grad(self, op: Op) -> None:
        """The whole gradient of a gathered parameter, until its group is reduced."""
        p = self.trained.parameters[op.param]
        size = self.bytes_of(p)
        # With FSDP2 the gradient is of the gathered parameter, and goes into the flat input of the reduce-scatter.
        self.add("activations", -op.size)
        self.add("strategy", size)
        self.unreduced[p.layer] = self.unreduced.get(p.layer, 0) + size

    def done(self, op: Op) -> None:
        self.awake.discard(self.order[op.step])
        self._reduce(self.order[op.step])

    def end(self) -> None:
        for group in [*self.unreduced]:
            self._reduce(group)
        # A frozen layer's, before the first that learns: fetched ahead and never used.
        for group in self.fetched:
            self.add("strategy", -self._flat(group))
        self.add("strategy", -self.reducing)

    def _reduce(self, group: int) -> None:
        self._free(group)
        # `post_backward` first waits for the reduce-scatter before, and drops its input.
        self.add("strategy", -self.reducing)
        self.reducing = 0
        if (whole := self.unreduced.pop(group, 0)) == 0:
            return
        # Its input stays until the next group's reduction: one is in flight at most
        # (`reduce_scatter_max_input_buffers`, torch 2.13).
        self.reducing = self.reduced[group]
        self.add("strategy", self.reducing)
        self.add("strategy", -whole)
        self.add("gradients", self.reducing // self.world)
        if self.trained.accumulates:
            self.add("gradients", -self.reducing // self.world)
