"""The samples that an objective reads of a part of a corpus: windows of text, records, or records packed into windows."""

from __future__ import annotations

from typing import Any, Protocol

from llmlab import attributes
from llmlab.data.corpus import Corpus
from llmlab.data.framing import Framing
from llmlab.data.packing import Packs
from llmlab.data.question_windows import QuestionWindows
from llmlab.data.records import Records, RecordSamples
from llmlab.data.windows import Stream, Windows
from llmlab.slots import Objective


class Samples(Protocol):
    """Samples by their numbers. seq_len: tokens of the longest; pad: the id of a token that stands for nothing; documents:
    they hold several, which are kept apart."""

    seq_len: int
    pad: int
    documents: bool

    def __len__(self) -> int: ...
    def __getitem__(self, i: int, /) -> Any: ...

    @property
    def tokens_per_sample(self) -> float:
        """The mean."""
        ...

    def spread(self, n: int) -> list[int]:
        """The numbers of n of them that stand for all."""
        ...


def samples(
    corpus: Corpus,
    part: Stream | Records,
    objective: Objective,
    seq_len: int,
    *,
    documents: bool = False,
    token_types: int = 0,
    lead: tuple[int, ...] = (),
    given: tuple[int, ...] = (),
) -> Samples:
    """The samples of a part, of at most `seq_len` tokens each.

    documents, lead, given: of windows of text. token_types: segments that the model tells apart, which come with records of two
    texts where the tokenizer has as many. Raises ValueError for a `seq_len` that has no room for a record.
    """
    if isinstance(part, Stream):
        return Windows(part, seq_len, documents, lead, given)
    framing, special = Framing.stored(corpus.manifest["framing"]), corpus.manifest["special"]
    # Of single texts all ids are of segment 0, as a model takes them to be where it is given none.
    told = not {"text_b", "context", "choices"}.isdisjoint(part.called) and 1 < framing.segments <= token_types
    # GPT-2 and LLaMA have no pad token, as is usual of decoders; `valid` hides the padding, whatever it is.
    pad = special.get("pad", special.get("eos", 0))
    # Not in the table of attributes: they are made of the objective's options when that is built.
    rollout, texts = getattr(objective, "rollout", None), getattr(objective, "texts", "joined")
    answer = 0 if rollout is None else rollout.max_new
    found = RecordSamples(
        part, corpus.manifest["kind"], framing, seq_len, segments=told, pad=pad, answer=answer, texts=texts
    )
    if stride := getattr(objective, "stride", 0):
        return QuestionWindows(found, stride)
    return Packs(found) if attributes.get(objective, "objective", "collate") == "pack" else found
