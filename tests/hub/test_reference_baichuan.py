"""Baichuan, which the reference implementation lacks, against LLaMA: the same tensors under other names."""

import json

import pytest
import torch
from reference_models import inputs, refill, worst
from safetensors.torch import save_file

import llmlab

LLAMA = dict(vocab_size=61, hidden_size=36, intermediate_size=44, num_hidden_layers=2, num_attention_heads=6,
             max_position_embeddings=64, pad_token_id=0)  # fmt: skip
SLOPES = [2.0**-n for n in (2, 4, 6, 8, 1, 3)]  # of six heads: those of four, then every other of those of eight


def write(folder, reference, **config):
    """LLaMA's tensors as the authors store them."""
    c, tensors = reference.config, dict(reference.state_dict())
    for i in range(c.num_hidden_layers):
        own = f"model.layers.{i}.self_attn."
        tensors[f"{own}W_pack.weight"] = torch.cat([tensors.pop(f"{own}{n}_proj.weight") for n in "qkv"])
        tensors[f"{own}rotary_emb.inv_freq"] = torch.zeros(3)
    names = (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "rms_norm_eps",
    )
    config |= {"model_type": "baichuan", "hidden_act": "silu", **{n: getattr(c, n) for n in names}}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    return llmlab.load_hf(folder, verbose=False)


def llama(transformers):
    reference = transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA, attn_implementation="eager")).eval()
    refill(reference, seed=3)
    return reference


@pytest.mark.parametrize("architecture", ["BaiChuanForCausalLM", "BaichuanForCausalLM"])
@pytest.mark.parametrize("second", [False, True])
@torch.no_grad()
def test_rotated(architecture, second, transformers, tmp_path):
    """The 7B. The second version's head has rows of length 1."""
    reference = llama(transformers)
    more = {"z_loss_weight": 0} if second else {}
    ours = write(tmp_path, reference, architectures=[architecture], max_position_embeddings=64, **more)
    if second:
        reference.lm_head.weight /= reference.lm_head.weight.norm(dim=-1, keepdim=True)
    arguments = inputs("left")
    keep = arguments["attention_mask"].bool()
    assert worst(ours(**arguments)["logits"][keep], reference(**arguments).logits[keep]) < 2e-5


@torch.no_grad()
def test_with_alibi(transformers, tmp_path):
    """The 13B: nothing is turned; each head's scores fall with the distance by its slope."""
    reference, arguments = llama(transformers), inputs("left")
    ours = write(tmp_path, reference, architectures=["BaichuanForCausalLM"], model_max_length=64)
    ids, keep = arguments["input_ids"], arguments["attention_mask"].bool()
    reference.model.rotary_emb.forward = lambda x, position_ids: (torch.ones(1, 13, 6), torch.zeros(1, 13, 6))
    where = torch.arange(13)
    far = (where[:, None] - where).float()
    seen = (far >= 0) & (keep[:, None, None] | (far == 0))
    bias = (-torch.tensor(SLOPES)[:, None, None] * far).expand(3, -1, -1, -1).masked_fill(~seen, -1e9)
    want = reference(ids, attention_mask=bias).logits
    assert worst(ours(**arguments)["logits"][keep], want[keep]) < 2e-5
