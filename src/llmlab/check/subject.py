"""What is checked: a tiny model, as one would type it, and what a check says of it.

A check is a function of a `Subject`. It returns where all is well, raises `Wrong` with one line where it isn't, and
`NotApplicable` with the reason where it has nothing to ask of this model.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

import torch
from torch import Tensor

from llmlab import attributes, registry

if TYPE_CHECKING:
    from llmlab.config.spec import ModelSpec, PartSpec
    from llmlab.model.model import Model

LENGTH, SOURCE, VOCABULARY = 12, 9, 61
N_QUERIES = 3  # tokens of a second stream, behind the text
FIRST_ID = 5  # ids below it are padding and the like to some parts


class CheckFailed(AssertionError):
    """A check has failed; the message is one line that says what is so and what should be."""


class NotApplicable(Exception):
    """A check has nothing to ask of this model; the message is the reason."""


@dataclass(frozen=True)
class Case:
    """A model to be checked. `overrides`: as typed, sizes included; `parts`: the (slot, name) pairs that it is about, of a
    case of kind "part" the one whose checks are run; `mask`: one that stands in the last stack instead of the objective's
    own, where no objective trains under it; `head`: one in the role that an objective has for it, else in one of its own.
    `swap`: the overrides without those of its one part, where that gives the same and is quicker.
    """

    name: str
    overrides: tuple[str, ...]
    kind: Literal["pair", "family", "part", "swap"] = "pair"
    mask: str | None = None
    head: str | None = None
    parts: tuple[tuple[str, str], ...] = ()
    swap: tuple[str, ...] | None = None


class Result(NamedTuple):
    """What one check found in one case. `passed`, `failed`, `refused` (the model can't be had: the reason, what to choose
    instead) or `skipped` (the check does not apply)."""

    case: str
    check: str
    outcome: Literal["passed", "failed", "refused", "skipped"]
    message: str = ""
    command: str = ""  # the smallest that shows a failure again


class Subject:
    """A case, built. UserError from `spec` or `model` where the combination is refused."""

    def __init__(self, case: Case):
        self.case = case

    @cached_property
    def composed(self) -> Any:
        from llmlab.config.compose import compose, swapped

        if self.case.swap is None:
            return compose(self.case.overrides)
        slot, name = self.case.parts[0]
        return swapped(_composed_config(self.case.swap), slot, name, registry.index()[slot, name].attribute("small"))

    @cached_property
    def spec(self) -> ModelSpec:
        from llmlab.config import layout

        return with_mask_and_head(layout.resolve(self.composed), self.case.mask, self.case.head)

    @cached_property
    def model(self) -> Model:
        """In eval mode, awake: what begins as a constant or small has random values, so that every part counts.

        Checks share it, and leave it as it is.
        """
        return randomise(self.fresh()).eval()

    def fresh(self, **changes: Any) -> Model:
        """Another one, with its first values. changes: fields of the spec (kernel=...)."""
        from llmlab.model.build import build_model

        return build_model(replace(self.spec, **changes), seed=1)

    def traits(self, **changes: Any) -> dict[str, Any]:
        """Fields of the spec, for `fresh`, with other sizes in every stack: a field of Sizes, or one of a group of traits
        as group__field."""

        def changed(sizes: Any) -> Any:
            for key, value in changes.items():
                group, _, name = key.rpartition("__")
                sizes = sizes.but(**{group: replace(getattr(sizes, group), **{name: value})} if group else {key: value})
            return sizes

        stacks = tuple(replace(s, sizes=changed(s.sizes)) for s in self.spec.stacks)
        return {"sizes": changed(self.spec.sizes), "stacks": stacks}

    @cached_property
    def roles(self) -> dict[str, None]:
        """The heads that read hidden states and nothing else of a batch."""
        return {role: None for role, part in self.spec.heads.items() if not part.attribute("needs")}

    @cached_property
    def token_roles(self) -> dict[str, None]:
        """Those of them that read one token at a time."""
        return {role: None for role in self.roles if self.spec.heads[role].attribute("per_token")}

    @cached_property
    def expert_choice(self) -> bool:
        """Whether experts choose among all tokens of a batch, so that each token counts for all others."""
        from llmlab.slots import Choice

        layers: list[Any] = [(layer, stack.sizes.dim) for stack in self.model.all_stacks() for layer in stack.layers]
        with torch.no_grad():
            said = [layer.ffn.router(torch.zeros(2, width), None) for layer, width in layers if layer.routed]
        return any(isinstance(routing, Choice) for routing in said)

    @property
    def splits_batch(self) -> bool:
        """Whether what a row gives depends on which half of a batch it is in."""
        return any(attributes.of(p, "position", "splits") for stack in self.model.all_stacks() for p in stack.positions)

    @property
    def encoder_decoder(self) -> bool:
        return self.spec.topology == "encoder_decoder"

    def batch(self, length: int = LENGTH, rows: int = 2, seed: int = 0, two_streams: bool = False) -> dict[str, Tensor]:
        """Ids, a source with padding for an encoder-decoder, and what the mask and the heads read of it. two_streams: where the
        mask knows a second stream, the last tokens stand in it."""
        batch = {"ids": random_ids(rows, length, seed)}
        if self.encoder_decoder:
            batch["source_ids"] = random_ids(rows, SOURCE, seed + 1)
            lengths = torch.tensor([SOURCE, SOURCE - 3, SOURCE - 2, SOURCE - 4])[torch.arange(rows) % 4, None]
            batch["source_valid"] = torch.arange(SOURCE)[None] < lengths
        return batch | self.read_by_parts(length, rows, two_streams)

    def read_by_parts(self, length: int, rows: int, two_streams: bool = False) -> dict[str, Tensor]:
        needs = list(self.model.all_stacks()[-1].mask.needs)
        needs += [n for part in self.spec.heads.values() for n in part.attribute("needs")]
        known = {
            "prefix_len": torch.tensor([4, 2, 5, 0])[torch.arange(rows) % 4],
            "rank": torch.stack([torch.randperm(length, generator=generator(i)) for i in range(rows)]),
            "queries": torch.zeros(rows, length, dtype=torch.bool),
            "boundary_left": torch.tensor([[0, 2], [3, 1]]).repeat(rows, 1)[:rows],
            "boundary_right": torch.tensor([[2, 5], [5, 4]]).repeat(rows, 1)[:rows].clamp(max=length - 1),
            "boundary_offset": torch.tensor([[0, 1], [0, 1]]).repeat(rows, 1)[:rows],
        }
        if missing := [n for n in needs if n not in known]:
            raise NotApplicable(f"its mask or a head reads {', '.join(missing)}, for which the check has no example")
        data = {n: known[n] for n in needs}
        if two_streams and "queries" in needs:
            data["queries"][:, length - N_QUERIES :] = True
            text = torch.arange(length - N_QUERIES).expand(rows, -1)
            places = torch.stack([torch.randperm(length - N_QUERIES, generator=generator(9 + i)) for i in range(rows)])
            data["positions"] = torch.cat([text, places[:, :N_QUERIES]], 1)
            data["rank"] = data["rank"][:, : length - N_QUERIES].gather(1, data["positions"])
        return data


@cache
def _composed_config(overrides: tuple[str, ...]) -> Any:
    from llmlab.config.compose import compose

    return compose(overrides)


def with_mask_and_head(spec: ModelSpec, mask: str | None, head: str | None) -> ModelSpec:
    """The model under a mask, or with a head, that no objective asks for."""
    if head is not None:
        spec = replace(spec, heads={**spec.heads, head_role(head): small_part("head", head)})
    if mask is None:
        return spec
    part, last = small_part("mask", mask), spec.stacks[-1]
    pattern = part.attribute("pattern")
    sizes = last.sizes.but(causal=pattern == "causal", sees_all=pattern == "full")
    model = spec.sizes.but(causal=sizes.causal, sees_all=sizes.sees_all)
    return replace(spec, sizes=model, stacks=(*spec.stacks[:-1], replace(last, mask=part, sizes=sizes)))


def head_role(head: str) -> str:
    """What a head is for: what an objective has it for, else a role of its own."""
    named = (e.attribute("heads") for (slot, _), e in registry.index().items() if slot == "objective")
    return next((role for heads in named for role, name in heads.items() if name == head), head)


def small_part(slot: str, name: str) -> PartSpec:
    """A part with the options in which a short text shows what it does."""
    from llmlab.config.spec import PartSpec

    return PartSpec.of(slot, name, **registry.index()[slot, name].attribute("small"))


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_ids(rows: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(FIRST_ID, VOCABULARY, (rows, length), generator=generator(seed))


@torch.no_grad()
def randomise(model: Model, seed: int = 1) -> Model:
    """Random values on top of the first ones. Queries are shorter, or all of a softmax would go to one key."""
    chance = generator(seed)
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.is_floating_point():
            tensor.add_(torch.randn(tensor.shape, generator=chance) * (0.2 if tensor.dim() > 1 else 0.1))
    shorten_queries(model, 0.5)
    return model


@torch.no_grad()
def shorten_queries(model: Model, factor: float) -> None:
    for module in model.modules():
        if getattr(module, "role", None) == "q":
            cast("Any", module).weight.mul_(factor)


def assert_close(one: Tensor, other: Tensor, says: str, tolerance: float = 1e-4) -> None:
    """Wrong, with how far they are apart, unless both are finite and equal to `tolerance` of the larger's scale."""
    if one.shape != other.shape:
        raise CheckFailed(f"{says}: the shapes are {tuple(one.shape)} and {tuple(other.shape)}")
    scale = max(1.0, float(other.abs().max())) if other.numel() else 1.0
    apart = float((one.double() - other.double()).abs().max()) if one.numel() else 0.0
    if not apart <= tolerance * scale:
        raise CheckFailed(f"{says}: they differ by {apart:.2g}")
