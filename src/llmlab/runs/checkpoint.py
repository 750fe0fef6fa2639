"""A checkpoint is a folder `step=00000040`: model.safetensors, state.pt (all else) and manifest.json with their sha256; of
a run that trains companions, models/ROLE.safetensors too.

It is written to a hidden folder beside it, fsynced, and committed by one rename; what a reader finds under the name is
complete, and the manifest shows a bit that flipped later. Nothing in it needs unpickling: state.pt is read with
`weights_only=True`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from llmlab.errors import UserError
from llmlab.files import save_tensors, sha256
from llmlab.json_files import read_json
from llmlab.model import finite
from llmlab.runs.files import EXPORT, identity  # EXPORT: the manifest that `llmlab export` writes, without a state

FOLDER = "checkpoints"
WEIGHTS, STATE, MANIFEST = "model.safetensors", "state.pt", "manifest.json"
SCHEMA = 1
COMPANION = re.compile(r"models/([^\W\d]\w*)\.safetensors")
# A tensor of a companion, beside those of the trained model. The first character is no digit, as a role is a Python
# name (it is an argument of `loss`).
OF_COMPANION = re.compile(r"models\.([^\W\d]\w*)\.(.+)")
# [0-9], as \d takes digits of other scripts; 18 of them are below 2**63.
NAMED = re.compile(r"step=([0-9]{1,18})")


class File(TypedDict):
    size: int
    sha256: str


class Manifest(TypedDict):
    """step: of the optimizer. run: `files.identity` of the run that wrote it. Neither is in older ones."""

    schema: int
    sha256: str
    files: dict[str, File]
    tied: dict[str, str]
    step: NotRequired[int]
    run: NotRequired[str | None]


def name(step: int) -> str:
    return f"step={step:08d}"


def step_of(path: Path) -> int:
    """The step of a checkpoint by its name, or of what was exported from one."""
    if (named := NAMED.fullmatch(path.name)) and not is_export(path):
        return int(named[1])
    return _manifest(path).get("step", 0)


def is_export(path: Path) -> bool:
    return (path / EXPORT).exists()


def tied(path: Path, role: str | None = None) -> dict[str, str]:
    """{name of a tensor that is another's memory: the other's name, under which it is stored}. role: of a companion's."""
    pairs = _manifest(path)["tied"].items()
    if role is not None:
        inside = f"models.{role}."
        return {a.removeprefix(inside): b.removeprefix(inside) for a, b in pairs if a.startswith(inside)}
    return {alias: owner for alias, owner in pairs if not OF_COMPANION.fullmatch(alias)}


def roles(path: Path) -> list[str]:
    """The companions whose weights a checkpoint has."""
    return [match[1] for name in _manifest(path)["files"] if (match := COMPANION.fullmatch(name))]


def weights_sha256(path: Path) -> str:
    """The sha256 of a sound checkpoint's weights."""
    return _manifest(path)["files"][WEIGHTS]["sha256"]


def seal(folder: Path, manifest: str, names: Sequence[str], about: Mapping[str, Any]) -> None:
    """Write the manifest of files in `folder`, and bring all to the disk."""
    files = {n: {"size": (folder / n).stat().st_size, "sha256": sha256(folder / n)} for n in names}
    (folder / manifest).write_text(sealed({"schema": SCHEMA, "files": files, **about}) + "\n", encoding="utf-8")
    # Folders too: fsync of a file does not bring its entry in the folder to the disk (fsync(2)).
    for n in dict.fromkeys((*names, manifest, *(str(Path(n).parent) for n in names), ".")):
        _fsync(folder / n)


def all_of(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first; they may be damaged."""
    # By number, not by name: from step 100,000,000 on names are longer than eight digits.
    return sorted((p for p in folder.glob("step=*") if NAMED.fullmatch(p.name)), key=step_of)


def write(path: Path, weights: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Commit a checkpoint as `path`. UserError if it can't be written; those there before are left as they were."""
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        needed = sum(t.nbytes for t in _tensors(weights)) + sum(t.nbytes for t in _tensors(state))
        # Asked first, so that a disk which is too full is not filled up for nothing.
        # `free` is what a plain user may take (statvfs's f_bavail): file systems keep some blocks for root.
        if (free := shutil.disk_usage(path.parent).free) < needed:
            raise OSError(28, f"{needed:,} bytes are needed but {free:,} are free on the disk")
        # A temporary folder that is there was left by a process that had this id before, perhaps on another machine.
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        tensors_once, aliases = _untie(weights)
        files = _by_file(tensors_once)
        for name, tensors in files.items():
            (temporary / name).parent.mkdir(exist_ok=True)
            save_tensors(temporary / name, tensors)
        # Plain values and tensors: what `weights_only` reads. A dict, as it refuses subclasses it does not know.
        torch.save(dict(state), temporary / STATE)
        about = {"tied": aliases, "step": step_of(path), "run": identity(path.parent.parent)}
        seal(temporary, MANIFEST, (*files, STATE), about)
        remove(path)
        # rename(2) refuses a folder that is not empty as its goal, so what was there has been moved away.
        os.rename(temporary, path)
        _fsync(path.parent)  # a rename is on the disk when its folder is
    except (OSError, RuntimeError, SafetensorError) as e:
        # On a full disk torch.save raises a RuntimeError and safetensors a SafetensorError, of which none is an OSError.
        shutil.rmtree(temporary, ignore_errors=True)
        reason = (e.strerror or str(e)) if isinstance(e, OSError) else str(e).splitlines()[0]
        before = [p for p in all_of(path.parent) if p != path]
        last = f"the last one, {before[-1].name}, is intact" if before else "there is none before it"
        raise UserError(f"checkpoint {path} could not be written: {reason}; {last}") from e
    # Ctrl-C in the midst of writing: what is half there would stay until the next start.
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def problem(path: Path) -> str | None:
    """The reason why a checkpoint or an export is not sound, or None. Reads all of it."""
    try:
        manifest = _manifest(path)
        of_companions = [n for n in manifest["files"] if COMPANION.fullmatch(n)]
        names = list(manifest["files"]) if is_export(path) else [WEIGHTS, STATE, *of_companions]
        entries = {n: (manifest["files"][n]["size"], manifest["files"][n]["sha256"]) for n in names}
    except (UserError, OSError, ValueError, KeyError) as e:
        return (
            f"no sound {EXPORT if is_export(path) else MANIFEST} ({str(e) if isinstance(e, UserError) else _short(e)})"
        )
    for file, (size, expected) in entries.items():
        try:
            bytes_now = (path / file).stat().st_size
            if bytes_now != size:
                return f"{file} has {bytes_now} bytes, not {size}"
            # Before it is opened: a pipe would wait for a writer.
            if not (path / file).is_file():
                return f"{file} is no ordinary file"
            if sha256(path / file) != expected:
                return f"{file} is corrupt (its sha256 differs from the manifest's)"
        except OSError as e:
            return f"{file}: {e.strerror}"
    return None if is_export(path) else _misplaced(path, manifest)


def _misplaced(path: Path, manifest: Manifest) -> str | None:
    """Why a sound checkpoint is not the one that its place says: of another step, or of another run."""
    if not (named := NAMED.fullmatch(path.name)):
        return None
    # Manifests had no step once; mapped, what is not used of state.pt is not read.
    try:
        step = manifest["step"] if "step" in manifest else _state(path, mmap=True).get("global_step")
    except UserError as e:
        return str(e).partition("can't be used: ")[2]
    if isinstance(step, int) and step != int(named[1]):
        return f"it holds step {step:,}, whatever its name says"
    home = identity(path.parent.parent) if path.parent.name == FOLDER else None
    if home is not None and manifest.get("run") not in (None, home):
        return "it was written by another run"
    return None


def latest(folder: Path, warn: Callable[[str], None]) -> Path | None:
    """The newest sound checkpoint; each damaged one that is passed over is told to `warn`."""
    for path in reversed(all_of(folder)):
        if (why := problem(path)) is None:
            return path
        warn(f"checkpoint {path.name} is not used: {why}")
    return None


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(weights, state) of a sound checkpoint, those of companions as `models.ROLE.NAME`; UserError if it is damaged."""
    weights = read_weights(path)
    for role in roles(path):
        weights |= {f"models.{role}.{name}": tensor for name, tensor in _weights(path, role).items()}
    return weights, _state(path)


def _state(path: Path, *, mmap: bool = False) -> dict[str, Any]:
    try:
        # weights_only: torch's own unpickler of a few types, which calls nothing that a file names (the default since 2.6).
        state = torch.load(path / STATE, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as e:
        # zip, pickle and torch raise RuntimeError, UnpicklingError, EOFError, KeyError ... for someone else's file.
        raise UserError(f"checkpoint {path} can't be used: {STATE}: {_short(e)}") from e
    if not isinstance(state, dict):
        raise UserError(f"checkpoint {path} can't be used: {STATE} holds no state")
    return state


def _short(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def read_weights(path: Path, role: str | None = None) -> dict[str, Tensor]:
    """The weights of a sound checkpoint, or of a companion in it, on the CPU; UserError if it is damaged."""
    if (why := problem(path)) is not None:
        raise UserError(f"checkpoint {path} can't be used: {why}")
    return _weights(path, role)


def _weights(path: Path, role: str | None = None) -> dict[str, Tensor]:
    file = WEIGHTS if role is None else f"models/{role}.safetensors"
    try:
        weights = load_file(path / file)
        finite.check(weights, f"checkpoint {path} is of a run that has diverged")
        for alias, owner in tied(path, role).items():
            weights[alias] = weights[owner]
    except UserError:
        raise
    except (OSError, ValueError, KeyError, SafetensorError) as e:
        raise UserError(f"checkpoint {path} can't be used: {file}: {_short(e)}") from e
    return weights


def _by_file(weights: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Tensors by the file that has them: those of each companion, under its own names, in one of its own."""
    files: dict[str, dict[str, Tensor]] = {WEIGHTS: {}}
    for name, tensor in weights.items():
        if match := OF_COMPANION.fullmatch(name):
            files.setdefault(f"models/{match[1]}.safetensors", {})[match[2]] = tensor
        else:
            files[WEIGHTS][name] = tensor
    return files


def remove(path: Path) -> None:
    """Out of sight by one rename first, so that a kill leaves no half of it under its name."""
    # `exists` follows links, and a link to nothing would stay in the way.
    if os.path.lexists(path):
        hidden = path.with_name(f".{path.name}.removed-{os.getpid()}")
        os.rename(path, hidden)
        _delete(hidden)


def sweep(folder: Path) -> None:
    """Delete what killed processes left half-written."""
    for path in folder.glob(".step=*"):
        _delete(path)


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        # A pipe, say, which rmtree would open and wait at; and a link, which it refuses.
        path.unlink(missing_ok=True)


def _untie(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Weights without aliases, since safetensors refuses two names for one memory: (each tensor once, {other name: first
    name})."""
    first: dict[Any, str] = {}
    once, tied = {}, {}
    for key, tensor in weights.items():
        place = (tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.shape, tensor.stride())
        # Empty tensors share nothing, and all have the address 0.
        if tensor.numel() and place in first:
            tied[key] = first[place]
        else:
            first[place] = key
            # safetensors refuses views with gaps, and transposed ones.
            once[key] = tensor.detach().contiguous()
    return once, tied


def _tensors(node: object) -> list[Tensor]:
    if isinstance(node, Tensor):
        return [node]
    children = node.values() if isinstance(node, Mapping) else node if isinstance(node, list | tuple) else ()
    return [t for child in children for t in _tensors(child)]


def sealed(content: Mapping[str, Any]) -> str:
    """JSON that bears its own sha256."""
    # Sorted, so that what a reader has parsed gives the text again that was hashed.
    text = json.dumps(content, sort_keys=True)
    return json.dumps({**content, "sha256": hashlib.sha256(text.encode()).hexdigest()}, sort_keys=True)


def _manifest(path: Path) -> Manifest:
    """UserError, OSError or ValueError if it is not as it was written."""
    content: Any = read_json(path / (EXPORT if is_export(path) else MANIFEST), Manifest)
    seal = content.pop("sha256")
    if json.loads(sealed(content))["sha256"] != seal or content["schema"] != SCHEMA:
        raise ValueError("it is corrupt, or of another version of llmlab")
    return content


def _fsync(path: Path) -> None:
    # os.open also takes a folder, which open() refuses; fsync takes a descriptor that is only for reading.
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
