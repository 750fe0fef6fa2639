"""Sources of text: documents in a fixed order."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from llmlab.data import files, library
from llmlab.data.account import Document, Source
from llmlab.errors import UserError

if TYPE_CHECKING:
    from llmlab.config.schema import Data

__all__ = ["Document", "Source", "open_source"]


def open_source(cfg: Data) -> Source:
    """The source that `data.source` names.

    Raises UserError for an unknown name, a `data.path` that is missing, superfluous, or has nothing to read.
    """
    if cfg.source == "files":
        if not cfg.path:
            raise UserError(
                "data.path: data=files needs a file or a folder (.txt, .md, .jsonl): data.path=FOLDER_OR_FILE"
            )
        return files.files(Path(os.path.expanduser(cfg.path)), cfg.field)
    if cfg.path:
        raise UserError(f"data.path={cfg.path} has no effect with data.source={cfg.source}: add data=files")
    if cfg.field != "text":
        raise UserError(f"data.field={cfg.field} has no effect with data.source={cfg.source}: add data=files")
    if cfg.source == "python_docs":
        return library.documentation()
    if cfg.source == "python_code":
        return library.code()
    raise UserError(f"data.source={cfg.source}: there is no such source (valid: python_docs, python_code, files)")
