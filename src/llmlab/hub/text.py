"""A checkpoint that writes: its model, and its tokenizer as the reference uses it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmlab.data import special
from llmlab.data.tokenizer import Tokenizer, from_file
from llmlab.data.tokenizer_limits import MOST_IDS
from llmlab.errors import UserError

# Ids that a prompt may have beside so many for each of its bytes: under NFKC one character of 3 bytes becomes 33.
IDS_A_BYTE, IDS_BESIDE = 12, 1000
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

    # The tokenizer first: it is the quicker to fail.
    tokenizer = tokenizer_of(folder)
    return load_hf(folder).model, tokenizer


def tokenizer_of(folder: Path) -> Reference:
    """The folder's tokenizer. eos, pad and the rest are what its files name; what only they name is added as far as the
    model has a row for it.
    """
    from llmlab.hub.families import entries
    from llmlab.hub.files import read_config

    config = read_config(folder)
    path = tokenizer_file(folder)
    kind = config.get("model_type")
    entry = entries().get(kind) if isinstance(kind, str) else None
    full = {**(entry.defaults if entry else {}), **config}
    rows = full.get("padded_vocab_size", full.get("vocab_size"))
    rows = rows if isinstance(rows, int) else None
    of_model, of_text = special.ids_of(folder)
    _check_ids(of_model, rows, folder / "config.json")
    _check_ids(of_text, rows, folder / "generation_config.json")
    known = from_file(str(path), (), rows)
    tokenizer = Reference(known.inner, {}, "file")
    tokenizer.beside = known.beside
    # As transformers has it: what is forced is in the one or the other, and there are no defaults for it.
    forced = [special.first_id(of_text or of_model, f"forced_{role}_token_id") for role in ("bos", "eos")]
    tokenizer.forced = (forced[0], forced[1])
    # generate() of transformers reads generation_config.json where there is one: it counts for more than config.json.
    about: special.Ids = {**of_model, **of_text}
    # One id or a list: Llama 3.1's instruction models end at any of three.
    tokenizer.ends = tuple(special.all_ids(about, "eos_token_id"))
    if not tokenizer.ends and (token := special.read_special(known.beside, str(folder)).name("eos")) is not None:
        found = tokenizer.inner.token_to_id(token)
        tokenizer.ends = () if found is None else (found,)
    start = special.first_id(about, "decoder_start_token_id")
    start = full.get("decoder_start_token_id") if start is None else start
    pad = start if full.get("is_encoder_decoder") and start is not None else special.first_id(about, "pad_token_id")
    begin = special.first_id(about, "bos_token_id")
    if begin is None and tokenizer.ends:
        begin = tokenizer.ends[0]
    tokenizer.special = {k: v for k, v in {"eos": begin, "pad": pad}.items() if v is not None}
    return tokenizer


def _check_ids(said: special.Ids, rows: int | None, file: Path) -> None:
    """UserError for an id that is none, or that the model would read or write and has no row for. -1 means none."""
    for key in (k for k in said if k.endswith("_token_id")):
        most = rows if key in MUST_EXIST and rows is not None else MOST_IDS
        value = said.get(key)
        for i in value if isinstance(value, list) else [value]:
            if isinstance(i, int) and not -1 <= i < most:
                raise UserError(f"{file}: {key}={i} is no id: the model has {most:,}")


def tokenizer_file(folder: Path) -> Path:
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise UserError(
            f"{folder} has no tokenizer.json; transformers makes one of older files: "
            "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
        )
    return path
