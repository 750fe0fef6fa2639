"""A family is held to what the reference implementation said of the same weights, without having that implementation.

`reference.json` was written by tests/check/record_reference.py: the tiny family with the weights of `settle`, saved as a
checkpoint, was read by `transformers`, which gave logits in float64. Some of them are kept, of three batches: of full
rows, of rows padded on the right, and of rows padded on the left. Families that `transformers` lacks but for a kin with
other names of the same tensors (Baichuan, ChatGLM2, Qwen) are held to the kin; it has nothing like GPT-3's strides or the
first GLMs.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llmlab.check.subject import VOCABULARY, NotApplicable, Subject, same
from llmlab.config.spec import ModelSpec
from llmlab.model.build import assemble, materialise
from llmlab.model.model import Model
from llmlab.model.roles import walk
from llmlab.seeds import key

FILE = Path(__file__).with_name("reference.json")
LENGTHS = (13, 9, 6)  # of the rows; the first is longer than the tiny families' windows, which are 3 or 4
ANSWER = 7  # tokens of an encoder-decoder's decoder
PADDING = 1  # what stands where there is no token; no token is below FIRST, which some families give a meaning
FIRST = 3
KEPT = 24  # logits of a batch
TOLERANCE = 1e-5


def reference(subject: Subject) -> None:
    """Logits are those that the reference implementation gives with the same weights, padded on either side too."""
    recorded = record()["families"].get(subject.case.name)
    if recorded is None or sorted(recorded["overrides"]) != sorted(subject.case.overrides):
        raise NotApplicable("the reference implementation has not been asked about this model")
    model = settle(asked(subject, recorded["more"]).spec)
    for name, batch in batches(model.spec).items():
        want = torch.tensor(recorded["logits"][name], dtype=torch.float64)
        same(kept(logits(model, batch), batch), want, f"logits of {name}", TOLERANCE)


def asked(subject: Subject, more: Sequence[str]) -> Subject:
    """The family with what a checkpoint needs said, or can't say otherwise."""
    words = {word.partition("=")[0]: word for word in (*subject.case.overrides, *more)}
    return Subject(replace(subject.case, overrides=tuple(words.values()))) if more else subject


@cache
def record() -> dict[str, Any]:
    return json.loads(FILE.read_text())


@torch.no_grad()
def settle(spec: ModelSpec) -> Model:
    """The model in float64 whose every value follows from its path alone, whatever the version of torch."""
    model = assemble(spec)
    materialise(model)
    for path, module, name, parameter, _ in walk(model):
        constant = getattr(module, "constants", {}).get(name, 0.0)
        spread = 0.5 if parameter.dim() > 1 else 0.2
        parameter.copy_(constant + spread * noise(path, parameter.shape))
    for path, buffer in model.named_buffers():
        buffer.copy_(0.1 * noise(path, buffer.shape))
    return model.double().eval()


def noise(path: str, shape: torch.Size) -> Tensor:
    """Uniform in [-1, 1), multiples of 2^-23, in float32. numpy keeps the stream of a bit generator for ever."""
    raw = np.random.PCG64(key(path)).random_raw(max(shape.numel(), 1))[: shape.numel()] >> np.uint64(40)
    return torch.from_numpy((raw.astype(np.float32) / 2**23) - 1).view(shape)


def batches(spec: ModelSpec) -> dict[str, dict[str, Tensor]]:
    """What the model is given: ids, and with `valid` of two batches where padding is. An encoder reads the padded ones."""
    raw = np.random.PCG64(key("ids")).random_raw(len(LENGTHS) * (LENGTHS[0] + ANSWER))
    every = torch.from_numpy((FIRST + raw % np.uint64(VOCABULARY - FIRST)).astype(np.int64)).view(len(LENGTHS), -1)
    text, answer = every.split([LENGTHS[0], ANSWER], 1)
    where, lengths = torch.arange(LENGTHS[0]), torch.tensor(LENGTHS)[:, None]
    padding = {
        "full rows": None,
        "rows padded on the right": where < lengths,
        "rows padded on the left": where >= LENGTHS[0] - lengths,
    }
    ids, valid = ("source_ids", "source_valid") if spec.topology == "encoder_decoder" else ("ids", "valid")
    out = {}
    for name, kept_BT in padding.items():
        batch = {ids: text} if kept_BT is None else {ids: text.where(kept_BT, PADDING), valid: kept_BT}
        out[name] = {**batch, "ids": answer} if ids == "source_ids" else batch
    return out


@torch.no_grad()
def logits(model: Model, batch: dict[str, Tensor]) -> Tensor:
    return model(batch, heads={"tokens": None}).heads["tokens"]


def kept(logits_BTV: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """(KEPT,): of tokens evenly far apart, the last of all among them, one logit each."""
    valid = batch.get("valid", torch.ones(logits_BTV.shape[:2], dtype=torch.bool))
    tokens_nV = logits_BTV[valid]
    which = torch.arange(1, KEPT + 1)
    return tokens_nV[which * len(tokens_nV) // KEPT - 1, which * 7 % tokens_nV.shape[1]]
