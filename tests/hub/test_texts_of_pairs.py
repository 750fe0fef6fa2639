"""Texts of encoders with decoders: the reference's greedy tokens, alone and in a batch, from the command line too."""

import json

import pytest
import torch
from reference_models import refill

import llmlab
from llmlab.commands import cli
from llmlab.decoding.generate import generate, generate_all
from llmlab.decoding.sampling import Sampling
from llmlab.errors import UserError

GREEDY = Sampling(temperature=0)
T5 = dict(vocab_size=61, d_model=30, d_kv=7, d_ff=44, num_layers=2, num_heads=3, decoder_start_token_id=0)
BART = dict(vocab_size=61, d_model=36, encoder_layers=2, decoder_layers=1, encoder_attention_heads=6,
            decoder_attention_heads=4, encoder_ffn_dim=44, decoder_ffn_dim=44, max_position_embeddings=24)  # fmt: skip
MODELS = {
    "bart": ("BartForConditionalGeneration", BART, (None, 2)),
    "bart, both ends forced": ("BartForConditionalGeneration", BART | dict(
        forced_bos_token_id=7, decoder_start_token_id=9, scale_embedding=True), (7, 2)),
    "bart, no end": ("BartForConditionalGeneration", BART | dict(forced_eos_token_id=None), (None, None)),
    "pegasus": ("PegasusForConditionalGeneration", BART | dict(
        scale_embedding=True, forced_eos_token_id=1, decoder_start_token_id=0), (None, 1)),
    "t5": ("T5ForConditionalGeneration", T5, (None, None)),
    "t5, gated": ("T5ForConditionalGeneration", T5 | dict(feed_forward_proj="gated-gelu"), (None, None)),
    "mt5": ("MT5ForConditionalGeneration", T5 | dict(num_decoder_layers=3), (None, None)),
}  # fmt: skip
QUICK = ("bart, both ends forced",)
PROMPTS = [[5, 17, 3, 40, 8, 22], [9, 4], [11, 12, 13, 14, 15, 16, 17, 18, 19, 20]]


def made(transformers, architecture, settings, folder, seed=0):
    cls = getattr(transformers, architecture)
    reference = cls(cls.config_class(**settings, attn_implementation="eager")).eval()
    refill(reference, seed)
    reference.generation_config.forced_bos_token_id = settings.get("forced_bos_token_id")
    reference.save_pretrained(folder)
    return reference


@pytest.mark.parametrize("case", [c if c in QUICK else pytest.param(c, marks=pytest.mark.slow) for c in MODELS])
@torch.no_grad()
def test_greedy_tokens_are_the_references(case, transformers, tmp_path):
    architecture, settings, forced = MODELS[case]
    reference = made(transformers, architecture, settings, tmp_path)
    config = reference.config
    width = max(map(len, PROMPTS))
    ids = torch.tensor([p + [config.pad_token_id] * (width - len(p)) for p in PROMPTS])
    mask = torch.tensor([[1] * len(p) + [0] * (width - len(p)) for p in PROMPTS])
    said = reference.generate(ids, attention_mask=mask, max_new_tokens=12, do_sample=False, use_cache=False)[
        :, 1:
    ].tolist()
    want = [row[: row.index(config.eos_token_id)] if config.eos_token_id in row else row for row in said]
    assert len({tuple(row) for row in want}) > 1

    model = llmlab.load_hf(tmp_path).model
    how = dict(
        max_new=12, sampling=GREEDY, start=config.decoder_start_token_id, stop=config.eos_token_id, forced=forced
    )
    for cached in (True, False):
        got = [[] for _ in PROMPTS]
        for step in generate_all(model, PROMPTS, cached=cached, **how):
            for row, token in zip(got, step, strict=True):
                row += [] if token is None else [token]
        assert got == want
        assert [list(generate(model, p, cached=cached, **how)) for p in PROMPTS] == want


@pytest.mark.slow
@pytest.mark.parametrize("case", ["bart, both ends forced", "t5"])
def test_from_the_command_line(case, transformers, words, tmp_path, capsys):
    architecture, settings, _ = MODELS[case]
    settings = settings | dict(eos_token_id=0, pad_token_id=0, vocab_size=words.save(tmp_path), forced_eos_token_id=0)
    reference = made(transformers, architecture, settings, tmp_path)
    wanted = reference.generate(torch.tensor([[1, 3, 5, 6]]), max_new_tokens=9, do_sample=False)[0, 1:].tolist()
    argv = [f"hf={tmp_path}", "prompt=the quick fox jumps", "max_new=9", "temperature=0", "--json"]
    assert cli.run(["generate", *argv]) == 0
    text = json.loads(capsys.readouterr().out)["text"].split()
    assert [w for w in text if w != "<end>"] == [words.list[i - 1] for i in wanted if i != 0]


def test_the_source_is_read_once_and_its_keys_are_made_once():
    model = llmlab.build(["model=bart", "model.dim=32", "model.vocab_size=61", "model.max_positions=24"])
    decoder, calls = model.stacks["decoder"], {"encoder": 0, "keys": 0, "decoder": 0}

    def count(name):
        def hook(*_):
            calls[name] += 1

        return hook

    model.stacks["encoder"].register_forward_hook(count("encoder"))
    decoder.register_forward_hook(count("decoder"))
    for layer in decoder.layers:
        layer.cross_attention.k.register_forward_hook(count("keys"))
        layer.cross_attention.v.register_forward_hook(count("keys"))
    assert len(list(generate(model, PROMPTS[0], max_new=9, start=2))) == 9
    assert calls == {"encoder": 1, "keys": 2 * len(decoder.layers), "decoder": 9}


def test_a_source_longer_than_the_encoder_knows_is_refused():
    model = llmlab.build(["model=bart", "model.dim=32", "model.vocab_size=61", "model.max_positions=8"])
    assert len(list(generate(model, [5] * 8, max_new=20, start=2))) == 8
    with pytest.raises(UserError, match="the prompt has 9 tokens, but the encoder knows 8 positions"):
        list(generate(model, [5] * 9, max_new=2, start=2))
