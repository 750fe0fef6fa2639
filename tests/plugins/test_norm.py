"""Norms against their formula in float64, and against the reference implementations' order of casts."""

import numpy as np
import pytest
import torch
from parts import build, close, names, part, randn


def rms(x, weight, eps):
    return weight * x / np.sqrt((x**2).mean(-1, keepdims=True) + eps)


def layer(x, weight, eps):
    return weight * (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps)


@pytest.mark.parametrize(
    ("name", "options", "formula"),
    [
        ("layernorm", {}, lambda x, m: layer(x, m.weight, 1e-3) + m.bias),
        ("layernorm", {"bias": False}, lambda x, m: layer(x, m.weight, 1e-3)),
        ("layernorm", {"weight": False}, lambda x, m: layer(x, 1.0, 1e-3) + m.bias),
        ("layernorm", {"weight": False, "bias": False}, lambda x, m: layer(x, 1.0, 1e-3)),
        ("rmsnorm", {}, lambda x, m: rms(x, m.weight, 1e-3)),
        ("rmsnorm", {"offset": 1.0}, lambda x, m: rms(x, 1 + m.weight, 1e-3)),
    ],
)
def test_formula(name, options, formula):
    norm = build(part("norm", name, **options), 12, 1e-3)
    x = randn(3, 5, 12) * 4 + 1
    weights = type("Weights", (), {k: v.detach().double().numpy() for k, v in norm.named_parameters()})
    close(norm(x), torch.from_numpy(formula(x.double().numpy(), weights)), 1e-5)


@pytest.mark.parametrize("name", names("norm"))
def test_a_norm_keeps_the_dtype_and_begins_as_the_identity_on_normed_vectors(name):
    norm = build(part("norm", name), 8, 0.0)
    assert norm(randn(2, 8)).dtype == torch.float32
    assert norm.bfloat16()(randn(2, 8).bfloat16()).dtype == torch.bfloat16
    norm = build(part("norm", name), 8, 0.0)
    with torch.no_grad():
        for key, parameter in norm.named_parameters():
            parameter.fill_(norm.constants.get(key, 0.0))
    x = torch.tensor([1.0, -1.0] * 4)
    close(norm(x), x)


def test_begins_at_one_with_an_offset_too():
    assert build(part("norm", "rmsnorm", offset=1.0), 4, 1e-5).constants == {"weight": 0.0}


def test_casts_as_llama_and_as_gemma():
    from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    x = (randn(7, 64) * 3).bfloat16()
    for reference, offset in ((LlamaRMSNorm(64, 1e-6), 0.0), (Gemma3RMSNorm(64, 1e-6), 1.0)):
        norm = build(part("norm", "rmsnorm", offset=offset), 64, 1e-6).bfloat16()
        reference.bfloat16().weight.data.copy_(norm.weight)
        assert torch.equal(norm(x), reference(x))
