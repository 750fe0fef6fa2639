"""A checkpoint that writes: its model, and its tokenizer as the reference uses it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

from llmlab.data.tokenizer import Tokenizer, make
from llmlab.data.tokenizer_limits import MOST_IDS
from llmlab.errors import UserError
from llmlab.json_files import checked, read_json

# Ids that a prompt may have beside so many for each of its bytes: under NFKC one character of 3 bytes becomes 33.
IDS_A_BYTE, IDS_BESIDE = 12, 1000
Ids = int | list[int] | None


class Generation(TypedDict, total=False):
    """The ids of generation_config.json, or of a config.json that has them."""

    eos_token_id: Ids
    bos_token_id: Ids
    pad_token_id: Ids
    decoder_start_token_id: Ids
    forced_bos_token_id: Ids
    forced_eos_token_id: Ids


MUST_EXIST = ("decoder_start_token_id", "forced_bos_token_id", "forced_eos_token_id")  # others are only looked for


class Reference(Tokenizer):
    """A tokenizer.json that encodes a prompt as transformers does: names of special tokens in the text are those tokens,
    and what the file puts around a text (a first <s>) is put there. The text then ends at any of `ends`.
    """

    ends: tuple[int, ...] = ()

    def encode(self, text: str) -> list[int]:
        return self.encode_marked(text, around=True)

    encode_source = encode

    def encode_marked(self, text: str, *, around: bool = False) -> list[int]:
        ids = super().encode_marked(text, around=around)
        if len(ids) > (most := IDS_A_BYTE * len(text.encode()) + IDS_BESIDE):
            raise UserError(
                f"the tokenizer makes {len(ids):,} ids of a prompt of {len(text):,} characters; {most:,} are read"
            )
        return ids

    @property
    def stops(self) -> tuple[int, ...]:
        return self.ends


def load(folder: Path) -> tuple[Any, Reference]:
    """(model on the CPU in eval mode, tokenizer) of a Hugging Face folder."""
    from llmlab.hub.load import load_hf

    tokenizer = tokenizer_of(folder)  # first, for it is the quicker to fail
    return load_hf(folder).model, tokenizer


def tokenizer_of(folder: Path) -> Reference:
    """The folder's tokenizer. eos, pad and the rest are what its files name; nothing is added."""
    from llmlab.config.schema import Tokenizer as Config
    from llmlab.hub.families import entries
    from llmlab.hub.files import read_config

    config = read_config(folder)
    path = tokenizer_file(folder)
    known = make(Config(kind="file", path=str(path)), (), (), ())
    tokenizer = Reference(known.inner, {}, "file")
    tokenizer.beside = known.beside
    kind = config.get("model_type")
    entry = entries().get(kind) if isinstance(kind, str) else None
    full = {**(entry.defaults if entry else {}), **config}
    file = folder / "generation_config.json"
    own: dict[str, Any] = read_json(file, Generation) if file.exists() else {}
    about = {**config, **own}
    _check_ids(config, full, folder / "config.json")
    _check_ids(own, full, file)
    forced = own or config  # as transformers has it: the one or the other, and no defaults
    tokenizer.forced = (_first(forced.get("forced_bos_token_id")), _first(forced.get("forced_eos_token_id")))
    ends = about.get("eos_token_id")
    tokenizer.ends = tuple(ends if isinstance(ends, list) else [ends] if ends is not None else [])
    if not tokenizer.ends and (token := _named(folder, "eos_token")) is not None:
        found = tokenizer.inner.token_to_id(token)
        tokenizer.ends = () if found is None else (found,)
    start = about.get("decoder_start_token_id", full.get("decoder_start_token_id"))
    pad = start if full.get("is_encoder_decoder") and start is not None else about.get("pad_token_id")
    first = about.get("bos_token_id")
    begin = first if isinstance(first, int) else tokenizer.ends[0] if tokenizer.ends else None
    tokenizer.special = {k: v for k, v in {"eos": begin, "pad": pad}.items() if isinstance(v, int)}
    return tokenizer


def _check_ids(said: Mapping[str, Any], full: Mapping[str, Any], file: Path) -> None:
    """UserError for an id that is none, or that the model would read or write and has no row for."""
    ids: Generation = checked({k: said[k] for k in Generation.__annotations__ if k in said}, Generation, str(file))
    rows = full.get("vocab_size", full.get("padded_vocab_size"))
    for key, value in ids.items():
        for i in value if isinstance(value, list) else () if value is None else (value,):
            most = rows if key in MUST_EXIST and isinstance(rows, int) else MOST_IDS
            if not (0 if key in MUST_EXIST else -1) <= i < most:  # type: ignore[operator]
                raise UserError(f"{file}: {key}={i} is no id: the model has {most:,}")


def _first(found: Any) -> int | None:
    return next(iter(found), None) if isinstance(found, list) else found


def tokenizer_file(folder: Path) -> Path:
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise UserError(
            f"{folder} has no tokenizer.json; transformers makes one of older files: "
            "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
        )
    return path


def _named(folder: Path, role: str) -> str | None:
    found = _json(folder / "tokenizer_config.json").get(role)
    return found.get("content") if isinstance(found, dict) else found


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
