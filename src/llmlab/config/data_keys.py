"""Keys of the data and of the tokenizer that don't fit each other, the objective, or what lies on the disk."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from llmlab.config import init_from, learned, rollouts
from llmlab.errors import UserError
from llmlab.files import expanded
from llmlab.record_kinds import KEYS, KINDS

if TYPE_CHECKING:
    from llmlab.config.composed import Composed


def problems(composed: Composed) -> list[str]:
    """Everything that is wrong with the keys of the data and the tokenizer, a line each."""
    data, tokenizer = composed.cfg.data, composed.cfg.tokenizer
    lines = []
    kind = KINDS.get(learned.reads(composed.cfg))
    if kind is None:
        given = [k for k in KEYS if data.fields[k] is not None]
        lines += [
            f"data.fields.{k} is of records, but the objective reads texts, which data.field names" for k in given[:1]
        ]
    elif data.separate_documents:
        lines.append(f"data.separate_documents=true: {kind} are kept apart anyway; leave it out")
    elif data.field != "text":
        lines.append(f"data.field={data.field} is of texts; of {kind} data.fields.{kind.fields[0].name}=KEY names one")
    if data.votes != "majority" and (kind is None or all(f.shape != "votes" for f in kind.fields)):
        lines.append(
            f"data.votes={data.votes} is of labelled records, but the objective reads {kind or 'texts'}; leave it out"
        )
    if data.source == "files":
        if data.path is None:
            lines.append("data.path must be given with data=files: a folder or a file")
        # exists() follows a link, and says of one to nothing that there is no file.
        elif os.path.islink(path := expanded(data.path)) and not os.path.exists(path):
            lines.append(f"data.path={data.path} is a link to {os.readlink(path)}, which is not there")
        # A named pipe would block whoever opens it until someone writes.
        elif os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path)):
            lines.append(f"data.path={data.path} is a pipe, a socket or a device; give a file or a folder")
        # os.path answers False for any text; pathlib's exists() raises for a name of 5,000 letters (Python 3.11).
        elif not os.path.exists(path):
            lines.append(f"data.path={data.path}: there is no such file or folder{init_from.similar(data.path)}")
    elif data.path is not None and "data.path" in composed.keys:
        lines.append(f"data.path is read with data=files only, but data={data.source}; add data=files")
    if data.source == "reasoning_gym":
        if data.task is None:
            lines.append("data.task must be given with data=reasoning_gym: the name of a task, as leg_counting")
    elif made := [key for key in ("data.task", "data.n_records") if key in composed.keys]:
        lines.append(f"{made[0]} is of data=reasoning_gym, but data={data.source}; add data=reasoning_gym")
    if data.source != "files" and "data.field" in composed.keys:
        lines.append(f"data.field is read with data=files only, but data={data.source}; add data=files")
    elif not data.field:
        lines.append("data.field must name the key of a row's text, as data.field=text")
    if tokenizer.kind in ("char", "file") and "tokenizer.vocab_size" in composed.keys:
        has = "a token for each character of the text" if tokenizer.kind == "char" else "the tokens of its file"
        lines.append(
            f"tokenizer.vocab_size: tokenizer={tokenizer.kind} has {has}, so nothing would change; leave it out"
        )
    if data.bos and tokenizer.kind in ("bpe", "char"):
        lines.append(f"data.bos=true: tokenizer={tokenizer.kind} has no bos; leave it out")
    if tokenizer.kind == "file":
        if tokenizer.path is None:
            lines.append("tokenizer.path must be given with tokenizer=file: a tokenizer.json")
        elif os.path.isdir(expanded(tokenizer.path)):
            if not os.path.isfile(expanded(os.path.join(tokenizer.path, "tokenizer.json"))):
                lines.append(f"tokenizer.path={tokenizer.path}: the folder has no tokenizer.json")
        elif not os.path.isfile(expanded(tokenizer.path)):
            lines.append(f"tokenizer.path={tokenizer.path}: there is no such file{init_from.similar(tokenizer.path)}")
    elif tokenizer.path is not None and "tokenizer.path" in composed.keys:
        lines.append(
            f"tokenizer.path is read with tokenizer=file only, but tokenizer={tokenizer.kind}; add tokenizer=file"
        )
    return lines


def require_source(composed: Composed) -> None:
    """UserError where the objective reads records and the data are texts: of a run alone, as a model can be built without."""
    cfg = composed.cfg
    kind = KINDS.get(learned.reads(cfg))
    # A resumed run has its own data, which the command line need not name.
    if kind is not None and cfg.data.source not in ("files", "arithmetic", "reasoning_gym") and not cfg.resume:
        raise UserError(
            f"data={cfg.data.source} holds texts, but {learned.typed(cfg)} reads {kind}: "
            "data=FOLDER_OR_FILE (.jsonl, .csv, .parquet, ...)"
        )
    rollouts.require_reward(cfg)
