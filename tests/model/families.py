"""What the tests of models share: every family in a tiny size, and a batch for it."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor

from llmlab.config import layout
from llmlab.config.compose import compose
from llmlab.config.composed import Composed
from llmlab.config.spec import ModelSpec
from llmlab.model.build import build_model
from llmlab.model.model import Model

FAMILIES = (
    "gpt2",
    "gpt_neox",
    "glm_130b",
    "glm_2022",
    "baichuan",
    "stablelm",
    "mpt",
    "bloom",
    "opt",
    "gpt3",
    "gpt_neo",
    "gpt1",
    "lstm",
    "phi",
    "falcon",
    "llama3",
    "llama1",
    "llama2",
    "mistral",
    "mixtral",
    "qwen2",
    "qwen3",
    "gemma",
    "gemma2",
    "deepseek_v2",
    "phi3",
    "olmo",
    "olmo2",
    "glm",
    "glm4",
    "chatglm1",
    "chatglm2",
    "qwen1",
    "qwen_moe",
    "qwen2_moe",
    "gemma3",
    "deepseek_v3",
    "bert",
    "albert",
    "roberta",
    "spanbert",
    "distilbert",
    "electra",
    "mpnet",
    "deberta_v3",
    "modernbert",
    "bert_generation",
    "xlnet",
    "elmo",
    "t5",
    "t5_v1_1",
    "bart",
    "mt5",
    "pegasus",
)
QUICK = ("gpt2", "llama3", "gemma3", "deepseek_v3", "albert", "t5")  # between them they take nearly every path
ENCODER_DECODERS = ("t5", "t5_v1_1", "bart", "mt5", "pegasus")
VOCABULARY = 61
TINY = (
    "model.dim=32",
    "model.n_layers=2",
    "model.n_heads=4",
    f"model.vocab_size={VOCABULARY}",
    "model.max_positions=40",
)
OWN = {
    "gpt_neo": ("kinds.local.window.left=3",),
    "gpt3": ("kinds.strided.window.stride=3",),
    "deepseek_v2": ("model.n_layers=3",),
    "gemma2": ("kinds.local.window.left=3",),
    "mistral": ("window.left=4",),
    "gemma3": ("model.n_layers=3", "kinds.local.window.left=3"),
    "deepseek_v3": ("model.n_layers=3",),
    "modernbert": ("model.n_layers=3", "kinds.local.window.left=4", "kinds.local.window.right=3"),
    "t5": ("model.n_layers=4",),
    "t5_v1_1": ("model.n_layers=4",),
    "bart": ("model.n_layers=4",),
    "mt5": ("model.n_layers=4",),
    "pegasus": ("model.n_layers=4",),
    # Their own objective has no scores of the vocabulary, which these tests read.
    "electra": ("objective=mlm",),
    "spanbert": ("objective=mlm",),
    "elmo": ("objective=mlm",),
    "deberta_v3": ("objective=mlm",),
}
PREFIXED = ("glm_2022", "glm_130b", "chatglm1")  # whose text begins with a prefix that sees itself
DECODING = {  # what a family is given so that it decodes
    "bert": ("objective=clm",),
    "albert": ("objective=clm",),
    "roberta": ("objective=clm",),
    "spanbert": ("objective=clm",),
    "distilbert": ("objective=clm",),
    "electra": ("objective=clm",),
    "mpnet": ("objective=clm",),
    "deberta_v3": ("objective=clm",),
    "modernbert": ("objective=clm",),
    "xlnet": ("objective=clm",),
    "elmo": ("objective=clm",),
    **dict.fromkeys(PREFIXED, ("objective=clm",)),
}


def mostly_slow(cases: Iterable[Any], quick: Iterable[Any] = QUICK) -> list[Any]:
    """Cases of a test: those in `quick` run with the fast tests, the others with the slow ones."""
    quick = list(quick)
    return [case if case in quick else pytest.param(case, marks=pytest.mark.slow) for case in cases]


@lru_cache(maxsize=64)
def composed(*overrides: str) -> Composed:
    return compose(overrides)


def tiny(family: str, *overrides: str) -> tuple[str, ...]:
    """Overrides that make a family tiny; of those of one key the last counts."""
    every = (*TINY, *OWN.get(family, ()), *overrides)
    last = {o.partition("=")[0]: o for o in every}
    return (f"model={family}", *last.values())


def spec(*overrides: str) -> ModelSpec:
    return layout.resolve(composed(*overrides))


def build(*overrides: str, seed: int = 1, wake: bool = True) -> Model:
    """A model in eval mode. wake: parameters that begin as constants or small get random values, so that all count."""
    return woken(spec(*overrides), seed) if wake else build_model(spec(*overrides), seed).eval()


def woken(described: ModelSpec, seed: int = 1) -> Model:
    model = build_model(described, seed).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in (t for t in [*model.parameters(), *model.buffers()] if t.is_floating_point()):
            std = 0.3 if tensor.dim() > 1 else 0.1
            tensor.add_(torch.randn(tensor.shape, generator=generator) * std)
    return model


def ids(batch: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(1, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


def batch(model: Model, length: int = 12, size: int = 2, seed: int = 0) -> dict[str, Tensor]:
    """Random ids, and a source (with padding) for an encoder-decoder."""
    out = {"ids": ids(size, length, seed)}
    if model.spec.topology == "encoder_decoder":
        out["source_ids"] = ids(size, 9, seed + 1)
        out["source_valid"] = torch.arange(9)[None, :] < torch.tensor([9, 6, 7, 5])[:size, None]
    if "prefix_len" in model.all_stacks()[-1].mask.needs:
        out["prefix_len"] = torch.tensor([4, 7, 2, 5])[:size]
    return out
