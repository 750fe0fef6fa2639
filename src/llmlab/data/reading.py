"""Documents as they come from a source through its filters, and the account of what became of each."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

from llmlab.data import filtering
from llmlab.data.account import BLANK_DOCUMENT, BLANK_FILE, Document, Read, Source, check_broken, reasons
from llmlab.data.record_arrays import texts_of
from llmlab.errors import UserError

if TYPE_CHECKING:
    from llmlab.config import schema
    from llmlab.data.filtering import Chosen
    from llmlab.data.progress import Bar
    from llmlab.record_kinds import Kind


class Reading:
    """One pass over a source. kind: of its records, None for texts."""

    def __init__(self, data: schema.Data, source: Source, kind: Kind | None, chosen: Chosen, bar: Bar):
        self.data, self.source, self.kind, self.chosen, self.bar = data, source, kind, chosen, bar
        self.count = self.bytes = 0  # of what the filters keep
        self._filtered: list[filtering.Filtered] = []

    def documents(self) -> Iterator[Document]:
        """The documents that the filters keep. UserError behind the last where there was none."""
        # A batch would be read ahead, and be in the account, where the last document may be any.
        ahead = {"workers": self.data.num_workers} if self.data.max_documents is None else {"at_once": 1}
        with filtering.Filters(self.chosen, self._text_of, **ahead) as filters:
            found = filters.kept(self.source.read(lambda done, total: self.bar("reading", done, total)))
            for document in itertools.islice(found, self.data.max_documents):
                self.count += 1
                if self.chosen:  # else they are those that the source has counted
                    self.bytes += len(document.text.encode("utf-8"))
                yield document
            self._filtered = filters.accounts
            check_broken(self.source.account.fields(), self._where, self.data.strict, self.data.broken)
            if not self.count:
                self._nothing(filters)

    def account(self) -> Read:
        """What was read, known once `documents` has come to its end."""
        read = self.source.account.fields()
        if self.chosen:
            kept = {"documents": self.count, "bytes": self.bytes}
            read = {**read, **kept, "filters": self._filtered}  # type: ignore[typeddict-item]
        return read

    @property
    def _where(self) -> str:
        return f"data.path={self.data.path}" if self.data.path else f"data={self.data.source}"

    def _text_of(self, document: Document) -> str:
        if self.kind is None:
            return document.text
        return "\n".join(t for _, t in texts_of(json.loads(document.text), self.kind))

    def _nothing(self, filters: filtering.Filters) -> None:
        if self.source.account.documents:
            raise UserError(filters.nothing_left(self._where, "document" if self.kind is None else "record"))
        read = self.source.account.fields()
        if broken := read.get("quarantined"):
            raise UserError(f"{broken['error']}; none of {self._where} can be read: {reasons(broken['reasons'])}")
        left_out = read["skipped"]
        white = self.kind is None and {s["reason"] for s in left_out} <= {BLANK_FILE, BLANK_DOCUMENT}
        what = "record in it that has any text" if self.kind is not None else "text in it"
        if white:
            what, left_out = f"{what}, only white space", []
        raise UserError(f"{self._where}: there is no {what}" + (f"; skipped {reasons(left_out)}" if left_out else ""))
