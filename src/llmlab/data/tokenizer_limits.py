"""Limits on what a tokenizer.json may make of a text, from its own settings, before the library reads or runs it.

Its normalizer may put a million characters in the place of one, its post-processor a million ids around a text, an id of 2^31
makes a table of so many rows. Each step has a largest factor by which it can grow a text; their product is held to a limit.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from pathlib import Path

from llmlab.errors import UserError
from llmlab.json_files import Json, read_text

MOST_GROWTH = 10_000  # bytes out of one; 6,000 for ALBERT's five steps in a row, each at its own worst
MOST_COPIES, MOST_AROUND = 8, 1000  # of the text, and ids around it
MOST_IDS = 1 << 24  # of the largest known vocabularies there go 16 into it
INNER = ("normalizers", "pretokenizers", "decoders", "processors")  # what the parts of a Sequence are called
# Bytes that a step makes of one at most. NFKC: U+FDFA has 3 bytes and becomes 33. NFC: U+0390 under NFD 2 and 6.
# Lower case: U+023A 2 and 3. BERT's: spaces around a Chinese character, accents apart, lower case.
FACTORS = {"NFKC": 11, "NFKD": 11, "NFC": 3, "NFD": 3, "Lowercase": 1.5, "BertNormalizer": 10, "ByteLevel": 3}


def read(file: Path) -> str:
    """The text of a tokenizer.json. UserError names the step that goes beyond a limit, or says that it is no JSON object."""
    text = read_text(file)
    try:
        # By Python before the library: in Rust an allocation that fails ends the process.
        found = json.loads(text)
        if not isinstance(found, dict):
            raise UserError(f"{file} is no tokenizer.json of Hugging Face: it must hold an object")
        check(found, file)
    except (ValueError, RecursionError) as e:
        if isinstance(e, UserError):
            raise
        why = "it is nested too deep" if isinstance(e, RecursionError) else str(e)[:200]
        raise UserError(f"{file} is no tokenizer.json of Hugging Face: {why}") from None
    return text


def check(found: Mapping[str, Json], file: Path) -> None:
    """UserError for a step that may grow a text beyond MOST_GROWTH, ids beyond MOST_IDS, too many ids around a text."""
    grown = growth(found.get("normalizer")) * growth(found.get("pre_tokenizer"))
    for of, factor in (("normalizer and pre_tokenizer", grown), ("decoder", growth(found.get("decoder")))):
        if factor > MOST_GROWTH:
            raise UserError(f"{file}: its {of} may make {factor:,.0f} bytes of one; at most {MOST_GROWTH:,} are read")
    copies, ids = around(found.get("post_processor"))
    if copies > MOST_COPIES or ids > MOST_AROUND:
        raise UserError(
            f"{file}: its post_processor puts {ids:,} ids around {copies:,} copies of a text; "
            f"at most {MOST_AROUND:,} around {MOST_COPIES} are read"
        )
    model = found.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    named = list(vocabulary.values()) if isinstance(vocabulary, dict) else []
    added = found.get("added_tokens")
    named += [token.get("id") for token in added if isinstance(token, dict)] if isinstance(added, list) else []
    # A table of vectors has a row for each id up to the highest, however few tokens there are.
    highest = max((i for i in named if isinstance(i, int)), default=0)
    if highest >= MOST_IDS:
        raise UserError(f"{file}: it has the id {highest:,}; ids below {MOST_IDS:,} are read")


def growth(step: Json) -> float:
    """Bytes that a normalizer, pre-tokenizer or decoder makes of one at most."""
    if not isinstance(step, dict):
        return 1.0
    kind, factor = step.get("type"), 1.0
    for inner in (part for key in INNER for part in _list(step.get(key))):
        factor *= growth(inner)
    if kind == "Replace":
        pattern = step.get("pattern")
        text = pattern.get("String") if isinstance(pattern, dict) else None
        size = _size(step.get("content"))
        # Never below 1: a normalizer that shortens one text leaves others as they are.
        return factor * (max(1.0, size / _size(text)) if text else 1 + size)  # a regex may match between any two
    if kind == "Prepend":
        return factor * (1 + _size(step.get("prepend")))
    if kind == "Precompiled":
        return factor * (1 + _longest(step.get("precompiled_charsmap")))
    if kind == "Metaspace":
        return factor * 2 * max(1, _size(step.get("replacement")))  # for a space, and one in front
    return factor * FACTORS.get(str(kind), 1.0)


def around(step: Json) -> tuple[int, int]:
    """(copies of the text, ids besides) that a post-processor gives."""
    if not isinstance(step, dict):
        return 1, 0
    copies, ids = 1, 0
    for inner in _list(step.get("processors")):
        n, more = around(inner)
        copies, ids = copies * n, ids * n + more
    if step.get("type") == "TemplateProcessing":
        tokens = step.get("special_tokens")
        named = tokens.items() if isinstance(tokens, dict) else ()
        sizes = {k: len(_list(v.get("ids"))) for k, v in named if isinstance(v, dict)}
        single = [piece for piece in _list(step.get("single")) if isinstance(piece, dict)]
        names = [name for piece in single if isinstance(name := piece.get("SpecialToken"), dict)]
        # A template may name $A several times, or never.
        copies *= sum("Sequence" in piece for piece in single)
        ids += sum(sizes.get(str(name.get("id")), 0) for name in names)
    return copies, ids


def _list(value: Json) -> list[Json]:
    return value if isinstance(value, list) else []


def _size(text: Json) -> int:
    # A file may hold half of a surrogate pair, which has no UTF-8.
    return len(text.encode("utf-8", "replace")) if isinstance(text, str) else 0


def _longest(charsmap: Json) -> int:
    """Bytes of the longest text that SentencePiece's compiled map puts in the place of others.

    The map: the size of a table, the table, then the texts, each ended by a 0.
    """
    try:
        blob = base64.b64decode(charsmap if isinstance(charsmap, str) else "")
    except (ValueError, binascii.Error):
        return 0
    texts = blob[4 + int.from_bytes(blob[:4], "little") :]
    return max(map(len, texts.split(b"\0")), default=0)
