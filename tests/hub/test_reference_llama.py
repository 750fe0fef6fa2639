"""The families in the line of LLaMA against the reference implementation, with options of their own."""

import pytest
from families import mostly_slow
from reference_models import compare

LLAMA = dict(vocab_size=61, hidden_size=36, intermediate_size=44, num_hidden_layers=2, num_attention_heads=6,
             num_key_value_heads=2, max_position_embeddings=64, pad_token_id=0)  # fmt: skip
DEEPSEEK = dict(vocab_size=61, hidden_size=36, intermediate_size=40, moe_intermediate_size=16, num_hidden_layers=3,
                num_attention_heads=3, num_key_value_heads=3, n_shared_experts=1, n_routed_experts=6, kv_lora_rank=12,
                qk_rope_head_dim=4, qk_nope_head_dim=10, v_head_dim=7, num_experts_per_tok=2, first_k_dense_replace=1,
                max_position_embeddings=64)  # fmt: skip
LONGROPE = dict(rope_type="longrope", rope_theta=300.0, short_factor=[1.0, 1.5, 2.0], long_factor=[1.0, 3.0, 9.0])
SCALED = {
    "linear": dict(rope_type="linear", rope_theta=300.0, factor=3.0),
    "dynamic": dict(rope_type="dynamic", rope_theta=300.0, factor=3.0),
    "yarn": dict(rope_type="yarn", rope_theta=500.0, factor=4.0, original_max_position_embeddings=16),
    "llama3": dict(rope_type="llama3", rope_theta=300.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                   original_max_position_embeddings=16),
}  # fmt: skip

CASES = {
    "llama longrope, past its length": ("LlamaForCausalLM", LLAMA | dict(
        original_max_position_embeddings=10, rope_parameters=LONGROPE), "left"),
    "llama longrope, within its length": ("LlamaForCausalLM", LLAMA | dict(rope_parameters=LONGROPE | dict(
        original_max_position_embeddings=16, attention_factor=1.2)), "right"),
    "llama bilinear": ("LlamaForCausalLM", LLAMA | dict(hidden_act="linear"), "right"),
    "llama tokens": ("LlamaForTokenClassification", LLAMA | dict(num_labels=3), "right"),
    "llama reward": ("LlamaForSequenceClassification", LLAMA | dict(num_labels=1, attention_bias=True), "right"),
    "mistral short window, left padding": ("MistralForCausalLM", LLAMA | dict(sliding_window=3), "left"),
    "mistral without a window, wide heads, tied": ("MistralForCausalLM", LLAMA | dict(
        sliding_window=None, head_dim=10, tie_word_embeddings=True, rope_parameters=SCALED["yarn"]), "right"),
    "mistral window of one, one key head": ("MistralForCausalLM", LLAMA | dict(
        sliding_window=1, num_key_value_heads=1), "right"),
    "mistral classifier": ("MistralForSequenceClassification", LLAMA | dict(sliding_window=4, num_labels=3), "right"),
    "mixtral three of five": ("MixtralForCausalLM", LLAMA | dict(
        num_local_experts=5, num_experts_per_tok=3, sliding_window=4, hidden_act="gelu"), "left"),
    "mixtral one of two, tied, linear": ("MixtralForCausalLM", LLAMA | dict(
        num_local_experts=2, num_experts_per_tok=1, tie_word_embeddings=True, head_dim=8,
        rope_parameters=SCALED["linear"]), "right"),
    "mixtral base": ("MixtralModel", LLAMA | dict(num_local_experts=3, num_key_value_heads=6), "left"),
    "qwen2 later layers slide": ("Qwen2ForCausalLM", LLAMA | dict(
        num_hidden_layers=3, use_sliding_window=True, sliding_window=3, max_window_layers=1), "left"),
    "qwen2 all layers slide, tied": ("Qwen2ForCausalLM", LLAMA | dict(
        use_sliding_window=True, sliding_window=5, max_window_layers=0, tie_word_embeddings=True), "right"),
    "qwen2 a window that does not count, yarn": ("Qwen2ForCausalLM", LLAMA | dict(
        sliding_window=3, max_window_layers=0, rope_parameters=SCALED["yarn"]), "right"),
    "qwen2 layers by name": ("Qwen2ForCausalLM", LLAMA | dict(
        use_sliding_window=True, sliding_window=4, layer_types=["sliding_attention", "full_attention"]), "left"),
    "qwen2 reward": ("Qwen2ForSequenceClassification", LLAMA | dict(num_labels=1, num_key_value_heads=3), "right"),
    "qwen2 moe, even layers slide, some dense": ("Qwen2MoeForCausalLM", LLAMA | dict(
        num_hidden_layers=5, use_sliding_window=True, sliding_window=3, max_window_layers=4, mlp_only_layers=[1, 2],
        moe_intermediate_size=20, num_experts=4, num_experts_per_tok=2, shared_expert_intermediate_size=28), "left"),
    "qwen2 moe, even layers slide": ("Qwen2MoeForCausalLM", LLAMA | dict(
        num_hidden_layers=3, use_sliding_window=True, sliding_window=2, moe_intermediate_size=20, num_experts=4,
        num_experts_per_tok=2, shared_expert_intermediate_size=28), "right"),
    "qwen3 moe, all layers slide, some dense": ("Qwen3MoeForCausalLM", LLAMA | dict(
        num_hidden_layers=3, use_sliding_window=True, sliding_window=3, mlp_only_layers=[1], head_dim=8,
        max_window_layers=2, moe_intermediate_size=20, num_experts=4, num_experts_per_tok=2), "right"),
    "qwen3 biases, wide heads": ("Qwen3ForCausalLM", LLAMA | dict(attention_bias=True, head_dim=14), "left"),
    "qwen3 sliding, dynamic past its length": ("Qwen3ForCausalLM", LLAMA | dict(
        head_dim=6, use_sliding_window=True, sliding_window=4, max_window_layers=1, max_position_embeddings=9,
        rope_parameters=SCALED["dynamic"]), "right"),
    "qwen3 one key head, tied": ("Qwen3ForCausalLM", LLAMA | dict(
        num_key_value_heads=1, head_dim=8, tie_word_embeddings=True, rope_parameters=SCALED["llama3"]), "right"),
    "gemma exact by name is by tanh, wide heads": ("GemmaForCausalLM", LLAMA | dict(
        head_dim=10, num_key_value_heads=1, hidden_act="gelu"), "left"),
    "gemma biases, untied, relu": ("GemmaForCausalLM", LLAMA | dict(
        head_dim=6, attention_bias=True, tie_word_embeddings=False, hidden_act="relu",
        rope_parameters=SCALED["linear"]), "right"),
    "gemma reward": ("GemmaForSequenceClassification", LLAMA | dict(head_dim=8, num_labels=1), "right"),
    "gemma2 short window, left padding": ("Gemma2ForCausalLM", LLAMA | dict(
        head_dim=10, sliding_window=3, query_pre_attn_scalar=7, attn_logit_softcapping=1.5,
        final_logit_softcapping=3.0, num_hidden_layers=3), "left"),
    "gemma2 without caps, exact gelu": ("Gemma2ForCausalLM", LLAMA | dict(
        head_dim=6, sliding_window=4, attn_logit_softcapping=None, final_logit_softcapping=None,
        hidden_activation="gelu", attention_bias=True), "right"),
    "gemma2 global only, one key head": ("Gemma2ForCausalLM", LLAMA | dict(
        head_dim=8, num_key_value_heads=1, layer_types=["full_attention"] * 2, tie_word_embeddings=False,
        rope_parameters=SCALED["yarn"]), "right"),
    "gemma2 classifier": ("Gemma2ForSequenceClassification", LLAMA | dict(
        head_dim=8, num_labels=3, sliding_window=2), "right"),
    "deepseek v2 in groups, yarn": ("DeepseekV2ForCausalLM", DEEPSEEK | dict(
        q_lora_rank=14, n_group=3, topk_group=2, topk_method="group_limited_greedy", routed_scaling_factor=1.7,
        attention_bias=True, rope_parameters=SCALED["yarn"] | dict(mscale=0.7, mscale_all_dim=1.3)), "left"),
    "deepseek v2 without a query latent, all routed": ("DeepseekV2ForCausalLM", DEEPSEEK | dict(
        q_lora_rank=None, first_k_dense_replace=0, n_shared_experts=2, norm_topk_prob=True), "right"),
    "deepseek v2 one group of two, two dense": ("DeepseekV2Model", DEEPSEEK | dict(
        q_lora_rank=8, n_group=2, topk_group=1, topk_method="group_limited_greedy", first_k_dense_replace=2), "right"),
    "phi3 longrope past its length, shared keys": ("Phi3ForCausalLM", LLAMA | dict(
        original_max_position_embeddings=10, rope_parameters=LONGROPE), "left"),
    "phi3 longrope, half of a head, sliding": ("Phi3ForCausalLM", LLAMA | dict(
        hidden_size=48, num_attention_heads=4, original_max_position_embeddings=16, sliding_window=3,
        rope_parameters=LONGROPE | dict(partial_rotary_factor=0.5)), "right"),
    "phi3 plain, tied": ("Phi3ForCausalLM", LLAMA | dict(
        num_key_value_heads=6, tie_word_embeddings=True, hidden_act="gelu_pytorch_tanh"), "left"),
    "phi3 classifier": ("Phi3ForSequenceClassification", LLAMA | dict(num_labels=3, sliding_window=4), "right"),
    "olmo clipped, shared keys": ("OlmoForCausalLM", LLAMA | dict(clip_qkv=0.8, attention_bias=True), "left"),
    "olmo tied, linear": ("OlmoForCausalLM", LLAMA | dict(
        tie_word_embeddings=True, num_key_value_heads=6, rope_parameters=SCALED["linear"]), "right"),
    "olmo base": ("OlmoModel", LLAMA | dict(num_key_value_heads=1, hidden_act="gelu"), "right"),
    "olmo2 biases, shared keys": ("Olmo2ForCausalLM", LLAMA | dict(attention_bias=True), "left"),
    "olmo2 yarn, tied": ("Olmo2ForCausalLM", LLAMA | dict(
        num_key_value_heads=6, tie_word_embeddings=True, rope_parameters=SCALED["yarn"], rms_norm_eps=1e-3), "right"),
    "olmo2 classifier": ("Olmo2ForSequenceClassification", LLAMA | dict(num_labels=3), "right"),
    "glm wide heads, left padding": ("GlmForCausalLM", LLAMA | dict(head_dim=8), "left"),
    "glm all of a head, no bias, linear": ("GlmForCausalLM", LLAMA | dict(
        head_dim=6, attention_bias=False, rope_parameters=SCALED["linear"] | dict(partial_rotary_factor=1.0)), "right"),
    "glm reward": ("GlmForSequenceClassification", LLAMA | dict(head_dim=12, num_labels=1), "right"),
    "glm4 left padding": ("Glm4ForCausalLM", LLAMA | dict(head_dim=8, num_key_value_heads=1), "left"),
    "glm4 no bias, tied, a quarter": ("Glm4ForCausalLM", LLAMA | dict(
        head_dim=16, attention_bias=False, tie_word_embeddings=True,
        rope_parameters=dict(rope_type="default", rope_theta=300.0, partial_rotary_factor=0.25)), "right"),
    "glm4 base, yarn": ("Glm4Model", LLAMA | dict(
        head_dim=12, rope_parameters=SCALED["yarn"] | dict(partial_rotary_factor=0.5)), "right"),
    "deepseek v2 linear, its scale as under yarn": ("DeepseekV2ForCausalLM", DEEPSEEK | dict(
        rope_parameters=SCALED["linear"] | dict(mscale_all_dim=1.3)), "left"),
    "deepseek v3 linear, its scale as under yarn": ("DeepseekV3ForCausalLM", DEEPSEEK | dict(
        n_group=3, topk_group=2, rope_parameters=SCALED["linear"] | dict(mscale_all_dim=1.3)), "right"),
}  # fmt: skip


@pytest.mark.parametrize("case", mostly_slow(CASES, list(CASES)[::6]))
def test_outputs_and_gradients(case, transformers, tmp_path):
    compare(transformers, *CASES[case], tmp_path)
