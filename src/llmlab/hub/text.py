"""A checkpoint that writes: its model, and its tokenizer as the reference uses it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmlab.data import special
from llmlab.data.tokenizer import Tokenizer, from_file
from llmlab.errors import UserError


class Reference(Tokenizer):
    """A tokenizer.json that encodes a prompt as transformers does: names of special tokens in the text are those tokens,
    and what the file puts around a text (a first <s>) is put there. The text then ends at any of `ends`.
    """

    ends: tuple[int, ...] = ()

    def encode(self, text: str) -> list[int]:
        return self.encode_marked(text, around=True)

    encode_source = encode

    @property
    def stops(self) -> tuple[int, ...]:
        return self.ends


def load(folder: Path) -> tuple[Any, Reference]:
    """(model on the CPU in eval mode, tokenizer) of a Hugging Face folder."""
    from llmlab.hub.load import load_hf

    tokenizer = tokenizer_of(folder)  # first, for it is the quicker to fail
    return load_hf(folder).model, tokenizer


def tokenizer_of(folder: Path) -> Reference:
    """The folder's tokenizer. eos, pad and the rest are what its files name; what only they name is added as far as the
    model has a row for it.
    """
    from llmlab.hub.families import entries
    from llmlab.hub.files import read_config

    config = read_config(folder)
    path = tokenizer_file(folder)
    entry = entries().get(config.get("model_type", ""))
    full = {**(entry.defaults if entry else {}), **config}
    rows = full.get("padded_vocab_size", full.get("vocab_size"))
    rows = rows if isinstance(rows, int) else None
    known = from_file(str(path), (), rows)
    tokenizer = Reference(known.inner, {}, "file")
    tokenizer.beside = known.beside
    of_model, of_text = special.ids_of(folder)
    # As transformers has it: what is forced is in the one or the other, and there are no defaults for it.
    file, ids = ("generation_config.json", of_text) if of_text else ("config.json", of_model)
    forced = [special.first_id(ids, f"forced_{role}_token_id") for role in ("bos", "eos")]
    for i in forced:
        if i is not None and rows is not None and i >= rows:
            raise UserError(f"{folder / file}: the forced token {i} is none of the {rows:,} that the model has")
    tokenizer.forced = (forced[0], forced[1])
    about: special.Ids = {**of_model, **of_text}
    tokenizer.ends = tuple(special.all_ids(about, "eos_token_id"))
    if not tokenizer.ends and (token := special.read(known.beside, str(folder)).name("eos")) is not None:
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


def tokenizer_file(folder: Path) -> Path:
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise UserError(
            f"{folder} has no tokenizer.json; transformers makes one of older files: "
            "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
        )
    return path
