"""Where words begin in a text of tokens, by the spelling of each token, as kinds of tokenizers mark it.

A word is letters, digits and their marks in a row, behind a space that a tokenizer splits off with them; any other character
is one of its own, or of the token that it is in.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from llmlab.data.tokenizer import Tokenizer
    from llmlab.slots import Words

META = "\u2581"  # SentencePiece's mark of a space before a word
BROKEN = "\ufffd"  # what stands for bytes that are a part of a character
IDEOGRAPH = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
Spelled = tuple[bool, bool]  # a token goes on with a word before it; a word may go on behind it


def of(tokenizer: Tokenizer) -> Words | None:
    """The words of a tokenizer; None where its tokens don't tell."""
    # Deferred: slots imports torch, which takes 1.4 s, and a corpus is prepared without it.
    from llmlab.slots import Words

    spell = _speller(json.loads(tokenizer.inner.to_str()), tokenizer.kind, tokenizer.inner.get_vocab(False))
    if spell is None:
        return None
    found = Words(np.zeros(tokenizer.vocab_size, bool), np.zeros(tokenizer.vocab_size, bool))
    for token, i in tokenizer.inner.get_vocab(with_added_tokens=False).items():
        found.continues[i], found.open[i] = spell(token)
    for i in [*tokenizer.special.values(), *tokenizer.inner.get_added_tokens_decoder()]:
        found.continues[i] = found.open[i] = False
    return found


def _speller(spec: dict[str, Any], kind: str, tokens: dict[str, int]) -> Callable[[str], Spelled] | None:
    # tokenizers 0.23 reads a model without a type by its keys.
    model, name = spec["model"], spec["model"].get("type") or "BPE"
    if kind == "char":
        return _by_letters
    if name == "WordLevel":
        return lambda token: (False, False)
    if name == "WordPiece":
        prefix: str = model["continuing_subword_prefix"]
        return lambda token: (token.startswith(prefix), True)
    if name == "BPE" and (suffix := model.get("end_of_word_suffix")):
        # GPT-1 marks where words end, not where they begin.
        return lambda token: (True, not token.endswith(suffix))
    if "ByteLevel" in _types(spec["pre_tokenizer"]):
        return _by_bytes
    return _by_pieces if any(token.startswith(META) for token in tokens) else None


def _types(part: dict[str, Any] | None) -> list[str]:
    """The types of a pre-tokenizer and of those that it is a sequence of."""
    if part is None:
        return []
    return [part["type"], *(name for inner in part.get("pretokenizers", []) for name in _types(inner))]


def _in_word(character: str) -> bool:
    # BERT's tokenizer takes each ideograph for a word, as there are no spaces between them (tokenization.py).
    if IDEOGRAPH.match(character):
        return False
    # Marks too: vowel signs of Devanagari are no letters for str.isalnum.
    return character == BROKEN or unicodedata.category(character)[0] in "LNM"


def _by_letters(token: str) -> Spelled:
    # LLaMA's tokenizers spell a byte that no token has as <0xE4>; from 0x80 on it is a part of a character.
    if byte := re.fullmatch(r"<0x([0-9A-F]{2})>", token):
        token = chr(int(byte[1], 16)) if byte[1] < "80" else BROKEN
    return (_in_word(token[0]), _in_word(token[-1])) if token else (False, False)


def _by_pieces(token: str) -> Spelled:
    continues, is_open = _by_letters(token)
    # A small vocabulary has few words together with the space before them.
    return continues, is_open or token in (META, " ")


def _by_bytes(token: str) -> Spelled:
    return _by_pieces(bytes(BYTES.get(character, ord("?")) for character in token).decode("utf-8", errors="replace"))


def _bytes_of_characters() -> dict[str, int]:
    """The byte that each character of a byte-level token stands for (GPT-2: Radford et al. 2019, section 2.2): those that
    Latin-1 prints stand for themselves, the others are numbered from U+0100 on.
    """
    printed = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printed]
    return {chr(b): b for b in printed} | {chr(0x100 + i): b for i, b in enumerate(others)}


BYTES = _bytes_of_characters()
