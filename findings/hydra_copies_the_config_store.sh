#!/usr/bin/env bash
# hydra-core 1.3.8, omegaconf 2.3.1: each config that Hydra composes copies every node of the ConfigStore, those that the
# config does not use too.
#
# Behaviour. To compose, Hydra makes a caching repository, whose first act is copy.deepcopy of the repository of all sources
# (hydra/_internal/config_repository.py). The source of structured configs holds the ConfigStore itself, which is copied with
# all that was ever stored in it. What is read from the store is copied once more when it is read, so the first copy protects
# nothing. The time for one config of one key grows with the number of schemas that a program has registered.
#
# Output seen (one composed config, which reads "config" alone; the factor is of one machine):
#   nodes of 20 keys in the store: 1, copies of such a node: 1
#   nodes of 20 keys in the store: 401, copies of such a node: 401
#   compose() took 5 times as long
#
# One would have guessed that composing costs what the config has: a registry of schemas is looked up, not copied. It matters
# for a program that registers a schema for each of its hundreds of plugins and composes many configs in one process (a sweep,
# a matrix of tests). A __deepcopy__ of the store that returns the store takes it away.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check hydra-core==1.3.8 omegaconf==2.3.1
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import dataclasses
import time

import hydra
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig

Schema = dataclasses.make_dataclass("Schema", [(f"key_{i}", int, i) for i in range(20)])
store = ConfigStore.instance()
store.store(name="config", node=Schema)
copied = 0
original = DictConfig.__deepcopy__


def counting(self, memo):
    global copied
    copied += self._metadata.object_type is Schema
    return original(self, memo)


def compose():
    """(nodes that were copied before the config itself was read, seconds)"""
    global copied
    copied, least = 0, float("inf")
    with hydra.initialize(version_base=None):
        DictConfig.__deepcopy__ = counting
        from hydra._internal.config_repository import CachingConfigRepository
        from hydra.core.global_hydra import GlobalHydra

        CachingConfigRepository(GlobalHydra.instance().config_loader().repository)
        DictConfig.__deepcopy__ = original
        for _ in range(5):
            since = time.perf_counter()
            hydra.compose("config")
            least = min(least, time.perf_counter() - since)
    return copied, least


few = compose()
print(f"nodes of 20 keys in the store: 1, copies of such a node: {few[0]}")
for i in range(400):
    store.store(group="unused", name=f"plugin_{i}", node=Schema)
many = compose()
print(f"nodes of 20 keys in the store: 401, copies of such a node: {many[0]}")
print(f"compose() took {many[1] / few[1]:.0f} times as long")
ok = few[0] == 1 and many[0] == 401 and many[1] > 2 * few[1]
print("as described" if ok else "not as described: it has changed")
raise SystemExit(not ok)
PYTHON
