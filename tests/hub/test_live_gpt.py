"""The families in the line of GPT against the reference implementation, with options of their own."""

import pytest
from live import compare

NEOX = dict(vocab_size=61, hidden_size=48, num_hidden_layers=2, num_attention_heads=3, intermediate_size=44,
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
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_outputs_and_gradients(case, transformers, tmp_path):
    compare(transformers, *CASES[case], tmp_path)
