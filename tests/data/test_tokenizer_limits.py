"""What a tokenizer.json may make of a text: known by its settings, before the library reads it."""

import json

import pytest
from tokenizers import Tokenizer, models, normalizers

from llmlab.data.tokenizer import read_tokenizer
from llmlab.data.tokenizer_limits import MOST_IDS, growth
from llmlab.errors import UserError

ALL = [chr(c) for c in (*range(1, 0x3000), *range(0xFA00, 0xFFFE), *range(0x1D100, 0x1D200))]


@pytest.mark.parametrize(
    "name", ["NFC", "NFD", "NFKC", "NFKD", "Lowercase", "BertNormalizer", "ByteLevel", "StripAccents"]
)
def test_no_character_grows_by_more_than_the_bound(name):
    """The bound against the library's own result for each character."""
    step = getattr(normalizers, name)()
    bound = growth(json.loads(step.__getstate__()))
    assert max(len(step.normalize_str(c).encode()) / len(c.encode()) for c in ALL) <= bound


@pytest.mark.parametrize(
    ("step", "text"),
    [
        (normalizers.Replace("ab", "x" * 7), "ab"),
        (normalizers.Prepend("abc"), "x"),
        (normalizers.Sequence([normalizers.Replace("a", "bb"), normalizers.Replace("b", "ccc")]), "a"),
    ],
)
def test_replacing_grows_by_exactly_the_bound(step, text):
    bound = growth(json.loads(step.__getstate__()))
    assert len(step.normalize_str(text)) / len(text) == bound


def changed(tmp_path, **keys):
    inner = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, "[UNK]"))
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps({**json.loads(inner.to_str()), **keys}))
    return file


def replace(content):
    return {"type": "Replace", "pattern": {"String": "a"}, "content": content}


LONG = replace("x" * 200)
TEMPLATE = {"type": "TemplateProcessing", "pair": [], "special_tokens": {}}
A = {"Sequence": {"id": "A", "type_id": 0}}


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (
            {"normalizer": {"type": "Sequence", "normalizers": [LONG, LONG]}},
            "its normalizer .* may make 40,000 bytes of one",
        ),
        (
            {"normalizer": LONG, "pre_tokenizer": {"type": "Metaspace", "replacement": "x" * 100}},
            "may make 40,000 bytes",
        ),
        ({"decoder": {"type": "Sequence", "decoders": [LONG, LONG]}}, "its decoder may make 40,000 bytes of one"),
        ({"post_processor": {**TEMPLATE, "single": [A] * 9}}, "puts 0 ids around 9 copies of a text"),
        (
            {
                "post_processor": {
                    **TEMPLATE,
                    "single": [A, {"SpecialToken": {"id": "s"}}],
                    "special_tokens": {"s": {"id": "s", "ids": [0] * 1001, "tokens": ["s"]}},
                }
            },
            "puts 1,001 ids around 1 copies",
        ),
        ({"model": {"type": "WordLevel", "vocab": {"a": 2**31}, "unk_token": "a"}}, "has the id 2,147,483,648"),
        ({"added_tokens": [{"id": MOST_IDS, "content": "a"}]}, "has the id 16,777,216"),
        ({"model": {"type": "BPE", "vocab": {}, "merges": []}}, "holds no token"),
        ({"model": 3}, "no tokenizer.json of Hugging Face"),
    ],
)
def test_what_would_grow_is_refused_as_it_is_read(tmp_path, keys, said):
    with pytest.raises(UserError, match=said) as e:
        read_tokenizer(changed(tmp_path, **keys))
    assert str(tmp_path / "tokenizer.json") in str(e.value) and len(str(e.value)) < 500


@pytest.mark.parametrize("text", ["[]", "null", "", "{", "[" * 5000 + "]" * 5000, '{"a": %s}' % ("9" * 5000)])
def test_what_is_no_object_is_refused(tmp_path, text):
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(UserError, match="is no tokenizer.json of Hugging Face"):
        read_tokenizer(tmp_path / "tokenizer.json")


def test_usual_ones_are_read(tmp_path):
    llama = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u2581"}, replace("\u2581")]}
    assert read_tokenizer(changed(tmp_path, normalizer=llama)).get_vocab_size() == 2
