"""Hugging Face checkpoints in and out: one table a layout, one entry a family."""

from llmlab.hub.load import load_hf
from llmlab.hub.save import save_hf

__all__ = ["load_hf", "save_hf"]
