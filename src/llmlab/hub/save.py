"""Write a model as a Hugging Face checkpoint folder."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from llmlab.config.spec import ModelSpec, PartSpec
from llmlab.errors import UserError
from llmlab.hub.compare import difference
from llmlab.hub.entry import Entry, Head, labels
from llmlab.hub.families import entries
from llmlab.hub.files import write_folder
from llmlab.hub.load import spec_of
from llmlab.hub.model import HubModel
from llmlab.hub.rules import expand
from llmlab.model.model import Model


def save_hf(model: HubModel | Model, folder: str | Path) -> None:
    """config.json and model.safetensors in `folder`, such that `transformers` and `load_hf` read the same model.

    What `load_hf` has read goes back out bit for bit, in its dtypes, with the tokenizer and the chat template. A model
    whose parts have no place in its family's config.json is refused: UserError names the part.
    """
    if isinstance(model, HubModel):
        entry = entries()[model.config["model_type"]].at(model.config)
        config, head, dtypes, read, core = model.config, model.head, model.dtypes, model.read, model.model
        beside, unread = model.beside, model.unread
    else:
        entry, head, config = described(exported(model.spec))
        dtypes, read, core, beside, unread = {}, frozenset(), model, {}, {}
    write_folder(Path(folder), config, {**tensors_of(core, entry, head, dtypes, read), **unread}, beside)


def exported(spec: ModelSpec) -> ModelSpec:
    """The model without heads that serve training alone. A score that is read at the last token which is not padding is, of
    one text, that of the last token, which is what a checkpoint without a pad token says; transformers then refuses batches."""
    known = {
        role for entry in _layouts(spec) for head in entry.architectures.values() for role in head.heads(entry.defaults)
    }
    # A discriminator is what DeBERTa-v3 is pretrained as, but ELECTRA's layout alone has a class with its head.
    kept = {r: p for r, p in spec.heads.items() if p.attribute("exported") and (p.name != "replaced" or r in known)}
    for role, part in kept.items():
        if part.name == "scalar" and part.options["pool"] == "last" and part.options["skip"] is None:
            kept[role] = replace(part, options={**part.options, "pool": "end"})
    return replace(spec, heads=kept)


def tensors_of(
    model: Model, entry: Entry, head: Head, dtypes: dict[str, torch.dtype], read: frozenset[str]
) -> dict[str, Tensor]:
    """Every tensor under its name in the file; of several layouts, that from which it was `read`."""
    left_out = tuple(f"heads.{role}." for role in model.heads if role not in exported(model.spec).heads)
    whole = model.state_dict().items()
    ours = {name: tensor.detach().cpu() for name, tensor in whole if not name.startswith(left_out)}
    shapes = {name: tensor.shape for name, tensor in ours.items()}
    out: dict[str, Tensor] = {}
    written: set[str] = set()
    rules = expand(entry.rules, shapes, model.spec)
    # False sorts before True, and sorting is stable: layouts that were read come
    # first, then the order of the family's list.
    for rule in sorted(rules, key=lambda rule: not read.issuperset(rule.theirs)):
        if any(name in written for name in rule.ours):
            continue
        values = rule.save([ours[name].to(dtypes.get(name, ours[name].dtype)) for name in rule.ours])
        out |= dict(zip(rule.theirs, values, strict=True))
        out |= dict.fromkeys((*rule.copies, *(name for name in rule.aliases if name in read)), values[0])
        written |= set(rule.ours)
    lost = sorted(set(ours) - written)
    if lost:
        raise UserError(f"{lost[0]} has no name in a {entry.model_types[0]} checkpoint")
    fixed = entry.fixed(model.spec) if entry.fixed else {}
    dtype = next(iter(out.values())).dtype
    out |= {name: tensor.to(dtype) for name, tensor in fixed.items() if not read or name in read}
    if head.prefix is not None:
        out = {re.sub(f"^{re.escape(entry.prefix)}", head.prefix, name): tensor for name, tensor in out.items()}
    # safetensors refuses two names for one memory, such as a table that is written under an alias too.
    return {name: tensor.clone() for name, tensor in out.items()}


def _layouts(spec: ModelSpec) -> list[Entry]:
    return [e for e in entries().values() if spec.family in e.families]


def described(spec: ModelSpec) -> tuple[Entry, Head, dict]:
    """The entry, class and config.json of a model that was built here, checked by reading them back."""
    found = _layouts(spec)
    if not found:
        raise UserError(f"model={spec.family} has no checkpoint layout; known: {', '.join(sorted(entries()))}")
    entry = found[0]
    config = {**entry.write(spec), **labels(spec)}
    full = {**entry.defaults, **config}
    wrong = None
    for name in config.pop("architectures", entry.architectures):
        head = entry.architectures[name]
        heads = {role: part.name for role, part in head.heads(full).items()}
        if heads != {role: part.name for role, part in spec.heads.items()}:
            continue
        # T5EncoderModel and T5Model both have no heads: the stacks tell them apart.
        if head.stacks is not None and set(head.stacks) != {s.name for s in spec.stacks}:
            continue
        back = spec_of(entry, head, config)
        wrong = difference(spec, back)
        if wrong is None:
            # `dtype` is the name since transformers 4.56, and 5 still reads the older `torch_dtype`.
            return entry.at(config), head, {**config, "architectures": [name], "dtype": "float32"}
    kind = entry.model_types[0]
    if wrong is None:
        known = ", ".join(f"{_named(head.heads(full))} ({name})" for name, head in entry.architectures.items())
        raise UserError(f"a {kind} checkpoint has no place for {_named(spec.heads)}; known: {known}")
    raise UserError(f"a {kind} checkpoint has no place for {wrong}")


def _named(heads: Mapping[str, PartSpec]) -> str:
    return f"heads {', '.join(f'{role}={part.name}' for role, part in heads.items())}" if heads else "no head"
