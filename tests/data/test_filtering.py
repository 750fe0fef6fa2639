"""Filters where a corpus is read: in their order, counted, in several processes as in one, and in the corpus's fingerprint."""

import copy
import json
import re

import numpy as np
import pytest

from llmlab import registry
from llmlab.config.schema import Data, Tokenizer
from llmlab.config.spec import PartSpec
from llmlab.data import filtering, prepare
from llmlab.data.account import Document
from llmlab.errors import UserError

CHAR = Tokenizer(kind="char")


def chosen(**options):
    """Filters by name, in this order, each with options of its own."""
    return {name: PartSpec.with_defaults("filter", name, **of) for name, of in options.items()}


def corpus(path, filters, **options):
    return prepare(Data(source="files", path=str(path), **{"seq_len": 8, **options}), CHAR, filters=filters)


@pytest.fixture
def texts(tmp_path):
    """12 documents: 3 short ones of which two are equal, 2 that are equal but for white space, one without letters."""
    lines = [f"the story of number {i}, which is told in a few words" for i in range(7)]
    lines += [
        "short",
        "short",
        "tiny",
        "the story of number  3, which is told in a few words ",
        "1234567890123456789012",
    ]
    file = tmp_path / "texts" / "texts.jsonl"
    file.parent.mkdir()
    file.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    return file


def test_what_is_kept_and_what_the_account_says(texts, capsys):
    filters = chosen(length={"least": 10}, duplicates={}, regex={"keep": "[a-z]"})
    found = corpus(texts, filters)
    assert capsys.readouterr().err.splitlines() == [
        'llmlab: filter=length dropped 3 (shorter than 10 characters) of 12 documents; the first: texts.jsonl:8 "short"',
        "llmlab: filter=duplicates dropped 1 (the same as one before) of 9 documents; the first: texts.jsonl:11 "
        '"the story of number  3, which is told in a few words "',
        'llmlab: filter=regex dropped 1 (without [a-z]) of 8 documents; the first: texts.jsonl:12 "1234567890123456789012"',
    ]
    read = found.manifest["read"]
    assert (read["documents"], sum(found.manifest["documents"].values())) == (7, 7)
    assert read["bytes"] == sum(found.manifest["bytes"].values())
    assert read["filters"][0] == {
        "filter": "length",
        "seen": 12,
        "dropped": 3,
        "reasons": {"shorter than 10 characters": 3},
        "examples": [
            {"name": f"texts.jsonl:{n}", "reason": "shorter than 10 characters", "text": text}
            for n, text in ((8, "short"), (9, "short"), (10, "tiny"))
        ],
    }
    assert corpus(texts, filters).manifest == found.manifest
    assert capsys.readouterr().err.count("dropped") == 3  # each run says it


def test_order_matters_where_it_should(texts):
    """The same documents either way; of the three short ones the first filter drops those that it can."""
    one = corpus(texts, chosen(length={"least": 10}, duplicates={}))
    other = corpus(texts, chosen(duplicates={}, length={"least": 10}))
    assert one.fingerprint == other.fingerprint and one.folder != other.folder
    assert [a["dropped"] for a in one.manifest["read"]["filters"]] == [3, 1]
    assert [a["dropped"] for a in other.manifest["read"]["filters"]] == [2, 2]


def test_each_filter_sees_what_those_before_it_keep():
    documents = [Document(str(i), "x" * i) for i in range(300)]
    first = PartSpec("filter", "length", {"least": 10, "most": None, "unit": "characters"})
    second = PartSpec("filter", "length", {"least": None, "most": 99, "unit": "characters"})
    with filtering.Filters({"a": first, "b": second}, lambda d: d.text, at_once=7) as two:
        assert list(two.kept(documents)) == documents[10:100]
    assert [(a["seen"], a["dropped"], len(a["examples"])) for a in two.accounts] == [(300, 10, 5), (290, 200, 5)]
    assert len(two.accounts[1]["examples"][0]["text"]) == 80


def test_two_processes_are_as_one():
    documents = [Document(f"{i}", f"{i % 97} " * (i % 13)) for i in range(700)]
    slow = {"drop": r"^1(.)\1? |(?:a|b)z", "seconds": 0.1}
    made = chosen(length={"least": 9}, duplicates={}, regex=slow)
    found = []
    for workers in (0, 2):
        with filtering.Filters(made, lambda d: d.text, workers=workers, at_once=16) as one:
            found.append((list(one.kept(documents)), copy.deepcopy(one.accounts)))
            with pytest.raises(UserError, match=r"filter\.regex: the pattern takes longer than seconds=0\.1"):
                list(one.kept([Document("a", "a" * 20_000_000)]))
    assert found[0] == found[1] and 50 < len(found[0][0]) < 600


def test_max_documents_counts_those_that_are_kept(texts):
    (texts.parent / "zz.txt").write_text("never read")
    found = corpus(texts.parent, chosen(duplicates={}), max_documents=9, num_workers=2)
    assert sum(found.manifest["documents"].values()) == 9
    read = found.manifest["read"]
    assert (read["files"], read["filters"][0]["seen"], read["filters"][0]["dropped"]) == (1, 10, 1)
    assert read["documents"] == 9 and read["skipped"][-1]["names"] == ["zz.txt"]


def test_near_duplicates_are_never_on_both_sides(tmp_path):
    words = [f"w{i * 37 % 101}x{i % 7}" for i in range(60)]
    rows = [
        f"tale{n} " + " ".join([*words[n:], *words[:n], f"end{version}"]) for n in range(40) for version in range(3)
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    shared = {}
    for name, filters in (("without", {}), ("with", chosen(minhash={"words": 3, "bands": 20, "rows": 2}))):
        found = corpus(tmp_path / "a.jsonl", filters, validation=0.3)
        sides = [
            set(re.findall(r"tale\d+", found.tokenizer.decode(s.tokens.tolist())))
            for s in (found.train, found.validation)
        ]
        shared[name] = len(sides[0] & sides[1])
    assert shared["with"] == 0 and shared["without"] > 10
    assert found.manifest["read"]["filters"][0]["reasons"].keys() == {"nearly the same as one before"}


def test_none_left_names_the_filter_that_dropped_most(texts):
    with pytest.raises(UserError) as e:
        corpus(texts, chosen(duplicates={}, length={"least": 1000}))
    assert str(e.value) == (
        f"data.path={texts}: none of its 12 documents is left: filter=length dropped 10 (shorter than 1,000 characters), "
        "filter=duplicates dropped 2 (the same as one before)"
    )


def test_records_are_judged_by_their_texts(tmp_path, capsys):
    rows = [{"text": f"film {i}", "label": "good" if i % 2 else "bad"} for i in range(40)] + [
        {"text": "film 1", "label": "bad"}
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    data = Data(source="files", path=str(tmp_path / "a.jsonl"), seq_len=16)
    found = prepare(data, CHAR, reads="labelled", filters=chosen(duplicates={}, length={"most": 6}))
    assert sum(found.manifest["documents"].values()) == 10
    assert [a["dropped"] for a in found.manifest["read"]["filters"]] == [1, 30]
    assert "filter=duplicates dropped 1 (the same as one before) of 41 records" in capsys.readouterr().err


# ---------------------------------------------------------------- the corpus's fingerprint


def test_the_folder_follows_filters_options_and_order_and_the_fingerprint_the_text(texts):
    plain, one = corpus(texts, {}), corpus(texts, chosen(length={}))
    assert "filters" not in plain.manifest["read"] and one.folder != plain.folder
    assert one.fingerprint == plain.fingerprint  # nothing was dropped
    others = [
        chosen(length={}),
        chosen(length={}, duplicates={}),
        chosen(duplicates={}, length={}),
        chosen(length={"least": 7}),
        {"other": chosen(length={})["length"]},
        chosen(regex={"drop": "a"}),
    ]
    assert len({json.dumps(filtering.identity(filters), sort_keys=True) for filters in others}) == len(others)
    assert filtering.identity(chosen(length={"least": 1})) == filtering.identity(chosen(length={}))


PART = """
from collections.abc import Sequence
from {beside} import WORD
from llmlab.registry import register

@register("filter", "worded")
class Worded:
    def measure(self, texts: Sequence[str]) -> list[bool]:
        return [WORD in text for text in texts]
    def reason(self, value: bool) -> str | None:
        return None if value else "without the word"
"""


def test_the_code_of_a_filter_is_its_file_and_what_it_imports_beside(tmp_path, monkeypatch):
    (tmp_path / "own_filters.py").write_text(PART.format(beside="own_words"))
    (tmp_path / "own_words.py").write_text("WORD = 'x'\n")
    (tmp_path / "other.py").write_text("WORD = 'x'\n")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "broken_filters.py").write_text("@register('filter', 'halved')\nclass Halved(:\n")
    monkeypatch.setenv("LLMLAB_PLUGINS", "own_filters,broken_filters")
    spec = PartSpec("filter", "worded")
    codes = [filtering.code(spec)]
    longer = PART.format(beside="own_words") + "#\n"
    for name, text in (
        ("other.py", "1\n"),
        ("own_words.py", "WORD = 'y'\n"),
        ("own_filters.py", longer),
    ):
        (tmp_path / name).write_text(text)
        codes.append(filtering.code(spec))
    assert codes[0] == codes[1] and len(set(codes)) == 3
    with pytest.raises(UserError, match="filter=halved can't be read: .*broken_filters.py"):
        filtering.code(PartSpec("filter", "halved"))
    assert filtering.code(PartSpec("filter", "length")) != filtering.code(PartSpec("filter", "regex"))


def test_a_corpus_is_made_anew_when_a_file_or_library_of_a_filter_changes(texts, tmp_path, monkeypatch):
    (words := tmp_path / "words").write_text("story")
    filters = chosen(c4={"words": str(words), "sentences": 0})
    first = corpus(texts, filters, split="position", validation=0.5)
    words.write_text("short")
    other = corpus(texts, filters, split="position", validation=0.5)
    assert first.folder != other.folder and first.fingerprint != other.fingerprint
    words.rename(tmp_path / "moved")
    assert (
        corpus(
            texts, chosen(c4={"words": str(tmp_path / "moved"), "sentences": 0}), split="position", validation=0.5
        ).folder
        == other.folder
    )
    spec = PartSpec("filter", "length")
    monkeypatch.setattr(PartSpec, "attribute", lambda self, name: ("numpy", "nowhere") if name == "libraries" else ())
    before = filtering.identity({"length": spec})
    assert before[0][-1] == ["numpy", np.__version__]


def test_a_part_of_a_notebook_and_its_mistakes(texts, monkeypatch):
    class Odd:
        def measure(self, texts):
            return [len(t) for t in texts]

        def reason(self, value):
            return False

    class Short(Odd):
        def measure(self, texts):
            return []

    monkeypatch.setattr(registry, "_defined", {})
    monkeypatch.setattr(registry, "_is_read", lambda cls, file: False)
    registry.register("filter", "odd")(Odd)
    registry.register("filter", "empty")(Short)
    for name, said in (
        ("odd", "reason.. must give a text or None, but gave False"),
        ("empty", "gave 0 values for 12 texts"),
    ):
        with pytest.raises(UserError, match=said):
            corpus(texts, chosen(**{name: {}}), num_workers=2)
