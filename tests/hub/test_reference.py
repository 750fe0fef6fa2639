"""Against the reference implementation with random weights made here, and what it takes for keys that are missing."""

import json

import pytest
from families import mostly_slow
from reference_models import LACKING, compare

import llmlab
from llmlab.errors import UserError
from llmlab.hub.families import entries

LLAMA = dict(vocab_size=61, hidden_size=36, intermediate_size=44, num_hidden_layers=2, num_attention_heads=6,
             num_key_value_heads=2, max_position_embeddings=64)  # fmt: skip
QWEN = LLAMA | dict(num_hidden_layers=3, moe_intermediate_size=20, num_experts=5, num_experts_per_tok=2)
DEEPSEEK = dict(vocab_size=61, hidden_size=32, intermediate_size=40, moe_intermediate_size=16, num_hidden_layers=3,
                num_attention_heads=3, num_key_value_heads=3, n_shared_experts=1, n_routed_experts=6, kv_lora_rank=12,
                qk_rope_head_dim=4, qk_nope_head_dim=10, v_head_dim=7, n_group=3, topk_group=2, num_experts_per_tok=3,
                first_k_dense_replace=1, max_position_embeddings=64)  # fmt: skip
GEMMA = LLAMA | dict(head_dim=10, num_hidden_layers=3, query_pre_attn_scalar=20, sliding_window=3, pad_token_id=0,
                     layer_types=["sliding_attention", "full_attention", "sliding_attention"])  # fmt: skip
BERT = dict(vocab_size=61, hidden_size=30, num_hidden_layers=2, num_attention_heads=5, intermediate_size=44,
            max_position_embeddings=40, type_vocab_size=3)  # fmt: skip
T5 = dict(vocab_size=61, d_model=30, d_kv=7, d_ff=44, num_layers=2, num_decoder_layers=2, num_heads=3,
          relative_attention_num_buckets=12, relative_attention_max_distance=20)  # fmt: skip
GPT2 = dict(vocab_size=61, n_positions=40, n_embd=30, n_layer=2, n_head=5, bos_token_id=None, eos_token_id=None)
YARN = dict(rope_type="yarn", rope_theta=500.0, factor=4.0, original_max_position_embeddings=16)

CASES = {
    "gpt2 left padding": ("GPT2LMHeadModel", GPT2 | dict(n_inner=44, activation_function="gelu"), "left"),
    "gpt2 scaled over the layer's number": ("GPT2LMHeadModel", GPT2 | dict(
        n_layer=3, scale_attn_by_inverse_layer_idx=True, reorder_and_upcast_attn=True), "left"),
    "gpt2 scaled by nothing else": ("GPT2LMHeadModel", GPT2 | dict(
        scale_attn_by_inverse_layer_idx=True, scale_attn_weights=False), "right"),
    "gpt2 without a scale": ("GPT2LMHeadModel", GPT2 | dict(scale_attn_weights=False), ""),
    "gpt2 untied, positions given": ("GPT2LMHeadModel", GPT2 | dict(n_head=3, tie_word_embeddings=False), "positions"),
    "gpt2 classifier": ("GPT2ForSequenceClassification", GPT2 | dict(num_labels=3, pad_token_id=0), "right"),
    "llama tied, biases, left padding": (
        "LlamaForCausalLM", LLAMA | dict(attention_bias=True, mlp_bias=True, tie_word_embeddings=True), "left"),
    "llama yarn, wide heads": ("LlamaForCausalLM", LLAMA | dict(head_dim=12, rope_parameters=YARN), "right"),
    "llama yarn with an attention factor": (
        "LlamaModel", LLAMA | dict(rope_parameters=YARN | dict(attention_factor=0.8, beta_fast=16.0)), "right"),
    "llama 3 scaling": ("LlamaForCausalLM", LLAMA | dict(rope_parameters=dict(
        rope_type="llama3", rope_theta=300.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
        original_max_position_embeddings=16)), "left"),
    "llama dynamic, past its length": ("LlamaForCausalLM", LLAMA | dict(
        max_position_embeddings=9, rope_parameters=dict(rope_type="dynamic", rope_theta=300.0, factor=3.0)), "right"),
    "llama linear, one key head": ("LlamaForCausalLM", LLAMA | dict(
        num_key_value_heads=1, rope_parameters=dict(rope_type="linear", rope_theta=300.0, factor=3.0)), "right"),
    "qwen2 moe, a dense layer": ("Qwen2MoeForCausalLM", QWEN | dict(
        mlp_only_layers=[1], shared_expert_intermediate_size=28, norm_topk_prob=True), "left"),
    "qwen2 moe, every other layer, no bias": ("Qwen2MoeForCausalLM", QWEN | dict(
        decoder_sparse_step=2, shared_expert_intermediate_size=12, qkv_bias=False, num_experts=4), "right"),
    "qwen3 moe, every other layer": ("Qwen3MoeForCausalLM", QWEN | dict(
        decoder_sparse_step=2, attention_bias=True, norm_topk_prob=False, head_dim=8), "left"),
    "qwen3 moe, sliding": ("Qwen3MoeForCausalLM", QWEN | dict(
        num_hidden_layers=2, use_sliding_window=True, sliding_window=4, norm_topk_prob=True,
        tie_word_embeddings=True), "right"),
    "gemma3 softcap, short window": ("Gemma3ForCausalLM", GEMMA | dict(final_logit_softcapping=5.0), "left"),
    "gemma3 scaled globally, biases": ("Gemma3ForCausalLM", GEMMA | dict(
        attention_bias=True, num_key_value_heads=1, rope_parameters=dict(
            sliding_attention=dict(rope_type="default", rope_theta=100.0),
            full_attention=dict(rope_type="linear", rope_theta=1000.0, factor=8.0))), "right"),
    "gemma3 local only": ("Gemma3ForCausalLM", GEMMA | dict(layer_types=["sliding_attention"] * 3), "right"),
    "deepseek without a query latent": ("DeepseekV3ForCausalLM", DEEPSEEK | dict(q_lora_rank=None), "left"),
    "deepseek yarn, plain halves": ("DeepseekV3ForCausalLM", DEEPSEEK | dict(
        q_lora_rank=14, rope_interleave=False, attention_bias=True, norm_topk_prob=False, n_shared_experts=2,
        rope_parameters=YARN | dict(mscale=0.7, mscale_all_dim=1.3)), "right"),
    "deepseek all routed, one group": ("DeepseekV3ForCausalLM", DEEPSEEK | dict(
        q_lora_rank=8, first_k_dense_replace=0, n_group=1, topk_group=1, routed_scaling_factor=1.7), "right"),
    "bert causal": ("BertLMHeadModel", BERT | dict(is_decoder=True), "right"),
    "bert untied, left padding": ("BertForMaskedLM", BERT | dict(tie_word_embeddings=False, hidden_act="relu"), "types left"),
    "bert tokens, types": ("BertForTokenClassification", BERT | dict(num_labels=4, num_attention_heads=3), "types right"),
    "albert, two groups": ("AlbertForMaskedLM", BERT | dict(
        embedding_size=14, num_hidden_layers=4, num_hidden_groups=2), "types right"),
    "albert untied": ("AlbertForMaskedLM", BERT | dict(embedding_size=14, tie_word_embeddings=False), "types left"),
    "albert classifier": ("AlbertForSequenceClassification", BERT | dict(
        embedding_size=12, num_hidden_layers=3, hidden_act="gelu", num_labels=5), "right"),
    "t5 gated, untied": ("T5ForConditionalGeneration", T5 | dict(
        feed_forward_proj="gated-gelu", tie_word_embeddings=False), "right"),
    "t5 tied, deeper decoder": ("T5ForConditionalGeneration", T5 | dict(num_decoder_layers=3), "left"),
    "t5 without a head": ("T5Model", T5 | dict(feed_forward_proj="gated-silu"), "right"),
}  # fmt: skip


@pytest.mark.parametrize("case", mostly_slow(CASES, list(CASES)[::6]))
def test_outputs_and_gradients(case, transformers, tmp_path):
    compare(transformers, *CASES[case], tmp_path)


CONFIGS = {
    "gpt2": "GPT2Config",
    "gpt_neox": "GPTNeoXConfig",
    "stablelm": "StableLmConfig",
    "mpt": "MptConfig",
    "bloom": "BloomConfig",
    "opt": "OPTConfig",
    "gpt_neo": "GPTNeoConfig",
    "openai-gpt": "OpenAIGPTConfig",
    "phi": "PhiConfig",
    "falcon": "FalconConfig",
    "llama": "LlamaConfig",
    "mistral": "MistralConfig",
    "mixtral": "MixtralConfig",
    "qwen2": "Qwen2Config",
    "qwen3": "Qwen3Config",
    "gemma": "GemmaConfig",
    "gemma2": "Gemma2Config",
    "deepseek_v2": "DeepseekV2Config",
    "phi3": "Phi3Config",
    "olmo": "OlmoConfig",
    "olmo2": "Olmo2Config",
    "glm": "GlmConfig",
    "glm4": "Glm4Config",
    "qwen2_moe": "Qwen2MoeConfig",
    "qwen3_moe": "Qwen3MoeConfig",
    "gemma3_text": "Gemma3TextConfig",
    "deepseek_v3": "DeepseekV3Config",
    "bert": "BertConfig",
    "albert": "AlbertConfig",
    "roberta": "RobertaConfig",
    "xlm-roberta": "XLMRobertaConfig",
    "camembert": "CamembertConfig",
    "electra": "ElectraConfig",
    "distilbert": "DistilBertConfig",
    "mpnet": "MPNetConfig",
    "deberta-v2": "DebertaV2Config",
    "modernbert": "ModernBertConfig",
    "bert-generation": "BertGenerationConfig",
    "t5": "T5Config",
    "mt5": "MT5Config",
    "bart": "BartConfig",
    "pegasus": "PegasusConfig",
    "xlnet": "XLNetConfig",
}


NEEDED = {  # the reference's defaults are of no published model, and are refused
    "deberta-v2": dict(relative_attention=True, position_biased_input=False, share_att_key=True, pos_att_type=["c2p"]),
}


@pytest.mark.parametrize("model_type", CONFIGS)
def test_keys_that_are_missing_take_the_reference_default(model_type, transformers):
    """An empty config.json and one that states all of the reference's defaults ask for the same model."""
    entry = entries()[model_type]
    stated = getattr(transformers, CONFIGS[model_type])().to_dict()
    needed = NEEDED.get(model_type, {})
    assert entry.read({**entry.defaults, **needed}) == entry.read({**entry.defaults, **stated, **needed})
    for key, value in entry.defaults.items():
        if key in stated and key != "sliding_window":
            assert stated[key] == value, key


def test_every_family_has_a_default(transformers):
    assert set(CONFIGS) | set(LACKING) == set(entries())


REFUSED = {
    "openai-gpt": [("afn", "tanh")],
    "gpt_neo": [("activation_function", "tanh"), ("attention_types", [[["global", "flash"], 12]])],
    "gpt_neox": [("hidden_act", "tanh")],
    "falcon": [("activation", "tanh"), ("num_ln_in_parallel_attn", 2), ("apply_residual_connection_post_layernorm", True)],
    "phi": [("hidden_act", "tanh")],
    "xlnet": [("ff_activation", "tanh"), ("attn_type", "both")],
    "opt": [("activation_function", "tanh"), ("_remove_final_layer_norm", True)],
    "mpt": [("no_bias", False), ("expansion_ratio", 2), ("logit_scale", 0.5), ("norm_type", "rmsnorm")],
    "stablelm": [("hidden_act", "tanh")],
    "baichuan": [("hidden_act", "gelu")],
    "gpt2": [("add_cross_attention", True),
             ("activation_function", "swish9")],
    "llama": [("hidden_act", "quick_gelu"), ("rope_scaling", {"rope_type": "proportional", "factor": 2.0}),
              ("partial_rotary_factor", 0.5), ("rope_parameters", {"rope_theta": 1e4, "partial_rotary_factor": 0.5})],
    "mistral": [("hidden_act", "quick_gelu")],
    "mixtral": [("hidden_act", "quick_gelu"), ("router_jitter_noise", 0.1)],
    "qwen2": [("hidden_act", "quick_gelu"), ("layer_types", ["chunked_attention"] * 32)],
    "qwen3": [("hidden_act", "quick_gelu"), ("layer_types", ["linear_attention"] * 32)],
    "gemma": [("hidden_act", "quick_gelu"), ("use_bidirectional_attention", True)],
    "gemma2": [("hidden_activation", "quick_gelu"), ("use_bidirectional_attention", True), ("sliding_window", None),
               ("layer_types", ["chunked_attention"] * 26)],
    "deepseek_v2": [("hidden_act", "quick_gelu"), ("scoring_func", "sigmoid"), ("topk_method", "noaux_tc"),
                    ("moe_layer_freq", 2), ("mlp_bias", True)],
    "phi3": [("hidden_act", "quick_gelu"), ("rope_scaling", {"rope_type": "llama3"})],
    "olmo": [("hidden_act", "quick_gelu"), ("partial_rotary_factor", 0.5)],
    "olmo2": [("hidden_act", "quick_gelu")],
    "glm": [("hidden_act", "quick_gelu"), ("rope_scaling", {"rope_type": "axial"})],
    "glm4": [("hidden_act", "quick_gelu")],
    "chatglm": [("rope_ratio", 2), ("position_encoding_2d", False), ("post_layer_norm", False),
                ("apply_residual_connection_post_layernorm", True), ("pre_seq_len", 8), ("original_rope", False)],
    "qwen": [("scale_attn_weights", False), ("emb_dropout_prob", 0.1), ("use_cache_quantization", True)],
    "qwen2_moe": [("hidden_act", "quick_gelu"), ("layer_types", ["chunked_attention"] * 24)],
    "qwen3_moe": [("hidden_act", "quick_gelu")],
    "gemma3_text": [("hidden_activation", "quick_gelu"), ("use_bidirectional_attention", True),
                    ("layer_types", ["chunked_attention"] * 26)],
    "deepseek_v3": [("hidden_act", "quick_gelu"), ("scoring_func", "softmax"), ("topk_method", "greedy"),
                    ("moe_layer_freq", 2)],
    "bert": [("hidden_act", "quick_gelu"), ("position_embedding_type", "relative_key")],
    "albert": [("hidden_act", "quick_gelu"), ("position_embedding_type", "relative_key")],
    "roberta": [("hidden_act", "tanh"), ("position_embedding_type", "relative_key_query")],
    "electra": [("hidden_act", "tanh")],
    "distilbert": [("activation", "tanh")],
    "mpnet": [("hidden_act", "tanh"), ("relative_attention_num_buckets", 40)],
    "deberta-v2": [("hidden_act", "tanh"), ("relative_attention", False), ("position_biased_input", True),
                   ("share_att_key", False), ("conv_kernel_size", 3), ("pos_att_type", ["p2p"]),
                   ("norm_rel_ebd", "batch_norm"), ("embedding_size", 12)],
    "modernbert": [("hidden_activation", "tanh"), ("layer_types", ["chunked_attention"] * 22)],
    "bert-generation": [("hidden_act", "tanh")],
    "t5": [("feed_forward_proj", "gated-swish"), ("is_decoder", True)],
    "mt5": [("feed_forward_proj", "gated-tanh")],
}  # fmt: skip


@pytest.mark.parametrize(("model_type", "key", "value"), [(m, k, v) for m, rows in REFUSED.items() for k, v in rows])
def test_an_option_that_is_not_implemented_is_refused_by_name(model_type, key, value):
    entry = entries()[model_type]
    word = {"rope_scaling": "rope_type", "rope_parameters": "partial_rotary_factor"}.get(key, key)
    with pytest.raises(UserError, match=f"^config.json: {word}=.*not implemented"):
        entry.read({**entry.defaults, **NEEDED.get(model_type, {}), key: value})


def test_weights_that_are_quantised_are_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "quantization_config": {"bits": 4}}))
    with pytest.raises(UserError, match="quantization_config"):
        llmlab.load_hf(tmp_path)
