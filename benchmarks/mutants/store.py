"""Outcomes on disk, a line for each as it comes, so that a run which is stopped goes on where it was."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from mutants import mutant
from mutants.mutant import Mutant
from mutants.targets import ROOT


@dataclass(frozen=True)
class Outcome:
    """The outcome of a mutant.

    `by`: "check" or "tests", which was run on it; `killed`: one failed, crashed or took too long; `how`: that one, with its
    message; `key`: a hash of all that the outcome depends on.
    """

    id: str
    by: str
    killed: bool
    how: str
    seconds: float
    key: str


class Store:
    """The outcomes and baselines in one folder. forget: ignore the outcomes of earlier runs."""

    def __init__(self, folder: Path, forget: bool = False):
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "outcomes.jsonl"
        self.folder = folder
        self._known: dict[tuple[str, str, str], Outcome] = {}
        if self.path.exists() and not forget:
            for line in self.path.read_text(encoding="utf-8").split("\n")[:-1]:  # the last may be half-written
                try:
                    found = Outcome(**json.loads(line))
                except ValueError:
                    continue
                self._known[found.id, found.by, found.key] = found

    def get(self, id: str, by: str, key: str) -> Outcome | None:
        return self._known.get((id, by, key))

    def add(self, outcome: Outcome) -> None:
        self._known[outcome.id, outcome.by, outcome.key] = outcome
        broken = self.path.exists() and self.path.stat().st_size and self.path.read_bytes()[-1:] != b"\n"
        with self.path.open("a", encoding="utf-8") as file:
            file.write(("\n" if broken else "") + json.dumps(asdict(outcome)) + "\n")

    def baseline(self, name: str) -> list[dict] | None:
        """The lines that `keep` has written under a name; None if there are none."""
        path = self.folder / f"{name}.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def keep(self, name: str, lines: list[dict]) -> None:
        path = self.folder / f"{name}.json"
        path.with_suffix(".part").write_text(json.dumps(lines), encoding="utf-8")
        path.with_suffix(".part").replace(path)


class Listed:
    """Lists of all mutants of files, kept in a folder: to make them takes 2 minutes of CPU for all groups."""

    def __init__(self, folder: Path):
        self.folder = folder / "lists"
        self.folder.mkdir(parents=True, exist_ok=True)
        made_by = (Path(mutant.__file__), Path(mutant.__file__).with_name("operators.py"))
        self.maker = hashlib.sha256(b"".join(p.read_bytes() for p in made_by)).hexdigest()

    def mutants_of(self, file: str, source: str) -> list[Mutant]:
        path = self.folder / f"{hashlib.sha256(f'{self.maker} {file} {source}'.encode()).hexdigest()[:24]}.json"
        if not path.exists():
            found = [asdict(m) for m in mutant.mutants_of(file, source)]
            path.with_suffix(".part").write_text(json.dumps(found), encoding="utf-8")
            path.with_suffix(".part").replace(path)
        return [Mutant(**m) for m in json.loads(path.read_text(encoding="utf-8"))]


def key_of(paths: Iterable[Path], *more: str) -> str:
    """A hash of files, those of folders included, and of words."""
    digest = hashlib.sha256("\0".join(more).encode())
    for path in paths:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.suffix in (".py", ".json", ".toml", ".yaml"):
                digest.update(file.relative_to(ROOT).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]
