"""The data card of a prepared corpus: a page beside its arrays that says what it was made of and what was left out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmlab.data.account import QUARANTINE, Read, Skipped, size

NAME = "README.md"


def write(folder: Path, manifest: dict[str, Any], place: str) -> None:
    """Write the card of a corpus. `place`: the data as they were named."""
    (folder / NAME).write_text("\n".join(_lines(manifest, place)) + "\n", encoding="utf-8")


def _lines(manifest: dict[str, Any], place: str) -> list[str]:
    read: Read = manifest["read"]
    parts = [
        [part, *(f"{manifest[key][part]:,}" for key in ("documents", "bytes", "tokens"))] for part in manifest["tokens"]
    ]
    facts = [
        ["files read", f"{read['files']:,}"],
        ["documents", f"{read['documents']:,}"],
        ["text", size(read["bytes"])],
    ]
    if "longest" in read:
        facts.append(["longest document", f"{read['longest']['name']} ({size(read['longest']['bytes'])})"])
    facts += [[f"files whose text is under {key}", f"{n:,}"] for key, n in read.get("fields", {}).items()]
    facts += [["tokens in the vocabulary", f"{manifest['vocab_size']:,}"], ["split", manifest["split"]]]
    facts.append(["fingerprint", manifest["fingerprint"]])
    lines = [f"# {place}", "", *_table(["", ""], facts), "", *_table(["part", "documents", "bytes", "tokens"], parts)]
    if read["skipped"]:
        lines += ["", "## Skipped", "", *_reasons(read["skipped"])]
    if broken := read.get("quarantined"):
        said = f"{broken['count']:,} of {broken['of']:,} documents can't be read; {QUARANTINE} has each."
        lines += ["", "## Quarantine", "", said, "", *_reasons(broken["reasons"])]
    for filtered in read.get("filters", ()):
        dropped = f"{filtered['dropped']:,} of {filtered['seen']:,} documents dropped."
        lines += ["", f"## Filter {filtered['filter']}", "", dropped]
        samples = [[e["name"], e["reason"], " ".join(e["text"].split())] for e in filtered["examples"]]
        lines += ["", *_table(["document", "reason", "begins"], samples)] if samples else []
    if manifest["notes"]:
        lines += ["", "## Notes", "", *(f"- {note}" for note in manifest["notes"])]
    return lines


def _reasons(found: Sequence[Skipped]) -> list[str]:
    return _table(
        ["reason", "number", "the first"], [[s["reason"], f"{s['count']:,}", ", ".join(s["names"][:3])] for s in found]
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    cells = [head, ["---"] * len(head), *([c.replace("|", "\\|") for c in row] for row in rows)]
    return [f"| {' | '.join(row)} |" for row in cells]
