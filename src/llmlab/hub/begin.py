"""A run that begins from a Hugging Face checkpoint (`init_from=hf=FOLDER`): its model, its tokenizer, its weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from llmlab import registry
from llmlab.config import layout, learned
from llmlab.config.spec import PartSpec
from llmlab.config.spelling import quoted
from llmlab.errors import UserError
from llmlab.hub.adapter_names import CONFIG
from llmlab.hub.compare import difference
from llmlab.hub.load import Description, check, describe, load_hf
from llmlab.hub.locate import locate
from llmlab.model import adapters
from llmlab.model.model import Model
from llmlab.slot_names import LAYER_SLOTS

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

    from llmlab.config.composed import Composed

# What may be typed all the same: training feels it alone, or the shapes show whether it fits.
FREE = (
    *learned.SLOTS,
    "model.dropout",
    "model.attention.dropout",
    "model.ffn.dropout",
    "model.max_positions",
    "model.moe.balance",
    "model.moe.z",
)

__all__ = ["Start", "check", "read_start", "weights"]


@dataclass(frozen=True)
class Start:
    name: str  # as typed after hf=
    folder: Path
    about: Description

    def merged(self, typed: list[Override]) -> tuple[list[str], list[str]]:
        """The checkpoint's choices and those that were typed, as overrides; and which of these contradict, a line each."""
        # Deferred: the parser takes 0.1 s to import (ANTLR).
        from hydra.core.override_parser.overrides_parser import OverridesParser

        own = OverridesParser.create().parse_overrides(
            [*self.about.trained, *self._tokenizer(typed), *self._heads(typed)]
        )
        # The package too: `window@kinds.local.window` and `window` are two choices.
        kept = {(o.key_or_group, o.package): o for o in own}
        mine, problems = [], []
        for o in typed:
            there = kept.get(place := (o.key_or_group, o.package))
            if o.key_or_group == "size":
                problems.append(f"{o.input_line}: the model of hf={self.name} has a size of its own; leave it out")
            elif other := self._other(o, own):
                problems.append(
                    f"{o.input_line} contradicts init_from=hf={self.name}, whose model has {other}; leave it out"
                )
            elif there is None or o.key_or_group in FREE:
                kept.pop(place, None)
                mine.append(str(o.input_line))
            # Parsed values are compared, since 1e-5 and 0.00001 are one number.
            elif o.is_delete() or o.value() != there.value():
                problems.append(
                    f"{o.input_line} contradicts init_from=hf={self.name}, whose model has {there.input_line}; leave it out"
                )
        return [*(str(o.input_line) for o in kept.values()), *mine], problems

    def _other(self, o: Override, own: list[Override]) -> str | None:
        """The part that stands where a typed one would go, if config.json sets options of it."""
        slot = o.key_or_group
        if slot not in LAYER_SLOTS or o.package or not any(x.key_or_group.startswith(f"{slot}.") for x in own):
            return None
        names = {layer.parts[slot].name for stack in self.about.spec.stacks for layer in stack.layers}
        return None if o.value() in names else f"{slot}={'|'.join(sorted(names))}"

    def _tokenizer(self, typed: list[Override]) -> list[str]:
        if any(o.key_or_group == "tokenizer" or o.key_or_group.startswith("tokenizer.") for o in typed):
            return []
        if not (self.folder / "tokenizer.json").is_file():
            raise UserError(
                f"init_from=hf={self.name}: {self.folder} has no tokenizer.json; "
                "name one with tokenizer=file tokenizer.path=FILE"
            )
        # Quoted: in an unquoted value Hydra's grammar takes a comma for a sweep, and refuses brackets and letters
        # beyond ASCII.
        return ["tokenizer=file", f"tokenizer.path={quoted(str(self.folder))}"]

    def _heads(self, typed: list[Override]) -> list[str]:
        """The heads that the checkpoint has of those that a typed objective trains beside the vocabulary's, which its own
        objective brings."""
        named = [(o.key_or_group, str(o.value())) for o in typed if o.key_or_group in learned.SLOTS]
        entry = registry.index().get(named[-1]) if named else None
        found = []
        for role in entry.attribute("heads") if entry else ():
            head = self.about.spec.heads.get(role)
            if head is not None and head.attribute("scores") != "vocabulary":
                usual = PartSpec.with_defaults("head", head.name).options
                found.append(f"head@heads.{role}={head.name}")
                changed = {k: v for k, v in head.options.items() if usual.get(k) != v}
                found += [f"heads.{role}.{k}={'null' if v is None else str(v).lower()}" for k, v in changed.items()]
        return found

    def contradictions(self, composed: Composed) -> list[str]:
        """Differences between the composed model and the checkpoint's, a line each. An objective may bring its own mask."""
        try:
            spec = adapters.without(
                layout.resolve(composed)
            )  # a checkpoint has none, whatever is put beside its linears
        except UserError as e:
            return str(e).splitlines()
        said = f"init_from=hf={self.name}"
        there = self.about.spec
        for role, head in spec.heads.items():  # of a text or a token, one that is not there is new
            if role not in there.heads and head.attribute("scores") == "vocabulary":
                name = (self.about.config.get("architectures") or list(self.about.entry.architectures))[0]
                of = learned.typed(composed.cfg)
                return [f"{said}: {name} has no head {role}={head.name}, which {of} trains"]
        if not any(t.group == "mask" for t in composed.typed):
            # An objective brings its mask, as causal training of a BERT does: that is no contradiction.
            pairs = zip(there.stacks, spec.stacks, strict=False)
            there = replace(there, stacks=tuple(replace(a, mask=b.mask) for a, b in pairs))
        both = [role for role in spec.heads if role in there.heads]
        one, other = (replace(s, heads={role: s.heads[role] for role in both}) for s in (spec, there))
        wrong = difference(one, other)
        return [f"{wrong} is not what the model of {said} has; leave it out"] if wrong else []


def read_start(name: str) -> Start:
    folder = locate(name)
    if (folder / CONFIG).is_file() and not (folder / "config.json").is_file():
        raise UserError(
            f"init_from=hf={name}: it holds an adapter and no model; give its base, and init_from.adapter={name} beside"
        )
    return Start(name, folder, describe(folder))


def weights(folder: Path, model: Model) -> dict[str, Tensor]:
    """Whole tensors by our paths, without the heads that `model` lacks."""
    heads = {f"heads.{role}." for role in model.heads}
    loaded: Model = load_hf(folder, verbose=False).model
    return {k: v for k, v in loaded.state_dict().items() if k[:6] != "heads." or any(map(k.startswith, heads))}
