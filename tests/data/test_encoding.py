"""Bytes of the text by token, and documents that are encoded a stretch at a time."""

import random

import numpy as np
import pytest

from llmlab.config import schema
from llmlab.data import encoding, prepare
from llmlab.data.tokenizer import Tokenizer, make
from llmlab.errors import UserError

from .kinds import KINDS, OTHER, TEXT

FIXED = [
    TEXT,
    OTHER,
    "",
    " ",
    " \n\t ",
    "a  two  b\n\nﬁ ",
    "\u200b\u0301",
    "日",
    "🙂👩‍👩‍👧",
    "e\u0301\u0301",
    "İß",
    "<unk> [UNK] </w>",
]


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return Tokenizer(KINDS[request.param](), {}, "file")


def randoms(n, length=60):
    rng = random.Random(0)
    points = [chr(c) for c in rng.sample(range(0xD800), 300)] + list(" \n\tab1AÉé") * 25
    points += ["ﬁ", "½", "  ", "e\u0301", "\u200b", "日", "🙂", "the cat", " dog"] * 5
    return ["".join(rng.choices(points, k=length)) for _ in range(n)]


def test_bytes_of_a_text_are_its_own(kind):
    for text in [*FIXED, *randoms(100)]:
        ids, sizes = kind.encode_sized(text)
        assert ids.tolist() == kind.encode(text) == kind.inner.encode(text, add_special_tokens=False).ids
        assert len(sizes) == len(ids) and (sizes >= 0).all()
        if len(ids):
            assert sizes.sum() == len(text.encode()), text


def test_each_word_has_its_own_bytes(kind):
    """Not only the sum: of a text of words that all know, each token has its letters, with the space before it."""
    text = "the cat sat on the mat and the dog"
    _, sizes = kind.encode_sized(text)
    ends = {sum(len(w) + 1 for w in text.split()[: i + 1]) - 1 for i in range(9)}
    assert ends <= set(np.cumsum(sizes).tolist())


def test_bytes_spelt_and_by_offsets_agree():
    """Of byte-level BPE both are known: they differ inside a character only, which offsets can't cut."""
    whole, text = Tokenizer(KINDS["GPT-2"](), {}, "file"), TEXT + OTHER
    ids, sizes = whole.encode_sized(text)
    assert sizes.tolist() == whole.spelt[ids].tolist()
    encoded = whole.inner.encode(text, add_special_tokens=False)
    offsets = encoding.SourceText(text).chunk(whole, ids, encoding.token_offsets(encoded), last=True).sizes
    ours, theirs = set(np.cumsum(sizes).tolist()), set(np.cumsum(offsets).tolist())
    characters = set(np.cumsum([len(c.encode()) for c in text]).tolist())
    assert theirs - {0} <= characters and ours & characters <= theirs


def test_offsets_that_run_backwards_tell_nothing():
    whole = Tokenizer(KINDS["GPT-2"](), {}, "file")
    chunk = encoding.SourceText("abcdef").chunk(whole, np.zeros(2, int), np.array([[3, 6], [0, 3]]), last=True)
    assert chunk.sizes is None


@pytest.mark.parametrize(
    "text", [TEXT * 20 + OTHER * 20, "".join(randoms(40)), " ".join(randoms(200, 7)) + "\n"], ids=len
)
def test_a_long_document_in_stretches(kind, monkeypatch, text):
    """The ids of the whole, and the same bytes for each; in no more at once than a few stretches."""
    ids, sizes = kind.encode_sized(text)
    for name, value in (("PIECE", 1200), ("SPAN", 400), ("OVERLAP", 200)):
        monkeypatch.setattr(encoding, name, value)
    chunks = list(encoding.encode(kind, [text, "the cat", text], sized=True))
    for mine in (chunks[: len(chunks) // 2], chunks[len(chunks) // 2 + 1 :]):
        assert max(c.length for c in mine) <= 800 and len(mine) > 2
        assert np.concatenate([c.ids for c in mine]).tolist() == ids.tolist()
        assert sum(c.length for c in mine) == len(text)
        found = np.concatenate([c.sizes for c in mine])
        assert found.sum() == len(text.encode())
        if kind.spelt is None or sizes.tolist() == kind.spelt[ids].tolist():
            assert found.tolist() == sizes.tolist()
    assert [c.last for c in chunks].count(True) == 3


@pytest.mark.parametrize(
    "text", ["the " + "x" * 5000 + " cat", " " * 5000 + "the", "日" * 5000, "ab" * 3000, "\u0301" * 3000]
)
def test_one_word_as_long_as_a_document(kind, monkeypatch, text):
    """Nothing says where to cut it: the bytes stay exact, and no stretch is long."""
    for name, value in (("PIECE", 1200), ("SPAN", 400), ("OVERLAP", 200)):
        monkeypatch.setattr(encoding, name, value)
    spy = Spy(kind.inner)
    monkeypatch.setattr(kind, "inner", spy)
    chunks = list(encoding.encode(kind, [text], sized=True))
    assert sum(int(c.sizes.sum()) + c.left for c in chunks) == len(text.encode())
    assert sum(c.length for c in chunks) == len(text) and spy.longest <= 1200


class Spy:
    """A tokenizer that knows the longest text that it was given."""

    def __init__(self, inner):
        self.inner, self.longest = inner, 0

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def encode(self, text, **options):
        self.longest = max(self.longest, len(text))
        return self.inner.encode(text, **options)

    def encode_batch(self, texts, **options):
        self.longest = max(self.longest, *map(len, texts))
        return self.inner.encode_batch(texts, **options)


# ---------------------------------------------------------------- the words that are learnt from


def learnt(texts, size=600):
    return make(schema.Tokenizer(vocab_size=size), texts, [], ("eos",))


def test_learning_from_a_long_document_in_stretches(monkeypatch):
    """The same tokenizer, to the byte."""
    text = "".join(randoms(300)) + TEXT * 10 + '{"key":[1,2,3],"other":"x_y"},' * 60
    whole = learnt([text])
    monkeypatch.setattr(encoding, "SLACK", 700)
    assert len(list(encoding.to_learn_from([text], whole.inner.pre_tokenizer))) > 10
    again = learnt([text])
    assert again.inner.to_str() == whole.inner.to_str() and not again.notes


@pytest.mark.parametrize("run", ["ACGT" * 1000, " " * 4000, "-" * 2500 + "x", "x" * 1001])
def test_long_words_are_learnt_from_in_parts_and_that_is_said(run):
    text = f"some words {run} and others\n"
    split = learnt([TEXT]).inner.pre_tokenizer
    parts = list(encoding.to_learn_from([text], split))
    assert "".join(p for p, _ in parts) == text and any(long for _, long in parts)
    words = [(p, w) for p, _ in parts for w, _ in split.pre_tokenize_str(p)]
    assert max(len(w) for _, w in words) <= encoding.WORD + 1
    (note,) = learnt([text]).notes
    assert "words of more than 1,000 characters" in note


# ---------------------------------------------------------------- in a corpus


def corpus(tmp_path, inner, texts, **options):
    (tmp_path / "t").mkdir(exist_ok=True)
    inner.save(str(tmp_path / "t" / "tokenizer.json"))
    for i, text in enumerate(texts):
        (tmp_path / "texts").mkdir(exist_ok=True)
        (tmp_path / "texts" / f"{i}.txt").write_text(text, encoding="utf-8")
    data = schema.Data(source="files", path=str(tmp_path / "texts"), seq_len=2)
    return prepare(data, schema.Tokenizer(kind="file", path=str(tmp_path / "t")), **options)


@pytest.mark.parametrize("name", KINDS)
def test_a_corpus_has_the_bytes_of_its_text(name, tmp_path, capsys):
    texts = [TEXT, OTHER, "\u200b\u0301\x7f", "日 x", *randoms(12)]
    found = corpus(tmp_path, KINDS[name](), texts, whole=True)
    sizes, ends = np.asarray(found.train.sizes, int), [*found.train.starts[1:], len(found.train)]
    # Documents come in the order of their files' names.
    order = sorted(range(len(texts)), key=lambda i: f"{i}.txt")
    assert [int(sizes[a:b].sum()) for a, b in zip(found.train.starts, ends, strict=True)] == [
        len(texts[i].encode()) for i in order
    ]
    assert sizes.sum() == found.manifest["bytes"]["train"]
    said = capsys.readouterr().err
    assert ("under" in said) == (not name.startswith(("GPT-2", "byte-level", "Qwen", "LLaMA")))  # which know all bytes


def test_what_no_loss_knows_is_said(tmp_path, capsys):
    found = corpus(tmp_path, KINDS["WordLevel"](), ["the cat sat ZZ", "the dog sat on"], whole=True)
    assert found.train.sizes.sum() == 28
    # " ZZ" is [UNK] with the space before it
    assert "llmlab: 11 % of the text is under the token for the unknown: bits per byte count" in capsys.readouterr().err


def test_kneser_ney_counts_the_bytes_of_the_text(tmp_path):
    from llmlab.ngram import KneserNey

    texts = [f"the cat sat on the mat and the dog {i}\n" * 8 for i in range(30)]
    found = corpus(tmp_path, KINDS["BERT uncased"](), texts)
    bits = KneserNey(found.train.tokens, found.vocabulary.size, 2).bits(found.validation.tokens)
    assert found.ngram((2,))[2] == pytest.approx(bits / found.validation_bytes, rel=1e-12)
    assert found.validation_bytes == found.validation.sizes.sum()


def test_offsets_that_tell_nothing_give_no_bytes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(encoding, "token_offsets", lambda found: np.array(found.offsets, int).reshape(-1, 2)[::-1])
    found = corpus(tmp_path, KINDS["BERT uncased"](), [TEXT, OTHER], whole=True)
    assert found.train.sizes is None
    assert "llmlab: no bits per byte: the tokenizer does not tell which bytes of the text" in capsys.readouterr().err


# ---------------------------------------------------------------- what a document begins with


def begun(tmp_path, bos=None, *, eos="[SEP]", split="document", texts=None):
    texts = texts or [f"the cat sat on the mat and the dog {i}\n" * 4 for i in range(30)]
    inner = KINDS["BERT cased"]()
    (tmp_path / "t").mkdir(exist_ok=True)
    (tmp_path / "t" / "tokenizer_config.json").write_text(f'{{"eos_token": "{eos}", "bos_token": "[CLS]"}}')
    data = schema.Data(source="files", path=str(tmp_path / "texts"), seq_len=2, split=split, bos=bos, validation=0.3)
    corpus(tmp_path, inner, texts, whole=True)
    found = prepare(data, schema.Tokenizer(kind="file", path=str(tmp_path / "t")))
    return found, [stream.tokens[stream.starts].tolist() for stream in (found.train, found.validation)]


def test_documents_begin_as_the_template_begins_a_text(tmp_path, capsys):
    found, first = begun(tmp_path)
    assert set(first[0]) == set(first[1]) == {1} and found.vocabulary.special["bos"] == 1
    assert (found.validation.tokens == 1).sum() == len(found.validation.starts)
    assert found.validation.sizes[found.validation.starts].sum() == 0
    assert found.validation.sizes.sum() == found.validation_bytes
    said = capsys.readouterr().err
    assert "each document begins with [CLS], as the tokenizer's own template has it (data.bos=false" in said
    without, first = begun(tmp_path, bos=False)
    assert 1 not in without.validation.tokens and "bos" not in without.vocabulary.special
    assert without.folder != found.folder


def test_one_token_between_two_documents_where_it_is_the_end_too(tmp_path):
    found, _ = begun(tmp_path, eos="[CLS]")
    assert found.vocabulary.special["eos"] == 1
    ends = (found.train.tokens == 1).sum()
    assert found.train.tokens[0] == 1 and ends == len(found.train.starts) + 1


def test_a_document_that_is_cut_begins_once(tmp_path):
    found, first = begun(tmp_path, split="position", texts=["the cat sat on the mat\n" * 40])
    assert first == [[1], [found.validation.tokens[0]]] and 1 not in found.validation.tokens


def test_what_llmlab_learns_has_no_bos(tmp_path):
    tokenizer = learnt([TEXT])
    tokenizer.save(tmp_path)
    (tmp_path / "special.json").unlink()  # with it, it is known as one that was learnt here
    again = make(schema.Tokenizer(kind="file", path=str(tmp_path)), [], [], ("eos",))
    assert tokenizer.opening() == again.opening() == ()
    with pytest.raises(UserError, match=r"data\.bos=true: the tokenizer is of tokenizer=bpe, which has no bos"):
        tokenizer.opening(True)
    with pytest.raises(UserError, match=r"data\.bos=true: the files beside tokenizer\.json name no bos_token"):
        again.opening(True)


# ---------------------------------------------------------------- memory

PROGRAM = """
import sys
from pathlib import Path
from llmlab.config.schema import Data, Tokenizer
from llmlab.data import prepare
path = sys.argv[2]
tokenizer = Tokenizer(kind="file", path=path) if path else Tokenizer()
prepare(Data(source="files", path=sys.argv[1], seq_len=16), tokenizer).ngram((2,))
# Not ru_maxrss: that of a new program begins with what the process had that started it.
print(next(int(line.split()[1]) // 1024 for line in Path("/proc/self/status").open() if line.startswith("VmHWM")))
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["", "BERT uncased"])
def test_memory_for_one_long_document_is_bounded(name, tmp_path):
    """12 MB of text, in one file; whole, it took more than 1,100 MiB."""
    import subprocess
    import sys

    path = ""
    if name:
        path = str(tmp_path / "tokenizer.json")
        KINDS[name]().save(path)
    rng = random.Random(0)
    known = ["".join(rng.choices("abcdefghij", k=rng.randrange(2, 9))) for _ in range(5000)]
    (tmp_path / "a.txt").write_text(" ".join(rng.choices(known, k=12_000_000 // 6)))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "a.txt"), path], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 600
