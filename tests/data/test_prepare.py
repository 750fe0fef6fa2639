import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict

import numpy as np
import pytest

from llmlab.config.schema import Data, Tokenizer
from llmlab.data import prepare, prepare_texts
from llmlab.errors import UserError
from llmlab.ngram import kneser_ney

BPE = Tokenizer(vocab_size=320)


def corpus(path, tokenizer=BPE, special=(), **options):
    return prepare(Data(source="files", path=str(path), **{"seq_len": 16, **options}), tokenizer, special)


def texts_of(found, part):
    """The documents of a part, decoded, without the token that ends each."""
    stream = getattr(found, part)
    ends = [*stream.starts[1:], len(stream)]
    eos = found.tokenizer.special.get("eos")
    texts = []
    for begin, end in zip(stream.starts, ends, strict=True):
        ids = stream.tokens[begin:end].tolist()
        assert eos not in ids[:-1]
        texts.append(found.tokenizer.decode(ids))
    return texts


def test_every_document_is_in_one_part_and_whole(folder_of_texts):
    found = corpus(folder_of_texts, validation=0.25)
    train, validation = texts_of(found, "train"), texts_of(found, "validation")
    assert sorted(train + validation) == sorted(p.read_text(encoding="utf-8") for p in folder_of_texts.iterdir())
    for text in train + validation:
        place = int(hashlib.sha256(text.encode()).hexdigest()[:16], 16) / 16**16
        assert (text in validation) == (place < 0.25)
    assert 3 <= len(validation) <= 20
    assert found.train.tokens[-1] == found.tokenizer.special["eos"] == 0
    assert found.tokens == len(found.train.tokens) + len(found.validation.tokens)


def test_bytes_are_those_of_the_text(folder_of_texts):
    found = corpus(folder_of_texts, special=("mask", "sentinel_0"))
    size = sum(len(t.encode()) for t in texts_of(found, "validation"))
    assert found.validation_bytes == size == found.validation.sizes.sum()
    assert found.validation.sizes.tolist() == found.tokenizer.spelt[found.validation.tokens].tolist()
    assert found.validation.sizes.dtype == np.uint8 and found.train.sizes is None
    assert found.vocabulary.size == len(found.tokenizer.spelt) == found.tokenizer.vocab_size == 320
    assert dict(found.vocabulary.special) == {"eos": 0, "mask": 1, "sentinel_0": 2}


def test_the_tokenizer_learns_from_the_training_part_only(folder_of_texts):
    first = corpus(folder_of_texts).tokenizer.inner.to_str()
    held_out = texts_of(corpus(folder_of_texts), "validation")
    for file in folder_of_texts.iterdir():
        if file.read_text(encoding="utf-8") in held_out:
            file.unlink()
            break
    assert corpus(folder_of_texts).tokenizer.inner.to_str() == first


def test_the_fingerprint_is_of_the_text(folder_of_texts, tmp_path):
    found = corpus(folder_of_texts)
    (tmp_path / "copy").mkdir()
    for file in folder_of_texts.iterdir():
        (tmp_path / "copy" / f"x{file.name}").write_bytes(file.read_bytes())
    assert corpus(tmp_path / "copy").fingerprint == found.fingerprint
    assert corpus(folder_of_texts, Tokenizer(kind="char"), split="position").fingerprint == found.fingerprint
    (folder_of_texts / "05.txt").write_text("another text\n" * 30)
    assert corpus(folder_of_texts).fingerprint != found.fingerprint


def test_position_split_of_one_file_as_nanogpt_does_it(tmp_path):
    text = "".join(np.random.default_rng(0).choice(list("abcdefg \né"), size=10_007))
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    found = corpus(tmp_path / "a.txt", Tokenizer(kind="char"), split="position")
    ids = {c: i for i, c in enumerate(sorted(set(text)))}
    assert found.vocabulary.size == len(ids)
    assert found.vocabulary.special == {}
    assert found.train.tokens.tolist() == [ids[c] for c in text[: int(10_007 * 0.9)]]
    assert found.validation.tokens.tolist() == [ids[c] for c in text[int(10_007 * 0.9) :]]
    assert found.train.tokens.dtype == np.uint16


def test_the_whole_text_has_the_ids_that_it_has_alone(tmp_path):
    (tmp_path / "a.txt").write_text("one two three four five " * 40)
    cut = corpus(tmp_path / "a.txt", split="position")
    cut.tokenizer.save(tmp_path)
    file = Tokenizer(kind="file", path=str(tmp_path))
    found = prepare(Data(source="files", path=str(tmp_path / "a.txt"), seq_len=16), file, whole=True)
    assert found.train.tokens.tolist() == cut.tokenizer.encode("one two three four five " * 40)
    assert len(found.validation) == 0 and found.manifest["bytes"] == {"train": 960, "validation": 0}


def test_position_split_cuts_one_document_and_ends_the_others(folder_of_texts):
    found = corpus(folder_of_texts, split="position", validation=0.3)
    train, validation = texts_of(found, "train"), texts_of(found, "validation")
    originals = [p.read_text(encoding="utf-8") for p in sorted(folder_of_texts.iterdir())]
    assert "".join(train + validation) == "".join(originals)
    assert len("".join(train)) == int(len("".join(originals)) * 0.7)
    assert found.train.tokens[-1] != 0  # the cut is no end
    assert found.validation.tokens[-1] == 0


def test_one_document_can_not_be_split_whole(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("some words of it. " * 200)
    found = corpus(tmp_path / "a.txt")
    assert found.manifest["split"] == "position"
    assert "".join(texts_of(found, "train") + texts_of(found, "validation")) == "some words of it. " * 200
    assert "data.split=position" in capsys.readouterr().err
    corpus(tmp_path / "a.txt")
    assert "data.split=position" in capsys.readouterr().err  # each run says it


def test_max_documents(folder_of_texts):
    found = corpus(folder_of_texts, max_documents=12)
    assert sum(found.manifest["documents"].values()) == 12


@pytest.mark.slow
def test_large_vocabularies_take_four_bytes(folder_of_texts, tmp_path):
    first = corpus(folder_of_texts).tokenizer
    first.inner.add_tokens([f"extra{i}" for i in range(70_000)])
    (tmp_path / "t").mkdir()
    first.save(tmp_path / "t")
    found = corpus(folder_of_texts, Tokenizer(kind="file", path=str(tmp_path / "t")))
    assert found.train.tokens.dtype == np.uint32
    assert texts_of(found, "validation") == texts_of(corpus(folder_of_texts), "validation")


def test_the_second_opening_reads_no_text(folder_of_texts, monkeypatch):
    first = corpus(folder_of_texts)
    monkeypatch.setattr("llmlab.data.readers.items", lambda *args: pytest.fail("read again"))
    second = corpus(folder_of_texts)
    assert second.folder == first.folder
    assert np.array_equal(second.train.tokens, first.train.tokens)
    assert isinstance(second.train.tokens, np.memmap)
    assert second.manifest == first.manifest


def test_choices_have_folders_of_their_own(folder_of_texts):
    options = [{}, {"validation": 0.2}, {"split": "position"}, {"max_documents": 20}]
    others = [{"special": ("mask",)}, {"tokenizer": Tokenizer(vocab_size=300)}, {"tokenizer": Tokenizer(kind="char")}]
    folders = {corpus(folder_of_texts, **o).folder for o in options + others}
    assert len(folders) == len(options) + len(others)
    same = {corpus(folder_of_texts, seq_len=s, num_workers=s, separate_documents=True).folder for s in (8, 16)}
    assert same == {corpus(folder_of_texts).folder}


def test_ngram_is_kept_beside_the_corpus(folder_of_texts, monkeypatch):
    found = corpus(folder_of_texts)
    expected = kneser_ney(found.train.tokens, found.validation.tokens, found.validation_bytes, 320, (2, 3))
    assert found.ngram() == expected
    (found.folder / "ngram.json").write_text("{}")
    assert found.ngram() == expected
    monkeypatch.setattr("llmlab.ngram.kneser_ney", lambda *a: pytest.fail("counted again"))
    assert corpus(folder_of_texts).ngram() == expected


# ---------------------------------------------------------------- a cache that is not as it was left


def contents(found):
    return {part: getattr(found, part).tokens.tolist() for part in ("train", "validation")}


def flip(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(data)


DAMAGE = {
    "a flipped bit": lambda f: flip(f / "train.npy"),
    "half a file": lambda f: os.truncate(f / "validation.npy", 100),
    "no file": lambda f: (f / "tokenizer.json").unlink(),
    "no manifest": lambda f: (f / "manifest.json").unlink(),
    "half a manifest": lambda f: os.truncate(f / "manifest.json", 40),
    "another number in the manifest": lambda f: (f / "manifest.json").write_text(
        (f / "manifest.json").read_text().replace('"vocab_size": 320', '"vocab_size": 321')
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_cache_is_made_anew_and_that_is_said(folder_of_texts, damage, capsys):
    first = corpus(folder_of_texts)
    expected = contents(first)
    DAMAGE[damage](first.folder)
    again = corpus(folder_of_texts)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "is damaged" in lines[0]
    assert str(first.folder) in lines[0]
    assert contents(again) == expected
    corpus(folder_of_texts)
    assert capsys.readouterr().err == ""


PROGRAM = """
import json, sys
from llmlab.config.schema import Data, Tokenizer
from llmlab.data import prepare, prepare_texts
found = prepare(Data(**json.loads(sys.argv[1])), Tokenizer(**json.loads(sys.argv[2])))
assert "torch" not in sys.modules, "slow to start"
print(json.dumps([found.fingerprint, int(found.train.tokens.sum()), int(found.validation.tokens.sum())]))
"""


def process(folder, tokenizer=BPE):
    data = Data(source="files", path=str(folder), seq_len=16)
    command = [
        sys.executable,
        "-c",
        PROGRAM,
        json.dumps({k: v for k, v in asdict(data).items() if k != "fields"}),
        json.dumps(asdict(tokenizer)),
    ]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_several_processes_at_once(folder_of_texts, cache_folder):
    processes = [process(folder_of_texts) for _ in range(4)]
    results = [(*p.communicate(), p.returncode) for p in processes]
    assert {code for *_, code in results} == {0}, results
    assert len({out for out, *_ in results}) == 1
    assert json.loads(results[0][0])[0] == corpus(folder_of_texts).fingerprint
    kept = {p.suffix or "folder" for p in (cache_folder / "corpora").iterdir()}
    assert kept == {"folder", ".lock"}
    assert len(list((cache_folder / "corpora").iterdir())) == 2


def test_killed_while_preparing(folder_of_texts, cache_folder):
    (folder_of_texts / "long.txt").write_text("word " * 400_000)
    killed = process(folder_of_texts)
    deadline = time.monotonic() + 30
    while not list(cache_folder.glob("corpora/.*")) and time.monotonic() < deadline:
        time.sleep(0.002)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    assert list(cache_folder.glob("corpora/.*"))
    again = process(folder_of_texts)
    out, err = again.communicate()
    assert again.returncode == 0, err
    assert "Traceback" not in err
    assert json.loads(out)[0] == corpus(folder_of_texts).fingerprint
    assert not list(cache_folder.glob("corpora/.*"))


def test_a_failure_leaves_nothing(tmp_path, cache_folder):
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n{"txt": 1}\n')
    with pytest.raises(UserError, match="line 2"):
        corpus(tmp_path / "a.jsonl")
    assert [p.suffix for p in (cache_folder / "corpora").iterdir()] == [".lock"]


def test_a_cache_that_can_not_be_written(folder_of_texts, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("LLMLAB_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="set LLMLAB_CACHE"):
        corpus(folder_of_texts)


# ---------------------------------------------------------------- refusals


def test_too_little_text_names_the_key_and_the_tokens(tmp_path):
    (tmp_path / "a.txt").write_text("abcde" * 40)
    char = Tokenizer(kind="char")
    corpus(tmp_path / "a.txt", char, seq_len=19)
    with pytest.raises(
        UserError, match=r"data.seq_len=20: the validation part .* has 20 tokens, too few for a window of 21"
    ):
        corpus(tmp_path / "a.txt", char, seq_len=20)
    with pytest.raises(UserError, match=r"data.seq_len=180: the train part .* has 180 tokens"):
        corpus(tmp_path / "a.txt", char, seq_len=180)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation": 0.0}, "data.validation=0.0"),
        ({"validation": 1.5}, "data.validation=1.5"),
        ({"split": "random"}, "data.split=random: .*valid: document, position"),
        ({"max_documents": 0}, "data.max_documents=0"),
    ],
)
def test_wrong_values(folder_of_texts, options, message):
    with pytest.raises(UserError, match=message):
        corpus(folder_of_texts, **options)


def test_only_white_space(tmp_path):
    (tmp_path / "a.txt").write_text(" \n \n")
    with pytest.raises(UserError, match="only white space"):
        corpus(tmp_path / "a.txt")


# ---------------------------------------------------------------- the default corpus


@pytest.mark.slow  # all of the default text: 3 s
def test_the_default_corpus(tmp_path):
    found = prepare(Data(), Tokenizer())
    assert 700_000 < found.tokens < 1_100_000
    assert found.vocabulary.size == 1024
    assert found.validation.sizes.sum() == found.validation_bytes
    bits = found.ngram()
    assert 1.5 < bits[3] < bits[2] < 2.6
    times = []
    for _ in range(3):
        begin = time.perf_counter()
        prepare(Data(), Tokenizer())
        times.append(time.perf_counter() - begin)
    assert min(times) < 0.3


def test_a_full_disk_is_said_while_the_ids_are_written(tmp_path, monkeypatch):
    """A limit on the size of files stands for the disk; what was half made is gone, and with room it is made."""
    import resource

    monkeypatch.setenv("LLMLAB_CACHE", str(tmp_path / "cache"))
    (tmp_path / "long.txt").write_text("".join(f"{i * 7919 % 1000} words, " for i in range(12_000)))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, limits[1]))
    try:
        with pytest.raises(UserError, match=r"the cache .* is full \(File too large; .*: set LLMLAB_CACHE"):
            corpus(tmp_path / "long.txt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [p.suffix for p in (tmp_path / "cache/corpora").iterdir()] == [".lock"]
    assert corpus(tmp_path / "long.txt").tokens > 20_000


def test_the_text_that_is_wanted_is_known_before_anything_is_tokenized(folder_of_texts, tmp_path, monkeypatch):
    from llmlab.data import fingerprint

    found = corpus(folder_of_texts)
    again = prepare(Data(source="files", path=str(folder_of_texts), seq_len=16), BPE, text=found.fingerprint)
    assert again.folder == found.folder
    (folder_of_texts / "zz.txt").write_text("one more " * 50)
    monkeypatch.setattr(prepare_texts, "make_tokenizer", lambda *_: pytest.fail("a tokenizer was made"))
    with pytest.raises(fingerprint.OtherText) as e:
        prepare(Data(source="files", path=str(folder_of_texts), seq_len=16), BPE, text=found.fingerprint)
    before = fingerprint.read(found.folder)
    n = len(before)
    assert fingerprint.fingerprint(before) == found.fingerprint
    assert fingerprint.changes(before, e.value.documents) == f"it had {n} documents; 1 added"
    assert fingerprint.changes(n, e.value.documents) == f"it now has {n + 1} documents, and had {n}"
    assert fingerprint.changes(None, e.value.documents) == f"it now has {n + 1} documents"
    assert fingerprint.changes(before, before[::-1]) == f"it has the same {n} documents in another order"
    assert fingerprint.changes(before, before[1:]) == f"it had {n} documents; 1 removed"
