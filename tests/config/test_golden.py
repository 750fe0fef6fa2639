"""The resolved config of every model and experiment is in tests/golden and changes only on purpose: `make golden`.

Published models have the published numbers of parameters.
"""

import difflib
from pathlib import Path

import published
import pytest
from families import QUICK, mostly_slow
from omegaconf import OmegaConf

from llmlab.config import layout, model_files, stages
from llmlab.config.compose import compose
from llmlab.config.composed import Composed
from llmlab.config.model_files import conf_dir
from llmlab.config.trainer import arguments

GOLDEN = Path(__file__).parent.parent / "golden"
NAMES = sorted(
    f"{group}/{file.stem}"
    for group in ("model", "experiment")
    for file in (conf_dir() / group).glob("*.yaml")
    if not stages.has_stages(file)  # which is no config
)

SOME = (*QUICK, *list(published.PUBLISHED)[::9], "albert_large")

GIVEN = {"experiment/nanogpt_shakespeare": [f"data.path={conf_dir() / 'config.yaml'}"]}  # any file that is there


def composed(name: str) -> Composed:
    return compose([name.replace("/", "="), *GIVEN.get(name, ())])


def resolved(found: Composed) -> str:
    """The config as YAML; of the Trainer's arguments, whose defaults are Lightning's, those that conf/ sets."""
    plain = OmegaConf.to_container(found.cfg, resolve=True)
    usual = arguments()
    plain["data"]["path"] = None
    plain["trainer"] = {k: v for k, v in plain["trainer"].items() if v != usual[k][1]}
    return OmegaConf.to_yaml(OmegaConf.create(plain))


@pytest.mark.parametrize("name", mostly_slow(NAMES, [f"model/{name}" for name in SOME]))
def test_the_resolved_config_is_the_one_in_git(name):
    file = GOLDEN / f"{name}.yaml"
    assert file.exists(), f"{name} is new: make golden"
    found = composed(name)
    kept, now = file.read_text(encoding="utf-8"), resolved(found)
    changed = "\n".join(difflib.unified_diff(kept.splitlines(), now.splitlines(), "in git", "now", lineterm="", n=0))
    assert not changed, f"{name} changed; if it should have: make golden\n{changed}"
    if name.startswith("model/"):
        spec = layout.resolve(found)
        assert spec.family == found.cfg.model.family
        of_authors = model_files.published(conf_dir() / f"{name}.yaml")
        assert of_authors == found.cfg.published
        assert bool(of_authors) == (found.cfg.model.dim != 128)
        if of_authors:
            published.check(name.removeprefix("model/"), spec)


def test_what_is_in_git_is_of_something():
    assert sorted(f"{file.parent.name}/{file.stem}" for file in GOLDEN.glob("*/*.yaml")) == NAMES


def write() -> None:
    for old in GOLDEN.glob("*/*.yaml"):
        old.unlink()
    for name in NAMES:
        file = GOLDEN / f"{name}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(resolved(composed(name)), encoding="utf-8")


if __name__ == "__main__":
    write()
