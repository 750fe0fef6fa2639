"""From a file with stages and what was typed to the words of each stage. No torch."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

from llmlab.config.spelling import quoted, value
from llmlab.errors import UserError, near
from llmlab.json_files import check_shape

TABLE, DATA = "table", "data"
# Keys that are typed for all stages that train: none of them says what a single one learns.
COMMON = ("seed", "trainer", "precision", "strategy", "placement", "logger", "train.sample")
OWN = ("hydra.run.dir", "resume", "experiment")
PLACE = re.compile(r"\{(\w+)\}")


class BestOf(TypedDict):
    of: str
    n: int
    judge: str


class Closing(TypedDict):
    """The table at the end. rows: stages, in order; words: of `llmlab eval`, for all of them."""

    rows: list[str]
    reference: str
    words: list[str]
    best_of: NotRequired[BestOf]


class Ranks(TypedDict):
    """A stage that has a run answer prompts and ranks its answers by a reward; words: of `llmlab eval`."""

    answers_of: str
    words: list[str]


class File(TypedDict):
    data: NotRequired[str]
    common: list[str]
    stages: dict[str, Any]
    table: Closing


@dataclass(frozen=True)
class Stage:
    """A stage. words: as they are typed, without its folder. begins_with: names of the stages that it needs. answers_of: the
    run that answers, of one that ranks answers; None of one that trains."""

    name: str
    folder: Path
    words: tuple[str, ...]
    begins_with: tuple[str, ...]
    answers_of: str | None = None

    @property
    def trains(self) -> bool:
        return self.answers_of is None


@dataclass(frozen=True)
class Plan:
    name: str
    folder: Path
    data: str | None
    stages: Mapping[str, Stage]
    table: Closing
    digests: Mapping[str, str] = field(default_factory=dict)  # of a stage, with those of what it begins with


def plan(file: Path, overrides: Sequence[str]) -> Plan:
    """The stages. UserError, a line a problem, for words that are of no stage, and for a file that names none."""
    content = _content(file)
    name, names = file.stem, list(content["stages"])
    folder = Path(_typed(overrides, "hydra.run.dir") or _typed(overrides, "resume") or f"outputs/{name}").absolute()
    common, of_stage, problems = _sorted(overrides, names)
    if problems:
        raise UserError("\n".join(problems))
    made: dict[str, Stage] = {}
    places = {DATA: folder / DATA} if content.get("data") else {}
    for stage, about in content["stages"].items():
        ranks = cast(Ranks, about) if isinstance(about, dict) else None
        words = [*ranks["words"]] if ranks else [*content["common"], *about, *common]
        whole = _once([*words, *of_stage.get(stage, ())])
        needs = {m for w in whole for m in PLACE.findall(w)} | ({ranks["answers_of"]} if ranks else set())
        if unknown := sorted(needs - {*made, *places}):
            raise UserError(f"{file}: stage {stage} begins with {{{unknown[0]}}}, which is no stage before it")
        known = {**places, **{n: s.folder for n, s in made.items()}}
        begins = tuple(n for n in made if n in needs)
        placed = tuple(_placed(w, known) for w in whole)
        made[stage] = Stage(stage, folder / stage, placed, begins, ranks["answers_of"] if ranks else None)
    table = content["table"]
    known = {**places, **{n: s.folder for n, s in made.items()}}
    words = [_placed(w, known) for w in _once([*table["words"], *of_stage.get(TABLE, ())])]
    best = table.get("best_of")
    for row in (*table["rows"], table["reference"], *((best["of"], best["judge"]) if best else ())):
        if row not in made:
            raise UserError(f"{file}: table: there is no stage {row!r}; {near(row, made)}")
    return Plan(name, folder, content.get("data"), made, {**table, "words": words}, _digests(made, content.get("data")))


def _content(file: Path) -> File:
    from omegaconf import OmegaConf

    try:
        plain: Any = OmegaConf.to_container(OmegaConf.load(file))
    except Exception as e:  # YAML's own errors are of many classes
        raise UserError(f"{file}: {' '.join(str(e).split())[:200]}") from None
    found: File = check_shape({"common": [], **plain}, File, str(file))
    for stage, about in found["stages"].items():
        if isinstance(about, dict):
            check_shape(about, Ranks, f"{file}: stages.{stage}")
        elif not isinstance(about, list) or not all(isinstance(w, str) and "=" in w for w in about):
            raise UserError(f"{file}: stages.{stage} must be a list of words, as [alignment=sft, 'init_from={{base}}']")
    return found


def _sorted(overrides: Sequence[str], names: Sequence[str]) -> tuple[list[str], dict[str, list[str]], list[str]]:
    """(words of all stages, those of each, a line for each that is of none)."""
    common: list[str] = []
    of_stage: dict[str, list[str]] = {}
    problems = []
    for word in overrides:
        key, _, _ = word.partition("=")
        first, dot, rest = word.partition(".")
        if key in OWN:
            continue
        if dot and first in (*names, TABLE) and "=" in rest:
            of_stage.setdefault(first, []).append(rest)
        elif key in COMMON or any(key.startswith(f"{c}.") for c in COMMON):
            common.append(word)
        else:
            problems.append(
                f"{word}: say of which stage, {names[0]}.{word}; the stages are {', '.join((*names, TABLE))}"
            )
    return common, of_stage, problems


def _typed(overrides: Sequence[str], key: str) -> str | None:
    found = [value(o) for o in overrides if o.startswith(f"{key}=")]
    return found[-1] if found else None


def _once(words: Iterable[str]) -> list[str]:
    """The words, of those of one key the last."""
    return list({w.partition("=")[0]: w for w in words}.values())


def _placed(word: str, folders: Mapping[str, Path]) -> str:
    """The word with the folders of the stages that it names."""
    if not PLACE.search(word):
        return word
    key, _, text = word.partition("=")
    return f"{key}={quoted(PLACE.sub(lambda m: str(folders[m[1]]), text))}"


def _digests(made: Mapping[str, Stage], data: str | None) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, stage in made.items():
        # Not the folder, which may have been moved.
        words = [w.replace(str(stage.folder.parent), "") for w in stage.words]
        whole = json.dumps([data, words, stage.answers_of, [found[n] for n in stage.begins_with]])
        found[name] = hashlib.sha256(whole.encode()).hexdigest()[:16]
    return found
