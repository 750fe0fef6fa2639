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
    # Lists, ellipses, repeated lines and paragraphs, with either kind of line end.
    *("- one of the lot\n- two to be\n- three", "\u2022 a\r\n\u2022 b\r\nnot one", "-5 degrees\n* bold\n*bold*"),
    *("It goes on...\nand on\u2026\nand then it ends.", "to be ... or not to be ... that is it"),
    *("a line\nA line\nanother line, which is longer than those.", "a line\r\nanother one\r\na line\r\na line"),
    "the first of two\nparagraphs, twice.\n\nThe first of two\n paragraphs, twice.\n\nand the end",
    "so\n\nso\n\nso\n\nso it is with a longer paragraph",
    # n-grams that are repeated, overlap, or are not repeated at all.
    "one two three four five six seven and one two three four five six seven",
    "ha ha ha ha ha ha ha ha ha ha ha ha",
    "we are here and we were there and we are here to be there",
    "a b c d e f g h i j k l m a b c d e f g h i j n",
    "Nobody had ever seen such large quantities of wonderful, carefully painted, ancient wooden furniture standing around "
    "inside one small and quite empty house.",
    # Sentences, as C4 and FineWeb see them.
    "This line has five words.\nHere is one more of them!\nIs it the third one here?",
    "This line has five words.\r\n\r\nIs it the third one here? Or the fourth one? It is.\r\nhome",
    'He said: "This is a whole sentence."\n(It is one in brackets, too.)\nThis one has a note.[12]',
    "This line has six words {here}.\nThis other one has a few more words.",
    "Lorem Ipsum dolor sit amet, it says.\nThis line has more than five words.",
    "Please enable JavaScript to read this page.\nThis line has more than five words.",
    "Read the terms of use of this page.\nThis page uses cookies, as all others do.\nThis is the only line left.",
    "This line is cut off here...\nThis one is not cut off, but it has no end",
    "short\nlines\nof a list\nwhich have no ends\nbut one has.",
    "\u8fd9\u662f\u4e00\u53e5\u8bdd\u3002\n\u8fd9\u662f\u4e8c\n\u8fd9\u662f\u4e09",
    "The same long line stands here twice, as one can see.\nThe same long line stands here twice, as one can see.\nNo.",
    # Personal data, and what only looks like it.
    *("ask a@b.co for it", "call 555-123-4567, or go"),
    "write to anna.berg+x@mail.uni-ulm.de, or call +442079460958",
    "ping 8.8.8.8 or 2001:4860:4860::8888. or else 8.8.4.4:53",
    "555-123-4567, (555)123-4567 and +49-89-123456. and a@b.co and 8.8.8.8",
    "user@example.com at 192.168.0.1 on 2020-10-12 at 10:20:30, version 1.2.3, std::vector and a::b, 999.1.1.1 and 1.2.3.4.5",
)


def observe(setting: Setting) -> Observed:
    part = build(setting)
    found: dict[str, int] = {}

    def numbers() -> np.ndarray:
        reasons = [part.reason(value) for value in part.measure(TEXTS)]
        return np.array([0.0 if why is None else found.setdefault(why, len(found) + 1) for why in reasons])

    given = Given(options_of(setting), sizes_of(setting), {"texts": np.array(TEXTS)}, {})
    return Observed(given, {"first": numbers(), "second": numbers()})
