"""The contract of a filter of documents.

A filter is chosen by its name, several as a list whose order is the order in which documents pass them:
`filter=[length,duplicates]`, with options under each name, `filter.length.least=200`. This is how `logger=` names several as
well; a key for the list and another for the options (`data.filters=[...]`) would have let a filter's options be typed without
the filter. No torch here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol


class Filter(Protocol):
    """filter(/): which documents of a corpus are kept. It says so of whole documents and never changes one.

    Two steps, so that what costs time can be done by several processes and what remembers needs no lock:

    `measure(texts)` -> a value for each text, by which it is judged: its length, a hash, the score of a model. Of each text
    by itself, the same whatever the others in the batch are and whichever process is asked; a value that can be pickled.
    `reason(value)` -> why a document goes, or None for one that stays: a few words by which documents are counted, as
    "shorter than 200 characters". Asked in one process, of the documents in their order, so that it may remember those before.

    Only documents that the filters before it keep are seen. ValueError, from the constructor or from `measure`, in one line
    about the option that is wrong, is the user's error.
    """

    def measure(self, texts: Sequence[str]) -> Sequence[Any]: ...
    def reason(self, value: Any) -> str | None: ...
