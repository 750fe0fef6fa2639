"""Tied tables and heads, by what a file holds: as the reference reads the same file, and never a head left out."""

import json

import pytest
import torch
from families import mostly_slow
from safetensors.torch import load_file, save_file

import llmlab
from llmlab.hub.families import entries

SMALL = dict(vocab_size=61, hidden_size=32, num_attention_heads=4, num_key_value_heads=4, num_hidden_layers=2,
             intermediate_size=40, max_position_embeddings=64, pad_token_id=0, n_embd=32, n_head=4, n_layer=2,
             n_positions=64, d_model=32, n_heads=4, n_layers=2, max_seq_len=64, encoder_layers=1, decoder_layers=1,
             encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=40, decoder_ffn_dim=40, d_kv=8,
             d_ff=40, num_layers=2, num_heads=4, decoder_start_token_id=0, tie_word_embeddings=True)  # fmt: skip
LATENT = dict(qk_rope_head_dim=4, qk_nope_head_dim=10, v_head_dim=7, n_routed_experts=4, num_experts_per_tok=2,
              first_k_dense_replace=1, q_lora_rank=8, kv_lora_rank=8, moe_intermediate_size=16)  # fmt: skip
EXPERTS = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, shared_expert_intermediate_size=16)
OWN = {
    **{name: {"head_dim": 8} for name in ("qwen3", "gemma", "gemma2", "gemma3_text", "glm", "glm4")},
    "deepseek_v2": {**LATENT, "n_group": None},
    "deepseek_v3": {**LATENT, "n_group": 2, "topk_group": 1},
    "qwen2_moe": EXPERTS,
    "qwen3_moe": {"head_dim": 8, **EXPERTS},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "opt": {"ffn_dim": 40, "word_embed_proj_dim": 32},
    "albert": {"embedding_size": 16},
    "electra": {"embedding_size": 32},
    "distilbert": {"dim": 32, "hidden_dim": 40},
    "deberta-v2": {"relative_attention": True, "position_biased_input": False, "share_att_key": True, "pos_att_type": ["c2p"]},
}  # fmt: skip
T5_KEYS = (
    "vocab_size",
    "d_model",
    "d_kv",
    "d_ff",
    "num_layers",
    "num_heads",
    "decoder_start_token_id",
    "tie_word_embeddings",
)
FAMILIES = ("albert", "bart", "bert", "bloom", "deberta-v2", "deepseek_v2", "deepseek_v3", "distilbert", "electra", "falcon",
            "gemma", "gemma2", "gemma3_text", "glm", "glm4", "gpt2", "gpt_neo", "gpt_neox", "llama", "mistral", "mixtral",
            "modernbert", "mpnet", "mpt", "mt5", "olmo", "olmo2", "openai-gpt", "opt", "pegasus", "phi", "phi3", "qwen2",
            "qwen2_moe", "qwen3", "qwen3_moe", "roberta", "stablelm", "t5")  # fmt: skip


def random_model(transformers, family, **more):
    small = {k: v for k, v in SMALL.items() if "t5" not in family or k in T5_KEYS}
    config = transformers.models.auto.configuration_auto.CONFIG_MAPPING[family](
        **{**small, **OWN.get(family, {}), **more}
    )
    auto = transformers
    for kind in (auto.AutoModelForSeq2SeqLM, auto.AutoModelForCausalLM, auto.AutoModelForMaskedLM):
        bert_like = entries()[family].families[0] in ("bert", "roberta", "electra")
        if type(config) in kind._model_mapping and not (bert_like and kind is auto.AutoModelForCausalLM):
            break
    torch.manual_seed(0)
    model = kind.from_config(config).eval()
    for name, p in model.named_parameters():
        if "embed_positions" not in name:  # Pegasus computes them
            torch.nn.init.normal_(p, 0, 0.3)
    return model


@torch.no_grad()
def gap(cls, folder, both):
    ids = torch.arange(1, 13)[None]
    arguments = {"input_ids": ids, **({"decoder_input_ids": ids[:, :5]} if both else {})}
    want = cls.from_pretrained(folder).eval()(**arguments).logits
    got = llmlab.load_hf(folder, verbose=False)(**arguments).logits
    return ((want - got).abs().max() / want.abs().max()).item()


@pytest.mark.parametrize("family", mostly_slow(FAMILIES, ("llama", "bart", "albert")))
def test_what_the_file_holds_decides(family, transformers, tmp_path):
    model, entry = random_model(transformers, family), entries()[family]
    model.save_pretrained(tmp_path)
    plain = load_file(tmp_path / "model.safetensors")
    table = plain[entry.embed_key]
    without = {name: tensor for name, tensor in plain.items() if name != entry.embed_key}
    files = {
        "tied": plain,
        "a head of its own": {**plain, entry.head_key: torch.randn(table.shape) * 0.3},
        "the same again": {**plain, entry.head_key: table.clone()},
        "the head alone": {**without, entry.head_key: table},
    }
    for name, tensors in files.items():
        save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
        assert gap(type(model), tmp_path, model.config.is_encoder_decoder) < 1e-5, name


T5_TABLES = (("encoder", "decoder"), ("decoder",), ("encoder",), ("shared", "encoder", "decoder"), ("shared",), ())


@pytest.mark.parametrize("own", mostly_slow((True, False), (True,)))
@pytest.mark.parametrize("family", mostly_slow(("t5", "mt5"), ("t5",)))
def test_t5_by_its_tables_and_by_what_its_config_says(family, own, transformers, tmp_path):
    """The reference scales by whether config.json says tied, and ties by what the file holds, whatever it says."""
    model = random_model(transformers, family, feed_forward_proj="gated-gelu")
    model.save_pretrained(tmp_path)
    plain = load_file(tmp_path / "model.safetensors")
    table = plain.pop("shared.weight")
    head = {"lm_head.weight": torch.randn(table.shape) * 0.3 if own else table}
    config = json.loads((tmp_path / "config.json").read_text())
    for key in ("tie_word_embeddings", "scale_decoder_outputs"):
        config.pop(key, None)
    for tables in T5_TABLES:
        for said in ({}, {"tie_word_embeddings": False}, {"tie_word_embeddings": True, "scale_decoder_outputs": False}):
            names = ["shared.weight" if t == "shared" else f"{t}.embed_tokens.weight" for t in tables]
            kept = {**plain, **{name: table.clone() for name in names}, **(head if own or not tables else {})}
            save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
            (tmp_path / "config.json").write_text(json.dumps({**config, **said}))
            assert gap(type(model), tmp_path, True) < 1e-5, (tables, said)
