"""A small task whose answers can be checked: sums of a few digits, made here.

Each sum is below 10, so that an answer is a digit, and none has more than MOST records: the commonest, 9, would else be right
for a third of all.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Iterator, Sequence

from llmlab.data.account import Account, Document, Source
from llmlab.errors import UserError
from llmlab.record_kinds import TEXT

TERMS = (2, 3, 4)  # numbers of digits that are added
MOST = 100
# Of a pipeline's stages, which take sums from each other: more of them, of which some are in none. The text that a base model
# reads is wrong as often as texts are, so that there is something left to learn.
STAGED_TERMS, STAGED_MOST, HELD_OUT, RIGHT = (2, 3, 4, 5), 300, 200, 0.6
VERSION = 1  # of the records: another number when they change


def _wrong(right: int) -> str:
    """An answer that is one off."""
    return str(right + 1 if right < 9 else right - 1)


# By kind of record, what it has of a prompt and its sum.
KINDS: dict[str, Callable[[str, int], dict[str, object]]] = {
    "prompts": lambda prompt, right: {"prompt": prompt, "rest": {"answer": str(right)}},
    "pairs": lambda prompt, right: {"source": prompt, "target": str(right)},
    "chat": lambda prompt, right: {
        "messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": str(right)}]
    },
    "labelled": lambda prompt, right: {"text": prompt, "label": str(right)},
    "preferences": lambda prompt, right: {"prompt": prompt, "answers": [str(right), _wrong(right)]},
    # Half of them are good, by the first digit.
    "rated": lambda prompt, right: {
        "prompt": prompt,
        "answer": (str, _wrong)[int(prompt[0]) % 2](right),
        "good": int(prompt[0]) % 2 == 0,
    },
}


def source(reads: str) -> Source:
    """The sums, in an order that is always the same, as texts or as records. UserError for a kind that they can't be."""
    if reads != TEXT and reads not in KINDS:
        raise UserError(f"data=arithmetic has sums, which are read as {', '.join(KINDS)} or as text, not as {reads}")
    account = Account()

    def read() -> Iterator[Document]:
        account.files = 1
        for number, (prompt, right) in enumerate(sums(), start=1):
            made = f"{prompt}{right}" if reads == TEXT else json.dumps(KINDS[reads](prompt, right))
            yield Document(f"arithmetic:{number}", made)

    return Source([VERSION, reads], lambda tick: account.counted(read()), account)


def sums(terms: Sequence[int] = TERMS, most: int = MOST) -> list[tuple[str, int]]:
    """Prompts, "2+3=", and what is right."""
    by_sum: dict[int, list[str]] = {total: [] for total in range(10)}
    for n in terms:
        for digits in itertools.product(range(10), repeat=n):
            if sum(digits) < 10:
                by_sum[sum(digits)].append("+".join(map(str, digits)) + "=")
    chance = random.Random(0)
    found = [(prompt, total) for total, all_ in by_sum.items() for prompt in chance.sample(all_, min(most, len(all_)))]
    chance.shuffle(found)
    return found


def staged() -> dict[str, list[dict[str, object]]]:
    """Records of each stage of a pipeline, by the file that has them, "text", of which a share of RIGHT is right, "chat" and
    "prompts", of which each has its own sums, and for the table "held_out", whose sums are in none of the others."""
    found, chance = sums(STAGED_TERMS, STAGED_MOST), random.Random(0)
    held_out, shown = found[:HELD_OUT], found[HELD_OUT:]
    cut = len(shown) // 3
    of_text = [(prompt, str(right) if chance.random() < RIGHT else _wrong(right)) for prompt, right in shown]
    chance.shuffle(of_text)
    return {
        "text": [{"text": f"{prompt}{answer}"} for prompt, answer in of_text],
        "chat": [KINDS["chat"](prompt, right) for prompt, right in shown[:cut]],
        "prompts": [{"prompt": prompt, "answer": str(right)} for prompt, right in shown[cut:]],
        "held_out": [{"prompt": prompt, "answer": str(right)} for prompt, right in held_out],
    }
