"""Declarations of a mixture: what several objectives that train one model declare together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llmlab.attributes import TABLE, merged
from llmlab.errors import UserError

ACROSS = "encoder_decoder"
# As a prefix of no token, of some or of all: what mask=prefix can stand for.
PREFIXES = ("causal", "prefix", "bidirectional")


def joined(own: Mapping[str, Any], parts: Sequence[tuple[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """The declared attributes of a mixture, `own` and those of its parts, in whose `measures` terms have the part's name.

    Topologies of its own stand for theirs. Of roles that several have a head for, the first one's. The mask is theirs where
    they agree, else that of the mixture, a prefix. UserError for parts that no one model can train.
    """
    known = TABLE["objective"]
    attrs: dict[str, Any] = {}
    for name, declared in parts:
        kept = {k: v for k, v in declared.items() if k in known and not known[k].own and k not in ("when", "joins")}
        kept["measures"] = {
            term_name(name, term): "nll" if kind == "bits" else kind
            for term, kind in declared.get("measures", {}).items()
        }
        heads = {**kept.get("heads", known["heads"].default), **attrs.get("heads", {})}
        attrs = {**merged(attrs, kept), "heads": heads}
    kinds = own.get("topologies") or topologies(parts)
    masks = {_mask(declared) for _, declared in parts}
    if kinds != (ACROSS,) and any(_across(declared) for _, declared in parts):
        masks.add("prefix")  # what an encoder would read stands before what a decoder writes
    if len(masks) > 1 and not masks.issubset(PREFIXES):
        raise UserError(
            f"objective.of: no one model can be trained under mask={' and mask='.join(sorted(masks))}; choose objectives of "
            f"mask={' or '.join(PREFIXES)}"
        )
    if len(reads := {declared.get("reads", known["reads"].default) for _, declared in parts}) > 1:
        raise UserError(
            f"objective.of: objectives that read {' and '.join(sorted(reads))} can't learn from the same samples"
        )
    attrs = merged(attrs, {k: v for k, v in own.items() if k != "mask"})
    return attrs | {"topologies": kinds, "mask": masks.pop() if len(masks) == 1 else own["mask"]}


def term_name(part: str, term: str) -> str:
    """The name that a term of a part has in the mixture."""
    return part if term == "nll" else f"{part}_{term}"


def topologies(parts: Sequence[tuple[str, Mapping[str, Any]]]) -> tuple[str, ...]:
    """Kinds of model that can train all parts."""
    if parts and all(_across(declared) for _, declared in parts):
        return (ACROSS,)
    alone = [declared.get("topologies", ()) for _, declared in parts if not _across(declared)]
    # A prefix that sees itself makes an encoder of a decoder, and nothing else of it differs.
    return ("encoder",) if all(kinds == ("encoder",) for kinds in alone) else ("decoder", "encoder")


def _across(declared: Mapping[str, Any]) -> bool:
    return declared.get("topologies") == (ACROSS,)


def _mask(declared: Mapping[str, Any]) -> str:
    mask: str = declared.get("mask", TABLE["objective"]["mask"].default)
    return mask
