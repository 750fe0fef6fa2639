"""Choices on the command line: the groups (slots, and folders of YAML files) and the names in each."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

from llmlab import registry
from llmlab.config.explain import Known
from llmlab.config.model_files import conf_dir
from llmlab.slot_names import SLOTS


def groups(config_dirs: Sequence[str] = ()) -> list[str]:
    """Everything that can be chosen: slots and the folders of YAML files."""
    folders = [d.name for root in (conf_dir(), *map(Path, config_dirs)) for d in root.iterdir() if d.is_dir()]
    # hydra/ holds Hydra's own groups, a launcher's settings for instance.
    return sorted({*SLOTS, *(f for f in folders if f[0] not in "._" and f != "hydra")})


def choices(group: str, config_dirs: Sequence[str] = ()) -> list[str]:
    # Presets beside registered parts: to Hydra both are options of one group.
    files = [f.stem for root in (conf_dir(), *map(Path, config_dirs)) for f in Path(root, group).glob("*.yaml")]
    return sorted({*files, *registry.names(group)})


def known_choices(config_dirs: Sequence[str] = ()) -> Known:
    return Known(groups(config_dirs), functools.partial(choices, config_dirs=config_dirs))
