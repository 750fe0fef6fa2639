import random
import subprocess
import sys

import numpy as np
import pytest

from llmlab.config import schema
from llmlab.data import encoding
from llmlab.data.tokenizer import Tokenizer, make
from llmlab.errors import UserError

from .conftest import prose

TEXTS = [prose(400, i) for i in range(5)] + ["def f(x):\n    return x  # naïve 数据 🙂\n"]
HARD = [
    "",
    " ",
    "\n\n\n  \t x",
    "naïve café — 数据库 🙂👩‍👩‍👧 \u200d\u0000\x7f",
    "<|eos|> and <|mask|> are text",
    "\u00a0\u2028\ufeff e\u0301 \ud7ff\U0010ffff",
    "I'll they're 123,456 x_y",
]


@pytest.fixture(scope="module")
def bpe():
    return make(schema.Tokenizer(vocab_size=400), TEXTS, [], ("eos", "mask"))


def randoms(n):
    rng = random.Random(0)
    points = [chr(c) for c in rng.sample(range(0xD800), 400)] + list(" \n\t'ab1") * 20
    return ["".join(rng.choices(points, k=60)) for _ in range(n)]


@pytest.mark.parametrize("text", HARD + randoms(20), ids=range(len(HARD) + 20))
def test_bpe_round_trip_and_bytes(bpe, text):
    ids = bpe.encode(text)
    assert bpe.decode(ids) == text
    assert bpe.spelt[ids].sum() == len(text.encode("utf-8"))
    assert not set(ids) & set(bpe.special.values())


def test_bpe_sizes(bpe):
    sizes = bpe.spelt
    assert bpe.vocab_size == 400 == len(sizes)
    assert sorted(bpe.special) == ["eos", "mask"]
    assert [sizes[i] for i in bpe.special.values()] == [0, 0]
    assert (np.delete(sizes, list(bpe.special.values())) > 0).all()
    assert sizes.max() > 2  # it has learnt something
    assert bpe.decode([bpe.special["eos"], *bpe.encode("ab")]) == "ab"
    assert bpe.decode([bpe.special["eos"], *bpe.encode("ab")], special=True) == "<|eos|>ab"


def test_bpe_is_the_same_in_another_process(bpe, tmp_path):
    program = (
        "import sys, pathlib\n"
        "from llmlab.config import schema\n"
        "from llmlab.data.tokenizer import make\n"
        "texts = pathlib.Path(sys.argv[1]).read_text(encoding='utf-8').split('\\0')\n"
        "make(schema.Tokenizer(vocab_size=400), texts, [], ('eos', 'mask')).save(pathlib.Path(sys.argv[2]))\n"
    )
    (tmp_path / "texts").write_text("\0".join(TEXTS), encoding="utf-8")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        subprocess.run([sys.executable, "-c", program, tmp_path / "texts", tmp_path / name], check=True)
    bpe.save(tmp_path)
    own = (tmp_path / "tokenizer.json").read_bytes()
    assert (tmp_path / "a" / "tokenizer.json").read_bytes() == own
    assert (tmp_path / "b" / "tokenizer.json").read_bytes() == own


def test_saved_and_loaded(bpe, tmp_path):
    bpe.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert (again.special, again.kind, again.vocab_size) == (bpe.special, "bpe", 400)
    assert [again.encode(t) for t in HARD] == [bpe.encode(t) for t in HARD]


def test_transformers_reads_the_file(bpe, tmp_path):
    transformers = pytest.importorskip("transformers")
    bpe.save(tmp_path)
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    assert theirs.encode(TEXTS[0], add_special_tokens=False) == bpe.encode(TEXTS[0])


@pytest.mark.parametrize("piece", [1, 2, 7, 100, 1000])
def test_a_long_text_is_encoded_as_if_it_were_whole(bpe, monkeypatch, piece):
    monkeypatch.setattr(encoding, "SLACK", 100)
    words = ["word", "  two", "\n", "\n\n ", "don't", " 12", "\t", "é", "\u00a0", " \u2003"]
    text = "".join(random.Random(piece).choices(words, k=2000))
    whole = bpe.inner.encode(text, add_special_tokens=False).ids
    monkeypatch.setattr(encoding, "PIECE", piece)
    assert len(list(encoding.pieces(text, piece, words=True))) > 2
    assert bpe.encode(text) == whole


def test_many_texts_are_encoded_as_one_by_one(bpe):
    assert [ids.tolist() for ids in bpe.encode_all(TEXTS + HARD)] == [bpe.encode(t) for t in TEXTS + HARD]


def test_char_is_the_sorted_characters():
    char = make(schema.Tokenizer(kind="char"), ["hello world\n"], ["naïve 数"], ())
    characters = sorted(set("hello world\nnaïve 数"))
    assert char.special == {}
    assert char.vocab_size == len(characters)
    text = "hello 数 world\n ï"
    assert char.encode(text) == [characters.index(c) for c in text]
    assert char.decode(char.encode(text)) == text
    assert char.spelt.tolist() == [len(c.encode()) for c in characters]
    with pytest.raises(UserError, match="'Q'"):
        char.encode("hello Q")


def test_char_special_tokens_come_after(tmp_path):
    char = make(schema.Tokenizer(kind="char"), ["<|eos|>ab"], [], ("eos", "sentinel_0"))
    n = len(set("<|eos|>ab"))
    assert char.special == {"eos": n, "sentinel_0": n + 1}
    assert char.vocab_size == n + 2
    assert char.decode(char.encode("<|eos|>ab")) == "<|eos|>ab"
    assert max(char.encode("<|eos|>ab")) < n
    assert char.spelt.tolist() == [1] * n + [0, 0]


def test_file_keeps_the_ids_and_finds_or_adds_special_tokens(tmp_path):
    from tokenizers import Tokenizer as Inner
    from tokenizers import decoders, models, pre_tokenizers, trainers

    inner = Inner(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", "<extra_id_0>", "<mine>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(vocab_size=350, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    inner.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"mask_token": {"content": "<mine>"}}')
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        cfg = schema.Tokenizer(kind="file", path=str(path))
        found = make(cfg, [], [], ("eos", "sentinel_0", "sentinel_1", "mask", "pad"))
        assert found.special == {"eos": 1, "sentinel_0": 2, "sentinel_1": 350, "mask": 3, "pad": 351}
        assert found.vocab_size == 352
        assert found.encode(TEXTS[0]) == inner.encode(TEXTS[0]).ids
        assert found.spelt[found.encode(HARD[3])].sum() == len(HARD[3].encode())


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        (schema.Tokenizer(vocab_size=200), "tokenizer.vocab_size=200: .* at least 257"),
        (schema.Tokenizer(kind="word"), "tokenizer.kind=word: .*valid: bpe, char, file"),
        (schema.Tokenizer(kind="file"), "tokenizer.path: .*needs a tokenizer.json"),
        (schema.Tokenizer(kind="file", path="/nowhere/t.json"), "there is no file /nowhere/t.json"),
        (schema.Tokenizer(path="/nowhere/t.json"), "has no effect with tokenizer.kind=bpe"),
        (schema.Tokenizer(kind="file", path=__file__), "is no tokenizer.json of Hugging Face"),
    ],
)
def test_refusals(cfg, message):
    with pytest.raises(UserError, match=message):
        make(cfg, ["some text"], [], ("eos",))
