"""The check of traits: one that a part does not declare `unused` makes a difference, one that it does makes none."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from llmlab import registry
from llmlab.check.parts.fixtures import tested_part
from llmlab.check.reference import path_seeded_model
from llmlab.check.refusal import refusal
from llmlab.check.subject import CheckFailed, NotApplicable, Subject, Trait, head_role, small_part
from llmlab.config.spec import ModelSpec
from llmlab.config.traits import unused_by

# By slot, a value that is not the default. Dropout has a check of its own (learning.evaluation).
TRAITS: dict[str, dict[str, Trait]] = {
    "attention": {
        "n_kv_heads": 4,
        "attention.qkv_bias": True,
        "attention.out_bias": True,
        "attention.qk_norm": "head",
        "attention.scale": 0.7,
        "attention.scale_over_layer": True,
        "attention.softcap": 1.5,
        "attention.sink": True,
        "attention.clip_qkv": 0.3,
    },
    "ffn": {"ffn.bias": True},
    "moe": {
        "moe.n_shared": 0,
        "moe.shared_gate": True,
        "moe.renormalise": False,
        "moe.scale": 2.0,
        "moe.per_token": 3,
    },
    "norm": {"norm_eps": 0.5},
    "embedding": {"token_types": 2},
    "head": {"logit_scale": 3.0, "logit_softcap": 0.5},
}
# Without a shared expert there is nothing to gate.
REQUIRED_TRAITS = {"moe": {"moe__n_shared": 1}}


@torch.no_grad()
def traits(subject: Subject) -> None:
    """A trait makes a difference to the part, or is refused; one that it calls `unused` makes none."""
    tested_part(subject, *TRAITS)
    slot, name = subject.case.parts[0]
    batch, refused = subject.batch(), unused_by(slot, name)
    beside, role = REQUIRED_TRAITS.get(slot, {}), head_role(name) if slot == "head" else None
    before: dict[str, list[Tensor]] = {}
    for trait, value in TRAITS[slot].items():
        spec = replace(subject.spec, **subject.traits(**beside))
        changed = replace(subject.spec, **subject.traits(**{**beside, trait.replace(".", "__"): value}))
        kernel = _supporting_kernel(changed)
        if kernel is None:
            continue
        if kernel not in before:
            before[kernel] = _outputs(replace(spec, kernel=small_part("kernel", kernel)), batch, role)
        after = _outputs(replace(changed, kernel=small_part("kernel", kernel)), batch, role)
        counts = not all(torch.equal(a, b) for a, b in zip(before[kernel], after, strict=True))
        if counts and trait in refused:
            raise CheckFailed(f"model.{trait}={value} makes a difference, but is called unused")
        if not counts and trait not in refused:
            raise CheckFailed(f"model.{trait}={value} changes nothing, and is not called unused")
    if not before:
        raise NotApplicable("it refuses all of its traits")


def _supporting_kernel(spec: ModelSpec) -> str | None:
    """The name of a kernel that accepts such scores, the model's own if it does; None if every kernel refuses the model."""
    from llmlab.model.build import assemble

    for name in dict.fromkeys([spec.kernel.name, *registry.names("kernel")]):
        try:
            assemble(replace(spec, kernel=small_part("kernel", name)))
        except Exception as e:
            if refusal(e) is None:
                raise
        else:
            return name
    return None


def _outputs(spec: ModelSpec, batch: dict[str, Tensor], role: str | None) -> list[Tensor]:
    """Outputs of one head, or hidden states and outputs of all heads, with weights that depend on paths alone.

    So a trait that adds a parameter (a bias) changes no other value, as drawing from one generator in order would.
    """
    out = path_seeded_model(spec)(batch)
    return [out.hidden, *out.heads.values()] if role is None else [out.heads[role]]
