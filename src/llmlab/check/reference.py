"""Check of a family against logits recorded from the reference implementation, which need not be installed.

`reference.json` is written by tests/check/record_reference.py: the tiny family with the weights of `path_seeded_model` is
saved as a checkpoint and read by `transformers`, which computes logits in float64. Some logits of three batches are kept:
full rows, rows padded on the right, rows padded on the left. Baichuan, ChatGLM2 and Qwen are not in `transformers` and are
held to a family there with the same tensors under other names; GPT-3's strided window and the first GLMs have none.
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

from llmlab.check.subject import VOCABULARY, NotApplicable, Subject, assert_close
from llmlab.config.spec import ModelSpec
from llmlab.model.build import assemble, materialise
from llmlab.model.model import Model
from llmlab.model.roles import walk
from llmlab.seeds import key

FILE = Path(__file__).with_name("reference.json")
LENGTHS = (13, 9, 6)  # of the rows; the first is longer than the tiny families' windows, which are 3 or 4
DECODER_LENGTH = 7  # tokens of an encoder-decoder's decoder
PADDING = 1  # what stands where there is no token; no token is below FIRST, which some families give a meaning
FIRST_TEXT_ID = 3
N_LOGITS = 24  # logits of a batch
TOLERANCE = 1e-5


def reference(subject: Subject) -> None:
    """Logits are those that the reference implementation gives with the same weights, padded on either side too."""
    entry = recorded()["families"].get(subject.case.name)
    if entry is None or sorted(entry["overrides"]) != sorted(subject.case.overrides):
        raise NotApplicable("the reference implementation has not been asked about this model")
    model = path_seeded_model(recorded_subject(subject, entry["more"]).spec)
    for name, batch in batches(model.spec).items():
        want = torch.tensor(entry["logits"][name], dtype=torch.float64)
        assert_close(sampled_logits(logits(model, batch), batch), want, f"logits of {name}", TOLERANCE)


def recorded_subject(subject: Subject, more: Sequence[str]) -> Subject:
    """The family with the overrides that a checkpoint of it needs: config.json can't express all of our options."""
    words = {word.partition("=")[0]: word for word in (*subject.case.overrides, *more)}
    return Subject(replace(subject.case, overrides=tuple(words.values()))) if more else subject


@cache
def recorded() -> dict[str, Any]:
    """The contents of reference.json."""
    return json.loads(FILE.read_text(encoding="utf-8"))


@torch.no_grad()
def path_seeded_model(spec: ModelSpec) -> Model:
    """The model in float64 with values that depend on each tensor's path alone, so that any version of torch makes them."""
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
    """Uniform numbers in [-1, 1) in float32, multiples of 2^-23, seeded by the path.

    From raw bits, since numpy (NEP 19) guarantees the stream of a BitGenerator across versions, but neither the methods of
    Generator nor torch do.
    """
    raw = np.random.PCG64(key(path)).random_raw(max(shape.numel(), 1))[: shape.numel()] >> np.uint64(40)
    return torch.from_numpy((raw.astype(np.float32) / 2**23) - 1).view(shape)


def batches(spec: ModelSpec) -> dict[str, dict[str, Tensor]]:
    """{name: batch}: full rows, and rows padded on either side with `valid` beside the ids. In an encoder-decoder the source
    is padded."""
    raw = np.random.PCG64(key("ids")).random_raw(len(LENGTHS) * (LENGTHS[0] + DECODER_LENGTH))
    every = torch.from_numpy((FIRST_TEXT_ID + raw % np.uint64(VOCABULARY - FIRST_TEXT_ID)).astype(np.int64)).view(
        len(LENGTHS), -1
    )
    text, answer = every.split([LENGTHS[0], DECODER_LENGTH], 1)
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
    """(B, T, V) of the head for tokens."""
    return model(batch, heads={"tokens": None}).heads["tokens"]


def sampled_logits(logits_BTV: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """(N_LOGITS,): of tokens evenly far apart, the last of all among them, one logit each."""
    valid = batch.get("valid", torch.ones(logits_BTV.shape[:2], dtype=torch.bool))
    tokens_nV = logits_BTV[valid]
    which = torch.arange(1, N_LOGITS + 1)
    return tokens_nV[which * len(tokens_nV) // N_LOGITS - 1, which * 7 % tokens_nV.shape[1]]
