"""The config of a run, whatever it begins from: `llmlab.config.compose` with the hub's reader of checkpoints handed in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from llmlab.config import compose as configs

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

    from llmlab.config.composed import Composed
    from llmlab.config.spec import ModelSpec
    from llmlab.hub.begin import Start


def compose(overrides: Sequence[str] = (), config_dirs: Sequence[str] = (), *, strict: bool = True) -> Composed:
    """As `llmlab.config.compose.compose`, and init_from=hf=FOLDER brings its model and tokenizer, init_from.adapter=FOLDER the
    options of its adapter."""
    return configs.compose(overrides, config_dirs, strict=strict, reader=read_checkpoint, adapter=read_adapter)


def read_checkpoint(name: str) -> Start:
    """The model and the tokenizer of the Hugging Face checkpoint that hf=NAME names."""
    # Needs torch, 1.4 s to import, which most configs do not.
    from llmlab.hub import begin

    return begin.read_start(name)


def read_adapter(folder: str, spec: ModelSpec, typed: Sequence[Override]) -> list[str]:
    """What an adapter of PEFT's is as it is typed here, for a model of `spec`."""
    from llmlab.hub import read_adapter

    return read_adapter.overrides(folder, spec, typed)
