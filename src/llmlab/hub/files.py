"""The files of a checkpoint folder: config.json and tensors as safetensors, one file or shards with an index."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from torch import Tensor

from llmlab.errors import UserError

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; name one that holds config.json and {WEIGHTS}")
    if not path.is_file():
        raise UserError(f"{folder} holds no config.json; a Hugging Face checkpoint has one")
    try:
        config = json.loads(path.read_text())
    except ValueError as e:
        raise UserError(f"{path} is not JSON: {e}") from None
    if not isinstance(config, dict):
        raise UserError(f"{path} must hold one JSON object")
    return config


def read_tensors(folder: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if (folder / WEIGHTS).is_file():
        names = [WEIGHTS]
    elif (folder / INDEX).is_file():
        names = _shards(folder / INDEX)
    elif any(folder.glob("*.bin")):
        raise UserError(f"{folder} holds pickled weights (*.bin), which llmlab never reads; convert them to {WEIGHTS}")
    else:
        raise UserError(f"{folder} holds neither {WEIGHTS} nor {INDEX}")
    tensors: dict[str, Tensor] = {}
    for name in names:
        path = folder / name
        if path.parent != folder or not path.is_file():
            raise UserError(f"{folder / INDEX} names the shard {name!r}, which is not in the folder")
        try:
            tensors |= load_file(path)
        except SafetensorError as e:
            raise UserError(f"{path} can't be read: {e}") from None
    return tensors


def _shards(index: Path) -> list[str]:
    try:
        return sorted({str(name) for name in json.loads(index.read_text())["weight_map"].values()})
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise UserError(f"{index} is not an index of shards: {type(e).__name__}: {e}") from None


def write_folder(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Both files, or none: written beside the folder, then moved into it."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        save_file({k: v.contiguous() for k, v in tensors.items()}, temporary / WEIGHTS, metadata={"format": "pt"})
        (temporary / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        for name in (WEIGHTS, "config.json"):
            os.replace(temporary / name, folder / name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
