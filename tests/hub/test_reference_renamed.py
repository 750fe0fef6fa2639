"""Families that the reference implementation lacks, against a kin that it has: the same tensors under other names."""

import json

import pytest
import torch
from families import batch, build, mostly_slow, tiny
from reference_models import LACKING, inputs, refill, worst
from safetensors.torch import save_file

import llmlab

GLM = dict(vocab_size=61, hidden_size=36, intermediate_size=44, num_hidden_layers=2, num_attention_heads=6,
           head_dim=8, max_position_embeddings=64, rms_norm_eps=1e-5, pad_token_id=0)  # fmt: skip
QWEN = dict(vocab_size=61, hidden_size=36, intermediate_size=44, num_hidden_layers=2, num_attention_heads=6,
            num_key_value_heads=6, max_position_embeddings=64, pad_token_id=0)  # fmt: skip


def as_chatglm(c, tensors):
    """GLM's tensors as the authors of ChatGLM2 store them, and their config.json."""
    out = {
        "transformer.embedding.word_embeddings.weight": tensors["model.embed_tokens.weight"],
        "transformer.encoder.final_layernorm.weight": tensors["model.norm.weight"],
        "transformer.output_layer.weight": tensors["lm_head.weight"],
        "transformer.rotary_pos_emb.inv_freq": torch.zeros(2),
    }
    for i in range(c.num_hidden_layers):
        theirs, of = f"model.layers.{i}.", f"transformer.encoder.layers.{i}."
        for kind in ("weight", "bias") if c.attention_bias else ("weight",):
            out[f"{of}self_attention.query_key_value.{kind}"] = torch.cat(
                [tensors[f"{theirs}self_attn.{n}_proj.{kind}"] for n in "qkv"]
            )
        out[f"{of}self_attention.dense.weight"] = tensors[f"{theirs}self_attn.o_proj.weight"]
        out[f"{of}mlp.dense_h_to_4h.weight"] = tensors[f"{theirs}mlp.gate_up_proj.weight"]
        out[f"{of}mlp.dense_4h_to_h.weight"] = tensors[f"{theirs}mlp.down_proj.weight"]
        for n in ("input_layernorm", "post_attention_layernorm"):
            out[f"{of}{n}.weight"] = tensors[f"{theirs}{n}.weight"]
    config = dict(
        model_type="chatglm", architectures=["ChatGLMForConditionalGeneration"], padded_vocab_size=c.vocab_size,
        hidden_size=c.hidden_size, ffn_hidden_size=c.intermediate_size, num_layers=c.num_hidden_layers,
        num_attention_heads=c.num_attention_heads, multi_query_attention=c.num_key_value_heads < c.num_attention_heads,
        multi_query_group_num=c.num_key_value_heads, kv_channels=c.head_dim, seq_length=64, layernorm_epsilon=1e-5,
        add_qkv_bias=c.attention_bias, apply_query_key_layer_scaling=True,
    )  # fmt: skip
    return config, out


def as_qwen1(c, tensors):
    """The tensors of Qwen2 without shared keys as the authors of Qwen store them, and their config.json."""
    out = {
        "transformer.wte.weight": tensors["model.embed_tokens.weight"],
        "transformer.ln_f.weight": tensors["model.norm.weight"],
        "lm_head.weight": tensors["lm_head.weight"],
        "transformer.rotary_emb.inv_freq": torch.zeros(2),
    }
    names = {"ln_1": "input_layernorm", "ln_2": "post_attention_layernorm", "attn.c_proj": "self_attn.o_proj",
             "mlp.w1": "mlp.up_proj", "mlp.w2": "mlp.gate_proj", "mlp.c_proj": "mlp.down_proj"}  # fmt: skip
    for i in range(c.num_hidden_layers):
        theirs, of = f"model.layers.{i}.", f"transformer.h.{i}."
        for kind in ("weight", "bias"):
            out[f"{of}attn.c_attn.{kind}"] = torch.cat([tensors[f"{theirs}self_attn.{n}_proj.{kind}"] for n in "qkv"])
        out |= {f"{of}{a}.weight": tensors[f"{theirs}{b}.weight"] for a, b in names.items()}
    config = dict(
        model_type="qwen", architectures=["QWenLMHeadModel"], vocab_size=c.vocab_size, hidden_size=c.hidden_size,
        intermediate_size=2 * c.intermediate_size, num_hidden_layers=c.num_hidden_layers,
        num_attention_heads=c.num_attention_heads, kv_channels=c.hidden_size // c.num_attention_heads,
        seq_length=c.max_position_embeddings, rotary_emb_base=c.rope_parameters["rope_theta"], use_dynamic_ntk=False,
        use_logn_attn=False,
    )  # fmt: skip
    return config, out


CASES = {
    "chatglm2, left padding": ("GlmForCausalLM", GLM | dict(num_key_value_heads=2), as_chatglm, "left"),
    "chatglm2 one key head, no bias": (
        "GlmForCausalLM", GLM | dict(num_key_value_heads=1, attention_bias=False), as_chatglm, "right"),
    "chatglm2 a key head each": ("GlmForCausalLM", GLM | dict(num_key_value_heads=6, head_dim=12), as_chatglm, "right"),
    "qwen1, left padding": ("Qwen2ForCausalLM", QWEN, as_qwen1, "left"),
    "qwen1 another base": (
        "Qwen2ForCausalLM", QWEN | dict(rope_parameters=dict(rope_type="default", rope_theta=300.0)), as_qwen1, "right"),
}  # fmt: skip


@pytest.mark.parametrize("case", mostly_slow(CASES, list(CASES)[::6]))
@torch.no_grad()
def test_outputs(case, transformers, tmp_path):
    architecture, settings, rename, how = CASES[case]
    cls = getattr(transformers, architecture)
    reference = cls(cls.config_class(**settings, attn_implementation="eager")).eval()
    refill(reference, seed=3)
    config, tensors = rename(reference.config, reference.state_dict())
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(tensors, tmp_path / "model.safetensors")
    arguments = inputs(how)
    keep = arguments["attention_mask"].bool()
    ours = llmlab.load_hf(tmp_path, verbose=False)(**arguments)
    assert worst(ours["logits"][keep], reference(**arguments).logits[keep]) < 2e-5


def test_qwen1_past_its_length(transformers, tmp_path):
    """Angles grow in steps and queries with the logarithm, as the authors' program says: worked into the weights' place."""
    length, original = 13, 4
    cls = transformers.Qwen2ForCausalLM
    theta = 300.0 * (2**3 - 1) ** (6 / 4)  # ceil(log2(13 / 4)) = 2 doublings
    reference = cls(cls.config_class(**QWEN, rope_parameters=dict(rope_type="default", rope_theta=theta))).eval()
    refill(reference, seed=3)
    config, tensors = as_qwen1(reference.config, reference.state_dict())
    config |= dict(rotary_emb_base=300.0, seq_length=original, use_dynamic_ntk=True, use_logn_attn=True)
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(tensors, tmp_path / "model.safetensors")

    grown = (torch.arange(1, length + 1).log() / torch.tensor(float(original)).log()).clamp(min=1)
    for layer in reference.model.layers:
        layer.self_attn.q_proj.register_forward_hook(lambda module, args, q: q * grown[:, None])
    ids = inputs("")["input_ids"]
    with torch.no_grad():
        assert worst(llmlab.load_hf(tmp_path, verbose=False)(ids)["logits"], reference(ids).logits) < 2e-5


BUILT = {
    **{family: (family,) for family in LACKING.values()},
    "chatglm2 with biases, layer norm": (
        "chatglm2",
        "norm=layernorm",
        "model.attention.out_bias=true",
        "model.ffn.bias=true",
    ),
    "qwen1 as any rope": ("qwen1", "position.scaling=none", "position.log_n=false", "position.fraction=0.5"),
}


@pytest.mark.parametrize("name", BUILT)
@torch.no_grad()
def test_what_is_saved_is_read_again(name, tmp_path):
    family, *overrides = BUILT[name]
    model = build(*tiny(family, *overrides))
    llmlab.save_hf(model, tmp_path)
    back = llmlab.load_hf(tmp_path, verbose=False).model
    ours, again = model.state_dict(), back.state_dict()
    assert list(ours) == list(again)
    assert all(torch.equal(ours[k], again[k]) for k in ours)
    data = batch(model, length=12)
    assert torch.equal(back(data).heads["tokens"], model(data).heads["tokens"])
