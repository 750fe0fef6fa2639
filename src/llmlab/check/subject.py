"""What is checked: a tiny model, as one would type it, and what a check says of it.

A check is a function of a `Subject`. It returns where all is well, raises `Wrong` with one line where it isn't, and
`NotApplicable` with the reason where it has nothing to ask of this model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from llmlab.model.layout import ModelSpec
    from llmlab.model.model import Model

LENGTH, SOURCE, VOCABULARY = 12, 9, 61


class Wrong(AssertionError):
    """A check has failed; the message is one line that says what is so and what should be."""


class NotApplicable(Exception):
    """A check has nothing to ask of this model; the message is the reason."""


@dataclass(frozen=True)
class Case:
    """A model to be checked. `overrides`: as typed, sizes included; `mask`: one that stands in the last stack instead of
    the objective's own, where no objective trains under it."""

    name: str
    overrides: tuple[str, ...]
    kind: Literal["pair", "family"] = "pair"
    mask: str | None = None


class Result(NamedTuple):
    """What one check found in one case. `passed`, `failed`, `refused` (the model can't be had: the reason, what to choose
    instead) or `skipped` (the check does not apply)."""

    case: str
    check: str
    outcome: Literal["passed", "failed", "refused", "skipped"]
    says: str = ""
    command: str = ""  # the smallest that shows a failure again


class Subject:
    """A case, built. UserError from `spec` or `model` where the combination is refused."""

    def __init__(self, case: Case):
        self.case = case

    @cached_property
    def composed(self) -> Any:
        from llmlab.config.compose import compose

        return compose(self.case.overrides)

    @cached_property
    def spec(self) -> ModelSpec:
        from llmlab.model import layout

        spec = layout.resolve(self.composed)
        if self.case.mask is None:
            return spec
        mask = layout.PartSpec("mask", self.case.mask, {})
        pattern = mask.attribute("pattern")
        last = spec.stacks[-1]
        sizes = last.sizes.but(causal=pattern == "causal", sees_all=pattern == "full")
        model = spec.sizes.but(causal=sizes.causal, sees_all=sizes.sees_all)
        return replace(spec, sizes=model, stacks=(*spec.stacks[:-1], replace(last, mask=mask, sizes=sizes)))

    @cached_property
    def model(self) -> Model:
        """In eval mode, awake: what begins as a constant or small has random values, so that every part counts."""
        return wake(self.fresh()).eval()

    def fresh(self, **changes: Any) -> Model:
        """Another one, with its first values. changes: fields of the spec (kernel=...)."""
        from llmlab.model.build import build_model

        return build_model(replace(self.spec, **changes), seed=1)

    @property
    def encoder_decoder(self) -> bool:
        return self.spec.topology == "encoder_decoder"

    def batch(self, length: int = LENGTH, rows: int = 2, seed: int = 0) -> dict[str, Tensor]:
        """Ids, a source with padding for an encoder-decoder, and the data that the mask reads."""
        batch = {"ids": ids(rows, length, seed)}
        if self.encoder_decoder:
            batch["source_ids"] = ids(rows, SOURCE, seed + 1)
            lengths = torch.tensor([SOURCE, SOURCE - 3, SOURCE - 2, SOURCE - 4])[:rows, None]
            batch["source_valid"] = torch.arange(SOURCE)[None] < lengths
        return batch | self.read_by_mask(length, rows)

    def read_by_mask(self, length: int, rows: int) -> dict[str, Tensor]:
        needs = self.model.all_stacks()[-1].mask.needs
        known = {
            "prefix_len": torch.tensor([4, 2, 5, 0])[:rows],
            "rank": torch.stack([torch.randperm(length, generator=generator(i)) for i in range(rows)]),
            "queries": torch.zeros(rows, length, dtype=torch.bool),
        }
        if missing := [n for n in needs if n not in known]:
            raise NotApplicable(f"its mask reads {', '.join(missing)}, for which the check has no example")
        return {n: known[n] for n in needs}


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def ids(rows: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(1, VOCABULARY, (rows, length), generator=generator(seed))


@torch.no_grad()
def wake(model: Model, seed: int = 1) -> Model:
    """Random values on top of the first ones."""
    chance = generator(seed)
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.is_floating_point():
            tensor.add_(torch.randn(tensor.shape, generator=chance) * (0.3 if tensor.dim() > 1 else 0.1))
    return model


def same(one: Tensor, other: Tensor, says: str, tolerance: float = 1e-4) -> None:
    """Wrong, with how far they are apart, unless both are finite and equal to `tolerance` of the larger's scale."""
    if one.shape != other.shape:
        raise Wrong(f"{says}: the shapes are {tuple(one.shape)} and {tuple(other.shape)}")
    scale = max(1.0, float(other.abs().max())) if other.numel() else 1.0
    apart = float((one.double() - other.double()).abs().max()) if one.numel() else 0.0
    if not apart <= tolerance * scale:
        raise Wrong(f"{says}: they differ by {apart:.2g}")


def outputs(model: Model, batch: Mapping[str, Tensor]) -> Tensor:
    """The hidden states of the last stack, (B, T, D)."""
    return model(batch).hidden
