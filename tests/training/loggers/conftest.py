import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from logged import run


@pytest.fixture(autouse=True)
def nowhere(monkeypatch, tmp_path):
    """No key, no settings and no folder of the user's."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in [n for n in os.environ if n.startswith("WANDB") or n == "NETRC"]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def plain(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "plain"
    run(folder, tiny)
    return folder


@pytest.fixture(scope="session")
def both(tiny, tmp_path_factory):
    """A run with every logger, in a sweep's folder."""
    folder = tmp_path_factory.mktemp("runs") / "grid" / "seed=1"
    folder.parent.mkdir()
    (folder.parent / "sweep.json").write_text("{}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(folder.parent))
        patch.delenv("WANDB_API_KEY", raising=False)
        run(folder, tiny, "logger=[wandb,tensorboard]", "logger.wandb.artifact=true", "logger.wandb.tags=[mine]")
    return folder
