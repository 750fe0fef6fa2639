"""The attributes that a part may declare on its class: for each slot their types, defaults, meanings and values.

They are literals, read from the source without importing it. One that is public and literal but not in the table is refused
when parts are discovered, and so is a value that does not fit: a misspelt one would be ignored in silence.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, Union

from llmlab.attribute import Attribute
from llmlab.errors import near
from llmlab.objective_attributes import OBJECTIVE, Companion
from llmlab.sizes import ModelConfig

EVERY = "every slot"  # the key in `TABLE` of what any part may declare


def _model_keys(cls: type = ModelConfig, before: str = "") -> Iterator[str]:
    """Sizes and traits as they are written below `model.`"""
    for f in dataclasses.fields(cls):
        # By the default: annotations are texts where a module has the __future__ import.
        if dataclasses.is_dataclass(f.default_factory):
            yield from _model_keys(typing.cast("type", f.default_factory), f"{f.name}.")
        else:
            yield before + f.name


NEEDS = Attribute(tuple[str, ...], (), "keys of the batch that it reads as they are")
PATTERN = Attribute(
    str | None,
    None,
    "what it comes to, where it is just that, so that a kernel may take its fast path",
    ("causal", "full"),
)
HALVES = Attribute(
    bool, False, "in what it gives, neither half of a vector's numbers depends on the other half of any token's"
)
RELATIVE = Attribute(bool, False, "it goes by distance alone, so that pairs are counted by distance")

TABLE: Mapping[str, Mapping[str, Attribute]] = {
    EVERY: {
        "unused": Attribute(
            tuple[str, ...] | dict[str, tuple[str, ...]],
            (),
            "keys below `model.` that it can't honour; of kin, a dict of such tuples by registered name",
            tuple(_model_keys()),
        ),
        "small": Attribute(
            dict[str, Any], {}, "options with which a text of a dozen tokens shows what it does, for `llmlab check`"
        ),
        "telling": Attribute(
            tuple[dict[str, Any], ...],
            (),
            "settings of its options, beside each bool and Literal by itself, whose effect a tiny model shows; each is met in "
            "`llmlab check`",
            own=True,
        ),
        "idle": Attribute(tuple[str, ...], (), "its parameters that not every batch has a gradient for"),
        "estimates": Attribute(
            bool, False, "its gradient is not the slope of what it computes (a straight-through estimate)"
        ),
    },
    "norm": {},
    "position": {
        "scope": Attribute(str, "stack", 'one instance a stack, or one a "layer"', ("stack", "layer")),
        "counts": Attribute(int, 1, "numbers that place a token: 2 for a place and one in a block"),
        "caches_rotated": Attribute(
            bool, True, "False: angles depend on the length, so a cache keeps keys as they were projected"
        ),
        "has_regions": Attribute(bool, False, "`rotate` returns several terms"),
        "has_bias": Attribute(
            bool, False, "`bias` may return a tensor: a kernel that can't add one refuses when built"
        ),
        "splits": Attribute(bool, False, "what a row gives depends on which half of the batch it is in"),
        "relative": Attribute(bool, False, "scores are the same wherever a text begins"),
        "receding": Attribute(
            bool, False, "a token has a bias of 0 on itself, which falls with the distance of others"
        ),
        "projects": Attribute(bool, False, "it scores with the attention's projections: each layer asks `of_layer`"),
        "score_width": Attribute(int, 0, "numbers of a query that every distance is scored with"),
    },
    "embedding": {
        "width_option": Attribute(
            str, "", "the option that is its table's width, which a companion that shares a table takes over"
        ),
        "table": Attribute(
            bool, True, "False: it makes vectors otherwise, so that there is no table to tie or to share"
        ),
    },
    "block": {
        "final_norm": Attribute(bool, False, "the stack needs a norm after its last layer"),
        "keeps_input": Attribute(
            bool, False, "its stream stays close to its input, so that with a tied table a token scores itself first"
        ),
        "unnormed": Attribute(
            bool,
            False,
            "it has no norms: the stream's scale is what its sublayers make of it, which those of attention=lstm "
            "alone keep small",
        ),
        "halves": HALVES,
    },
    "attention": {
        "latents": Attribute(
            tuple[str, ...], (), "its linears that all heads share: tensor parallelism leaves them whole"
        ),
        "textbook": Attribute(
            bool,
            False,
            "without positions, norms and clipping it is out(softmax(scale q.k) v), one linear a role, heads in order",
        ),
        "recurrent": Attribute(
            bool,
            False,
            "it passes a state from token to token: nothing is hidden but by the mask's direction, documents and padding, and "
            "positions and windows have no place in it",
        ),
        "halves": HALVES,
    },
    "ffn": {
        "absent": Attribute(bool, False, "there is no feed-forward: a layer has its attention alone"),
    },
    "moe": {
        "dense": Attribute(bool, False, "there is no routing: a layer has one plain FFN"),
        "leaks": Attribute(bool, False, "tokens count for those before them, on purpose"),
    },
    "head": {
        "per_token": Attribute(bool, False, "it may be given the rows (n, D) of chosen tokens"),
        "per_target": Attribute(
            bool, False, "it gives a row for each of the targets that the batch names, (B, P, ...)"
        ),
        "needs": NEEDS,
        "layers": Attribute(
            bool, False, "it reads the hidden states of the layers that are asked for, (n, B, T, D), else of the last"
        ),
        "every_layer": Attribute(
            bool, False, "it reads the hidden states of all layers, (n + 1, B, T, D), and of what the first one reads"
        ),
        "exported": Attribute(
            bool, True, "False: it serves training alone, and a checkpoint of transformers leaves it out"
        ),
        "hidden": Attribute(bool, True, "False: it reads the batch and tables alone, so that layers need not run"),
        "scores": Attribute(
            str | None,
            None,
            "of what it gives scores: where an objective asks for one of them, no other can stand",
            ("vocabulary", "neighbours", "token", "text", "span", "context"),
        ),
    },
    "mask": {"pattern": PATTERN, "needs": NEEDS, "relative": RELATIVE},
    "window": {"pattern": PATTERN, "needs": NEEDS, "relative": RELATIVE},
    "kernel": {
        "devices": Attribute(tuple[str, ...], (), "where it computes or trains; (): anywhere", ("cpu", "cuda")),
        "dtypes": Attribute(tuple, (), "torch.dtypes in which it computes; (): any", literal=False),
    },
    "init": {
        "logit_variance": Attribute(
            float, 0.0, "what that of a model's first logits is at most, where they are to vary"
        ),
    },
    "adapter": {},
    "objective": OBJECTIVE,
    # A method takes the objective's place, so that it says the same of itself.
    "alignment": OBJECTIVE,
    "reward": {
        "needs": Attribute(tuple[str, ...], (), "fields of a record, beside its prompt, by which it judges an answer"),
        "models": Attribute(dict[str, Companion], {}, "finished models that it judges with, by role"),
        "shows": Attribute(tuple[str, ...], (), "numbers of an answer that are shown beside its reward", literal=False),
        "joins": Attribute(str, "", "the option that lists other rewards: it judges with their models too"),
        "joins_options": Attribute(str, "", "the option that lists the options of each of them"),
    },
    "optimizer": {},
    "schedule": {},
    "filter": {
        "files": Attribute(
            tuple[str, ...],
            (),
            "options that name files which it reads: a corpus is made anew when one of them changes",
        ),
        "libraries": Attribute(
            tuple[str, ...], (), "packages that it needs: a corpus is made anew when the version of one of them changes"
        ),
    },
}

# What was declared so before, and how it is now.
EARLIER = {
    ("objective", "bits_per_byte"): 'measures = {"nll": "bits"} where it was True',
    ("objective", "fixed_count"): "fixed_counts",
}


def of_slot(slot: str) -> dict[str, Attribute]:
    """All that a part of a slot may declare."""
    return {**TABLE[EVERY], **TABLE[slot]}


def get(part: object, slot: str, name: str) -> Any:
    """An attribute of a part (its class or an instance), or the table's default. slot: EVERY where it may be any."""
    # A part need not have a base class that would hold the defaults.
    return getattr(part, name, TABLE[slot][name].default)


def complete(cls: type, slot: str) -> None:
    """Gives a class what its slot's table has and it does not. Not for modules, where it would hide a child of that name."""
    for name, declared in TABLE[slot].items():
        # Inherited ones count: a part may be made of another.
        if not hasattr(cls, name):
            setattr(cls, name, declared.default)


def problem(slot: str, name: str, value: object, options: Iterable[str] = ()) -> str | None:
    """The fault of a declared attribute of a part that has these options, or None."""
    known = of_slot(slot)
    # Before the table: a plugin that was written for an older version is told the new name.
    if (slot, name) in EARLIER:
        return f"{name} is called otherwise now; write {EARLIER[slot, name]}"
    if name not in known:
        return f"{name} is no attribute of the slot {slot} (a part's own begin with _); {near(name, known)}"
    declared = known[name]
    if not fits(value, declared.type):
        return f"{name} must be {spelled(declared.type)}, but is {value!r}"
    for word in strings(value) if declared.choices else ():
        if word not in declared.choices:
            return f"{name} can't be {word!r}; {near(word, declared.choices)}"
    if name == "when":
        return _problem_of_cases(slot, value, options)
    if name in ("joins", "joins_options", "joins_names") and value and str(value) not in options:
        return f"{name} names {value!r}, which is no option of the part; {near(str(value), options)}"
    if name in ("small", "telling"):
        for key in (key for setting in (value if isinstance(value, tuple) else (value,)) for key in setting):
            if key not in options:
                return f"{name} names {key!r}, which is no option of the part; {near(key, options)}"
    return None


def _problem_of_cases(slot: str, cases: Any, options: Iterable[str]) -> str | None:
    """The fault of what is declared for values of options."""
    for case, declared in cases.items():
        if (option := case.partition("=")[0]) not in options:
            return f"when names {option!r}, which is no option of the part; {near(option, options)}"
        for name, value in declared.items():
            if name in ("when", "joins", "joins_options", "joins_names", "small", "telling"):
                return f"when[{case!r}] can't hold {name}"
            if wrong := problem(slot, name, value, options):
                return f"when[{case!r}]: {wrong}"
    return None


def holds(case: str, options: Mapping[str, Any]) -> bool:
    """True if options are as a key of `when` says."""
    option, equal, wanted = case.partition("=")
    value = options.get(option)
    if not equal:
        return bool(value)
    # As YAML spells them, so that a key reads like the word that is typed.
    return wanted == {True: "true", False: "false", None: "null"}.get(value, str(value))  # type: ignore[arg-type]


def merged(one: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Declared attributes with more of them: dicts are merged, tuples joined, other values replaced."""
    found = dict(one)
    for name, value in more.items():
        old = found.get(name)
        if isinstance(value, dict) and isinstance(old, dict):
            found[name] = {**old, **value}
        elif isinstance(value, tuple) and isinstance(old, tuple):
            found[name] = (*old, *(v for v in value if v not in old))
        else:
            found[name] = value
    return found


def fits(value: object, kind: Any) -> bool:
    """True if a literal is of a type. An int is a float; a bool is no int."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return True
    # `int | None` has another origin than Optional[int] (Python 3.11).
    if origin in (Union, types.UnionType):
        return any(fits(value, k) for k in inner)
    if origin is Literal:
        return value in inner
    if typing.is_typeddict(kind):
        hints = typing.get_type_hints(kind)
        return isinstance(value, dict) and all(k in hints and fits(v, hints[k]) for k, v in value.items())
    if origin is tuple:
        return isinstance(value, tuple) and all(fits(v, inner[0]) for v in value)
    if origin is dict:
        return isinstance(value, dict) and all(fits(k, inner[0]) and fits(v, inner[1]) for k, v in value.items())
    if kind is float:
        # isinstance takes a bool for an int.
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, type(None) if kind is None else kind) and (kind is bool or not isinstance(value, bool))


def strings(value: object) -> Iterator[str]:
    """The strings in a value; of a dict, in its values."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | tuple):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from strings(inner)


def spelled(kind: Any) -> str:
    """A type as it is written."""
    # tuple[str, ...] passes for a type, and its __name__ is only "tuple".
    return kind.__name__ if isinstance(kind, type) and not typing.get_args(kind) else str(kind).replace("typing.", "")


def page() -> str:
    """The table as a page of the documentation."""
    lines = [
        "# What a part declares of itself",
        "",
        "Written by `python -m llmlab.attributes`. A part may declare these attributes on its class. They are literals, read",
        "without importing the file; any other public literal there is refused when parts are discovered, and so is a value",
        "that does not fit. What is the part's own affair begins with `_` or is set in its constructor.",
    ]
    for slot, declared in TABLE.items():
        if declared:
            lines += [
                "",
                f"## {slot.capitalize()}",
                "",
                "| attribute | type | default | meaning |",
                "|---|---|---|---|",
            ]
        for name, a in declared.items():
            kind = " or ".join(f'"{c}"' for c in a.choices) if 0 < len(a.choices) < 9 else spelled(a.type)
            # Bars would end the cell of a Markdown table.
            kind = kind.replace("llmlab.objective_attributes.", "").replace("|", "\\|")
            kind = f"tuple of {kind}" if a.choices and typing.get_origin(a.type) is tuple else kind
            lines.append(f"| `{name}` | {kind} | `{a.default!r}` | {a.doc} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(page(), end="")
