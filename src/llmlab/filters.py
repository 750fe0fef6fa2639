"""The contract of a filter of documents.

Filters are chosen by name, several of them as a list in the order in which documents pass them, and the options of each are
keys under its name: `filter=[length,duplicates] filter.length.least=200`. Loggers are chosen in the same way. With one key for
the list and another for the options (`data.filters=[...]`), options could be typed without their filter. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol


class Filter(Protocol):
    """filter(/): decides which documents of a corpus are kept. It keeps or drops a document, and never changes it.

    It has two steps, so that slow work can be done in several processes, and state needs no lock:

    `measure(texts)` -> a value for each text, by which it is judged: its length, a hash, the score of a model. It depends on
    the text alone, not on the others in the batch or on the process, and can be pickled.
    `reason(value)` -> None for a document that is kept, else why it is dropped, in a few words by which dropped documents are
    counted: "shorter than 200 characters". Called in one process, for the documents in their order, so that it may remember
    earlier ones.

    A filter sees only documents that the filters before it keep. A ValueError from the constructor or from `measure` is
    reported as the user's error: its message is one line about the option that is wrong.

    `files` and `libraries`, literal class attributes, name the options that are paths of files which it reads and the packages
    that it needs, so that a corpus is prepared anew when one of them changes.
    """

    def measure(self, texts: Sequence[str]) -> Sequence[Any]: ...
    def reason(self, value: Any) -> str | None: ...
