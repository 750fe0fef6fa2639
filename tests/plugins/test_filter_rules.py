"""Filters by rules of papers against datatrove's verdicts on the same documents, and where those are not followed."""

import hashlib
import json
from pathlib import Path

import pytest
from filter_documents import documents
from parts import part

TEXTS = documents()
RECORD = json.loads(Path(__file__).with_name("datatrove.json").read_text())
DROPPED = RECORD["dropped"]
SAME = {  # by datatrove's filter: our part, its options, and the documents of which ours says something else
    "gopher quality": (
        "gopher",
        {"rules": "quality"},
        # It takes a period for a word without a letter, and "THE" for no stop word.
        {"differs/a list": True, "differs/stop words in capitals": True},
    ),
    "gopher repetition": (
        "gopher",
        {"rules": "repetition"},
        # A 4-gram that is there once is the most frequent one, "\\r" is a line, and capitals are other letters.
        {
            "differs/no word twice": True,
            "differs/prose, CRLF": True,
            "differs/repeated in capitals": False,
        },
    ),
    # It looks for a curly bracket in lines that it keeps.
    "c4 paper": ("c4", {}, {"differs/curly in a line without an end": False}),
    # A line that ends in "\\r" ends in no punctuation.
    "fineweb paper": ("fineweb", {}, {"differs/prose, CRLF": True, "differs/repeated in capitals": False}),
}


def verdicts(name, texts, **options):
    made = part("filter", name, **options)()
    return dict(zip(texts, map(made.reason, made.measure(list(texts.values()))), strict=True))


@pytest.mark.parametrize("theirs", SAME)
def test_as_datatrove_but_where_it_differs_from_the_paper(theirs):
    assert hashlib.sha256(json.dumps(TEXTS).encode()).hexdigest() == RECORD["documents"], "record_datatrove.py"
    name, options, kept_here = SAME[theirs]
    ours = {key for key, why in verdicts(name, TEXTS, **options).items() if why}
    assert {key: key not in ours for key in ours ^ set(DROPPED[theirs])} == kept_here
    assert 10 < len(ours) < len(TEXTS) - 30


def test_datatroves_numbers_are_not_the_papers():
    """As docs/your_data.md says: 5 sentences and 3 words a line, 1 % of characters, and a rule of its own."""
    assert set(DROPPED["c4"]) ^ set(DROPPED["c4 paper"]) == {
        *("prose/40", "short lines", "differs/four sentences", "differs/lines of four words", "differs/a list")
    }
    only = {key: why for key, why in DROPPED["fineweb"].items() if key not in DROPPED["fineweb paper"]}
    assert only == {"repeated short lines/0.5": "char_dup_ratio", "differs/one line of nine again": "char_dup_ratio"}


def test_capitals_and_line_ends_change_no_verdict():
    for name, options in (("gopher", {}), ("fineweb", {}), ("c4", {"line_words": 4})):
        found = verdicts(name, TEXTS, **options)
        assert verdicts(name, {key: text.replace("\n", "\r\n") for key, text in TEXTS.items()}, **options) == found
        assert verdicts(name, {key: text.upper() for key, text in TEXTS.items()}, **options) == found


def test_words_of_a_list(tmp_path):
    (tmp_path / "words").write_text("Darn it\n\nF**k\nass\n")
    texts = {
        t: f"{t} is said in this line. It is so. And again." for t in ("darn  it", "DARN IT", "f**k", "class", "(ass)")
    }
    found = verdicts("c4", texts, words=str(tmp_path / "words"), sentences=0)
    assert [key for key, why in found.items() if why] == ["DARN IT", "f**k", "(ass)"]
    (tmp_path / "empty").write_text(" \n")
    for file, said in (
        ("none", "words=.*none can't be read .No such file"),
        ("empty", "has no words, only white space"),
    ):
        with pytest.raises(ValueError, match=said):
            part("filter", "c4", words=str(tmp_path / file))()


def test_a_limit_of_one_switches_a_share_off_and_none_is_dropped_at_the_limit():
    body = "one two three four five six seven eight nine ten"
    lines = [f"{body} {i}." for i in range(10)]
    at = {"at": "\n".join([*lines[:7], *lines[:3]])}  # 30 % of lines
    off = {"top_grams": (1.0,) * 3, "repeated_grams": (1.0,) * 6, "line_characters": 1.0}
    assert verdicts("gopher", at, rules="repetition", **off)["at"] is None
    more = {"more": "\n".join([*lines[:6], *lines[:3]])}
    assert verdicts("gopher", more, rules="repetition", **off)["more"] == "more than 30% of lines repeated"
    assert verdicts("gopher", more, rules="repetition", **off, repeated_lines=1.0)["more"] is None
