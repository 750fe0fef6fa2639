"""A model's adapter in PEFT's file format: adapter_config.json and adapter_model.safetensors, by the names of its family."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from torch import Tensor

from llmlab.errors import UserError
from llmlab.files import save_tensors
from llmlab.hub.rules import expand
from llmlab.hub.save import described
from llmlab.model import adapters
from llmlab.model.model import Model

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# PEFT wraps a model twice: PeftModel.base_model is a LoraModel, whose .model is transformers' own.
PREFIX = "base_model.model."
NAMES = {"a.weight": "lora_A.weight", "b.weight": "lora_B.weight", "magnitude": "lora_magnitude_vector"}


def save_adapter(model: Model, folder: Path, base: str | None = None) -> None:
    """The adapter of a model into `folder`, as `peft.PeftModel.from_pretrained` reads it onto the base in transformers.

    base: what is written as the place of the base model. UserError for a model without adapter, and for linears that a
    checkpoint of the family holds as one with others, which PEFT would adapt as one.
    """
    if model.spec.adapter is None:
        raise UserError("format=peft is of a run with an adapter, as adapter=lora; this one has none")
    heads = {role: part.name for role, part in model.spec.heads.items()}
    if heads != {"tokens": "lm"}:
        named = ", ".join(f"{role}={name}" for role, name in heads.items())
        raise UserError(
            f"format=peft is of language models: this one has the heads {named}, which would be lost; format=hf writes all of "
            "it, with its adapter merged"
        )
    entry, head, _ = described(adapters.without(model.spec))
    ours = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    shapes = {name: tensor.shape for name, tensor in ours.items() if adapters.MARK not in name}
    theirs: dict[str, str] = {}
    transposed = False
    for rule in expand(entry.rules, shapes, model.spec):
        for name in rule.ours:
            linear = name.removesuffix(".weight")
            if f"{linear}{adapters.MARK}a.weight" not in ours or not name.endswith(".weight"):
                continue
            if rule.kind != "same":
                raise UserError(
                    f"format=peft: a {entry.model_types[0]} checkpoint holds {name} with others in {rule.theirs[0]}, "
                    "which PEFT adapts as one; format=hf writes the model with its adapter merged"
                )
            transposed = transposed or rule.transpose
            known = (
                rule.theirs[0]
                if head.prefix is None
                else re.sub(f"^{re.escape(entry.prefix)}", head.prefix, rule.theirs[0])
            )
            theirs.setdefault(linear, known.removesuffix(".weight"))
    tensors = {}
    for name, tensor in ours.items():
        linear, mark, own = name.partition(adapters.MARK)
        if mark:
            tensors[f"{PREFIX}{theirs[linear]}.{NAMES[own]}"] = _as_theirs(own, tensor, ours[f"{linear}.weight"])
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(folder / WEIGHTS, tensors)
    config = _config(model, sorted({name.rpartition(".")[2] for name in theirs.values()}), transposed, base)
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _as_theirs(name: str, tensor: Tensor, weight: Tensor) -> Tensor:
    # PEFT's magnitude is the norm itself, of which ours is what it has more than that of the frozen row.
    return weight.norm(dim=1) + tensor if name == "magnitude" else tensor


def _config(model: Model, targets: list[str], transposed: bool, base: str | None) -> dict[str, Any]:
    assert model.spec.adapter is not None
    options = model.spec.adapter.options
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": options["rank"],
        "lora_alpha": options["alpha"],
        "lora_dropout": options["dropout"],
        "use_rslora": options["rank_stabilised"],
        "use_dora": options["decomposed"],
        "target_modules": targets,
        # Conv1D of GPT-2 holds its weight as (in, out).
        "fan_in_fan_out": transposed,
        "bias": "none",
        "inference_mode": True,
    }
