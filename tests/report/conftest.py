import importlib.util
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from losses import BASE, shifted


@pytest.fixture(scope="session")
def runs():
    """The module beside this file that writes run folders."""
    spec = importlib.util.spec_from_file_location("report_runs", Path(__file__).with_name("runs.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def built(tmp_path):
    """The report over folders, without its files."""
    from llmlab.report.build import build

    return lambda *folders, **how: build(list(folders), tmp_path / "report", **how)


@pytest.fixture
def swept(runs, tmp_path):
    losses = {"mha": BASE, "gqa": shifted(0.004, 0.006, 2), "mla": shifted(-0.03, 0.005), "mqa": shifted(0.03, 0.005)}
    losses["gqa"][5] = None
    return runs.sweep(tmp_path / "sweep", losses)
