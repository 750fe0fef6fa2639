"""The families in the line of GPT against the reference implementation, with options of their own."""

import pytest
from families import mostly_slow
from reference_models import compare

NEOX = dict(vocab_size=61, hidden_size=48, num_hidden_layers=2, num_attention_heads=3, intermediate_size=44,
            max_position_embeddings=40)  # fmt: skip
FALCON = dict(vocab_size=61, hidden_size=36, num_hidden_layers=2, num_attention_heads=6, ffn_hidden_size=44,
              max_position_embeddings=40)  # fmt: skip
ALIBI = FALCON | dict(alibi=True, attn_implementation="sdpa")  # eager adds the bias twice
NEW = FALCON | dict(new_decoder_architecture=True, num_kv_heads=3)
PHI = dict(vocab_size=61, hidden_size=48, num_hidden_layers=2, num_attention_heads=6, intermediate_size=44,
           max_position_embeddings=40)  # fmt: skip
GPT1 = dict(vocab_size=61, n_positions=40, n_embd=30, n_layer=2, n_head=5)
NEO = dict(vocab_size=61, max_position_embeddings=40, hidden_size=30, num_layers=3, num_heads=5, window_size=4,
           attention_types=[[["global", "local"], 1], [["local"], 1]], bos_token_id=None, eos_token_id=None)  # fmt: skip
OPT = dict(vocab_size=61, hidden_size=30, num_hidden_layers=2, ffn_dim=44, max_position_embeddings=40,
           num_attention_heads=5, pad_token_id=0)  # fmt: skip
BLOOM = dict(vocab_size=61, hidden_size=30, n_layer=2, n_head=6)
MPT = dict(vocab_size=61, d_model=30, n_layers=2, n_heads=6, max_seq_len=40)
STABLE = dict(vocab_size=61, hidden_size=48, num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=2,
              intermediate_size=44, max_position_embeddings=40, rope_parameters=dict(
                  rope_type="default", rope_theta=300.0, partial_rotary_factor=0.5))  # fmt: skip

CASES = {
    "gpt_neox serial, left padding": ("GPTNeoXForCausalLM", NEOX | dict(
        use_parallel_residual=False, hidden_act="relu", rope_parameters=dict(
            rope_type="default", rope_theta=300.0, partial_rotary_factor=0.5)), "left"),
    "gpt_neox without attention biases, scaled": ("GPTNeoXForCausalLM", NEOX | dict(
        attention_bias=False, rope_parameters=dict(
            rope_type="linear", rope_theta=300.0, factor=2.0, partial_rotary_factor=1.0)), "right"),
    "gpt_neox tied, dynamic": ("GPTNeoXForCausalLM", NEOX | dict(
        tie_word_embeddings=True, max_position_embeddings=8, rope_parameters=dict(
            rope_type="dynamic", rope_theta=300.0, factor=2.0, partial_rotary_factor=0.5)), "right"),
    "gpt_neox classifier": ("GPTNeoXForSequenceClassification", NEOX | dict(num_labels=3, pad_token_id=0), "right"),
    "gpt_neox base": ("GPTNeoXModel", NEOX, "left"),
    "falcon 7b, biases, left padding": ("FalconForCausalLM", FALCON | dict(bias=True, activation="relu"), "left"),
    "falcon 11b, one norm, untied": ("FalconForCausalLM", NEW | dict(
        num_ln_in_parallel_attn=1, tie_word_embeddings=False), "right"),
    "falcon 40b, scaled": ("FalconForCausalLM", NEW | dict(
        rope_parameters=dict(rope_type="linear", rope_theta=300.0, factor=2.0)), "left"),
    "falcon new, a key head for each": ("FalconForCausalLM", NEW | dict(num_kv_heads=6), "right"),
    "falcon alibi, heads not a power of two": ("FalconForCausalLM", ALIBI | dict(
        multi_query=False, parallel_attn=False, bias=True), "left"),
    "falcon alibi, one key head, parallel": ("FalconForCausalLM", ALIBI, "right"),
    "falcon serial, a key head for each": ("FalconForTokenClassification", FALCON | dict(
        multi_query=False, parallel_attn=False, num_labels=3), "right"),
    "phi with fewer key heads, left padding": ("PhiForCausalLM", PHI | dict(num_key_value_heads=2), "left"),
    "phi with normed queries and keys": ("PhiForCausalLM", PHI | dict(
        qk_layernorm=True, hidden_act="relu", rope_parameters=dict(
            rope_type="dynamic", rope_theta=300.0, factor=2.0, partial_rotary_factor=0.5)), "right"),
    "phi tied, all of a head": ("PhiForCausalLM", PHI | dict(
        tie_word_embeddings=True, rope_parameters=dict(
            rope_type="default", rope_theta=300.0, partial_rotary_factor=1.0)), "right"),
    "gpt1 left padding, relu": ("OpenAIGPTLMHeadModel", GPT1 | dict(afn="relu"), "left"),
    "gpt1 untied, positions given": ("OpenAIGPTLMHeadModel", GPT1 | dict(tie_word_embeddings=False), "positions"),
    "gpt1 classifier": ("OpenAIGPTForSequenceClassification", GPT1 | dict(num_labels=3, pad_token_id=0), "right"),
    "gpt_neo left padding": ("GPTNeoForCausalLM", NEO | dict(intermediate_size=44), "left"),
    "gpt_neo global only, untied": ("GPTNeoForCausalLM", NEO | dict(
        attention_types=[[["global"], 3]], tie_word_embeddings=False, activation_function="relu"), "right"),
    "gpt_neo local only, wide window": ("GPTNeoForQuestionAnswering", NEO | dict(
        attention_types=[[["local"], 3]], window_size=100), "right"),
    "opt left padding, no biases": ("OPTForCausalLM", OPT | dict(enable_bias=False), "left"),
    "opt narrow, norms behind": ("OPTForCausalLM", OPT | dict(
        do_layer_norm_before=False, word_embed_proj_dim=12), "left"),
    "opt narrow, norms before": ("OPTForCausalLM", OPT | dict(word_embed_proj_dim=12), "right"),
    "opt norms without weights, gelu, untied": ("OPTForCausalLM", OPT | dict(
        layer_norm_elementwise_affine=False, activation_function="gelu", tie_word_embeddings=False), "right"),
    "opt positions given": ("OPTModel", OPT, "positions"),
    "bloom left padding": ("BloomForCausalLM", BLOOM, "left"),
    "bloom normed residual": ("BloomForCausalLM", BLOOM | dict(apply_residual_connection_post_layernorm=True), "right"),
    "bloom untied, eight heads": ("BloomForCausalLM", BLOOM | dict(
        hidden_size=32, n_head=8, tie_word_embeddings=False), "right"),
    "bloom classifier": ("BloomForSequenceClassification", BLOOM | dict(num_labels=3, pad_token_id=0), "right"),
    "mpt left padding, clipped": ("MptForCausalLM", MPT | dict(attn_config=dict(clip_qkv=0.4)), "left"),
    "mpt own scale, untied": ("MptForCausalLM", MPT | dict(
        attn_config=dict(softmax_scale=0.7), tie_word_embeddings=False), "right"),
    "mpt base, five heads": ("MptModel", MPT | dict(n_heads=5), "right"),
    "stablelm parallel, biases": ("StableLmForCausalLM", STABLE | dict(
        use_parallel_residual=True, use_qkv_bias=True), "left"),
    "stablelm with a norm for each head": ("StableLmForCausalLM", STABLE | dict(qk_layernorm=True), "right"),
    "stablelm parallel with a norm for each head, tied": ("StableLmForCausalLM", STABLE | dict(
        qk_layernorm=True, use_parallel_residual=True, tie_word_embeddings=True, num_key_value_heads=6,
        hidden_act="gelu"), "left"),
    "stablelm classifier": ("StableLmForSequenceClassification", STABLE | dict(num_labels=3, pad_token_id=0), "right"),
    "phi classifier": ("PhiForSequenceClassification", PHI | dict(num_labels=3, pad_token_id=0), "right"),
}  # fmt: skip


@pytest.mark.parametrize("case", mostly_slow(CASES, list(CASES)[::6]))
def test_outputs_and_gradients(case, transformers, tmp_path):
    compare(transformers, *CASES[case], tmp_path)
