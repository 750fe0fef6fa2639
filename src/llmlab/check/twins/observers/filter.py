"""Observer of filters: one filter judges each of TEXTS, in their order, and then all of them once more.

Inputs: `texts`, an array of text. Outputs, (texts,) each: `first` and `second`, 0 for a text that is kept, else the number of
the reason why it is dropped: 1 for the first that the filter gives, 2 for the next one, and so on.
"""

from __future__ import annotations

import numpy as np

from llmlab.check.twins.observers.observed import Observed, build, options_of, sizes_of
from llmlab.check.twins.settings import Setting
from llmlab.twins import Given

TEXTS = (
    *("the cat", "the  cat", " the cat\n", "The cat", "the\tcat", "the\u00a0cat", "thecat", "the cat", "THE CAT"),
    *(
        "",
        " ",
        "\n\n",
        "x",
        "xx",
        "X",
        "stra\u00dfe",
        "STRASSE",
        "\u00e9t\u00e9",
        "\U0001f600\U0001f600",
        "\u6570\u636e 42",
    ),
    *(
        "one two three",
        "one two three four",
        "a b c d e f g h",
        "the end\nof the fox",
        "a fox\nthe end",
        "fox",
        "foxes",
    ),
    *(
        "12",
        "on 1 2 3",
        "# one # two",
        "wait ... what",
        "wait\u2026",
        "# one # two three four five six seven eight nine ten",
    ),
    *("# " + "word " * n for n in (8, 9, 10, 11)),
    *("abcdefg" * n for n in (1, 2, 7)),
)


def observe(setting: Setting) -> Observed:
    part = build(setting)
    found: dict[str, int] = {}

    def numbers() -> np.ndarray:
        reasons = [part.reason(value) for value in part.measure(TEXTS)]
        return np.array([0.0 if why is None else found.setdefault(why, len(found) + 1) for why in reasons])

    given = Given(options_of(setting), sizes_of(setting), {"texts": np.array(TEXTS)}, {})
    return Observed(given, {"first": numbers(), "second": numbers()})
