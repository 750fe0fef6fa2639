"""Parts of other people, and broken ones: nothing but a file is needed, and one broken file breaks no other."""

import json
import os
import re
import sys
import textwrap

import pytest

from tests import warm

PART = '''
import torch
from torch import nn

from llmlab.registry import register


@register("norm", "{name}")
class Scaled(nn.Module):
    """Divides by the largest absolute value (Nobody 2026)."""

    def __init__(self, dim: int, eps: float, /, *, power: float = 1.0):
        super().__init__()
        self.eps, self.power = eps, power
        self.weight = nn.Parameter(torch.empty(dim))
        self.constants = {{"weight": 1.0}}

    def forward(self, x):
        return self.weight * x / (x.abs().amax(-1, keepdim=True) + self.eps) ** self.power
'''

BUILD = """
import json, llmlab
from llmlab.config.compose import compose
model = llmlab.build(["norm={name}", "norm.power=2", "model.n_layers=2", "model.dim=32"])
norm = next(m for p, m in model.named_modules() if p.endswith("attention_norm"))
print(json.dumps([type(norm).__name__, norm.power, compose(["norm={name}"]).cfg.norm.power]))
"""


def run(code_or_args, folder, **env):
    args = code_or_args if isinstance(code_or_args, list) else ["-c", code_or_args]
    env = {**os.environ, "PYTHONPATH": str(folder), **env}
    return warm.run([sys.executable, *args], capture_output=True, text=True, env=env, cwd=folder, timeout=120)


@pytest.mark.slow
def test_a_package_that_announces_itself(tmp_path):
    """A distribution with an entry point, as an installed wheel leaves it."""
    package = tmp_path / "their_parts" / "deep"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").write_text("")
    (package / "__init__.py").write_text("")
    (package / "norms.py").write_text(PART.format(name="theirs"))
    info = tmp_path / "their_parts-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-parts\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[llmlab.plugins]\ntheirs = their_parts\n")
    done = run(BUILD.format(name="theirs"), tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == ["Scaled", 2.0, 1.0]
    listed = run(["-m", "llmlab", "parts", "norm", "--json"], tmp_path)
    part = next(p for p in json.loads(listed.stdout) if p["name"] == "theirs")
    assert part["options"]["power"] == {"type": "float", "doc": "", "required": False, "default": 1.0}
    assert part["paper"] == "Nobody 2026"
    assert part["file"].startswith(os.path.join("their_parts", "deep", "norms.py:"))


@pytest.mark.slow  # processes of their own
def test_one_file_named_in_the_environment(tmp_path):
    (tmp_path / "mine.py").write_text(PART.format(name="mine"))
    done = run(BUILD.format(name="mine"), tmp_path, LLMLAB_PLUGINS="mine")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == ["Scaled", 2.0, 1.0]


@pytest.mark.slow  # processes of their own
def test_broken_files_break_no_others(tmp_path):
    """A file that can't be parsed is a warning, and an error where one of its parts is chosen."""
    pack = tmp_path / "pack"
    pack.mkdir()
    (pack / "__init__.py").write_text("")
    (pack / "good.py").write_text(PART.format(name="good"))
    (pack / "broken.py").write_text(PART.format(name="broken") + "\n    def oops(:\n")
    (pack / "slotless.py").write_text(PART.replace('"norm"', '"nrom"').format(name="x"))
    (pack / "again.py").write_text(PART.format(name="rmsnorm"))
    (pack / "unimportable.py").write_text(
        PART.format(name="unimportable").replace("import torch\n", "import no_such\n")
    )
    env = {"LLMLAB_PLUGINS": "pack"}
    good = run(["-m", "llmlab", "train", "--cfg", "job", "--package", "norm", "norm=good"], tmp_path, **env)
    assert good.returncode == 0
    assert "power: 1.0" in good.stdout
    warnings = good.stderr.splitlines()
    assert all(w.startswith("warning: ") for w in warnings)
    assert len(warnings) == 3
    assert "broken.py:" in good.stderr
    assert "there is no slot 'nrom'; did you mean norm?" in good.stderr
    assert "norm=rmsnorm is registered already, at " in good.stderr
    twice = run(["-m", "llmlab", "train", "norm=rmsnorm"], tmp_path, **env)
    assert twice.returncode == 1
    assert twice.stderr.count("again.py") == 1 and twice.stderr.count("\n") == 3
    assert re.search(r"error: norm=rmsnorm is registered twice, at .*rmsnorm.py:\d+ and at .*again.py:", twice.stderr)
    absent = run(["-m", "llmlab", "train"], tmp_path, LLMLAB_PLUGINS="pack, no_such_module")
    assert absent.returncode == 1
    assert absent.stderr.splitlines()[-1].startswith(
        "error: LLMLAB_PLUGINS=no_such_module: there is no module 'no_such_module'; "
    )
    chosen = run(["-m", "llmlab", "train", "norm=broken"], tmp_path, **env)
    assert chosen.returncode == 1
    assert "error: norm=broken can't be read: " in chosen.stderr
    assert chosen.stderr.count("broken.py") == 1 and chosen.stderr.count("\n") == 3
    code = "import llmlab\ntry: llmlab.build(['norm=unimportable'])\nexcept ValueError as e: print(e)"
    assert "norm=unimportable: " in run(code, tmp_path, **env).stdout


@pytest.mark.slow
def test_a_new_file_in_plugins_is_a_choice(tmp_path):
    """What a contributor does: one file of at most 60 lines below plugins/, here in a copy of that folder."""
    assert len(PART.splitlines()) <= 60
    copy = tmp_path / "llmlab_plugins"
    code = textwrap.dedent(f"""
        import importlib.util, pathlib, shutil, sys
        home = next(iter(importlib.util.find_spec("llmlab_plugins").submodule_search_locations))
        shutil.copytree(home, {str(copy)!r})
        pathlib.Path({str(copy)!r}, "norm", "largest.py").write_text({PART.format(name="largest")!r})
    """)
    assert run(code, tmp_path).returncode == 0
    first = "import sys; sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in repr(f).lower()]\n"
    conf = "import llmlab.config.compose as c, pathlib, importlib.util\n"
    spec = f"home = {conf_home()!r}\nc.conf_dir = lambda: pathlib.Path(home)\n"
    src = f"sys.path.append({src_home()!r})\n"
    done = run(first + src + conf + spec + BUILD.format(name="largest"), tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == ["Scaled", 2.0, 1.0]


def conf_home():
    from llmlab.config.model_files import conf_dir

    return str(conf_dir())


def src_home():
    import llmlab

    return os.path.dirname(os.path.dirname(llmlab.__file__))


def test_wrong_options_of_load():
    from llmlab import registry
    from llmlab.errors import UserError

    with pytest.raises(UserError, match="norm=rmsnrom: there is no such norm; did you mean rmsnorm"):
        registry.load("norm", "rmsnrom", {})
    with pytest.raises(UserError, match="norm.ofset: rmsnorm has no such option; did you mean offset"):
        registry.load("norm", "rmsnorm", {"ofset": 1})
