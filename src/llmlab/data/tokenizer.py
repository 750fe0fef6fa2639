"""Text to ids and back: byte-level BPE learnt from the corpus, characters, or a tokenizer.json.

All three are one class over a Hugging Face tokenizer, so that what a run used can be given to any other library.
Text never yields a special token: "<|eos|>" in a document is seven ordinary characters.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict

import numpy as np

from llmlab.errors import UserError
from llmlab.json_files import read_json

if TYPE_CHECKING:
    import tokenizers

    from llmlab.config.schema import Tokenizer as Config

PIECE = 1 << 20  # characters encoded at once: an encoding takes some hundred bytes a token
FILE, SPECIAL = "tokenizer.json", "special.json"
BESIDE = ("tokenizer_config.json", "chat_template.jinja")  # of a tokenizer.json: carried along, for who exports a run

# What others call them, most specific first. A name not found is added.
ALIASES = {
    "eos": ("<|eos|>", "<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[EOS]", "[SEP]"),
    "pad": ("<|pad|>", "<pad>", "[PAD]"),
    "mask": ("<|mask|>", "<mask>", "[MASK]"),
    "cls": ("<|cls|>", "[CLS]", "<s>", "<cls>"),
    "sep": ("<|sep|>", "[SEP]", "</s>", "<sep>"),
}


LARGEST_ID = 1 << 32  # of the tokenizers library, which raises OverflowError beyond


class About(TypedDict):
    """special.json: ids of the special tokens by role, and how the tokenizer came about."""

    kind: Literal["bpe", "char", "file"]
    special: dict[str, int]


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

    @property
    def vocab_size(self) -> int:
        """Number of ids in use: the highest id + 1."""
        return max(self.inner.get_vocab(with_added_tokens=True).values()) + 1

    # The first id of every text that is written, and the last of one that has not ended before; see decoding.generate.
    forced: tuple[int | None, int | None] = (None, None)

    @property
    def stops(self) -> tuple[int, ...]:
        """The ids at which a text ends."""
        return (self.special["eos"],) if "eos" in self.special else ()

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without any special token. Raises UserError for a character that `char` never saw."""
        return next(self.encode_all([text])).tolist()

    def encode_all(self, texts: Iterable[str]) -> Iterator[np.ndarray]:
        """Ids of each text, in parallel: int64 (n,) each. The same ids as one at a time."""
        for texts_ in _batches(texts, PIECE):
            pieces = [list(self._pieces(text)) for text in texts_]
            encodings = iter(self.inner.encode_batch_fast([p for ps in pieces for p in ps], add_special_tokens=False))
            for ps in pieces:
                ids = [np.array(next(encodings).ids, dtype=np.int64) for _ in ps]
                yield np.concatenate(ids) if ids else np.zeros(0, dtype=np.int64)

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
        for _ in self._pieces(plain):  # says what it does not know
            pass
        self.inner.encode_special_tokens = False
        try:
            return [*self.inner.encode(text, add_special_tokens=False).ids, *self.stops]
        finally:
            self.inner.encode_special_tokens = True

    def decode(self, ids: Sequence[int], special: bool = False) -> str:
        """The text that ids stand for, special tokens by name if asked. Ids that are no token are left out."""
        return self.inner.decode([int(i) for i in ids], skip_special_tokens=not special)

    def _pieces(self, text: str) -> Iterator[str]:
        if self.kind == "char":
            unseen = sorted(set(text) - set(self.inner.get_vocab(with_added_tokens=False)))
            if unseen:
                raise UserError(
                    f"the text has {unseen[0]!r}, a character that the tokenizer does not have: tokenizer=char has those "
                    "of the text that it was made from, tokenizer=bpe has all"
                )
        begin = 0
        while self.kind != "file" and len(text) - begin > PIECE:
            end = begin + PIECE
            # The split of GPT-2 joins a space to what follows it, and never anything to what precedes it.
            while self.kind == "bpe" and end < len(text) and not (text[end] in " \n" and not text[end - 1].isspace()):
                end += 1
            yield text[begin:end]
            begin = end
        yield text[begin:]

    def token_bytes(self) -> np.ndarray:
        """(V,) int64: bytes of UTF-8 that each id stands for, 0 for special ones and for ids that are no token.

        Exact for byte-level tokenizers and characters. A tokenizer that drops or rewrites text (WordPiece: spaces and
        case) has lower sums than its text has bytes.
        """
        sizes = np.zeros(self.vocab_size, dtype=np.int64)
        size = _measure(self)
        for token, i in self.inner.get_vocab(with_added_tokens=False).items():
            sizes[i] = size(token)
        for i, added in self.inner.get_added_tokens_decoder().items():
            sizes[i] = 0 if added.special else len(added.content.encode("utf-8"))
        sizes[list(self.special.values())] = 0
        return sizes

    def save(self, folder: Path) -> list[str]:
        """Writes tokenizer.json, as Hugging Face reads it, special.json, and what was beside. Returns the files' names."""
        self.inner.save(str(folder / "tokenizer.json"))
        (folder / SPECIAL).write_text(json.dumps({"kind": self.kind, "special": self.special}) + "\n")
        for name, content in self.beside.items():
            (folder / name).write_text(content, encoding="utf-8")
        return ["tokenizer.json", SPECIAL, *self.beside]

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """The tokenizer that `save` wrote into a folder. UserError where a file is gone or is not as it was written."""
        try:
            about: About = read_json(folder / SPECIAL, About)
        except FileNotFoundError:
            raise UserError(f"{folder}: there is no {SPECIAL} there") from None
        inner = _read(folder / FILE)
        found = cls(inner, about["special"], about["kind"])
        for role, i in found.special.items():
            if not 0 <= i < LARGEST_ID or inner.id_to_token(i) is None:
                raise UserError(f"{folder / SPECIAL}: special.{role}={i} is no token of {FILE}")
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
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=min(vocab_size, least + sum(len(t.encode()) for t in texts)),  # it has memory for all at once
        show_progress=False,
        special_tokens=[f"<|{name}|>" for name in special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    inner.train_from_iterator(texts, trainer)
    return Tokenizer(inner, {name: _add(inner, f"<|{name}|>") for name in special}, "bpe")


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
    known = Tokenizer.load(file.parent) if file.name == FILE and (file.parent / SPECIAL).exists() else None  # of a run
    inner = known.inner if known else _read(file)
    said = _said(file.with_name("tokenizer_config.json"))
    ids = dict(known.special) if known else {}
    for name in (n for n in special if n not in ids):
        number = name.removeprefix("sentinel_")
        aliases = [f"<extra_id_{number}>"] if number != name else ALIASES.get(name, ())
        there = [t for t in (said.get(f"{name}_token"), *aliases) if t and inner.token_to_id(t) is not None]
        ids[name] = _add(inner, there[0] if there else f"<|{name}|>")
    found = Tokenizer(inner, ids, known.kind if known else "file")
    found.beside = _beside(file.parent)
    return found


def ends_nothing(cfg: Config) -> bool:
    """Whether it is the tokenizer of a run on one document, which has no token that ends one: none is added to it."""
    if cfg.kind != "file" or not cfg.path:
        return False
    file = Path(cfg.path).expanduser()
    about = (file if file.is_dir() else file.parent) / SPECIAL
    return about.exists() and "eos" not in read_json(about, About)["special"]


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


def _batches(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    batch: list[str] = []
    length = 0
    for text in texts:
        batch.append(text)
        length += len(text)
        if length >= size:
            yield batch
            batch, length = [], 0
    if batch:
        yield batch


def _measure(tokenizer: Tokenizer) -> Callable[[str], int]:
    """How many bytes of text a token's spelling stands for."""
    spec: dict[str, Any] = json.loads(tokenizer.inner.to_str())
    if "ByteLevel" in json.dumps([spec["pre_tokenizer"], spec["decoder"]]):
        return len  # each byte is spelt as one character
    if (spec["model"].get("type") or "BPE") == "WordPiece":
        prefix = spec["model"]["continuing_subword_prefix"]
        return lambda token: len(token.removeprefix(prefix).encode("utf-8"))
    if tokenizer.kind == "char":
        return lambda token: len(token.encode("utf-8"))
    byte = {f"<0x{b:02X}>" for b in range(256)} if "ByteFallback" in json.dumps(spec["decoder"]) else set()
    return lambda token: 1 if token in byte else len(token.replace("\u2581", " ").encode("utf-8"))
