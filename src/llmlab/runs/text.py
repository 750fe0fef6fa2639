"""The text of a run, found again where it is resumed or measured: by its fingerprint, under the run's own tokenizer."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

from llmlab.config.spec import PartSpec
from llmlab.data import cache
from llmlab.data import fingerprint as fingerprints
from llmlab.data.corpus import Corpus
from llmlab.data.fingerprint import OtherText
from llmlab.data.prepare import cached, prepare
from llmlab.errors import UserError
from llmlab.files import absolute, expanded, sha256, write_atomic
from llmlab.json_files import read_json
from llmlab.runs import files as run_files
from llmlab.runs import record

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from llmlab.config import schema


class Exported(TypedDict):
    data: NotRequired[record.Text]


def recorded_fields(folder: Path) -> Mapping[str, Any]:
    """The fields of a run's record that are about its text and its tokenizer, or what an export has of them."""
    if (folder / run_files.EXPORT).exists():
        exported: Exported = read_json(folder / run_files.EXPORT, Exported)
        return {"data": exported.get("data") or {}}
    return record.read(folder)


@dataclass(frozen=True)
class Trained:
    """A run in `folder` by what its text and its tokenizer were made with. special: names of the tokens that its objective
    needs; reads: "text" or a kind of records. filters: of documents, by name, in their order. fields: of its record, or what an
    export has of them (`recorded_fields`)."""

    folder: Path
    data: schema.Data
    tokenizer: schema.Tokenizer
    special: tuple[str, ...]
    fields: Mapping[str, Any]
    reads: str = "text"
    filters: Mapping[str, PartSpec] = field(default_factory=dict)


def corpus(run: Trained, advice: str) -> Corpus:
    """The corpus that a run was trained on. UserError where the text is gone or is another now, with what
    has changed and the `advice`, in which {text} stands for where it lies.
    """
    there: dict[str, Any] = run.fields.get("data") or {}
    folder, settings = run.folder, run.data
    if settings.source == "files" and there.get("path"):
        # The path at which the record found it last, which may be another than config.yaml's.
        settings = replace(settings, path=there["path"])
    where = f"data.path={settings.path}" if settings.source == "files" else f"data={settings.source}"
    if settings.source == "files" and not expanded(settings.path or "").exists():
        raise UserError(
            f"{folder}: its text is gone: {where}: there is no such file or folder; {_put(advice, settings)}"
        )
    try:
        return prepare(
            settings,
            run.tokenizer,
            run.special,
            home=folder,
            text=there.get("fingerprint"),
            reads=run.reads,
            filters=run.filters,
            rules=there.get("rules", 1),
        )
    except OtherText as e:
        before = fingerprints.read(cache.root() / "corpora" / there["corpus"]) if there.get("corpus") else None
        # Which documents came, went or changed, where the cache or the record still knows those of before.
        what = fingerprints.changes(there.get("documents") if before is None else before, e.documents)
        if settings.source != "files":
            what += f", as this Python is {sys.version.split()[0]} and it was another"
        if run.filters:
            what += f"; filter=[{','.join(run.filters)}] decides which are kept"
        raise UserError(
            f"{folder}: {where} is not the text that it was trained on: {what} (fingerprint {e.fingerprint[:12]}, not "
            f"{there['fingerprint'][:12]}); {_put(advice, settings)}"
        ) from None


def _put(advice: str, settings: schema.Data) -> str:
    return advice.replace("{text}", str(settings.path if settings.source == "files" else settings.source))


def fields(corpus: Corpus, cfg: DictConfig) -> dict[str, Any]:
    """Fields of a record by which a run's text is found again."""
    path = None if cfg.data.path is None else absolute(cfg.data.path)
    return {
        "fingerprint": corpus.fingerprint,
        "source": cfg.data.source,
        "path": path if cfg.data.source == "files" else None,
        "documents": sum(corpus.manifest["documents"].values()),
        "corpus": corpus.folder.name,
        "rules": corpus.manifest["rules"],
    }


def repair(run: Trained) -> list[str]:
    """Bring back what is damaged of a run's tokenizer from the cache, where its own corpus still is; a line for each file.

    UserError where it can't be. In older records there are no hashes: there the files need only be readable.
    """
    folder, fields = run.folder, run.fields
    wrong = _wrong(folder, fields)
    if not wrong:
        return []
    there: dict[str, Any] = fields.get("data") or {}
    named = cache.root() / "corpora" / there["corpus"] if there.get("corpus") else None
    lines = []
    for at in (
        c
        for c in (named, cached(run.data, run.tokenizer, run.special, run.reads, run.filters, there.get("rules", 1)))
        if c is not None
    ):
        for name in [n for n in wrong if _is_it(at, n, there, fields)]:
            # The bytes of the file, not its content saved anew: the record's hash is of the bytes.
            write_atomic(folder / name, (at / name).read_bytes())
            lines.append(f"{folder / name} {wrong.pop(name)}: brought back from the cache")
    for name, why in wrong.items():
        raise UserError(f"{folder / name} {why}, and the cache no longer has it; bring it back from a copy of the run")
    return lines


def _wrong(folder: Path, fields: Mapping[str, Any]) -> dict[str, str]:
    if fields.get("files"):
        return run_files.damaged(folder, (*run_files.TOKENIZER, *run_files.BESIDE), fields)
    from llmlab.data.tokenizer import Tokenizer

    try:
        Tokenizer.load(folder)
    except UserError as e:
        return dict.fromkeys(run_files.TOKENIZER, f"can't be used ({e})")
    return {}


def _is_it(corpus: Path, name: str, there: Mapping[str, Any], fields: Mapping[str, Any]) -> bool:
    """True if a file of a cached corpus is the one that the run wrote."""
    file = corpus / name
    if not file.is_file():
        return False
    if fields.get("files"):
        return sha256(file) == fields["files"].get(name)
    try:
        return cache.check(corpus).get("fingerprint") == there.get("fingerprint")
    except cache.Damaged:
        return False
