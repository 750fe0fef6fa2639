"""The models of a run that has companions, which are traced as deep as they are, not from shallow ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from llmlab.config.spec import ModelSpec
from llmlab.model import build
from llmlab.model.trainable import Filter
from llmlab.plan.activations import Op
from llmlab.plan.parameters import Parameter, table
from llmlab.plan.split import split
from llmlab.training.companions import Companion, same_frozen


class Several:
    """As `depth.Deep`. parameters: of all models, those of a companion under `models.ROLE.`, layers counted over all. held: the
    same where each device holds them whole; those of a copy that are the trained model's own take nothing."""

    def __init__(
        self,
        spec: ModelSpec,
        companions: Mapping[str, Companion],
        tensor_parallel: int = 1,
        learns: Filter | None = None,
    ):
        self.short = spec
        trained = build.assemble(spec)
        if learns is not None:
            learns.apply(trained)
        # All before any is split: a companion may use a table of the trained model.
        others = {companion.prefix: companion.assemble(trained) for companion in companions.values()}
        self.frozen = frozenset(p.path for p in table(trained) if not p.learns)
        found: list[Parameter] = []
        layers = 0
        for prefix, model in {"": trained, **others}.items():
            if tensor_parallel > 1:
                split(model, tensor_parallel)
            for p in table(model):
                found.append(replace(p, path=prefix + p.path, layer=p.layer + layers if p.layer >= 0 else p.layer))
            layers += sum(len(stack.layers) for stack in model.all_stacks())
        self.parameters = tuple(found)
        again = {c.prefix + path for c in companions.values() for path in same_frozen(trained, c)}
        self.held = tuple(replace(p, shape=(0,)) if p.path in again else p for p in found)

    def lengthened(self, ops: Sequence[Op]) -> list[Op]:
        return list(ops)

    @staticmethod
    def order(ops: Sequence[Op]) -> list[int]:
        """The layer of each executed step."""
        return [op.param for op in ops if op.kind == "enter"]
