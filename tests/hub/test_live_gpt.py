"""The families in the line of GPT against the reference implementation, with options of their own."""

import pytest
from live import compare

NEOX = dict(vocab_size=61, hidden_size=48, num_hidden_layers=2, num_attention_heads=3, intermediate_size=44,
            max_position_embeddings=40)  # fmt: skip
FALCON = dict(vocab_size=61, hidden_size=36, num_hidden_layers=2, num_attention_heads=6, ffn_hidden_size=44,
              max_position_embeddings=40)  # fmt: skip
ALIBI = FALCON | dict(alibi=True, attn_implementation="sdpa")  # eager adds the bias twice
NEW = FALCON | dict(new_decoder_architecture=True, num_kv_heads=3)
PHI = dict(vocab_size=61, hidden_size=48, num_hidden_layers=2, num_attention_heads=6, intermediate_size=44,
           max_position_embeddings=40)  # fmt: skip

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
    "phi classifier": ("PhiForSequenceClassification", PHI | dict(num_labels=3, pad_token_id=0), "right"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_outputs_and_gradients(case, transformers, tmp_path):
    compare(transformers, *CASES[case], tmp_path)
