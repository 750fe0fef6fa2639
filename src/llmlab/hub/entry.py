"""An entry of the hub for a family, and functions that read and write config.json."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from llmlab.config.spec import ModelSpec, PartSpec
from llmlab.errors import UserError
from llmlab.hub.outputs import Argument, Loaded, Outputs
from llmlab.hub.rope import by_layer as by_layer
from llmlab.hub.rope import rope as rope
from llmlab.hub.rope import rope_parameters as rope_parameters
from llmlab.hub.rules import Rule
from llmlab.model.build import assemble

Config = dict[str, Any]
Plain = str | int | float | bool | None
STATED = " tie_word_embeddings"  # what config.json says of it, beside what its tensors are: no key that a file has


@dataclass(frozen=True)
class Head:
    """The outputs of one reference class (a name in `architectures` of config.json), in terms of our heads.

    heads: role -> part, from the config. outputs: the reference's name -> how it is read: "hidden", "source",
    "head:ROLE" or "head:ROLE:COLUMN" (one column of the last dimension).
    """

    heads: Callable[[Config], dict[str, PartSpec]]
    outputs: Mapping[str, str]
    overrides: tuple[str, ...] = ()
    # For a class whose arguments can't be renamed one by one: a function that calls the model, None to go by names.
    call: Callable[[Loaded, Mapping[str, Argument]], Outputs | None] | None = None
    stacks: tuple[str, ...] | None = None  # the stacks that it has, None for all
    prefix: str | None = None  # of the base model's tensors in the file, where it is not the entry's
    begin: Callable[[Config], int] | None = None  # a decoder without ids reads the source, shifted right behind this id


@dataclass(frozen=True)
class Entry:
    """A family of checkpoints. `read`: config.json -> overrides as typed on the command line; `write`: the reverse.

    defaults: what the reference takes for a key that config.json lacks. ignore: patterns of tensors that are left out on
    purpose (what was ignored is said); extra_layers: so are layers past num_hidden_layers (multi-token prediction).
    """

    model_types: tuple[str, ...]
    families: tuple[str, ...]
    read: Callable[[Config], list[str]]
    write: Callable[[ModelSpec], Config]
    rules: Sequence[Rule]
    architectures: Mapping[str, Head]
    defaults: Config = field(default_factory=dict)
    prefix: str = ""
    extra_layers: bool = False
    ignore: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()  # tensors of ours that are 0 where the file lacks them
    fixed: Callable[[ModelSpec], dict[str, Tensor]] | None = None  # tensors of theirs that follow from the sizes
    head_key: str | None = None  # a language-model head that config.json may call tied
    embed_key: str | None = None
    always_tied: bool = (
        False  # a head that the file lacks is the token table even where config.json says that it is not
    )
    rename: Mapping[str, str] = field(default_factory=dict)  # pattern -> replacement, on names in the file
    layout: Callable[[Config], Sequence[Rule]] | None = None  # rules that config.json decides, beside the others
    # The objective among what `read` gives that only says how the reference's classes look at a text, as they have nothing
    # of what the family's own brings. A run that begins with the checkpoint trains by the family's own.
    looks_by: str | None = None

    def at(self, config: Config) -> Entry:
        """The entry with the rules that hold for this config.json."""
        if self.layout is None:
            return self
        return replace(self, rules=[*self.rules, *self.layout({**self.defaults, **config})], layout=None)


part = PartSpec.with_defaults


def n_labels(c: Config, default: int = 2) -> int:
    # PreTrainedConfig takes num_labels from the length of id2label where a file has both.
    return len(c["id2label"]) if "id2label" in c else c.get("num_labels", default)


def labels(spec: ModelSpec) -> Config:
    """Keys of config.json for a head with classes: how many, and the padding id by which a score finds the last token."""
    heads = [part for role, part in spec.heads.items() if role in ("classes", "labels", "scalar")]
    out: Config = {}
    for options in (head.options for head in heads):
        # JSON has no whole numbers as keys; transformers turns them back into numbers as it reads.
        names = {str(i): f"LABEL_{i}" for i in range(options["n_classes"])}
        out |= {"id2label": names, "label2id": {name: int(i) for i, name in names.items()}}
        if options.get("skip") is not None:
            out["pad_token_id"] = options["skip"]
    return out


def _scored(c: Config) -> dict[str, PartSpec]:
    pad = c.get("pad_token_id")
    # Without a pad token the reference reads the last token, and refuses batches of more than one text.
    where: Config = {"pool": "end"} if pad is None else {"pool": "last", "skip": pad}
    return {"scalar": part("head", "scalar", n_classes=n_labels(c), **where)}


# What the reference's classes have in common. A decoder's scores of a text are those of its rightmost token that is not
# padding (by its id): with one label, the shape of a reward model.
SCORED = Head(_scored, {"logits": "head:scalar"})
LABELS = Head(lambda c: {"labels": part("head", "token", n_classes=n_labels(c))}, {"logits": "head:labels"})
SPAN = Head(lambda c: {"span": part("head", "span")}, {"start_logits": "head:span:0", "end_logits": "head:span:1"})


def expect(c: Config, key: str, *allowed: Plain, default: Plain = None) -> Any:
    """The value of an option that llmlab implements only for some values. UserError for any other."""
    value = c.get(key, default)
    if value not in allowed:
        raise UserError(
            f"config.json: {key}={value!r} is not implemented; known: {', '.join(repr(a) for a in allowed)}"
        )
    return value


def activation(c: Config, key: str, names: Mapping[str, str], default: str) -> str:
    """The ffn part for the reference's name of an activation."""
    return names[expect(c, key, *names, default=default)]


def n_kv_heads(spec: ModelSpec) -> int:
    """Key-value heads as the first layer's attention part has them."""
    layer: Any = assemble(spec).all_stacks()[0].layers[0]
    return getattr(layer.attention, "n_kv_heads", spec.sizes.n_heads)


def check_heads(spec: ModelSpec, *, exactly: bool = False) -> None:
    """UserError for heads that a `validate_architecture` of the reference's configs refuses: a number that does not divide
    the width; exactly: a width of a head that is not what comes out.
    """
    s = spec.sizes
    if s.dim % s.n_heads:
        raise UserError(f"model.n_heads={s.n_heads} must divide model.dim={s.dim} in a {spec.family} checkpoint")
    if exactly and s.head_dim != s.dim // s.n_heads:
        raise UserError(
            f"model.head_dim={s.head_dim} must be {s.dim // s.n_heads} in a {spec.family} checkpoint, dim / n_heads"
        )


def settings(prefix: str, values: Mapping[str, object]) -> list[str]:
    """Overrides prefix.key=value."""
    return [f"{prefix}.{key}={_text(value)}" for key, value in values.items()]


def _text(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(_text(v) for v in value) + "]"
    # repr: the shortest text that reads back as the same float, where `:g` keeps six digits.
    return repr(value) if isinstance(value, float) else str(value)
