"""Special tokens around the texts of a record, and the shortening of records that are too long."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from llmlab.data.tokenizer import Tokenizer

TRIED = 100  # texts of one token with which a template is asked, as a tokenizer may drop some


class Frame(NamedTuple):
    """Ids before, between and after the texts of a record, and the segment of each id of before, the first text, between,
    the second text, after."""

    before: list[int]
    between: list[int]
    after: list[int]
    types: list[list[int]]

    @property
    def extra(self) -> int:
        return len(self.before) + len(self.between) + len(self.after)


class Framing(NamedTuple):
    """Frames that make one sequence of a record. lead, end: ids that open a record and the one that ends a text."""

    single: Frame
    pair: Frame
    lead: list[int]
    end: int | None

    @classmethod
    def from_tokenizer(cls, tokenizer: Tokenizer, lead: Sequence[int]) -> Framing:
        """By the tokenizer's own template (its post-processor); else [CLS] a [SEP] b [SEP] where it has both (BERT: Devlin
        et al. 2018, arXiv:1810.04805); else eos after each text.
        """
        end = tokenizer.special.get("eos")
        framing = _template(tokenizer)
        if framing is None:
            cls_id, sep = (tokenizer.special.get(n) for n in ("cls", "sep"))
            # Where there are BERT's cls and sep the frame is BERT's, in which bos would be a second first token.
            before = [cls_id] if cls_id is not None and sep is not None else list(lead)
            last = sep if cls_id is not None and sep is not None else end
            after = [] if last is None else [last]
            # BERT's segments: [CLS] a [SEP] is 0, b [SEP] is 1 (Devlin et al. 2019, figure 2).
            zeros, ones = [0] * len(after), [1] * len(after)
            first = [0] * len(before)
            framing = (
                Frame(before, [], after, [first, [0], [], [], zeros]),
                Frame(before, after, after, [first, [0], zeros, [1], ones]),
            )
        return cls(*framing, list(lead), end)

    @classmethod
    def stored(cls, plain: Sequence[Any]) -> Framing:
        """The framing that a manifest holds as lists."""
        single, pair, lead, end = plain
        return cls(Frame(*single), Frame(*pair), lead, end)

    def framed(self, texts: Sequence[np.ndarray], room: int) -> tuple[np.ndarray, np.ndarray]:
        """(ids, segments) of one text or two, the texts shortened so that all has at most `room` ids: int64 (n,) each."""
        frame = self.single if len(texts) == 1 else self.pair
        first, *second = (
            t[:n] for t, n in zip(texts, shares([len(t) for t in texts], room - frame.extra), strict=True)
        )
        pieces: list[Sequence[int] | np.ndarray] = [frame.before, first, frame.between, *second, frame.after]
        kinds = frame.types if second else [*frame.types[:3], frame.types[4]]
        ids = [np.asarray(p, dtype=np.int64) for p in pieces]
        # np.resize repeats what it is given: the one segment of a text, once for each of its ids.
        types = [np.resize(np.array(t, dtype=np.int64), len(p)) for p, t in zip(pieces, kinds, strict=True)]
        return np.concatenate(ids), np.concatenate(types)

    @property
    def segments(self) -> int:
        """Segments that it tells apart."""
        return 1 + max(t for frame in (self.single, self.pair) for types in frame.types for t in types or [0])


def shares(lengths: Sequence[int], room: int) -> list[int]:
    """Lengths of one or two texts that together have at most `room`: the longer is shortened, then both alike."""
    if sum(lengths) <= room:
        return list(lengths)
    if len(lengths) == 1:
        return [room]
    # As BERT's run_classifier.py (`_truncate_seq_pair`) takes one token after the other off the longer text, the second
    # of equal ones.
    one, two = lengths
    half = room // 2
    if min(one, two) <= half:
        return [room - two, two] if one > two else [one, room - one]
    return [room - half, half]


def shortened(ids: np.ndarray, length: int, cut: Literal["start", "end"]) -> np.ndarray:
    """The first `length` ids, or where they are cut at the start the last."""
    return ids[:length] if cut == "end" else ids[len(ids) - min(length, len(ids)) :]


def _template(tokenizer: Tokenizer) -> tuple[Frame, Frame] | None:
    """Tokens that the tokenizer's own template puts around one text and around two; None without one."""
    if tokenizer.kind != "file":
        return None
    inner = tokenizer.inner
    for text in ("a", "A", "0", ".", *sorted(inner.get_vocab(with_added_tokens=False))[:TRIED]):
        # One text and a pair are templates of their own: RoBERTa's pair has two </s> between the texts.
        found = [inner.encode(text, pair, add_special_tokens=True) for pair in (None, text)]
        frames = [_frame(e.ids, e.type_ids, e.sequence_ids) for e in found]
        if frames[0] is not None and frames[1] is not None:
            return (frames[0], frames[1]) if any(f and f.extra for f in frames) else None
    return None


def _frame(ids: list[int], types: list[int], of: list[int | None]) -> Frame | None:
    """The frame of an encoding, whose `of` says of each id which text it is from. None if a text has left no id."""
    n = 2 if 1 in of else 1  # tokenizers has None there for a special token
    if any(i not in of for i in range(n)):
        return None
    starts = [of.index(i) for i in range(n)]
    ends = [len(of) - of[::-1].index(i) for i in range(n)]
    middle = slice(ends[0], starts[1]) if n == 2 else slice(0, 0)
    second = types[starts[1] : starts[1] + 1] if n == 2 else []
    return Frame(
        ids[: starts[0]],
        ids[middle],
        ids[ends[-1] :],
        [types[: starts[0]], types[starts[0] : starts[0] + 1], types[middle], second, types[ends[-1] :]],
    )
