"""Twins of filters: each document is compared with all before it, and counted by hand."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence

import numpy as np

from llmlab.twins import Given, twin
from twins import Settings

LACKING = {  # a model of another package, and those that are trained from files of the user's
    "language": "tests/plugins/test_filter_language.py",
    "classifier": "tests/plugins/test_filter_classifier.py",
    "perplexity": "tests/plugins/test_filter_perplexity.py",
}

REFUSED: Settings = {
    "gopher": [
        ({}, {"least_words": 9, "most_words": 8}),
        ({}, {"least_length": 9.0, "most_length": 8.0}),
        *(({}, {"stop_words": n}) for n in (-1, 9)),
        *(({}, {key: share}) for key in ("bullets", "line_characters") for share in (-0.1, 1.1)),
        *(({}, {"top_grams": shares}) for shares in ([0.2, 0.2], [0.2, 0.2, 2.0])),
        ({}, {"repeated_grams": [0.2] * 5}),
    ],
    "c4": [({}, {"sentences": -1}), ({}, {"line_words": -1}), ({}, {"lines": 1.5}), ({}, {"words": "no such file"})],
    "minhash": [({}, {key: 0}) for key in ("bands", "rows", "words")],
    "pii": [({}, {"emails": False, "addresses": False, "phones": False}), ({}, {"most": -1})],
    "fineweb": [*(({}, {key: 1.1}) for key in ("punctuation", "repeated", "short")), ({}, {"short_line": -1})],
    "length": [({}, {"least": 3, "most": 2})],
    "regex": [
        ({}, {"drop": None}),
        ({}, {"drop": "("}),
        ({}, {"keep": "[z-a]"}),
        *(({}, {"seconds": seconds}) for seconds in (0.0, -1.0)),
    ],
}


def outputs(given: Given, why: Callable[[Sequence[str], int], str | None]) -> dict[str, np.ndarray]:
    """Outputs of a filter. why(texts, i): the reason for text i, behind the others, or None."""
    texts = [str(text) for text in given.inputs["texts"]] * 2
    reasons = [why(texts, i) for i in range(len(texts))]
    order = list(dict.fromkeys(reason for reason in reasons if reason is not None))
    numbers = np.array([0 if reason is None else 1 + order.index(reason) for reason in reasons])
    return dict(zip(("first", "second"), np.split(numbers, 2), strict=True))


@twin("filter", "length", source="Rae et al. 2021, appendix A.1.1: a number of words between 50 and 100,000")
def length(given: Given) -> dict[str, np.ndarray]:
    least, most = given.options["least"], given.options["most"]

    def why(texts: Sequence[str], i: int) -> str | None:
        size = len(re.findall(r"\S+" if given.options["unit"] == "words" else r"(?s).", texts[i]))
        if not size >= (0 if least is None else least):
            return "short"
        return None if size <= (np.inf if most is None else most) else "long"

    return outputs(given, why)


@twin("filter", "duplicates", source="Lee et al. 2022, section 4: exact matches; the first is kept")
def duplicates(given: Given) -> dict[str, np.ndarray]:
    def same(one: str, other: str) -> bool:
        if given.options["ignore_space"]:
            one, other = (re.sub(r"^\s+|\s+$", "", re.sub(r"\s+", " ", text)) for text in (one, other))
        if given.options["ignore_case"]:  # full case folding of the Unicode standard, in which a sharp s is ss
            one, other = (text.lower().replace("\u00df", "ss") for text in (one, other))
        return one == other

    return outputs(given, lambda texts, i: "again" if any(same(texts[i], text) for text in texts[:i]) else None)


# Its patterns are those of Python's re; what ^ and $ mean is written out, as re.MULTILINE defines them.
FINDS: dict[str, Callable[[str], bool]] = {
    "[0-9]": lambda text: any("0" <= c <= "9" for c in text),
    "^the": lambda text: any(line[:3] == "the" for line in text.split("\n")),
    "fox$": lambda text: any(line[-3:] == "fox" for line in text.split("\n")),
    "[a-z]": lambda text: any("a" <= c <= "z" for c in text),
    "(?i)CAT": lambda text: "cat" in text.lower(),
}


@twin("filter", "regex", source="Raffel et al. 2019, section 2.2: documents with a phrase are dropped; Python's re")
def regex(given: Given) -> dict[str, np.ndarray]:
    drop, keep = given.options["drop"], given.options["keep"]

    def why(texts: Sequence[str], i: int) -> str | None:
        if drop is not None and FINDS[drop](texts[i]):
            return "with"
        return "without" if keep is not None and not FINDS[keep](texts[i]) else None

    return outputs(given, why)


# ---------------------------------------------------------------- rules of papers

GOPHER = "Rae et al. 2021, appendix A.1.1 and table A1"


def rows_of(text: str) -> list[str]:
    return [row.strip() for row in re.split(r"\r\n|\r|\n", text) if row.strip()]


def again(items: Sequence[str]) -> list[str]:
    """Those that an earlier one is equal to."""
    return [item for i, item in enumerate(items) if item.lower() in {other.lower() for other in items[:i]}]


@twin("filter", "gopher", source=GOPHER)
def gopher(given: Given) -> dict[str, np.ndarray]:
    o = given.options

    def quality(text: str) -> str | None:
        words = re.findall(r"\S+", text)
        rows, n = rows_of(text), len(words)
        dots = len(re.findall(r"\.\.\.", text)) + text.count("\u2026")
        bullets = [
            r for r in rows if r[0] in "\u2022\u2023\u25b6\u25c0\u25e6\u25a0\u25a1\u25aa\u25ab\u25cf\u25cb\u2013"
        ]
        bullets += [r for r in rows if re.match(r"[-*](\s|$)", r)]
        bare = {re.sub(r"^\W+|\W+$", "", word).lower() for word in words}
        length = np.mean([len(word) for word in words]) if words else o["least_length"]
        rules = {
            "few words": n < o["least_words"],
            "many words": n > o["most_words"],
            "short words": length < o["least_length"],
            "long words": length > o["most_length"],
            "hashes": len(re.findall("#", text)) > o["symbols"] * n,
            "dots": dots > o["symbols"] * n,
            "bullets": len(bullets) > o["bullets"] * len(rows),
            "ends": sum(bool(re.search(r"(\.\.\.|\u2026)$", row)) for row in rows) > o["ellipses"] * len(rows),
            "letters": sum(bool(re.search(r"[^\W\d_]", word)) for word in words) < o["letters"] * n,
            "stop words": n > 0
            and sum(w in bare for w in ("the", "be", "to", "of", "and", "that", "have", "with")) < o["stop_words"],
        }
        return next((rule for rule, broken in rules.items() if broken), None)

    def repetition(text: str) -> str | None:
        unix = re.sub(r"\r\n|\r", "\n", text)
        paragraphs = ["\n".join(rows_of(block)) for block in re.split(r"\n\s*\n", unix) if block.strip()]
        for what, items, number, characters in (
            ("lines", rows_of(text), o["repeated_lines"], o["line_characters"]),
            ("paragraphs", paragraphs, o["repeated_paragraphs"], o["paragraph_characters"]),
        ):
            if len(again(items)) > number * len(items):
                return what
            if len("".join(again(items))) > characters * len("".join(items)):
                return f"characters of {what}"
        words = [word.lower() for word in text.split()]
        whole = len("".join(words))
        for n, limit in zip(range(2, 11), (*o["top_grams"], *o["repeated_grams"]), strict=True):
            grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
            if n < 5:
                often = max(map(grams.count, grams), default=0)
                top = max((g for g in grams if grams.count(g) == often), key=lambda g: len("".join(g)), default=None)
                starts = [i for i, gram in enumerate(grams) if gram == top and often > 1]
            else:
                starts = [i for i, gram in enumerate(grams) if gram in grams[:i]]
            if len("".join(words[i] for i in {i + j for i in starts for j in range(n)})) > limit * whole:
                return f"{n}-grams"
        return None

    def why(texts: Sequence[str], i: int) -> str | None:
        found = quality(texts[i]) if o["rules"] != "repetition" else None
        return found or (repetition(texts[i]) if o["rules"] != "quality" else None)

    return outputs(given, why)


@twin("filter", "c4", source="Raffel et al. 2020, section 2.2")
def c4(given: Given) -> dict[str, np.ndarray]:
    o = given.options

    def keeps(row: str) -> bool:
        ended = re.search(r"(?<!\.\.)[.!?\"\u201d](\[\d+\])*$", row) is not None
        phrases = r"javascript" if o["javascript"] else "(?!)"
        policies = r"terms of use|(privacy|cookie) policy|use(s|( of))? cookies" if o["policies"] else "(?!)"
        spoken = re.search(f"(?i){phrases}|{policies}", row) is not None
        return (ended or not o["terminal"]) and not spoken and len(row.split()) >= o["line_words"]

    def why(texts: Sequence[str], i: int) -> str | None:
        if "{" in texts[i] and o["curly"]:
            return "curly"
        if re.search("(?i)lorem ipsum", texts[i]) and o["lorem_ipsum"]:
            return "lorem ipsum"
        rows = rows_of(texts[i])
        kept = [row for row in rows if keeps(row)]
        # A line is a sentence at least, and one more for each end of a sentence inside it.
        sentences = sum(1 + len(re.findall(r"[.!?]\W? (?=\S)", row)) for row in kept)
        if sentences < o["sentences"]:
            return "sentences"
        return "lines" if len(kept) < o["lines"] * len(rows) else None

    return outputs(given, why)


@twin("filter", "fineweb", source="Penedo et al. 2024, section 3.6: at most 0.12, at least 0.1, at least 0.67")
def fineweb(given: Given) -> dict[str, np.ndarray]:
    o = given.options

    def why(texts: Sequence[str], i: int) -> str | None:
        rows = rows_of(texts[i])
        ended = [row for row in rows if re.search(r"[.!?\u2026\u3002][\"')\]*]*$", row)]
        if not len(ended) > o["punctuation"] * len(rows):
            return "punctuation"
        if not len("".join(again(rows))) < o["repeated"] * len("".join(rows)):
            return "repeated"
        short = [row for row in rows if len(row) <= o["short_line"] - 1]
        return None if len(short) < o["short"] * len(rows) else "short"

    return outputs(given, why)


@twin("filter", "minhash", source="Broder 1997; Lee et al. 2022, section 4.2: one band of equal minima")
def minhash(given: Given) -> dict[str, np.ndarray]:
    """With the hashes of llmlab's scheme, which are a choice, in whole numbers; documents are compared one by one."""
    o, size = given.options, 2**64

    def mixed(x: int) -> int:
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % size
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB % size
        return x ^ (x >> 31)

    def hashed(word: str) -> int:
        bare = re.sub("^[.,;:!?\"'()\\[\\]]+|[.,;:!?\"'()\\[\\]]+$", "", word) or word
        return int.from_bytes(hashlib.blake2b(bare.encode(), digest_size=8).digest(), "little")

    def minima(text: str) -> list[int]:
        words = [hashed(word) for word in (text.casefold() if o["ignore_case"] else text).split()]
        n = min(o["words"], len(words))
        runs = set()
        for i in range(len(words) - n + 1):
            total = n
            for value in words[i : i + n]:
                total = (total * 0x9E3779B97F4A7C15 + value) % size
            runs.add(mixed(total))
        numbers = [(mixed(2 * i + 1) | 1, mixed(2 * i + 2)) for i in range(o["bands"] * o["rows"])]
        return [min((run * times + plus) % size for run in runs) for times, plus in numbers]

    found: dict[str, list[int]] = {}
    kept: dict[int, list[int]] = {}

    def why(texts: Sequence[str], i: int) -> str | None:
        own = found.setdefault(texts[i], minima(texts[i]))
        bands = [slice(at, at + o["rows"]) for at in range(0, len(own), o["rows"])]
        if any(own[band] == other[band] for other in kept.values() for band in bands):
            return "near"
        kept[i] = own
        return None

    return outputs(given, why)


@twin("filter", "pii", source="Penedo et al. 2024, section 3.7; RFC 5321, RFC 4291, E.164: by their form, as a list")
def pii(given: Given) -> dict[str, np.ndarray]:
    """Of words: those of the observer's texts that are addresses and numbers, and no others."""
    o = given.options
    known = {
        "emails": ("anna.berg+x@mail.uni-ulm.de,", "a@b.co"),
        "addresses": ("8.8.8.8", "8.8.4.4:53", "2001:4860:4860::8888."),
        "phones": ("+442079460958", "+49-89-123456.", "(555)123-4567", "555-123-4567,"),
    }

    def why(texts: Sequence[str], i: int) -> str | None:
        words = texts[i].split()
        found = {kind: sum(word in listed for word in words) for kind, listed in known.items() if o[kind]}
        kinds = [kind for kind, n in found.items() if n]
        return ", ".join(kinds) if sum(found.values()) > o["most"] else None

    return outputs(given, why)
