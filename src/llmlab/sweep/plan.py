"""What a sweep will run: its points, composed and checked before any of them begins, and the folders they go to."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmlab.config import compose as configs
from llmlab.config import explain
from llmlab.config.schema import SLOTS
from llmlab.errors import UserError

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

FOLDER = "multirun"
# Keys of a run that name it or say what it writes, but change no number of it.
NO_NUMBERS: tuple[str, ...] = (
    "sweep",
    "resume",
    "experiment_name",
    "logger",
    "train.keep",
    "train.sample",
    "train.checkpoint_every",
)
NO_NUMBERS += ("data.num_workers", "trainer.enable_progress_bar", "trainer.enable_model_summary")
# What Hydra offers under a name only if a package is installed: {choice: (module, extra of llmlab)}.
EXTRAS = {
    "hydra/sweeper=optuna": ("hydra_optuna_sweeper", "optuna"),
    "hydra/launcher=joblib": ("hydra_joblib_launcher", ""),
    "hydra/launcher=submitit_local": ("hydra_submitit_launcher", "slurm"),
    "hydra/launcher=submitit_slurm": ("hydra_submitit_launcher", "slurm"),
    "hydra/launcher=ray": ("hydra_ray_launcher", "ray"),
}
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
    """A sweep. `keys`: what is swept and its values, as typed; `fixed`: the other overrides.

    own: overrides of Hydra itself; defaults: those that llmlab adds. jobs: points that run at once on this machine.
    adaptive: the points are chosen as results come in (optuna), `trials` of them; else `points` are all.
    """

    name: str
    folder: Path
    typed: tuple[str, ...]
    own: tuple[str, ...]
    defaults: tuple[str, ...]
    keys: dict[str, list[str]]
    fixed: tuple[str, ...]
    points: tuple[Point, ...]
    jobs: int
    adaptive: bool = False
    trials: int = 0
    opened: frozenset[str] = frozenset()  # keys to which Hydra wants a "+", which llmlab does not ask for

    @property
    def total(self) -> int:
        return self.trials if self.adaptive else len(self.points)


def make(overrides: Sequence[str], folders: Sequence[str] = ()) -> Plan:
    """Compose and check every point. UserError with all problems, each naming its points; nothing is written."""
    known = configs.known_choices(folders)
    _extras(overrides)
    parsed, problems = explain.parse(overrides, known, sweep=True)
    problems += [f"{o.input_line}: {FOR_ONE_RUN[o.key_or_group]}" for o in parsed if o.key_or_group in FOR_ONE_RUN]
    problems += [f"{o.input_line}: several values" for o in parsed if _own(o) and o.is_sweep_override()]
    problems += _name_problems(parsed)
    if problems:
        raise UserError("\n".join(problems))
    own = tuple(str(o.input_line) for o in parsed if _own(o))
    typed = tuple(str(o.input_line) for o in parsed if not _own(o))

    first = [_first(o) for o in parsed if not _own(o)]
    node = _hydra_node(first, own, folders, known)
    with configs.session():
        specs = _with_params(node, typed)
    adaptive = not str(node.sweeper._target_).endswith(".BasicSweeper")
    problems = [p for o in specs for p in _sweep_problems(o, adaptive)]
    if problems:
        raise UserError("\n".join(problems))

    swept = [o for o in specs if o.is_sweep_override()]
    with configs.session():
        grid = _corners(specs) if adaptive else _grid(specs)
        keys = {o.get_key_element(): [] if adaptive else list(o.sweep_string_iterator()) for o in swept}
    hashes, opened = _checked(grid, list(keys), folders)
    points = tuple(Point(point_name(o, list(keys)), tuple(o), h) for o, h in zip(grid, hashes, strict=True))
    given = [o for o in parsed if o.key_or_group == "sweep" and o.value() is not None]
    texts = sorted(typed, key=lambda t: (t.partition("=")[0] not in keys, t))  # what is swept comes first
    name = str(given[0].value()) if given else safe(",".join(texts) or "defaults", 60)
    typed_dir = any(o.key_or_group == "hydra.sweep.dir" for o in parsed)
    return Plan(
        name=name,
        folder=Path(str(node.sweep.dir) if typed_dir else f"{node.sweep.dir}/{name}").expanduser().absolute(),
        typed=typed,
        own=own,
        defaults=_defaults(node, own, adaptive),
        keys=keys,
        fixed=tuple(f for o, f in zip(specs, map(_first, specs), strict=True) if not o.is_sweep_override()),
        points=() if adaptive else points,
        jobs=_jobs(node, len(points), adaptive),
        adaptive=adaptive,
        trials=int(node.sweeper.get("n_trials") or 0),
        opened=opened,
    )


# ---------------------------------------------------------------- names and hashes


def safe(text: str, longest: int = 120) -> str:
    """A file name: the text itself if it can be one, else what is left of it and a hash."""
    kept = re.sub(r"[^\w.=,+@-]+", "_", text)
    if kept == text and len(kept) <= longest:
        return kept
    return f"{kept[: longest - 9]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def point_name(overrides: Iterable[str], keys: Sequence[str]) -> str:
    """The folder of a point: what is swept, sorted, so that the order of typing does not matter."""
    mine = sorted(o for o in overrides if o.partition("=")[0] in keys)
    return safe(",".join(mine) or "point")


def digest(composed: configs.Composed) -> str:
    """sha256 of the resolved config as far as it changes numbers, and of the parts that were typed: those win
    over a family's own in every layer, which the config alone does not show."""
    from omegaconf import OmegaConf

    plain: Any = OmegaConf.to_container(composed.cfg, resolve=True)
    for key in NO_NUMBERS:
        *parents, last = key.split(".")
        node = plain
        for parent in parents:
            node = node.get(parent) or {}
        node.pop(last, None)
    parts = sorted([t.group, t.package, str(t.choice)] for t in composed.typed if t.group in SLOTS and not t.kept)
    return hashlib.sha256(json.dumps([plain, parts], sort_keys=True, default=str).encode()).hexdigest()


# ---------------------------------------------------------------- points


def _own(o: Override) -> bool:
    return o.is_hydra_override()


def _values(o: Override) -> list[str]:
    """The values of a sweep as far as they can be listed: of a range or interval for optuna its ends."""
    value: Any = o.value()
    if o.is_interval_sweep():
        return [str(value.start), str(value.end)]
    return list(o.sweep_string_iterator())


def _first(o: Override) -> str:
    """The override with the first of its values. A glob stands for what it finds, which is known later."""
    from hydra.core.override_parser.types import Glob

    if not o.is_sweep_override():
        return f"{o.get_key_element()}={o.get_value_element_as_str()}" if not o.is_delete() else str(o.input_line)
    if isinstance(o.value(), Glob) and o.config_loader is None:
        return ""
    return f"{o.get_key_element()}={_values(o)[0]}"


def _grid(specs: Sequence[Override]) -> list[list[str]]:
    """The points, expanded as Hydra does it."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    return BasicSweeper.split_arguments(list(specs), None)[0]


def _corners(specs: Sequence[Override]) -> list[list[str]]:
    """What is tried in place of points that no one knows yet: each value or end of each key, the others at their first."""
    base = [_first(o) for o in specs]
    found = [base]
    for i, o in enumerate(specs):
        if o.is_sweep_override():
            found += [[*base[:i], f"{o.get_key_element()}={v}", *base[i + 1 :]] for v in _values(o)[1:]]
    return found


def _checked(
    points: Sequence[Sequence[str]], keys: Sequence[str], folders: Sequence[str]
) -> tuple[list[str], frozenset[str]]:
    """The hash of each point, and the keys that compose opened with a "+"; UserError with the problems of all.

    Points that differ in values alone are composed once.
    """
    opened: set[str] = set()
    problems: dict[str, list[str]] = {}
    hashes: list[str] = []
    known: dict[tuple[str, ...], configs.Composed] = {}
    groups = configs.groups(folders)
    values = [k for k in keys if k not in groups and "@" not in k]
    began = said = time.monotonic()
    for i, overrides in enumerate(points):
        typed = {k: v for k, _, v in (o.partition("=") for o in overrides) if k in values}
        rest = tuple(o for o in overrides if o.partition("=")[0] not in typed)
        try:
            composed = configs.vary(known[rest], typed) if rest in known else None
            if composed is None:
                composed = known[rest] = configs.compose(overrides, folders)
            hashes.append(digest(composed))
            opened |= {o[1:].partition("=")[0] for o in composed.effective if o[0] == "+" and o not in overrides}
        except UserError as e:
            for line in str(e).splitlines():
                problems.setdefault(line, []).append(point_name(overrides, keys))
            if time.monotonic() - began > 20:
                problems[f"(the sweep has {len(points)} points; the first {i + 1} were checked)"] = []
                break
        if len(points) > 20 and time.monotonic() - said > 2:
            print(f"checking the points: {i + 1} of {len(points)}", file=sys.stderr, flush=True)
            said = time.monotonic() + 3
    if problems:
        raise UserError("\n".join(line + _where(names, len(points)) for line, names in problems.items()))
    return hashes, frozenset(opened)


def _where(names: Sequence[str], total: int) -> str:
    if total == 1 or not names:
        return ""
    if len(names) == total:
        return " (in every point)"
    more = f" and {len(names) - 2} more points" if len(names) > 3 else ""
    return f" (in {', '.join(names[: 2 if more else 3])}{more})"


# ---------------------------------------------------------------- what Hydra's own options say


def _extras(overrides: Sequence[str]) -> None:
    for override in overrides:
        module, extra = EXTRAS.get(override, ("", ""))
        if module and not _installed(f"hydra_plugins.{module}"):
            package = module.replace("_", "-")
            install = f"the extra {extra}: pip install 'llmlab[{extra}]'" if extra else f"pip install {package}"
            raise UserError(f"{override} needs {install} (the package {package})")


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _name_problems(parsed: Sequence[Override]) -> list[str]:
    found = []
    for o in parsed:
        if o.key_or_group != "sweep" or o.value() is None:
            continue
        if o.is_sweep_override() or safe(str(o.value())) != str(o.value()) or str(o.value()).startswith("."):
            found.append(f"{o.input_line}: it names the sweep's folder; use letters, digits and any of . = + - _")
    return found


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


def _hydra_node(first: Sequence[str], own: Sequence[str], folders: Sequence[str], known: explain.Known) -> Any:
    """Hydra's own part of the config, interpolations resolved on access."""
    try:
        return configs.hydra_node([*(o for o in first if o), *own], folders)
    except Exception:  # what is wrong with points is said for each of them, later
        try:
            return configs.hydra_node(own, folders)
        except Exception as e:
            raise UserError(explain.message(e, None, known)) from e


def _with_params(node: Any, typed: Sequence[str]) -> list[Override]:
    """Sweeps that the config itself holds in hydra.sweeper.params, and what was typed, which wins."""
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    found = {}
    for line in (*(f"{k}={v}" for k, v in (node.sweeper.get("params") or {}).items()), *typed):
        (o,) = parser.parse_overrides([line])
        found[o.get_key_element()] = o
    return list(found.values())


def _jobs(node: Any, points: int, adaptive: bool) -> int:
    """How many points run at once on this machine, at most."""
    launcher, cores = str(node.launcher._target_), cores_here()
    if "Joblib" in launcher:
        wanted = int(node.launcher.n_jobs)
        jobs = wanted if wanted > 0 else max(1, cores + 1 + wanted)
    elif "submitit" in launcher and "Local" in launcher:
        jobs = points
    else:
        return 1
    return max(1, min(jobs, int(node.sweeper.n_jobs) if adaptive else points))


def cores_here() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _defaults(node: Any, own: Sequence[str], adaptive: bool) -> tuple[str, ...]:
    """Options of Hydra that llmlab sets where the user did not."""
    typed = {o.partition("=")[0] for o in own}
    wanted: dict[str, Any] = {"hydra.sweep.subdir": "."}
    if adaptive:
        wanted["hydra.sweeper.max_failure_rate"] = 1.0  # a point that fails ends no study
        if "seed" in (node.sweeper.get("sampler") or {}):
            wanted["hydra.sweeper.sampler.seed"] = 1  # the same command asks for the same points
        if str(node.launcher._target_).endswith(".BasicLauncher"):
            wanted["hydra.sweeper.n_jobs"] = 1  # each result is known before the next point is chosen
    there: Mapping[str, Any] = node.sweeper
    return tuple(
        f"{k}={v}"
        for k, v in wanted.items()
        if k not in typed and (not k.startswith("hydra.sweeper.") or k.split(".")[2] in there)
    )
