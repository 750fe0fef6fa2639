"""A model's adapter in PEFT's file format: adapter_config.json and adapter_model.safetensors, by the names of its family."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from llmlab.errors import UserError
from llmlab.files import save_tensors
from llmlab.hub.adapter_names import CONFIG, NAMES, PREFIX, WEIGHTS, places
from llmlab.model import adapters
from llmlab.model.model import Model


def save_adapter(model: Model, folder: Path, base: str | None = None) -> None:
    """The adapter of a model into `folder`, as `peft.PeftModel.from_pretrained` reads it onto the base in transformers.

    base: what is written as the place of the base model. UserError for a model without adapter, and for linears that a
    checkpoint of the family holds as one with others, which PEFT would adapt as one.
    """
    if model.spec.adapter is None:
        raise UserError("format=peft is of a run with an adapter, as adapter=lora; this one has none")
    tensors_of = {name.partition(adapters.MARK)[2] for name in model.state_dict() if adapters.MARK in name}
    if not tensors_of <= NAMES.keys():
        raise UserError(
            f"format=peft writes LoRA and DoRA, but this run has adapter={model.spec.adapter.name}; format=hf writes "
            "all of it, with its adapter merged"
        )
    heads = {role: part.name for role, part in model.spec.heads.items()}
    if heads != {"tokens": "lm"}:
        named = ", ".join(f"{role}={name}" for role, name in heads.items())
        raise UserError(
            f"format=peft is of language models: this one has the heads {named}, which would be lost; format=hf writes all of "
            "it, with its adapter merged"
        )
    ours = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    shapes = {name: tensor.shape for name, tensor in ours.items() if adapters.MARK not in name}
    kind, found = places(model.spec, shapes)
    adapted = {linear: place for linear, place in found.items() if f"{linear}{adapters.MARK}a.weight" in ours}
    for linear, place in adapted.items():
        if not place.alone:
            raise UserError(
                f"format=peft: a {kind} checkpoint holds {linear}.weight with others in {place.theirs}.weight, "
                "which PEFT adapts as one; format=hf writes the model with its adapter merged"
            )
    theirs = {linear: place.theirs for linear, place in adapted.items()}
    transposed = any(place.transposed for place in adapted.values())
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
