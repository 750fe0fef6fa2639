"""Sources of text: documents in a fixed order."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmlab.data import arithmetic, files, library, readers, reasoning
from llmlab.data.account import Document, Source
from llmlab.data.record_files import records
from llmlab.errors import UserError
from llmlab.files import expanded
from llmlab.record_kinds import KEYS, KINDS, TEXT

if TYPE_CHECKING:
    from llmlab.config.schema import Data

__all__ = ["RULES", "Document", "Source", "open_source"]

# Of the rules by which files become the two parts of a corpus. A run goes on by those that it began with. 1: each text is
# held out or not by itself, and files of these endings are read.
RULES = 2
FIRST = {True: (".txt", ".md", ".jsonl"), False: (".jsonl", ".json", ".csv", ".tsv")}  # of texts; of records


def open_source(cfg: Data, reads: str = TEXT, rules: int = RULES) -> Source:
    """The source that `data.source` names, of texts or of records of the kind `reads`. rules: those of a run.

    Raises UserError for an unknown name, a `data.path` that is missing, superfluous, or has nothing to read.
    """
    names = {n: k for n in KEYS if (k := getattr(cfg.fields, n)) is not None}
    if cfg.source == "arithmetic" and not (names or cfg.path or cfg.field != "text"):
        return arithmetic.source(reads)
    if cfg.source == "reasoning_gym" and not (names or cfg.path or cfg.field != "text"):
        return reasoning.source(reads, cfg.task or "", cfg.n_records)
    endings = FIRST[reads == TEXT] if rules < RULES else None
    if reads != TEXT:
        kind = KINDS[reads]
        if cfg.source != "files" or not cfg.path:
            what = "holds texts" if cfg.source != "files" else "needs a file or a folder"
            raise UserError(
                f"data={cfg.source} {what}: {kind} are read from data=FOLDER_OR_FILE ({readers.shown_endings(readers.ROWS)})"
            )
        if cfg.field != "text":
            raise UserError(f"data.field={cfg.field} is for texts; of {kind} data.fields.text=KEY names one")
        # os.path's: pathlib's raises RuntimeError for the home of a user that is not there.
        return records(expanded(cfg.path), kind, names, cfg.votes == "label_model", cfg.strict, endings)
    if names:
        first, key = next(iter(names.items()))
        raise UserError(
            f"data.fields.{first}={key} is for records, but the objective reads texts; data.field=KEY names theirs"
        )
    if cfg.source == "files":
        if not cfg.path:
            raise UserError(
                "data.path: data=files needs a file or a folder "
                f"({readers.shown_endings(readers.FORMATS)}): data.path=FOLDER_OR_FILE"
            )
        return files.files(expanded(cfg.path), cfg.field, cfg.strict, endings)
    if cfg.path:
        raise UserError(f"data.path={cfg.path} has no effect with data.source={cfg.source}: add data=files")
    if cfg.field != "text":
        raise UserError(f"data.field={cfg.field} has no effect with data.source={cfg.source}: add data=files")
    if cfg.source == "python_docs":
        return library.documentation()
    if cfg.source == "python_code":
        return library.code()
    raise UserError(
        f"data.source={cfg.source}: there is no such source (valid: python_docs, python_code, arithmetic, reasoning_gym, files)"
    )
