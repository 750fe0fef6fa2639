"""The files of a checkpoint folder: config.json and tensors as safetensors, one file or shards with an index."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor

from llmlab.errors import UserError
from llmlab.files import save_tensors
from llmlab.json_files import read_json, short_repr

# What goes with the weights and is carried along as it is.
BESIDE = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja"),
    *("generation_config.json", "tokenizer.model", "vocab.json", "merges.txt", "vocab.txt"),
)
# safetensors' names; whatever else a file holds (float8, int64) is read by its shape and refused as weights.
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I8": torch.int8}
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
# Bytes of a config.json; one of a thousand layers and classes has some 100 KB.
MOST_CONFIG = 16 << 20


class Index(TypedDict):
    """model.safetensors.index.json: the shard that holds each tensor."""

    weight_map: dict[str, str]


def read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; name one that holds config.json and {WEIGHTS}")
    if not path.is_file():
        raise UserError(f"{folder} holds no config.json; a Hugging Face checkpoint has one")
    return read_json(path, dict, most=MOST_CONFIG)


def read_tensors(folder: Path, wanted: Sequence[str] | None = None) -> dict[str, Tensor]:
    """Every tensor by its name in the file, or those of `wanted` that are there."""
    tensors: dict[str, Tensor] = {}
    for path in _paths(folder):
        with explained(path), safe_open(path) as f:
            # safe_open is no mapping: it has keys() and cannot be iterated.
            names = [name for name in f.keys() if wanted is None or name in wanted]  # noqa: SIM118
            _once(names, tensors, path)
            tensors |= {name: f.get_tensor(name) for name in names}
    return tensors


def read_shapes(folder: Path) -> dict[str, Tensor]:
    """Every tensor on the meta device, from the headers alone."""
    shapes: dict[str, Tensor] = {}
    for path in _paths(folder):
        with explained(path), safe_open(path) as f:
            names = list(f.keys())
            _once(names, shapes, path)
            for name in names:
                about = f.get_slice(name)
                # uint8 is no dtype of weights, so `load.fill` names the tensor.
                dtype = DTYPES.get(about.get_dtype(), torch.uint8)
                shapes[name] = torch.empty(about.get_shape(), dtype=dtype, device="meta")
    return shapes


def _once(names: Sequence[str], before: Mapping[str, Tensor], path: Path) -> None:
    if again := next((name for name in names if name in before), None):
        raise UserError(f"{path}: {short_repr(again, 100)} is in another shard too, and only one can be read")


def _paths(folder: Path) -> list[Path]:
    # One file before shards, the order in which transformers looks for them.
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / INDEX).is_file():
        if any(folder.glob("*.bin")):
            raise UserError(
                f"{folder} holds pickled weights (*.bin), which llmlab never reads; convert them to {WEIGHTS}"
            )
        raise UserError(f"{folder} holds neither {WEIGHTS} nor {INDEX}")
    index = folder / INDEX
    about: Index = read_json(index, Index)
    names = sorted(set(about["weight_map"].values()))
    if not names:
        raise UserError(f"{index}: its weight_map is empty")
    for name in names:
        # The index is a stranger's file: a name with a slash would lead out of the folder.
        plain = name not in ("", ".", "..") and not set(name) & set("/\\\0") and len(name.encode()) < 256
        if not plain or not (folder / name).is_file():
            raise UserError(f"{index} names the shard {short_repr(name, 100)}, which is not in the folder")
    return [folder / name for name in names]


@contextmanager
def explained(path: Path) -> Iterator[None]:
    from safetensors import SafetensorError

    try:
        yield
    # RuntimeError is torch's, for a shape of more than 2^63 elements.
    except (SafetensorError, OSError, OverflowError, RuntimeError) as e:
        raise UserError(f"{path} can't be read: {' '.join(str(e).split())[:300]}") from None


def safe_open(path: Path) -> Any:
    import safetensors

    return safetensors.safe_open(path, "pt")


def read_beside(folder: Path) -> dict[str, bytes]:
    """The tokenizer's files and the chat template, by name."""
    return {name: (folder / name).read_bytes() for name in BESIDE if (folder / name).is_file()}


def write_folder(
    folder: Path, config: Mapping[str, Any], tensors: dict[str, Tensor], beside: Mapping[str, bytes] | None = None
) -> None:
    """All files, or none: written beside the folder, then moved into it."""
    folder.mkdir(parents=True, exist_ok=True)
    # In the same folder as the target: os.replace is atomic within a file system only.
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        save_tensors(temporary / WEIGHTS, tensors)
        (temporary / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        for name, content in (beside or {}).items():
            (temporary / name).write_bytes(content)
        # config.json last: a folder without one is no checkpoint, should this process die in between.
        for name in (*(beside or {}), WEIGHTS, "config.json"):
            os.replace(temporary / name, folder / name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
