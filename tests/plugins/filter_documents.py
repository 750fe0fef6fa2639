"""Documents on both sides of each rule of the filters, by name: the same ones in each process, and from one seed."""

from __future__ import annotations

import random

NOUN_LIST = (
    "river garden window teacher engine market winter letter forest kitchen harbour painter meadow village bridge lantern "
    "blanket captain doctor farmer island journey ladder mirror needle orchard palace quarry railway saddle temple valley "
    "wagon yard anchor basket candle desert envelope feather glacier hammer insect jacket kettle lemon magnet napkin oven "
    "pencil quilt ribbon shovel tunnel uncle violin whistle zebra acorn barrel cotton donkey elbow fiddle gravel helmet"
)
VERB_LIST = (
    "carries watches follows paints repairs leaves finds opens crosses keeps sells brings covers draws enters fills gathers "
    "holds invites joins knows lifts measures notices offers passes reaches saves takes uses visits washes answers builds"
)
NOUNS, VERBS = NOUN_LIST.split(), VERB_LIST.split()
STOPS = ("the", "of", "and", "to", "with", "that")


def prose(chance: random.Random, words: int, a_line: int = 14, stops: bool = True) -> list[str]:
    """Lines of sentences, with almost no n-gram twice."""
    made, line = [], []
    for i in range(words):
        line.append(chance.choice(STOPS) if stops and i % 3 == 0 else chance.choice((NOUNS, VERBS)[i % 2]))
        if len(line) == a_line or i == words - 1:
            made.append(" ".join(line).capitalize() + ".")
            line = []
    return made


def documents() -> dict[str, str]:
    """By "rule/value"; `prose/N` break none."""
    chance, made = random.Random(0), {}

    def add(name: str, lines: list[str], between: str = "\n") -> None:
        made[name] = between.join(lines)

    def lines(words: int = 168, **options: int) -> list[str]:
        return prose(chance, words, **options)

    for words in (40, 60, 168, 400):
        add(f"prose/{words}", lines(words))
    for of, at in (("short", (0, 40, 80)), ("long", (0, 60, 100))):
        for share in at:
            swap = (
                (lambda: chance.choice(("a", "is", "it", "we", "ox")))
                if of == "short"
                else (lambda: "internationalised")
            )
            words = [swap() if i % 100 < share else w for i, w in enumerate(" ".join(lines()).split())]
            add(f"{of} words/{share}", [" ".join(words[i : i + 14]) + "." for i in range(0, len(words), 14)])
    for mark in ("#", "..."):
        for a_line in (1, 3):
            add(f"{mark} in a line of 14 words/{a_line}", [f"{mark} " * a_line + line for line in lines()])
    for mark in ("\u2022", "-"):
        for share in (0.8, 1.0):
            body = lines(280)
            add(f"{mark} lines/{share}", [f"{mark} {t}" if i < share * len(body) else t for i, t in enumerate(body)])
    for share in (0.2, 0.5):
        body = lines(280)
        add(f"ellipsis lines/{share}", [t + ".." if i < share * len(body) else t for i, t in enumerate(body)])
    for share in (10, 30):
        words = [str(i) if i * 37 % 100 < share else w for i, w in enumerate(" ".join(lines()).split())]
        add(f"numbers/{share}", [" ".join(words[i : i + 14]) + "." for i in range(0, len(words), 14)])
    for n in (0, 1, 2):
        add(f"stop words/{n}", [f"{' '.join(STOPS[:n])} {line}".strip() for line in lines(stops=False)])
    for share in (0.1, 0.5):  # of lines and characters, of paragraphs, of short lines only
        body = lines(280)
        n = int(len(body) * share)
        add(f"repeated lines/{share}", [*body, *body[:n], *body[:n]])
        add(f"repeated paragraphs/{share}", ["\n".join(body[i : i + 2]) for i in [*range(10), *[0] * (2 * n)]], "\n\n")
        add(f"repeated short lines/{share}", [x for i, t in enumerate(body) for x in ([t, "so"] if i < n * 2 else [t])])
    for n, often in ((2, 4), (2, 40), (3, 4), (3, 30), (4, 3), (4, 24)):
        phrase = " ".join(NOUNS[:n])
        words = " ".join(lines(300)).replace(".", "").split()
        for i in range(often):
            words.insert(7 * i + 3, phrase)
        add(f"{n} words again/{often}", [" ".join(words[i : i + 16]) + "." for i in range(0, len(words), 16)])
    for size in (4, 20, 100):  # words of a passage that stands there twice
        words = " ".join(lines(200)).replace(".", "").split()
        add(f"a passage again/{size}", [" ".join([*words, *words[:size]])])
    # What C4 judges by.
    add("curly", [*lines(), "This line has a { and five words."])
    add("lorem ipsum", [*lines(), "Here Lorem Ipsum stands for the text."])
    add("javascript", [f"{line[:-1]} javascript." for line in lines()])
    add("some javascript", [f"{line[:-1]} javascript." if i % 2 else line for i, line in enumerate(lines())])
    add("cookies", [f"{line[:-1]} uses cookies." for line in lines()])
    add("no ends", [line[:-1] for line in lines()])
    add("some ends", [line[:-1] if i % 2 else line for i, line in enumerate(lines())])
    add("two sentences", ["The river carries the letter to the village."] * 2)
    add("short lines", lines(160, a_line=4))
    add("long and short lines", [*lines(140), *lines(40, a_line=4)])
    add("citations", [f"{line}[{i}]" for i, line in enumerate(lines())])
    # On these datatrove 0.10.1 and the papers differ.
    add("differs/no word twice", [" ".join(dict.fromkeys(NOUNS[:16])).capitalize() + "."])
    body = lines(280)
    made["differs/prose, CRLF"] = "\r\n\r\n".join(body)
    add("differs/repeated in capitals", [*body, *(line.upper() for line in body)])
    add("differs/stop words in capitals", [f"{line} THE AND OF." for line in lines(stops=False)])
    add("differs/curly in a line without an end", [*lines(), "function f(x) { return x }"])
    add("differs/four sentences", lines(56))
    add("differs/lines of four words", lines(40, a_line=4))
    add("differs/one line of nine again", [*body[:15], body[0]])
    add("differs/a list", lines(300, a_line=3))
    return made


def edited(chance: random.Random, text: str, words: int) -> str:
    """The text with some words replaced."""
    made = text.split()
    for _ in range(words):
        made[chance.randrange(len(made))] = chance.choice(NOUNS)
    return " ".join(made)


def groups() -> dict[str, list[str]]:
    """Documents that differ in numbers, in a symbol, or hardly."""
    chance = random.Random(0)
    whole = [" ".join(prose(chance, 300)) for _ in range(12)]
    return {
        "weather": [
            f"On day {i} of May it was {i % 7 + 12} degrees at noon, with {3 * i} mm of rain." for i in range(20)
        ],
        "sums": [
            f"What is {a} {sign} {b} then? It makes {a + b if sign == '+' else a - b}, all told."
            for a in range(10)
            for b in (2, 5)
            for sign in "+-"
        ],
        "short, twice": ["so it is", "So it is."],
        "near": whole + [edited(chance, text, 3) for text in whole for _ in range(3)],
        "half": whole + [" ".join([*text.split()[:150], *prose(chance, 150)]) for text in whole],
    }
