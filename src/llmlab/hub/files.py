"""The files of a checkpoint folder: config.json and tensors as safetensors, one file or shards with an index."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmlab.errors import UserError

# What goes with the weights and is carried along as it is.
BESIDE = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja"),
    *("generation_config.json", "tokenizer.model", "vocab.json", "merges.txt", "vocab.txt"),
)
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I8": torch.int8}
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


def read_tensors(folder: Path, wanted: Sequence[str] | None = None) -> dict[str, Tensor]:
    """Every tensor by its name in the file, or those of `wanted` that are there."""
    from safetensors.torch import load_file

    tensors: dict[str, Tensor] = {}
    for path in _paths(folder):
        with _explained(path):
            if wanted is None:
                tensors |= load_file(path)
                continue
            with safe_open(path) as f:
                tensors |= {name: f.get_tensor(name) for name in f.keys() if name in wanted}  # noqa: SIM118
    return tensors


def read_shapes(folder: Path) -> dict[str, Tensor]:
    """Every tensor on the meta device, from the headers alone."""
    shapes: dict[str, Tensor] = {}
    for path in _paths(folder):
        with _explained(path), safe_open(path) as f:
            for name in f.keys():  # noqa: SIM118
                about = f.get_slice(name)
                dtype = DTYPES.get(about.get_dtype(), torch.uint8)
                shapes[name] = torch.empty(about.get_shape(), dtype=dtype, device="meta")
    return shapes


def _paths(folder: Path) -> list[Path]:
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / INDEX).is_file():
        if any(folder.glob("*.bin")):
            raise UserError(
                f"{folder} holds pickled weights (*.bin), which llmlab never reads; convert them to {WEIGHTS}"
            )
        raise UserError(f"{folder} holds neither {WEIGHTS} nor {INDEX}")
    paths = [folder / name for name in _shards(folder / INDEX)]
    for path in paths:
        if path.parent != folder or not path.is_file():
            name = str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)
            raise UserError(f"{folder / INDEX} names the shard {name!r}, which is not in the folder")
    return paths


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as e:
        raise UserError(f"{path} can't be read: {e}") from None


def safe_open(path: Path) -> Any:
    import safetensors

    return safetensors.safe_open(path, "pt")


def _shards(index: Path) -> list[str]:
    try:
        return sorted({str(name) for name in json.loads(index.read_text())["weight_map"].values()})
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise UserError(f"{index} is not an index of shards: {type(e).__name__}: {e}") from None


def read_beside(folder: Path) -> dict[str, bytes]:
    """The tokenizer's files and the chat template, by name."""
    return {name: (folder / name).read_bytes() for name in BESIDE if (folder / name).is_file()}


def write_folder(
    folder: Path, config: dict[str, Any], tensors: dict[str, Tensor], beside: Mapping[str, bytes] | None = None
) -> None:
    """All files, or none: written beside the folder, then moved into it."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        save_file({k: v.contiguous() for k, v in tensors.items()}, temporary / WEIGHTS, metadata={"format": "pt"})
        (temporary / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        shutil.copymode(temporary / "config.json", temporary / WEIGHTS)  # safetensors' files are their owner's alone
        for name, content in (beside or {}).items():
            (temporary / name).write_bytes(content)
        for name in (*(beside or {}), WEIGHTS, "config.json"):
            os.replace(temporary / name, folder / name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
