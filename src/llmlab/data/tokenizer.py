"""Text to ids and back: byte-level BPE learnt from the corpus, characters, or a tokenizer.json.

All three are one class over a Hugging Face tokenizer, so that what a run used can be given to any other library.
Text never yields a special token: "<|eos|>" in a document is seven ordinary characters.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llmlab.data import encoding
from llmlab.errors import UserError
from llmlab.json_files import parse_json

if TYPE_CHECKING:
    import tokenizers

    from llmlab.config.schema import Tokenizer as Config

SPECIAL = "special.json"
BESIDE = ("tokenizer_config.json", "chat_template.jinja")  # of a tokenizer.json: carried along, for who exports a run

# What others call them, most specific first. A name not found is added.
ALIASES = {
    "eos": ("<|eos|>", "<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[EOS]", "[SEP]"),
    "pad": ("<|pad|>", "<pad>", "[PAD]"),
    "mask": ("<|mask|>", "<mask>", "[MASK]"),
    "cls": ("<|cls|>", "[CLS]", "<s>", "<cls>"),
    "sep": ("<|sep|>", "[SEP]", "</s>", "<sep>"),
}


class Tokenizer:
    """A tokenizer and the ids of its special tokens by role (eos, pad, mask, cls, sep, sentinel_0 ...)."""

    def __init__(self, inner: tokenizers.Tokenizer, special: dict[str, int], kind: str):
        inner.encode_special_tokens = True  # as text, that is: a document can't forge one
        inner.no_padding()
        inner.no_truncation()
        self.inner = inner
        self.special = special
        self.kind = kind
        self.beside: dict[str, str] = {}  # files that came with a tokenizer.json, by name
        self.notes: list[str] = []  # what who reads the results should know

    @property
    def vocab_size(self) -> int:
        """Number of ids in use: the highest id + 1."""
        return max(self.inner.get_vocab(with_added_tokens=True).values()) + 1

    # The first id of every text that is written, and the last of one that has not ended before; see decoding.generate.
    forced: tuple[int | None, int | None] = (None, None)

    # What a run's documents began with, and a prompt begins with; see `opening`.
    lead: tuple[int, ...] = ()

    def opening(self, bos: bool | None = None) -> tuple[int, ...]:
        """The ids that a document begins with, mostly one (bos) or none.

        None: those that the tokenizer's own template (its post-processor) puts before a text; of ours, none. True: those,
        or the bos_token that its tokenizer_config.json names. Raises UserError if it names none.
        """
        if self.kind != "file" or bos is False:
            return ()
        for text in ("a", "A", "0", ".", *sorted(self.inner.get_vocab(with_added_tokens=False))[:100]):
            found = self.inner.encode(text, add_special_tokens=True)
            if 0 in found.special_tokens_mask:  # a text that the tokenizer does not drop
                if n := found.special_tokens_mask.index(0):
                    return tuple(found.ids[:n])
                break
        if not bos:
            return ()
        token: Any = parse_json(self.beside.get(BESIDE[0], "{}"), dict, BESIDE[0]).get("bos_token")
        token = token.get("content") if isinstance(token, dict) else token
        i = self.inner.token_to_id(token) if isinstance(token, str) else None
        if i is None:
            raise UserError(f"data.bos=true: the tokenizer names no bos_token in its {BESIDE[0]}; leave it out")
        return (i,)

    @property
    def stops(self) -> tuple[int, ...]:
        """The ids at which a text ends."""
        return (self.special["eos"],) if "eos" in self.special else ()

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without any special token. Raises UserError for a character that `char` never saw."""
        return next(self.encode_all([text])).tolist()

    def encode_all(self, texts: Iterable[str]) -> Iterator[np.ndarray]:
        """Ids of each text, in parallel: int64 (n,) each. The same ids as one at a time."""
        ids: list[np.ndarray] = []
        for chunk in encoding.encode(self, texts):
            ids.append(chunk.ids)
            if chunk.last:
                yield np.concatenate(ids)
                ids = []

    def encode_sized(self, text: str) -> tuple[np.ndarray, np.ndarray | None]:
        """(ids, the bytes of the text that each accounts for); these add up to the text's, but for a text without ids.
        None: this tokenizer does not tell.
        """
        chunks = list(encoding.encode(self, [text], sized=True))
        sizes = [c.sizes for c in chunks if c.sizes is not None]
        known = np.concatenate(sizes) if len(sizes) == len(chunks) else None
        return np.concatenate([c.ids for c in chunks]), known

    def encode_marked(self, text: str, *, around: bool = False) -> list[int]:
        """Ids of a text in which special tokens are named, as a chat template writes it. around: with what the tokenizer
        itself puts around a text (a first <s>).
        """
        self.inner.encode_special_tokens = False
        try:
            return self.inner.encode(text, add_special_tokens=around).ids
        finally:
            self.inner.encode_special_tokens = True

    def encode_source(self, text: str) -> list[int]:
        """Ids of what an encoder reads: special tokens by name, and the end, as in training."""
        plain = text
        for i in self.special.values():
            plain = plain.replace(self.inner.id_to_token(i) or "", "")
        self.check(plain)
        self.inner.encode_special_tokens = False
        try:
            return [*self.inner.encode(text, add_special_tokens=False).ids, *self.stops]
        finally:
            self.inner.encode_special_tokens = True

    def decode(self, ids: Sequence[int], special: bool = False) -> str:
        """The text that ids stand for, special tokens by name if asked. Ids that are no token are left out."""
        return self.inner.decode([int(i) for i in ids], skip_special_tokens=not special)

    def check(self, text: str) -> None:
        """UserError for a character that `char` never saw."""
        if self.kind != "char":
            return
        unseen = sorted(set(text) - set(self.inner.get_vocab(with_added_tokens=False)))
        if unseen:
            raise UserError(f"the text has {unseen[0]!r}, a character that is not in the corpus: tokenizer=bpe has all")

    @cached_property
    def spelt(self) -> np.ndarray | None:
        """(V,) int64: bytes of text that each id stands for wherever it is, 0 for special ones and ids that are no token.

        None where spelling does not tell: all but characters, and byte-level BPE that rewrites nothing before it.
        """
        spec: dict[str, Any] = json.loads(self.inner.to_str())
        if self.kind != "char" and not _byte_level(spec):
            return None
        sizes = np.zeros(self.vocab_size, dtype=np.int64)
        for token, i in self.inner.get_vocab(with_added_tokens=False).items():
            # Byte-level: each byte is spelt as one character.
            sizes[i] = len(token.encode("utf-8")) if self.kind == "char" else len(token)
        for i, added in self.inner.get_added_tokens_decoder().items():
            sizes[i] = 0 if added.special else len(added.content.encode("utf-8"))
        sizes[list(self.special.values())] = 0
        return sizes

    @cached_property
    def unknown(self) -> int | None:
        """The id that stands for all text that has no other, if there is one."""
        model: dict[str, Any] = json.loads(self.inner.to_str())["model"]
        if (i := model.get("unk_id")) is not None:
            return int(i)
        token = model.get("unk_token")
        return None if token is None else self.inner.token_to_id(token)

    def save(self, folder: Path) -> list[str]:
        """Writes tokenizer.json, as Hugging Face reads it, special.json, and what was beside. Returns the files' names."""
        self.inner.save(str(folder / "tokenizer.json"))
        (folder / SPECIAL).write_text(json.dumps({"kind": self.kind, "special": self.special}) + "\n")
        for name, content in self.beside.items():
            (folder / name).write_text(content, encoding="utf-8")
        return ["tokenizer.json", SPECIAL, *self.beside]

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """The tokenizer that `save` wrote into a folder."""
        about = json.loads((folder / SPECIAL).read_text())
        found = cls(_read(folder / "tokenizer.json"), about["special"], about["kind"])
        found.beside = _beside(folder)
        return found


def make(cfg: Config, train: Sequence[str], validation: Sequence[str], special: Sequence[str]) -> Tokenizer:
    """The tokenizer that `cfg` asks for, with special tokens of the given names.

    `bpe` learns from the training texts only. `char` has the characters of all texts, sorted: the character-level
    experiments that it is there to repeat (nanoGPT: 65 on tiny Shakespeare) count the held-out ones as well, and a
    character that is only in them has no other id to fall back to. `file` is as it is, special tokens added if missing.
    Raises UserError for an unknown kind, a `vocab_size` too small for 256 bytes, and an unreadable file.
    """
    if cfg.path and cfg.kind != "file":
        raise UserError(f"tokenizer.path={cfg.path} has no effect with tokenizer.kind={cfg.kind}: add tokenizer=file")
    if cfg.kind == "bpe":
        return _bpe(train, cfg.vocab_size, special)
    if cfg.kind == "char":
        return _char([*train, *validation], special)
    if cfg.kind == "file":
        return _file(cfg.path, special)
    raise UserError(f"tokenizer.kind={cfg.kind}: there is no such kind (valid: bpe, char, file)")


def _bpe(texts: Sequence[str], vocab_size: int, special: Sequence[str]) -> Tokenizer:
    from tokenizers import Tokenizer as Inner
    from tokenizers import decoders, models, pre_tokenizers, trainers

    least = 256 + len(special)
    if vocab_size < least:
        raise UserError(
            f"tokenizer.vocab_size={vocab_size}: byte-level BPE needs at least {least} "
            f"(256 bytes and {len(special)} special tokens)"
        )
    inner = Inner(models.BPE())
    inner.pre_tokenizer = split = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=min(vocab_size, least + sum(len(t.encode()) for t in texts)),  # it has memory for all at once
        show_progress=False,
        special_tokens=[f"<|{name}|>" for name in special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    long = False

    def stretches() -> Iterator[str]:
        nonlocal long
        for text, of_long in encoding.to_learn_from(
            texts, split
        ):  # inner.pre_tokenizer would wait for the end of training
            long = long or of_long
            yield text

    inner.train_from_iterator(stretches(), trainer)
    made = Tokenizer(inner, {name: _add(inner, f"<|{name}|>") for name in special}, "bpe")
    if long:
        made.notes.append(
            f"the text has words of more than {encoding.WORD:,} characters: the tokenizer was learnt from them in parts, for "
            "the time that they take whole grows with the square of their length"
        )
    return made


def _char(texts: Iterable[str], special: Sequence[str]) -> Tokenizer:
    from tokenizers import Tokenizer as Inner
    from tokenizers import decoders, models

    characters: set[str] = set()
    for text in texts:
        characters.update(text)
    # BPE without merges: each character is a token, and no regular expression takes a million-character text apart.
    inner = Inner(models.BPE({c: i for i, c in enumerate(sorted(characters))}, []))
    inner.decoder = decoders.Fuse()
    return Tokenizer(inner, {name: _add(inner, f"<|{name}|>") for name in special}, "char")


def _file(path: str | None, special: Sequence[str]) -> Tokenizer:
    if not path:
        raise UserError("tokenizer.path: tokenizer=file needs a tokenizer.json: tokenizer.path=FILE")
    file = Path(path).expanduser()
    if file.is_dir():
        file = file / "tokenizer.json"
    if not file.is_file():
        raise UserError(f"tokenizer.path={path}: there is no file {file}")
    inner = _read(file)
    said = _said(file.with_name("tokenizer_config.json"))
    ids = {}
    for name in special:
        number = name.removeprefix("sentinel_")
        aliases = [f"<extra_id_{number}>"] if number != name else ALIASES.get(name, ())
        known = [t for t in (said.get(f"{name}_token"), *aliases) if t and inner.token_to_id(t) is not None]
        ids[name] = _add(inner, known[0] if known else f"<|{name}|>")
    found = Tokenizer(inner, ids, "file")
    found.beside = _beside(file.parent)
    return found


def _beside(folder: Path) -> dict[str, str]:
    try:
        return {n: (folder / n).read_text(encoding="utf-8") for n in BESIDE if (folder / n).is_file()}
    except UnicodeDecodeError as e:
        raise UserError(f"tokenizer.path: a file of {folder} is not UTF-8 (byte {e.start})") from None


def _add(inner: tokenizers.Tokenizer, token: str) -> int:
    inner.add_special_tokens([token])  # one that is there keeps its id
    found = inner.token_to_id(token)
    assert found is not None
    return found


def _read(file: Path) -> tokenizers.Tokenizer:
    from tokenizers import Tokenizer as Inner

    try:
        return Inner.from_file(str(file))
    except Exception as e:  # the library raises a bare Exception for whatever is wrong with the file
        raise UserError(f"tokenizer.path: {file} is no tokenizer.json of Hugging Face ({e})") from None


def _said(file: Path) -> dict[str, str]:
    """Names of special tokens in a tokenizer_config.json: strings, or objects with `content`."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    plain = {k: v.get("content") if isinstance(v, dict) else v for k, v in found.items() if k.endswith("_token")}
    return {k: v for k, v in plain.items() if isinstance(v, str)}


def _byte_level(spec: Mapping[str, Any]) -> bool:
    """Whether a tokenizer.json spells each byte of the text itself as a character of its tokens."""
    if spec["normalizer"] is not None or (spec["model"].get("type") or "BPE") != "BPE" or not spec["pre_tokenizer"]:
        return False
    last = spec["pre_tokenizer"].get("pretokenizers", [spec["pre_tokenizer"]])[-1:]
    return bool(last) and last[0]["type"] == "ByteLevel" and not last[0].get("add_prefix_space", True)
