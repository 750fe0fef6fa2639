"""Parsing of the parts, options and families given to `llmlab check`. Imports no torch: errors come at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llmlab import registry
from llmlab.errors import UserError
from llmlab.registry import near
from llmlab.slot_names import LAYER_SLOTS, place_of

LEARNING_SLOTS = ("objective", "mask")  # chosen together: an objective names the mask that it trains under
MODEL_SLOTS = (*LEARNING_SLOTS, *LAYER_SLOTS, "embedding", "kernel", "head", "init")
ALONE_SLOTS = (
    "filter",
    "optimizer",
    "schedule",
    "reward",
    "adapter",
)  # of parts that are in no model, or beside the linears of any, so that each is checked by itself
METHOD_SLOTS = ("alignment",)  # of parts that train a decoder in the objective's place: each in one model, by itself
SLOTS = (*MODEL_SLOTS, *METHOD_SLOTS, *ALONE_SLOTS)
BASE_FAMILY = "llama3"  # gives the sizes and traits of a model where no family is typed


@dataclass(frozen=True)
class Request:
    """A parsed request.

    `items`: (slot, part) as typed; `options`: overrides of their options and of the model's sizes and traits.
    """

    items: tuple[tuple[str, str], ...]
    options: tuple[str, ...]
    family: str | None

    @property
    def whole(self) -> bool:
        """True where nothing is named, so that everything is checked."""
        return not self.items and self.family is None


def parse_request(words: Sequence[str]) -> Request:
    """Parse SLOT=PART, SLOT.OPTION=VALUE and model=FAMILY words. UserError with a line for each that does not exist."""
    items: dict[str, str] = {}
    options: list[str] = []
    family, problems = None, []
    for word in words:
        key, _, value = word.partition("=")
        if key == "model":
            family = value
        elif key in SLOTS:
            items[key] = value
        else:
            options.append(word)
    problems += [p for slot, name in items.items() if (p := _unknown(slot, name))]
    if not problems:
        problems += [p for word in options if (p := _wrong_option(word.partition("=")[0], items, family))]
    if family is not None:
        from llmlab.config.model_files import families

        if family not in families():
            problems.append(f"model={family}: there is no such family; {near(family, families())}")
    problems += _together(items, family)
    if options and not items and family is None:
        problems.append(f"{options[0]}: which model is it for? Add SLOT=PART or model=FAMILY")
    if not problems and options:
        problems = _wrong_values(items, options, family or BASE_FAMILY)
    if problems:
        raise UserError("\n".join(problems))
    return Request(tuple(items.items()), tuple(options), family)


def _unknown(slot: str, name: str) -> str | None:
    if (slot, name) in registry.index():
        return None
    if why := registry.broken(slot, name):
        return f"{slot}={name} can't be read: {why}"
    from llmlab.config.choices import choices

    if name in choices(slot):
        return f"{slot}={name} is a preset; name the part and its options ({', '.join(registry.names(slot))})"
    return f"{slot}={name}: there is no such {slot}; {near(name, registry.names(slot))}"


def _together(items: Mapping[str, str], family: str | None) -> list[str]:
    """A problem for each part that is checked by itself, where others are named too."""
    if len(items) == 1 and family is None:
        return []
    alone = {**dict.fromkeys(ALONE_SLOTS, "is in no model"), **dict.fromkeys(METHOD_SLOTS, "goes by no other part")}
    alone["adapter"] = "adapts the linears of any model"
    words = [(f"{slot}={name}", alone[slot]) for slot, name in items.items() if slot in alone]
    return [f"{word} {why}, so it is checked by itself: llmlab check {word}" for word, why in words]


def _wrong_values(items: dict[str, str], options: Sequence[str], family: str) -> list[str]:
    """Problems of keys and values that no config accepts. Combinations that parts refuse are left to the checks."""
    from llmlab.config.compose import compose, misspelt

    # A head is chosen for a role (head@heads.ROLE), so head=NAME is no override that Hydra knows.
    parts = [f"{slot}={name}" for slot, name in items.items() if slot != "head"]
    if problems := misspelt([f"model={family}", *parts, *options]):
        return problems
    if sizes := [w for w in options if w.startswith("model.")]:
        # Sizes that contradict each other are found by composing only; not strict, since a trait may be for one part alone.
        compose([f"model={family}", *sizes], strict=False)
    return []


def _wrong_option(key: str, items: dict[str, str], family: str | None) -> str | None:
    slot, dot, option = key.partition(".")
    if not dot or slot not in (*SLOTS, "model"):
        return (
            f"{key}: llmlab check takes SLOT=PART, SLOT.OPTION=VALUE and model=FAMILY; {near(slot, (*SLOTS, 'model'))}"
        )
    if slot == "head":
        return f"{key}: heads are checked with the options that a short text shows; leave it out"
    if slot == "model" or (slot not in items and family is not None):
        return None  # composing the config decides, in _wrong_values
    if slot not in items:
        return f"{key}: of which {slot}? Add {slot}=NAME"
    known = registry.index()[slot, items[slot]].options
    place = place_of(slot, items[slot])
    if place != slot:
        if not key.startswith(place + "."):
            return f"{key}: its options stand under its name, as {place}.{next(iter(known), 'OPTION')}"
        option = key.removeprefix(place + ".")
    if option not in known:
        return f"{key}: {items[slot]} has no such option; {near(option, known)}"
    return None
