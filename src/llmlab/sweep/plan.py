"""The plan of a sweep: its points, composed and checked before any of them begins, and their folders."""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmlab.config import choices, explain, hydra_config, spelling
from llmlab.config.compose import addressed
from llmlab.errors import UserError
from llmlab.files import expanded
from llmlab.sweep import grid as grids

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override
    from omegaconf import DictConfig

# Choices that Hydra has only if a package is installed: {choice: (module, extra of llmlab)}.
EXTRAS = {
    "hydra/sweeper=optuna": ("hydra_optuna_sweeper", "optuna"),
    "hydra/launcher=joblib": ("hydra_joblib_launcher", ""),
    "hydra/launcher=submitit_local": ("hydra_submitit_launcher", "slurm"),
    "hydra/launcher=submitit_slurm": ("hydra_submitit_launcher", "slurm"),
    "hydra/launcher=ray": ("hydra_ray_launcher", "ray"),
}
MOST_POINTS = 10_000  # each is a run, and composing and checking one takes some 10 ms
FOR_ONE_RUN = {
    "hydra.run.dir": "it places one run; hydra.sweep.dir=FOLDER places a sweep",
    "hydra.sweep.subdir": "the folders of points are named by their overrides; leave it out",
    "resume": "it goes on with one run; the command of a sweep, typed again, goes on with the sweep",
}


@dataclass(frozen=True)
class Point:
    """One run of a sweep. `hash`: of everything in its resolved config that changes its numbers."""

    folder: str
    overrides: tuple[str, ...]
    hash: str


@dataclass(frozen=True)
class Plan:
    """A sweep. `keys`: what is swept and its values, as typed; `fixed`: the other overrides; handed: all as the sweeper
    is given them.

    own: overrides of Hydra itself; defaults: those that llmlab adds. jobs: points that run at once on this machine;
    gpus: what CUDA calls this machine's, to be shared out among them, empty where the launcher does that itself.
    adaptive: the points are chosen as results come in (optuna), `trials` of them; else `points` are all.
    """

    name: str
    folder: Path
    typed: tuple[str, ...]
    handed: tuple[str, ...]
    own: tuple[str, ...]
    defaults: tuple[str, ...]
    keys: dict[str, list[str]]
    fixed: tuple[str, ...]
    points: tuple[Point, ...]
    jobs: int
    gpus: tuple[str, ...] = ()
    adaptive: bool = False
    trials: int = 0
    opened: frozenset[str] = frozenset()  # keys to which Hydra wants a "+", which llmlab does not ask for

    @property
    def total(self) -> int:
        return self.trials if self.adaptive else len(self.points)


def make_plan(overrides: Sequence[str], folders: Sequence[str] = ()) -> Plan:
    """Compose and check every point, and write nothing. UserError with all problems, each naming its points."""
    known = choices.known_choices(folders)
    overrides = spelling.spelled(overrides, lambda: known.choices("data"), sweep=True)
    overrides = addressed(overrides, folders)
    _check_extras(overrides)
    parsed, problems = explain.parse(overrides, known, sweep=True)
    problems += [f"{o.input_line}: {FOR_ONE_RUN[o.key_or_group]}" for o in parsed if o.key_or_group in FOR_ONE_RUN]
    swept_own = [o for o in parsed if _is_hydra(o) and o.is_sweep_override()]
    problems += [f"{o.input_line}: an option of Hydra itself can't be swept; give it one value" for o in swept_own]
    problems += _name_problems(parsed)
    problems += [p for o in parsed if o.is_range_sweep() and (p := _range_problem(o))]  # which have a first value, then
    if problems:
        raise UserError("\n".join(problems))
    own = tuple(str(o.input_line) for o in parsed if _is_hydra(o))
    typed = tuple(str(o.input_line) for o in parsed if not _is_hydra(o))

    first = [grids.first_override(o) for o in parsed if not _is_hydra(o)]
    node = _hydra_node(first, own, folders, known)
    with hydra_config.session(folders):
        specs = _with_params(node, typed)
    # Any other class counts as adaptive: all but Hydra's own choose points as results come in.
    adaptive = not str(node.sweeper._target_).endswith(".BasicSweeper")
    problems = [p for o in specs for p in _sweep_problems(o, adaptive)]
    if problems:
        raise UserError("\n".join(problems))

    swept = [o for o in specs if o.is_sweep_override()]
    # Before the points are listed, of which there may be too many to hold.
    total = math.prod(grids.n_values(o) for o in swept)
    if not adaptive and total > MOST_POINTS:
        raise UserError(f"the sweep has {total:,.0f} points; at most {MOST_POINTS:,} are run")
    with hydra_config.session(folders):
        grid = grids.trial_points(specs) if adaptive else grids.grid_points(specs)
        keys = {o.get_key_element(): [] if adaptive else list(o.sweep_string_iterator()) for o in swept}
    hashes, opened = grids.check_points(grid, list(keys), folders)
    points = tuple(Point(grids.point_name(o, list(keys)), tuple(o), h) for o, h in zip(grid, hashes, strict=True))
    given = [o for o in parsed if o.key_or_group == "sweep" and o.value() is not None]
    texts = sorted(typed, key=lambda t: (t.partition("=")[0] not in keys, t))
    name = str(given[0].value()) if given else grids.safe_name(",".join(texts) or "defaults", 60)
    typed_dir = any(o.key_or_group == "hydra.sweep.dir" for o in parsed)
    return Plan(
        name=name,
        folder=expanded(str(node.sweep.dir) if typed_dir else f"{node.sweep.dir}/{name}").absolute(),
        typed=typed,
        handed=tuple(_sweeper_arguments(specs, typed)) if adaptive else typed,
        own=own,
        defaults=_defaults(node, own, adaptive),
        keys=keys,
        fixed=tuple(
            f for o, f in zip(specs, map(grids.first_override, specs), strict=True) if not o.is_sweep_override()
        ),
        points=() if adaptive else points,
        jobs=_n_jobs(node, len(points), adaptive),
        gpus=gpus_here() if "Joblib" in str(node.launcher._target_) else (),
        adaptive=adaptive,
        trials=int(node.sweeper.get("n_trials") or 0),
        opened=opened,
    )


def _is_hydra(o: Override) -> bool:
    return o.is_hydra_override()


def _check_extras(overrides: Sequence[str]) -> None:
    """UserError for a launcher or sweeper whose package is not installed; Hydra would only say that there is no such name."""
    for override in overrides:
        module, extra = EXTRAS.get(override, ("", ""))
        if module and not is_installed(f"hydra_plugins.{module}"):
            package = module.replace("_", "-")
            install = f"the extra {extra}: pip install 'llmlab[{extra}]'" if extra else f"pip install {package}"
            raise UserError(f"{override} needs {install} (the package {package})")


def is_installed(module: str) -> bool:
    """True if a module can be imported, also one inside a package that is missing."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _name_problems(parsed: Sequence[Override]) -> list[str]:
    found = []
    for o in parsed:
        if o.key_or_group != "sweep" or o.value() is None:
            continue
        if o.is_sweep_override() or grids.safe_name(str(o.value())) != str(o.value()) or str(o.value()).startswith("."):
            found.append(f"{o.input_line}: it names the sweep's folder; use letters, digits and any of . = + - _")
    return found


def _range_problem(o: Override) -> str | None:
    if not grids.n_values(o):
        return f"{o.input_line}: no value is left of it"
    return f"{o.input_line}: more than {MOST_POINTS:,} values" if grids.n_values(o) > MOST_POINTS else None


def _sweep_problems(o: Override, adaptive: bool) -> list[str]:
    if not o.is_sweep_override():
        return []
    if o.is_interval_sweep():
        advice = "a grid needs values, as 1e-3,3e-3 or range(1,4); intervals are for hydra/sweeper=optuna"
        return [] if adaptive else [f"{o.input_line}: {advice}"]
    values = list(o.sweep_string_iterator())
    if not values:
        return [f"{o.input_line}: no value is left of it"]
    return [f"{o.input_line}: {v} is given twice" for v in dict.fromkeys(values) if values.count(v) > 1]


def _hydra_node(first: Sequence[str], own: Sequence[str], folders: Sequence[str], known: explain.Known) -> DictConfig:
    """Hydra's own part of the config, interpolations resolved on access."""
    try:
        return hydra_config.hydra_node([*(o for o in first if o), *own], folders)
    except Exception:  # a problem of a point, which is reported with its name when the points are checked
        try:
            return hydra_config.hydra_node(own, folders)
        except Exception as e:
            raise UserError(explain.message(e, None, known)) from e


def _with_params(node: DictConfig, typed: Sequence[str]) -> list[Override]:
    """Overrides in the config's hydra.sweeper.params and typed ones, of which the typed win."""
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser

    # With the config loader a glob() in a value can be expanded.
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    overrides = {}
    for line in (*(f"{k}={v}" for k, v in (node.sweeper.get("params") or {}).items()), *typed):
        (o,) = parser.parse_overrides([line])
        overrides[o.get_key_element()] = o
    return list(overrides.values())


def _sweeper_arguments(specs: Sequence[Override], typed: Sequence[str]) -> list[str]:
    """Typed overrides in the form that the sweeper takes, and ranges from hydra.sweeper.params, which they then replace."""
    return [line for o in specs if (line := grids.sweeper_argument(o)) != str(o.input_line) or line in typed]


def _n_jobs(node: DictConfig, points: int, adaptive: bool) -> int:
    """The largest number of points that run at once on this machine."""
    launcher, cores = str(node.launcher._target_), cores_here()
    if "Joblib" in launcher:
        wanted = int(node.launcher.n_jobs)
        # As joblib counts: -1 is all cores, -2 all but one.
        jobs = wanted if wanted > 0 else max(1, cores + 1 + wanted)
    elif "submitit" in launcher and "Local" in launcher:
        # submitit's local executor starts a process for each job of an array at once.
        jobs = points
    else:
        return 1
    return max(1, min(jobs, int(node.sweeper.n_jobs) if adaptive else points))


def cores_here() -> int:
    """Cores that this process may use: fewer than os.cpu_count() in a container or under taskset."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpus_here() -> tuple[str, ...]:
    """GPUs as CUDA_VISIBLE_DEVICES names them. Counted in /dev, since importing torch for it takes seconds."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    # Empty hides all, and entries may be indices, UUIDs (GPU-...) or MIG devices (MIG-...).
    if visible is not None:
        return tuple(name for name in visible.split(",") if name.strip())
    # nvidia[0-9]*, as /dev has nvidiactl and nvidia-uvm too.
    return tuple(str(i) for i in range(len(list(Path("/dev").glob("nvidia[0-9]*")))))


def _defaults(node: DictConfig, own: Sequence[str], adaptive: bool) -> tuple[str, ...]:
    """Options of Hydra that llmlab sets unless the user does."""
    typed = {o.partition("=")[0] for o in own}
    wanted: dict[str, Any] = {"hydra.sweep.subdir": "."}
    if adaptive:
        # 0.0 by default: one failed trial would end the study.
        wanted["hydra.sweeper.max_failure_rate"] = 1.0
        if "seed" in (node.sweeper.get("sampler") or {}):
            # The same command asks for the same points, which are then skipped where they are complete.
            wanted["hydra.sweeper.sampler.seed"] = 1
        if str(node.launcher._target_).endswith(".BasicLauncher"):
            # 2 by default: two points would be chosen before either has a result, for a launcher that
            # runs one at a time.
            wanted["hydra.sweeper.n_jobs"] = 1
    there: Mapping[str, Any] = node.sweeper
    return tuple(
        f"{k}={v}"
        for k, v in wanted.items()
        if k not in typed and (not k.startswith("hydra.sweeper.") or k.split(".")[2] in there)
    )
