"""Files of the user that filters read: lists of words, and example documents."""

from __future__ import annotations

import json
from pathlib import Path

from llmlab.files import expanded


def word_list(option: str, path: str) -> list[str]:
    """The lines of a file in small letters, blank ones left out. ValueError for one that can't be read or has none."""
    found = [line.strip().lower() for line in _text(option, path).splitlines() if line.strip()]
    if not found:
        raise ValueError(f"{option}={path} has no words, only white space")
    return found


def documents(option: str, path: str) -> list[str]:
    """Texts of a .jsonl file, under the key "text", or each line of another file. ValueError for one without any."""
    found = []
    for number, line in enumerate(_text(option, path).split("\n"), 1):
        if not line.strip():
            continue
        if Path(path).suffix == ".jsonl":
            try:
                row = json.loads(line)
            except ValueError as e:
                raise ValueError(f"{option}={path}, line {number}, is not JSON: {e}") from None
            text = row.get("text") if isinstance(row, dict) else None
            if not isinstance(text, str):
                raise ValueError(f'{option}={path}, line {number}, must be an object with a string under "text"')
            line = text
        if line.strip():
            found.append(line)
    if not found:
        raise ValueError(f"{option}={path} has no texts: it must be a .jsonl file, or have a document on each line")
    return found


def _text(option: str, path: str) -> str:
    try:
        return expanded(path).read_bytes().decode("utf-8").removeprefix("\ufeff")
    except OSError as e:
        raise ValueError(f"{option}={path} can't be read ({e.strerror})") from None
    except UnicodeDecodeError as e:
        raise ValueError(f"{option}={path} is not UTF-8 (byte {e.start})") from None
