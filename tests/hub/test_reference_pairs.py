"""Encoders with decoders against the reference implementation, with options of their own: outputs, gradients, texts."""

import pytest
import torch
from reference_models import compare, refill, worst
from safetensors.torch import load_file

import llmlab
from llmlab.errors import UserError

T5 = dict(vocab_size=61, d_model=30, d_kv=7, d_ff=44, num_layers=2, num_decoder_layers=2, num_heads=3,
          relative_attention_num_buckets=12, relative_attention_max_distance=20)  # fmt: skip
BART = dict(vocab_size=61, d_model=36, encoder_layers=2, decoder_layers=2, encoder_attention_heads=6,
            decoder_attention_heads=6, encoder_ffn_dim=44, decoder_ffn_dim=44, max_position_embeddings=24,
            pad_token_id=0)  # fmt: skip

CASES = {
    "bart, left padding": ("BartForConditionalGeneration", BART, "left"),
    "bart, stacks that differ": ("BartForConditionalGeneration", BART | dict(
        encoder_layers=3, decoder_layers=1, encoder_attention_heads=4, decoder_attention_heads=9, encoder_ffn_dim=28,
        decoder_ffn_dim=52, scale_embedding=True, activation_function="gelu_new"), "right"),
    "bart without a head, relu": ("BartModel", BART | dict(activation_function="relu", decoder_ffn_dim=20), "right"),
    "bart, spans": ("BartForQuestionAnswering", BART | dict(num_labels=2, scale_embedding=True), "right"),
    "pegasus, stacks that differ": ("PegasusForConditionalGeneration", BART | dict(
        scale_embedding=True, encoder_layers=1, decoder_attention_heads=4, decoder_ffn_dim=28), "right"),
    "pegasus without a head": ("PegasusModel", BART | dict(activation_function="relu"), "left"),
    "t5, relu, deep encoder": ("T5ForConditionalGeneration", T5 | dict(num_layers=3, num_decoder_layers=1), "right"),
    "t5, gated, tied but unscaled": ("T5ForConditionalGeneration", T5 | dict(
        feed_forward_proj="gated-gelu", tie_word_embeddings=False, d_kv=16), "left"),
    "t5, gelu": ("T5ForConditionalGeneration", T5 | dict(feed_forward_proj="gelu_new"), "right"),
    "t5 encoder, gated": ("T5EncoderModel", T5 | dict(feed_forward_proj="gated-gelu", num_layers=3), "left"),
    "mt5, relu, deep decoder": ("MT5ForConditionalGeneration", T5 | dict(
        feed_forward_proj="relu", num_decoder_layers=3), "right"),
    "mt5, gated": ("MT5ForConditionalGeneration", T5, "left"),
    "mt5 encoder": ("MT5EncoderModel", T5 | dict(feed_forward_proj="gated-silu"), "right"),
    "mt5 without a head": ("MT5Model", T5 | dict(num_heads=5, d_kv=4), "right"),
}  # fmt: skip
QUICK = ("bart, stacks that differ", "mt5, relu, deep decoder")


@pytest.mark.parametrize("case", [c if c in QUICK else pytest.param(c, marks=pytest.mark.slow) for c in CASES])
def test_outputs_and_gradients(case, transformers, tmp_path):
    compare(transformers, *CASES[case], tmp_path)


def made(transformers, architecture, settings, folder, seed=3):
    """(the reference, ours) of one checkpoint with random weights."""
    cls = getattr(transformers, architecture)
    reference = cls(cls.config_class(**settings, attn_implementation="eager")).eval()
    refill(reference, seed)
    for name, buffer in reference.named_buffers():
        if name == "final_logits_bias":
            buffer.copy_(torch.randn(buffer.shape, generator=torch.Generator().manual_seed(seed)))
    reference.save_pretrained(folder)
    return reference, llmlab.load_hf(folder, verbose=False)


@pytest.mark.slow
def test_a_bias_on_the_logits_is_kept_and_not_learnt(transformers, tmp_path):
    reference, model = made(transformers, "BartForConditionalGeneration", BART, tmp_path / "a")
    assert reference.final_logits_bias.std() > 0.5
    ids = torch.randint(3, 61, (2, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert worst(model(ids, decoder_input_ids=ids).logits, reference(ids, decoder_input_ids=ids).logits) < 2e-5
        assert worst(model(ids).logits, reference(ids).logits) < 2e-5  # the source, shifted
    assert not any("fixed_bias" in name for name, _ in model.named_parameters())
    llmlab.save_hf(model, tmp_path / "b")
    one, two = (load_file(tmp_path / n / "model.safetensors") for n in "ab")
    assert set(one) == set(two) and all(torch.equal(one[n], two[n]) for n in one)


@pytest.mark.slow
def test_a_classifier_reads_the_last_end(transformers, tmp_path):
    settings = BART | dict(num_labels=5, eos_token_id=9)
    reference, model = made(transformers, "BartForSequenceClassification", settings, tmp_path / "a")
    ids = torch.randint(10, 61, (3, 11), generator=torch.Generator().manual_seed(1))
    ids[:, 2] = ids[0, 10] = ids[1, 7] = ids[2, 5] = 9  # two ends each
    ids[1, 8:], ids[2, 6:] = 0, 0
    with torch.no_grad():
        ours, theirs = model(ids, attention_mask=ids != 0), reference(ids, attention_mask=ids != 0)
    assert ours.logits.shape == (3, 5) and worst(ours.logits, theirs.logits) < 2e-5
    assert worst(ours.encoder_last_hidden_state[0], theirs.encoder_last_hidden_state[0]) < 2e-5


@pytest.mark.slow
@pytest.mark.parametrize("kept", [True, False])
def test_bart_untied_has_a_table_for_each_stack(kept, transformers, tmp_path):
    """As the reference has it; the table that it then does not use need not be in the file."""
    settings = BART | dict(tie_word_embeddings=False, decoder_attention_heads=4)
    reference, model = made(transformers, "BartForConditionalGeneration", settings, tmp_path / "a")
    ids = torch.randint(3, 61, (2, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        want = reference(ids, decoder_input_ids=ids[:, :5]).logits
        assert worst(model(ids, decoder_input_ids=ids[:, :5]).logits, want) < 2e-5
        llmlab.save_hf(model if kept else model.model, tmp_path / "b")
        again = type(reference).from_pretrained(tmp_path / "b", attn_implementation="eager").eval()
        assert worst(again(ids, decoder_input_ids=ids[:, :5]).logits, want) < 2e-5
    one, two = (load_file(tmp_path / n / "model.safetensors") for n in "ab")
    assert set(one) == set(two)
    assert all(torch.equal(one[n], two[n]) for n in one if n != "model.shared.weight")


@pytest.mark.slow
@pytest.mark.parametrize("model", ["t5", "t5_v1_1", "mt5", "bart", "pegasus"])
def test_a_model_made_here_is_the_references(model, transformers, tmp_path):
    """Out with `save_hf`, read by transformers."""
    sizes = ("model.dim=32", "model.n_layers=3", "model.n_heads=4", "model.vocab_size=61", "model.max_positions=24")
    ours = llmlab.build([f"model={model}", *sizes]).eval()
    refill(ours, 1)
    llmlab.save_hf(ours, tmp_path)
    reference = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    ids = torch.randint(3, 61, (2, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        want = reference(ids, decoder_input_ids=ids[:, :5]).logits
        assert worst(ours({"source_ids": ids, "ids": ids[:, :5]}).heads["tokens"], want) < 2e-5
        assert worst(llmlab.load_hf(tmp_path)(ids, decoder_input_ids=ids[:, :5]).logits, want) < 2e-5


@pytest.mark.slow
def test_positions_that_are_computed_must_be_those(transformers, tmp_path):
    from safetensors.torch import save_file

    made(transformers, "PegasusForConditionalGeneration", BART, tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    tensors["model.decoder.embed_positions.weight"] += 0.1
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(UserError, match="embed_positions.weight has values of its own, but it is computed here"):
        llmlab.load_hf(tmp_path)
    tensors = {n: t for n, t in tensors.items() if "embed_positions" not in n}
    save_file(tensors, file, {"format": "pt"})  # as on the Hub
    llmlab.save_hf(llmlab.load_hf(tmp_path), tmp_path / "out")
    assert set(load_file(tmp_path / "out/model.safetensors")) == set(tensors)


@pytest.mark.slow
def test_a_table_that_is_there_again_must_be_the_same(transformers, tmp_path):
    from safetensors.torch import save_file

    made(transformers, "T5ForConditionalGeneration", T5, tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    again = "decoder.embed_tokens.weight"
    save_file({**tensors, again: tensors["shared.weight"].clone()}, file, {"format": "pt"})
    llmlab.save_hf(llmlab.load_hf(tmp_path), tmp_path / "out")
    assert set(load_file(tmp_path / "out/model.safetensors")) == {*tensors, again}
    save_file({**tensors, again: tensors["shared.weight"] + 1}, file, {"format": "pt"})
    with pytest.raises(UserError, match="decoder.embed_tokens.weight differs from shared.weight"):
        llmlab.load_hf(tmp_path)
