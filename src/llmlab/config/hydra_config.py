"""Configs as Hydra composes them from conf/ and overrides, kept in memory for as long as no YAML file changes."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmlab.config import store
from llmlab.config.choices import groups
from llmlab.config.model_files import conf_dir
from llmlab.config.spelling import parsed

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override
    from omegaconf import DictConfig


@contextmanager
def session(config_dirs: Sequence[str] = ()) -> Iterator[None]:
    """Within, Hydra's compose and its config loader know conf/; also within a job of Hydra's, which has its own.

    config_dirs: folders of the user that the config loader knows too, for glob().
    """
    import hydra
    from hydra.core.global_hydra import GlobalHydra

    # `initialize_config_dir` raises where a Hydra is there already, as within a job, and restores none that was cleared.
    outer = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        # Without version_base Hydra warns, and behaves as 1.1 did.
        with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3", job_name="llmlab"):
            if config_dirs:
                # hydra.searchpath counts while a config is composed; glob() asks the loader itself, which doesn't know it.
                loader: Any = GlobalHydra.instance().config_loader()
                path = loader.get_search_path()
                for folder in config_dirs:
                    path.append("llmlab", f"file://{Path(folder).resolve()}")
                loader.repository.initialize_sources(path)
            yield
    finally:
        # By hand: Hydra's own backup is taken behind our clear(), and has no Hydra in it.
        GlobalHydra.instance().hydra = outer


def hydra_node(overrides: Sequence[str], config_dirs: Sequence[str] = ()) -> DictConfig:
    """Hydra's own part of the config: launcher, sweeper, folders. Raises what Hydra raises."""
    import copy

    from omegaconf import OmegaConf

    # A copy: interpolations of `hydra` reach into all of the config, so its parents are copied too.
    whole = copy.deepcopy(_both(overrides, tuple(config_dirs))[1])
    # Hydra registers ${now:} with use_cache=True: the copy would give the time at which the config was first composed.
    OmegaConf.clear_cache(whole)
    return whole.hydra


def run(overrides: Sequence[str], config_dirs: tuple[str, ...]) -> DictConfig:
    """The config that Hydra composes, a copy of the caller's own.

    Choices alone are composed, which takes 0.1 s, and kept in memory. Values are set in a copy, as Hydra itself sets them: what
    is chosen does not depend on them. One command composes much of it again.
    """
    import copy

    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from omegaconf import open_dict

    chosen, values = _choices_and_values(overrides, config_dirs)
    without, whole = _both(chosen, config_dirs)
    of_hydra = any(o.is_hydra_override() for o in values)
    cfg = copy.deepcopy(whole if of_hydra else without)
    ConfigLoaderImpl._apply_overrides_to_config(values, cfg)
    if of_hydra:
        with open_dict(cfg):
            del cfg["hydra"]
    return cfg


def _choices_and_values(overrides: Sequence[str], config_dirs: tuple[str, ...]) -> tuple[list[str], list[Override]]:
    """(overrides that choose, those that set a value), each in their order; all and none where one is for Hydra to refuse."""
    chosen, values, known = [], [], groups(config_dirs)
    for text in overrides:
        o = parsed(text)
        if o is None or o.is_sweep_override():
            return [*overrides], []
        key = o.key_or_group
        if o.package is None and "/" not in key and key not in known and key != "hydra.searchpath":
            values.append(o)
        elif isinstance(o.value(), dict):  # a value of a group's key, which is set behind those before it
            return [*overrides], []
        else:
            chosen.append(text)
    return chosen, values


def _both(overrides: Sequence[str], config_dirs: tuple[str, ...]) -> tuple[DictConfig, DictConfig]:
    """The config without and with Hydra's own part, not to be changed."""
    folders = (conf_dir(), *(Path(d).resolve() for d in config_dirs))
    return _composed(tuple(overrides), folders, _stamp(folders), store.declare())


# The stamp is among the arguments, so that a changed file is composed anew.
@functools.lru_cache(maxsize=384)  # half a megabyte each
def _composed(overrides: tuple[str, ...], folders: tuple[Path, ...], *as_of: object) -> tuple[DictConfig, DictConfig]:
    import copy

    import hydra
    from omegaconf import open_dict

    # repr, for its quotes: a comma or a bracket in a folder's name would end the list.
    dirs = ",".join(repr(f"file://{d}") for d in folders[1:])
    extra = [f"hydra.searchpath=[{dirs}]"] * bool(dirs)
    with session():
        # Hydra leaves its own part out by default; composing a second time for it would cost as much again.
        whole = hydra.compose("config", [*overrides, *extra], return_hydra_config=True)
    cfg = copy.deepcopy(whole)
    with open_dict(cfg):  # what Hydra composes is in struct mode, which forbids to delete a key
        del cfg["hydra"]
    return cfg, whole


def _stamp(folders: Iterable[Path]) -> tuple[tuple[str, int, int], ...]:
    """A value that changes when a YAML file of these folders does."""
    files = (
        e
        for d in folders
        if d.is_dir()
        for f in (str(d), *_folders(d))
        for e in os.scandir(f)
        # With version_base 1.3 Hydra reads .yaml and no .yml.
        if e.name.endswith("yaml")
    )
    return tuple((e.path, (stat := e.stat()).st_mtime_ns, stat.st_size) for e in files)


def _folders(folder: Path) -> Iterator[str]:
    for entry in os.scandir(folder):
        if entry.is_dir():
            yield entry.path
            yield from _folders(Path(entry.path))
