"""A wheel carries conf/ and plugins/: installed elsewhere, `llmlab` works from any folder."""

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def copied(tmp_path):
    """The checkout's sources, so that building leaves nothing in it."""
    files = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    names = files.stdout.splitlines() or [str(p.relative_to(ROOT)) for p in ROOT.rglob("*") if p.is_file()]
    for name in names:
        if name.split("/")[0] in ("src", "plugins", "conf", "setup.py", "pyproject.toml", "README.md", "LICENSE"):
            target = tmp_path / "checkout" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / name).is_file():
                target.write_bytes((ROOT / name).read_bytes())
    return tmp_path / "checkout"


@pytest.mark.slow  # builds a wheel, makes an environment and trains in it
def test_a_wheel_works_from_another_folder(tmp_path):
    def run(*command, **env):
        done = subprocess.run(
            list(map(str, command)),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=500,
            env={**os.environ, **env},
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path / "wheels", copied(tmp_path))
    (wheel,) = (tmp_path / "wheels").glob("llmlab-*.whl")
    inside = set(zipfile.ZipFile(wheel).namelist())
    carried = [("conf", "llmlab_conf", "*.yaml"), ("plugins", "llmlab_plugins", "*.py")]
    carried.append(("src/llmlab/check", "llmlab/check", "*.json"))  # what the reference said
    carried.append(("src/llmlab/templates", "llmlab/templates", "*.py"))  # what llmlab new writes
    for folder, package, suffix in carried:
        for file in (ROOT / folder).rglob(suffix):
            assert f"{package}/{file.relative_to(ROOT / folder).as_posix()}" in inside, file

    # a new environment that finds this one's packages, but not this one's llmlab
    run(sys.executable, "-m", "venv", "--without-pip", "env")
    python = tmp_path / "env" / "bin" / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    run(*pip, "--python", python, "install", "--no-deps", "--no-index", "--ignore-installed", wheel)
    llmlab = tmp_path / "env" / "bin" / "llmlab"
    parts = json.loads(run(llmlab, "parts", "--json"))
    assert parts["attention"][0]["file"].startswith(str(site.relative_to(tmp_path)))
    small = ["model.n_layers=1", "model.dim=32", "data.max_documents=300", "trainer.max_steps=1"]
    run(llmlab, "train", *small, "hydra.run.dir=out", LLMLAB_CACHE=str(tmp_path / "cache"), OMP_NUM_THREADS="1")
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert (record["status"], record["steps"]) == ("completed", 1)
