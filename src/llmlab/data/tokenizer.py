"""Text to ids and back: byte-level BPE learnt from the corpus, characters, or a tokenizer.json.

All three are one class over a Hugging Face tokenizer, so that what a run used can be given to any other library.
Text never yields a special token: "<|eos|>" in a document is seven ordinary characters.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict

import numpy as np

from llmlab.data import encoding, tokenizer_limits
from llmlab.data import special as special_tokens
from llmlab.data.special import ADDED, CONFIG, MAP
from llmlab.data.special_names import ALIASES
from llmlab.errors import UserError
from llmlab.files import expanded
from llmlab.json_files import read_json, read_text
from llmlab.ranks import rank_zero_info

if TYPE_CHECKING:
    import tokenizers

    from llmlab.config.schema import Tokenizer as Config

FILE, SPECIAL = "tokenizer.json", "special.json"
# Files that come with a tokenizer.json and are carried along: what is special in it, and for who exports a run.
BESIDE = (CONFIG, MAP, ADDED, "chat_template.jinja", "generation_config.json")

LARGEST_ID = 1 << 32  # of the tokenizers library, which raises OverflowError beyond


class About(TypedDict):
    """special.json: ids of the special tokens by role, and how the tokenizer came about."""

    kind: Literal["bpe", "char", "file"]
    special: dict[str, int]


class Tokenizer:
    """A tokenizer and the ids of its special tokens by role (eos, pad, mask, cls, sep, sentinel_0 ...)."""

    def __init__(self, inner: tokenizers.Tokenizer, special: dict[str, int], kind: str):
        inner.encode_special_tokens = True  # as text, that is: a document can't forge one
        # A tokenizer.json may ask for both, and a document would be cut or padded in silence.
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
        # Vocabularies have holes, and `get_vocab_size` counts tokens: a table needs a row for the highest id too.
        return max(self.inner.get_vocab(with_added_tokens=True).values()) + 1

    # The first id of every text that is written, and the last of one that has not ended before; see decoding.generate.
    forced: tuple[int | None, int | None] = (None, None)

    # What a run's documents began with, and a prompt begins with; see `opening`.
    lead: tuple[int, ...] = ()

    def opening(self, bos: bool | None = None) -> tuple[int, ...]:
        """The ids that a document begins with, mostly one (bos) or none.

        None: those that the tokenizer's own template (its post-processor) puts before a text; of ours, none. True: those,
        or the bos_token that the files beside it name. UserError if they name none.
        """
        if self.kind != "file" and bos:
            raise UserError(f"data.bos=true: the tokenizer is of tokenizer={self.kind}, which has no bos; leave it out")
        if self.kind != "file" or bos is False:
            return ()
        if before := self.around()[0]:
            return before
        if not bos:
            return ()
        token = special_tokens.read_special(self.beside, "the tokenizer").name("bos")
        i = None if token is None else self.inner.token_to_id(token)
        if i is None:
            raise UserError("data.bos=true: the files beside tokenizer.json name no bos_token; leave it out")
        return (i,)

    def around(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The ids that the tokenizer's own template (its post-processor) puts before a text and after it."""
        for text in ("a", "A", "0", ".", *sorted(self.inner.get_vocab(with_added_tokens=False))[:100]):
            found = self.inner.encode(text, add_special_tokens=True)
            mask = found.special_tokens_mask
            if 0 in mask:  # a text that the tokenizer does not drop
                return tuple(found.ids[: mask.index(0)]), tuple(found.ids[len(mask) - mask[::-1].index(0) :])
        return (), ()

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

    @contextmanager
    def marked(self) -> Iterator[None]:
        """Within it special tokens that a text names are read as such, as in what a chat template writes."""
        self.inner.encode_special_tokens = False
        try:
            yield
        finally:
            self.inner.encode_special_tokens = True

    def encode_marked(self, text: str, *, around: bool = False) -> list[int]:
        """Ids of a text in which special tokens are named, as a chat template writes it. around: with what the tokenizer
        itself puts around a text (a first <s>).
        """
        with self.marked(), encoding.explained():
            return self.inner.encode(text, add_special_tokens=around).ids

    def encode_source(self, text: str) -> list[int]:
        """Ids of what an encoder reads: special tokens by name, and the end, as in training."""
        with self.marked(), encoding.explained():
            self.check(text)
            return [*self.inner.encode(text, add_special_tokens=False).ids, *self.stops]

    def decode(self, ids: Sequence[int], special: bool = False) -> str:
        """The text that ids stand for, special tokens by name if asked. Ids that are no token are left out."""
        return self.inner.decode([int(i) for i in ids], skip_special_tokens=not special)

    def check(self, text: str) -> None:
        """UserError for a character that `char` never saw."""
        if self.kind != "char":
            return
        if not self.inner.encode_special_tokens:
            for i in self.special.values():
                text = text.replace(self.inner.id_to_token(i) or "", "")
        unseen = sorted(set(text) - set(self.inner.get_vocab(with_added_tokens=False)))
        if unseen:
            raise UserError(
                f"the text has {unseen[0]!r}, a character that the tokenizer does not have: tokenizer=char has those "
                "of the text that it was made from, tokenizer=bpe has all"
            )

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
        # Not inner.save(): of a full disk it raises a bare Exception.
        (folder / "tokenizer.json").write_text(self.inner.to_str(pretty=True), encoding="utf-8")
        (folder / SPECIAL).write_text(json.dumps({"kind": self.kind, "special": self.special}) + "\n", encoding="utf-8")
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
        inner = read_tokenizer(folder / FILE)
        found = cls(inner, about["special"], about["kind"])
        for role, i in found.special.items():
            if not 0 <= i < LARGEST_ID or inner.id_to_token(i) is None:
                raise UserError(f"{folder / SPECIAL}: special.{role}={i} is no token of {FILE}")
        found.beside = _beside(folder)
        return found


def make(cfg: Config, train: Iterable[str], validation: Iterable[str], special: Sequence[str]) -> Tokenizer:
    """The tokenizer that `cfg` asks for, with special tokens of the given names.

    `bpe` learns from the training texts only. `char` has the characters of all texts, sorted: the character-level
    experiments that it is there to repeat (nanoGPT: 65 on tiny Shakespeare) count the held-out ones as well, and a
    character that is only in them has no other id to fall back to. `file` is as it is, special tokens added if missing.
    Texts may be read more than once.
    Raises UserError for an unknown kind, a `vocab_size` too small for 256 bytes, and an unreadable file.
    """
    if cfg.path and cfg.kind != "file":
        raise UserError(f"tokenizer.path={cfg.path} has no effect with tokenizer.kind={cfg.kind}: add tokenizer=file")
    if cfg.kind == "bpe":
        return _bpe(train, cfg.vocab_size, special)
    if cfg.kind == "char":
        return char_tokenizer(itertools.chain(train, validation), special)
    if cfg.kind == "file":
        return from_file(cfg.path, special)
    raise UserError(f"tokenizer.kind={cfg.kind}: there is no such kind (valid: bpe, char, file)")


def _bpe(texts: Iterable[str], vocab_size: int, special: Sequence[str]) -> Tokenizer:
    from tokenizers import Tokenizer as Inner
    from tokenizers import decoders, models, pre_tokenizers, trainers

    least = 256 + len(special)
    if vocab_size < least:
        raise UserError(
            f"tokenizer.vocab_size={vocab_size}: byte-level BPE needs at least {least} "
            f"(256 bytes and {len(special)} special tokens)"
        )
    inner = Inner(models.BPE())
    # `ByteLevel` puts a space in front of each text unless it is told not to, and decoding gives that back.
    inner.pre_tokenizer = split = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=min(vocab_size, least + _bytes_of(texts, vocab_size)),  # it has memory for all at once
        show_progress=False,
        special_tokens=[f"<|{name}|>" for name in special],
        # Without it BPE drops a byte that the training text lacks, in silence, as there is no token for the unknown.
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    long = False

    def stretches() -> Iterator[str]:
        nonlocal long
        # `inner.pre_tokenizer` would wait for the end of training.
        for text, of_long in encoding.to_learn_from(texts, split):
            long = long or of_long
            yield text

    inner.train_from_iterator(stretches(), trainer)
    made = Tokenizer(inner, {name: special_tokens.add(inner, f"<|{name}|>") for name in special}, "bpe")
    if long:
        made.notes.append(
            f"the text has words of more than {encoding.WORD:,} characters: the tokenizer was learnt from them in parts, for "
            "the time that they take whole grows with the square of their length"
        )
    return made


def _bytes_of(texts: Iterable[str], most: int) -> int:
    """Bytes of the texts in UTF-8, counted until there are `most`."""
    found = 0
    for text in texts:
        found += len(text.encode())
        if found >= most:
            break
    return found


def char_tokenizer(texts: Iterable[str], special: Sequence[str]) -> Tokenizer:
    """A tokenizer whose tokens are the characters of some texts."""
    from tokenizers import Tokenizer as Inner
    from tokenizers import decoders, models

    characters: set[str] = set()
    for text in texts:
        characters.update(text)
    # BPE without merges: each character is a token, and no regular expression takes a million-character text apart.
    inner = Inner(models.BPE({c: i for i, c in enumerate(sorted(characters))}, []))
    # A tokenizer without a decoder joins its tokens with spaces (tokenizers 0.23).
    inner.decoder = decoders.Fuse()
    return Tokenizer(inner, {name: special_tokens.add(inner, f"<|{name}|>") for name in special}, "char")


def from_file(path: str | None, special: Sequence[str], table: int | None = None) -> Tokenizer:
    """The tokenizer of a tokenizer.json and the files beside it, special tokens of the given names found or added.

    table: how many tokens the model knows, None for what a config.json beside says; a token that only the files beside name
    is left out where the model has no row for it.
    """

    if not path:
        raise UserError("tokenizer.path: tokenizer=file needs a tokenizer.json: tokenizer.path=FILE")
    file = expanded(path)
    if file.is_dir():
        file = file / "tokenizer.json"
    if not file.is_file():
        raise UserError(f"tokenizer.path={path}: there is no file {file}")
    known = Tokenizer.load(file.parent) if file.name == FILE and (file.parent / SPECIAL).exists() else None  # of a run
    inner = known.inner if known else read_tokenizer(file)
    beside = _beside(file.parent)
    named = special_tokens.read_special(beside, str(file.parent))
    models = special_tokens.ids_of(file.parent)
    table = table or models[0].get("padded_vocab_size") or models[0].get("vocab_size")
    if known is None and (left_out := named.apply(inner, table)):
        rank_zero_info(f"{file.parent}: the model has no row for {', '.join(left_out)}, which is left out")
    ids = dict(known.special) if known else {}
    for name in (n for n in special if n not in ids):
        token = named.name(name)
        if token is None or inner.token_to_id(token) is None:
            token = _by_id(inner, models, name)
        if token is None:
            token = _by_alias(inner, name)
            if name == "eos":
                how = "is added" if inner.token_to_id(token) is None else "is taken"
                rank_zero_info(f"{file.parent}: nothing there names the eos token of the tokenizer; {token} {how}")
        ids[name] = special_tokens.add(inner, token)
    found = Tokenizer(inner, ids, known.kind if known else "file")
    found.beside = beside
    return found


def ends_nothing(cfg: Config) -> bool:
    """True for the tokenizer of a run on one document, which has no token that ends one: none is added to it."""
    if cfg.kind != "file" or not cfg.path:
        return False
    file = expanded(cfg.path)
    about = (file if file.is_dir() else file.parent) / SPECIAL
    return about.exists() and "eos" not in read_json(about, About)["special"]


def _by_id(inner: tokenizers.Tokenizer, models: Sequence[special_tokens.Ids], name: str) -> str | None:
    """The token of a role by its id in the configs of the model whose tokenizer it is."""
    for ids in models:
        if (i := special_tokens.first_id(ids, f"{name}_token_id")) is not None and i < 1 << 32:
            return inner.id_to_token(i)
    return None


def _by_alias(inner: tokenizers.Tokenizer, name: str) -> str:
    number = name.removeprefix("sentinel_")
    aliases = [f"<extra_id_{number}>"] if number != name else ALIASES.get(name, ())
    return next((t for t in aliases if inner.token_to_id(t) is not None), f"<|{name}|>")


def _beside(folder: Path) -> dict[str, str]:
    """Content by name of the files that go with a tokenizer.json."""
    found = {}
    for name in BESIDE:
        with suppress(FileNotFoundError):
            found[name] = read_text(folder / name)
    return found


def read_tokenizer(file: Path) -> tokenizers.Tokenizer:
    """Read a tokenizer.json. UserError for one that is damaged or over the limits."""
    from tokenizers import Tokenizer as Inner

    text = tokenizer_limits.read(file)
    try:
        found = Inner.from_str(text)
    except BaseException as e:  # a bare Exception for whatever is wrong with the file; a panic is not even that
        encoding.interrupted(e)
        raise UserError(f"tokenizer.path: {file} is no tokenizer.json of Hugging Face ({str(e)[:200]})") from None
    if not found.get_vocab_size(with_added_tokens=True):
        raise UserError(f"tokenizer.path: {file} holds no token")
    return found


def _byte_level(spec: Mapping[str, Any]) -> bool:
    """True if a tokenizer.json spells each byte of the text itself as a character of its tokens."""
    # tokenizers 0.23 reads a model without a type by its keys.
    if spec["normalizer"] is not None or (spec["model"].get("type") or "BPE") != "BPE" or not spec["pre_tokenizer"]:
        return False
    last = spec["pre_tokenizer"].get("pretokenizers", [spec["pre_tokenizer"]])[-1:]
    return bool(last) and last[0]["type"] == "ByteLevel" and not last[0].get("add_prefix_space", True)
