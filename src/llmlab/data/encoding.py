"""Text to ids, a stretch at a time so that no document is too long, and the bytes of text that each id accounts for."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from llmlab.errors import UserError

if TYPE_CHECKING:
    import tokenizers
    from tokenizers import Encoding
    from tokenizers.pre_tokenizers import PreTokenizer

PIECE = 1 << 20  # characters encoded at once: an encoding takes some hundred bytes a token
SLACK = 1 << 16  # by which a piece may be longer, to end where a word does
SPAN, OVERLAP = 1 << 18, 1 << 12  # of the overlapping stretches in which a tokenizer.json encodes a document
AGREED = 8  # tokens on either side of a cut that both stretches must have alike
WORD = 1000  # characters of the longest word that is learnt from: the trainer's time grows with the square of it

# Where the split of GPT-2 surely ends a word: it joins a space to what follows and never anything to what precedes, and
# letters and digits to no other sign ("'" alone begins a contraction).
BEFORE_SPACE = re.compile(r"(?<=\S)[ \n]")
BEFORE_SIGN = re.compile(r"(?<=[A-Za-z0-9])[!-&(-/:-@\[-`{-~]")


class Chunk(NamedTuple):
    """A stretch of a text: its ids, int64 (n,), and the bytes that each accounts for, or None if they were not asked for
    or can't be told.

    Bytes are those of the text itself in UTF-8, whatever the tokenizer makes of it, and over a text they add up to its
    length: what no id stands for counts with the id after it, at the end with the last; a character in several ids
    counts with the first of them. left: bytes of a text without any id. unknown: those under the token for the unknown.
    dropped: those, but for white space and marks, that no id stands for. last: the text ends with it.
    """

    ids: np.ndarray
    sizes: np.ndarray | None
    length: int
    last: bool
    left: int = 0
    unknown: int = 0
    dropped: int = 0


class Encoder(Protocol):
    """A tokenizer (`llmlab.data.tokenizer`) as this file needs it."""

    kind: str
    inner: tokenizers.Tokenizer

    @property
    def spelt(self) -> np.ndarray | None:
        """Bytes of each id, where an id always stands for the same ones."""
        ...

    @property
    def unknown(self) -> int | None:
        """The id of whatever the vocabulary lacks."""
        ...

    def check(self, text: str) -> None:
        """UserError for a text that can't be encoded."""
        ...


def encode(tokenizer: Encoder, texts: Iterable[str], sized: bool = False) -> Iterator[Chunk]:
    """All chunks of all texts, in their order: the ids that each text has as a whole.

    The exception is a word of more than 65,536 characters, which may be cut. sized: with bytes.
    """
    waiting: list[tuple[str, bool]] = []
    length = 0
    for text in texts:
        tokenizer.check(text)
        # Texts of bpe and char can be cut between words, as their pre-tokenizers are known; a tokenizer.json's are not.
        if tokenizer.kind == "file" and len(text) > PIECE:
            # Texts that wait go first: chunks come in the order of the texts.
            yield from _encode(tokenizer, waiting, sized)
            waiting, length = [], 0
            yield from _stitch(tokenizer, text, sized)
            continue
        for piece, last in pieces(text, PIECE, words=tokenizer.kind == "bpe"):
            waiting.append((piece, last))
            length += len(piece)
            if length >= PIECE:
                yield from _encode(tokenizer, waiting, sized)
                waiting, length = [], 0
    yield from _encode(tokenizer, waiting, sized)


def pieces(text: str, size: int, *, words: bool) -> Iterator[tuple[str, bool]]:
    """A text in pieces of about `size` characters, each with whether it is the last; words: cut between words of GPT-2's
    split, so that a piece has the words that it has in the whole.
    """
    begin = 0
    while len(text) - begin > size + SLACK * words:
        end = begin + size
        if words:
            for place in (BEFORE_SPACE, BEFORE_SIGN):
                if found := place.search(text, end, end + SLACK):
                    end = found.start()
                    break
            else:
                end += SLACK
        yield text[begin:end], False
        begin = end
    yield text[begin:], True


def to_learn_from(texts: Iterable[str], split: PreTokenizer) -> Iterator[tuple[str, bool]]:
    """The words of `texts` in short stretches, for a trainer whose memory grows with the longest: (stretch, whether it is
    part of a long word).

    A word of more than 1,000 characters comes in several, for the trainer joins pairs one by one within a word.
    """
    run = re.compile(rf"\s{{{WORD},}}")
    for text in texts:
        for piece, _ in pieces(text, SLACK, words=True):
            begin, long = 0, False
            # GPT-2's pattern makes one word of a run of white space too (`\s+(?!\S)|\s+`), in which str.split sees
            # none.
            if max(map(len, piece.split()), default=0) > WORD or run.search(piece):
                # Offsets count characters, though the words that come with them are spelt in bytes.
                for _, (start, end) in split.pre_tokenize_str(piece):
                    for at in range(start + WORD, end, WORD):
                        yield piece[begin:at], True
                        begin, long = at, True
            yield piece[begin:], long


@contextmanager
def explained() -> Iterator[None]:
    """Turns what the library raises while it encodes into a line."""
    try:
        yield
    except UserError:
        raise
    except BaseException as e:
        interrupted(e)
        # The library raises bare Exceptions, and pyo3 a BaseException for a panic of Rust.
        raise UserError(f"the tokenizer can't encode this text: {' '.join(str(e).split())[:200]}") from None


def interrupted(e: BaseException) -> None:
    """Raise what is no fault: Ctrl-C, the end of a generator. The library's panics are BaseExceptions too."""
    if isinstance(e, KeyboardInterrupt | SystemExit | GeneratorExit | MemoryError):
        raise e


# ---------------------------------------------------------------- ids and bytes


def _encode(tokenizer: Encoder, batch: Sequence[tuple[str, bool]], sized: bool) -> Iterator[Chunk]:
    if not batch:
        return
    by_offsets = sized and tokenizer.spelt is None
    inner = tokenizer.inner
    # The faster of the two, `encode_batch_fast`, keeps no offsets: all of them read (0, 0) (tokenizers 0.23).
    many = inner.encode_batch if by_offsets else inner.encode_batch_fast
    with explained():
        # The default would put the post-processor's special tokens around each chunk.
        encodings = many([t for t, _ in batch], add_special_tokens=False)
    for (text, last), found in zip(batch, encodings, strict=True):
        ids = np.array(found.ids, dtype=np.int64)
        if not sized:
            yield Chunk(ids, None, len(text), last)
            continue
        if not by_offsets:
            assert tokenizer.spelt is not None
            sizes = tokenizer.spelt[ids]
            if sizes.sum() == len(text.encode("utf-8")):
                yield Chunk(ids, sizes, len(text), last)
                continue
            # An added token with `lstrip` or `rstrip` takes white space with it, which its spelling does not have.
            found = inner.encode(text, add_special_tokens=False)
        yield SourceText(text).chunk(tokenizer, ids, token_offsets(found), last=last)


def token_offsets(found: Encoding) -> np.ndarray:
    return np.array(found.offsets, dtype=np.int64).reshape(-1, 2)


class SourceText:
    """A text, or a stretch of one that begins at its character `at`, and where its bytes are."""

    def __init__(self, text: str, at: int = 0):
        # Not "utf-32": that puts a byte order mark in front, which would count as a character.
        codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
        # The lengths of UTF-8 (RFC 3629, section 3): 1 byte below U+0080, 2 below U+0800, 3 below U+10000, else 4.
        widths = 1 + (codes >= 0x80).astype(np.int64) + (codes >= 0x800) + (codes >= 0x10000)
        faint = _faint()
        # There is no white space beyond U+FFFF: the entry of that, which is no character, stands for all that follow.
        blank = faint[np.minimum(codes, len(faint) - 1)]
        self.at = at
        self.before = np.concatenate(([0], np.cumsum(widths)))  # bytes before each character
        # Those that are neither white space nor marks.
        self.dark = np.concatenate(([0], np.cumsum(np.where(blank, 0, widths))))

    def chunk(
        self, tokenizer: Encoder, ids: np.ndarray, offsets: np.ndarray, *, last: bool, mark: int | None = None
    ) -> Chunk:
        """A chunk of it, from the character `mark` on (its first), with the rest of it if it is the last."""
        begin = 0 if mark is None else mark - self.at
        final = len(self.before) - 1
        if not len(ids):
            rest, dark = (int(a[final] - a[begin]) if last else 0 for a in (self.before, self.dark))
            return Chunk(ids, np.zeros(0, dtype=np.int64), final - begin, last, rest, 0, dark)
        starts, ends = (offsets - self.at).T
        if (np.diff(starts) < 0).any() or (np.diff(ends) < 0).any() or starts[0] < 0 or ends[-1] > final:
            # Nothing can be told by such offsets.
            return Chunk(ids, None, int(ends[-1]) - begin, last)
        to = np.maximum.accumulate(np.maximum(ends, begin))
        since = np.concatenate(([begin], to[:-1]))
        gaps = np.maximum(starts, since)
        dropped = int((self.dark[gaps] - self.dark[since]).sum())
        if last:
            dropped += int(self.dark[final] - self.dark[to[-1]])
            to[-1] = final
        sizes = np.diff(self.before[to], prepend=self.before[begin])
        unknown = 0 if tokenizer.unknown is None else int(sizes[ids == tokenizer.unknown].sum())
        return Chunk(ids, sizes, int(to[-1]) - begin, last, 0, unknown, dropped)


@cache
def _faint() -> np.ndarray:
    """White space, which many a tokenizer leaves to be guessed, and marks: one that was joined to its letter has no place."""
    return np.array([chr(c).isspace() or unicodedata.category(chr(c))[0] == "M" for c in range(1 << 16)])


# ---------------------------------------------------------------- one long document


class _Span(NamedTuple):
    at: int
    end: int
    ids: np.ndarray
    offsets: np.ndarray  # (n, 2) characters of the whole text, rising
    told: bool  # whether they were so as they came


def _stitch(tokenizer: Encoder, text: str, sized: bool) -> Iterator[Chunk]:
    """A document in overlapping stretches, as nothing is known of where a tokenizer.json may be cut.

    Two neighbours are joined in the middle of what they share, where both begin a token and have the same tokens around
    it. Where they nowhere agree (one word as long as the overlap) the second begins anew behind a token of the first.
    """
    held: _Span | None = None
    begin = mark = 0  # the first id of what is held, and the first character, that are not yet given out
    for span in _spans(tokenizer, text):
        if held is not None:
            place = _agreement(held, span, begin, (span.at + OVERLAP // 4, held.end - OVERLAP // 4))
            if place is None:
                middle = held.end - OVERLAP // 2
                i, j = _up_to(held, begin, (span.at, middle)), 0
                at = int(held.offsets[i - 1, 1]) if i > begin else middle
                (span,) = _encode_spans(tokenizer, text, [(at, span.end)])
            else:
                i, j = place
            chunk = _piece(tokenizer, text, held, begin, i, mark, sized, last=False)
            yield chunk
            mark, begin = mark + chunk.length, j
        held = span
    assert held is not None
    yield _piece(tokenizer, text, held, begin, len(held.ids), mark, sized, last=True)


def _spans(tokenizer: Encoder, text: str) -> Iterator[_Span]:
    places = [(at, min(at + SPAN + OVERLAP, len(text))) for at in range(0, max(1, len(text) - OVERLAP), SPAN)]
    # `encode_batch` works on its texts in parallel, and keeps all encodings until the last is done.
    at_once = max(1, PIECE // SPAN)
    for first in range(0, len(places), at_once):
        yield from _encode_spans(tokenizer, text, places[first : first + at_once])


def _encode_spans(tokenizer: Encoder, text: str, places: Sequence[tuple[int, int]]) -> Iterator[_Span]:
    with explained():
        found = tokenizer.inner.encode_batch([text[a:b] for a, b in places], add_special_tokens=False)
    for (begin, end), encoding in zip(places, found, strict=True):
        offsets = token_offsets(encoding)
        # Along axis 0, ufuncs' default: starts and ends each by themselves.
        rising = np.maximum.accumulate(offsets).clip(0, end - begin) if len(offsets) else offsets
        same = np.array_equal(rising, offsets)
        yield _Span(begin, end, np.array(encoding.ids, dtype=np.int64), rising + begin, same)


def _agreement(one: _Span, two: _Span, begin: int, between: tuple[int, int]) -> tuple[int, int] | None:
    """The first ids of `one` and of `two` behind a cut between two characters of the text."""
    starts, others = one.offsets[:, 0], two.offsets[:, 0]
    for i in range(max(begin, AGREED, int(np.searchsorted(starts, between[0]))), len(starts) - AGREED):
        if starts[i] >= between[1]:
            return None
        j = int(np.searchsorted(others, starts[i]))
        a, b = slice(i - AGREED, i + AGREED), slice(j - AGREED, j + AGREED)
        if (
            AGREED <= j <= len(others) - AGREED
            # Tokens that are bytes of one character all have its offsets: a cut between them would halve it.
            and starts[i - 1] < starts[i] >= one.offsets[i - 1, 1]
            and np.array_equal(one.ids[a], two.ids[b])
            and np.array_equal(one.offsets[a], two.offsets[b])
        ):
            return i, j
    return None


def _up_to(span: _Span, begin: int, places: tuple[int, int]) -> int:
    """Behind the last id that ends between two places; behind the one that reaches over both if there is none."""
    i = max(begin, int(np.searchsorted(span.offsets[:, 1], places[1], side="right")))
    over = i < len(span.ids) and (i == begin or span.offsets[i - 1, 1] < places[0])
    return i + 1 if over else i


def _piece(
    tokenizer: Encoder, text: str, span: _Span, begin: int, end: int, mark: int, sized: bool, *, last: bool
) -> Chunk:
    ids, offsets = span.ids[begin:end], span.offsets[begin:end]
    to = len(text) if last else int(offsets[-1, 1]) if len(offsets) else mark
    if not sized or not span.told:
        return Chunk(ids, None, to - mark, last)
    if tokenizer.spelt is not None:
        sizes = tokenizer.spelt[ids]
        if sizes.sum() == len(text[mark:to].encode("utf-8")):
            return Chunk(ids, sizes, to - mark, last)
    return SourceText(text[mark:to], mark).chunk(tokenizer, ids, offsets, last=last, mark=mark)
