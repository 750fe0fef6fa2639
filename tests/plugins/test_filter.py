"""Filters against plain twins on generated documents, and what each remembers."""

import random
import re
import sys
import threading
import time
import tracemalloc

import pytest
from parts import part

SPACES = [" ", "  ", "\n", "\t ", "\u00a0"]


def documents(n=400, seed=0):
    """Short texts of few words, so that many are equal but for spaces and capitals."""
    chance = random.Random(seed)
    made = ["", " \n"]
    for _ in range(n):
        words = [
            chance.choice(["a", "b", "An", "an", "ß", "ss", "42", "é", "数据"]) for _ in range(chance.randint(0, 5))
        ]
        edges = [chance.choice(["", *SPACES]) for _ in range(2)]
        made.append(edges[0] + "".join(w + chance.choice(SPACES) for w in words).rstrip() + edges[1])
    return made


def dropped(name, texts, at_once=7, **options):
    """The reason for each text, None where it stays."""
    filtered = part("filter", name, **options)()
    batches = [texts[i : i + at_once] for i in range(0, len(texts), at_once)]
    return [filtered.reason(value) for batch in batches for value in filtered.measure(batch)]


@pytest.mark.parametrize("unit", ["characters", "words"])
@pytest.mark.parametrize(("least", "most"), [(3, None), (None, 4), (2, 5), (None, None), (3, 3)])
def test_length(unit, least, most):
    for text, why in zip(
        texts := documents(), dropped("length", texts, least=least, most=most, unit=unit), strict=True
    ):
        n = len(list(text)) if unit == "characters" else len(re.findall(r"\S+", text))
        if least is not None and n < least:
            assert why == f"shorter than {least} {unit}"
        elif most is not None and n > most:
            assert why == f"longer than {most} {unit}"
        else:
            assert why is None


@pytest.mark.parametrize("ignore_space", [True, False])
@pytest.mark.parametrize("ignore_case", [True, False])
def test_duplicates(ignore_space, ignore_case, monkeypatch):
    """As one would say it: a document goes if one before it is the same. With hashes in a set, and sorted in among others."""
    texts = documents()

    def same(a, b):
        if ignore_space:
            a, b = (re.sub(r"\s+", " ", t).strip() for t in (a, b))
        return a.casefold() == b.casefold() if ignore_case else a == b

    want = [any(same(text, other) for other in texts[:i]) for i, text in enumerate(texts)]
    assert 20 < sum(want) < len(texts) - 20
    options = {"ignore_space": ignore_space, "ignore_case": ignore_case}
    assert [why is not None for why in dropped("duplicates", texts, **options)] == want
    monkeypatch.setattr(sys.modules[type(part("filter", "duplicates")()).__module__], "RECENT", 8)
    assert [why is not None for why in dropped("duplicates", texts, **options)] == want


def test_duplicates_remember_sixteen_bytes_a_document(monkeypatch):
    filtered = part("filter", "duplicates")()
    monkeypatch.setattr(sys.modules[type(filtered).__module__], "RECENT", 1000)
    n = 40_000
    # Any 16 bytes are a hash; zeros at the end, which numpy leaves out, are among them.
    hashes = [(i * 2654435761 % 2**64).to_bytes(8, "big") + i.to_bytes(3, "big") + bytes(5) for i in range(n)]
    tracemalloc.start()
    assert {filtered.reason(value) for value in hashes} == {None}
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert 16 * n < held < 24 * n + 200_000  # the last ones stand in a set
    assert all(filtered.reason(value) for value in hashes[:: n // 50])
    assert filtered.reason(b"x" * 16) is None


def test_regex():
    texts = [*documents(), "one\nAn end", "x" * 100]
    for drop, keep in ((r"^An\b", None), (None, "[0-9]+"), ("b", "a"), ("(?i)AN", None)):
        flags = re.IGNORECASE if drop and "?i" in drop else 0
        plain = drop.replace("(?i)", "") if drop else None
        for text, why in zip(texts, dropped("regex", texts, drop=drop, keep=keep), strict=True):
            lines = text.split("\n")
            hit = plain is not None and any(re.search(plain, line, flags) for line in lines)
            if hit:
                assert why == f"with {drop}"
            elif keep is not None and not any(re.search(keep, line) for line in lines):
                assert why == f"without {keep}"
            else:
                assert why is None


SLOW = {"drop": "(?:a|b)z", "seconds": 0.02}  # of a long text: it takes some ten times as long


def test_a_pattern_that_takes_too_long_is_stopped_and_the_alarm_of_others_stands():
    import signal

    before = signal.signal(signal.SIGALRM, handler := lambda *_: None)
    try:
        filtered, began = part("filter", "regex", **SLOW)(), time.monotonic()
        with pytest.raises(ValueError, match=r"longer than seconds=0\.02 on the document that begins with 'aaaa"):
            filtered.measure(["fine", "a" * 20_000_000])
        assert time.monotonic() - began < 3
        assert signal.getsignal(signal.SIGALRM) is handler and signal.getitimer(signal.ITIMER_REAL)[0] == 0
        assert filtered.measure(["fine"]) == [None]
    finally:
        signal.signal(signal.SIGALRM, before)
    found = []
    thread = threading.Thread(target=lambda: found.extend(filtered.measure(["az"])))  # which gets no signals
    thread.start()
    thread.join()
    assert found == ["with (?:a|b)z"]


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("length", {"least": 5, "most": 4}, "least=5 is more than most=4: none would be kept"),
        ("regex", {}, "give it a pattern, drop=PATTERN or keep=PATTERN"),
        ("regex", {"drop": "(a"}, r"drop='\(a' is no regular expression: missing \), unterminated"),
        ("regex", {"keep": "*"}, r"keep='\*' is no regular expression: nothing to repeat"),
        ("regex", {"keep": "a", "seconds": 0.0}, "seconds must be more than 0"),
    ],
)
def test_refused(name, options, said):
    with pytest.raises(ValueError, match=said) as e:
        part("filter", name, **options)()
    assert "\n" not in str(e.value)
