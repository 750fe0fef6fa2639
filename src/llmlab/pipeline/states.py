"""What has been done of a pipeline, in its folder, and what is left: the note of each stage beside the run's own record."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import TypedDict

from llmlab.errors import UserError
from llmlab.files import write_atomic
from llmlab.json_files import read_json
from llmlab.pipeline.plan import Plan, Stage
from llmlab.runs import lock, record

NAME = "pipeline.json"
RANKED = "ranked.jsonl"
PATIENCE = 60.0  # seconds in which a run ends whose pipeline was killed: it finishes its step and saves


class Note(TypedDict):
    """pipeline.json: of each stage that has begun the digest of its words."""

    experiment: str
    stages: dict[str, str]


def read(plan: Plan) -> Note:
    """The note of a folder. UserError where it holds another experiment, or stages of other words."""
    try:
        note: Note = read_json(plan.folder / NAME, Note)
    except FileNotFoundError:
        if plan.folder.exists() and any(p.name != lock.LOCK for p in plan.folder.iterdir()):
            raise UserError(f"{plan.folder} has other files; name another folder, hydra.run.dir=FOLDER") from None
        return {"experiment": plan.name, "stages": {}}
    if note["experiment"] != plan.name:
        raise UserError(f"{plan.folder} is of experiment={note['experiment']}; name another, hydra.run.dir=FOLDER")
    other = [n for n, digest in note["stages"].items() if plan.digests.get(n) != digest and (plan.folder / n).exists()]
    if other:
        raise UserError(
            f"{record.relative_path(plan.folder)} has stages of other words ({', '.join(other)}); name another folder, "
            "hydra.run.dir=FOLDER, or delete theirs"
        )
    return note


def begin(plan: Plan, stage: Stage, note: Note) -> None:
    note["stages"][stage.name] = plan.digests[stage.name]
    write(plan, note)


def write(plan: Plan, note: Note) -> None:
    write_atomic(plan.folder / NAME, json.dumps(note, indent=1) + "\n")


def state(stage: Stage) -> str:
    """What is to be done of a stage: "new", "resume" or nothing, "done"."""
    if not stage.trains:
        return "done" if (stage.folder / RANKED).is_file() else "new"
    if not (stage.folder / record.NAME).is_file():
        return "new"
    if status(stage) == "completed":
        return "done"
    return "resume" if any((stage.folder / "checkpoints").glob("step=*/manifest.json")) else "new"


def status(stage: Stage) -> str | None:
    try:
        found: str | None = record.read(stage.folder).get("status")
    except UserError:
        return None
    return found


def moved(stage: Stage) -> list[str]:
    """Words that tell a run that goes on where its data and finished models lie, of those that are not where its record says,
    as its folder was moved with theirs."""
    fields = record.read(stage.folder)
    typed = dict(w.split("=", 1) for w in stage.words)

    def gone(path: str | None) -> bool:
        return path is not None and not Path(path).exists()

    places = {"data.path": typed.get("data.path")} if gone((fields.get("data") or {}).get("path")) else {}
    for role, about in (fields.get("models") or {}).items():
        # One that trains is in the run's own checkpoint.
        if not about["trains"] and gone(about.get("weights")):
            places[f"models.{role}"] = typed.get(f"models.{role}", typed.get("init_from"))
    return [f"{key}={place}" for key, place in places.items() if place is not None]


def wait(folder: Path) -> None:
    """Until no process trains there, one whose pipeline was killed for instance. UserError if it goes on."""
    deadline = time.monotonic() + PATIENCE
    while lock.is_locked(folder):
        if time.monotonic() > deadline:
            raise UserError(f"{folder}: another process is training in this run folder")
        time.sleep(0.1)


def clear(stage: Stage) -> None:
    """Remove what a run left that can't be gone on with."""
    if stage.folder.exists():
        shutil.rmtree(stage.folder)
