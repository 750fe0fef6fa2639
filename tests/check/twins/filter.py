"""Twins of filters: each document is compared with all before it, and counted by hand."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np

from llmlab.twins import Given, twin
from twins import Settings

REFUSED: Settings = {
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
