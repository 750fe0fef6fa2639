"""Encoders and their heads against the reference implementation, with options of every kind and gradients."""

import pytest
from families import mostly_slow
from reference_models import compare

BERT = dict(vocab_size=61, hidden_size=30, num_hidden_layers=2, num_attention_heads=5, intermediate_size=44,
            max_position_embeddings=43, type_vocab_size=3)  # fmt: skip
PLAIN = {k: v for k, v in BERT.items() if k != "type_vocab_size"}
DISTIL = dict(vocab_size=61, dim=30, n_layers=3, n_heads=3, hidden_dim=44, max_position_embeddings=40)
MODERN = dict(vocab_size=61, hidden_size=30, num_hidden_layers=4, num_attention_heads=3, intermediate_size=28,
              max_position_embeddings=40, local_attention=6, pad_token_id=0, bos_token_id=None, eos_token_id=None,
              cls_token_id=None, sep_token_id=None)  # fmt: skip
LLAMA = dict(vocab_size=61, hidden_size=36, intermediate_size=44, num_hidden_layers=2, num_attention_heads=6,
             num_key_value_heads=2, max_position_embeddings=64)  # fmt: skip
GPT2 = dict(vocab_size=61, n_positions=40, n_embd=30, n_layer=2, n_head=5, bos_token_id=None, eos_token_id=None)
DECODER = dict(is_decoder=True)
CROSS = dict(is_decoder=True, add_cross_attention=True)
DEBERTA = PLAIN | dict(relative_attention=True, position_biased_input=False, share_att_key=True, norm_rel_ebd="layer_norm",
                       pos_att_type=["p2c", "c2p"], position_buckets=4)  # fmt: skip
YARN = dict(rope_type="yarn", rope_theta=500.0, factor=4.0, original_max_position_embeddings=16)

CASES = {
    "bert reads another's states": ("BertLMHeadModel", BERT | CROSS, "types right cross"),
    "roberta classifier": ("RobertaForSequenceClassification", BERT | dict(pad_token_id=0, num_labels=4), "left"),
    "electra narrower": ("ElectraForPreTraining", BERT | dict(embedding_size=14, hidden_act="relu"), "types left"),
    "mpnet": ("MPNetForMaskedLM", PLAIN | dict(num_attention_heads=3), "right pad 1"),
    "distilbert classifier": ("DistilBertForSequenceClassification", DISTIL | dict(activation="relu"), "left"),
    "modernbert, mean": ("ModernBertForSequenceClassification", MODERN | dict(classifier_pooling="mean"), "right"),
    "albert, inner layers": ("AlbertForPreTraining", BERT | dict(
        embedding_size=14, num_hidden_layers=4, num_hidden_groups=2, inner_group_num=2), "types right"),
    "llama's score, padding on the left": ("LlamaForSequenceClassification", LLAMA | dict(
        num_labels=1, pad_token_id=0), "left"),
    "bert pairs and tokens": ("BertForPreTraining", BERT | dict(hidden_act="gelu_new"), "types left"),
    "bert pairs": ("BertForNextSentencePrediction", BERT, "types right"),
    "bert classifier": ("BertForSequenceClassification", BERT | dict(num_labels=1, num_attention_heads=2), "types right"),
    "bert spans, positions given": ("BertForQuestionAnswering", BERT | dict(hidden_act="silu"), "types positions"),
    "bert base": ("BertModel", BERT | dict(layer_norm_eps=1e-3, hidden_size=35, num_hidden_layers=3), "types left"),
    "bert without types": ("BertModel", BERT | dict(type_vocab_size=1), "right"),
    "bert causal base": ("BertModel", BERT | DECODER, "types right"),
    "bert with nothing to read": ("BertLMHeadModel", BERT | CROSS, "types right"),
    "bert both ways, next token": ("BertLMHeadModel", BERT, "types right"),
    "roberta base": ("RobertaModel", BERT | dict(type_vocab_size=1, pad_token_id=2), "right"),
    "roberta, padding is an ordinary id": ("RobertaModel", BERT | dict(pad_token_id=0, hidden_act="relu"), "types left"),
    "roberta positions given": ("RobertaForTokenClassification", BERT | dict(pad_token_id=0), "positions right"),
    "roberta untied": ("RobertaForMaskedLM", BERT | dict(pad_token_id=0, tie_word_embeddings=False), "left"),
    "roberta spans": ("RobertaForQuestionAnswering", BERT | dict(pad_token_id=0, num_attention_heads=3), "right"),
    "roberta reads another's states": ("RobertaForCausalLM", BERT | CROSS | dict(pad_token_id=0), "right cross"),
    "xlm-roberta": ("XLMRobertaForMaskedLM", BERT | dict(pad_token_id=0, hidden_act="relu"), "left"),
    "camembert": ("CamembertForSequenceClassification", BERT | dict(pad_token_id=0), "left"),
    "electra as wide": ("ElectraForMaskedLM", BERT | dict(embedding_size=30, hidden_act="relu"), "types right"),
    "electra wider": ("ElectraForMaskedLM", BERT | dict(embedding_size=40, tie_word_embeddings=False), "types left"),
    "electra causal": ("ElectraForCausalLM", BERT | CROSS | dict(embedding_size=12), "types right cross"),
    "electra base": ("ElectraModel", BERT | dict(embedding_size=12, num_attention_heads=3), "types left"),
    "electra classifier": ("ElectraForSequenceClassification", BERT | dict(embedding_size=9, num_labels=5), "right"),
    "electra tokens": ("ElectraForTokenClassification", BERT | dict(embedding_size=9, num_labels=5), "types right"),
    "electra spans": ("ElectraForQuestionAnswering", BERT | dict(embedding_size=30), "types left"),
    "mpnet base": ("MPNetModel", PLAIN | dict(layer_norm_eps=1e-3), "left pad 1"),
    "mpnet classifier": ("MPNetForSequenceClassification", PLAIN | dict(num_labels=3), "right pad 1"),
    "mpnet tokens": ("MPNetForTokenClassification", PLAIN | dict(num_labels=3, hidden_act="relu"), "left pad 1"),
    "mpnet spans": ("MPNetForQuestionAnswering", PLAIN, "right pad 1"),
    "mpnet untied": ("MPNetForMaskedLM", PLAIN | dict(tie_word_embeddings=False), "left pad 1"),
    "deberta": ("DebertaV2ForMaskedLM", DEBERTA, "right"),
    "deberta base, all distances": ("DebertaV2Model", DEBERTA | dict(
        position_buckets=-1, max_relative_positions=6, layer_norm_eps=1e-3, norm_rel_ebd="none"), "left"),
    "deberta, one term": ("DebertaV2ForTokenClassification", DEBERTA | dict(
        pos_att_type="c2p", max_relative_positions=9, num_labels=3), "right"),
    "deberta, the other term": ("DebertaV2ForQuestionAnswering", DEBERTA | dict(
        pos_att_type=["p2c"], position_buckets=7, max_position_embeddings=12, hidden_act="relu"), "left"),
    "deberta classifier with types": ("DebertaV2ForSequenceClassification", DEBERTA | dict(
        type_vocab_size=3, num_labels=4, pooler_hidden_act="relu"), "types right"),
    "distilbert untied": ("DistilBertForMaskedLM", DISTIL | dict(tie_word_embeddings=False), "right"),
    "distilbert base": ("DistilBertModel", DISTIL | dict(n_heads=5, sinusoidal_pos_embds=True), "left"),
    "distilbert tokens": ("DistilBertForTokenClassification", DISTIL | dict(num_labels=4), "right"),
    "distilbert spans": ("DistilBertForQuestionAnswering", DISTIL, "left"),
    "modernbert with every bias": ("ModernBertForMaskedLM", MODERN | dict(
        attention_bias=True, mlp_bias=True, norm_bias=True, classifier_bias=True, decoder_bias=False,
        classifier_activation="relu", hidden_activation="silu"), "left"),
    "modernbert untied, all local": ("ModernBertForMaskedLM", MODERN | dict(
        tie_word_embeddings=False, local_attention=3, layer_types=["sliding_attention"] * 4), "right"),
    "modernbert all global, yarn": ("ModernBertModel", MODERN | dict(
        layer_types=["full_attention"] * 4, rope_parameters=dict(
            full_attention=YARN, sliding_attention=dict(rope_type="default", rope_theta=100.0))), "left"),
    "modernbert tokens": ("ModernBertForTokenClassification", MODERN | dict(num_labels=5), "right"),
    "modernbert spans": ("ModernBertForQuestionAnswering", MODERN | dict(global_attn_every_n_layers=2), "left"),
    "modernbert classifier": ("ModernBertForSequenceClassification", MODERN | dict(num_labels=4), "right"),
    "bert generation": ("BertGenerationDecoder", PLAIN | DECODER, "left"),
    "bert generation untied": ("BertGenerationDecoder", PLAIN | DECODER | dict(tie_word_embeddings=False), "right"),
    "bert generation reads another's states": ("BertGenerationDecoder", PLAIN | CROSS, "right cross"),
    "bert generation encoder": ("BertGenerationEncoder", PLAIN | dict(hidden_act="relu"), "left"),
    "albert, one group of three": ("AlbertModel", BERT | dict(embedding_size=12, inner_group_num=3), "types left"),
    "albert, uneven groups": ("AlbertForTokenClassification", BERT | dict(
        embedding_size=12, num_hidden_layers=5, num_hidden_groups=2, num_labels=3), "types right"),
    "albert spans": ("AlbertForQuestionAnswering", BERT | dict(embedding_size=30, num_hidden_layers=3), "types left"),
    "gpt2's score": ("GPT2ForSequenceClassification", GPT2 | dict(num_labels=1, pad_token_id=0), "right"),
    "gpt2 tokens": ("GPT2ForTokenClassification", GPT2 | dict(num_labels=4), "left"),
    "gpt2 spans": ("GPT2ForQuestionAnswering", GPT2, "right"),
    "llama classes": ("LlamaForSequenceClassification", LLAMA | dict(num_labels=5, pad_token_id=60), "right"),
    "llama tokens": ("LlamaForTokenClassification", LLAMA | dict(num_labels=4), "left"),
    "llama spans": ("LlamaForQuestionAnswering", LLAMA | dict(attention_bias=True), "right"),
}  # fmt: skip


QUICK = ("bert reads another's states", "roberta classifier", "modernbert, mean")


@pytest.mark.parametrize("case", mostly_slow(CASES, QUICK))
def test_outputs_and_gradients(case, transformers, tmp_path):
    compare(transformers, *CASES[case], tmp_path)
