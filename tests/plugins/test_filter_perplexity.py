"""The filter of perplexity: bits in closed form for bytes alone, and documents in their order of likelihood."""

import math
import random

import pytest
from filter_documents import prose
from parts import part


@pytest.fixture
def examples(tmp_path):
    (tmp_path / "good.txt").write_text("\n".join(prose(random.Random(0), 2000)))
    return str(tmp_path / "good.txt")


def test_single_bytes_in_closed_form(tmp_path):
    (tmp_path / "few.txt").write_text("aaab\n\ncc")
    bits = part("filter", "perplexity", examples=str(tmp_path / "few.txt"), most=9.0, order=1)().measure(
        ["ab", "z", ""]
    )
    # Of aaab\ncc: a 3, c 2, b and the line end 1; d = n1 / (n1 + 2 n2) = 2 / 4, and four kinds share 4 d / 7 with 256.
    p = {byte: (n - 0.5) / 7 + 0.5 * 4 / 7 / 256 for byte, n in {"a": 3, "b": 1, "z": 0.5}.items()}
    assert bits == pytest.approx([-(math.log2(p["a"]) + math.log2(p["b"])) / 2, -math.log2(p["z"]), 0.0])


def test_the_unlikely_and_the_too_likely_are_dropped(examples):
    like = " ".join(prose(random.Random(1), 100))
    letters = list(like)
    random.Random(2).shuffle(letters)
    texts = [like, "".join(letters), "Der Fluss trug den Brief zum Dorf.", " the river" * 40]
    made = part("filter", "perplexity", examples=examples, most=2.5, least=1.3)()
    bits = made.measure(texts)
    assert bits[3] < 1.3 < bits[0] < 2.5 < min(bits[1:3])
    assert [made.reason(value) for value in bits] == [
        *(None, "more than 2.5 bits per byte", "more than 2.5 bits per byte", "fewer than 1.3 bits per byte")
    ]
    assert bits == [made.measure([text])[0] for text in texts]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"examples": None}, "give it text to learn from, examples=FILE"),
        ({"most": None}, "give it a limit in bits per byte"),
        ({"least": 5.0}, "least=5 is more than most=4: none would be kept"),
        ({"order": 8}, "order must be 1 to 7 bytes, but is 8"),
    ],
)
def test_refused(examples, options, said):
    with pytest.raises(ValueError, match=said):
        part("filter", "perplexity", **{"examples": examples, "most": 4.0, **options})()
