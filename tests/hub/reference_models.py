"""Comparing with the reference implementation, with random weights made here: outputs, and the gradient of every parameter.

A gradient is compared as a checkpoint: both sides write their gradients where the weights were, and the files must agree.
"""

from pathlib import Path
from typing import Any

import torch
from families import FAMILIES
from safetensors.torch import load_file

import llmlab

LACKING = {
    "baichuan": "baichuan",
    "chatglm": "chatglm2",
    "qwen": "qwen1",
}  # model_type -> family, where transformers has no such model
DEAD = ("predictions.bias", "lm_head.bias")  # of a head that is not tied, whose bias lies with its decoder
PRESETS = (
    "gpt3",
    "glm_130b",
    "glm_2022",
    "chatglm1",
    "lstm",
    "elmo",
)  # without a checkpoint layout, or with one that is not there
BUILT = [family for family in FAMILIES if family not in (*LACKING.values(), *PRESETS)]
# Choices without which a family that tells padding by its id has no checkpoint.
PADDED = {"roberta": ("position.pad_id=0", "position.offset=1"), "mpnet": ("position.pad_id=1",)}


@torch.no_grad()
def refill(model, seed):
    """Weights large enough that every part of the model counts."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in filter(lambda p: p.requires_grad, model.parameters()):
        noise = torch.randn(tensor.shape, generator=generator)
        tensor.add_(noise * 0.2) if tensor.dim() == 1 else tensor.copy_(noise * 0.25)
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.copy_(torch.randn(buffer.shape, generator=generator) * 0.1)


def inputs(how: str, length: int = 13, batch: int = 3) -> dict:
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(1, 61, (batch, length), generator=generator)
    lengths = torch.tensor([length, length - 4, length - 7])
    where = torch.arange(length)
    out = {"input_ids": ids}
    if "left" in how:
        out["attention_mask"] = (where >= length - lengths[:, None]).long()
    if "right" in how:
        out["attention_mask"] = (where < lengths[:, None]).long()
    if "attention_mask" in out:
        out["input_ids"] = ids * out["attention_mask"]
    if "pad 1" in how:
        out["input_ids"] = torch.where(out["attention_mask"].bool(), ids.clamp(min=2), 1)
    if "types" in how:
        out["token_type_ids"] = torch.randint(0, 3, (batch, length), generator=generator)
    if "positions" in how:
        out["position_ids"] = torch.randint(1, 40, (batch, length), generator=generator)
    if "cross" in how:
        out["encoder_hidden_states"] = torch.randn(batch, 9, 30, generator=generator)
        out["encoder_attention_mask"] = (torch.arange(9) < torch.tensor([9, 5, 7])[:, None]).long()
    return out


def loss(outputs, arguments, names) -> torch.Tensor:
    """A fixed random combination of all outputs, where they are not padding."""
    total = torch.zeros(())
    for i, name in enumerate(names):
        out = outputs[name]
        weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(i))
        of_source = "decoder_input_ids" not in arguments or name == "encoder_last_hidden_state"
        if out.dim() > 1 and out.shape[1] == 13 and of_source and "attention_mask" in arguments:
            weights = weights * arguments["attention_mask"].view(
                *arguments["attention_mask"].shape, *[1] * (out.dim() - 2)
            )
        total = total + (out * weights).sum() / 13
    return total


@torch.no_grad()
def become_gradients(model):
    for p in model.parameters():
        p.copy_(torch.zeros_like(p) if p.grad is None else p.grad)


def worst(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).abs().max() / (1.0 + b.abs().max())).item()


def compare(transformers: Any, architecture: str, settings: dict, how: str, folder: Path) -> None:
    """Outputs and gradients of both for the config `settings`; `how`: see `inputs`."""
    cls = getattr(transformers, architecture)
    config = cls.config_class(**{"attn_implementation": "eager", **settings})
    reference = cls(config).eval()
    refill(reference, seed=3)
    reference.save_pretrained(folder / "weights")
    model = llmlab.load_hf(folder / "weights", verbose=False)

    arguments = inputs(how)
    if config.is_encoder_decoder:
        arguments["decoder_input_ids"] = torch.randint(1, 61, (3, 7), generator=torch.Generator().manual_seed(8))
    theirs, ours = reference(**arguments), model(**arguments)
    assert ours, "outputs"
    loss(theirs, arguments, list(ours)).backward()
    loss(ours, arguments, list(ours)).backward()
    keep = arguments.get("attention_mask", torch.ones(3, 13)).bool()
    for name in ours:
        a, b = ours[name], theirs[name]
        assert a.shape == b.shape
        if a.dim() > 1 and a.shape[1] == 13:
            a, b = a[keep], b[keep]
        assert worst(a, b) < 2e-5, name

    become_gradients(reference)
    become_gradients(model)
    reference.save_pretrained(folder / "theirs")
    llmlab.save_hf(model, folder / "ours")
    want, got = load_file(folder / "theirs/model.safetensors"), load_file(folder / "ours/model.safetensors")
    assert set(got) == set(want)
    if not config.tie_word_embeddings:  # a second bias that the reference holds but does not read
        want = {name: tensor for name, tensor in want.items() if not name.endswith(DEAD)}
    frozen = {name for name, p in reference.named_parameters() if not p.requires_grad}
    want = {name: tensor for name, tensor in want.items() if name not in frozen}
    for name, gradient in want.items():
        assert worst(got[name], gradient) < 5e-5, name
    alive = [name for name, gradient in want.items() if gradient.abs().max() > 1e-4]
    assert len(alive) > 0.6 * len(want)
