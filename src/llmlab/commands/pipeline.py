"""`llmlab train experiment=NAME` of an experiment with stages: each a run of its own, the next with what those before it left.

Started again it keeps the stages that are done, and goes on in the one that was interrupted.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llmlab.config.spelling import quoted, value
from llmlab.errors import UserError
from llmlab.files import write_atomic
from llmlab.pipeline import ranking, states
from llmlab.pipeline.plan import DATA, Plan, Stage
from llmlab.pipeline.plan import plan as make_plan
from llmlab.runs import lock, record

if TYPE_CHECKING:
    from llmlab.commands.eval_reward import Arguments
    from llmlab.report.scores import Asked, Row, Table
    from llmlab.runs.scores import Answered, Score

TABLE = "table.json"
SHOWN = 8  # answers of each run on the page


def main(file: Path, flags: Sequence[str], overrides: Sequence[str], config_dirs: Sequence[str]) -> int:
    """UserError for what can't be run, and for a stage that ended with an error."""
    if other := [f for f in flags if f.startswith("-") and f.partition("=")[0] not in ("--config-dir", "-cd")]:
        raise UserError(f"{other[0]}: experiment={file.stem} is several runs, of which {other[0]} is not; leave it out")
    plan = make_plan(file, overrides)
    note = states.read(plan)
    _check(plan, config_dirs)
    from llmlab.report import scores as page

    plan.folder.mkdir(parents=True, exist_ok=True)
    lock.lock(plan.folder)
    try:
        # Before anything else, as by it the folder is known to be of this experiment.
        states.write(plan, note)
        if plan.data is not None:
            _make_data(plan)
        for number, stage in enumerate(plan.stages.values(), start=1):
            # First, as a run whose pipeline was killed goes on to the end of its step and saves it.
            states.wait(stage.folder)
            how = states.state(stage)
            where = record.relative_path(stage.folder)
            said = {"done": "done before", "resume": "going on"}.get(how, "training" if stage.trains else "ranking")
            print(f"\nstage {number} of {len(plan.stages)}, {stage.name}: {said}, in {where}", flush=True)
            if how == "done":
                continue
            # A table of before is of other runs.
            for name in page.FILES:
                (plan.folder / name).unlink(missing_ok=True)
            states.begin(plan, stage, note)
            _train(plan, stage, how, config_dirs) if stage.trains else _rank(plan, stage)
        return _close(plan)
    finally:
        lock.unlock(plan.folder)


def _check(plan: Plan, config_dirs: Sequence[str]) -> None:
    """UserError, a line a problem, for words that a stage to come, or the table, would refuse only after those before it."""
    from llmlab.config import init_from
    from llmlab.runs.compose import compose

    problems: list[str] = []

    def tried(name: str, words: Sequence[str]) -> None:
        try:
            compose([init_from.normalise(w) for w in words], config_dirs)
        except UserError as e:
            # What is missing below the folder is still to be made.
            problems.extend(f"{name}: {line}" for line in str(e).splitlines() if str(plan.folder) not in line)

    for stage in plan.stages.values():
        if states.state(stage) == "done":
            continue
        tried(stage.name, stage.words if stage.trains else _reward_alone(_arguments(stage.words, stage.folder)[1]))
    tried("table", _reward_alone(_arguments(plan.table["words"], plan.folder)[1]))
    if problems:
        raise UserError("\n".join(problems))


def _reward_alone(reward: Sequence[str]) -> list[str]:
    """Words of a config that has the reward, as `llmlab eval` composes it."""
    return ["alignment=grpo", *reward]


def _make_data(plan: Plan) -> None:
    from llmlab.data import arithmetic

    if plan.data != "arithmetic":
        raise UserError(f"data: {plan.data}: there is no such data that llmlab makes for stages (valid: arithmetic)")
    folder = plan.folder / DATA
    folder.mkdir(exist_ok=True)
    for name, rows in arithmetic.staged().items():
        write_atomic(folder / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def _train(plan: Plan, stage: Stage, how: str, config_dirs: Sequence[str]) -> None:
    if how == "new":
        states.clear(stage)
    folder = quoted(str(stage.folder))
    resumed = [f"resume={folder}", *states.moved(stage)] if how == "resume" else []
    words = resumed or [*stage.words, f"hydra.run.dir={folder}"]
    code = process([*(f"--config-dir={d}" for d in config_dirs), *words])
    status = states.status(stage)
    # An error (1) leaves the status of before.
    if code == 130 or (status == "interrupted" and code != 1):
        print(f"stage {stage.name} was interrupted; the same command goes on from there", file=sys.stderr)
        raise KeyboardInterrupt
    if status != "completed":
        how_ended = f"exit code {code}" if status in (None, "interrupted") else status
        raise UserError(
            f"stage {stage.name} ended ({how_ended}); once it is mended the same command goes on from there"
        )


def process(words: Sequence[str]) -> int:
    """`llmlab train` in a process of its own, as runs leave threads, memory and a process group behind; its exit code."""
    from llmlab.sweep.point import PARENT

    command = [sys.executable, "-m", "llmlab", "train", *words]
    running = subprocess.Popen(command, env={**os.environ, PARENT: str(os.getpid())})
    while True:
        try:
            return running.wait()
        except KeyboardInterrupt:
            # The terminal has sent it to the stage too, which finishes its step and saves.
            continue


def _rank(plan: Plan, stage: Stage) -> None:
    assert stage.answers_of is not None
    a, reward = _arguments(stage.words, plan.stages[stage.answers_of].folder)
    if a.data is None:
        raise UserError(f"stage {stage.name}: name the prompts, data=FILE")
    _, answers = _scored(a, reward)
    n = ranking.write(stage.folder / states.RANKED, Path(a.data), answers, a.prompts)
    print(f"{n:,} prompts with ranked answers, by {' '.join(reward)}")


def _arguments(words: Sequence[str], run: Path) -> tuple[Arguments, list[str]]:
    """What the words of `llmlab eval` ask of a run, and those that are of the reward."""
    from llmlab.commands.arguments import parse
    from llmlab.commands.eval_reward import Arguments, of_reward

    reward = [w for w in words if of_reward(w)]
    # Paths are in quotes, for Hydra.
    rest = [f"{w.partition('=')[0]}={value(w)}" for w in words if w not in reward]
    return parse([*rest, f"run={run}"], Arguments, "eval"), reward


def _scored(a: Arguments, reward: Sequence[str]) -> tuple[Score, list[Answered]]:
    from llmlab.commands.eval_reward import scored

    score, answers, _ = scored(a, reward)
    return score, answers


def _close(plan: Plan) -> int:
    """The table: of the runs as they are now, unless it is there."""
    from llmlab.json_files import read_json
    from llmlab.report import scores as page

    kept: Table | None = None
    if (plan.folder / TABLE).is_file():
        kept = read_json(plan.folder / TABLE, page.Table)
    if kept is not None and kept["asked"] == _asked(plan):
        table, files = kept, [plan.folder / name for name in page.FILES]
    else:
        table, shown = _table(plan)
        files = page.write(plan.folder, table, shown)
    print()
    print("\n".join([*page.text(table), ""]))
    print("\n".join(f"wrote {record.relative_path(f)}" for f in files))
    return 0


def _asked(plan: Plan) -> Asked:
    return {"words": plan.table["words"], "digests": dict(plan.digests)}


def _table(plan: Plan) -> tuple[Table, list[tuple[str, list[Answered]]]]:
    rows: list[Row] = []
    shown = []
    best = plan.table.get("best_of")
    reference = plan.stages[plan.table["reference"]].folder
    for name in plan.table["rows"]:
        stage = plan.stages[name]
        a, reward = _arguments(plan.table["words"], stage.folder)
        a.reference = str(reference)
        if best is not None and best["of"] == name:
            a.best_of, a.judge = best["n"], str(plan.stages[best["judge"]].folder)
        print(f"table: {name}", flush=True)
        score, answers = _scored(a, reward)
        row: Row = {"name": name, "run": name, "reward": score["reward"], "answers": score["answers"]}
        if "win_rate" in score:
            row["win_rate"] = score["win_rate"]
        if "kl" in score:
            row["kl"] = score["kl"]
        rows.append(row)
        shown.append((name, answers[:: score["samples"]][:SHOWN]))
        if "best_of" in score:
            of = score["best_of"]
            more: Row = {"name": f"best of {of['n']}", "run": name, "reward": of["reward"], "answers": score["answers"]}
            if "win_rate" in of:
                more["win_rate"] = of["win_rate"]
            if best is not None and best["of"] == plan.table["reference"]:
                more["kl_at_most"] = of["kl_at_most"]
            rows.append(more)
    notes = [
        f"true reward: {' '.join(reward)}, of {score['samples']} answers to each of {score['prompts']} prompts; in brackets "
        "95 % intervals over prompts.",
        f"KL, nats an answer, and win rate, ties as half, are to {plan.table['reference']}.",
    ]
    if best is not None:
        notes.append(
            f"best of {best['n']}: answers of {best['of']}, of which {best['judge']} chooses; of its KL a bound is known."
        )
    commands = [
        shlex.join(["llmlab", "train", *(w.replace(f"{plan.folder}/", "") for w in s.words)])
        for s in plan.stages.values()
        if s.trains
    ]
    title = f"experiment={plan.name}"
    return {"title": title, "asked": _asked(plan), "commands": commands, "notes": notes, "rows": rows}, shown
