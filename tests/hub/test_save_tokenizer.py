"""A tokenizer goes out with a model of any family as AutoTokenizer of transformers reads it; else nothing goes out."""

import json
import sys

import pytest

from llmlab.config import schema
from llmlab.data.tokenizer import Tokenizer, from_file, make
from llmlab.errors import UserError
from llmlab.hub import save_tokenizer as out
from llmlab.hub.families import entries
from llmlab.hub.text import tokenizer_of

TEXT = "The cat sat on the mat, isn't it? caf\u00e9 \u6570\u636e 12345\n\n  two\tx" * 5


def learnt(kind):
    """A tokenizer of each kind of model, normalizer and split."""
    from tokenizers import Tokenizer as Inner
    from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

    if kind in ("bpe", "char"):
        return make(schema.Tokenizer(kind=kind, vocab_size=320), [TEXT], [], ("eos", "pad"))
    if kind == "wordpiece":
        inner = Inner(models.WordPiece(unk_token="[UNK]"))
        inner.normalizer = normalizers.BertNormalizer()
        inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        inner.train_from_iterator(
            [TEXT], trainers.WordPieceTrainer(vocab_size=90, special_tokens=special, show_progress=False)
        )
        inner.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
        inner.decoder = decoders.WordPiece()
        return Tokenizer(inner, {"pad": 0, "cls": 2, "sep": 3, "mask": 4}, "file")
    inner = Inner(models.Unigram())
    inner.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.decoder = decoders.Metaspace()
    special = ["<unk>", "</s>", "<extra_id_0>"]
    inner.train_from_iterator(
        [TEXT], trainers.UnigramTrainer(vocab_size=90, special_tokens=special, unk_token="<unk>", show_progress=False)
    )
    found = Tokenizer(inner, {"eos": 1, "sentinel_0": 2}, "file")
    found.beside = {"tokenizer_config.json": json.dumps({"tokenizer_class": "LlamaTokenizer", "unk_token": "<unk>"})}
    return found


KINDS = ("bpe", "char", "wordpiece", "unigram")


@pytest.fixture(scope="module")
def tokenizers():
    return {kind: learnt(kind) for kind in KINDS}


def saved(folder, tokenizer, model_type, **config):
    about = {"model_type": model_type, "vocab_size": tokenizer.vocab_size, **config}
    (folder / "config.json").write_text(json.dumps(about))
    return out.save_tokenizer(folder, tokenizer, 77)


@pytest.mark.parametrize("model_type", entries())
def test_every_family_is_read_with_the_tokenizer_that_it_was_trained_with(
    model_type, tokenizers, transformers, tmp_path
):
    for kind, tokenizer in tokenizers.items():
        folder = tmp_path / kind
        folder.mkdir()
        assert saved(folder, tokenizer, model_type) == ""
        for trusts in (False, True):  # whether code in the folder may be run makes no difference
            theirs = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=trusts)
            assert theirs(TEXT, add_special_tokens=False)["input_ids"] == tokenizer.encode(TEXT)
            assert len(theirs) == tokenizer.vocab_size and theirs.model_max_length == 77
            assert theirs.pad_token_id == tokenizer.special.get("pad")
            assert theirs.eos_token_id == tokenizer.special.get("eos", tokenizer.special.get("sep"))
            assert theirs.mask_token_id == tokenizer.special.get("mask")
        config = json.loads((folder / "config.json").read_text())
        assert [config[f"{r}_token_id"] for r in ("bos", "eos", "pad")] == [
            theirs.bos_token_id,
            theirs.eos_token_id,
            theirs.pad_token_id,
        ]
        assert (folder / "tokenization_plain.py").exists() == (model_type in out.REPLACED)
        back = from_file(str(folder), ())
        assert back.encode(TEXT) == tokenizer.encode(TEXT) and back.vocab_size == tokenizer.vocab_size


def test_a_tokenizer_that_the_class_of_the_type_builds_alike_needs_no_auto_map(transformers, tmp_path):
    from tokenizers import Tokenizer as Inner
    from tokenizers import models, trainers
    from transformers.models.qwen2.tokenization_qwen2 import Qwen2Tokenizer

    theirs = Qwen2Tokenizer()._tokenizer
    inner = Inner(models.BPE())
    inner.normalizer, inner.pre_tokenizer, inner.decoder = theirs.normalizer, theirs.pre_tokenizer, theirs.decoder
    inner.train_from_iterator(
        [TEXT], trainers.BpeTrainer(vocab_size=150, special_tokens=["<|endoftext|>"], show_progress=False)
    )
    saved(tmp_path, Tokenizer(inner, {"eos": 0}, "file"), "qwen2")
    assert not (tmp_path / "tokenization_plain.py").exists()
    assert "auto_map" not in json.loads((tmp_path / "tokenizer_config.json").read_text())


def test_what_is_read_otherwise_is_refused_with_what_to_do(tokenizers, transformers, tmp_path, monkeypatch):
    def refused(said, model_type, **config):
        with pytest.raises(UserError) as e:
            saved(tmp_path, tokenizers["bpe"], model_type, **config)
        assert "\n" not in str(e.value) and said in str(e.value) and "format=llmlab" in str(e.value)

    size = tokenizers["bpe"].vocab_size
    refused(f"TokenizersBackend has {size} tokens, and the model 280", "llama", vocab_size=280)
    refused("the model tells padding by the id 9, but its tokenizer's pad is 1", "roberta", pad_token_id=9)
    monkeypatch.setattr(out, "CLASS", "BertTokenizer")  # honoured by transformers, and not the tokenizer.json as it is
    version = transformers.__version__
    said = "would read the tokenizer of a llama model otherwise: BertTokenizer says 'WordPiece error"
    refused(f"transformers {version} {said}", "llama")


def test_without_transformers_a_line_says_what_was_done_instead(tokenizers, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)  # an import is then an ImportError
    for model_type, how in (("llama", "tokenizer_class=PreTrained"), ("qwen2", "auto_map to a PreTrained")):
        note = saved(tmp_path, tokenizers["bpe"], model_type)
        assert note.startswith("not read back, as transformers is not installed; the tokenizer is written with " + how)
    monkeypatch.undo()
    assert out.difference(tmp_path, tokenizers["bpe"], {"eos": 0, "pad": 1}) is None


def test_what_the_tokenizer_came_with_goes_along_and_what_was_another_models_does_not(transformers, tmp_path):
    (tmp_path / "in").mkdir()
    made = learnt("bpe")
    made.inner.add_special_tokens(["<|turn|>"])
    made.inner.save(str(tmp_path / "in/tokenizer.json"))
    about = {
        "tokenizer_class": "LlamaTokenizer",
        "auto_map": {"AutoTokenizer": ["their.Code", None]},
        "model_max_length": 1 << 40,
        "padding_side": "left",
        "eos_token": "<|eos|>",
        "image_token": "<img>",
        "additional_special_tokens": ["<|turn|>"],
    }
    template = "{{ bos_token }}{% for m in messages %}{{ m.content }}<|turn|>{% endfor %}{{ eos_token }}"
    ends = {"eos_token_id": [made.inner.token_to_id("<|turn|>"), 0], "temperature": 0.1, "forced_bos_token_id": 3}
    for name, content in (
        ("tokenizer_config.json", json.dumps(about)),
        ("special_tokens_map.json", json.dumps({"bos_token": "<|bos|>"})),
        ("added_tokens.json", json.dumps({"<|bos|>": 290})),
        ("chat_template.jinja", template),
        ("generation_config.json", json.dumps(ends)),
    ):
        (tmp_path / "in" / name).write_text(content)
    tokenizer = from_file(str(tmp_path / "in"), ("eos",))
    folder = tmp_path / "out"
    folder.mkdir()
    saved(folder, tokenizer, "llama")
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    assert (theirs.padding_side, theirs.model_max_length) == ("left", 77)
    assert (theirs.bos_token, theirs.eos_token, theirs.image_token) == ("<|bos|>", "<|eos|>", "<img>")
    assert "<|turn|>" in theirs.all_special_tokens
    talk = [{"role": "user", "content": "hi"}]
    wanted = tokenizer.encode_marked("<|bos|>hi<|turn|><|eos|>")
    assert theirs.apply_chat_template(talk)["input_ids"] == wanted
    bos, turn = (theirs.convert_tokens_to_ids(t) for t in ("<|bos|>", "<|turn|>"))
    assert json.loads((folder / "generation_config.json").read_text()) == {
        "bos_token_id": bos,
        "eos_token_id": [0, turn],
    }
    assert {p.name for p in folder.iterdir()} == {
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert tokenizer_of(folder).stops == (0, turn)
