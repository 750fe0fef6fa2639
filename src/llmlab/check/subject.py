"""The model under test (`Subject`), the overrides that describe it (`Case`), and the `Result` of a check.

A check is a function of a `Subject`. It returns if the model passes, raises `CheckFailed` with one line if it does not, and
`NotApplicable` with the reason where the question makes no sense for this model.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypedDict, Unpack, cast

import torch
from torch import Tensor

from llmlab import attributes, registry
from llmlab.check.request import ALONE_SLOTS

if TYPE_CHECKING:
    from llmlab.config.composed import Composed
    from llmlab.config.spec import ModelSpec, PartSpec, StackSpec
    from llmlab.model.model import Model
    from llmlab.sizes import Sizes

LENGTH, SOURCE, VOCABULARY = 12, 9, 61
N_QUERIES = 3  # tokens of the second stream (XLNet's queries), which stand behind the text
FIRST_ID = 5  # some parts take the ids below it for padding and the like


class CheckFailed(AssertionError):
    """Raised by a check that fails: one line with what was measured and what is right."""


class NotApplicable(Exception):
    """Raised by a check that does not apply to this model: the reason, in one line."""


@dataclass(frozen=True)
class Case:
    """A model to check.

    `overrides`: as typed, sizes included. `parts`: the (slot, name) pairs under test; in a case of kind "part" the one
    whose own checks run. `mask`: a mask for the last stack that no objective trains under, so that none can be typed.
    `head`: a head to add, in the role that an objective has for it, else in a role named after it. `swap`: the overrides
    without the one part that is swapped in: the family is then composed once for all parts of a slot instead of once for
    each. `options`: of the overrides, those that a case of kind "setting" is about.
    """

    name: str
    overrides: tuple[str, ...]
    kind: Literal["pair", "family", "part", "swap", "setting"] = "pair"
    mask: str | None = None
    head: str | None = None
    parts: tuple[tuple[str, str], ...] = ()
    swap: tuple[str, ...] | None = None
    options: tuple[str, ...] = ()

    @property
    def alone(self) -> bool:
        """True of a part that is asked without a model, so that there is none to build."""
        return bool(self.parts) and self.parts[0][0] in ALONE_SLOTS


Trait = float | str | None  # of a size or trait of the model


class SpecChanges(TypedDict, total=False):
    """Fields of ModelSpec that `Subject.traits` changes."""

    sizes: Sizes
    stacks: tuple[StackSpec, ...]


class Result(NamedTuple):
    """The outcome of one check of one case: passed, failed, refused (there can be no such model; the message is what a user
    is told) or skipped (the check does not apply)."""

    case: str
    check: str
    outcome: Literal["passed", "failed", "refused", "skipped"]
    message: str = ""
    command: str = ""  # reproduces a failure with as few parts as possible


class Subject:
    """A case and the model built from it. UserError from `spec` or `model` where the combination is refused."""

    def __init__(self, case: Case):
        self.case = case

    @cached_property
    def composed(self) -> Composed:
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
        """The model in eval mode with random values everywhere: a bias of 0, a norm's weight of 1 or a gate that starts
        closed would hide a bug in what it multiplies.

        All checks share it and must leave it as it is.
        """
        return randomise(self.fresh()).eval()

    def fresh(self, **changes: Unpack[SpecChanges]) -> Model:
        """A new model with its first values. changes: fields of the spec."""
        from llmlab.model.build import build_model

        return build_model(replace(self.spec, **changes), seed=1)

    def traits(self, **changes: Trait) -> SpecChanges:
        """Fields of the spec for `fresh`, with other sizes in every stack. changes: fields of Sizes, or group__field for one
        of a group of traits (`ffn__bias`)."""

        def changed(sizes: Sizes) -> Sizes:
            for key, value in changes.items():
                group, _, name = key.rpartition("__")
                sizes = sizes.but(**{group: replace(getattr(sizes, group), **{name: value})} if group else {key: value})
            return sizes

        stacks = tuple(replace(s, sizes=changed(s.sizes)) for s in self.spec.stacks)
        return {"sizes": changed(self.spec.sizes), "stacks": stacks}

    @cached_property
    def roles(self) -> dict[str, None]:
        """Roles of the heads that read hidden states and nothing else of a batch."""
        return {role: None for role, part in self.spec.heads.items() if not part.attribute("needs")}

    @cached_property
    def token_roles(self) -> dict[str, None]:
        """Roles of the heads that read one token at a time, of `roles`."""
        return {role: None for role in self.roles if self.spec.heads[role].attribute("per_token")}

    @cached_property
    def expert_choice(self) -> bool:
        """True where experts choose among all tokens of a batch, so that every token affects every other."""
        from llmlab.slots import Choice

        layers: list[tuple[Any, int]] = [
            (layer, stack.sizes.dim) for stack in self.model.all_stacks() for layer in stack.layers
        ]
        with torch.no_grad():
            routings = [layer.ffn.router(torch.zeros(2, width), None) for layer, width in layers if layer.routed]
        return any(isinstance(routing, Choice) for routing in routings)

    @property
    def splits_batch(self) -> bool:
        """True where the output of a row depends on the half of the batch that it is in."""
        return any(
            attributes.get(p, "position", "splits") for stack in self.model.all_stacks() for p in stack.positions
        )

    @property
    def encoder_decoder(self) -> bool:
        return self.spec.topology == "encoder_decoder"

    def batch(self, length: int = LENGTH, rows: int = 2, seed: int = 0, two_streams: bool = False) -> dict[str, Tensor]:
        """Ids, for an encoder-decoder a padded source, and the data that the mask and the heads need. two_streams: where the
        mask has a second stream, the last N_QUERIES tokens belong to it."""
        batch = {"ids": random_ids(rows, length, seed)}
        if self.encoder_decoder:
            batch["source_ids"] = random_ids(rows, SOURCE, seed + 1)
            lengths = torch.tensor([SOURCE, SOURCE - 3, SOURCE - 2, SOURCE - 4])[torch.arange(rows) % 4, None]
            batch["source_valid"] = torch.arange(SOURCE)[None] < lengths
        return batch | self.read_by_parts(length, rows, two_streams)

    def read_by_parts(self, length: int, rows: int, two_streams: bool = False) -> dict[str, Tensor]:
        """Example values of the batch keys that the mask and the heads `need`."""
        needs = list(self.model.all_stacks()[-1].mask.needs)
        needs += [n for part in self.spec.heads.values() for n in part.attribute("needs")]
        known = {
            "prefix_len": torch.tensor([4, 2, 5, 0])[torch.arange(rows) % 4],
            "rank": torch.stack([torch.randperm(length, generator=generator(i)) for i in range(rows)]),
            "queries": torch.zeros(rows, length, dtype=torch.bool),
            "placeholders": torch.zeros(rows, length, dtype=torch.bool),
            "context": torch.arange(rows * length).view(rows, length, 1) % FIRST_ID,
            "subwords": torch.arange(rows * length * 3).view(rows, length, 3) % 17 - 1,
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
            if "placeholders" in needs:
                # The first of the tokens that stand behind the text: a placeholder of what the next one asks for.
                data["placeholders"][:, length - N_QUERIES] = True
                data["queries"] &= ~data["placeholders"]
                for key in ("positions", "rank"):
                    data[key][:, length - N_QUERIES] = data[key][:, length - N_QUERIES + 1]
        return data


@cache
def _composed_config(overrides: tuple[str, ...]) -> Composed:
    from llmlab.config.compose import compose

    return compose(overrides)


def with_mask_and_head(spec: ModelSpec, mask: str | None, head: str | None) -> ModelSpec:
    """The spec with another mask in its last stack, or with one more head, neither of which an objective brings."""
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
    """The role that an objective has a head for, else a role named after the head."""
    named = (e.attribute("heads") for (slot, _), e in registry.index().items() if slot == "objective")
    return next((role for heads in named for role, name in heads.items() if name == head), head)


def small_part(slot: str, name: str) -> PartSpec:
    """A part with its `small` options: those in which a text of a dozen tokens shows what it does."""
    from llmlab.config.spec import PartSpec

    return PartSpec.with_defaults(slot, name, **registry.index()[slot, name].attribute("small"))


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_ids(rows: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(FIRST_ID, VOCABULARY, (rows, length), generator=generator(seed))


@torch.no_grad()
def randomise(model: Model, seed: int = 1) -> Model:
    """Add random values to the first ones. Queries are shortened: with long ones nearly all of a softmax goes to one key, and
    a change of any other key is lost in rounding."""
    chance = generator(seed)
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.is_floating_point():
            tensor.add_(torch.randn(tensor.shape, generator=chance) * (0.2 if tensor.dim() > 1 else 0.1))
    shorten_queries(model, 0.5)
    return model


@torch.no_grad()
def shorten_queries(model: Model, factor: float) -> None:
    """Scale the weights of all query projections, so that attention is spread more evenly."""
    for module in model.modules():
        if getattr(module, "role", None) == "q":
            cast("Any", module).weight.mul_(factor)


def assert_close(one: Tensor, other: Tensor, name: str, tolerance: float = 1e-4) -> None:
    """CheckFailed, beginning with `name`, unless both are finite and differ by at most `tolerance` times the largest value of
    `other` (or 1, if that is larger). Relative to the whole tensor: single values near 0 have no relative precision."""
    if one.shape != other.shape:
        raise CheckFailed(f"{name}: the shapes are {tuple(one.shape)} and {tuple(other.shape)}")
    scale = max(1.0, float(other.abs().max())) if other.numel() else 1.0
    apart = float((one.double() - other.double()).abs().max()) if one.numel() else 0.0
    if not apart <= tolerance * scale:  # a NaN fails this, and would pass `apart > ...`
        raise CheckFailed(f"{name}: they differ by {apart:.2g}")
