"""`llmlab train`: what was typed -> a checked config -> a run in a folder of its own, placed by Hydra.

Problems are found before torch is imported. With -m each point of the sweep is a process of its own.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from llmlab import ranks
from llmlab.config import init_from, stages
from llmlab.errors import UserError
from llmlab.registry import near

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from llmlab.config.composed import Composed


T = TypeVar("T")
# Hydra's flags that are passed on, and how many values follow each. Others of its
# own, as --config-name and --experimental-rerun, would go around the checks here.
FLAGS = {
    "-m": 0, "--multirun": 0, "--cfg": 1, "-c": 1, "--package": 1, "-p": 1, "--resolve": 0, "--info": 1, "-i": 1,
    "--config-dir": 1, "-cd": 1, "--shell-completion": 0, "-sc": 0,
}  # fmt: skip
CONFIG_DIR = ("--config-dir", "-cd")
VALUES = {
    **dict.fromkeys(("--cfg", "-c"), ("job", "hydra", "all")),
    **dict.fromkeys(("--info", "-i"), ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")),
}
SHOW = frozenset({"--cfg", "-c", "--info", "-i"})  # these print and train nothing
WIDTH = 118  # of the help


def main(argv: Sequence[str]) -> int | None:
    """Compose, check, run. UserError, a line a problem, if something is wrong."""
    # Threads that wait for each other spin for 0.1 ms, not 10: on a shared machine long spinning costs up to nine tenths.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    if "LLMLAB_SWEEP_PARENT" in os.environ:
        from llmlab.sweep.point import follow_parent

        follow_parent()
    # Hydra's own help prints the whole composed config.
    if "-h" in argv or "--help" in argv:
        print(usage(argv))
        return 0
    flags, overrides = split(argv)
    folders = [flags[i + 1] for i, f in enumerate(flags) if f in CONFIG_DIR]
    for folder in folders:
        if not Path(folder).is_dir():
            raise UserError(f"--config-dir {folder}: there is no such folder")
    # Before anything is checked: a line that is still being typed is rarely right.
    if "-sc" in flags or "--shell-completion" in flags:
        from llmlab.commands.hydra_completion import offer

        offer(lambda: _app(flags, overrides, folders, lambda _: None))
        return 0
    for override in overrides:
        key, _, value = override.partition("=")
        if key in ("hydra.run.dir", "hydra.sweep.dir") and not value.strip("'\" "):
            raise UserError(f"{override}: name a folder, or leave it out")
    if (file := stages.file_of(overrides, folders)) is not None:
        from llmlab.commands import pipeline

        return pipeline.main(file, flags, overrides, folders)
    overrides = [init_from.normalise(o) for o in resumed(overrides)]
    if "-m" in flags or "--multirun" in flags:
        return _sweep(flags, overrides, folders)
    from llmlab.config import data_keys
    from llmlab.runs.compose import compose

    composed = compose(overrides, folders)
    data_keys.require_source(composed)
    return _run(flags, composed, folders)


def split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Hydra's flags with their values, and the overrides."""
    flags: list[str] = []
    overrides: list[str] = []
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        if not word.startswith("-"):
            overrides.append(word)
        elif name not in FLAGS:
            follows = rest[0] if rest and not equals and rest[0][0:1] != "-" and "=" not in rest[0] else None
            raise UserError(f"{name}: there is no such flag; {_instead(name, value if equals else follows)}")
        elif FLAGS[name] == 0 or equals:
            flags += [name, value] if equals else [name]
        elif not rest:
            raise UserError(f"{name} needs a value")
        else:
            flags += [name, rest.pop(0)]
        if name in VALUES and flags[-2:][0] == name and flags[-1] not in VALUES[name]:
            raise UserError(f"{name} {flags[-1]}: there is no such thing to show; {near(flags[-1], VALUES[name])}")
    return flags, overrides


def _instead(flag: str, value: str | None) -> str:
    """Advice for a flag that is none."""
    from dataclasses import fields

    from llmlab.config import guess, schema
    from llmlab.config.choices import groups

    said = guess.spelled(flag, value, [*groups(), *(f.name for f in fields(schema.root()))])
    return said or near(flag, [*FLAGS, "--help"])


def resumed(overrides: Sequence[str]) -> list[str]:
    """With resume=RUN the run folder is RUN; everything else about RUN is in it."""
    from llmlab.config import spelling
    from llmlab.runs import newest

    overrides = [_latest(o) if o.partition("=")[2] in newest.WORDS else o for o in overrides]
    typed = dict(o.partition("=")[::2] for o in overrides)
    run = spelling.value(f"resume={typed['resume']}") if typed.get("resume") else ""
    if run == "" and "resume" in typed:
        raise UserError("resume= names no folder; resume=RUN goes on with a run, resume=latest with the newest")
    if run in ("", "null") or "hydra.run.dir" in typed:
        return list(overrides)
    if not Path(run).is_dir():
        raise UserError(f"resume={run}: there is no such run folder")
    if not Path(run, "run.json").is_file():
        raise UserError(f"resume={run}: there is no run.json in it; resume=RUN names the folder of a run")
    return [*overrides, f"hydra.run.dir={spelling.quoted(str(Path(run).resolve()))}"]


def _latest(override: str) -> str:
    """resume=latest, init_from=latest, init_from.embedding=latest and models.ROLE=latest with the folder that is meant; any
    other override as it is."""
    from llmlab.config import spelling
    from llmlab.runs import newest

    key, _, word = override.partition("=")
    if (
        not (key in ("resume", "init_from", *init_from.TYPED.values()) or key.startswith("models."))
        or (folder := newest.resolve_run(word, key)) == word
    ):
        return override
    return f"{key}={spelling.quoted(str(folder))}"


def _app(
    flags: Sequence[str], overrides: Sequence[str], folders: Sequence[str], task: Callable[[DictConfig], T]
) -> list[T]:
    """Run Hydra's entry point on these arguments; `task` sees the arguments that were really typed."""
    import hydra

    from llmlab.config import store
    from llmlab.config.model_files import conf_dir

    store.declare()
    # Else hydra.main prints an exception in its own words and ends the process with code 1.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    typed = sys.argv
    # hydra.main returns None, whatever its function returns, as a sweep would call it many times.
    results: list[T] = []
    failures: list[Exception] = []

    def run(cfg: DictConfig) -> T | None:
        # Lightning starts a run's other ranks with sys.argv again
        # (subprocess_script.py), so that it has to be what was typed.
        sys.argv = typed
        try:
            results.append(task(cfg))
        except Exception as e:  # Hydra would print a line of its own
            failures.append(e)
            return None
        return results[-1]

    # A job is named after the file of its function, which here is `train`.
    words = [*overrides, "hydra.job.name=llmlab"]
    try:
        if not flags and not any(o.lstrip("+").startswith("hydra.mode") for o in overrides):
            _run_once(words, run)
        else:
            sys.argv = [typed[0], *flags, *words]  # which hydra.main reads
            # Without version_base Hydra 1.3 behaves as 1.1: it warns, and changes the current folder to the run's.
            hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")(run)()
    except OSError as e:
        raise UserError(f"hydra.run.dir={e.filename}: no run folder can be made there: {e.strerror}") from e
    finally:
        sys.argv = typed
    if failures:
        raise failures[0]
    return results


def _run_once(overrides: list[str], run: Callable[[DictConfig], object]) -> None:
    """What hydra.main does for a single run. It composes all of the config first to look for a mode, which takes 0.15 s."""
    from hydra import version
    from hydra._internal.hydra import Hydra
    from hydra._internal.utils import create_config_search_path
    from hydra.core.global_hydra import GlobalHydra

    from llmlab.config.model_files import conf_dir

    version.setbase("1.3")
    app = Hydra.create_main_hydra2("llmlab", create_config_search_path(str(conf_dir())))
    try:
        app.run("config", run, [*overrides, "hydra.mode=RUN"])
    finally:
        GlobalHydra.instance().clear()


def _run(flags: Sequence[str], composed: Composed, folders: Sequence[str]) -> int | None:
    from dataclasses import replace

    def task(cfg: DictConfig) -> Mapping[str, Any]:
        from llmlab.training.run import train

        return train(replace(composed, cfg=cfg))

    _app(flags, [*composed.effective, *_own_folder(flags, composed.effective, folders)], folders, task)
    return 0


def _own_folder(flags: Sequence[str], overrides: Sequence[str], folders: Sequence[str]) -> list[str]:
    """hydra.run.dir where none was typed: its names are by the second, and two runs may begin in the same one."""
    if (
        any(o.startswith("hydra.run.dir=") for o in overrides)
        or set(flags) & SHOW
        # Several processes are started for one run: they have to share its folder.
        or any(r in os.environ for r in ranks.VARIABLES)
    ):
        return []
    from llmlab.config.hydra_config import hydra_node
    from llmlab.config.spelling import quoted

    named = Path(hydra_node(overrides, folders).run.dir)
    for n in itertools.count(1):
        folder = named if n == 1 else named.with_name(f"{named.name}-{n}")
        try:
            # Made here, not looked for: of two processes that name the same folder mkdir lets only one succeed.
            folder.mkdir(parents=True)
            return [f"hydra.run.dir={quoted(str(folder))}"]
        except FileExistsError:
            if not folder.is_dir():
                raise UserError(f"{folder} is a file; no run folder can be made there") from None
        except OSError as e:
            raise UserError(f"hydra.run.dir={e.filename}: no run folder can be made there: {e.strerror}") from e
    raise AssertionError


def _sweep(flags: Sequence[str], overrides: Sequence[str], folders: Sequence[str]) -> int:
    from llmlab import sweep

    for flag in flags:
        if flag in (*SHOW, "--shell-completion", "-sc"):
            # Hydra 1.3 refuses the two as well, by a ValueError with its traceback.
            raise UserError(f"-m and {flag} exclude each other; leave one of them out")
    return sweep.run(overrides, folders, lambda effective, task: _app(flags, effective, folders, task), _report)


def _report(folder: Path) -> None:
    """The verdict of a sweep, beside its points."""
    from llmlab.report.write import write

    write([folder], out=folder)


EXAMPLES = """\
examples:
  llmlab train                                                  a small LLaMA on the Python documentation, in minutes
  llmlab train model=qwen_moe attention=gqa objective=clm trainer.max_steps=20
  llmlab train experiment=gpt2 size=micro data=files data.path=book.txt      with the numbers of its paper
  llmlab train -m attention=mha,gqa,mla seed=1,2,3 sweep=heads  a sweep, which ends in a verdict: llmlab report
  eval "$(llmlab -sc install=bash)"                             the Tab key completes all of this (also zsh, fish)"""


def usage(argv: Sequence[str]) -> str:
    """Groups, keys and examples, on one screen."""
    from dataclasses import fields, is_dataclass

    from llmlab.config import schema
    from llmlab.config.choices import choices, groups
    from llmlab.config.model_files import families

    lines = ["llmlab train GROUP=CHOICE KEY=VALUE ...   (= python train.py ...)"]
    lines += ["groups and their choices (llmlab parts GROUP: all of them, with their options, SLOT.OPTION=VALUE):"]
    table = {group: families() if group == "model" else choices(group) for group in groups()}
    table["head"] = [f"(or heads.ROLE=NAME) {table['head'][0]}", *table["head"][1:]]
    lines += _columns(table)

    def keys(cls: Any) -> str:
        names = [f.name + (".*" if is_dataclass(f.default_factory) else "") for f in fields(cls)]
        return ", ".join(n for n in names if n != "source")  # which data=NAME chooses

    lines += [
        "",
        "keys:",
        *_wrapped("  model.     ", keys(schema.ModelConfig)),
        *_behind(_wrapped("  train.     ", keys(schema.Train)), "logger. wandb.*, tensorboard.*, samples"),
    ]
    others = "models.ROLE=[WORDS]|RUN|hf=FOLDER  the objective's other models"
    lines += _behind(_wrapped("  data.      ", keys(schema.Data)), others)
    lines += [f"  budget.    {keys(schema.Budget)} (one of them)    tokenizer. {keys(schema.Tokenizer)}"]
    lines += [
        "  trainer.   arguments of Lightning's Trainer: max_steps, devices, ...    placement. "
        + keys(schema.Placement),
        "  seed, precision, resume=RUN, resume_from, init_from=RUN|hf=FOLDER, init_from.embedding|tokenizer, hydra.run.dir=DIR",
        "  flags: --config-dir, --cfg, -m (sweep=NAME, hydra/launcher=joblib hydra.launcher.n_jobs=2, hydra/sweeper=optuna)",
    ]
    return "\n".join([*lines, "", EXAMPLES])


def _columns(table: Mapping[str, Sequence[str]], width: int = WIDTH, most: int = 58) -> list[str]:
    """Groups with few choices stand two in a line, behind the others; long lists are cut."""
    joined = {group: ", ".join(names) or "(none yet)" for group, names in table.items()}
    lines, short = [], []
    for group, names in joined.items():
        if len(names) <= most:
            short.append(f"  {group:<11}{names}")
        else:
            room = width - 13
            lines.append(
                f"  {group:<11}{names if len(names) <= room else names[: room - 5].rpartition(',')[0] + ', ...'}"
            )
    short.sort(key=len, reverse=True)  # the longer ones on the left leave the right its room
    half = -(-len(short) // 2)
    right = [*short[half:], ""]
    left = max(map(len, short[:half]), default=0) + 2
    return lines + [f"{a:<{left}}{b.strip()}".rstrip() for a, b in zip(short[:half], right, strict=False)]


def _wrapped(head: str, text: str) -> list[str]:
    import textwrap

    return textwrap.wrap(text, WIDTH, initial_indent=head, subsequent_indent=" " * len(head))


def _behind(lines: list[str], text: str) -> list[str]:
    """Lines with a text behind the last, or on a line of its own where that has no room."""
    both = f"{lines[-1]}    {text}"
    return [*lines[:-1], both] if len(both) <= WIDTH else [*lines, f"  {text}"]
