"""PEFT's files of an adapter, and the names that linears of a model have in them: those of its family's checkpoints."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from llmlab.config.spec import ModelSpec
from llmlab.hub.rules import expand
from llmlab.hub.save import described
from llmlab.model import adapters

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# PEFT wraps a model twice: PeftModel.base_model is a LoraModel, whose .model is transformers' own.
PREFIX = "base_model.model."
NAMES = {"a.weight": "lora_A.weight", "b.weight": "lora_B.weight", "magnitude": "lora_magnitude_vector"}


@dataclass(frozen=True)
class Place:
    """A linear in checkpoints of a family. alone: it is a tensor of its own, else one with others. transposed: as Conv1D of
    GPT-2 is, which holds its weight as (in, out)."""

    theirs: str
    alone: bool
    transposed: bool


def places(spec: ModelSpec, shapes: Mapping[str, torch.Size]) -> tuple[str, dict[str, Place]]:
    """(the `model_type` of its checkpoints, where each weight of a causal language model without adapter is, by its path
    without `.weight`)."""
    entry, head, _ = described(adapters.without(spec))
    found: dict[str, Place] = {}
    for rule in expand(entry.rules, shapes, spec):
        for name in rule.ours:
            if name.endswith(".weight"):
                known = rule.theirs[0]
                if head.prefix is not None:
                    known = re.sub(f"^{re.escape(entry.prefix)}", head.prefix, known)
                place = Place(known.removesuffix(".weight"), rule.kind == "same", rule.transpose)
                found.setdefault(name.removesuffix(".weight"), place)
    return entry.model_types[0], found
